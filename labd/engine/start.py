"""Ray as a service: `python -m labd.engine.start head` on the lab's machine, `… node` on each further one.

Turns a few plain variables (config/ray.env, config/node.env) into Ray's own, and becomes `ray start`. Its ports are
fixed, so that a firewall can name them. On 127.0.0.1 every socket is on the loopback; else Ray listens on all
interfaces, whatever it is told (measured with 2.60), and it is for the unit's IPAddressAllow= or a firewall to say who
gets through. Nobody gets in without the token.
"""

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from labd.engine.embedded import environment
from labd.errors import EngineError, LabdError

TEMP = Path("/run/labd-ray")
LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 6399
_OBJECT_STORE_BYTES = 256 * 2**20
_REACH_TIMEOUT_S = 10.0
# Of the head and of each node; the head's own port is LABD_PORT.
PORTS = {
    "--node-manager-port": 6401,
    "--object-manager-port": 6402,
    "--dashboard-agent-grpc-port": 6403,
    "--dashboard-agent-listen-port": 6404,
    "--runtime-env-agent-port": 6405,
    "--metrics-export-port": 6406,
    "--min-worker-port": 20000,
    "--max-worker-port": 20999,
}
# A machine that fell silent is missed after ten seconds, not after minutes; idle workers stay when the daemon goes.
_RAY_SETTINGS = {
    "RAY_kill_idle_workers_interval_ms": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # Without these the work on such a machine is given up after seven minutes only, though the machine itself is missed.
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    # And a machine that is cut off ends its work after half a minute, not after one or two.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
}


def main() -> None:
    """Become `ray start`, or say why not, and what to do."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        argv = command(sys.argv[1] if len(sys.argv) == 2 else "", os.environ)
        if sys.argv[1] == "node":
            require_head(os.environ["LABD_HEAD"])
    except LabdError as error:
        sys.exit(f"labd: {error}")
    environment()
    os.environ.update(_RAY_SETTINGS)
    if os.environ.get("LABD_ADDRESS", LOOPBACK) == LOOPBACK:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    for old in TEMP.glob("session_*"):  # Ray never removes them
        old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)
    os.execv(argv[0], argv)  # noqa: S606 - a fixed program, no shell


def command(role: str, settings: Mapping[str, str]) -> list[str]:
    """Give the command that is Ray's head or a node of it, by the variables of ray.env or node.env.

    Raises:
        EngineError: a variable is missing or makes no sense.

    """
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start"]
    ports = [f"{name}={number}" for name, number in PORTS.items()]
    temp = [f"--temp-dir={TEMP}"] if role == "head" else []
    common = [
        *("--block", "--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
        *ports,
        *temp,
        *_amounts(settings),
    ]
    address = settings.get("LABD_ADDRESS") or (LOOPBACK if role == "head" else "")
    if role == "head":
        port = settings.get("LABD_PORT") or str(DEFAULT_PORT)
        shown = "false" if settings.get("LABD_DASHBOARD") == "no" else "true"
        listen = (
            f"--node-ip-address={address}",
            f"--port={port}",
            "--ray-client-server-port=6407",
        )
        dashboard = (f"--dashboard-host={LOOPBACK}", "--dashboard-port=8265")
        # Neither the autoscaler nor the copying of workers' logs to drivers is used here.
        less = (f"--include-dashboard={shown}", "--no-monitor", "--include-log-monitor=false")
        return [*ray_start, "--head", *listen, *dashboard, *less, *common]
    if role == "node":
        head = settings.get("LABD_HEAD", "")
        if not _is_address(head):
            raise EngineError(
                f"LABD_HEAD is {head!r}, and wants the head's address and port, such as 192.168.1.10:6399",
                where="/etc/labd/node.env",
                fix="Write what LABD_ADDRESS and LABD_PORT are on the lab's own machine",
            )
        if not address:
            raise EngineError(
                "LABD_ADDRESS is empty: by which address do the other machines reach this one?",
                where="/etc/labd/node.env",
                fix="Write this machine's address in your own network; `ip -4 addr` shows it",
            )
        return [*ray_start, f"--address={head}", f"--node-ip-address={address}", *common]
    raise EngineError(f"a role is wanted, head or node; {role!r} is none")


def require_head(address: str) -> None:
    """See that something listens at the head's address: Ray itself tries for minutes, and says little.

    Raises:
        EngineError: nobody does.

    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _REACH_TIMEOUT_S).close()
    except OSError as error:
        raise EngineError(
            f"no Ray answers at {address}: {error}",
            fix="On the lab's own machine: set LABD_ADDRESS in /etc/labd/ray.env to an address that this one reaches,"
            " and `systemctl restart labd-ray`; then look at the firewalls in between",
        ) from error


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal()


def _amounts(settings: Mapping[str, str]) -> list[str]:
    found = []
    for variable, option in (("LABD_CPUS", "--num-cpus"), ("LABD_GPUS", "--num-gpus")):
        value = settings.get(variable, "")
        if value and not value.isdecimal():
            raise EngineError(
                f"{variable} is {value!r}, and wants a whole number, or nothing for all",
                where="ray.env or node.env in /etc/labd",
            )
        found += [f"{option}={value}"] if value else []
    return found


if __name__ == "__main__":
    main()
