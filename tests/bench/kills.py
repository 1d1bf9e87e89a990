"""What a SIGKILL costs: each part of a lab in turn, killed while it works through many short commands.

Each command writes the wall time again and again, so that what ran when is known from inside: the span of
an attempt is what it wrote itself, also where it was killed. Work is lost, and this says so, when a task is
not done, is done twice, or has an attempt more than the kill accounts for, or when more ran than there are slots.
A command that had come to its end, but with nothing of that on record when its worker was killed, runs again.
"""

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psutil
from rich.console import Console
from rich.table import Table

from labd.task import State
from tests.bench.cpu import is_worker, title
from tests.bench.lab import SLOTS, BenchLab, bench_lab, command
from tests.processes import DaemonProcess, wait_until

_TEXT = command(
    'for i in 1 2 3 4 5; do echo "$LABD_ATTEMPT $(date +%s%N)" >> spans; sleep 0.01; done; '
    'echo "$LABD_ATTEMPT $(date +%s%N) end" >> spans'
)
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class _Span:
    task: str
    attempt: int
    begun_ns: int
    ended_ns: int
    whole: bool


@dataclass(frozen=True, slots=True)
class _Row:
    victim: str
    done: int
    again: int
    again_whole: int
    """Of those, the ones that had come to their end before."""
    twice: int
    most: int
    gap_s: float
    """The longest time around the kill in which nothing ran."""
    wrong: list[str]


def main(*, small: bool) -> bool:
    """Kill, measure and print; say whether all work is there."""
    count = 60 if small else 200
    rows = [_killed(victim, find, count) for victim, find in _VICTIMS.items()]
    table = Table(
        *(
            "killed",
            "done",
            "started again",
            "ended before",
            "done twice",
            "most at once",
            "nothing ran for",
        ),
        title=f"{count} commands of 0.1 s, {SLOTS} slots, one SIGKILL after a third",
    )
    for row in rows:
        table.add_row(
            row.victim,
            f"{row.done} of {count}",
            str(row.again),
            str(row.again_whole),
            str(row.twice),
            str(row.most),
            f"{row.gap_s:.1f} s",
        )
    Console().print(table)
    wrong = [f"{row.victim}: {what}" for row in rows for what in row.wrong]
    for what in wrong:
        Console().print(what, style="bold red", markup=False)
    return not wrong


def _killed(
    victim: str, find: Callable[[DaemonProcess], list[psutil.Process]], count: int
) -> _Row:
    tasks = [f"t{number}" for number in range(count)]
    chance = random.Random(victim)
    with bench_lab() as lab:
        daemon = lab.start()
        lab.mv_all(dict.fromkeys(tasks, _TEXT))
        wait_until(lambda: len(lab.spool.names(State.DONE)) >= count // 3, _TIMEOUT_S, "a third")
        time.sleep(chance.uniform(0, 0.1))
        processes = wait_until(partial(find, daemon), 30, f"{victim} to kill")
        killed_ns = time.time_ns()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if daemon.process.pid in {process.pid for process in processes}:
            daemon.process.wait(10)
            lab.launch()
        done = _wait_settled(lab, count)
        return _judged(lab, victim, tasks, done, killed_ns)


def _wait_settled(lab: BenchLab, count: int) -> int:
    """Wait until every task is decided or the time is over; give how many are in done/."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline_s:
        ended = sum(len(lab.spool.names(state)) for state in State if state.decided)
        if ended >= count:
            break
        time.sleep(0.2)
    return len(lab.spool.names(State.DONE))


def _judged(lab: BenchLab, victim: str, tasks: list[str], done: int, killed_ns: int) -> _Row:
    of = {task: _spans(lab, task) for task in tasks}
    spans = [span for mine in of.values() for span in mine]
    again = [task for task, mine in of.items() if len(mine) > 1]
    ends = {task: [e["event"] for e in lab.events(task)].count("done") for task in tasks}
    twice = [task for task, number in ends.items() if number > 1]
    most = _most_at_once(spans)
    # One worker runs one command; any other victim may take all that runs with it.
    allowed = 1 if victim == "a worker" else SLOTS
    complaints = {
        f"only {done} of {len(tasks)} are in done/": done != len(tasks),
        f"{len(again)} ran again, and at most {allowed} ran at the kill": len(again) > allowed,
        f"ended twice: {twice}": bool(twice),
        f"{most} ran at once, with {SLOTS} slots": most > SLOTS,
        **{f"{task}: {what}": True for task in tasks if (what := _odd(lab, of, task, killed_ns))},
    }
    return _Row(
        victim=victim,
        done=done,
        again=len(again),
        again_whole=sum(of[task][0].whole for task in again),
        twice=len(twice),
        most=most,
        gap_s=_gap_s(spans, killed_ns),
        wrong=[what for what, is_so in complaints.items() if is_so],
    )


def _odd(lab: BenchLab, of: dict[str, list[_Span]], task: str, killed_ns: int) -> str:
    """Say what is wrong with the attempts of one task, if anything is."""
    attempts = [span.attempt for span in of[task]]
    claimed = [e["attempt"] for e in lab.events(task) if e["event"] == "claimed"]
    if not attempts or not of[task][-1].whole:
        return "its last attempt did not come to its end"
    if attempts not in ([1], [2], [1, 2]):
        return f"its commands say that they are attempts {attempts}"
    if claimed != list(range(1, attempts[-1] + 1)):
        return f"attempts {attempts} ran, and {claimed} are on record"
    first, last = of[task][0], of[task][-1]
    if last is not first and not first.begun_ns < killed_ns < last.begun_ns:
        return "it was not the kill that it was started again for"
    return ""


def _spans(lab: BenchLab, task: str) -> list[_Span]:
    path = lab.archive.directory(task) / "files" / "spans"
    lines = path.read_text().splitlines() if path.exists() else []
    stamps: dict[int, list[int]] = {}
    whole: set[int] = set()
    for attempt, at_ns, *end in (line.split() for line in lines):
        stamps.setdefault(int(attempt), []).append(int(at_ns))
        if end:
            whole.add(int(attempt))
    spans = [_Span(task, n, min(at), max(at), n in whole) for n, at in stamps.items()]
    return sorted(spans, key=lambda span: span.begun_ns)


def _most_at_once(spans: list[_Span]) -> int:
    changes = sorted([(s.begun_ns, 1) for s in spans] + [(s.ended_ns, -1) for s in spans])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _gap_s(spans: list[_Span], killed_ns: int) -> float:
    before = max((s.ended_ns for s in spans if s.begun_ns <= killed_ns), default=killed_ns)
    after = min((s.begun_ns for s in spans if s.begun_ns > before), default=before)
    return (after - before) / 1e9


def _named(words: str, daemon: DaemonProcess) -> list[psutil.Process]:
    return [p for p in daemon.family() if words in title(p)][:1]


def _daemon(daemon: DaemonProcess) -> list[psutil.Process]:
    daemon.family()  # so that what it leaves behind is known
    return [psutil.Process(daemon.process.pid)]


_VICTIMS: dict[str, Callable[[DaemonProcess], list[psutil.Process]]] = {
    "the daemon": _daemon,
    "a worker": lambda daemon: [p for p in daemon.family() if is_worker(p) and "ray::labd:" in title(p)][:1],
    "the driver": partial(_named, "labd.engine"),
    "raylet": partial(_named, "raylet/raylet"),
    "dashboard agent": partial(_named, "DashboardAgent"),
    "gcs_server": partial(_named, "gcs_server"),
    "all at once": lambda daemon: list(daemon.family()),
}  # fmt: skip
