"""An attempt's way to its further nodes: a Ray task for each run there, which says how it goes on until its answer comes.

Facts on Ray 2.60 that shape this (measured, two raylets on one machine): what a streaming task yields is there within 15 ms,
and 11,800 values that were fetched and dropped left 0.4 MiB in the owner. When the owner is killed its tasks on other nodes
die within 1 s, stopped ones (SIGSTOP) within 5 s, and with ``ray.cancel(force=True)`` in 0.1 s; a task that is just ending is never
cancelled so, because its worker dies even where it has begun with the next task. A worker that is stopped is
silent and no error; the end of one is `WorkerCrashedError` at once; to a node that is gone hard affinity gives
`TaskUnschedulableError` after 2 s.
"""

from collections.abc import Generator, Mapping
from functools import cache
from typing import Any

import ray

from labd.engine.calls import TIMEOUT_S
from labd.engine.dispatcher import affinity, named_nodes, reason_of
from labd.engine.remote import run_there
from labd.errors import EngineError

TASK_NAME = "labd:run"
"""Of all of them: Ray forgets no name, see `labd.engine.dispatcher`."""
_POLL_S = 1.0


class RayMachines:
    """The further nodes of one attempt; a `labd.worker.elsewhere.Machines`.

    Args:
        job: the attempt, as the lab gave it; ``also_nodes`` in it are the nodes.
        lab: as in `labd.engine.remote.run_job`, like the rest.
        version: the labd of the lab.
        archive: the actor through which templates come.
        models: the actor that shares out the GPUs.

    """

    def __init__(
        self,
        job: dict[str, Any],
        lab: Mapping[str, Any],
        version: str,
        *,
        archive: Any,
        models: Any,
    ) -> None:
        self._job, self._lab, self._version = job, lab, version
        self._actors = {"archive": archive, "models": models}
        known = {node["NodeID"]: name for name, node in named_nodes()}
        self.names: Mapping[str, str] = {
            node: known[node] for node in job["also_nodes"] if node in known
        }

    def make(
        self, node_id: str, order: Mapping[str, Any], *, num_cpus: float, num_gpus: float
    ) -> Generator[Mapping[str, Any], None, None]:
        """Have one run made there, see the protocol."""
        says = (
            _remote()
            .options(
                name=TASK_NAME,
                num_returns="streaming",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                max_retries=0,
                scheduling_strategy=affinity(node_id),
            )
            .remote(
                self._job,
                {**order, "num_gpus": num_gpus},
                self._lab,
                self._version,
                **self._actors,
            )
        )
        answered = False
        try:
            while not answered:
                ready, _ = ray.wait([says], timeout=_POLL_S, fetch_local=False)
                ref = next(says, None) if ready else says
                if ref is None:
                    return
                message = {} if ref is says else ray.get(ref, timeout=TIMEOUT_S)
                answered = bool(message) and "beat" not in message
                yield message
        except ray.exceptions.RayError as error:
            raise EngineError(reason_of(error)) from error
        finally:
            if not answered:
                ray.cancel(says, force=True)


@cache
def _remote() -> Any:
    return ray.remote(run_there)
