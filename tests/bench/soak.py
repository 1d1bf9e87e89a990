"""10,000 short tasks through one daemon with a Ray of its own: what grows, in each process and on the disk.

A thousand are dropped at a time, and everything is looked at when they have ended: nothing then waits or runs, so that
what is left is what stays. Of each hundred tasks ninety do nothing, four write a file of 100 KB, three print 64 KiB, two
fail, and one is cancelled while it runs, which costs the lab a worker. The page runs, and is asked once a second.
Memory is the proportional set size (``Pss`` of proc_pid_smaps_rollup(5)): pages that processes share are
counted once.
"""

import os
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from labd.engine.processes import temp_of
from labd.task import State
from tests.bench.cpu import is_worker, title
from tests.bench.lab import NO_OP, BenchLab, bench_lab, command, settle
from tests.processes import DaemonProcess, free_port, wait_until

_TIMEOUT_S = 3600.0
_SKIPPED = 2
"""Rounds before the slope is taken: caches fill, and allocators find their size."""
_OUTPUT = command("head -c 65536 /dev/zero | tr '\\0' x | fold -w 80")
_FILE = command("head -c 100000 /dev/urandom > made.bin")
_FAILS = command(["false"])
_WAITS = command(["sleep", "3600"])
_MIB = 2**20


@dataclass(slots=True)
class _Look:
    """One look. `pss`: bytes, `fds` and `count` of processes by part; `disk`: (bytes, files) by place."""

    ended: int
    at_s: float
    pss: dict[str, int] = field(default_factory=dict)
    fds: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    disk: dict[str, tuple[int, int]] = field(default_factory=dict)


def main(*, small: bool) -> bool:
    """Measure and print; say whether all work is there."""
    rounds, each = (4, 50) if small else (10, 1000)
    port = free_port()
    with bench_lab(page={"enabled": True, "port": port}) as lab:
        daemon = lab.start()
        wait_until(lambda: daemon.said("page.started"), 120, "the page")
        with _asking(f"http://127.0.0.1:{port}/en/"):
            looks = [_look(lab, daemon, 0)]
            for number in range(rounds):
                _round(lab, number, each)
                with suppress(AssertionError):  # a machine that others use is never quite quiet
                    settle(daemon)
                looks.append(_look(lab, daemon, (number + 1) * each))
                print(_in_a_line(looks[-1]), flush=True)
        there = _all_there(lab, rounds * each)
        _print(looks, each)
    return there


def _kind(number: int) -> str:
    in_hundred = number % 100
    if in_hundred == 50:
        return "waits"
    for first, name in ((98, "fails"), (95, "output"), (91, "file")):
        if in_hundred >= first:
            return name
    return "true"


_TEXTS = {"true": NO_OP, "file": _FILE, "output": _OUTPUT, "fails": _FAILS, "waits": _WAITS}


def _round(lab: BenchLab, number: int, each: int) -> None:
    """Drop a round's tasks, cancel those that wait for ever as they run, and wait for the end of all."""
    lab.mv_all(
        {
            f"t{n:05}-{_kind(n)}": _TEXTS[_kind(n)]
            for n in range(number * each, (number + 1) * each)
        }
    )
    deadline_s = time.monotonic() + _TIMEOUT_S
    running, pending = lab.spool.directory(State.RUNNING), lab.spool.directory(State.PENDING)
    cancelled = lab.spool.directory(State.CANCELLED)
    while os.listdir(pending) or os.listdir(running):  # noqa: PTH208 - names, and often
        for path in running.glob("*-waits.yaml"):
            if _begun(lab, path.stem):
                with suppress(FileNotFoundError):
                    path.rename(cancelled / path.name)
        if time.monotonic() > deadline_s:
            message = f"round {number} did not end within {_TIMEOUT_S:g} s"
            raise AssertionError(message)
        time.sleep(0.1)
    ids = [path.stem for path in cancelled.iterdir()]
    wait_until(lambda: all(lab.archive.history(one).ended for one in ids), 60, "their ends")


def _begun(lab: BenchLab, task: str) -> bool:
    return (lab.archive.directory(task) / "log.txt").exists()


def _all_there(lab: BenchLab, tasks: int) -> bool:
    ended = sum(len(lab.spool.names(state)) for state in State if state.decided)
    wrong = [
        name
        for state, kinds in (
            (State.DONE, ("true", "file", "output")),
            (State.FAILED, ("fails",)),
            (State.CANCELLED, ("waits",)),
        )
        for name in lab.spool.names(state)
        if not name.removesuffix(".yaml").endswith(kinds)
    ]
    for name in wrong[:10]:
        Console().print(f"not where it belongs: {name}", style="bold red", markup=False)
    return ended == tasks and not wrong


@contextmanager
def _asking(url: str) -> Iterator[None]:
    over = threading.Event()

    def ask() -> None:
        while not over.wait(1.0):
            with suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(url, timeout=10).read()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(15)


# --- looking


def _part(process: psutil.Process, daemon_pid: int) -> str:
    words = title(process)
    marks = {
        "gcs_server": "Ray's GCS",
        "raylet": "raylet",
        "DashboardAgent": "Ray's agents",
        "RuntimeEnvAgent": "Ray's agents",
        "labd.engine": "driver",
        " page ": "page",
    }
    if process.pid == daemon_pid:
        return "daemon"
    if is_worker(process):
        return "workers"
    return next((part for mark, part in marks.items() if mark in words), "others")


def _look(lab: BenchLab, daemon: DaemonProcess, ended: int) -> _Look:
    look = _Look(ended, time.monotonic())
    driver = 0
    for process in daemon.family():
        part = _part(process, daemon.process.pid)
        with suppress(psutil.Error, OSError):
            pss, fds = _pss(process.pid), process.num_fds()
            look.pss[part] = look.pss.get(part, 0) + pss
            look.fds[part] = look.fds.get(part, 0) + fds
            look.count[part] = look.count.get(part, 0) + 1
            driver = process.pid if part == "driver" else driver
    session = temp_of(driver)
    look.disk = {
        "Ray's logs": _size(session, "logs"),
        "Ray's directory": _size(session),
        "spool/.labd": _size(lab.root / "spool" / ".labd"),
        "results": _size(lab.root / "results"),
        "stderr (systemd's journal)": _size(lab.root / "daemon.log"),
    }
    return look


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _size(root: Path, only: str = "") -> tuple[int, int]:
    """Give the blocks in bytes and the number of the files at and below a path; `only`: below a directory of this name."""
    if root.is_file():
        return root.lstat().st_blocks * 512, 1
    blocks = files = 0
    for directory, _, names in os.walk(root):
        if only and only not in Path(directory).parts:
            continue
        for name in names:
            with suppress(FileNotFoundError):
                blocks += os.lstat(os.path.join(directory, name)).st_blocks  # noqa: PTH118
                files += 1
    return blocks * 512, files


# --- printing


def _in_a_line(look: _Look) -> str:
    pss = ", ".join(f"{part} {size / _MIB:.1f}" for part, size in sorted(look.pss.items()))
    return f"{look.ended} ended; PSS in MiB: {pss}"


def _slope(looks: list[_Look], values: list[float]) -> float:
    """Give the growth per 1,000 tasks by least squares, over all but the first rounds."""
    xs = [look.ended / 1000 for look in looks]
    return statistics.linear_regression(xs[_SKIPPED + 1 :], values[_SKIPPED + 1 :]).slope


def _print(looks: list[_Look], each: int) -> None:
    parts = sorted({part for look in looks for part in look.pss})
    took_s = looks[-1].at_s - looks[0].at_s
    table = Table(
        *(
            "what",
            "at the start",
            f"after {(_SKIPPED + 1) * each:,}",
            f"after {looks[-1].ended:,}",
        ),
        f"for 1,000 tasks, after the first {(_SKIPPED + 1) * each:,}",
        title=f"{looks[-1].ended:,} tasks in {took_s:.0f} s",
    )
    shown = (looks[0], looks[_SKIPPED + 1], looks[-1])
    for part in parts:
        sizes = [look.pss.get(part, 0) / _MIB for look in looks]
        cells = [f"{look.pss.get(part, 0) / _MIB:.1f} MiB" for look in shown]
        table.add_row(f"PSS: {part}", *cells, f"{_slope(looks, sizes):+.2f} MiB")
    for name, of in (("open files", _fds), ("processes", _count)):
        for part in parts:
            numbers = [float(of(look).get(part, 0)) for look in looks]
            table.add_row(
                f"{name}: {part}",
                *(str(of(look).get(part, 0)) for look in shown),
                f"{_slope(looks, numbers):+.2f}",
            )
    for place in looks[0].disk:
        sizes = [look.disk[place][0] / 1024 for look in looks]
        files = [float(look.disk[place][1]) for look in looks]
        table.add_row(
            f"disk: {place}",
            *(f"{look.disk[place][0] / 1024:.0f} KiB, {look.disk[place][1]}" for look in shown),
            f"{_slope(looks, sizes):+.1f} KiB, {_slope(looks, files):+.1f} files",
        )
    Console(width=160).print(table)


def _fds(look: _Look) -> Mapping[str, int]:
    return look.fds


def _count(look: _Look) -> Mapping[str, int]:
    return look.count
