"""Watching one sandboxed run from go to the proof of its death."""

import math
import os
import resource
import time
from dataclasses import dataclass, field
from threading import Event

from labd.sandbox.held import Held
from labd.sandbox.meter import Meter
from labd.sandbox.model import Ending, Limits
from labd.sandbox.output import Output
from labd.sandbox.workdir import usage

_TICK_S = 0.05
# Often at first, so that short runs are seen too; measuring may take a tenth of the time.
_FIRST_POLL_S, _MAX_POLL_S, _POLL_SHARE = 0.01, 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a waiting sandbox is to do, and what holds it meanwhile."""

    script: bytes
    limits: Limits
    workdir_fd: int
    output: Output
    cancelled: Event
    interrupted: Event = field(default_factory=Event)
    """Set when whoever gave the order no longer waits for it."""

    def stopped(self) -> bool:
        """Say whether the run is to be killed."""
        return self.cancelled.is_set() or self.interrupted.is_set()


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a run that is over."""

    ending: Ending
    exit_code: int | None
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int | None
    begun: bool
    """False: nothing ran, because the sandbox ended before."""


def follow(run: Held, meter: Meter, order: Order) -> Seen:
    """Let the run go, hold it to its limits, and give what was seen when all of it is dead.

    Raises:
        StartFailed: the sandbox doesn't take the order.
        SandboxError: a process would not die.
        OSError: the log could not be written, or the working directory not be measured. The run is dead
            when the sandbox's holder has let it go.

    """
    output, limits = order.output, order.limits
    begun_s = time.monotonic()
    run.go(order.script)
    ending = _follow(run, _Watch(meter, limits, order.workdir_fd, begun_s), order)
    wall_s = time.monotonic() - begun_s
    rusage = run.end()
    cpu_s = max(rusage.ru_utime + rusage.ru_stime, meter.cpu_s())
    peak = peak_bytes(meter.peak_memory_bytes, rusage)
    if run.ran_out_of_memory():
        peak = max(limits.memory_bytes, peak or 0)
    for chunk in run.chunks():
        output.feed(chunk)
    if ending is Ending.EXITED and run.ran_out_of_memory():
        ending = Ending.MEMORY_LIMIT
    if ending is Ending.EXITED and output.total_bytes > 4 * limits.output_bytes:
        ending = Ending.OUTPUT_LIMIT
    exit_code = run.exit_code() if ending is Ending.EXITED else None
    if ending is Ending.EXITED and (exit_code is None or not run.begun()):
        ending, exit_code = Ending.KILLED, None
    return Seen(
        ending=ending,
        exit_code=exit_code,
        wall_s=wall_s,
        cpu_s=cpu_s,
        peak_memory_bytes=peak,
        begun=run.begun(),
    )


def peak_bytes(seen_bytes: int | None, rusage: resource.struct_rusage) -> int | None:
    """Give what polling saw, or the peak of the largest process of a tree that is over, where that is known to be more.

    What we start inherits our own peak across execve, so that only more than that says something of the tree.

    Source: getrusage(2); exec_mmap in fs/exec.c of Linux 6.1.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if rusage.ru_maxrss <= own:
        return seen_bytes
    return max(rusage.ru_maxrss * 1024, seen_bytes or 0)


def _follow(run: Held, watch: "_Watch", order: Order) -> Ending:
    output = order.output
    while True:
        output.feed(run.next_chunk(min(_TICK_S, watch.pause_s())))
        if run.over():
            return Ending.EXITED
        if order.stopped():
            return Ending.CANCELLED
        if output.total_bytes > 4 * watch.limits.output_bytes:
            return Ending.OUTPUT_LIMIT
        if run.ran_out_of_memory():
            return Ending.MEMORY_LIMIT
        broken = watch.broken(time.monotonic())
        if broken is not None:
            return broken


class _Watch:
    """Looks at the limits that nobody else holds, as often as measuring is cheap."""

    def __init__(self, meter: Meter, limits: Limits, workdir_fd: int, begun_s: float) -> None:
        self.limits = limits
        self._meter = meter
        self._workdir_fd = workdir_fd
        self._free_bytes = _free_bytes(workdir_fd)
        self._deadline_s = begun_s + limits.wall_s
        self._pause_s = _FIRST_POLL_S
        self._next_poll_s = begun_s + _FIRST_POLL_S

    def pause_s(self) -> float:
        """Give how long nothing has to be looked at."""
        return max(0.0, min(self._deadline_s, self._next_poll_s) - time.monotonic())

    def broken(self, now_s: float) -> Ending | None:
        """Give what the run is to be ended for, if anything."""
        if now_s >= self._deadline_s:
            return Ending.TIMED_OUT
        if now_s < self._next_poll_s:
            return None
        broken = self._measure()
        done_s = time.monotonic()
        self._pause_s = min(2 * self._pause_s, _MAX_POLL_S)
        self._next_poll_s = done_s + max(self._pause_s, _POLL_SHARE * (done_s - now_s))
        return broken

    def _measure(self) -> Ending | None:
        on_disk, in_memory = self._meter.unlinked_bytes()
        held_bytes = self._meter.memory_bytes(in_memory)
        if self._meter.group is None and held_bytes > self.limits.memory_bytes:
            return Ending.MEMORY_LIMIT
        if self._meter.cpu_s() > (self.limits.cpu_s or math.inf):
            return Ending.CPU_LIMIT
        if self._over(on_disk) or (self._is_suspect() and self._over_when_still()):
            return Ending.DISK_LIMIT
        return None

    def _over(self, on_disk: int) -> bool:
        used = usage(self._workdir_fd, self.limits.files)
        return (
            not used.whole
            or used.size_bytes + on_disk > self.limits.disk_bytes
            or self._meter.lying_files() > self.limits.files
        )

    def _is_suspect(self) -> bool:
        """Say whether more has gone from the disk than this run may take, though perhaps to others."""
        return self._free_bytes - _free_bytes(self._workdir_fd) > self.limits.disk_bytes

    def _over_when_still(self) -> bool:
        """Look while nothing moves: files that wander between directories escape a look at a living tree."""
        with self._meter.still():
            return self._over(self._meter.unlinked_bytes()[0])


def _free_bytes(fd: int) -> int:
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize
