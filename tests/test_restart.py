"""A daemon that goes and comes back while its work goes on, on a Ray that is a service of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from labd.task import State
from tests.livelab import LiveLab
from tests.processes import DaemonProcess, wait_until
from tests.rayservice import RayService

pytestmark = [
    pytest.mark.ray,
    pytest.mark.sandbox,
    pytest.mark.timeout(240),
]

MOST_BEATS = 300
COUNT = f"i=0; while [ $i -lt {MOST_BEATS} ]; do i=$((i+1)); echo $i >> beats; sleep 0.1; [ -e /work/stop ] && exit 0; done; exit 3"
"""Beats until its directory has a file `stop`; half a minute at most."""


@pytest.fixture(scope="module")
def ray_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayService]:
    service = RayService(tmp_path_factory.mktemp("ray"))
    try:
        service.start()
        yield service
    finally:
        service.remove()


class ServedLab(LiveLab):
    """A lab on the service, and its daemon, which may come and go."""

    def __init__(self, home: Path, service: RayService) -> None:
        super().__init__(home, ray={"address": service.address})

    def drop(self, name: str, run: str, **keys: object) -> None:
        more = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
        text = f"kind: command\nrun: {json.dumps(run)}\n{more}"
        self.put(name, text)

    def beats(self, task: str) -> int:
        path = self.archive.directory(task) / "files" / "beats"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_beats(self, task: str, more_than: int) -> int:
        wait_until(lambda: self.beats(task) > more_than, 60, f"more beats of {task}")
        return self.beats(task)

    def let_end(self, task: str) -> None:
        (self.archive.directory(task) / "files" / "stop").touch()

    def events(self, task: str) -> list[str]:
        return [str(e["event"]) for e in self.archive.history(task).events]


@pytest.fixture(scope="module")
def served(
    ray_service: RayService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedLab]:
    """One lab for all tests, whose workers stay warm; each test has tasks and daemons of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_service.env.items():
            patch.setenv(name, value)
        yield ServedLab(tmp_path_factory.mktemp("home"), ray_service)


Start = Callable[[Path], DaemonProcess]


def killed_under(served: ServedLab, daemon: Start, task: str) -> None:
    """SIGKILL a daemon when its task runs."""
    first = daemon(served.root)
    served.drop(task, COUNT)
    served.wait_beats(task, 3)
    first.process.kill()
    first.process.wait(10)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_daemon_costs_running_work_nothing(
    served: ServedLab, daemon: Start, how: signal.Signals
) -> None:
    task = f"long-{how.name}"
    first = daemon(served.root)
    served.drop(task, COUNT)
    seen = served.wait_beats(task, 3)
    os.kill(first.process.pid, how)
    assert first.process.wait(10) == (0 if how is signal.SIGTERM else -signal.SIGKILL)
    assert served.spool.holds(State.RUNNING, f"{task}.yaml")
    seen = served.wait_beats(task, seen + 5)

    second = daemon(served.root)
    wait_until(lambda: second.said("task.adopted"), 60, "the adoption")
    seen = served.wait_beats(task, seen + 5)
    served.let_end(task)
    served.wait(task, State.DONE)
    assert served.events(task) == ["claimed", "done"]
    assert second.stop() == 0


def test_work_that_ended_with_no_daemon_about_is_taken_as_it_ended(
    served: ServedLab, daemon: Start
) -> None:
    first = daemon(served.root)
    served.drop("good", COUNT)
    served.drop("bad", COUNT.replace("exit 0", "exit 7"))
    for task in ("good", "bad"):
        served.wait_beats(task, 3)
    first.process.kill()
    first.process.wait(10)
    for task in ("good", "bad"):
        served.let_end(task)
        path = served.archive.directory(task) / "result.json"
        wait_until(path.exists, 30, f"the result of {task}")
    daemon(served.root)
    served.wait("good", State.DONE)
    served.wait("bad", State.FAILED)
    assert served.events("good") == ["claimed", "done"]
    assert served.events("bad") == ["claimed", "failed"]


def test_a_worker_that_died_with_no_daemon_about_is_a_loss_and_tried_again(
    served: ServedLab, daemon: Start
) -> None:
    killed_under(served, daemon, "robust")
    for process in psutil.process_iter(["cmdline"]):
        if "ray::labd:robust" in " ".join(process.info["cmdline"] or ()):
            process.kill()
    daemon(served.root)
    wait_until(lambda: served.archive.history("robust").attempt == 2, 60, "attempt 2")
    served.let_end("robust")
    served.wait("robust", State.DONE)
    assert served.events("robust") == ["claimed", "lost", "claimed", "done"]


def test_a_task_that_was_moved_away_with_no_daemon_about_is_ended(
    served: ServedLab, daemon: Start
) -> None:
    killed_under(served, daemon, "unwanted")
    spool = served.root / "spool"
    shutil.move(spool / "running" / "unwanted.yaml", spool / "cancelled" / "unwanted.yaml")
    second = daemon(served.root)
    wait_until(lambda: second.said("attempt.unwanted"), 60, "the order to end")

    beats = served.archive.directory("unwanted") / "files" / "beats"

    def still() -> bool:
        return time.time() - beats.stat().st_mtime > 1.5

    wait_until(still, 30, "the end of its processes")
    assert served.beats("unwanted") < MOST_BEATS, "it came to its own end"
    assert served.spool.holds(State.CANCELLED, "unwanted.yaml")


LISTENERS = """
import sys, threading, time
import ray
from labd.engine import models
from labd.engine.calls import calls_to
ray.init(address=sys.argv[2], log_to_driver=False, configure_logging=False)
options = {"endpoints": [], "discover": False, "rules": {}, "status_path": sys.argv[1], "lab": "test"}
actor = models.make(options, ray.get_runtime_context().get_node_id())
call = calls_to(actor, "the broker", apart=["listen"])
call("report")
def listen(number):
    call("listen", holder=f"h{number}", leases=[], gpu_leases=[], tickets=[], timeout_s=20.0)
threads = [threading.Thread(target=listen, args=(number,), daemon=True) for number in range(200)]
for thread in threads:
    thread.start()
time.sleep(3)  # so that all of them listen
began_s = time.monotonic()
call("report")
print("answered while", sum(thread.is_alive() for thread in threads), "listened")
"""


def test_a_broker_answers_at_once_however_many_workers_listen(
    served: ServedLab, ray_service: RayService
) -> None:
    """Here because it needs a Ray and no lab: a Ray of its own would take longer to start than all the rest."""
    status = served.root / "models.json"
    command = [sys.executable, "-c", LISTENERS, str(status), ray_service.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "answered while 200 listened\n", done.stderr
