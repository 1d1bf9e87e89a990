"""Labs to measure: two slots and a Ray without a dashboard, in a directory of their own that goes when they do."""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from labd.archive import Archive
from labd.clock import from_iso
from labd.spool import Spool
from labd.task import State
from tests.bench.cpu import Group
from tests.factories import task_text, write_settings
from tests.processes import DaemonProcess, wait_until

SLOTS = 2
_SETTINGS = {"ray": {"num_cpus": SLOTS, "dashboard": False}, "min_free_bytes": 2**20}


class BenchLab:
    """A lab's home, and the daemons that were started there."""

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        self.root = root
        self.spool, self.archive = Spool(root / "spool"), Archive(root / "results")
        self.spool.prepare()
        self.archive.prepare()
        write_settings(root, **{**_SETTINGS, **settings})
        self._staging = root / "staging"
        self._staging.mkdir()
        self._daemons: list[DaemonProcess] = []

    def start(self, group: Group | None = None) -> DaemonProcess:
        """Start a daemon, in `group` with all its children, and wait until its engine takes jobs."""
        daemon = self.launch(group)
        daemon.wait_ready()
        return daemon

    def launch(self, group: Group | None = None) -> DaemonProcess:
        """Start a daemon and don't wait for anything."""
        if group is None:
            daemon = DaemonProcess(self.root)
        else:
            with group.entered():
                daemon = DaemonProcess(self.root)
        self._daemons.append(daemon)
        return daemon

    def end(self) -> None:
        """Stop the last daemon politely if it lives, and kill whatever is left of any."""
        if self._daemons and self._daemons[-1].process.poll() is None:
            self._daemons[-1].stop()
        for daemon in self._daemons:
            daemon.kill_everything()
        self._daemons.clear()

    def cp(self, task: str, text: str) -> int:
        """Make the task's file in pending/ as cp does: open, write, close; give the Unix time in ns before it."""
        raw = text.encode()
        path = self.spool.directory(State.PENDING) / f"{task}.yaml"
        at_ns = time.time_ns()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, raw)
        os.close(fd)
        return at_ns

    def mv(self, task: str, text: str) -> int:
        """Rename the task's file into pending/ as mv does; give the Unix time in ns before it."""
        return self.mv_all({task: text})

    def mv_all(self, texts: Mapping[str, str]) -> int:
        """Rename files into pending/, all written before the first is moved; give the Unix time in ns before that."""
        for task, text in texts.items():
            (self._staging / f"{task}.yaml").write_text(text)
        pending = self.spool.directory(State.PENDING)
        at_ns = time.time_ns()
        for task in texts:
            (self._staging / f"{task}.yaml").rename(pending / f"{task}.yaml")
        return at_ns

    def wait_done(self, tasks: Iterable[str], timeout_s: float = 120.0) -> None:
        """Wait until all of the tasks' files are in done/; looks seldom, so as not to disturb."""
        left = {f"{task}.yaml" for task in tasks}
        poll_s = 0.02 if len(left) == 1 else 0.2
        deadline_s = time.monotonic() + timeout_s
        while left := {name for name in left if not self.spool.holds(State.DONE, name)}:
            if time.monotonic() > deadline_s:
                message = f"{len(left)} tasks not done after {timeout_s:g} s, such as {min(left)}"
                raise AssertionError(message)
            time.sleep(poll_s)

    def stamp_ns(self, task: str) -> int:
        """Give what a `stamping` command wrote: the Unix time in ns of its first instruction."""
        return int((self.archive.directory(task) / "files" / "t").read_text())

    def events(self, task: str) -> list[Mapping[str, Any]]:
        """Give the task's events."""
        return list(self.archive.history(task).events)

    def span_s(self, tasks: Iterable[str]) -> float:
        """Give the time from the first claim on record to the last file's rename into done/."""
        claimed_s, ended_s = [], []
        for task in tasks:
            claimed = (e for e in self.archive.history(task).events if e["event"] == "claimed")
            claimed_s.append(from_iso(str(next(claimed)["at"])).timestamp())
            entry = self.spool.entry(State.DONE, f"{task}.yaml")
            ended_s.append(entry.moved_ns / 1e9 if entry else math.nan)
        return max(ended_s) - min(claimed_s)


def command(run: str | Sequence[str], **over: Any) -> str:
    """Give the text of a command's task file."""
    words = run if isinstance(run, str) else list(run)
    return task_text(kind="command", template=None, run=words, **over)


NO_OP = command(["true"])
STAMPING = command("date +%s%N > t")
"""Writes the Unix time of its first instruction but for the start of `sh` and `date`."""


@contextmanager
def bench_lab(**settings: Any) -> Iterator[BenchLab]:
    """Give a new lab with these settings; at the end its daemons and its files are gone."""
    with tempfile.TemporaryDirectory(prefix="labd-bench-") as name:
        lab = BenchLab(Path(name), settings)
        try:
            yield lab
        finally:
            lab.end()


def rank(values: Sequence[float], share: float) -> float:
    """Give the smallest of the values that is not below this share of them; 0.5 is a median, 1 the maximum."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(values: Iterable[float]) -> float:
    """Give the median."""
    return statistics.median(values)


def ms(seconds: float) -> str:
    """Print a time in milliseconds."""
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"


def settle(daemon: DaemonProcess) -> None:
    """Wait until Ray's workers have come to rest after a start: no CPU to speak of for half a second."""

    def used_s() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in daemon.family() if p.status() != "zombie")

    def quiet() -> bool:
        try:
            before_s = used_s()
            time.sleep(0.5)
            return used_s() - before_s < 0.1
        except psutil.NoSuchProcess:
            return False

    wait_until(quiet, 60, "a quiet moment")
