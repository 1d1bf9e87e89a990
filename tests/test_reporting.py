"""A campaign's report: due once its step fires, written by a process of its own, and once more when all has ended."""

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from labd.campaigns import parse_campaign, reported_since
from labd.clock import to_iso
from labd.daemon.reporting import DUE
from tests.factories import PARABOLA, make_template, write_settings
from tests.processes import DaemonProcess, wait_until
from tests.stepped import Lab

HOURLY = """
task: {kind: command, run: "true"}
steps:
  go: {schedule: "0 0 1 1 *"}
  tell: {schedule: "0 * * * *", report: true, wind_down: true}
"""
QUIET = HOURLY.replace("0 * *", "0 0 1")
WEEKEND = (Path(__file__).parent.parent / "config/campaigns/weekend-marathon.yaml").read_bytes()
NIGHTLY = (Path(__file__).parent.parent / "config/campaigns/nightly.yaml").read_bytes()
AT = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
TASK = "kind: command\nrun: 'true'\nlabels: ['campaign:camp']\n"


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_report_tells_from_the_first_firing_after_the_report_before() -> None:
    weekend = parse_campaign(WEEKEND, "weekend-marathon", "w.yaml")
    sunday = instant("2026-11-29T22:00Z")
    assert reported_since(weekend, "wind-down", sunday) == instant("2026-11-27T18:00Z")
    nightly = parse_campaign(NIGHTLY, "nightly", "n.yaml")
    at = instant("2026-11-27T22:00Z")
    assert reported_since(nightly, "", at) == at


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as one:
        one.home.campaigns.mkdir(parents=True)
        (one.home.campaigns / "camp.yaml").write_text(QUIET)
        one.start()
        yield one
        if one.daemon is not None:
            one.stop()


def said(lab: Lab, event: str) -> list[dict[str, object]]:
    told = (json.loads(line) for line in (lab.home.root / "log.jsonl").read_text().splitlines())
    return [one for one in told if one.get("event") == event]


def due(lab: Lab) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((lab.home.run_dir / DUE).read_bytes())["due"]
    return found


def make_due(lab: Lab, at: datetime = AT) -> None:
    assert lab.daemon is not None
    campaign = parse_campaign(HOURLY.encode(), "camp", "camp.yaml")
    lab.daemon._reporting.due(campaign, "tell", at)


def written(lab: Lab, count: int) -> list[dict[str, object]]:
    def enough() -> bool:
        lab.tick()
        return len(said(lab, "report.written")) >= count

    wait_until(enough, 200, f"{count} reports, of {said(lab, 'report.failed')}", every_s=0.05)
    return said(lab, "report.written")


@pytest.mark.sandbox
def test_a_report_shows_what_still_runs_and_is_written_again_when_that_has_ended_whoever_was_killed(
    lab: Lab,
) -> None:
    lab.path("pending/camp--go--1.yaml").write_text(TASK)
    lab.settle()
    make_due(lab)
    [first] = written(lab, 1)
    page = Path(str(first["path"]))
    assert page.parent == lab.home.reports
    assert first["final"] is False
    assert "Still running" in page.read_text()
    make_due(lab)
    assert [one["written"] for one in due(lab)] == [True], "it is the same firing"
    lab.crash()
    lab.start()
    lab.settle()
    assert [one["written"] for one in due(lab)] == [True]
    lab.engine.finish("camp--go--1")
    lab.clock.jump(6)
    second = written(lab, 2)[1]
    assert (second["path"], second["final"]) == (str(page), True)
    assert "Still running" not in page.read_text()
    assert due(lab) == []


def test_what_was_due_when_the_daemon_was_killed_is_written_by_the_next(lab: Lab) -> None:
    make_due(lab)
    make_due(lab)
    make_due(lab, AT + timedelta(hours=1))
    lab.crash()
    lab.start()
    told = written(lab, 2)
    assert len({one["path"] for one in told}) == 2
    assert [one["final"] for one in told] == [True, True]
    assert due(lab) == []


@pytest.mark.parametrize("call", range(1, 8))
def test_a_firing_is_remembered_only_with_its_report(lab: Lab, call: int) -> None:
    """Killed at any call that changes a file, a step that counts as fired has its report on the disk as due."""
    (lab.home.campaigns / "camp.yaml").write_text(HOURLY)
    lab.settle()
    now = datetime.fromtimestamp(time.time(), UTC)
    lab.clock.jump(3601 - now.minute * 60 - now.second)
    lab.calls.arm(call, "dies after")
    lab.tick()
    memory = json.loads((lab.home.run_dir / "campaigns.json").read_bytes())
    through = memory["campaigns"]["camp"]["through"]["tell"]
    hour = datetime.fromtimestamp(time.time(), UTC).replace(minute=0, second=0, microsecond=0)
    if through == to_iso(hour):
        assert [one["since"] for one in due(lab)] == [to_iso(hour)]


def test_a_record_of_what_is_due_that_can_not_be_read_is_told_and_stops_nothing(lab: Lab) -> None:
    lab.crash()
    (lab.home.run_dir / DUE).write_text(
        '{"due": [{"name": "../x", "campaign": "c", "since": "s"}]}'
    )
    lab.start()
    lab.settle()
    assert len(said(lab, "report.due_not_read")) == 1
    make_due(lab)
    assert [one["campaign"] for one in due(lab)] == ["camp"]


@pytest.mark.ray
@pytest.mark.sandbox
@pytest.mark.timeout(900)
@pytest.mark.skipif("LABD_TORTURE" not in os.environ, reason="takes minutes: a campaign's own")
def test_a_campaign_of_sweeps_comes_to_its_end_and_to_a_report_with_their_papers(
    tmp_path: Path,
) -> None:
    """A real daemon on a real Ray: two sweeps are fired, a report while they run, and the last one killed for on its way."""
    home = write_settings(tmp_path, ray={"num_cpus": 2, "dashboard": False}, min_free_bytes=2**20)
    make_template(home.templates, experiment=PARABOLA % 0.2)
    home.campaigns.mkdir()
    minutes = [(datetime.now(UTC) + timedelta(minutes=ahead)).minute for ahead in (2, 3)]
    (home.campaigns / "camp.yaml").write_text(f"""
task: {{template: tiny, researcher: sweep}}
steps:
  go: {{schedule: "{minutes[0]} * * * *", intensity: heavy, matrix: {{seed: [1, 2]}}}}
  tell: {{schedule: "{minutes[1]} * * * *", wind_down: true, report: true}}
""")
    daemon = DaemonProcess(tmp_path)
    try:
        daemon.wait_ready()
        wait_until(lambda: daemon.said("campaign.fired"), 200, "the firing")
        [due_at] = wait_until(
            lambda: [one for one in daemon.said("campaign.fired") if one["report"]],
            200,
            "the report",
        )
        daemon.kill_everything()
        daemon = DaemonProcess(tmp_path)
        daemon.wait_ready()
        wait_until(
            lambda: [one for one in daemon.said("report.written") if one["final"]], 300, "its end"
        )
    finally:
        daemon.kill_everything()
    [path] = home.reports.iterdir()
    stamp = str(due_at["instant"]).replace("-", "").replace(":", "").replace(".000", "")
    assert path.name == f"camp--tell--{stamp}.html"
    page = path.read_text()
    assert "Still running" not in page
    assert page.count(">paper.pdf</a>") == 2
    assert "<svg" in page
