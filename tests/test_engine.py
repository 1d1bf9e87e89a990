"""The engine, on real Rays: one of its own, and one that is a service. Real workers, real sandboxes."""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import structlog
import yaml

from labd.engine.client import Engine
from labd.engine.processes import end_session, sharing_lock, temp_of, wait_for_lock
from labd.engine.types import Down, Ended, Event, Job, NodeInfo, Nodes, Ready, event_from_json
from labd.engine.wire import connect, lines, listen, pack, peer_uid
from labd.errors import EngineError
from labd.log import Logger
from labd.settings import SandboxSettings
from tests.boxes import ACCEPTED_GAPS
from tests.factories import PARABOLA, make_template, parabola_space
from tests.processes import wait_until
from tests.rayservice import RayService, session_of

pytestmark = [pytest.mark.ray, pytest.mark.sandbox, pytest.mark.timeout(180)]

E = TypeVar("E", bound=Event)


class Bench:
    """A lab without a daemon: a directory, an engine on it, and all events that came."""

    def __init__(self, root: Path, address: str | None, lab: str) -> None:
        self.root = root
        self.results = root / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        sandbox = SandboxSettings(allow_missing=ACCEPTED_GAPS).model_dump(mode="json")
        self.options: dict[str, Any] = {
            "address": address,
            "num_cpus": 2,
            "num_gpus": 0,
            "dashboard": False,
            "token_path": str(root / "token"),
            "lab": lab,
            "lock_path": str(root / "workers.lock"),
            "worker": {"results": str(self.results), "sandbox": sandbox, "min_free_bytes": 2**20},
            "models": {
                "endpoints": [],
                "discover": False,
                "rules": {},
                "status_path": str(root / "models.json"),
            },
        }
        self._sandbox = sandbox
        self._wake = threading.Event()
        self.events: list[Event] = []
        self.taken = 0
        self._log = (root / "client.log").open("a", buffering=1)
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        log: Logger = structlog.wrap_logger(
            structlog.WriteLogger(self._log),
            processors=[structlog.processors.JSONRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger("info"),
        )
        self.engine = Engine(self.options, self.root / "engine.log", self._wake.set, log)
        return self.engine

    def stop(self, *, leave_work: bool = True) -> None:
        self.engine.stop(leave_work)
        self._log.close()

    def start(self) -> Ready:
        self.engine.start()
        return self.next(Ready)

    def up(self) -> Ready:
        """Start it unless it is up; give what it said last when it came up."""
        if self.engine._process is None:
            self.new_engine()
            return self.start()
        return [event for event in self.events if isinstance(event, Ready)][-1]

    @property
    def driver(self) -> int:
        assert self.engine._process is not None
        return self.engine._process.pid

    def poll(self) -> list[Event]:
        self.events += self.engine.poll()
        return self.events

    def next(self, kind: type[E], timeout_s: float = 90) -> E:
        """Give the next event of a kind; those before it are passed over."""
        found: list[E] = []

        def look() -> bool:
            self._wake.wait(0.1)
            self._wake.clear()
            self.poll()
            while self.taken < len(self.events) and not found:
                event = self.events[self.taken]
                self.taken += 1
                if isinstance(event, kind):
                    found.append(event)
            return bool(found)

        wait_until(look, timeout_s, f"{kind.__name__}; {self.said()}")
        return found[0]

    def said(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.root / "engine.log").read_text()[-2000:]
        return ""

    def job(self, task_id: str, run: str, node: NodeInfo, **over: Any) -> Job:
        attempt = over.get("attempt", 1)
        directory = self.results / task_id
        directory.mkdir(exist_ok=True)
        with (directory / "events.jsonl").open("a") as events:
            facts = {"event": "claimed", "at": "2026-11-22T20:00:00.000Z", "attempt": attempt}
            events.write(json.dumps(facts) + "\n")
        text = yaml.safe_dump({"kind": "command", "run": run})
        return Job(
            **{
                "task_id": task_id,
                "attempt": attempt,
                "node_id": node.id,
                "num_cpus": 1,
                "num_gpus": 0,
                "timeout_s": 120,
                "task_text": text,
                "task_sha256": hashlib.sha256(text.encode()).hexdigest(),
                "file_name": f"{task_id}.yaml",
                "results_dir": str(directory),
                "template_roots": [],
                "min_free_bytes": 2**20,
                "sandbox": self._sandbox,
                **over,
            }
        )

    def begun(self, task_id: str) -> Callable[[], bool]:
        """Say whether the command, which writes a file first, has begun."""
        return (self.results / task_id / "files" / "begun").exists


def sleeper(seconds: float, mark: str) -> str:
    """A command whose sleep can be told from all others on this machine."""
    return f"echo $LABD_ATTEMPT > begun; (sleep {seconds}{mark} &); sleep {seconds}{mark}; echo end > end"


def alive(mark: str) -> list[int]:
    """Give the processes, on the whole machine, of `sleeper` commands with the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.name() == "sleep" and " ".join(process.cmdline()).endswith(mark):
                found.append(process.pid)
    return found


def worker_of(task_id: str) -> psutil.Process:
    """Give the Ray worker that runs the task."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if " ".join(process.cmdline()).startswith(f"ray::labd:{task_id}#"):
                found.append(process)
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayService]:
    the_service = RayService(tmp_path_factory.mktemp("service"))
    the_service.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in the_service.env.items():
            patch.setenv(name, value)
        yield the_service
    the_service.remove()


def lab_of(root: Path) -> str:
    """Give a lab's name that no other directory's lab has."""
    return hashlib.sha256(str(root).encode()).hexdigest()[:12]


@pytest.fixture
def alone(service: RayService, tmp_path: Path) -> Iterator[Bench]:
    """A lab of its own on the service, not started."""
    bench = Bench(tmp_path, service.address, lab_of(tmp_path))
    yield bench
    bench.up()
    bench.stop(leave_work=False)


@pytest.fixture(scope="module")
def served(service: RayService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One lab on the service for the tests that use `attached`: a driver and warm workers take seconds to start."""
    root = tmp_path_factory.mktemp("served")
    bench = Bench(root, service.address, lab_of(root))
    yield bench
    bench.up()
    bench.stop(leave_work=False)


@pytest.fixture
def attached(served: Bench) -> Bench:
    """The lab that tests share: up, with all that earlier tests did passed over. They leave no work behind."""
    served.engine._failures = 0  # drivers that died in a row are the tests' doing
    served.up()
    served.poll()
    served.taken = len(served.events)
    return served


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One embedded engine for the tests that need one, started."""
    bench = Bench(tmp_path_factory.mktemp("embedded"), None, "embedded")
    bench.start()
    yield bench
    driver = bench.driver
    bench.stop()
    assert session_of(driver) == []
    assert not temp_of(driver).exists()


@pytest.fixture(params=["embedded", "attached"])
def ready(request: pytest.FixtureRequest) -> tuple[Bench, NodeInfo]:
    """A started engine of either mode, and its node."""
    bench: Bench = request.getfixturevalue(request.param)
    assert bench.engine.survives == (request.param == "attached")
    nodes = bench.up().nodes
    assert [node.local for node in nodes] == [True]
    return bench, nodes[0]


# --- the verbs, in both modes


def test_each_submitted_job_ends_once_with_its_own_outcome(ready: tuple[Bench, NodeInfo]) -> None:
    bench, node = ready
    seen = len(bench.poll())
    bench.engine.submit_many([bench.job(f"many-{n}", f"echo {n} > out", node) for n in range(6)])
    ended = [bench.next(Ended) for _ in range(6)]
    assert {(e.task_id, e.attempt, e.how) for e in ended} == {
        (f"many-{n}", 1, "returned") for n in range(6)
    }
    for end in ended:
        assert end.outcome is not None
        assert end.outcome["outcome"] == "done"
        number = end.task_id.removeprefix("many-")
        assert (bench.results / end.task_id / "files" / "out").read_text() == f"{number}\n"
    assert len([e for e in bench.poll()[seen:] if isinstance(e, Ended)]) == 6


def test_cancel_ends_the_whole_tree_of_a_running_command(ready: tuple[Bench, NodeInfo]) -> None:
    bench, node = ready
    bench.engine.submit(bench.job("tree", sleeper(77, ".011"), node))
    wait_until(lambda: len(alive(".011")) == 2, 30, "two sleeps")
    bench.engine.cancel("tree", 1)
    ended = bench.next(Ended)
    assert (ended.task_id, ended.how, ended.outcome) == ("tree", "cancelled", None)
    wait_until(lambda: alive(".011") == [], 10, "the end of the sleeps")


def test_cancel_at_once_never_lets_the_command_run(ready: tuple[Bench, NodeInfo]) -> None:
    bench, node = ready
    for n in range(20):
        bench.engine.submit(bench.job(f"hasty-{n}", sleeper(78, ".012"), node))
        bench.engine.cancel(f"hasty-{n}", 1)
        ended = bench.next(Ended)
        assert (ended.task_id, ended.how) == (f"hasty-{n}", "cancelled")
    wait_until(lambda: alive(".012") == [], 10, "the end of the sleeps")


def test_cancel_of_what_does_not_run_is_answered(ready: tuple[Bench, NodeInfo]) -> None:
    bench, _ = ready
    bench.engine.cancel("never-heard-of", 3)
    ended = bench.next(Ended)
    assert (ended.task_id, ended.attempt, ended.how) == ("never-heard-of", 3, "cancelled")


def test_a_killed_worker_is_a_lost_attempt_and_nothing_of_it_lives_on(
    ready: tuple[Bench, NodeInfo],
) -> None:
    bench, node = ready
    bench.engine.submit(bench.job("killed", sleeper(79, ".013"), node))
    wait_until(lambda: len(alive(".013")) == 2, 30, "two sleeps")
    worker_of("killed").kill()
    ended = bench.next(Ended)
    assert (ended.task_id, ended.how, ended.outcome) == ("killed", "lost", None)
    assert "WorkerCrashedError" in ended.reason
    wait_until(lambda: alive(".013") == [], 10, "the end of the sleeps")


def test_what_ray_refuses_is_lost_with_the_reason_and_harms_nothing(
    ready: tuple[Bench, NodeInfo],
) -> None:
    bench, node = ready
    bench.engine.submit(bench.job("odd", "true", node, num_gpus=1.5))
    ended = bench.next(Ended)
    assert (ended.task_id, ended.how) == ("odd", "lost")
    assert "refused" in ended.reason
    bench.engine.submit(bench.job("even", "true", node))
    assert bench.next(Ended).how == "returned"


def test_a_job_for_a_node_that_is_gone_is_lost(ready: tuple[Bench, NodeInfo]) -> None:
    bench, _ = ready
    gone = NodeInfo("ab" * 28, "gone", 1, 0)
    bench.engine.submit(bench.job("nowhere", "true", gone))
    ended = bench.next(Ended)
    assert (ended.task_id, ended.how) == ("nowhere", "lost")


# --- a Ray of our own


torture = pytest.mark.skipif("LABD_TORTURE" not in os.environ, reason="make torture does it")
PARTS = {
    "gcs_server": "Ray's global control service",
    "raylet": "Ray's node manager",
    "ray::DashboardAgent": "Ray's dashboard agent",
    "ray::RuntimeEnvAgent": "Ray's runtime environment agent",
}


def parts_of(driver: int, *names: str) -> list[psutil.Process]:
    """Give the processes of a driver's Ray that have these names, of which the kernel keeps 15 characters."""
    wanted = {name[:15] for name in names}
    return [process for process in session_of(driver) if process.name()[:15] in wanted]


def watched_by(pid: int) -> set[int]:
    """Give the processes of which a process holds a descriptor, as pidfd_open(2) gives them."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            lines = dict(
                line.split(":\t", 1) for line in info.read_text().splitlines() if ":\t" in line
            )
            found.add(int(lines.get("Pid", "0")))
    return found


def test_the_driver_watches_each_part_of_its_ray(embedded: Bench) -> None:
    parts = {process.pid for process in parts_of(embedded.driver, *PARTS)}
    assert len(parts) == len(PARTS)
    wait_until(lambda: watched_by(embedded.driver) >= parts, 30, "a watch on each of them")


# One of those that the driver watches, and the driver; of the others `make torture` kills each.
@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(
            pytest.param(*part, marks=() if part[0] == "gcs_server" else torture)
            for part in PARTS.items()
        ),
        ("driver", "process"),
    ],
)
def test_a_dead_part_of_ray_ends_all_of_it_and_a_new_one_comes(
    embedded: Bench, name: str, said: str
) -> None:
    driver = embedded.driver
    (victim,) = [psutil.Process(driver)] if name == "driver" else parts_of(driver, name)
    node = [event for event in embedded.events if isinstance(event, Ready)][-1].nodes[0]
    embedded.engine.submit(embedded.job(f"under-{name[-5:]}", sleeper(80, ".014"), node))
    wait_until(lambda: len(alive(".014")) == 2, 30, "two sleeps")
    victim.kill()
    down = embedded.next(Down)
    assert session_of(driver) == []
    assert not temp_of(driver).exists()
    assert said in down.reason
    wait_until(lambda: alive(".014") == [], 10, "the end of the sleeps")
    again = embedded.next(Ready)
    assert again.held == []
    assert embedded.driver != driver
    embedded.engine._failures = 0  # five deaths in a row are this test's doing, not Ray's


def test_a_new_driver_ends_what_a_killed_one_and_its_daemon_left(
    embedded: Bench, tmp_path: Path
) -> None:
    """Nobody is left to clean up after them but the next driver."""
    left = Bench(tmp_path, None, "left")
    code = (
        "import json, sys, time, threading, pathlib\n"
        "from labd.engine.client import Engine\n"
        "from labd.engine.types import Ready\n"
        "from labd.log import stderr_logger\n"
        "engine = Engine(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), lambda: None, stderr_logger())\n"
        "engine.start()\n"
        "while not any(isinstance(e, Ready) for e in engine.poll()): time.sleep(0.05)\n"
        "print(engine._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(left.options), str(tmp_path / "engine.log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert daemon.stdout is not None
    driver = int(daemon.stdout.readline())
    ours = embedded.driver
    before = {process.pid for process in session_of(ours)}
    daemon.kill()
    os.kill(driver, signal.SIGKILL)
    daemon.wait(10)
    daemon.stdout.close()
    assert session_of(driver), "Ray was gone at once: there is nothing to show here"
    left.start()
    assert session_of(driver) == []
    assert not temp_of(driver).exists()
    left.stop()
    assert {process.pid for process in session_of(ours)} >= before, "a living engine was harmed"


def test_end_session_spares_a_process_without_a_file_in_the_directory() -> None:
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert end_session(bystander.pid, 0.2) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait(10)


# --- a Ray that is a service


def test_work_outlives_its_driver_and_its_daemon(attached: Bench) -> None:
    node = attached.up().nodes[0]
    attached.engine.submit(attached.job("long", sleeper(6, ".021"), node))
    attached.engine.submit(attached.job("longer", sleeper(90, ".022"), node))
    wait_until(attached.begun("long"), 30, "the command")
    os.kill(attached.driver, signal.SIGKILL)
    attached.next(Down)
    assert {(held.task_id, held.attempt) for held in attached.next(Ready).held} == {
        ("long", 1),
        ("longer", 1),
    }
    attached.engine.stop()
    assert len(alive(".022")) == 2

    attached.new_engine()
    held = {held.task_id: held for held in attached.start().held}
    assert set(held) == {"long", "longer"}
    assert held["longer"].node_id == node.id
    assert held["longer"].age_s > 0
    ended = attached.next(Ended)
    assert (ended.task_id, ended.how) == ("long", "returned")
    assert (attached.results / "long" / "files" / "end").exists()
    attached.engine.cancel("longer", 1)
    ended = attached.next(Ended)
    assert (ended.task_id, ended.how) == ("longer", "cancelled")
    wait_until(lambda: alive(".022") == [], 10, "the end of the sleeps")


def test_what_ended_while_nobody_listened_is_held_and_told_once(attached: Bench) -> None:
    node = attached.up().nodes[0]
    attached.engine.submit(attached.job("meanwhile", sleeper(2, ".023"), node))
    wait_until(attached.begun("meanwhile"), 30, "the command")
    attached.engine.stop()
    result = attached.results / "meanwhile" / "result.json"
    wait_until(result.exists, 30, "the command's end")
    attached.new_engine()
    assert [held.task_id for held in attached.start().held] == ["meanwhile"]
    assert attached.next(Ended).how == "returned"
    # The dispatcher is told that the daemon has it; only then is it forgotten.
    time.sleep(0.5)
    attached.engine.stop()
    attached.new_engine()
    assert attached.start().held == []


def test_orders_of_a_driver_that_was_replaced_do_not_count(attached: Bench) -> None:
    node = attached.up().nodes[0]
    first, stuck = attached.engine, attached.driver
    os.kill(stuck, signal.SIGSTOP)
    first.submit(attached.job("stale", sleeper(60, ".024"), node))
    second = attached.new_engine()
    attached.start()
    os.kill(stuck, signal.SIGCONT)
    downs: list[Event] = []

    def replaced() -> bool:
        downs.extend(event for event in first.poll() if isinstance(event, Down))
        return bool(downs)

    wait_until(replaced, 30, "the end of the first driver")
    first.stop()
    second.submit(attached.job("fresh", "true", node))
    ended = attached.next(Ended)
    assert (ended.task_id, ended.how) == ("fresh", "returned")
    assert alive(".024") == []
    assert not attached.begun("stale")()


def test_a_line_with_an_old_epoch_is_dropped_by_the_dispatcher(attached: Bench) -> None:
    """The same at the socket: no driver in between that could have ended in time by itself."""
    node = attached.up().nodes[0]
    order = {"op": "submit", "version": "x", "job": attached.job("old", "true", node).as_json()}
    with socket.socket(socket.AF_UNIX) as old:
        old.connect(str(attached.root / "engine.sock"))
        old.sendall(b'{"epoch": 0}\n' + json.dumps(order).encode() + b"\n")
        old.settimeout(10)
        assert old.recv(1) == b""
    attached.engine.cancel("old", 1)
    assert attached.next(Ended).reason == "was not running"


def test_a_dead_dispatcher_takes_its_work_along_and_is_replaced(attached: Bench) -> None:
    node = attached.up().nodes[0]
    attached.engine.submit(attached.job("orphan", sleeper(81, ".025"), node))
    wait_until(lambda: len(alive(".025")) == 2, 30, "two sleeps")
    attached.engine.submit(attached.job("beside", sleeper(1, ".020"), node))
    wait_until(attached.begun("beside"), 30, "the command")
    idle = worker_of("beside")
    assert attached.next(Ended).how == "returned"
    dispatcher_of(attached).kill()
    attached.next(Down)
    assert attached.next(Ready).held == []
    wait_until(lambda: alive(".025") == [], 10, "the end of the sleeps")
    wait_until(lambda: not idle.is_running(), 10, "the end of the idle worker")
    attached.engine.submit(attached.job("orphan", "true", node, attempt=2))
    assert attached.next(Ended).how == "returned"


def test_a_new_dispatcher_waits_until_no_old_worker_holds_the_lock(alone: Bench) -> None:
    path = Path(alone.options["lock_path"])
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); print('held', flush=True); time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.stdout.close()
    alone.engine.start()
    wait_until((alone.root / "engine.sock").exists, 30, "the dispatcher")
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        assert alone.poll() == []
        time.sleep(0.05)
    worker.kill()
    worker.wait(10)
    assert alone.next(Ready).held == []


def test_a_worker_holds_the_lock_while_it_works_and_lets_go_after(attached: Bench) -> None:
    node = attached.up().nodes[0]
    attached.engine.submit(attached.job("holds", sleeper(2, ".026"), node))
    wait_until(attached.begun("holds"), 30, "the command")
    with Path(attached.options["lock_path"]).open("a") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert attached.next(Ended).how == "returned"
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_stop_without_leaving_work_ends_it(attached: Bench) -> None:
    node = attached.up().nodes[0]
    attached.engine.submit(attached.job("unwanted", sleeper(82, ".027"), node))
    wait_until(lambda: len(alive(".027")) == 2, 30, "two sleeps")
    attached.engine.stop(leave_work=False)
    wait_until(lambda: alive(".027") == [], 10, "the end of the sleeps")
    attached.new_engine()
    assert attached.start().held == []


def test_two_labs_share_a_cluster_and_hold_their_own_work(
    service: RayService, attached: Bench, tmp_path: Path
) -> None:
    node = attached.up().nodes[0]
    other = Bench(tmp_path / "other", service.address, "another-lab")
    other.start()
    attached.engine.submit(attached.job("mine", sleeper(83, ".028"), node))
    wait_until(attached.begun("mine"), 30, "the command")
    other.engine.submit(other.job("theirs", "true", node))
    assert other.next(Ended).task_id == "theirs"
    other.stop(leave_work=False)
    assert len(alive(".028")) == 2
    attached.engine.cancel("mine", 1)
    assert attached.next(Ended).how == "cancelled"


def test_orders_while_the_driver_is_down_are_dropped_and_said(attached: Bench) -> None:
    node = attached.up().nodes[0]
    os.kill(attached.driver, signal.SIGKILL)
    attached.next(Down)
    attached.engine.submit(attached.job("dropped", "true", node))
    attached.engine.cancel("dropped", 1)
    lines = (attached.root / "client.log").read_text().splitlines()
    said = [json.loads(line) for line in lines]
    dropped = [line for line in said if line["event"] == "engine.order_dropped"]
    assert [line["op"] for line in dropped if line["task_id"] == "dropped"] == ["submit", "cancel"]
    assert attached.next(Ready).held == []


def test_an_unreachable_cluster_is_down_and_tried_again(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bench = Bench(tmp_path, f"127.0.0.1:{probe.getsockname()[1]}", "nobody")
        bench.engine.start()
        down = bench.next(Down)
        assert "no Ray answers" in down.reason
        bench.stop()


def test_a_cluster_that_went_and_came_back_is_attached_again_and_holds_nothing(
    service: RayService, attached: Bench
) -> None:
    node = attached.up().nodes[0]
    attached.engine.submit(attached.job("swept", sleeper(84, ".029"), node))
    wait_until(lambda: len(alive(".029")) == 2, 30, "two sleeps")
    service.stop()
    attached.next(Down)
    wait_until(lambda: alive(".029") == [], 20, "the end of the sleeps")
    service.start()
    ready = attached.next(Ready)
    assert ready.held == []
    assert ready.nodes[0].id != node.id
    attached.engine.submit(attached.job("swept", "true", ready.nodes[0], attempt=2))
    assert attached.next(Ended).how == "returned"


def test_a_lock_that_is_not_let_go_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "workers.lock"
    with sharing_lock(path), pytest.raises(EngineError, match=r"workers\.lock.*still run"):
        wait_for_lock(path, 0.1)
    wait_for_lock(path, 0.1)
    with sharing_lock(path), sharing_lock(path):
        pass


def test_messages_come_whole_however_they_were_cut(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    sent = [{"op": "x", "text": "\n" * n} for n in range(50)]
    with listen(deep) as listener, connect(deep) as one:
        assert (deep / "engine.sock").stat().st_mode & 0o777 == 0o600
        other, _ = listener.accept()
        with other:
            assert peer_uid(other) == os.getuid()
            raw = pack(sent)

            def send() -> None:
                for start in range(0, len(raw), 7):
                    one.sendall(raw[start : start + 7])
                one.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            got = [message for some in lines(other, lambda: None) for message in some]
            sender.join()
    assert got == sent


def test_nobody_listening_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="can't be reached"):
        connect(tmp_path)


def test_events_survive_the_way_through_the_pipe() -> None:
    node = {"id": "a", "name": "n", "num_cpus": 1.0, "num_gpus": 0.0, "local": False}
    event = event_from_json({"event": "nodes", "nodes": [node]})
    assert event == Nodes([NodeInfo("a", "n", 1.0, 0.0, local=False)])


def dispatcher_of(bench: Bench) -> psutil.Process:
    """Give the process at the other end of a new connection to the lab's dispatcher."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(bench.root / "engine.sock"))
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return psutil.Process(int.from_bytes(credentials[:4], sys.byteorder))


# --- many nodes


@pytest.fixture
def two_nodes(
    service: RayService, alone: Bench
) -> Iterator[tuple[Bench, NodeInfo, NodeInfo, "subprocess.Popen[bytes]"]]:
    """A started engine, the lab's own node, another one, and the other's process."""
    ready = alone.start()
    process = service.add_node(num_cpus=1)

    def other() -> list[NodeInfo]:
        last = [e for e in alone.poll() if isinstance(e, Ready | Nodes)][-1]
        return [node for node in last.nodes if not node.local]

    (away,) = wait_until(other, 30, "the other node")
    yield alone, ready.nodes[0], away, process
    if process.poll() is None:
        service.end_node(process)
    wait_until(lambda: not other(), 60, "the end of the other node")


def tree_of(directory: Path) -> dict[str, bytes]:
    """Give the files of a task's results that do not hold times."""
    left_out = {"events.jsonl", "result.json", "log.jsonl", "not-shipped.json"}
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in left_out and not path.name.startswith(".")
    }


def test_an_attempt_on_another_node_leaves_the_same_results_at_home(
    service: RayService,
    two_nodes: tuple[Bench, NodeInfo, NodeInfo, "subprocess.Popen[bytes]"],
) -> None:
    bench, home, away, process = two_nodes
    run = "echo said; mkdir deep; echo kept > deep/file; head -c 300000 /dev/zero > big; sleep 2"
    bench.engine.submit(bench.job("here", run, home))
    bench.engine.submit(bench.job("there", run, away))
    # Both nodes see one file system here, so look where the work is done: not at home.
    scratch = service.scratch_of(process)
    wait_until(lambda: list(scratch.rglob("there/files/deep/file")), 60, "work in the scratch")
    assert not (bench.results / "there" / "files" / "deep").exists()
    for _ in range(2):
        ended = bench.next(Ended)
        assert ended.outcome is not None, ended
        assert (ended.how, ended.outcome["outcome"]) == ("returned", "done"), ended
    trees = [tree_of(bench.results / task_id) for task_id in ("here", "there")]
    assert trees[0] == trees[1]
    assert trees[0]["files/deep/file"] == b"kept\n"
    result = json.loads((bench.results / "there" / "result.json").read_text())
    assert (result["attempt"], result["outcome"]) == (1, "done")


def test_work_on_a_lost_node_is_lost_and_goes_on_elsewhere_from_its_journal(
    service: RayService,
    two_nodes: tuple[Bench, NodeInfo, NodeInfo, "subprocess.Popen[bytes]"],
) -> None:
    bench, home, away, process = two_nodes
    templates = bench.root / "templates"
    make_template(templates, experiment=PARABOLA % "0.5")
    text = yaml.safe_dump({"kind": "research", "template": "tiny", "max_runs": 3})
    facts: dict[str, Any] = {
        "task_text": text,
        "task_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "template_roots": [str(templates)],
    }
    bench.engine.submit(bench.job("moves", "", away, **facts))
    journal = bench.results / "moves" / "journal.jsonl"
    wait_until(
        lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2, 90, "two steps"
    )
    service.end_node(process)
    ended = bench.next(Ended)
    assert (ended.task_id, ended.how) == ("moves", "lost")
    before = journal.read_bytes()
    assert before.endswith(b"\n")
    bench.engine.submit(bench.job("moves", "", home, attempt=2, **facts))
    ended = bench.next(Ended)
    assert ended.outcome is not None, ended
    assert (ended.how, ended.outcome["outcome"]) == ("returned", "done"), ended
    assert journal.read_bytes().startswith(before)
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert len(keys) == len(set(keys)), "a step was recorded twice"


def test_a_node_with_another_labd_says_so(alone: Bench) -> None:
    node = alone.start().nodes[0]
    order = {
        "op": "submit",
        "version": "0.0.9",
        "job": alone.job("old", "true", node).as_json(),
    }
    # A driver always sends its own version, so this order takes its place in the epoch that counts.
    os.kill(alone.driver, signal.SIGKILL)
    alone.next(Down)
    with socket.socket(socket.AF_UNIX) as driver:
        driver.settimeout(30)
        driver.connect(str(alone.root / "engine.sock"))
        driver.sendall(b'{"epoch": 1}\n' + json.dumps(order).encode() + b"\n")
        ended = json.loads(driver.makefile().readline())["ended"]
    assert (ended["task_id"], ended["how"]) == ("old", "lost")
    assert "0.0.9" in ended["reason"]
    assert alone.next(Ready).held != []
    assert alone.next(Ended).how == "lost"


def study_job(bench: Bench, task_id: str, node: NodeInfo, *, pause_s: str, **over: Any) -> Job:
    """Give a sweep over a parabola in which nothing beats the baseline: 1 run, 3 trials and 10 to confirm.

    `pause_s`: how long a run takes, as Python; may depend on ``x``, which is 0.7 in the baseline.
    """
    templates = bench.root / "templates"
    if not (templates / "tiny").exists():
        make_template(
            templates,
            experiment=PARABOLA % pause_s,
            search_space=parabola_space(0.7),
            time_limit="200s",
        )
    text = yaml.safe_dump({"kind": "research", "template": "tiny", "max_runs": 3})
    facts: dict[str, Any] = {
        "task_text": text,
        "task_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "template_roots": [str(templates)],
    }
    return bench.job(task_id, "", node, **facts | over)


def told(bench: Bench, task_id: str, event: str) -> list[dict[str, Any]]:
    """Give the lines of a task's log that tell of an event."""
    lines = map(json.loads, (bench.results / task_id / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def found(bench: Bench, task_id: str) -> dict[str, Any]:
    """Give what a research task found, but for times."""
    result = json.loads((bench.results / task_id / "result.json").read_text())
    assert result["outcome"] == "done", result

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(one) for key, one in value.items() if key != "wall_s"}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    return dict(timeless(result["research"]))


def test_runs_of_one_study_go_on_on_two_nodes_and_find_the_same(
    two_nodes: tuple[Bench, NodeInfo, NodeInfo, "subprocess.Popen[bytes]"],
) -> None:
    bench, home, away, _ = two_nodes
    both = [study_job(bench, "wide", home, pause_s="0.2", also_nodes=[away.id])]
    both.append(study_job(bench, "narrow", home, pause_s="0.2"))
    for job in both:
        bench.engine.submit(job)
    ended = [bench.next(Ended) for _ in both]
    assert all(end.outcome and end.outcome["outcome"] == "done" for end in ended), ended
    elsewhere = {line["run"] for line in told(bench, "wide", "run.elsewhere")}
    assert elsewhere
    assert told(bench, "wide", "elsewhere.given_up") == []
    assert found(bench, "wide") == found(bench, "narrow")
    runs = [tree_of(bench.results / task_id / "runs") for task_id in ("wide", "narrow")]
    assert runs[0] == runs[1]


def test_runs_on_a_node_that_dies_are_made_again_and_the_study_ends(
    service: RayService,
    two_nodes: tuple[Bench, NodeInfo, NodeInfo, "subprocess.Popen[bytes]"],
) -> None:
    bench, home, away, process = two_nodes
    bench.engine.submit(study_job(bench, "cut", home, pause_s="0.5", also_nodes=[away.id]))
    scratch = service.scratch_of(process)
    log = bench.results / "cut" / "log.jsonl"
    # Both nodes see one file system here, so look where the work is done: not at home.
    wait_until(lambda: list(scratch.rglob("runs/trial-*/work")), 60, "a run in the scratch")
    service.end_node(process)
    ended = bench.next(Ended)
    assert ended.outcome is not None, ended
    assert (ended.how, ended.outcome["outcome"]) == ("returned", "done"), log.read_text()
    assert len(told(bench, "cut", "elsewhere.given_up")) == 1
    counts = found(bench, "cut")["counts"]
    assert (counts["trials"], counts["ok"], counts["runs"]) == (3, 3, 14)
    journal = (bench.results / "cut" / "journal.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in journal]
    assert len(keys) == len(set(keys)), "a step was recorded twice"


torture = pytest.mark.skipif("LABD_TORTURE" not in os.environ, reason="make torture does it")
HANGS = "0 if x == 0.7 else __import__('os').system('sleep 150%s')"


@torture
def test_runs_of_an_attempt_on_another_node_go_on_at_the_lab_s_own_too(
    two_nodes: tuple[Bench, NodeInfo, NodeInfo, "subprocess.Popen[bytes]"],
) -> None:
    bench, home, away, _ = two_nodes
    for job in (
        study_job(bench, "back", away, pause_s="0.2", also_nodes=[home.id]),
        study_job(bench, "narrow", home, pause_s="0.2"),
    ):
        bench.engine.submit(job)
        ended = bench.next(Ended)
        assert ended.outcome is not None, ended
        assert (ended.how, ended.outcome["outcome"]) == ("returned", "done"), ended
    assert told(bench, "back", "run.elsewhere")
    assert told(bench, "back", "elsewhere.given_up") == []
    assert found(bench, "back") == found(bench, "narrow")
    assert list((bench.results / ".elsewhere").iterdir()) == []


@torture
@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_runs_elsewhere_end_with_their_attempt(
    two_nodes: tuple[Bench, NodeInfo, NodeInfo, "subprocess.Popen[bytes]"],
    how: str,
) -> None:
    bench, home, away, _ = two_nodes
    hangs = HANGS % ".031"
    bench.engine.submit(study_job(bench, "ends", home, pause_s=hangs, also_nodes=[away.id]))
    wait_until(lambda: len(alive(".031")) == 2, 30, "two sleeps")
    if how == "cancel":
        bench.engine.cancel("ends", 1)
    else:
        worker_of("ends").kill()
    assert bench.next(Ended).how == ("cancelled" if how == "cancel" else "lost")
    wait_until(lambda: alive(".031") == [], 20, "the end of the sleeps")


@torture
def test_runs_elsewhere_that_are_stuck_end_as_stuck(
    service: RayService,
    two_nodes: tuple[Bench, NodeInfo, NodeInfo, "subprocess.Popen[bytes]"],
) -> None:
    bench, home, away, process = two_nodes
    hangs = HANGS % ".032"
    bench.engine.submit(study_job(bench, "hangs", home, pause_s=hangs, also_nodes=[away.id]))
    scratch = service.scratch_of(process)

    def under_way() -> set[str]:
        found = [*scratch.rglob("runs/*/work"), *bench.results.glob("hangs/runs/*/work")]
        return {path.parent.name for path in found}

    def end_those(count: int) -> None:
        wait_until(lambda: len(alive(".032")) == count, 60, "runs")
        names = under_way()
        assert len(names) == count
        bench.engine.end_runs("hangs", 1)
        wait_until(lambda: not under_way() & names, 30, "the end of the runs")

    end_those(2)
    end_those(1)
    ended = bench.next(Ended)
    assert ended.outcome is not None, ended
    research = found(bench, "hangs")
    assert [trial["status"] for trial in research["trials"]] == ["timed_out"] * 3
    assert all("stuck" in trial["reason"] for trial in research["trials"])
    assert told(bench, "hangs", "elsewhere.given_up") == []
