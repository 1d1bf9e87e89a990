"""What a sandbox's shell is told, the network switch, and the place where a command starts."""

import os
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from labd.errors import SandboxError
from labd.sandbox import Ending, Limits, Sandbox
from labd.sandbox.script import MAX_TEXT_BYTES, SHELL, script
from labd.sandbox.supervise import peak_bytes
from tests.test_sandbox import MIB, QUICK, REPOSITORY, SYSTEM_PYTHON, drive, run_python

NASTY = (
    "it's; touch hit", "$(touch hit)", "`touch hit`", "a\nb", "\\", "'", '"', "", "*", "~", "#", "!x", "}", "&& touch hit",
    os.fsdecode(bytes(range(1, 256))),
)  # fmt: skip


def tell_shell(text: bytes, where: Path) -> bytes:
    done = subprocess.run(
        SHELL, input=text, cwd=where, capture_output=True, timeout=30, check=False
    )
    return done.stdout


def test_words_reach_a_command_byte_for_byte_and_mean_nothing_to_a_shell(tmp_path: Path) -> None:
    code = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, [*sys.argv[1:], os.environ['V']])))"
    for value in NASTY:
        argv = [sys.executable, "-c", code, *NASTY]
        said = tell_shell(script(argv, {"V": value}, "/work"), tmp_path)
        wanted = [*NASTY, value]
        assert said == b"GO\n" + b"\0".join(map(os.fsencode, wanted))
    assert list(tmp_path.iterdir()) == []


def test_of_an_order_torn_anywhere_nothing_runs(tmp_path: Path) -> None:
    whole = script(["touch", "hit", "}; touch hit"], {"A": "} \n touch hit\n"}, str(tmp_path))
    # Without the newline it is whole: the shell takes the end of its input for one.
    for length in range(len(whole) - 1):
        assert tell_shell(whole[:length], tmp_path) == b"", whole[:length]
    assert list(tmp_path.iterdir()) == []
    assert tell_shell(whole, tmp_path) == b"GO\n"
    assert (tmp_path / "hit").exists()


@pytest.mark.parametrize("word", ["exit", "eval", "export", "cd", "{", "if"])
def test_a_shells_own_words_are_no_commands(word: str) -> None:
    done = subprocess.run(
        SHELL, input=script([word], {}, "/work"), capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 127
    assert word.encode() in done.stderr


@pytest.mark.parametrize(
    ("argv", "env", "cwd"),
    [
        (["-c"], {}, "/work"),
        (["true"], {"A-B": "x"}, "/work"),
        (["true"], {"": "x"}, "/work"),
        (["true"], {"A\n": "x"}, "/work"),
        (["true"], {"A;touch hit": "x"}, "/work"),
        (["true"], {"IFS": "x"}, "/work"),
        (["true"], {"BASH_ENV": "x"}, "/work"),
        (["true"], {}, "work"),
        (["true"], {}, "/work\0"),
        (["true", "\ud800"], {}, "/work"),
        (["true", "x" * (MAX_TEXT_BYTES + 1)], {}, "/work"),
        (["true", *["x" * MAX_TEXT_BYTES] * 10], {}, "/work"),
    ],
)
def test_what_can_not_be_said_to_a_shell_is_refused(
    argv: Sequence[str], env: Mapping[str, str], cwd: str
) -> None:
    with pytest.raises(SandboxError):
        script(argv, env, cwd)


@pytest.mark.sandbox
def test_an_order_larger_than_a_pipe_arrives_whole(sandbox: Sandbox, work: Path) -> None:
    argv = ["sh", "-c", 'printf %s "$@" | wc -c', "sh", *["x" * 90_000] * 9]
    result = sandbox.run(argv, workdir=work, limits=QUICK)
    assert result.output.strip() == str(9 * 90_000)


@pytest.mark.sandbox
def test_the_kernels_limits_are_set_for_every_process_and_can_not_be_raised(
    sandbox: Sandbox, work: Path
) -> None:
    code = """
        import resource
        for name in ("NPROC", "NOFILE", "FSIZE", "CORE", "MSGQUEUE", "SIGPENDING", "MEMLOCK", "DATA"):
            number = getattr(resource, "RLIMIT_" + name)
            soft, hard = resource.getrlimit(number)
            assert soft == hard
            try:
                resource.setrlimit(number, (hard + 1, hard + 1))
                print("raised", name)
            except (ValueError, OSError):
                print(name, hard)
        """
    result = run_python(
        sandbox, work, code, Limits(processes=40, file_bytes=MIB, memory_bytes=512 * MIB)
    )

    def held(number: int, value: int) -> int:
        hard = resource.getrlimit(number)[1]
        return value if hard == resource.RLIM_INFINITY else min(value, hard)

    assert result.output.split("\n")[:-1] == [
        f"NPROC {held(resource.RLIMIT_NPROC, 41)}",
        f"NOFILE {held(resource.RLIMIT_NOFILE, 4096)}",
        f"FSIZE {held(resource.RLIMIT_FSIZE, MIB)}",
        "CORE 1",
        "MSGQUEUE 0",
        f"SIGPENDING {held(resource.RLIMIT_SIGPENDING, 1024)}",
        f"MEMLOCK {held(resource.RLIMIT_MEMLOCK, 64 * MIB)}",
        f"DATA {held(resource.RLIMIT_DATA, 512 * MIB)}",
    ]


@pytest.mark.sandbox
def test_a_command_starts_where_it_was_asked_to(
    sandbox: Sandbox, work: Path, tmp_path: Path
) -> None:
    given = tmp_path / "it's given"
    given.mkdir(mode=0o755)
    (work / "sub").mkdir()
    inputs = {"/inputs/it's": given}
    for cwd in ("/work", "/work/sub", "/inputs/it's", "/tmp"):
        result = sandbox.run(
            ["sh", "-c", 'pwd; echo "$PWD"'], workdir=work, read_only=inputs, limits=QUICK, cwd=cwd
        )
        assert result.output == f"{cwd}\n{cwd}\n"


@pytest.mark.sandbox
def test_a_place_that_is_not_there_is_the_runs_own_failure(sandbox: Sandbox, work: Path) -> None:
    result = sandbox.run(["touch", "/work/ran"], workdir=work, limits=QUICK, cwd="/work/nowhere")
    assert (result.ending, result.exit_code) == (Ending.EXITED, 127)
    assert "/work/nowhere" in result.output
    assert list(work.iterdir()) == []


CONNECT = """
    import socket, sys
    for family, address in [(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))), (socket.AF_UNIX, "\\0" + sys.argv[2])]:
        try:
            with socket.socket(family) as s:
                s.settimeout(5)
                s.connect(address)
                print("reached", s.recv(9).decode())
        except OSError as error:
            print("refused")
    print(socket.gethostbyname("localhost"), socket.gethostbyname("lab"))
    """


@contextmanager
def answering(server: socket.socket) -> Iterator[None]:
    """Say hello to whoever connects, for as long as the block runs."""
    server.settimeout(0.05)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            with client:
                client.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)


@pytest.mark.sandbox
@pytest.mark.parametrize("network", [True, False])
def test_the_hosts_network_is_there_only_where_it_was_asked_for(
    sandbox: Sandbox,
    work: Path,
    network: bool,  # noqa: FBT001 - pytest's
) -> None:
    name = f"labd-{uuid.uuid4().hex}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{name}")
        unix.listen()
        argv = ["python", "-c", textwrap.dedent(CONNECT), str(tcp.getsockname()[1]), name]
        with answering(tcp), answering(unix):
            result = sandbox.run(argv, workdir=work, limits=QUICK, network=network)
    # Abstract sockets come with the network: that is documented.
    seen = "reached hello" if network else "refused"
    assert result.output.splitlines() == [seen, seen, "127.0.0.1 127.0.0.1"]
    assert result.exit_code == 0


@pytest.mark.sandbox
def test_with_network_names_and_certificates_are_the_hosts_and_all_else_stays_closed(
    sandbox: Sandbox, work: Path
) -> None:
    words = (
        "cat /etc/resolv.conf; echo; echo ---; grep hosts: /etc/nsswitch.conf; echo $HF_HUB_OFFLINE;"
        " ls /etc/shadow /etc/ssl/private /run /var/run 2>/dev/null; (: >/etc/resolv.conf);"
        " grep -E 'CapEff|NoNew|Seccomp:' /proc/self/status | tr -d '\\n'"
    )
    result = sandbox.run(["sh", "-c", words], workdir=work, limits=QUICK, network=True)
    resolver, _, rest = result.output.partition("\n---\n")
    host = Path("/etc/resolv.conf")
    assert resolver == (host.read_text() if host.exists() else "")
    assert rest.splitlines()[:2] == ["hosts: files dns", ""]
    assert "cannot create /etc/resolv.conf" in rest
    assert rest.endswith("CapEff:\t0000000000000000NoNewPrivs:\t1Seccomp:\t2")
    assert len(rest.splitlines()) == 4, rest


def used_by_child(code: str) -> resource.struct_rusage:
    with subprocess.Popen([SYSTEM_PYTHON, "-I", "-S", "-c", code]) as child:
        _, status, rusage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return rusage


@pytest.mark.skipif(not Path(SYSTEM_PYTHON).exists(), reason="wants a small Python")
def test_a_peak_between_two_looks_is_not_missed_and_ours_is_not_taken_for_it() -> None:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wanted = own + 50 * MIB
    large = used_by_child(f"kept = bytearray(b'x') * {wanted}")
    for seen in (None, 5 * MIB):
        peak = peak_bytes(seen, large)
        assert peak is not None
        assert wanted < peak < wanted + 50 * MIB
    assert peak_bytes(2 * wanted, large) == 2 * wanted
    small = used_by_child("pass")
    assert small.ru_maxrss * 1024 > 30 * MIB, "the kernel no longer counts our own peak"
    assert peak_bytes(None, small) is None
    assert peak_bytes(5 * MIB, small) == 5 * MIB


@pytest.mark.sandbox
def test_the_peak_of_a_run_is_at_least_that_of_its_largest_process(
    sandbox: Sandbox, work: Path
) -> None:
    wanted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 50 * MIB
    limits = replace(QUICK, memory_bytes=4 * wanted)
    result = run_python(sandbox, work, f"kept = bytearray(b'x') * {wanted}", limits)
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes > wanted


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="only root takes groups")
def test_roots_own_groups_are_not_a_runs(work: Path) -> None:
    argv = ["sh", "-c", "grep Groups /proc/self/status"]
    with drive(["setpriv", "--groups=54321", sys.executable], work, argv) as daemon:
        answer, _ = daemon.communicate(timeout=60)
    assert answer.split() == ["exited", "0", "Groups:"], answer


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_only_the_thread_that_starts_a_sandbox_becomes_its_user() -> None:
    """labd's other threads stay root, in their own file system."""
    code = """
import os, tempfile, threading, time
from pathlib import Path
from tests.boxes import make_sandbox
box = make_sandbox()
with tempfile.TemporaryDirectory() as name:
    box.run(["true"], workdir=Path(name))
    deadline = time.monotonic() + 20
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)  # a joined thread may take a moment to leave the kernel
    threads = [Path(f"/proc/self/task/{each}/status").read_text() for each in os.listdir("/proc/self/task")]
assert all("Uid:\\t0\\t0\\t0\\t0" in text for text in threads), threads
assert os.getresuid() == (0, 0, 0)
threading.Thread(target=lambda: print(os.geteuid(), os.getcwd())).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        cwd="/usr",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0 /usr\n", "")
