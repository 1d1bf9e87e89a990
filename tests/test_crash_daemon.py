"""The daemon, killed at its system calls while tasks of each sort are on their way, begun again, to the end.

Ray runs as a service here, so what runs lives on when the daemon dies, and a restart costs a second. The
daemon alone is killed; workers, sandboxes and the process that drives Ray go their own way. A further
series has Ray embedded: there everything that runs dies with the daemon.

`LABD_TORTURE=1` kills it at each of all its calls, and within each write; without it, at some of them.
"""

import contextlib
import json
import os
import random
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from labd import cli
from labd.archive import EVENTS, RESULT, Archive
from labd.spool import Spool
from labd.task import State, task_id
from tests.crashing import Life, Lives, Torn
from tests.factories import write_settings
from tests.rayservice import RayService

WHOLE = "LABD_TORTURE" in os.environ
ONCE_POINTS, TWICE_POINTS, EMBEDDED_POINTS = (10_000, 40, 24) if WHOLE else (2, 1, 0)
SEED = 20261122
LASTING = r"^(?!.*\.labd/)"
"""Calls outside of the daemon's own directory, which has its lock and what it tells readers."""
ENDS = {"done", "failed", "cancelled"}
TRACED = 'echo "start $LABD_ATTEMPT" >> trace; %s; echo "end $LABD_ATTEMPT" >> trace; %s'
LONG_AGO_S = 60.0
POLL_S = 0.02
PATIENCE_S = 0.5
LINGER_S = 60.0
"""The driver hears that the daemon is gone when its own Ray is up, which takes a busy machine a while."""
TORN: tuple[Torn | None, ...] = (None, "half", "most")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.sandbox,
    pytest.mark.timeout(3 * 3600 if WHOLE else 300),
]


def up(home: str) -> None:
    """Be `labd up --once`."""
    sys.argv = ["labd", "--home", home, "up", "--once"]
    cli.main()


def up_and_start_all_again(home: str) -> None:
    """Be a daemon that starts what it finds in running/ again, whoever has it."""
    spool = Spool(Path(home) / "spool")
    for name in spool.names(State.RUNNING):
        spool.move(name, State.RUNNING, State.PENDING)
    up(home)


def up_without_memory(home: str) -> None:
    """Be a daemon that forgets the last event of each task."""
    for path in (Path(home) / "results").glob(f"*/{EVENTS}"):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    up(home)


@dataclass(slots=True)
class Hand:
    """Somebody who moves one task's file away while it runs, and kills another's worker once.

    A third one it lets end, while there is a daemon: where that was killed, the task lives on until there is one again.
    """

    spool: Path
    results: Path
    unwanted: str
    unlucky: str
    patient: str
    _done: threading.Event = field(default_factory=threading.Event)
    _killed: bool = False
    _pid: int = 0
    _since_s: float = 0.0
    """Since when that daemon was seen."""

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Be about for as long as the block runs."""
        self._done.clear()
        thread = threading.Thread(target=self._work, name="hand")
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _work(self) -> None:
        while not self._done.wait(POLL_S):
            if (self.results / self.unwanted / "files" / "trace").exists():
                name = f"{self.unwanted}.yaml"
                with contextlib.suppress(FileNotFoundError):
                    (self.spool / "running" / name).rename(self.spool / "cancelled" / name)
            if not self._killed and (self.results / self.unlucky / "files" / "once").exists():
                self._killed = self._kill_worker()
            self._let_end(self.results / self.patient / "files")

    def _let_end(self, files: Path) -> None:
        pid = self._daemon()
        if pid != self._pid:
            self._pid, self._since_s = pid, time.monotonic()
        elif pid and (files / "trace").exists() and time.monotonic() - self._since_s > PATIENCE_S:
            (files / "go").touch()

    def _daemon(self) -> int:
        """Give the process id of a daemon that has made running/ true, or 0: it tells of nodes only then."""
        path = self.spool / ".labd" / "status.json"
        told = json.loads(path.read_bytes()) if path.exists() else {"nodes": []}
        return int(told["pid"]) if told["nodes"] and psutil.pid_exists(told["pid"]) else 0

    def _kill_worker(self) -> bool:
        found = False
        for process in psutil.process_iter(["cmdline"]):
            if f"ray::labd:{self.unlucky}#" in " ".join(process.info["cmdline"] or ()):
                process.kill()
                found = True
        return found


@dataclass(slots=True)
class Lab:
    """A lab with a task of each sort, and the lives of its daemon. Its ids have a tag of their own.

    `work_lives_on`: Ray is a service.
    """

    home: Path
    lives: Lives
    work_lives_on: bool = True
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:6])
    kills: int = 0
    torn: int = 0
    """How many of the kills were in the middle of a write."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """The task files as they were dropped."""
    events: dict[str, bytes] = field(default_factory=dict)
    """The whole lines of each task's events after the last life."""
    hand: Hand = field(init=False)

    def __post_init__(self) -> None:
        self.hand = Hand(
            self.home / "spool",
            self.home / "results",
            unwanted=self.id("unwanted"),
            unlucky=self.id("unlucky"),
            patient=self.id("good"),
        )
        self._clear()
        self._drop("good", TRACED % ("while [ ! -e go ]; do sleep 0.05; done", "true"))
        self._drop("bad", TRACED % ("true", "exit 3"))
        self._drop("later", TRACED % ("true", "true"), after=[self.id("good")])
        self._drop("unlucky", TRACED % ("mkdir once && sleep 100", "true"))
        self._drop("unwanted", TRACED % ("sleep 100", "true"))
        self._drop("twin", TRACED % ("true", "true"))
        self._drop("twin", TRACED % ("true", "true"), suffix=".yml")
        self._drop("words", "")

    def id(self, name: str) -> str:
        return f"{name}-{self.tag}"

    @property
    def spool(self) -> Spool:
        return Spool(self.home / "spool")

    @property
    def archive(self) -> Archive:
        return Archive(self.home / "results")

    def _clear(self) -> None:
        """Empty the lab of an earlier one's tasks; the rest is Ray's, whose workers it keeps warm."""
        self.spool.prepare()
        self.archive.prepare()
        for state in State:
            for path in self.spool.directory(state).iterdir():
                path.unlink()
        for path in self.archive.root.iterdir():
            if not path.name.startswith("."):
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()

    def _drop(self, name: str, run: str, *, suffix: str = ".yaml", **keys: object) -> None:
        more = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
        text = f"kind: command\nrun: {json.dumps(run)}\n{more}# {uuid.uuid4()}\n"
        raw = (text if run else f"no task at all {uuid.uuid4()}\n").encode()
        path = self.home / "spool" / "pending" / f"{self.id(name)}{suffix}"
        path.write_bytes(raw)
        # Long ago, so that nobody waits for an editor to be done; in this order, which is that of their turns.
        then = time.time() - LONG_AGO_S + len(self.texts)
        os.utime(path, (then, then))
        self.texts[path.name] = raw

    def live(
        self,
        at: int = 0,
        torn: Torn | None = None,
        *,
        program: str = "up",
        matching: str = LASTING,
    ) -> Life:
        """Have one daemon, killed or not, and check what must hold at every moment."""
        with self.hand.at_work():
            life = self.lives.run(
                f"{__name__}:{program}",
                str(self.home),
                watch=[self.home / "spool", self.home / "results"],
                at=at,
                torn=torn,
                matching=matching,
                timeout_s=100.0,
                linger_s=LINGER_S,
            )
        self.kills += life.killed
        self.torn += life.torn
        print(f"killed at {life.calls[-1]}" if life.killed else "not killed", life.output)
        assert not life.left, f"it left processes behind: {life.left}"
        assert life.killed or life.exit_code in {0, 1}, f"exit code {life.exit_code}"
        self._check_files()
        self._check_results()
        self._check_record()
        return life

    def live_on(self) -> Life:
        """Have one daemon that is not killed, and check what must hold at the end."""
        life = self.live()
        assert not life.killed
        self._check_end()
        return life

    # --- what must hold at every moment

    def _check_files(self) -> None:
        places = self._places()
        assert set(places) == set(self.texts.values()), "a file is lost, or was changed"
        twice = {raw: where for raw, where in places.items() if len(where) != 1}
        assert not twice, f"a file is in several places: {twice}"
        partial = [p for p in self.home.rglob(".*.tmp") if p.is_file()]
        assert len(partial) <= self.kills, f"leftovers grow: {partial}"

    def _places(self) -> dict[bytes, list[tuple[State, str]]]:
        places: dict[bytes, list[tuple[State, str]]] = {}
        for state in State:
            for name in self.spool.names(state):
                raw = (self.spool.directory(state) / name).read_bytes()
                places.setdefault(raw, []).append((state, name))
        return places

    def _check_results(self) -> None:
        torn = 0
        for directory in self._directories():
            name = directory.name
            raw = (directory / EVENTS).read_bytes() if (directory / EVENTS).exists() else b""
            whole = raw[: raw.rfind(b"\n") + 1]
            torn += whole != raw
            assert whole.startswith(self.events.get(name, b"")), f"events of {name} have changed"
            self.events[name] = whole
            self._check_events(name, [json.loads(line) for line in whole.splitlines()])
            self._check_trace(name)
            if (directory / RESULT).exists():
                assert isinstance(json.loads((directory / RESULT).read_bytes()), dict)
        assert torn <= self.torn, "a torn line was left"

    def _directories(self) -> list[Path]:
        return [path for path in self.archive.root.iterdir() if not path.name.startswith(".")]

    def _check_events(self, name: str, events: Sequence[Mapping[str, Any]]) -> None:
        claims = [e["attempt"] for e in events if e["event"] == "claimed"]
        assert claims == list(range(1, len(claims) + 1)), f"attempts of {name}: {events}"
        most = 1 + self.kills + (name == self.id("unlucky"))
        assert len(claims) <= most, f"too many attempts of {name}: {events}"
        ends = [number for number, e in enumerate(events) if e["event"] in ENDS]
        assert ends in ([], [len(events) - 1]), f"ends of {name}: {events}"
        assert sum(e["event"] == "refused" for e in events) <= 1 + self.kills
        latest = 0
        for event in events:
            latest = event["attempt"] if event["event"] == "claimed" else latest
            assert event.get("attempt", latest) == latest, f"not of the last attempt: {events}"

    def _check_trace(self, name: str) -> None:
        """Attempts ran one after the other, and what lived on was not started again."""
        lines = self._trace(name)
        attempts = [int(line.split()[1]) for line in lines]
        assert attempts == sorted(attempts), f"attempts of {name} at the same time: {lines}"
        assert len(set(lines)) == len(lines), f"an attempt of {name} ran twice: {lines}"
        again = 0 if self.work_lives_on else self.kills
        most = 1 + again + (name == self.id("unlucky"))
        assert self._starts(name) <= most, f"{name} was started again while it lived on: {lines}"

    def _trace(self, name: str) -> list[str]:
        path = self.archive.directory(name) / "files" / "trace"
        return path.read_text().splitlines() if path.exists() else []

    def _starts(self, name: str) -> int:
        return sum(line.startswith("start") for line in self._trace(name))

    def _check_record(self) -> None:
        """Nothing was moved before the reason for it was on record; the hand's own moves need none."""
        for state, name in (place for places in self._places().values() for place in places):
            told = {str(e["event"]) for e in self.archive.history(task_id(name)).events}
            reasons = REASONS.get(state, told)
            assert told & reasons or not reasons, (
                f"{name} is in {state.value}/, and its events: {told}"
            )

    # --- what must hold at the end

    def _check_end(self) -> None:
        where = {raw: places[0] for raw, places in self._places().items()}
        ends = {name: where[raw] for name, raw in self.texts.items()}
        twins = [ends.pop(self.id("twin") + suffix) for suffix in (".yaml", ".yml")]
        assert {state for state, _ in twins} == {State.DONE}
        ids = {task_id(name) for _, name in twins}
        assert ids == {self.id("twin"), f"{self.id('twin')}-2"}, f"the twins became {ids}"
        assert ends == {
            f"{self.id(name)}.yaml": (state, f"{self.id(name)}.yaml")
            for name, state in ENDS_OF.items()
        }
        known = {task_id(name) for _, name in where.values()}
        assert {path.name for path in self._directories()} == known, "results of no task"
        for state, name in where.values():
            self._check_ended(task_id(name), state)

    def _check_ended(self, name: str, state: State) -> None:
        history, result = self.archive.history(name), self.archive.result(name) or {}
        last = history.events[-1]
        if name == self.id("words"):
            assert {e["event"] for e in history.events} == {"refused"}
            assert result["error"] == last["error"]
            return
        if name == self.id("unwanted"):
            # Killed between hearing of its end and writing that down: the directory says it all.
            assert last["event"] == "cancelled" or self.kills, history
            assert not any(line.startswith("end") for line in self._trace(name))
            return
        assert (last["event"], last["attempt"]) == (state.value, history.attempt)
        told = (result["attempt"], result["outcome"], result["exit_code"])
        code = 3 if name == self.id("bad") else 0
        assert told == (history.attempt, state.value, code), result
        assert f"end {history.attempt}" in self._trace(name), f"{name} did not run to its end"
        if self.work_lives_on:
            assert self._starts(name) == 1 + (name == self.id("unlucky"))


REASONS = {
    State.RUNNING: {"claimed"},
    State.DONE: {"done"},
    State.FAILED: {"failed", "refused"},
}
ENDS_OF = {
    "good": State.DONE,
    "bad": State.FAILED,
    "later": State.DONE,
    "unlucky": State.DONE,
    "unwanted": State.CANCELLED,
    "words": State.FAILED,
}
Point = tuple[int, Torn | None]
House = tuple[Path, Lives]


def points_of(life: Life) -> list[Point]:
    """Give where a life like this one can be killed, in an order that a seed decides."""
    lasting = [call for call in life.calls if re.search(LASTING, str(call))]
    points: list[Point] = []
    for at, call in enumerate(lasting, start=1):
        points += [(at, torn) for torn in TORN if torn is None or call.size_bytes > 1]
    random.Random(SEED).shuffle(points)
    return points


def make_house(home: Path, **ray: Any) -> Path:
    """Make a lab's home with these settings for Ray."""
    write_settings(home, ray=ray, min_free_bytes=2**20)
    return home


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A home on a Ray that is a service, and the lives of its daemon."""
    service = RayService(tmp_path_factory.mktemp("ray"), num_cpus=4)
    try:
        service.start()
        home = make_house(tmp_path_factory.mktemp("served"), address=service.address)
        with Lives(__name__, env=service.env) as lives:
            yield home, lives
    finally:
        service.remove()


@pytest.fixture(scope="module")
def whole(served: House) -> Life:
    """A life that is not killed, on Ray as a service."""
    return Lab(*served).live_on()


def test_a_daemon_killed_once_at_any_call_ends_every_task_as_it_should(
    served: House, whole: Life
) -> None:
    points, kills = points_of(whole), 0
    for at, torn in points[:ONCE_POINTS]:
        lab = Lab(*served)
        kills += lab.live(at, torn).killed
        lab.live_on()
    print(f"crash points: daemon, killed once: {kills} of {len(points)}")


def test_a_daemon_killed_again_while_it_mends_ends_every_task_as_it_should(
    served: House, whole: Life
) -> None:
    chance, kills = random.Random(SEED + 1), 0
    for at, torn in chance.sample(points_of(whole), TWICE_POINTS):
        lab = Lab(*served)
        kills += lab.live(at, torn).killed
        kills += lab.live(chance.randint(1, 40), chance.choice(TORN)).killed
        lab.live_on()
    print(f"crash points: daemon, killed twice: {kills} in {TWICE_POINTS} labs")


@pytest.mark.skipif(not WHOLE, reason="ten seconds a life; test_kill.py kills everything at once")
def test_a_daemon_killed_together_with_its_work_begins_it_again(tmp_path: Path) -> None:
    home = make_house(tmp_path / "embedded", num_cpus=4, dashboard=False)
    chance, kills = random.Random(SEED + 2), 0
    with Lives(__name__) as lives:
        for _ in range(EMBEDDED_POINTS):
            lab = Lab(home, lives, work_lives_on=False)
            kills += lab.live(chance.randint(30, 110), chance.choice(TORN)).killed
            lab.live_on()
    print(f"crash points: daemon, killed with its work: {kills}")


@pytest.mark.parametrize(
    ("program", "at", "found"),
    [
        ("up_and_start_all_again", "^fsync running", "was started again while it lived on"),
        ("up_without_memory", "^fsync running", "have changed"),
    ],
)
def test_the_same_checks_find_what_a_careless_daemon_does(
    served: House, program: str, at: str, found: str
) -> None:
    lab = Lab(*served)
    assert lab.live(1, matching=at).killed
    with pytest.raises(AssertionError, match=found):
        lab.live(program=program)
