"""How long `labd up` takes until Ray is ready, and the demo's task from `cp` to the paper."""

import time

from rich.console import Console
from rich.table import Table

from tests.bench.lab import bench_lab
from tests.conftest import REPO


def main(*, small: bool) -> bool:
    """Measure and print; say whether all work is there."""
    text = (REPO / "config" / "examples" / "first-paper.yaml").read_text()
    with bench_lab() as lab:
        begun_s = time.monotonic()
        lab.start()
        ready_s = time.monotonic() - begun_s
        begun_s = time.monotonic()
        lab.cp("demo", text + ("max_runs: 4\n" if small else ""))
        lab.wait_done(["demo"], 300)
        paper_s = time.monotonic() - begun_s
        there = (lab.archive.directory("demo") / "paper.pdf").exists()
    table = Table("what", "time", title="the demo")
    table.add_row("labd up → Ray ready", f"{ready_s:.1f} s")
    table.add_row("cp of the demo's task → paper.pdf, file in done/", f"{paper_s:.1f} s")
    Console().print(table)
    return there
