"""What one no-op command costs: CPU by part, bytes left on the disk, and how often something waits for the disk.

CPU is counted over many commands, by a control group for all and by the kernel's own account of each
lasting process. Calls of fsync are counted with strace, in a second run: tracing takes time of its own.
"""

import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.cpu import PARTS, by_part, group, is_worker
from tests.bench.lab import NO_OP, SLOTS, BenchLab, bench_lab, settle
from tests.processes import DaemonProcess, wait_until

_CALLS = ("fsync", "fdatasync", "sync_file_range", "syncfs")


def main(*, small: bool) -> bool:
    """Measure and print; say whether all work is there."""
    count, traced = (60, 10) if small else (1000, 100)
    table = Table("what, per no-op command", "cost", title=f"{count} times true, {SLOTS} slots")
    with group("cost") as cgroup, bench_lab() as lab:
        daemon = lab.start(cgroup)
        _work(lab, "warm", 2 * SLOTS)
        settle(daemon)
        before, before_s = by_part(daemon), cgroup.cpu_s() if cgroup else 0.0
        _work(lab, "t", count)
        after, after_s = by_part(daemon), cgroup.cpu_s() if cgroup else 0.0
        used_s = {part: after[part] - before[part] for part in PARTS}
        for part, seconds in used_s.items():
            table.add_row(f"CPU, {part}", f"{1000 * seconds / count:.1f} ms")
        if cgroup:
            rest_s = after_s - before_s - sum(used_s.values())
            table.add_row("CPU, sandboxes and commands", f"{1000 * rest_s / count:.1f} ms")
            table.add_row("CPU, all", f"{1000 * (after_s - before_s) / count:.1f} ms")
        _add_bytes(table, lab, count)
        _add_syncs(table, lab, daemon, traced)
    Console().print(table)
    return True


def _work(lab: BenchLab, prefix: str, count: int) -> None:
    tasks = {f"{prefix}{number}": NO_OP for number in range(count)}
    lab.mv_all(tasks)
    lab.wait_done(tasks, 600)


def _add_bytes(table: Table, lab: BenchLab, count: int) -> None:
    """Add the size of what the first measured task left, and the blocks of all, by the number of tasks."""
    left = lab.archive.directory("t0")
    files = sorted(path for path in left.rglob("*") if path.is_file())
    sizes = ", ".join(f"{path.relative_to(left)} {path.stat().st_size}" for path in files)
    table.add_row("files left in results/<id>/, bytes", sizes)
    blocks = sum(
        path.lstat().st_blocks
        for number in range(count)
        for path in (lab.archive.directory(f"t{number}"), *_below(lab, number))
    )
    table.add_row("blocks held by results/<id>/", f"{512 * blocks / count / 1024:.1f} KiB")


def _below(lab: BenchLab, number: int) -> list[Path]:
    return list(lab.archive.directory(f"t{number}").rglob("*"))


def _add_syncs(table: Table, lab: BenchLab, daemon: DaemonProcess, count: int) -> None:
    if shutil.which("strace") is None:
        table.add_row("fsyncs", "not known: no strace here")
        return
    parts = {
        "daemon": [daemon.process.pid],
        "workers": [process.pid for process in daemon.family() if is_worker(process)],
    }
    logs = {part: lab.root / f"strace-{part}" for part in parts}
    tracers = [_trace(pids, logs[part]) for part, pids in parts.items()]
    try:
        _work(lab, "traced", count)
    finally:
        for tracer in tracers:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(30)
    for part, log in logs.items():
        calls = Counter(
            name
            for line in log.read_text().splitlines()
            for name in _CALLS
            if f" {name}(" in line and "resumed" not in line
        )
        each = ", ".join(f"{name} {number / count:.1f}" for name, number in calls.items())
        table.add_row(f"waits for the disk, {part}", each or "none")


def _trace(pids: list[int], log: Path) -> subprocess.Popen[bytes]:
    """Trace processes with all their threads; give the tracer when it has them all."""
    attach = [word for pid in pids for word in ("-p", str(pid))]
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-e", f"trace={','.join(_CALLS)}", "-o", os.fspath(log), *attach],
        stdin=subprocess.DEVNULL,
    )
    wait_until(lambda: all(_traced(pid) for pid in pids), 30, "strace")
    return tracer


def _traced(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return all("TracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads)
