"""What is free on each node, device by device, as Ray gives it out."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import count, islice

from labd.scheduler.model import Demand, Node, Running

SLACK = 1e-6  # sums of fractions such as 0.1 + 0.2 must still fit


class Room:
    """What is free on a node: CPUs, and the part of each device."""

    __slots__ = ("cpus", "gpus", "node", "others", "tasks")

    def __init__(self, node: Node, tasks: Sequence[Running], others: Sequence[Node] = ()) -> None:
        self.node, self.tasks, self.others = node, len(tasks), others
        self.cpus = node.num_cpus
        for task in tasks:
            self.cpus -= task.demand.num_cpus
        self.cpus = max(0.0, self.cpus)
        self.gpus = _devices(int(node.num_gpus), [t for t in tasks if t.demand.num_gpus])

    def devices(self, num_gpus: float) -> tuple[int, ...] | None:
        """Give the devices that Ray would choose, or None where there is no room."""
        if not num_gpus:
            return ()
        if num_gpus < 1:
            able = [(free, gpu) for gpu, free in self.gpus.items() if free + SLACK >= num_gpus]
            return (min(able)[1],) if able else None
        whole = [gpu for gpu, free in self.gpus.items() if free + SLACK >= 1]
        wanted = math.ceil(num_gpus - SLACK)
        return tuple(whole[:wanted]) if len(whole) >= wanted else None

    def able(self, demand: Demand) -> bool:
        """Tell whether the demand could come here if the node were empty: one that avoids it only where it has to."""
        return can_hold(self.node, demand) and not self._avoided(demand)

    def _avoided(self, demand: Demand) -> bool:
        if self.node.id not in demand.avoid:
            return False
        others = (node for node in self.others if node.id not in demand.avoid)
        return any(can_hold(node, demand) for node in others)

    def fit(self, demand: Demand) -> tuple[int, ...] | None:
        """Give the devices for the demand, or None where it does not fit."""
        if (demand.at_home and not self.node.home) or (demand.avoid and self._avoided(demand)):
            return None
        return self.devices(demand.num_gpus) if self.cpus + SLACK >= demand.num_cpus else None

    def take(self, demand: Demand, gpus: tuple[int, ...]) -> None:
        """Book the demand on these devices."""
        self.cpus -= demand.num_cpus
        self.tasks += 1
        for gpu in gpus:
            self.gpus[gpu] -= min(1.0, demand.num_gpus)

    def spares(self, demand: Demand, gpus: tuple[int, ...], kept: Demand) -> bool:
        """Tell whether what is kept is still there, in each resource that the demand takes, after it."""
        if self.cpus - demand.num_cpus + SLACK < kept.num_cpus:
            return False
        if not gpus:
            return True
        after = Room(self.node, ())
        after.gpus = dict(self.gpus)
        after.take(demand, gpus)
        return after.devices(kept.num_gpus) is not None

    def short(self, demand: Demand) -> tuple[float, float]:
        """Give how many GPUs and CPUs are missing for the demand; 0.0 where none are."""
        cpus = max(0.0, demand.num_cpus - self.cpus)
        gpus = max(0.0, demand.num_gpus - self.free_gpus(demand))
        return (gpus if gpus > SLACK else 0.0, cpus if cpus > SLACK else 0.0)

    def free_gpus(self, demand: Demand) -> float:
        """Give the free part of the emptiest device for a fraction, else the number of wholly free devices."""
        if demand.num_gpus < 1:
            return max(self.gpus.values(), default=0.0)
        return sum(1.0 for free in self.gpus.values() if free + SLACK >= 1)


def _devices(number: int, tasks: Sequence[Running]) -> dict[int, float]:
    """Give the free part of each of a node's devices, by its number."""
    told = {gpu for task in tasks for gpu in task.gpus or ()}
    others = islice((gpu for gpu in count() if gpu not in told), max(0, number - len(told)))
    free = dict.fromkeys(sorted([*told, *others]), 1.0)
    for task in tasks:
        for gpu in task.gpus or ():
            free[gpu] -= min(1.0, task.demand.num_gpus)
    for task in (task for task in tasks if not task.gpus):
        part = task.demand.num_gpus if number == 1 else 1.0
        emptiest = sorted(free, key=lambda gpu: -free[gpu])
        for gpu in emptiest[: math.ceil(task.demand.num_gpus - SLACK)]:
            free[gpu] = max(0.0, free[gpu] - part)
    if len(free) > number:  # numbers of two kinds for one device: the fullest are the sure ones
        free = dict(sorted(free.items(), key=lambda item: item[1])[:number])
    return free


def rooms_of(nodes: Sequence[Node], running: Iterable[Running]) -> dict[str, Room]:
    """Give what is free on each node, by its id."""
    tasks: defaultdict[str, list[Running]] = defaultdict(list)
    for task in running:
        tasks[task.node_id].append(task)
    return {node.id: Room(node, tasks[node.id], nodes) for node in nodes}


def can_hold(node: Node, demand: Demand) -> bool:
    """Tell whether the node could hold the demand if it were empty."""
    if demand.at_home and not node.home:
        return False
    return (
        node.num_cpus + SLACK >= demand.num_cpus and int(node.num_gpus) + SLACK >= demand.num_gpus
    )


def soonest(rooms: Iterable[Room], demand: Demand) -> Room:
    """Give the room with the least to wait for."""
    return min(rooms, key=lambda room: (*room.short(demand), room.tasks, room.node.id))
