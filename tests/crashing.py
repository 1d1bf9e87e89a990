"""Processes that are SIGKILLed at the n-th change that they make to a directory, and what they did until then.

``python -m tests.crashing --watch DIR [--at N] [--torn half|most] [--count FILE] -- MODULE ARGS…`` runs
``python -m MODULE ARGS…`` and kills it when it is about to make its N-th call to the kernel that writes,
opens for writing, renames, makes, removes, syncs or changes the mode of something below DIR. The call
itself is not made; with ``--torn``, if it is a write, a part of its bytes is. (The moment after call N is
the moment before call N + 1.) All threads count; children run unharmed, as they would under a real kill.

`Lives` does the same many times over without a new interpreter for each: modules are imported once, and
each life is a fork.

The calls are real ones, seen by the kernel's seccomp notifications: also those that C code or ctypes
make. That needs neither root nor a compiler, and Linux 5.6. This shows what the death of a process
leaves, not what the loss of power does: nothing here can see that a sync is missing.

Source: seccomp_unotify(2), pidfd_getfd(2); linux/seccomp.h.
"""

import argparse
import contextlib
import fcntl
import gc
import importlib
import json
import os
import platform
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import psutil

from tests.syscalls import (
    HARMLESS,
    MACHINES,
    NAMING,
    REMOVING,
    SHAPES,
    TEARABLE,
    Call,
    Shape,
    checked,
    is_vain,
    libc,
    memory_of,
    path_of,
    report_me,
)

Torn = Literal["half", "most"]
KILLED_AT_CALL = 137
TIMED_OUT = 124
MAX_CALLS = 100_000
_DYING_S = 15.0
_SETTLING_S = 1.5
_TICK_S = 0.02
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1


@dataclass(frozen=True, slots=True)
class Life:
    """How a process went."""

    calls: tuple[Call, ...]
    """In order, the one at which it was killed included."""
    killed: bool
    """By us, at the last of the calls. False: it came to its own end."""
    exit_code: int
    """As a shell gives it: `KILLED_AT_CALL`, `TIMED_OUT`, or its own."""
    torn: bool
    """Whether a part of the last call, a write, was done."""
    left: tuple[str, ...]
    """Names of the processes that outlived it for too long, and were killed."""
    output: str
    """What it and its children wrote to stdout and stderr."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to run, and where to kill it."""

    target: str
    """``module:function``, called with the arguments as texts; alone in an interpreter, a module."""
    arguments: tuple[str, ...]
    watch: tuple[str, ...]
    """Directories, resolved; a call that touches several counts once."""
    at: int = 0
    """From 1; 0: never."""
    torn: Torn | None = None
    matching: str = ""
    """Only calls in whose name and path this pattern is found are counted; all are told of."""
    timeout_s: float = 120.0
    linger_s: float = 15.0
    """How long what it started may outlive it."""
    hopeless: str = ""
    """What is told as left, without more waiting, as soon as nothing else is: a pattern of process names."""


class Lives:
    """A process that has imported `modules` and forks a life for each `run`. One thread may use it at a time.

    Args:
        modules: what to import beforehand.
        env: what comes over this process's own environment.

    """

    def __init__(self, *modules: str, env: Mapping[str, str] | None = None) -> None:
        imports = [part for module in modules for part in ("--import", module)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashing", "--serve", *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def run(
        self,
        function: str,
        *arguments: str,
        watch: Sequence[Path],
        at: int = 0,
        torn: Torn | None = None,
        matching: str = "",
        timeout_s: float = 120.0,
        linger_s: float = 15.0,
        hopeless: str = "",
    ) -> Life:
        """Call ``module:function`` in a new process, killed at its `at`-th call, and give its life.

        Raises:
            RuntimeError: the process that forks is gone; its stderr says why.

        """
        paths = tuple(str(path.resolve()) for path in watch)
        order = Order(
            function, arguments, paths, at, torn, matching, timeout_s, linger_s, hopeless
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the forking process ended with {self._process.wait(10)}")
        return _life_of(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(60)


def _life_of(value: Mapping[str, Any]) -> Life:
    facts = dict(value)
    calls = tuple(Call(*call) for call in facts.pop("calls"))
    return Life(calls=calls, left=tuple(facts.pop("left")), **facts)


def _life_as_json(life: Life) -> str:
    calls = [list(asdict(call).values()) for call in life.calls]
    return json.dumps(asdict(life) | {"calls": calls})


def unsynced(calls: Sequence[Call]) -> set[str]:
    """Give what a loss of power after these calls may take back: files and directories whose sync is missing.

    A file that was renamed before it was synced stays in the answer under its old name, also if it was
    synced later: in between, the new name stood for nothing.
    """
    dirty: set[str] = set()
    for call in calls:
        if call.vain:
            continue
        if call.name in {"fsync", "fdatasync"}:
            dirty.discard(call.path)
        elif call.name in NAMING:
            if call.name in REMOVING:
                dirty.discard(call.path)
            dirty |= {str(Path(name).parent) for name in (call.path, call.source) if name}
        elif call.name not in HARMLESS:
            dirty.add(call.path)
    return dirty


# --- the filter


# --- watching


class _Watcher:
    """Answers the kernel for one process and what it started, and kills that process at its call."""

    def __init__(self, order: Order, pid: int, listener: int) -> None:
        self._order = order
        self._pid = pid
        self._listener = listener
        _, column, _, self._getfd = MACHINES[platform.machine()]
        self._shapes = {shape.numbers[column]: shape for shape in SHAPES}
        self._calls: list[Call] = []
        self._matching = re.compile(order.matching)
        self._counted = 0
        self._killed = self._torn = False
        self._status: int | None = None

    def watch(self, output_fd: int | None) -> Life:
        """Watch until nobody is left; `output_fd` is the file that they write to."""
        in_time = self._until(lambda: self._status is not None, self._order.timeout_s)
        left: tuple[str, ...] = ()
        if not in_time or not self._all_end():
            left = _names_of_children() if in_time else ()
            _kill_children()
            if not self._until(lambda: False, _DYING_S):
                raise RuntimeError(f"can't be killed: {_names_of_children()}")
        code = 0 if self._status is None else os.waitstatus_to_exitcode(self._status)
        return Life(
            calls=tuple(self._calls),
            killed=self._killed,
            exit_code=(128 - code if code < 0 else code) if in_time else TIMED_OUT,
            torn=self._torn,
            left=left,
            output=_read_all(output_fd),
        )

    def _all_end(self) -> bool:
        """Wait until nobody is left, or only what is hopeless; say whether nobody is."""
        linger_s = self._order.linger_s
        if not self._order.hopeless:
            return self._until(lambda: False, linger_s)
        deadline = time.monotonic() + linger_s
        while time.monotonic() < deadline:
            if self._until(lambda: False, min(_SETTLING_S, linger_s)):
                return True
            left = (name.partition(" ")[2] for name in _names_of_children())
            if all(re.search(self._order.hopeless, name) for name in left):
                return False
        return False

    def _until(self, enough: Callable[[], bool], timeout_s: float) -> bool:
        """Answer the kernel until it is enough or nobody lives; say whether that came in time."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while self._reap() and not enough():
            if time.monotonic() > deadline:
                return False
            if any(event & select.POLLIN for _, event in poll.poll(_TICK_S * 1000)):
                self._take()
        return True

    def _reap(self) -> bool:
        """Bury the dead; say whether anybody lives. Orphans become our children, so none is missed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._status = status

    def _take(self) -> None:
        notice = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _NOTIF_RECV, notice)
        except FileNotFoundError:
            return  # whoever made the call died meanwhile
        notice_id, tid, _, number, _, _, *arguments = _NOTIFICATION.unpack(notice)
        if not self._killed and Path(f"/proc/{self._pid}/task/{tid}").exists():
            call = self._call(self._shapes[number], tid, arguments)
            if call is not None and self._count(call, arguments):
                return
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(self._listener, _NOTIF_SEND, _ANSWER.pack(notice_id, 0, 0, _CONTINUE))

    def _count(self, call: Call, arguments: Sequence[int]) -> bool:
        """Write the call down; say whether it was the one to die at."""
        self._calls.append(call)
        if len(self._calls) > MAX_CALLS:
            raise RuntimeError(f"more than {MAX_CALLS} calls")
        if not self._matching.search(str(call)):
            return False
        self._counted += 1
        if self._counted != self._order.at:
            return False
        if self._order.torn is not None and call.name in TEARABLE:
            self._torn = self._write_part(call, arguments)
        self._killed = True
        os.kill(self._pid, signal.SIGKILL)
        return True

    def _call(self, shape: Shape, tid: int, arguments: Sequence[int]) -> Call | None:
        """Give the call if it is about a watched directory."""
        paths = [path_of(tid, arguments, *place) for place in shape.places]
        shown = [self._below(path) for path in paths]
        if not any(shown):
            return None
        name, size = shape.name, 0
        if name in TEARABLE:
            size = arguments[2]
        elif shape.flags is not None and arguments[shape.flags] & os.O_CREAT:
            name = name if os.path.lexists(paths[0]) else "create"
        vain = is_vain(name, paths, arguments)
        return Call(name, shown[-1], size, shown[0] if len(shown) > 1 else "", vain)

    def _below(self, path: str) -> str:
        """Give the path from the watched directory that it lies in; empty if it lies in none."""
        for root in self._order.watch:
            if path == root or path.startswith(root + "/"):
                return os.path.relpath(path, root)
        return ""

    def _write_part(self, call: Call, arguments: Sequence[int]) -> bool:
        """Write a part of what the process wants to write, to the very same open file."""
        most = self._order.torn == "most"
        size = max(0, call.size_bytes - 1) if most else call.size_bytes // 2
        if size == 0:
            return False
        data = memory_of(self._pid, arguments[1], size)
        pidfd = os.pidfd_open(self._pid)
        try:
            fd = checked(libc.syscall(self._getfd, pidfd, arguments[0], 0))
        finally:
            os.close(pidfd)
        try:
            if call.name == "write":
                return os.write(fd, data) == size
            return os.pwrite(fd, data, arguments[3]) == size
        finally:
            os.close(fd)


def _names_of_children() -> tuple[str, ...]:
    names = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(f"{child.pid} {' '.join(child.cmdline())[:200]}")
    return tuple(names)


def _kill_children() -> None:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


# --- starting


def _fork(order: Order, output_fd: int | None) -> Life | None:
    """Fork a life, watch it to its end and give it; in the child, give ``None``: there it is to be lived."""
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become(theirs, output_fd)
        return None
    theirs.close()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        os.waitpid(pid, 0)
        raise RuntimeError(f"no seccomp notifications on this host:\n{_read_all(output_fd)}")
    try:
        return _Watcher(order, pid, fds[0]).watch(output_fd)
    finally:
        os.close(fds[0])


def _become(parent: socket.socket, output_fd: int | None) -> None:
    """Make this process one that is watched, and that doesn't outlive its watcher."""
    checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if output_fd is not None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, stream in ((nothing, 0), (output_fd, 1), (output_fd, 2)):
            os.dup2(source, stream)
        os.close(nothing)
        os.close(output_fd)
    listener = report_me()
    with parent:
        socket.send_fds(parent, [b"x"], [listener])
    os.close(listener)


def _read_all(fd: int | None) -> str:
    if fd is None:
        return ""
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")


def _serve() -> Order | None:
    """Run a life for each order on stdin; give an order in the child that is to live it, ``None`` at the end."""
    for line in sys.stdin:
        facts = json.loads(line)
        order = Order(**facts | {key: tuple(facts[key]) for key in ("arguments", "watch")})
        output_fd = os.memfd_create("output", os.MFD_CLOEXEC)
        life = _fork(order, output_fd)
        if life is None:
            return order
        os.close(output_fd)
        sys.stdout.write(_life_as_json(life) + "\n")
        sys.stdout.flush()
    return None


def _once(arguments: argparse.Namespace) -> int:
    """Run one life in an interpreter of its own; give the exit code."""
    watch = tuple(str(path.resolve()) for path in arguments.watch)
    module, *rest = arguments.command
    given = {key: getattr(arguments, key) for key in ("at", "torn", "matching", "timeout_s")}
    order = Order(module, tuple(rest), watch, **given)
    life = _fork(order, None)
    if life is None:
        os.execv(sys.executable, [sys.executable, "-m", module, *rest])
    if arguments.count is not None:
        arguments.count.write_text(_life_as_json(life) + "\n")
    return life.exit_code


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crashing")
    parser.add_argument("--watch", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--at", type=int, default=0, metavar="N", help="0: let it live")
    parser.add_argument("--torn", choices=("half", "most"))
    parser.add_argument("--matching", default="", metavar="REGEX", help="count only these calls")
    parser.add_argument("--count", type=Path, metavar="FILE", help="where to write the calls")
    parser.add_argument("--timeout-s", type=float, default=120.0)
    parser.add_argument("--import", action="append", default=[], dest="modules")
    parser.add_argument("--serve", action="store_true", help="for `Lives`: orders come on stdin")
    parser.add_argument("command", nargs="*", metavar="MODULE ARG")
    return parser.parse_args(given)


def _main() -> Order | int:
    """Give the exit code; in a child of `--serve`, give what is to be run with nothing else below it."""
    arguments = _arguments(sys.argv[1:])
    checked(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    if not arguments.serve:
        return _once(arguments)
    for module in arguments.modules:
        importlib.import_module(module)
    gc.freeze()  # a collection in a child would otherwise copy every page that it looks at
    return _serve() or 0


if __name__ == "__main__":
    todo = _main()
    if isinstance(todo, int):
        sys.exit(todo)
    place, _, function = todo.target.partition(":")
    sys.exit(getattr(importlib.import_module(place), function)(*todo.arguments))
