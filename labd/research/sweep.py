"""The sweep: a search over a template's parameters, and an honest comparison of what it finds.

Calls the stages in order, each piece through the journal. The search sees the validation split
only; the claim rests on the test split, over seeds that the search never used.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labd.errors import ConfigError, ResearchError, StorageError
from labd.journal import Journal
from labd.research.bench import Bench, Job, gpu_shares
from labd.research.experiment import Cancelled, Tools
from labd.research.provenance import fresh_provenance
from labd.research.record import (
    Claim,
    Importance,
    Provenance,
    ResearchRecord,
    Run,
    TrialStatus,
    Verdict,
)
from labd.research.search import BATCH_SIZE, Better, Observation, influence, propose
from labd.template import (
    MIN_CONFIRM_SEEDS,
    Param,
    Template,
    missing_requirements,
    snapshot,
)

_SPARE = 1.25
"""How much longer than estimated the runs that confirm may take before a time budget is missed."""


@dataclass(frozen=True, slots=True)
class Brief:
    """What is asked of a sweep.

    Raises:
        ConfigError: a number is out of its range.

    """

    task_id: str
    template: Template
    task_text: str
    task_sha256: str
    num_trials: int
    num_confirm_seeds: int
    seed: int = 0
    parallel: int = 1
    """Runs at once. Has no influence on what is found."""
    title: str | None = None
    """``None``: the template's."""
    deadline: float | None = None
    """In `time.monotonic` seconds; the search ends early enough to confirm what it has."""
    gpus: tuple[int, ...] = ()
    """Indices of the GPUs that the runs may share out."""

    def __post_init__(self) -> None:
        least = {"num_trials": 1, "num_confirm_seeds": MIN_CONFIRM_SEEDS, "parallel": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}, and {low} is the least")


def run_sweep(
    brief: Brief,
    tools: Tools,
    journal: Journal,
    results_dir: Path,
    *,
    write: Callable[[ResearchRecord, Path], object] | None = None,
) -> ResearchRecord:
    """Search, confirm, judge and draw; give the record, from which `write` makes the paper.

    The same template, seed and numbers give the same record but for `Run.wall_s`, with any
    `parallel`, and also after a kill: what the journal has is not run again.

    Raises:
        Cancelled: `tools.cancelled` was set.
        ConfigError: the template changed while it was read.
        ResearchError: the template can't be judged: its baseline gives no value, it needs a module
            that is not there, or more GPUs than there are.
        SandboxError: there is no sandbox.
        StorageError: the disk would not take the results.

    """
    _check_means(brief)
    template = snapshot(brief.template, results_dir / "template")
    brief = replace(brief, template=template)
    with Bench(
        template, tools, journal, results_dir, parallel=brief.parallel, gpus=brief.gpus
    ) as lab:
        provenance = _provenance(brief, journal)
        baseline = lab.one(_baseline_job(brief, provenance), stage="baseline")
        if baseline.value is None:
            raise _baseline_failed([baseline], results_dir)
        search = _search(brief, lab, journal, baseline, provenance)
        best = _select(baseline, search.trials, template.metric.better)
        confirmed = _confirm(brief, lab, best, provenance)
    if not any(run.value is not None for run in confirmed.baseline):
        raise _baseline_failed(confirmed.baseline, results_dir)
    tools.progress("analysis", 0, 1, "statistics and parameters")
    record = _record(
        brief,
        journal,
        baseline=baseline,
        search=search,
        best=best,
        confirmed=confirmed,
        provenance=provenance,
    )
    tools.progress("analysis", 1, 1, record.claim.verdict.value)
    record = _with_figures(record, tools, results_dir)
    if write is not None:
        tools.progress("paper", 0, 1, "writing")
        write(record, results_dir)
        tools.progress("paper", 1, 1, "written")
    return record


@dataclass(frozen=True, slots=True)
class _Searched:
    trials: list[Run]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Confirmed:
    baseline: list[Run]
    best: list[Run]


def _check_means(brief: Brief) -> None:
    missing = missing_requirements(brief.template)
    if missing:
        raise ResearchError(
            f"the template needs Python modules that are not installed: {', '.join(missing)}",
            where=str(brief.template.directory),
            fix="Install them into the environment that labd runs in",
        )


def _provenance(brief: Brief, journal: Journal) -> Provenance:
    """Give what the first attempt recorded, so that date and seeds stay what they were."""
    inputs = {
        "template": brief.template.sha256,
        "seed": brief.seed,
        "num_confirm_seeds": brief.num_confirm_seeds,
        "task": brief.task_sha256,
    }

    def fresh() -> dict[str, Any]:
        return fresh_provenance(
            brief.template,
            seed=brief.seed,
            num_confirm_seeds=brief.num_confirm_seeds,
            task_text=brief.task_text,
            task_sha256=brief.task_sha256,
        ).model_dump(mode="json")

    return Provenance.model_validate(journal.step("provenance", inputs, fresh))


def _baseline_job(brief: Brief, provenance: Provenance) -> Job:
    return Job("baseline-000", brief.template.baseline, provenance.trial_seed, "validation")


def _baseline_failed(runs: Sequence[Run], results_dir: Path) -> ResearchError:
    first = runs[0]
    return ResearchError(
        f"the baseline gave no value on {first.split} ({len(runs)} of {len(runs)} runs): {first.reason}",
        where=str(results_dir / first.directory / "log.txt"),
        fix="Make the template's command work with the baseline's parameters",
    )


def _search(
    brief: Brief, lab: Bench, journal: Journal, baseline: Run, provenance: Provenance
) -> _Searched:
    trials: list[Run] = []
    for batch in itertools.count():
        if len(trials) == brief.num_trials:
            break
        proposal = _proposal(brief, journal, [baseline, *trials], provenance.search_seed, batch)
        if proposal["stop"] is not None:
            return _Searched(trials, [proposal["stop"]])
        first = len(trials)
        jobs = [
            Job(f"trial-{first + index:03d}", params, provenance.trial_seed, "validation")
            for index, params in enumerate(proposal["params"])
        ]
        trials += lab.many(jobs, stage="search", done=first, total=brief.num_trials)
    return _Searched(trials, [])


def _proposal(
    brief: Brief, journal: Journal, runs: Sequence[Run], seed: int, batch: int
) -> dict[str, Any]:
    """Give ``params`` to try, or ``stop`` with the reason; recorded, so that a resumed search agrees.

    `runs` are the baseline and all trials so far.
    """
    history = [Observation(run.params, run.value) for run in runs]
    done = len(runs) - 1
    count = min(BATCH_SIZE, brief.num_trials - done)
    better = brief.template.metric.better
    inputs = {**_search_inputs(brief, history), "seed": seed, "count": count}

    def decide() -> dict[str, object]:
        if _out_of_time(brief, runs):
            stop = (
                f"The search ended after {done} of {brief.num_trials} trials, "
                "so that the time given was enough to confirm what it had found."
            )
            return {"params": [], "stop": stop}
        params = propose(
            brief.template.space, history, better=better, count=count, seed=seed, batch=batch
        )
        stop = f"The search ended after {done} trials: every combination had been tried."
        return {"params": params, "stop": None if params else stop}

    decided: dict[str, Any] = journal.step(f"proposal/{batch:03d}", inputs, decide)
    return decided


def _search_inputs(brief: Brief, history: Sequence[Observation]) -> dict[str, Any]:
    observed = [[dict(one.params), one.value] for one in history]
    return {"template": brief.template.sha256, "history": observed}


def _out_of_time(brief: Brief, runs: Sequence[Run]) -> bool:
    """Say whether another batch, and the runs that confirm after it, would pass the deadline."""
    if brief.deadline is None:
        return False
    at_once = len(gpu_shares(brief.template, brief.parallel, brief.gpus))
    to_come = math.ceil(BATCH_SIZE / at_once) + math.ceil(2 * brief.num_confirm_seeds / at_once)
    run_s = statistics.median(run.wall_s for run in runs)
    return time.monotonic() + to_come * run_s * _SPARE > brief.deadline


def _select(baseline: Run, trials: Sequence[Run], better: Better) -> Run | None:
    """Give the best trial on validation, the earliest of equals; `None` if none beats the baseline."""
    sign = 1.0 if better == "higher" else -1.0
    best, best_value = None, sign * (baseline.value or 0.0)
    for run in trials:
        if run.value is not None and sign * run.value > best_value:
            best, best_value = run, sign * run.value
    return best


def _confirm(brief: Brief, lab: Bench, best: Run | None, provenance: Provenance) -> _Confirmed:
    """Run baseline and best on the test split, both over the same fresh seeds; without best the baseline only."""
    arms: list[tuple[str, Mapping[str, Param]]] = [("baseline", brief.template.baseline)]
    if best is not None:
        arms.append(("best", best.params))
    jobs = [
        Job(f"confirm-{arm}-{index:03d}", params, seed, "test")
        for index, seed in enumerate(provenance.confirm_seeds)
        for arm, params in arms
    ]
    runs = lab.many(jobs, stage="confirm", done=0, total=len(jobs))
    return _Confirmed(runs[:: len(arms)], runs[1 :: len(arms)] if best is not None else [])


def _claim(brief: Brief, trials: Sequence[Run], best: Run | None, confirmed: _Confirmed) -> Claim:
    from labd.research.stats import compare, no_candidate

    comparisons = max(1, len(trials))
    baseline = [run.value for run in confirmed.baseline if run.value is not None]
    if not any(run.value is not None for run in trials):
        reason = f"None of the {len(trials)} trials gave a value, so there was nothing to compare."
        if not trials:
            reason = "No trial was run, so there was nothing to compare."
        return no_candidate(
            baseline, verdict=Verdict.INCONCLUSIVE, reason=reason, comparisons=comparisons
        )
    if best is None:
        reason = (
            "No trial was better than the baseline on validation, so there was none to confirm."
        )
        return no_candidate(
            baseline, verdict=Verdict.NO_IMPROVEMENT, reason=reason, comparisons=comparisons
        )
    return compare(
        baseline,
        [run.value for run in confirmed.best if run.value is not None],
        better=brief.template.metric.better,
        planned=brief.num_confirm_seeds,
        comparisons=comparisons,
    )


def _importances(
    brief: Brief, journal: Journal, trials: Sequence[Run], best: Run | None
) -> list[Importance]:
    template = brief.template
    history = [Observation(run.params, run.value) for run in trials]
    inputs = _search_inputs(brief, history)
    shares: dict[str, float] | None = journal.step(
        "importance",
        inputs,
        lambda: influence(template.space, history, better=template.metric.better),
    )
    chosen = template.baseline if best is None else best.params
    return [
        Importance(
            name=spec.name,
            share=None if shares is None else shares[spec.name],
            best=chosen[spec.name],
            baseline=spec.baseline,
        )
        for spec in template.space
    ]


def _record(
    brief: Brief,
    journal: Journal,
    *,
    baseline: Run,
    search: _Searched,
    best: Run | None,
    confirmed: _Confirmed,
    provenance: Provenance,
) -> ResearchRecord:
    template = brief.template
    return ResearchRecord(
        title=brief.title or template.title,
        template=template.name,
        template_title=template.title,
        template_description=template.description,
        researcher="sweep",
        metric=template.metric,
        space=list(template.space),
        baseline_run=baseline,
        trials=search.trials,
        best_trial=None if best is None else best.name,
        best_params=template.baseline if best is None else dict(best.params),
        confirm_baseline=confirmed.baseline,
        confirm_best=confirmed.best,
        claim=_claim(brief, search.trials, best, confirmed),
        importances=_importances(brief, journal, search.trials, best),
        counts=_counts(search.trials, 1 + len(confirmed.baseline) + len(confirmed.best)),
        provenance=provenance,
        notes=[*search.notes, *_failure_notes(confirmed), *template.cautions],
    )


def _counts(trials: Sequence[Run], others: int) -> dict[str, int]:
    by_status = {
        status.value: sum(run.status is status for run in trials) for status in TrialStatus
    }
    return {"trials": len(trials), **by_status, "runs": len(trials) + others}


def _failure_notes(confirmed: _Confirmed) -> list[str]:
    arms = (("the baseline", confirmed.baseline), ("the selected parameters", confirmed.best))
    notes = []
    for name, runs in arms:
        failed = [run for run in runs if run.value is None]
        if failed:
            notes.append(
                f"{len(failed)} of {len(runs)} runs of {name} on test gave no value; "
                f"the first, {failed[0].name}, because {failed[0].reason}."
            )
    return notes


def _with_figures(record: ResearchRecord, tools: Tools, results_dir: Path) -> ResearchRecord:
    from labd.research.plots import draw_figures

    # Not journaled: drawing takes a second, and the files may have stayed behind on another machine.
    if tools.cancelled.is_set():
        raise Cancelled("the task was cancelled")
    tools.progress("figures", 0, 1, "drawing")
    try:
        figures = draw_figures(record, results_dir)
    except OSError as error:
        raise StorageError(
            f"the figures could not be written: {error.strerror}", where=str(results_dir)
        ) from error
    tools.progress("figures", 1, 1, ", ".join(figures))
    return record.model_copy(update={"figures": figures})
