"""A sandbox started ahead serves a run exactly as one started for it, or not at all."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from labd.errors import SandboxError, StorageError
from labd.sandbox import Ahead, Ending, Sandbox, SandboxResult, sweep
from labd.sandbox.model import Request
from labd.sandbox.output import Output
from labd.sandbox.script import script
from labd.sandbox.supervise import Order
from tests.boxes import make_sandbox
from tests.processes import wait_until
from tests.test_sandbox import (
    MIB,
    QUICK,
    REPOSITORY,
    is_dead,
    sandboxes_of,
)

pytestmark = pytest.mark.sandbox


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "base"


@pytest.fixture
def ahead(sandbox: Sandbox, base: Path) -> Iterator[Ahead]:
    one = Ahead(sandbox, base, limits=QUICK)
    primed(one)
    yield one
    one.close()
    assert list(base.iterdir()) == []


def primed(ahead: Ahead) -> None:
    """Prime, and wait until a sandbox waits."""
    ahead.prime()
    spare = ahead._spare
    assert spare is not None
    assert spare._settled.wait(20)
    assert ahead.trouble() == ""


def waiting(base: Path) -> list[Path]:
    return [path for path in base.iterdir() if path.is_dir()]


def shells() -> set[int]:
    return {each.pid for each in sandboxes_of(os.getpid()) if each.name() != "bwrap"}


def served(ahead: Ahead, base: Path, sandbox: Sandbox, work: Path, script: str) -> SandboxResult:
    """Run from the waiting sandbox, and prove by the directory's inode that it was that one."""
    (prepared,) = waiting(base)
    inode = prepared.stat().st_ino
    result = sandbox.run(["sh", "-c", script], workdir=work, limits=QUICK, ahead=ahead)
    assert work.stat().st_ino == inode
    assert not prepared.exists()
    return result


def test_a_waiting_sandbox_runs_the_command_in_the_directory_that_was_asked_for(
    sandbox: Sandbox, ahead: Ahead, base: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    (prepared,) = waiting(base)
    inode = prepared.stat().st_ino
    result = sandbox.run(
        ["sh", "-c", 'pwd; id -u; echo "$A"; echo here >out; mkfifo pipe; exit 3'],
        workdir=tmp_path / "new",
        env={"A": "it's\n$HOME"},
        limits=replace(QUICK, wall_s=9, disk_bytes=MIB, output_bytes=1000, files=7),
        log=log,
        ahead=ahead,
    )
    assert (tmp_path / "new").stat().st_ino == inode
    assert (result.ending, result.exit_code, result.removed) == (Ending.EXITED, 3, 1)
    assert result.output == log.read_text() == "/work\n1000\nit's\n$HOME\n"
    assert (tmp_path / "new" / "out").read_text() == "here\n"
    for path in (tmp_path / "new", tmp_path / "new" / "out"):
        assert path.stat().st_uid == os.geteuid()


def test_an_empty_directory_is_replaced_and_its_mode_and_owner_stay(
    sandbox: Sandbox, ahead: Ahead, base: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o751)
    if os.geteuid() == 0:
        os.chown(work, 1234, 4321)
    before = work.stat()
    served(ahead, base, sandbox, work, "touch made")
    after = work.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def test_it_is_as_closed_and_as_limited_as_one_started_for_the_run(
    sandbox: Sandbox, ahead: Ahead, base: Path, tmp_path: Path
) -> None:
    script = (
        "grep -E 'Cap|NoNew|Seccomp|Uid|Groups' /proc/self/status; cat /proc/self/limits; env | sort;"
        " grep -v ' /work ' /proc/self/mountinfo | cut -d' ' -f4-; stat -c '%A %u %g %N' /* /etc/* /dev/*; ls /proc/self/fd"
    )
    plain = tmp_path / "plain"
    plain.mkdir()
    usual = sandbox.run(["sh", "-c", script], workdir=plain, limits=QUICK).output
    early = served(ahead, base, sandbox, tmp_path / "early", script).output

    def comparable(text: str) -> str:
        # Each sandbox has devices of its own.
        return re.sub(r"/newroot\S*|inode\S*|\bdev/pts/\d+", "#", text)

    assert "CapEff:\t0000000000000000" in early
    assert comparable(early) == comparable(usual)


def test_limits_outside_its_shape_hold_in_it(sandbox: Sandbox, base: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], Ending]] = [
        ("sleep 60", {"wall_s": 0.3}, Ending.TIMED_OUT),
        ("exec yes", {"output_bytes": 1000}, Ending.OUTPUT_LIMIT),
        ("head -c 9000000 /dev/zero >a; sleep 60", {"disk_bytes": MIB}, Ending.DISK_LIMIT),
        ("for i in 1 2 3 4 5 6; do : >$i; done; sleep 60", {"files": 4}, Ending.DISK_LIMIT),
    ]
    ahead = Ahead(sandbox, base, limits=QUICK)
    for number, (command, over, ending) in enumerate(cases):
        primed(ahead)
        (prepared,) = waiting(base)
        inode, work = prepared.stat().st_ino, tmp_path / str(number)
        limits = replace(QUICK, **over)
        result = sandbox.run(["sh", "-c", command], workdir=work, limits=limits, ahead=ahead)
        assert (result.ending, result.exit_code) == (ending, None)
        assert work.stat().st_ino == inode
        assert shells() == set()
    ahead.close()


@pytest.mark.parametrize(
    "other",
    ["memory", "processes", "tmp", "input", "network", "sandbox", "full", "missing parent"],
)
def test_what_does_not_fit_starts_its_own_and_leaves_the_waiting_one(
    sandbox: Sandbox, ahead: Ahead, base: Path, tmp_path: Path, other: str
) -> None:
    work = tmp_path / "work"
    limits = {
        "memory": replace(QUICK, memory_bytes=300 * MIB),
        "processes": replace(QUICK, processes=9),
        "tmp": replace(QUICK, tmp_bytes=MIB),
    }
    if other == "full":
        work.mkdir()
        (work / "params.json").write_text("{}")
    if other == "missing parent":
        with pytest.raises(SandboxError, match="not a directory"):
            sandbox.run(["true"], workdir=work / "deeper", limits=QUICK, ahead=ahead)
    else:
        box = make_sandbox(uid=64124) if other == "sandbox" else sandbox
        inputs = {"/inputs/x": Path("/usr/share")} if other == "input" else {}
        result = box.run(
            ["sh", "-c", "ls; ulimit -p"],
            workdir=work,
            limits=limits.get(other, QUICK),
            read_only=inputs,
            network=other == "network",
            ahead=ahead,
        )
        assert result.exit_code == 0, result.output
        assert ("params.json" in result.output) == (other == "full")
        assert result.output.split()[-1] == ("10" if other == "processes" else "65")
    (still,) = waiting(base)
    served(ahead, base, sandbox, tmp_path / "second", "true")
    assert not still.exists()


def test_inputs_are_those_it_was_made_with_and_no_older_ones(
    sandbox: Sandbox, base: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir(mode=0o755)
    (given / "a").write_text("first")
    inputs = {"/inputs/given": given}
    ahead = Ahead(sandbox, base, limits=QUICK, read_only=inputs)

    def output(name: str) -> str:
        primed(ahead)
        if name == "replaced":
            given.rename(tmp_path / "old")
            given.mkdir(mode=0o755)
            (given / "a").write_text("second")
        command = ["cat", "/inputs/given/a"]
        result = sandbox.run(
            command, workdir=tmp_path / name, limits=QUICK, read_only=inputs, ahead=ahead
        )
        return result.output

    assert output("as made") == "first"
    assert output("replaced") == "second"
    ahead.close()


def test_two_runs_at_once_get_one_between_them(
    sandbox: Sandbox, ahead: Ahead, base: Path, tmp_path: Path
) -> None:
    (prepared,) = waiting(base)
    inode = prepared.stat().st_ino
    together = threading.Barrier(2)

    def one(name: str) -> SandboxResult:
        together.wait(20)
        return sandbox.run(
            ["sh", "-c", "echo $0 >mine; cat mine", name],
            workdir=tmp_path / name,
            limits=QUICK,
            ahead=ahead,
        )

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, "ab"))
    assert [result.output for result in results] == ["a\n", "b\n"]
    assert [(tmp_path / name).stat().st_ino for name in "ab"].count(inode) == 1


@pytest.mark.parametrize("whom", ["bwrap", "shell"])
def test_one_that_somebody_killed_is_noticed_and_not_used(
    sandbox: Sandbox, ahead: Ahead, base: Path, tmp_path: Path, whom: str
) -> None:
    victims = [p for p in sandboxes_of(os.getpid()) if (p.name() == "bwrap") == (whom == "bwrap")]
    victims[0].kill()
    wait_until(lambda: is_dead(victims[0]), what="its death")
    result = sandbox.run(["echo", "alive"], workdir=tmp_path / "w", limits=QUICK, ahead=ahead)
    assert (result.ending, result.exit_code, result.output) == (Ending.EXITED, 0, "alive\n")
    assert (tmp_path / "w").stat().st_uid == os.geteuid()
    wait_until(lambda: not waiting(base), what="the end of the first")
    primed(ahead)
    served(ahead, base, sandbox, tmp_path / "again", "true")


def test_one_killed_after_its_directory_was_handed_out_is_not_used_either(
    sandbox: Sandbox, ahead: Ahead, tmp_path: Path
) -> None:
    command = ["sh", "-c", "echo alive; id -u >id"]
    work = tmp_path / "w"
    work.mkdir()
    stale = [each for each in sandboxes_of(os.getpid()) if each.name() != "bwrap"]
    spare = ahead.take(sandbox, Request((), work, {}, {}, QUICK))
    assert spare is not None
    for each in stale:
        each.suspend()  # it hears its order, and can't answer any more
    with ThreadPoolExecutor(1) as pool, Output(1000, None) as output:
        fd = os.open(work, os.O_RDONLY)
        order = Order(script(command, {}, "/work"), QUICK, fd, output, threading.Event())
        future = pool.submit(spare.run, order)
        wait_until(lambda: spare._went, what="the order")
        for each in stale:
            each.kill()
        assert future.result(20) is None
        os.close(fd)
    assert list(work.iterdir()) == []


def test_a_run_takes_one_that_is_still_starting(
    sandbox: Sandbox, base: Path, tmp_path: Path
) -> None:
    ahead = Ahead(sandbox, base, limits=QUICK)
    base.mkdir()
    ahead.prime()
    ahead.prime()
    spare = ahead._spare
    result = sandbox.run(["echo", "x"], workdir=tmp_path / "w", limits=QUICK, ahead=ahead)
    assert result.output == "x\n"
    assert spare is not None
    assert spare.over()
    assert spare.owner() == (os.geteuid(), os.getegid())
    ahead.close()
    assert list(base.iterdir()) == []


def test_a_start_that_fails_is_no_sandbox_ahead_and_can_be_asked_about(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    ahead = Ahead(sandbox, tmp_path / "file" / "base", limits=QUICK)
    ahead.prime()
    wait_until(ahead.trouble, what="the trouble")
    assert "Not a directory" in ahead.trouble()
    result = sandbox.run(["echo", "x"], workdir=tmp_path / "w", limits=QUICK, ahead=ahead)
    assert result.output == "x\n"
    ahead.close()


def test_an_error_of_a_served_run_is_raised_and_its_directory_given_back(
    sandbox: Sandbox, ahead: Ahead, base: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    (prepared,) = waiting(base)
    inode = prepared.stat().st_ino
    with pytest.raises(StorageError, match="No space left"):
        sandbox.run(
            ["sh", "-c", "echo x; touch ran; sleep 60"],
            workdir=work,
            limits=QUICK,
            log=Path("/dev/full"),
            ahead=ahead,
        )
    assert (work.stat().st_ino, work.stat().st_uid) == (inode, os.geteuid())
    assert shells() == set()


def test_a_served_run_can_be_cancelled(
    sandbox: Sandbox, ahead: Ahead, base: Path, tmp_path: Path
) -> None:
    cancelled = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            sandbox.run,
            ["sh", "-c", "touch up; sleep 60"],
            workdir=tmp_path / "w",
            limits=QUICK,
            cancelled=cancelled,
            ahead=ahead,
        )
        wait_until((tmp_path / "w" / "up").exists, what="the run")
        cancelled.set()
        assert future.result(20).ending is Ending.CANCELLED
    assert shells() == set()
    assert list(base.iterdir()) == []


def test_one_that_waited_too_long_is_replaced_by_another(sandbox: Sandbox, base: Path) -> None:
    ahead = Ahead(sandbox, base, limits=QUICK, max_age_s=1.0)
    primed(ahead)
    (first,) = waiting(base)
    wait_until(
        lambda: waiting(base) not in ([], [first]) and not first.exists(), what="its successor"
    )
    wait_until(lambda: len(shells()) == 1, what="the end of the first")
    assert ahead.trouble() == ""
    ahead.close()
    ahead.prime()
    assert list(base.iterdir()) == []


KEEPER = """
import sys, time
from pathlib import Path
from labd.sandbox import Ahead, Limits
from tests.boxes import make_sandbox
ahead = Ahead(make_sandbox(), Path(sys.argv[1]), limits=Limits())
ahead.prime()
if sys.argv[2] == "leave":
    while not ahead._spare._settled.is_set():
        time.sleep(0.01)
    sys.exit(0)
time.sleep(60)
"""


def keeper(base: Path, what: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(base), what],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        cwd="/",
    )


@pytest.mark.usefixtures("ahead")
def test_a_sweep_removes_what_the_dead_left_and_nothing_that_is_held(base: Path) -> None:
    (mine,) = waiting(base)
    (base / "ahead-of-time").mkdir()
    with keeper(base, "stay") as other:
        wait_until(
            lambda: any(each.name() in {"sh", "dash"} for each in sandboxes_of(other.pid)),
            what="the other's sandbox",
        )
        tree: list[psutil.Process] = sandboxes_of(other.pid)
        assert sweep(base) == 0
        other.kill()
    wait_until(lambda: all(is_dead(each) for each in tree), what="the end of the other's sandbox")
    assert len([path for path in base.iterdir() if path.is_dir()]) == 3
    assert sweep(base) == 1
    assert sweep(base) == 0
    assert {path for path in base.iterdir() if path.is_dir()} == {mine, base / "ahead-of-time"}
    (base / "ahead-of-time").rmdir()
    assert sweep(base / "nowhere") == 0


def test_a_program_that_ends_does_not_wait_for_its_sandbox(tmp_path: Path) -> None:
    with keeper(tmp_path / "base", "leave") as program:
        assert program.wait(30) == 0
    assert sweep(tmp_path / "base") == 1


def test_a_directory_on_another_file_system_gets_a_sandbox_of_its_own(
    sandbox: Sandbox, ahead: Ahead, base: Path
) -> None:
    other = Path(subprocess.check_output(["mktemp", "-d", "-p", "/dev/shm"], text=True).strip())
    try:
        if other.stat().st_dev == base.stat().st_dev:
            pytest.skip("there is one file system only")
        result = sandbox.run(["echo", "x"], workdir=other / "w", limits=QUICK, ahead=ahead)
        assert result.output == "x\n"
    finally:
        shutil.rmtree(other)
    assert len(waiting(base)) == 1
