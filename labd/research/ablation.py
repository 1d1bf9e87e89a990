"""Ablation: the winning code without one of its changes at a time, to see which of them it owes its gain to."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from labd.research.bench import Bench, Code
from labd.research.edits import check
from labd.research.evidence import Arm, confirm, values_of
from labd.research.hunks import Hunk, hunks, without_hunk
from labd.research.record import Run
from labd.research.stats import compare
from labd.research.study import Ablation

MAX_HUNKS = 6
MIN_HUNKS = 2
"""Of one change, the code without it is the parent's."""
_SPARE = 1.25

Place = Callable[[Mapping[str, str]], AbstractContextManager[Code]]
"""Puts files where runs see them in place of the template's editable ones."""


def pieces(bench: Bench, old: Mapping[str, str], new: Mapping[str, str]) -> list[Hunk]:
    """Give the changes that can be taken away one at a time: what is left still parses and differs from `old`."""
    found = hunks(old, new)
    if not MIN_HUNKS <= len(found) <= MAX_HUNKS:
        return []
    return [piece for piece in found if not check(bench.template, old, without_hunk(new, piece))]


def seconds_needed(bench: Bench, pieces_: Sequence[Hunk], whole: Sequence[Run]) -> float:
    """Estimate how long the ablation of those pieces takes, from the runs of the whole winning code."""
    each_s = statistics.median(run.wall_s for run in whole)
    return _SPARE * each_s * len(pieces_) * len(whole) / bench.at_once


def ablate(
    bench: Bench,
    pieces_: Sequence[Hunk],
    new: Mapping[str, str],
    whole: Sequence[Run],
    *,
    seeds: Sequence[int],
    place: Place,
) -> list[Ablation]:
    """Run the winning code without each of the pieces on test, over the seeds that confirmed the whole of it.

    Args:
        bench: where it is run.
        pieces_: as `pieces` gave them.
        new: the winning code's editable files.
        whole: its runs on test.
        seeds: of those runs.
        place: puts files where runs see them.

    """
    with ExitStack() as stack:
        arms = [
            Arm(f"ablation-{number:02d}", bench.template.baseline, stack.enter_context(place(without_hunk(new, piece))))
            for number, piece in enumerate(pieces_, 1)
        ]  # fmt: skip
        confirmed = confirm(bench, arms, seeds, stage="ablation")
    return [
        Ablation(
            name=arm.name,
            hunk=piece.text,
            runs=runs,
            claim=compare(
                values_of(runs),
                values_of(whole),
                better=bench.template.metric.better,
                planned=len(seeds),
                comparisons=len(arms),
            ),
        )
        for arm, piece, runs in zip(arms, pieces_, confirmed, strict=True)
    ]
