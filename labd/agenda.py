"""What campaigns will do, did last, and why: for readers who look again and again. Files only; decides nothing."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from labd.campaigns import (
    DECISIONS,
    MEMORY,
    OUTCOMES,
    BoundedLines,
    Campaign,
    Level,
    Library,
    Memory,
    Profile,
    Remembered,
    adding,
    arms_of,
    learn,
    outcome_from_json,
    part_of_day,
    read_domains,
    seed_for,
    shares_of,
    upcoming,
)
from labd.clock import from_iso
from labd.errors import ConfigError
from labd.lab import Lab

_SHOWN_DECISIONS = 40
_TAIL_BYTES = 256 * 1024
_FIRINGS = 2
_MAX_ARMS = 50
_LEARN_EVERY_S = 60.0
"""Of the 20,000 outcomes that are kept, reading and learning takes half a second."""


@dataclass(frozen=True, slots=True)
class Firing:
    """An instant at which a step fires, or did, on its campaign's own clock; `tasks`: how many it has."""

    at: datetime
    step: str
    tasks: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A firing of which not all tasks are in the queue yet."""

    step: str
    done: int
    tasks: int


@dataclass(frozen=True, slots=True)
class Arm:
    """A template with a model as an adaptive campaign sees it: its share of what is added now, and what it is expected to do.

    `tasks`: how many have ended; `added`: how many the campaign has added.
    """

    name: str
    share: float
    profile: Profile
    added: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One campaign. `adds`: it keeps the queue filled just now; `problem`: why its file does nothing."""

    name: str
    title: str = ""
    enabled: bool = False
    adaptive: bool = False
    adds: bool = False
    problem: str = ""
    zone: str = ""
    """Where its clock hangs."""
    next: tuple[Firing, ...] = ()
    last: Firing | None = None
    opened: tuple[Opened, ...] = ()
    arms: tuple[Arm, ...] = ()
    starts: tuple[tuple[str, int], ...] = ()
    """What may be started by hand: the names of its steps that have tasks, and how many."""


@dataclass(frozen=True, slots=True)
class Agenda:
    """All campaigns, and the last decisions of the daemon about them, the newest first."""

    plans: tuple[Plan, ...] = ()
    decisions: tuple[Mapping[str, Any], ...] = ()


class AgendaReader:
    """Reads the agenda of a lab; what has not changed is not read again. For one thread."""

    def __init__(self, lab: Lab, *, learn_every_s: float = _LEARN_EVERY_S) -> None:
        home = lab.home
        self._learn_every_s, self._learnt_s = learn_every_s, float("-inf")
        self._library = Library(home.campaigns)
        self._remembered = Remembered(home.run_dir / MEMORY)
        self._decisions = BoundedLines(home.run_dir / DECISIONS)
        self._outcomes = BoundedLines(home.run_dir / OUTCOMES)
        self._learnt_from = (home.domains, *self._outcomes.paths)
        self._domains = home.domains
        self._profiles: dict[str, Profile] = {}
        self._version: object = None

    def read(self, now: datetime) -> Agenda:
        """Give what there is to tell.

        Raises:
            OSError: the files can't be read.

        """
        self._library.refresh()
        try:
            memories = self._remembered.read()
        except ConfigError:
            memories = {}  # the daemon says what is wrong with it
        decisions = self._decisions.read(_TAIL_BYTES)
        profiles = self._learnt() if self._library.campaigns else {}
        plans = [
            plan_of(campaign, memories.get(name), decisions, profiles, now)
            for name, campaign in sorted(self._library.campaigns.items())
        ]
        plans += [
            Plan(Path(file).stem, problem=problem)
            for file, problem in sorted(self._library.problems.items())
        ]
        return Agenda(tuple(plans), tuple(reversed(decisions[-_SHOWN_DECISIONS:])))

    def _learnt(self) -> dict[str, Profile]:
        if time.monotonic() - self._learnt_s < self._learn_every_s:
            return self._profiles
        self._learnt_s = time.monotonic()
        version = [_version(path) for path in self._learnt_from]
        if version != self._version:
            read = (outcome_from_json(one) for one in self._outcomes.read())
            try:
                seeds = read_domains(self._domains)
            except ConfigError:
                seeds = {}  # the same
            self._profiles = learn((one for one in read if one is not None), seeds)
            self._version = version
        return self._profiles


def plan_of(
    campaign: Campaign,
    memory: Memory | None,
    decisions: Sequence[Mapping[str, Any]],
    profiles: Mapping[str, Profile],
    now: datetime,
) -> Plan:
    """Give what is to be told of a campaign. Pure.

    Args:
        campaign: as its file says.
        memory: what is remembered of it.
        decisions: the last ones about all campaigns, oldest first.
        profiles: what the lab has learnt of each arm.
        now: the present moment.

    """
    told, known = upcoming(campaign, now, _FIRINGS), memory or Memory()
    mine = [one for one in decisions if one.get("campaign") == campaign.name]
    opened = [
        Opened(name, o.done, len(step.combinations))
        for name, o in known.opened.items()
        if (step := campaign.step(name)) is not None
    ]
    return Plan(
        name=campaign.name,
        title=campaign.spec.title or "",
        enabled=campaign.spec.enabled,
        adaptive=campaign.spec.adaptive is not None,
        adds=campaign.spec.enabled and adding(campaign, now),
        zone=campaign.spec.time_zone,
        next=tuple(
            Firing(at.astimezone(campaign.zone), step.name, len(step.combinations))
            for at, step in sorted(told, key=lambda one: one[0])
        ),
        last=_last(campaign, mine),
        opened=tuple(opened),
        arms=tuple(_arms(campaign, known, mine, profiles, now)),
        starts=tuple((step.name, len(step.combinations)) for step in campaign.startable),
    )


def _last(campaign: Campaign, mine: Sequence[Mapping[str, Any]]) -> Firing | None:
    fired = next((one for one in reversed(mine) if one.get("event") == "campaign.fired"), None)
    if fired is None:
        return None
    try:
        at = from_iso(str(fired["instant"])).astimezone(campaign.zone)
        return Firing(at, str(fired.get("step", "")), int(fired.get("tasks", 0)))
    except (KeyError, ValueError, TypeError):
        return None


def _arms(
    campaign: Campaign,
    memory: Memory,
    mine: Sequence[Mapping[str, Any]],
    profiles: Mapping[str, Profile],
    now: datetime,
) -> list[Arm]:
    adaptive = campaign.spec.adaptive
    names = [*arms_of(campaign)]
    if adaptive is None or not names:
        return []
    known = {arm: profiles.get(arm) or seed_for(arm, profiles) for arm in names}
    # The load that counts is the one that the daemon last went by.
    word = next((str(one["level"]) for one in reversed(mine) if one.get("level")), "")
    level = next((level for level in Level if level.word == word), Level.NORMAL)
    part = part_of_day(now.astimezone(campaign.zone))
    share = shares_of(known, exploration=adaptive.exploration, part=part, level=level)
    arms = [Arm(arm, share[arm], known[arm], memory.given.get(arm, 0)) for arm in names]
    return sorted(arms, key=lambda arm: (-arm.share, arm.name))[:_MAX_ARMS]


def _version(path: Path) -> tuple[int, int] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_size
