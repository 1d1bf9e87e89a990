"""The adaptive queue: how many tasks a campaign adds now, and of which arms. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from labd.campaigns.firing import Decision, Memory, Note, Queue, over_gpu_hours, room_for
from labd.campaigns.load import Concurrency, Level, Room, concurrency, part_of_day
from labd.campaigns.mix import Profile, arm_of, pick, seed_for
from labd.campaigns.model import FILL, Campaign
from labd.campaigns.tasks import draft
from labd.clock import to_iso

_AHEAD = 0.25


@dataclass(frozen=True, slots=True)
class Lab:
    """What the adaptive queue sees of the lab.

    `rooms`: the nodes that may be used and have said how loaded they are. `queued`: how many tasks wait, whoever's they are.
    `calls`: how many requests the endpoints of language models answer at once (``None``: not known), `endpoints` how
    loaded they are, `tokens_per_s` what they have answered with in the last minute.
    """

    rooms: Sequence[Room]
    queued: int = 0
    calls: int | None = None
    endpoints: Level = Level.NORMAL
    tokens_per_s: float | None = None


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


def wanted(campaign: Campaign, lab: Lab) -> tuple[int, Concurrency]:
    """Give how many tasks should wait in the lab, for it to be busy: what may start now, and a quarter ahead of all.

    Nothing waits ahead while a machine's load is high: it would start there, beyond the half that is to run.
    """
    rooms = lab.rooms
    if lab.endpoints is Level.HIGH and any(keys.get("model") for keys in campaign.pool):
        rooms = [replace(room, level=max(room.level, Level.HIGH)) for room in rooms]
    sizes = [(k.get("num_cpus", 1.0), k.get("num_gpus", 0.0)) for k in campaign.pool]
    each = (concurrency(rooms, cpus, gpus) for cpus, gpus in sizes)
    found = max(each, key=lambda one: one.recommended)
    most, free, over = found.recommended, found.free, 0
    limit = _limit(campaign, lab)
    if limit is not None and limit < most:
        free, over = max(0, min(free, limit - found.busy)), max(0, found.busy - limit)
        most = limit
    if not most or any(room.level is Level.HIGH for room in rooms):
        return free, found
    return free + max(0, max(1, int(_AHEAD * most)) - over), found


def _limit(campaign: Campaign, lab: Lab) -> int | None:
    """Give how many should run at most for the endpoints' sake, and by the campaign's intensity."""
    limits = []
    if lab.calls is not None and all(keys.get("model") for keys in campaign.pool):
        limits.append(max(1, lab.calls))
    if campaign.spec.intensity:
        limits.append(campaign.spec.intensity.parallel)
    return min(limits, default=None)


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
    target, found = wanted(campaign, lab)
    number = target - lab.queued - len(before.drafts)
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
            level=found.level,
        )
        keys = _next_of(arms[chosen.arm], chosen.arm, memory)
        given = {**memory.given, chosen.arm: memory.given.get(chosen.arm, 0) + 1}
        memory = replace(memory, picked=chosen.picked, given=given)
        new = draft(campaign, FILL, now, count, keys)
        added.append(new)
        facts = {"campaign": campaign.name, "task": new.id, "arm": chosen.arm, "why": chosen.why}
        room = {
            "recommended": found.recommended,
            "queued": lab.queued,
            "running": found.busy,
            "level": found.level.word,
            "tokens_per_s": lab.tokens_per_s,
        }
        notes.append(Note("campaign.added", {**facts, **room, "at": to_iso(now)}))
    return replace(before, memory=memory, drafts=added, notes=notes)


def _next_of(
    combinations: Sequence[Mapping[str, Any]], arm: str, memory: Memory
) -> Mapping[str, Any]:
    """Give an arm's next combination, in turn; with a new seed where the file names none, so that nothing is done twice."""
    keys = combinations[memory.given.get(arm, 0) % len(combinations)]
    return keys if "seed" in keys else {**keys, "seed": sum(memory.given.values())}
