"""The daemon as its users meet it: real Ray, real sandboxes, real files dropped by real processes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from labd import __version__
from labd.archive import Archive
from labd.campaigns import MEMORY, Memory, Remembered
from labd.lab import Lab
from labd.spool import Spool
from labd.task import State
from tests.factories import PARABOLA, make_template, parabola_space, task_text, write_settings
from tests.hygiene_docs import unbounded
from tests.processes import COSTLY_S, DaemonProcess, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.sandbox,
    pytest.mark.timeout(400),
]

# Machines are looked at every two seconds where tasks are taken for stuck so early.
SETTINGS = {
    "min_free_bytes": 2**20,
    "stuck_after": "12s",
}
CRASH = "import sys\nprint('about to fail')\nsys.exit('it \\x1b[31mwent wrong')"
SLEEP = "import time\ntime.sleep(600)"
METRICS = "import pathlib\nout = pathlib.Path('/work')\n"


class LiveLab:
    """A lab with a running daemon, and what tests ask of it."""

    def __init__(self, root: Path, *, num_cpus: int = 2) -> None:
        ray = {"num_cpus": num_cpus, "dashboard": False}
        self.home = write_settings(root, ray=ray, **SETTINGS)
        self.spool = Spool(self.home.spool)
        self.archive = Archive(self.home.results)
        (root / "config" / "templates").mkdir(parents=True)
        self.spool.prepare()

    def template(self, name: str, experiment: str, **over: Any) -> None:
        make_template(self.home.templates, name, experiment=experiment, **over)

    def drop(self, name: str, text: str | bytes) -> None:
        """Write a file into pending/ as `cp` does: opened, written and closed under its own name."""
        raw = text.encode() if isinstance(text, str) else text
        (self.home.spool / "pending" / name).write_bytes(raw)

    def state(self, task: str) -> State | None:
        found = self.spool.where(task)
        return found[0][0] if found else None

    def wait(self, task: str, *states: State, timeout_s: float = 90) -> State:
        def there() -> State | None:
            state = self.state(task)
            return state if state in states else None

        state = wait_until(there, timeout_s, f"{task} in {states}")
        assert state is not None
        return state

    def error(self, task: str) -> str:
        return str(self.archive.history(task).events[-1]["error"]["message"])

    def said(self, *words: str) -> str:
        command = [sys.executable, "-m", "labd.cli", "--home", str(self.home.root), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    def listed(self) -> dict[str, dict[str, Any]]:
        return {task["id"]: task for task in json.loads(self.said("list", "--json"))["tasks"]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveLab, DaemonProcess]]:
    """One lab and one daemon for all tests that do no harm to it."""
    the_lab = LiveLab(tmp_path_factory.mktemp("lab"))
    the_lab.template("tiny", PARABOLA % 0)
    the_lab.template("quick", PARABOLA % 0, search_space=parabola_space(0.7))
    the_lab.template("crashing", CRASH)
    the_lab.template("hanging", SLEEP, time_limit="1s")
    the_lab.template(
        "garbage", METRICS + "(out / 'metrics.json').write_bytes(b'\\x00\\xffgarbage')"
    )
    the_lab.template("silent", "print('done')")
    the_lab.template(
        "nan", METRICS + "(out / 'metrics.json').write_text('{\"metrics\": {\"score\": NaN}}')"
    )
    the_lab.template("sleeping", SLEEP, time_limit="10m")
    # An earlier daemon has seen the campaign of `CAMPAIGN`, whose file comes later.
    seen = Memory(dict.fromkeys(("work", "end"), CAMPAIGN_AT - timedelta(hours=1)))
    Remembered(the_lab.home.run_dir / MEMORY).write({"weekend": seen})
    process = DaemonProcess(the_lab.home.root)
    process.wait_ready()
    yield the_lab, process
    lived = process.process.poll() is None
    code = process.stop() if lived else None
    process.kill_everything()
    assert lived, "the daemon did not live through the tests"
    assert code == 0
    assert unbounded(the_lab.home.run_dir) == [], "it wrote what docs/operations.md does not know"


CAMPAIGN_AT = (datetime.now(UTC) - timedelta(minutes=20)).replace(second=0, microsecond=0)
CAMPAIGN = f"""
enabled: true
task: {{researcher: sweep, max_runs: 4, num_seeds: 10}}
matrix: {{template: [tiny, crashing]}}
steps:
  work: {{schedule: "{CAMPAIGN_AT.minute} {CAMPAIGN_AT.hour} * * *"}}
  end: {{schedule: "{CAMPAIGN_AT.minute} {CAMPAIGN_AT.hour} * * *", matrix: {{}}, report: true}}
"""


def test_a_dropped_file_becomes_a_paper(lab: tuple[LiveLab, DaemonProcess]) -> None:
    the_lab, _ = lab
    the_lab.drop("ok.yaml", task_text(template="tiny"))
    assert the_lab.wait("ok", State.DONE, State.FAILED) is State.DONE
    results = the_lab.archive.directory("ok")
    assert (results / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert all((results / f"paper.{kind}").stat().st_size > 1000 for kind in ("html", "tex", "md"))
    assert (the_lab.home.spool / "done" / "ok.yaml").read_text() == task_text(template="tiny")
    assert [e["event"] for e in the_lab.archive.history("ok").events] == ["claimed", "done"]


BAD = {
    "words.yaml": (b"this is not a task", "found a text"),
    "broken.yaml": (b"template: [digits\n", "not YAML"),
    "binary.yaml": (b"\x7fELF" + bytes(range(256)), "not UTF-8"),
    "empty.yaml": (b"", "empty"),
    "huge.yaml": (b"#" * (2 * 2**20), "more than 1048576 bytes"),
    "unknown-key.yaml": (b"tempalte: tiny\n", "nearest known: template"),
    "wrong-type.yaml": (b"template: tiny\npriority: soon\n", "wanted: a whole number"),
    "no-such.yaml": (b"template: tinny\n", "tiny"),
    "negative.yaml": (b"template: tiny\nnum_gpus: -1\n", "greater than or equal to 0"),
}


def test_what_is_no_task_goes_to_failed_untouched_with_its_reason(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, process = lab
    for name, (raw, _) in BAD.items():
        the_lab.drop(name, raw)
    for name, (raw, said) in BAD.items():
        task = name.removesuffix(".yaml")
        the_lab.wait(task, State.FAILED)
        assert (the_lab.home.spool / "failed" / name).read_bytes() == raw
        assert said in the_lab.error(task)
        assert (the_lab.archive.result(task) or {})["error"]["message"] == the_lab.error(task)
        wait_until(partial(_refused, process, task), 10, "the log of it")
    assert ":2:1:" in the_lab.error("wrong-type")


def _refused(process: DaemonProcess, task: str) -> bool:
    return any(line["task_id"] == task for line in process.said("task.refused"))


def test_what_is_no_plain_file_goes_to_failed_as_it_is(lab: tuple[LiveLab, DaemonProcess]) -> None:
    the_lab, _ = lab
    pending, failed = the_lab.home.spool / "pending", the_lab.home.spool / "failed"
    # The daemon moves it the moment that it sees it.
    directory = the_lab.home.root / "a-dir"
    directory.mkdir()
    (directory / "inside").write_text("kept")
    directory.rename(pending / "a-dir.yaml")
    (pending / "a-link.yaml").symlink_to("/etc/passwd")
    os.mkfifo(pending / "a-fifo.yaml")
    for task in ("a-dir", "a-link", "a-fifo"):
        the_lab.wait(task, State.FAILED)
    assert (failed / "a-dir.yaml" / "inside").read_text() == "kept"
    assert str((failed / "a-link.yaml").readlink()) == "/etc/passwd"
    assert (failed / "a-fifo.yaml").is_fifo()
    assert "symbolic link" in the_lab.error("a-link")
    assert "not a plain file" in the_lab.error("a-dir")


@pytest.mark.parametrize(
    "stem",
    [
        "with some spaces",
        "연구-ünïcode-✓",
        "x" * 250,
        "$(touch gone); `id`",
        "a'b\"c",
    ],
)
def test_any_name_that_a_file_may_have_is_a_task(
    lab: tuple[LiveLab, DaemonProcess], stem: str
) -> None:
    the_lab, _ = lab
    the_lab.drop(f"{stem}.yaml", task_text(template="quick", max_runs=1))
    assert the_lab.wait(stem, State.DONE, State.FAILED) is State.DONE
    assert (the_lab.archive.directory(stem) / "paper.pdf").exists()


@pytest.mark.parametrize("name", [b"two\nlines.yaml", b"\x1b[31mred.yaml", b"\xff\xfe.yaml"])
def test_a_name_that_could_do_harm_is_refused_under_a_harmless_one(
    lab: tuple[LiveLab, DaemonProcess], name: bytes
) -> None:
    the_lab, _ = lab
    before = set(the_lab.spool.names(State.FAILED))
    (the_lab.home.spool / "pending" / os.fsdecode(name)).write_text(task_text(template="tiny"))
    new = wait_until(
        lambda: set(the_lab.spool.names(State.FAILED)) - before, 30, "the refusal"
    ).pop()
    assert new.isprintable()
    assert "rename it" in the_lab.error(new.removesuffix(".yaml"))


def test_a_task_for_more_gpus_than_there_are_waits_and_says_for_what(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, _ = lab
    the_lab.drop("big.yaml", task_text(template="tiny", num_gpus=64))
    wait_until(lambda: Lab(the_lab.home).find("big").why, 30, "the reason")
    assert the_lab.listed()["big"]["why"].startswith("waits for a node with 64 GPUs and 1 CPU")
    assert the_lab.state("big") is State.PENDING
    (the_lab.home.spool / "pending" / "big.yaml").unlink()
    wait_until(lambda: "big" not in the_lab.listed(), 30, "big to be forgotten", every_s=COSTLY_S)
    assert not the_lab.archive.knows("big")


def test_a_file_that_is_written_for_three_seconds_is_taken_whole(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, _ = lab
    code = f"""
import time
with open({str(the_lab.home.spool / "pending" / "slow.yaml")!r}, "w") as file:
    for line in ("kind: command\\n", "priority: 1\\n", "timeout: 1m\\n", "run: echo whole\\n"):
        file.write(line)
        file.flush()
        time.sleep(0.8)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert the_lab.wait("slow", State.DONE, State.FAILED) is State.DONE
    assert (the_lab.archive.directory("slow") / "log.txt").read_text() == "whole\n"
    assert the_lab.archive.history("slow").attempt == 1


def test_the_same_name_again_gets_the_next_number(lab: tuple[LiveLab, DaemonProcess]) -> None:
    the_lab, _ = lab
    for task in ("twin", "twin-2", "twin-3"):
        the_lab.drop("twin.yaml", f"kind: command\nrun: echo {task}\n")
        assert the_lab.wait(task, State.DONE, State.FAILED) is State.DONE
    for task in ("twin", "twin-2", "twin-3"):
        assert (the_lab.archive.directory(task) / "log.txt").read_text() == f"{task}\n"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("crashing", "went wrong"),
        ("hanging", "1"),
        ("garbage", "JSON"),
        ("silent", "metrics.json"),
        ("nan", "is nan"),
    ],
)
def test_a_template_that_can_t_be_measured_fails_its_task_with_the_reason(
    lab: tuple[LiveLab, DaemonProcess], template: str, said: str
) -> None:
    the_lab, _ = lab
    the_lab.drop(f"t-{template}.yaml", task_text(template=template))
    the_lab.wait(f"t-{template}", State.FAILED)
    assert said in the_lab.error(f"t-{template}")
    assert "\x1b" not in the_lab.error(f"t-{template}")
    assert not (the_lab.archive.directory(f"t-{template}") / "paper.pdf").exists()


def sandboxed(process: DaemonProcess) -> list[psutil.Process]:
    """Give the processes of this daemon's experiments."""
    found = []
    for p in process.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "/inputs/template/experiment.py" in p.cmdline():
                found.append(p)
    return found


def test_moving_a_running_task_away_ends_its_processes(lab: tuple[LiveLab, DaemonProcess]) -> None:
    the_lab, process = lab
    the_lab.drop("long.yaml", task_text(template="sleeping"))
    wait_until(lambda: sandboxed(process), 60, "the experiment")
    running, cancelled = the_lab.home.spool / "running", the_lab.home.spool / "cancelled"
    (running / "long.yaml").rename(cancelled / "long.yaml")
    wait_until(lambda: not sandboxed(process), 30, "the experiment's end")
    wait_until(lambda: the_lab.archive.history("long").ended, 30, "the record of it")
    assert the_lab.archive.history("long").ended is State.CANCELLED


def test_a_task_that_takes_longer_than_its_timeout_is_ended(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, process = lab
    the_lab.drop("late.yaml", task_text(template="sleeping", timeout="4s"))
    the_lab.wait("late", State.FAILED)
    assert "time limit of 4.0 s" in the_lab.error("late")
    wait_until(lambda: not sandboxed(process), 30, "the experiment's end")


def test_a_command_that_sleeps_is_stuck_and_one_that_computes_in_silence_is_not(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, process = lab
    over = {"kind": "command", "template": None, "stuck_after": "3s", "max_retries": 0}
    busy = "import time; end = time.monotonic() + 7\nwhile time.monotonic() < end: pass"
    the_lab.drop("sleeper.yaml", task_text(run="sleep 600", **over))
    the_lab.drop("thinker.yaml", task_text(run=["python3", "-c", busy], **over))
    the_lab.wait("sleeper", State.FAILED)
    assert "it was stuck 1 time, and max_retries is 0" in the_lab.error("sleeper")
    [stuck] = [e for e in the_lab.archive.history("sleeper").events if e["event"] == "stuck"]
    assert stuck["recovery"] == "fail"
    assert [line["task_id"] for line in process.said("task.stuck")] == ["sleeper"]
    assert the_lab.wait("thinker", State.DONE, State.FAILED) is State.DONE


def test_a_failed_task_can_be_asked_for_again(lab: tuple[LiveLab, DaemonProcess]) -> None:
    the_lab, _ = lab
    the_lab.drop("again.yaml", task_text(template="crashing"))
    the_lab.wait("again", State.FAILED)
    (the_lab.home.spool / "failed" / "again.yaml").rename(
        the_lab.home.spool / "pending" / "again.yaml"
    )
    wait_until(lambda: the_lab.archive.history("again").attempt == 2, 60, "the second attempt")
    the_lab.wait("again", State.FAILED)
    assert [e["event"] for e in the_lab.archive.history("again").events] == [
        "claimed",
        "failed",
    ] * 2


def exported(daemon: DaemonProcess) -> str:
    """Give what Ray's own exporter says, in Prometheus' form."""
    for process in daemon.family():
        with contextlib.suppress(psutil.Error):
            if "DashboardAgent" not in " ".join(process.cmdline()):
                continue
            for socket in process.net_connections("tcp"):
                if socket.status != psutil.CONN_LISTEN or not socket.laddr:
                    continue
                with contextlib.suppress(OSError, HTTPException):
                    url = f"http://127.0.0.1:{socket.laddr.port}/metrics"
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        if "ray_" in (text := answer.read().decode()):
                            return str(text)
    return ""


def test_a_drained_lab_lets_its_work_end_and_begins_none_until_undrained_and_all_is_counted(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, process = lab
    asked = Lab(the_lab.home)
    the_lab.drop("drained.yaml", "kind: command\nrun: sleep 60\ntimeout: 3s\n")
    the_lab.wait("drained", State.RUNNING)

    def machine() -> dict[str, Any]:
        [node] = asked.status().facts["nodes"]
        return node["machine"] or {}

    wait_until(machine, 30, "what the machine says of itself")
    [node] = json.loads(the_lab.said("nodes", "--json"))
    assert node["machine"]["labd"] == __version__
    assert node["machine"]["problem"] == ""
    assert 0 < node["machine"]["disk_used"] < 1
    assert asked.drain(node["name"], drained=True)
    try:
        assert not asked.drain(node["name"], drained=True)
        the_lab.drop("next.yaml", "kind: command\nrun: 'true'\n")
        wait_until(lambda: "labd undrain" in asked.find("next").why, 30, "why it waits")
        the_lab.wait("drained", State.FAILED)
        assert the_lab.state("next") is State.PENDING
    finally:
        assert asked.drain(node["name"], drained=False)
    the_lab.wait("next", State.DONE)
    cpu = wait_until(lambda: machine()["cpu"], 30, "its CPUs' use")
    assert 0 < cpu <= 1

    def counted() -> list[str]:
        lines = [line for line in exported(process).splitlines() if line.startswith("ray_labd")]
        ends = [line for line in lines if line.startswith("ray_labd_tasks_ended_total")]
        wanted = ('state="done"', 'code="timed_out"')
        return lines if all(any(one in end for end in ends) for one in wanted) else []

    lines = wait_until(counted, 60, "the ends of both tasks for Prometheus", every_s=COSTLY_S)
    for name in ("queue_depth", "nodes", "task_wait_s_bucket", "task_run_s_bucket"):
        assert any(line.startswith(f"ray_labd_{name}{{") for line in lines), name
    kills = [line for line in lines if line.startswith("ray_labd_sandbox_kills_total{")]
    assert any('limit="timed_out"' in line for line in kills)


def test_a_second_daemon_is_refused_with_exit_code_4(lab: tuple[LiveLab, DaemonProcess]) -> None:
    the_lab, process = lab
    command = [sys.executable, "-m", "labd.cli", "--home", str(the_lab.home.root), "up"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert f"process {process.process.pid}" in done.stderr


def test_a_worker_killed_under_a_task_costs_one_attempt_and_no_run(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, process = lab
    the_lab.template("slow", PARABOLA % 0.3)
    the_lab.drop("robust.yaml", task_text(template="slow", max_runs=8))
    journal = the_lab.archive.directory("robust") / "journal.jsonl"
    wait_until(
        lambda: journal.exists() and len(journal.read_text().splitlines()) > 4, 60, "some steps"
    )
    assert process.kill_worker("labd:robust") == 1
    assert the_lab.wait("robust", State.DONE, State.FAILED) is State.DONE
    assert [e["event"] for e in the_lab.archive.history("robust").events] == [
        "claimed",
        "lost",
        "claimed",
        "done",
    ]
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert len(keys) == len(set(keys))


def test_a_task_whose_worker_always_dies_fails_when_its_retries_are_used_up(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, process = lab

    def under_way(attempt: int) -> bool:
        return the_lab.archive.history("doomed").attempt == attempt and bool(sandboxed(process))

    the_lab.drop("doomed.yaml", task_text(template="sleeping", max_retries=1))
    for attempt in (1, 2):
        wait_until(partial(under_way, attempt), 60, f"attempt {attempt}")
        assert process.kill_worker("labd:doomed") == 1
    the_lab.wait("doomed", State.FAILED)
    assert "its worker died 2 times, and max_retries is 1" in the_lab.error("doomed")


def test_the_engine_comes_back_after_ray_is_killed(lab: tuple[LiveLab, DaemonProcess]) -> None:
    the_lab, process = lab
    ready = len(process.said("engine.ready"))
    for p in process.family() - {psutil.Process(process.process.pid)}:
        with contextlib.suppress(psutil.NoSuchProcess):
            p.kill()
    wait_until(lambda: len(process.said("engine.ready")) > ready, 90, "the engine again")
    the_lab.drop("after.yaml", "kind: command\nrun: 'true'\n")
    assert the_lab.wait("after", State.DONE, State.FAILED) is State.DONE


ONCE = """
import sys
from pathlib import Path
from labd.daemon import Daemon
from labd.log import stderr_logger
from labd.settings import load_home
from tests.stepped import SteppedEngine
home = load_home(Path(sys.argv[1]))
sys.exit(Daemon(home, stderr_logger(), once=True, engine=SteppedEngine()).run())
"""


def test_once_drains_the_spool_and_tells_by_its_exit_code(
    tmp_path: Path, daemon: Callable[..., DaemonProcess]
) -> None:
    the_lab = LiveLab(tmp_path, num_cpus=1)
    the_lab.drop("one.yaml", "kind: command\nrun: 'true'\n")
    the_lab.drop("two.yaml", b"no task")
    assert daemon(tmp_path, "--once").process.wait(120) == 1
    assert (the_lab.state("one"), the_lab.state("two")) == (State.DONE, State.FAILED)
    # Nothing is left to do, and no Ray is needed to see that.
    done = subprocess.run([sys.executable, "-c", ONCE, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    results = tmp_path / "results"
    results.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(results)], check=True, timeout=10
    )
    yield results
    subprocess.run(["umount", "-l", str(results)], check=True, timeout=10)


def test_on_a_full_disk_tasks_fail_or_wait_with_a_reason_and_the_daemon_lives(
    tmp_path: Path, small_disk: Path, daemon: Callable[..., DaemonProcess]
) -> None:
    the_lab = LiveLab(tmp_path, num_cpus=1)
    filler = "import pathlib\nwith pathlib.Path('/work/filler').open('wb') as f:\n    while True: f.write(b'x' * 65536)\n"
    the_lab.template("filler", filler)
    process = daemon(tmp_path)
    process.wait_ready()
    the_lab.drop("fills.yaml", task_text(template="filler"))
    the_lab.wait("fills", State.FAILED)
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb") as file:
        while True:
            file.write(b"x" * 4096)
    the_lab.drop("waits.yaml", "kind: command\nrun: 'true'\n")
    said = wait_until(
        lambda: the_lab.listed().get("waits", {}).get("why"), 30, "the reason", every_s=COSTLY_S
    )
    assert said is not None
    assert said.startswith("waits for disk space")
    assert process.process.poll() is None
    assert process.said("claiming.held")[-1]["reason"].startswith("waits for disk space")
    (small_disk / "ballast").unlink()
    shutil.rmtree(small_disk / "fills")
    assert the_lab.wait("waits", State.DONE, State.FAILED) is State.DONE
    assert process.said("claiming.resumed")
    os.kill(process.process.pid, signal.SIGTERM)
    assert process.process.wait(30) == 0


def test_a_campaign_that_was_missed_runs_and_its_report_tells_what_came_of_it(
    lab: tuple[LiveLab, DaemonProcess],
) -> None:
    the_lab, _ = lab
    file = the_lab.home.campaigns / "weekend.yaml"
    file.parent.mkdir()
    file.write_text(CAMPAIGN)
    task = f"weekend--work--{CAMPAIGN_AT:%Y%m%dT%H%M%SZ}-"
    assert the_lab.wait(f"{task}1", State.DONE, State.FAILED) is State.DONE
    assert the_lab.wait(f"{task}2", State.DONE, State.FAILED) is State.FAILED
    page = the_lab.home.reports / f"weekend--end--{CAMPAIGN_AT:%Y%m%dT%H%M%SZ}.html"
    due = the_lab.home.run_dir / "reports-due.json"

    def final() -> bool:
        return due.exists() and not json.loads(due.read_bytes())["due"]

    wait_until(final, 90, "the last writing of the report")
    told = page.read_text()
    assert f"{task}1/paper.pdf" in told
    assert f"{task}2" in told
    asked = [sys.executable, "-m", "labd.cli", "--home", str(the_lab.home.root)]
    asked += ["report", "--campaign", "weekend", "--format", "json"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    report = json.loads(done.stdout)
    states = report["totals"]["states"]
    assert {name: count for name, count in states.items() if count} == {"done": 1, "failed": 1}
    found = the_lab.archive.result(f"{task}1")
    assert found is not None
    claim = found["research"]["claim"]
    tellers = [*report["improved"], *report["others"]]
    assert [one["id"] for one in tellers] == [f"{task}1"]
    research = tellers[0]["research"]
    assert research["verdict"] == claim["verdict"]
    told_of, keys = research["comparison"], ("difference", "difference_low", "difference_high")
    assert [told_of[one] for one in ("difference", "low", "high")] == [claim[key] for key in keys]
    assert sum(one["count"] for one in report["failures"]) == 1
    file.unlink()
