"""Part of `make bench`: how far a run gets beyond each limit before it is held or ended, as the user who runs this."""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from labd.errors import SandboxError
from labd.sandbox import Limits, SandboxResult
from tests.boxes import make_sandbox

MIB = 2**20
SMALL = Limits(
    wall_s=20,
    memory_bytes=128 * MIB,
    processes=32,
    disk_bytes=16 * MIB,
    file_bytes=8 * MIB,
    files=1000,
    output_bytes=MIB,
    shm_bytes=16 * MIB,
    tmp_bytes=16 * MIB,
)

# Each says how far it has come, as fast as it can, and would go on.
_MEMORY = """
import os, time
made, taken = os.pipe(), 0
for _ in range(4):
    if os.fork() == 0:
        kept = []
        while True:
            kept.append(bytearray(b"x") * (1 << 20))
            os.write(made[1], b"x")
while taken < 4000:
    taken += len(os.read(made[0], 1))
    print(taken, flush=True)
"""
_WRITE = """
import sys
for number in range(4000):
    with open(f"{sys.argv[1]}/{number}", "wb", buffering=0) as file:
        file.write(b"x" * (1 << 20))
    print(number + 1, flush=True)
"""
_APPEND = """
import os
fd = os.open("one", os.O_CREAT | os.O_WRONLY)
for number in range(4000):
    if os.write(fd, b"x" * (1 << 20)) < 1 << 20: break
    print(number + 1, flush=True)
"""
_FILES = """
for number in range(1000000):
    open(str(number), "w").close()
    if number % 100 == 99: print(number + 1, flush=True)
"""
_FORK = """
import os, time
for number in range(500):
    if os.fork() == 0: time.sleep(60)
    print(number + 1, flush=True)
"""
_SPIN = """
import os
for _ in range(3): os.fork()
while True: pass
"""
_SHARE = """
import os, time
end = time.monotonic() + 3
for _ in range(1): os.fork()
while time.monotonic() < end: pass
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One limit, and what goes beyond it."""

    title: str
    limit: str
    code: str
    limits: Limits
    said: Callable[[SandboxResult], str]
    place: str = "."


def _last(unit: str) -> Callable[[SandboxResult], str]:
    def said(result: SandboxResult) -> str:
        numbers = re.findall(r"^(\d+)$", result.output, re.MULTILINE)
        return f"{numbers[-1] if numbers else 0} {unit}"

    return said


def _cpu(result: SandboxResult) -> str:
    return f"{result.cpu_s:.2f} s"


ROWS = (
    Row("time", "1 s", "import time; time.sleep(60)", replace(SMALL, wall_s=1.0), lambda result: f"{result.wall_s:.3f} s"),
    Row("memory of five processes", "128 MiB", _MEMORY, SMALL, _last("MiB of data")),
    Row("memory of one process", "128 MiB", "x = bytearray(b'x') * (400 << 20); print(400)", SMALL, _last("MiB of data")),
    Row("processes", "32", _FORK, SMALL, _last("and itself")),
    Row("disk", "16 MiB", _WRITE, SMALL, _last("MiB")),
    Row("number of files", "1000", _FILES, SMALL, _last("files")),
    Row("size of a file", "8 MiB", _APPEND, SMALL, _last("MiB")),
    Row("/tmp", "16 MiB", _WRITE, SMALL, _last("MiB"), "/tmp"),
    Row("/dev/shm", "16 MiB", _WRITE, SMALL, _last("MiB"), "/dev/shm"),
    Row("output", "1 MiB, ended at 4", "while True: print('x' * 999)", SMALL, lambda result: f"{len(result.output) / MIB:.2f} MiB kept"),
    Row("CPU time", "1 s", _SPIN, replace(SMALL, cpu_s=1.0), _cpu),
    Row("CPUs at once, two spinning for 3 s", "0.5", _SHARE, replace(SMALL, cpus=0.5), _cpu),
)  # fmt: skip


def main() -> None:
    """Go beyond each limit once, and print how far that went."""
    box = make_sandbox()
    gaps = ", ".join(gap.name for gap in box.gaps()) or "none"
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    table = Table(
        "limit", "is", "how far a run got", "how it ended", title=f"as {user}; gaps: {gaps}"
    )
    for row in ROWS:
        with tempfile.TemporaryDirectory(prefix="labd-bench-") as name:
            argv = ["python", "-c", row.code, row.place]
            try:
                result = box.run(argv, workdir=Path(name), limits=row.limits)
            except SandboxError as error:
                table.add_row(row.title, row.limit, "nothing was run", f"refused: {error.where}")
                continue
        code = "" if result.exit_code is None else f" {result.exit_code}"
        table.add_row(row.title, row.limit, row.said(result), f"{result.ending.value}{code}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
