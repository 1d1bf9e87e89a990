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
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labd import __version__
from labd.machine import cpu_share
from labd.text import printable

EVERY_S = 10.0
"""At most; more often where tasks are taken for stuck earlier."""
_ANSWER_TIMEOUT_S = 20.0
_OLD_S = 60.0
"""For so long the last answer of a node holds that gives none any more."""
MAX_CLOCK_OFFSET_S = 2.0
_SUMS = frozenset({"cpu_busy_s", "cpu_all_s"})
_INSTALL = "Install the same version on all machines: make install from the same source"
_CLOCK = "Have both machines' clocks set by the network: timedatectl set-ntp true"


def facts_of_this_node(lab: Mapping[str, Any], away: bool) -> dict[str, Any]:  # noqa: FBT001 - Ray's arguments are best plain
    """Give what `labd.machine.look` gives, with versions, gaps of the sandbox, and signs of attempts. Runs on the node.

    `lab` has what `Prober` is given; `away`: whether this is another node than the lab's own. ``attempts``: for each attempt
    of the lab's that is under way here ``task_id``, ``attempt``, and the facts of `labd.scheduler.Signs` but for ``at_s``,
    which is ``looked_s`` beside it.
    """
    from labd import machine, worker  # noqa: PLC0415 - here, so that a node with another labd can say so
    from labd.engine.raylogs import sweep_now_and_then  # noqa: PLC0415 - as above
    from labd.engine.remote import scratch_root, signs_directory  # noqa: PLC0415 - as above

    sweep_now_and_then()
    facts = machine.look(scratch_root() if away else Path(lab["worker"]["results"]))
    busy = {gpu["index"]: gpu["busy"] for gpu in facts["gpus"] if gpu["busy"] is not None}
    return {
        **facts,
        "labd": __version__,
        "ray": importlib.metadata.version("ray"),
        "gaps": worker.gaps(lab["worker"]["sandbox"]),
        "looked_s": time.monotonic(),
        "attempts": worker.attempts_here(signs_directory(lab, away=away), busy),
    }


@dataclass(slots=True)
class _Asked:
    at_s: float
    answer: Future["_Answer"]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a node said, and when that came: by the wall clock, and by the monotonic one."""

    look: dict[str, Any]
    at_s: float
    read_s: float


class Prober:
    """Asks all nodes, and says what they answer.

    Args:
        lab: ``lab`` and ``lock_path``, as in `labd.engine.remote.run_job`, and ``worker`` with ``sandbox``, the settings that gaps
            are found by, and ``results``, where the lab's own node writes.
        every_s: how often.
        local_id: the lab's own node.
        say: gets ``machines=``: by node id the facts, and ``problem`` and ``warning``, empty where all is well. ``cpu`` is
            the busy share of all CPUs since the answer before (``None``: there was none), and ``read_s`` when the answer
            came, by this machine's monotonic clock, which its processes share.

    """

    def __init__(
        self,
        lab: Mapping[str, Any],
        local_id: str,
        say: Callable[..., None],
        *,
        every_s: float = EVERY_S,
    ) -> None:
        worker = {key: lab["worker"][key] for key in ("sandbox", "results")}
        self._lab = {"lab": lab["lab"], "lock_path": lab["lock_path"], "worker": worker}
        self._local_id, self._say, self._every_s = local_id, say, every_s
        self._ask = ray.remote(facts_of_this_node)
        self._known: dict[str, dict[str, Any]] = {}
        self._looks: dict[str, dict[str, Any]] = {}
        """What each node answered last, as it said it."""
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
            more.wait(self._every_s)

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
            self._looks.pop(gone, None)
        return bool(nodes)

    def _asked(self, node: str) -> _Asked:
        began_s = time.time()
        task = self._ask.options(
            name="labd:probe",
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        answer: Future[_Answer] = Future()
        asked = task.remote(self._lab, node != self._local_id)
        asked.future().add_done_callback(partial(_arrived, answer))
        return _Asked(began_s, answer)

    def _judged(self, node: str, asked: _Asked) -> dict[str, Any] | None:
        if not asked.answer.done():
            return None
        error = asked.answer.exception()
        if isinstance(error, ray.exceptions.RayTaskError):
            return {"problem": _no_labd(error), "warning": ""}
        if error is not None:
            return None
        answer = asked.answer.result()
        # Of another labd's answer nothing is known but its version.
        if problem := version_problem(answer.look, __version__):
            return {**answer.look, "problem": problem, "warning": ""}
        facts = {**self._with_cpu(node, answer.look), "read_s": answer.read_s}
        offset_s, unsure_s = clock_offset_s(facts["unix_s"], asked.at_s, answer.at_s)
        if node == self._local_id:
            self._own = facts
            return {**facts, "clock_offset_s": 0.0, "problem": "", "warning": ""}
        return {
            **facts,
            "clock_offset_s": round(surely_s(offset_s, unsure_s), 3),
            "problem": "",
            "warning": clock_warning(offset_s, unsure_s),
        }

    def _with_cpu(self, node: str, look: dict[str, Any]) -> dict[str, Any]:
        """Give the facts with what the CPUs did since the last answer, in place of the sums that say so."""
        before, self._looks[node] = self._looks.get(node), look
        cpu = cpu_share(before, look) if before and "cpu_all_s" in look else None
        return {**{key: look[key] for key in look if key not in _SUMS}, "cpu": cpu}


def _arrived(answer: Future[_Answer], future: Future[dict[str, Any]]) -> None:
    error = future.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(_Answer(future.result(), time.time(), time.monotonic()))


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
    if facts.get("labd") == wanted:
        return ""
    return f"its labd is {printable(str(facts.get('labd')), 40)}, and the lab's is {wanted}. {_INSTALL}"


def _no_labd(error: Any) -> str:
    cause = error.cause
    if isinstance(cause, ImportError | AttributeError | TypeError):
        told = printable(str(cause), 120)
        return f"it has no labd, or another one than the lab's ({told}). {_INSTALL}"
    return printable(f"{type(cause).__name__}: {cause}", 300)
