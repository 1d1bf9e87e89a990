"""The handles on a started sandbox, from bubblewrap's first word to the proof that all of it is dead.

The thread that started bubblewrap runs this. It holds a pidfd of the sandbox's process 1, whose end is
reported only after every process of its namespace has ended: waiting for it is the proof.

Source: pidfd_open(2), prlimit(2), pid_namespaces(7).
"""

import os
import re
import resource
import select
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from labd.errors import SandboxError
from labd.sandbox.cgroup import Group, made
from labd.sandbox.launch import Command, Started, start
from labd.sandbox.script import BEGUN, OPENING, READY
from labd.text import head_and_tail, printable

START_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 20.0
_TICK_S = 0.05
_CHUNK_BYTES = 65536
_MAX_TALK_BYTES = 16384
_GROUP = "control group:"
_CHILD = re.compile(r'"child-pid"\s*:\s*(\d+)')
_EXIT = re.compile(r'"exit-code"\s*:\s*(\d+)')


class StartFailed(Exception):
    """The sandbox was not set up, so nothing ran; the text is bubblewrap's own."""


class Held:
    """The handles on a started sandbox."""

    def __init__(self, started: Started, held: ExitStack, group: Group | None) -> None:
        self._held = held
        self.group = group
        self._process = started.process
        self._input = held.enter_context(os.fdopen(started.input_fd, "wb", buffering=0))
        self._out_fd, self._status_fd = started.output_fd, started.status_fd
        for fd in (self._out_fd, self._status_fd):
            held.callback(os.close, fd)
        for fd in (started.input_fd, self._out_fd, self._status_fd):
            os.set_blocking(fd, False)
        self._status = ""
        self._out_open = True
        self._awaited = b""
        self._outer_fd = self._hold_pid(self._process.pid)
        # What it starts from now on is in the group as well, the sandbox's process 1 most likely.
        self._into_group(self._process.pid)
        self._init_fd: int | None = None
        self._rusage: resource.struct_rusage | None = None

    def next_chunk(self, timeout_s: float) -> bytes:
        """Give output as soon as there is some; nothing when the run or `timeout_s` is over."""
        self._wait(
            [self._outer_fd, self._out_fd] if self._out_open else [self._outer_fd], timeout_s
        )
        return self._read_chunk()

    def chunks(self) -> Iterator[bytes]:
        """Give what is left in the pipe of a dead run; never waits."""
        while chunk := self._read_chunk():
            yield chunk

    def over(self) -> bool:
        """Say whether bubblewrap itself has ended."""
        return _is_dead(self._outer_fd, 0)

    def idle(self, wake_fd: int, timeout_s: float) -> bool:
        """Wait until `wake_fd` can be read; say False if the sandbox ended instead, or `timeout_s` is over."""
        fds = [self._outer_fd, self._init()]
        woken = self._wait([*fds, wake_fd], timeout_s)
        return wake_fd in woken and not woken.intersection(fds)

    def send(self, text: bytes) -> None:
        """Say something to the waiting shell; one that is dead hears nothing.

        Raises:
            StartFailed: the shell doesn't listen.

        """
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with suppress(BrokenPipeError):
            while text:
                text = text[self._input.write(text) or 0 :]
                if time.monotonic() > deadline_s:
                    raise StartFailed(f"its shell did not listen for {START_TIMEOUT_S:g} s")
                if text:
                    self._wait([self._outer_fd], _TICK_S, writable=self._input.fileno())

    def go(self, text: bytes) -> None:
        """Say the last that the waiting shell is told; its answer is no output.

        Raises:
            StartFailed: the shell doesn't listen.

        """
        self._awaited = BEGUN
        self.send(text)
        self._input.close()

    def begun(self) -> bool:
        """Say whether the shell answered, of a run that is over and read to its end: if not, nothing ran."""
        return not self._awaited

    def wait_ready(self, rlimits: Mapping[int, int]) -> int:
        """Wait until the sandbox is set up and its shell listens; give its process 1, which has the limits now.

        Raises:
            StartFailed: it is not, in time.

        """
        self.send(OPENING)
        talk = b""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not talk.endswith(READY):
            over = self.over()
            chunk = self.next_chunk(_TICK_S)
            talk += chunk
            if over and not chunk:
                raise StartFailed(
                    printable(head_and_tail(talk.decode(errors="replace").strip(), 1000), 1200)
                )
            if time.monotonic() > deadline_s or len(talk) > _MAX_TALK_BYTES:
                raise StartFailed(
                    f"not set up after {START_TIMEOUT_S:g} s: {printable(talk.decode(errors='replace'))}"
                )
        pid = self._adopt_init()
        self._into_group(pid)
        try:
            for number, value in rlimits.items():
                resource.prlimit(pid, number, (value, value))
        except OSError as error:
            raise StartFailed(f"prlimit: {error.strerror}") from error
        return pid

    def end(self) -> resource.struct_rusage:
        """Kill whatever is alive, wait until all is dead, and give what it used.

        Raises:
            SandboxError: something would not die.

        """
        if self._rusage is not None:
            return self._rusage
        if self.group is not None:
            self.group.kill()
        first = self._init_fd if self._init_fd is not None else self._outer_fd
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)
        dead = _is_dead(first, KILL_TIMEOUT_S)
        if not _is_dead(self._outer_fd, KILL_TIMEOUT_S if dead else 0):
            self._process.kill()
        dead = dead and _is_dead(self._outer_fd, KILL_TIMEOUT_S)
        if not dead or not (self.group is None or self.group.wait_empty(KILL_TIMEOUT_S)):
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

    def ran_out_of_memory(self) -> bool:
        """Say whether the kernel killed something of it because its group's memory had run out."""
        return self.group is not None and self.group.ran_out()

    def _into_group(self, pid: int) -> None:
        if self.group is None or self.group.holds(pid):
            return
        try:
            self.group.add(pid)
        except OSError as error:
            raise StartFailed(f"{_GROUP} {error}") from error

    def _adopt_init(self) -> int:
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

    def _init(self) -> int:
        if self._init_fd is None:
            raise StartFailed("the sandbox was not waited for")
        return self._init_fd

    def _wait(self, fds: list[int], timeout_s: float, writable: int | None = None) -> set[int]:
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        if writable is not None:
            poll.register(writable, select.POLLOUT)
        return {fd for fd, _ in poll.poll(timeout_s * 1000)}

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
        answer = min(len(chunk), len(self._awaited))
        if not answer or chunk[:answer] != self._awaited[:answer]:
            return chunk
        self._awaited = self._awaited[answer:]
        return chunk[answer:] or self._read_chunk()

    def _read_status(self) -> str:
        with suppress(BlockingIOError):
            while chunk := os.read(self._status_fd, _CHUNK_BYTES):
                self._status += chunk.decode(errors="replace")
        return self._status


@contextmanager
def held(command: Command, uid: int | None) -> Iterator[tuple[Held, int]]:
    """Hold a waiting sandbox and its process 1's host id for the length of a block, whose end it does not outlive.

    What `labd.sandbox.launch.start` wants of the calling thread holds here.

    Raises:
        StartFailed: the sandbox could not be set up.
        SandboxError: a process would not die.

    """
    with ExitStack() as opened:
        group = _group(command, opened)
        try:
            started = start(command, uid)
        except OSError as error:
            raise StartFailed(str(error)) from error
        try:
            run = Held(started, opened, group)
        except BaseException:
            started.process.kill()
            started.process.wait(KILL_TIMEOUT_S)
            raise
        try:
            yield run, run.wait_ready(command.rlimits)
        finally:
            run.end()


def _group(command: Command, opened: ExitStack) -> Group | None:
    if command.group is None:
        return None
    try:
        return opened.enter_context(made(command.group))
    except OSError as error:
        raise StartFailed(f"{_GROUP} {error}") from error


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
