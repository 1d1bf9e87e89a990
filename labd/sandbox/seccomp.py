"""The system calls that a sandboxed run may not make, as a program for the kernel. Knows nothing of labd.

Everything is allowed but what is named here: calls by which processes reach into others, change the
machine, or ask for the parts of the kernel where escapes were found. Namespaces can't be nested, so
no capability comes back; sockets are local, IPv4, IPv6 and netlink, so that none reaches the
hypervisor. ``clone3`` and ``io_uring`` look missing, since a filter can't see their arguments; the C
library falls back to ``clone``.

Source: seccomp(2); linux/filter.h, linux/seccomp.h and linux/audit.h; numbers from asm/unistd_64.h
(x86_64) and asm-generic/unistd.h (aarch64) of Linux 6.1. The aarch64 table was never run.
"""

import errno
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in struct seccomp_data; of an argument, the low half (both machines are little-endian).
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_CLONE_NEW_ANY = 0x7E020080
"""CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}."""
_CLONE_NEWTIME = 0x80
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK."""

_DENIED: Mapping[str, tuple[int | None, int | None]] = MappingProxyType(
    {
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "setns": (308, 268),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "fanotify_init": (300, 262),
        "open_by_handle_at": (304, 265),
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "reboot": (169, 142),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "acct": (163, 89),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
        "syslog": (103, 116),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "clock_adjtime": (305, 266),
        "adjtimex": (159, 171),
        "sethostname": (170, 161),
        "setdomainname": (171, 162),
        "vhangup": (153, 58),
        "iopl": (172, None),
        "ioperm": (173, None),
        "modify_ldt": (154, None),
        "uselib": (134, None),
        "nfsservctl": (180, 42),
        "lookup_dcookie": (212, 18),
        "memfd_secret": (447, 447),
    }
)
_MISSING = ((435, 435), (425, 425), (426, 426), (427, 427))
"""clone3, io_uring_setup, io_uring_enter, io_uring_register."""
_UNSHARE, _CLONE, _IOCTL, _PERSONALITY, _SOCKET = (
    (272, 97),
    (56, 220),
    (16, 29),
    (135, 92),
    (41, 198),
)


def program(machine: str) -> bytes | None:
    """Give the filter for `machine` (as `platform.machine` names it) as raw ``struct sock_filter``s.

    ``None``: there is no table for that machine.
    """
    arch = _AUDIT_ARCH.get(machine)
    if arch is None:
        return None
    column = list(_AUDIT_ARCH).index(machine)
    code = [
        _op(_LOAD, _ARCH),
        _op(_JUMP_EQUAL, arch, 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += [_op(_JUMP_AT_LEAST, _X32_BIT, 0, 1), _fail(errno.ENOSYS)]
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            code += [_op(_JUMP_EQUAL, number, 0, 1), _fail(errno.EPERM)]
    for pair in _MISSING:
        code += [_op(_JUMP_EQUAL, pair[column], 0, 1), _fail(errno.ENOSYS)]
    # CLONE_NEWTIME shares its bit with the exit signal of clone, where it means no namespace.
    code += _checked(_CLONE[column], _ARG0, _none_of(_CLONE_NEW_ANY & ~_CLONE_NEWTIME))
    code += _checked(_UNSHARE[column], _ARG0, _none_of(_CLONE_NEW_ANY))
    code += _checked(_IOCTL[column], _ARG1, _no_value((_TIOCSTI, _TIOCLINUX)))
    code += _checked(_PERSONALITY[column], _ARG0, _only((0, 0xFFFFFFFF), errno.EPERM))
    code += _checked(_SOCKET[column], _ARG0, _only(_FAMILIES, errno.EAFNOSUPPORT))
    code.append(_op(_RETURN, _ALLOW))
    return b"".join(code)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _fail(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


def _checked(number: int, argument: int, check: Sequence[bytes]) -> list[bytes]:
    """Run `check`, which always returns, on an argument of call `number`; go on at any other call."""
    return [_op(_JUMP_EQUAL, number, 0, 1 + len(check)), _op(_LOAD, argument), *check]


def _none_of(bits: int) -> list[bytes]:
    return [_op(_JUMP_ANY_BIT, bits, 0, 1), _fail(errno.EPERM), _op(_RETURN, _ALLOW)]


def _no_value(values: Sequence[int]) -> list[bytes]:
    tests = [(_op(_JUMP_EQUAL, value, 0, 1), _fail(errno.EPERM)) for value in values]
    return [op for test in tests for op in test] + [_op(_RETURN, _ALLOW)]


def _only(values: Sequence[int], error: int) -> list[bytes]:
    tests = [(_op(_JUMP_EQUAL, value, 0, 1), _op(_RETURN, _ALLOW)) for value in values]
    return [op for test in tests for op in test] + [_fail(error)]
