"""Part of `make bench`: what a sandbox adds to the start of a command, as the user who runs this."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from labd.sandbox import Sandbox

RUNS = 25


def main() -> None:
    """Measure each command bare and sandboxed, in turns, and print medians and their difference."""
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    table = Table(
        "command", "bare", "sandboxed", "added", title=f"median (least) of {RUNS}, as {user}"
    )
    box = Sandbox()
    with tempfile.TemporaryDirectory(prefix="labd-bench-") as name:
        for command in (["true"], ["python", "-c", "pass"]):
            bare = [sys.executable if word == "python" else word for word in command]
            pairs = [(_bare_ms(bare), _boxed_ms(box, command, Path(name))) for _ in range(RUNS)]
            bare_ms, boxed_ms = ([pair[i] for pair in pairs] for i in (0, 1))
            added = statistics.median(boxed_ms) - statistics.median(bare_ms)
            table.add_row(" ".join(command), _shown(bare_ms), _shown(boxed_ms), f"{added:.1f} ms")
    Console().print(table)


def _bare_ms(argv: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(argv, check=True, timeout=60)
    return 1000 * (time.perf_counter() - begun)


def _boxed_ms(box: Sandbox, argv: list[str], workdir: Path) -> float:
    begun = time.perf_counter()
    box.run(argv, workdir=workdir)
    return 1000 * (time.perf_counter() - begun)


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}) ms"


if __name__ == "__main__":
    main()
