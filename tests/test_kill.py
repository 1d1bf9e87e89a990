"""SIGKILL of everything at random moments of the demo: one done task, no run twice, the same paper."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from labd.archive import Archive
from labd.spool import Spool
from labd.task import State
from tests.conftest import REPO
from tests.factories import write_settings
from tests.processes import DaemonProcess, wait_until

WHOLE = "LABD_TORTURE" in os.environ
KILLS = 40 if WHOLE else 2
SETTINGS = {"ray": {"num_cpus": 2, "dashboard": False}, "min_free_bytes": 2**20}


def journal_lines(results: Path) -> list[dict[str, object]]:
    try:
        raw = (results / "journal.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]


def _far_enough(results: Path, spool: Spool, steps: int) -> bool:
    return len(journal_lines(results)) >= steps or bool(spool.names(State.DONE))


@pytest.mark.ray
@pytest.mark.sandbox
@pytest.mark.timeout(1500 if WHOLE else 600)
def test_kills_of_everything_cost_no_finished_run_and_change_no_word_of_the_paper(
    tmp_path: Path, daemon: Callable[..., DaemonProcess]
) -> None:
    write_settings(tmp_path, **SETTINGS)
    spool, archive = Spool(tmp_path / "spool"), Archive(tmp_path / "results")
    spool.prepare()
    demo = tmp_path / "demo.yaml"
    # The demo's own task; outside of `make torture` with one of its trials, so that the baseline is the best and half
    # as many runs confirm it, killed once at work and once while Ray starts: `test_crash_worker` (whose tasks search)
    # and `test_crash_daemon` kill at single calls, `make torture` forty times here.
    shorter = "" if WHOLE else "max_runs: 1\n"
    demo.write_text((REPO / "config" / "examples" / "first-paper.yaml").read_text() + shorter)
    shutil.copyfile(demo, tmp_path / "spool" / "pending" / "demo.yaml")
    results = archive.directory("demo")
    chance = random.Random(None if WHOLE else 20261122)
    recorded: list[dict[str, object]] = []
    for number in range(KILLS):
        process = daemon(tmp_path)
        # A random moment: while Ray starts, or at a random step of the work after that.
        if chance.random() < 0.3 if WHOLE else number % 2:
            time.sleep(chance.uniform(0.2, 8 if WHOLE else 4))
        else:
            more = len(recorded) + chance.randint(1, 4)
            wait_until(partial(_far_enough, results, spool, more), 90, f"{more} steps")
            time.sleep(chance.uniform(0, 0.5))
        process.kill_everything()
        now = journal_lines(results)
        assert now[: len(recorded)] == recorded, "what was recorded has changed"
        recorded = now
        assert sum(len(spool.names(state)) for state in State) == 1

    process = daemon(tmp_path)
    wait_until(lambda: spool.names(State.DONE) == ["demo.yaml"], 180, "the end of the task")
    lines = journal_lines(results)
    assert lines[: len(recorded)] == recorded
    assert len({line["key"] for line in lines}) == len(lines), "a step was recorded twice"
    assert [e["event"] for e in archive.history("demo").events].count("done") == 1
    for line in lines:
        value = line["value"]
        if isinstance(value, dict) and "directory" in value:
            written = (results / str(value["directory"]) / "params.json").stat().st_mtime
            at = datetime.fromisoformat(str(line["at"])).timestamp()
            assert written <= at, f"{value['name']} was run again after it was recorded"

    shutil.copyfile(demo, tmp_path / "spool" / "pending" / "undisturbed.yaml")
    wait_until(lambda: spool.holds(State.DONE, "undisturbed.yaml"), 180, "the undisturbed task")
    assert (results / "paper.md").read_text() == (
        archive.directory("undisturbed") / "paper.md"
    ).read_text()
    assert process.stop() == 0
