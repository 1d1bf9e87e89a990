"""What bubblewrap leaves behind where it is killed at its start, and that it is ended."""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from labd.sandbox import Sandbox
from tests.boxes import make_sandbox
from tests.processes import wait_until

pytestmark = pytest.mark.sandbox

KILLS = 400


def stuck() -> set[int]:
    """Give the processes called bwrap whose parent is not."""
    found = set()
    for process in psutil.process_iter(["name", "ppid", "cmdline"]):
        words = process.info["cmdline"] or ()
        if process.info["name"] == "bwrap" and "--json-status-fd" in words:
            try:
                parent = psutil.Process(process.info["ppid"]).name()
            except psutil.NoSuchProcess:
                parent = ""
            if parent not in {"bwrap", psutil.Process().name()} and "python" not in parent:
                found.add(process.pid)
    return found


def killed_at_its_start(box: Sandbox, workdir: Path, delay_s: float) -> None:
    """SIGKILL a process that starts a sandbox, after a delay."""
    pid = os.fork()
    if pid == 0:
        box.run(["sleep", "0.2"], workdir=workdir)
        os._exit(0)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_bubblewrap_leaves_behind_is_ended(tmp_path: Path) -> None:
    box, chance = make_sandbox(), random.Random(0)
    box.run(["true"], workdir=tmp_path)
    box.end_stuck()
    before = stuck()
    for _ in range(KILLS):
        killed_at_its_start(box, tmp_path, chance.uniform(0, 0.02))
        if left := stuck() - before:
            break
    else:
        pytest.skip(f"bubblewrap left nothing behind in {KILLS} kills")
    time.sleep(0.2)
    left = stuck() - before
    # Whoever starts a sandbox of this user somewhere else ends them too, so that the number says nothing.
    box.end_stuck()
    wait_until(lambda: not stuck() & left, 10, "the end of what was killed")
