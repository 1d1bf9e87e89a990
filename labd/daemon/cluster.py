"""The machines that the engine offers, what they say of themselves, and which of them get new tasks."""

import json
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labd.campaigns import Capacity, Level
from labd.daemon.loads import SeenNode
from labd.engine.types import NodeInfo
from labd.log import Logger
from labd.scheduler import Barred, Node, Running
from labd.scheduler.rooms import Room, rooms_of
from labd.text import printable

_MAX_NODES = 10_000
_MAX_BYTES = 2**20


class Cluster:
    """The nodes. `drained_path`: a list of names, which somebody else writes."""

    def __init__(self, drained_path: Path, log: Logger) -> None:
        self._drained_path, self._log = drained_path, log
        self._drained_version: tuple[int, int] | None = None
        self._drained: frozenset[str] = frozenset()
        self._said: dict[str, str] = {}
        self.nodes: list[NodeInfo] = []
        self.machines: dict[str, dict[str, Any]] = {}
        self.capacities: Mapping[str, Capacity] = {}
        """How loaded nodes are, by id, where somebody looks; at critical load they get no new tasks."""

    def tell(self, machines: dict[str, dict[str, Any]]) -> None:
        """Take what the machines say of themselves; what is wrong with one is logged once."""
        new = set(machines) - set(self.machines)
        self.machines = machines
        for node in self.nodes:
            facts = machines.get(node.id)
            if facts is None:
                continue
            if node.id in new and not facts["problem"]:
                told = {key: facts.get(key) for key in ("labd", "ray", "python", "clock_offset_s")}
                self._log.info("node.joined", node=node.name, **told)
            problem = facts["problem"] or facts["warning"]
            if problem and self._said.get(node.id) != problem:
                used = not facts["problem"]
                self._log.warning("node.mismatch", node=node.name, what=problem, used=used)
            self._said[node.id] = problem
        self._said = {node: what for node, what in self._said.items() if node in machines}

    def usable(self) -> list[Node]:
        """Give the nodes that new tasks may go to.

        Not drained, but for the lab's own seen to have the same labd, and not at critical load.
        """
        self._read_drained()
        return [self._as_node(n) for n in self.nodes if self._is_sound(n) and not self._barred(n)]

    def barred(self) -> list[Barred]:
        """Give the nodes that get no new tasks although all is well with them, each with why and what to do."""
        self._read_drained()
        sound = ((n, self._barred(n)) for n in self.nodes if self._is_sound(n))
        return [Barred(self._as_node(n), why) for n, why in sound if why]

    def seen(self, running: Sequence[Running]) -> list[SeenNode]:
        """Give the nodes that new tasks may go to, their load left aside, with what runs there."""
        self._read_drained()
        nodes = [n for n in self.nodes if n.name not in self._drained and self._is_sound(n)]
        free = rooms_of([self._as_node(n) for n in nodes], running)
        return [
            self._seen(n, free[n.id], [t for t in running if t.node_id == n.id]) for n in nodes
        ]

    def _seen(self, node: NodeInfo, room: Room, tasks: Sequence[Running]) -> SeenNode:
        return SeenNode(
            node.id,
            node.name,
            node.num_cpus,
            node.num_gpus,
            self.machines.get(node.id),
            len(tasks),
            sum(task.demand.num_cpus for task in tasks),
            sum(task.demand.num_gpus for task in tasks),
            [1 - free for free in room.gpus.values()],
            node.local,
        )

    def why_none(self) -> str:
        """Say why no node is usable where there are nodes; empty where one is, or where there is none at all."""
        if not self.nodes or self.usable():
            return ""
        barred = [f"{one.node.name}: {one.why}" for one in self.barred()[:5]]
        return (
            f"waits: {'; '.join(barred)}" if barred else "waits until a node has said what it is"
        )

    def name_of(self, node_id: str) -> str:
        """Give a node's name as people know it."""
        return next((node.name for node in self.nodes if node.id == node_id), node_id)

    def names_of(self, node_ids: Iterable[str]) -> list[str]:
        """Give the names of those of some nodes that are still there."""
        known = {node.id: node.name for node in self.nodes}
        return [known[node_id] for node_id in node_ids if node_id in known]

    def facts(self) -> list[dict[str, Any]]:
        """Give all that is known of the nodes, for readers."""
        return [
            {
                "id": n.id,
                "name": n.name,
                "num_cpus": n.num_cpus,
                "num_gpus": n.num_gpus,
                "local": n.local,
                "drained": n.name in self._drained,
                **self._level_of(n),
                "barred": self._barred(n),
                "machine": self.machines.get(n.id),
            }
            for n in self.nodes
        ]

    def _as_node(self, node: NodeInfo) -> Node:
        capacity = self.capacities.get(node.id)
        loaded = capacity is not None and capacity.level is not Level.NORMAL
        return Node(node.id, node.name, node.num_cpus, node.num_gpus, node.local, loaded)

    def _level_of(self, node: NodeInfo) -> dict[str, Any]:
        capacity = self.capacities.get(node.id)
        if capacity is None:
            return {"level": None, "because": ""}
        return {"level": capacity.level.word, "because": capacity.because}

    def _barred(self, node: NodeInfo) -> str:
        """Say why a node gets no new tasks; empty where it may get some."""
        if node.name in self._drained:
            return f"drained; `labd undrain {node.name}` lets tasks go there again"
        capacity = self.capacities.get(node.id)
        if capacity is None or capacity.level is not Level.CRITICAL:
            return ""
        return f"its load is critical ({capacity.because})"

    def _is_sound(self, node: NodeInfo) -> bool:
        facts = self.machines.get(node.id)
        return node.local if facts is None else not facts["problem"]

    def _read_drained(self) -> None:
        try:
            seen = self._drained_path.stat()
            version = (seen.st_ino, seen.st_mtime_ns)
            if version == self._drained_version:
                return
            if not stat.S_ISREG(seen.st_mode) or seen.st_size > _MAX_BYTES:
                raise ValueError("no plain file of a list of names")  # noqa: TRY301 - told below, as its like
            names = json.loads(self._drained_path.read_bytes())["nodes"]
            self._drained = frozenset(str(name) for name in names[:_MAX_NODES])
            self._drained_version = version
        except FileNotFoundError:
            self._drained, self._drained_version = frozenset(), None
        except (OSError, ValueError, KeyError, TypeError) as error:
            # What can't be read changes nothing; it is said, once for each state of the file.
            told = printable(repr(error), 200)
            if self._said.get("") != told:
                self._log.error("drained.unreadable", path=str(self._drained_path), reason=told)
            self._said[""] = told
