"""Language models as users meet them: a daemon, real Ray, real servers; prompts, experiments on GPUs, kills."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labd.task import State
from tests.livelab import LiveLab
from tests.processes import COSTLY_S, DaemonProcess, wait_until
from tests.servers.fixtures import RunningServer, running_ollama

pytestmark = [
    pytest.mark.ray,
    pytest.mark.sandbox,
    pytest.mark.timeout(240),
]

VRAM_BYTES = 8 * 10**9
PROMPTS = "kind: prompts\ninput: questions.jsonl\noptions: {num_ctx: 2048, num_predict: 24, allow_cut: true}\n"


class ModelLab(LiveLab):
    """A lab with one Ollama, one GPU that nobody has, and what tests ask of it."""

    def __init__(self, root: Path, node: RunningServer, *, num_cpus: int = 2) -> None:
        super().__init__(
            root,
            ray={"num_cpus": num_cpus, "num_gpus": 1, "dashboard": False},
            llm={"model": "alpha", "discover": False, "turn": "1s"},
            endpoints=[{"name": "one", "url": node.url, "slots": 2}],
        )
        self.node = node
        (root / "data").mkdir()

    def questions(self, count: int) -> None:
        lines = (json.dumps(f"question {number}") for number in range(count))
        (self.root / "data" / "questions.jsonl").write_text("\n".join(lines))

    def lines(self, task: str, name: str = "output.jsonl") -> list[dict[str, Any]]:
        path = self.archive.directory(task) / name
        return [json.loads(line) for line in path.read_text().splitlines()]

    def answered(self, task: str) -> int:
        path = self.archive.directory(task) / "replies.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def asked(self, *verb: str) -> Any:
        return json.loads(self.told(*verb, "--json"))


@contextmanager
def an_ollama() -> Iterator[RunningServer]:
    arguments = ("--num-parallel=2", "--max-loaded=1", "--seconds-per-token=0.004")
    with running_ollama(f"--model=alpha,vram={VRAM_BYTES}", *arguments) as node:
        yield node


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ModelLab]:
    """A lab of its own, for a test that kills its daemons."""
    with an_ollama() as node:
        yield ModelLab(tmp_path, node, num_cpus=1)


@pytest.fixture(scope="module")
def live_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelLab]:
    """One lab with one daemon for all tests that do no harm to it; each has tasks of its own."""
    with an_ollama() as node:
        the_lab = ModelLab(tmp_path_factory.mktemp("lab"), node)
        process = DaemonProcess(the_lab.root)
        try:
            yield the_lab
            assert process.process.poll() is None, "the daemon did not live through the tests"
        finally:
            process.kill_everything()


def test_prompts_are_answered_in_order_with_where_each_reply_came_from(live_lab: ModelLab) -> None:
    live_lab.questions(30)
    live_lab.put("ask", PROMPTS)
    live_lab.put("nowhere", PROMPTS + "model: nobody:7b\n")
    assert live_lab.wait("ask", State.DONE, State.FAILED) is State.DONE
    output = live_lab.lines("ask")
    assert [line["id"] for line in output] == [str(number) for number in range(1, 31)]
    assert {line["provenance"]["endpoint"] for line in output} == {"one"}
    assert all(line["provenance"]["digest"] for line in output)
    assert live_lab.lines("ask", "errors.jsonl") == []
    result = live_lab.archive.result("ask")
    assert result is not None
    assert result["tokens"] == sum(
        line["provenance"]["prompt_tokens"] + line["provenance"]["output_tokens"]
        for line in output
    )

    assert live_lab.wait("nowhere", State.FAILED, State.DONE) is State.FAILED
    error = live_lab.archive.history("nowhere").events[-1]["error"]
    assert error["code"] == "model_missing"
    assert "ollama pull nobody:7b" in error["message"]

    models = live_lab.asked("models")
    assert models["live"]
    [endpoint] = models["endpoints"]
    assert (endpoint["name"], endpoint["health"], endpoint["slots"]) == ("one", "up", 2)
    assert [(m["name"], m["loaded"]) for m in endpoint["models"]] == [("alpha:latest", True)]
    [node] = live_lab.asked("nodes")
    assert node["num_gpus"] == 1
    assert [e["name"] for e in node["endpoints"]] == ["one"]


def test_killed_prompts_go_on_where_they_were(
    lab: ModelLab, daemon: Callable[..., DaemonProcess]
) -> None:
    lab.questions(80)
    lab.put("ask", PROMPTS)
    first = daemon()
    wait_until(lambda: lab.answered("ask") > 15, 90, "some replies")
    first.kill_everything()
    known = lab.answered("ask")
    assert known < 80
    daemon()
    assert lab.wait("ask", State.DONE, State.FAILED) is State.DONE
    assert [line["id"] for line in lab.lines("ask")] == [str(n) for n in range(1, 81)]
    # Those in flight at the kill were asked twice; of the others none.
    assert lab.node.total("served") <= 80 + 4


def test_a_task_on_the_gpu_has_it_alone_and_prompts_wait_meanwhile(live_lab: ModelLab) -> None:
    live_lab.questions(300)
    live_lab.put("long", PROMPTS)
    wait_until(lambda: live_lab.answered("long") > 5, 90, "some replies")
    assert live_lab.node.loaded() == ["alpha:latest"]
    run = "touch begun; while [ ! -e end ]; do sleep 0.05; done"
    live_lab.put("train", f"kind: command\nrun: '{run}'\nnum_gpus: 1\n")
    files = live_lab.archive.directory("train") / "files"
    wait_until((files / "begun").exists, 60, "the command to run")
    assert live_lab.node.loaded() == []
    before = live_lab.answered("long")
    assert before < 300
    time.sleep(1.0)  # nothing to wait for: what must not happen
    assert live_lab.answered("long") == before
    assert live_lab.node.loaded() == []
    (files / "end").touch()
    assert live_lab.wait("train", State.DONE, State.FAILED) is State.DONE
    assert live_lab.wait("long", State.DONE, State.FAILED) is State.DONE
    assert len(live_lab.lines("long")) == 300


def test_a_cancelled_task_leaves_its_slots_at_once(live_lab: ModelLab) -> None:
    live_lab.questions(300)
    live_lab.put("unwanted", PROMPTS)
    wait_until(lambda: live_lab.answered("unwanted") > 5, 90, "some replies")
    live_lab.told("cancel", "unwanted")
    live_lab.wait("unwanted", State.CANCELLED)

    def in_flight() -> int:
        [endpoint] = live_lab.asked("models")["endpoints"]
        return sum(model["in_flight"] for model in endpoint["models"])

    # Less than the time after which a silent holder is taken for dead.
    wait_until(lambda: in_flight() == 0, 15, "no slot to be taken", every_s=COSTLY_S)
