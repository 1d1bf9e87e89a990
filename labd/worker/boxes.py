"""What the kinds of work share on a node: its sandbox, its GPUs, and how progress is told."""

import functools
import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labd.command.run import limits_of
from labd.limits import TaskLimits, settled
from labd.log import Logger
from labd.sandbox import Ending, Limits, Sandbox, SandboxConfig, SandboxResult

if TYPE_CHECKING:
    from labd.llm.pool import Pool


_LIMITS = frozenset(
    ending.value
    for ending in Ending
    if ending is Ending.TIMED_OUT or ending.value.endswith("_limit")
)


def progress_to(log: Logger) -> Callable[[str, int, int, str], None]:
    """Give what says in the log how far the work is, as `labd.lab.progress_of` reads it."""
    return lambda stage, done, total, detail: log.info(
        "stage.progress", stage=stage, done=done, total=total, detail=detail
    )


def gpus_free(
    pool: "Pool | None", gpus: Sequence[int], limit_s: float
) -> AbstractContextManager[object]:
    """Have the GPUs to ourselves, as far as the lab's language models go."""
    return pool.gpus(gpus, limit_s) if pool is not None and gpus else nullcontext()


@functools.cache
def sandbox_of(uid: int, allow_missing: frozenset[str]) -> Sandbox:
    """Give this process's sandbox, which tries the host once and remembers what it found."""
    return Sandbox(SandboxConfig(uid=uid, allow_missing=allow_missing))


LIMITS_HIT: Counter[str] = Counter()
"""How many runs of this process's present attempt were ended for a limit, by its name."""


def note_ending(ending: str) -> None:
    """Count a run that was ended for a limit; nothing for one that ended otherwise."""
    if ending in _LIMITS:
        LIMITS_HIT[ending] += 1


class _Call(threading.Event):
    """Whether a run is to be ended: by who started it (`caller`), or, when this is set, by labd as stuck."""

    def __init__(self, caller: threading.Event | None) -> None:
        super().__init__()
        self._caller = caller

    @property
    def stuck(self) -> bool:
        """Whether labd ends it, and nobody else does."""
        return super().is_set() and not (self._caller is not None and self._caller.is_set())

    def is_set(self) -> bool:
        """Say whether either has called it off."""
        return super().is_set() or (self._caller is not None and self._caller.is_set())


@dataclass(frozen=True, slots=True, eq=False)
class UnderWay:
    """A run that is under way: its name, its log, and how it is ended."""

    name: str
    log: Path | None
    call: _Call


class Runs:
    """The runs of this process's attempt. Any thread may call."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._runs: list[UnderWay] = []

    @contextmanager
    def one(self, log: Path | None, caller: threading.Event | None) -> Iterator[_Call]:
        """Count a run for the length of a block; give what ends it."""
        name = "a run" if log is None else log.parent.name
        run = UnderWay(name, log, _Call(caller))
        with self._mutex:
            self._runs.append(run)
        try:
            yield run.call
        finally:
            with self._mutex:
                self._runs.remove(run)

    def under_way(self) -> list[UnderWay]:
        """Give the runs that are under way."""
        with self._mutex:
            return list(self._runs)

    def end_stuck(self) -> None:
        """End all runs that are under way as stuck."""
        for run in self.under_way():
            run.call.set()


RUNS = Runs()


class CappedSandbox:
    """The sandbox with the settings' limits over what a template asks for, or the task's own, and room left on the disk.

    `until_s`: on the monotonic clock, when the time of the whole task is over; runs end with ``out_of_time`` then.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        asked: TaskLimits,
        reserve_bytes: int,
        pool: "Pool | None",
        *,
        until_s: float = math.inf,
    ) -> None:
        self._pool = pool
        self._box = sandbox_of(settings["uid"], frozenset(settings["allow_missing"]))
        self._caps = settled(settings, asked)
        self._asked = asked
        self._reserve_bytes = reserve_bytes
        self._until_s = until_s

    def run(
        self,
        argv: Sequence[str],
        *,
        workdir: Path,
        limits: Limits,
        cancelled: threading.Event | None = None,
        log: Path | None = None,
        **rest: Any,
    ) -> SandboxResult:
        """Run as `labd.sandbox.Sandbox.run` does, within the caps."""
        room = shutil.disk_usage(workdir).free - self._reserve_bytes
        capped = limits_of(self._caps, wall_s=limits.wall_s, room_bytes=room)
        if self._asked.memory is None:
            memory_bytes = min(limits.memory_bytes, capped.memory_bytes)
            capped = replace(capped, memory_bytes=memory_bytes)
        with (
            RUNS.one(log, cancelled) as call,
            gpus_free(self._pool, rest.get("gpus", ()), capped.wall_s),
        ):
            left_s = self._until_s - time.monotonic()
            if left_s <= 0:
                return _NOT_BEGUN
            last = left_s < capped.wall_s
            capped = replace(capped, wall_s=left_s) if last else capped
            result = self._box.run(
                argv, workdir=workdir, limits=capped, cancelled=call, log=log, **rest
            )
        if result.ending is Ending.CANCELLED and call.stuck:
            result = replace(result, ending=Ending.STUCK)
        if result.ending is Ending.TIMED_OUT and last:
            result = replace(result, ending=Ending.OUT_OF_TIME)
        note_ending(result.ending.value)
        return result


_NOT_BEGUN = SandboxResult(Ending.OUT_OF_TIME, None, 0.0, 0.0, None, "")
