"""From when to when a report tells: what people write for an instant. Pure but for the machine's own time zone."""

import re
from datetime import date, datetime, time, timedelta, tzinfo

from labd.clock import parse_duration
from labd.text import printable

EXPECTED = (
    "a weekday such as fri (its last midnight here), today, yesterday, a duration such as 7d or 36h, "
    "a date such as 2026-11-20, or an instant such as 2026-11-20T18:00:00Z"
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def read_instant(text: str, now: datetime, zone: tzinfo | None = None) -> datetime:
    """Give the instant that a text names, aware.

    Args:
        text: what was written; see `EXPECTED`.
        now: the present moment, aware.
        zone: whose midnights count; ``None``: the machine's.

    Raises:
        ValueError: it names none; the text says what was found and what is expected.

    """
    word = text.strip().lower()
    today = now.astimezone(zone).date()
    if word in {"today", "yesterday"}:
        return _midnight(today - timedelta(days=word == "yesterday"), zone)
    if len(word) >= 3:
        for number, name in enumerate(_DAYS):
            if name.startswith(word):
                return _midnight(today - timedelta(days=(today.weekday() - number) % 7), zone)
    try:
        if _DATE.fullmatch(word):
            return _midnight(date.fromisoformat(word), zone)
        if word[:4].isdecimal() and "-" in word:
            return _local(datetime.fromisoformat(text.strip()), zone)
        return now - timedelta(seconds=parse_duration(word))
    except (ValueError, OverflowError) as error:
        msg = f"{printable(text, 60)!r} is no instant; expected {EXPECTED}"
        raise ValueError(msg) from error


def _midnight(day: date, zone: tzinfo | None) -> datetime:
    return _local(datetime.combine(day, time()), zone)


def _local(moment: datetime, zone: tzinfo | None) -> datetime:
    if moment.tzinfo is not None:
        return moment
    return moment.astimezone() if zone is None else moment.replace(tzinfo=zone)
