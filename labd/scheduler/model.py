"""What a plan is made of: demands, nodes, tasks, the backlog and the snapshot."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task asks a node for, in Ray's words."""

    num_cpus: float
    num_gpus: float
    at_home: bool = False
    """Whether it can run on the lab's own machine only."""
    avoid: frozenset[str] = frozenset()
    """Ids of nodes that it goes to only where no other could hold it, or none had room for `Snapshot.reserve_after_s`."""

    def __str__(self) -> str:
        parts = [amount(self.num_gpus, "GPU")] if self.num_gpus else []
        size = " and ".join([*parts, amount(self.num_cpus, "CPU")])
        return f"{size} on the lab's own machine" if self.at_home else size


@dataclass(frozen=True, slots=True)
class Node:
    """A machine in the cluster and what it has in all.

    `home`: it is the lab's own. `loaded`: others use it too, so tasks go elsewhere while there is room.
    """

    id: str
    name: str
    num_cpus: float
    num_gpus: float
    home: bool = True
    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Barred:
    """A machine that gets no new tasks now, and why, for people."""

    node: Node
    why: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task that could start. `seen_s` is the monotonic time since which it could.

    `num_nodes`: on how many nodes it can use what it asks of one; it needs no more than one.
    """

    key: str
    priority: int
    since_ns: int
    demand: Demand
    owner: str = ""
    seen_s: float = 0.0
    num_nodes: int = 1


@dataclass(frozen=True, slots=True)
class Running:
    """A task that holds resources on a node; one that has several is there once for each.

    `gpus` are its devices on the node, None or empty where nobody knows them.
    """

    key: str
    node_id: str
    demand: Demand
    owner: str = ""
    gpus: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Start this task on this node, now. `gpus` are the devices that Ray will give it.

    `also`: further nodes that have as much for it, until it ends.
    """

    key: str
    node_id: str
    gpus: tuple[int, ...] = ()
    also: tuple[str, ...] = ()


class Backlog:
    """The waiting tasks, in order by class. The daemon keeps it; a plan only reads it.

    Sorted lists rather than heaps: a plan walks a class without changing it, the rank of a task can be told, and
    nothing dead is kept. `add` and `discard` search in O(log n) and then move pointers within one list.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, Waiting] = {}
        self._levels: dict[int, dict[Demand, dict[str, list[Waiting]]]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: object) -> bool:
        return key in self._tasks

    def get(self, key: str) -> Waiting | None:
        """Give the task of this key, or None."""
        return self._tasks.get(key)

    def add(self, task: Waiting) -> None:
        """Let the task wait, in place of one with the same key."""
        self.discard(task.key)
        self._tasks[task.key] = task
        sizes = self._levels.setdefault(task.priority, {})
        line = sizes.setdefault(task.demand, {}).setdefault(task.owner, [])
        insort(line, task, key=age)

    def discard(self, key: str) -> None:
        """Let the task of this key wait no longer; nothing happens where there is none."""
        task = self._tasks.pop(key, None)
        if task is None:
            return
        sizes = self._levels[task.priority]
        line = sizes[task.demand][task.owner]
        del line[bisect_left(line, age(task), key=age)]
        if not line:
            del sizes[task.demand][task.owner]
        if not sizes[task.demand]:
            del sizes[task.demand]
        if not sizes:
            del self._levels[task.priority]

    def first(self, count: int) -> list[Waiting]:
        """Give the next `count` tasks in plain order: priority, then age, whoever owns them."""
        lines = (self.lines(priority) for priority in self.priorities())
        order = (task for level in lines for task in heapq.merge(*level, key=age))
        return list(islice(order, max(0, count)))

    def priorities(self) -> list[int]:
        """Give the priorities at which tasks wait, highest first."""
        return sorted(self._levels, reverse=True)

    def sizes(self, priority: int) -> Mapping[Demand, Mapping[str, Sequence[Waiting]]]:
        """Give the classes that wait at this priority by demand and owner, each oldest first and none empty."""
        return self._levels.get(priority, {})

    def lines(self, priority: int) -> list[Sequence[Waiting]]:
        """Give the classes that wait at this priority, each oldest first and none empty."""
        return [line for owners in self.sizes(priority).values() for line in owners.values()]

    def demands(self) -> dict[Demand, int]:
        """Give how many tasks wait of each demand, that of the highest priority first."""
        counts: dict[Demand, int] = {}
        for priority in self.priorities():
            for demand, owners in self.sizes(priority).items():
                counts[demand] = counts.get(demand, 0) + sum(map(len, owners.values()))
        return counts

    def is_head(self, task: Waiting) -> bool:
        """Tell whether the task waits and is the oldest of its class."""
        line = self.sizes(task.priority).get(task.demand, {}).get(task.owner, ())
        return bool(line) and line[0].key == task.key

    def rank(self, task: Waiting) -> int:
        """Give how many tasks come before this one in plain order."""
        ahead = sum(len(ln) for p in self._levels if p > task.priority for ln in self.lines(p))
        lines = self.lines(task.priority)
        return ahead + sum(bisect_left(line, age(task), key=age) for line in lines)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a plan depends on.

    Attributes:
        backlog: what waits.
        running: what holds resources.
        nodes: where tasks can run.
        usage: past use by owner, as `decayed` gives it.
        now_s: the present monotonic time, the clock of `Waiting.seen_s`.
        reserve_after_s: after this wait a node is kept free for a big request, and none is avoided any more.
        hold: a reason to start nothing at all, or empty.
        reserved: the `Plan.reserved` of the last plan.
        barred: the machines that get no new tasks now, for people to be told; `nodes` has none of them.
        spread: whether tasks go to the emptiest machine, not to the fullest that has room.

    """

    backlog: Backlog
    running: Sequence[Running]
    nodes: Sequence[Node]
    usage: Mapping[str, float]
    now_s: float
    reserve_after_s: float
    hold: str = ""
    reserved: Mapping[str, str] = field(default_factory=dict)
    barred: Sequence[Barred] = ()
    spread: bool = False


@dataclass(frozen=True, slots=True)
class WaitingClass:
    """Tasks of one priority, owner and demand: how many there are, the oldest one's key, and why that one waits."""

    priority: int
    owner: str
    demand: Demand
    count: int
    oldest: str
    reason: str


def age(task: Waiting) -> tuple[int, str]:
    """Give the place in a class: the oldest first."""
    return (task.since_ns, task.key)


def plain(task: Waiting) -> tuple[int, int, str]:
    """Give the place in plain order: priority, then age."""
    return (-task.priority, task.since_ns, task.key)


def amount(value: float, unit: str) -> str:
    """Say so many of a unit: ``1 GPU``, ``0.5 GPUs``."""
    return f"{value:g} {unit}{'' if value == 1 else 's'}"
