"""Which waiting task starts where, and why each of the others waits. A pure function of a snapshot.

Order is priority, then age. A task that does not fit now does not hold up smaller ones behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

_SLACK = 1e-6  # sums of fractions such as 0.1 + 0.2 must still fit


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task asks a node for, in Ray's words."""

    num_cpus: float
    num_gpus: float

    def __str__(self) -> str:
        parts = [_amount(self.num_gpus, "GPU")] if self.num_gpus else []
        return " and ".join([*parts, _amount(self.num_cpus, "CPU")])


@dataclass(frozen=True, slots=True)
class Node:
    """A machine in the cluster and what it has in all."""

    id: str
    name: str
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task that could start."""

    key: str
    priority: int
    since_ns: int
    demand: Demand


@dataclass(frozen=True, slots=True)
class Running:
    """A task that holds resources."""

    key: str
    node_id: str
    demand: Demand


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the plan depends on. `hold` is a reason to start nothing at all, or empty."""

    waiting: Sequence[Waiting]
    running: Sequence[Running]
    nodes: Sequence[Node]
    hold: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """Start this task on this node, now."""

    key: str
    node_id: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, in order, and the reason of each task that waits on."""

    starts: list[Start] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def plan(snapshot: Snapshot) -> Plan:
    """Decide. Every waiting task is either started or has a reason."""
    made = Plan()
    order = sorted(snapshot.waiting, key=lambda w: (-w.priority, w.since_ns, w.key))
    if snapshot.hold:
        made.reasons.update({w.key: snapshot.hold for w in order})
        return made
    free = _free(snapshot)
    for task in order:
        node = _place(task.demand, snapshot.nodes, free)
        if node is None:
            made.reasons[task.key] = _why(task.demand, snapshot, free)
            continue
        cpus, gpus = free[node.id]
        free[node.id] = (cpus - task.demand.num_cpus, gpus - task.demand.num_gpus)
        made.starts.append(Start(task.key, node.id))
    return made


def _free(snapshot: Snapshot) -> dict[str, tuple[float, float]]:
    free = {node.id: (node.num_cpus, node.num_gpus) for node in snapshot.nodes}
    for task in snapshot.running:
        if task.node_id in free:
            cpus, gpus = free[task.node_id]
            free[task.node_id] = (cpus - task.demand.num_cpus, gpus - task.demand.num_gpus)
    return free


def _place(
    demand: Demand, nodes: Sequence[Node], free: dict[str, tuple[float, float]]
) -> Node | None:
    fitting = [
        node
        for node in nodes
        if free[node.id][0] + _SLACK >= demand.num_cpus
        and free[node.id][1] + _SLACK >= demand.num_gpus
    ]
    # Keep GPU machines free for GPU tasks; among equals fill the fullest, so that big requests find room.
    return min(
        fitting,
        key=lambda n: (n.num_gpus if not demand.num_gpus else 0, *free[n.id], n.id),
        default=None,
    )


def _why(demand: Demand, snapshot: Snapshot, free: dict[str, tuple[float, float]]) -> str:
    if not snapshot.nodes:
        return "waits for the engine to start"
    able = [
        n
        for n in snapshot.nodes
        if n.num_cpus + _SLACK >= demand.num_cpus and n.num_gpus + _SLACK >= demand.num_gpus
    ]
    if not able:
        most = ", ".join(
            f"{n.name} has {Demand(n.num_cpus, n.num_gpus)}" for n in snapshot.nodes[:3]
        )
        return f"waits for a node with {demand}: {most}"
    node = max(able, key=lambda n: (free[n.id][1], free[n.id][0]))
    cpus, gpus = free[node.id]
    holders = ", ".join(sorted(r.key for r in snapshot.running if r.node_id == node.id)[:3])
    used = f", used by {holders}" if holders else ""
    return (
        f"waits for {demand}: {node.name} has {Demand(max(0.0, cpus), max(0.0, gpus))} free{used}"
    )


def _amount(value: float, unit: str) -> str:
    return f"{value:g} {unit}{'' if value == 1 else 's'}"
