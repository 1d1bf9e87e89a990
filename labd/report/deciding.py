"""What campaigns and the adaptive queue decided, out of their record. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labd.clock import at_s_of
from labd.report.model import ArmDecisions, Decided, Decisions
from labd.text import printable

_MOST_TOLD = 60
_MOST_ARMS = 50
_LEVEL = "load.changed"
_HERE = "the lab's own machine"
_TOLD_ELSEWHERE = {"event", "at", "campaign"}


def decisions_of(
    records: Iterable[Mapping[str, Any]], since_s: float, until_s: float, campaign: str = ""
) -> Decisions:
    """Give what was decided in a period, of one campaign or of all. Changes of the load are of all.

    Args:
        records: oldest first, as `labd.daemon.campaigning` writes them, from before the period too.
        since_s: from when, in seconds since the epoch.
        until_s: until when.
        campaign: a campaign's name; empty: all.

    """
    timed = [(at_s, one) for one in records if (at_s := at_s_of(one)) is not None]
    levels: dict[str, list[tuple[float, str]]] = {}
    for at_s, one in timed:
        if one.get("event") == _LEVEL:
            node = printable(str(one.get("node") or _HERE), 100)
            levels.setdefault(node, []).append((at_s, printable(str(one.get("level")), 20)))
    inside = [
        one
        for at_s, one in timed
        if since_s <= at_s <= until_s
        and (not campaign or one.get("campaign") == campaign or one.get("event") == _LEVEL)
    ]
    added = [one for one in inside if one.get("event") == "campaign.added"]
    told = [_told(one) for one in inside]
    return Decisions(
        counts=dict(Counter(one.event for one in told).most_common(20)),
        arms=tuple(_arms(added)),
        level_hours={
            node: hours
            for node, changes in list(levels.items())[:_MOST_ARMS]
            if (hours := _level_hours(changes, since_s, until_s))
        },
        last=tuple(reversed(told[-_MOST_TOLD:])),
        left_out=max(0, len(told) - _MOST_TOLD),
    )


def _arms(added: Sequence[Mapping[str, Any]]) -> list[ArmDecisions]:
    counts = Counter(printable(str(one.get("arm")), 200) for one in added)
    whys = {
        printable(str(one.get("arm")), 200): printable(str(one.get("why")), 400) for one in added
    }
    return [ArmDecisions(arm, count, whys[arm]) for arm, count in counts.most_common(_MOST_ARMS)]


def _level_hours(
    levels: Sequence[tuple[float, str]], since_s: float, until_s: float
) -> dict[str, float]:
    """Give for how long one machine was at which level as far as that is on record; before its first change it is not."""
    hours: dict[str, float] = {}
    ends = [at_s for at_s, _ in levels[1:]] + [until_s]
    for (at_s, level), end_s in zip(levels, ends, strict=False):
        held_s = min(end_s, until_s) - max(at_s, since_s)
        if held_s > 0:
            hours[level] = hours.get(level, 0.0) + held_s / 3600
    return hours


def _told(one: Mapping[str, Any]) -> Decided:
    facts = (
        f"{printable(str(key), 40)}: {printable(str(value), 300)}"
        for key, value in one.items()
        if key not in _TOLD_ELSEWHERE and value not in ("", None)
    )
    return Decided(
        at=printable(str(one.get("at")), 40),
        event=printable(str(one.get("event")), 60),
        campaign=printable(str(one.get("campaign") or ""), 100),
        told=printable("; ".join(facts), 800),
    )
