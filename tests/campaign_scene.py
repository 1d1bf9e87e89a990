"""A lab with campaigns of every kind, and what a daemon would have left of them: for the page and its tests."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from labd.campaigns import DECISIONS, MEMORY, OUTCOMES
from labd.clock import to_iso
from labd.settings import Home
from tests.factories import task_text

NIGHTLY = """
enabled: true
title: {title}
time_zone: Asia/Seoul
adaptive: {{exploration: 0.2}}
task: {{researcher: sweep}}
matrix: {{template: [digits, attention], seed: [1, 2]}}
"""
WEEKEND = """
enabled: true
title: Weekend marathon
time_zone: Europe/Berlin
task: {template: digits, researcher: sweep}
steps:
  boost: {schedule: "0 8 * * sat", matrix: {seed: [1, 2, 3, 4]}}
  wind-down: {schedule: "0 22 * * sun", wind_down: true, report: true}
"""


def put_campaigns(home: Home, now: datetime, hostile: str = "") -> None:
    """Write three campaigns, one of them not valid, and what was remembered, decided and learnt.

    `hostile` stands wherever somebody else than labd may have written.
    """
    home.campaigns.mkdir(parents=True, exist_ok=True)
    title = json.dumps(f"Nightly research {hostile}")
    (home.campaigns / "nightly.yaml").write_text(NIGHTLY.format(title=title))
    (home.campaigns / "weekend.yaml").write_text(WEEKEND)
    (home.campaigns / "broken.yaml").write_text("enabled: perhaps\nsteps: 3\n")
    fired = now - timedelta(hours=3)
    memory = {
        "through": {"boost": to_iso(fired), "wind-down": to_iso(fired)},
        "open": {"boost": {"instant": to_iso(fired), "done": 1}},
        "picked": {},
        "given": {},
    }
    given = {"through": {}, "open": {}, "picked": {}, "given": {"digits with no model": 7}}
    whole = {"campaigns": {"weekend": memory, "nightly": given}}
    (home.run_dir / MEMORY).write_text(json.dumps(whole))
    _append(home, DECISIONS, _decisions(now, fired, hostile))
    _append(home, OUTCOMES, [_outcome(n, now) for n in range(6)])


def put_tasks(home: Home) -> None:
    """Write three tasks of a campaign, one of which runs."""
    for state, number in (("running", 1), ("pending", 2), ("pending", 3)):
        text = task_text(labels=["campaign:nightly"])
        (home.spool / state / f"nightly--fill--1-{number}.yaml").write_text(text)


def _decisions(now: datetime, fired: datetime, hostile: str) -> list[dict[str, Any]]:
    facts = {"campaign": "weekend", "step": "boost", "instant": to_iso(fired), "tasks": 4}
    why = "share 0.62 of 2, had 3.1 of 7.0; payoff 0.90 after 6 tasks, 20 min expected, fit 1.00 (evening, load normal)"
    added = {"campaign": "nightly", "task": "nightly--fill--1-3", "arm": "digits with no model"}
    return [
        {"event": "load.changed", "at": to_iso(now), "node": "ada", "level": "high", "because": "memory 88 %, high from 85 %"},
        {"event": "campaign.fired", "at": to_iso(fired), **facts, "report": False},
        {"event": "campaign.added", "at": to_iso(now), **added, "why": why, "recommended": 8, "level": "high"},
        {"event": "campaign.skipped", "at": to_iso(now), **facts, "why": f"it was missed 2 d ago {hostile}"},
    ]  # fmt: skip


def _outcome(number: int, now: datetime) -> dict[str, Any]:
    arm = "digits with no model" if number % 3 else "attention with no model"
    return {
        "task_id": f"t{number}",
        "arm": arm,
        "campaign": "nightly",
        "state": "done",
        "ended_at_s": now.timestamp(),
        "wall_s": 1200.0 * (1 + number % 2),
        "verdict": "improved" if number % 3 else "",
        "effect_size": 1.0,
    }


def _append(home: Home, name: str, records: list[dict[str, Any]]) -> None:
    (home.run_dir / name).write_text("".join(json.dumps(one) + "\n" for one in records))


NODES: list[dict[str, Any]] = [
    {"id": "1", "name": "ada", "local": True, "level": "high", "because": "memory 88 %, high from 85 %"},
    {"id": "2", "name": "bob", "local": False, "level": "normal", "because": ""},
    {"id": "3", "name": "cy", "local": False, "level": None, "because": ""},
]  # fmt: skip
NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
