"""Starting bubblewrap, also where labd runs as root. Knows nothing of what runs in it.

An ordinary user starts bubblewrap directly. Root must not: a process of kernel user 0 is exempt from the
limit on processes and owns the machine if it escapes. There the run gets an unprivileged user, to whom
the interpreter or the results may be out of reach (below ``/root``, say). So a thread of labd gets a mount
namespace of its own, in which what the run may see is bound below a small tmpfs that everyone may pass;
it starts bubblewrap from there as that user, and goes back. Nothing of it is visible to other threads,
and it is gone with the run.

The thread itself becomes that user, and keeps root's capabilities; a program that it starts has none. Python's
own `subprocess` would copy labd's page tables to do the same, which takes 25 ms where labd is 300 MB large.

Source: bwrap(1), mount(2), unshare(2), setns(2), pid_namespaces(7), capabilities(7), credentials(7), nptl(7);
linux/prctl.h, linux/capability.h, asm/unistd_64.h (x86_64), asm-generic/unistd.h (others).
"""

import ctypes
import errno
import os
import platform
import signal
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from labd.sandbox.cgroup import Plan
from labd.sandbox.command import TMP
from labd.sandbox.interpreter import Bind
from labd.sandbox.script import SHELL

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_CLEAN_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 8, 24, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
# setgroups, setresgid, setresuid: the C library's own would change every thread.
_X86_64_CALLS, _GENERIC_CALLS = (116, 119, 117), (159, 149, 147)
_IDENTITY_CALLS = {"x86_64": _X86_64_CALLS, "aarch64": _GENERIC_CALLS, "riscv64": _GENERIC_CALLS}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Command:
    """All that bubblewrap has to be told."""

    bwrap: str
    binds: Sequence[Bind]
    options: Callable[[Mapping[str, str]], tuple[list[str], dict[str, str]]]
    """From the sources of binds, by place inside: options, and texts of files to make, by path inside."""
    rlimits: Mapping[int, int]
    """The kernel's limits for what runs inside, by number."""
    syscall_filter: bytes | None
    group: Plan | None = None
    """The control group to run it in, if there can be one."""


@dataclass(frozen=True, slots=True)
class Started:
    """A bubblewrap that was started by this thread, which has to outlive it. The descriptors are the holder's."""

    process: subprocess.Popen[bytes]
    input_fd: int
    """The waiting shell reads its commands from here."""
    output_fd: int
    """Standard output and error, of bubblewrap as well."""
    status_fd: int
    """bubblewrap's JSON documents come from here."""


def start(command: Command, uid: int | None) -> Started:
    """Start bubblewrap, as user and group `uid`, or as ourselves where that is ``None``.

    With a `uid`, the calling thread must be one that nobody else needs: it is that user from now on, and its
    view of the file system is no longer shared with the other threads' (``cwd`` and ``umask`` among it).

    The run dies when the calling *thread* ends, since that is what PR_SET_PDEATHSIG looks at.

    Raises:
        OSError: as the system gives it.

    """
    if uid is None:
        return _spawn(command, {bind.inside: str(bind.source) for bind in command.binds}, None)
    with _staged(command.binds) as sources:
        return _spawn(command, sources, uid)


def _become(uid: int) -> None:
    """Make the calling thread user and group `uid`; what it starts has no capability and can't get one.

    The thread keeps root's own capabilities, to look after the run. Core dumps of labd end here: the kernel
    marks a process of which a thread changed its user.
    """
    calls = _IDENTITY_CALLS.get(platform.machine())
    if calls is None:
        raise OSError(
            f"setresuid: how root becomes another user on {platform.machine()} is not known"
        )
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if ctypes.get_errno() == errno.EINVAL:
                break  # the kernel has no more of them
            raise OSError(ctypes.get_errno(), "prctl: the bounding set can't be emptied")
    _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    for name, number, arguments in zip(
        ("setgroups", "setresgid", "setresuid"),
        calls,
        ((0, None), (uid, uid, uid), (uid, uid, uid)),
        strict=True,
    ):
        _call("syscall", number, *arguments, name=name)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    _call("capget", header, held)
    permitted = struct.unpack("=6I", held.raw)[1::3]
    low, high = ((each, each, 0) for each in permitted)
    _call("capset", header, struct.pack("=6I", *low, *high))


def _spawn(command: Command, sources: Mapping[str, str], uid: int | None) -> Started:
    options, files = command.options(sources)
    with ExitStack() as ours, ExitStack() as theirs:
        input_inside, input_fd = _pipe(theirs, ours)
        output_fd, output_inside = _pipe(ours, theirs)
        status_fd, status_inside = _pipe(ours, theirs)
        texts = {path: _memory_file(theirs, os.fsencode(text)) for path, text in files.items()}
        args = [arg for path, fd in texts.items() for arg in ("--file", str(fd), path)] + options
        passed = [status_inside, *texts.values()]
        if command.syscall_filter is not None:
            passed.append(_memory_file(theirs, command.syscall_filter))
            args += ["--seccomp", str(passed[-1])]
        # Options come from memory, so that no process list shows them.
        passed.append(_memory_file(theirs, os.fsencode("".join(f"{arg}\0" for arg in args))))
        argv = [command.bwrap, "--json-status-fd", str(status_inside), "--args", str(passed[-1])]
        # What was opened so far is root's, so that a run can't open it again, its input least of all.
        if uid is not None:
            _become(uid)
        process = _popen([*argv, "--", *SHELL], input_inside, output_inside, passed)
        ours.pop_all()
    return Started(process, input_fd, output_fd, status_fd)


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    read_fd, write_fd = os.pipe()
    reader.callback(os.close, read_fd)
    writer.callback(os.close, write_fd)
    return read_fd, write_fd


def _memory_file(held: ExitStack, content: bytes) -> int:
    fd = os.memfd_create("labd", os.MFD_CLOEXEC)
    held.callback(os.close, fd)
    if os.write(fd, content) != len(content):
        raise OSError(errno.ENOSPC, "a file in memory took only a part")
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _popen(
    argv: Sequence[str], stdin: int, stdout: int, passed: Sequence[int]
) -> subprocess.Popen[bytes]:
    # A child inherits the mask of blocked signals, and Ray's workers block some.
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
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


def _call(function: str, *args: object, name: str = "") -> None:
    if _libc[function](*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name or function}: {os.strerror(code)}")
