"""`make bench`: how long a dropped file waits on an idle daemon, and how long the demo takes.

Prints a table; asserts nothing. Needs two cores that are otherwise idle.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from labd.archive import Archive
from labd.spool import Spool
from labd.task import State
from tests.conftest import REPO
from tests.factories import PARABOLA, make_template, task_text
from tests.processes import DaemonProcess, wait_until

DROPS = 20


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="labd-bench-") as name:
        home = Path(name)
        spool, archive = Spool(home / "spool"), Archive(home / "results")
        spool.prepare()
        make_template(home / "config" / "templates", experiment=PARABOLA % 0)
        (home / "config" / "labd.yaml").write_text("ray: {dashboard: false}\n")
        started = time.monotonic()
        daemon = DaemonProcess(home)
        try:
            daemon.wait_ready()
            ready_s = time.monotonic() - started
            waits_s = [_drop(home, spool, archive, f"t{number}") for number in range(DROPS)]
            demo_s = _demo(home, spool)
        finally:
            daemon.stop()
            daemon.kill_everything()
    table = Table(
        "what", "median", "worst", title=f"two cores or more, {DROPS} drops, one at a time"
    )
    table.add_row("labd up → Ray ready", f"{ready_s:.1f} s", "")
    table.add_row(
        "cp → the worker has the task",
        *(f"{1000 * v:.0f} ms" for v in (statistics.median(waits_s[1:]), max(waits_s[1:]))),
    )
    table.add_row("the same, first task after the start", f"{1000 * waits_s[0]:.0f} ms", "")
    table.add_row("cp of the demo's task → paper.pdf, in done/", f"{demo_s:.1f} s", "")
    Console().print(table)


def _drop(home: Path, spool: Spool, archive: Archive, task: str) -> float:
    (home / f"{task}.src").write_text(task_text(template="tiny", max_runs=1))
    dropped = time.time()
    shutil.copyfile(home / f"{task}.src", home / "spool" / "pending" / f"{task}.yaml")
    wait_until(lambda: spool.holds(State.DONE, f"{task}.yaml"), 120, task)
    for line in (archive.directory(task) / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "attempt.started":
            return datetime.fromisoformat(record["timestamp"]).timestamp() - dropped
    sys.exit(f"{task} never started")


def _demo(home: Path, spool: Spool) -> float:
    began = time.monotonic()
    shutil.copyfile(
        REPO / "config" / "examples" / "first-paper.yaml", home / "spool" / "pending" / "demo.yaml"
    )
    wait_until(lambda: spool.holds(State.DONE, "demo.yaml"), 300, "the demo")
    return time.monotonic() - began


if __name__ == "__main__":
    main()
