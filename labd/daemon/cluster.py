"""The machines that the engine offers, what they say of themselves, and which of them get new tasks."""

import json
import stat
from pathlib import Path
from typing import Any

from labd.engine.types import NodeInfo
from labd.log import Logger
from labd.scheduler import Node
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

    def tell(self, machines: dict[str, dict[str, Any]]) -> None:
        """Take what the machines say of themselves; what is wrong with one is logged once."""
        new = set(machines) - set(self.machines)
        self.machines = machines
        for node in self.nodes:
            facts = machines.get(node.id)
            if facts is None:
                continue
            if node.id in new and not facts["problem"]:
                told = {key: facts[key] for key in ("labd", "ray", "python", "clock_offset_s")}
                self._log.info("node.joined", node=node.name, **told)
            problem = facts["problem"] or facts["warning"]
            if problem and self._said.get(node.id) != problem:
                used = not facts["problem"]
                self._log.warning("node.mismatch", node=node.name, what=problem, used=used)
            self._said[node.id] = problem
        self._said = {node: what for node, what in self._said.items() if node in machines}

    def usable(self) -> list[Node]:
        """Give the nodes that new tasks may go to: not drained, and, but for the lab's own, seen to have the same labd."""
        self._read_drained()
        return [
            Node(n.id, n.name, n.num_cpus, n.num_gpus, n.local)
            for n in self.nodes
            if n.name not in self._drained and self._is_sound(n)
        ]

    def why_none(self) -> str:
        """Say why no node is usable where there are nodes; empty where one is, or where there is none at all."""
        if not self.nodes or self.usable():
            return ""
        drained = [node.name for node in self.nodes if node.name in self._drained]
        if drained:
            return f"waits: drained: {', '.join(drained[:5])}; `labd undrain NODE` lets tasks go there again"
        return "waits until a node has said what it is"

    def name_of(self, node_id: str) -> str:
        """Give a node's name as people know it."""
        return next((node.name for node in self.nodes if node.id == node_id), node_id)

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
                "machine": self.machines.get(n.id),
            }
            for n in self.nodes
        ]

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
