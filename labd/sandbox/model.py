"""What goes into a sandboxed run and what comes out of it, as data. Imports nothing of ours but errors."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from labd.errors import SandboxError

_MIB = 2**20
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one run may use. All are above zero.

    Raises:
        SandboxError: a limit is not above zero.

    """

    wall_s: float = 600.0
    memory_bytes: int = 4 * _GIB
    """Of one process's writable memory, and of all processes with their files in memory and caches together.

    The first is held by the kernel, the second by a control group; without one it is polled, without caches.
    """
    processes: int = 256
    """Processes and threads together, at one time."""
    file_bytes: int = _GIB
    """Size of one file."""
    disk_bytes: int = 2 * _GIB
    """Blocks held by the working directory and by unlinked open files."""
    files: int = 100_000
    """Entries of the working directory, at all depths; and files in each private place."""
    cpus: float | None = None
    """How many CPUs the run may use at once; ``None``: all that there are. Held by a control group only."""
    cpu_s: float | None = None
    """CPU time of all its processes together; ``None``: as much as they get in `wall_s`."""
    output_bytes: int = 8 * _MIB
    """Of output kept, head and tail; a run that writes four times as much is killed."""
    shm_bytes: int = _GIB
    tmp_bytes: int = _GIB
    """Of ``/tmp`` and of ``HOME``, each."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value is None and field.default is None) and not value > 0:
                raise SandboxError(
                    f"the limit {field.name} is {value!r}",
                    fix="Limits are numbers above zero",
                )


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """What a host's owner may choose about sandboxes.

    Raises:
        SandboxError: `uid` is 0 or not a user id.

    """

    uid: int = 64123
    """Host user and group id that runs have where labd itself runs as root."""
    bwrap: str = "bwrap"
    allow_missing: frozenset[str] = frozenset()
    """Names of gaps that the owner knows of and accepts."""

    def __post_init__(self) -> None:
        if not 0 < self.uid < 2**32 - 1:
            raise SandboxError(
                f"the sandbox's uid is {self.uid}",
                fix="Choose an unprivileged user id that nobody else uses, such as 64123",
            )


class Ending(StrEnum):
    """Why a run is over. Only ``exited`` was the command's own doing."""

    EXITED = "exited"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    OUTPUT_LIMIT = "output_limit"
    DISK_LIMIT = "disk_limit"
    MEMORY_LIMIT = "memory_limit"
    CPU_LIMIT = "cpu_limit"
    KILLED = "killed"
    """Somebody outside killed the sandbox itself; the run says nothing about its command."""
    STUCK = "stuck"
    """Cancelled by who runs it because nothing in it moved; a sandbox by itself gives ``cancelled`` for that."""
    OUT_OF_TIME = "out_of_time"
    """Ended, or not begun, by who runs it because the time of the whole task was over; it says nothing about its command."""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How a run went. Every process of it is dead."""

    ending: Ending
    exit_code: int | None
    """``None`` unless `ending` is ``exited``; negative: the signal that ended the command.

    As in a shell, exit codes 129 to 192 and signals 1 to 64 can't be told apart; both read as signals.
    """
    wall_s: float
    cpu_s: float
    """User and system time of all processes."""
    peak_memory_bytes: int | None
    """Largest sum seen by polling, shared pages counted once; or the peak of the largest single process, where
    that is more, or polling saw nothing. ``None`` if the run was too short to see, and its largest process smaller
    than labd itself: the kernel counts labd's own peak as the sandbox's, so that less says nothing.
    """
    output: str
    """Standard output and error as they came, what was cut stated."""
    removed: int = 0
    """Links that led out of the working directory, FIFOs, sockets and over-deep directories taken away."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A promise that this host can't keep, and what would change that."""

    name: str
    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class Request:
    """One run, checked: paths are absolute and resolved, texts hold no NUL."""

    argv: tuple[str, ...]
    workdir: Path
    read_only: Mapping[str, Path]
    env: Mapping[str, str]
    limits: Limits
    gpus: tuple[int, ...] = ()
    network: bool = False
    """The host's own network, with all that the host reaches."""
    cwd: str = "/work"
    """A place inside, where the command starts."""
