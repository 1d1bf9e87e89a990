"""One run: whatever the command does, it ends as a value or as a reason, and nothing of it gets out."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from labd.errors import SandboxError
from labd.research import measure as module
from labd.research.experiment import Cancelled, Tools, run_one
from labd.research.record import Run, TrialStatus
from labd.sandbox import Sandbox
from labd.template import Template, load_template
from labd.trees import remove_tree
from tests.boxes import make_sandbox
from tests.factories import make_template

HOSTILE = """
    import argparse, json, os, sys, time
    parser = argparse.ArgumentParser()
    for name in ("--params", "--seed", "--split", "--out_dir"):
        parser.add_argument(name)
    args = parser.parse_args()
    mode = json.load(open(args.params))["mode"]
    path = os.path.join(args.out_dir, "metrics.json")

    def write(text):
        with open(path, "w") as file:
            file.write(text)

    def metric(value):
        write(json.dumps({"metrics": {"score": value}}))

    if mode == "ok":
        curves = {"loss": [2, 1.5, float("nan"), 1], "many": list(range(5000)), "bad": ["x"], "../x": [1], "no": 3}
        write(json.dumps({"metrics": {"score": 0.5, "other": "x"}, "curves": curves, "more": []}))
    if mode == "context":
        print(args.seed, args.split, os.getcwd(), sorted(os.listdir()), os.environ["OMP_NUM_THREADS"])
        metric(hash("a fixed hash seed"))
    if mode == "crash":
        print("first line")
        sys.exit("bad \\x1b[31m thing" + "y" * 1000)
    if mode == "silent": sys.exit(3)
    if mode == "signal": os.kill(os.getpid(), 9)
    if mode == "hang": time.sleep(60)
    if mode == "garbage": write("{\\x00 nonsense")
    if mode == "list": write("[1]")
    if mode == "nan": metric(float("nan"))
    if mode == "infinite": metric(float("-inf"))
    if mode == "huge": write('{"metrics": {"score": 1' + "0" * 4000 + "}}")
    if mode == "digits": write('{"metrics": {"score": 1' + "0" * 10000 + "}}")
    if mode == "bool": metric(True)
    if mode == "text": metric("0.9")
    if mode == "null": metric(None)
    if mode == "other": write('{"metrics": {"scores": 1}}')
    if mode == "unnested": write('{"score": 1}')
    if mode == "deep": write("[" * 2000000)
    if mode == "large": open(path, "w").truncate(100000000)
    if mode == "fifo": os.mkfifo(path)
    if mode == "directory": os.mkdir(path)
    if mode == "link": os.symlink("/etc/passwd", path)
    if mode == "memory": bytearray(500 * 2**20); time.sleep(5)
    if mode == "flood":
        while True: print("x" * 10000)
    if mode == "maze":
        for _ in range(30):
            os.mkdir("d"); os.chdir("d")
        os.chmod(".", 0)
        os.chdir("/work")
        metric(1)
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Template:
    modes = {"type": "categorical", "choices": ["ok", "crash"], "baseline": "ok"}
    make_template(
        tmp_path / "templates",
        experiment=HOSTILE,
        time_limit="15s",
        memory="200MiB",
        search_space={"mode": modes},
    )
    return load_template("tiny", roots=[tmp_path / "templates"])


def run_mode(template: Template, tools: Tools, results_dir: Path, mode: str, **over: Any) -> Run:
    given: dict[str, Any] = {
        "name": f"run-{mode}",
        "params": {"mode": mode},
        "seed": 7,
        "split": "test",
    }
    return run_one(template, tools, results_dir=results_dir, **given | over)


@pytest.mark.sandbox
def test_a_good_run_gives_its_metric_and_the_curves_that_are_numbers(
    hostile: Template, sandbox: Sandbox, tmp_path: Path
) -> None:
    run = run_mode(hostile, Tools(sandbox), tmp_path, "ok")
    assert (run.status, run.value, run.reason, run.exit_code) == (TrialStatus.OK, 0.5, None, 0)
    assert run.curves == {"loss": [2, 1.5], "many": list(range(1000))}
    assert run.directory == "runs/run-ok"
    kept = sorted(path.name for path in (tmp_path / run.directory).iterdir())
    assert kept == ["log.txt", "metrics.json", "params.json"]
    assert json.loads((tmp_path / run.directory / "params.json").read_text()) == {"mode": "ok"}


@pytest.mark.sandbox
def test_a_run_gets_its_seed_and_split_an_empty_directory_and_a_fixed_hash_seed(
    hostile: Template, sandbox: Sandbox, tmp_path: Path
) -> None:
    runs = [run_mode(hostile, Tools(sandbox), tmp_path, "context", name=name) for name in "ab"]
    assert (tmp_path / "runs/a/log.txt").read_text() == "7 test /work ['params.json'] 1\n"
    assert runs[0].value == runs[1].value


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("mode", "status", "reason"),
    [
        ("crash", TrialStatus.CRASHED, "exit code 1: bad \\x1b[31m thing"),
        ("silent", TrialStatus.CRASHED, "exit code 3 and printed nothing"),
        ("signal", TrialStatus.CRASHED, "ended by SIGKILL"),
        ("garbage", TrialStatus.NO_METRIC, "is not JSON"),
        ("list", TrialStatus.NO_METRIC, "is not a JSON object"),
        ("nan", TrialStatus.NO_METRIC, "score is nan"),
        ("infinite", TrialStatus.NO_METRIC, "score is -inf"),
        ("huge", TrialStatus.NO_METRIC, "score is beyond 1e+100"),
        ("digits", TrialStatus.NO_METRIC, "is not JSON"),
        ("bool", TrialStatus.NO_METRIC, "score is not a number"),
        ("text", TrialStatus.NO_METRIC, "score is not a number"),
        ("null", TrialStatus.NO_METRIC, "score is not a number"),
        ("other", TrialStatus.NO_METRIC, "no metric named score"),
        ("unnested", TrialStatus.NO_METRIC, "no object named metrics"),
        ("deep", TrialStatus.NO_METRIC, "nested too deep"),
        ("large", TrialStatus.NO_METRIC, "more than 4194304 bytes"),
        ("nothing", TrialStatus.NO_METRIC, "wrote no metrics.json"),
        ("fifo", TrialStatus.NO_METRIC, "metrics.json"),
        ("directory", TrialStatus.NO_METRIC, "metrics.json"),
        ("link", TrialStatus.NO_METRIC, "metrics.json"),
        ("flood", TrialStatus.LIMIT, "printed more than it may"),
    ],
)
def test_a_bad_run_gives_no_value_and_says_why(
    hostile: Template,
    sandbox: Sandbox,
    tmp_path: Path,
    *,
    mode: str,
    status: TrialStatus,
    reason: str,
) -> None:
    run = run_mode(hostile, Tools(sandbox), tmp_path, mode)
    assert (run.status, run.value, run.curves) == (status, None, {})
    assert run.reason is not None
    assert reason in run.reason
    assert len(run.reason) < 400
    assert run.reason.isprintable()
    assert (tmp_path / run.directory / "log.txt").is_file()
    assert not (tmp_path / run.directory / "work").exists()
    assert not (tmp_path / run.directory / "metrics.json").exists()


@pytest.mark.sandbox
def test_a_run_that_takes_too_much_memory_is_no_result(
    hostile: Template, sandbox: Sandbox, tmp_path: Path
) -> None:
    run = run_mode(hostile, Tools(sandbox), tmp_path, "memory")
    assert run.status in {TrialStatus.LIMIT, TrialStatus.CRASHED}
    assert run.value is None


@pytest.mark.sandbox
def test_a_run_that_hangs_is_ended_at_its_limit(tmp_path: Path, sandbox: Sandbox) -> None:
    make_template(tmp_path / "templates", experiment=HOSTILE, time_limit="1s")
    template = load_template("tiny", roots=[tmp_path / "templates"])
    run = run_mode(template, Tools(sandbox), tmp_path, "hang")
    assert (run.status, run.value, run.exit_code) == (TrialStatus.TIMED_OUT, None, None)
    assert run.reason == "it did not end within its 1 s"


@pytest.mark.sandbox
def test_what_a_killed_run_left_behind_is_gone_before_the_next(
    hostile: Template, sandbox: Sandbox, tmp_path: Path
) -> None:
    work = tmp_path / "runs" / "run-nothing" / "work"
    work.mkdir(parents=True)
    (work / "metrics.json").write_text('{"metrics": {"score": 1}}')
    run = run_mode(hostile, Tools(sandbox), tmp_path, "nothing")
    assert run.status is TrialStatus.NO_METRIC


@pytest.mark.sandbox
def test_a_maze_of_directories_is_removed(
    hostile: Template, sandbox: Sandbox, tmp_path: Path
) -> None:
    run = run_mode(hostile, Tools(sandbox), tmp_path, "maze")
    assert run.value == 1
    assert not (tmp_path / run.directory / "work").exists()


@pytest.mark.sandbox
def test_a_cancelled_run_is_no_result(hostile: Template, sandbox: Sandbox, tmp_path: Path) -> None:
    tools = Tools(sandbox)
    timer = threading.Timer(0.3, tools.cancelled.set)
    timer.start()
    with pytest.raises(Cancelled):
        run_mode(hostile, tools, tmp_path, "hang")
    timer.join()
    with pytest.raises(Cancelled):
        run_mode(hostile, tools, tmp_path, "ok", name="never-started")
    assert not (tmp_path / "runs" / "never-started").exists()


def test_without_a_sandbox_nothing_is_run(hostile: Template, tmp_path: Path) -> None:
    tools = Tools(make_sandbox(bwrap="no-such-bwrap"))
    with pytest.raises(SandboxError):
        run_mode(hostile, tools, tmp_path, "ok")


# The reader by itself, where the sandbox's own tidying is not in front of it.


def refused(path: Path) -> str:
    with pytest.raises(module._NoMetricError) as caught:
        module._read_plain(path, 1000)
    return str(caught.value)


def test_the_reader_follows_no_link_and_waits_for_no_pipe(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"{}")
    assert module._read_plain(good, 1000) == b"{}"
    (tmp_path / "link").symlink_to(good)
    assert "not a plain" in refused(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    assert "not a plain" in refused(tmp_path / "pipe")
    assert "not a plain" in refused(Path("/dev/zero"))
    os.link(good, tmp_path / "second-name")
    assert "not a plain" in refused(good)


def test_a_tree_too_deep_for_recursion_and_closed_to_its_owner_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    top = tmp_path / "top"
    top.mkdir()
    (top / "way-out").symlink_to(outside)
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.fchmod(here, 0)
    os.close(here)
    (top / "d").chmod(0)
    remove_tree(top)
    assert not top.exists()
    assert (outside / "kept").read_text() == "x"
    remove_tree(top)  # nothing there is fine


def test_a_run_that_is_killed_from_outside_is_run_again_and_not_called_a_crash(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    slow = """
        import json, time
        time.sleep(1.5)
        json.dump({"metrics": {"score": 1.0}}, open("/work/metrics.json", "w"))
    """
    template = load_template(
        "slow", roots=[make_template(tmp_path / "t", "slow", experiment=slow).parent]
    )
    killed: list[int] = []

    def kill_the_first() -> None:
        mark = b"/inputs/template/experiment.py"
        deadline = time.monotonic() + 20
        while not killed and time.monotonic() < deadline:
            for directory in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    words = (directory / "cmdline").read_bytes().split(b"\0")
                    if mark in words and b"python" in words[0] and b"slow" not in words:
                        os.kill(int(directory.name), signal.SIGKILL)
                        killed.append(int(directory.name))
                        break
            time.sleep(0.02)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    run = run_one(
        template,
        Tools(sandbox),
        name="trial-000",
        params={"x": 0.5},
        seed=1,
        split="validation",
        results_dir=tmp_path,
    )
    killer.join(20)
    assert killed
    assert (run.status, run.value) == (TrialStatus.OK, 1.0)
