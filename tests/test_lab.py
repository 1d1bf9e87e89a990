"""What people see of a lab: lists of long and short directories, labels, reasons, and logs as they grow."""

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest

from labd.archive import Archive
from labd.follow import LogFollower
from labd.lab import Lab, headline
from labd.settings import Home, Settings
from labd.spool import Spool
from labd.task import State
from tests.processes import wait_until


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path, Settings())
    Spool(home.spool).prepare()
    Archive(home.results).prepare()
    return home


def put(home: Home, state: State, name: str, text: str = "kind: command\nrun: 'true'\n") -> None:
    (home.spool / state.value / f"{name}.yaml").write_text(text)


def say(home: Home, **facts: object) -> None:
    """Have the daemon's status file say this."""
    status = {"at": "2026-11-22T12:00:00Z", **facts}
    (home.run_dir / "status.json").write_text(json.dumps(status))


def ids(lab: Lab, *states: State, label: str | None = None, limit: int = 50) -> list[str]:
    return [view.id for view in lab.tasks(states or tuple(State), limit, label)]


def test_a_label_picks_its_tasks_in_every_state(home: Home) -> None:
    night = "kind: command\nrun: 'true'\nlabels: [night, big]\n"
    for state, name in ((State.PENDING, "a"), (State.DONE, "b"), (State.FAILED, "c")):
        put(home, state, name, night)
        put(home, state, f"{name}-other")
    lab = Lab(home)
    assert ids(lab, label="night") == ["a", "c", "b"]
    assert ids(lab, label="nigh") == []
    assert lab.find("a").labels == ("night", "big")


def test_of_a_summary_the_verdict_is_shown_with_what_was_compared() -> None:
    compared = "accuracy on test, 10 fresh seeds: 0.97 → 0.98, difference +0.01"
    study = ["24 trials", compared, "improved: The p-value is below 0.05.", "2 reviews"]
    assert headline(study) == f"improved: {compared}"
    assert headline(["0 trials", "nothing to compare", "inconclusive: No trial ran.", "x"]) == (
        "inconclusive: No trial ran."
    )
    assert headline(["exit code 0 after 3.0 s"]) == "exit code 0 after 3.0 s"
    assert headline([]) == ""


def test_what_waits_comes_in_the_order_that_the_daemon_would_start_it(home: Home) -> None:
    for name in ("a", "b", "c"):
        put(home, State.PENDING, name)
    say(home, next=["c.yaml", "gone.yaml", "a.yaml"])
    assert ids(Lab(home), State.PENDING) == ["c", "a", "b"]


def _is_past(time_ns: int) -> bool:
    return time.time_ns() - time_ns > 20_000_000


def test_what_ended_comes_last_ended_first(home: Home) -> None:
    spool = Spool(home.spool)
    for name in ("b", "a", "c"):
        put(home, State.RUNNING, name)
    for name in ("c", "a", "b"):
        spool.move(f"{name}.yaml", State.RUNNING, State.DONE)
        moved = spool.entry(State.DONE, f"{name}.yaml")
        assert moved is not None
        # The file system's clock is coarse.
        wait_until(partial(_is_past, moved.moved_ns), 5)
    assert ids(Lab(home), State.DONE) == ["b", "a", "c"]


def test_each_waiting_task_has_the_reason_of_its_class_or_its_own(home: Home) -> None:
    put(home, State.PENDING, "plain")
    put(home, State.PENDING, "big", "kind: command\nrun: 'true'\nnum_gpus: 2\n")
    put(home, State.PENDING, "gated", "kind: command\nrun: 'true'\nafter: x\n")
    told = {"priority": 0, "owner": str(os.getuid()), "num_cpus": 1.0, "at_home": False}
    say(
        home,
        classes=[
            {
                **told,
                "num_gpus": 0.0,
                "at_home": False,
                "reason": "waits for its turn: 3 before it",
            },
            {**told, "num_gpus": 2.0, "reason": "waits for 2 GPUs: a has 1 free"},
        ],
        reasons={"gated.yaml": "waits for x, which nobody has submitted"},
    )
    why = {view.id: view.why for view in Lab(home).tasks()}
    assert why == {
        "plain": "waits for its turn: 3 before it",
        "big": "waits for 2 GPUs: a has 1 free",
        "gated": "waits for x, which nobody has submitted",
    }


def test_of_a_long_directory_the_last_are_known_without_a_look_at_each(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labd.lab._LONG", 3)
    spool = Spool(home.spool)
    for number in range(6):
        put(home, State.RUNNING, f"t{number}")
        spool.move(f"t{number}.yaml", State.RUNNING, State.DONE)
    (home.spool / "done" / "t4.yaml").unlink()
    put(home, State.DONE, "by-hand")
    lab = Lab(home)
    assert lab.counts()[State.DONE] == 6
    assert ids(lab, State.DONE) == ["t5", "t3", "t2"]


def test_the_list_of_what_ended_last_stays_short_and_whole_lines(home: Home) -> None:
    spool = Spool(home.spool)
    long = "x" * 240
    for number in range(40):
        put(home, State.RUNNING, f"{long}{number}")
        spool.move(f"{long}{number}.yaml", State.RUNNING, State.DONE)
    assert [e.id for e in spool.recent(State.DONE, 3)] == [f"{long}{n}" for n in (39, 38, 37)]
    assert list(spool.recent(State.FAILED, 3)) == []


def follow(lab: Lab, task: str, *, as_json: bool = False) -> tuple[LogFollower, list[str]]:
    lines: list[str] = []
    return LogFollower(lab, task, lines.append, as_json=as_json), lines


def test_a_growing_output_is_followed_in_whole_harmless_lines(home: Home) -> None:
    results = home.results / "x"
    results.mkdir()
    log, lines = follow(Lab(home), "x")
    log.print_new()
    assert lines == []
    with (results / "log.txt").open("wb") as file:
        file.write(b"one\ntw")
        file.flush()
        log.print_new()
        assert lines == ["one"]
        file.write(b"o\n10%\r20%\r30%\r\n\x1b[31mred\x07\ta\xff\nlast")
    log.print_new()
    assert lines == ["one", "two", "30%", "\\x1b[31mred\\x07       a\ufffd"]
    log.finish()
    assert lines[-1] == "last"
    assert not any(ord(char) < 32 for line in lines for char in line)


def test_the_output_of_the_next_attempt_is_followed_from_its_start(home: Home) -> None:
    results = home.results / "x"
    results.mkdir()
    (results / "log.txt").write_text("first attempt, a long line\n")
    log, lines = follow(Lab(home), "x", as_json=True)
    log.print_new()
    (results / "log.txt").rename(results / "log.attempt-1.txt")
    (results / "log.txt").write_text("second\n")
    log.print_new()
    texts = [json.loads(line)["output"] for line in lines]
    assert texts == ["first attempt, a long line", "second"]


def test_a_result_that_is_no_plain_file_is_none(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.directory("real").mkdir()
    archive.write_result("real", {"kind": "command"})
    path = archive.directory("task") / "result.json"
    path.parent.mkdir()
    path.symlink_to(archive.directory("real") / "result.json")
    assert archive.result("task") is None
    path.unlink()
    os.mkfifo(path)
    assert archive.result("task") is None
