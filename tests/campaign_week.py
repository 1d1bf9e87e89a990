"""A week of an adaptive campaign in seconds: the real decisions on a clock that jumps, with machines, people and results made up.

Each machine has its own load and level; the real plan says what starts where.

`python -m tests.campaign_week` prints what `docs/campaigns.md` states.
"""

import heapq
import itertools
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
    learn,
    load_of,
    parse_campaign,
)
from labd.campaigns.load import PartOfDay, part_of_day
from labd.campaigns.mix import arm_of
from labd.scheduler import Backlog, Demand, Node, Running, Snapshot, Waiting, plan
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


DEMAND = Demand(2, 1)
NODES = (Node("a", "ada", 16, 2), Node("b", "bob", 16, 2))


@dataclass(frozen=True, slots=True)
class Work:
    """A task that runs."""

    template: str
    since_s: float
    node_id: str


def _seconds() -> defaultdict[tuple[str, Level], float]:
    """Give sums by machine and level, all nothing."""
    return defaultdict(float)


@dataclass(slots=True)
class Week:
    """A week, and what was measured in it. `people_every_s`: how often somebody submits a task of an hour."""

    seed: int = 0
    used: str = "a"
    """The machines that others use in office hours, and whose memory runs full twice."""
    people_every_s: float = 6 * 3600.0
    lasts_s: float = WEEK_S
    now_s: float = 0.0
    capacities: dict[str, Capacity] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    backlog: Backlog = field(default_factory=Backlog)
    running: dict[str, Work] = field(default_factory=dict)
    ends: list[tuple[float, str]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    memory: Memory | None = None
    started: list[tuple[float, str]] = field(default_factory=list)
    busy_slot_s: defaultdict[tuple[str, Level], float] = field(default_factory=_seconds)
    open_slot_s: defaultdict[tuple[str, Level], float] = field(default_factory=_seconds)
    levels: dict[str, list[Level]] = field(default_factory=lambda: {n.id: [] for n in NODES})
    added_when_critical: int = 0
    """Tasks that were added while no machine was below critical load."""
    started_when_critical: int = 0
    """Tasks that were started on a machine at critical load."""
    most_queued: int = 0
    _learnt: tuple[int, dict[str, Profile]] = (0, {})

    @property
    def slots(self) -> int:
        """How many tasks run at once."""
        return int(sum(node.num_gpus for node in NODES))

    def play(self) -> "Week":
        """Play the week."""
        rng, loads = random.Random(self.seed), {node.id: self._loads(node) for node in NODES}
        limits = Thresholds(*LoadSettings().levels())
        campaign = parse_campaign(CAMPAIGN.encode(), "week", "week.yaml")
        people_at_s = self.people_every_s
        while self.now_s < self.lasts_s:
            now = MONDAY + timedelta(seconds=self.now_s)
            self._end(rng)
            if self.now_s >= people_at_s:
                self._wait(f"somebody-{people_at_s:.0f}", "usual", priority=1)
                people_at_s += self.people_every_s
            for node in NODES:
                before, load = self.capacities.get(node.id), next(loads[node.id])
                self.capacities[node.id] = classify(before, load, self.now_s, limits)
                self.levels[node.id].append(self.capacities[node.id].level)
            memory = begin(campaign, self.memory, now)
            queue = self._queue("week--")
            decision = decide(campaign, memory, queue, now)
            if adding(campaign, now):
                lab = Lab([self._room(node) for node in NODES], self.backlog.demands())
                decision = fill(campaign, decision, queue, lab, self._profiles(), now=now)
            self.memory = decision.memory
            for draft in decision.drafts:
                spec = parse_task(draft.text.encode(), draft.name).spec
                self._wait(draft.id, str(spec.template))
            self._count(len(decision.drafts))
            self._dispatch(rng)
            self.now_s += STEP_S
        return self

    def _room(self, node: Node) -> Room:
        room = Room(node.num_cpus, node.num_gpus, self._level(node.id))
        return room.holding(DEMAND, len(self._on(node.id)))

    def _level(self, node_id: str) -> Level:
        return self.capacities[node_id].level

    def _on(self, node_id: str) -> list[str]:
        return [task for task, work in self.running.items() if work.node_id == node_id]

    def _profiles(self) -> dict[str, Profile]:
        if len(self.outcomes) != self._learnt[0]:
            self._learnt = (len(self.outcomes), learn(self.outcomes, {}))
        return self._learnt[1]

    def _queue(self, prefix: str) -> Queue:
        return Queue(
            [one for one in self.waiting if one.startswith(prefix)],
            [one for one in self.running if one.startswith(prefix)],
        )

    def _wait(self, task: str, template: str, priority: int = 0) -> None:
        self.waiting[task] = template
        self.backlog.add(Waiting(task, priority, int(self.now_s), DEMAND, seen_s=self.now_s))

    def _dispatch(self, rng: random.Random) -> None:
        """Start what the scheduler says, on nodes as the daemon's `Cluster` hands them to it."""
        if not self.waiting:
            return
        nodes = [
            replace(node, loaded=self._level(node.id) is Level.HIGH)
            for node in NODES
            if self._level(node.id) is not Level.CRITICAL
        ]
        held = [Running(task, work.node_id, DEMAND) for task, work in self.running.items()]
        for start in plan(Snapshot(self.backlog, held, nodes, {}, self.now_s, math.inf)).starts:
            template = self.waiting.pop(start.key)
            self.backlog.discard(start.key)
            length_s = 60 * TRUTHS[template].minutes * rng.uniform(0.7, 1.4)
            self.running[start.key] = Work(template, self.now_s, start.node_id)
            heapq.heappush(self.ends, (self.now_s + length_s, start.key))
            self.started.append((self.now_s, template))
            self.started_when_critical += self._level(start.node_id) is Level.CRITICAL

    def _end(self, rng: random.Random) -> None:
        while self.ends and self.ends[0][0] <= self.now_s:
            at_s, task = heapq.heappop(self.ends)
            work = self.running.pop(task)
            truth = TRUTHS[work.template]
            done = rng.random() < truth.done
            improved = done and rng.random() < truth.improved
            self.outcomes.append(
                Outcome(
                    task,
                    arm_of(work.template, None),
                    "week",
                    "done" if done else "failed",
                    at_s,
                    wall_s=at_s - work.since_s,
                    gpu_s=at_s - work.since_s,
                    verdict="improved" if improved else "no_improvement",
                    effect_size=1.0 if improved else None,
                )
            )

    def _count(self, added: int) -> None:
        for node in NODES:
            key = (node.id, self._level(node.id))
            self.busy_slot_s[key] += STEP_S * len(self._on(node.id))
            self.open_slot_s[key] += STEP_S * node.num_gpus
        if all(self._level(node.id) is Level.CRITICAL for node in NODES):
            self.added_when_critical += added
        self.most_queued = max(self.most_queued, len(self.waiting))

    def _loads(self, node: Node) -> Iterator[Load]:
        """Give what a machine's load is.

        Noisy, with people at work where others use it, and twice a program that eats the memory for half an hour.
        """
        rng = random.Random(f"{self.seed + 1} {node.id}")
        eats = (1.4 * 86_400, 4.6 * 86_400)
        used, cpus = node.id in self.used, node.num_cpus
        while True:
            local = MONDAY + timedelta(seconds=self.now_s)
            office = used and part_of_day(local) is PartOfDay.OFFICE
            tasks = len(self._on(node.id))
            others = cpus * (rng.gauss(0.62, 0.08) if office else max(0.0, rng.gauss(0.05, 0.03)))
            given = tasks * DEMAND.num_cpus
            memory = rng.gauss(0.80 if office else 0.6, 0.03)
            if used and any(0 <= self.now_s - at < 1800 for at in eats):
                memory = rng.gauss(0.97, 0.01)
            use = 0.95 * tasks / node.num_gpus
            # A card at work is as hot as its makers let it be, some ten degrees below where it slows down.
            heat = {"temperature_c": rng.gauss(60 + 12 * tasks, 2), "slowdown_c": 93}
            gpu = {"busy": use, "memory_bytes": 100, "used_bytes": 50, **heat}
            said = {
                "cpu": min(1.0, (given + others) / cpus),
                "cpus": cpus,
                "memory_bytes": 1.0,
                "memory_free_bytes": 1 - memory,
                "disk_used": 0.4,
                "temperature_c": None,
                "gpus": [gpu] * int(node.num_gpus),
            }
            yield load_of(said, cpus=given, gpus=tasks * DEMAND.num_gpus, models=False)

    # --- what was measured

    def utilisation(self, *levels: Level, node_id: str = "") -> float:
        """Give the busy share of the slots of machines at these levels (any, where none are named); or of one machine."""
        total = self.hours(*levels, node_id=node_id) * 3600
        busy = sum(self.busy_slot_s[key] for key in self._keys(levels, node_id))
        return busy / total

    def hours(self, *levels: Level, node_id: str = "") -> float:
        """Give for how many hours the slots of machines were there at these levels, all slots added up."""
        return sum(self.open_slot_s[key] for key in self._keys(levels, node_id)) / 3600

    def _keys(self, levels: Sequence[Level], node_id: str) -> list[tuple[str, Level]]:
        wanted = levels or tuple(Level)
        nodes = [node_id] if node_id else [node.id for node in NODES]
        return [(node, level) for node in nodes for level in wanted]

    def longest_gap_h(self, template: str) -> float:
        """Give the longest time in which no task of a template started."""
        times = [0.0, *(at for at, one in self.started if one == template), WEEK_S]
        return max(b - a for a, b in itertools.pairwise(times)) / 3600

    def changes_per_day(self) -> float:
        """Give how often a machine's level changed, in the mean of a day; of the machine where it changed most."""
        return (
            max(sum(a != b for a, b in itertools.pairwise(one)) for one in self.levels.values())
            / 7
        )

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
            "utilisation of each machine": {
                node.name: round(self.utilisation(node_id=node.id), 4) for node in NODES
            },
            "utilisation by load": {
                level.word: round(self.utilisation(level), 4)
                for level in Level
                if self.hours(level)
            },
            "slot hours by load": {level.word: round(self.hours(level), 1) for level in Level},
            "level changes per day": round(self.changes_per_day(), 2),
            "added under critical load": self.added_when_critical,
            "started under critical load": self.started_when_critical,
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
                "people at one machine": Week().play().facts(),
                "people at both": Week(used="ab").play().facts(),
                "nobody there": Week(used="").play().facts(),
            },
            indent=2,
        )
    )
