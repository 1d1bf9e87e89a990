"""The lab's broker of language models, in an actor on the lab's own node; and how workers reach it.

An actor, because workers on all nodes ask it, and because it has to outlive the daemon where work does.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labd import __version__
from labd.engine.dispatcher import named_nodes
from labd.engine.metrics import Metrics
from labd.errors import EngineError
from labd.llm.broker import Broker
from labd.llm.desk import Change, Rules
from labd.llm.errors import EndpointDown, ModelError
from labd.llm.finding import Machine, find_own, found_on, placed, reach
from labd.llm.hands import DirectHands
from labd.llm.model import Endpoint, Look

THREADS = 32
LISTENERS = 512
"""Workers that wait for news, each in a thread of the actor; apart from the others, which are to be answered at once."""
_HEAR_FIRST_S = 3.0
"""How long a broker that came back hears its holders first: they find out that it was gone within a second."""
_ASK_AGAIN_S = 60.0
"""After so long a node is asked again on which no Ollama was found, or one that only it can reach."""
_FIND_TIMEOUT_S = 20.0
_CHANGE_TIMEOUT_S = 1800.0
_PULL_TIMEOUT_S = 86_400.0
_LOOK_TIMEOUT_S = 30.0
_THREADS = 16


class ModelsActor:
    """A `Broker` for the lab's workers on all nodes.

    Args:
        options: ``lab``, ``endpoints`` (as for `labd.llm.finding.placed`), ``discover``, ``rules`` (of
            `labd.llm.desk.Rules`) and ``status_path``.
        node_id: the lab's own node.

    """

    def __init__(self, options: Mapping[str, Any], node_id: str) -> None:
        self._finder = Finder(options, node_id)
        self._broker = Broker(
            Rules(**options["rules"]),
            self._finder.find,
            NodeHands(DirectHands(), node_id, Metrics(options["lab"])),
            status_path=Path(options["status_path"]),
            hear_first_s=_HEAR_FIRST_S if _came_back() else 0.0,
        )

    def answer(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        """Pass a message to `Broker.answer`."""
        if method == "want_gpus" and not self._finder.knows(data["node_id"]):
            # A machine that has just joined: its Ollama may fill the GPUs before anybody knows of it.
            self._broker.discover()
        return self._broker.answer(method, **data)


class Finder:
    """Which endpoints there are, of the settings and found on the nodes. What was found stays while its node does.

    All nodes are asked at the same time, so that one that does not answer keeps none of the others waiting for
    longer than a time-out, and that once.
    """

    def __init__(self, options: Mapping[str, Any], node_id: str) -> None:
        self._options, self._node_id = options, node_id
        self._threads = ThreadPoolExecutor(_THREADS, "find")
        self._asked: dict[str, _Asked] = {}
        self._known: frozenset[str] = frozenset()
        self._found: dict[str, Endpoint] = {}
        self._machines: list[Machine] = []
        self._placed: list[Endpoint] = []
        self._placed_s = 0.0

    def knows(self, node_id: str) -> bool:
        """Say whether an earlier `find` told what is on a node."""
        return not self._options["discover"] or node_id in self._known

    def find(self) -> Sequence[Endpoint]:
        """Give all endpoints, each with the node whose GPUs it fills. Waits for nodes that were not asked before."""
        self._known = frozenset(i for i, asked in self._asked.items() if asked.taken)
        machines = machines_of(self._node_id)
        now_s = time.monotonic()
        if machines != self._machines or now_s - self._placed_s >= _ASK_AGAIN_S:
            self._machines, self._placed_s = machines, now_s
            self._placed = placed(self._options["endpoints"], machines)
        if not self._options["discover"]:
            return self._placed
        alive = {machine.id for machine in machines}
        self._asked = {i: asked for i, asked in self._asked.items() if i in alive}
        self._found = {i: endpoint for i, endpoint in self._found.items() if i in alive}
        self._ask(machines, now_s)
        for machine in machines:
            self._take(machine, machines)
        return [*self._placed, *self._found.values()]

    def _ask(self, machines: Sequence[Machine], now_s: float) -> None:
        new = []
        for machine in machines:
            asked, known = self._asked.get(machine.id), self._found.get(machine.id)
            if known is not None and not known.only_from:
                continue
            if asked is None or (asked.answer.done() and now_s - asked.at_s >= _ASK_AGAIN_S):
                answer = self._threads.submit(_probe, machine, known.url if known else "")
                self._asked[machine.id] = _Asked(answer, now_s)
                new += [answer] if asked is None else []
        wait(new, _FIND_TIMEOUT_S)

    def _take(self, machine: Machine, machines: Sequence[Machine]) -> None:
        asked = self._asked[machine.id]
        if not asked.answer.done() or asked.taken:
            return
        asked.taken = True
        url, outside = asked.answer.result()
        endpoint = self._found.get(machine.id)
        if endpoint is not None:
            endpoint = replace(endpoint, url=outside, only_from="") if outside else endpoint
        elif url:
            known = [*self._placed, *self._found.values()]
            endpoint = found_on(machine, url, outside, known, machines)
        if endpoint is not None:
            self._found[machine.id] = endpoint


@dataclass(slots=True)
class _Asked:
    """That a node was asked, when, and whether its answer has been heeded."""

    answer: Future[tuple[str, str]]
    at_s: float
    taken: bool = False


def _probe(machine: Machine, known: str) -> tuple[str, str]:
    """Give where a machine's own Ollama answers: seen from itself, `known` if it is, and from elsewhere."""
    url = known or _own(machine)
    return url, reach(machine, url) if url else ""


def _own(machine: Machine) -> str:
    if machine.local:
        return find_own(machine.address)
    try:
        return str(_on(machine.id, find_own, machine.address, timeout_s=_FIND_TIMEOUT_S))
    except EngineError:
        return ""  # it is asked again


class NodeHands:
    """Reaches endpoints: from here, or, those that only another node can reach, by a small task there."""

    def __init__(self, direct: DirectHands, node_id: str, metrics: Metrics | None = None) -> None:
        self._direct, self._node_id, self._metrics = direct, node_id, metrics

    def look(self, endpoint: Endpoint) -> Look:
        """Give the endpoint's state."""
        if self._near(endpoint):
            return self._direct.look(endpoint)
        try:
            look: Look = _on(endpoint.only_from, _look, endpoint, timeout_s=_LOOK_TIMEOUT_S)
        except EngineError as error:
            return Look("down", problem=f"its node does not answer: {error}")
        return look

    def change(self, endpoint: Endpoint, change: Change) -> None:
        """Unload, wait until that is done, and load.

        Raises:
            ModelError: it did not work.

        """
        if self._near(endpoint):
            self._direct.change(endpoint, change)
        else:
            self._there(endpoint, _change, change, timeout_s=_CHANGE_TIMEOUT_S)
        if change.load and self._metrics is not None:
            tags = {"endpoint": endpoint.name}
            self._metrics.take([{"name": "model_loads", "value": 1, "tags": tags}])

    def pull(self, endpoint: Endpoint, model: str, progress: Callable[[str], None]) -> None:
        """Have the endpoint download a model; of one on another node nothing is heard meanwhile.

        Raises:
            ModelError: it did not work.

        """
        if self._near(endpoint):
            self._direct.pull(endpoint, model, progress)
        else:
            self._there(endpoint, _pull, model, timeout_s=_PULL_TIMEOUT_S)

    def _near(self, endpoint: Endpoint) -> bool:
        return endpoint.only_from in {"", self._node_id}

    def _there(
        self, endpoint: Endpoint, what: Callable[..., None], argument: Any, *, timeout_s: float
    ) -> None:
        try:
            _on(endpoint.only_from, what, endpoint, argument, timeout_s=timeout_s)
        except EngineError as error:
            raise EndpointDown(f"its node does not answer: {error}") from error

    def close(self) -> None:
        """Close all connections."""
        self._direct.close()


def make(options: Mapping[str, Any], node_id: str, **more: Any) -> Any:
    """Give the handle of a new broker actor on the lab's own node."""
    # Ray's own annotations know these groups only where `remote` is used as a decorator.
    remote: Any = ray.remote(concurrency_groups={"listen": LISTENERS})
    actor = remote(ModelsActor).options(
        **{
            "num_cpus": 0,
            "max_concurrency": THREADS,
            "max_restarts": -1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
            **more,
        }
    )
    return actor.remote(dict(options), node_id)


def _came_back() -> bool:
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def machines_of(local_id: str) -> list[Machine]:
    """Give the cluster's machines that are alive, named as people know them."""
    return [
        Machine(node["NodeID"], name, node["NodeManagerAddress"], node["NodeID"] == local_id)
        for name, node in named_nodes()
    ]


def _on(node_id: str, what: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
    """Run a function on a node, and give what it gives.

    Raises:
        EngineError: the node did not do it in time, or is gone.
        ModelError: what the function raised.

    """
    task = _remote(what).options(
        num_cpus=0,
        max_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    reference = task.remote(*arguments)
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ModelError):
            raise error.cause from error
        raise EngineError(
            f"{type(error.cause).__name__} on labd {__version__}: {error.cause}"
        ) from error
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(reference)
        raise EngineError(f"no answer for {timeout_s:g} s") from error
    except ray.exceptions.RayError as error:
        raise EngineError(type(error).__name__) from error


@cache  # Ray keeps what it was given for as long as it lives, and a new one each time
def _remote(what: Callable[..., Any]) -> Any:
    return ray.remote(what)


def _look(endpoint: Endpoint) -> Look:
    with DirectHands() as hands:
        return hands.look(endpoint)


def _change(endpoint: Endpoint, change: Change) -> None:
    with DirectHands() as hands:
        hands.change(endpoint, change)


def _pull(endpoint: Endpoint, model: str) -> None:
    with DirectHands() as hands:
        hands.pull(endpoint, model, lambda _: None)
