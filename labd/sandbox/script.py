"""What is said to the shell that waits in a sandbox, and the limits that it is given. Starts nothing.

Process 1 of a sandbox is a shell that reads its commands from us. It says that it is ready, and waits. What
it is to run comes as one compound command: of a torn one, whose writer died, a shell runs nothing, and at
the end of its input it ends. It starts the command, reaps orphans meanwhile, and when it ends the kernel
kills whatever is left.

Source: POSIX.1-2024, Shell Command Language, 2.9.4 (compound commands), and the utilities sh and exec.
"""

import math
import os
import re
import resource
import shlex
from collections.abc import Iterator, Mapping, Sequence

from labd.errors import SandboxError
from labd.sandbox.interpreter import WORK
from labd.sandbox.model import Limits

SHELL = ("/bin/sh", "-s")
OPENING = b"{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null\necho READY\n"
READY = b"READY\n"
BEGUN = b"GO\n"
"""What the shell says before the command says anything: without it, nothing ran."""
MAX_TEXT_BYTES = 100_000
"""Of one word; the kernel takes a bit more. Source: execve(2), MAX_ARG_STRLEN."""
MAX_SCRIPT_BYTES = 1_000_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A shell gives these a meaning of its own, or will not have them set.
_SHELLS_OWN = re.compile(r"_|IFS|OPTIND|PPID|E?UID|GROUPS|LINENO|PS4|ENV|SHELLOPTS|BASH.*")


def script(argv: Sequence[str], env: Mapping[str, str], cwd: str) -> bytes:
    """Give the one command that makes the waiting shell run `argv`; nothing in it means anything to a shell.

    Raises:
        SandboxError: a word, a name or the place can't be said to a shell, or all is too long.

    """
    _refuse(argv, env, cwd)
    place = "" if cwd == WORK else f"cd -P {shlex.quote(cwd)} || exit 127; "
    names = "".join(f"export {name}={shlex.quote(value)}; " for name, value in env.items())
    # In a subshell of its own, exec takes programs only: no builtin, function or reserved word.
    command = " ".join(shlex.quote(word) for word in argv)
    text = os.fsencode(f"{{ echo GO; {place}{names}(exec {command} </dev/null); exit $?; }}\n")
    if len(text) > MAX_SCRIPT_BYTES:
        raise SandboxError(
            f"a command and its environment are {len(text)} bytes long",
            fix=f"At most {MAX_SCRIPT_BYTES}: put what is long into a file",
        )
    return text


def _refuse(argv: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
    bad = [name for name in env if not _NAME.fullmatch(name) or _SHELLS_OWN.fullmatch(name)]
    if bad:
        raise SandboxError(
            f"a run can't have the environment variable {bad[0]!r}",
            fix="Names are letters, digits and _, and none that a shell uses itself, such as IFS",
        )
    if not argv or argv[0].startswith("-") or not cwd.startswith("/"):
        raise SandboxError(
            "a command or the place where it starts is not one",
            fix="At least one word, the first without - in front, and an absolute path",
        )
    if not all(_sayable(text) for text in (*argv, *env.values(), cwd)):
        raise SandboxError(
            "a word of a command or of its environment can't be passed on",
            fix=f"No NUL bytes, no lone surrogates, and at most {MAX_TEXT_BYTES} bytes",
        )


def _sayable(text: str) -> bool:
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return b"\0" not in data and len(data) <= MAX_TEXT_BYTES


def rlimits(limits: Limits, *, gpus: bool) -> dict[int, int]:
    """Give the kernel's limits for process 1, which all others inherit, by number; soft and hard are the same."""
    return dict(_rlimits(limits, gpus=gpus))


def _rlimits(limits: Limits, *, gpus: bool) -> Iterator[tuple[int, int]]:
    wanted = {
        resource.RLIMIT_NPROC: limits.processes + 1,  # and the shell that waits for it
        resource.RLIMIT_NOFILE: 4096,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        # Of 1, not 0: with 0 a core_pattern that is a program still gets the dump. Source: core(5).
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 1024,
    }
    if not gpus:  # the driver pins memory, and maps far more than it uses
        wanted[resource.RLIMIT_MEMLOCK] = 64 * 2**20
        wanted[resource.RLIMIT_DATA] = limits.memory_bytes
    if limits.cpu_s is not None:
        # Of each process; the sum over all is looked at from outside, and comes first.
        wanted[resource.RLIMIT_CPU] = math.ceil(limits.cpu_s) + 1
    for number, value in wanted.items():
        hard = resource.getrlimit(number)[1]
        yield number, value if hard == resource.RLIM_INFINITY else min(value, hard)
