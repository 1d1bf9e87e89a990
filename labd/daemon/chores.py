"""Long jobs of the daemon: each a `labd` of its own, started and reaped by the loop, which never waits for one.

The file that a chore prints to is also its lock: the child holds it through its own standard output. So a chore that
outlives a killed daemon is not started a second time beside itself, and what it printed last can be read.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from labd.daemon.telling import Once
from labd.log import Logger
from labd.text import printable

_PROGRAM = (sys.executable, "-m", "labd.cli")
_NICENESS = 10
_LOOK_EVERY_S = 0.5
_GRACE_S = 5.0
_MAX_OUTPUT_BYTES = 1 << 20
_TAIL_BYTES = 4096
_MAX_SAID = 400


@dataclass(frozen=True, slots=True)
class Done:
    """A chore that has ended."""

    name: str
    code: int
    """Its exit code; minus a signal's number where that ended it."""
    said: str
    """The last line that it printed, or that it took too long."""


@dataclass(slots=True)
class _UnderWay:
    process: subprocess.Popen[bytes]
    output: int
    began_s: float
    timeout_s: float
    told_to_end_s: float | None = None


class Chores:
    """What of one home is under way. Each chore has a session of its own, the lowest claim on CPUs, and an end.

    `log_path`: what a chore prints goes to a file beside this one, with the chore's name in its name; it is kept from
    the last start only, and at most 1 MiB of it. `program`: what to run instead of `labd`. `grace_s`: how long one that was
    told to end has for it, and one that was killed.
    """

    def __init__(
        self,
        home_root: Path,
        log: Logger,
        *,
        log_path: Path,
        program: Sequence[str] = _PROGRAM,
        grace_s: float = _GRACE_S,
    ) -> None:
        self._command = [*program, "--home", str(home_root)]
        self._log, self._once, self._log_path = log, Once(log), log_path
        self._grace_s = grace_s
        self._under_way: dict[str, _UnderWay] = {}

    @property
    def next_s(self) -> float:
        """When to take the next turn, by the monotonic clock."""
        return time.monotonic() + _LOOK_EVERY_S if self._under_way else float("inf")

    def start(self, name: str, arguments: Sequence[str], *, timeout_s: float) -> bool:
        """Start `labd` with these arguments. ``False``: one of this name is under way, or it could not be started.

        A chore that a killed daemon left behind counts as under way.
        """
        path = self._log_path.with_name(f"{self._log_path.stem}-{name}.log")
        try:
            output = _locked(path)
            if output is None:
                return False
            process = self._run(output, arguments)
        except OSError as error:
            told = {"chore": name, "reason": str(error)}
            self._once.error(f"{name}: {error}", "chore.failed", **told)
            return False
        self._under_way[name] = _UnderWay(process, output, time.monotonic(), timeout_s)
        self._log.info("chore.started", chore=name, pid=process.pid)
        return True

    def turn(self) -> list[Done]:
        """Give those that have ended since the last turn, and end those that took too long; never waits."""
        done = []
        for name, chore in list(self._under_way.items()):
            _bound(chore.output)
            if chore.process.poll() is None:
                self._end_late(chore)
            else:
                done.append(self._ended(name, chore))
        return done

    def close(self) -> None:
        """End what is under way: asked first, killed after some seconds; what the kernel does not let go is left to itself."""
        for chore in self._under_way.values():
            if chore.process.poll() is None:
                _signal(chore, signal.SIGTERM)
        late = self._outlive(list(self._under_way))
        for name in late:
            _signal(self._under_way[name], signal.SIGKILL)
        for name in self._outlive(late):
            # The kernel may hold it, at a disk that does not answer. Its lock keeps a second one from starting beside it.
            pid = self._under_way[name].process.pid
            self._log.error("chore.unkillable", chore=name, pid=pid, waited_s=self._grace_s)
        self.turn()

    def _outlive(self, names: Sequence[str]) -> list[str]:
        """Wait a moment for these to end; give those that have not."""
        deadline_s = time.monotonic() + self._grace_s
        late = []
        for name in names:
            try:
                self._under_way[name].process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(name)
        return late

    def _run(self, output: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError:
            os.close(output)
            raise
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        return process

    def _end_late(self, chore: _UnderWay) -> None:
        now_s = time.monotonic()
        if chore.told_to_end_s is None:
            if now_s - chore.began_s > chore.timeout_s:
                chore.told_to_end_s = now_s
                _signal(chore, signal.SIGTERM)
        elif now_s - chore.told_to_end_s > self._grace_s:
            _signal(chore, signal.SIGKILL)

    def _ended(self, name: str, chore: _UnderWay) -> Done:
        del self._under_way[name]
        said = _last_line(chore.output)
        os.close(chore.output)
        if chore.told_to_end_s is not None:
            said = f"took longer than {chore.timeout_s:g} s; said last: {said}"
        done = Done(name, chore.process.returncode, said)
        facts = {"chore": name, "took_s": round(time.monotonic() - chore.began_s, 3)}
        if done.code == 0:
            self._log.info("chore.done", **facts)
        else:
            self._log.warning("chore.failed", **facts, code=done.code, reason=said)
        return done


def _locked(path: Path) -> int | None:
    """Open the output anew, locked; ``None`` while the lock is another chore's."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    output = os.open(path, flags, 0o644)
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(output, 0)
    except BlockingIOError:
        os.close(output)
        return None
    except OSError:
        os.close(output)
        raise
    return output


def _signal(chore: _UnderWay, number: signal.Signals) -> None:
    """Signal its process group, which is there for as long as the chore itself was not reaped."""
    with suppress(ProcessLookupError):
        os.killpg(chore.process.pid, number)


def _bound(output: int) -> None:
    """Keep only the end of what has become too long: the child appends, so the file may be cut below it."""
    if os.fstat(output).st_size > _MAX_OUTPUT_BYTES:
        tail = _tail(output)
        os.ftruncate(output, 0)
        os.write(output, tail)


def _tail(output: int) -> bytes:
    return os.pread(output, _TAIL_BYTES, max(0, os.fstat(output).st_size - _TAIL_BYTES))


def _last_line(output: int) -> str:
    lines = _tail(output).decode(errors="replace").split("\n")
    return printable(
        next((line.strip() for line in reversed(lines) if line.strip()), ""), _MAX_SAID
    )
