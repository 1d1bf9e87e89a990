"""What is told: notices made harmless, gathered within bounds, and made into one message. Pure."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, get_args

from labd.text import printable

Event = Literal["failed", "stuck", "report", "done"]
"""What somebody may be told of, the gravest first."""
EVENTS: tuple[Event, ...] = get_args(Event)
Fact = str | int | float | Sequence[str]

MAX_LISTED = 25
"""Notices of one event that a message tells one by one; of more it gives the number."""
MAX_BODY_BYTES = 128 * 1024
_MAX_FACTS = 30
_MAX_ITEMS = 20
_MAX_TEXT = 500
_MAX_KEY = 60
_MAX_NUMBER = 10**15
_MAX_LINE = 300
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened; its facts are printable, short and few."""

    event: Event
    at: str
    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {**self.facts, "event": self.event, "at": self.at}

    @property
    def subject(self) -> str:
        """The task, campaign or file that it is of."""
        found = (self.facts.get(key) for key in ("task", "campaign", "path"))
        return next((str(one) for one in found if one), "")

    @property
    def line(self) -> str:
        """It in a line for people."""
        because = (self.facts.get(key) for key in ("reason", "evidence", "summary", "path"))
        why = next((one for one in because if one), "")
        if isinstance(why, list):
            why = "; ".join(str(one) for one in why[:3])
        parts = (f"labd: {self.event}", self.subject, "" if why == self.subject else str(why))
        return printable(": ".join(part for part in parts if part), _MAX_LINE)


def notice_of(event: Event, facts: Mapping[str, Any], at: str) -> Notice:
    """Make a notice of facts that may be anybody's text; what can't be told is left out or cut."""
    kept = {printable(str(k), _MAX_KEY): _cleaned(v) for k, v in [*facts.items()][:_MAX_FACTS]}
    return Notice(event, at, {key: value for key, value in kept.items() if value is not None})


def notice_from_json(value: Any) -> Notice | None:
    """Read what `Notice.as_json` gave; ``None`` where it is nothing of the kind."""
    if not isinstance(value, dict) or value.get("event") not in EVENTS:
        return None
    facts = {key: fact for key, fact in value.items() if key not in {"event", "at"}}
    return notice_of(value["event"], facts, printable(str(value.get("at", "")), _MAX_KEY))


def _cleaned(value: Any) -> str | int | float | list[str] | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        # A longer one may be too long to be printed at all.
        return value if abs(value) < _MAX_NUMBER else "a number of more than 15 digits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _short(value, _MAX_TEXT)
    if isinstance(value, Iterable):
        return [_short(str(one), _MAX_LINE) for one in islice(value, _MAX_ITEMS)]
    return printable(str(value), _MAX_TEXT)


def _short(text: str, limit: int) -> str:
    # Most texts are plain, and looking at each character takes long.
    return text if len(text) <= limit and text.isprintable() else printable(text, limit)


@dataclass(slots=True)
class Gathered:
    """Notices that wait to be told together: how many of each event, and the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[Notice] = field(default_factory=list)

    def lists(self, event: Event) -> bool:
        """Say whether the next notice of this event is told by itself; else only the number is."""
        return self.counts[event] < MAX_LISTED

    def add(self, event: Event, notice: Notice | None) -> None:
        """Count one more, and keep it where it is told by itself."""
        if notice is not None and self.lists(event):
            self.listed.append(notice)
        self.counts[event] += 1

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {"counts": dict(self.counts), "events": [one.as_json() for one in self.listed]}


def gathered_from_json(value: Any) -> Gathered:
    """Read what `Gathered.as_json` gave; what it can't read is left out."""
    found = Gathered()
    if not isinstance(value, dict):
        return found
    events, counts = value.get("events"), value.get("counts")
    read = (notice_from_json(one) for one in (events if isinstance(events, list) else ()))
    for notice in read:
        if notice is not None:
            found.add(notice.event, notice)
    for event, number in (counts if isinstance(counts, dict) else {}).items():
        if event in EVENTS and isinstance(number, int):
            found.counts[event] = max(found.counts[event], number)
    return found


def message_of(gathered: Gathered, *, number: str, lab: str, version: str) -> dict[str, Any]:
    """Make the message that is sent: the same form for one notice and for ten thousand.

    Args:
        gathered: what is told; at least one.
        number: what tells this message from all others, for those that get it twice.
        lab: the name of the machine.
        version: labd's.

    """
    order = sorted(gathered.listed, key=lambda one: EVENTS.index(one.event))
    counts = {event: gathered.counts[event] for event in EVENTS if gathered.counts[event]}
    total = sum(counts.values())
    message: dict[str, Any] = {
        "id": number,
        "labd": version,
        "lab": printable(lab, _MAX_KEY),
        "event": next(iter(counts)),
        "text": order[0].line if total == 1 else _told_together(counts, order),
        "count": total,
        "counts": counts,
        "left_out": total - len(order),
        "events": [one.as_json() for one in order],
    }
    while len(encoded(message)) > MAX_BODY_BYTES and message["events"]:
        message["events"] = message["events"][: len(message["events"]) // 2]
        message["left_out"] = total - len(message["events"])
    return message


def encoded(message: Mapping[str, Any]) -> bytes:
    """Give a message as it is sent."""
    return json.dumps(message, ensure_ascii=False, allow_nan=False).encode(errors="replace")


def _told_together(counts: Mapping[Event, int], order: Sequence[Notice]) -> str:
    numbers = ", ".join(f"{number} {event}" for event, number in counts.items())
    names = [one.subject for one in order if one.subject][:_NAMED]
    more = ", …" if sum(counts.values()) > len(names) else ""
    return printable(f"labd: {numbers}: {', '.join(names)}{more}", _MAX_LINE)


def variables_of(message: Mapping[str, Any]) -> dict[str, str]:
    """Give what a command finds of a message in its environment, for those that read no JSON."""
    only = message["events"][0] if message["count"] == 1 and message["events"] else {}
    return {
        "LABD_EVENT": str(message["event"]),
        "LABD_TEXT": str(message["text"]),
        "LABD_COUNT": str(message["count"]),
        "LABD_TASK": str(only.get("task", "")),
        "LABD_CAMPAIGN": str(only.get("campaign", "")),
    }
