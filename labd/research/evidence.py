"""Evidence: the runs on the test split over fresh seeds, and what they say about best against baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from labd.research.bench import Bench, Code, Job
from labd.research.record import Claim, Run, Verdict
from labd.template import Param


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison."""

    name: str
    """Part of its runs' names: ``baseline`` for ``confirm-baseline-000``."""
    params: Mapping[str, Param]
    code: Code | None = None
    """``None``: the template as it is."""


def confirm(
    bench: Bench, arms: Sequence[Arm], seeds: Sequence[int], *, stage: str = "confirm"
) -> list[list[Run]]:
    """Run all arms on the test split, each over the same fresh seeds; give the runs of each arm.

    Where the task's time is nearly over, as many as there was time for: the same seeds of each arm, but perhaps the last.
    The only place where the test split is read.

    Raises:
        OutOfTime: there was time for none.

    """
    jobs = [
        Job(f"confirm-{arm.name}-{index:03d}", arm.params, seed, "test", arm.code)
        for index, seed in enumerate(seeds)
        for arm in arms
    ]
    runs = bench.in_time(jobs, stage=stage)
    return [runs[index :: len(arms)] for index in range(len(arms))]


def judge(
    bench: Bench,
    trials: Sequence[float | None],
    baseline: Sequence[Run],
    best: Sequence[Run] | None,
    *,
    planned: int,
) -> Claim:
    """Give the claim about `best`, which is `None` where no trial beat the baseline on validation.

    Args:
        bench: for the template's metric.
        trials: what each trial gave on validation.
        baseline: its runs on test.
        best: the selected trial's runs on test.
        planned: how many runs each side should have had.

    """
    # scipy takes a second to import; the first runs have started by now.
    from labd.research.stats import compare, no_candidate  # noqa: PLC0415

    comparisons = max(1, len(trials))
    values = values_of(baseline)
    if not any(value is not None for value in trials):
        reason = f"None of the {len(trials)} trials that ran gave a value, so there was nothing to compare."
        if not trials:
            reason = "No trial ran, so there was nothing to compare."
        return no_candidate(
            values, verdict=Verdict.INCONCLUSIVE, reason=reason, comparisons=comparisons
        )
    if best is None:
        reason = (
            "No trial was better than the baseline on validation, so there was none to confirm."
        )
        return no_candidate(
            values, verdict=Verdict.NO_IMPROVEMENT, reason=reason, comparisons=comparisons
        )
    return compare(
        values,
        values_of(best),
        better=bench.template.metric.better,
        planned=planned,
        comparisons=comparisons,
    )


def values_of(runs: Sequence[Run]) -> list[float]:
    """Give what those runs measured that measured something."""
    return [run.value for run in runs if run.value is not None]


def cut_notes(confirmed: Sequence[Sequence[Run]], *, planned: int) -> list[str]:
    """Say that there was no time for all runs on test, where there was not."""
    made = min(len(runs) for runs in confirmed)
    if made == planned:
        return []
    return [
        f"The task's time limit was nearly over: of the {planned} runs of each side on test {made} were made."
    ]


def failure_notes(
    arms: Mapping[str, Sequence[Run]], *, quoted: Callable[[str], str] = str
) -> list[str]:
    """Say of each arm, by the name a reader knows it by, how many of its runs gave no value, and why the first did not.

    `quoted` makes of a reason, which may hold what the run printed, what a reader may see of it.
    """
    notes = []
    for name, runs in arms.items():
        failed = [run for run in runs if run.value is None]
        if failed:
            notes.append(
                f"{len(failed)} of {len(runs)} runs of {name} on test gave no value; "
                f"the first, {failed[0].name}, because {quoted(failed[0].reason or '')}."
            )
    return notes
