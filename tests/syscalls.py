"""The system calls that change a directory: their numbers, what they are about, and the kernel's reports of them.

Source: seccomp_unotify(2), seccomp(2); linux/seccomp.h; numbers from asm/unistd_64.h (x86_64) and
asm-generic/unistd.h (aarch64). The aarch64 numbers were never run.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_AT_FDCWD = -100
_MAX_PATH_BYTES = 4096
MACHINES = {"x86_64": (0xC000003E, 0, 317, 438), "aarch64": (0xC00000B7, 1, 277, 438)}
"""Of each machine: its audit architecture, its column in `SHAPES`, the numbers of seccomp(2) and pidfd_getfd(2)."""
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Shape:
    """A system call: its numbers, and which arguments say what it changes."""

    name: str
    numbers: tuple[int | None, int | None]
    """On x86_64 and on aarch64."""
    places: tuple[tuple[int | None, int | None], ...]
    """Which arguments are a descriptor, and a path relative to it; either may be missing."""
    flags: int | None = None
    """Which argument says how a file is opened."""


_MOVING = {"rename", "renameat", "renameat2", "link", "linkat"}
_MAKING = {"link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "mknod", "mknodat"}
REMOVING = {"unlink", "unlinkat", "rmdir"}
NAMING = {"create", "creat"} | _MOVING | _MAKING | REMOVING
_RENAME_NOREPLACE = 1
HARMLESS = {"open", "openat"}
"""Writing calls that follow are told by themselves; O_TRUNC alone is not used on files that matter."""
TEARABLE = {"write", "pwrite64"}
_FD = ((0, None),)
_PATH = ((None, 0),)
_AT = ((0, 1),)
SHAPES = (
    Shape("write", (1, 64), _FD),
    Shape("pwrite64", (18, 68), _FD),
    Shape("writev", (20, 66), _FD),
    Shape("pwritev", (296, 70), _FD),
    Shape("pwritev2", (328, 287), _FD),
    Shape("sendfile", (40, 71), _FD),
    Shape("copy_file_range", (326, 285), ((2, None),)),
    Shape("open", (2, None), _PATH, flags=1),
    Shape("openat", (257, 56), _AT, flags=2),
    Shape("creat", (85, None), _PATH),
    Shape("fsync", (74, 82), _FD),
    Shape("fdatasync", (75, 83), _FD),
    Shape("truncate", (76, 45), _PATH),
    Shape("ftruncate", (77, 46), _FD),
    Shape("fallocate", (285, 47), _FD),
    Shape("rename", (82, None), ((None, 0), (None, 1))),
    Shape("renameat", (264, 38), ((0, 1), (2, 3))),
    Shape("renameat2", (316, 276), ((0, 1), (2, 3))),
    Shape("link", (86, None), ((None, 0), (None, 1))),
    Shape("linkat", (265, 37), ((0, 1), (2, 3))),
    Shape("symlink", (88, None), ((None, 1),)),
    Shape("symlinkat", (266, 36), ((1, 2),)),
    Shape("mknod", (133, None), _PATH),
    Shape("mknodat", (259, 33), _AT),
    Shape("mkdir", (83, None), _PATH),
    Shape("mkdirat", (258, 34), _AT),
    Shape("rmdir", (84, None), _PATH),
    Shape("unlink", (87, None), _PATH),
    Shape("unlinkat", (263, 35), _AT),
    Shape("chmod", (90, None), _PATH),
    Shape("fchmod", (91, 52), _FD),
    Shape("fchmodat", (268, 53), _AT),
    Shape("fchmodat2", (452, 452), _AT),
    Shape("chown", (92, None), _PATH),
    Shape("lchown", (94, None), _PATH),
    Shape("fchown", (93, 55), _FD),
    Shape("fchownat", (260, 54), _AT),
)


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that changes something below a watched directory."""

    name: str
    """As the kernel names it; ``create`` for an open that makes a new file."""
    path: str
    """Relative to that directory; of a rename or a link, the new name."""
    size_bytes: int = 0
    """Of a write."""
    source: str = ""
    """The old name, of a rename or a link."""
    vain: bool = False
    """It fails: what it is to make is there already, or what it is to take away is not."""

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


def _program(machine: str) -> bytes:
    """Give the filter that reports changing calls, as raw ``struct sock_filter``s."""
    arch, column, _, _ = MACHINES[machine]
    code = [_op(_LOAD, 4), _op(_JUMP_EQUAL, arch, 1, 0), _op(_RETURN, _ALLOW), _op(_LOAD, 0)]
    for shape in SHAPES:
        number = shape.numbers[column]
        if number is None:
            continue
        report = [_op(_RETURN, _NOTIFY)]
        if shape.flags is not None:
            low_half = 16 + 8 * shape.flags
            report = [_op(_LOAD, low_half), _op(_JUMP_ANY_BIT, _CHANGING, 0, 1), *report]
            report.append(_op(_RETURN, _ALLOW))
        code += [_op(_JUMP_EQUAL, number, 0, len(report)), *report]
    code.append(_op(_RETURN, _ALLOW))
    return b"".join(code)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def report_me() -> int:
    """Put this process and its future children under the filter; give the descriptor that tells of them."""
    raw = _program(platform.machine())
    buffer = ctypes.create_string_buffer(raw, len(raw))
    program = _SockFprog(len(raw) // 8, ctypes.addressof(buffer))
    checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    number = MACHINES[platform.machine()][2]
    return checked(libc.syscall(number, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program)))


def checked(result: int) -> int:
    """Give what a call of libc gave.

    Raises:
        OSError: that was an error.

    """
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def is_vain(name: str, paths: Sequence[str], arguments: Sequence[int]) -> bool:
    """Say whether a call on these paths will fail; see `Call`."""
    keeps_target = name == "renameat2" and bool(arguments[4] & _RENAME_NOREPLACE)
    if (name in _MAKING or keeps_target) and os.path.lexists(paths[-1]):
        return True
    return name in _MOVING | REMOVING and not os.path.lexists(paths[0])


def path_of(tid: int, arguments: Sequence[int], fd_at: int | None, path_at: int | None) -> str:
    """Give the path that a call is about, with the links before its last part resolved; empty if unknown."""
    name = ""
    try:
        if path_at is not None:
            name = _text(tid, arguments[path_at])
            if name.startswith("/"):
                return _resolved(name)
        fd = _AT_FDCWD if fd_at is None else ctypes.c_int(arguments[fd_at] & 0xFFFFFFFF).value
        link = f"/proc/{tid}/cwd" if fd == _AT_FDCWD else f"/proc/{tid}/fd/{fd}"
        base = os.readlink(link)  # noqa: PTH115 - a pipe's is no path
    except OSError:
        return ""  # a bad descriptor or address: the call will fail by itself
    return _resolved(f"{base}/{name}") if name else base


def _resolved(path: str) -> str:
    head, tail = os.path.split(os.path.normpath(path))
    return str(Path(head).resolve() / tail)


def memory_of(pid: int, address: int, size: int) -> bytes:
    """Read another process's memory; `size` in bytes."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123 - no file
        return os.pread(memory.fileno(), size, address)


def _text(tid: int, address: int) -> str:
    # Page by page: what lies behind the text's own page may not be mapped.
    raw = b""
    while b"\0" not in raw and len(raw) < _MAX_PATH_BYTES:
        start = address + len(raw)
        raw += memory_of(tid, start, 4096 - start % 4096)
    return os.fsdecode(raw.split(b"\0")[0])
