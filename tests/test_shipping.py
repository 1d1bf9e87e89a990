"""Results of a worker on another node: home durably and consistently, whatever dies on the way.

The store is a real process behind a socket. The link between is cut at every message, the node and the store
are killed at every call to the kernel, and at each point what the head has must be consistent.
"""

import hashlib
import json
import operator
import os
import queue
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labd import worker
from labd.archive import JOURNAL, LOG, RESULT
from labd.command.places import LOCK
from labd.errors import Busy, ConfigError, LabdError, NotFound, StorageError
from labd.files import locked
from labd.journal import Journal
from labd.shipping import (
    Fenced,
    LinkLost,
    Mirror,
    MirrorLimits,
    ShippingError,
    Store,
    StoreLimits,
)
from labd.shipping.blobs import INCOMING
from labd.shipping.model import CHUNK_BYTES, NOT_SHIPPED, checked_parts, excluded_by
from labd.shipping.scratch import Scratch
from labd.template import load_template
from tests.boxes import ACCEPTED_GAPS
from tests.crashing import Lives, Torn, unsynced
from tests.factories import PARABOLA, make_template
from tests.foreign_data import FOREIGN
from tests.processes import wait_until
from tests.storeprocess import (
    PATIENT,
    QUICK,
    CutWire,
    Head,
    Wire,
    check_home,
    job_of,
    node,
    running_head,
    serve,
    sha256_of,
    work,
)

ROOM = StoreLimits(min_free_bytes=2**20)
ALL_STEPS = {"step/0", "step/1", "step/2"}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head for all tests that leave its store alive; each has tasks of its own."""
    with running_head(tmp_path_factory.mktemp("head")) as the_head:
        yield the_head


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "results").mkdir()
    return Store(tmp_path / "results", ROOM)


def claimed(tmp_path: Path, task_id: str = "t", attempts: int = 1) -> Path:
    directory = tmp_path / "results" / task_id
    directory.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"event": "claimed", "attempt": n + 1}) for n in range(attempts)]
    (directory / "events.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def sent_whole(store: Store, raw: bytes) -> str:
    sha256 = sha256_of(raw)
    assert store.chunk(sha256, 0, raw, len(raw))["whole"]
    return sha256


def placed(store: Store, files: dict[str, bytes], remove: list[str] | None = None) -> None:
    facts = {
        path: {"sha256": sent_whole(store, raw), "size": len(raw), "mode": 0o644}
        for path, raw in files.items()
    }
    assert store.place("t", 1, facts, remove or []) == {"absent": []}


def tree(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "events.jsonl"
    }


def broken_off(
    head: Head,
    task_id: str,
    scratch: Path,
    act: Callable[[Path], object],
    limits: MirrorLimits = PATIENT,
) -> Wire:
    """Claim an attempt that does `act` in its directory and then fails; give the wire that it used."""
    wire = head.wire()

    def attempt() -> None:
        with Mirror(wire, head.claim(task_id), scratch, limits) as mirror:
            act(Path(mirror.job["results_dir"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attempt()
    return wire


# --- a whole attempt


def test_an_attempt_on_another_node_leaves_at_home_what_it_made(
    head: Head, tmp_path: Path
) -> None:
    job = head.claim("whole")
    with Mirror(head.wire(), job, tmp_path / "scratch", PATIENT) as mirror:
        assert Path(mirror.job["results_dir"]).is_relative_to(tmp_path)
        ran = work(mirror.job, mirror.on_step)
        (Path(mirror.job["results_dir"]) / "tool.sh").write_text("true\n")
        (Path(mirror.job["results_dir"]) / "tool.sh").chmod(0o4777)
        made = tree(Path(mirror.job["results_dir"]))
    assert set(ran) == ALL_STEPS
    made["tool.sh"] = (b"true\n", 0o755)
    assert tree(head.directory("whole")) == made
    assert check_home(head.directory("whole")) == ALL_STEPS
    assert list((tmp_path / "scratch" / "results").iterdir()) == []
    assert list((head.results / INCOMING).iterdir()) == []


def test_each_step_is_at_home_before_the_next_begins(head: Head, tmp_path: Path) -> None:
    job = head.claim("steps")
    seen: list[int] = []

    def look(number: int) -> None:
        assert len(check_home(head.directory("steps"))) == number + 1
        assert not (head.directory("steps") / RESULT).exists()
        seen.append(number)

    with Mirror(head.wire(), job, tmp_path, PATIENT) as mirror:
        work(mirror.job, mirror.on_step, after_step=look)
    assert seen == [0, 1, 2]


def test_steps_that_end_at_once_in_many_threads_are_all_at_home(
    head: Head, tmp_path: Path
) -> None:
    job = head.claim("threads")
    with Mirror(head.wire(), job, tmp_path, PATIENT) as mirror:
        results = Path(mirror.job["results_dir"])

        def step(number: int) -> None:
            def run() -> dict[str, str]:
                (results / f"{number}.txt").write_text(str(number))
                return {f"{number}.txt": sha256_of(str(number).encode())}

            journal.step(f"s/{number}", {}, run)
            lines = (head.directory("threads") / JOURNAL).read_text().splitlines()
            assert any(f'"s/{number}/' in line for line in lines)

        with (
            Journal(results / JOURNAL, on_step=mirror.on_step) as journal,
            ThreadPoolExecutor(16) as pool,
        ):
            for future in [pool.submit(step, number) for number in range(16)]:
                future.result(60)
    lines = [json.loads(x) for x in (head.directory("threads") / JOURNAL).read_text().splitlines()]
    assert len(lines) == 16
    for line in lines:
        for path, sha256 in line["value"].items():
            assert sha256_of((head.directory("threads") / path).read_bytes()) == sha256


COMMAND = """kind: command
run: |
  cat /work/saved 2>/dev/null
  echo attempt $LABD_ATTEMPT | tee -a /work/saved
  [ "$LABD_ATTEMPT" = 2 ]
"""


def real_job(job: dict[str, Any], text: str) -> dict[str, Any]:
    caps = {"memory_bytes": 2**29, "processes": 64, "disk_bytes": 2**26, "output_bytes": 2**20}
    return {
        **job,
        "node_id": "there",
        "num_cpus": 2.0,
        "num_gpus": 0.0,
        "timeout_s": 120.0,
        "task_text": text,
        "task_sha256": "",
        "min_free_bytes": 0,
        "sandbox": {"uid": 64123, "allow_missing": sorted(ACCEPTED_GAPS), **caps},
        "allow_network": False,
        "input_roots": [],
        "forbidden_roots": [],
    }


@pytest.mark.sandbox
def test_a_real_command_goes_on_on_another_node_from_its_own_checkpoint(
    head: Head, tmp_path: Path
) -> None:
    outcomes = []
    for number in (1, 2):
        job = real_job(head.claim("command"), COMMAND)
        with Mirror(head.wire(), job, tmp_path / str(number), PATIENT) as mirror:
            outcomes.append(worker.run(mirror.job, [], mirror.on_step)["outcome"])
    directory = head.directory("command")
    assert outcomes == ["failed", "done"]
    assert (directory / "log.txt").read_text() == "attempt 1\nattempt 2\n"
    assert (directory / "log.attempt-1.txt").read_text() == "attempt 1\n"
    assert (directory / "files" / "saved").read_text() == "attempt 1\nattempt 2\n"
    assert json.loads((directory / RESULT).read_bytes())["attempt"] == 2


@pytest.mark.sandbox
@pytest.mark.timeout(300)
def test_real_research_on_two_nodes_runs_nothing_twice_and_comes_home(
    head: Head, tmp_path: Path
) -> None:
    make_template(head.templates, "parabola", experiment=PARABOLA % 0)
    text = "kind: research\ntemplate: parabola\nmax_runs: 2\n"
    directory = head.directory("research")
    steps = 0

    def cut_off(_: str, *, replayed: bool) -> None:
        nonlocal steps
        steps += not replayed
        if steps == 5:
            raise LinkLost("cut off by the test")

    with Mirror(
        head.wire(), real_job(head.claim("research"), text), tmp_path / "1", PATIENT
    ) as mirror:
        first = mirror

        def on_step(key: str, replayed: bool) -> None:  # noqa: FBT001 - the journal's signature
            first.on_step(key, replayed)
            cut_off(key, replayed=replayed)

        outcome = worker.run(mirror.job, [], on_step)
    assert outcome["error"]["retryable"], outcome
    before = (directory / JOURNAL).read_bytes()
    assert before.count(b"\n") >= 5
    job = real_job(head.claim("research"), text)
    with Mirror(head.wire(), job, tmp_path / "2", PATIENT) as mirror:
        outcome = worker.run(mirror.job, [], mirror.on_step)
    assert outcome["outcome"] == "done", outcome
    after = (directory / JOURNAL).read_bytes()
    assert after.startswith(before)
    keys = [json.loads(line)["key"] for line in after.splitlines()]
    assert len(set(keys)) == len(keys)
    assert (directory / "paper.pdf").stat().st_size > 1000
    for line in after.splitlines():
        value = json.loads(line)["value"]
        if isinstance(value, dict) and value.get("metrics_sha256"):
            raw = (directory / value["directory"] / "metrics.json").read_bytes()
            assert sha256_of(raw) == value["metrics_sha256"]
    assert not (directory / NOT_SHIPPED).exists(), (directory / NOT_SHIPPED).read_text()


# --- the link


@pytest.mark.parametrize("answer", [False, True], ids=["message-lost", "answer-lost"])
@pytest.mark.parametrize("same_node", [False, True], ids=["other-node", "same-node"])
def test_a_link_cut_at_any_message_costs_no_step_that_is_at_home(
    head: Head, tmp_path: Path, *, answer: bool, same_node: bool
) -> None:
    for at in range(1, 200):
        task_id = f"cut-{answer:d}{same_node:d}-{at}"
        wire = CutWire(head.wire(), partial(operator.le, at), answer=answer)
        ran: list[str] = []
        try:
            with Mirror(wire, head.claim(task_id), tmp_path / "a", QUICK) as mirror:
                ran = work(mirror.job, mirror.on_step)
        except LinkLost:
            assert wire.count >= at
        directory = head.directory(task_id)
        at_home = check_home(directory)
        if wire.count < at:
            assert set(ran) == at_home == ALL_STEPS
            assert at > 15, "the link was never cut"
            return
        assert not (directory / RESULT).exists() or at_home == ALL_STEPS
        here = tmp_path / "a" / "results" / task_id / JOURNAL
        recorded = here.read_text() if same_node and here.exists() else ""
        scratch = tmp_path / ("a" if same_node else f"b-{at}")
        with Mirror(head.wire(), head.claim(task_id), scratch, PATIENT) as mirror:
            again = work(mirror.job, mirror.on_step)
        assert not set(again) & at_home, "a step that was at home is paid for again"
        assert not any(f'"{key}/' in recorded for key in again), "a step on this node was lost"
        assert check_home(directory) == ALL_STEPS
        assert json.loads((directory / RESULT).read_bytes())["attempt"] == 2
    raise AssertionError("the attempt never ended")


@pytest.mark.parametrize("answer", [False, True], ids=["message-lost", "answer-lost"])
def test_single_lost_messages_are_sent_again(head: Head, tmp_path: Path, *, answer: bool) -> None:
    wire = CutWire(head.wire(), lambda count: count % 3 == 0, answer=answer)
    task_id = f"lossy-{answer:d}"
    with Mirror(wire, head.claim(task_id), tmp_path, PATIENT) as mirror:
        assert set(work(mirror.job, mirror.on_step)) == ALL_STEPS
    assert check_home(head.directory(task_id)) == ALL_STEPS
    assert (head.directory(task_id) / RESULT).exists()


def test_an_attempt_whose_link_is_lost_ends_with_an_error_that_may_be_tried_again(
    head: Head, tmp_path: Path
) -> None:
    reasons: queue.SimpleQueue[LabdError] = queue.SimpleQueue()
    cut = threading.Event()
    wire = CutWire(head.wire(), lambda _: cut.is_set(), answer=False)
    limits = MirrorLimits(link_timeout_s=0.2, log_every_s=0.05, files_every_s=0.05)
    mirror = Mirror(wire, head.claim("gone"), tmp_path, limits, on_lost=reasons.put)

    def attempt() -> None:
        with mirror:
            (Path(mirror.job["results_dir"]) / "log.txt").write_text("one\n")
            cut.set()
            # Nothing is asked of the mirror here: its own thread notices.
            assert reasons.get(timeout=30).retryable
            with pytest.raises(LinkLost):
                mirror.on_step("a", replayed=False)

    with pytest.raises(LinkLost, match="could not be reached") as caught:
        attempt()
    assert caught.value.retryable
    assert reasons.empty()


# --- death


def test_a_node_killed_at_any_call_leaves_a_consistent_home(head: Head, tmp_path: Path) -> None:
    chance = random.Random(20261122)
    at, done = 1, 0
    with Lives("tests.storeprocess") as lives:
        while done < 2:
            task_id = f"node-{at}"
            arguments = [str(head.port_file), str(tmp_path / "s"), json.dumps(head.claim(task_id))]
            life = lives.run(f"{node.__module__}:node", *arguments, watch=[tmp_path / "s"], at=at)
            done += not life.killed
            at_home = check_home(head.directory(task_id))
            if life.killed:
                recorded = len(life.output.splitlines())
                assert recorded == 0
                # The next attempt runs on the same node or on another one.
                scratch = tmp_path / chance.choice(["s", "other"])
                with Mirror(head.wire(), head.claim(task_id), scratch, PATIENT) as mirror:
                    again = work(mirror.job, mirror.on_step)
                assert not set(again) & at_home
            else:
                assert life.exit_code == 0, life.output
            assert check_home(head.directory(task_id)) == ALL_STEPS
            at += chance.randint(1, 5)
    assert at > 60, "the node was hardly killed at all"


def _wait_for_work(process: subprocess.Popen[bytes], log: Path) -> None:
    wait_until(lambda: log.exists() or process.poll() is not None, what="the node's work")


def test_a_node_killed_at_random_moments_of_its_work(head: Head, tmp_path: Path) -> None:
    chance = random.Random(7)
    at_home: set[str] = set()
    for number in range(5):
        job = head.claim("random")
        code = "import sys; from tests.storeprocess import node; node(*sys.argv[1:])"
        scratch = str(tmp_path / f"n{number % 2}")
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(head.port_file), scratch, json.dumps(job), "0.1"],
            stdout=subprocess.DEVNULL,
        )
        _wait_for_work(process, Path(scratch) / "results" / "random" / LOG)
        time.sleep(chance.uniform(0, 0.25))
        process.kill()
        process.wait(10)
        now = check_home(head.directory("random"))
        assert at_home <= now
        at_home = now
    with Mirror(head.wire(), head.claim("random"), tmp_path / "last", PATIENT) as mirror:
        assert not set(work(mirror.job, mirror.on_step)) & at_home
    assert check_home(head.directory("random")) == ALL_STEPS


@pytest.mark.timeout(600)
@pytest.mark.parametrize("torn", [None, "half"])
def test_a_store_killed_at_any_call_loses_nothing_and_the_attempt_goes_on(
    tmp_path: Path, torn: Torn | None
) -> None:
    head = Head(tmp_path)
    stride = 1 if "LABD_TORTURE" in os.environ else 5
    at = 1 if torn is None else 2
    with Lives("tests.storeprocess") as lives:
        while _survived_a_kill(head, lives, at, torn):
            at += stride
    assert at > 60, "the store was hardly killed at all"


def _survived_a_kill(head: Head, lives: Lives, at: int, torn: Torn | None) -> bool:
    """Run an attempt against a store that is killed at a call and then started again; say whether it was killed."""
    task_id = f"store-{at}"
    job = head.claim(task_id)
    killed: list[bool] = []

    def run_stores() -> None:
        function = f"{serve.__module__}:serve"
        life = lives.run(function, *head.arguments, watch=[head.results], at=at, torn=torn)
        killed.append(life.killed)
        if life.killed:
            check_torn_home(head.directory(task_id))
            killed.append(lives.run(function, *head.arguments, watch=[]).killed)

    stores = threading.Thread(target=run_stores)
    stores.start()
    with Mirror(head.wire(), job, head.results.parent / "scratch", PATIENT) as mirror:
        assert set(work(mirror.job, mirror.on_step)) == ALL_STEPS
    assert check_home(head.directory(task_id)) == ALL_STEPS
    with pytest.raises(EOFError):
        head.wire()("stop")
    stores.join(60)
    assert killed in ([True, False], [False])
    return killed[0]


def check_torn_home(directory: Path) -> None:
    """As `check_home`, where a store that died in mid-write may have left half a last line, which no reader sees."""
    path = directory / JOURNAL
    if path.exists():
        whole = path.read_bytes()
        copy = directory.parent.parent / "copy" / directory.name
        shutil.copytree(directory, copy)
        (copy / JOURNAL).write_bytes(whole[: whole.rfind(b"\n") + 1])
        check_home(copy)
        shutil.rmtree(copy)
    else:
        check_home(directory)


def test_nothing_that_the_store_promised_waits_for_a_sync(tmp_path: Path) -> None:
    head = Head(tmp_path)
    job = head.claim("synced")
    lives: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with Lives("tests.storeprocess") as forks:
        target = f"{serve.__module__}:serve"
        thread = threading.Thread(
            target=lambda: lives.put(forks.run(target, *head.arguments, watch=[head.results]))
        )
        thread.start()
        with Mirror(head.wire(), job, tmp_path / "scratch", PATIENT) as mirror:
            work(mirror.job, mirror.on_step)
        with pytest.raises(EOFError):
            head.wire()("stop")
        thread.join(60)
    life = lives.get(timeout=10)
    renamed = [call for call in life.calls if "rename" in call.name]
    assert len(renamed) > 5
    waiting = {path for path in unsynced(life.calls) if not path.startswith(INCOMING)}
    assert waiting - {"synced/log.jsonl", "synced/log.txt", "."} == set()


# --- the fence


def test_of_two_attempts_at_once_the_older_is_refused_everything(
    head: Head, tmp_path: Path
) -> None:
    first = Mirror(head.wire(), head.claim("two"), tmp_path / "a", QUICK)

    def older() -> None:
        with first:
            (Path(first.job["results_dir"]) / "mine.txt").write_text("of attempt 1")
            newer(head.claim("two"))
            work(first.job, first.on_step)

    def newer(job: dict[str, Any]) -> None:
        for method, data in (
            ("manifest", {}),
            ("read", {"wanted": []}),
            ("append", {"path": LOG, "offset": 0, "raw": b"{}\n"}),
            ("place", {"files": {}, "remove": []}),
        ):
            answer = head.wire()(method, task_id="two", attempt=1, **data)
            assert answer["error"]["code"] == "fenced", method
        with Mirror(head.wire(), job, tmp_path / "b", PATIENT) as second:
            assert set(work(second.job, second.on_step)) == ALL_STEPS

    with pytest.raises(Fenced, match="attempt 1 is not the task's last, which is 2"):
        older()
    assert check_home(head.directory("two")) == ALL_STEPS
    assert json.loads((head.directory("two") / RESULT).read_bytes())["attempt"] == 2
    assert not (head.directory("two") / "mine.txt").exists()


def test_a_fenced_off_attempt_without_steps_is_told_at_once(head: Head, tmp_path: Path) -> None:
    reasons: queue.SimpleQueue[LabdError] = queue.SimpleQueue()
    limits = MirrorLimits(log_every_s=0.02, files_every_s=0.02)
    mirror = Mirror(head.wire(), head.claim("idle"), tmp_path, limits, on_lost=reasons.put)

    def attempt() -> None:
        with mirror:
            head.claim("idle")
            (Path(mirror.job["results_dir"]) / "log.txt").write_text("I go on\n")
            assert isinstance(reasons.get(timeout=30), Fenced)

    with pytest.raises(Fenced):
        attempt()


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
def test_a_task_that_ended_takes_nothing_more(store: Store, tmp_path: Path, end: str) -> None:
    directory = claimed(tmp_path)
    assert store.append("t", 1, LOG, 0, b"{}\n")["taken"]
    with (directory / "events.jsonl").open("a") as events:
        events.write(json.dumps({"event": end, "attempt": 1}) + "\n")
    with pytest.raises(Fenced, match="ended"):
        store.append("t", 1, LOG, 3, b"{}\n")


def test_while_an_attempt_on_the_head_holds_the_journal_another_node_waits(tmp_path: Path) -> None:
    directory = claimed(tmp_path, attempts=2)
    store = Store(tmp_path / "results", StoreLimits(lock_timeout_s=0.1, min_free_bytes=2**20))
    with Journal(directory / JOURNAL), pytest.raises(Busy):
        store.manifest("t", 2)
    with locked(directory / LOCK), pytest.raises(Busy):
        store.manifest("t", 2)
    assert store.manifest("t", 2)["files"].keys() == {JOURNAL, LOCK}


# --- what grows


def test_what_is_appended_again_is_accepted_and_a_gap_is_not(store: Store, tmp_path: Path) -> None:
    path = claimed(tmp_path) / JOURNAL
    assert store.append("t", 1, JOURNAL, 0, b'{"a": 1}\n') == {"taken": True, "size": 9}
    assert store.append("t", 1, JOURNAL, 0, b'{"a": 1}\n') == {"taken": True, "size": 9}
    assert store.append("t", 1, JOURNAL, 0, b'{"a": 1}\n{}\n') == {"taken": True, "size": 12}
    assert store.append("t", 1, JOURNAL, 13, b"{}\n") == {"taken": False, "size": 12}
    with pytest.raises(ShippingError, match="not what was sent"):
        store.append("t", 1, JOURNAL, 0, b'{"a": 2}\n')
    with pytest.raises(ShippingError, match="whole"):
        store.append("t", 1, JOURNAL, 12, b'{"b"')
    assert path.read_bytes() == b'{"a": 1}\n{}\n'


def test_a_torn_last_line_is_cut_before_lines_are_appended(store: Store, tmp_path: Path) -> None:
    path = claimed(tmp_path) / JOURNAL
    path.write_bytes(b'{"a": 1}\n{"b": ')
    assert store.manifest("t", 1)["files"][JOURNAL]["size"] == 9
    path.write_bytes(b'{"a": 1}\n{"b": ')
    assert store.append("t", 1, JOURNAL, 9, b"{}\n") == {"taken": True, "size": 12}
    assert path.read_bytes() == b'{"a": 1}\n{}\n'


@pytest.mark.parametrize("name", ["events.jsonl", "x.jsonl", "../t/log.txt", "runs/log.txt", ""])
def test_only_journal_and_logs_grow(store: Store, tmp_path: Path, name: str) -> None:
    claimed(tmp_path)
    with pytest.raises(ShippingError):
        store.append("t", 1, name, 0, b"{}\n")


def test_a_log_that_is_a_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    (tmp_path / "secret").write_text("as it was")
    (directory / LOG).symlink_to(tmp_path / "secret")
    os.mkfifo(directory / "log.txt")
    answers = [
        store.answer("append", task_id="t", attempt=1, path=name, offset=0, raw=b"{}\n")
        for name in (LOG, "log.txt")
    ]
    assert all("error" in answer for answer in answers)
    assert (tmp_path / "secret").read_text() == "as it was"


# --- whole files


def test_a_file_is_taken_up_where_it_stopped(store: Store, tmp_path: Path) -> None:
    claimed(tmp_path)
    raw = os.urandom(3000)
    sha256 = sha256_of(raw)
    assert store.missing([sha256]) == {sha256: 0}
    assert store.chunk(sha256, 0, raw[:1000], 3000) == {"size": 1000, "whole": False}
    assert store.chunk(sha256, 2000, raw[2000:], 3000) == {"size": 1000, "whole": False}
    assert store.chunk(sha256, 500, raw[500:1500], 3000) == {"size": 1500, "whole": False}
    later = Store(tmp_path / "results", ROOM)
    assert later.missing([sha256]) == {sha256: 1500}
    assert later.chunk(sha256, 1500, raw[1500:], 3000) == {"size": 3000, "whole": True}
    assert later.missing([sha256]) == {}


def test_what_came_whole_just_before_the_store_died_is_still_finished(
    head: Head, tmp_path: Path
) -> None:
    head.claim("unfinished")
    raw = b'{"attempt": 1}\n'
    incoming = head.results / INCOMING
    incoming.mkdir(exist_ok=True)
    (incoming / f"{sha256_of(raw)}.part").write_bytes(raw)
    job = head.claim("unfinished")
    with Mirror(head.wire(), job, tmp_path, PATIENT) as mirror:
        (Path(mirror.job["results_dir"]) / RESULT).write_bytes(raw)
    assert (head.directory("unfinished") / RESULT).read_bytes() == raw


def test_a_file_with_another_hash_starts_again(store: Store, tmp_path: Path) -> None:
    claimed(tmp_path)
    sha256 = sha256_of(b"good")
    assert store.chunk(sha256, 0, b"evil", 4) == {"size": 0, "whole": False}
    facts = {"x": {"sha256": sha256, "size": 4, "mode": 0o644}}
    assert store.place("t", 1, facts, []) == {"absent": [sha256]}
    assert not (tmp_path / "results" / "t" / "x").exists()
    assert store.chunk(sha256, 0, b"good", 4)["whole"]
    assert store.place("t", 1, facts, []) == {"absent": []}


def test_what_is_on_its_way_is_bounded_and_swept(tmp_path: Path) -> None:
    claimed(tmp_path)
    store = Store(
        tmp_path / "results",
        StoreLimits(incoming_bytes=3000, incoming_age_s=3600, min_free_bytes=2**20),
    )
    for number in range(3):
        store.chunk(sha256_of(bytes([number])), 0, b"x" * 900, 1000)
    with pytest.raises(Busy):
        store.chunk(sha256_of(b"4"), 0, b"x" * 900, 1000)
    for path in (tmp_path / "results" / INCOMING).iterdir():
        os.utime(path, (0, 0))
    assert store.chunk(sha256_of(b"4"), 0, b"x" * 900, 1000)["size"] == 900
    assert len(list((tmp_path / "results" / INCOMING).iterdir())) == 1


def test_a_disk_that_is_nearly_full_takes_nothing(tmp_path: Path) -> None:
    claimed(tmp_path)
    store = Store(tmp_path / "results", StoreLimits(min_free_bytes=2**60))
    with pytest.raises(StorageError, match="Make room"):
        store.chunk(sha256_of(b""), 0, b"", 0)


def test_one_content_at_several_paths_is_several_files(store: Store, tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    sha256 = sent_whole(store, b"same")
    facts = {"sha256": sha256, "size": 4, "mode": 0o600}
    assert store.place("t", 1, {"a": facts, "b/c": facts}, []) == {"absent": []}
    assert (directory / "a").read_bytes() == (directory / "b" / "c").read_bytes() == b"same"
    assert not (directory / "a").samefile(directory / "b" / "c")
    assert store.place("t", 1, {"a": facts, "b/c": facts}, []) == {"absent": []}


def test_links_in_the_way_are_replaced_and_not_followed(store: Store, tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("as it was")
    (directory / "runs").symlink_to(outside)
    (directory / "x").symlink_to(outside / "x")
    placed(store, {"runs/x": b"new", "x": b"new"})
    assert (outside / "x").read_text() == "as it was"
    assert (directory / "runs" / "x").read_bytes() == (directory / "x").read_bytes() == b"new"
    (directory / "away").symlink_to(outside)
    store.place("t", 1, {}, ["away/x", "away"])
    assert (outside / "x").exists()
    assert not (directory / "away").is_symlink()


def test_a_file_may_become_a_directory_and_back(store: Store, tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    placed(store, {"a": b"1"})
    placed(store, {"a/b/c": b"2"})
    assert (directory / "a" / "b" / "c").read_bytes() == b"2"
    with pytest.raises(ShippingError, match="not empty"):
        placed(store, {"a": b"3"})
    placed(store, {"a": b"3"}, ["a/b/c"])
    assert (directory / "a").read_bytes() == b"3"


@pytest.mark.parametrize(
    ("files", "remove"),
    [
        (["events.jsonl"], []),
        (["events.jsonl/x"], []),
        ([JOURNAL], []),
        (["../t2/x"], []),
        (["/etc/x"], []),
        (["a", "a/b"], []),
        (["a"], ["a"]),
        ([], [RESULT]),
        ([], [JOURNAL]),
        ([], ["events.jsonl"]),
        ([], ["../t/log.txt"]),
    ],
)
def test_what_may_not_be_changed_is_refused_before_anything_is(
    store: Store, tmp_path: Path, files: list[str], remove: list[str]
) -> None:
    directory = claimed(tmp_path)
    for name in (RESULT, JOURNAL, "log.txt"):
        (directory / name).write_text("{}\n")
    before = tree(tmp_path)
    facts = {"sha256": sha256_of(b"x"), "size": 1, "mode": 0o644}
    with pytest.raises(ShippingError):
        store.place("t", 1, dict.fromkeys(files, facts), remove)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "task_id", ["", ".", "..", "a/b", ".incoming", "../results/t", "x" * 300, 7]
)
def test_a_task_that_can_be_none_is_refused(store: Store, tmp_path: Path, task_id: Any) -> None:
    claimed(tmp_path)
    with pytest.raises(ShippingError):
        store.manifest(task_id, 1)


def test_a_task_directory_that_is_a_link_is_refused(store: Store, tmp_path: Path) -> None:
    claimed(tmp_path)
    (tmp_path / "results" / "l").symlink_to(tmp_path / "results" / "t")
    for task_id in ("l", "nobody"):
        with pytest.raises(NotFound):
            store.manifest(task_id, 1)


def test_a_manifest_comes_in_pages_and_names_plain_files_only(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    store = Store(tmp_path / "results", StoreLimits(page_files=3))
    names = ["a/b", "a/c", "a.txt", "b", "b-/x", "b.txt", "c/d/e", "c/d.txt", "ä\n\x1b[31m"]
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    (directory / "link").symlink_to("/etc/passwd")
    (directory / "a" / "dir").symlink_to("/etc")
    os.mkfifo(directory / "fifo")
    found: dict[str, Any] = {}
    after: str | None = ""
    pages = 0
    while after is not None:
        page = store.manifest("t", 1, after=after)
        assert not found.keys() & page["files"].keys()
        found |= page["files"]
        after, pages = page["next"], pages + 1
    assert found.keys() == set(names)
    assert pages >= 3
    assert all(facts["sha256"] == sha256_of(name.encode()) for name, facts in found.items())
    raws = store.read(
        "t", 1, [["a/b", 1, 9], ["fifo", 0, 1], ["link", 0, 9], ["a/dir/passwd", 0, 9]]
    )
    assert raws == [b"/b", None, None, None]


# --- what is sent can be anything

PATHS = st.text(st.sampled_from("ab./\0\n\x1b\udcff é~-*"), max_size=12) | st.text(max_size=40)


@settings(max_examples=400, deadline=None)
@given(PATHS)
@example("a/../../b")
@example("./a")
@example("a//b")
@example("a/")
@example("/a")
@example("x" * 256)
@example("/".join("a" * 65))
@example("events.jsonl")
def test_a_path_that_is_accepted_lies_below_and_belongs_to_nobody_else(path: str) -> None:
    shown = ""
    try:
        parts = checked_parts(path)
    except ShippingError as error:
        shown = str(error)
        parts = ()
    if not parts:
        assert "\x1b" not in shown
        assert "\n" not in shown
        return
    assert PurePosixPath("/results/t", *parts) == PurePosixPath(
        os.path.normpath(f"/results/t/{path}")
    )
    assert len(PurePosixPath(os.path.normpath(f"/results/t/{path}")).parts) > 3
    assert parts[0] != "events.jsonl"
    assert len(os.fsencode(path)) <= 1024
    assert "\0" not in path


@settings(max_examples=150, deadline=None)
@given(path=PATHS, remove=st.lists(PATHS, max_size=2))
def test_whatever_path_is_asked_for_nothing_outside_the_task_changes(
    tmp_path_factory: pytest.TempPathFactory, path: str, remove: list[str]
) -> None:
    root = tmp_path_factory.mktemp("paths")
    directory = claimed(root)
    (root / "results" / "other").mkdir()
    (root / "results" / "other" / "b").write_text("as it was")
    store = Store(root / "results", ROOM)
    sha256 = sent_whole(store, b"x")
    store.answer(
        "place",
        task_id="t",
        attempt=1,
        files={path: {"sha256": sha256, "size": 1, "mode": 0o644}},
        remove=remove,
    )
    assert sorted(p.name for p in root.iterdir()) == ["results"]
    assert (root / "results" / "other" / "b").read_text() == "as it was"
    assert {p.name for p in (root / "results").iterdir()} == {"t", "other", INCOMING}
    assert (directory / "events.jsonl").stat().st_size > 10
    shutil.rmtree(root)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FACTS = [
    "task_id",
    "attempt",
    "path",
    "offset",
    "raw",
    "wanted",
    "hashes",
    "parts",
    "files",
    "remove",
    "name",
    "sha256",
    "size",
    "after",
]


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(
        [
            "manifest",
            "read",
            "append",
            "missing",
            "chunk",
            "chunks",
            "place",
            "template_manifest",
            "template_read",
            "sweep",
            "__init__",
            "answer",
        ]
    ),
    data=st.dictionaries(st.sampled_from(FACTS), JUNK, max_size=6),
)
def test_junk_is_answered_with_an_error(
    tmp_path_factory: pytest.TempPathFactory, method: str, data: dict[str, Any]
) -> None:
    root = tmp_path_factory.getbasetemp() / "junk"
    claimed(root)
    before = tree(root / "results" / "t")
    answer = Store(root / "results", ROOM).answer(
        method,
        **{"task_id": "t", "attempt": 1, **data}
        if method in {"manifest", "read", "append", "place"}
        else data,
    )
    assert answer.keys() in ({"value"}, {"error"})
    assert tree(root / "results" / "t").keys() - before.keys() <= {JOURNAL, LOG, "log.txt"}


# --- what a hostile experiment leaves on the node


def test_a_hostile_tree_neither_hangs_nor_leads_out_and_is_stated(
    head: Head, tmp_path: Path
) -> None:
    limits = MirrorLimits(
        link_timeout_s=30, log_every_s=3600, max_file_bytes=10 * 2**20, max_files=60
    )
    secret = tmp_path / "secret"
    secret.write_text("nobody's business")
    with Mirror(head.wire(), head.claim("hostile"), tmp_path / "s", limits) as mirror:
        root = Path(mirror.job["results_dir"])
        bad = {
            b"fifo",
            b"to-secret",
            b"to-dir",
            b"inside",
            b"not-\xff-utf8",
            b"sparse",
            b".hidden",
            b"x.tmp",
        }
        os.mkfifo(root / "fifo")
        (root / "to-secret").symlink_to(secret)
        (root / "to-dir").symlink_to("/etc")
        (root / "inside").symlink_to("fine\n\x1b[2J.txt")
        for name in (b"not-\xff-utf8", b".hidden", b"x.tmp", b"events.jsonl"):
            (root / os.fsdecode(name)).write_text('{"event": "done"}\n')
        with (root / "sparse").open("wb") as file:
            file.truncate(2**40)
        (root / "fine\n\x1b[2J.txt").write_text("fine")
        (root / "sub" / ".kept").mkdir(parents=True)
        (root / "sub" / ".kept" / "x").write_text("kept")
        _deep(root / "deep", 1500)
        (root / "many" / "a" / "b").mkdir(parents=True)
        for number in range(300):
            (root / "many" / "a" / "b" / f"{number:03}").write_text("0123456789" * 3)
        work(mirror.job, mirror.on_step)
    directory = head.directory("hostile")
    assert (directory / "fine\n\x1b[2J.txt").read_text() == "fine"
    assert (directory / "sub" / ".kept" / "x").read_text() == "kept"
    assert not {os.fsencode(path.name) for path in directory.iterdir()} & bad
    assert not any(b"nobody" in p.read_bytes() for p in directory.rglob("*") if p.is_file())
    stated = json.loads((directory / NOT_SHIPPED).read_bytes())
    reasons = {one["path"]: one["reason"] for one in stated["left_out"]}
    assert reasons["fifo"] == "is not a plain file"
    assert reasons["to-secret"] == reasons["to-dir"] == "is a symbolic link"
    assert reasons["sparse"] == "is larger than 10485760 bytes"
    assert reasons["not-\\udcff-utf8"] == "is not UTF-8"
    assert reasons[".hidden"] == "matches the pattern /.*"
    assert reasons["x.tmp"] == "matches the pattern *.tmp"
    assert reasons["events.jsonl"] == "is the head's own"
    assert any("deeper" in reason for reason in reasons.values())
    shipped = len(list((directory / "many" / "a" / "b").iterdir()))
    assert stated["by_reason"]["is beyond the first 60 files of the task"] >= 300 - shipped > 200
    assert check_home(directory) == ALL_STEPS
    assert list((tmp_path / "s" / "results").iterdir()) == []


def _deep(path: Path, levels: int) -> None:
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_tree_with_too_many_entries_is_cut_and_stated_and_nothing_at_home_is_removed(
    head: Head, tmp_path: Path
) -> None:
    limits = MirrorLimits(log_every_s=3600, max_files=10)

    def few(root: Path) -> None:
        for number in range(5):
            (root / f"z{number}.txt").write_text("z")

    broken_off(head, "many", tmp_path, few, limits)
    with Mirror(head.wire(), head.claim("many"), tmp_path, limits) as mirror:
        root = Path(mirror.job["results_dir"])
        for number in range(3000):
            (root / f"{number:04}").touch()
    stated = json.loads((head.directory("many") / NOT_SHIPPED).read_bytes())
    assert "comes after the first 1040 entries" in stated["by_reason"]
    assert len(list(head.directory("many").glob("z*.txt"))) == 5


def test_a_file_that_never_stands_still_is_stated_and_one_that_does_is_whole(
    head: Head, tmp_path: Path
) -> None:
    stop = threading.Event()

    def scribble(path: Path) -> None:
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                file.seek(0)
                file.write(os.urandom(4096))

    with Mirror(head.wire(), head.claim("restless"), tmp_path / "1", PATIENT) as mirror:
        path = Path(mirror.job["results_dir"]) / "restless.bin"
        path.write_bytes(bytes(40 * 2**20))
        writer = threading.Thread(target=scribble, args=(path,))
        writer.start()
        work(mirror.job, mirror.on_step)
        assert not (head.directory("restless") / "restless.bin").exists()
    stop.set()
    writer.join(10)
    stated = json.loads((head.directory("restless") / NOT_SHIPPED).read_bytes())
    assert stated["left_out"] == [
        {"path": "restless.bin", "reason": "changed all the time while it was read"}
    ]
    with Mirror(head.wire(), head.claim("restless"), tmp_path / "2", PATIENT) as mirror:
        (Path(mirror.job["results_dir"]) / "restless.bin").write_bytes(bytes(40 * 2**20))
    assert len((head.directory("restless") / "restless.bin").read_bytes()) == 40 * 2**20
    assert not (head.directory("restless") / NOT_SHIPPED).exists()


def test_what_is_gone_on_the_node_is_gone_at_home(head: Head, tmp_path: Path) -> None:
    limits = MirrorLimits(log_every_s=0.02, files_every_s=0.02)
    with Mirror(head.wire(), head.claim("gone-file"), tmp_path, limits) as mirror:
        root = Path(mirror.job["results_dir"])
        (root / "a" / "b").mkdir(parents=True)
        for name in ("a/b/1", "a/b/2", "c", "e"):
            (root / name).write_text(name)
        wait_until(
            lambda: tree(head.directory("gone-file")).keys() == {"a/b/1", "a/b/2", "c", "e"},
            what="the files at home",
        )
        shutil.rmtree(root / "a")
        (root / "a").write_text("a file now")
        (root / "e").unlink()
        (root / "c").unlink()
        (root / "c").mkdir()
        (root / "c" / "d").write_text("d")
    assert tree(head.directory("gone-file")).keys() == {"a", "c/d"}


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        (".cache", ".cache/**"),
        ("a/b/__pycache__", "__pycache__/**"),
        ("a/x.tmp", "*.tmp"),
        (".git", "/.*"),
        ("runs/trial-1/work", "runs/*/work/**"),
        ("files/.config", ""),
        ("runs/trial-1/works", ""),
        ("work", ""),
        ("x.tmp2", ""),
    ],
)
def test_the_patterns_name_what_they_say(path: str, pattern: str) -> None:
    assert excluded_by(path, MirrorLimits().exclude) == pattern


# --- logs


def test_logs_are_at_home_while_the_attempt_works(head: Head, tmp_path: Path) -> None:
    limits = MirrorLimits(log_every_s=0.02)
    directory = head.directory("logs")

    def home(text: bytes) -> Callable[[], bool]:
        return lambda: (
            (directory / "log.txt").exists() and (directory / "log.txt").read_bytes() == text
        )

    with Mirror(head.wire(), head.claim("logs"), tmp_path, limits) as mirror:
        log = Path(mirror.job["results_dir"]) / "log.txt"
        log.write_bytes(b"one\ntw")
        wait_until(home(b"one\ntw"))
        with log.open("ab") as file:
            file.write(b"o\n")
        wait_until(home(b"one\ntwo\n"))
        log.rename(log.with_name("log.attempt-1.txt"))
        log.write_bytes(b"begun anew, and longer than before\n")
        wait_until(home(b"begun anew, and longer than before\n"))
        (log.parent / LOG).write_bytes(b'{"a": 1}\n{"b"')
        wait_until((directory / LOG).exists)
        # The middle is cut out, as a log's is that became too long; the length stays.
        raw = log.read_bytes()
        log.write_bytes(raw[:5] + b"#" * 10 + raw[15:])
    assert (directory / LOG).read_bytes() == b'{"a": 1}\n'
    assert (directory / "log.txt").read_bytes() == b"begun########## longer than before\n"
    assert (directory / "log.attempt-1.txt").read_bytes() == b"one\ntwo\n"


def test_a_later_attempt_goes_on_with_the_log_lines_of_the_earlier(
    head: Head, tmp_path: Path
) -> None:
    for number in range(2):
        with Mirror(head.wire(), head.claim("lines"), tmp_path / str(number), PATIENT) as mirror:
            work(mirror.job, mirror.on_step)
    lines = [json.loads(x) for x in (head.directory("lines") / LOG).read_text().splitlines()]
    assert [x["attempt"] for x in lines if x["event"] == "attempt.started"] == [1, 2]


# --- what the next attempt finds


def test_what_this_node_still_has_is_not_sent_again(head: Head, tmp_path: Path) -> None:
    def once(root: Path) -> None:
        if not (root / "big").exists():
            (root / "big").write_bytes(os.urandom(3 * 2**20))

    def attempt(scratch: Path) -> Wire:
        return broken_off(head, "again", scratch, once)

    assert attempt(tmp_path / "a").sent_bytes >= 3 * 2**20
    assert attempt(tmp_path / "b").got_bytes >= 3 * 2**20
    for scratch in ("b", "a", "b"):
        wire = attempt(tmp_path / scratch)
        assert (wire.sent_bytes < 1000, wire.got_bytes < 1000) == (True, True), scratch
    assert not (head.directory("again") / RESULT).exists()


def test_what_another_node_did_since_counts_more_than_what_lies_here(
    head: Head, tmp_path: Path
) -> None:
    def attempt(scratch: str, text: str) -> str:
        found: list[str] = []

        def go_on(root: Path) -> None:
            path = root / "checkpoint"
            found.append(path.read_text() if path.exists() else "")
            path.write_text(text)

        broken_off(head, "newest", tmp_path / scratch, go_on)
        return found[0]

    assert attempt("a", "1") == ""
    assert attempt("b", "2") == "1"
    assert attempt("a", "3") == "2"
    assert attempt("a", "4") == "3"


def test_a_task_of_the_same_name_finds_nothing_of_the_other(head: Head, tmp_path: Path) -> None:
    broken_off(head, "name", tmp_path, lambda root: (root / "old").write_text("old"))
    shutil.rmtree(head.directory("name"))
    head.claim("name")
    with Mirror(head.wire(), head.claim("name"), tmp_path, PATIENT) as mirror:
        assert not (Path(mirror.job["results_dir"]) / "old").exists()
    assert not (head.directory("name") / "old").exists()


def test_an_older_result_does_not_come_to_the_node_and_does_not_go_home_again(
    head: Head, tmp_path: Path
) -> None:
    head.claim("result")
    (head.directory("result") / RESULT).write_text('{"attempt": 1}')
    with Mirror(head.wire(), head.claim("result"), tmp_path, PATIENT) as mirror:
        assert not (Path(mirror.job["results_dir"]) / RESULT).exists()
    assert (head.directory("result") / RESULT).read_text() == '{"attempt": 1}'


def test_what_is_too_much_for_a_node_stays_at_home_and_is_stated(
    head: Head, tmp_path: Path
) -> None:
    head.claim("fat")
    (head.directory("fat") / "big").write_bytes(b"x" * 5000)
    (head.directory("fat") / ".cache").mkdir()
    (head.directory("fat") / ".cache" / "c").write_text("c")
    limits = MirrorLimits(log_every_s=3600, max_file_bytes=4000)

    def look(root: Path) -> None:
        assert not (root / "big").exists()
        assert not (root / ".cache").exists()

    for _ in range(2):
        broken_off(head, "fat", tmp_path, look, limits)
    assert (head.directory("fat") / "big").read_bytes() == b"x" * 5000
    assert (head.directory("fat") / ".cache" / "c").exists()
    stated = json.loads((head.directory("fat") / NOT_SHIPPED).read_bytes())
    assert stated["count"] == 1


def test_two_attempts_on_one_node_never_share_its_directory(head: Head, tmp_path: Path) -> None:
    job = head.claim("shared")
    with Mirror(head.wire(), job, tmp_path, QUICK):
        limits = MirrorLimits(lock_timeout_s=0.1)
        with (
            pytest.raises(Busy, match="another attempt"),
            Mirror(head.wire(), job, tmp_path, limits),
        ):
            pass


def test_old_scratch_is_bounded_by_size_and_age(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    now = time.time()
    for name, age_s in (("new", 10), ("older", 20), ("oldest", 30), ("ancient", 10**6)):
        with scratch.held(name, 1) as directory:
            directory.mkdir()
            (directory / "x").write_bytes(bytes(100_000))
            scratch.remember(name, {"attempt": 1})
        os.utime(tmp_path / "state" / f"{name}.lock", (now - age_s, now - age_s))
    with scratch.held("older", 1):
        os.utime(tmp_path / "state" / "older.lock", (now - 20, now - 20))
        scratch.sweep(most_bytes=120_000, oldest_age_s=10**5, keep="mine")
    assert {p.name for p in (tmp_path / "results").iterdir()} == {"new", "older"}
    assert {p.name for p in (tmp_path / "state").iterdir()} == {
        f"{n}{s}" for n in ("new", "older") for s in (".lock", ".json")
    }


# --- templates


def test_a_template_of_the_heads_comes_to_the_node_once(head: Head, tmp_path: Path) -> None:
    make_template(head.templates, "tiny", experiment=PARABOLA % 0)
    wanted = load_template("tiny", roots=[head.templates]).sha256
    methods: list[list[str]] = []
    for number in range(2):
        wire = head.wire()
        job = head.claim(f"template-{number}") | {"task_text": "kind: research\ntemplate: tiny\n"}
        with Mirror(wire, job, tmp_path, PATIENT) as mirror:
            roots = [Path(root) for root in mirror.job["template_roots"]]
            assert load_template("tiny", roots=roots).sha256 == wanted
            assert str(tmp_path) in mirror.job["forbidden_roots"]
        methods.append(wire.methods)
    assert [sent.count("template_read") for sent in methods] == [1, 0]
    (head.templates / "tiny" / "experiment.py").write_text("changed")
    job = head.claim("template-3") | {"task_text": "kind: research\ntemplate: tiny\n"}
    with Mirror(head.wire(), job, tmp_path, PATIENT) as mirror:
        roots = [Path(root) for root in mirror.job["template_roots"]]
        (there,) = [load_template("tiny", roots=roots).directory]
        assert (there / "experiment.py").read_text() == "changed"


def test_a_directory_of_another_system_is_the_same_template_on_the_node(
    head: Head, tmp_path: Path
) -> None:
    directory = head.templates / "modularArithmetic"
    shutil.copytree(FOREIGN / "modular", directory)
    (directory / "run_0").mkdir()
    (directory / "run_0" / "final_info.json").write_text('{"x": {"means": {"val_loss": 1}}}')
    (directory / "run_0" / "all_results.npy").write_bytes(b"x" * 1000)
    wanted = load_template("modularArithmetic", roots=[head.templates])
    job = head.claim("foreign") | {"task_text": "kind: research\ntemplate: modularArithmetic\n"}
    with Mirror(head.wire(), job, tmp_path, PATIENT) as mirror:
        roots = [Path(root) for root in mirror.job["template_roots"]]
        there = load_template("modularArithmetic", roots=roots)
        assert (there.sha256, there.metric) == (wanted.sha256, wanted.metric)
        assert there.metric.name == "val_loss"
        assert not (there.directory / "run_0" / "all_results.npy").exists()


def test_a_template_that_ships_with_labd_is_not_sent(head: Head, tmp_path: Path) -> None:
    wire = head.wire()
    with Mirror(wire, head.claim("shipped"), tmp_path, PATIENT) as mirror:
        assert mirror.job["template_roots"] == []
    assert "template_read" not in wire.methods


@pytest.mark.parametrize("name", ["nothing", "/etc", "../results", "sub/../../x"])
def test_no_template_is_found_outside_the_roots(head: Head, tmp_path: Path, name: str) -> None:
    job = head.claim("outside") | {"task_text": f"kind: research\ntemplate: {name}\n"}
    with pytest.raises((ConfigError, ShippingError)), Mirror(head.wire(), job, tmp_path, PATIENT):
        pass
    answer = head.wire()("template_read", name=name, wanted=[["passwd", 0, 100]])
    assert "error" in answer


def test_a_chunk_is_no_larger_than_is_said(store: Store, tmp_path: Path) -> None:
    claimed(tmp_path)
    raw = bytes(CHUNK_BYTES + 1)
    with pytest.raises(ShippingError):
        store.chunk(hashlib.sha256(raw).hexdigest(), 0, raw, len(raw))
    with pytest.raises(ShippingError):
        store.read("t", 1, [["a", 0, CHUNK_BYTES], ["b", 0, 1]])


def test_a_job_keeps_what_is_not_a_path_of_the_head(head: Head, tmp_path: Path) -> None:
    job = head.claim("keeps") | {"num_cpus": 2.0}
    assert job.keys() >= job_of("keeps", 1, head.results).keys()
    with Mirror(head.wire(), job, tmp_path, PATIENT) as mirror:
        changed = {key for key in job if mirror.job[key] != job[key]}
    assert changed == {"results_dir"}
