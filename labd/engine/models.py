"""The lab's broker of language models, in an actor on the lab's own node; and how workers reach it.

An actor, because workers on all nodes ask it, and because it has to outlive the daemon where work does.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labd import __version__
from labd.errors import EngineError
from labd.llm.broker import Broker
from labd.llm.desk import Change, Rules
from labd.llm.errors import EndpointDown, ModelError
from labd.llm.finding import Machine, find_own, found_on, placed
from labd.llm.hands import DirectHands
from labd.llm.model import Endpoint, Look
from labd.llm.wireform import Call
from labd.text import printable

THREADS = 128
"""Calls that the actor works on at once: each worker process has one that waits."""
CALL_TIMEOUT_S = 60.0
_FIND_TIMEOUT_S = 20.0
_CHANGE_TIMEOUT_S = 1800.0
_LOOK_TIMEOUT_S = 30.0


class ModelsActor:
    """A `Broker` for the lab's workers on all nodes.

    Args:
        options: ``endpoints`` (as for `labd.llm.finding.placed`), ``discover``, ``rules`` (of
            `labd.llm.desk.Rules`) and ``status_path``.
        node_id: the lab's own node.

    """

    def __init__(self, options: Mapping[str, Any], node_id: str) -> None:
        self._broker = Broker(
            Rules(**options["rules"]),
            Finder(options, node_id).find,
            NodeHands(DirectHands()),
            status_path=Path(options["status_path"]),
        )

    def answer(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        """Pass a message to `Broker.answer`."""
        return self._broker.answer(method, **data)


class Finder:
    """Which endpoints there are, of the settings and found on the nodes. What was found stays while its node does."""

    def __init__(self, options: Mapping[str, Any], node_id: str) -> None:
        self._options, self._node_id = options, node_id
        self._found: dict[str, Endpoint] = {}

    def find(self) -> Sequence[Endpoint]:
        """Give all endpoints, each with the node whose GPUs it fills."""
        machines = machines_of(self._node_id)
        endpoints = placed(self._options["endpoints"], machines)
        if not self._options["discover"]:
            return endpoints
        for machine in machines:
            old = self._found.get(machine.id)
            known = [*endpoints, *(e for i, e in self._found.items() if i != machine.id)]
            url = "" if old else self._own(machine)
            endpoint = found_on(machine, url, known) if url else old
            if endpoint is not None:
                self._found[machine.id] = endpoint
        alive = {machine.id for machine in machines}
        self._found = {i: e for i, e in self._found.items() if i in alive}
        return [*endpoints, *self._found.values()]

    def _own(self, machine: Machine) -> str:
        if machine.local:
            return find_own()
        try:
            return str(_on(machine.id, find_own, timeout_s=_FIND_TIMEOUT_S))
        except EngineError:
            return ""  # the next round asks again


class NodeHands:
    """Reaches endpoints: from here, or, those that only their own node can reach, by a small task there."""

    def __init__(self, direct: DirectHands) -> None:
        self._direct = direct

    def look(self, endpoint: Endpoint) -> Look:
        """Give the endpoint's state."""
        if not endpoint.only_from:
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
        if not endpoint.only_from:
            self._direct.change(endpoint, change)
            return
        try:
            _on(endpoint.only_from, _change, endpoint, change, timeout_s=_CHANGE_TIMEOUT_S)
        except EngineError as error:
            raise EndpointDown(f"its node does not answer: {error}") from error

    def pull(self, endpoint: Endpoint, model: str, progress: Callable[[str], None]) -> None:
        """Have the endpoint download a model; of one on another node nothing is heard meanwhile.

        Raises:
            ModelError: it did not work.

        """
        self._direct.pull(endpoint, model, progress)

    def close(self) -> None:
        """Close all connections."""
        self._direct.close()


def make(options: Mapping[str, Any], node_id: str, **more: Any) -> Any:
    """Give the handle of a new broker actor on the lab's own node."""
    actor = ray.remote(ModelsActor).options(
        **{
            "num_cpus": 0,
            "max_concurrency": THREADS,
            "max_restarts": -1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
            **more,
        }
    )
    return actor.remote(dict(options), node_id)


def call_to(actor: Any) -> Call:
    """Give a worker's way to the broker."""

    def call(method: str, /, **data: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = ray.get(
                actor.answer.remote(method, data), timeout=CALL_TIMEOUT_S
            )
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError("the broker of models did not answer") from error
        except ray.exceptions.RayError as error:
            raise ConnectionError(
                f"the broker of models is gone: {type(error).__name__}"
            ) from error
        return answer

    return call


def machines_of(local_id: str) -> list[Machine]:
    """Give the cluster's machines that are alive."""
    return [
        Machine(
            node["NodeID"],
            printable(node.get("NodeManagerHostname") or node["NodeManagerAddress"], 100),
            node["NodeManagerAddress"],
            node["NodeID"] == local_id,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _on(node_id: str, what: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
    """Run a function on a node, and give what it gives.

    Raises:
        EngineError: the node did not do it in time, or is gone.
        ModelError: what the function raised.

    """
    task = ray.remote(what).options(
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


def _look(endpoint: Endpoint) -> Look:
    with DirectHands() as hands:
        return hands.look(endpoint)


def _change(endpoint: Endpoint, change: Change) -> None:
    with DirectHands() as hands:
        hands.change(endpoint, change)
