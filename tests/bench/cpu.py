"""CPU time of whole families of processes, those that have ended included, and of a lab by part.

A control group counts all that ever ran in it, exactly. Where none can be made (not root, or no cgroup2
in sight) there is no figure, rather than a wrong one: sampled processes miss what is born and dies between.
Source: cgroups(7); Documentation/admin-guide/cgroup-v2.rst of Linux, "cpu.stat".
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.processes import DaemonProcess

PARTS = ("daemon", "driver", "workers", "Ray")
_RMDIR_TIMEOUT_S = 10.0


class Group:
    """A control group of our own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mount = _mount()

    def cpu_s(self) -> float:
        """Give the CPU time that was used in the group since it was made."""
        return used_s(self.path)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this process, and so what it starts, in the group for the length of a block."""
        own = Path("/proc/self/cgroup").read_text().splitlines()
        home = next(line.removeprefix("0::/") for line in own if line.startswith("0::/"))
        _move_to(self.path)
        try:
            yield
        finally:
            _move_to((self._mount or Path("/")) / home)


@contextmanager
def group(name: str) -> Iterator[Group | None]:
    """Give a new control group, or ``None`` where none can be made; its processes have to be gone at the end."""
    mount = _mount()
    path = (mount or Path("/nowhere")) / f"labd-bench-{os.getpid()}-{name}"
    try:
        path.mkdir()
        made = Group(path)
        with made.entered():
            pass
    except OSError:
        with suppress(OSError):
            path.rmdir()
        yield None
        return
    try:
        yield made
    finally:
        _remove(path)


def used_s(path: Path) -> float:
    """Give the CPU time of a control group, by its directory."""
    lines = (path / "cpu.stat").read_text().splitlines()
    return next(int(line.split()[1]) / 1e6 for line in lines if line.startswith("usage_usec"))


def by_part(daemon: DaemonProcess) -> dict[str, float]:
    """Give the CPU seconds so far of the lab's lasting processes: daemon, driver, workers, and the rest of Ray.

    Sandboxes come and go; theirs is what a group has used beyond these.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    for process in daemon.family():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            part = _part(process, daemon.process.pid)
            if part:
                parts[part] += sum(process.cpu_times()[:2])
    return parts


def title(process: psutil.Process) -> str:
    """Give a process's name and command line as one text; empty if it is gone."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join([process.name(), *process.cmdline()])
    return ""


def is_worker(process: psutil.Process) -> bool:
    """Say whether it is one of Ray's worker processes."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        words = process.cmdline()
        return bool(words) and words[0].startswith("ray::") and "Agent" not in words[0]
    return False


def _part(process: psutil.Process, daemon_pid: int) -> str:
    if process.pid == daemon_pid:
        return "daemon"
    if is_worker(process):
        return "workers"
    words = title(process)
    if "labd.engine" in words:
        return "driver"
    return "Ray" if "ray" in words or "gcs_server" in words else ""


def _mount() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        where, kind = line.split()[1:3]
        if kind == "cgroup2":
            return Path(where)
    return None


def _move_to(path: Path) -> None:
    (path / "cgroup.procs").write_text(str(os.getpid()))


def _remove(path: Path) -> None:
    deadline_s = time.monotonic() + _RMDIR_TIMEOUT_S
    while True:
        try:
            path.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return
