"""A Ray of our own: started by the driver, on the loopback only, and ended with it.

Facts on Ray 2.60 that shape this (measured): an embedded cluster dies with its driver, but not all of its
processes do at once; all sockets are on the loopback only with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; the end
of its global control service is noticed after 60 s only, and the end of an agent takes the raylet along
without a word. So the driver watches these processes itself. `ray.init` alone also starts an autoscaler's
monitor, a monitor of logs and, without a dashboard too, a dashboard's process, for which it waits: 300 MB and
2 s of CPU for what nobody here asks for. So the node is started by itself, as `ray start --no-monitor` does.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from labd import __version__
from labd.engine.processes import Temp, wait_for_any, wait_for_lock
from labd.errors import EngineError

LOCK_TIMEOUT_S = 60.0
_FIND_TIMEOUT_S = 30.0
_FIND_EVERY_S = 0.2
_OBJECT_STORE_BYTES = 128 * 2**20
_VITAL = {
    "gcs_server": "Ray's global control service",
    "raylet": "Ray's node manager",
    "DashboardAgent": "Ray's dashboard agent",
    "RuntimeEnvAgent": "Ray's runtime environment agent",
}


class Embedded:
    """A Ray of our own and what runs on it.

    Args:
        options: the engine's.
        lab: what a `Dispatcher` gets, but for ``node_id``.
        say: the event pipe.
        die: called with the reason when one of Ray's processes is gone.

    Raises:
        EngineError: workers of an earlier engine don't end.

    """

    def __init__(
        self,
        options: Mapping[str, Any],
        lab: Mapping[str, Any],
        say: Callable[..., None],
        die: Callable[[str], None],
    ) -> None:
        self._say = say
        self._temp = Temp()
        self._closing = threading.Event()
        _own_environment(Path(options["token_path"]), options["num_cpus"])
        import ray  # noqa: PLC0415 - only after the environment is set

        from labd.engine.dispatcher import Dispatcher, alive_nodes  # noqa: PLC0415 - it imports ray
        from labd.engine.probe import EVERY_S, Prober  # noqa: PLC0415 - it imports ray

        self._ray = ray
        self._alive_nodes = alive_nodes
        self.held: list[dict[str, Any]] = []
        self._head = _start_head(options, self._temp.path)
        context = ray.init(
            namespace="labd",
            log_to_driver=False,
            configure_logging=False,
            address=self._head.gcs_address,
        )
        self.dashboard_url = str(context.dashboard_url or "")
        threading.Thread(target=self._watch, args=(die,), name="processes", daemon=True).start()
        self._node_id = str(ray.get_runtime_context().get_node_id())
        self._models_actor: Any = None
        self._models_options = {**lab["models"], "lab": lab["lab"]}
        self._dispatcher = Dispatcher(
            {**lab, "node_id": self._node_id}, self._deliver, models=self._models
        )
        self.obey = self._dispatcher.obey
        self._prober = Prober(
            lab, self._node_id, say, every_s=options.get("look_every_s", EVERY_S)
        )
        self._news = threading.Event()
        wait_for_lock(Path(lab["lock_path"]), LOCK_TIMEOUT_S)

    def nodes(self) -> list[dict[str, Any]]:
        """Give this machine, as the facts of `labd.engine.types.NodeInfo`."""
        return self._alive_nodes(self._node_id)

    def begin(self, nodes: list[dict[str, Any]]) -> None:
        """Have workers ready."""
        for node in nodes:
            self._dispatcher.warm_node(node["id"], int(node["num_cpus"]), __version__)
        if self._models_options["endpoints"]:
            self._models()
        ask = (lambda: [self._node_id], self._closing, self._news)
        threading.Thread(target=self._prober.go_on, args=ask, name="probe", daemon=True).start()

    def close(self, *, leave_work: bool) -> None:
        """End Ray with all its processes and all work; `leave_work` can't be had."""
        del leave_work
        self._closing.set()
        self._news.set()
        self._ray.shutdown()
        self._head.kill_all_processes(check_alive=False, allow_graceful=True)
        self._temp.remove()

    def _models(self) -> Any:
        if self._models_actor is None:
            from labd.engine import models  # noqa: PLC0415 - it imports httpx; most labs without models need none

            self._models_actor = models.make(self._models_options, self._node_id)
        return self._models_actor

    def _deliver(self, ended: dict[str, Any]) -> None:
        self._say("ended", **ended)
        self._dispatcher.forget(ended["task_id"], ended["attempt"])

    def _watch(self, die: Callable[[str], None]) -> None:
        try:
            vital = _find_vital(self._closing)
            gone = " and ".join(vital[pid] for pid in wait_for_any(list(vital)))
        except ProcessLookupError:
            gone = "a process of Ray"
        except EngineError as error:
            gone = str(error)
        if not self._closing.is_set():
            die(f"{gone} ended")


def environment() -> None:
    """Set Ray's settings that hold in every mode, for this process and all that it starts."""
    os.environ.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # it kills bystanders; the sandbox has its own limits
            "RAY_worker_niceness": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # num_gpus: 0 sees no GPU
            "RAY_DEDUP_LOGS": "0",
            # Each process's log, for as long as it lives, and the one before it; labd.engine.raylogs does the rest.
            "RAY_ROTATION_MAX_BYTES": str(4 * 2**20),
            "RAY_ROTATION_BACKUP_COUNT": "1",
            # What Ray remembers of tasks that ended, for its dashboard: 100,000 take 0.4 GB in its control service.
            "RAY_task_events_max_num_task_in_gcs": "1000",
        }
    )


def _own_environment(token: Path, num_cpus: int | None) -> None:
    # How to get into a cluster that somebody else runs is for the environment to say; this is for our own.
    if not token.exists():
        fd = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(32))
    os.environ.update(
        {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # How many idle workers Ray keeps: those of the slots, and the spare one of `Dispatcher.warm_node`.
            "RAY_num_workers_soft_limit": str((num_cpus or len(os.sched_getaffinity(0))) + 1),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
    )


def _start_head(options: Mapping[str, Any], temp: Path) -> Any:
    """Start Ray's processes, which end with this one; give their `Node`."""
    from ray._private.node import Node  # noqa: PLC0415 - only after the environment is set
    from ray._private.parameter import RayParams  # noqa: PLC0415 - as above

    class Head(Node):  # type: ignore[misc] # Ray has no types
        def start_api_server(self, *, include_dashboard: bool, **rest: Any) -> None:
            if include_dashboard:
                super().start_api_server(include_dashboard=include_dashboard, **rest)
            else:
                self._webui_url = ""

    return Head(
        RayParams(
            num_cpus=options["num_cpus"],
            num_gpus=options["num_gpus"],
            include_dashboard=options["dashboard"],
            dashboard_host="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
            temp_dir=str(temp),
            no_monitor=not options["dashboard"],
            include_log_monitor=False,
        ),
        head=True,
        shutdown_at_exit=False,
        spawn_reaper=True,
    )


def _find_vital(closing: threading.Event) -> dict[int, str]:
    deadline = time.monotonic() + _FIND_TIMEOUT_S
    while True:
        found = _vital_children()
        if len(found) == len(_VITAL):
            return found
        missing = set(_VITAL.values()) - set(found.values())
        if time.monotonic() > deadline:
            raise EngineError(f"{' and '.join(sorted(missing))} did not start, or")
        if closing.wait(_FIND_EVERY_S):
            return found


def _vital_children() -> dict[int, str]:
    found: dict[int, str] = {}
    for child in psutil.Process().children(recursive=True):
        try:
            words: Sequence[str] = [child.name(), *child.cmdline()[:1]]
        except psutil.Error:
            continue
        for mark, name in _VITAL.items():
            if any(word.strip().removeprefix("ray::") == mark for word in words):
                found[child.pid] = name
    return found
