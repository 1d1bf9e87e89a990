"""Which trial comes next: a pure function of what was tried. Three ways to search.

`linear`: one line of trials, each from the last good one. Source: AI-Scientist, https://arxiv.org/abs/2408.06292.
`climb`: always from the best so far, what is not better is left. Source: autoresearch by A. Karpathy.
`tree`: drafts first; then a share of repairs, else the best is improved. Source: AIDE, https://arxiv.org/abs/2502.13138.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from labd.research.search import BATCH_SIZE, Better
from labd.research.study import Move, Policy, Trial


@dataclass(frozen=True, slots=True)
class Manner:
    """How to search.

    Attributes:
        num_drafts: of `tree`, trials that begin from the template's code.
        max_debug_depth: repairs in a row, one of the other's code.
        debug_share: of moves of `tree` that may repair or improve, the share of repairs, 0 to 1.

    """

    policy: Policy = "tree"
    num_drafts: int = 3
    max_debug_depth: int = 3
    debug_share: float = 0.5


class Step(NamedTuple):
    """A move, and the name of the trial whose code it changes; ``None``: the template's."""

    move: Move
    parent: str | None


def next_moves(
    trials: Sequence[Trial],
    manner: Manner,
    *,
    baseline: float,
    better: Better,
    count: int,
    seed: int,
) -> list[Step]:
    """Give up to `count` moves, at least one, that depend on each other in nothing.

    Args:
        trials: of one idea, in their order.
        manner: how to search.
        baseline: the template's value on validation.
        better: which values of the metric are.
        count: most moves; `BATCH_SIZE` and not the number of workers, so that machines agree.
        seed: of what is drawn.

    """
    tree = _Tree(trials, manner.max_debug_depth, better)
    if manner.policy == "linear":
        return [tree.after_last()]
    if manner.policy == "climb":
        return tree.from_best(count, baseline)
    return _tree_moves(tree, manner, count, random.Random(f"{seed} {len(trials)}"))  # noqa: S311


def batch_size(policy: Policy, left: int) -> int:
    """Give how many trials to plan at once when so many are left."""
    return min(1 if policy == "linear" else BATCH_SIZE, left)


def _tree_moves(tree: "_Tree", manner: Manner, count: int, draw: random.Random) -> list[Step]:
    drafts = sum(trial.parent is None for trial in tree.trials)
    moves: list[Step] = []
    broken, good = tree.broken(), tree.spread()
    for _ in range(count):
        # Drawn for each move, whether needed or not, so that a move depends on its place alone.
        repairs, which = draw.random() < manner.debug_share, draw.random()
        if drafts < manner.num_drafts or not (broken or good):
            drafts += 1
            moves.append(Step("draft", None))
        elif broken and (repairs or not good):
            chosen = broken.pop(int(which * len(broken)))
            moves.append(Step("debug", chosen.name))
        elif good:
            moves.append(Step("improve", good[0].name))
            good.append(good.pop(0))
    return moves


class _Tree:
    """What the trials say of each other."""

    def __init__(self, trials: Sequence[Trial], max_debug_depth: int, better: Better) -> None:
        self.trials = trials
        self._max_debug_depth = max_debug_depth
        self._sign = 1.0 if better == "higher" else -1.0
        self._by_name: Mapping[str, Trial] = {trial.name: trial for trial in trials}
        self._parents = {trial.parent for trial in trials}

    def good(self) -> list[Trial]:
        """Give the trials with a value, the best first, of equals the earliest."""
        found = [trial for trial in self.trials if trial.value is not None]
        return sorted(found, key=lambda trial: -self._sign * (trial.value or 0.0))

    def broken(self) -> list[Trial]:
        """Give the trials that ran to no value, that nobody repaired, and that are not too deep to be."""
        return [trial for trial in self.trials if self._can_be_repaired(trial)]

    def spread(self) -> list[Trial]:
        """Give the best trial of each draft's descendants, the best first."""
        best: dict[str, Trial] = {}
        for trial in self.good():
            best.setdefault(self._root(trial), trial)
        return list(best.values())

    def after_last(self) -> Step:
        """Give the move that follows the last trial, or the last good one where that can't be repaired."""
        if self.trials and self._can_be_repaired(self.trials[-1]):
            return Step("debug", self.trials[-1].name)
        last = next((trial for trial in reversed(self.trials) if trial.value is not None), None)
        return Step("draft", None) if last is None else Step("improve", last.name)

    def from_best(self, count: int, baseline: float) -> list[Step]:
        """Give repairs of what came last of the best, then moves from the best."""
        good = self.good()
        better = good and self._sign * (good[0].value or 0.0) > self._sign * baseline
        best = good[0].name if better else None
        repairs = [
            Step("debug", trial.name)
            for trial in self.broken()
            if self._sound_parent(trial) == best
        ]
        onward = Step("draft", None) if best is None else Step("improve", best)
        # One move at least goes on from the best, so that a hopeless repair does not end the climb.
        return [*repairs[: count - 1], *[onward] * count][:count]

    def _can_be_repaired(self, trial: Trial) -> bool:
        ran = trial.run is not None and trial.value is None
        leaf = trial.name not in self._parents
        return ran and leaf and self._debug_depth(trial) < self._max_debug_depth

    def _debug_depth(self, trial: Trial) -> int:
        depth = 0
        while trial.move == "debug" and trial.parent is not None:
            depth, trial = depth + 1, self._by_name[trial.parent]
        return depth

    def _sound_parent(self, trial: Trial) -> str | None:
        """Give the trial whose code was broken first on the way to this one."""
        while trial.move == "debug" and trial.parent is not None:
            trial = self._by_name[trial.parent]
        return trial.parent

    def _root(self, trial: Trial) -> str:
        while trial.parent is not None:
            trial = self._by_name[trial.parent]
        return trial.name
