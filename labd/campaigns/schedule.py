"""When a cron line comes, in a time zone, on both edges of daylight saving. Pure.

Five fields, as Debian's cron reads them (`cronsim`). A time of day that the clocks skip comes at the moment when they
have jumped; a time of day that they show twice comes once, the first time. Lines that begin with ``*`` in the minute or
the hour go by elapsed time and miss no hour.
Source: cron(8) of Debian, "Notes"; measured with cronsim 2.8.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_FIELDS = 5
_NEAR = timedelta(hours=3)
_SOME_DAY = datetime(2026, 1, 1, tzinfo=UTC)


def read_cron(text: str) -> str:
    """Pass a cron line that comes some day.

    Raises:
        ValueError: it is none, with what is wanted.

    """
    wanted = "a cron line of five fields, such as `0 22 * * *` or `30 8 * * mon-fri`"
    if len(text.split()) != _FIELDS or len(text) > 200:
        raise ValueError(wanted)
    try:
        next(CronSim(text, _SOME_DAY))
    except CronSimError as error:
        msg = f"{wanted}: {error}"
        raise ValueError(msg) from error
    except StopIteration:
        msg = f"{wanted}: this one never comes"
        raise ValueError(msg) from None
    return " ".join(text.split())


def firings(cron: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Give the instants of a cron line after a moment, in UTC, in order."""
    last = after
    for local in CronSim(cron, after.astimezone(zone)):
        instant = local.astimezone(UTC)
        # In the hour that the clocks show twice, a line may name what has come already.
        if instant > last:
            yield instant
            last = instant


def last_firing(cron: str, zone: ZoneInfo, now: datetime) -> datetime:
    """Give the last instant of a cron line up to and including `now`, in UTC."""
    found = datetime.min.replace(tzinfo=UTC)
    for instant in firings(cron, zone, now - _NEAR):
        if instant > now:
            break
        found = instant
    if found.year > 1:
        return found
    start = (now - _NEAR).astimezone(zone).replace(microsecond=0) + timedelta(seconds=1)
    found = next(CronSim(cron, start, reverse=True)).astimezone(UTC)
    # Backwards from within the hour that comes twice, its first showing is passed over: forwards from there it is not.
    for instant in firings(cron, zone, found):
        if instant > now:
            break
        found = instant
    return found
