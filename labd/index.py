"""All tasks of a lab in memory, for those who look again and again: only what changed is read again."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from labd.lab import Lab, TaskView
from labd.spool import Entry
from labd.task import State

_MOST = 20_000
_LOOK_AGAIN_S = 30.0


@dataclass(slots=True)
class _Shelf:
    """One state's tasks. `unread`: what there is to read, the newest at the end."""

    views: dict[str, tuple[Entry, TaskView]] = field(default_factory=dict)
    unread: list[Entry] = field(default_factory=list)
    changed_ns: int = -1
    looked_s: float = float("-inf")


class Index:
    """The tasks of a lab, at most 20,000 of each state. For one thread."""

    def __init__(self, lab: Lab, clock: Callable[[], float] = time.monotonic) -> None:
        self._lab, self._clock = lab, clock
        self._shelves = {state: _Shelf() for state in State}

    @property
    def unread(self) -> int:
        """How many tasks are known by name only."""
        return sum(len(shelf.unread) for shelf in self._shelves.values())

    def refresh(self, budget_s: float) -> list[TaskView]:
        """Look at the directories, read what is new for so long, and give all that is known.

        Running ones come first, then whatever changed last.
        """
        facts = self._lab.status().facts
        until_s = self._clock() + budget_s
        for state, shelf in self._shelves.items():
            self._look(state, shelf)
        for state in (State.RUNNING, State.PENDING, State.FAILED, State.CANCELLED, State.DONE):
            shelf = self._shelves[state]
            while shelf.unread and self._clock() < until_s:
                entry = shelf.unread.pop()
                shelf.views[entry.name] = (entry, self._lab.view(state, entry, facts))
        views = [view for shelf in self._shelves.values() for _, view in shelf.views.values()]
        views.sort(key=lambda view: (view.state is not State.RUNNING, -view.moved_at))
        return views

    def _look(self, state: State, shelf: _Shelf) -> None:
        """Find what came, went or changed. A directory that is as it was is listed now and then only."""
        now_s = self._clock()
        try:
            changed_ns = os.stat(self._lab.home.spool / state.value).st_mtime_ns  # noqa: PTH116
        except OSError:
            changed_ns = 0
        if state is State.RUNNING:
            shelf.views.clear()  # how far they are changes without their files
        elif changed_ns == shelf.changed_ns and now_s - shelf.looked_s < _LOOK_AGAIN_S:
            return
        shelf.changed_ns, shelf.looked_s = changed_ns, now_s
        entries = {entry.name: entry for entry in self._lab.entries(state, _MOST)}
        for name in shelf.views.keys() - entries.keys():
            del shelf.views[name]
        shelf.unread = sorted(
            (e for e in entries.values() if not _same(shelf.views.get(e.name), e)),
            key=lambda entry: entry.moved_ns,
        )


def _same(known: tuple[Entry, TaskView] | None, entry: Entry) -> bool:
    return known is not None and known[0] == entry
