"""A Ray that is a service of its own, for the tests: started, joined by more nodes, and ended by process id.

All of it is on this machine's loopback, or on hosts that are network namespaces (`tests.hosts`).
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.hosts import LOOPBACK, Host
from tests.processes import free_port, wait_until

_STARTED = "Ray runtime started"
_OBJECT_STORE_BYTES = 100 * 2**20
_NODE_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_kill_idle_workers_interval_ms": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class RayService:
    """A Ray with its head on a host, with a token; `env` is what a driver needs to get in.

    Args:
        tmp: where the logs of its nodes go.
        num_cpus: what the head offers.
        host: where the head runs.

    """

    def __init__(
        self, tmp: Path, *, num_cpus: float = 2, num_gpus: float = 0, host: Host = LOOPBACK
    ) -> None:
        self._tmp = tmp
        self._host = host
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._scratches: dict[int, Path] = {}
        # Ray's sockets need a short path, which pytest's own directories are not.
        self._temp = Path(tempfile.mkdtemp(prefix="labd-t-", dir="/tmp"))
        token = self._temp / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.address = f"{host.address}:{free_port()}"
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        if host is LOOPBACK:
            self.env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

    def start(self, **env: str) -> None:
        """Start the head, with these variables more in its environment, and wait until it answers."""
        self._run(self._host, self._num_cpus, self._num_gpus, str(self._temp), **env)

    def add_node(
        self, *, num_cpus: float = 1, num_gpus: float = 0, host: Host = LOOPBACK, **env: str
    ) -> subprocess.Popen[bytes]:
        """Start a further node (a raylet of its own), with `env` too; give its process for `end_node`."""
        scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=self._temp))
        node = self._run(host, num_cpus, num_gpus, "", LABD_SCRATCH=str(scratch), **env)
        self._scratches[node.pid] = scratch
        return node

    def scratch_of(self, node: subprocess.Popen[bytes]) -> Path:
        """Give the directory that a further node works in."""
        return self._scratches[node.pid]

    def end_node(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL a node with all that runs on it, and wait."""
        self._nodes.remove(node)
        _end(node)

    def stop(self) -> None:
        """SIGKILL everything, and wait; the address can be started again."""
        for node in reversed(self._nodes):
            _end(node)
        self._nodes.clear()

    def remove(self) -> None:
        """Stop, and remove all files."""
        self.stop()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _run(
        self, host: Host, num_cpus: float, num_gpus: float, temp: str, **more_env: str
    ) -> subprocess.Popen[bytes]:
        argv = [
            *(*host.enter, sys.executable, "-m", "tests.rayservice"),
            *(self.address, host.address, f"{num_cpus:g}", f"{num_gpus:g}", temp),
        ]
        log_path = self._tmp / f"ray-{len(self._nodes)}.log"
        with log_path.open("wb") as log:
            node = subprocess.Popen(
                argv,
                env={**os.environ, **self.env, **_NODE_ENV, **more_env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._nodes.append(node)

        def up() -> bool:
            assert node.poll() is None, log_path.read_text()
            return _STARTED in log_path.read_text()

        wait_until(up, 60, "a node of Ray")
        return node


def session_of(leader: int) -> list[psutil.Process]:
    """Give the processes, zombies left out, of the session that `leader` began."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _end(node: subprocess.Popen[bytes]) -> None:
    def gone() -> bool:
        left = session_of(node.pid)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        node.poll()
        return not left

    wait_until(gone, 20, "the end of a Ray node")
    node.wait(10)


def _node(address: str, host: str, num_cpus: float, num_gpus: float, temp: str) -> None:
    """Be a node of the cluster until killed; one with a directory is its head, and the cluster's files are there.

    It is what `ray start` would call, which lets no node join a cluster on the loopback. For a head it would also
    start a server of Ray's own clients and one of the dashboard: 3 s of a CPU for what nobody here asks for.
    """
    from ray._private.node import Node  # noqa: PLC0415 - only where this file is a node
    from ray._private.parameter import RayParams  # noqa: PLC0415

    class Quiet(Node):  # type: ignore[misc] # Ray has no types
        def start_api_server(self, **_rest: object) -> None:
            self._webui_url = ""

    where = (
        {"temp_dir": temp, "gcs_server_port": int(address.split(":")[1])}
        if temp
        else {"gcs_address": address}
    )
    Quiet(
        RayParams(
            **where,
            node_ip_address=host,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            include_log_monitor=False,
            no_monitor=True,
            node_manager_port=0,
            dashboard_agent_listen_port=None,
        ),
        head=bool(temp),
        shutdown_at_exit=True,
        spawn_reaper=False,
    )
    print(_STARTED, flush=True)
    signal.pause()


if __name__ == "__main__":
    _node(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
