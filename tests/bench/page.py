"""The status page: how long it takes to start and to paint, what a refresh costs with 10,000 tasks, and what open pages cost.

CPU is the page's own process's, by the kernel's account. Wants Chromium for the first paint and the open pages;
without it those lines are left out.
"""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from labd.archive import Archive
from labd.lab import Lab
from labd.page.choice import Choice
from labd.page.overview import pulse, running, strip, table
from labd.page.snapshot import Snapshots
from labd.page.words import Words
from labd.settings import load_home
from labd.task import State
from tests.bench.lab import NO_OP, BenchLab, bench_lab, ms, rank
from tests.factories import task_text
from tests.pages import CHROMIUM, PageProcess

_TASKS = 10_000
_PAGES = 20
_REFRESHES = 1_000


def main(*, small: bool) -> bool:
    """Measure and print; say whether all work is there."""
    tasks = 500 if small else _TASKS
    output = Table("what", "measured", title=f"the page, {tasks} tasks")
    with bench_lab() as lab:
        _fill(lab, tasks)
        _refreshes(output, lab, 50 if small else _REFRESHES)
        began_s = time.monotonic()
        page = PageProcess(lab.root).wait_ready()
        try:
            output.add_row("labd page → it answers", f"{time.monotonic() - began_s:.1f} s")
            if CHROMIUM:
                _in_browsers(output, lab, page, 3 if small else _PAGES, 10 if small else 60)
        finally:
            page.kill()
    with bench_lab() as lab:
        done = _dispatching(output, lab, 3 if small else _PAGES, 20 if small else 200)
    Console().print(output)
    return done


def _fill(lab: BenchLab, tasks: int) -> None:
    archive = Archive(lab.root / "results")
    for number in range(tasks):
        state = (State.DONE, State.FAILED, State.CANCELLED)[number % 3]
        name = f"task-{number}"
        text = task_text(title=f"Task {number}", labels=[f"l{number % 7}"])
        (lab.spool.directory(state) / f"{name}.yaml").write_text(text)
        archive.record(name, "claimed", durable=False, attempt=1)
        archive.record(name, state.value, durable=False, attempt=1, duration_s=number % 4000)


def _refreshes(output: Table, lab: BenchLab, times: int) -> None:
    """Look and make the panels that every page has, with a task that ends before each look."""
    snapshots, words = Snapshots(Lab(load_home(lab.root))), Words("en")
    me = psutil.Process()
    began_s = time.monotonic()
    while (seen := snapshots.look()).unread or len(seen.views) < 1:
        pass
    output.add_row("all tasks read for the first time", f"{time.monotonic() - began_s:.1f} s")
    used_s, sizes = [], []
    for number in range(times):
        done = lab.spool.directory(State.DONE)
        (done / f"new-{number % 50}.yaml").write_text(NO_OP)
        (done / f"new-{number % 50}.yaml").rename(done / f"newer-{number % 50}.yaml")
        before_s = time.process_time()
        seen = snapshots.look()
        choice = Choice(find="task 99")
        made = (pulse(seen, words), strip(seen, words, read_only=False), running(seen, words))
        assert all(made)
        assert table(seen, choice, words)
        used_s.append(time.process_time() - before_s)
        if number >= times // 10:
            sizes.append(me.memory_info().rss)
    output.add_row("a refresh, CPU, median", ms(statistics.median(used_s)))
    output.add_row("a refresh, CPU, 95 %", ms(rank(used_s, 0.95)))
    grown = (sizes[-1] - sizes[0]) / 2**20
    output.add_row(f"memory after {times} refreshes, against the first tenth", f"{grown:+.1f} MiB")


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - absent where there is no browser

    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"]
        )
        yield started
        started.close()


def _in_browsers(
    output: Table, lab: BenchLab, page: PageProcess, pages: int, seconds: int
) -> None:
    process = psutil.Process(page.process.pid)
    with _browser() as browser:
        paints_s = []
        for _ in range(5):
            window = browser.new_context().new_page()
            window.goto(page.url + "/en/")
            window.wait_for_selector("#table table", timeout=60_000)
            paints_s.append(
                window.evaluate(
                    "performance.getEntriesByName('first-contentful-paint')[0].startTime"
                )
                / 1000
            )
            window.context.close()
        output.add_row("first paint, median of 5", f"{statistics.median(paints_s):.1f} s")
        for _ in range(pages):
            browser.new_context().new_page().goto(page.url + "/en/", timeout=120_000)
        before_s, resident = sum(process.cpu_times()[:2]), process.memory_info().rss
        time.sleep(seconds)
        share = (sum(process.cpu_times()[:2]) - before_s) / seconds
        output.add_row(f"{pages} open pages, CPU of the page's process", f"{share:.0%} of a core")
        output.add_row("memory of the page's process then", f"{resident / 2**20:.0f} MiB")
        window = browser.contexts[0].pages[0]
        at = window.get_attribute("#pulse", "data-at")
        lab.cp("fresh", NO_OP)
        began_s = time.monotonic()
        window.wait_for_selector('#table [data-id="fresh"]', timeout=60_000)
        took_s = time.monotonic() - began_s
        assert at != window.get_attribute("#pulse", "data-at")
        output.add_row("a new file → on a page", f"{took_s:.1f} s")


def _dispatching(output: Table, lab: BenchLab, pages: int, count: int) -> bool:
    """Time no-op commands through the queue without and with open pages."""
    lab.start()
    _span_s(lab, "warm", 10)
    alone_s = [_span_s(lab, f"alone-{turn}-", count) for turn in range(3)]
    output.add_row(f"{count} no-op commands, no page", f"{min(alone_s):.1f} s")
    if CHROMIUM is None:
        return True
    page = PageProcess(lab.root).wait_ready()
    try:
        with _browser() as browser:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            for _ in range(pages):
                browser.new_context().new_page().goto(page.url + "/en/", timeout=120_000)
            with_s = [_span_s(lab, f"with-{turn}-", count) for turn in range(3)]
        label = f"{count} no-op commands, {pages} open pages and their browser"
        output.add_row(label, f"{min(with_s):.1f} s")
    finally:
        page.kill()
    return True


def _span_s(lab: BenchLab, prefix: str, count: int) -> float:
    tasks = {f"{prefix}{number}": NO_OP for number in range(count)}
    lab.mv_all(tasks)
    lab.wait_done(tasks, 600)
    return lab.span_s(tasks)
