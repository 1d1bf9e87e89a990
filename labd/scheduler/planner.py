"""One plan in the making: order, fit, and the nodes that are kept free."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import replace

from labd.scheduler.model import Backlog, Demand, Running, Snapshot, Start, Waiting, age
from labd.scheduler.rooms import Room, rooms_of, soonest
from labd.scheduler.shares import Shares


class Planner:
    """One plan in the making: what is left on each node, for whom nodes are kept, who has how much."""

    def __init__(self, snapshot: Snapshot, max_starts: int) -> None:
        self.snapshot, self.max_starts = snapshot, max_starts
        self.rooms = rooms_of(snapshot.nodes, snapshot.running)
        self.shares = Shares(snapshot.nodes, snapshot.running, snapshot.usage)
        self.kept: dict[str, Waiting] = {}
        self.starts: list[Start] = []
        self.started: dict[str, Running] = {}
        self.also: list[Running] = []
        self._due_s = snapshot.now_s - snapshot.reserve_after_s
        self._failed: set[Demand] = set()  # rooms only shrink: what failed once fails again
        self._wide: list[tuple[int, Waiting]] = []  # which of `starts` can use several nodes

    def run(self) -> None:
        """Fill the nodes, priority by priority."""
        smallest = _smallest(self.snapshot.backlog)
        for priority in self.snapshot.backlog.priorities():
            self._keep_promises(priority)
            self._keep_for_the_big(priority, smallest[priority])
            self._fill(priority)
        if len(self.starts) < self.max_starts:  # else there may be room that others come for
            for index, task in self._wide:
                self.starts[index] = self._widen(self.starts[index], task)

    def wanted(self, task: Waiting) -> Demand:
        """Give what a task asks for now: after the wait of a big request it takes the nodes, too, that it avoided."""
        if not task.demand.avoid or task.seen_s > self._due_s:
            return task.demand
        return replace(task.demand, avoid=frozenset())

    def _keep_promises(self, priority: int) -> None:
        """Start each task that a node is kept for where it fits, or keep the node on."""
        backlog, reserved = self.snapshot.backlog, self.snapshot.reserved
        promised = [task for key in reserved if (task := backlog.get(key))]
        mine = (t for t in promised if t.priority == priority and backlog.is_head(t))
        for task in sorted(mine, key=age):
            node_id = self.snapshot.reserved[task.key]
            if self._start(task):
                continue
            free = node_id in self.rooms and node_id not in self.kept
            if free and self.rooms[node_id].able(self.wanted(task)):
                self.kept[node_id] = task

    def _keep_for_the_big(self, priority: int, smallest: Demand) -> None:
        """Keep a node for the first task of each size that has waited too long and that smaller ones pass."""
        first: list[Waiting] = []
        for size, owners in self.snapshot.backlog.sizes(priority).items():
            passable = size.num_cpus > smallest.num_cpus or size.num_gpus > smallest.num_gpus
            if passable and self._place(size) is None:
                heads = [head for line in owners.values() for head in self._head(line)]
                late = [head for head in heads if head.seen_s <= self._due_s]
                if late and self._place(self.wanted(late[0])) is None:
                    first.append(min(heads, key=self._order))
        for task in sorted(first, key=self._order):
            if all(task.key != kept.key for kept in self.kept.values()):
                self._keep(task)

    def _keep(self, task: Waiting) -> None:
        able = [
            room
            for node_id, room in self.rooms.items()
            if node_id not in self.kept and room.able(self.wanted(task))
        ]
        if able:
            self.kept[soonest(able, task.demand).node.id] = task

    def _fill(self, priority: int) -> None:
        """Start what fits, the owner with the least share first, until nothing does."""
        heap = [
            (*self._order(line[0]), 0, line)
            for size, owners in self.snapshot.backlog.sizes(priority).items()
            if size.avoid or self._place(size) is not None
            for line in owners.values()
        ]
        heapq.heapify(heap)
        while heap:
            share, _since, _key, index, line = heap[0]
            task = line[index]
            if share < self.shares.of(task.owner):  # it was given something since
                heapq.heapreplace(heap, (*self._order(task), index, line))
            elif not (task.key in self.started or self._start(task)) or index + 1 == len(line):
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (*self._order(line[index + 1]), index + 1, line))

    def _start(self, task: Waiting) -> bool:
        if len(self.starts) >= self.max_starts:
            return False
        place = self._place(task.demand) or self._place(self.wanted(task))
        if place is None:
            return False
        room, gpus = place
        room.take(task.demand, gpus)
        self.shares.take(task.owner, task.demand)
        if task.num_nodes > 1:
            self._wide.append((len(self.starts), task))
        self.starts.append(Start(task.key, room.node.id, gpus))
        self.started[task.key] = Running(task.key, room.node.id, task.demand, task.owner, gpus)
        return True

    def _widen(self, start: Start, task: Waiting) -> Start:
        """Give a started task what nobody who waits can use of further nodes; none of those kept free, or that it avoids."""
        demand, spread = task.demand, self.snapshot.spread
        barred = {start.node_id, *self.kept, *demand.avoid}
        rooms = [room for node_id, room in self.rooms.items() if node_id not in barred]
        places = [(room, gpus) for room in rooms if (gpus := room.fit(demand)) is not None]
        places.sort(key=lambda place: _preference(place[0], demand, spread=spread))
        for room, gpus in places[: task.num_nodes - 1]:
            room.take(demand, gpus)
            self.shares.take(task.owner, demand)
            self.also.append(Running(task.key, room.node.id, demand, task.owner))
            start = replace(start, also=(*start.also, room.node.id))
        return start

    def _place(self, demand: Demand) -> tuple[Room, tuple[int, ...]] | None:
        if demand in self._failed:
            return None
        fitting = []
        for node_id, room in self.rooms.items():
            gpus, kept = room.fit(demand), self.kept.get(node_id)
            if gpus is not None and (kept is None or room.spares(demand, gpus, kept.demand)):
                fitting.append((room, gpus))
        if not fitting:
            self._failed.add(demand)
            return None
        spread = self.snapshot.spread
        return min(fitting, key=lambda place: _preference(place[0], demand, spread=spread))

    def _head(self, line: Sequence[Waiting]) -> list[Waiting]:
        """Give the oldest of a class that is not started yet, if there is one."""
        return [task for task in line[:2] if task.key not in self.started][:1]

    def _order(self, task: Waiting) -> tuple[float, int, str]:
        return (self.shares.of(task.owner), task.since_ns, task.key)


def _preference(room: Room, demand: Demand, *, spread: bool) -> tuple[bool, float, float, str]:
    # Keep GPU machines free for GPU tasks; else fill the fullest, so that big requests find room, or spread.
    sign = -1 if spread else 1
    first = sign * sum(room.gpus.values()) if demand.num_gpus else room.node.num_gpus
    return (room.node.loaded, first, sign * room.cpus, room.node.id)


def _smallest(backlog: Backlog) -> dict[int, Demand]:
    """Give the least CPUs and the least GPUs that any task of this priority or below asks for, by priority."""
    cpus = gpus = math.inf
    least: dict[int, Demand] = {}
    for priority in reversed(backlog.priorities()):
        for demand in backlog.sizes(priority):
            cpus, gpus = min(cpus, demand.num_cpus), min(gpus, demand.num_gpus)
        least[priority] = Demand(cpus, gpus)
    return least
