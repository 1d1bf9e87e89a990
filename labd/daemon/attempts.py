"""What runs: the attempts that the engine has, how they are claimed, and what people do to their files.

Event first, rename second. The attempt's number fences: what an older attempt says is dropped. A directory
decides: a file that left running/ is a task to end.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from labd.archive import also_of
from labd.daemon.announcing import kind_of
from labd.daemon.counts import Counts
from labd.daemon.demand import demand_of
from labd.daemon.house import House
from labd.daemon.ids import Ids
from labd.daemon.intake import Intake
from labd.engine.types import Ended, Job
from labd.errors import TaskFileError
from labd.scheduler import Demand, Running, Start, Waiting
from labd.spool import Entry
from labd.task import State, TaskFile, parse_task, task_id

# A command holds its own time limit; the daemon's is for a worker that does not.
_WORKER_GRACE_S = 15.0
_KILL_AFTER_S = 10.0
"""A worker that was told to end and has not in so long is killed by its process id: a stopped one hears nothing."""


@dataclass(slots=True)
class Active:
    """An attempt that the engine has. `leaving` says why it was told to end, if it was."""

    task_id: str
    name: str
    version: tuple[int, int, int]
    sha256: str
    attempt: int
    demand: Demand
    owner: str
    node_id: str
    deadline_s: float
    timeout_s: float
    since_s: float
    max_retries: int
    losses: int = 0
    """How often the task was lost before, since somebody asked for it."""
    stuck_after_s: float = 0.0
    """For how long nothing of it may move; 0: for ever."""
    gpus: tuple[int, ...] | None = None
    """The devices that Ray is taken to have given it, where that is known."""
    also: tuple[str, ...] = ()
    """Further nodes that give it as much, for its runs; one of them may be gone by now."""
    leaving: str = ""
    why: str = ""
    """More about why it was told to end, for people."""
    told_s: float = 0.0
    """When it was last told to end."""
    loss: str = ""
    """The error code of an infrastructure failure that is on record, while its file is not moved yet."""
    end: State | None = None
    """The end that is on record, while its file is not moved yet."""
    counted: bool = False
    labels: tuple[str, ...] = ()
    what: str = ""
    """The template, or the kind where there is none."""
    end_facts: Mapping[str, Any] | None = None
    """The event of the end that is on record, for those who are told of it."""

    @property
    def inode(self) -> int:
        """Which file it is, wherever it was moved."""
        return self.version[0]


class Attempts:
    """The attempts of this daemon. `job` makes the engine's order for a claim."""

    def __init__(
        self, house: House, *, counts: Counts, job: Callable[[Active, TaskFile], Job]
    ) -> None:
        self._spool, self._archive, self._engine = house.spool, house.archive, house.engine
        self._log = house.log
        self._settings = house.home.settings
        self.counts = counts
        self._job = job
        self.active: dict[str, Active] = {}
        self.reasons: dict[str, str] = {}
        """What keeps an end from being recorded, by file name."""
        self.ended: dict[str, Ended] = {}
        """What the engine said of ends that are not on record yet, by task id."""
        self.ids = Ids(house.spool, house.archive, self.active.__contains__)
        self.decided: list[str] = []
        """Ids that came into another state since somebody last emptied the list."""

    # --- what holds resources

    def running(self) -> list[Running]:
        """Give what holds resources, by node; an attempt that has ended holds none, also while its end is not on record."""
        live = [a for a in self.active.values() if a.task_id not in self.ended]
        first = [Running(a.task_id, a.node_id, a.demand, a.owner, a.gpus) for a in live]
        return first + [
            Running(a.task_id, node_id, a.demand, a.owner) for a in live for node_id in a.also
        ]

    def next_deadline_s(self) -> float:
        """Give when the next attempt runs out of time, by the monotonic clock."""
        return min(
            (a.deadline_s for a in self.active.values() if not a.leaving), default=float("inf")
        )

    # --- claim

    def claim(self, start: Start, intake: Intake) -> Job | None:
        """Claim a pending task for a node; give the engine's order, or ``None`` if it is not there to be had.

        Durable only after both rooms' `sync`.

        Raises:
            LabdError: it can't be claimed now.

        """
        name = start.key
        waiting = intake.backlog.get(name)
        look = self._spool.look(name, 0.0, 0.0)
        if waiting is None or look is None or look.raw is None or look.being_written:
            intake.forget(name)
            intake.look_at(name)
            return None
        task = _as_planned(look.raw, waiting)
        if task is None or look.entry.mtime_ns != waiting.since_ns:
            intake.forget(name)
            intake.look_at(name)
            return None
        if self._comes_back(name, look.entry):
            intake.hold(name, "waits until its earlier attempt has ended")
            return None
        running_name, history = self.ids.name_for(name, task.sha256)
        attempt = history.attempt + 1
        losses = history.count("lost")
        active = self._active(
            running_name, look.entry, task, attempt, start.node_id, losses=losses
        )
        active.gpus, active.also = start.gpus, start.also
        if history.last.get("event") == "claimed":
            # It was brought back while nobody looked, or its claim was cut short: say so.
            facts = {"attempt": history.attempt, "moved_to": State.PENDING.value}
            self._archive.record(active.task_id, "requeued", durable=False, **facts)
        self._archive.record(
            active.task_id,
            "claimed",
            durable=False,
            attempt=active.attempt,
            sha256=task.sha256,
            file=name,
            node=start.node_id,
            uid=look.entry.uid,
            num_cpus=active.demand.num_cpus,
            num_gpus=active.demand.num_gpus,
            **({"also": list(start.also)} if start.also else {}),
        )
        intake.forget(name)
        if not self._move_claimed(name, active, look.entry, intake):
            return None
        self.active[active.task_id] = active
        self.counts.claimed(max(0.0, time.time() - look.entry.moved_ns / 1e9))
        return self._job(active, task)

    def _move_claimed(self, name: str, active: Active, entry: Entry, intake: Intake) -> bool:
        try:
            self._spool.move(name, State.PENDING, State.RUNNING, active.name, durable=False)
        except FileNotFoundError:
            self._archive.record(active.task_id, "unclaimed", attempt=active.attempt)
            return False
        there = self._spool.entry(State.RUNNING, active.name)
        if there is not None and there.version == entry.version:
            return True
        # Somebody put another file in its place in between: that one is a new task.
        self._archive.record(active.task_id, "unclaimed", attempt=active.attempt)
        if there is not None:
            intake.look_at(self._spool.move(active.name, State.RUNNING, State.PENDING, name))
        return False

    def _comes_back(self, name: str, entry: Entry) -> bool:
        """Say whether this is the file of an attempt that is still ending."""
        active = self.active.get(task_id(name))
        return active is not None and active.inode == entry.inode

    def _active(
        self,
        name: str,
        entry: Entry,
        task: TaskFile,
        attempt: int,
        node_id: str,
        *,
        losses: int,
        age_s: float = 0.0,
    ) -> Active:
        spec = task.spec
        timeout_s = spec.timeout or self._settings.default_timeout
        grace_s = _WORKER_GRACE_S if spec.kind in {"command", "prompts"} else 0.0
        since_s = time.monotonic() - age_s
        return Active(
            task_id(name),
            name,
            entry.version,
            task.sha256,
            attempt,
            demand_of(spec),
            str(entry.uid),
            node_id,
            since_s + timeout_s + grace_s,
            timeout_s,
            since_s,
            spec.max_retries,
            losses,
            self._settings.stuck_after if spec.stuck_after is None else spec.stuck_after,
            labels=tuple(spec.labels),
            what=kind_of(spec),
        )

    # --- follow

    def follow(self) -> None:
        """Tell attempts to end whose file somebody moved out of running/ or replaced, and what took too long."""
        now_s = time.monotonic()
        for active in self.active.values():
            if active.task_id in self.ended:
                continue
            if active.leaving:
                self._insist(active, now_s)
            elif not self.has_its_file(active):
                self.end(active, "moved")
            elif now_s > active.deadline_s:
                self.end(active, "timed_out")

    def end(self, active: Active, leaving: str, why: str = "") -> None:
        """Tell an attempt to end: `leaving` says for what, and decides what becomes of its task."""
        active.leaving, active.why, active.told_s = leaving, why, time.monotonic()
        facts = {"task_id": active.task_id, "attempt": active.attempt}
        self._log.info("task.ending", **facts, why=leaving)
        self._engine.cancel(active.task_id, active.attempt)

    def _insist(self, active: Active, now_s: float) -> None:
        """Have a worker killed that was told to end and does not."""
        if now_s - active.told_s < _KILL_AFTER_S:
            return
        active.told_s = now_s
        facts = {"task_id": active.task_id, "attempt": active.attempt}
        self._log.warning("attempt.killed", **facts, waited_s=_KILL_AFTER_S)
        self._engine.kill(active.task_id, active.attempt)

    def has_its_file(
        self, active: Active, state: State = State.RUNNING, name: str | None = None
    ) -> bool:
        """Say whether running/ (or another place) still has its bytes under its name, be it that they were written anew."""
        entry = self._spool.entry(state, name or active.name)
        if entry is None:
            return False
        if entry.version != active.version:
            if self.sha256_of(entry.name, state) != active.sha256:
                return False
            active.version = entry.version
        return True

    def sha256_of(self, name: str, state: State = State.RUNNING) -> str:
        """Give the hash of a file's bytes; an empty text for what is gone or no plain file."""
        try:
            return hashlib.sha256(self._spool.read(state, name)).hexdigest()
        except (FileNotFoundError, TaskFileError):
            return ""

    def take(self, ended: Ended) -> None:
        """Take what the engine says of an end; what it says of an older attempt is dropped."""
        active = self.active.get(ended.task_id)
        if active is None or active.attempt != ended.attempt:
            facts = {"task_id": ended.task_id, "attempt": ended.attempt, "how": ended.how}
            self._log.warning("outcome.dropped", **facts)
            return
        self.ended.setdefault(ended.task_id, ended)

    # --- for those that end and recover attempts

    def adopt(
        self, entry: Entry, task: TaskFile, attempt: int, node_id: str, age_s: float
    ) -> None:
        """Take an attempt for ours that the engine has and that an earlier daemon claimed."""
        history = self._archive.history(entry.id)
        active = self._active(
            entry.name,
            entry,
            task,
            attempt,
            node_id,
            losses=history.count("lost"),
            age_s=age_s,
        )
        active.also = also_of(history.last)
        self.active[entry.id] = active

    def let_go(self, active: Active) -> None:
        """Have no more to do with an attempt: its end is on record."""
        self.active.pop(active.task_id, None)
        self.ended.pop(active.task_id, None)
        self.reasons.pop(active.name, None)
        self.decided.append(active.task_id)

    def stop(self) -> None:
        """Let go of what ended with the engine and said nothing of its end; what somebody had moved has ended."""
        for active in [a for i, a in self.active.items() if i not in self.ended]:
            if active.leaving == "moved" or not self.has_its_file(active):
                cancelled = Ended(active.task_id, active.attempt, "cancelled", None, "labd stops")
                self.ended[active.task_id] = cancelled
            else:
                del self.active[active.task_id]

    def make_way(self, name: str) -> None:
        """Give the next number to a file that took the name in pending/ of one that has to go on there."""
        if self._spool.holds(State.PENDING, name):
            other, _ = self.ids.name_for(name, "")
            with suppress(FileNotFoundError):
                self._spool.move(name, State.PENDING, State.PENDING, other)

    def state_of_file(self, active: Active) -> State | None:
        """Give where the attempt's file is now, or ``None`` if it is nowhere."""
        for state, name in self._spool.where(active.task_id):
            entry = self._spool.entry(state, name)
            if entry is None or entry.inode != active.inode:
                continue
            if self.sha256_of(name, state) == active.sha256:
                return state
        return None


def _as_planned(raw: bytes, waiting: Waiting) -> TaskFile | None:
    """Give the task of these bytes, or ``None`` where they ask for something else than was planned for."""
    try:
        task = parse_task(raw, f"pending/{waiting.key}")
    except TaskFileError:
        return None
    planned = replace(waiting.demand, avoid=frozenset()), waiting.num_nodes
    return task if (demand_of(task.spec), task.spec.num_nodes) == planned else None
