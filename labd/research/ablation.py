"""Ablation: the winning code without one of its changes at a time, to see which of them it owes its gain to."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from labd.journal import Journal
from labd.research.bench import Bench, Code
from labd.research.edits import check
from labd.research.evidence import Arm, confirm, values_of
from labd.research.hunks import Hunk, hunks, without_hunk
from labd.research.record import Run
from labd.research.stats import compare
from labd.research.study import Ablation
from labd.research.worktree import sha256_of

MAX_HUNKS = 6
MIN_HUNKS = 2
"""Of one change, the code without it is the parent's."""
_SPARE = 1.25

Place = Callable[[Mapping[str, str]], AbstractContextManager[Code]]
"""Puts files where runs see them in place of the template's editable ones."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """The changes that are taken away one at a time, and what a reader must know of those that are not."""

    kept: list[Hunk]
    note: str = ""


def pieces(
    bench: Bench, journal: Journal, old: Mapping[str, str], new: Mapping[str, str]
) -> Pieces:
    """Give the changes that can be taken away alone: what is left parses, and is neither `old` nor as good as `new`.

    Recorded, because what can be parsed depends on the machine's Python.
    """
    found = hunks(old, new)
    if len(found) < MIN_HUNKS:
        return Pieces([])
    if len(found) > MAX_HUNKS:
        return Pieces(
            [],
            f"The selected change has {len(found)} pieces, too many to take them away one at a time.",
        )

    def stands(piece: Hunk) -> bool:
        rest = without_hunk(new, piece)
        return not check(bench.template, old, rest) and not check(bench.template, rest, new)

    inputs = {"template": bench.template.sha256, "old": sha256_of(old), "new": sha256_of(new)}
    kept: list[int] = journal.step(
        "ablation/pieces", inputs, lambda: [at for at, one in enumerate(found) if stands(one)]
    )
    lost = len(found) - len(kept)
    note = (
        f"{lost} of the {len(found)} pieces of the selected change were not taken away alone: "
        "without them the code does not parse, or does the same."
    )
    return Pieces([found[at] for at in kept], note if lost else "")


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
