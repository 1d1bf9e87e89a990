"""Starting bubblewrap, also where labd runs as root. Knows nothing of what runs in it.

An ordinary user starts bubblewrap directly. Root must not: a process of kernel user 0 is exempt from the
limit on processes and owns the machine if it escapes. There the run gets an unprivileged user, to whom
the interpreter or the results may be out of reach (below ``/root``, say). So a thread of labd gets a mount
namespace of its own, in which what the run may see is bound below a small tmpfs that everyone may pass;
it starts bubblewrap from there as that user, and goes back. Nothing of it is visible to other threads,
and it is gone with the run.

Source: bwrap(1), setpriv(1), mount(2), unshare(2), setns(2), pid_namespaces(7).
"""

import ctypes
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from labd.sandbox.command import TMP, Bind

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_CLEAN_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Command:
    """All that bubblewrap has to be told."""

    bwrap: str
    binds: Sequence[Bind]
    options: Callable[[Mapping[str, str]], tuple[list[str], dict[str, str]]]
    """From the sources of binds, by place inside: options, and texts of files to make, by path inside."""
    inner: Sequence[str]
    syscall_filter: bytes | None


@dataclass(frozen=True, slots=True)
class Started:
    """A bubblewrap that was started by this thread, which has to outlive it."""

    process: subprocess.Popen[bytes]
    status_fd: int
    """bubblewrap's JSON documents come from here."""


def start(command: Command, uid: int | None) -> Started:
    """Start bubblewrap, as user and group `uid`, or as ourselves where that is ``None``.

    With a `uid`, the calling thread must be one that nobody else needs: its view of the file system
    is no longer shared with the other threads' (``cwd`` and ``umask`` among it).

    The run dies when the calling *thread* ends, since that is what PR_SET_PDEATHSIG looks at.

    Raises:
        OSError: as the system gives it.

    """
    if uid is None:
        return _spawn(command, {bind.inside: str(bind.source) for bind in command.binds}, [])
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    drop += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--"]
    with _staged(command.binds) as sources:
        return _spawn(command, sources, drop)


def _spawn(command: Command, sources: Mapping[str, str], prefix: Sequence[str]) -> Started:
    args, files = command.options(sources)
    status_fd, status_inside = os.pipe()
    with ExitStack() as held:
        held.callback(os.close, status_inside)
        passed = [status_inside]

        def memory_file(content: bytes) -> str:
            fd = os.memfd_create("labd", os.MFD_CLOEXEC)
            held.callback(os.close, fd)
            passed.append(fd)
            with open(fd, "wb", closefd=False) as file:
                file.write(content)
            os.lseek(fd, 0, os.SEEK_SET)
            return str(fd)

        for path, text in files.items():
            args = ["--file", memory_file(text.encode()), path, *args]
        if command.syscall_filter is not None:
            args += ["--seccomp", memory_file(command.syscall_filter)]
        # Options come from memory, so that no process list shows them.
        packed = memory_file(b"".join(os.fsencode(arg) + b"\0" for arg in args))
        argv = [
            *prefix,
            command.bwrap,
            "--json-status-fd",
            str(status_inside),
            "--args",
            packed,
            "--",
        ]
        try:
            process = _popen([*argv, *command.inner], passed)
        except BaseException:
            os.close(status_fd)
            raise
    return Started(process, status_fd)


def _popen(argv: Sequence[str], passed: Sequence[int]) -> subprocess.Popen[bytes]:
    # A child inherits the mask of blocked signals, and Ray's workers block some.
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        return subprocess.Popen(
            argv,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_CLEAN_ENV,
            cwd="/",
            pass_fds=passed,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _staged(binds: Sequence[Bind]) -> Iterator[dict[str, str]]:
    """Give, by place inside, paths under which any user reaches the sources, for as long as the block runs.

    Only for the calling thread, and for what it starts in the block also later.
    """
    with ExitStack() as held:
        home = _opened(held, "/proc/thread-self/ns/mnt", os.O_RDONLY)
        _call("unshare", _CLONE_NEWNS)
        held.callback(_call, "setns", home, _CLONE_NEWNS)
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        # Opened before the tmpfs hides what lies below it, after unshare: mounts of another namespace
        # can't be bound.
        fds = [_opened(held, str(bind.source), os.O_PATH) for bind in binds]
        _mount("tmpfs", TMP, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0711,size=64k")
        staged = {}
        for index, (bind, fd) in enumerate(zip(binds, fds, strict=True)):
            target = f"{TMP}/{index}"
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.mkdir(target)  # noqa: PTH102 - texts throughout
            else:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            _mount(f"/proc/self/fd/{fd}", target, None, _MS_BIND | _MS_REC)
            staged[bind.inside] = target
        yield staged


def _opened(held: ExitStack, path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    held.callback(os.close, fd)
    return fd


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def _call(name: str, *args: object) -> None:
    if _libc[name](*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
