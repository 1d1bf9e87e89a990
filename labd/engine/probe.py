"""What each node of the cluster is and does: asked of it by a small task, now and then; clocks and versions compared.

The driver asks, because what is learned here is for readers and for the daemon's plans, and can be asked again.
"""

import importlib.metadata
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labd import __version__
from labd.text import printable

EVERY_S = 10.0
_ANSWER_TIMEOUT_S = 20.0
_OLD_S = 60.0
"""For so long the last answer of a node holds that gives none any more."""
MAX_CLOCK_OFFSET_S = 2.0
_INSTALL = "Install the same version on all machines: make install from the same source"
_CLOCK = "Have both machines' clocks set by the network: timedatectl set-ntp true"


def facts_of_this_node(sandbox: Mapping[str, Any]) -> dict[str, Any]:
    """Give what `labd.machine.look` gives, with versions, and gaps of the sandbox. Runs on the node."""
    from labd import machine, worker  # noqa: PLC0415 - here, so that a node with another labd can say so
    from labd.engine.raylogs import sweep_now_and_then  # noqa: PLC0415 - as above

    sweep_now_and_then()
    return {
        **machine.look(),
        "labd": __version__,
        "ray": importlib.metadata.version("ray"),
        "gaps": worker.gaps(sandbox),
    }


@dataclass(slots=True)
class _Asked:
    at_s: float
    answer: Future[tuple[dict[str, Any], float]]


class Prober:
    """Asks all nodes, and says what they answer.

    Args:
        sandbox: the settings that gaps are found by.
        local_id: the lab's own node.
        say: gets ``machines=``: by node id the facts, and ``problem`` and ``warning``, empty where all is well.

    """

    def __init__(
        self, sandbox: Mapping[str, Any], local_id: str, say: Callable[..., None]
    ) -> None:
        self._sandbox, self._local_id, self._say = sandbox, local_id, say
        self._ask = ray.remote(facts_of_this_node)
        self._known: dict[str, dict[str, Any]] = {}
        self._answered_s: dict[str, float] = {}
        self._own: dict[str, Any] = {}

    def go_on(
        self, nodes: Callable[[], Sequence[str]], closing: threading.Event, more: threading.Event
    ) -> None:
        """Ask all `nodes` again and again until `closing` is set, and at once when `more` is."""
        while not closing.is_set():
            more.clear()
            if self.ask(nodes()):
                self._say("machines", machines=self._known)
            more.wait(EVERY_S)

    def ask(self, nodes: Sequence[str]) -> bool:
        """Ask these nodes at the same time; say whether there is news."""
        asked = {node: self._asked(node) for node in nodes}
        wait([one.answer for one in asked.values()], _ANSWER_TIMEOUT_S)
        now_s = time.monotonic()
        # The lab's own first: the others are compared with it.
        for node in sorted(nodes, key=lambda node: node != self._local_id):
            told = self._judged(node, asked[node])
            if told is not None:
                self._known[node], self._answered_s[node] = told, now_s
            elif now_s - self._answered_s.get(node, float("-inf")) > _OLD_S:
                self._known[node] = {"problem": "it does not answer", "warning": ""}
        for gone in set(self._known) - set(nodes):
            del self._known[gone]
        return bool(nodes)

    def _asked(self, node: str) -> _Asked:
        began_s = time.time()
        task = self._ask.options(
            name="labd:probe",
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        answer: Future[tuple[dict[str, Any], float]] = Future()
        task.remote(self._sandbox).future().add_done_callback(partial(_arrived, answer))
        return _Asked(began_s, answer)

    def _judged(self, node: str, asked: _Asked) -> dict[str, Any] | None:
        if not asked.answer.done():
            return None
        error = asked.answer.exception()
        if isinstance(error, ray.exceptions.RayTaskError):
            return {"problem": _no_labd(error), "warning": ""}
        if error is not None:
            return None
        facts, at_s = asked.answer.result()
        offset_s, unsure_s = clock_offset_s(facts["unix_s"], asked.at_s, at_s)
        if node == self._local_id:
            self._own = facts
            return {**facts, "clock_offset_s": 0.0, "problem": "", "warning": ""}
        return {
            **facts,
            "clock_offset_s": round(surely_s(offset_s, unsure_s), 3),
            "problem": version_problem(facts, __version__),
            "warning": clock_warning(offset_s, unsure_s),
        }


def _arrived(answer: Future[tuple[dict[str, Any], float]], future: Future[dict[str, Any]]) -> None:
    error = future.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result((future.result(), time.time()))


def clock_offset_s(there_s: float, asked_s: float, answered_s: float) -> tuple[float, float]:
    """Give by how much a clock there is ahead of ours, and how unsure that is: half of the way there and back."""
    return there_s - (asked_s + answered_s) / 2, (answered_s - asked_s) / 2


def surely_s(offset_s: float, unsure_s: float) -> float:
    """Give by how much a clock is off at the least."""
    return math.copysign(max(0.0, abs(offset_s) - unsure_s), offset_s)


def clock_warning(offset_s: float, unsure_s: float) -> str:
    """Say that a clock is surely off, and what to do; empty where it is not."""
    off_s = abs(surely_s(offset_s, unsure_s))
    if off_s <= MAX_CLOCK_OFFSET_S:
        return ""
    which = "ahead of" if offset_s > 0 else "behind"
    return f"its clock is at least {int(off_s)} s {which} the lab's. {_CLOCK}"


def version_problem(facts: Mapping[str, Any], wanted: str) -> str:
    """Say that a node has another labd, and what to do; empty where it has not."""
    if facts["labd"] == wanted:
        return ""
    return (
        f"its labd is {printable(str(facts['labd']), 40)}, and the lab's is {wanted}. {_INSTALL}"
    )


def _no_labd(error: Any) -> str:
    cause = error.cause
    if isinstance(cause, ModuleNotFoundError | ImportError | AttributeError):
        told = printable(str(cause), 120)
        return f"it has no labd, or another one than the lab's ({told}). {_INSTALL}"
    return printable(f"{type(cause).__name__}: {cause}", 300)
