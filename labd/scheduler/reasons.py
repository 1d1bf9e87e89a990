"""A made plan, and in words for people why each task waits."""

import heapq
from collections.abc import Sequence
from itertools import takewhile

from labd.scheduler.model import Demand, Node, Running, Waiting, WaitingClass, amount, plain
from labd.scheduler.planner import Planner
from labd.scheduler.rooms import SLACK, Room, can_hold, rooms_of, soonest

_MOST_BARRED = 3


class Plan:
    """What to start, in order, and why each of the other tasks waits.

    Attributes:
        starts: what to start, where, in this order.
        reserved: which node (its id) is kept free for which task (its key); for the next snapshot.

    """

    def __init__(self, planner: Planner) -> None:
        snapshot = planner.snapshot
        self.starts = planner.starts
        self.reserved = {task.key: node_id for node_id, task in planner.kept.items()}
        if snapshot.hold:
            self.reserved = dict(snapshot.reserved)
        self._planner, self._snapshot = planner, snapshot
        self._running = (*snapshot.running, *planner.started.values(), *planner.also)
        self._before: dict[str, Room] | None = None
        self._texts: dict[tuple[int, Demand], str] = {}

    def reason(self, task: Waiting) -> str:
        """Say in one line for people why the task waits; empty for one that this plan starts.

        How many come before it is counted in the backlog as it is at this moment.
        """
        if task.key in self._planner.started:
            return ""
        node_id = self.reserved.get(task.key)
        room, demand = self._planner.rooms.get(node_id or ""), self._planner.wanted(task)
        if room is not None and room.fit(demand) is None and not self._snapshot.hold:
            return f"{self._shortage(demand, room)}; {room.node.name} is kept free for it"
        kind = (task.priority, demand)
        if kind not in self._texts:
            self._texts[kind] = self._why(*kind)
        return self._texts[kind] or f"waits for its turn: {self._ahead(task)} before it"

    def classes(self, limit: int = 100) -> list[WaitingClass]:
        """Give the classes that wait, at most `limit`, in the plain order of their oldest tasks."""
        backlog = self._snapshot.backlog
        lines = [line for priority in backlog.priorities() for line in backlog.lines(priority)]
        left = ((line, begun) for line in lines if (begun := self._begun(line)) < len(line))
        first = heapq.nsmallest(limit, left, key=lambda each: plain(each[0][each[1]]))
        return [self._class(line[begun], len(line) - begun) for line, begun in first]

    def _class(self, head: Waiting, number: int) -> WaitingClass:
        return WaitingClass(
            head.priority, head.owner, head.demand, number, head.key, self.reason(head)
        )

    def _begun(self, line: Sequence[Waiting]) -> int:
        """Count those of a class that start now: they are its first ones."""
        return sum(1 for _ in takewhile(lambda task: task.key in self._planner.started, line))

    def _ahead(self, task: Waiting) -> int:
        """Count the tasks that come before this one in plain order, without those that start now."""
        backlog = self._snapshot.backlog
        left = (t for key in self._planner.started if (t := backlog.get(key)))
        return backlog.rank(task) - sum(plain(t) < plain(task) for t in left)

    def _why(self, priority: int, demand: Demand) -> str:
        """Give the reason of a size at a priority, or nothing where it is a matter of whose turn it is."""
        nodes = self._snapshot.nodes
        if self._snapshot.hold or not nodes:
            return self._snapshot.hold or "waits for the engine to start"
        able = [r for r in self._planner.rooms.values() if r.able(demand)]
        barred = [b for b in self._snapshot.barred if can_hold(b.node, demand)]
        told = "".join(f"; {one.node.name}: {one.why}" for one in barred[:_MOST_BARRED])
        if not able and barred:
            return f"waits for a node with {demand}{told}"
        if not able:
            most = ", ".join(f"{n.name} has {Demand(n.num_cpus, n.num_gpus)}" for n in nodes[:3])
            return f"waits for a node with {demand}: {most}"
        fitting = [(room, gpus) for room in able if (gpus := room.fit(demand)) is not None]
        for room, gpus in fitting:
            kept = self._planner.kept.get(room.node.id)
            if not kept or kept.priority < priority or room.spares(demand, gpus, kept.demand):
                return ""
        if fitting:
            return self._kept_free(fitting[0][0].node)
        if self.starts and self._fitted_before(demand):
            return ""
        return self._shortage(demand, soonest(able, demand)) + told

    def _kept_free(self, node: Node) -> str:
        kept = self._planner.kept[node.id]
        lack = _lack(self._planner.rooms[node.id], kept.demand)
        span = _span(self._snapshot.now_s - kept.seen_s)
        return f"waits: {node.name} is kept free for {kept.key} (waits for {lack} since {span})"

    def _fitted_before(self, demand: Demand) -> bool:
        if self._before is None:
            self._before = rooms_of(self._snapshot.nodes, self._snapshot.running)
        return any(room.fit(demand) is not None for room in self._before.values())

    def _shortage(self, demand: Demand, room: Room) -> str:
        """Say what is missing on this node, how much of it is free, and who has the rest."""
        gpus, cpus = room.short(demand)
        holders = [task for task in self._running if task.node_id == room.node.id]
        shown = f"waits for {_lack(room, demand)}: {room.node.name} has"
        if gpus and cpus:
            free = f"{amount(room.free_gpus(demand), 'GPU')} and {amount(room.cpus, 'CPU')}"
            return f"{shown} {free} free, used by {_names(holders)}"
        if cpus:
            used = sum(task.demand.num_cpus for task in holders)
            return f"{shown} {room.cpus:g} free, {used:g} used by {_names(holders)}"
        holders = [task for task in holders if task.demand.num_gpus]
        used = sum(task.demand.num_gpus for task in holders)
        free_gpus = room.free_gpus(demand)
        whole = " in one piece" if room.node.num_gpus - used > free_gpus + SLACK else ""
        return f"{shown} {free_gpus:g} free{whole}, {used:g} used by {_names(holders)}"


def _lack(room: Room, demand: Demand) -> str:
    """Name those of a demand's parts that the room is short of; all of them where it is short of none."""
    gpus, cpus = room.short(demand)
    if gpus and not cpus:
        return amount(demand.num_gpus, "GPU")
    if cpus and not gpus:
        return amount(demand.num_cpus, "CPU")
    return str(demand)


def _names(holders: Sequence[Running]) -> str:
    """Name the three that hold the most, and count the others."""
    most = heapq.nsmallest(
        3, holders, key=lambda t: (-t.demand.num_gpus, -t.demand.num_cpus, t.key)
    )
    parts = [task.key for task in most]
    if len(holders) > len(parts):
        parts.append(f"{len(holders) - len(parts)} more")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _span(seconds: float) -> str:
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size_s:
            return f"{int(seconds // size_s)} {unit}"
    return f"{max(0, int(seconds))} s"
