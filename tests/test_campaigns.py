"""Campaigns: what a file may say, when it fires on every edge of the clock, and that nothing is fired twice."""

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labd.campaigns import (
    Campaign,
    Library,
    Memory,
    Queue,
    Remembered,
    adding,
    begin,
    decide,
    drafts,
    parse_campaign,
    submit,
    upcoming,
)
from labd.campaigns.firing import memory_from_json
from labd.campaigns.schedule import firings, last_firing
from labd.daemon.asked import Asked
from labd.errors import ConfigError
from labd.files import locked
from labd.lab import Lab as SeenLab
from labd.settings import Home
from labd.spool import Spool
from labd.task import State, parse_task
from tests.factories import task_text
from tests.stepped import Lab
from tests.test_cli import labd

BERLIN = ZoneInfo("Europe/Berlin")
SHIPPED = Path(__file__).parent.parent / "config" / "campaigns"
FRIDAY = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


def campaign(text: str, name: str = "camp") -> Campaign:
    return parse_campaign(text.encode(), name, f"{name}.yaml")


def problems(text: str, name: str = "camp") -> str:
    with pytest.raises(ConfigError) as caught:
        campaign(text, name)
    return str(caught.value)


HOURLY = """
schedule: "0 * * * *"
task: {template: digits, researcher: sweep}
matrix: {seed: [1, 2, 3]}
limits: {max_running: 10}
"""


# --- files


def test_a_matrix_makes_a_task_of_each_combination_with_the_campaigns_label_and_priority() -> None:
    one = campaign(
        """
schedule: "0 * * * *"
priority: 7
intensity: heavy
task: {template: digits, labels: [mine]}
matrix: {model: [qwen3:8b, null], seed: [1, 2]}
"""
    )
    tasks = [parse_task(d.text.encode(), d.name).spec for d in drafts(one, one.steps[0], FRIDAY)]
    assert [(t.model, t.seed, t.num_ideas) for t in tasks] == [
        ("qwen3:8b", 1, 8), ("qwen3:8b", 2, 8), (None, 1, None), (None, 2, None),
    ]  # fmt: skip
    assert {(t.labels, t.priority) for t in tasks} == {(("mine", "campaign:camp"), 7)}


WRONG = {
    "schedule: every day": "camp.yaml:1:1: schedule: found 'every day'; wanted: a cron line of five fields",
    "schedule: '0 0 31 2 *'\n": "camp.yaml:1:1: schedule",
    "schedule: '0 * * * *'\ntime_zone: Mars/Olympus\n": "camp.yaml:2:1: time_zone: found 'Mars/Olympus'; wanted: a time zone",
    "schedule: '0 * * * *'\ntask: {template: digits, sed: 3}\n": "camp.yaml:2:26: task.sed: unknown key; wanted: a key of a task, such as seed",
    "schedule: '0 * * * *'\ntask: {template: digits}\nmatrix: {seed: [1, -1]}\n": "camp.yaml:3:20: matrix.seed.1: found -1",
    "schedule: '0 * * * *'\ntask: {template: d}\nmatrix: {priority: [1]}\n": "camp.yaml:3:10: matrix.priority",
    "steps:\n  a: {task: {template: d}}\n": "camp.yaml:2:3: steps.a.schedule: the key is missing",
    "steps:\n  a: {schedule: '0 * * * *', task: {template: 3}}\n": "camp.yaml:2:37: steps.a.task.template: found 3",
    "enabled: true\n": "a `schedule`, `steps` or `adaptive`",
    "schedule: '0 * * * *'\nmised: once\n": "camp.yaml:2:1: mised: unknown key",
    "schedule: '0 * * * *'\n": "a task that is not whole; wanted: a template",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_file_line_and_column(text: str) -> None:
    assert WRONG[text] in problems(text)


def test_a_name_that_could_be_taken_for_another_campaigns_is_refused() -> None:
    for name in ("a--b", "A", "a b", "", "fill", "x" * 61):
        if name != "fill":
            assert "wanted: a name" in problems(HOURLY, name)
        steps = yaml.safe_dump(
            {"steps": {name: {"schedule": "0 * * * *", "task": {"template": "d"}}}}
        )
        assert "wanted: a name" in problems(steps)


def test_a_matrix_of_too_many_tasks_is_refused_at_once() -> None:
    text = yaml.safe_dump(
        {
            "schedule": "0 * * * *",
            "task": {"template": "d"},
            "matrix": {key: list(range(1, 1000)) for key in ("seed", "num_ideas", "max_runs")},
        }
    )
    assert "997002999 combinations; wanted: at most 10000" in problems(text)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda p: p.stem)
def test_what_is_shipped_is_valid_and_starts_nothing_by_itself(path: Path, home: Home) -> None:
    found = SeenLab(home).check_campaign(path)
    assert not found.spec.enabled


def test_the_weekend_has_its_five_instants() -> None:
    path = SHIPPED / "weekend-marathon.yaml"
    marathon = parse_campaign(path.read_bytes(), path.stem, path.name)
    assert [(f"{at:%a %H:%M}", step.name) for at, step in upcoming(marathon, FRIDAY)] == [
        ("Fri 18:00", "prepare"),
        ("Sat 08:00", "boost"),
        ("Sat 20:00", "deep-dive"),
        ("Sun 10:00", "sweep"),
        ("Sun 22:00", "wind-down"),
    ]
    contents = {step.name: json.dumps(step.combinations) for step in marathon.steps}
    assert len(set(contents.values())) == 5


def test_a_directory_is_read_again_as_it_changes(tmp_path: Path) -> None:
    library = Library(tmp_path / "campaigns")
    assert library.refresh() == []
    library.directory.mkdir()
    file = library.directory / "one.yaml"
    file.write_text(HOURLY)
    assert library.refresh() == ["one.yaml"]
    assert list(library.campaigns) == ["one"]
    assert library.refresh() == []
    file.write_text("schedule: never\n")
    library.refresh()
    assert not library.campaigns
    assert "one.yaml:1:1" in library.problems["one.yaml"]
    file.unlink()
    library.refresh()
    assert not library.problems


# --- the clock


def local(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def shown(cron: str, after: str, count: int) -> list[str]:
    found = firings(cron, BERLIN, local(after))
    return [
        at.astimezone(BERLIN).isoformat(timespec="minutes")
        for _, at in zip(range(count), found, strict=False)
    ]


def test_a_time_that_the_clocks_skip_comes_when_they_have_jumped() -> None:
    assert shown("30 2 * * *", "2026-03-28T12:00+01:00", 2) == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]


def test_a_time_that_the_clocks_show_twice_comes_once() -> None:
    assert shown("30 2 * * *", "2026-10-24T12:00+02:00", 2) == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]


def test_asked_in_the_hour_that_comes_twice_nothing_comes_from_the_past() -> None:
    assert shown("30 2 * * *", "2026-10-25T02:10+01:00", 1) == ["2026-10-26T02:30+01:00"]


def test_an_hourly_line_misses_no_hour_and_doubles_none_on_either_edge() -> None:
    for day in ("2026-03-28T22:00+01:00", "2026-10-24T22:00+02:00"):
        found = [local(text) for text in shown("0 * * * *", day, 8)]
        assert {b - a for a, b in itertools.pairwise(found)} == {timedelta(hours=1)}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["30 2 * * *", "0 3 * * *", "*/20 * * * *", "0 */2 * * *", "15 1-4 * * sat,sun"]),
    st.sampled_from(["2026-03-28T20:00+01:00", "2026-10-24T20:00+02:00", "2026-07-04T20:00+02:00"]),
    st.integers(0, 24 * 3600),
)  # fmt: skip
@example("30 2 * * *", "2026-10-24T20:00+02:00", 36_000)
def test_the_last_firing_is_the_last_of_all_that_came(cron: str, start: str, seconds: int) -> None:
    began = local(start) - timedelta(days=9)
    now = local(start) + timedelta(seconds=seconds)
    *_, last = _until(firings(cron, BERLIN, began), now)
    assert last_firing(cron, BERLIN, now) == last


def _until(found: Iterator[datetime], now: datetime) -> Iterator[datetime]:
    for at in found:
        if at > now:
            return
        yield at


@pytest.mark.parametrize("day", ["2026-03-28T20:00+01:00", "2026-10-24T20:00+02:00"])
def test_over_a_night_on_which_the_clocks_change_each_step_fires_once_however_often_it_is_asked(
    day: str,
) -> None:
    one = campaign(
        "time_zone: Europe/Berlin\nsteps:\n  a: {schedule: '30 2 * * *', task: {template: digits}}\n"
    )
    memory, names, now = begin(one, None, local(day)), [], local(day)
    for _ in range(14 * 60):
        decision = decide(one, memory, Queue(), now)
        names += [draft.name for draft in decision.drafts]
        memory, now = decision.memory, now + timedelta(minutes=1)
    assert len(names) == 1


# --- firing


def test_a_new_campaign_makes_up_for_nothing() -> None:
    one = campaign(HOURLY)
    memory = begin(one, None, FRIDAY)
    assert not decide(one, memory, Queue(), FRIDAY).drafts
    later = decide(one, memory, Queue(), FRIDAY + timedelta(hours=1))
    assert [draft.name for draft in later.drafts] == [
        f"camp--20261127T130000Z-{number}.yaml" for number in (1, 2, 3)
    ]
    assert not decide(one, later.memory, Queue(), FRIDAY + timedelta(hours=1, minutes=9)).drafts


@pytest.mark.parametrize(
    ("keys", "hours", "fired"),
    [("", 5.5, 3), ("missed: skip", 5.5, 0), ("missed_within: 10m", 5.5, 0), ("missed: skip", 5.01, 3)],
)  # fmt: skip
def test_of_firings_that_were_missed_the_last_runs_once_or_none_does(
    keys: str, hours: float, fired: int
) -> None:
    one = campaign(f"{HOURLY}{keys}\n")
    now = FRIDAY + timedelta(hours=hours)
    decision = decide(one, begin(one, None, FRIDAY), Queue(), now)
    assert len(decision.drafts) == fired
    assert [note.event for note in decision.notes] == [
        "campaign.fired" if fired else "campaign.skipped"
    ]
    assert not decide(one, decision.memory, Queue(), now).drafts


def test_nothing_fires_from_until_on() -> None:
    one = campaign(f"{HOURLY}until: 2026-11-27T13:00:00Z\n")
    assert not decide(one, begin(one, None, FRIDAY), Queue(), FRIDAY + timedelta(hours=3)).drafts
    assert upcoming(one, FRIDAY) == []


def test_what_does_not_fit_into_the_queue_follows_as_there_is_room() -> None:
    one = campaign(
        "schedule: '0 * * * *'\ntask: {template: d}\nmatrix: {seed: [1, 2, 3, 4, 5]}\n"
        "limits: {max_queued: 2, max_running: 3}\n"
    )
    now, memory = FRIDAY + timedelta(hours=1), begin(one, None, FRIDAY)
    first = decide(one, memory, Queue(), now)
    ids = [draft.id for draft in first.drafts]
    assert len(ids) == 2
    assert not decide(one, first.memory, Queue(ids), now).drafts
    second = decide(one, first.memory, Queue((), ids), now)
    assert len(second.drafts) == 1, "never more than max_running of it wait and run"
    third = decide(one, second.memory, Queue(), now)
    assert [d.id[-1] for d in (*first.drafts, *second.drafts, *third.drafts)] == list("12345")
    assert not third.memory.opened


def test_the_intensity_says_how_many_tasks_of_a_step_are_there_at_once() -> None:
    for intensity, parallel in {"light": 1, "medium": 2, "heavy": 4, "extreme": 16}.items():
        one = campaign(
            f"schedule: '0 * * * *'\ntask: {{template: d}}\nintensity: {intensity}\n"
            f"matrix: {{seed: {list(range(20))}}}\n"
        )
        found = decide(one, begin(one, None, FRIDAY), Queue(), FRIDAY + timedelta(hours=1))
        assert len(found.drafts) == parallel


def test_over_its_gpu_hours_a_campaign_adds_nothing_and_goes_on_later() -> None:
    one = campaign(HOURLY.replace("max_running: 10", "max_gpu_hours: 10"))
    now = FRIDAY + timedelta(hours=1)
    held = decide(one, begin(one, None, FRIDAY), Queue(), now, gpu_hours=10.0)
    assert not held.drafts
    assert decide(one, held.memory, Queue(), now, gpu_hours=9.0).drafts


def test_what_waits_of_a_campaign_is_read_once_and_again_where_it_has_changed(home: Home) -> None:
    spool = Spool(home.spool)
    asked = Asked(spool)
    path = home.spool / "pending" / "camp--1.yaml"
    path.write_text(task_text(num_gpus=1))

    def gpus(state: State = State.PENDING) -> list[float]:
        ids = {one: ["camp--1"] if one is state else [] for one in State}
        found = asked.keys_of("camp", ids[State.PENDING], ids[State.RUNNING])
        return [keys["num_gpus"] for keys in found]

    assert gpus() == [1]
    was = path.stat()
    path.write_text(task_text(num_gpus=2))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert gpus() == [1], "nothing says that it has changed, so it was not read again"
    spool.move(path.name, State.PENDING, State.RUNNING)
    assert gpus(State.RUNNING) == [1], "nor when it began to run"
    os.utime(home.spool / "running" / path.name)
    assert gpus(State.RUNNING) == [2]
    (home.spool / "running" / path.name).write_text("no task")
    assert gpus(State.RUNNING) == gpus() == []


def test_winding_down_drops_what_is_open_and_stops_the_adaptive_queue() -> None:
    one = campaign(
        """
adaptive: {}
task: {template: d}
matrix: {seed: [1, 2, 3, 4, 5]}
steps:
  go: {schedule: "0 12 * * *", intensity: light}
  stop: {schedule: "0 14 * * *", wind_down: true, report: true}
"""
    )
    start = FRIDAY - timedelta(minutes=1)
    going = decide(one, begin(one, None, start), Queue(), FRIDAY)
    assert going.memory.opened
    assert adding(one, FRIDAY)
    two = FRIDAY + timedelta(hours=2)
    over = decide(one, going.memory, Queue(), two)
    assert over.wind_down
    assert not over.memory.opened
    assert not over.drafts
    assert not adding(one, two)
    assert adding(one, FRIDAY + timedelta(days=1))


def test_a_clock_that_was_ahead_once_silences_no_step() -> None:
    one, hour = campaign(HOURLY), timedelta(hours=1)
    ahead = decide(one, begin(one, None, FRIDAY), Queue(), FRIDAY + timedelta(days=400))
    assert len(ahead.drafts) == 3
    mended = decide(one, ahead.memory, Queue(), FRIDAY + timedelta(minutes=10))
    assert not mended.drafts
    assert [note.event for note in mended.notes] == ["campaign.clock"]
    fired = decide(one, mended.memory, Queue(), FRIDAY + hour)
    assert [note.facts["instant"] for note in fired.notes] == ["2026-11-27T13:00:00.000Z"]
    assert len(fired.drafts) == 3
    again = begin(one, memory_from_json(json.loads(json.dumps(fired.memory.as_json()))), FRIDAY)
    assert again == fired.memory
    assert not decide(one, again, Queue(), FRIDAY + hour).drafts


def test_a_clock_that_is_behind_for_a_while_fires_nothing_again() -> None:
    one = campaign(HOURLY)
    fired = decide(one, begin(one, None, FRIDAY), Queue(), FRIDAY + timedelta(hours=1))
    behind = decide(one, fired.memory, Queue(), FRIDAY - timedelta(days=3000, minutes=1))
    assert not behind.drafts
    late = FRIDAY + timedelta(hours=1, minutes=2)
    assert not decide(one, behind.memory, Queue(), late).drafts
    back = decide(one, fired.memory, Queue(), FRIDAY + timedelta(minutes=59))
    assert back.memory == fired.memory, "clocks are set by little"


names = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, moments), st.dictionaries(names, st.floats(0, 1e6)))
def test_what_is_remembered_comes_back(
    through: dict[str, datetime], picked: dict[str, float]
) -> None:
    to_ms = {n: at.replace(microsecond=at.microsecond // 1000 * 1000) for n, at in through.items()}
    memory = Memory(through=to_ms, picked={n: round(p, 6) for n, p in picked.items()})
    assert memory_from_json(json.loads(json.dumps(memory.as_json()))) == memory


# --- once and only once


def test_two_who_submit_the_same_firing_at_once_make_each_task_once(home: Home) -> None:
    one = campaign(HOURLY)
    spool, found = Spool(home.spool), drafts(one, one.steps[0], FRIDAY)
    made: list[str] = []

    def fire() -> None:
        made.extend(
            submit(
                found,
                lock=home.run_dir / "campaigns.lock",
                known=lambda task: bool(spool.where(task)),
                put=spool.put,
            )
        )

    threads = [threading.Thread(target=fire) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(draft.id for draft in found)


COMMANDS = """
schedule: "0 * * * *"
task: {kind: command, run: "true"}
matrix: {title: [a, b]}
limits: {max_running: 10}
"""


@pytest.fixture
def stepped(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        (tmp_path / "config" / "campaigns").mkdir(parents=True)
        (tmp_path / "config" / "campaigns" / "camp.yaml").write_text(COMMANDS)
        # At half past, so that no test comes upon a firing more, just before a full hour.
        lab.clock.jump_wall(1800 - time.time() % 3600)
        lab.start()
        lab.settle()
        yield lab


def ids(lab: Lab) -> list[str]:
    return sorted(place.partition("/")[2] for place in lab.places())


@pytest.mark.sandbox
def test_the_daemon_fires_and_a_lost_memory_fires_nothing_again(stepped: Lab) -> None:
    stepped.clock.jump(3600)
    stepped.settle()
    first = ids(stepped)
    assert len(first) == 2
    for task in stepped.engine.live():
        stepped.engine.finish(task.job.task_id)
    stepped.settle()
    assert len(stepped.spool.names(State.DONE)) == 2
    remembered = Remembered(stepped.home.run_dir / "campaigns.json")
    before = {
        name: replace(memory, through={"": memory.through[""] - timedelta(hours=1)})
        for name, memory in remembered.read().items()
    }
    stepped.stop()
    remembered.write(before)
    stepped.start()
    stepped.clock.jump(10)
    stepped.settle()
    assert ids(stepped) == first


def test_a_lock_that_somebody_holds_delays_a_firing_and_not_the_daemon(
    stepped: Lab, tmp_path: Path
) -> None:
    stepped.clock.jump(3600)
    began_s = time.monotonic()
    with locked(stepped.home.run_dir / "campaigns.lock"):
        stepped.tick()
        assert ids(stepped) == []
    assert stepped.daemon is not None
    again_s = stepped.daemon._campaigning.next_s
    assert again_s < began_s + 5, "sooner than in its usual time, which a wait would have used up"
    stepped.clock.jump(1)
    stepped.tick()
    assert len(ids(stepped)) == 2
    assert "campaign.trouble" not in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("call", range(1, 30, 2))
def test_a_daemon_killed_while_it_fires_has_each_task_once_in_the_end(
    stepped: Lab, call: int
) -> None:
    stepped.clock.jump(3600)
    stepped.calls.arm(call, "dies after")
    stepped.tick()
    if stepped.daemon is None:
        stepped.start()
    stepped.clock.jump(10)
    stepped.settle(6)
    found = ids(stepped)
    assert len(found) == len(set(found)) == 2, found
    assert {name[-6:] for name in found} == {"1.yaml", "2.yaml"}


def test_an_unreadable_memory_is_kept_aside_and_nothing_is_made_up_for(stepped: Lab) -> None:
    stepped.stop()
    path = stepped.home.run_dir / "campaigns.json"
    path.write_text("{torn")
    stepped.clock.jump(3600)
    stepped.start()
    stepped.settle()
    assert ids(stepped) == []
    assert path.with_suffix(".unreadable").read_text() == "{torn"


def test_winding_down_cancels_what_waits_of_it_and_nothing_else(stepped: Lab) -> None:
    text = """
steps:
  go: {schedule: "0 * * * *", intensity: heavy, task: {kind: command, run: "true", num_cpus: 2}, matrix: {title: [a, b]}}
  stop: {schedule: "30 * * * *", wind_down: true}
"""
    (stepped.home.campaigns / "camp.yaml").write_text(text)
    stepped.clock.jump(10)
    stepped.settle()
    stepped.clock.jump(3601 - time.time() % 3600)
    stepped.settle()
    stranger = stepped.path("pending/camp--mine.yaml")
    stranger.write_text("kind: command\nrun: 'true'\nnum_cpus: 2\n")
    assert len(stepped.engine.live()) == 1
    stepped.clock.jump(1800)
    stepped.settle()
    assert len(stepped.spool.names(State.CANCELLED)) == 1
    assert len(stepped.engine.live()) == 1, "what runs goes on"
    assert stranger.name in stepped.spool.names(State.PENDING)


# --- the command line


def test_the_next_firings_are_listed_and_a_step_can_be_tried_and_started(home: Home) -> None:
    home.campaigns.mkdir(parents=True)
    steps = (SHIPPED / "weekend-marathon.yaml").read_text()
    (home.campaigns / "weekend.yaml").write_text(steps.replace("enabled: false", "enabled: true"))
    (home.campaigns / "bad.yaml").write_text("schedule: no\n")
    listed = json.loads(labd(home.root, "campaigns", "--json").stdout)
    told = {one["name"]: one for one in listed}
    assert "bad.yaml:1:1" in told["bad"]["problem"]
    assert {firing["step"] for firing in told["weekend"]["next"]} == {
        "prepare", "boost", "deep-dive", "sweep", "wind-down",
    }  # fmt: skip
    dry = labd(home.root, "campaign", "run", "weekend", "--step", "boost", "--dry-run")
    texts = [text for text in dry.stdout.split("--- ") if text]
    assert len(texts) == 4
    assert parse_task(texts[0].encode(), "x.yaml").spec.seed == 11
    assert Spool(home.spool).count(State.PENDING) == 0
    done = labd(home.root, "campaign", "run", "weekend", "--step", "boost")
    assert len(done.stdout.split()) == 4
    assert Spool(home.spool).count(State.PENDING) == 4
    refused = labd(home.root, "campaign", "run", "weekend")
    assert refused.returncode == 3
    assert "--step: prepare, boost, deep-dive, sweep" in refused.stderr


def test_check_takes_campaigns_and_looks_at_what_their_tasks_name(home: Home) -> None:
    home.campaigns.mkdir(parents=True)
    path = home.campaigns / "camp.yaml"
    path.write_text(HOURLY)
    assert labd(home.root, "check", str(path)).returncode == 0
    path.write_text(HOURLY.replace("digits", "no-such"))
    done = labd(home.root, "check", str(path))
    assert done.returncode == 1
    assert "no-such" in done.stdout
    assert "camp.yaml" in done.stdout
