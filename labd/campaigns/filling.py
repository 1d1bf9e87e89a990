"""The adaptive queue: how many tasks a campaign adds now, and of which arms. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from labd.campaigns.firing import Decision, Memory, Note, Queue, over_gpu_hours, room_for
from labd.campaigns.load import (
    Concurrency,
    Level,
    Room,
    concurrency,
    free_slots,
    part_of_day,
    slots_for,
)
from labd.campaigns.mix import Profile, arm_of, pick, seed_for
from labd.campaigns.model import FILL, Campaign
from labd.campaigns.tasks import demand_of, draft
from labd.clock import to_iso
from labd.scheduler import Demand

_AHEAD = 0.25


@dataclass(frozen=True, slots=True)
class Lab:
    """What the adaptive queue sees of the lab.

    `rooms`: the nodes that may be used and have said how loaded they are. `waiting`: how many tasks wait for nothing but
    room, whoever's they are, by what they ask for; what comes first by priority is first.
    `calls`: how many requests the endpoints of language models answer at once (``None``: not known), `endpoints` how
    loaded they are, `tokens_per_s` what they have answered with in the last minute.
    """

    rooms: Sequence[Room]
    waiting: Mapping[Demand, int] = field(default_factory=dict)
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
    """Give how many GPU hours a task that waits or runs is expected to take, on all the nodes that it may have."""
    arm = arm_of(keys.get("template"), keys.get("model"))
    profile = profiles.get(arm) or seed_for(arm, profiles)
    num_gpus = float(keys.get("num_gpus", 0.0)) * int(keys.get("num_nodes", 1))
    return num_gpus * profile.duration_s / 3600


@dataclass(frozen=True, slots=True)
class _Wanted:
    """How many tasks should be added: `now` to start at once, `ahead` to wait; into which rooms, once what waits has started."""

    now: int
    ahead: int
    rooms: Sequence[Room]
    found: Concurrency


def _wanted(campaign: Campaign, lab: Lab, added: Iterable[Demand]) -> _Wanted:
    """Give how many tasks the lab needs to be busy: what may start now, and a quarter ahead of all.

    What waits counts where it makes a difference: against what may start now only what starts itself, against the quarter
    only what some node could ever hold. Nothing waits ahead while a machine's load is high: it would start there, beyond
    the half that is to run.
    """
    rooms: Sequence[Room] = lab.rooms
    if lab.endpoints is Level.HIGH and any(keys.get("model") for keys in campaign.pool):
        rooms = [replace(room, level=max(room.level, Level.HIGH)) for room in rooms]
    rest = 0
    for demand, count in [*lab.waiting.items(), *((one, 1) for one in added)]:
        rooms, started = _started(rooms, demand, count)
        if any(slots_for(room, demand) for room in rooms):
            rest += count - started
    each = (concurrency(rooms, one) for one in dict.fromkeys(map(demand_of, campaign.pool)))
    found = max(each, key=lambda one: one.recommended)
    most, free, over = found.recommended, found.free, 0
    limit = _limit(campaign, lab)
    if limit is not None and limit < most:
        free, over = max(0, min(free, limit - found.busy)), max(0, found.busy - limit)
        most = limit
    if not most or any(room.level is Level.HIGH for room in rooms):
        return _Wanted(free, 0, rooms, found)
    return _Wanted(free, max(0, max(1, int(_AHEAD * most)) - over - rest), rooms, found)


def _started(rooms: Sequence[Room], demand: Demand, count: int) -> tuple[list[Room], int]:
    """Give the rooms with as many tasks of a size as start there, at most `count`, and how many these are.

    As the scheduler places them: none where the load is critical, first where it is not high, and where a task was stuck
    only if no other node could hold it.
    """
    after, left = list(rooms), count
    others = any(room.id not in demand.avoid and slots_for(room, demand) for room in rooms)
    for index, room in sorted(enumerate(rooms), key=lambda one: one[1].level):
        avoided = others and room.id in demand.avoid
        if not left or avoided or room.level is Level.CRITICAL:
            continue
        here = min(left, free_slots(room, demand))
        after[index] = room.holding(demand, here) if here else room
        left -= here
    return after, count - left


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
    want = _wanted(campaign, lab, [one.demand for one in before.drafts])
    most = min(want.now + want.ahead, room_for(campaign, queue, len(before.drafts)))
    memory, added, notes = before.memory, [*before.drafts], [*before.notes]
    arms, found, rooms = arms_of(campaign), want.found, want.rooms
    known = {arm: profiles.get(arm) or seed_for(arm, profiles) for arm in arms}
    part = part_of_day(now.astimezone(campaign.zone))
    starts, ahead = want.now, want.ahead
    for count in range(1, most + 1):
        sizes = {arm: demand_of(_next_of(arms[arm], arm, memory)) for arm in arms}
        able = _able(rooms, sizes) if starts else set()
        if able:
            starts -= 1
        elif ahead:
            starts, ahead = 0, ahead - 1
            able = {a for a, size in sizes.items() if any(slots_for(r, size) for r in rooms)}
        if not able:
            break
        chosen = pick(
            known,
            memory.picked,
            exploration=adaptive.exploration,
            part=part,
            level=found.level,
            among=able,
        )
        rooms, _ = _started(rooms, sizes[chosen.arm], 1)
        keys = _next_of(arms[chosen.arm], chosen.arm, memory)
        given = {**memory.given, chosen.arm: memory.given.get(chosen.arm, 0) + 1}
        memory = replace(memory, picked=chosen.picked, given=given)
        new = draft(campaign, FILL, now, count, keys)
        added.append(new)
        facts = {"campaign": campaign.name, "task": new.id, "arm": chosen.arm, "why": chosen.why}
        facts |= {**_seen(lab, found), "at": to_iso(now)}
        notes.append(Note("campaign.added", facts))
    return replace(before, memory=memory, drafts=added, notes=notes)


def _seen(lab: Lab, found: Concurrency) -> dict[str, Any]:
    """Give what stood behind a decision, for the record."""
    return {
        "recommended": found.recommended,
        "queued": sum(lab.waiting.values()),
        "running": found.busy,
        "level": found.level.word,
        "tokens_per_s": lab.tokens_per_s,
    }


def _able(rooms: Sequence[Room], sizes: Mapping[str, Demand]) -> set[str]:
    """Give the arms of which a task may start now."""
    free = {size: concurrency(rooms, size).free for size in set(sizes.values())}
    return {arm for arm, size in sizes.items() if free[size]}


def _next_of(
    combinations: Sequence[Mapping[str, Any]], arm: str, memory: Memory
) -> Mapping[str, Any]:
    """Give an arm's next combination, in turn; with a new seed where the file names none, so that nothing is done twice."""
    keys = combinations[memory.given.get(arm, 0) % len(combinations)]
    return keys if "seed" in keys else {**keys, "seed": sum(memory.given.values())}
