"""The adaptive queue: how many tasks a campaign adds now, and of which arms. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from labd.campaigns.firing import Decision, Memory, Note, Queue, over_gpu_hours, room_for
from labd.campaigns.load import Capacity, Level, Room, concurrency, part_of_day, slots_for
from labd.campaigns.mix import Profile, arm_of, pick, seed_for
from labd.campaigns.model import FILL, Campaign
from labd.campaigns.tasks import draft
from labd.clock import to_iso

_AHEAD = 0.25


@dataclass(frozen=True, slots=True)
class Lab:
    """What the adaptive queue sees of the lab.

    `queued`, `running`: how many tasks wait and run in all, whoever's they are. `calls`: how many requests the
    endpoints of language models answer at once; ``None``: not known.
    """

    rooms: Sequence[Room]
    capacity: Capacity
    queued: int = 0
    running: int = 0
    calls: int | None = None


def arms_of(campaign: Campaign) -> dict[str, list[Mapping[str, Any]]]:
    """Give the combinations of each arm of a campaign, in the file's order."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for keys in campaign.pool:
        arms.setdefault(arm_of(keys.get("template"), keys.get("model")), []).append(keys)
    return arms


def expected_gpu_hours(keys: Mapping[str, Any], profiles: Mapping[str, Profile]) -> float:
    """Give how many GPU hours a task that waits or runs is expected to take."""
    arm = arm_of(keys.get("template"), keys.get("model"))
    profile = profiles.get(arm) or seed_for(arm, profiles)
    return float(keys.get("num_gpus", 0.0)) * profile.duration_s / 3600


def wanted(campaign: Campaign, lab: Lab) -> int:
    """Give how many tasks should wait or run in the lab, for it to be busy: what can run, and a quarter of it ahead."""
    sizes = [(k.get("num_cpus", 1.0), k.get("num_gpus", 0.0)) for k in campaign.pool]
    slots = max((slots_for(lab.rooms, cpus, gpus) for cpus, gpus in sizes), default=0)
    if lab.calls is not None and all(keys.get("model") for keys in campaign.pool):
        slots = min(slots, max(1, lab.calls))
    level, intensity = lab.capacity.level, campaign.spec.intensity
    running = concurrency(level, slots, intensity.parallel if intensity else None)
    return 0 if level is Level.CRITICAL else running + max(1, int(_AHEAD * running))


def fill(
    campaign: Campaign,
    before: Decision,
    queue: Queue,
    lab: Lab,
    profiles: Mapping[str, Profile],
    *,
    now: datetime,
    gpu_hours: float = 0.0,
) -> Decision:
    """Add what the lab has room for to what the campaign's steps do.

    Args:
        campaign: one with `adaptive`, in its time.
        before: what its steps do now.
        queue: its own tasks.
        lab: what there is and what goes on.
        profiles: what is expected of each arm.
        now: the present moment.
        gpu_hours: as for `labd.campaigns.firing.decide`.

    """
    adaptive = campaign.spec.adaptive
    if adaptive is None or over_gpu_hours(campaign, gpu_hours):
        return before
    target = wanted(campaign, lab)
    number = target - lab.queued - lab.running - len(before.drafts)
    number = min(number, room_for(campaign, queue, len(before.drafts)))
    if number <= 0:
        return before
    memory, added, notes = before.memory, [*before.drafts], [*before.notes]
    arms = arms_of(campaign)
    known = {arm: profiles.get(arm) or seed_for(arm, profiles) for arm in arms}
    part = part_of_day(now.astimezone(campaign.zone))
    for count in range(1, number + 1):
        chosen = pick(
            known,
            memory.picked,
            exploration=adaptive.exploration,
            part=part,
            level=lab.capacity.level,
        )
        keys = _next_of(arms[chosen.arm], chosen.arm, memory)
        given = {**memory.given, chosen.arm: memory.given.get(chosen.arm, 0) + 1}
        memory = replace(memory, picked=chosen.picked, given=given)
        new = draft(campaign, FILL, now, count, keys)
        added.append(new)
        facts = {"campaign": campaign.name, "task": new.id, "arm": chosen.arm, "why": chosen.why}
        room = {"target": target, "queued": lab.queued, "running": lab.running}
        notes.append(Note("campaign.added", {**facts, **room, "at": to_iso(now)}))
    return replace(before, memory=memory, drafts=added, notes=notes)


def _next_of(
    combinations: Sequence[Mapping[str, Any]], arm: str, memory: Memory
) -> Mapping[str, Any]:
    """Give an arm's next combination, in turn; with a new seed where the file names none, so that nothing is done twice."""
    keys = combinations[memory.given.get(arm, 0) % len(combinations)]
    return keys if "seed" in keys else {**keys, "seed": sum(memory.given.values())}
