"""Part of `make bench`: what a sandbox costs, as the user who runs this: at the start, while it runs, and at the end."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from labd.sandbox import Ahead, Ending, Limits, Sandbox
from tests.boxes import make_sandbox

RUNS = 25
TREES, TREE_PROCESSES = 10, 200
SPINS = 25
_WAIT_S = 0.1
_TREE = """
import os, time
for _ in range(199):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
open("ready", "w").close()
time.sleep(60)
"""
_SPIN = """
import time
for part in range(10):
    begun = time.perf_counter()
    total = 0
    for number in range(2_000_000): total += number * number
    print(time.perf_counter() - begun)
"""
_CLOCK = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC))"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took, in milliseconds."""

    wall: float
    own_cpu: float
    """Of this process, with what it did ahead of time."""
    other_cpu: float
    """Of all that it started and that has ended since."""
    first: float | None = None
    """Until the command's own first instruction, as far as it can tell."""


def main() -> None:
    """Measure each command bare, sandboxed, and sandboxed from ahead, in turns, and print medians."""
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    title = f"median (least) of {RUNS}, ms, as {user}"
    table = Table(
        "command",
        "how",
        "wall",
        "to its first instruction",
        "our CPU",
        "children's CPU",
        title=title,
    )
    # Starting what waits is part of the CPU time, but of no other: a worker does other things meanwhile.
    commands = {"true": ["true"], "python": ["python", "-I", "-S", "-c", _CLOCK]}
    with tempfile.TemporaryDirectory(prefix="labd-bench-") as name:
        ways = _ways(Path(name))
        for title, command in commands.items():
            costs: dict[str, list[Cost]] = {way: [] for way in ways}
            for _ in range(RUNS):
                for way, run in ways.items():
                    costs[way].append(run(command))
            for way, measured in costs.items():
                table.add_row(title, way, *_columns(measured))
    console = Console()
    console.print(table)
    console.print(_kills(user))
    console.print(_spins(user))


def _kills(user: str) -> Table:
    """How long from the cancel of a run of 200 processes until it is known that all of them are dead."""
    box = _box()
    killed_ms, left = [], 0
    for number in range(TREES):
        cancelled, mark = threading.Event(), f"labd-bench-{os.getpid()}-{number}"
        with (
            tempfile.TemporaryDirectory(prefix="labd-bench-") as name,
            ThreadPoolExecutor(1) as pool,
        ):
            limits = Limits(wall_s=60, processes=400)
            argv = ["python", "-c", _TREE, mark]
            run = pool.submit(
                box.run, argv, workdir=Path(name), limits=limits, cancelled=cancelled
            )
            while not (Path(name) / "ready").exists():
                time.sleep(0.01)
            begun = time.monotonic()
            cancelled.set()
            if run.result().ending is not Ending.CANCELLED:
                raise RuntimeError(run.result().output)
            killed_ms.append(1000 * (time.monotonic() - begun))
            left += _count(mark)
    table = Table("killed", "until all are dead, and the results read", "left alive")
    table.title = f"median (most) of {TREES}, ms, as {user}"
    shown = f"{statistics.median(killed_ms):.0f} ({max(killed_ms):.0f})"
    table.add_row(
        f"a tree of {TREE_PROCESSES} processes, each in a session of its own", shown, str(left)
    )
    return table


def _spins(user: str) -> Table:
    """How much longer computing takes inside, by its own clock: ten parts of a run, runs outside and inside in turns."""
    box = _box()
    inside: list[float] = []
    outside: list[float] = []
    command = ["python", "-I", "-S", "-c", _SPIN]
    for _ in range(SPINS):
        outside += _parts_ms(_bare(command))
        with tempfile.TemporaryDirectory(prefix="labd-bench-") as name:
            inside += _parts_ms(box.run(command, workdir=Path(name)).output)
    table = Table("computing", "outside", "inside", "more inside")
    table.title = f"of {len(inside)} parts each, ms, as {user}"
    for title, share in (("median", 0.5), ("tenth least", 0.1), ("least", 0.0)):
        out, within = (sorted(ms)[int(share * (len(ms) - 1))] for ms in (outside, inside))
        more = f"{100 * (within / out - 1):+.2f} %"
        table.add_row(f"one process, {title}", f"{out:.1f}", f"{within:.1f}", more)
    return table


def _parts_ms(said: str) -> list[float]:
    return [1000 * float(line) for line in said.split()]


def _box() -> Sandbox:
    box = make_sandbox()
    box.gaps()
    return box


def _count(mark: str) -> int:
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += mark.encode() in path.read_bytes() and int(path.parent.name) != os.getpid()
    return found


def _ways(home: Path) -> dict[str, Callable[[list[str]], Cost]]:
    box = _box()
    limits = Limits()
    ahead = Ahead(box, home / "base", limits=limits)
    workdir = home / "work"

    def fresh() -> None:
        if workdir.exists():
            workdir.rmdir()

    def boxed(command: list[str]) -> Cost:
        fresh()
        workdir.mkdir()
        return _cost(lambda: box.run(command, workdir=workdir, limits=limits).output)

    def prepare() -> None:
        fresh()
        ahead.prime()
        time.sleep(_WAIT_S)

    def served(command: list[str]) -> Cost:
        return _cost(
            lambda: box.run(command, workdir=workdir, limits=limits, ahead=ahead).output, prepare
        )

    return {
        "bare": lambda command: _cost(lambda: _bare(command)),
        "sandboxed": boxed,
        "from ahead": served,
    }


def _bare(command: list[str]) -> str:
    words = [sys.executable if word == "python" else word for word in command]
    done = subprocess.run(words, check=True, timeout=60, stdout=subprocess.PIPE, text=True)
    return done.stdout


def _cost(run: Callable[[], str], prepare: Callable[[], None] | None = None) -> Cost:
    own, others = _cpu_ms(resource.RUSAGE_SELF), _cpu_ms(resource.RUSAGE_CHILDREN)
    if prepare is not None:
        prepare()
    begun = time.monotonic()
    said = run()
    wall = 1000 * (time.monotonic() - begun)
    return Cost(
        wall=wall,
        own_cpu=_cpu_ms(resource.RUSAGE_SELF) - own,
        other_cpu=_cpu_ms(resource.RUSAGE_CHILDREN) - others,
        first=1000 * (float(said) - begun) if said else None,
    )


def _cpu_ms(who: int) -> float:
    used = resource.getrusage(who)
    return 1000 * (used.ru_utime + used.ru_stime)


def _columns(costs: list[Cost]) -> list[str]:
    firsts = [cost.first for cost in costs if cost.first is not None]
    return [
        _shown([cost.wall for cost in costs]),
        _shown(firsts) if firsts else "",
        _shown([cost.own_cpu for cost in costs]),
        _shown([cost.other_cpu for cost in costs]),
    ]


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f})"


if __name__ == "__main__":
    main()
