"""Room on the disk: the claim pause and what it says, prunes that the daemon starts, and logs that stay short."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import structlog

from labd.clock import to_iso, utc_now
from labd.daemon.chores import Chores, Done
from labd.daemon.hygiene import LOG_BYTES, Hygiene, cut_log, is_full
from labd.daemon.telling import STATUS
from labd.engine.raylogs import is_own, sweep
from labd.files import write_json
from labd.lab import Lab
from labd.page.overview import strip
from labd.page.snapshot import Snapshots
from labd.page.words import Words
from labd.settings import Home
from tests.factories import write_settings
from tests.hygiene_docs import unbounded
from tests.processes import wait_until
from tests.test_cli import labd
from tests.test_retention import add, make_lab


def hygiene(home: Home, *logs: Path, program: tuple[str, ...] = ("true",)) -> Hygiene:
    log = structlog.get_logger()
    chores = Chores(home.root, log, log_path=home.run_dir / "chores.log", program=program)
    return Hygiene(home, chores, log, logs, first_after_s=0.0)


# --- room on the disk


def test_nothing_is_claimed_below_the_limit_and_it_does_not_flutter(tmp_path: Path) -> None:
    home = make_lab(tmp_path)
    free = shutil.disk_usage(home.results).free
    short, ample = (
        hygiene(write_settings(tmp_path, min_free_bytes=wanted)) for wanted in (free * 2, 0)
    )
    assert short.why_no_room().startswith(f"waits for disk space: {home.results} has ")
    assert ample.why_no_room() == ""
    levels = (99, 100, 101, 109, 111, 101, 99)
    was, seen = False, []
    for level in levels:
        was = is_full(level, 100, was_full=was)
        seen.append(was)
    assert seen == [True, True, True, True, False, False, True]


def test_a_hold_is_logged_when_it_begins_and_when_it_ends_and_not_each_time(
    tmp_path: Path,
) -> None:
    mine = hygiene(make_lab(tmp_path))
    with structlog.testing.capture_logs() as log:
        for held in (
            "",
            "waits for disk space: 5",
            "waits for disk space: 4",
            "paused: x",
            "",
            "",
        ):
            mine.tell(held)
    assert [(one["event"], one.get("reason")) for one in log] == [
        ("claiming.held", "waits for disk space: 5"),
        ("claiming.held", "paused: x"),
        ("claiming.resumed", None),
    ]


def test_list_and_page_say_that_nothing_new_is_started_and_why(tmp_path: Path) -> None:
    home = make_lab(tmp_path)
    held = "waits for disk space: 5 MiB <b>"
    facts = {"pid": os.getpid(), "held": held, "at": to_iso(utc_now())}
    write_json(home.run_dir / STATUS, facts)
    lab = Lab(home)
    assert lab.status().held == "", "no daemon runs, whatever the file says"
    with lab._spool.held():
        seen = Snapshots(lab).look()
        assert "Nothing new is started: waits for disk space: 5 MiB &lt;b&gt;" in str(
            strip(seen, Words("en"), read_only=False)
        )
        assert f"; nothing new is started: {held}" in labd(home.root, "list").stderr
        assert json.loads(labd(home.root, "list", "--json").stdout)["held"] == held


def test_doctor_fails_where_nothing_can_be_claimed(tmp_path: Path) -> None:
    from labd.doctor import _disk  # noqa: PLC0415 - the rest of it asks servers of models
    from labd.findings import Level  # noqa: PLC0415 - as above

    free = shutil.disk_usage(tmp_path).free
    short = list(_disk(write_settings(tmp_path, min_free_bytes=free * 2)))
    assert {one.level for one in short} == {Level.FAILING}
    assert "nothing is claimed" in short[0].found
    assert "labd prune --dry-run" in short[0].fix


# --- what cleans up


def started(mine: Hygiene) -> bool:
    return bool(mine._chores._under_way)


def test_prune_is_started_only_where_there_are_rules(tmp_path: Path) -> None:
    without = hygiene(make_lab(tmp_path / "a"))
    without.turn()
    assert not started(without)
    echo = (sys.executable, "-c", "import sys; print(sys.argv[1:])")
    mine = hygiene(make_lab(tmp_path / "b", done={"prune_after": "30d"}), program=echo)
    mine.turn()
    [done] = turned(mine)
    assert done == Done("prune", 0, f"['--home', '{tmp_path / 'b'}', 'prune', '--automatic']")
    mine.turn()
    assert not started(mine), "six hours are not over"


def turned(mine: Hygiene) -> list[Done]:
    deadline_s = time.monotonic() + 20
    while not (done := mine._chores.turn()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return done


def test_a_prune_by_itself_touches_nothing_until_the_clocks_are_believed(tmp_path: Path) -> None:
    home = make_lab(tmp_path, failed={"prune_after": "1h", "max_bytes": 0})
    results = add(home, "t")
    (home.spool / "done" / "t.yaml").rename(home.spool / "failed" / "t.yaml")
    said = labd(home.root, "prune", "--automatic")
    assert said.stdout.startswith("nothing was touched: retention is new here")
    memory = home.run_dir / "retention.json"
    calm = {**json.loads(memory.read_bytes()), "calm_s": 86_400.0}
    write_json(memory, calm)
    said = labd(home.root, "prune", "--automatic")
    assert said.stdout.startswith("1 task pruned, 0 compressed")
    assert not (results / "runs").exists()


def test_prune_by_hand_shows_first_and_then_does_it(tmp_path: Path) -> None:
    home = make_lab(tmp_path)
    results = add(home, "t")
    asked = ("prune", "--older-than", "1ms", "--state", "done")
    dry = labd(home.root, *asked, "--dry-run")
    assert dry.stdout.startswith("prune t (done, 208 KiB): ended ")
    assert "nothing was touched" in dry.stderr
    assert (results / "runs").is_dir()
    packed = labd(home.root, *asked, "--compress")
    assert packed.stdout.startswith("compressed t")
    shown = labd(home.root, "show", "t")
    assert "runs is compressed; `labd unpack t` gives it back" in shown.stdout
    assert labd(home.root, "unpack", "t").stdout.count("\n") == 2
    did = json.loads(labd(home.root, *asked, "--json").stdout)
    assert [(one["id"], one["freed_bytes"] > 0) for one in did["actions"]] == [("t", True)]
    assert "pruned" in labd(home.root, "show", "t").stdout


# --- logs


def test_a_log_that_others_append_to_is_cut_and_they_go_on(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    with path.open("ab") as file:
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
    assert writer.stdin is not None
    writer.stdin.write(b"old line\n" * 2000)
    writer.stdin.flush()
    wait_until(lambda: path.stat().st_size == 18_000)
    cut_log(path, 10_000)
    assert path.stat().st_size == 0
    assert path.with_suffix(".old").stat().st_size == 10_000
    cut_log(path, 10_000)
    assert path.with_suffix(".old").stat().st_size == 10_000, "a short log is left alone"
    writer.stdin.write(b"new line\n")
    writer.stdin.close()
    assert writer.wait(10) == 0
    assert path.read_bytes() == b"new line\n"


def test_the_daemon_cuts_logs_in_its_turn(tmp_path: Path) -> None:
    home = make_lab(tmp_path)
    log = home.run_dir / "page.log"
    with log.open("wb") as file:
        file.truncate(LOG_BYTES + 1)
    mine = hygiene(home, log, home.run_dir / "none.log")
    mine.turn()
    assert log.stat().st_size == 0
    assert mine.next_s > time.monotonic()


def test_of_rays_logs_those_of_processes_that_ended_go_but_for_the_last(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    mine, gone = os.getpid(), ended.pid
    names = [
        f"worker-{'ab' * 28}-01000000-{gone}.out",
        f"worker-{'ab' * 28}-01000000-{gone}.err",
        f"python-core-worker-{'cd' * 28}_{gone}.log",
        f"python-core-worker-{'cd' * 28}_{gone}.log.1",
        f"worker-{'ab' * 28}-01000000-{mine}.out",
        "raylet.out",
        f"other-{gone}.txt",
    ]
    (tmp_path / "events").mkdir()
    names[:0] = [f"events/event_CORE_WORKER_{gone}.log"]
    names += ["events/event_GCS.log", f"events/event_CORE_WORKER_{mine}.log"]
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    sweep(tmp_path, most_old=1)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path)) for path in left) == sorted(names[4:])


def test_logs_of_a_ray_that_others_use_too_are_not_labds_to_remove() -> None:
    logs = "session_2026-11-27_04-00-00_000000_1/logs"
    shared = (Path("/tmp/ray") / logs, Path("/run/ray") / logs, Path("/run/labd-ray-2") / logs)
    assert not any(is_own(path) for path in shared)
    assert is_own(Path("/run/labd-ray") / logs)
    assert is_own(Path(f"/tmp/labd-ray-{os.getuid()}/4711") / logs)
    assert not is_own(Path(f"/tmp/labd-ray-{os.getuid() + 1}/4711") / logs)


def test_a_file_without_a_stated_limit_is_found(tmp_path: Path) -> None:
    for name in ("status.json", "chores-prune.log", "grows-for-ever.log"):
        (tmp_path / name).touch()
    assert unbounded(tmp_path) == ["grows-for-ever.log"]
