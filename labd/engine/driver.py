"""The process that drives Ray: reads orders from one pipe, writes events to another.

Started by `labd.engine.client`. When the order pipe closes, the daemon is gone or wants to stop: Ray is
shut down and this process ends. Knows nothing of the spool; a job goes to `labd.worker` as it is.

Facts on Ray 2.60 that shape this (measured): an embedded cluster dies with its driver; a worker killed
by ``ray.cancel(force=True)`` may still "return" a value, so only an outcome that names its own attempt
counts; all sockets are on the loopback only with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from labd.text import printable

_NODES_EVERY_S = 2.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TEMP_ROOT = "/tmp"  # noqa: S108 - Ray's sockets need a short path; the directory below is 0700


def main() -> None:
    """Run until the order pipe closes."""
    orders_fd, events_fd, options = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    os.set_inheritable(orders_fd, False)
    os.set_inheritable(events_fd, False)
    temp = _temp_dir() if options["address"] is None else None
    _environment(options, embedded=temp is not None)
    try:
        driver = Driver(events_fd, options, temp)
        with os.fdopen(orders_fd, "rb") as orders:
            for line in orders:
                driver.obey(json.loads(line))
        driver.close()
    finally:
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)


class Driver:
    """Ray, seen as jobs by (task id, attempt)."""

    def __init__(self, events_fd: int, options: Mapping[str, Any], temp: Path | None) -> None:
        import ray  # noqa: PLC0415 - only after the environment is set

        self._ray = ray
        self._fd = events_fd
        self._write_lock = threading.Lock()
        self._refs: dict[tuple[str, int], Any] = {}
        self._cancelled: set[tuple[str, int]] = set()
        self._closing = threading.Event()
        context = ray.init(**_init_arguments(options, temp))
        self._remote = ray.remote(run_job)
        self._warm = ray.remote(warm_up)
        nodes = self._nodes()
        self._say("ready", nodes=nodes, dashboard_url=context.dashboard_url or "")
        self._warm_refs = [
            self._warm.options(num_cpus=1, max_retries=0).remote() for _ in range(_cpus(nodes))
        ]
        threading.Thread(
            target=self._watch_nodes, args=(nodes,), name="nodes", daemon=True
        ).start()

    def obey(self, order: dict[str, Any]) -> None:
        """Carry out one order of the daemon."""
        if order["op"] == "submit":
            self._submit(order["job"])
        elif order["op"] == "cancel":
            self._cancel(order["task_id"], order["attempt"])

    def close(self) -> None:
        """Leave Ray; an embedded one ends with all its processes."""
        self._closing.set()
        self._ray.shutdown()

    def _submit(self, job: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        key = (job["task_id"], job["attempt"])
        ref = self._remote.options(
            name=f"labd:{job['task_id']}#{job['attempt']}",
            num_cpus=job["num_cpus"],
            num_gpus=job["num_gpus"],
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(job["node_id"], soft=False),
        ).remote(job)
        self._refs[key] = ref
        ref.future().add_done_callback(lambda future: self._ended(key, future))

    def _cancel(self, task_id: str, attempt: int) -> None:
        key = (task_id, attempt)
        ref = self._refs.get(key)
        if ref is None:
            self._say(
                "ended",
                task_id=task_id,
                attempt=attempt,
                how="cancelled",
                outcome=None,
                reason="was not running",
            )
            return
        self._cancelled.add(key)
        self._ray.cancel(ref, force=True)

    def _ended(self, key: tuple[str, int], future: Any) -> None:
        self._refs.pop(key, None)
        task_id, attempt = key
        error = future.exception()
        if key in self._cancelled:
            self._cancelled.discard(key)
            how, outcome, reason = "cancelled", None, "cancelled"
            self._rewarm()
        elif error is not None:
            how, outcome, reason = "lost", None, _reason(error)
            self._rewarm()
        else:
            outcome = future.result()
            named = isinstance(outcome, dict) and outcome.get("attempt") == attempt
            how = "returned" if named else "lost"
            reason = "" if named else "the worker was ended from outside"
            outcome = outcome if named else None
        self._say(
            "ended", task_id=task_id, attempt=attempt, how=how, outcome=outcome, reason=reason
        )

    def _rewarm(self) -> None:
        # The killed worker's successor should not pay its imports when the next task comes.
        self._warm_refs = [self._warm.options(num_cpus=0.5, max_retries=0).remote()]

    def _nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "id": node["NodeID"],
                "name": node.get("NodeManagerHostname") or node["NodeManagerAddress"],
                "num_cpus": float(node["Resources"].get("CPU", 0)),
                "num_gpus": float(node["Resources"].get("GPU", 0)),
            }
            for node in self._ray.nodes()
            if node["Alive"] and node["NodeManagerHostname"] == socket.gethostname()
        ]

    def _watch_nodes(self, known: list[dict[str, Any]]) -> None:
        while not self._closing.wait(_NODES_EVERY_S):
            nodes = self._nodes()
            if nodes != known:
                known = nodes
                self._say("nodes", nodes=nodes)

    def _say(self, event: str, **facts: object) -> None:
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        with (
            self._write_lock,
            contextlib.suppress(BrokenPipeError),
        ):  # the daemon is gone; the order pipe says so too
            while line:
                line = line[os.write(self._fd, line) :]


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run in a Ray worker: hand the job to the worker room, with the GPUs that Ray assigned."""
    import ray  # noqa: PLC0415 - in the worker's process

    from labd import worker  # noqa: PLC0415

    return worker.run(job, [int(gpu) for gpu in ray.get_gpu_ids()])


def warm_up() -> str:
    """Have a worker process import what every task needs, before the first task comes."""
    from labd import worker  # noqa: PLC0415

    return worker.__name__


def _reason(error: BaseException) -> str:
    # Ray colours its messages and puts the worker's own error in the last line.
    lines = [line for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    chosen = (lines or [""])[-1 if "TaskError" in type(error).__name__ else 0]
    return printable(f"{type(error).__name__}: {chosen.strip()}", 300)


def _cpus(nodes: list[dict[str, Any]]) -> int:
    return int(sum(node["num_cpus"] for node in nodes))


def _init_arguments(options: Mapping[str, Any], temp: Path | None) -> dict[str, Any]:
    common = {"namespace": "labd", "log_to_driver": False, "configure_logging": False}
    if temp is None:
        return {**common, "address": options["address"]}
    return {
        **common,
        "address": "local",
        "num_cpus": options["num_cpus"],
        "num_gpus": options["num_gpus"],
        "include_dashboard": options["dashboard"],
        "dashboard_host": "127.0.0.1",
        "object_store_memory": 128 * 2**20,
        "_temp_dir": str(temp),
    }


def _environment(options: Mapping[str, Any], *, embedded: bool) -> None:
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # it kills bystanders; the sandbox has its own limits
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # num_gpus: 0 sees no GPU
        "RAY_DEDUP_LOGS": "0",
    }
    if embedded:
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        token = Path(options["token_path"])
        if not token.exists():
            fd = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(secrets.token_hex(32))
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # How to get into a cluster that somebody else runs is for the environment to say.
    os.environ.update(settings)


def _temp_dir() -> Path:
    """Make a short directory of our own for Ray's session, and remove those of drivers that are gone."""
    root = Path(_TEMP_ROOT) / f"labd-ray-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid() or root.is_symlink():
        sys.exit(f"{root} belongs to somebody else; remove it")
    for old in root.iterdir():
        if old.name.isdecimal() and not psutil.pid_exists(int(old.name)):
            shutil.rmtree(old, ignore_errors=True)
    mine = root / str(os.getpid())
    shutil.rmtree(mine, ignore_errors=True)
    mine.mkdir(mode=0o700)
    return mine
