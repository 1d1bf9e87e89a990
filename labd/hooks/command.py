"""Running a command that tells somebody: bounded in time and in output, and with nothing of it left afterwards."""

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labd.text import printable

SEARCHED = ("/usr/local/bin", "/usr/bin", "/bin")
"""Where a program is looked for that is named without a directory."""
_POLL_S = 0.1
_READ_BYTES = 2**16
_KEPT_BYTES = 2000
_REAP_S = 5.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a command. `problem`: why it did not do its work, or empty; `said`: the end of its output."""

    problem: str
    said: str
    cut_short: bool = False
    """It was ended because labd stops, whatever it would have come to."""


def run(
    argv: Sequence[str],
    given: bytes,
    variables: Mapping[str, str],
    *,
    timeout_s: float,
    abort: threading.Event,
) -> Ran:
    """Run a command to its end; what it started and left running is ended with it, in its process group.

    Args:
        argv: the program and its arguments.
        given: what it finds on its standard input.
        variables: further variables of its environment, which else has a search path and a language only.
        timeout_s: when it is killed.
        abort: when it is set the command is killed as well.

    """
    environment = {"PATH": ":".join(SEARCHED), "LANG": "C.UTF-8", **variables}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Ran(f"it can't be started: {printable(reason, 200)}", "")
    deadline_s = time.monotonic() + timeout_s
    try:
        ended, said = _talk(process, given, deadline_s, abort)
    except OSError as error:  # no descriptor left, or the like
        return Ran(f"it can't be followed: {error.strerror}", "")
    finally:
        # Not reaped yet, so that its number is still its own, and its group's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    shown = printable(said.decode(errors="replace").strip(), _KEPT_BYTES)
    code = _reaped(process)
    if not ended:
        stopped = abort.is_set()
        why = "labd stops" if stopped else f"it took longer than {timeout_s:g} s"
        return Ran(f"ended: {why}", shown, cut_short=stopped)
    if code is None:
        return Ran("it can't be ended: it hangs in the kernel", shown)
    if code < 0:
        return Ran(f"it was ended by signal {-code}", shown)
    return Ran(f"it ended with {code}" if code else "", shown)


def _talk(
    process: "subprocess.Popen[bytes]", given: bytes, deadline_s: float, abort: threading.Event
) -> tuple[bool, bytes]:
    """Write its input and read its output until it has ended; give whether it did so in time, and the end of its output."""
    its_in, its_out = process.stdin, process.stdout
    if its_in is None or its_out is None:
        return False, b""
    rest, said = memoryview(given), b""
    with contextlib.ExitStack() as opened:
        watch = opened.enter_context(selectors.DefaultSelector())
        pidfd = os.pidfd_open(process.pid)
        opened.callback(os.close, pidfd)
        for fd in (its_in.fileno(), its_out.fileno()):
            os.set_blocking(fd, False)
        watch.register(pidfd, selectors.EVENT_READ)
        watch.register(its_in, selectors.EVENT_WRITE)
        watch.register(its_out, selectors.EVENT_READ)
        while (left_s := deadline_s - time.monotonic()) > 0 and not abort.is_set():
            ready = {key.fileobj for key, _ in watch.select(min(left_s, _POLL_S))}
            if its_out in ready:
                data = _read(its_out.fileno())
                said = (said + data)[-_KEPT_BYTES:]
                if not data:
                    watch.unregister(its_out)
            if its_in in ready:
                rest = _write(its_in.fileno(), rest)
                if not rest:
                    watch.unregister(its_in)
                    its_in.close()
            if pidfd in ready:
                # What a child of it still holds open is not waited for; what is there is read.
                return True, (said + _read(its_out.fileno()))[-_KEPT_BYTES:]
    return False, said


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return b""


def _write(fd: int, rest: memoryview) -> memoryview:
    try:
        return rest[os.write(fd, rest) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]  # it does not want to know


def _reaped(process: "subprocess.Popen[bytes]") -> int | None:
    try:
        return process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        return None
