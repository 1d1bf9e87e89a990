"""The spool: renames that never overwrite, reads that never wait, and one daemon."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from labd.errors import Busy, TaskFileError
from labd.spool import Spool, Watcher
from labd.task import State
from tests.factories import task_text
from tests.processes import wait_until


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    the_spool = Spool(tmp_path / "spool")
    the_spool.prepare()
    return the_spool


def test_a_move_takes_the_next_number_where_the_name_is_taken(spool: Spool) -> None:
    spool.put(b"new", "x.yaml")
    (spool.directory(State.DONE) / "x.yaml").write_bytes(b"old")
    assert spool.move("x.yaml", State.PENDING, State.DONE) == "x-2.yaml"
    assert (spool.directory(State.DONE) / "x.yaml").read_bytes() == b"old"
    assert (spool.directory(State.DONE) / "x-2.yaml").read_bytes() == b"new"


def test_of_two_movers_one_wins_and_the_other_is_told(spool: Spool) -> None:
    spool.put(b"x", "x.yaml")
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def mover(target: State) -> None:
        start.wait()
        try:
            spool.move("x.yaml", State.PENDING, target)
            outcomes.append("won")
        except FileNotFoundError:
            outcomes.append("lost")

    threads = [
        threading.Thread(target=mover, args=(t,)) for t in (State.RUNNING, State.CANCELLED) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert sum(len(spool.names(state)) for state in State) == 1


def test_put_never_shows_half_a_file_and_never_replaces(spool: Spool) -> None:
    spool.put(b"a" * 100_000, "x.yaml")
    with pytest.raises(FileExistsError):
        spool.put(b"b", "x.yaml")
    assert spool.read(State.PENDING, "x.yaml") == b"a" * 100_000
    assert [p.name for p in spool.directory(State.PENDING).iterdir()] == ["x.yaml"]


def test_reading_refuses_what_is_no_plain_file_without_waiting_on_it(
    spool: Spool, tmp_path: Path
) -> None:
    pending = spool.directory(State.PENDING)
    secret = tmp_path / "secret"
    secret.write_text("template: digits")
    (pending / "link.yaml").symlink_to(secret)
    (pending / "dir.yaml").mkdir()
    os.mkfifo(pending / "fifo.yaml")
    (pending / "big.yaml").write_bytes(b"#" * (2**20 + 1))
    for name, said in [
        ("link", "symbolic link"),
        ("dir", "not a plain file"),
        ("fifo", "not a plain file"),
        ("big", "more than"),
    ]:
        with pytest.raises(TaskFileError, match=said):
            spool.read(State.PENDING, f"{name}.yaml")


def test_an_open_writer_is_seen_and_a_closed_one_is_not(spool: Spool) -> None:
    path = spool.directory(State.PENDING) / "x.yaml"
    with path.open("w") as writer:
        writer.write(task_text())
        writer.flush()
        look = spool.look("x.yaml", 0.0, time.time() + 1000)
        assert look is not None
        assert look.being_written
    look = spool.look("x.yaml", 1000.0, time.time())
    assert look is not None
    assert look.raw == task_text().encode()


def test_a_second_daemon_is_told_who_holds_the_spool(spool: Spool) -> None:
    code = f"""
import sys, time
from pathlib import Path
from labd.spool import Spool
with Spool(Path({str(spool.root)!r})).held():
    print("held", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"held\n"
    assert spool.holder() == child.pid
    with pytest.raises(Busy, match=f"process {child.pid}"), spool.held():
        pass
    child.kill()
    child.communicate(timeout=10)
    assert spool.holder() is None
    with spool.held():
        assert spool.root.exists()


def test_the_watcher_wakes_for_a_drop_and_not_for_our_own_reading(spool: Spool) -> None:
    wake = threading.Event()
    watcher = Watcher(spool, wake)
    watcher.start()
    try:
        spool.put(task_text().encode(), "x.yaml")
        wait_until(wake.is_set, 10, "the wake-up")
        wait_until(lambda: not _woken_again(wake), 10, "quiet")
        spool.read(State.PENDING, "x.yaml")
        list(spool.entries(State.PENDING))
        assert not _woken_again(wake)
    finally:
        watcher.stop()


def _woken_again(wake: threading.Event) -> bool:
    wake.clear()
    return wake.wait(0.3)


def test_only_task_names_are_entries(spool: Spool) -> None:
    pending = spool.directory(State.PENDING)
    for name in ("a.yaml", "b.yml", ".hidden.yaml", "c.yaml.part", "d.tmp", "e~", "notes.txt"):
        (pending / name).write_text("x")
    assert sorted(spool.names(State.PENDING)) == ["a.yaml", "b.yml"]
