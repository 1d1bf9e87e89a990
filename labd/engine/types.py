"""What the daemon and the engine say to each other; plain data that travels as JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at a task, as the worker gets it. Paths are those of the machine that owns the results."""

    task_id: str
    attempt: int
    node_id: str
    num_cpus: float
    num_gpus: float
    timeout_s: float
    task_text: str
    task_sha256: str
    file_name: str
    results_dir: str
    template_roots: list[str]
    min_free_bytes: int
    sandbox: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Give the job as JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A machine that Ray offers. `id` is Ray's node id."""

    id: str
    name: str
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine can take jobs."""

    nodes: list[NodeInfo]
    dashboard_url: str


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster's machines changed."""

    nodes: list[NodeInfo]


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt is over and its resources are free.

    `how`: ``returned`` (the worker came to its end and says what it made of the task in `outcome`),
    ``lost`` (the worker, its node or Ray died) or ``cancelled`` (because it was asked to).
    """

    task_id: str
    attempt: int
    how: Literal["returned", "lost", "cancelled"]
    outcome: dict[str, Any] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Down:
    """The engine is gone, and every running attempt with it; the client starts it again."""

    reason: str


type_of_event = {"ready": Ready, "nodes": Nodes, "ended": Ended}

Event = Ready | Nodes | Ended | Down


def event_from_json(value: dict[str, Any]) -> Event:
    """Make an event of what the driver wrote.

    Raises:
        KeyError, TypeError: it is none of the driver's lines.

    """
    facts = dict(value)
    kind = facts.pop("event")
    if "nodes" in facts:
        facts["nodes"] = [NodeInfo(**node) for node in facts["nodes"]]
    event: Event = type_of_event[kind](**facts)
    return event
