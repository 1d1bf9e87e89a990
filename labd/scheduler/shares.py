"""How much of the cluster each owner has and had."""

import heapq
from collections.abc import Iterable, Mapping, Sequence

from labd.scheduler.model import Demand, Node, Running

_NEGLIGIBLE_SHARE = 1e-15


_MAX_OWNERS = 1000


class Shares:
    """Each owner's share: what it holds now, and its past."""

    def __init__(
        self, nodes: Sequence[Node], running: Iterable[Running], usage: Mapping[str, float]
    ) -> None:
        self._cpus = sum(node.num_cpus for node in nodes)
        self._gpus = sum(node.num_gpus for node in nodes)
        self._usage = usage
        self.held: dict[str, list[float]] = {}
        known = {node.id for node in nodes}
        for task in running:
            if task.node_id in known:
                self.take(task.owner, task.demand)

    def take(self, owner: str, demand: Demand) -> None:
        """Count the demand among what the owner holds."""
        held = self.held.setdefault(owner, [0.0, 0.0])
        held[0] += demand.num_cpus
        held[1] += demand.num_gpus

    def now(self, owner: str) -> float:
        """Give the dominant share of what the owner holds, from 0 to 1."""
        cpus, gpus = self.held.get(owner, (0.0, 0.0))
        return max(cpus / self._cpus if cpus else 0.0, gpus / self._gpus if gpus else 0.0)

    def of(self, owner: str) -> float:
        """Give the share that decides who is next: the least."""
        return self.now(owner) + self._usage.get(owner, 0.0)


def decayed(
    usage: Mapping[str, float],
    running: Iterable[Running],
    nodes: Sequence[Node],
    elapsed_s: float,
    half_life_s: float,
) -> dict[str, float]:
    """Give each owner's past use after `elapsed_s` in which `running` held what it holds.

    It is a mean of the owner's dominant share, from 0 to 1, in which what was `half_life_s` ago counts half: the
    share-seconds with decay, divided by their sum for an owner that always held all. Kept are the
    1,000 owners with the most, and none with less than 1e-15: what one CPU of thousands uses in a millisecond is more.
    """
    kept = 0.5 ** (max(0.0, elapsed_s) / half_life_s)
    shares = Shares(nodes, running, {})
    after = {
        owner: usage.get(owner, 0.0) * kept + shares.now(owner) * (1 - kept)
        for owner in usage.keys() | shares.held.keys()
    }
    lasting = [(owner, use) for owner, use in after.items() if use > _NEGLIGIBLE_SHARE]
    return dict(heapq.nsmallest(_MAX_OWNERS, lasting, key=lambda each: (-each[1], each[0])))
