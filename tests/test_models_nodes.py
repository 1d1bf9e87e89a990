"""Each Ray node's own Ollama: found, shown, asked, and out of the way of experiments there."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from labd.inventory import nodes
from labd.lab import Lab
from labd.settings import load_home
from labd.task import State
from tests.hosts import LOOPBACK, Host, two_hosts, why_no_hosts
from tests.livelab import LiveLab
from tests.processes import COSTLY_S, DaemonProcess, wait_until
from tests.rayservice import RayService
from tests.servers.fixtures import RunningServer, running_ollama

pytestmark = [
    pytest.mark.ray,
    pytest.mark.sandbox,
    pytest.mark.timeout(240),
]
LOAD = json.dumps({"model": "alpha", "options": {"num_ctx": 2048}})
ALPHA = "--model=alpha,vram=8000000000"
PROMPTS = "kind: prompts\ninput: questions.jsonl\noptions: {num_ctx: 2048, num_predict: 24, allow_cut: true}\n"


class NodesLab(LiveLab):
    """A lab that names no endpoint, on a Ray that is a service, with its daemon."""

    def __init__(self, home: Path, service: RayService, host: Host = LOOPBACK) -> None:
        super().__init__(
            home, ray={"address": service.address}, llm={"model": "alpha", "turn": "1s"}
        )
        self.host = host
        (home / "data").mkdir()
        self.daemon = DaemonProcess(home, enter=host.enter)

    def nodes(self) -> list[dict[str, Any]]:
        """Give what `labd nodes` has; on this host without starting it each time, which takes most of a second."""
        if self.host is LOOPBACK:
            return nodes(Lab(load_home(self.root)))
        labd = (sys.executable, "-m", "labd.cli", "--home", str(self.root))
        found: list[dict[str, Any]] = json.loads(self.host.run(*labd, "nodes", "--json"))
        return found

    def wait_nodes(self, count: int) -> dict[bool, dict[str, Any]]:
        """Wait until there are so many machines that fit, each with one endpoint that is up; give them by `local`."""

        def fit() -> bool:
            told = Lab(load_home(self.root)).status().facts.get("nodes", [])
            return [(node["machine"] or {}).get("problem") for node in told] == [""] * count

        def found() -> list[dict[str, Any]]:
            seen = self.nodes()
            states = [[e["health"] for e in node["endpoints"]] for node in seen]
            fit = [(node["machine"] or {}).get("problem") == "" for node in seen]
            return seen if (states, fit) == ([["up"]] * count, [True] * count) else []

        # The daemon tells of machines in a file: to ask `labd nodes` costs more.
        wait_until(fit, 60, f"{count} machines")
        return {
            node["local"]: node
            for node in wait_until(found, 60, f"{count} endpoints", every_s=COSTLY_S)
        }

    def far_loaded(self) -> list[str]:
        [endpoint] = self.wait_nodes(2)[False]["endpoints"]
        return [model["name"] for model in endpoint["models"] if model["loaded"]]

    def run_on_gpu(self, name: str) -> list[str]:
        """Run a command on the one GPU that there is; give what is loaded beside it as the broker sees it."""
        self.put(name, "kind: command\nrun: 'touch begun; sleep 3'\nnum_gpus: 1\n")
        begun = self.archive.directory(name) / "files" / "begun"
        wait_until(begun.exists, 60, "the command to run")
        loaded = self.far_loaded()
        self.wait(name, State.DONE)
        return loaded


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    with ExitStack() as stack:
        yield stack


def allowed_into(stack: ExitStack, service: RayService) -> None:
    """Let what the test starts into a Ray that is up."""
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in service.env.items():
        patch.setenv(name, value)


def lab_on(stack: ExitStack, home: Path, service: RayService, host: Host = LOOPBACK) -> NodesLab:
    lab = NodesLab(home, service, host)
    stack.callback(lab.daemon.kill_everything)
    return lab


def own_host(server: RunningServer) -> str:
    return server.url.removeprefix("http://")


def load(server: RunningServer) -> None:
    LOOPBACK.get(f"{server.url}/api/generate", LOAD)


class TwoNodes:
    """A Ray that is a service, with one more node; each has an Ollama of its own, and the far one has a key too."""

    def __init__(self, service: RayService, here: RunningServer, far: RunningServer) -> None:
        self.service, self.here, self.far = service, here, far
        self.node = self.join()

    def join(self) -> subprocess.Popen[bytes]:
        return self.service.add_node(num_gpus=1, OLLAMA_HOST=own_host(self.far), FAR_KEY="secret")


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """One such Ray for all tests on the loopback, which leave it as it was: it takes many seconds to start."""
    with ExitStack() as stack:
        here, far = (stack.enter_context(running_ollama(ALPHA)) for _ in range(2))
        service = RayService(tmp_path_factory.mktemp("ray"))
        stack.callback(service.remove)
        service.start(OLLAMA_HOST=own_host(here))
        yield TwoNodes(service, here, far)


def test_what_only_its_own_node_can_reach_is_looked_at_and_changed_by_tasks_there(
    stack: ExitStack, two_nodes: TwoNodes
) -> None:
    allowed_into(stack, two_nodes.service)
    far, address = two_nodes.far, two_nodes.service.address
    before = far.total("loads"), far.total("unloads")
    driver = [sys.executable, "-m", "tests.nodehands", address, far.url, "FAR_KEY"]
    done = subprocess.run(driver, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "direct": "misconfigured",
        "before": [],
        "after": ["alpha:latest"],
        "at_last": [],
        "error": "ModelMissing",
    }
    assert (far.total("loads") - before[0], far.total("unloads") - before[1]) == (1, 1)


def test_each_nodes_own_ollama_is_used_for_as_long_as_the_node_is_there(
    stack: ExitStack, tmp_path: Path, two_nodes: TwoNodes
) -> None:
    service, here, far = two_nodes.service, two_nodes.here, two_nodes.far
    allowed_into(stack, service)
    load(far)
    lab = lab_on(stack, tmp_path / "home", service)

    found = lab.wait_nodes(2)  # without any task that asks a model
    for local, server in ((True, here), (False, far)):
        [endpoint] = found[local]["endpoints"]
        assert (endpoint["url"], endpoint["name"]) == (server.url, found[local]["name"])
    assert lab.run_on_gpu("train") == []
    assert far.loaded() == []

    for server in (here, far):
        load(server)
    (lab.root / "data" / "questions.jsonl").write_text("\n".join(f'"{n}"' for n in range(40)))
    lab.put("ask", PROMPTS)
    lab.wait("ask", State.DONE)
    output = (lab.archive.directory("ask") / "output.jsonl").read_text().splitlines()
    asked = {json.loads(line)["provenance"]["endpoint"] for line in output}
    assert asked == {machine["name"] for machine in found.values()}

    service.end_node(two_nodes.node)
    assert list(lab.wait_nodes(1)) == [True]
    load(far)
    two_nodes.node = two_nodes.join()
    assert lab.run_on_gpu("train-again") == []  # before anybody has seen what is on the new node
    [endpoint] = lab.wait_nodes(2)[False]["endpoints"]
    assert endpoint["url"] == far.url
    assert far.loaded() == []


@pytest.mark.skipif(bool(why_no_hosts()), reason=why_no_hosts() or "there can be")
def test_an_ollama_on_a_loopback_is_for_its_own_host_and_still_makes_room(
    stack: ExitStack, tmp_path: Path
) -> None:
    ours, theirs = stack.enter_context(two_hosts())
    for host in (ours, theirs):
        server = running_ollama(ALPHA, "--port=11434", enter=host.enter)
        stack.enter_context(server)
    service = RayService(tmp_path, host=ours)
    stack.callback(service.remove)
    allowed_into(stack, service)
    service.start()
    service.add_node(num_gpus=1, host=theirs)
    theirs.get("http://127.0.0.1:11434/api/generate", LOAD)
    lab = lab_on(stack, tmp_path / "home", service, ours)
    for machine in lab.wait_nodes(2).values():
        [endpoint] = machine["endpoints"]
        assert endpoint["url"] == "http://127.0.0.1:11434"
        assert endpoint["only_from"] == machine["id"]
    assert lab.far_loaded() == ["alpha:latest"]
    assert lab.run_on_gpu("train") == []
    assert json.loads(theirs.get("http://127.0.0.1:11434/api/ps"))["models"] == []
