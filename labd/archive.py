"""The archive: `results/<task id>/`, what is known of a task and what came of it.

`events.jsonl` is written by the daemon alone, one line for each thing that happened to the task.
`result.json` says how it ended; the worker writes it, or the daemon where no worker could.
"""

import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd.clock import at_s_of, to_iso, utc_now
from labd.errors import JournalError, StorageError
from labd.files import JsonLines, Unsynced, read_json_lines, read_json_object, write_json
from labd.task import State

EVENTS = "events.jsonl"
RESULT = "result.json"
JOURNAL = "journal.jsonl"
LOG = "log.jsonl"
OUTPUT = "log.txt"
PRUNED = "pruned.json"
"""When retention removed a part of the results, by which rule, and what."""
MAX_RESULT_BYTES = 64 * 2**20

_ENDS = {
    "done": State.DONE,
    "failed": State.FAILED,
    "cancelled": State.CANCELLED,
    "refused": State.FAILED,
}
_REMARKS = frozenset({"stuck"})
"""Events that say something of an attempt and change nothing about what became of it."""
_MAX_SPANS = 200
_MAX_AMOUNT = 1e15


@dataclass(frozen=True, slots=True)
class History:
    """What a task's events say. Attempts count from 1; 0 means never claimed."""

    events: tuple[Mapping[str, Any], ...]

    @property
    def attempt(self) -> int:
        """The number of the last attempt."""
        return max(
            (int(e.get("attempt", 0)) for e in self.events if e["event"] == "claimed"), default=0
        )

    @property
    def last(self) -> Mapping[str, Any]:
        """The last event that changed what becomes of the task; empty where there is none."""
        changes = (event for event in reversed(self.events) if event["event"] not in _REMARKS)
        return next(changes, {})

    @property
    def ended(self) -> State | None:
        """The state that the last event decided, or ``None`` while undecided."""
        return _ENDS.get(str(self.last.get("event")))

    @property
    def ended_s(self) -> float | None:
        """When the task ended, in seconds since the epoch; ``None`` while undecided."""
        return at_s_of(self.last) if self.ended else None

    @property
    def sha256(self) -> str:
        """The hash of the task file as it was last claimed or refused."""
        return next((str(e["sha256"]) for e in reversed(self.events) if "sha256" in e), "")

    def since_asked(self) -> list[Mapping[str, Any]]:
        """Give the events since the task was last asked for by a person: since its last end, or all."""
        last_end = max(
            (i for i, e in enumerate(self.events[:-1]) if e["event"] in _ENDS), default=-1
        )
        return list(self.events[last_end + 1 :])

    def count(self, event: str) -> int:
        """Count an event since the task was last asked for."""
        return sum(1 for e in self.since_asked() if e["event"] == event)

    def stuck_on(self) -> frozenset[str]:
        """Give the ids of the nodes on which the task was lost for being stuck, since it was last asked for."""
        asked = self.since_asked()
        nodes = {e["attempt"]: str(e["node"]) for e in asked if e["event"] == "claimed"}
        lost = (e for e in asked if (e["event"], e.get("code")) == ("lost", "stuck"))
        return frozenset(nodes[e["attempt"]] for e in lost if e["attempt"] in nodes)


@dataclass(frozen=True, slots=True)
class Span:
    """The time in which a task held what it was given, on all its nodes together. Seconds since the epoch."""

    began_s: float
    ended_s: float
    num_cpus: float
    num_gpus: float


def also_of(claim: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the ids of the further nodes that an attempt was given at its claim, by the event of that."""
    also = claim.get("also")
    return tuple(str(node_id) for node_id in also) if isinstance(also, list) else ()


def spans_of(
    events: Iterable[Mapping[str, Any]],
    *,
    running_until_s: float | None = None,
    most_s: float = math.inf,
) -> tuple[list[Span], int]:
    """Give when a task held what it was given, attempt by attempt, and of how many attempts no end is on record.

    From its claim, for as long as the next thing that happened to the attempt says that it took. Where that says nothing,
    until then: of a daemon that was killed this comes with the next one's start, so no longer than `most_s`.

    Args:
        events: the task's, in order; what in them can't be read is left out.
        running_until_s: the present moment, seconds since the epoch, where the task runs now.
        most_s: how long an attempt may take.

    """
    spans: list[Span] = []
    claim: Mapping[str, Any] | None = None
    for event in events:
        if event.get("event") in _REMARKS:
            continue
        if claim is not None and event.get("event") != "unclaimed" and len(spans) < _MAX_SPANS:
            _add_span(spans, claim, _ended_s(claim, event, most_s))
        claim = event if event.get("event") == "claimed" and at_s_of(event) is not None else None
    if claim is not None and running_until_s is not None:
        _add_span(spans, claim, running_until_s)
    return spans, int(claim is not None and running_until_s is None)


def _add_span(spans: list[Span], claim: Mapping[str, Any], ended_s: float | None) -> None:
    began_s = at_s_of(claim)
    if began_s is None or ended_s is None or ended_s < began_s:
        return
    cpus, gpus = (_amount(claim.get(key)) or 0.0 for key in ("num_cpus", "num_gpus"))
    nodes = 1 + len(also_of(claim))
    spans.append(Span(began_s, ended_s, nodes * cpus, nodes * gpus))


def _ended_s(claim: Mapping[str, Any], event: Mapping[str, Any], most_s: float) -> float | None:
    began_s, at_s = at_s_of(claim), at_s_of(event)
    lengths = (_amount(event.get(key)) for key in ("duration_s", "wall_s"))
    known_s = next((length_s for length_s in lengths if length_s is not None), None)
    if began_s is None or (at_s is None and known_s is None):
        return None
    return began_s + known_s if known_s is not None else min(at_s or 0.0, began_s + most_s)


def _amount(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MAX_AMOUNT else None


class Archive:
    """The results directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.path.join(root, "")  # noqa: PTH118 - a text, to make others of
        self._unsynced = Unsynced()

    def prepare(self) -> None:
        """Make the results directory."""
        self.root.mkdir(parents=True, exist_ok=True)

    def directory(self, task_id: str) -> Path:
        """Give the task's directory, whether it exists or not."""
        return self.root / task_id

    def knows(self, task_id: str) -> bool:
        """Say whether the task has results, be they only a refusal."""
        return os.path.lexists(self._root + task_id)

    def history(self, task_id: str) -> History:
        """Read the task's events; none if there are none.

        Raises:
            JournalError: a line other than a torn last one can't be read.

        """
        try:
            return History(tuple(read_json_lines(self.directory(task_id) / EVENTS)))
        except ValueError as error:
            raise JournalError(
                f"the task's events can't be read: {error}", fix="Move the file aside"
            ) from error

    def record(self, task_id: str, event: str, *, durable: bool = True, **facts: object) -> None:
        """Append an event, making the task's directory where it is new.

        With `durable` off it is durable only after `sync`.

        Raises:
            StorageError: the disk would not take it; nothing was recorded.

        """
        directory = f"{self._root}{task_id}/"
        path = directory + EVENTS
        try:
            try:
                os.mkdir(directory)  # noqa: PTH102 - texts: this is on the way of each start
            except FileExistsError:
                if not os.path.lexists(path):
                    self._unsynced.note(directory)
            else:
                self._unsynced.note(self._root, directory)
            self._unsynced.note(file=path)
            with JsonLines(path) as lines:
                line = {"event": event, "at": to_iso(utc_now()), **facts}
                lines.append(line, durable=False)
        except OSError as error:
            raise StorageError(
                f"can't write to results/: {error.strerror}",
                where=str(self.root),
                fix="Make room or mend its rights",
            ) from error
        if durable:
            self.sync()

    @property
    def unsynced(self) -> bool:
        """Whether something that was recorded is not durable yet."""
        return bool(self._unsynced)

    def sync(self, task_id: str | None = None) -> None:
        """Make every event that was recorded durable, or every one of one task.

        Raises:
            StorageError: the disk would not; what was not synced is tried again by the next call.

        """
        try:
            if task_id is None:
                self._unsynced.sync()
            else:
                self._unsynced.sync(f"{self._root}{task_id}/")
        except OSError as error:
            raise StorageError(
                f"can't make results/ durable: {error.strerror}", where=str(self.root)
            ) from error

    def result(self, task_id: str) -> dict[str, Any] | None:
        """Read `result.json`, or give ``None`` if there is none that can be read."""
        path = self.directory(task_id) / RESULT
        try:
            facts = (
                path.lstat()
            )  # a pipe there would be waited for, a link would tell of another task
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_RESULT_BYTES:
                return None
        except OSError:
            return None
        return read_json_object(path)

    def write_result(self, task_id: str, value: Mapping[str, Any]) -> None:
        """Write `result.json` whole.

        Raises:
            StorageError: the disk would not take it.

        """
        try:
            write_json(self.directory(task_id) / RESULT, value)
        except OSError as error:
            raise StorageError(
                f"can't write {RESULT}: {error.strerror}", where=str(self.directory(task_id))
            ) from error
