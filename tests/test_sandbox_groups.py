"""Control groups, the limits that they hold, and what becomes of a host that has none."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from labd.errors import SandboxError
from labd.sandbox import Ending, Limits, Sandbox
from labd.sandbox import gaps as find
from labd.sandbox.cgroup import Base, Group, Plan, find_base, made, sweep
from labd.sandbox.held import held
from labd.sandbox.interpreter import interpreter
from labd.sandbox.meter import Meter
from labd.sandbox.model import Request, SandboxResult
from labd.sandbox.script import script
from labd.sandbox.thread import OwnThread
from labd.sandbox.workdir import hand_over
from tests.processes import wait_until

MIB = 2**20
QUICK = Limits(wall_s=20, memory_bytes=256 * MIB, processes=32, disk_bytes=64 * MIB)
BASE = find_base()
needs_groups = pytest.mark.skipif(
    "memory" not in BASE.controllers, reason="no control group may be made here"
)


def groups() -> set[Path]:
    parents = {path for path in (BASE.unified, *BASE.controllers.values()) if path is not None}
    return {entry for parent in parents for entry in parent.glob(f"labd-run-{os.getpid()}-*")}


@pytest.fixture
def group() -> Iterator[Group]:
    with made(Plan(BASE, 64 * MIB, 16, None)) as group:
        yield group


@needs_groups
@pytest.mark.sandbox
def test_a_run_is_in_a_group_of_its_own_which_is_gone_with_it(
    sandbox: Sandbox, work: Path
) -> None:
    before = groups()
    cancelled = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        argv = ["sh", "-c", "touch begun; sleep 60"]
        run = pool.submit(sandbox.run, argv, workdir=work, limits=QUICK, cancelled=cancelled)
        wait_until((work / "begun").exists, what="the run's beginning")
        mine = groups() - before
        # bubblewrap, its shell, the command's shell and its sleep.
        sizes = {len((path / "cgroup.procs").read_text().split()) for path in mine}
        cancelled.set()
        assert run.result().ending is Ending.CANCELLED
    assert mine
    assert min(sizes) >= 4
    assert groups() == before


@needs_groups
@pytest.mark.sandbox
def test_the_kernel_ends_a_run_whose_memory_is_nobodys_data(sandbox: Sandbox, work: Path) -> None:
    script = "head -c 400M /dev/zero >/dev/shm/a; echo went on"
    result = sandbox.run(
        ["sh", "-c", script], workdir=work, limits=replace(QUICK, shm_bytes=1024 * MIB)
    )
    assert (result.ending, result.exit_code) == (Ending.MEMORY_LIMIT, None)
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes >= QUICK.memory_bytes


@needs_groups
@pytest.mark.sandbox
def test_memory_is_counted_for_all_that_runs_in_a_group(group: Group) -> None:
    code = "import os; os.read(0, 1); kept = bytearray(b'x') * (20 << 20); print('held', flush=True); os.read(0, 1)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        group.add(process.pid)
        assert group.holds(process.pid)
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.readline() == b"held\n"
        assert (group.memory_bytes() or 0) > 15 * MIB
        assert not group.ran_out()
        assert not group.wait_empty(0.05)
        process.kill()
        process.wait(20)
        assert group.wait_empty(20)


@needs_groups
@pytest.mark.skipif(BASE.unified is None, reason="only version 2 can do that")
def test_a_group_is_stopped_let_go_and_killed_as_a_whole(group: Group) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        group.add(process.pid)
        assert group.freeze(frozen=True)
        assert group.freeze(frozen=False)
        group.kill()
        assert process.wait(20) == -9
        assert group.wait_empty(20)


@needs_groups
def test_what_a_dead_labd_left_is_swept_away_and_nothing_else(group: Group) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait(20)
    assert BASE.controllers
    left = BASE.controllers["memory"] / f"labd-run-{dead.pid}-12345-abcdef"
    left.mkdir()
    assert sweep(BASE) >= 1
    assert not left.exists()
    assert all(directory.exists() for directory in group.directories)


@pytest.mark.sandbox
def test_cpu_time_is_limited_for_all_processes_together(sandbox: Sandbox, work: Path) -> None:
    script = "(while :; do :; done) & (while :; do :; done) & wait"
    limits = replace(QUICK, cpu_s=0.3)
    result = sandbox.run(["sh", "-c", script], workdir=work, limits=limits)
    assert (result.ending, result.exit_code) == (Ending.CPU_LIMIT, None)
    assert result.cpu_s >= 0.3


@pytest.mark.sandbox
@pytest.mark.skipif("cpu" not in BASE.controllers, reason="no control group for that")
def test_a_run_uses_no_more_cpus_at_once_than_it_may(sandbox: Sandbox, work: Path) -> None:
    code = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    limits = replace(QUICK, cpus=0.25)
    result = sandbox.run(["python", "-c", code], workdir=work, limits=limits)
    assert result.exit_code == 0
    assert result.cpu_s < 0.6 * result.wall_s


@pytest.mark.sandbox
def test_many_files_in_a_private_place_are_too_many(sandbox: Sandbox, work: Path) -> None:
    code = "import time\nfor i in range(500): open(f'/tmp/{i}', 'w').close()\ntime.sleep(60)"
    limits = replace(QUICK, files=100)
    result = sandbox.run(["python", "-c", code], workdir=work, limits=limits)
    assert result.ending is Ending.DISK_LIMIT


@pytest.mark.sandbox
@pytest.mark.parametrize("grouped", [pytest.param(True, marks=needs_groups), False])
def test_nothing_moves_while_the_disk_is_looked_at_closely(
    sandbox: Sandbox, work: Path, *, grouped: bool
) -> None:
    sandbox.gaps()
    request = Request((), work, {}, {}, QUICK)
    code = "import os\nos.fork()\nwhile True: open('ticks', 'a').write('x')"

    def size() -> int:
        return (work / "ticks").stat().st_size

    def whole() -> None:
        command, uid = sandbox.recipe(request)
        fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        if uid is not None:
            hand_over(fd, uid)
        kept = command.group if grouped else None
        with (
            held(replace(command, group=kept), uid) as (run, init_pid),
            Meter(init_pid, fd, run.group) as meter,
        ):
            run.go(script((interpreter().executable, "-c", code), {}, "/work"))
            wait_until((work / "ticks").exists, what="the first tick")
            with meter.still():
                before = size()
                time.sleep(0.2)
                assert size() == before
            wait_until(lambda: size() > before, what="a tick after the look")
        os.close(fd)

    # The thread becomes the sandbox's user.
    OwnThread(whole, "test").result(threading.Event())


UNGROUPED = """
import sys
from pathlib import Path
from labd.errors import SandboxError
from labd.sandbox import Limits, Sandbox, SandboxConfig
work = Path(sys.argv[1])
for accepted in (set(), {"cgroup"}):
    box = Sandbox(SandboxConfig(allow_missing=frozenset(accepted)))
    for limits in (Limits(), Limits(cpus=0.5)):
        try:
            print(box.run(["echo", "ran"], workdir=work, limits=limits).output.strip())
        except SandboxError as error:
            print(error.where, "Delegate=yes" in error.fix)
"""


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the groups from a process")
def test_without_groups_nothing_runs_unless_the_gap_is_accepted(work: Path) -> None:
    hide = 'mount -t tmpfs tmpfs /sys/fs/cgroup && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", UNGROUPED, str(work)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.splitlines() == ["sandbox True", "sandbox True", "ran", "cpus True"], done


def ended(ending: Ending) -> SandboxResult:
    return SandboxResult(ending, None, 0.1, 0.1, None, "")


def test_a_limit_that_did_not_hold_when_it_was_tried_is_a_gap() -> None:
    for trial in (*find.TRIALS, find.GROUP_TRIAL):
        assert find.of_trial(trial, ended(trial.ending)) == []
        (gap,) = find.of_trial(trial, ended(Ending.KILLED))
        assert gap.name == trial.name
    good = "Max data size 134217728 134217728 bytes\nprobe:done"
    limits = find.LIMITS_TRIAL.limits
    assert find.of_limits(good, limits) == []
    assert [gap.name for gap in find.of_limits(f"open:tmp_size\n{good}", limits)] == ["tmp_size"]
    unlimited = good.replace("134217728", "unlimited")
    assert [gap.name for gap in find.of_limits(unlimited, limits)] == ["process_memory"]
    assert [gap.name for gap in find.of_limits("", limits)] == ["limits", "process_memory"]


def test_a_group_that_can_not_be_made_is_no_run(tmp_path: Path) -> None:
    nowhere = Base(tmp_path / "none", {"memory": tmp_path / "none"})
    with pytest.raises(FileNotFoundError), made(Plan(nowhere, MIB, 1, None)):
        raise SandboxError("it was made")
