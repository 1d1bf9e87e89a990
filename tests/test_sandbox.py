"""What a sandboxed run may not do, tried for real, and what it must be able to."""

import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from labd.errors import SandboxError, StorageError
from labd.sandbox import Ending, Limits, Sandbox, SandboxConfig, SandboxResult, seccomp
from labd.sandbox.cgroup import find_base
from labd.sandbox.gaps import of_probe, of_start
from labd.sandbox.output import Output
from tests.boxes import ACCEPTED_GAPS
from tests.processes import wait_until

pytestmark = pytest.mark.sandbox

MIB = 2**20
QUICK = Limits(
    wall_s=30,
    memory_bytes=512 * MIB,
    processes=64,
    disk_bytes=64 * MIB,
    shm_bytes=64 * MIB,
    tmp_bytes=64 * MIB,
)
SYSTEM_PYTHON = "/usr/bin/python3"
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def marker() -> str:
    return f"labd-marker-{uuid.uuid4().hex}"


def run_python(
    sandbox: Sandbox, work: Path, code: str, limits: Limits = QUICK, *args: str
) -> SandboxResult:
    return sandbox.run(["python", "-c", textwrap.dedent(code), *args], workdir=work, limits=limits)


def pids_with(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(entry.name))
    return found


def sandboxes_of(pid: int) -> list[psutil.Process]:
    """Give the bubblewraps that a process started, and all that runs in them, as far as they are there."""
    try:
        outer = [p for p in psutil.Process(pid).children() if p.name() == "bwrap"]
        return outer + [child for p in outer for child in p.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def commands_of(pid: int, marker: str) -> list[psutil.Process]:
    """Give what carries the marker in the sandboxes of a process, which may carry it itself, as does each bubblewrap."""
    marked = pids_with(marker)
    return [p for p in sandboxes_of(pid) if p.pid in marked and not _is_bwrap(p)]


def _is_bwrap(process: psutil.Process) -> bool:
    try:
        return process.name() == "bwrap"
    except psutil.NoSuchProcess:
        return True


def is_dead(process: psutil.Process) -> bool:
    """Say whether a process has ended, though perhaps nobody has asked for its exit code yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_this_host_keeps_every_promise(sandbox: Sandbox) -> None:
    found = {gap.name for gap in sandbox.gaps()}
    assert found == (set() if "memory" in find_base().controllers else ACCEPTED_GAPS)


# What a run can do


def test_a_run_writes_its_directory_and_its_files_are_ours_afterwards(
    sandbox: Sandbox, work: Path
) -> None:
    (work / "given").mkdir()
    (work / "given" / "a.txt").write_text("from us")
    result = run_python(
        sandbox,
        work,
        """
        import os, pathlib, tempfile
        assert os.getcwd() == "/work"
        pathlib.Path("given/a.txt").write_text(pathlib.Path("given/a.txt").read_text() + " and them")
        pathlib.Path("made").mkdir()
        pathlib.Path("made/b.txt").write_text("new")
        tempfile.TemporaryFile().write(b"x")
        pathlib.Path.home().joinpath("c").write_text("x")
        """,
    )
    assert (result.ending, result.exit_code, result.output) == (Ending.EXITED, 0, "")
    assert (work / "given" / "a.txt").read_text() == "from us and them"
    for path in [work, *work.rglob("*")]:
        assert path.stat().st_uid == os.geteuid()
    assert sorted(path.name for path in work.iterdir()) == ["given", "made"]


def test_python_is_our_own_with_its_packages(sandbox: Sandbox, work: Path) -> None:
    result = run_python(sandbox, work, "import numpy, sys; print(numpy.__version__, sys.version)")
    assert result.output == f"{np.__version__} {sys.version}\n"
    by_name = sandbox.run(["sh", "-c", "python3 -c 'import numpy'"], workdir=work, limits=QUICK)
    assert by_name.exit_code == 0, by_name.output


def test_what_came_out_is_kept_in_order_and_in_the_log(
    sandbox: Sandbox, work: Path, tmp_path: Path
) -> None:
    log = tmp_path / "run.log"
    argv = ["sh", "-c", "echo one; echo two >&2; printf '\\377\\033[2J'"]
    result = sandbox.run(argv, workdir=work, limits=QUICK, log=log)
    assert result.output == "one\ntwo\n\ufffd\x1b[2J"
    assert log.read_bytes() == b"one\ntwo\n\xff\x1b[2J"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 97", 97),
        ("exit 200", 200),
        ("kill -SEGV $$", -11),
        ("kill -KILL $$", -9),
    ],
)
def test_exit_codes_and_signals_come_through(
    sandbox: Sandbox, work: Path, script: str, code: int
) -> None:
    result = sandbox.run(["sh", "-c", script], workdir=work, limits=QUICK)
    assert (result.ending, result.exit_code) == (Ending.EXITED, code)


def test_a_command_that_does_not_exist_is_the_experiments_own_failure(
    sandbox: Sandbox, work: Path
) -> None:
    result = sandbox.run(["no-such-command"], workdir=work, limits=QUICK)
    assert (result.ending, result.exit_code) == (Ending.EXITED, 127)
    assert "no-such-command" in result.output


def test_time_and_memory_are_measured(sandbox: Sandbox, work: Path) -> None:
    result = run_python(
        sandbox,
        work,
        """
        import time
        kept = bytearray(b"x") * (100 << 20)
        end = time.process_time() + 0.4
        while time.process_time() < end: pass
        """,
    )
    assert result.cpu_s >= 0.4
    assert result.wall_s >= 0.4
    assert result.peak_memory_bytes is not None
    assert 100 * MIB < result.peak_memory_bytes < 200 * MIB


def test_the_environment_is_ours_and_the_callers(
    sandbox: Sandbox, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABD_CANARY", "secret")
    argv = ["sh", "-c", "env; tr '\\0' '\\n' </proc/1/environ; cat /proc/*/environ"]
    result = sandbox.run(
        argv, workdir=work, limits=QUICK, env={"OMP_NUM_THREADS": "2", "TEXT": "a\nb --bind / /"}
    )
    assert "LABD_CANARY" not in result.output
    for line in (
        "OMP_NUM_THREADS=2",
        "TEXT=a\nb --bind / /",
        "MPLBACKEND=Agg",
        "TMPDIR=/tmp",
        "LANG=C.UTF-8",
    ):
        assert f"{line}\n" in result.output


# What a run can't see or change


def test_nothing_but_the_own_places_can_be_written(sandbox: Sandbox, work: Path) -> None:
    result = run_python(
        sandbox,
        work,
        """
        import os, sys
        for root in ["/", "/usr", "/etc", "/opt", "/var", "/root", "/home", "/dev", "/sys", "/proc/sys/kernel",
                     sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)]:
            try:
                os.close(os.open(root + "/probe", os.O_WRONLY | os.O_CREAT))
                print("wrote", root)
            except OSError:
                pass
        for base, dirs, files in os.walk("/"):
            dirs[:] = [d for d in dirs if os.path.join(base, d) not in ("/proc", "/sys", "/usr", sys.prefix, sys.base_prefix)]
            try:
                os.close(os.open(base + "/probe", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                print(base)
                dirs[:] = []
            except OSError:
                pass
        """,
    )
    assert set(result.output.split("\n")) - {""} == {"/work", "/tmp", "/home/lab", "/dev/shm"}


def test_files_outside_are_not_there(sandbox: Sandbox, work: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret")
    (work / "link").symlink_to(canary)
    script = f"cat {canary} link /work/../{canary} /etc/shadow /etc/hostname /proc/1/root{canary}; ls / /home /etc"
    result = sandbox.run(["sh", "-c", script], workdir=work, limits=QUICK)
    assert "secret" not in result.output
    assert "shadow\n" not in result.output.replace("/etc/shadow", "")
    assert "labd-probe" not in result.output


def test_inputs_are_read_only(sandbox: Sandbox, work: Path, tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    (template / "eval.py").write_text("honest")
    single = tmp_path / "one.txt"
    single.write_text("one")
    # Anyone may write them, so that only the sandbox stands between.
    for path, mode in ((template, 0o777), (template / "eval.py", 0o666), (single, 0o666)):
        path.chmod(mode)
    (work / "prepare.py").write_text("to be covered")
    script = """
        cat /inputs/template/eval.py /inputs/one.txt /work/prepare.py
        echo bad >/inputs/template/eval.py; echo bad >/inputs/template/new; echo bad >/inputs/one.txt
        echo bad >/work/prepare.py; rm -f /work/prepare.py; mv /work/prepare.py /work/other
        chmod 777 /inputs/template/eval.py; rm -rf /inputs/template; ln /inputs/template/eval.py /work/hard
        """
    inputs = {"/inputs/template": template, "/inputs/one.txt": single, "/work/prepare.py": single}
    result = sandbox.run(["sh", "-c", script], workdir=work, limits=QUICK, read_only=inputs)
    assert result.output.startswith("honestoneone")
    assert (template / "eval.py").read_text() == "honest"
    assert [path.name for path in template.iterdir()] == ["eval.py"]
    assert single.read_text() == "one"
    assert (work / "prepare.py").read_text() == "to be covered"
    assert template.stat().st_uid == os.geteuid()


def test_other_processes_are_out_of_sight(sandbox: Sandbox, work: Path) -> None:
    script = f"kill -0 {os.getpid()} && echo rea''ched; ls /proc | grep -c '^[0-9]'; cat /proc/[0-9]*/cmdline"
    result = sandbox.run(["sh", "-c", script], workdir=work, limits=QUICK)
    assert "reached" not in result.output
    assert "pytest" not in result.output
    count = next(line for line in result.output.splitlines() if line.isdecimal())
    assert int(count) < 8


def test_descriptors_of_ours_are_not_passed_on(sandbox: Sandbox, work: Path) -> None:
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        result = run_python(sandbox, work, "import os; print(sorted(os.listdir('/proc/self/fd')))")
    finally:
        os.close(leaked)
    assert result.output == "['0', '1', '2', '3']\n"  # and the one that lists


def test_there_is_no_network(sandbox: Sandbox, work: Path) -> None:
    name = f"\0labd-{uuid.uuid4().hex}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(name)
        unix.listen()
        code = """
            import os, socket, sys
            for family, address in [(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))), (socket.AF_UNIX, "\\0" + sys.argv[2]),
                                    (socket.AF_INET, ("1.1.1.1", 53))]:
                try:
                    with socket.socket(family) as s:
                        s.settimeout(2)
                        s.connect(address)
                        print("connected", address)
                except OSError as error:
                    print(error.errno)
            print(*(name for _, name in socket.if_nameindex()))
            with socket.create_server(("127.0.0.1", 0)) as own:
                socket.create_connection(own.getsockname()).close()
            """
        result = run_python(sandbox, work, code, QUICK, str(tcp.getsockname()[1]), name[1:])
        tcp.settimeout(0)
        with pytest.raises(BlockingIOError):
            tcp.accept()
    refused = str(errno.ECONNREFUSED)
    assert result.output.split() == [refused, refused, str(errno.ENETUNREACH), "lo"]
    assert result.exit_code == 0


def test_a_run_has_no_capability_and_gains_none(sandbox: Sandbox, work: Path) -> None:
    result = sandbox.run(["cat", "/proc/self/status"], workdir=work, limits=QUICK)
    status = dict(line.split(":\t", 1) for line in result.output.splitlines())
    assert {status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "0" * 16
    }
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == ["1000"] * 4


def test_dangerous_system_calls_are_refused_and_needed_ones_are_not(
    sandbox: Sandbox, work: Path
) -> None:
    code = """
        import ctypes, errno, os, socket, sys
        libc = ctypes.CDLL(None, use_errno=True)
        def tried(name, *args):
            result = getattr(libc, name)(*args)
            print(name, "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()])
        tried("unshare", 0x10000000)
        tried("unshare", 0x00020000)
        tried("ptrace", 0, 0, 0, 0)
        tried("mount", b"none", b"/tmp", b"tmpfs", 0, None)
        tried("ioctl", 0, ctypes.c_ulong(0x5412), b"x")
        tried("personality", 0x0040000)
        tried("personality", 0xffffffff)
        tried("memfd_create", b"x", 0)
        for family in (socket.AF_VSOCK, socket.AF_PACKET, socket.AF_ALG, socket.AF_NETLINK):
            tried("socket", int(family), 3 if family == socket.AF_NETLINK else 1, 0)
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        """
    result = run_python(sandbox, work, code)
    assert result.output.splitlines() == [
        "unshare EPERM", "unshare EPERM", "ptrace EPERM", "mount EPERM", "ioctl EPERM", "personality EPERM", "personality ok",
        "memfd_create ok", "socket EAFNOSUPPORT", "socket EAFNOSUPPORT", "socket EAFNOSUPPORT", "socket ok",
    ]  # fmt: skip
    assert result.exit_code == 0


def test_signals_that_we_block_are_not_blocked_in_a_run(
    sandbox: Sandbox, work: Path, marker: str
) -> None:
    blocked = {signal.SIGINT, signal.SIGTERM}
    cancelled = threading.Event()

    def run_blocked() -> set[signal.Signals | int]:
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        argv = ["sh", "-c", "sleep 60; :", marker]
        sandbox.run(argv, workdir=work, limits=QUICK, cancelled=cancelled)
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    def whole_tree() -> list[psutil.Process]:
        tree = sandboxes_of(os.getpid())
        assert len(tree) >= 3
        return tree

    def blocks(pid: int) -> bool:
        mask = Path(f"/proc/{pid}/status").read_text().split("SigBlk:\t")[1].split()[0]
        return any(int(mask, 16) & (1 << (number - 1)) for number in blocked)

    # Seen from outside, from bubblewrap on: a shell inside may clear the mask by itself. And a process
    # that is just starting another blocks everything for a moment.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_blocked)
        try:
            wait_until(lambda: commands_of(os.getpid(), marker), what="the run")
            wait_until(
                lambda: not any(blocks(each.pid) for each in whole_tree()), what="free signals"
            )
        finally:
            cancelled.set()
        assert blocked <= future.result(20)


def test_the_user_outside_is_never_root(sandbox: Sandbox, work: Path, marker: str) -> None:
    cancelled = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        argv = ["sh", "-c", "sleep 60; :", marker]
        future = pool.submit(sandbox.run, argv, workdir=work, limits=QUICK, cancelled=cancelled)
        try:
            wait_until(lambda: commands_of(os.getpid(), marker), what="the run")
            # bubblewrap, the shell that waits, and the command.
            tree = [each.pid for each in sandboxes_of(os.getpid())]
            assert len(tree) >= 3
            uids = {_uids(pid) for pid in tree}
            groups = {_field(pid, "Groups").strip() for pid in tree}
            could = {_field(pid, name) for pid in tree for name in ("CapPrm", "CapInh", "CapAmb")}
            outer_could = _field(tree[0], "CapBnd")
        finally:
            cancelled.set()
        result = future.result(20)
    assert pids_with(marker) == []
    assert uids == {(64123 if os.geteuid() == 0 else os.geteuid(),) * 4}
    assert could == {"0" * 16}
    if os.geteuid() == 0:
        assert groups == {""}
        assert outer_could == "0" * 16
    assert (result.ending, result.exit_code) == (Ending.CANCELLED, None)


def _field(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/status").read_text().split(f"{name}:\t")[1].split("\n")[0]


def _uids(pid: int) -> tuple[int, ...]:
    """Real, effective, saved and file system user."""
    return tuple(map(int, _field(pid, "Uid").split()))


# Limits


STUBBORN = """
    import os, signal, sys, time
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.execvp("sh", ["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done", sys.argv[1]])
    while len([p for p in os.listdir("/proc") if p.isdecimal()]) < 5:
        time.sleep(0.01)
    print("up", flush=True)
"""


def test_the_wall_limit_kills_everything_however_detached(
    sandbox: Sandbox, work: Path, marker: str
) -> None:
    code = STUBBORN + "    time.sleep(60)\n"
    result = run_python(sandbox, work, code, replace(QUICK, wall_s=1.5), marker)
    assert pids_with(marker) == []
    assert (result.ending, result.exit_code) == (Ending.TIMED_OUT, None)
    assert result.output == "up\n"
    assert result.wall_s >= 1.5


def test_what_a_finished_command_leaves_behind_is_killed(
    sandbox: Sandbox, work: Path, marker: str
) -> None:
    result = run_python(sandbox, work, STUBBORN, QUICK, marker)
    assert pids_with(marker) == []
    assert (result.ending, result.exit_code, result.output) == (Ending.EXITED, 0, "up\n")


def test_a_run_cancelled_before_it_starts_is_cancelled(sandbox: Sandbox, work: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    result = sandbox.run(["sleep", "60"], workdir=work, limits=QUICK, cancelled=cancelled)
    assert result.ending is Ending.CANCELLED


def test_a_flood_of_output_ends_the_run_and_keeps_head_and_tail(
    sandbox: Sandbox, work: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    limits = replace(QUICK, output_bytes=10_000)
    result = sandbox.run(
        ["sh", "-c", "echo begin; exec yes"], workdir=work, limits=limits, log=log
    )
    assert (result.ending, result.exit_code) == (Ending.OUTPUT_LIMIT, None)
    assert result.output.startswith("begin\ny\n")
    assert result.output.endswith("y\n")
    assert "bytes of output cut" in result.output
    assert log.read_text() == result.output
    assert len(result.output) < 10_100


def test_output_within_four_times_the_limit_is_cut_but_not_punished(
    sandbox: Sandbox, work: Path
) -> None:
    limits = replace(QUICK, output_bytes=1000)
    result = run_python(sandbox, work, "print('a' * 1500); print('z' * 499, end='')", limits)
    assert (result.ending, result.exit_code) == (Ending.EXITED, 0)
    assert result.output == "a" * 500 + "\n… 1000 bytes of output cut …\n" + "\n" + "z" * 499


def test_a_fork_bomb_is_bounded(sandbox: Sandbox, work: Path) -> None:
    code = """
        import os, time
        made = 0
        try:
            while made < 500:
                if os.fork() == 0:
                    time.sleep(60)
                made += 1
        except BlockingIOError:
            pass
        print(made)
        """
    result = run_python(sandbox, work, code, replace(QUICK, processes=20))
    assert (result.ending, result.exit_code) == (Ending.EXITED, 0)
    assert int(result.output) == 19


def test_one_process_gets_no_more_memory_than_allowed(sandbox: Sandbox, work: Path) -> None:
    result = run_python(
        sandbox, work, "x = bytearray(600 << 20)", replace(QUICK, memory_bytes=256 * MIB)
    )
    assert (result.ending, result.exit_code) == (Ending.EXITED, 1)
    assert "MemoryError" in result.output


TOGETHER = """
    import os, time
    for _ in range(4):
        if os.fork() == 0:
            kept = bytearray(b"x") * (100 << 20)
            time.sleep(60)
    time.sleep(60)
    """
MEMORY_FILE = """
    import os, time
    fd = os.memfd_create("hoard")
    for _ in range(400):
        os.write(fd, bytes(1 << 20))
    time.sleep(60)
    """


@pytest.mark.parametrize("code", [TOGETHER, MEMORY_FILE], ids=["together", "memfd"])
def test_memory_of_the_whole_tree_is_limited(sandbox: Sandbox, work: Path, code: str) -> None:
    result = run_python(sandbox, work, code, replace(QUICK, memory_bytes=256 * MIB))
    assert (result.ending, result.exit_code) == (Ending.MEMORY_LIMIT, None)
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes >= 256 * MIB


def test_memory_shared_by_many_processes_is_counted_once(sandbox: Sandbox, work: Path) -> None:
    code = """
        import os, time
        kept = bytearray(b"x") * (100 << 20)
        children = []
        for _ in range(6):
            pid = os.fork()
            if pid == 0:
                time.sleep(0.7)
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        """
    result = run_python(sandbox, work, code, replace(QUICK, memory_bytes=256 * MIB))
    assert (result.ending, result.exit_code) == (Ending.EXITED, 0)


WRITE_FILES = """
    import time
    for i in range(100):
        with open(str(i), "wb") as file:
            file.write(b"x" * (1 << 20))
    time.sleep(60)
    """
WRITE_UNLINKED = """
    import os, time
    with open("gone", "wb") as file:
        os.unlink("gone")
        for i in range(100):
            file.write(b"x" * (1 << 20))
        file.flush()
        time.sleep(60)
    """
MANY_FILES = """
    import time
    for i in range(3000):
        open(str(i), "w").close()
    time.sleep(60)
    """
DEEP = """
    import os, time
    for _ in range(300):
        os.mkdir("d")
        os.chdir("d")
    time.sleep(60)
    """


@pytest.mark.parametrize(
    "code",
    [WRITE_FILES, WRITE_UNLINKED, MANY_FILES, DEEP],
    ids=["files", "unlinked", "many", "deep"],
)
def test_a_flooded_disk_ends_the_run(sandbox: Sandbox, work: Path, code: str) -> None:
    limits = replace(QUICK, disk_bytes=32 * MIB, files=1000)
    result = run_python(sandbox, work, code, limits)
    assert (result.ending, result.exit_code) == (Ending.DISK_LIMIT, None)


def test_too_much_left_at_the_end_is_no_success(sandbox: Sandbox, work: Path) -> None:
    code = "open('a', 'wb').write(bytes(8 << 20))"
    result = run_python(sandbox, work, code, replace(QUICK, disk_bytes=4 * MIB))
    assert (result.ending, result.exit_code) == (Ending.DISK_LIMIT, None)


def test_private_places_and_single_files_have_a_size(sandbox: Sandbox, work: Path) -> None:
    code = """
        import errno
        for place in ("/tmp/x", "/dev/shm/x", "/home/lab/x", "/work/x"):
            try:
                with open(place, "wb", buffering=0) as file:
                    for _ in range(20):
                        file.write(bytes(1 << 20))
            except OSError as error:
                print(errno.errorcode[error.errno])
        """
    limits = replace(QUICK, tmp_bytes=8 * MIB, shm_bytes=8 * MIB, file_bytes=16 * MIB)
    result = run_python(sandbox, work, code, limits)
    assert result.output.split() == ["ENOSPC", "ENOSPC", "ENOSPC", "EFBIG"]


def test_a_log_that_can_not_be_written_ends_the_run(
    sandbox: Sandbox, work: Path, marker: str
) -> None:
    with pytest.raises(StorageError, match="No space left"):
        sandbox.run(
            ["sh", "-c", "echo x; sleep 60; :", marker], workdir=work, log=Path("/dev/full")
        )
    assert pids_with(marker) == []
    assert work.stat().st_uid == os.geteuid()


# What a run leaves behind


def test_what_is_left_can_not_lead_out_or_hang_a_reader(sandbox: Sandbox, work: Path) -> None:
    code = """
        import os, socket
        os.mkdir("sub")
        open("plain\\n\\x1b[2J", "w").close()
        open(b"\\xff", "w").close()
        os.symlink("plain\\n\\x1b[2J", "good")
        os.symlink("../good", "sub/good")
        os.symlink("/etc/passwd", "absolute")
        os.symlink("../outside", "climbs")
        os.symlink("sub/../../outside", "sideways")
        os.symlink("../../outside", "sub/climbs")
        os.mkfifo("fifo")
        socket.socket(socket.AF_UNIX).bind("socket")
        os.mkdir("closed")
        open("closed/in", "w").close()
        os.chmod("closed/in", 0)
        os.chmod("closed", 0)
        open("setuid", "w").close()
        os.chmod("setuid", 0o6755)
        """
    result = run_python(sandbox, work, code)
    assert result.exit_code in {0, None}, result.output
    left = sorted(os.fsencode(path.relative_to(work)) for path in work.rglob("*"))
    assert left == [
        b"closed",
        b"closed/in",
        b"good",
        b"plain\n\x1b[2J",
        b"setuid",
        b"sub",
        b"sub/good",
        b"\xff",
    ]
    assert result.removed == 6
    assert (work / "setuid").stat().st_mode & 0o7777 == 0o755
    assert (work / "closed" / "in").read_text() == ""


def test_a_bottomless_directory_is_taken_away(sandbox: Sandbox, work: Path) -> None:
    code = """
        import os
        for _ in range(2000):
            os.mkdir("d")
            os.chdir("d")
            open("f", "w").close()
        """
    result = run_python(sandbox, work, code)
    assert result.removed == 1
    assert len(list(work.rglob("d"))) == 63
    assert not list(work.glob(".labd*"))


def test_files_with_a_name_outside_are_not_given_away(
    sandbox: Sandbox, work: Path, tmp_path: Path
) -> None:
    original = tmp_path / "original"
    original.write_text("ours")
    (work / "linked").hardlink_to(original)
    owner = original.stat().st_uid
    sandbox.run(["sh", "-c", "echo theirs >linked"], workdir=work, limits=QUICK)
    assert original.stat().st_uid == owner
    if os.geteuid() == 0:
        assert original.read_text() == "ours"


# Refusals


def test_without_bubblewrap_nothing_runs_and_the_remedy_is_named(work: Path) -> None:
    sandbox = Sandbox(SandboxConfig(bwrap="no-such-bwrap"))
    assert [gap.name for gap in sandbox.gaps()] == ["bwrap"]
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        sandbox.run(["touch", "/work/ran"], workdir=work)
    accepting = Sandbox(SandboxConfig(bwrap="no-such-bwrap", allow_missing=frozenset({"bwrap"})))
    with pytest.raises(Exception, match="no-such-bwrap"):
        accepting.run(["touch", "/work/ran"], workdir=work)
    assert list(work.iterdir()) == []


def test_root_is_no_user_for_a_run() -> None:
    with pytest.raises(SandboxError, match="unprivileged"):
        SandboxConfig(uid=0)


def test_limits_are_above_zero() -> None:
    with pytest.raises(SandboxError, match="disk_bytes"):
        Limits(disk_bytes=0)


@pytest.mark.parametrize(
    ("argv", "env", "places"),
    [
        ([], {}, []),
        (["a\0--bind"], {}, []),
        (["true"], {"A": "x\0--bind\0/\0/host"}, []),
        (["true"], {"A=B": "x"}, []),
        (["true"], {}, ["relative"]),
        (["true"], {}, ["/inputs/../usr"]),
        (["true"], {}, ["/usr/lib/x"]),
        (["true"], {}, ["/"]),
        (["true"], {}, ["/work"]),
    ],
)
def test_arguments_that_would_mean_something_else_are_refused(
    sandbox: Sandbox,
    work: Path,
    argv: Sequence[str],
    env: Mapping[str, str],
    places: Sequence[str],
) -> None:
    with pytest.raises(SandboxError):
        sandbox.run(
            argv, workdir=work, env=env, read_only=dict.fromkeys(places, work), limits=QUICK
        )


def test_a_log_within_reach_of_the_run_is_refused(sandbox: Sandbox, work: Path) -> None:
    with pytest.raises(SandboxError, match="log"):
        sandbox.run(["true"], workdir=work, log=work / "log")


def test_a_missing_directory_is_named(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="nowhere"):
        sandbox.run(["true"], workdir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("words", "name", "fix"),
    [
        ("bwrap: setting up uid map: Permission denied", "userns", "AppArmor"),
        ("bwrap: No permissions to create new namespace", "userns", "sysctl"),
        ("bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", "userns", "AppArmor"),
        (
            "bwrap: Can't mount proc on /newroot/proc: Operation not permitted",
            "proc",
            "systempaths=unconfined",
        ),
        ("[Errno 22] setresuid: Invalid argument", "uid", "uid"),
        ("prlimit: Operation not permitted", "limits", "security module"),
        ("[Errno 1] unshare: Operation not permitted", "root", "ordinary user"),
        ("something new", "start", "bwrap"),
    ],
)
def test_why_it_did_not_start_is_put_into_words_an_owner_can_use(
    words: str, name: str, fix: str
) -> None:
    gap = of_start(words)
    assert gap.name == name
    assert fix in gap.fix
    assert words in gap.what


def test_a_probe_that_saw_too_much_or_nothing_is_a_gap() -> None:
    good = "CapInh:\t0\nCapPrm:\t0\nCapEff:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n    lo:       0 \nenv:HOME PWD \nprobe:done\n"
    assert of_probe(good, {"HOME"}, filtered=True) == []
    for old, new, name in [
        ("CapEff:\t0", "CapEff:\t1", "capabilities"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "no_new_privs"),
        ("Seccomp:\t2", "Seccomp:\t0", "filter"),
        ("    lo:", "  eth0:       0 \n    lo:", "network"),
        ("env:HOME", "env:HOME SECRET", "environment"),
        ("probe:done", "canary:seen\nprobe:done", "files"),
        ("probe:done", "userns:made\nprobe:done", "nested"),
        ("probe:done", "", "probe"),
    ]:
        assert [gap.name for gap in of_probe(good.replace(old, new), {"HOME"}, filtered=True)] == [
            name
        ]
    assert len(of_probe("", set(), filtered=True)) >= 5


# Other processes: a daemon that dies, a user who is not root, a host that forbids


DRIVER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from labd.sandbox import Limits
from tests.boxes import make_sandbox
sandbox = make_sandbox()
for gap in sandbox.gaps():
    print("gap", gap.name, gap.fix)
result = sandbox.run(sys.argv[2:], workdir=Path(sys.argv[1]), limits=Limits(wall_s=60))
print(result.ending, result.exit_code, result.output, sep="\\n")
"""


def drive(python: Sequence[str], work: Path, argv: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*python, "-c", DRIVER, str(work), *argv],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CANARY": "secret",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
    )


def test_the_whole_tree_dies_with_a_killed_daemon(work: Path, marker: str) -> None:
    script = "(setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' $0 &) ; sleep 60; :"
    with drive([sys.executable], work, ["sh", "-c", script, marker]) as daemon:
        # The shell and its detached child.
        wait_until(lambda: len(commands_of(daemon.pid, marker)) >= 2, what="the run")
        tree = sandboxes_of(daemon.pid)
        assert len(tree) >= 4
        daemon.kill()
        daemon.wait(20)
        wait_until(lambda: all(is_dead(each) for each in tree), what="the end of the tree")
        assert pids_with(marker) == []


def test_an_interrupted_caller_leaves_nothing_behind(work: Path, marker: str) -> None:
    with drive(
        [sys.executable], work, ["sh", "-c", "trap '' INT TERM; sleep 60; :", marker]
    ) as daemon:
        wait_until(lambda: commands_of(daemon.pid, marker), what="the run")
        tree = sandboxes_of(daemon.pid)
        assert len(tree) >= 3
        daemon.send_signal(signal.SIGINT)
        answer, _ = daemon.communicate(timeout=30)
    assert all(is_dead(each) for each in tree)
    assert pids_with(marker) == []
    assert "KeyboardInterrupt" in answer


def test_runs_at_the_same_time_do_not_meet(sandbox: Sandbox, tmp_path: Path) -> None:
    script = "echo $0 >mine; sleep 0.2; cat mine; ls /proc | grep -c '^[0-9]'"

    def one(number: int) -> SandboxResult:
        workdir = tmp_path / str(number)
        workdir.mkdir()
        return sandbox.run(["sh", "-c", script, str(number)], workdir=workdir, limits=QUICK)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(8)))
    seen = [result.output.split() for result in results]
    assert [mine for mine, _ in seen] == [str(number) for number in range(8)]
    assert all(int(processes) <= 4 for _, processes in seen)


@pytest.fixture
def user_work() -> Iterator[Path]:
    """Give a directory of user 1001, who can't reach pytest's own."""
    path = Path(
        subprocess.check_output(["mktemp", "-d", "/tmp/labd-user-XXXXXX"], text=True).strip()
    )
    os.chown(path, 1001, 1001)
    yield path
    shutil.rmtree(path)


AS_USER = ["setpriv", "--reuid=1001", "--regid=1001", "--clear-groups", "--bounding-set=-all"]
needs_root_and_a_system_python = pytest.mark.skipif(
    os.geteuid() != 0 or not Path(SYSTEM_PYTHON).exists() or REPOSITORY.is_relative_to("/root"),
    reason="changes to another user, who needs a Python and this repository in reach",
)


@needs_root_and_a_system_python
def test_an_ordinary_user_needs_no_privilege(user_work: Path) -> None:
    script = "env; echo hello >out; grep Uid /proc/self/status; exit 3"
    with drive([*AS_USER, SYSTEM_PYTHON], user_work, ["sh", "-c", script]) as daemon:
        answer, _ = daemon.communicate(timeout=60)
    assert "exited\n3\n" in answer, answer
    assert "secret" not in answer
    assert (user_work / "out").read_text() == "hello\n"
    assert (user_work / "out").stat().st_uid == 1001


USER = """
import sys
from pathlib import Path
from labd.sandbox import Ahead, Limits
from tests.boxes import make_sandbox
home = Path(sys.argv[1])
sandbox = make_sandbox()
ahead = Ahead(sandbox, home / "base", limits=Limits())
ahead.prime()
ahead._spare._settled.wait(20)
(prepared,) = [path for path in (home / "base").iterdir() if path.is_dir()]
inode = prepared.stat().st_ino
result = sandbox.run(["sh", "-c", "id -u; echo x >out"], workdir=home / "w", limits=Limits(), ahead=ahead)
ahead.close()
assert (home / "w").stat().st_ino == inode
assert list((home / "base").iterdir()) == []
print(result.exit_code, result.output, (home / "w" / "out").stat().st_uid)
"""


@needs_root_and_a_system_python
def test_an_ordinary_users_sandbox_starts_ahead_too(user_work: Path) -> None:
    done = subprocess.run(
        [*AS_USER, SYSTEM_PYTHON, "-c", USER, str(user_work)],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0 1000\n 1001\n", "")


@needs_root_and_a_system_python
def test_a_directory_that_an_ordinary_user_can_not_measure_counts_as_too_large(
    user_work: Path,
) -> None:
    script = "mkdir shut && touch shut/in && chmod 0 shut && sleep 60"
    with drive([*AS_USER, SYSTEM_PYTHON], user_work, ["sh", "-c", script]) as daemon:
        answer, _ = daemon.communicate(timeout=60)
    assert "disk_limit\nNone\n" in answer, answer
    assert (user_work / "shut").stat().st_mode & 0o777 == 0o700


@needs_root_and_a_system_python
def test_a_host_without_user_namespaces_is_refused_with_the_remedy(user_work: Path) -> None:
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --ambient-caps=-all "$@"'
    inside = [
        *AS_USER,
        "unshare",
        "--user",
        "--map-current-user",
        "--keep-caps",
        "sh",
        "-c",
        forbid,
        "sh",
    ]
    with drive([*inside, SYSTEM_PYTHON], user_work, ["touch", "/work/ran"]) as daemon:
        answer, _ = daemon.communicate(timeout=60)
    assert "gap userns" in answer
    assert "SandboxError" in answer
    assert "max_user_namespaces" in answer
    assert list(user_work.iterdir()) == []


@needs_root_and_a_system_python
def test_root_that_can_not_become_another_user_is_refused(user_work: Path) -> None:
    with drive(
        ["unshare", "--user", "--map-root-user", SYSTEM_PYTHON], user_work, ["true"]
    ) as daemon:
        answer, _ = daemon.communicate(timeout=60)
    assert "gap uid" in answer
    assert "SandboxError" in answer


# Parts


def test_kept_output_is_exact_at_every_size(tmp_path: Path) -> None:
    for total in range(30):
        data = bytes(range(65, 65 + total))
        for step in (1, 3, 50):
            with Output(10, tmp_path / "log") as output:
                for start in range(0, total, step):
                    output.feed(data[start : start + step])
                kept = output.finish()
            wanted = (
                data
                if total <= 10
                else data[:5] + f"\n… {total - 10} bytes of output cut …\n".encode() + data[-5:]
            )
            assert kept.encode() == wanted
            assert (tmp_path / "log").read_bytes() == wanted


def test_a_log_is_never_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        Output(10, tmp_path / "log")
    assert victim.read_text() == "whole"


ALLOW, KILL = 0x7FFF0000, 0x80000000


def decide(program: bytes, arch: int, number: int, *args: int) -> int:
    """Run a filter as the kernel would (seccomp(2), bpf(4)), as far as these filters go."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *args, *([0] * (6 - len(args))))
    ops = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = ops[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
            continue
        holds = {
            0x15: accumulator == value,
            0x35: accumulator >= value,
            0x45: bool(accumulator & value),
        }[code]
        at += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "arch", "numbers"),
    [
        (
            "x86_64",
            0xC000003E,
            {
                "read": 0,
                "ptrace": 101,
                "clone": 56,
                "clone3": 435,
                "socket": 41,
                "ioctl": 16,
                "unshare": 272,
            },
        ),
        (
            "aarch64",
            0xC00000B7,
            {
                "read": 63,
                "ptrace": 117,
                "clone": 220,
                "clone3": 435,
                "socket": 198,
                "ioctl": 29,
                "unshare": 97,
            },
        ),
    ],
)
def test_the_filter_decides_alike_on_both_machines(
    machine: str, arch: int, numbers: Mapping[str, int]
) -> None:
    program = seccomp.program(machine)
    assert program is not None

    def asked(name: str, *args: int) -> int:
        return decide(program, arch, numbers[name], *args)

    def refused(code: int) -> int:
        return 0x50000 | code

    assert asked("read") == ALLOW
    assert asked("ptrace") == refused(errno.EPERM)
    assert asked("clone3") == refused(errno.ENOSYS)
    assert asked("clone", 0x00010F00 | 17) == ALLOW
    assert asked("clone", 0x10000000 | 17) == refused(errno.EPERM)
    assert asked("unshare", 0x400) == ALLOW
    assert asked("unshare", 0x80) == refused(errno.EPERM)
    assert asked("ioctl", 0, 0x5412) == refused(errno.EPERM)
    assert asked("ioctl", 0, 0xFFFFFFFF00005412) == refused(errno.EPERM)
    assert asked("ioctl", 0, 0x5401) == ALLOW
    assert asked("socket", 2) == ALLOW
    assert asked("socket", 40) == refused(errno.EAFNOSUPPORT)
    assert decide(program, 0x40000003, numbers["read"]) == KILL
    if machine == "x86_64":
        assert decide(program, arch, 0x40000000 | 101) == refused(errno.ENOSYS)


def test_an_unknown_machine_has_no_filter() -> None:
    assert seccomp.program("riscv64") is None


def test_a_sandbox_that_somebody_kills_is_no_doing_of_its_command(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    def outer() -> list[psutil.Process]:
        return [p for p in psutil.Process().children() if p.name() == "bwrap"]

    def kill_the_outer_one() -> None:
        wait_until((tmp_path / "ready").exists, what="the run")
        (bwrap,) = outer()
        bwrap.kill()

    killer = threading.Thread(target=kill_the_outer_one)
    killer.start()
    command = ["sh", "-c", "touch ready; sleep 30"]
    result = sandbox.run(command, workdir=tmp_path, limits=QUICK)
    killer.join(10)
    assert (result.ending, result.exit_code) == (Ending.KILLED, None)
