"""A daemon one step at a time: an engine without Ray, system calls that fail when told to, and a clock that jumps.

`SteppedEngine` stands in for Ray only: the work is the real worker's, in the real sandbox. `Calls` stands
between the daemon and the kernel: at the n-th call that changes a file it lets the daemon die, the disk fail,
or somebody else in. `Lab` is a home with a daemon on it that can end in every way and start again.
"""

import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import structlog

from labd import files, worker
from labd.archive import Archive, History
from labd.daemon import Daemon
from labd.engine.client import Engine
from labd.engine.types import Down, Ended, Event, Held, Job, Machines, NodeInfo, Nodes, Ready
from labd.log import Logger
from labd.scheduler import Signs
from labd.settings import Home, SandboxSettings, Settings
from labd.spool import Spool
from labd.task import State
from tests.boxes import ACCEPTED_GAPS

Key = tuple[str, int]
WELL: Mapping[str, Any] = {
    "problem": "",
    "warning": "",
    "labd": "1",
    "ray": "1",
    "python": "3",
    "clock_offset_s": 0.0,
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """An order that the engine has taken. `end`: it is over, and the daemon may not have heard of that."""

    job: Job
    since_s: float
    cancelled: bool = False
    end: Ended | None = None

    @property
    def key(self) -> Key:
        return (self.job.task_id, self.job.attempt)


class SteppedEngine(Engine):
    """The engine's verbs; nothing happens to an attempt until the test says so.

    Raises `AssertionError` where Ray would have to let an order wait, or where two attempts at one task
    would be at work at once: a daemon must ask for neither.

    Attributes:
        nodes: the machines, of which the first is the daemon's own; a test may add some before they come up.

    """

    def __init__(self, *, num_cpus: float = 2.0, survives: bool = False) -> None:
        self._survives = survives
        self.nodes = [NodeInfo("n1", "here", num_cpus, 0.0)]
        self._attempts: dict[Key, Attempt] = {}
        self._news: list[Event] = []
        self._told: list[Key] = []
        self.reached: list[tuple[str, int, str]] = []
        """Workers that were to be reached by another process of their node, and for what."""
        self.up = False

    # --- the engine's verbs

    @property
    def survives(self) -> bool:
        return self._survives

    def start(self) -> None:
        self.come_up()

    def measure(self, numbers: Sequence[dict[str, Any]]) -> None:
        """Take the numbers for Prometheus, which nobody asks for here."""

    def submit(self, job: Job) -> None:
        self.submit_many([job])

    def submit_many(self, jobs: Sequence[Job]) -> None:
        for job in jobs if self.up else ():
            attempt = Attempt(job, time.monotonic())
            assert not [a for a in self.live() if a.job.task_id == job.task_id], (
                f"{job.task_id} is at work already, and attempt {job.attempt} was ordered"
            )
            self._attempts[attempt.key] = attempt
            for node_id in (job.node_id, *job.also_nodes):
                there = [a for a in self.live() if node_id in (a.job.node_id, *a.job.also_nodes)]
                node = next(node for node in self.nodes if node.id == node_id)
                assert sum(a.job.num_cpus for a in there) <= node.num_cpus, (
                    f"no room for {job.task_id} on {node_id} beside {[a.key for a in there]}"
                )

    def cancel(self, task_id: str, attempt: int) -> None:
        if not self.up:
            return
        key = (task_id, attempt)
        there = self._attempts.get(key)
        if there is None:
            self._news.append(Ended(task_id, attempt, "cancelled", None, "was not running"))
        elif there.end is None:
            self._attempts[key] = replace(there, cancelled=True)

    def end_runs(self, task_id: str, attempt: int) -> None:
        self.reached.append((task_id, attempt, "end_runs"))

    def kill(self, task_id: str, attempt: int) -> None:
        self.reached.append((task_id, attempt, "kill"))

    def poll(self) -> list[Event]:
        # To ask again says that what was told has arrived.
        for key in self._told:
            self._attempts.pop(key, None)
        news, self._news = self._news, []
        self._told = [(e.task_id, e.attempt) for e in news if isinstance(e, Ended)]
        return news

    def stop(self, leave_work: bool = True) -> None:  # noqa: FBT001, FBT002 - as in `Engine`
        self.break_off()
        if not leave_work:
            self._attempts.clear()

    # --- what a test does with it

    def live(self) -> list[Attempt]:
        """Give the attempts that are at work."""
        return [attempt for attempt in self._attempts.values() if attempt.end is None]

    def work(self, task_id: str) -> dict[str, Any]:
        """Have the real worker do the work, and leave its result; the engine says nothing of it yet."""
        return worker.run(self._one(task_id).job.as_json(), [])

    def finish(self, task_id: str) -> None:
        """Have the work done, and say so; a cancelled attempt did it in vain."""
        outcome = self.work(task_id)
        if self._one(task_id).cancelled:
            self.ack_cancel(task_id)
        else:
            self._end(task_id, "returned", outcome, "")

    def lose(self, task_id: str) -> None:
        """Let the worker die."""
        self._end(task_id, "lost", None, "the worker died")

    def ack_cancel(self, task_id: str) -> None:
        """Say that what was told to end has ended."""
        assert self._one(task_id).cancelled, f"{task_id} was not told to end"
        self._end(task_id, "cancelled", None, "cancelled")

    def look(self, **signs: Any) -> None:
        """Have the node looked at, where each live attempt shows the same `signs`, as `labd.scheduler.Signs` has them."""
        blank = {f.name: f.default for f in fields(Signs) if f.name != "at_s"}
        attempts = [
            {"task_id": a.job.task_id, "attempt": a.job.attempt, **blank, **signs}
            for a in self.live()
        ]
        facts = {**WELL, "looked_s": time.monotonic(), "attempts": attempts}
        self._news.append(Machines({"n1": facts}))

    def repeat_old(self, task_id: str, attempt: int, outcome: Mapping[str, Any]) -> None:
        """Say the end of an attempt that the daemon has long forgotten."""
        self._news.append(Ended(task_id, attempt, "returned", dict(outcome), ""))

    def tell(self, **machines: dict[str, Any]) -> None:
        """Have machines say what they are and do, by node id."""
        self._news.append(Machines(machines))

    def leave(self, node_id: str) -> None:
        """Let a machine leave the cluster; attempts that only have it beside their own go on."""
        self.nodes = [node for node in self.nodes if node.id != node_id]
        self._news.append(Nodes([*self.nodes]))

    def go_down(self) -> None:
        """Let the driver's process end; its Ray and all work end with it, unless Ray is a service."""
        self.break_off()
        self._news.append(Down("the engine's process ended"))

    def come_up(self, held: Callable[[Attempt], bool] = lambda _attempt: True) -> None:
        """Let the driver be there again, with those of its attempts for which `held` says so."""
        self._attempts = {k: a for k, a in self._attempts.items() if held(a)}
        self._told.clear()
        self.up = True
        now_s = time.monotonic()
        has = [Held(*a.key, a.job.node_id, now_s - a.since_s) for a in self._attempts.values()]
        self._news += [Ready([*self.nodes], "", has)]
        self._news += [a.end for a in self._attempts.values() if a.end is not None]

    def break_off(self) -> None:
        """End as the driver does when the daemon is killed: what it had not said yet is not said."""
        self.up = False
        self._news.clear()
        self._told.clear()
        if not self._survives:
            self._attempts.clear()

    def _one(self, task_id: str) -> Attempt:
        return next(a for a in self.live() if a.job.task_id == task_id)

    def _end(
        self,
        task_id: str,
        how: Literal["returned", "lost", "cancelled"],
        outcome: dict[str, Any] | None,
        reason: str,
    ) -> None:
        attempt = self._one(task_id)
        end = Ended(*attempt.key, how, outcome, reason)
        self._attempts[attempt.key] = replace(attempt, end=end)
        if self.up:
            self._news.append(end)


class Died(BaseException):
    """The daemon's process was killed."""


How = Literal["dies before", "dies after", "dies in the middle of", "disk full", "somebody"]


class Calls:
    """Counts the calls that change files while `watching`, and lets something happen at one of them."""

    NAMES = ("write", "fsync", "rename", "replace", "mkdir", "unlink", "ftruncate")

    def __init__(self) -> None:
        self._real = {name: getattr(os, name) for name in self.NAMES}
        self._renameat2 = files._libc.renameat2
        self._left = 0
        self._how: How = "somebody"
        self._somebody: Callable[[], None] = lambda: None
        self._dead = False
        self.happened = False
        """Whether what `arm` asked for last has happened."""

    def arm(self, n: int, how: How, somebody: Callable[[], None] = lambda: None) -> None:
        """At the n-th call from now on, once: die, fail, or call `somebody` before it is done."""
        self._left, self._how, self._somebody = n, how, somebody
        self._dead = self.happened = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand between this process and the kernel."""
        for name, real in self._real.items():
            setattr(os, name, partial(self._call, name, real))
        setattr(files._libc, "renameat2", self._rename)  # noqa: B010 - made by ctypes as it goes
        try:
            yield
        finally:
            for name, real in self._real.items():
                setattr(os, name, real)
            setattr(files._libc, "renameat2", self._renameat2)  # noqa: B010
            self._left, self._dead = 0, False

    def _call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        how = self._next()
        if how == "disk full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if how == "dies in the middle of" and name == "write":
            self._real["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
            raise Died
        done = real(*args, **kwargs)
        if how is not None and how.startswith("dies"):
            raise Died
        return done

    def _rename(self, *args: Any) -> int:
        how = self._next()
        if how == "disk full":
            ctypes.set_errno(errno.ENOSPC)
            return -1
        done = int(self._renameat2(*args))
        if how is not None and how.startswith("dies"):
            raise Died
        return done

    def _next(self) -> How | None:
        """Give what is to happen at this call, if anything; what happens before it, happens here."""
        if self._dead:
            raise Died
        if self._left == 0:
            return None
        self._left -= 1
        if self._left:
            return None
        self.happened = True
        self._dead = self._how.startswith("dies")
        if self._how == "dies before":
            raise Died
        if self._how == "somebody":
            self._somebody()
            return None
        return self._how


class Clock:
    """The process's two clocks, which the test can put forward; see `time.time` and `time.monotonic`."""

    def __init__(self) -> None:
        self._real = (time.time, time.monotonic)
        self._ahead_s = self._wrong_s = 0.0

    def jump(self, seconds: float) -> None:
        """Let this much time pass."""
        self._ahead_s += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock: no time passes."""
        self._wrong_s += seconds

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Let everybody in this process read this clock."""
        wall, steady = self._real
        setattr(time, "time", lambda: wall() + self._ahead_s + self._wrong_s)  # noqa: B010 - mypy has it for a constant
        setattr(time, "monotonic", lambda: steady() + self._ahead_s)  # noqa: B010
        try:
            yield
        finally:
            setattr(time, "time", wall)  # noqa: B010
            setattr(time, "monotonic", steady)  # noqa: B010


class Lab:
    """A home, a daemon that is ticked by hand, and the engine that it has."""

    def __init__(self, root: Path, *, num_cpus: float = 2.0, survives: bool = True) -> None:
        self.home = Home(
            root,
            Settings(
                rescan=1e-6,
                settle=1e-6,
                min_free_bytes=1,
                sandbox=SandboxSettings(allow_missing=ACCEPTED_GAPS),
            ),
        )
        self.spool = Spool(self.home.spool)
        self.archive = Archive(self.home.results)
        self.engine = SteppedEngine(num_cpus=num_cpus, survives=survives)
        self.calls, self.clock = Calls(), Clock()
        self._open = ExitStack()
        log_file = self._open.enter_context((root / "log.jsonl").open("a"))
        self._log: Logger = structlog.wrap_logger(
            structlog.WriteLogger(log_file),
            processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        )
        self.daemon: Daemon | None = None

    def __enter__(self) -> Self:
        self._open.enter_context(self.clock.ticking())
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    # --- the daemon

    def start(self) -> None:
        """Start a daemon as `Daemon.run` does, but for the signals and the watcher."""
        self.spool.prepare()
        self.archive.prepare()
        self.daemon = Daemon(self.home, self._log, engine=self.engine)
        self.engine.start()

    def tick(self, hints: Sequence[str] = ()) -> None:
        """Let the daemon look, decide and act once; where it is told to die in that, it is dead afterwards."""
        assert self.daemon is not None
        with self.calls.watching():
            try:
                self.daemon.tick(list(hints))
            except Died:
                self.crash()

    def crash(self) -> None:
        """Kill the daemon, and its driver with it."""
        self.daemon = None
        self.engine.break_off()

    def stop(self) -> None:
        """Stop the daemon as SIGTERM does."""
        assert self.daemon is not None
        self.daemon._stop()
        self.daemon = None

    def settle(self, ticks: int = 4) -> None:
        """Tick until what was asked has been done."""
        for _ in range(ticks):
            self.tick()

    def turn(self) -> None:
        """Let it see what is new, and campaigns take their next turn."""
        self.settle(1)
        self.clock.jump(1)
        self.settle()

    # --- what people do

    def path(self, place: str) -> Path:
        """Give the path of a place such as ``pending/x.yaml``."""
        return self.home.spool / place

    def move(self, source: str, target: str) -> None:
        """Rename as mv(1) does: what is in the way is gone."""
        os.rename(self.path(source), self.path(target))  # noqa: PTH104 - mv(1) to the letter

    def places(self) -> dict[str, bytes]:
        """Give every task file in the spool by its place."""
        return {
            f"{state.value}/{name}": self.path(f"{state.value}/{name}").read_bytes()
            for state in State
            for name in self.spool.names(state)
        }

    # --- what is on record

    def history(self, task_id: str) -> History:
        """Give the task's events."""
        return self.archive.history(task_id)

    def events(self, task_id: str) -> list[str]:
        """Give the names of the task's events."""
        return [str(event["event"]) for event in self.history(task_id).events]
