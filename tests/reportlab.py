"""A lab's files as a report finds them: tasks in any state with events and results, without anything having run."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from labd.clock import to_iso
from labd.report import Facts, Report, Wanted, gather, summarise
from labd.settings import Home
from labd.spool import Spool
from labd.task import State, task_id
from tests.factories import task_text, write_settings

NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
"""The files' times of renaming are the kernel's, so the story is told around the present, of just after the tests."""
SINCE = NOW - timedelta(days=7)


def ago(hours: float) -> str:
    return to_iso(NOW - timedelta(hours=hours))


class ReportLab:
    """A home below `root`; `put` adds a task to it."""

    def __init__(self, root: Path) -> None:
        self.home: Home = write_settings(root)
        self.spool = Spool(self.home.spool)
        self.spool.prepare()
        self.home.results.mkdir(exist_ok=True)

    def put(
        self,
        name: str,
        state: State = State.DONE,
        *,
        result: dict[str, Any] | bytes | None = None,
        events: list[dict[str, Any]] | bytes | None = None,
        papers: tuple[str, ...] = (),
        **keys: Any,
    ) -> Path:
        """Put a task with a claim three hours ago, and an end one hour ago if it has one; give its results."""
        file = self.home.spool / state.value / os.fsdecode(os.fsencode(f"{name}.yaml"))
        file.write_text(task_text(**keys))
        results = self.home.results / task_id(file.name)
        results.mkdir()
        if events is None:
            events = [claimed(3)] + ([ended(state.value, 1)] if state.decided else [])
        raw = events if isinstance(events, bytes) else lines(events)
        (results / "events.jsonl").write_bytes(raw)
        if result is not None:
            told = result if isinstance(result, bytes) else json.dumps(result).encode()
            (results / "result.json").write_bytes(told)
        for paper in papers:
            (results / paper).write_text("a paper")
        return results

    def facts(self, campaign: str = "", since: datetime = SINCE, until: datetime = NOW) -> Facts:
        return gather(self.home, Wanted(since, until, campaign), NOW)

    def report(self, campaign: str = "", since: datetime = SINCE) -> Report:
        return summarise(self.facts(campaign, since), since, NOW, NOW, campaign)


def claimed(hours_ago: float, *, num_gpus: float = 0.0, attempt: int = 1) -> dict[str, Any]:
    return {
        "event": "claimed", "at": ago(hours_ago), "attempt": attempt, "num_cpus": 1.0, "num_gpus": num_gpus,
    }  # fmt: skip


def ended(event: str, hours_ago: float, **facts: Any) -> dict[str, Any]:
    return {"event": event, "at": ago(hours_ago), "attempt": 1, **facts}


def failed(message: str, code: str = "exit_code") -> list[dict[str, Any]]:
    return [claimed(3), ended("failed", 1, error={"code": code, "message": message})]


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
