"""Long jobs of the daemon, as real processes: each ends, once at a time, and nothing waits for it."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import structlog

from labd.daemon.chores import Chores, Done
from tests.processes import wait_until

SLEEPS = "import time; print('began', flush=True); time.sleep(600)"
DEADLINE_S = 20.0


def chores(tmp_path: Path, script: str, **more: float) -> Chores:
    program = (sys.executable, "-c", script)
    log_path = tmp_path / "chores.log"
    return Chores(tmp_path, structlog.get_logger(), log_path=log_path, program=program, **more)


def turned(mine: Chores) -> list[Done]:
    return wait_until(mine.turn, what="the end of a chore")


def test_a_chore_is_labd_with_its_home_and_arguments_and_says_how_it_ended(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as log:
        mine = Chores(tmp_path, structlog.get_logger(), log_path=tmp_path / "chores.log")
        assert mine.start("look", ["show", "nothing"], timeout_s=60)
        [done] = turned(mine)
    assert (done.name, done.code) == ("look", 3)
    assert "nothing" in (tmp_path / "chores-look.log").read_text()
    assert [one["event"] for one in log] == ["chore.started", "chore.failed"]
    assert log[-1]["reason"] == done.said != ""


def test_a_chore_is_told_its_home_first_and_is_nice(tmp_path: Path) -> None:
    mine = chores(
        tmp_path, "import os, sys; print(sys.argv[1:], os.nice(0), os.getsid(0) == os.getpid())"
    )
    assert mine.start("one", ["a", "b"], timeout_s=60)
    [done] = turned(mine)
    assert done == Done("one", 0, f"['--home', '{tmp_path}', 'a', 'b'] 10 True")
    assert mine.next_s == float("inf")


def test_one_of_a_name_is_under_way_at_a_time_also_where_a_killed_daemon_left_it(
    tmp_path: Path,
) -> None:
    first, second = chores(tmp_path, SLEEPS), chores(tmp_path, "print('hello')")
    assert first.start("one", [], timeout_s=600)
    assert not first.start("one", [], timeout_s=600)
    assert not second.start("one", [], timeout_s=600)
    assert second.start("other", [], timeout_s=600)
    assert turned(second) == [Done("other", 0, "hello")]
    first.close()
    assert second.start("one", [], timeout_s=600)
    assert turned(second) == [Done("one", 0, "hello")]


def test_the_lock_is_the_childs_own(tmp_path: Path) -> None:
    """A daemon that starts a chore and is killed: the next one does not start a second beside it."""
    starter = (
        "import sys, structlog; from pathlib import Path; from labd.daemon.chores import Chores\n"
        f"mine = Chores(Path({str(tmp_path)!r}), structlog.get_logger(), "
        f"log_path=Path({str(tmp_path)!r}) / 'chores.log', program=(sys.executable, '-c', {SLEEPS!r}))\n"
        "mine.start('one', [], timeout_s=600); print(mine._under_way['one'].process.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    told = subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE, check=False)
    left = psutil.Process(int(told.stdout.split()[-1]))
    after = chores(tmp_path, "print('hello')")
    try:
        assert left.is_running()
        assert not after.start("one", [], timeout_s=60)
    finally:
        left.kill()
    wait_until(lambda: after.start("one", [], timeout_s=60))
    assert turned(after) == [Done("one", 0, "hello")]


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); child.wait()"
    )
    mine = chores(tmp_path, script)
    assert mine.start("one", [], timeout_s=0.5)
    output = tmp_path / "chores-one.log"
    wait_until(lambda: output.read_text().strip() or not mine.next_s)
    child = int(output.read_text())
    [done] = turned(mine)
    assert done.code == -15
    assert done.said == f"took longer than 0.5 s; said last: {child}"
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")


def test_closing_ends_what_is_under_way_and_says_so(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as log:
        mine = chores(tmp_path, SLEEPS)
        assert mine.start("one", [], timeout_s=600)
        mine.close()
    assert [one["event"] for one in log] == ["chore.started", "chore.failed"]
    assert not psutil.pid_exists(log[0]["pid"])
    assert mine.turn() == []


def _says(path: Path) -> bool:
    return path.read_text().endswith("\n")


# A process that another one traces has not ended for its parent before the tracer has heard of it.
HELD = """
import ctypes, os, sys, time
libc, parent, (r, w) = ctypes.CDLL(None, use_errno=True), os.getpid(), os.pipe()
if not os.fork():
    os.setsid()
    os.read(r, 1)
    print("held" if libc.ptrace(0x4206, parent, 0, 0) == 0 else "refused", flush=True)
    deadline_s = time.monotonic() + 30
    while not os.path.exists(sys.argv[-1]) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    os._exit(0)
libc.prctl(0x59616D61, ctypes.c_ulong(2**64 - 1), 0, 0, 0)
os.write(w, b"1")
time.sleep(600)
"""


def test_closing_does_not_hang_on_what_cannot_be_killed_and_does_not_raise(tmp_path: Path) -> None:
    let_go = tmp_path / "let go"
    with structlog.testing.capture_logs() as log:
        mine = chores(tmp_path, HELD, grace_s=0.1)
        assert mine.start("one", [str(let_go)], timeout_s=600)
        assert mine.start("other", [str(let_go)], timeout_s=600)
        for name in ("one", "other"):
            said = tmp_path / f"chores-{name}.log"
            wait_until(partial(_says, said))
            if said.read_text().strip() != "held":
                pytest.skip("processes may not trace each other here")
        mine.close()
    let_go.touch()
    assert [one["event"] for one in log][2:] == ["chore.unkillable"] * 2
    done = turned(mine)
    while len(done) < 2:
        done += turned(mine)
    assert {one.code for one in done} == {-9}


def test_what_a_chore_prints_is_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    script = "import time\nfor _ in range(300): print('x' * 20_000, flush=True); time.sleep(0.002)\nprint('the end')"
    mine = chores(tmp_path, script)
    assert mine.start("one", [], timeout_s=60)
    largest, output = 0, tmp_path / "chores-one.log"
    done: list[Done] = []
    deadline_s = time.monotonic() + DEADLINE_S
    while not done and time.monotonic() < deadline_s:
        done = mine.turn()
        largest = max(largest, output.stat().st_size)
    assert done == [Done("one", 0, "the end")]
    assert largest < 4 * 2**20
    assert output.read_bytes().endswith(b"x\nthe end\n")


def test_what_cannot_be_started_is_told_once(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as log:
        mine = Chores(
            tmp_path,
            structlog.get_logger(),
            log_path=tmp_path / "chores.log",
            program=("/nothing/here",),
        )
        assert [mine.start("one", [], timeout_s=1) for _ in range(3)] == [False] * 3
    assert [one["event"] for one in log] == ["chore.failed"]
    assert "/nothing/here" in log[0]["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["chores-one.log"]
