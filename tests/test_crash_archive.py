"""Archive, journal, spool and files, killed at each of their system calls, half-made writes included.

Each case below is a program of its own: it acts and says what it was told is done. It is killed at
every call that it makes, begun again, and what it leaves must be what the docstrings promise. A second
set of programs does the same work carelessly: with these, the very same checks have to fail.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import psutil
import pytest

from labd.archive import EVENTS, JOURNAL, PRUNED, RESULT, Archive
from labd.errors import JournalError
from labd.files import JsonLines, read_json_lines, rename_noreplace, write_atomic
from labd.journal import Journal
from labd.packing import pack, unpack
from labd.retention import Keeper, Rule
from labd.settings import Home, Settings
from labd.spool import Spool
from labd.task import State, task_id
from tests.crashing import KILLED_AT_CALL, Life, Lives, Torn, unsynced

TASK = b"kind: research\ntemplate: digits\n# " + b"bytes that nobody may change\n" * 40
OLD, NEW = b"old " * 3000, b"new " * 5000
LONG = "x" * 5000
LIVE = f"{__name__}:live"


@dataclass(frozen=True, slots=True)
class Case:
    """A program that is killed, and what has to be true after each of its lives."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    """The program; it goes on from what it finds."""
    check: Callable[[Path, list[str]], None]
    """After each life, also one that was killed: gets what all lives so far have said is done."""
    end: Callable[[Path], bool] = lambda _: True
    """After a life that came to its end: whether all is there."""
    every: int = 1
    """Of its calls, each so manieth is killed; with ``LABD_TORTURE=1`` all."""


def say(words: str) -> None:
    """Tell the test that something is done, in one write, so that no kill can take it back."""
    os.write(1, f"{words}\n".encode())


# --- events


def record_events(home: Path) -> None:
    archive = Archive(home)
    for attempt in range(archive.history("t").attempt + 1, 4):
        archive.record("t", "claimed", attempt=attempt, reason=LONG)
        say(str(attempt))


def check_events(home: Path, said: list[str]) -> None:
    history = Archive(home).history("t")
    attempts = [event["attempt"] for event in history.events]
    assert attempts == list(range(1, len(attempts) + 1)), "an event is lost, or there twice"
    assert len(attempts) in {len(said), len(said) + 1}, "an event was promised and is not there"
    assert all(event["reason"] == LONG for event in history.events)


def all_events(home: Path) -> bool:
    raw = (home / "t" / EVENTS).read_bytes()
    return raw.endswith(b"\n") and raw.count(b"\n") == 3


def record_in_two_writes(home: Path) -> None:
    """As `record_events`, with the torn last line left where it is."""
    path = home / "t" / EVENTS
    path.parent.mkdir(exist_ok=True)
    for attempt in range(Archive(home).history("t").attempt + 1, 4):
        with path.open("ab", buffering=0) as file:
            line = json.dumps({"event": "claimed", "attempt": attempt, "reason": LONG})
            file.write(line.encode())
            file.write(b"\n")
        say(str(attempt))


def record_after_saying(home: Path) -> None:
    archive = Archive(home)
    for attempt in range(archive.history("t").attempt + 1, 4):
        say(str(attempt))
        archive.record("t", "claimed", attempt=attempt, reason=LONG)


# --- results


def write_results(home: Path) -> None:
    archive = Archive(home)
    for attempt in range((archive.result("t") or {"attempt": 0})["attempt"] + 1, 4):
        archive.write_result("t", {"attempt": attempt, "text": LONG})
        say(str(attempt))


def check_results(home: Path, said: list[str]) -> None:
    path = home / "t" / RESULT
    value = json.loads(path.read_bytes()) if path.exists() else {"attempt": 0, "text": LONG}
    assert value["text"] == LONG
    assert value["attempt"] in {len(said), len(said) + 1}, "a result was promised and is not there"


def all_results(home: Path) -> bool:
    return Archive(home).result("t") == {"attempt": 3, "text": LONG}


def write_results_in_place(home: Path) -> None:
    archive = Archive(home)
    for attempt in range((archive.result("t") or {"attempt": 0})["attempt"] + 1, 4):
        text = json.dumps({"attempt": attempt, "text": LONG})
        (home / "t" / RESULT).write_text(text)
        say(str(attempt))


# --- the journal


def take_steps(home: Path) -> None:
    with Journal(home / "journal.jsonl", on_step=lambda key, _: say(f"has {key}")) as journal:
        for number in range(4):
            key = f"step-{number}"

            def pay(key: str = key) -> list[str]:
                say(f"pays {key}")
                return [key, LONG]

            assert journal.step(key, {"number": number}, pay) == [key, LONG]


def check_journal(home: Path, said: list[str]) -> None:
    path = home / "journal.jsonl"
    lines = list(read_json_lines(path)) if path.exists() else []
    recorded = [line["key"].split("/")[0] for line in lines]
    assert recorded == [f"step-{number}" for number in range(len(recorded))], "lost, or twice"
    assert all(line["value"] == [line["key"].split("/")[0], LONG] for line in lines)
    done: set[str] = set()
    for words in said:
        verb, key = words.split()
        if verb == "has":
            done.add(key)
        else:
            assert key not in done, f"{key} was paid for twice"
    assert done <= set(recorded), "a step was given back and is not recorded"


def all_steps(home: Path) -> bool:
    raw = (home / "journal.jsonl").read_bytes()
    return raw.endswith(b"\n") and raw.count(b"\n") == 4


def use_before_recording(home: Path) -> None:
    path = home / "journal.jsonl"
    recorded = {line["key"] for line in read_json_lines(path)} if path.exists() else set()
    with JsonLines(path) as lines:
        for number in range(4):
            key = f"step-{number}"
            if key not in recorded:
                say(f"pays {key}")
                say(f"has {key}")
                lines.append({"key": key, "value": [key, LONG]})


# --- the spool

_WAY = (State.PENDING, State.RUNNING, State.PENDING, State.RUNNING, State.DONE)


def move_task(home: Path) -> None:
    """Put a file and move it along a way; how far it is, is a name, so that the next life can go on."""
    spool = Spool(home)
    if not spool.where("t-0") and not any(spool.where(f"t-{n}") for n in range(len(_WAY))):
        spool.put(TASK, "t-0.yaml")
        say("0")
    for step in range(1, len(_WAY)):
        name, source, target = f"t-{step - 1}.yaml", _WAY[step - 1], _WAY[step]
        if spool.holds(source, name):
            spool.move(name, source, target, f"t-{step}.yaml")
            say(str(step))


def check_spool(home: Path, said: list[str]) -> None:
    spool = Spool(home)
    there = [(state, name) for state in State for name in spool.names(state)]
    if not there:
        assert not said, "a file was put and is not there"
        return
    assert len(there) == 1, f"the file is in more than one place: {there}"
    state, name = there[0]
    step = int(name.removeprefix("t-").removesuffix(".yaml"))
    assert state is _WAY[step]
    assert step in {len(said) - 1, len(said)}
    assert spool.read(state, name) == TASK, "its bytes changed"


def is_done(home: Path) -> bool:
    return Spool(home).holds(State.DONE, "t-4.yaml")


def move_by_copy(home: Path) -> None:
    spool = Spool(home)
    if not any(spool.where(f"t-{n}") for n in range(len(_WAY))):
        spool.put(TASK, "t-0.yaml")
        say("0")
    for step in range(1, len(_WAY)):
        source = spool.directory(_WAY[step - 1]) / f"t-{step - 1}.yaml"
        if source.exists():
            (spool.directory(_WAY[step]) / f"t-{step}.yaml").write_bytes(source.read_bytes())
            source.unlink()
            say(str(step))


def put_in_place(home: Path) -> None:
    if not any(Spool(home).where(f"t-{n}") for n in range(len(_WAY))):
        (home / "pending" / "t-0.yaml").write_bytes(TASK)
        say("0")
    move_task(home)


# --- several claims at once, with one sync for all: event first, rename second

_BATCH = ("a.yaml", "b.yaml", "c.yaml")


def claim_together(home: Path) -> None:
    spool, archive = Spool(home / "spool"), Archive(home / "results")
    waiting = sorted(spool.names(State.PENDING))
    for name in waiting:
        attempt = archive.history(task_id(name)).attempt + 1
        archive.record(task_id(name), "claimed", durable=False, attempt=attempt)
    archive.sync()
    for name in waiting:
        spool.move(name, State.PENDING, State.RUNNING, durable=False)
    spool.sync()
    say("claimed")


def check_claims(home: Path, said: list[str]) -> None:
    spool, archive = Spool(home / "spool"), Archive(home / "results")
    there = {name: state for state in State for name in spool.names(state)}
    assert set(there) == set(_BATCH)
    assert not said or set(there.values()) == {State.RUNNING}
    for name, state in there.items():
        attempts = [event["attempt"] for event in archive.history(task_id(name)).events]
        assert attempts == list(range(1, len(attempts) + 1))
        assert attempts or state is State.PENDING, "it runs, and no event says so"
        assert spool.read(state, name) == TASK


def all_run(home: Path) -> bool:
    return sorted(Spool(home / "spool").names(State.RUNNING)) == list(_BATCH)


def rename_first(home: Path) -> None:
    spool, archive = Spool(home / "spool"), Archive(home / "results")
    for name in sorted(spool.names(State.PENDING)):
        spool.move(name, State.PENDING, State.RUNNING)
        archive.record(task_id(name), "claimed", attempt=1)
    say("claimed")


# --- files


def replace_file(home: Path) -> None:
    write_atomic(home / "file", NEW)
    say("new")


def check_file(home: Path, said: list[str]) -> None:
    raw = (home / "file").read_bytes()
    assert raw in ({NEW} if said else {OLD, NEW}), "neither old nor new"


def is_new(home: Path) -> bool:
    return (home / "file").read_bytes() == NEW


def replace_by_removing(home: Path) -> None:
    (home / "file").unlink(missing_ok=True)
    write_atomic(home / "file", NEW)
    say("new")


def make_file(home: Path) -> None:
    try:
        write_atomic(home / "file", NEW, replace=False)
    except FileExistsError:
        assert (home / "file").read_bytes() == NEW
    else:
        say("new")


def check_made(home: Path, said: list[str]) -> None:
    if said or (home / "file").exists():
        assert (home / "file").read_bytes() == NEW


def hold_spool(home: Path) -> None:
    with Spool(home).held():
        assert Spool(home).holder() == os.getpid()
        say("held")


def check_lock(home: Path, said: list[str]) -> None:  # noqa: ARG001 - as all checks
    assert Spool(home).holder() is None, "a dead process holds the spool"


# --- retention: a directory becomes an archive, and back; or goes

_RUN = b"what a run wrote\n" * 400


def _ended_task(home: Path) -> None:
    spool, archive = Spool(home / "spool"), Archive(home / "results")
    spool.prepare()
    archive.prepare()
    (spool.directory(State.FAILED) / "t.yaml").write_bytes(TASK)
    archive.record("t", "claimed", attempt=1)
    archive.record("t", "failed", attempt=1)
    runs = home / "results" / "t" / "runs"
    for name in ("one", "two"):
        (runs / name).mkdir(parents=True)
        (runs / name / "log.txt").write_bytes(_RUN)
    (home / "results" / "t" / JOURNAL).write_bytes(b'{"key": "a"}\n')


def _packed_task(home: Path) -> None:
    _ended_task(home)
    pack(home / "results" / "t", "runs")


def _carry_out(home: Path, rule: Rule) -> None:
    keeper = Keeper(Home(home, Settings(min_free_bytes=0)))
    plan = keeper.plan({State.FAILED: rule}, time.time() + 86_400)
    for done in keeper.carry_out(plan.actions):
        assert not done.problem
        say("done")


def compress_runs(home: Path) -> None:
    _carry_out(home, Rule(compress_after_s=3600))


def unpack_runs(home: Path) -> None:
    unpack(home / "results" / "t", "runs")
    say("done")


def prune_runs(home: Path) -> None:
    _carry_out(home, Rule(prune_after_s=3600))


def _runs_in(results: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in results.glob("runs/**/*")
        if path.is_file()
    }


def check_runs(home: Path, said: list[str]) -> None:  # noqa: ARG001 - as all checks
    """Whatever is there under a name of its own is whole."""
    results, whole = (
        home / "results" / "t",
        {f"runs/{name}/log.txt": _RUN for name in ("one", "two")},
    )
    loose, archive = _runs_in(results), results / "runs.tar.gz"
    assert loose in ({}, whole), "a part of the runs is there"
    assert loose or not (results / "runs").exists(), "a part of the runs is there"
    assert loose or archive.exists(), "the runs are lost"
    if archive.exists():
        with tempfile.TemporaryDirectory() as place:
            try:
                with tarfile.open(archive) as tar:
                    tar.extractall(place, filter="data")
            except (tarfile.TarError, EOFError) as error:
                raise AssertionError("the archive is not whole") from error
            assert _runs_in(Path(place)) == whole, "the archive is not whole"


def check_pruned(home: Path, said: list[str]) -> None:  # noqa: ARG001 - as all checks
    results, whole = (
        home / "results" / "t",
        {f"runs/{name}/log.txt": _RUN for name in ("one", "two")},
    )
    assert _runs_in(results) in ({}, whole), "a part of the runs is there"
    if not (results / "runs").exists():
        assert json.loads((results / PRUNED).read_bytes())["removed"] == ["runs"]
        assert not (results / JOURNAL).read_bytes(), "a journal speaks of runs that are gone"
        assert (results / "journal.pruned.jsonl").read_bytes() == b'{"key": "a"}\n'


def are_packed(home: Path) -> bool:
    return _left(home) == {EVENTS, JOURNAL, "runs.tar.gz"}


def are_loose(home: Path) -> bool:
    return _left(home) == {EVENTS, JOURNAL, "runs"}


def are_pruned(home: Path) -> bool:
    return _left(home) == {EVENTS, JOURNAL, "journal.pruned.jsonl", PRUNED}


def _left(home: Path) -> set[str]:
    return {path.name for path in (home / "results" / "t").iterdir()} - {".lock"}


def compress_in_place(home: Path) -> None:
    """As `compress_runs`, with the archive made where it is to be, and the directory gone before anybody looked."""
    results = home / "results" / "t"
    with tarfile.open(results / "runs.tar.gz", "w:gz") as tar:
        tar.add(results / "runs", "runs")
    shutil.rmtree(results / "runs")


def _nothing(home: Path) -> None:
    """Begin with an empty directory."""


def _task_directory(home: Path) -> None:
    (home / "t").mkdir()


def _spool_directories(home: Path) -> None:
    Spool(home).prepare()


def _waiting_tasks(home: Path) -> None:
    spool = Spool(home / "spool")
    spool.prepare()
    Archive(home / "results").prepare()
    for name in _BATCH:
        spool.put(TASK, name)


def _old_file(home: Path) -> None:
    (home / "file").write_bytes(OLD)


CASES = {
    "events": Case(_nothing, record_events, check_events, all_events),
    "results": Case(_task_directory, write_results, check_results, all_results),
    "journal": Case(_nothing, take_steps, check_journal, all_steps),
    "spool": Case(_spool_directories, move_task, check_spool, is_done),
    "claims": Case(_waiting_tasks, claim_together, check_claims, all_run),
    "replace": Case(_old_file, replace_file, check_file, is_new),
    "make": Case(_nothing, make_file, check_made, is_new),
    "lock": Case(_spool_directories, hold_spool, check_lock),
    "compress": Case(_ended_task, compress_runs, check_runs, are_packed, every=4),
    "unpack": Case(_packed_task, unpack_runs, check_runs, are_loose, every=4),
    "prune": Case(_ended_task, prune_runs, check_pruned, are_pruned, every=4),
}
CARELESS = {
    "torn lines stay": ("not JSON", replace(CASES["events"], act=record_in_two_writes)),
    "told before recorded": ("promised", replace(CASES["events"], act=record_after_saying)),
    "written in place": ("Expecting value", replace(CASES["results"], act=write_results_in_place)),
    "used before recorded": ("not recorded", replace(CASES["journal"], act=use_before_recording)),
    "moved by copy": ("more than one place", replace(CASES["spool"], act=move_by_copy)),
    "rename first": ("no event says so", replace(CASES["claims"], act=rename_first)),
    "put in place": ("bytes", replace(CASES["spool"], act=put_in_place)),
    "compressed in place": (
        "not whole|a part of the runs",
        replace(CASES["compress"], act=compress_in_place),
    ),
    "removed first": ("No such file", replace(CASES["replace"], act=replace_by_removing)),
}


def live(name: str, home: str) -> None:
    """Be the program of one case, or a careless one."""
    case = CASES[name] if name in CASES else CARELESS[name][1]
    case.act(Path(home))


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    with Lives(__name__) as them:
        yield them


@dataclass(slots=True)
class Explorer:
    """Kills a case at all its calls, and counts them."""

    lives: Lives
    root: Path
    name: str
    points: int = 0

    def all(self, case: Case) -> None:
        """Go through every call of an undisturbed life: before it, and, if it writes, within it.

        And through every call of the life that begins after a kill in the midst of the work: what
        mends the traces of one kill must live through another.
        """
        whole = self._life(self._home(case), 0, None)
        assert whole.exit_code == 0, whole.output
        stride = 1 if "LABD_TORTURE" in os.environ else case.every
        for at, call in islice(enumerate(whole.calls, start=1), 0, None, stride):
            for torn in (None, "half", "most") if call.size_bytes > 1 else (None,):
                self._once(case, at, torn)
        middle = next(n for n, c in enumerate(whole.calls, 1) if c.size_bytes > 1)
        again = 1
        while self._once(case, middle, "half", again):
            again += stride

    def _once(self, case: Case, at: int, torn: Torn | None, again: int = 0) -> bool:
        """Kill once, or with `again` twice, then let it live; say whether the last kill took place."""
        home = self._home(case)
        said: list[str] = []
        kills = [(at, torn)] + ([(again, None)] if again else [])
        killed = False
        for where, how in kills:
            life = self._life(home, where, how)
            killed = life.killed
            assert killed or (again and where == again), "it came to its end before its call"
            assert life.torn == (how is not None)
            said += life.output.splitlines()
            case.check(home, said)
            self.points += killed
        last = self._life(home, 0, None)
        assert last.exit_code == 0, last.output
        case.check(home, said + last.output.splitlines())
        assert case.end(home)
        leftovers = [path for path in home.rglob("*") if path.name.endswith(".tmp")]
        assert len(leftovers) <= len(kills), leftovers
        return killed

    def _life(self, home: Path, at: int, torn: Torn | None) -> Life:
        life = self.lives.run(LIVE, self.name, str(home), watch=[home], at=at, torn=torn)
        assert not life.left
        return life

    def _home(self, case: Case) -> Path:
        home = self.root / str(len(list(self.root.iterdir())))
        home.mkdir()
        case.prepare(home)
        return home


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_was_promised_is_lost_at_any_call(
    lives: Lives, tmp_path: Path, name: str
) -> None:
    explorer = Explorer(lives, tmp_path, name)
    explorer.all(CASES[name])
    print(f"crash points: {name} {explorer.points}")


@pytest.mark.parametrize("name", CARELESS)
def test_the_same_checks_find_what_careless_code_loses(
    lives: Lives, tmp_path: Path, name: str
) -> None:
    found, case = CARELESS[name]
    with pytest.raises((AssertionError, JournalError, ValueError, OSError), match=found):
        Explorer(lives, tmp_path, name).all(case)


# --- the harness itself


def do_all_kinds(home: str) -> None:
    """Change files from Python, C and ctypes, from a thread, and from a child, which counts for nothing."""
    (Path(home) / "a").write_bytes(b"12345678")
    shutil.copyfile(Path(home) / "a", Path(home) / "b")
    rename_noreplace(Path(home) / "b", Path(home) / "c")
    thread = threading.Thread(target=(Path(home) / "d").mkdir)
    thread.start()
    thread.join()
    subprocess.run(["touch", f"{home}/by-a-child"], check=True)
    Path("/dev/null").write_bytes(b"elsewhere")
    (Path(home) / "a").unlink()


_DEEDS = [
    "create a", "write a", "create b", "sendfile b", "sendfile b", "renameat2 c", "mkdir d", "unlink a",
]  # fmt: skip


def leave_something(home: str) -> None:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    (Path(home) / "a").touch()


def test_calls_are_seen_whoever_makes_them_and_the_fatal_one_is_not_made(
    lives: Lives, tmp_path: Path
) -> None:
    there = [
        set(), {"a"}, {"a"}, {"a", "b"}, {"a", "b"}, {"a", "b"}, {"a", "c"}, {"a", "c", "d", "by-a-child"},
        {"c", "d", "by-a-child"},
    ]  # fmt: skip
    for at, names in enumerate(there, start=1):
        home = tmp_path / str(at)
        home.mkdir()
        life = lives.run(f"{__name__}:do_all_kinds", str(home), watch=[home], at=at)
        assert [str(call) for call in life.calls] == _DEEDS[:at]
        assert life.killed == (at <= len(_DEEDS))
        assert life.exit_code == (KILLED_AT_CALL if life.killed else 0)
        assert {path.name for path in home.iterdir()} == names


@pytest.mark.parametrize(("torn", "left"), [("half", b"1234"), ("most", b"1234567")])
def test_a_torn_write_is_one_of_a_part_of_its_bytes(
    lives: Lives, tmp_path: Path, torn: Torn, left: bytes
) -> None:
    life = lives.run(f"{__name__}:do_all_kinds", str(tmp_path), watch=[tmp_path], at=2, torn=torn)
    assert life.torn
    assert (tmp_path / "a").read_bytes() == left


def test_a_process_that_is_left_behind_is_told_and_killed(lives: Lives, tmp_path: Path) -> None:
    for at in (0, 1):
        life = lives.run(
            f"{__name__}:leave_something", str(tmp_path), watch=[tmp_path], at=at, linger_s=0.5
        )
        assert [words.split(" ", 1)[1] for words in life.left] == ["sleep 600"]
        assert not psutil.pid_exists(int(life.left[0].split()[0]))


def test_a_module_is_killed_in_an_interpreter_of_its_own(tmp_path: Path) -> None:
    home, count = tmp_path / "home", tmp_path / "calls.json"
    home.mkdir()
    for at, code in ((1, KILLED_AT_CALL), (0, 0)):
        command = ["--watch", str(home), "--at", str(at), "--count", str(count), "--"]
        command += ["zipfile", "-c", str(home / "x.zip"), __file__]
        done = subprocess.run([sys.executable, "-m", "tests.crashing", *command], check=False)
        assert done.returncode == code
        assert json.loads(count.read_text())["calls"][0][:2] == ["create", "x.zip"]
        assert (home / "x.zip").exists() == (at == 0)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"lock"}))
def test_what_is_told_to_be_done_is_synced(lives: Lives, tmp_path: Path, name: str) -> None:
    CASES[name].prepare(tmp_path)
    life = lives.run(LIVE, name, str(tmp_path), watch=[tmp_path])
    assert life.exit_code == 0
    # What the spool keeps for itself is a convenience, and not promised.
    missing = {path for path in unsynced(life.calls) if ".labd" not in path}
    assert missing == set()
