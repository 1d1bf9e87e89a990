"""Durable files and the journal: what a crash may do to them, and what it may not."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from labd.errors import JournalError, TimedOut
from labd.files import (
    JsonLines,
    json_objects,
    open_for_writing_elsewhere,
    read_json_lines,
    rename_noreplace,
    write_atomic,
)
from labd.journal import Journal


def test_a_rename_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename_noreplace(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    with pytest.raises(FileNotFoundError):
        rename_noreplace(tmp_path / "gone", tmp_path / "c")


def test_an_atomic_write_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "a", "new", replace=False)
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("torn", [b'{"n": 2', b'{"n": 2}', b"\x00\xff", b"{" * 100_000])
def test_a_torn_last_line_is_left_out_and_cut_before_the_next(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n' + torn)
    assert list(read_json_lines(path)) == [{"n": 1}]
    with JsonLines(path) as lines:
        lines.append({"n": 3})
    assert list(read_json_lines(path)) == [{"n": 1}, {"n": 3}]


def test_lines_that_may_be_anything_give_the_objects_among_them() -> None:
    raw = b'd": 0}\n{"n": 1}\n[2]\n\xff\n' + b"[" * 100_000 + b'\n{"n": 3}\n{"n": 4'
    assert list(json_objects(raw)) == [{"n": 1}, {"n": 3}]


def test_a_bad_line_in_the_middle_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\nnot json\n{"n": 3}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2"):
        list(read_json_lines(path))


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    code = f"""
import resource, signal
from pathlib import Path
from labd.files import JsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
lines = JsonLines(Path({str(path)!r}))
lines.append({{"n": 1}})
try:
    lines.append({{"n": "x" * 200}})
except OSError:
    lines.append({{"n": 2}})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert list(read_json_lines(path)) == [{"n": 1}, {"n": 2}]


def test_the_kernel_tells_whether_somebody_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    writer = path.open("w")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert open_for_writing_elsewhere(fd) is True
        writer.close()
        assert open_for_writing_elsewhere(fd) is False
    finally:
        os.close(fd)


def test_a_step_runs_once_and_is_replayed_by_the_next_attempt(tmp_path: Path) -> None:
    calls: list[dict[str, object]] = []

    def work() -> dict[str, object]:
        calls.append({"score": (1, 2)})
        return calls[-1]

    for _ in range(2):
        with Journal(tmp_path / "journal.jsonl") as journal:
            assert journal.step("run/1", {"seed": 1}, work) == {"score": [1, 2]}
    assert len(calls) == 1


def test_other_inputs_are_another_step(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.step("run/1", {"seed": 1}, lambda: "a") == "a"
        assert journal.step("run/1", {"seed": 2}, lambda: "b") == "b"


def test_a_step_that_raises_is_not_recorded(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        with pytest.raises(ZeroDivisionError):
            journal.step("run/1", {}, lambda: 1 / 0)
        assert journal.step("run/1", {}, lambda: "second") == "second"


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "x" * (5 * 2**20)])
def test_what_is_not_json_or_too_long_is_refused(tmp_path: Path, value: object) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        with pytest.raises(JournalError):
            journal.step("run/1", {}, lambda: value)
        assert len(journal) == 0


def test_a_journal_knows_how_long_earlier_attempts_lasted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"key": "of-an-older-labd", "value": 1}\n')
    spent_s = []
    for number in range(3):
        with Journal(path) as journal:
            spent_s.append(journal.spent_s)
            time.sleep(0.06)  # more than is asked for below: what is kept is rounded
            journal.step(f"run/{number}", {}, lambda: 1)
    assert spent_s[0] == 0
    assert all(later >= earlier + 0.05 for earlier, later in itertools.pairwise(spent_s))


def test_two_attempts_never_write_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl"), pytest.raises(TimedOut, match="another attempt"):
        Journal(tmp_path / "journal.jsonl", lock_timeout_s=0.1)


def test_steps_from_many_threads_are_all_recorded(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        threads = [
            threading.Thread(target=journal.step, args=(f"run/{i}", {}, lambda i=i: i))
            for i in range(32)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert sorted(line["value"] for line in lines) == list(range(32))


def test_a_journal_killed_in_mid_write_keeps_every_step_that_returned(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = f"""
from pathlib import Path
from labd.journal import Journal
journal = Journal(Path({str(path)!r}))
for number in range(10**6):
    journal.step(f"run/{{number}}", {{}}, lambda: "x" * 1000)
    print(number, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(50):
        child.stdout.readline()
    child.kill()
    last = [int(line) for line in child.stdout.read().split() if line.strip()]
    child.wait(10)
    child.stdout.close()
    with Journal(path) as journal:
        assert len(journal) >= (max(last) if last else 49) + 1
        journal.step("after", {}, lambda: 1)
    assert len(list(read_json_lines(path))) == len(journal)
