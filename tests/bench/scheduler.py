"""`python -m tests.bench.scheduler`: what a plan and the backlog cost with 100,000 tasks that wait. Asserts nothing."""

import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

from labd.scheduler import Backlog, Demand, Node, Running, Snapshot, Waiting, plan

TASKS = 100_000
ROUNDS = 300


def main() -> None:
    """Measure and print."""
    table = Table("what", "median", "worst", title=f"{TASKS:,} waiting tasks")
    for classes in (1, 10, 1000):
        tasks = _tasks(classes)
        random.Random(1).shuffle(tasks)
        backlog = Backlog()
        _row(table, f"add, in random order, {classes} classes", _each(backlog.add, tasks))
        _plans(table, backlog, classes)
        keys = [task.key for task in tasks]
        _row(table, f"discard, in random order, {classes} classes", _each(backlog.discard, keys))
    Console().print(table)
    _memory()


def _plans(table: Table, backlog: Backlog, classes: int) -> None:
    full, room, late = _snapshot(backlog, 16), _snapshot(backlog, 14), _snapshot(backlog, 16, 900)
    for shot, starts in ((full, 0), (room, 2), (late, 0)):
        made = plan(shot)
        assert len(made.starts) == starts, made.starts
        kept = f", {len(made.reserved)} node kept free" if made.reserved else ""
        what = f"a plan that starts {starts}, {classes} classes{kept}"
        _row(table, what, [_once(partial(plan, shot)) for _ in range(ROUNDS)])
    made = plan(full)
    _row(table, f"the classes for the status file, {classes} classes", [_once(made.classes)])
    _row(table, "the first 1,000 in order", [_once(lambda: backlog.first(1000))])


def _tasks(classes: int) -> list[Waiting]:
    demands = [
        Demand(4, 0.5),
        *(Demand(5 + i % 59, 1 + i % 7) for i in range(min(9, classes - 1))),
    ]
    owners = max(1, classes // 10)
    return [
        Waiting(
            f"task-{i:06}.yaml",
            0,
            1_795_420_800_000_000_000 + i,
            demands[i % len(demands)],
            f"owner-{i // len(demands) % owners}",
            i / 1000,
        )
        for i in range(TASKS)
    ]


def _snapshot(backlog: Backlog, running: int, now_s: float = 0.0) -> Snapshot:
    nodes = [Node("n1", "one", 64, 8)]
    held = [Running(f"r{i}", "n1", Demand(4, 0.5), "x", (i // 2,)) for i in range(running)]
    return Snapshot(backlog, held, nodes, {"x": 0.5}, now_s, 600)


def _each(act: Callable[..., object], arguments: list[Waiting] | list[str]) -> list[float]:
    return [_once(partial(act, argument)) for argument in arguments]


def _once(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _row(table: Table, what: str, times_s: list[float]) -> None:
    shown = (f"{1e6 * value:,.1f} µs" for value in (statistics.median(times_s), max(times_s)))
    table.add_row(what, *shown)


def _memory() -> None:
    tracemalloc.start()
    tasks = _tasks(10)
    bare_bytes = tracemalloc.get_traced_memory()[0]
    backlog = Backlog()
    for task in tasks:
        backlog.add(task)
    all_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(
        f"per waiting task: {bare_bytes / TASKS:.0f} bytes, and {(all_bytes - bare_bytes) / TASKS:.0f} in the backlog"
    )


if __name__ == "__main__":
    main()
