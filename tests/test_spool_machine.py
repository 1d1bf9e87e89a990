"""A lab at the mercy of its users, its disk and its engine: whatever they do, in whatever order, the promises hold.

Every step is something that a person, a crash or the engine does; after each the machine compares the spool
and the results with what it remembers. At the end all is mended, and everything must come to its end.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from labd.clock import to_iso, utc_now
from labd.files import rename_noreplace
from tests.stepped import Attempt, How, Lab

TORTURE = os.environ.get("LABD_TORTURE") == "1"
pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(7200 if TORTURE else 400)]

NAMES = ("a", "b", "a-2", "c")
STATES = ("pending", "running", "done", "failed", "cancelled")
DECIDED = STATES[2:]
OPEN = STATES[:2]
ENDS = {"done", "failed", "cancelled"}
SLOTS = 2.0
ROUNDS = 40
FAR_S = 400.0

INDEX = st.integers(0, 30)
STATE = st.sampled_from(STATES)
NAME = st.sampled_from([f"{name}.yaml" for name in NAMES] + ["a.yml"])
LOOKS = st.integers(0, 2)
SHAPE = st.fixed_dictionaries(
    {
        "run": st.sampled_from(["true", "true", "false"]),
        "max_retries": st.integers(0, 1),
        "num_cpus": st.sampled_from([1, 1, 2]),
        "priority": st.integers(-1, 1),
        "more": st.sampled_from(
            [*[""] * 7, *(f"after: {name}" for name in NAMES[:2]), "not_before: soon", "rnu: 1"]
        ),
    }
)
PLAIN = {"run": "true", "max_retries": 1, "num_cpus": 1, "priority": 0, "more": ""}
HOW: st.SearchStrategy[How] = st.sampled_from(
    ["dies before", "dies after", "dies in the middle of", "disk full"]
)

ran: Counter[str] = Counter()
"""Steps of all examples, by rule."""
recorded: Counter[str] = Counter()
"""Events of all examples."""
changed: Counter[bool] = Counter()
"""Steps of all examples, by whether they changed anything: a file, a record, or what is at work."""


class SpoolMachine(RuleBasedStateMachine):
    """What the files are, and how often each was asked for, beside a lab that has them.

    No rule has a precondition: hypothesis wants the same rules to be open in the same place each time,
    and with threads that race there is no saying that.
    """

    @initialize(
        survives=st.booleans(), tasks=st.lists(st.tuples(NAME, SHAPE), min_size=2, max_size=5)
    )
    def begin(self, survives: bool, tasks: list[tuple[str, dict[str, Any]]]) -> None:  # noqa: FBT001 - hypothesis names it
        self.directory = tempfile.TemporaryDirectory()
        self.lab = Lab(Path(self.directory.name), num_cpus=SLOTS, survives=survives)
        self.lab.__enter__()
        self.lab.start()
        self.lab.tick()
        self.want: Counter[bytes] = Counter()
        self.asked: Counter[bytes] = Counter()
        self.put_there: set[tuple[str, bytes]] = set()
        self.kept: dict[str, str] = {}
        self.came_to: set[tuple[str, str]] = set()
        self.deaths = 0
        self.deaths_before: dict[str, int] = {}
        self.number = 0
        self.seen: object = None
        self.touched = self.amid = False
        self.ticks_without_engine = 0
        for name, shape in tasks:
            self._write(f"pending/{name}", self._task(shape), whole=True)
        self._tick(2)

    # --- people

    @rule(name=NAME, shape=SHAPE, whole=st.booleans(), looks=LOOKS)
    def submit(self, name: str, shape: dict[str, Any], whole: bool, looks: int) -> None:  # noqa: FBT001
        ran["submit"] += 1
        self._write(f"pending/{name}", self._task(shape), whole=whole)
        self._tick(looks)

    @rule(at=INDEX, shape=SHAPE, whole=st.booleans(), looks=LOOKS)
    def replace(self, at: int, shape: dict[str, Any], whole: bool, looks: int) -> None:  # noqa: FBT001
        """Write something else in a file's place: by a rename over it, or into it."""
        ran["replace"] += 1
        self._write(self._place(at), self._task(shape), whole=whole)
        self._tick(looks)

    @rule(at=INDEX, shape=SHAPE)
    def write_anew(self, at: int, shape: dict[str, Any]) -> None:
        """Delete a file and write another of that name, to which the kernel may give the same number."""
        ran["write_anew"] += 1
        place = self._place(at)
        self._remove(place)
        self._write(place, self._task(shape), whole=False)
        self._tick(1)

    @rule(at=INDEX, state=STATE, looks=LOOKS)
    def move(self, at: int, state: str, looks: int) -> None:
        ran["move"] += 1
        self._move(at, state)
        self._tick(looks)

    @rule(at=INDEX, state=STATE, name=NAME)
    def move_and_rename(self, at: int, state: str, name: str) -> None:
        ran["move_and_rename"] += 1
        self._move(at, state, name)

    @rule(at=INDEX, via=STATE, looks=st.integers(0, 2))
    def move_out_and_back(self, at: int, via: str, looks: int) -> None:
        ran["move_out_and_back"] += 1
        place = self._place(at)
        if self.lab.path(there := f"{via}/{place.partition('/')[2]}").exists():
            return
        self._rename(place, there)
        self._tick(looks)
        if self.lab.path(there).exists() and not self.lab.path(place).exists():
            self._rename(there, place)

    @rule(at=INDEX, state=STATE, name=NAME)
    def copy(self, at: int, state: str, name: str) -> None:
        ran["copy"] += 1
        place = self._place(at)
        if not self.lab.path(f"{state}/{name}").exists():
            self._write(f"{state}/{name}", self.lab.path(place).read_bytes(), whole=True)
        self._tick(1)

    @rule(at=INDEX)
    def delete(self, at: int) -> None:
        ran["delete"] += 1
        self._remove(self._place(at))

    @rule(at=INDEX, states=st.tuples(STATE, STATE), looks=st.integers(0, 2))
    def two_movers_at_once(self, at: int, states: tuple[str, str], looks: int) -> None:
        """Two people move a file in the same moment, while the daemon looks."""
        ran["two_movers_at_once"] += 1
        place = self._place(at)
        name = place.partition("/")[2]
        if sum(other.partition("/")[2] == name for other in self.lab.places()) > 1:
            return  # a rename over another file is somebody's loss, and another rule's
        content = self.lab.path(place).read_bytes()
        self._note(content, states[0])
        self._note(content, states[1])
        won = self._race([(place, f"{state}/{name}") for state in states], looks)
        moved_by_others = looks or place.partition("/")[0] in states
        assert won <= 1 or moved_by_others, "both moved one file"

    # --- the engine

    @rule(at=INDEX)
    def finish(self, at: int) -> None:
        ran["finish"] += 1
        if attempt := self._live(at):
            self.lab.engine.finish(attempt.job.task_id)

    @rule(at=INDEX)
    def work_and_say_nothing(self, at: int) -> None:
        ran["work_and_say_nothing"] += 1
        if attempt := self._live(at):
            self.lab.engine.work(attempt.job.task_id)

    @rule(at=INDEX, times=st.integers(1, 3), waits=st.booleans())
    def lose(self, at: int, times: int, waits: bool) -> None:  # noqa: FBT001
        """Let a task's worker die, and that of its next attempt, and the next."""
        ran["lose"] += 1
        attempt = self._live(at)
        for _ in range(times):
            if attempt and attempt.job.task_id in {a.job.task_id for a in self.lab.engine.live()}:
                self.lab.engine.lose(attempt.job.task_id)
                self._tick(2)
                self.lab.clock.jump(FAR_S if waits else 0.0)
                self._tick(2)

    @rule(at=INDEX)
    def acknowledge(self, at: int) -> None:
        ran["acknowledge"] += 1
        if not self._leaving() and self._live(at):
            running = [p for p in sorted(self.lab.places()) if p.startswith("running/")]
            if running:
                self._rename(running[0], f"cancelled/{running[0].partition('/')[2]}")
                self._tick(1)
        if leaving := self._leaving():
            self.lab.engine.ack_cancel(leaving[at % len(leaving)].job.task_id)

    @rule(at=INDEX)
    def an_old_outcome_comes_late(self, at: int) -> None:
        """An attempt before the one that is at work says that it has done everything."""
        ran["an_old_outcome_comes_late"] += 1
        if not any(attempt.job.attempt > 1 for attempt in self.lab.engine.live()):
            self.lose(at, 1, waits=True)
        later = [attempt for attempt in self.lab.engine.live() if attempt.job.attempt > 1]
        if later and self.lab.engine.up:
            task_id, number = later[at % len(later)].key
            outcome = {"task_id": task_id, "attempt": number - 1, "outcome": "done"}
            self.lab.engine.repeat_old(task_id, number - 1, outcome)

    @rule(forgets=st.integers(0, 2))
    def engine_goes_down_or_comes_up(self, forgets: int) -> None:
        ran["engine_goes_down_or_comes_up"] += 1
        if self.lab.engine.up:
            self.lab.engine.go_down()
        elif self.lab.daemon is not None:
            gone = [attempt.key for attempt in self.lab.engine.live()][:forgets]
            self.lab.engine.come_up(held=lambda attempt: attempt.key not in gone)

    # --- the daemon

    @rule(ticks=st.integers(1, 4))
    def tick(self, ticks: int) -> None:
        ran["tick"] += 1
        self._tick(ticks)

    @rule(rounds=st.integers(1, 3))
    def a_quiet_while(self, rounds: int) -> None:
        """All that runs comes to its end, and what can start then starts."""
        ran["a_quiet_while"] += 1
        for _ in range(rounds):
            self._tick(2)
            for attempt in self.lab.engine.live():
                self.lab.engine.finish(attempt.job.task_id)

    @rule(names=st.lists(NAME, max_size=3))
    def tick_with_hints(self, names: list[str]) -> None:
        ran["tick_with_hints"] += 1
        self._tick(1, names)

    @rule(n=st.integers(1, 25), how=HOW, at=INDEX, ends=st.booleans())
    def tick_in_which_it_fails(self, n: int, how: How, at: int, ends: bool) -> None:  # noqa: FBT001
        ran[f"tick_in_which_it_fails: {how}"] += 1
        self._tick(0)
        self._have_one_end(at, ends)
        self.lab.calls.arm(n, how)
        self.lab.tick()
        self.deaths += self.lab.daemon is None

    @rule(n=st.integers(1, 15), at=INDEX, state=STATE, ends=st.booleans())
    def tick_in_which_somebody_moves(self, n: int, at: int, state: str, ends: bool) -> None:  # noqa: FBT001
        ran["tick_in_which_somebody_moves"] += 1
        self._have_one_end(at, ends)
        self._tick_amid(n, lambda: self._move(at, state, over=False))

    @rule(n=st.integers(1, 15), at=INDEX, shape=SHAPE, ends=st.booleans(), whole=st.booleans())
    def tick_in_which_somebody_replaces(
        self,
        n: int,
        at: int,
        shape: dict[str, Any],
        ends: bool,  # noqa: FBT001
        whole: bool,  # noqa: FBT001
    ) -> None:
        ran["tick_in_which_somebody_replaces"] += 1
        self._have_one_end(at, ends)

        def replaces() -> None:
            self._write(self._place(at), self._task(shape), whole=whole)

        self._tick_amid(n, replaces)

    @rule(gently=st.booleans())
    def daemon_ends_or_starts(self, gently: bool) -> None:  # noqa: FBT001
        ran["daemon_ends_or_starts"] += 1
        if self.lab.daemon is None:
            self.lab.start()
        elif gently:
            self.lab.stop()
        else:
            self.deaths += 1
            self.lab.crash()

    @rule(at=INDEX, state=STATE, gently=st.booleans())
    def somebody_moves_while_it_is_down(self, at: int, state: str, gently: bool) -> None:  # noqa: FBT001
        ran["somebody_moves_while_it_is_down"] += 1
        self._live(at)
        if self.lab.daemon is not None:
            self.daemon_ends_or_starts(gently)
        self._move(at, state)
        self._tick(2)

    @rule(seconds=st.sampled_from([2.0, 2.0, FAR_S, 5 * 3600.0]))
    def time_passes(self, seconds: float) -> None:
        ran["time_passes"] += 1
        self.lab.clock.jump(seconds)
        self._tick(1)

    # --- what holds after each step

    @invariant()
    def every_file_is_in_one_place_with_its_own_bytes(self) -> None:
        there = Counter(self.lab.places().values())
        lost, made = self.want - there, there - self.want
        assert not lost, f"lost: {lost}"
        assert not made, f"made up or doubled: {made}"

    @invariant()
    def the_record_is_true(self) -> None:
        ends: Counter[str] = Counter()
        came_to: set[tuple[str, str]] = set()
        for directory in sorted(self.lab.archive.root.iterdir()):
            events = self.lab.history(directory.name).events
            _check_attempts(directory.name, events)
            self._check_losses(directory.name, events)
            for end, sha256 in _ends_of(events):
                ends[sha256] += 1
                came_to.add((end, sha256))
            if any(event["event"] == "done" for event in events):
                now = _hash_of_results(directory)
                assert self.kept.setdefault(directory.name, now) == now, (
                    f"the results of {directory.name} have changed"
                )
        asked = Counter({_sha256(content): times for content, times in self.asked.items()})
        for sha256, times in ends.items():
            assert times <= asked[sha256], "ended more often than it was asked for"
        self._check_decided(came_to)
        self._check_new_ends(came_to)
        self._count_if_changed()

    def _count_if_changed(self) -> None:
        records = {d.name: self.lab.events(d.name) for d in self.lab.archive.root.iterdir()}
        work = [(attempt.key, attempt.cancelled) for attempt in self.lab.engine.live()]
        state = (self.lab.places(), records, work, self.lab.daemon is None, self.lab.engine.up)
        changed[state != self.seen] += 1
        self.seen = state

    def _check_losses(self, task_id: str, events: tuple[Mapping[str, Any], ...]) -> None:
        """Check that a lost task was tried again as often as it says; a death between two lines may give one more."""
        retries = {_sha256(content): _max_retries(content) for content in self.asked}
        sha256, losses = "", 0
        for event in events:
            if event.get("sha256", sha256) != sha256 or event["event"] in ENDS:
                losses = 0
            sha256 = str(event.get("sha256", sha256))
            losses += event["event"] == "lost"
            deaths = self.deaths - self.deaths_before.setdefault(task_id, self.deaths)
            most = 1 + deaths + retries.get(sha256, 0)
            assert losses <= most, f"{task_id} was lost {losses} times"

    def _check_decided(self, came_to: set[tuple[str, str]]) -> None:
        refused = {
            hash_ for content in self.want if b"rnu:" in content for hash_ in [_sha256(content)]
        }
        for place, content in self.lab.places().items():
            state = place.partition("/")[0]
            if state in OPEN or (state, content) in self.put_there:
                continue
            fine = (state, _sha256(content)) in came_to
            fine = fine or (state == "failed" and _sha256(content) in refused)
            assert fine, f"{place} never came to that: {content.decode()}"

    def _check_new_ends(self, came_to: set[tuple[str, str]]) -> None:
        """Check that nothing was called done whose file somebody had taken out of running/ before."""
        there = {
            _sha256(content)
            for place, content in self.lab.places().items()
            if place.startswith(("done/", "running/"))
        }
        new = {sha256 for end, sha256 in came_to - self.came_to if end == "done"}
        assert self.touched or new <= there, "done, though its file had been taken away"
        self.came_to, self.touched = came_to, False

    # --- what holds in the end

    def teardown(self) -> None:
        if not hasattr(self, "lab"):
            return
        try:
            self._come_to_rest()
            self.every_file_is_in_one_place_with_its_own_bytes()
            self.the_record_is_true()
            for directory in self.lab.archive.root.iterdir():
                recorded.update(self.lab.events(directory.name))
        finally:
            self.lab.__exit__()
            self.directory.cleanup()

    def _come_to_rest(self) -> None:
        if self.lab.daemon is None:
            self.lab.start()
        if not self.lab.engine.up:
            self.lab.engine.come_up()
        for _ in range(ROUNDS):
            self._tick(3)
            for attempt in self.lab.engine.live():
                self.lab.engine.finish(attempt.job.task_id)
            self.lab.clock.jump(FAR_S)
            self._tick(3)
            if not self.lab.engine.live() and not self._stuck():
                break
        assert not self.lab.engine.live(), "some work never ends"
        assert not self._stuck(), f"stuck: {self._stuck()} of {sorted(self.lab.places())}"

    def _stuck(self) -> list[str]:
        """Give what waits for nothing: in running/ without an attempt, or in pending/ with all that it waits for done."""
        done = {
            Path(name).stem for place in self.lab.places() if (name := place).startswith("done/")
        }
        stuck = []
        for place, content in self.lab.places().items():
            state = place.partition("/")[0]
            after = [ln[7:].strip() for ln in content.decode().splitlines() if ln[:7] == "after: "]
            if state == "running" or (state == "pending" and set(after) <= done):
                stuck.append(place)
        return stuck

    # --- how it is done

    def _tick(self, times: int, hints: Sequence[str] = ()) -> None:
        """Tick; a daemon that is down is started for it, and an engine that was down for long comes up."""
        if self.lab.daemon is None:
            self.lab.start()
        for _ in range(times):
            self.ticks_without_engine += not self.lab.engine.up
            if self.ticks_without_engine > 1:
                self.lab.engine.come_up()
                self.ticks_without_engine = 0
            self.lab.tick(hints)

    def _tick_amid(self, n: int, somebody: Callable[[], None]) -> None:
        self.amid = True
        self._tick(0)
        self.lab.calls.arm(n, "somebody", somebody)
        self.lab.tick()
        self.amid = False

    def _task(self, shape: Mapping[str, Any]) -> bytes:
        self.number += 1
        keys = {key: value for key, value in shape.items() if key not in {"run", "more"}}
        # It may start in a minute, by a clock that the machine puts forward.
        more = shape["more"].replace("soon", f"'{to_iso(utc_now() + timedelta(minutes=1))}'")
        lines = ["kind: command", f"run: '{shape['run']}'", more]
        lines += [f"{key}: {value}" for key, value in keys.items()]
        return "\n".join(
            [*filter(None, lines), f"# {self.number} {'.' * (self.number % 7)}", ""]
        ).encode()

    def _live(self, at: int) -> Attempt | None:
        """Give something that is at work; where there is nothing, a task is dropped first."""
        if not self.lab.engine.live():
            self._tick(2)
        if not self.lab.engine.live():
            name = NAMES[at % len(NAMES)]
            if not self.lab.path(f"pending/{name}.yaml").exists():
                self._write(f"pending/{name}.yaml", self._task(PLAIN), whole=True)
            self.lab.clock.jump(FAR_S)
            self._tick(3)
        live = self.lab.engine.live()
        return live[at % len(live)] if live else None

    def _leaving(self) -> list[Attempt]:
        return [attempt for attempt in self.lab.engine.live() if attempt.cancelled]

    def _have_one_end(self, at: int, ends: bool) -> None:  # noqa: FBT001 - as hypothesis chose
        if ends and (attempt := self._live(at)):
            self.lab.engine.finish(attempt.job.task_id)

    def _place(self, at: int) -> str:
        """Give the place of one of the files; where there is none, a task is dropped first."""
        if not self.lab.places():
            self._write("pending/a.yaml", self._task(PLAIN), whole=True)
        places = sorted(self.lab.places())
        return places[at % len(places)]

    def _note(self, content: bytes, state: str) -> None:
        """Remember that somebody put this there."""
        self.touched = True
        if state in OPEN or self.amid:
            # What somebody slips in amid a move of the daemon's may be put back to pending/.
            self.asked[content] += 1
        if state not in OPEN:
            self.put_there.add((state, content))

    def _remove(self, place: str) -> None:
        path = self.lab.path(place)
        self.want[path.read_bytes()] -= 1
        self.touched = True
        path.unlink()

    def _write(self, place: str, content: bytes, *, whole: bool) -> None:
        path = self.lab.path(place)
        if path.exists():
            self.want[path.read_bytes()] -= 1
        if whole:
            new = self.lab.home.root / "new"
            new.write_bytes(content)
            new.rename(path)
        else:
            path.write_bytes(content)
        self.want[content] += 1
        self._note(content, place.partition("/")[0])

    def _move(self, at: int, state: str, name: str = "", *, over: bool = True) -> None:
        place = self._place(at)
        target = f"{state}/{name or place.partition('/')[2]}"
        if target == place:
            target = f"{STATES[STATES.index(state) - 1]}/{place.partition('/')[2]}"
        if target != place and (over or not self.lab.path(target).exists()):
            self._rename(place, target)

    def _rename(self, place: str, target: str) -> None:
        content = self.lab.path(place).read_bytes()
        if self.lab.path(target).exists():
            self.want[self.lab.path(target).read_bytes()] -= 1
        self.lab.move(place, target)
        self._note(content, target.partition("/")[0])

    def _race(self, moves: list[tuple[str, str]], looks: int) -> int:
        """Do the moves at once, and give how many found their file."""
        barrier = threading.Barrier(len(moves) + 1)
        won: list[str] = []

        def mover(source: str, target: str) -> None:
            barrier.wait(10)
            try:
                rename_noreplace(self.lab.path(source), self.lab.path(target))
            except (FileNotFoundError, FileExistsError):
                return
            won.append(target)

        threads = [threading.Thread(target=mover, args=pair) for pair in moves]
        for thread in threads:
            thread.start()
        barrier.wait(10)
        self._tick(looks)
        for thread in threads:
            thread.join(10)
        return len(won)


def _max_retries(content: bytes) -> int:
    words = content.split()
    return int(words[words.index(b"max_retries:") + 1])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_attempts(task_id: str, events: tuple[Mapping[str, Any], ...]) -> None:
    """Check that attempts follow each other, each with one fate before the next begins."""
    claims = [event["attempt"] for event in events if event["event"] == "claimed"]
    assert claims == list(range(1, len(claims) + 1)), f"{task_id}: attempts {claims}"
    before, attempt, seen = "", 0, Counter[str]()
    for event in events:
        name = str(event["event"])
        if name == "claimed":
            assert before != "done", f"{task_id} is done, and was claimed again"
            assert before != "claimed", f"{task_id}: nothing became of attempt {attempt}"
            attempt = int(event["attempt"])
            seen.clear()
        elif event.get("attempt"):
            assert event["attempt"] == attempt, f"{task_id}: the end of an old attempt"
            seen["end" if name in ENDS else name] += 1
            assert max(seen.values()) == 1, f"{task_id}: twice of one attempt: {dict(seen)}"
        before = name


def _ends_of(events: tuple[Mapping[str, Any], ...]) -> list[tuple[str, str]]:
    """Give each end and the hash of what came to it."""
    sha256, ends = "", []
    for event in events:
        sha256 = str(event.get("sha256", sha256))
        if event["event"] in ENDS:
            ends.append((str(event["event"]), sha256))
    return ends


def _hash_of_results(directory: Path) -> str:
    files = [directory / "result.json", *sorted((directory / "files").rglob("*"))]
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path}\0".encode())
        whole.update(path.read_bytes() if path.is_file() else b"")
    return whole.hexdigest()


def test_whatever_happens_the_promises_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """By default some hundred steps, always the same; with LABD_TORTURE=1 20,000 and more, never the same."""
    for counter in (ran, recorded, changed):
        counter.clear()
    began_s = time.monotonic()
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(
            max_examples=500 if TORTURE else 16,
            stateful_step_count=50 if TORTURE else 40,
            derandomize=not TORTURE,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with capsys.disabled():
        took_s = time.monotonic() - began_s
        print(f"\n{sum(ran.values())} steps in {took_s:.0f} s: {json.dumps(dict(ran))}")
        print(f"{sum(recorded.values())} events: {json.dumps(dict(recorded))}")
        print(f"{changed[True]} steps changed something, {changed[False]} nothing")
    assert sum(ran.values()) > (20_000 if TORTURE else 300)
