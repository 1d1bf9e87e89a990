"""An attempt in a worker's process: what it keeps warm, and what it says of its steps."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labd import worker
from labd.packing import pack
from tests.factories import PARABOLA, make_template, task_text
from tests.processes import wait_until
from tests.servers.fixtures import running_ollama
from tests.test_command import SANDBOX, Lab
from tests.test_llm_pool import NODE, brokered, endpoint, in_flight

# A process of its own, because what is kept warm is the process's.
WARM = """
import json, sys, time
from pathlib import Path
from labd import worker
jobs = json.loads(sys.argv[1])
results = Path(jobs[0]["results_dir"]).parent
worker.warm_up({"results": str(results), "sandbox": jobs[0]["sandbox"], "min_free_bytes": 0})
worker.warm_up({"results": str(results), "sandbox": jobs[0]["sandbox"], "min_free_bytes": 0})

def waiting():
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        found = [path for path in (results / ".ahead").glob("ahead-*") if path.is_dir()]
        if found:
            return found
        time.sleep(0.01)
    raise SystemExit("no sandbox waits: " + worker._kept.primer.ahead.trouble())

for job in jobs:
    (spare,) = waiting()
    inode = spare.stat().st_ino
    # It has its directory before it is ready, and one that is not ready is not used.
    time.sleep(1)
    outcome = worker.run(job, [])
    files = Path(job["results_dir"]) / "files"
    print(json.dumps([outcome["outcome"], files.stat().st_ino == inode, sorted(p.name for p in files.iterdir())]))
waiting()
"""


def warmed(*jobs: dict[str, Any]) -> list[list[Any]]:
    done = subprocess.run(
        [sys.executable, "-c", WARM, json.dumps(jobs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.mark.sandbox
def test_a_warm_worker_has_a_sandbox_waiting_for_each_plain_command(lab: Lab) -> None:
    run = lab.text(run="touch made; test -z \"$(find . -name '[!m.]*')\"")
    told = warmed(lab.job(run, "one"), lab.job(run, "two"))
    assert told == [["done", True, ["made"]], ["done", True, ["made"]]]
    assert list((lab.home.results / ".ahead").glob("ahead-*")) == []


@pytest.mark.sandbox
def test_a_command_that_needs_more_or_goes_on_gets_a_sandbox_of_its_own(lab: Lab) -> None:
    data = str(lab.root / "data")
    with_input = lab.job(lab.text(run="touch made", inputs={"a": data}), "one")
    again = lab.job(lab.text(run="touch made"), "two", attempt=2)
    lab.files("two").mkdir(parents=True)
    (lab.files("two") / "earlier").touch()
    assert warmed(with_input, again) == [
        ["done", False, ["made"]],
        ["done", False, ["earlier", "made"]],
    ]


@pytest.mark.sandbox
def test_research_says_each_step_and_whether_it_was_replayed(lab: Lab) -> None:
    root = lab.root / "templates"
    make_template(root, experiment=PARABOLA % 0, num_trials=1)
    job = lab.job(
        task_text(template="tiny"),
        template_roots=[str(root)],
        sandbox={**SANDBOX, "memory_bytes": 2**30, "disk_bytes": 2**28},
    )
    first: list[tuple[str, bool]] = []
    again: list[tuple[str, bool]] = []
    outcome = worker.run(job, [], lambda key, replayed: first.append((key, replayed)))
    assert (outcome["outcome"], outcome["error"]) == ("done", None)
    assert "research" not in outcome
    assert first
    assert not any(replayed for _, replayed in first)
    runs = lab.home.results / "x" / "runs"
    before = sorted(path.relative_to(runs) for path in runs.rglob("*"))
    pack(runs.parent, "runs")
    worker.run({**job, "attempt": 2}, [], lambda key, replayed: again.append((key, replayed)))
    assert sorted(path.relative_to(runs) for path in runs.rglob("*")) == before != []
    # Those that run at the same time come in any order.
    assert sorted(again) == sorted((key, True) for key, _ in first)
    result = json.loads((lab.home.results / "x" / "result.json").read_text())
    assert (result["attempt"], "research" in result) == (2, True)
    log = (lab.home.results / "x" / "log.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in log]
    assert events.count("attempt.started") == events.count("attempt.finished") == 2


def test_what_is_no_task_is_a_failure_and_no_exception(lab: Lab) -> None:
    outcome = worker.run(lab.job("kind: nonsense"), [])
    assert (outcome["outcome"], outcome["error"]["code"]) == ("failed", "task_file")
    assert json.loads((lab.home.results / "x" / "result.json").read_text()) == outcome


@pytest.mark.sandbox
def test_a_result_that_can_not_be_written_is_no_success(lab: Lab) -> None:
    job = lab.job(lab.text(run="true"))
    (lab.home.results / "x" / "result.json").mkdir()
    outcome = worker.run(job, [])
    assert (outcome["outcome"], outcome["error"]["code"]) == ("failed", "storage")
    assert outcome["error"]["retryable"]


@pytest.mark.sandbox
def test_a_command_that_waits_for_its_gpu_says_why(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labd.llm.slots._LISTEN_S", 0.2)
    log = lab.home.results / "x" / "log.jsonl"
    job = lab.job(lab.text(run="true"), num_gpus=1.0, node_id=NODE)
    with (
        running_ollama("--model=alpha,vram=8000000000") as node,
        brokered(endpoint(node)) as call,
        ThreadPoolExecutor(1) as threads,
    ):
        facts = {"node_id": NODE, "model": "alpha", "num_ctx": 2048, "tried": []}
        call("want", holder="busy", ticket="t", **facts)
        wait_until(lambda: in_flight(call) == 1)
        running = threads.submit(worker.run, job, [0], models=call)
        wait_until(log.exists)
        call("bye", holder="busy")
        assert running.result(60)["outcome"] == "done"
    [told] = [json.loads(line) for line in log.read_text().splitlines()]
    assert told["event"] == "gpus.waiting"
    assert told["task_id"] == "x"
    assert "one: " in told["detail"]
