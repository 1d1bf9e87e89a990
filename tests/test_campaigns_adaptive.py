"""The adaptive queue: levels that do not flutter, arms that never starve, and a whole week of it."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.campaigns import (
    BoundedLines,
    Capacity,
    Decision,
    Lab,
    Level,
    Load,
    Memory,
    Outcome,
    Profile,
    Queue,
    Room,
    Thresholds,
    classify,
    fill,
    free_cpu_load,
    learn,
    outcome_of,
    parse_campaign,
    read_domains,
)
from labd.campaigns.load import PartOfDay, concurrency, part_of_day, slots_for
from labd.campaigns.mix import Pick, arm_of, payoff_of, pick, shares
from labd.campaigns.probes import Probe
from labd.errors import ConfigError
from labd.settings import Home, LoadSettings, Settings
from labd.task import State, parse_task
from tests import stepped
from tests.campaign_week import Week
from tests.factories import write_settings

LIMITS = Thresholds(*LoadSettings().levels(), calm_s=60.0)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def after(*loads: Load, every_s: float = 5.0) -> list[Level]:
    """Give the level after each reading."""
    levels, capacity = [], None
    for number, load in enumerate(loads):
        capacity = classify(capacity, load, number * every_s, LIMITS)
        levels.append(capacity.level)
    return levels


# --- levels


@pytest.mark.parametrize(
    ("load", "level"),
    [
        (Load(), Level.NORMAL),
        (Load(cpu=1.0, memory=0.84), Level.NORMAL),
        (Load(memory=0.85), Level.HIGH),
        (Load(memory=0.95), Level.CRITICAL),
        (Load(disk=0.96), Level.CRITICAL),
        (Load(temperature_c=90), Level.CRITICAL),
        (Load(gpu=1.0, gpu_memory=1.0, queue=50.0), Level.HIGH),
    ],
)
def test_the_worst_reading_says_the_level(load: Load, level: Level) -> None:
    assert after(load) == [level]


def test_a_level_says_what_it_is_because_of() -> None:
    found = classify(None, Load(memory=0.97, temperature_c=91), 0.0, LIMITS)
    assert (
        found.because == "memory 97 %, critical from 95 %; temperature 91 °C, critical from 90 °C"
    )


def test_a_reading_that_swings_around_a_threshold_changes_the_level_once() -> None:
    swings = [Load(memory=0.95 + 0.02 * math.sin(n)) for n in range(500)]
    assert after(*swings)[2:] == [Level.CRITICAL] * 498


def test_a_level_falls_only_after_a_calm_time() -> None:
    loads = [Load(memory=0.96), *[Load(memory=0.5)] * 14]
    assert after(*loads) == [*[Level.CRITICAL] * 13, Level.NORMAL, Level.NORMAL]


def test_one_short_burst_of_cpu_is_not_critical_and_a_lasting_one_is() -> None:
    quiet, burst = [Load(cpu=0.1)] * 5, [Load(cpu=1.0)] * 20
    assert set(after(*quiet, *burst, *quiet)) == {Level.NORMAL}
    assert set(after(*quiet, *burst * 2)) == {Level.NORMAL, Level.HIGH}
    assert after(*quiet, *burst * 5)[-1] is Level.CRITICAL


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_nothing_makes_a_level_lower_than_what_is_read_now(readings: list[float]) -> None:
    for level, memory in zip(after(*(Load(memory=m) for m in readings)), readings, strict=True):
        assert level >= (Level.CRITICAL if memory >= 0.95 else Level.HIGH if memory >= 0.85 else 0)


def test_cpus_that_the_lab_has_given_out_are_meant_to_be_busy() -> None:
    assert free_cpu_load(1.0, 8, 8) is None
    assert free_cpu_load(0.5, 8, 4) == pytest.approx(0.0)
    assert free_cpu_load(1.0, 8, 4) == pytest.approx(1.0)
    assert free_cpu_load(0.75, 8, 4) == pytest.approx(0.5)


def test_concurrency_goes_with_the_level_and_what_fits() -> None:
    rooms = [Room(16, 2), Room(8, 0), Room(3, 1)]
    assert slots_for(rooms, 2, 1) == 3
    assert slots_for(rooms, 4, 0) == 6
    assert slots_for(rooms, 1, 0.25) == 8 + 3
    assert [concurrency(level, 6) for level in Level] == [6, 3, 0]
    assert concurrency(Level.NORMAL, 6, most=2) == 2


@pytest.mark.parametrize(
    ("local", "part"),
    [
        ("2026-11-24T07:59", PartOfDay.NIGHT), ("2026-11-24T08:00", PartOfDay.OFFICE),
        ("2026-11-24T18:00", PartOfDay.EVENING), ("2026-11-24T22:00", PartOfDay.NIGHT),
        ("2026-11-28T12:00", PartOfDay.EVENING),
    ],
)  # fmt: skip
def test_the_part_of_the_day(local: str, part: PartOfDay) -> None:
    assert part_of_day(datetime.fromisoformat(local).replace(tzinfo=UTC)) is part


# --- what is learnt


def ended(arm: str, state: str = "done", **over: object) -> Outcome:
    return Outcome(**{"task_id": "t", "arm": arm, "campaign": "", "state": state, "ended_at_s": 0.0, **over})  # type: ignore[arg-type]  # fmt: skip


def test_what_a_task_pays() -> None:
    assert payoff_of(ended("a", "failed", verdict="improved")) == 0
    assert payoff_of(ended("a", verdict="no_improvement")) == 0.2
    assert payoff_of(ended("a", verdict="improved")) == 1
    assert payoff_of(ended("a", verdict="improved", effect_size=-1.5)) == 1.5
    assert payoff_of(ended("a", verdict="improved", effect_size=40.0)) == 2


def test_a_profile_begins_with_what_is_expected_and_goes_over_to_what_happened() -> None:
    seeds = {"digits": Profile(duration_s=600, success=0.9, payoff=0.5)}
    arm = arm_of("digits", None)
    few = learn([ended(arm, wall_s=60, verdict="improved")], seeds)[arm]
    many = learn([ended(arm, wall_s=60, verdict="improved")] * 200, seeds)[arm]
    assert few.duration_s == pytest.approx((2 * 600 + 60) / 3)
    assert 60 < many.duration_s < 100
    assert few.payoff < many.payoff < 1
    changed = [ended(arm, "failed")] * 200 + [ended(arm, verdict="improved")] * 60
    assert learn(changed, seeds)[arm].success > 0.8, "what was long ago counts less"


@pytest.mark.parametrize(
    "result",
    [
        {}, {"wall_s": "long", "gpu_s": None, "tokens": float("inf"), "research": [1]},
        {"research": {"claim": {"verdict": 3, "effect_size": float("nan")}}, "wall_s": True},
    ],
)  # fmt: skip
def test_a_result_that_is_not_what_it_should_be_teaches_nothing_wrong(
    result: Mapping[str, object],
) -> None:
    found = outcome_of("x", {"template": "t", "labels": ("campaign:c",)}, "done", result, 5.0)
    assert (found.campaign, found.wall_s, found.gpu_s, found.tokens) == ("c", 0, 0, 0)
    assert found.effect_size is None
    json.dumps(found.as_json(), allow_nan=False)


def test_domains_seed_profiles_and_their_errors_have_places(tmp_path: Path) -> None:
    path = tmp_path / "domains.yaml"
    assert read_domains(path) == {}
    path.write_text("domains:\n  a: {templates: [x, y], models: [m], duration: 10m}\n")
    assert read_domains(path)["y with m"].duration_s == 600
    path.write_text("domains:\n  a: {templates: [x], sucess: 1}\n")
    with pytest.raises(ConfigError, match=r"domains.yaml:2:23: domains.a.sucess"):
        read_domains(path)
    assert read_domains(Path(__file__).parent.parent / "config" / "domains.yaml")


# --- which comes next


@given(
    st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.floats(0, 2), min_size=1),
    st.floats(0.01, 1),
)
def test_shares_are_one_in_all_and_none_is_below_its_even_part(
    weights: dict[str, float], exploration: float
) -> None:
    found = shares(weights, exploration)
    assert math.fsum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= exploration / len(weights) * 0.999


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(60, 20_000)), min_size=2, max_size=6),
    st.sampled_from(PartOfDay),
)
def test_no_arm_starves_whatever_the_others_pay(
    arms: list[tuple[float, float]], part: PartOfDay
) -> None:
    profiles = {f"arm {n}": Profile(d, payoff=p) for n, (p, d) in enumerate(arms)}
    picked: Mapping[str, float] = {}
    last = dict.fromkeys(profiles, 0)
    for number in range(1, 600):
        found = pick(profiles, picked, exploration=0.2, part=part, level=Level.NORMAL)
        picked, last[found.arm] = found.picked, number
        longest = max(number - one for one in last.values())
        assert longest <= 2 * len(arms) / 0.2, profiles


def test_what_pays_comes_more_often_and_the_same_history_gives_the_same_choice() -> None:
    profiles = {"good": Profile(payoff=1.0), "bad": Profile(payoff=0.2)}

    def play() -> list[Pick]:
        found: list[Pick] = []
        for _ in range(200):
            before = found[-1].picked if found else {}
            found.append(
                pick(profiles, before, exploration=0.1, part=PartOfDay.EVENING, level=Level.NORMAL)
            )
        return found

    picks = play()
    assert picks == play()
    assert 0.88 < Counter(one.arm for one in picks)["good"] / 200 < 0.95
    assert re.match(r"share 0.92 of 2, had 0.0 of 0.0; payoff 1.00 after 0 tasks", picks[0].why)


def lab(level: Level = Level.NORMAL, **over: int) -> Lab:
    return Lab([Room(8, 0)], Capacity(level, "", Load(), 0.0), **over)


ADAPTIVE = parse_campaign(
    b"adaptive: {}\ntask: {num_cpus: 2, timeout: 1h}\nmatrix: {template: [a, b], researcher: [sweep]}\nlimits: {max_queued: 9}\n",
    "busy",
    "busy.yaml",
)


def filled(lab_: Lab, queue: Queue | None = None) -> Decision:
    return fill(ADAPTIVE, Decision(Memory()), queue or Queue(), lab_, {}, now=NOON)


def test_the_queue_is_topped_up_to_what_runs_and_a_quarter_ahead() -> None:
    assert len(filled(lab()).drafts) == 5
    assert len(filled(lab(running=4, queued=1)).drafts) == 0
    assert len(filled(lab(running=3, queued=1)).drafts) == 1
    assert len(filled(lab(Level.HIGH)).drafts) == 3
    assert len(filled(lab(Level.CRITICAL)).drafts) == 0


def test_no_two_of_what_is_added_are_the_same_work() -> None:
    decision, tasks = Decision(Memory()), []
    for _ in range(4):
        decision = fill(ADAPTIVE, Decision(decision.memory), Queue(), lab(), {}, now=NOON)
        tasks += [parse_task(d.text.encode(), d.name).spec for d in decision.drafts]
    assert len({(t.template, t.seed) for t in tasks}) == len(tasks) == 20
    assert all("campaign:busy" in t.labels for t in tasks)


# --- a week


@pytest.fixture(scope="module")
def week() -> Week:
    return Week().play()


def test_over_a_week_the_lab_is_busy(week: Week) -> None:
    assert week.utilisation(Level.NORMAL) > 0.98
    assert week.utilisation() > 0.90


def test_over_a_week_nothing_is_added_under_critical_load(week: Week) -> None:
    assert week.added_when_critical == 0
    assert week.most_queued <= 8
    hours = week.open_slot_s[Level.CRITICAL] / week.slots / 3600
    assert 1.0 <= hours < 1.5, "for as long as the memory was full, and little longer"


def test_over_a_week_no_template_starves(week: Week) -> None:
    assert max(week.longest_gap_h(name) for name in week.shares()) < 60


def test_over_a_week_the_level_does_not_oscillate(week: Week) -> None:
    assert week.changes_per_day() <= 4


def test_over_a_week_what_pays_is_preferred_and_nights_are_for_long_tasks(week: Week) -> None:
    found = week.shares()
    assert min(found[n] for n in ("quick", "usual", "long")) > 3 * found["barren"]
    assert min(found[n] for n in ("quick", "usual", "long")) > 3 * found["failing"]
    assert week.slot_shares(PartOfDay.NIGHT)["long"] > 0.5
    assert week.slot_shares(PartOfDay.OFFICE)["quick"] > 0.4


# --- the edge


def test_the_probe_reads_this_machine(home: Home) -> None:
    probe = Probe(home.results, home.models_status)
    try:
        psutil.cpu_percent(0.1)
        load, calls = probe.read(0.0)
    finally:
        probe.close()
    assert load.memory is not None
    assert 0 < load.memory < 1
    assert load.cpu is not None
    assert 0 <= load.cpu <= 1
    assert calls is None


def test_a_record_keeps_the_last_lines_and_no_more_than_its_size(tmp_path: Path) -> None:
    lines = BoundedLines(tmp_path / "x.jsonl", max_bytes=1000)
    for number in range(500):
        lines.append([{"number": number}])
    numbers = [one["number"] for one in lines.read()]
    assert numbers == list(range(numbers[0], 500))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2200


BUSY = """
adaptive: {}
task: {kind: command, run: "true"}
limits: {max_queued: 3}
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[stepped.Lab]:
    (tmp_path / "config" / "campaigns").mkdir(parents=True)
    (tmp_path / "config" / "campaigns" / "busy.yaml").write_text(BUSY)
    with stepped.Lab(tmp_path) as lab_:
        yield lab_


@pytest.mark.sandbox
def test_the_daemon_keeps_the_lab_busy_learns_and_says_why(busy: stepped.Lab) -> None:
    calm = LoadSettings(
        **dict.fromkeys(("cpu_high", "memory_high", "disk_high"), 99),
        **dict.fromkeys(("cpu_critical", "memory_critical", "disk_critical"), 100),
    )
    busy.home = Home(busy.home.root, busy.home.settings.model_copy(update={"load": calm}))
    busy.start()
    busy.settle()
    assert len(busy.engine.live()) == 2
    for _ in range(3):
        for task in busy.engine.live():
            busy.engine.finish(task.job.task_id)
        busy.settle(1)  # the ends are seen, and the next turn comes soon
        busy.clock.jump(1)
        busy.settle()
        assert len(busy.engine.live()) == 2
    run_dir = busy.home.run_dir
    why = [one for one in BoundedLines(run_dir / "decisions.jsonl").read() if "arm" in one]
    assert why
    assert all("payoff" in one["why"] for one in why)
    known = BoundedLines(run_dir / "outcomes.jsonl").read()
    assert len(known) == 6
    assert {one["campaign"] for one in known} == {"busy"}


def test_under_critical_load_nothing_is_added_and_nothing_is_started(busy: stepped.Lab) -> None:
    low = LoadSettings(memory_high=1, memory_critical=2)
    busy.home = Home(busy.home.root, busy.home.settings.model_copy(update={"load": low}))
    busy.start()
    busy.path("pending/mine.yaml").write_text("kind: command\nrun: 'true'\n")
    busy.settle()
    assert busy.engine.live() == []
    assert busy.spool.names(State.PENDING) == ["mine.yaml"]
    assert busy.daemon is not None
    told = json.dumps(busy.daemon._facts(stopped=False))
    assert "its load is critical (memory" in told
    (busy.home.campaigns / "busy.yaml").unlink()
    busy.clock.jump(10)
    busy.settle()
    assert [one.job.task_id for one in busy.engine.live()] == ["mine"], "no campaign, no hold"


def test_thresholds_are_settings_and_out_of_order_they_are_refused(tmp_path: Path) -> None:
    assert Settings().load.levels()[1]["memory"] == 0.95
    home = write_settings(tmp_path, load={"memory_high": 70})
    assert home.settings.load.levels()[0]["memory"] == 0.7
    with pytest.raises(ConfigError, match="memory_high below memory_critical"):
        write_settings(tmp_path, load={"memory_high": 96})
