"""What submits jobs to Ray, cancels them and says how they ended; the same in a driver and in an actor.

Facts on Ray 2.60 that shape this (measured): Ray's own retries run a crashing task four times, so they
are off; a worker killed by ``ray.cancel(force=True)`` may still "return" a value, so only an outcome that
names its own attempt counts. Of 2.7 ms of CPU a job, ``options`` cost 0.06: not worth a cache.
"""

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labd.engine.remote import reach, run_job, warm_up
from labd.text import printable

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

TASK_NAME = "labd"
MAX_WARM = 8
"""Worker processes that are started ahead on a node, at most: each holds some 50 MB."""
SPARE = 1
_REWARM_AFTER_S = 1.0

Key = tuple[str, int]


@dataclass(slots=True)
class _Attempt:
    ref: Any
    node_id: str
    version: str
    since: float
    also_nodes: tuple[str, ...] = ()
    models: Any = None
    cancelled: bool = False
    over: bool = False


class Dispatcher:
    """The attempts that Ray has, by task id and attempt. One thread at a time calls `obey`; any the rest.

    Args:
        lab: ``lab`` and ``lock_path`` for `labd.engine.remote.run_job`, ``worker`` for `warm_up`, and
            ``node_id``, the lab's own node.
        deliver: gets each end as the facts of `labd.engine.types.Ended`; called on Ray's own thread,
            so it must not wait. An attempt is held until `forget` is called for it.
        archive: finds or makes the actor through which results of a job on another node come home.
        models: finds or makes the actor that shares out language models and the GPUs that they fill.

    """

    def __init__(
        self,
        lab: Mapping[str, Any],
        deliver: Callable[[dict[str, Any]], None],
        archive: Callable[[Mapping[str, Any]], Any] = lambda _: None,
        models: Callable[[], Any] = lambda: None,
    ) -> None:
        self._worker = dict(lab["worker"])
        self._node_id = lab["node_id"]
        self._archive, self._models = archive, models
        self._lab = {
            "lab": lab["lab"],
            "lock_path": lab["lock_path"],
            "node_id": lab["node_id"],
            "owner_pid": os.getpid(),
        }
        self._deliver = deliver
        self._lock = threading.Lock()
        self._attempts: dict[Key, _Attempt] = {}
        self._run = ray.remote(run_job)
        self._warm = ray.remote(warm_up)
        self._reach_out = ray.remote(reach)

    def obey(self, orders: Iterable[Mapping[str, Any]]) -> None:
        """Carry out the daemon's orders, in order."""
        for order in orders:
            if order["op"] == "submit":
                self._submit(order["job"], order["version"])
            elif order["op"] == "cancel":
                self._cancel((order["task_id"], order["attempt"]))
            elif order["op"] in {"end_runs", "kill"}:
                self._reach((order["task_id"], order["attempt"]), order["op"])

    def held(self) -> list[dict[str, Any]]:
        """Give the attempts that are not forgotten, as the facts of `labd.engine.types.Held`."""
        now = time.monotonic()
        with self._lock:
            return [
                {
                    "task_id": task_id,
                    "attempt": number,
                    "node_id": attempt.node_id,
                    "age_s": now - attempt.since,
                }
                for (task_id, number), attempt in self._attempts.items()
            ]

    def forget(self, task_id: str, attempt: int) -> None:
        """Let go of an attempt whose end has reached the daemon."""
        with self._lock:
            known = self._attempts.get((task_id, attempt))
            if known is not None and known.over:
                del self._attempts[task_id, attempt]

    def warm(self, node_id: str, count: int, version: str, num_cpus: float = 1) -> None:
        """Have `count` of the node's worker processes ready for their first task."""
        warm = self._warm.options(
            num_cpus=num_cpus, max_retries=0, scheduling_strategy=affinity(node_id)
        )
        away = node_id != self._node_id
        for _ in range(count):
            warm.remote(self._worker, self._lab, version, away)

    def warm_node(self, node_id: str, num_cpus: int, version: str) -> None:
        """Have workers ready for a whole node's tasks, and one to spare.

        A worker dies with a cancelled task, and its successor takes a second or more to start; the spare
        one takes the next task meanwhile.
        """
        self.warm(node_id, min(num_cpus, MAX_WARM), version)
        self.warm(node_id, SPARE, version, num_cpus=0)

    def _submit(self, job: dict[str, Any], version: str) -> None:
        key = (job["task_id"], job["attempt"])
        with self._lock:
            if key in self._attempts:
                return
        nodes = (job["node_id"], *job["also_nodes"])
        try:
            archive = self._archive(job) if any(n != self._node_id for n in nodes) else None
            models = self._models() if job["wants_models"] or job["num_gpus"] else None
            ref = self._run.options(
                # One name for all: Ray keeps counts by name, in this process and in its agents, and never
                # forgets one (29 and 18 MiB for each thousand names, measured). `run_job` says whose it is.
                name=TASK_NAME,
                num_cpus=job["num_cpus"],
                num_gpus=job["num_gpus"],
                max_retries=0,
                scheduling_strategy=affinity(job["node_id"]),
            ).remote(job, self._lab, version, archive, models)
        except (ValueError, TypeError) as error:
            reason = f"Ray refused it: {printable(str(error), 200)}"
            self._deliver(_ended(key, "lost", None, reason))
            return
        with self._lock:
            self._attempts[key] = _Attempt(
                *(ref, nodes[0], version, time.monotonic()), nodes[1:], models
            )
        ref.future().add_done_callback(lambda future: self._ended(key, future))

    def _cancel(self, key: Key) -> None:
        with self._lock:
            attempt = self._attempts.get(key)
            if attempt is not None:
                attempt.cancelled = True
        if attempt is None:
            self._deliver(_ended(key, "cancelled", None, "was not running"))
        elif not attempt.over:
            ray.cancel(attempt.ref, force=True)

    def _reach(self, key: Key, how: str) -> None:
        """Reach an attempt's worker from another process of its node, and where its runs are to end those of its other nodes."""
        with self._lock:
            attempt = self._attempts.get(key)
        if attempt is None or attempt.over:
            return
        others = attempt.also_nodes if how == "end_runs" else ()
        for node_id in (attempt.node_id, *others):
            self._reach_out.options(
                name=f"labd:{how}",
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=affinity(node_id),
            ).remote(self._lab, node_id != self._node_id, key[0], key[1], how)

    def _ended(self, key: Key, future: Any) -> None:
        with self._lock:
            attempt = self._attempts[key]
            attempt.over = True
        how, outcome, reason = _judged(key, attempt, future)
        if how != "returned" and attempt.models is not None:
            from labd.llm.model import holder_of  # noqa: PLC0415 - most commands need none of it

            # Who was killed can't give back slots and GPUs, and others would wait until its silence is noticed.
            attempt.models.answer.remote("bye", {"holder": holder_of(*key)})
        self._deliver(_ended(key, how, outcome, reason))
        if how != "returned":
            # The killed worker's successor should not pay its imports when it is needed, nor take a CPU
            # from the task that has the spare one's now.
            again = threading.Timer(
                _REWARM_AFTER_S,
                self.warm,
                args=(attempt.node_id, SPARE, attempt.version),
                kwargs={"num_cpus": 0},
            )
            again.daemon = True
            again.start()


def alive_nodes(local_id: str) -> list[dict[str, Any]]:
    """Give the cluster's machines that are alive, as the facts of `labd.engine.types.NodeInfo`."""
    return [
        {
            "id": node["NodeID"],
            "name": name,
            "num_cpus": float(node["Resources"].get("CPU", 0)),
            "num_gpus": float(node["Resources"].get("GPU", 0)),
            "local": node["NodeID"] == local_id,
        }
        for name, node in named_nodes()
    ]


def named_nodes() -> list[tuple[str, Mapping[str, Any]]]:
    """Give the cluster's nodes that are alive, as Ray tells of them, each with the one name that people know it by."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = Counter(_host(node) for node in nodes)
    return [
        (_host(node) + (f"-{node['NodeID'][:4]}" if names[_host(node)] > 1 else ""), node)
        for node in nodes
    ]


def _host(node: Mapping[str, Any]) -> str:
    return printable(node.get("NodeManagerHostname") or node["NodeManagerAddress"], 100)


def _judged(key: Key, attempt: _Attempt, future: Any) -> tuple[str, dict[str, Any] | None, str]:
    if attempt.cancelled:
        return "cancelled", None, "cancelled"
    error = future.exception()
    if error is not None:
        return "lost", None, reason_of(error)
    outcome = future.result()
    if isinstance(outcome, dict) and outcome.get("attempt") == key[1]:
        return "returned", outcome, ""
    return "lost", None, "the worker was ended from outside"


def _ended(key: Key, how: str, outcome: dict[str, Any] | None, reason: str) -> dict[str, Any]:
    return {
        "task_id": key[0],
        "attempt": key[1],
        "how": how,
        "outcome": outcome,
        "reason": reason,
    }


def affinity(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Give what pins a task to a node."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def reason_of(error: BaseException) -> str:
    """Give in one line why Ray says that a task has no value."""
    # Ray colours its messages and puts the worker's own error in the last line.
    lines = [line for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    chosen = (lines or [""])[-1 if "TaskError" in type(error).__name__ else 0]
    return printable(f"{type(error).__name__}: {chosen.strip()}", 300)
