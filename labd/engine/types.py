"""What the daemon and the engine say to each other; plain data that travels as JSON."""

from dataclasses import dataclass, field, fields
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
    allow_network: bool = False
    wants_models: bool = False
    """Whether it asks language models."""
    default_model: str | None = None
    default_num_ctx: int = 8192
    literature: dict[str, Any] = field(default_factory=dict)
    """Where papers of other people are looked for: what `labd.literature.model.Options` has."""
    input_roots: list[str] = field(default_factory=list)
    forbidden_roots: list[str] = field(default_factory=list)
    also_nodes: list[str] = field(default_factory=list)
    """Ray ids of further machines for its runs; each gives `num_cpus` and `num_gpus`, as the first."""

    def as_json(self) -> dict[str, Any]:
        """Give the job as JSON data; it shares the job's own lists and mappings."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A machine that Ray offers. `id` is Ray's node id; `local`: it is the daemon's own machine."""

    id: str
    name: str
    num_cpus: float
    num_gpus: float
    local: bool = True


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt that the engine has: it runs on node `node_id`, `age_s` after it was submitted."""

    task_id: str
    attempt: int
    node_id: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine can take jobs. Comes again whenever the engine came back.

    `held`: all attempts that the engine has. One that is not in it does not run and never will:
    it is lost. One that ended while nobody listened is in it, and its `Ended` follows at once.
    """

    nodes: list[NodeInfo]
    dashboard_url: str
    held: list[Held] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster's machines changed."""

    nodes: list[NodeInfo]


@dataclass(frozen=True, slots=True)
class Machines:
    """What the cluster's machines say of themselves, by node id, as `labd.engine.probe.Prober` gives it."""

    machines: dict[str, dict[str, Any]]


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
    """The driver's process ended; the client starts it again.

    Says nothing about the work: the next `Ready` does.
    """

    reason: str


type_of_event = {"ready": Ready, "nodes": Nodes, "machines": Machines, "ended": Ended}

Event = Ready | Nodes | Machines | Ended | Down


def event_from_json(value: dict[str, Any]) -> Event:
    """Make an event of what the driver wrote.

    Raises:
        KeyError, TypeError: it is none of the driver's lines.

    """
    facts = dict(value)
    kind = facts.pop("event")
    if "nodes" in facts:
        facts["nodes"] = [NodeInfo(**node) for node in facts["nodes"]]
    if "held" in facts:
        facts["held"] = [Held(**held) for held in facts["held"]]
    event: Event = type_of_event[kind](**facts)
    return event
