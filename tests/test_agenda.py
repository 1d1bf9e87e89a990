"""What campaigns will do and why, as readers are told it: from files alone, and read again only where they changed."""

import json
from datetime import timedelta

import pytest

from labd.agenda import Agenda, AgendaReader
from labd.campaigns import DECISIONS, MEMORY, OUTCOMES, BoundedLines
from labd.campaigns.load import Level, PartOfDay
from labd.campaigns.mix import pick, shares_of
from labd.lab import Lab
from labd.settings import Home
from tests.campaign_scene import NOW, put_campaigns


@pytest.fixture
def reader(home: Home) -> AgendaReader:
    put_campaigns(home, NOW)
    return AgendaReader(Lab(home), learn_every_s=0.0)


def test_each_campaign_is_told_with_what_comes_what_was_last_and_what_is_open(
    reader: AgendaReader,
) -> None:
    nightly, weekend, broken = reader.read(NOW).plans
    assert (nightly.name, nightly.adds, nightly.next) == ("nightly", True, ())
    assert [f"{one.at:%a %H:%M} {one.step}" for one in weekend.next] == [
        *("Sat 08:00 boost", "Sun 22:00 wind-down"),
        *("Sat 08:00 boost", "Sun 22:00 wind-down"),
    ]
    assert str(weekend.next[0].at.tzinfo) == "Europe/Berlin"
    assert weekend.last is not None
    assert (weekend.last.at, weekend.last.step) == (NOW - timedelta(hours=3), "boost")
    assert [(one.step, one.done, one.tasks) for one in weekend.opened] == [("boost", 1, 4)]
    assert (weekend.adds, weekend.arms) == (False, ())
    assert "broken.yaml:1:1" in broken.problem


def test_the_shares_are_those_that_the_daemon_goes_by(reader: AgendaReader) -> None:
    agenda = reader.read(NOW)
    arms = agenda.plans[0].arms
    assert [arm.name for arm in arms] == ["digits with no model", "attention with no model"]
    assert sum(arm.share for arm in arms) == pytest.approx(1)
    assert arms[0].share > arms[1].share > 0.1 - 1e-9
    assert [(arm.profile.tasks, arm.added) for arm in arms] == [(4, 7), (2, 0)]
    # It is evening in Seoul, and what the daemon went by last was high load.
    profiles = {arm.name: arm.profile for arm in arms}
    part, level = PartOfDay.EVENING, Level.HIGH
    share = shares_of(profiles, exploration=0.2, part=part, level=level)
    assert share == {arm.name: arm.share for arm in arms}
    why = pick(profiles, {}, exploration=0.2, part=part, level=level).why
    assert f"share {arms[0].share:.2f} of 2" in why


def test_decisions_are_the_last_ones_the_newest_first_however_many_there_are(
    home: Home, reader: AgendaReader
) -> None:
    assert [one["event"] for one in reader.read(NOW).decisions] == [
        *("campaign.skipped", "campaign.added", "campaign.fired", "load.changed"),
    ]
    lines = BoundedLines(home.run_dir / DECISIONS)
    lines.append([{"event": "campaign.added", "n": n, "why": "x" * 200} for n in range(5_000)])
    with (home.run_dir / DECISIONS).open("a") as torn:
        torn.write("[1]\nno json\n{")
    told = reader.read(NOW).decisions
    assert [one["n"] for one in told] == [*range(4_999, 4_959, -1)]
    assert len(lines.read(100_000)) < 500
    assert len(lines.read()) == 5_004


def test_what_can_t_be_read_is_left_out_and_what_changed_is_read_again(
    home: Home, reader: AgendaReader
) -> None:
    before = reader.read(NOW)
    (home.run_dir / MEMORY).write_text("{")
    (home.run_dir / DECISIONS).unlink()
    (home.domains).write_text("domains: 3\n")
    record = json.loads((home.run_dir / OUTCOMES).read_text().splitlines()[0])
    with (home.run_dir / OUTCOMES).open("a") as more:
        more.write(json.dumps({**record, "task_id": "new", "state": "failed"}) + "\n{\n")
    (home.campaigns / "broken.yaml").unlink()
    after = reader.read(NOW)
    assert [plan.name for plan in after.plans] == ["nightly", "weekend"]
    assert (after.plans[1].last, after.plans[1].opened, after.decisions) == (None, (), ())
    ended = {arm.name: arm.profile.tasks for arm in after.plans[0].arms}
    assert ended == {"digits with no model": 4, "attention with no model": 3}
    for path in home.campaigns.iterdir():
        path.unlink()
    assert reader.read(NOW).plans == ()
    assert before.plans != after.plans
    assert Agenda().plans == ()
