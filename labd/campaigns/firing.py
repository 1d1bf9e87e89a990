"""What is due: which steps fire, how many of their tasks go into the queue now, and what is remembered. Pure.

A step remembers the instant up to which it is done with. What does not fit into the queue stays *open* and follows.
A lost memory makes no task twice, because the tasks' names say campaign, step and instant; a campaign that
is not remembered begins now and makes up for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from labd.campaigns.model import Campaign, Step
from labd.campaigns.schedule import firings, last_firing
from labd.campaigns.tasks import Draft, drafts
from labd.clock import from_iso, print_duration, to_iso

LATE_S = 300.0
"""After so long a firing counts as missed."""
_AHEAD_S = 300.0
"""By so much what is remembered may lie ahead: clocks are set."""


@dataclass(frozen=True, slots=True)
class Open:
    """A firing of which tasks are still to come, from the `done`-th on."""

    instant: datetime
    done: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a campaign, by the names of its steps."""

    through: Mapping[str, datetime] = field(default_factory=dict)
    """Up to which instant nothing fires again."""
    opened: Mapping[str, Open] = field(default_factory=dict)
    picked: Mapping[str, float] = field(default_factory=dict)
    """How many tasks the adaptive queue has added, by arm; older ones count less."""
    given: Mapping[str, int] = field(default_factory=dict)
    """How many in all, by arm."""
    doubted: Mapping[str, datetime] = field(default_factory=dict)
    """What `through` said that was yet to come: the clock was ahead then, or is behind now."""

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {
            "through": {name: to_iso(at) for name, at in self.through.items()},
            "open": {
                name: {"instant": to_iso(o.instant), "done": o.done}
                for name, o in self.opened.items()
            },
            "picked": {arm: round(count, 6) for arm, count in self.picked.items()},
            "given": dict(self.given),
            "doubted": {name: to_iso(at) for name, at in self.doubted.items()},
        }


def memory_from_json(value: Mapping[str, Any]) -> Memory:
    """Read what `Memory.as_json` gave.

    Raises:
        KeyError, ValueError, TypeError, AttributeError: it is nothing of the kind.

    """
    return Memory(
        {str(name): from_iso(at) for name, at in value["through"].items()},
        {
            str(name): Open(from_iso(o["instant"]), int(o["done"]))
            for name, o in value["open"].items()
        },
        {str(arm): float(count) for arm, count in value["picked"].items()},
        {str(arm): int(count) for arm, count in value["given"].items()},
        {str(name): from_iso(at) for name, at in value.get("doubted", {}).items()},
    )


@dataclass(frozen=True, slots=True)
class Queue:
    """The tasks of one campaign, by their ids."""

    pending: Sequence[str] = ()
    running: Sequence[str] = ()

    def of(self, prefix: str) -> "Queue":
        """Give those whose ids begin so."""
        return Queue(
            [one for one in self.pending if one.startswith(prefix)],
            [one for one in self.running if one.startswith(prefix)],
        )

    def __len__(self) -> int:
        return len(self.pending) + len(self.running)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was decided, and why: a line of the log and of the record of decisions."""

    event: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one campaign: files to put into the queue, and what to remember once that is done."""

    memory: Memory
    drafts: Sequence[Draft] = ()
    notes: Sequence[Note] = ()
    wind_down: bool = False
    """Whether its waiting tasks are to be cancelled."""


def begin(campaign: Campaign, memory: Memory | None, now: datetime) -> Memory:
    """Give the memory with every step in it; one that is not remembered begins now."""
    known = memory or Memory()
    names = [step.name for step in campaign.steps]
    return replace(
        known,
        through={name: known.through.get(name, now) for name in names},
        opened={name: o for name, o in known.opened.items() if name in names},
        doubted={name: at for name, at in known.doubted.items() if name in names},
    )


def decide(
    campaign: Campaign,
    memory: Memory,
    queue: Queue,
    now: datetime,
    *,
    gpu_hours: float = 0.0,
) -> Decision:
    """Decide what a campaign's steps do now.

    Args:
        campaign: an enabled campaign.
        memory: as `begin` gave it.
        queue: its own tasks.
        now: the present moment.
        gpu_hours: what its tasks took in the last seven days, with what those under way are expected to.

    """
    decision = _by_this_clock(campaign, memory, now)
    memory = decision.memory
    due = [(at, step) for step in campaign.steps if (at := _due(campaign, step, memory, now))]
    for at, step in sorted(due, key=lambda one: one[0]):
        decision = _fire(campaign, step, at, decision, now)
    if decision.wind_down:
        queue = replace(queue, pending=())
    return _top_up(campaign, decision, queue, gpu_hours)


def _by_this_clock(campaign: Campaign, memory: Memory, now: datetime) -> Decision:
    """Let no step be done with what is yet to come: a clock that was ahead once would silence it until then.

    Which of the two clocks was wrong can't be told. So what it was done with is kept, and holds again from that time on:
    nothing fires twice where it is the present clock that is behind. A firing that is open keeps its instant, because its
    tasks' names say it.
    """
    limit = now + timedelta(seconds=_AHEAD_S)
    ahead = {name: at for name, at in memory.through.items() if at > limit}
    come = {name: at for name, at in memory.doubted.items() if at <= now}
    if not ahead and not come:
        return Decision(memory)
    through = {**memory.through, **dict.fromkeys(ahead, now)}
    through |= {name: max(at, through[name]) for name, at in come.items() if name in through}
    kept = {name: at for name, at in memory.doubted.items() if name not in come}
    notes = [
        Note(
            "campaign.clock",
            {
                "campaign": campaign.name,
                "step": name,
                "instant": to_iso(at),
                "why": "it was done with what is yet to come: the clock was ahead then, or is behind now",
            },
        )
        for name, at in ahead.items()
    ]
    return Decision(replace(memory, through=through, doubted={**kept, **ahead}), notes=notes)


def upcoming(campaign: Campaign, now: datetime, count: int = 1) -> list[tuple[datetime, Step]]:
    """Give the next firings, `count` of each step, in order."""
    found = []
    for step in campaign.steps:
        if step.cron is None:
            continue
        for _, at in zip(range(count), firings(step.cron, campaign.zone, now), strict=False):
            if campaign.spec.until is None or at < campaign.spec.until:
                found.append((at, step))
    return sorted(found, key=lambda one: one[0])


def reported_since(campaign: Campaign, step: str, at: datetime) -> datetime:
    """Give from when on a step's report tells: the campaign's first firing after the report before, and else the step's own.

    Args:
        campaign: whose report it is.
        step: the name of the step that fires.
        at: the instant at which it does.

    """
    own = campaign.step(step)
    if own is None or own.cron is None:
        return at
    before = last_firing(own.cron, campaign.zone, at - timedelta(seconds=1))
    others = [one.cron for one in campaign.steps if one.cron and one.name != step]
    firsts = [next(firings(cron, campaign.zone, before), at) for cron in others]
    return min([at, *firsts])


def adding(campaign: Campaign, now: datetime) -> bool:
    """Say whether an adaptive campaign may add tasks now: in its time, and not after its step that winds down."""
    spec = campaign.spec
    if spec.adaptive is None or (spec.until is not None and now >= spec.until):
        return False
    last = [(last_firing(s.cron, campaign.zone, now), s) for s in campaign.steps if s.cron]
    if not last:
        return True
    at, step = max(last, key=lambda one: one[0])
    lasts_s = spec.adaptive.lasts
    return not step.wind_down and (lasts_s is None or now < at + timedelta(seconds=lasts_s))


def _due(campaign: Campaign, step: Step, memory: Memory, now: datetime) -> datetime | None:
    if step.cron is None:
        return None
    at = last_firing(step.cron, campaign.zone, now)
    until = campaign.spec.until
    if until is not None and at >= until:
        return None
    return at if at > memory.through[step.name] else None


def _fire(
    campaign: Campaign, step: Step, at: datetime, before: Decision, now: datetime
) -> Decision:
    spec, late_s = campaign.spec, (now - at).total_seconds()
    facts = {"campaign": campaign.name, "step": step.name, "instant": to_iso(at)}
    memory = replace(before.memory, through={**before.memory.through, step.name: at})
    if late_s > LATE_S and (spec.missed == "skip" or late_s > spec.missed_within):
        why = f"it was missed {print_duration(late_s)} ago"
        note = Note("campaign.skipped", {**facts, "why": why})
        return replace(before, memory=memory, notes=[*before.notes, note])
    notes = [*before.notes]
    left = [name for name in memory.opened if name == step.name or step.wind_down]
    for name in left:
        old = campaign.step(name)
        rest = len(old.combinations) - memory.opened[name].done if old else 0
        why = f"{rest} tasks were still to come when {step.name or 'it'} fired"
        notes.append(Note("campaign.rest_dropped", {**facts, "of": name, "why": why}))
    opened = {name: o for name, o in memory.opened.items() if name not in left}
    if step.combinations:
        opened[step.name] = Open(at)
    late = {"late_s": round(late_s)} if late_s > LATE_S else {}
    number = len(step.combinations)
    notes.append(Note("campaign.fired", {**facts, "tasks": number, "report": step.report, **late}))
    memory = replace(memory, opened=opened)
    wind_down = before.wind_down or step.wind_down
    return replace(before, memory=memory, notes=notes, wind_down=wind_down)


def _top_up(campaign: Campaign, before: Decision, queue: Queue, gpu_hours: float) -> Decision:
    """Put as many tasks of open firings into the queue as the limits let in, the firing before first."""
    memory, added = before.memory, list(before.drafts)
    opened = dict(memory.opened)
    if over_gpu_hours(campaign, gpu_hours):
        return before
    for name, o in sorted(opened.items(), key=lambda one: one[1].instant):
        step = campaign.step(name)
        if step is None:
            continue
        own = queue.of(f"{campaign.prefix}{name}--" if name else campaign.prefix)
        room = room_for(campaign, queue, len(added))
        room = min(room, step.intensity.parallel - len(own)) if not _limited(campaign) else room
        taken = drafts(campaign, step, o.instant, o.done, room)
        added += taken
        opened[name] = replace(o, done=o.done + len(taken))
        if opened[name].done >= len(step.combinations):
            del opened[name]
    return replace(before, memory=replace(memory, opened=opened), drafts=added)


def room_for(campaign: Campaign, queue: Queue, added: int = 0) -> int:
    """Give how many more tasks a campaign's limits let in, after `added` of this moment."""
    limits = campaign.spec.limits
    room = limits.max_queued - len(queue.pending) - added
    if limits.max_running is not None:
        room = min(room, limits.max_running - len(queue) - added)
    return max(0, room)


def over_gpu_hours(campaign: Campaign, gpu_hours: float) -> bool:
    """Say whether a campaign has used the GPU hours that it may."""
    most = campaign.spec.limits.max_gpu_hours
    return most is not None and gpu_hours >= most


def _limited(campaign: Campaign) -> bool:
    return campaign.spec.limits.max_running is not None
