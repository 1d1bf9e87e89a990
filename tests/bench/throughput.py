"""How fast no-op commands go through the queue, and what CPU time each takes, all processes counted.

The baselines run the same command in the same sandbox in the same run, in turns: bare threads, which is
what the sandbox takes, and plain Ray core, which is what anything on Ray takes.
"""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tests.bench.baselines import measure
from tests.bench.cpu import group
from tests.bench.lab import NO_OP, SLOTS, bench_lab, median, settle

_ARGV = ["true"]


@dataclass(frozen=True, slots=True)
class _Round:
    rate: float
    """Tasks a second."""
    cpu_s: float | None
    """Of one task."""


def main(*, small: bool) -> bool:
    """Measure and print; say whether all work is there."""
    count, rounds = (100, 1) if small else (1000, 3)
    seen: dict[str, list[_Round]] = {"threads": [], "ray": [], "labd": []}
    for number in range(rounds):
        for kind in ("threads", "ray"):
            took = measure(kind, count, _ARGV)
            cpu_s = None if took.cpu_s is None else took.cpu_s / count
            seen[kind].append(_Round(count / took.wall_s, cpu_s))
        seen["labd"].append(_labd(f"labd{number}", count))
    _print(seen, count)
    return True


def _labd(name: str, count: int) -> _Round:
    tasks = {f"t{number}": NO_OP for number in range(count)}
    with group(name) as cgroup, bench_lab() as lab:
        daemon = lab.start(cgroup)
        warm = {f"warm{number}": NO_OP for number in range(2 * SLOTS)}
        lab.mv_all(warm)
        lab.wait_done(warm)
        settle(daemon)
        before_s = cgroup.cpu_s() if cgroup else 0.0
        lab.mv_all(tasks)
        lab.wait_done(tasks, 600)
        cpu_s = (cgroup.cpu_s() - before_s) / count if cgroup else None
        return _Round(count / lab.span_s(tasks), cpu_s)


def _print(seen: dict[str, list[_Round]], count: int) -> None:
    title = f"{count} times true, {SLOTS} at a time, median of {len(seen['labd'])}"
    table = Table("who", "tasks/s", "of plain Ray", "CPU ms/task", "over plain Ray", title=title)
    names = {"threads": "threads, sandbox only", "ray": "plain Ray, same sandbox", "labd": "labd"}
    ray_rate = median(r.rate for r in seen["ray"])
    ray_cpu_s = _cpu_s(seen["ray"])
    for kind, name in names.items():
        rates = [r.rate for r in seen[kind]]
        cpu_s = _cpu_s(seen[kind])
        known = cpu_s is not None and ray_cpu_s is not None
        table.add_row(
            name,
            f"{median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f})",
            f"{median(rates) / ray_rate:.2f}",
            "not known" if cpu_s is None else f"{1000 * cpu_s:.1f}",
            f"{1000 * (cpu_s - ray_cpu_s):+.1f}" if known else "",  # type: ignore[operator]
        )
    Console().print(table)


def _cpu_s(rounds: list[_Round]) -> float | None:
    known = [r.cpu_s for r in rounds if r.cpu_s is not None]
    return median(known) if known else None
