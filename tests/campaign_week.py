"""A week of an adaptive campaign in seconds: the real decisions on a clock that jumps, with machines, people and results made up.

`python -m tests.campaign_week` prints what `docs/campaigns.md` states.
"""

import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from labd.campaigns import (
    Capacity,
    Lab,
    Level,
    Load,
    Memory,
    Outcome,
    Profile,
    Queue,
    Room,
    Thresholds,
    adding,
    begin,
    classify,
    decide,
    fill,
    free_cpu_load,
    learn,
    parse_campaign,
)
from labd.campaigns.load import PartOfDay, part_of_day
from labd.campaigns.mix import arm_of
from labd.settings import LoadSettings
from labd.task import parse_task

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
STEP_S = 60.0
WEEK_S = 7 * 86_400.0
CAMPAIGN = """
adaptive: {exploration: 0.1}
limits: {max_queued: 20}
task: {num_cpus: 2, num_gpus: 1}
matrix:
  template: [quick, usual, long, barren, failing]
  researcher: [sweep]
"""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a template is really like; the lab has to find out."""

    minutes: float
    improved: float
    done: float = 1.0


TRUTHS = {
    "quick": Truth(12, 0.30, 0.95),
    "usual": Truth(70, 0.50, 0.95),
    "long": Truth(240, 0.60, 0.90),
    "barren": Truth(60, 0.0, 0.95),
    "failing": Truth(20, 0.5, 0.05),
}


@dataclass(slots=True)
class Week:
    """A week, and what was measured in it. `people_every_s`: how often somebody submits a task of an hour."""

    seed: int = 0
    rooms: tuple[Room, ...] = (Room(16, 2), Room(16, 2))
    people_every_s: float = 6 * 3600.0
    busy_people: bool = True
    """Whether others use the machines in office hours, and memory runs full twice."""
    now_s: float = 0.0
    capacity: Capacity | None = None
    pending: list[tuple[str, str]] = field(default_factory=list)
    running: dict[str, tuple[str, float]] = field(default_factory=dict)
    ends: list[tuple[float, str]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    memory: Memory | None = None
    started: list[tuple[float, str]] = field(default_factory=list)
    busy_slot_s: dict[Level, float] = field(default_factory=lambda: dict.fromkeys(Level, 0.0))
    open_slot_s: dict[Level, float] = field(default_factory=lambda: dict.fromkeys(Level, 0.0))
    levels: list[Level] = field(default_factory=list)
    added_when_critical: int = 0
    started_when_critical: int = 0
    most_queued: int = 0
    _learnt: tuple[int, dict[str, Profile]] = (0, {})

    @property
    def slots(self) -> int:
        """How many tasks run at once."""
        return int(sum(room.num_gpus for room in self.rooms))

    def play(self) -> "Week":
        """Play the week."""
        rng, loads = random.Random(self.seed), self._loads()
        high, critical = LoadSettings().levels()
        campaign = parse_campaign(CAMPAIGN.encode(), "week", "week.yaml")
        people_at_s = self.people_every_s
        while self.now_s < WEEK_S:
            now = MONDAY + timedelta(seconds=self.now_s)
            self._end(rng)
            if self.now_s >= people_at_s:
                self.pending.insert(0, (f"somebody-{people_at_s:.0f}", "usual"))
                people_at_s += self.people_every_s
            self.capacity = classify(
                self.capacity, next(loads), self.now_s, Thresholds(high, critical)
            )
            self.levels.append(self.capacity.level)
            memory = begin(campaign, self.memory, now)
            queue = self._queue("week--")
            decision = decide(campaign, memory, queue, now)
            if adding(campaign, now):
                profiles = self._profiles()
                lab = Lab(self.rooms, self.capacity, len(self.pending), len(self.running))
                decision = fill(campaign, decision, queue, lab, profiles, now=now)
            self.memory = decision.memory
            for draft in decision.drafts:
                spec = parse_task(draft.text.encode(), draft.name).spec
                self.pending.append((draft.id, str(spec.template)))
            self._count(len(decision.drafts))
            self._dispatch(rng)
            self.now_s += STEP_S
        return self

    def _profiles(self) -> dict[str, Profile]:
        if len(self.outcomes) != self._learnt[0]:
            self._learnt = (len(self.outcomes), learn(self.outcomes, {}))
        return self._learnt[1]

    def _queue(self, prefix: str) -> Queue:
        return Queue(
            [one for one, _ in self.pending if one.startswith(prefix)],
            [one for one in self.running if one.startswith(prefix)],
        )

    def _dispatch(self, rng: random.Random) -> None:
        """Start what fits, as the scheduler does; nothing under critical load."""
        assert self.capacity is not None
        if self.capacity.level is Level.CRITICAL:
            return
        while self.pending and len(self.running) < self.slots:
            task, template = self.pending.pop(0)
            length_s = 60 * TRUTHS[template].minutes * rng.uniform(0.7, 1.4)
            self.running[task] = (template, self.now_s)
            heapq.heappush(self.ends, (self.now_s + length_s, task))
            self.started.append((self.now_s, template))

    def _end(self, rng: random.Random) -> None:
        while self.ends and self.ends[0][0] <= self.now_s:
            at_s, task = heapq.heappop(self.ends)
            template, began_s = self.running.pop(task)
            truth = TRUTHS[template]
            done = rng.random() < truth.done
            improved = done and rng.random() < truth.improved
            self.outcomes.append(
                Outcome(
                    task,
                    arm_of(template, None),
                    "week",
                    "done" if done else "failed",
                    at_s,
                    wall_s=at_s - began_s,
                    gpu_s=at_s - began_s,
                    verdict="improved" if improved else "no_improvement",
                    effect_size=1.0 if improved else None,
                )
            )

    def _count(self, added: int) -> None:
        assert self.capacity is not None
        level = self.capacity.level
        self.busy_slot_s[level] += STEP_S * len(self.running)
        self.open_slot_s[level] += STEP_S * self.slots
        self.added_when_critical += added if level is Level.CRITICAL else 0
        self.most_queued = max(self.most_queued, len(self.pending))

    def _loads(self) -> Iterator[Load]:
        """Give what the machines' load is: noisy, people at work, and twice a program that eats the memory for half an hour."""
        rng = random.Random(self.seed + 1)
        eats = (1.4 * 86_400, 4.6 * 86_400)
        while True:
            local = MONDAY + timedelta(seconds=self.now_s)
            office = self.busy_people and part_of_day(local) is PartOfDay.OFFICE
            given = 2.0 * len(self.running)
            others = 32 * (rng.gauss(0.62, 0.08) if office else max(0.0, rng.gauss(0.05, 0.03)))
            memory = rng.gauss(0.80 if office else 0.6, 0.03)
            if self.busy_people and any(0 <= self.now_s - at < 1800 for at in eats):
                memory = rng.gauss(0.97, 0.01)
            yield Load(
                cpu=free_cpu_load(min(1.0, (given + others) / 32), 32, given),
                memory=memory,
                disk=0.4,
                gpu=min(1.0, len(self.running) / self.slots) * 0.7,
                gpu_memory=0.5,
                temperature_c=rng.gauss(60 + 3 * len(self.running), 2),
            )

    # --- what was measured

    def utilisation(self, *levels: Level) -> float:
        """Give the busy share of the slots while the load was at these levels; at any, where none are named."""
        wanted = levels or tuple(Level)
        total = sum(self.open_slot_s[level] for level in wanted)
        return sum(self.busy_slot_s[level] for level in wanted) / total

    def longest_gap_h(self, template: str) -> float:
        """Give the longest time in which no task of a template started."""
        times = [0.0, *(at for at, one in self.started if one == template), WEEK_S]
        return max(b - a for a, b in itertools.pairwise(times)) / 3600

    def changes_per_day(self) -> float:
        """Give how often the level changed, in the mean of a day."""
        return sum(a != b for a, b in itertools.pairwise(self.levels)) / 7

    def shares(self) -> dict[str, float]:
        """Give the share of each template in all starts."""
        counts = Counter(template for _, template in self.started)
        return {template: counts[template] / len(self.started) for template in TRUTHS}

    def slot_shares(self, part: PartOfDay) -> dict[str, float]:
        """Give the share of each template in the starts of a part of the day."""
        found = Counter(
            template
            for at_s, template in self.started
            if part_of_day(MONDAY + timedelta(seconds=at_s)) is part
        )
        return {template: found[template] / max(1, found.total()) for template in TRUTHS}

    def facts(self) -> dict[str, object]:
        """Give all of it, rounded."""
        return {
            "slots": self.slots,
            "tasks": len(self.started),
            "utilisation": round(self.utilisation(), 4),
            "utilisation by load": {
                level.word: round(self.utilisation(level), 4)
                for level in Level
                if self.open_slot_s[level]
            },
            "hours by load": {
                level.word: round(self.open_slot_s[level] / self.slots / 3600, 1)
                for level in Level
            },
            "level changes per day": round(self.changes_per_day(), 2),
            "added under critical load": self.added_when_critical,
            "most queued": self.most_queued,
            "longest gap of a template, h": {
                name: round(self.longest_gap_h(name), 1) for name in TRUTHS
            },
            "share of starts": {name: round(share, 3) for name, share in self.shares().items()},
            "at night": {n: round(s, 3) for n, s in self.slot_shares(PartOfDay.NIGHT).items()},
            "in office hours": {
                n: round(s, 3) for n, s in self.slot_shares(PartOfDay.OFFICE).items()
            },
        }


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "people at work": Week().play().facts(),
                "nobody there": Week(busy_people=False).play().facts(),
            },
            indent=2,
        )
    )
