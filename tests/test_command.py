"""Commands: what they may name, what they see, how their endings are told, and what is kept of them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labd import worker
from labd.command import check_command
from labd.command.gpus import Gpus, find_gpus
from labd.command.outputs import Patterns, settle
from labd.command.places import LOCK, Fence
from labd.command.run import Attempt, Report, limits_of, run_command
from labd.errors import TaskFileError
from labd.files import locked
from labd.packing import archived, pack
from labd.settings import Home, load_home
from labd.task import parse_task
from tests.boxes import ACCEPTED_GAPS, make_sandbox
from tests.processes import wait_until

MIB = 2**20
SANDBOX = {
    "uid": 64123,
    "allow_missing": sorted(ACCEPTED_GAPS),
    "memory_bytes": 512 * MIB,
    "processes": 64,
    "disk_bytes": 64 * MIB,
    "output_bytes": MIB,
}


class Lab:
    """A lab's home whose commands are run by `worker.run`, without a daemon and without Ray."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("data", "results", "spool", "config"):
            (root / name).mkdir()
        self.home = load_home(root)

    def text(self, **keys: Any) -> str:
        return yaml.safe_dump({"kind": "command", **keys}, sort_keys=False)

    def job(self, text: str, task_id: str = "x", **over: Any) -> dict[str, Any]:
        results = self.home.results / task_id
        results.mkdir(exist_ok=True)
        return {
            "task_id": task_id,
            "attempt": 1,
            "node_id": "here",
            "num_cpus": 1.0,
            "num_gpus": 0.0,
            "timeout_s": 60.0,
            "task_text": text,
            "task_sha256": "",
            "file_name": f"{task_id}.yaml",
            "results_dir": str(results),
            "template_roots": [],
            "min_free_bytes": 0,
            "sandbox": SANDBOX,
            "allow_network": False,
            "input_roots": list(map(str, self.home.inputs)),
            "forbidden_roots": list(map(str, self.home.forbidden)),
            **over,
        }

    def run(
        self,
        keys: str | dict[str, Any],
        task_id: str = "x",
        gpus: tuple[int, ...] = (),
        **over: Any,
    ) -> dict[str, Any]:
        """Run a command, given as its `run` or as all its keys; give the outcome."""
        named = {"run": keys} if isinstance(keys, str) else keys
        return worker.run(self.job(self.text(**named), task_id, **over), gpus)

    def log(self, task_id: str = "x") -> str:
        return (self.home.results / task_id / "log.txt").read_text()

    def files(self, task_id: str = "x") -> Path:
        return self.home.results / task_id / "files"

    def refused(self, **keys: Any) -> str:
        """Give what is said at the drop of a command that may not have what it names."""
        with pytest.raises(TaskFileError) as caught:
            self.check(**keys)
        return str(caught.value)

    def check(self, *, allow_network: bool = False, home: Home | None = None, **keys: Any) -> None:
        here = home or self.home
        check_command(
            parse_task(self.text(**keys).encode(), "x.yaml"),
            "pending/x.yaml",
            roots=here.inputs,
            forbidden=here.forbidden,
            results=here.results,
            allow_network=allow_network,
        )


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def marker() -> str:
    return f"labd-marker-{uuid.uuid4().hex}"


def alive(marker: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid()
        and any(marker in word for word in process.info["cmdline"] or [])
    ]


def failed(outcome: Mapping[str, Any], code: str, *, retryable: bool = False) -> str:
    """Check that the attempt failed so; give the message."""
    assert outcome["outcome"] == "failed"
    assert (outcome["error"]["code"], outcome["error"]["retryable"]) == (code, retryable)
    return str(outcome["error"]["message"])


# What a command is and sees


@pytest.mark.sandbox
def test_a_text_is_run_by_the_shell_and_its_files_and_output_are_kept(lab: Lab) -> None:
    outcome = lab.run("echo out; echo err >&2; mkdir a; echo made >a/b.txt; pwd")
    assert (outcome["outcome"], outcome["error"], outcome["exit_code"]) == ("done", None, 0)
    assert lab.log() == "out\nerr\n/work\n"
    assert (lab.files() / "a" / "b.txt").read_text() == "made\n"


@pytest.mark.sandbox
def test_a_list_is_a_program_and_its_arguments_without_a_shell(lab: Lab) -> None:
    lab.run({"run": ["printf", "%s|", "$HOME", "a b", "", "*"]})
    assert lab.log() == "$HOME|a b||*|"


@pytest.mark.sandbox
def test_python_is_labds_own(lab: Lab) -> None:
    lab.run({"run": ["python", "-c", "import pydantic, sys; print(sys.version_info[:3])"]})
    assert lab.log() == f"{sys.version_info[:3]}\n"


@pytest.mark.sandbox
def test_result_json_says_what_was_used(lab: Lab) -> None:
    outcome = lab.run("printf 12345 >a; printf 123 >b; echo hello; ln -s a c")
    result = json.loads((lab.home.results / "x" / "result.json").read_text())
    assert result == outcome
    assert result["ending"] == "exited"
    assert result["files"] == {"count": 3, "size_bytes": 8}
    assert result["output_bytes"] == 6
    assert result["cpu_s"] >= 0
    assert set(result) >= {"peak_memory_bytes", "started_at", "finished_at", "wall_s", "gpu_s"}
    (line,) = result["summary"]
    assert line.startswith("exit code 0 after 0.")
    assert line.endswith("; 3 files")


@pytest.mark.sandbox
def test_the_environment_is_what_the_file_and_labd_say_and_nothing_of_the_host(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "told")
    env = {"A": "1 '\" $x\n2", "B": ""}
    lab.run({"run": "env -0", "env": env}, attempt=3, num_cpus=2.9)
    said = dict(item.split("=", 1) for item in lab.log().split("\0") if item)
    assert {name: said[name] for name in env} == env
    assert (said["LABD_TASK"], said["LABD_ATTEMPT"], said["LABD_FILES"]) == ("x", "3", "/work")
    assert (said["CUDA_VISIBLE_DEVICES"], said["OMP_NUM_THREADS"]) == ("", "2")
    assert "SECRET_OF_THE_HOST" not in said


@pytest.mark.sandbox
def test_the_number_of_threads_is_at_least_one_and_the_files_own_word_counts(lab: Lab) -> None:
    lab.run("echo $OMP_NUM_THREADS", num_cpus=0.25)
    assert lab.log() == "1\n"
    lab.run({"run": "echo $OMP_NUM_THREADS", "env": {"OMP_NUM_THREADS": "7"}})
    assert lab.log() == "7\n"


@pytest.mark.sandbox
def test_limits_hold_whatever_the_file_puts_into_the_environment(lab: Lab) -> None:
    (lab.root / "data" / "bin").mkdir()
    fake = lab.root / "data" / "bin" / "prlimit"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    fake.chmod(0o755)
    lab.run(
        {
            "run": "cat /proc/self/limits",
            "env": {"PATH": "/inputs/bin:/usr/bin:/bin"},
            "inputs": {"bin": str(fake.parent)},
        }
    )
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lab.log().splitlines()}
    assert limits["Max processes"] == ["65", "65"]
    assert limits["Max data size"] == [str(512 * MIB), str(512 * MIB)]
    assert limits["Max file size"] == [str(64 * MIB), str(64 * MIB)]


@pytest.mark.sandbox
def test_the_workdir_is_seen_read_only_and_is_where_the_command_starts(lab: Lab) -> None:
    code = lab.root / "data" / "code"
    code.mkdir()
    (code / "train.sh").write_text("pwd; echo new >$LABD_FILES/model; echo bad >here")
    outcome = lab.run({"run": "sh train.sh", "workdir": str(code)})
    failed(outcome, "exit_code")
    assert lab.log().startswith("/workdir\n")
    assert "Read-only file system" in lab.log()
    assert (lab.files() / "model").read_text() == "new\n"
    assert sorted(path.name for path in code.iterdir()) == ["train.sh"]


@pytest.mark.sandbox
def test_inputs_are_files_and_directories_seen_read_only_by_their_names(lab: Lab) -> None:
    (lab.root / "data" / "set").mkdir()
    (lab.root / "data" / "set" / "a").write_text("one\n")
    (lab.root / "data" / "labels.csv").write_text("two\n")
    outcome = lab.run(
        {
            "run": "cat /inputs/images/a /inputs/labels; ! echo x >/inputs/labels",
            "inputs": {
                "images": str(lab.root / "data" / "set"),
                "labels": str(lab.root / "data" / "labels.csv"),
            },
        }
    )
    assert outcome["outcome"] == "done"
    assert lab.log().startswith("one\ntwo\n")
    assert (lab.root / "data" / "labels.csv").read_text() == "two\n"


@pytest.mark.sandbox
def test_the_gpus_that_were_assigned_are_the_ones_that_cuda_sees(lab: Lab) -> None:
    gpus = find_gpus([1, 3])
    lab.run("echo $CUDA_VISIBLE_DEVICES", gpus=(1, 3), num_gpus=2)
    assert lab.log() == f"{gpus.visible}\n"
    assert gpus.visible == "1,3" or gpus.visible.count("GPU-") == 2


def test_without_gpus_none_is_visible() -> None:
    assert find_gpus([]) == Gpus((), "")


@pytest.fixture
def server() -> Iterator[int]:
    """A TCP server on the loopback that greets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            try:
                while True:
                    connection, _ = listening.accept()
                    connection.sendall(b"hello")
                    connection.close()
            except OSError:
                return

        thread = threading.Thread(target=greet)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


ASK = "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).recv(9))"


@pytest.mark.sandbox
def test_the_network_is_there_only_where_file_and_settings_both_say_so(
    lab: Lab, server: int
) -> None:
    ask = {"run": ["python", "-c", ASK, str(server)]}
    failed(lab.run(ask, allow_network=True), "exit_code")
    assert "Connection refused" in lab.log()
    assert lab.run({**ask, "network": True}, allow_network=True)["outcome"] == "done"
    assert lab.log() == "b'hello'\n"
    said = failed(lab.run({**ask, "network": True}), "task_file")
    assert "x.yaml:8:1: network: found true" in said
    assert "allow_network: true" in said


# How it ends


@pytest.mark.sandbox
def test_an_exit_code_is_a_failure_that_says_the_last_lines(lab: Lab) -> None:
    outcome = lab.run("seq 100; printf '\\033[31mno such file\\n' >&2; exit 3")
    said = failed(outcome, "exit_code")
    assert said == "exit code 3; it said last: 97 | 98 | 99 | 100 | \\x1b[31mno such file"
    assert (outcome["exit_code"], outcome["ending"]) == (3, "exited")


@pytest.mark.sandbox
def test_a_silent_failure_is_told_as_such(lab: Lab) -> None:
    assert failed(lab.run("exit 7"), "exit_code") == "exit code 7, without any output"


@pytest.mark.sandbox
@pytest.mark.parametrize("name", ["SEGV", "TERM", "KILL"])
def test_a_command_that_dies_of_a_signal_is_not_tried_again(lab: Lab, name: str) -> None:
    outcome = lab.run(f"kill -{name} $$")
    number = getattr(signal, f"SIG{name}")
    assert f"ended by SIG{name} (exit code {128 + number})" in failed(outcome, "exit_code")
    assert outcome["exit_code"] == -number


@pytest.mark.sandbox
def test_a_program_that_is_not_there_is_a_failure(lab: Lab) -> None:
    failed(lab.run({"run": ["/no/such/program"]}), "exit_code")


ESCAPES = """
import os, subprocess, sys, time
mark = sys.argv[1]
sleep = [sys.executable, "-c", "import time; time.sleep(600)", mark]
subprocess.Popen(sleep, start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sleep[0], sleep)
    os._exit(0)
open("ready", "w").close()
time.sleep(600)
"""


@pytest.mark.sandbox
def test_after_the_timeout_everything_is_dead_however_it_detached(lab: Lab, marker: str) -> None:
    outcome = lab.run({"run": ["python", "-c", ESCAPES, marker]}, timeout_s=3.0)
    assert "killed after its timeout of 3.0 s" in failed(outcome, "timed_out")
    assert (lab.files() / "ready").exists()
    assert alive(marker) == []


def run_in_thread(lab: Lab, keys: dict[str, Any]) -> tuple[threading.Thread, list[Report]]:
    (lab.home.results / "x").mkdir()
    reports: list[Report] = []

    def work() -> None:
        report = run_command(
            parse_task(lab.text(**keys).encode(), "x.yaml"),
            Attempt("x", 1, lab.home.results / "x", 1.0, ()),
            make_sandbox(),
            where="x.yaml",
            fence=Fence(lab.home.inputs, lab.home.forbidden, lab.home.results),
            allow_network=False,
            limits=limits_of(SANDBOX, wall_s=60, room_bytes=2**30),
        )
        reports.append(report)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, reports


@pytest.mark.sandbox
def test_a_sandbox_that_was_killed_from_outside_says_nothing_about_the_command(
    lab: Lab, marker: str
) -> None:
    thread, reports = run_in_thread(lab, {"run": ["python", "-c", ESCAPES, marker]})
    wait_until((lab.files() / "ready").exists, what="the command")
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # killing one may end the next
            if "bwrap" in child.name():
                child.kill()
    thread.join(30)
    assert reports[0].error is not None
    assert (reports[0].error["code"], reports[0].error["retryable"]) == ("killed", True)
    assert reports[0].disturbed
    wait_until(lambda: not alive(marker), what="the end of its children")


@pytest.mark.sandbox
def test_too_much_memory_is_out_of_memory_and_may_be_tried_again(lab: Lab) -> None:
    hog = "import subprocess, sys, time; [subprocess.Popen([sys.executable, '-c', 'x = b\"a\" * 300_000_000; import time; time.sleep(60)']) for _ in range(4)]; time.sleep(60)"
    said = failed(lab.run({"run": ["python", "-c", hog]}), "memory_limit", retryable=True)
    assert said.startswith("out of memory: it was killed for using more than 512 MiB")


@pytest.mark.sandbox
def test_output_is_kept_head_and_tail_with_the_cut_stated(lab: Lab) -> None:
    sandbox = {**SANDBOX, "output_bytes": 4096}
    outcome = lab.run("echo first; seq 2000; echo last", sandbox=sandbox)
    assert outcome["outcome"] == "done"
    log = lab.log()
    assert log.startswith("first\n1\n")
    assert log.endswith("2000\nlast\n")
    assert "bytes of output cut" in log
    assert outcome["output_bytes"] == len(log.encode()) < 4300


@pytest.mark.sandbox
def test_output_without_end_is_ended(lab: Lab) -> None:
    outcome = lab.run("yes", sandbox={**SANDBOX, "output_bytes": 4096})
    failed(outcome, "output_limit")


@pytest.mark.sandbox
def test_files_without_end_are_ended(lab: Lab) -> None:
    outcome = lab.run(
        "for n in 1 2 3 4; do dd if=/dev/zero of=$n bs=1M count=4; done; sleep 30",
        sandbox={**SANDBOX, "disk_bytes": 8 * MIB},
    )
    assert "for writing more than 8 MiB" in failed(outcome, "disk_limit")


@pytest.mark.sandbox
def test_no_more_is_written_than_the_disk_has_room_for(lab: Lab) -> None:
    free = os.statvfs(lab.root).f_bavail * os.statvfs(lab.root).f_frsize
    outcome = lab.run(
        "dd if=/dev/zero of=a bs=1M count=40; sleep 30", min_free_bytes=free - 10 * MIB
    )
    failed(outcome, "disk_limit")


# What is kept


@pytest.mark.sandbox
def test_only_outputs_are_kept_after_success(lab: Lab) -> None:
    make = "mkdir -p a/b c d/e; touch x.pt y.txt a/z.pt a/b/deep.csv c/one d/e/two; ln -s /etc/passwd out; ln -s y.txt in.pt"
    outcome = lab.run({"run": make, "outputs": ["*.pt", "**/*.csv", "c"]})
    left = sorted(str(path.relative_to(lab.files())) for path in lab.files().rglob("*"))
    assert left == ["a", "a/b", "a/b/deep.csv", "c", "c/one", "in.pt", "x.pt"]
    assert outcome["files"]["count"] == 4


@pytest.mark.sandbox
def test_everything_is_kept_after_a_failure(lab: Lab) -> None:
    lab.run({"run": "touch x.pt trace.txt; exit 1", "outputs": "*.pt"})
    assert sorted(path.name for path in lab.files().iterdir()) == ["trace.txt", "x.pt"]


@pytest.mark.sandbox
def test_a_later_attempt_finds_the_files_and_the_last_five_logs_stay(lab: Lab) -> None:
    for attempt in range(1, 9):
        lab.run("echo $LABD_ATTEMPT >>all; cat all; exit 1", attempt=attempt)
    assert lab.log() == "".join(f"{n}\n" for n in range(1, 9))
    names = sorted(path.name for path in (lab.home.results / "x").iterdir())
    assert names == [".lock", "files", *(f"log.attempt-{n}.txt" for n in range(3, 8)), "log.txt", "result.json"]  # fmt: skip
    assert (lab.home.results / "x" / "log.attempt-4.txt").read_text() == "1\n2\n3\n4\n"


@pytest.mark.sandbox
def test_files_that_were_compressed_meanwhile_are_there_for_a_later_attempt(lab: Lab) -> None:
    lab.run("echo kept > a")
    pack(lab.home.results / "x", "files")
    named = lab.refused(run="true", inputs={"first": str(lab.files() / "a")})
    assert "its task's files are compressed: `labd unpack x`" in named
    assert lab.run("cat a", attempt=2)["outcome"] == "done"
    assert lab.log() == "kept\n"
    assert archived(lab.home.results / "x") == []


@pytest.mark.sandbox
def test_two_attempts_never_run_at_once(lab: Lab, marker: str) -> None:
    first = threading.Thread(
        target=lambda: lab.run(
            f": {marker}; touch one; while [ ! -e go ]; do sleep 0.05; done; rm go"
        )
    )
    first.start()
    wait_until((lab.files() / "one").exists, what="the first attempt")
    second = threading.Thread(target=lambda: lab.run("test ! -e go && touch two", attempt=2))
    second.start()
    time.sleep(0.3)
    assert not (lab.files() / "two").exists()
    (lab.files() / "go").touch()
    first.join(30)
    second.join(30)
    assert (lab.files() / "two").exists()


@pytest.mark.sandbox
def test_hostile_names_in_the_files_are_harmless(lab: Lab) -> None:
    name = "\x1b]0;owned\x07\n..\udcff 'x' $(touch y)"
    code = f"import os; open({name!r}, 'w').close(); os.mkdir('-rf'); print(os.listdir()[0].encode(errors='surrogateescape')); raise SystemExit({name!r}.encode('ascii', 'ignore').decode())"
    outcome = lab.run({"run": ["python", "-c", code]})
    said = failed(outcome, "exit_code")
    assert said.isprintable()
    assert outcome["summary"][0].isprintable()
    assert outcome["files"]["count"] == 1
    lab.run({"run": "true", "outputs": "*owned*"}, attempt=2)
    assert os.listdir(os.fsencode(lab.files())) == [os.fsencode(name)]  # noqa: PTH208 - bytes


@pytest.mark.sandbox
def test_the_seed_of_a_command_is_warned_of_in_its_log(lab: Lab) -> None:
    lab.run({"run": "true", "seed": 3})
    (line,) = (lab.home.results / "x" / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "seed: has no effect in a command"


@pytest.mark.sandbox
def test_a_command_needs_none_of_what_research_needs() -> None:
    code = "import sys, labd.worker, labd.command.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "scipy", "optuna", "sklearn", "matplotlib", "pynvml", "ray"}
    assert heavy & set(done.stdout.split()) == set()


# What it may name


def test_what_lies_below_the_places_for_inputs_may_be_named(lab: Lab) -> None:
    (lab.root / "data" / "set").mkdir()
    (lab.root / "data" / "link").symlink_to("set")
    for path in ("data", "data/set", "data/../data/set", "data/link"):
        lab.check(run="ls", workdir=str(lab.root / path), inputs={"a": str(lab.root / path)})


def test_a_path_elsewhere_is_refused_with_the_line_that_would_allow_it(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("else where: [x]")
    (elsewhere / "file").touch()
    said = lab.refused(
        run="ls", inputs={"ok": str(lab.root / "data"), "a": str(elsewhere / "file")}
    )
    assert said.startswith(f"pending/x.yaml:5:3: inputs.a: found {elsewhere}/file; wanted: ")
    line = said[said.index("`") + 1 : said.rindex("`")]
    (lab.root / "config" / "labd.yaml").write_text(line + "\n")
    lab.check(run="ls", inputs={"a": str(elsewhere / "file")}, home=load_home(lab.root))
    lab.check(run="ls", inputs={"a": str(lab.root / "data")}, home=load_home(lab.root))


def test_every_wrong_path_is_told_on_its_own_line(lab: Lab) -> None:
    said = lab.refused(run="ls", inputs={"a": "/etc", "b": "/usr"}, workdir="/", network=True)
    assert [line.split(": ")[1] for line in said.splitlines()] == [
        "inputs.a",
        "inputs.b",
        "workdir",
        "network",
    ]


def test_a_link_can_lead_nowhere_that_could_not_be_named(lab: Lab) -> None:
    (lab.root / "data" / "out").symlink_to("/etc")
    (lab.root / "data" / "round").symlink_to("round")
    assert "which leads to /etc" in lab.refused(run="ls", workdir=str(lab.root / "data" / "out"))
    assert "which leads to /etc/passwd" in lab.refused(
        run="ls", inputs={"a": str(lab.root / "data" / "out" / "passwd")}
    )
    assert "wanted: a file or directory" in lab.refused(
        run="ls", inputs={"a": str(lab.root / "data" / "round")}
    )


@pytest.mark.parametrize(
    "name", ["", "spool", "spool/.labd/x", "config", "results", "results/.ahead/x"]
)
def test_what_is_the_labs_own_may_not_be_named_nor_what_is_around_it(lab: Lab, name: str) -> None:
    home = Home(lab.root, lab.home.settings.model_copy(update={"inputs": ("data", "/", ".")}))
    path = lab.root / name
    path.mkdir(parents=True, exist_ok=True)
    with pytest.raises(TaskFileError, match="a place apart from the lab's own"):
        lab.check(run="ls", workdir=str(path), home=home)


def test_the_results_of_one_task_may_be_named_before_they_are_there(lab: Lab) -> None:
    for path in ("results/other", "results/other/files/model.pt"):
        lab.check(run="ls", inputs={"a": str(lab.root / path)})
    (lab.root / "results" / "other").mkdir()
    (lab.root / "results" / "other" / "link").symlink_to(lab.root / "spool")
    lab.refused(run="ls", inputs={"a": str(lab.root / "results" / "other" / "link")})


def test_what_is_not_there_or_no_plain_thing_is_refused(lab: Lab) -> None:
    os.mkfifo(lab.root / "data" / "pipe")
    (lab.root / "data" / "file").touch()
    assert "that is there" in lab.refused(run="ls", workdir=str(lab.root / "data" / "none"))
    assert "wanted: a directory" in lab.refused(run="ls", workdir=str(lab.root / "data" / "file"))
    lab.refused(run="ls", inputs={"a": str(lab.root / "data" / "pipe")})
    lab.refused(run="ls", inputs={"a": str(lab.root / "data" / ("x" * 300))})


def test_the_network_is_refused_with_the_line_that_would_allow_it(lab: Lab) -> None:
    said = lab.refused(run="ls", network=True)
    assert "pending/x.yaml:3:1: network: found true" in said
    assert "`allow_network: true` below `sandbox:` in config/labd.yaml" in said
    lab.check(run="ls", network=True, allow_network=True)


@pytest.mark.sandbox
def test_paths_are_judged_again_right_before_the_command_runs(lab: Lab) -> None:
    place = lab.root / "data" / "set"
    place.mkdir()
    keys: dict[str, Any] = {"run": "ls /inputs/a", "inputs": {"a": str(place)}}
    lab.check(**keys)
    place.rmdir()
    place.symlink_to("/etc")
    assert "which leads to /etc" in failed(lab.run(keys), "task_file")
    assert not lab.files().exists()


@pytest.mark.sandbox
@pytest.mark.parametrize("lock", [LOCK, "journal.jsonl"])
def test_a_running_tasks_results_are_refused_and_a_finished_ones_are_read(
    lab: Lab, lock: str
) -> None:
    lab.run("echo model >m.pt", "train")
    keys = {"run": "cat /inputs/a/m.pt", "inputs": {"a": str(lab.files("train"))}}
    with locked(lab.home.results / "train" / lock):
        assert "put `after: train` into the file" in failed(lab.run(keys), "task_file")
    assert lab.run(keys)["outcome"] == "done"
    assert lab.log() == "model\n"


# Patterns


@pytest.mark.parametrize(
    ("pattern", "path", "kept"),
    [
        ("*.pt", "a.pt", True),
        ("*.pt", "a/b.pt", False),
        ("**/*.pt", "b.pt", True),
        ("**/*.pt", "a/b/c.pt", True),
        ("a/**", "a/b/c", True),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("a/**/c", "b/c", False),
        ("a", "a/b/c", True),
        ("./a/", "a/b", True),
        ("[ab].txt", "b.txt", True),
        ("?.txt", "ab.txt", False),
        ("*", ".hidden", True),
        ("**", "a/b", True),
        ("a*b", "a\nb", True),
    ],
)
def test_patterns_keep_what_they_say(tmp_path: Path, pattern: str, path: str, kept: bool) -> None:  # noqa: FBT001
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert settle(tmp_path, [pattern]).files == int(kept)
    assert (tmp_path / path).exists() == kept


SMALL = st.sampled_from(["a", "b", "ab"])
PIECES = st.sampled_from(["a", "b", "*", "a*", "?", "**", "[ab]"])


@given(
    st.lists(st.lists(SMALL, min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(st.lists(PIECES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=3),
)
def test_patterns_agree_with_a_slow_and_simple_matcher(
    paths: list[list[str]], texts: list[str]
) -> None:
    import fnmatch  # noqa: PLC0415 - the oracle's only

    def simple(parts: list[str], pieces: list[str]) -> bool:
        if not pieces:
            return not parts
        if pieces[0] == "**":
            return any(simple(parts[n:], pieces[1:]) for n in range(len(parts) + 1))
        return (
            bool(parts)
            and fnmatch.fnmatchcase(parts[0], pieces[0])
            and simple(parts[1:], pieces[1:])
        )

    patterns = Patterns(texts)
    for path in paths:
        states = patterns.start
        for name in path:
            states = patterns.after(states, name)
        assert patterns.matched(states) == any(simple(path, text.split("/")) for text in texts)


def test_no_link_is_followed_when_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "precious").touch()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "link").symlink_to("../keep")
    settle(tmp_path / "files", ["nothing"])
    assert (tmp_path / "keep" / "precious").exists()
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.sandbox
def test_a_limit_on_the_disk_counts_what_an_earlier_attempt_left(lab: Lab) -> None:
    lab.run("dd if=/dev/zero of=a bs=1M count=20")
    free = os.statvfs(lab.root).f_bavail * os.statvfs(lab.root).f_frsize
    again: dict[str, Any] = {"attempt": 2, "min_free_bytes": free - 10 * MIB}
    assert lab.run("dd if=/dev/zero of=b bs=1M count=2; sleep 1", **again)["outcome"] == "done"
    failed(lab.run("dd if=/dev/zero of=c bs=1M count=20; sleep 30", **again), "disk_limit")


def test_there_is_always_a_limit_on_the_disk() -> None:
    limits = limits_of(SANDBOX, wall_s=5, room_bytes=-3)
    assert (limits.disk_bytes, limits.file_bytes, limits.wall_s) == (1, 64 * MIB, 5)
    assert replace(limits, disk_bytes=64 * MIB) == limits_of(SANDBOX, wall_s=5, room_bytes=2**40)
