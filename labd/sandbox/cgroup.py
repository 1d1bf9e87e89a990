"""A control group for each run: the kernel's limits for all of its processes together, and their end.

Groups are made below labd's own, of version 2 or, where a controller is not there, of version 1. In
version 2 a group with limits for its children has no processes itself; so labd moves into a leaf of its
own, but only where its group was given to it: systemd marks those (``Delegate=yes``), and in a container
nobody else manages them.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux 6.1; proc_pid_mountinfo(5);
systemd.resource-control(5), "Delegate=".
"""

import os
import secrets
import select
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from labd.errors import SandboxError

LEAF = "labd-supervisor"
_PREFIX = "labd-run-"
_CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD_US = 100_000
_EMPTY_TIMEOUT_S = 20.0
_MOVES = 20
_MAX_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Base:
    """Where groups may be made."""

    unified: Path | None = None
    """Of version 2."""
    controllers: Mapping[str, Path] = field(default_factory=dict)
    """By name of a controller the directory, which is `unified` or one of version 1."""
    problem: str = ""
    """Why there is no controller for memory."""

    def version_1(self, controller: str) -> bool:
        """Say whether a controller that is there is one of version 1."""
        return self.controllers[controller] != self.unified


@dataclass(frozen=True, slots=True)
class Plan:
    """The limits of a group that is to be made."""

    base: Base
    memory_bytes: int
    processes: int
    cpus: float | None


class Group:
    """One run's group: a directory in each hierarchy that is used."""

    def __init__(self, plan: Plan, name: str) -> None:
        base = plan.base
        self._base = base
        self._unified = None if base.unified is None else base.unified / name
        self._controllers = {key: path / name for key, path in base.controllers.items()}
        if plan.cpus is None and "cpu" in base.controllers and base.version_1("cpu"):
            del self._controllers["cpu"]
        self.directories = list(dict.fromkeys(self._controllers.values()))
        if self._unified is not None and self._unified not in self.directories:
            self.directories.append(self._unified)

    def add(self, pid: int) -> None:
        """Put a process, and what it starts from now on, into the group.

        Raises:
            OSError: as the system gives it.

        """
        for directory in self.directories:
            _write(directory / "cgroup.procs", str(pid))

    def holds(self, pid: int) -> bool:
        """Say whether a process is in the group, in all of its directories."""
        return all(str(pid) in _read(path / "cgroup.procs").split() for path in self.directories)

    def ran_out(self) -> bool:
        """Say whether the kernel has killed something here because the group's memory had run out."""
        memory = self._controllers.get("memory")
        if memory is None:
            return False
        name = "memory.oom_control" if self._base.version_1("memory") else "memory.events"
        return _numbers(memory / name).get("oom_kill", 0) > 0

    def memory_bytes(self) -> int | None:
        """Give what the group holds now apart from cached files, or ``None`` where nobody counts it."""
        memory = self._controllers.get("memory")
        if memory is None:
            return None
        found = _numbers(memory / "memory.stat")
        own, shared = ("rss", "shmem") if self._base.version_1("memory") else ("anon", "shmem")
        return found[own] + found[shared] if own in found and shared in found else None

    def cpu_s(self) -> float | None:
        """Give the CPU time of all that has run here, or ``None`` where nobody counts it."""
        if self._unified is None:
            return None
        used_us = _numbers(self._unified / "cpu.stat").get("usage_usec")
        return None if used_us is None else used_us / 1e6

    def kill(self) -> None:
        """SIGKILL all at once, where the kernel can do that (5.14 and later)."""
        if self._unified is not None:
            with suppress(OSError):
                _write(self._unified / "cgroup.kill", "1")

    def freeze(self, *, frozen: bool) -> bool:
        """Stop all of it, or let it go on; say whether the kernel can do that, and has done it."""
        if self._unified is None:
            return False
        try:
            _write(self._unified / "cgroup.freeze", "1" if frozen else "0")
        except OSError:
            return False
        return _await_event(self._unified, "frozen", int(frozen), 1.0)

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no process is left in it; say False if one is."""
        deadline_s = time.monotonic() + timeout_s
        if self._unified is not None:
            return _await_event(self._unified, "populated", 0, timeout_s)
        while any(_read(path / "cgroup.procs").strip() for path in self.directories):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.001)
        return True


@contextmanager
def made(plan: Plan) -> Iterator[Group]:
    """Make a group with its limits for the length of a block, at whose end it has to be empty.

    Raises:
        OSError: it can't be made.
        SandboxError: a process is left in it.

    """
    group = Group(plan, f"{_PREFIX}{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}")
    there: list[Path] = []
    try:
        for directory in group.directories:
            directory.mkdir()
            there.append(directory)
        _limit(group, plan)
        yield group
    finally:
        if not all(_removed(directory) for directory in there):
            group.kill()
            if not group.wait_empty(_EMPTY_TIMEOUT_S):
                raise SandboxError(
                    f"a process is still in the control group of a run after {_EMPTY_TIMEOUT_S:g} s",
                    where=str(there[0]),
                    fix="It hangs in the kernel, in a driver perhaps; look at dmesg, and restart the machine",
                )
            for directory in there:
                with suppress(FileNotFoundError):
                    directory.rmdir()


def _limit(group: Group, plan: Plan) -> None:
    for controller, directory in group._controllers.items():  # noqa: SLF001 - of this module
        old = plan.base.version_1(controller)
        for name, value, needed in _LIMITS[controller](plan, old):
            # What the kernel was built without, a limit for swap for example, has no file.
            if needed or (directory / name).exists():
                _write(directory / name, value)


def _memory_limits(plan: Plan, old: bool) -> Iterator[tuple[str, str, bool]]:  # noqa: FBT001
    limit = str(plan.memory_bytes)
    if old:
        yield from (
            ("memory.limit_in_bytes", limit, True),
            ("memory.memsw.limit_in_bytes", limit, False),
        )
        return
    yield from (
        ("memory.max", limit, True),
        ("memory.swap.max", "0", False),
        ("memory.oom.group", "1", False),
    )


def _process_limits(plan: Plan, _old: bool) -> Iterator[tuple[str, str, bool]]:  # noqa: FBT001
    # Beside what is counted: bubblewrap itself, and the shell that waits for the command.
    yield "pids.max", str(plan.processes + 2), True


def _cpu_limits(plan: Plan, old: bool) -> Iterator[tuple[str, str, bool]]:  # noqa: FBT001
    if plan.cpus is None:
        return
    quota_us = max(1000, round(plan.cpus * _PERIOD_US))
    if old:
        yield from (
            ("cpu.cfs_period_us", str(_PERIOD_US), True),
            ("cpu.cfs_quota_us", str(quota_us), True),
        )
    else:
        yield "cpu.max", f"{quota_us} {_PERIOD_US}", True


_LIMITS = {"memory": _memory_limits, "pids": _process_limits, "cpu": _cpu_limits}


def find_base() -> Base:
    """Find out where this process may make groups, moving labd into a leaf of its own where that is needed.

    Asks the kernel each time; never raises. What is found holds for all processes that were started from here.
    """
    own = _own_groups()
    found: dict[str, Path] = {}
    unified, problem = None, "there are no control groups"
    if "" in own:
        unified, inside, problem = _unified(own[""])
        found = {} if unified is None else dict.fromkeys(inside, unified)
    for controller in _CONTROLLERS:
        directory = own.get(controller)
        if controller not in found and directory is not None and os.access(directory, os.W_OK):
            found[controller] = directory
    return Base(unified, found, "" if "memory" in found else problem)


def sweep(base: Base) -> int:
    """Kill and remove the groups of creators that are dead; give how many there were."""
    count = 0
    for parent in {
        path for path in (base.unified, *base.controllers.values()) if path is not None
    }:
        with suppress(OSError):
            for directory in parent.iterdir():
                if directory.name.startswith(_PREFIX) and not _has_owner(directory.name):
                    with suppress(OSError):
                        _write(directory / "cgroup.kill", "1")
                    if _removed(directory):
                        count += 1
    return count


def _has_owner(name: str) -> bool:
    pid, _, rest = name.removeprefix(_PREFIX).partition("-")
    started = rest.partition("-")[0]
    return not (pid.isdecimal() and started.isdecimal()) or _started(int(pid)) == int(started)


def _unified(own: Path) -> tuple[Path | None, frozenset[str], str]:
    """Give the directory of version 2 below which groups may be made, its controllers for them, and what is in the way."""
    base = own.parent if own.name == LEAF else own
    if not os.access(base, os.W_OK) or not os.access(base / "cgroup.procs", os.W_OK):
        return None, frozenset(), f"labd may not make control groups below {base}"
    offered = {*_CONTROLLERS} & set(_read(base / "cgroup.controllers").split())
    missing = offered - set(_read(base / "cgroup.subtree_control").split())
    if missing:
        try:
            _open_up(base, missing)
        except OSError as error:
            return (
                None,
                frozenset(),
                f"the control group {base} can't be divided: {error.strerror}",
            )
    there = offered & set(_read(base / "cgroup.subtree_control").split())
    return base, frozenset(there), f"the control group {base} has no controller for memory"


def _open_up(base: Path, missing: set[str]) -> None:
    """Let the controllers count for children of `base`, which must have no process of its own for that."""
    if (base / "cgroup.type").exists():
        if not _is_given(base):
            raise PermissionError(1, "it was not given to labd, and others may be in it")
        leaf = base / LEAF
        leaf.mkdir(exist_ok=True)
        # While some are moved, others may start new ones; those that end meanwhile are gone.
        for _ in range(_MOVES):
            pids = _read(base / "cgroup.procs").split()
            if not pids:
                break
            for pid in pids:
                with suppress(ProcessLookupError):
                    _write(leaf / "cgroup.procs", pid)
    _write(base / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)))


def _is_given(base: Path) -> bool:
    """Say whether a group is labd's own to divide: systemd says so, or there is no systemd, and it is a container's."""
    with suppress(OSError):
        if os.getxattr(base, "user.delegate") == b"1":
            return True
    # Older versions don't say it, but make a unit's group its user's, below one that is not.
    owner, above = base.stat().st_uid, base.parent.stat().st_uid
    if os.geteuid() == owner != above:
        return True
    contained = base == _mount_points().get("", (None, ""))[0]
    return os.geteuid() == 0 and contained and _read(Path("/proc/1/comm")).strip() != "systemd"


def _own_groups() -> dict[str, Path]:
    """Give the directory of this process's group by controller; the one of version 2 under an empty name."""
    found = {}
    mounts = _mount_points()
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in mounts:
                place, root = mounts[name]
                with suppress(ValueError):
                    found[name] = place / Path(path).relative_to(root)
    return {name: path for name, path in found.items() if path.is_dir()}


def _mount_points() -> dict[str, tuple[Path, str]]:
    """Give mount point and root of each hierarchy, by controller; the one of version 2 under an empty name."""
    found: dict[str, tuple[Path, str]] = {}
    for line in _read(Path("/proc/self/mountinfo"), 2**20).splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in {"cgroup", "cgroup2"}:
            continue
        root, place = left.split(" ")[3:5]
        names = [""] if kind == "cgroup2" else set(options.split(",")) & set(_CONTROLLERS)
        for name in names:
            found.setdefault(name, (Path(place), root))
    return found


def _await_event(directory: Path, name: str, wanted: int, timeout_s: float) -> bool:
    # The kernel tells of changes of this file by POLLPRI; a look comes before each wait, so none is missed.
    deadline_s = time.monotonic() + timeout_s
    with open(directory / "cgroup.events", "rb") as file:  # noqa: PTH123
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        while True:
            file.seek(0)
            text = file.read().decode()
            if _parsed(text).get(name) == wanted:
                return True
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            poll.poll(min(left_s, 0.05) * 1000)


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _started(pid: int) -> int:
    """Give when a process was started, in the kernel's ticks; 0 if there is none."""
    text = _read(Path(f"/proc/{pid}/stat"))
    return int(text[text.rindex(")") :].split()[20]) if text else 0


def _numbers(path: Path) -> dict[str, int]:
    return _parsed(_read(path))


def _parsed(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _read(path: Path, most: int = _MAX_READ_BYTES) -> str:
    """Give a small file's text, or nothing where it can't be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(most).decode(errors="replace")
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
