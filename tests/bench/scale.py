"""A lab with a long queue and a long past: 100,000 files wait, and 1,000,000 are done.

Two long sleeps hold both slots while the backlog is read; then one is cancelled. What waits wants both slots,
so that nothing of it starts, and an urgent small task can. Everything is seen from outside: the log, the
status file, the command line, and the account that the kernel keeps of each process.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from labd.task import State
from tests.bench.cpu import by_part
from tests.bench.lab import STAMPING, BenchLab, bench_lab, command, median, ms, rank, settle
from tests.processes import DaemonProcess, wait_until

_TIMEOUT_S = 1800.0
_LINKS = 30_000
"""Of one inode; ext4 allows 65,000. Source: Documentation/filesystems/ext4 of Linux, EXT4_LINK_MAX."""


def main(*, small: bool) -> bool:
    """Measure and print; say whether all work is there."""
    waiting, past, idle_s = (2_000, 20_000, 10.0) if small else (100_000, 1_000_000, 30.0)
    title = f"{waiting:,} files wait, {past:,} are done"
    table = Table("what", "median", "worst", title=title)
    with bench_lab(reserve_after="30d") as lab:
        _fill(lab, waiting, past)
        daemon = _start(lab, table, waiting)
        _add_memory(table, daemon, "after reading")
        settle(daemon)
        _add_idle(table, daemon, idle_s)
        _free_a_slot(lab)
        _add_first_urgent(lab, table)
        settle(daemon)
        urgent_s = [_urgent(lab, number) for number in range(3 if small else 10)]
        table.add_row("urgent cp → it runs", ms(median(urgent_s)), ms(max(urgent_s)))
        for words in (["--help"], ["list"], ["list", "--json"], ["show", "urgent0"]):
            walls_s = [_cli(lab, words) for _ in range(3 if small else 7)]
            table.add_row(f"labd {' '.join(words)}", ms(median(walls_s)), ms(rank(walls_s, 1)))
        _add_memory(table, daemon, "at the end")
        there = _all_there(lab, waiting, past, 1 + len(urgent_s))
        Console().print(table)  # here: to remove so many files takes minutes
    return there


def _fill(lab: BenchLab, waiting: int, past: int) -> None:
    """Make what waits as files of their own, and the past as links, which directories don't tell from files."""
    raw = command(["true"], priority=-5, num_cpus=2).encode()
    order = list(range(waiting))
    random.Random(1).shuffle(order)
    pending = os.fspath(lab.spool.directory(State.PENDING))
    for number in order:
        fd = os.open(f"{pending}/w{number:06}.yaml", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, raw)
        os.close(fd)
    done = os.fspath(lab.spool.directory(State.DONE))
    first = ""
    for number in range(past):
        name = f"{done}/d{number:07}.yaml"
        if number % _LINKS == 0:
            first = name
            Path(first).write_bytes(raw)
        else:
            os.link(first, name)


def _start(lab: BenchLab, table: Table, waiting: int) -> DaemonProcess:
    begun_s = time.monotonic()
    daemon = lab.launch()
    wait_until(lambda: daemon.said("engine.starting"), 60, "the start of the engine")
    time.sleep(0.5)  # the directories are being watched by now; what is told goes first
    for number in range(2):
        lab.cp(f"sleep{number}", command(["sleep", "100000"], priority=5))
    daemon.wait_ready()
    table.add_row("labd up → engine ready", f"{time.monotonic() - begun_s:.1f} s", "")
    running = ["sleep0.yaml", "sleep1.yaml"]
    wait_until(lambda: sorted(lab.spool.names(State.RUNNING)) == running, 60, "two sleeps")
    wait_until(lambda: _waits(lab) >= waiting, _TIMEOUT_S, "the whole backlog")
    table.add_row("labd up → the backlog read whole", f"{time.monotonic() - begun_s:.1f} s", "")
    return daemon


def _status(lab: BenchLab) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads(
            (lab.spool.root / ".labd" / "status.json").read_bytes()
        )
    except FileNotFoundError:
        return {}
    return status


def _waits(lab: BenchLab) -> int:
    time.sleep(0.2)
    return sum(told["count"] for told in _status(lab).get("classes", []))


def _add_memory(table: Table, daemon: DaemonProcess, when: str) -> None:
    used = psutil.Process(daemon.process.pid).memory_full_info()
    shown = f"{used.rss / 2**20:.0f} MiB, {used.uss / 2**20:.0f} of its own"
    table.add_row(f"the daemon's memory {when}", shown, "")


def _add_idle(table: Table, daemon: DaemonProcess, idle_s: float) -> None:
    before = by_part(daemon)
    time.sleep(idle_s)
    after = by_part(daemon)
    for part, seconds in after.items():
        share = 100 * (seconds - before[part]) / idle_s
        table.add_row(f"CPU of {part} over {idle_s:g} s of idleness", f"{share:.1f} %", "")


def _free_a_slot(lab: BenchLab) -> None:
    for task in ("sleep0", "sleep1"):
        if not lab.spool.holds(State.RUNNING, f"{task}.yaml"):
            message = f"{task} runs no more: {lab.events(task)}"
            raise AssertionError(message)
    lab.spool.move("sleep1.yaml", State.RUNNING, State.CANCELLED)
    wait_until(
        lambda: list(_status(lab).get("running", {})) == ["sleep0"], 60, "the end of one sleep"
    )


def _add_first_urgent(lab: BenchLab, table: Table) -> None:
    table.add_row("urgent cp right after a cancel", ms(_urgent(lab, "first")), "")


def _urgent(lab: BenchLab, number: int | str) -> float:
    task = f"urgent{number}"
    time.sleep(random.Random(number).uniform(0.2, 1.5) if number != "first" else 0)
    at_ns = lab.cp(task, STAMPING.replace("kind:", "priority: 100\nkind:", 1))
    lab.wait_done([task])
    return (lab.stamp_ns(task) - at_ns) / 1e9


def _cli(lab: BenchLab, words: list[str]) -> float:
    argv = [sys.executable, "-m", "labd.cli", "--home", os.fspath(lab.root), *words]
    null = subprocess.DEVNULL
    begun_s = time.monotonic()
    subprocess.run(argv, check=True, stdout=null, stderr=null, timeout=600)
    return time.monotonic() - begun_s


def _all_there(lab: BenchLab, waiting: int, past: int, urgent: int) -> bool:
    wanted: dict[State, Callable[[int], bool]] = {
        State.PENDING: waiting.__eq__,
        State.RUNNING: (1).__eq__,
        State.CANCELLED: (1).__eq__,
        State.FAILED: (0).__eq__,
        State.DONE: (past + urgent).__eq__,
    }
    counts = {state: sum(1 for _ in lab.spool.all_names(state)) for state in wanted}
    wrong = {state.value: n for state, n in counts.items() if not wanted[state](n)}
    if wrong:
        Console().print(f"these directories don't hold what they should: {wrong}", style="red")
    return not wrong
