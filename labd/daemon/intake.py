"""What waits: reads pending/ as it changes, refuses what is no task, and keeps the rest in order.

A directory of a hundred thousand files is never listed at once: a sweep goes through it in slices, and
the watcher's hints jump the sweep. Reading a file again costs nothing where it has not changed.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from labd.clock import from_iso
from labd.daemon.demand import demand_of
from labd.daemon.house import House
from labd.daemon.ids import Ids, harmless
from labd.daemon.telling import Once
from labd.errors import JournalError, StorageError, TaskFileError
from labd.scheduler import Backlog, Waiting, gate, retry_delay_s
from labd.spool import Entry, Look
from labd.task import (
    SUFFIXES,
    State,
    TaskFile,
    check_name,
    is_task_name,
    name_problem,
    parse_task,
    task_id,
)
from labd.text import printable

_SLICE_S = 0.02
_SHARE = (
    100.0  # sweeps of a long directory may take a hundredth of the time, but come once a minute
)
_UNSETTLED_S = 0.2
_PASSING = (".tmp", ".part", "~")


@dataclass(slots=True)
class Known:
    """A pending file as it was last read. `waiting` is ``None`` for what can't be started or refused."""

    version: tuple[int, int, int]
    waiting: Waiting | None
    seen: int
    after: tuple[str, ...] = ()
    not_before_s: float = 0.0
    retry_at_s: float = 0.0
    """By the monotonic clock, unlike `not_before_s`, which is a Unix time that somebody named."""
    due_s: float = 0.0
    timed_s: float = 0.0
    """For which `not_before_s`, and which `retry_at_s`, a timer is set, if one is."""


class Intake:
    """The pending tasks. `check` passes a task or raises `TaskFileError`; `active` is as for `Ids`."""

    def __init__(self, house: House, ids: Ids, check: Callable[[TaskFile, str], None]) -> None:
        self._spool, self._archive, self._ids, self._check = house.spool, house.archive, ids, check
        self._announcing = house.announcing
        self._log, self._once = house.log, Once(house.log)
        settings = house.home.settings
        self._rescan_s, self._settle_s = settings.rescan, settings.settle
        self.backlog = Backlog()
        self.reasons: dict[str, str] = {}
        """Why a task waits that is not in the backlog, by file name."""
        self.refused = 0
        self._known: dict[str, Known] = {}
        self._hinted: deque[str] = deque()
        self._unsettled: dict[str, float] = {}
        self._gated_on: dict[str, set[str]] = {}
        self._gated_until: list[tuple[float, str]] = []
        self._retry_at: list[tuple[float, str]] = []
        self._ungated_s = 0.0
        """When the timers were last looked at, by the monotonic clock."""
        self._sweep: Iterator[str] | None = None
        self._sweep_number = 0
        self._sweep_cost_s = 0.0
        self._next_sweep_s = 0.0

    # --- what the loop asks

    def take(self, hints: Iterable[str]) -> None:
        """Read what is new, for a slice of time; `busy` says whether there is more."""
        self._hinted.extend(hints)
        began_s = time.monotonic()
        until_s = began_s + _SLICE_S
        for name in [n for n, at_s in self._unsettled.items() if at_s <= began_s]:
            del self._unsettled[name]
            self.look_at(name)
        while self._hinted and time.monotonic() < until_s:
            self.look_at(self._hinted.popleft())
        self._ungate_due()
        if not self._hinted:
            self._sweep_on(began_s, until_s)

    @property
    def busy(self) -> bool:
        """Whether there is more to read right now."""
        return bool(self._hinted) or self._sweep is not None

    @property
    def unsettled(self) -> bool:
        """Whether somebody is still writing a file."""
        return bool(self._unsettled)

    @property
    def retrying(self) -> bool:
        """Whether a task waits only for its time to be tried again, or for us to see that it has come."""
        known = (self._known.get(name) for name in self.reasons)
        return any(k is not None and k.retry_at_s > self._ungated_s for k in known)

    def __len__(self) -> int:
        return len(self._known)

    def names(self) -> Iterable[str]:
        """Give the names of the files that are known to wait."""
        return self._known.keys()

    def next_s(self) -> float:
        """Give when there is something to do, by the monotonic clock."""
        times = [self._next_sweep_s, *self._unsettled.values()]
        if self._gated_until:
            times.append(time.monotonic() + self._gated_until[0][0] - time.time())
        if self._retry_at:
            times.append(self._retry_at[0][0])
        return min(times)

    def retry_at(self, name: str, at_s: float) -> None:
        """Look at a file that was put back for a retry, which is not before `at_s` on the monotonic clock."""
        self.look_at(name)
        known = self._known.get(name)
        if known is not None:
            known.retry_at_s = at_s
            self._place(name, known)

    def changed(self, task_id_: str) -> bool:
        """Take notice that a task has come into another state; say whether another, or itself, waited for that."""
        own = [task_id_ + suffix for suffix in SUFFIXES if task_id_ + suffix in self.reasons]
        waited = [n for n in (*self._gated_on.get(task_id_, ()), *own) if n in self._known]
        for name in waited:
            self._place(name, self._known[name])
        return bool(waited)

    def forget(self, name: str) -> None:
        """Drop what is known of a file: it was claimed, or is gone."""
        if self._known.pop(name, None) is not None:
            self.backlog.discard(name)
            self._ungate(name)

    def hold(self, name: str, reason: str) -> None:
        """Keep a file out of the backlog for a reason, until it or its task changes, or the next sweep is over."""
        if name not in self._known:
            self.look_at(name)
        if name in self._known:
            self.backlog.discard(name)
            self.reasons[name] = reason

    def trouble(self, name: str, reason: str) -> None:
        """Hold a file for a reason that somebody should hear of."""
        self.hold(name, reason)
        shown = printable(name)
        self._once.error(f"{shown}: {reason}", "task.not_claimed", task=shown, reason=reason)

    # --- reading

    def look_at(self, name: str) -> None:
        """Read one name in pending/, whatever became of it."""
        if not is_task_name(name):
            self._ignore(name)
            return
        known = self._known.get(name)
        if known is not None:
            entry = self._spool.entry(State.PENDING, name)
            if entry is not None and entry.version == known.version:
                known.seen = self._sweep_number
                return
            self.forget(name)
        look = self._spool.look(name, self._settle_s, time.time())
        if look is None:
            return
        if look.being_written:
            self._unsettled[name] = time.monotonic() + _UNSETTLED_S
            return
        self._read(look)

    def _read(self, look: Look) -> None:
        entry = look.entry
        try:
            task = self._parse(look)
        except TaskFileError as error:
            # An editor or a slow copy may not be done: give a file that is no task yet a moment.
            if entry.is_file and 0 <= time.time() - entry.mtime_ns / 1e9 < self._settle_s:
                self._unsettled[entry.name] = time.monotonic() + _UNSETTLED_S
            else:
                self._refuse(entry, error)
            return
        spec = task.spec
        retry_in_s, stuck_on = self._past(entry.id, task.sha256)
        waiting = Waiting(
            entry.name,
            spec.priority,
            entry.mtime_ns,
            replace(demand_of(spec), avoid=stuck_on),
            str(entry.uid),
            time.monotonic(),
            spec.num_nodes,
        )
        known = Known(entry.version, waiting, self._sweep_number, spec.after)
        known.not_before_s = spec.not_before.timestamp() if spec.not_before else 0.0
        known.retry_at_s = time.monotonic() + retry_in_s if retry_in_s else 0.0
        self._known[entry.name] = known
        self._place(entry.name, known)

    def _parse(self, look: Look) -> TaskFile:
        name = look.entry.name
        check_name(name)
        if look.problem is not None:
            raise look.problem
        task = parse_task(look.raw or b"", f"pending/{name}")
        self._check(task, f"pending/{name}")
        return task

    def _past(self, task_id_: str, sha256: str) -> tuple[float, frozenset[str]]:
        """Give how much of a lost attempt's delay is left, also of one lost before we were started, and where it was stuck."""
        nothing = 0.0, frozenset[str]()
        if not self._archive.knows(task_id_):
            return nothing
        try:
            history = self._archive.history(task_id_)
        except JournalError:
            return nothing
        last = history.last
        if last.get("event") != "lost" or history.sha256 != sha256:
            return nothing
        delay_s = retry_delay_s(history.count("lost"))
        lost_at = from_iso(str(last["at"])).timestamp()
        # Across a restart only the wall clock is there; one that has jumped makes the wait no longer than it was to be.
        left_s = min(delay_s, max(0.0, lost_at + delay_s - time.time()))
        return left_s, history.stuck_on()

    def _ignore(self, name: str) -> None:
        if not name.startswith(".") and not name.endswith(_PASSING):
            why = "task files end in .yaml or .yml"
            shown = printable(name)
            self._once.warning(f"ignored: {shown}", "file.ignored", file=shown, why=why)

    # --- what has to wait for something else than room

    def _place(self, name: str, known: Known) -> None:
        """Put a task into the backlog, or out of it with the reason."""
        self._ungate(name)
        if known.waiting is None:
            return
        reason = gate(
            time.time(),
            known.not_before_s,
            known.after,
            self._state_of,
            known.retry_at_s - time.monotonic(),
        )
        if not reason:
            if name not in self.backlog:
                self.backlog.add(known.waiting)
            return
        self.backlog.discard(name)
        self.reasons[name] = reason
        for awaited in known.after:
            self._gated_on.setdefault(awaited, set()).add(name)
        if known.not_before_s > time.time() and known.due_s != known.not_before_s:
            known.due_s = known.not_before_s
            heapq.heappush(self._gated_until, (known.due_s, name))
        if known.retry_at_s > time.monotonic() and known.timed_s != known.retry_at_s:
            known.timed_s = known.retry_at_s
            heapq.heappush(self._retry_at, (known.timed_s, name))

    def _state_of(self, task_id_: str) -> str | None:
        states = [state for state, _ in self._spool.where(task_id_)]
        if State.DONE in states:
            return State.DONE.value  # another of its name, new work, changes nothing about that
        return states[0].value if states else None

    def _ungate(self, name: str) -> None:
        if self.reasons.pop(name, None) is None:
            return
        known = self._known.get(name)
        for awaited in known.after if known else ():
            names = self._gated_on.get(awaited, set())
            names.discard(name)
            if not names:
                self._gated_on.pop(awaited, None)

    def _ungate_due(self) -> None:
        self._ungated_s = time.monotonic()
        for timers, now_s in ((self._gated_until, time.time()), (self._retry_at, self._ungated_s)):
            while timers and timers[0][0] <= now_s:
                _, name = heapq.heappop(timers)
                if name in self._known:
                    self._place(name, self._known[name])

    # --- the sweep

    def _sweep_on(self, began_s: float, until_s: float) -> None:
        if self._sweep is None:
            if began_s < self._next_sweep_s:
                return
            self._sweep = self._spool.all_names(State.PENDING)
            self._sweep_number += 1
            self._sweep_cost_s = 0.0
        slice_began_s = time.monotonic()
        for name in self._sweep:
            self.look_at(name)
            if time.monotonic() >= until_s:
                self._sweep_cost_s += time.monotonic() - slice_began_s
                return
        self._sweep = None
        self._end_sweep()
        self._sweep_cost_s += time.monotonic() - slice_began_s
        pause_s = max(
            self._rescan_s, _SHARE * self._sweep_cost_s if len(self._known) > 1000 else 0
        )
        self._next_sweep_s = time.monotonic() + pause_s

    def _end_sweep(self) -> None:
        gone = [name for name, known in self._known.items() if known.seen != self._sweep_number]
        for name in gone:
            if self._spool.entry(State.PENDING, name) is None:
                self.forget(name)
        for name in list(self.reasons):
            known = self._known.get(name)
            if known is None:
                del self.reasons[name]
            elif known.waiting is None:
                self.forget(name)  # it could not be refused: try that again
                self.look_at(name)
            else:
                self._place(name, known)

    # --- what is no task

    def _refuse(self, entry: Entry, error: TaskFileError) -> None:
        """Put what is no task into failed/, as it is, with the reason on record and in the log."""
        wanted = harmless(entry.name) if name_problem(entry.name) else entry.name
        facts = {"code": error.code, "message": str(error), "retryable": False}
        try:
            refused_name, _ = self._ids.name_for(wanted, "")
            refused_id = task_id(refused_name)
            result = {"task_id": refused_id, "attempt": 0, "outcome": "failed", "error": facts}
            shown = printable(entry.name)
            self._archive.record(refused_id, "refused", file=shown, error=facts)
            self._archive.write_result(refused_id, result)
            there = self._spool.move(entry.name, State.PENDING, State.FAILED, refused_name)
            moved = self._spool.entry(State.FAILED, there)
            if moved is not None and moved.version != entry.version:
                # Somebody mended it in between: that has to be read first.
                self._spool.move(there, State.FAILED, State.PENDING, entry.name)
                return
        except FileNotFoundError:
            return
        except StorageError as trouble:
            self._known[entry.name] = Known(entry.version, None, self._sweep_number)
            self.trouble(entry.name, f"can't be refused: {trouble}")
            return
        self.refused += 1
        self.changed(refused_id)
        self._log.error("task.refused", task_id=printable(refused_id), reason=str(error))
        self._announcing.ended(refused_id, State.FAILED, {"error": facts})
