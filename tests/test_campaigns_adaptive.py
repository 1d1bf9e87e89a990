"""The adaptive queue: levels that do not flutter, arms that never starve, and a whole week of it."""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.campaigns import (
    BoundedLines,
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
    endpoints_of,
    fill,
    learn,
    load_of,
    outcome_of,
    parse_campaign,
    read_domains,
)
from labd.campaigns.load import PartOfDay, concurrency, free_load, part_of_day, slots_for
from labd.campaigns.mix import Pick, arm_of, payoff_of, pick, shares
from labd.clock import to_iso
from labd.engine.types import NodeInfo
from labd.errors import ConfigError
from labd.scheduler import Demand
from labd.settings import LoadSettings, Settings
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
    assert free_load(1.0, 8, 8) is None
    assert free_load(0.5, 8, 4) == pytest.approx(0.0)
    assert free_load(1.0, 8, 4) == pytest.approx(1.0)
    assert free_load(0.75, 8, 4) == pytest.approx(0.5)


GPU = {"busy": 1.0, "memory_bytes": 100, "used_bytes": 90, "temperature_c": 70}


def said(**over: Any) -> dict[str, Any]:
    """Give what a calm machine of 8 CPUs says of itself."""
    calm = {"cpus": 8, "cpu": 0.1, "memory_bytes": 100, "memory_free_bytes": 60, "disk_used": 0.4}
    more = {"temperature_c": 50.0, "gpus": [], "problem": "", "warning": ""}
    told = {"labd": "1", "ray": "2", "python": "3", "clock_offset_s": 0.0, "no_gpu": ""}
    return {**calm, **more, **told, "read_s": time.monotonic(), **over}


def test_a_machines_load_is_what_it_says_less_what_the_lab_has_given_out() -> None:
    facts = said(cpu=0.75, gpus=[GPU, {**GPU, "busy": None, "temperature_c": None}])
    found = load_of(facts, cpus=4, gpus=0, models=False)
    assert found.cpu == pytest.approx(0.5)
    assert (found.memory, found.disk) == (0.4, 0.4)
    assert (found.gpu, found.gpu_memory) == (1.0, 0.9)
    assert load_of(facts, cpus=0, gpus=0, models=False).temperature_c == 70.0
    assert load_of(facts, cpus=4, gpus=1, models=False).gpu_memory == pytest.approx(0.8)
    busy = load_of(facts, cpus=4, gpus=2, models=False)
    assert (busy.gpu, busy.gpu_memory) == (None, None), "what tasks hold is meant to be busy"
    served = load_of(facts, cpus=4, gpus=0, models=True)
    assert (served.gpu, served.gpu_memory) == (None, None), "models fill GPUs on purpose"
    blind = load_of(said(cpu=None, temperature_c=None), cpus=0, gpus=0, models=False)
    assert (blind.cpu, blind.gpu, blind.temperature_c) == (None, None, None)


def test_heat_that_the_lab_makes_itself_holds_nothing_back_until_a_gpu_slows_down() -> None:
    hot = {**GPU, "temperature_c": 88, "slowdown_c": 93}
    facts = said(temperature_c=97.0, gpus=[hot])

    def heat(facts: Mapping[str, Any], **given: Any) -> float | None:
        return load_of(facts, **{"cpus": 0, "gpus": 0, "models": False, **given}).temperature_c

    assert heat(facts) == 97.0, "what others heat counts"
    assert heat(facts, cpus=2) is None
    assert heat(facts, cpus=1, gpus=1) is None
    assert heat(facts, models=True) is None
    assert heat(facts, heated=True) is None, "it has not cooled yet"
    throttled = said(temperature_c=97.0, gpus=[hot, {**hot, "temperature_c": 93}])
    assert heat(throttled, cpus=1, gpus=1) == 93.0
    untold = {**hot, "slowdown_c": None}
    assert heat(said(gpus=[untold]), gpus=1) is None


def test_endpoints_say_how_many_wait_for_each_slot_and_what_they_answer_with() -> None:
    good = {"health": "up", "slots": 2, "node_id": "n1", "tokens_per_s": 20.5}
    ill = {**good, "health": "down", "node_id": "n2", "tokens_per_s": None}
    facts = {"at": "2026-11-24T12:00:00Z", "endpoints": [good, good, ill], "waiting": {"m": 6}}
    found = endpoints_of(facts, NOON)
    assert (found.calls, found.load.queue, found.load.tokens_per_s) == (4, 1.5, 41.0)
    assert found.node_ids == {"n1"}
    assert endpoints_of(facts, NOON + timedelta(seconds=16)).calls is None


def test_concurrency_is_the_sum_over_nodes_each_at_its_own_level() -> None:
    rooms = [Room(16, 2), Room(8, 0), Room(3, 1)]
    assert [slots_for(room, Demand(2, 1)) for room in rooms] == [2, 0, 1]
    assert [slots_for(room, Demand(1, 0.25)) for room in rooms] == [8, 0, 3]
    assert slots_for(Room(16, 2), Demand(1, 0.6)) == 2, "a fraction is of one device"
    assert slots_for(Room(16, 2, home=False), Demand(1, 0, at_home=True)) == 0

    def recommended(*levels: Level, running: int = 0) -> tuple[int, int]:
        rooms = [Room(16, 2, level).holding(Demand(2, 1), running) for level in levels]
        found = concurrency(rooms, Demand(2, 1))
        return found.recommended, found.free

    assert recommended(Level.NORMAL, Level.NORMAL) == (4, 4)
    assert recommended(Level.NORMAL, Level.HIGH) == (3, 3)
    assert recommended(Level.HIGH, Level.HIGH, Level.HIGH) == (3, 3)
    assert recommended(Level.CRITICAL, Level.NORMAL, running=1) == (2, 1)
    assert recommended(Level.CRITICAL, Level.CRITICAL) == (0, 0)


def test_work_that_goes_on_at_a_loaded_machine_leaves_no_other_idle() -> None:
    for level in (Level.HIGH, Level.CRITICAL):
        rooms = [Room(8, 0, level).holding(CPUS, 4), Room(4, 0)]
        assert concurrency(rooms, CPUS).free == 2
        assert len(filled(Lab(rooms)).drafts) == (3 if level is Level.CRITICAL else 2)


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
    dated = [replace(one, ended_at_s=n) for n, one in enumerate(changed)]
    assert learn(reversed(dated), seeds) == learn(dated, seeds), "whenever it was read"


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


def test_what_nobody_knows_the_length_of_teaches_nothing_about_durations() -> None:
    arm = arm_of("digits", None)
    one = ended(arm, wall_s=600.0, gpu_s=1200.0)
    known = learn([one], {})[arm]
    both = learn([ended(arm, "failed"), one], {})[arm]
    assert (both.duration_s, both.gpu_hours) == (known.duration_s, known.gpu_hours)
    assert both.success < known.success


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


CPUS, GPUS = Demand(2, 0), Demand(1, 1)


def lab(level: Level = Level.NORMAL, *, running: int = 0, queued: int = 0, **over: Any) -> Lab:
    """Give a lab of one machine; `queued` tasks of two CPUs wait."""
    return Lab([Room(8, 0, level).holding(CPUS, running)], {CPUS: queued}, **over)


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
    assert len(filled(lab(Level.HIGH)).drafts) == 2, "nothing ahead, which would start there"
    assert len(filled(lab(Level.CRITICAL)).drafts) == 0
    assert len(filled(Lab([])).drafts) == 0


def test_what_can_not_start_now_leaves_no_machine_idle() -> None:
    never, later = Demand(64, 0), Demand(8, 0)
    assert len(filled(Lab([Room(8, 0)], {never: 500})).drafts) == 5
    assert len(filled(Lab([Room(8, 0)], {GPUS: 500})).drafts) == 5
    away = Room(8, 0, home=False, id="n2")
    assert len(filled(Lab([away], {Demand(2, 0, at_home=True): 9})).drafts) == 5
    stuck = Demand(2, 0, avoid=frozenset({"n2"}))
    held = Room(8, 0, id="n1").holding(CPUS, 4)
    assert len(filled(Lab([away, held], {stuck: 9})).drafts) == 4, "none ahead: that it may fill"
    some = Room(8, 0).holding(CPUS, 1)
    assert len(filled(Lab([some], {later: 7})).drafts) == 3, "what the machine can hold is ahead"
    assert len(filled(Lab([some], {CPUS: 2, later: 7})).drafts) == 1
    assert len(filled(Lab([some], {CPUS: 7})).drafts) == 0


def test_work_on_cpus_leaves_no_gpu_idle_nor_does_what_waits_for_one() -> None:
    gpus = replace(ADAPTIVE, pool=tuple({**k, "num_gpus": 1} for k in ADAPTIVE.pool))
    room = Room(16, 2).holding(Demand(1, 0), 4)
    found = fill(gpus, Decision(Memory()), Queue(), Lab([room]), {}, now=NOON)
    assert len(found.drafts) == 3
    half = Room(16, 2).holding(Demand(1, 0.5), 1).holding(GPUS, 1)
    assert list(half.used_gpus) == [0.5, 1.0]
    quarters = replace(ADAPTIVE, pool=tuple({**k, "num_gpus": 0.25} for k in ADAPTIVE.pool))
    waits = Lab([half], {GPUS: 3})
    found = fill(quarters, Decision(Memory()), Queue(), waits, {}, now=NOON)
    assert len(found.drafts) == 2, "a whole one does not fit, and waits already"


def test_an_arm_that_has_no_room_now_holds_no_other_up_and_waits_ahead_itself() -> None:
    big, small = ({**ADAPTIVE.pool[n], "num_gpus": gpu} for n, gpu in ((0, 1), (1, 0)))
    mixed = replace(ADAPTIVE, pool=(big, small))
    room = Room(8, 1).holding(GPUS, 1)
    found = fill(mixed, Decision(Memory()), Queue(), Lab([room]), {}, now=NOON)
    assert [one.demand.num_gpus for one in found.drafts] == [0, 0, 0, 1]
    bare = fill(mixed, Decision(Memory()), Queue(), Lab([Room(8, 0)]), {}, now=NOON)
    assert {one.demand.num_gpus for one in bare.drafts} == {0}, "no machine could ever hold it"


def test_requests_that_wait_for_models_hold_back_only_what_asks_models() -> None:
    busy = lab(endpoints=Level.HIGH, calls=8)
    assert len(filled(busy).drafts) == 5
    asking = replace(ADAPTIVE, pool=tuple({**keys, "model": "m"} for keys in ADAPTIVE.pool))
    found = fill(asking, Decision(Memory()), Queue(), busy, {}, now=NOON)
    assert len(found.drafts) == 2
    few = fill(asking, Decision(Memory()), Queue(), lab(calls=2), {}, now=NOON)
    assert len(few.drafts) == 3


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
    """Others use one of the two machines."""
    return Week().play()


def test_over_a_week_the_lab_is_busy(week: Week) -> None:
    assert week.utilisation(Level.NORMAL) > 0.98
    assert week.utilisation() > 0.90
    assert week.utilisation(node_id="b") > 0.98, (
        "what others do at one machine is nothing to the other"
    )


def test_over_a_week_nothing_is_started_on_a_machine_at_critical_load(week: Week) -> None:
    assert week.started_when_critical == 0
    assert week.most_queued <= 8
    assert week.hours(Level.CRITICAL, node_id="b") == 0
    hours = week.hours(Level.CRITICAL, node_id="a") / 2
    assert 1.0 <= hours < 2.0, "for as long as the memory was full, and little longer"


def test_nothing_is_added_while_all_machines_are_at_critical_load() -> None:
    days = Week(used="ab", lasts_s=1.6 * 86_400).play()
    assert days.hours(Level.CRITICAL) / 4 >= 0.5
    assert days.added_when_critical == 0


def test_over_a_week_no_template_starves(week: Week) -> None:
    assert max(week.longest_gap_h(name) for name in week.shares()) < 60


def test_over_a_week_the_level_does_not_oscillate(week: Week) -> None:
    assert week.changes_per_day() <= 6


def test_over_a_week_what_pays_is_preferred_and_nights_are_for_long_tasks(week: Week) -> None:
    found = week.shares()
    assert min(found[n] for n in ("quick", "usual", "long")) > 3 * found["barren"]
    assert min(found[n] for n in ("quick", "usual", "long")) > 3 * found["failing"]
    assert week.slot_shares(PartOfDay.NIGHT)["long"] > 0.5
    assert week.slot_shares(PartOfDay.OFFICE)["quick"] > 0.4


# --- the edge


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


def decisions(busy: stepped.Lab, event: str) -> list[dict[str, Any]]:
    lines = BoundedLines(busy.home.run_dir / "decisions.jsonl").read()
    return [one for one in lines if one["event"] == event]


@pytest.mark.sandbox
def test_the_daemon_keeps_the_lab_busy_learns_and_says_why(busy: stepped.Lab) -> None:
    busy.start()
    busy.settle()
    assert busy.engine.live() == [], "how loaded the machine is nobody has said yet"
    busy.engine.tell(n1=said())
    busy.turn()
    assert len(busy.engine.live()) == 2
    for _ in range(3):
        for task in busy.engine.live():
            busy.engine.finish(task.job.task_id)
        busy.settle(1)  # the ends are seen, and the next turn comes soon
        busy.turn()
        assert len(busy.engine.live()) == 2
    why = decisions(busy, "campaign.added")
    assert why
    assert all("payoff" in one["why"] for one in why)
    assert all(one["recommended"] == 2 for one in why)
    known = BoundedLines(busy.home.run_dir / "outcomes.jsonl").read()
    assert len(known) == 6
    assert {one["campaign"] for one in known} == {"busy"}


def test_gpu_hours_are_of_all_attempts_also_of_those_that_left_no_result(
    busy: stepped.Lab,
) -> None:
    keys = '{kind: command, run: "true", num_gpus: 2, max_retries: 0}'
    text = BUSY.replace('{kind: command, run: "true"}', keys)
    (busy.home.campaigns / "busy.yaml").write_text(text)
    busy.engine.nodes[:] = [NodeInfo("n1", "here", 2.0, 2.0, local=True)]
    busy.start()
    busy.engine.tell(n1=said())
    busy.turn()
    [attempt] = busy.engine.live()
    busy.clock.jump(3600)
    busy.engine.lose(attempt.job.task_id)
    busy.turn()
    [known] = BoundedLines(busy.home.run_dir / "outcomes.jsonl").read()
    assert known["state"] == "failed"
    assert 3600 <= known["wall_s"] < 3700
    assert known["gpu_s"] == 2 * known["wall_s"]


def test_what_ended_before_anybody_looked_is_dated_by_its_end(busy: stepped.Lab) -> None:
    busy.spool.prepare()
    for days, state in ((40, State.FAILED), (30, State.DONE), (9, State.FAILED)):
        name = f"old-{days}.yaml"
        busy.path(f"pending/{name}").write_text("kind: command\nrun: 'true'\n")
        busy.spool.move(name, State.PENDING, state)
        record = busy.home.results / f"old-{days}"
        record.mkdir(parents=True)
        at = to_iso(datetime.now(UTC) - timedelta(days=days))
        line = {"event": state.value, "at": at, "attempt": 1}
        (record / "events.jsonl").write_text(json.dumps(line) + "\n")
    busy.start()
    busy.settle()
    known = BoundedLines(busy.home.run_dir / "outcomes.jsonl").read()
    ages = {one["task_id"]: (time.time() - one["ended_at_s"]) / 86_400 for one in known}
    assert ages == pytest.approx({"old-40": 40, "old-30": 30, "old-9": 9}, abs=0.01)


def test_a_machine_is_not_held_back_for_the_heat_of_the_tasks_that_have_just_ended(
    busy: stepped.Lab,
) -> None:
    busy.start()
    busy.engine.tell(n1=said())
    busy.turn()
    assert len(busy.engine.live()) == 2
    busy.clock.jump(10)
    busy.turn()
    busy.path("paused").touch()
    for task in busy.engine.live():
        busy.engine.lose(task.job.task_id)
    busy.turn()
    busy.engine.tell(n1=said(temperature_c=97.0))
    busy.turn()
    busy.path("paused").unlink()
    busy.settle()
    assert len(busy.engine.live()) == 2
    assert {one["level"] for one in decisions(busy, "load.changed")} == {"normal"}


def test_a_machine_at_critical_load_gets_no_new_tasks_and_others_do(busy: stepped.Lab) -> None:
    busy.engine.nodes.append(NodeInfo("n2", "bob", 2.0, 0.0, local=False))
    busy.start()
    busy.engine.tell(n1=said(memory_free_bytes=3), n2=said())
    busy.turn()
    assert [one.job.node_id for one in busy.engine.live()] == ["n2", "n2"]
    busy.path("pending/mine.yaml").write_text("kind: command\nrun: 'true'\npriority: 9\n")
    busy.turn()
    assert "mine.yaml" in busy.spool.names(State.PENDING), "other people's tasks are held back too"
    assert busy.daemon is not None
    facts = busy.daemon._facts(stopped=False)
    assert [(node["level"], bool(node["barred"])) for node in facts["nodes"]] == [
        ("critical", True),
        ("normal", False),
    ]
    [mine] = [one for one in facts["classes"] if one["oldest"] == "mine.yaml"]
    assert mine["reason"].endswith(
        "; here: its load is critical (memory 97 %, critical from 95 %)"
    )
    assert decisions(busy, "load.changed")[0]["node"] == "here"

    busy.engine.tell(n1=said(), n2=said())
    busy.turn()
    assert "mine.yaml" in busy.spool.names(State.PENDING), "it was calm for a moment only"
    busy.clock.jump(301)
    busy.engine.tell(n1=said(), n2=said())
    busy.turn()
    live = {one.job.task_id: one.job.node_id for one in busy.engine.live()}
    assert live["mine"] == "n1"
    assert len(live) == 4


def test_a_machine_at_high_load_gets_tasks_only_where_no_other_has_room(busy: stepped.Lab) -> None:
    busy.engine.nodes.append(NodeInfo("n2", "bob", 2.0, 0.0, local=False))
    (busy.home.campaigns / "busy.yaml").write_text(BUSY + "intensity: light\n")
    busy.start()
    busy.engine.tell(n1=said(memory_free_bytes=14), n2=said())
    busy.turn()
    for number in range(3):
        busy.path(f"pending/x{number}.yaml").write_text("kind: command\nrun: 'true'\n")
    busy.turn()
    nodes = [one.job.node_id for one in busy.engine.live()]
    assert nodes == ["n2", "n2", "n1", "n1"]


def test_with_all_machines_at_critical_load_nothing_is_added_or_started(busy: stepped.Lab) -> None:
    busy.start()
    busy.path("pending/mine.yaml").write_text("kind: command\nrun: 'true'\n")
    busy.engine.tell(n1=said(disk_used=0.96))
    busy.turn()
    assert busy.engine.live() == []
    assert busy.spool.names(State.PENDING) == ["mine.yaml"]
    assert busy.daemon is not None
    told = json.dumps(busy.daemon._facts(stopped=False))
    assert "waits: here: its load is critical (disk" in told
    (busy.home.campaigns / "busy.yaml").unlink()
    busy.clock.jump(10)
    busy.settle()
    assert [one.job.task_id for one in busy.engine.live()] == ["mine"], "no campaign, no hold"


def test_a_machine_that_has_said_nothing_for_a_minute_is_neither_held_back_nor_given_more(
    busy: stepped.Lab,
) -> None:
    busy.start()
    busy.engine.tell(n1=said(disk_used=0.96))
    busy.turn()
    busy.path("pending/mine.yaml").write_text("kind: command\nrun: 'true'\n")
    busy.clock.jump(50)
    busy.settle()
    assert busy.engine.live() == [], "its last word still holds"
    busy.clock.jump(11)
    busy.settle()
    assert [one.job.task_id for one in busy.engine.live()] == ["mine"]


def test_thresholds_are_settings_and_out_of_order_they_are_refused(tmp_path: Path) -> None:
    assert Settings().load.levels()[1]["memory"] == 0.95
    home = write_settings(tmp_path, load={"memory_high": 70})
    assert home.settings.load.levels()[0]["memory"] == 0.7
    with pytest.raises(ConfigError, match="memory_high below memory_critical"):
        write_settings(tmp_path, load={"memory_high": 96})
