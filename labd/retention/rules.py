"""What is to be compressed or pruned, and why: a pure function of what has ended, the rules, and the time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from labd.clock import print_duration
from labd.task import State
from labd.text import print_size

AHEAD_S = 300.0
"""An end this far ahead of the clock, or more, says that the clock is not to be believed."""

Keep = Literal["results", "record"]
"""What pruning leaves: all but the working directories, or how the task ended and no more."""


@dataclass(frozen=True, slots=True)
class Rule:
    """For the tasks of one state; ages are since the end. ``None``: never."""

    compress_after_s: float | None = None
    prune_after_s: float | None = None
    max_bytes: int | None = None
    """Of all results of tasks in this state together; the oldest are pruned first."""
    keep: Keep = "results"

    @property
    def least_age_s(self) -> float:
        """The age below which nothing of a task is touched for its age."""
        ages = [age for age in (self.compress_after_s, self.prune_after_s) if age is not None]
        return min(ages, default=float("inf"))


@dataclass(frozen=True, slots=True)
class Finished:
    """A task that has ended, and how much of its results is what; bytes on the disk.

    `kept`: why nothing of it may be touched now, or an empty text.
    """

    id: str
    state: State
    ended_s: float
    loose_bytes: int = 0
    """Working directories as they are."""
    packed_bytes: int = 0
    """Working directories as archives."""
    other_bytes: int = 0
    """What people came for: goes only where the record alone is kept."""
    record_bytes: int = 0
    kept: str = ""
    changed_s: float = 0.0
    """When a working directory was last changed: one that somebody unpacked is compressed by the age of that."""
    unmeasured: str = ""
    """Why the bytes are less than there are, or an empty text."""

    @property
    def all_bytes(self) -> int:
        """Everything together."""
        return self.loose_bytes + self.packed_bytes + self.other_bytes + self.record_bytes

    def prunable_bytes(self, keep: Keep) -> int:
        """Give what pruning frees."""
        working = self.loose_bytes + self.packed_bytes
        return working if keep == "results" else working + self.other_bytes


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do to one task's results. `size_bytes`: what goes, or what is compressed."""

    id: str
    state: State
    what: Literal["compress", "prune"]
    keep: Keep
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, the oldest tasks first, and what a rule would have done but for a reason; by task id."""

    actions: tuple[Action, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def decide(tasks: Sequence[Finished], rules: Mapping[State, Rule], now_s: float) -> Plan:
    """Give what the rules do to those tasks at `now_s`, in seconds since the epoch.

    A task whose end is ahead of the clock stays, and is told: one of the two is wrong.
    """
    actions: list[Action] = []
    kept: dict[str, str] = {}
    notes: list[str] = []
    for state, rule in rules.items():
        mine = sorted(
            (task for task in tasks if task.state is state),
            key=lambda task: (task.ended_s, task.id),
        )
        found = {action.id: action for action in _by_age(mine, rule, now_s)}
        found |= {action.id: action for action in _by_bytes(mine, rule, found, now_s, notes)}
        for task in mine:
            if (action := found.get(task.id)) is None:
                continue
            if why := task.kept or _ahead(task, now_s):
                kept[task.id] = why
            else:
                actions.append(action)
                if task.unmeasured:
                    notes.append(f"{task.id}: not all of it can be measured: {task.unmeasured}")
    return Plan(tuple(actions), kept, tuple(notes))


def in_turn(actions: Sequence[Action], cut_off: Sequence[str]) -> list[Action]:
    """Give them in the order for a run that may not live to their end: what makes room at once, then what takes long.

    What an earlier run was cut off in comes last, so that it holds up nothing else.
    """
    place = {name: number for number, name in enumerate(cut_off, start=1)}

    def turn(action: Action) -> tuple[bool, int]:
        return (False, 0) if action.what == "prune" else (True, place.get(action.id, 0))

    return sorted(actions, key=turn)


def _by_age(tasks: Sequence[Finished], rule: Rule, now_s: float) -> Iterator[Action]:
    for task in tasks:
        age_s = now_s - task.ended_s
        # Code that nobody trusts may have dated it: a date to come is no reason to keep it as it is.
        changed_s = task.changed_s if task.changed_s <= now_s else 0.0
        for what, after_s, size_bytes, since_s in (
            ("prune", rule.prune_after_s, task.prunable_bytes(rule.keep), age_s),
            ("compress", rule.compress_after_s, task.loose_bytes, min(age_s, now_s - changed_s)),
        ):
            if after_s is not None and size_bytes and (since_s >= after_s or _ahead(task, now_s)):
                reason = f"ended {_days(age_s)} ago; {what}_after is {_days(after_s)}"
                yield Action(task.id, task.state, what, rule.keep, size_bytes, reason)  # type: ignore[arg-type] # one of two words
                break


def _by_bytes(
    tasks: Sequence[Finished],
    rule: Rule,
    decided: Mapping[str, Action],
    now_s: float,
    notes: list[str],
) -> Iterator[Action]:
    """Prune the oldest until the rest fits. What is being compressed counts as it is: how small it gets is not known."""
    if rule.max_bytes is None:
        return
    total = sum(task.all_bytes for task in tasks)
    total -= sum(
        action.size_bytes
        for task in tasks
        if (action := decided.get(task.id)) and action.what == "prune" and not task.kept
    )
    for task in tasks:
        if total <= rule.max_bytes:
            return
        size_bytes = task.prunable_bytes(rule.keep)
        known = decided.get(task.id)
        if not size_bytes or (known is not None and known.what == "prune"):
            continue
        reason = f"{print_size(total)} of {tasks[0].state.value} tasks; max_bytes is {print_size(rule.max_bytes)}"
        yield Action(task.id, task.state, "prune", rule.keep, size_bytes, reason)
        if not (task.kept or _ahead(task, now_s)):
            total -= size_bytes
    if total > rule.max_bytes:
        notes.append(
            f"{tasks[0].state.value}: {print_size(total)} stay, max_bytes is {print_size(rule.max_bytes)}; "
            "nothing more of them may go"
        )


def _ahead(task: Finished, now_s: float) -> str:
    if task.ended_s <= now_s + AHEAD_S:
        return ""
    return f"it ended {_days(task.ended_s - now_s)} ahead of this machine's clock"


def _days(seconds: float) -> str:
    return print_duration(float(round(abs(seconds))))
