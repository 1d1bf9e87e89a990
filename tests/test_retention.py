"""Retention: what the rules say, when the clocks are believed, and what is left of results, also of hostile ones."""

import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labd.archive import EVENTS, JOURNAL, PRUNED, RESULT, Archive
from labd.errors import Busy, ConfigError, StillHeld, StorageError
from labd.files import locked, locked_within
from labd.journal import Journal
from labd.packing import WORKING, archived, pack, unpack, unpack_all
from labd.retention import Action, Finished, Keeper, Reading, Rule, decide, trust
from labd.retention.rules import in_turn
from labd.settings import Home
from labd.spool import Spool
from labd.task import State
from labd.trees import size_of
from tests.factories import task_text, write_settings

DAY_S = 86_400.0
NOW_S = 1_800_000_000.0
COMMAND = {"kind": "command", "template": None, "run": ["true"]}


def finished(name: str, age_d: float, **over: Any) -> Finished:
    facts = {"loose_bytes": 100, "other_bytes": 10, "record_bytes": 1, **over}
    return Finished(
        name,
        over.pop("state", State.DONE),
        NOW_S - age_d * DAY_S,
        **{k: v for k, v in facts.items() if k != "state"},
    )


def told(actions: tuple[Action, ...]) -> list[tuple[str, str, int]]:
    return [(action.what, action.id, action.size_bytes) for action in actions]


# --- the rules


def test_a_task_is_compressed_and_later_pruned_by_the_age_of_its_end() -> None:
    rule = Rule(compress_after_s=7 * DAY_S, prune_after_s=30 * DAY_S)
    tasks = [finished("new", 6.9), finished("mid", 7), finished("old", 30), finished("older", 31)]
    plan = decide(tasks, {State.DONE: rule}, NOW_S)
    assert told(plan.actions) == [
        ("prune", "older", 100),
        ("prune", "old", 100),
        ("compress", "mid", 100),
    ]
    assert plan.actions[1].reason == "ended 30 d 0 h ago; prune_after is 30 d 0 h"


def test_compressing_counts_from_the_last_change_unless_that_is_still_to_come() -> None:
    rule = Rule(compress_after_s=7 * DAY_S, prune_after_s=30 * DAY_S)
    ages_d = {"unpacked": 1, "long ago": 8, "dated ahead": -9}
    tasks = [finished(name, 20, changed_s=NOW_S - age * DAY_S) for name, age in ages_d.items()]
    old = finished("old", 31, changed_s=NOW_S - DAY_S)
    plan = decide([*tasks, old], {State.DONE: rule}, NOW_S)
    assert [(action.what, action.id) for action in plan.actions] == [
        ("prune", "old"),
        ("compress", "dated ahead"),
        ("compress", "long ago"),
    ]


def test_nothing_goes_where_no_rule_says_so() -> None:
    assert decide([finished("old", 10_000)], {}, NOW_S).actions == ()
    assert decide([finished("old", 10_000)], {State.DONE: Rule()}, NOW_S).actions == ()
    other = decide([finished("old", 10_000)], {State.FAILED: Rule(None, DAY_S)}, NOW_S)
    assert other.actions == ()


def test_what_is_compressed_or_pruned_already_is_left_alone() -> None:
    rule = Rule(compress_after_s=DAY_S, prune_after_s=30 * DAY_S)
    tasks = [
        finished("packed", 2, loose_bytes=0, packed_bytes=50),
        finished("pruned", 99, loose_bytes=0),
    ]
    assert decide(tasks, {State.DONE: rule}, NOW_S).actions == ()
    alone = decide(tasks, {State.DONE: Rule(None, 30 * DAY_S, keep="record")}, NOW_S)
    assert told(alone.actions) == [("prune", "pruned", 10)]


def test_the_oldest_go_until_the_rest_fits() -> None:
    tasks = [finished(name, age) for name, age in (("a", 3), ("b", 9), ("c", 5))]
    plan = decide(tasks, {State.DONE: Rule(max_bytes=230)}, NOW_S)
    assert told(plan.actions) == [("prune", "b", 100), ("prune", "c", 100)]
    assert decide(tasks, {State.DONE: Rule(max_bytes=333)}, NOW_S).actions == ()
    nothing_left = decide(tasks, {State.DONE: Rule(max_bytes=5)}, NOW_S)
    assert len(nothing_left.actions) == 3
    assert "33 B stay" in nothing_left.notes[0]


def test_what_may_not_be_touched_stays_and_is_told_and_others_go_in_its_place() -> None:
    tasks = [finished("a", 9, kept="b waits for it"), finished("b", 5), finished("c", 1)]
    plan = decide(tasks, {State.DONE: Rule(max_bytes=233)}, NOW_S)
    assert told(plan.actions) == [("prune", "b", 100)]
    assert plan.kept == {"a": "b waits for it"}


@given(
    ends=st.lists(st.floats(-100, 100), max_size=8),
    limit=st.none() | st.integers(0, 900),
    compress_d=st.none() | st.floats(0.1, 50),
    prune_d=st.none() | st.floats(0.1, 90),
)
def test_an_end_ahead_of_the_clock_is_never_acted_on_nor_a_younger_one_for_its_age(
    ends: list[float], limit: int | None, compress_d: float | None, prune_d: float | None
) -> None:
    rule = Rule(compress_d and compress_d * DAY_S, prune_d and prune_d * DAY_S, limit)
    tasks = [finished(f"t{n}", age) for n, age in enumerate(ends)]
    plan = decide(tasks, {State.DONE: rule}, NOW_S)
    assert len({action.id for action in plan.actions}) == len(plan.actions)
    by_id = {task.id: task for task in tasks}
    for action in plan.actions:
        age_s = NOW_S - by_id[action.id].ended_s
        assert age_s >= -300
        if limit is None:
            assert age_s >= rule.least_age_s
    if limit is None and prune_d is not None:
        ahead = {task.id for task in tasks if task.ended_s > NOW_S + 300}
        assert ahead <= set(plan.kept)


def test_unattended_what_makes_room_goes_first_and_what_was_cut_off_last() -> None:
    rules = {State.DONE: Rule(compress_after_s=DAY_S), State.FAILED: Rule(prune_after_s=DAY_S)}
    done = [finished(name, age) for name, age in (("giant", 9), ("twice", 8), ("b", 7), ("c", 6))]
    failed = finished("f", 5, state=State.FAILED)
    plan = decide([*done, failed], rules, NOW_S)
    assert [action.id for action in in_turn(plan.actions, [])] == ["f", "giant", "twice", "b", "c"]
    turns = in_turn(plan.actions, ["giant", "f", "twice"])
    assert [action.id for action in turns] == ["f", "b", "c", "giant", "twice"]


# --- the clocks


def walked(*steps: tuple[float, float, str]) -> list[str]:
    """Look after each step of (wall, uptime, boot); give what was said each time."""
    memory: Mapping[str, Any] = {}
    wall_s, up_s, said = NOW_S, 0.0, []
    for wall, up, boot in steps:
        wall_s, up_s = wall_s + wall, (up if boot.endswith("!") else up_s + up)
        why, memory = trust(memory, Reading(wall_s, up_s, boot.rstrip("!")))
        said.append(why)
    return said


HOUR = 3600.0


def test_nothing_is_removed_until_the_clocks_have_agreed_for_a_day() -> None:
    said = walked(*[(HOUR, HOUR, "a")] * 26)
    assert said[0].startswith("retention is new here; nothing is removed for another 1 d 0 h")
    assert all(said[:24])
    assert said[24:] == ["", ""]


@pytest.mark.parametrize(
    ("wall", "up", "boot", "why"),
    [
        (365 * DAY_S, HOUR, "a", "the clock jumped by 364 d"),
        (-DAY_S, HOUR, "a", "the clock went back by 1 d"),
        (30 * DAY_S, 60.0, "b!", "30 d 0 h have passed by the clock, and the machine was off"),
        (-DAY_S, 60.0, "b!", "the clock went back"),
    ],
)
def test_a_jump_of_the_clock_holds_everything_for_a_day(
    wall: float, up: float, boot: str, why: str
) -> None:
    calm = [(HOUR, HOUR, "a")] * 25
    said = walked(*calm, (wall, up, boot), *[(HOUR, HOUR, boot.rstrip("!"))] * 24)
    assert said[24] == ""
    assert said[25].startswith(why)
    assert all(said[25:49])
    assert said[49] == ""


def test_a_short_restart_and_a_suspended_machine_do_not_hold_it_up() -> None:
    calm = [(HOUR, HOUR, "a")] * 25
    assert walked(*calm, (HOUR, 60.0, "b!"), (HOUR, HOUR, "b"))[-2:] == ["", ""]
    assert walked(*calm, (9 * DAY_S, 9 * DAY_S, "a"))[-1] == ""  # boot time counts suspensions


# --- packing


def tree(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """Give everything below: kind, mode and bytes or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode & 0o777
        name = os.fsencode(path.relative_to(root)).decode(errors="surrogateescape")
        if path.is_symlink():
            found[name] = ("link", 0, os.fsencode(path.readlink()))
        elif path.is_dir():
            found[name] = ("dir", mode, b"")
        else:
            found[name] = ("file", mode, path.read_bytes())
    return found


def fill(directory: Path) -> None:
    """Make what runs leave: files, links, odd names and modes, an empty directory, a deep one."""
    deep = directory / "trial-001" / "/".join("abcdefgh")
    deep.mkdir(parents=True)
    (deep / "log.txt").write_bytes(b"line\n" * 50_000)
    (directory / "empty").mkdir()
    (directory / "nothing").touch()
    (directory / "tool.sh").write_bytes(b"#!/bin/sh\n")
    (directory / "tool.sh").chmod(0o700)
    (directory / "link").symlink_to("trial-001/a")
    (directory / "a name\nof two lines é").write_bytes(os.urandom(5000))
    Path(os.fsdecode(os.fsencode(directory) + b"/not \xff UTF-8")).write_bytes(b"x")
    os.link(directory / "tool.sh", directory / "second name")


def test_what_was_packed_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    fill(tmp_path / "runs")
    before = tree(tmp_path / "runs")
    before_bytes = size_of(tmp_path / "runs").size_bytes
    pack(tmp_path, "runs")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.tar.gz"]
    assert archived(tmp_path) == ["runs"]
    assert size_of(tmp_path / "runs.tar.gz").size_bytes < before_bytes / 2
    with tarfile.open(tmp_path / "runs.tar.gz") as tar:
        assert set(tar.getnames()) == {"runs", *(f"runs/{name}" for name in before)}
    assert unpack_all(tmp_path) == ["runs"]
    assert tree(tmp_path / "runs") == before
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_what_is_no_file_is_not_packed_and_nothing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    os.mkfifo(tmp_path / "runs" / "pipe")
    with pytest.raises(StorageError, match="runs/pipe: is no file, directory or link"):
        pack(tmp_path, "runs")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_file_that_changes_meanwhile_is_not_packed_and_nothing_is_removed(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs").mkdir()
    path, over = tmp_path / "runs" / "changing", threading.Event()
    path.write_bytes(bytes(16 * 2**20))

    def change() -> None:
        with path.open("r+b", buffering=0) as file:
            while not over.is_set():
                file.seek(0)
                file.write(os.urandom(8))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        with pytest.raises(StorageError, match="does not hold what was put into it"):
            pack(tmp_path, "runs")
    finally:
        over.set()
        thread.join()
    assert [found.name for found in tmp_path.rglob("*")] == ["runs", "changing"]


def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    results = tmp_path / "results"
    results.mkdir()
    (results / "runs").symlink_to(outside)
    with pytest.raises(OSError, match="runs"):
        pack(results, "runs")
    assert (outside / "kept").read_text() == "x"


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_a_damaged_archive_is_told_and_stays(tmp_path: Path, at: float) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "bytes").write_bytes(os.urandom(20_000))
    pack(tmp_path, "runs")
    raw = bytearray((tmp_path / "runs.tar.gz").read_bytes())
    raw[int(len(raw) * at)] ^= 0xFF
    (tmp_path / "runs.tar.gz").write_bytes(raw)
    with pytest.raises(StorageError, match="can't be unpacked"):
        unpack(tmp_path, "runs")
    assert (tmp_path / "runs.tar.gz").read_bytes() == raw
    assert names(tmp_path) == {"runs.tar.gz"}


def put(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def test_what_has_no_room_to_be_unpacked_leaves_its_archive_and_nothing_else(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "data").write_bytes(bytes(2**20))
    pack(tmp_path, "runs")
    with pytest.raises(StorageError, match="there is no room to unpack it"):
        unpack(tmp_path, "runs", spare_bytes=2**60)
    assert names(tmp_path) == {"runs.tar.gz"}
    with tarfile.open(tmp_path / "runs.tar.gz", "w:gz") as tar:
        tar.addfile(put("runs", tarfile.DIRTYPE))
        huge = put("runs/huge")
        huge.size = 2**50
        tar.addfile(huge)
    with pytest.raises(StorageError, match="there is no room to unpack it"):
        unpack(tmp_path, "runs")
    assert names(tmp_path) == {"runs.tar.gz"}


@pytest.mark.parametrize(
    "members",
    [
        [put("runs", tarfile.DIRTYPE), put("runs/../../out", tarfile.DIRTYPE)],
        [put("runs", tarfile.SYMTYPE, "/tmp"), put("runs/out", tarfile.DIRTYPE)],
        [put("/runs", tarfile.DIRTYPE), put("/runs/x", tarfile.DIRTYPE)],
        [put("runs", tarfile.DIRTYPE), put("runs/hard", tarfile.LNKTYPE, "/etc/passwd")],
        [put("runs", tarfile.DIRTYPE), put("runs/device", tarfile.CHRTYPE)],
    ],
    ids=["climbs", "through a link", "absolute", "hard link", "device"],
)
def test_an_archive_that_somebody_made_gets_nothing_out_of_its_place(
    tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    results = tmp_path / "results" / "t"
    results.mkdir(parents=True)
    with tarfile.open(results / "runs.tar.gz", "w:gz") as tar:
        for member in members:
            tar.addfile(member)
    with pytest.raises(StorageError, match="can't be unpacked"):
        unpack(results, "runs")
    assert not (results / "runs").exists()
    assert [path.name for path in tmp_path.rglob("*") if "out" in path.name] == []


# --- a lab's results


def make_lab(root: Path, **retention: Any) -> Home:
    home = write_settings(root, retention=retention)
    Spool(home.spool).prepare()
    Archive(home.results).prepare()
    return home


def add(home: Home, name: str, state: State = State.DONE, **task: Any) -> Path:
    """Make a task that has ended in this state, with working files; give its results."""
    archive, results = Archive(home.results), home.results / name
    (home.spool / state.value / f"{name}.yaml").write_text(task_text(**{**COMMAND, **task}))
    if state in {State.PENDING, State.RUNNING}:
        return results
    archive.record(name, "claimed", attempt=1)
    archive.record(name, state.value, attempt=1)
    archive.write_result(name, {"attempt": 1, "summary": ["found"]})
    for working in WORKING:
        (results / working).mkdir()
        (results / working / "data").write_bytes(b"x" * 100_000)
    (results / "paper.pdf").write_bytes(b"%PDF")
    (results / JOURNAL).write_bytes(b'{"key": "a"}\n')
    return results


def names(results: Path) -> set[str]:
    return {path.name for path in results.iterdir()}


def soon() -> float:
    """Give a moment two days from now, by which the tasks of a test have ended long ago."""
    return time.time() + 2 * DAY_S


def run_rules(home: Home, now_s: float | None = None) -> list[str]:
    """Do what the settings say; give the problems."""
    keeper = Keeper(home)
    plan = keeper.plan(keeper.rules, now_s or soon())
    return [done.problem for done in keeper.carry_out(plan.actions)]


def test_compressing_keeps_what_people_came_for_and_unpacking_gives_all_back(
    tmp_path: Path,
) -> None:
    home = make_lab(tmp_path, done={"compress_after": "1d"})
    results = add(home, "t")
    (results / ".lock").touch()
    before = tree(results)
    assert run_rules(home) == [""]
    assert names(results) == {
        EVENTS,
        RESULT,
        JOURNAL,
        ".lock",
        "paper.pdf",
        "files.tar.gz",
        "runs.tar.gz",
    }
    assert run_rules(home) == [], "what is compressed is compressed again"
    assert Keeper(home).unpack("t") == list(WORKING)
    assert tree(results) == before


def test_what_somebody_unpacked_is_not_compressed_again_at_once(tmp_path: Path) -> None:
    home = make_lab(tmp_path, done={"compress_after": "1d"})
    results = add(home, "t")
    os.utime(results / "runs", (1, 1))
    began_s = (results / RESULT).stat().st_mtime
    assert run_rules(home) == [""]
    Keeper(home).unpack("t")
    assert (results / "runs").stat().st_mtime >= began_s
    unpacked_s = soon()
    os.utime(results / "runs", (unpacked_s, unpacked_s))
    assert run_rules(home, unpacked_s + DAY_S / 2) == []
    assert run_rules(home, unpacked_s + 2 * DAY_S) == [""]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files in another user's name")
def test_what_root_unpacks_belongs_to_whose_results_they_are(tmp_path: Path) -> None:
    outside = tmp_path / "kept"  # which nobody but root can reach
    outside.touch()
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        home = make_lab(Path(root), done={"compress_after": "1d"})
        results = add(home, "t")
        (results / "runs" / "link").symlink_to(outside)
        for path in (results, *results.rglob("*")):
            os.chown(path, 1234, 2345, follow_symlinks=False)
        assert run_rules(home) == [""]
        assert Keeper(home).unpack("t") == ["files", "runs"]
        made = list(results.rglob("*"))
        assert {path.name for path in made} >= {".lock", "files", "runs", "data", "link"}
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {(1234, 2345)}
        (results / ".lock").unlink()
        (results / ".lock").symlink_to(outside)
        with pytest.raises(PermissionError):
            Keeper(home).unpack("t")
    assert (os.geteuid(), os.getegid(), outside.stat().st_uid) == (0, 0, 0)


def test_pruning_keeps_the_record_and_the_paper_and_the_id(tmp_path: Path) -> None:
    home = make_lab(tmp_path, done={"prune_after": "1d"})
    results = add(home, "t")
    assert run_rules(home) == [""]
    assert names(results) == {EVENTS, RESULT, JOURNAL, ".lock", "paper.pdf", PRUNED}
    assert (home.spool / "done" / "t.yaml").exists()
    assert Archive(home.results).knows("t")
    assert Archive(home.results).history("t").ended is State.DONE
    assert run_rules(home) == []


def test_keeping_the_record_alone_takes_the_paper_too(tmp_path: Path) -> None:
    home = make_lab(tmp_path, done={"prune_after": "1d", "keep": "record"})
    results = add(home, "t")
    assert run_rules(home) == [""]
    assert names(results) == {EVENTS, RESULT, JOURNAL, ".lock", PRUNED}
    assert run_rules(home) == []


def test_a_failed_task_that_was_pruned_begins_anew(tmp_path: Path) -> None:
    home = make_lab(tmp_path, failed={"prune_after": "1d"})
    results = add(home, "t", State.FAILED)
    assert run_rules(home) == [""]
    assert (results / JOURNAL).read_bytes() == b""
    assert (results / "journal.pruned.jsonl").read_bytes() == b'{"key": "a"}\n'


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING])
def test_a_task_that_has_not_ended_is_never_touched(tmp_path: Path, state: State) -> None:
    home = make_lab(
        tmp_path,
        **{s: {"prune_after": "1h", "max_bytes": 0} for s in ("done", "failed", "cancelled")},
    )
    results = add(home, "t", State.FAILED)
    (home.spool / "failed" / "t.yaml").rename(home.spool / state.value / "t.yaml")
    before = tree(results)
    assert run_rules(home) == []
    assert tree(results) == before


def test_a_task_without_an_end_on_record_stays(tmp_path: Path) -> None:
    home = make_lab(tmp_path, cancelled={"prune_after": "1h"})
    results = add(home, "t", State.CANCELLED)
    Archive(home.results).record("t", "claimed", attempt=2)
    keeper = Keeper(home)
    plan = keeper.plan(keeper.rules, soon())
    assert plan.actions == ()
    assert plan.kept == {"t": "its end is not on record"}
    assert (results / "runs").is_dir()


def test_what_another_task_waits_for_or_takes_in_stays(tmp_path: Path) -> None:
    home = make_lab(tmp_path, done={"prune_after": "1h"})
    for name in ("workdir", "input", "after", "free"):
        add(home, name)
    add(home, "uses", State.RUNNING, workdir=str(home.results / "workdir" / "files"))
    prompts = {"kind": "prompts", "run": None, "model": "m"}
    add(home, "reads", State.PENDING, **prompts, input="results/input/files/data")
    add(home, "waits", State.PENDING, after=["after"])
    keeper = Keeper(home)
    plan = keeper.plan(keeper.rules, soon())
    assert [action.id for action in plan.actions] == ["free"]
    assert plan.kept == {
        "workdir": "uses is running and names it",
        "input": "reads is pending and names it",
        "after": "waits is pending and names it",
    }


def _holds_a_command(results: Path) -> Path:
    (results / ".lock").touch()
    return results / ".lock"


@pytest.mark.parametrize("lock", [_holds_a_command, lambda results: results / JOURNAL])
def test_what_is_at_work_is_left_for_the_next_time(
    tmp_path: Path, lock: Callable[[Path], Path]
) -> None:
    home = make_lab(tmp_path, cancelled={"prune_after": "1h"})
    results = add(home, "t", State.CANCELLED)
    with locked(lock(results)):
        assert run_rules(home) == ["it is at work"]
        with pytest.raises(Busy):
            Keeper(home).unpack("t")
    assert (results / "runs").is_dir()
    assert run_rules(home) == [""]


def test_a_task_that_is_tried_again_does_not_wait_for_its_compression(tmp_path: Path) -> None:
    home = make_lab(tmp_path, failed={"compress_after": "1h"})
    results = add(home, "t", State.FAILED)
    with (results / "files" / "long").open("wb") as file:
        file.truncate(2**29)

    def try_again() -> None:
        deadline_s = time.monotonic() + 20
        while not list(results.glob(".*.tmp")) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        Spool(home.spool).move("t.yaml", State.FAILED, State.PENDING)

    thread = threading.Thread(target=try_again)
    thread.start()
    assert run_rules(home) == ["it was moved meanwhile"]
    thread.join()
    assert (results / "files" / "data").exists()
    assert not (results / "files.tar.gz").exists()
    assert not list(results.glob(".*.tmp"))


@pytest.mark.parametrize("wait", [locked_within, lambda path, s: Journal(path, lock_timeout_s=s)])
def test_an_attempt_that_finds_its_results_held_is_tried_again_later(
    tmp_path: Path, wait: Callable[[Path, float], AbstractContextManager[Any]]
) -> None:
    with locked(tmp_path / "lock"), pytest.raises(StillHeld) as held, wait(tmp_path / "lock", 0.0):
        pass
    assert held.value.retryable


def test_an_attempt_that_begins_meanwhile_waits_also_where_there_was_no_lock(
    tmp_path: Path,
) -> None:
    home = make_lab(tmp_path)
    results = add(home, "t")
    with (
        Keeper(home)._locked(results),
        pytest.raises(BlockingIOError),
        locked(results / ".lock"),
    ):
        pass


def test_a_task_that_was_moved_since_the_plan_is_left_alone(tmp_path: Path) -> None:
    home = make_lab(tmp_path, failed={"prune_after": "1h"})
    results = add(home, "t", State.FAILED)
    keeper = Keeper(home)
    plan = keeper.plan(keeper.rules, soon())
    Spool(home.spool).move("t.yaml", State.FAILED, State.PENDING)
    assert [done.problem for done in keeper.carry_out(plan.actions)] == ["it was moved meanwhile"]
    assert (results / "runs").is_dir()


def test_deleting_never_follows_a_link_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    home = make_lab(tmp_path / "home", done={"prune_after": "1h", "keep": "record"})
    results = add(home, "t")
    (results / "runs" / "out").symlink_to(outside)
    (results / "files" / "data").unlink()
    (results / "files").rmdir()
    (results / "files").symlink_to(outside)
    (results / "extra").symlink_to(outside)
    (results / "runs" / "locked").mkdir(mode=0)
    os.mkfifo(results / "runs" / "pipe")
    assert run_rules(home) == [""]
    assert names(results) == {EVENTS, RESULT, JOURNAL, ".lock", PRUNED}
    assert (outside / "kept").read_text() == "x"
    elsewhere = add(home, "linked")
    elsewhere.rename(tmp_path / "moved")
    elsewhere.symlink_to(tmp_path / "moved")
    assert run_rules(home) == []
    assert (tmp_path / "moved" / "runs" / "data").exists()


def test_a_size_limit_counts_all_results_of_the_state(tmp_path: Path) -> None:
    home = make_lab(tmp_path, done={"max_bytes": "300KiB"})
    for name in ("a", "b"):
        add(home, name)
    assert run_rules(home) == [""]
    assert not (home.results / "a" / "runs").exists()
    assert (home.results / "b" / "runs").exists()


def test_settings_of_retention_that_would_surprise_are_refused(tmp_path: Path) -> None:
    for wrong in (
        {"prune_after": 30},
        {"prune_after": "1d", "compress_after": "2d"},
        {"keep": "all"},
    ):
        with pytest.raises(ConfigError, match="retention"):
            write_settings(tmp_path, retention={"done": wrong})


def _deep(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_tree_that_cannot_be_measured_stops_no_other_and_is_pruned(tmp_path: Path) -> None:
    home = make_lab(tmp_path, failed={"prune_after": "1d"}, done={"compress_after": "1d"})
    good, hostile = (add(home, name, State.FAILED) for name in ("good", "hostile"))
    whole = add(home, "whole")
    _deep(hostile / "runs")
    _deep(whole / "runs")
    keeper = Keeper(home)
    plan = keeper.plan(keeper.rules, soon())
    assert {note.partition(": not all of it can be measured: ")[0] for note in plan.notes} == {
        "whole",
        "hostile",
    }
    problems = {one.action.id: one.problem for one in keeper.carry_out(plan.actions)}
    assert problems.pop("whole").endswith("runs: directories are too deep")
    assert problems == {"good": "", "hostile": ""}
    assert not (good / "runs").exists()
    assert not (hostile / "runs").exists()
    assert (whole / "runs" / "data").exists()


_PRUNE_A_FULL_DISK = """
import errno, sys, time
from pathlib import Path
from labd.archive import JOURNAL
from labd.retention import Keeper, Reading
from labd.task import State
from tests.test_retention import add, make_lab, run_rules

home = make_lab(Path(sys.argv[1]), failed={"prune_after": "1d"})
keeper = Keeper(home)
results = add(home, "t", State.FAILED)
(results / JOURNAL).write_bytes(b"x" * 50_000)
for hour in range(25):
    keeper.may_remove(Reading(time.time() + hour * 3600, hour * 3600.0, "boot"))
with (home.root / "filler").open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
print([keeper.may_remove(Reading(time.time() + 25 * 3600, 25 * 3600.0, "boot")), *run_rules(home)])
print(sorted(path.name for path in results.iterdir()), (results / JOURNAL).stat().st_size)
print((results / "journal.pruned.jsonl").stat().st_size)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_is_pruned_and_what_was_done_is_on_record(tmp_path: Path) -> None:
    mounted = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", mounted, "sh"]
    done = subprocess.run(
        [*command, str(tmp_path), sys.executable, _PRUNE_A_FULL_DISK],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    expected = [".lock", EVENTS, JOURNAL, "journal.pruned.jsonl", "paper.pdf", PRUNED, RESULT]
    assert done.stdout.splitlines() == ["['', '']", f"{sorted(expected)} 0", "50000"], done.stderr


_UNATTENDED = """
import sys
from pathlib import Path
from labd.retention import Keeper, Reading
from labd.settings import load_home
from tests.test_retention import calm, soon

keeper = Keeper(load_home(Path(sys.argv[1])))
believed = calm(keeper)
print(keeper.unattended(keeper.plan(keeper.rules, soon()).actions, lambda: believed))
"""


def calm(keeper: Keeper) -> Reading:
    """Have the clocks agree for a day; give a reading that is believed."""
    for hour in range(25):
        keeper.may_remove(Reading(NOW_S + hour * HOUR, hour * HOUR, "boot"))
    return Reading(NOW_S + 25 * HOUR, 25 * HOUR, "boot")


def test_a_task_that_a_run_was_killed_in_holds_up_no_other(tmp_path: Path) -> None:
    home = make_lab(tmp_path, done={"compress_after": "1h"})
    results = add(home, "a-giant")
    with (results / "files" / "long").open("wb") as file:
        file.truncate(2**30)
    add(home, "b")
    process = subprocess.Popen([sys.executable, "-c", _UNATTENDED, str(tmp_path)])
    deadline_s = time.monotonic() + 30
    while not list(results.glob(".*.tmp")):
        assert time.monotonic() < deadline_s
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    keeper = Keeper(home)
    actions = keeper.plan(keeper.rules, soon()).actions
    assert [action.id for action in actions] == ["a-giant", "b"]
    (results / "files" / "long").unlink()
    believed = calm(keeper)
    done, why = keeper.unattended(actions, lambda: believed)
    assert why == ""
    assert [(one.action.id, one.problem) for one in done] == [("b", ""), ("a-giant", "")]
    assert keeper._memory.cut_off == []


def test_what_is_mostly_holes_is_not_compressed(tmp_path: Path) -> None:
    home = make_lab(tmp_path, done={"compress_after": "1h"})
    results = add(home, "t")
    for number in range(4):
        with (results / "files" / f"holes-{number}").open("wb") as file:
            file.truncate(2**40)
    [problem] = run_rules(home)
    assert problem.startswith(
        "files/ is mostly holes, which take no room: compressing would read 4 TiB"
    )
    assert not (results / "files.tar.gz").exists()


def test_a_run_does_all_there_is_but_for_a_clock_that_jumps_meanwhile(tmp_path: Path) -> None:
    home = make_lab(tmp_path, done={"prune_after": "1h"})
    for name in "abcde":
        add(home, name)
    keeper = Keeper(home)
    actions = keeper.plan(keeper.rules, soon()).actions
    believed = calm(keeper)
    jumped = Reading(believed.wall_s + 2 * HOUR, believed.up_s, "boot")
    looks = iter([believed, believed, jumped])
    done, why = keeper.unattended(actions, lambda: next(looks), at_once=2)
    assert [one.action.id for one in done] == ["a", "b", "c", "d"]
    assert why.startswith("the clock jumped by 2 h")
    believed = calm(keeper)
    done, why = keeper.unattended(actions, lambda: believed, at_once=2)
    assert ([one.action.id for one in done][-1], why) == ("e", "")
