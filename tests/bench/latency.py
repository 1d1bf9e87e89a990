"""How long a dropped file waits on an idle daemon: from just before the `cp` to the command's first instruction.

The start of the sandbox is in it, and that of `sh` and `date`, which stamps the moment. Both clocks are the
machine's wall clock. The baseline, in the same run: a sandbox alone, from the call to the same stamp.
"""

import random
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.lab import STAMPING, BenchLab, bench_lab, ms, rank, settle
from tests.boxes import make_sandbox

_SHARES = (0.5, 0.9, 0.99, 1.0)
Drop = Callable[[str, str], int]


def main(*, small: bool) -> bool:
    """Measure and print; say whether all work is there."""
    drops, idles, idle_s = (20, 1, 10) if small else (200, 3, 60)
    table = Table("what", "n", "p50", "p90", "p99", "max", title="drop → first instruction")
    with bench_lab() as lab:
        daemon = lab.start()
        first_s = [_drop(lab, lab.cp, "first")[0]]
        settle(daemon)
        by_cp = _drops(lab, lab.cp, "cp", drops)
        by_mv = _drops(lab, lab.mv, "mv", drops // 2)
        late = []
        for number in range(idles):
            time.sleep(idle_s)
            late.append(_drop(lab, lab.cp, f"late{number}"))
    alone_s = _sandbox_alone(drops // 2)
    _row(table, "cp → the command runs", [times[0] for times in by_cp])
    _row(table, "  of that: cp → claim on record", [times[1] for times in by_cp])
    _row(table, "mv → the command runs", [times[0] for times in by_mv])
    _row(table, f"cp after {idle_s} s of idleness", [times[0] for times in late])
    _row(table, "cp of the first task after the start", first_s)
    _row(table, "a sandbox alone", alone_s)
    Console().print(table)
    ratio = rank([times[0] for times in by_cp], 0.5) / rank(alone_s, 0.5)
    Console().print(f"median of cp over median of the sandbox alone: {ratio:.1f}")
    return True


def _drops(lab: BenchLab, drop: Drop, prefix: str, count: int) -> list[tuple[float, float]]:
    chance = random.Random(1)
    times = []
    for number in range(count):
        time.sleep(chance.uniform(0, 0.3))
        times.append(_drop(lab, drop, f"{prefix}{number}"))
    return times


def _drop(lab: BenchLab, drop: Drop, task: str) -> tuple[float, float]:
    """Give the seconds to the first instruction, and to the claim, which is on record by the millisecond."""
    at_ns = drop(task, STAMPING)
    lab.wait_done([task])
    claimed = next(e["at"] for e in lab.events(task) if e["event"] == "claimed")
    claimed_s = datetime.fromisoformat(claimed).timestamp() - at_ns / 1e9
    return (lab.stamp_ns(task) - at_ns) / 1e9, max(0.0, claimed_s)


def _sandbox_alone(count: int) -> list[float]:
    box = make_sandbox()
    times = []
    with tempfile.TemporaryDirectory(prefix="labd-bench-") as name:
        for number in range(count):
            workdir = Path(name) / str(number)
            workdir.mkdir()
            at_ns = time.time_ns()
            box.run(["/bin/sh", "-c", "date +%s%N > t"], workdir=workdir)
            times.append((int((workdir / "t").read_text()) - at_ns) / 1e9)
    return times


def _row(table: Table, what: str, values_s: list[float]) -> None:
    table.add_row(what, str(len(values_s)), *(ms(rank(values_s, share)) for share in _SHARES))
