"""Part of `make bench`: what a sandbox adds to the start of a command, as the user who runs this."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from labd.sandbox import Ahead, Limits, Sandbox

RUNS = 25
_WAIT_S = 0.1
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
    Console().print(table)


def _ways(home: Path) -> dict[str, Callable[[list[str]], Cost]]:
    box = Sandbox()
    box.gaps()
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
