"""Watching one sandboxed run from its start to the proof of its death.

The thread that started bubblewrap runs this. It holds a pidfd of the sandbox's process 1, whose end is
reported only after every process of its namespace has ended: waiting for it is the proof.

Source: pidfd_open(2), pid_namespaces(7).
"""

import os
import re
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from labd.errors import SandboxError
from labd.sandbox.command import GO, READY
from labd.sandbox.launch import Started
from labd.sandbox.meter import Meter
from labd.sandbox.model import Ending, Limits
from labd.sandbox.output import Output
from labd.sandbox.workdir import usage
from labd.text import head_and_tail, printable

START_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 20.0
_TICK_S = 0.05
_CHUNK_BYTES = 65536
_MAX_TALK_BYTES = 16384
# Often at first, so that short runs are seen too; measuring may take a tenth of the time.
_FIRST_POLL_S, _MAX_POLL_S, _POLL_SHARE = 0.01, 0.1, 10.0
_CHILD = re.compile(r'"child-pid"\s*:\s*(\d+)')
_EXIT = re.compile(r'"exit-code"\s*:\s*(\d+)')


class StartFailed(Exception):
    """The sandbox was not set up, so nothing ran; the text is bubblewrap's own."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a run that is over."""

    ending: Ending
    exit_code: int | None
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int | None


def supervise(
    started: Started, limits: Limits, workdir_fd: int, output: Output, stop: Callable[[], bool]
) -> Seen:
    """Let the run go, hold it to its limits, and give what was seen when all of it is dead.

    Raises:
        StartFailed: the sandbox could not be set up.
        SandboxError: a process would not die.
        OSError: the log could not be written, or the working directory not be measured. The run is dead.

    """
    with _ended(started) as run:
        init_pid = _wait_ready(run)
        with Meter(init_pid, workdir_fd) as meter:
            run.send_go()
            begun_s = time.monotonic()
            watch = _Watch(meter, limits, workdir_fd, begun_s)
            ending = _follow(run, watch, output, stop)
            wall_s = time.monotonic() - begun_s
            rusage = run.end()
        for chunk in run.chunks():
            output.feed(chunk)
        if ending is Ending.EXITED and output.total_bytes > 4 * limits.output_bytes:
            ending = Ending.OUTPUT_LIMIT
        exit_code = run.exit_code() if ending is Ending.EXITED else None
        if ending is Ending.EXITED and exit_code is None:
            ending = Ending.KILLED
    cpu_s = rusage.ru_utime + rusage.ru_stime
    return Seen(ending, exit_code, wall_s, cpu_s, meter.peak_memory_bytes)


def _follow(run: "_Run", watch: "_Watch", output: Output, stop: Callable[[], bool]) -> Ending:
    while True:
        output.feed(run.next_chunk(min(_TICK_S, watch.pause_s())))
        if run.over():
            return Ending.EXITED
        if stop():
            return Ending.CANCELLED
        if output.total_bytes > 4 * watch.limits.output_bytes:
            return Ending.OUTPUT_LIMIT
        broken = watch.broken(time.monotonic())
        if broken is not None:
            return broken


class _Watch:
    """Looks at the limits that nobody else holds, as often as measuring is cheap."""

    def __init__(self, meter: Meter, limits: Limits, workdir_fd: int, begun_s: float) -> None:
        self.limits = limits
        self._meter = meter
        self._workdir_fd = workdir_fd
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
        if self._meter.memory_bytes(in_memory) > self.limits.memory_bytes:
            return Ending.MEMORY_LIMIT
        used = usage(self._workdir_fd, self.limits.files)
        if not used.whole or used.size_bytes + on_disk > self.limits.disk_bytes:
            return Ending.DISK_LIMIT
        return None


class _Run:
    """The handles on a started sandbox."""

    def __init__(self, started: Started, held: ExitStack) -> None:
        stdin, stdout = started.process.stdin, started.process.stdout
        if stdin is None or stdout is None:
            msg = "bubblewrap was started without pipes"
            raise RuntimeError(msg)
        self._held = held
        self._process = started.process
        self._stdin = held.enter_context(stdin)
        self._out_fd = held.enter_context(stdout).fileno()
        self._status_fd = started.status_fd
        held.callback(os.close, started.status_fd)
        os.set_blocking(self._out_fd, False)
        os.set_blocking(self._status_fd, False)
        self._status = ""
        self._out_open = True
        self._outer_fd = self._hold_pid(self._process.pid)
        self._init_fd: int | None = None
        self._rusage: resource.struct_rusage | None = None

    def next_chunk(self, timeout_s: float) -> bytes:
        """Give output as soon as there is some; nothing when the run or `timeout_s` is over."""
        fds = [self._outer_fd, self._out_fd] if self._out_open else [self._outer_fd]
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        poll.poll(timeout_s * 1000)
        return self._read_chunk()

    def chunks(self) -> Iterator[bytes]:
        """Give what is left in the pipe of a dead run; never waits."""
        while chunk := self._read_chunk():
            yield chunk

    def over(self) -> bool:
        """Say whether bubblewrap itself has ended."""
        return _is_dead(self._outer_fd, 0)

    def adopt_init(self) -> int:
        """Take hold of the sandbox's process 1 and give its id on the host."""
        found = _CHILD.search(self._read_status())
        if found is None:
            raise StartFailed("bubblewrap named no process")
        pid = int(found[1])
        try:
            self._init_fd = self._hold_pid(pid)
        except ProcessLookupError as error:
            raise StartFailed("the sandbox ended at once") from error
        # The id is not another's by now: what we hold is still bubblewrap's child.
        if _parent_of(pid) != self._process.pid:
            raise StartFailed("the sandbox ended at once")
        return pid

    def send_go(self) -> None:
        """Let the command start."""
        with suppress(BrokenPipeError):
            self._stdin.write(GO)
        self._stdin.close()

    def end(self) -> resource.struct_rusage:
        """Kill whatever is alive, wait until all is dead, and give what it used.

        Raises:
            SandboxError: something would not die.

        """
        if self._rusage is not None:
            return self._rusage
        first = self._init_fd if self._init_fd is not None else self._outer_fd
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)
        dead = _is_dead(first, KILL_TIMEOUT_S)
        if not _is_dead(self._outer_fd, KILL_TIMEOUT_S if dead else 0):
            self._process.kill()
        if not dead or not _is_dead(self._outer_fd, KILL_TIMEOUT_S):
            raise SandboxError(
                f"a sandboxed process is still there {KILL_TIMEOUT_S:g} s after it was killed",
                where=f"process {self._process.pid}",
                fix="It hangs in the kernel, in a driver perhaps; look at dmesg, and restart the machine",
            )
        _, status, self._rusage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._rusage

    def exit_code(self) -> int | None:
        """Give the command's exit code, negative for a signal, of a run that is over; ``None`` if nobody was left to say it."""
        found = _EXIT.search(self._read_status())
        if found is None:
            return None
        code = int(found[1])
        return 128 - code if 128 < code <= 192 else code

    def _hold_pid(self, pid: int) -> int:
        fd = os.pidfd_open(pid)
        self._held.callback(os.close, fd)
        return fd

    def _read_chunk(self) -> bytes:
        if not self._out_open:
            return b""
        try:
            chunk = os.read(self._out_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return b""
        self._out_open = bool(chunk)
        return chunk

    def _read_status(self) -> str:
        with suppress(BlockingIOError):
            while chunk := os.read(self._status_fd, _CHUNK_BYTES):
                self._status += chunk.decode(errors="replace")
        return self._status


@contextmanager
def _ended(started: Started) -> Iterator[_Run]:
    """Hold a run for the length of a block, whose end it does not outlive."""
    with ExitStack() as held:
        try:
            run = _Run(started, held)
        except BaseException:
            started.process.kill()
            started.process.wait(KILL_TIMEOUT_S)
            raise
        try:
            yield run
        finally:
            run.end()


def _wait_ready(run: _Run) -> int:
    """Wait until the sandbox is set up and waits for go; give its process 1."""
    talk = b""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not talk.endswith(READY):
        over = run.over()
        chunk = run.next_chunk(_TICK_S)
        talk += chunk
        if over and not chunk:
            raise StartFailed(
                printable(head_and_tail(talk.decode(errors="replace").strip(), 1000), 1200)
            )
        if time.monotonic() > deadline_s or len(talk) > _MAX_TALK_BYTES:
            raise StartFailed(
                f"not set up after {START_TIMEOUT_S:g} s: {printable(talk.decode(errors='replace'))}"
            )
    return run.adopt_init()


def _is_dead(pid_fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pid_fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return None
    return int(text[text.rindex(b")") :].split()[2])
