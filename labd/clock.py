"""Time as labd reads and writes it: aware UTC, ISO-8601 with Z, durations like ``4h``."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_UNITS_S = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d|w)")


def utc_now() -> datetime:
    """Give the present moment, aware, in UTC."""
    return datetime.now(UTC)


def to_iso(moment: datetime) -> str:
    """Print an aware moment as ISO-8601 in UTC with milliseconds and a ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_iso(text: str) -> datetime:
    """Read what `to_iso` printed.

    Raises:
        ValueError: the text is not ISO-8601 with a zone.

    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        msg = f"{text!r} names no time zone"
        raise ValueError(msg)
    return moment


def at_s_of(record: Mapping[str, Any]) -> float | None:
    """Give the instant under ``at`` of an event or another record, in seconds since the epoch; ``None`` if it has none."""
    try:
        return from_iso(str(record.get("at"))).timestamp()
    except (ValueError, OverflowError):
        return None


def parse_duration(value: float | str) -> float:
    """Read ``90``, ``"90s"``, ``"1h30m"`` or ``"2d"`` as seconds.

    Raises:
        ValueError: neither a number nor such a text, or not above zero.

    """
    if isinstance(value, bool):
        msg = "a duration: a number of seconds, or a text such as 4h"
        raise ValueError(msg)  # noqa: TRY004 - pydantic turns only ValueError into a message
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        text = value.strip().lower()
        parts = _PART.findall(text)
        if not parts or _PART.sub("", text).strip():
            msg = "a duration: a number of seconds, or a text such as 90s, 30m, 4h, 1h30m or 2d"
            raise ValueError(msg)
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not 0 < seconds < 10 * 365 * 86400:
        msg = "a duration above zero and below ten years"
        raise ValueError(msg)
    return seconds


def print_duration(seconds: float) -> str:
    """Print seconds for people, with at most two units: ``0.4 s``, ``12 s``, ``3 m 05 s``, ``2 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
