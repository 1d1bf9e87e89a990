"""Reading a lab's files for a report, one task at a time; what was read of one is let go before the next."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from labd.archive import RESULT, Archive, spans_of
from labd.campaigns import DECISIONS, BoundedLines
from labd.errors import JournalError, NotFound, TaskFileError
from labd.published import version_of
from labd.report.model import TaskTold
from labd.report.reading import end_of, lost_of, research_of, tokens_of
from labd.report.summary import Facts
from labd.settings import Home
from labd.spool import Entry, Spool
from labd.task import State, TaskSpec, parse_task
from labd.text import printable

MOST_READ = 20_000
"""Tasks of each state, the last to end first."""
_PAPERS = ("paper.pdf", "paper.html")
_SLACK_S = 120.0
"""By how much a file may have been moved before what its events say: clocks are set."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a report is to be of: a period, and a campaign by its name or, empty, the whole lab."""

    since: datetime
    until: datetime
    campaign: str = ""

    def of_campaign(self, name: str) -> bool:
        """Say whether a task file's name may be of it."""
        return not self.campaign or name.startswith(f"{self.campaign}--")


def gather(home: Home, wanted: Wanted, now: datetime) -> Facts:
    """Read what ended in the period and what is under way.

    What can't be read is told with its task and fails nothing.

    Raises:
        NotFound: there is neither a campaign of this name nor any task of it.

    """
    return _Gathering(home, wanted, now).facts()


class _Gathering:
    def __init__(self, home: Home, wanted: Wanted, now: datetime) -> None:
        self._home, self._wanted, self._now_s = home, wanted, now.timestamp()
        self._since_s, self._until_s = wanted.since.timestamp(), wanted.until.timestamp()
        self._spool, self._archive = Spool(home.spool), Archive(home.results)
        self._unknown_ends = 0
        self._notes: list[str] = []

    def facts(self) -> Facts:
        tasks = [told for state in State for told in self._tasks(state)]
        pending = sum(self._wanted.of_campaign(name) for name in self._spool.names(State.PENDING))
        if self._wanted.campaign and not (tasks or pending):
            self._must_be_a_campaign()
        if self._until_s < self._now_s - _SLACK_S:
            self._notes.append(
                "The period has ended before this was written: what ran at its end and has ended since counts in how busy "
                "the lab was, and is in no list."
            )
        decisions = BoundedLines(self._home.run_dir / DECISIONS).read()
        return Facts(tasks, pending, self._unknown_ends, decisions, self._notes)

    def _must_be_a_campaign(self) -> None:
        name = self._wanted.campaign
        if "/" not in name and any(
            (self._home.campaigns / f"{name}{suffix}").is_file() for suffix in (".yaml", ".yml")
        ):
            return
        raise NotFound(
            f"there is no campaign {printable(name)!r}, and no task of it",
            where=str(self._home.campaigns),
            fix="`labd campaigns` shows them",
        )

    def _tasks(self, state: State) -> Iterator[TaskTold]:
        for entry in self._entries(state):
            if not self._wanted.of_campaign(entry.name):
                continue
            # A file is moved after its end is on record: what was moved before the period has ended before it.
            if state.decided and entry.moved_ns / 1e9 < self._since_s - _SLACK_S:
                continue
            if state is State.PENDING and not self._archive.knows(entry.id):
                continue
            told = self._task(state, entry)
            if told is not None:
                yield told

    def _entries(self, state: State) -> Iterator[Entry]:
        count = self._spool.count(state)
        if count > MOST_READ:
            how = "those that ended last" if state.decided else "some"
            self._notes.append(
                f"Of {count:,} {state.value} tasks only {MOST_READ:,} were looked at, {how}."
            )
        if count > MOST_READ and state.decided:
            return self._spool.recent(state, MOST_READ)
        return islice(self._spool.entries(state), MOST_READ)

    def _task(self, state: State, entry: Entry) -> TaskTold | None:
        """Give what is told of a task; ``None`` where it has no part in the period."""
        spec, wrong = self._spec(state, entry), list[str]()
        if self._wanted.campaign and spec is not None:
            label = f"campaign:{self._wanted.campaign}"
            if label not in spec.labels:
                return None
        events = self._events(entry.id, wrong)
        end = end_of(events) if state.decided else None
        ended_s = end.at_s if end is not None else entry.moved_ns / 1e9
        runs = state is State.RUNNING
        limit_s = (spec and spec.timeout) or self._home.settings.default_timeout
        until_s = self._now_s if runs else None
        spans, unknown = spans_of(events, running_until_s=until_s, most_s=limit_s)
        inside = self._since_s <= ended_s <= self._until_s if state.decided else runs
        if not inside and not any(
            one.ended_s > self._since_s and one.began_s < self._until_s for one in spans
        ):
            return None
        self._unknown_ends += unknown
        result = self._result(entry.id, wrong) if state.decided and inside else {}
        research, unreadable = research_of(result)
        kind = spec.kind if spec is not None else "no valid task"
        asks = spec.asks_models if spec is not None else False
        tokens, known = tokens_of(kind, asks_models=asks, result=result)
        refused = spec is None and not spans
        return TaskTold(
            id=entry.id,
            # What only has a share in how busy the lab was is in no list and in no count of the ended ones.
            state=state.value if inside else "elsewhen",
            kind=kind,
            template=printable((spec and spec.research_template) or "", 200),
            model=printable("+".join(spec.models) if spec is not None else "", 200),
            title=printable((spec and spec.title) or "", 300),
            ended_s=ended_s if state.decided else None,
            took_s=end.took_s if end is not None else None,
            spans=tuple(spans),
            lost=tuple(lost_of(events)),
            code=end.code if end is not None else "",
            message=end.message if end is not None else "",
            research=research,
            tokens=tuple(tokens),
            tokens_known=known or runs or refused or not inside,
            files=self._files(entry.id) if inside and research is not None else (),
            unreadable=tuple(wrong + unreadable),
        )

    def _spec(self, state: State, entry: Entry) -> TaskSpec | None:
        """Give what the task's file says; ``None`` where it is no task, for which it was refused."""
        with suppress(TaskFileError, OSError):
            return parse_task(self._spool.read(state, entry.name), entry.name).spec
        return None

    def _events(self, task_id: str, wrong: list[str]) -> list[Mapping[str, Any]]:
        try:
            return list(self._archive.history(task_id).events)
        except (JournalError, OSError) as error:
            what = error.what if isinstance(error, JournalError) else str(error.strerror)
            wrong.append(printable(f"events.jsonl: {what}", 300))
            return []

    def _result(self, task_id: str, wrong: list[str]) -> Mapping[str, Any]:
        result = self._archive.result(task_id)
        if result is not None:
            return result
        if os.path.lexists(self._archive.directory(task_id) / RESULT):
            wrong.append(f"{RESULT} can't be read")
        return {}

    def _files(self, task_id: str) -> tuple[str, ...]:
        results = self._home.results
        return tuple(name for name in _PAPERS if version_of(results, task_id, name) is not None)
