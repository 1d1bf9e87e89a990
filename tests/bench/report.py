"""How long a report takes over 10,000 tasks, and how much memory: commands alone, and a tenth of them studies."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from labd.task import State
from tests.reportlab import ReportLab, claimed, ended, failed
from tests.studies import studies


def main(*, small: bool = False) -> bool:
    """Print the table; give whether each report was written."""
    count = 500 if small else 10_000
    written = True
    print(
        "| tasks | of them studies | form | seconds | of a CPU | MiB at most |\n|---|---|---|---|---|---|"
    )
    for each in (0, 10):
        with tempfile.TemporaryDirectory() as made:
            lab = ReportLab(Path(made))
            _fill(lab, count, each)
            for form in ("html", "md", "json"):
                written &= _measured(lab, form, count, count // each if each else 0)
    return written


def _fill(lab: ReportLab, count: int, each: int) -> None:
    study = json.dumps({"research": studies()["improved"].context()}).encode()
    for number in range(count):
        if each and number % each == 0:
            lab.put(f"s{number}", result=study, papers=("paper.pdf",), researcher="llm", model="m")
        elif number % 20 == 1:
            events = failed(f"exit code 1 after {number} s")
            lab.put(
                f"c{number}", State.FAILED, events=events, kind="command", run="x", template=None
            )
        else:
            events = [claimed(number % 160 + 2, num_gpus=1), ended("done", number % 160 + 1)]
            lab.put(f"c{number}", events=events, kind="command", run="x", template=None)


def _measured(lab: ReportLab, form: str, count: int, studied: int) -> bool:
    output = lab.home.root / f"report.{form}"
    command = [
        sys.executable,
        "-m",
        "labd.cli",
        "--home",
        str(lab.home.root),
        "report",
        "--output",
    ]
    began_s, cpu_s = time.perf_counter(), _cpu_s()
    subprocess.run([*command, str(output)], check=True, stderr=subprocess.DEVNULL)
    took_s, cpu_s = time.perf_counter() - began_s, _cpu_s() - cpu_s
    # Of all children so far the largest; the forms go from the largest to the smallest, so it is the first one's.
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"| {count:,} | {studied:,} | {form} | {took_s:.1f} | {cpu_s:.1f} | {most:.0f} |")
    return output.stat().st_size > 1000


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
