"""How loaded each node is, kept from reading to reading while an adaptive campaign is under way."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from labd.campaigns import (
    Capacity,
    Endpoints,
    Level,
    Note,
    Room,
    Thresholds,
    classify,
    endpoints_of,
    load_of,
)
from labd.settings import Home

_OLD_S = 60.0
"""A reading of this age says nothing any more: a node is asked every ten seconds."""
_COOLS_S = 120.0
"""For so long after its tasks the heat of a node is taken for the lab's own."""


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node that new tasks may go to, its load left aside.

    `machine`: what it last said of itself, as `labd.engine.probe.Prober` has it. `running`: how many tasks hold `given_cpus`
    and `given_gpus` of it; `used_gpus`: the used part of each device.
    """

    id: str
    name: str
    num_cpus: float
    num_gpus: float
    machine: Mapping[str, Any] | None = None
    running: int = 0
    given_cpus: float = 0.0
    given_gpus: float = 0.0
    used_gpus: Sequence[float] = ()
    home: bool = True


class Loads:
    """The nodes' loads, and that of the endpoints of language models.

    A node that has said nothing yet, or nothing for a minute, has no level: nothing is added for it and nothing is held
    back there. (One that has not answered for so long gets no tasks anyway.)
    """

    def __init__(self, home: Home) -> None:
        high, critical = home.settings.load.levels()
        self._limits = Thresholds(high, critical, home.settings.load.calm)
        self._models_status = home.models_status
        self._nodes: dict[str, Capacity] = {}
        self._worked_s: dict[str, float] = {}
        """When each node was last seen with tasks of the lab's, by the monotonic clock."""
        self._queue: Capacity | None = None
        self.endpoints = Endpoints()
        """What the endpoints do, as of the last look."""

    def look(self, nodes: Sequence[SeenNode]) -> list[Note]:
        """Take what is new of these nodes and of the endpoints; give what has changed."""
        notes, now_s = list(self._look_at_endpoints()), time.monotonic()
        known, self._nodes = self._nodes, {}
        worked = {node.id: now_s for node in nodes if node.running}
        self._worked_s = {
            **{node: at for node, at in self._worked_s.items() if now_s - at < _COOLS_S},
            **worked,
        }
        for node in nodes:
            before = known.get(node.id)
            after = self._classified(node, before, now_s)
            if after is None:
                continue
            self._nodes[node.id] = after
            if before is None or before.level is not after.level:
                notes.append(_note(node.name, after))
        return notes

    def forget(self) -> None:
        """Know nothing any more: nobody asks."""
        self._nodes, self._queue, self.endpoints = {}, None, Endpoints()

    def capacities(self) -> Mapping[str, Capacity]:
        """Give the capacity of each node whose load is known, by its id."""
        return self._nodes

    def rooms(self, nodes: Iterable[SeenNode]) -> list[Room]:
        """Give the nodes whose load is known, as the adaptive queue sees them."""
        return [
            Room(
                node.num_cpus,
                node.num_gpus,
                self._nodes[node.id].level,
                node.running,
                node.given_cpus,
                node.used_gpus,
                node.home,
                node.id,
            )
            for node in nodes
            if node.id in self._nodes
        ]

    @property
    def queue_level(self) -> Level:
        """How loaded the endpoints are."""
        return self._queue.level if self._queue else Level.NORMAL

    def _classified(
        self, node: SeenNode, before: Capacity | None, now_s: float
    ) -> Capacity | None:
        facts = node.machine or {}
        read_s = float(facts.get("read_s", float("-inf")))
        if now_s - read_s > _OLD_S:
            return None
        if before is not None and read_s <= before.at_s:
            return before
        models = node.id in self.endpoints.node_ids
        load = load_of(
            facts,
            cpus=node.given_cpus,
            gpus=node.given_gpus,
            models=models,
            heated=node.id in self._worked_s,
        )
        return classify(before, load, read_s, self._limits)

    def _look_at_endpoints(self) -> Iterable[Note]:
        try:
            facts = json.loads(self._models_status.read_bytes())
            self.endpoints = endpoints_of(facts, datetime.fromtimestamp(time.time(), UTC))
        except (OSError, ValueError, KeyError, TypeError):
            self.endpoints = Endpoints()
        before = self._queue
        self._queue = classify(before, self.endpoints.load, time.monotonic(), self._limits)
        if before is not None and before.level is not self._queue.level:
            yield _note("endpoints", self._queue)


def _note(name: str, capacity: Capacity) -> Note:
    load = capacity.load
    facts = {"node": name, "level": capacity.level.word, "because": capacity.because}
    if load.tokens_per_s is not None:
        facts["tokens_per_s"] = f"{load.tokens_per_s:g}"
    return Note("load.changed", facts)
