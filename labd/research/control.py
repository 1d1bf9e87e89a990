"""The control arm: what a search over declared parameters finds with as many trials as the model had."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from labd.journal import Journal
from labd.research.bench import Bench
from labd.research.evidence import Arm, judge, values_of
from labd.research.groundwork import Brief
from labd.research.record import Provenance, Run
from labd.research.stats import compare
from labd.research.study import Control
from labd.research.sweep import search, select


@dataclass(frozen=True, slots=True)
class Searched:
    """What the search without a model tried, and its best; `best` is `None` where nothing beat the baseline."""

    trials: list[Run]
    best: Run | None
    notes: list[str]

    @property
    def arms(self) -> list[Arm]:
        """What is to be confirmed of it."""
        return [] if self.best is None else [Arm("control", self.best.params)]


def search_without_model(
    brief: Brief,
    bench: Bench,
    journal: Journal,
    baseline: Run,
    provenance: Provenance,
    *,
    num_trials: int,
) -> Searched:
    """Search the template's parameters with `num_trials` trials on validation, as `researcher: sweep` does."""
    equal = replace(brief, num_trials=num_trials)
    found = search(equal, bench, journal, baseline, provenance, prefix="control-", confirm_arms=3)
    best = select(baseline, found.trials, bench.template.metric.better)
    return Searched(found.trials, best, found.notes)


def control_of(
    bench: Bench,
    searched: Searched,
    confirmed: Mapping[str, Sequence[Run]],
    *,
    planned: int,
    model_trials: int,
) -> Control:
    """Judge the control, and the model's best against it.

    Args:
        bench: for the template's metric.
        searched: the control's search.
        confirmed: the runs on test by side: ``baseline``, and ``control`` and ``best`` where each has one.
        planned: how many runs each side should have had.
        model_trials: how many candidates the model had.

    """
    baseline, own = confirmed["baseline"], confirmed.get("control")
    claim = judge(bench, [run.value for run in searched.trials], baseline, own, planned=planned)
    against = None
    if "best" in confirmed:
        # Where the search found nothing better, its answer is the baseline.
        against = compare(
            values_of(baseline if own is None else own),
            values_of(confirmed["best"]),
            better=bench.template.metric.better,
            planned=planned,
            comparisons=max(1, model_trials + len(searched.trials)),
        )
    chosen = bench.template.baseline if searched.best is None else searched.best.params
    return Control(
        trials=searched.trials,
        best_params=dict(chosen),
        confirm=list(own or []),
        claim=claim,
        against=against,
    )
