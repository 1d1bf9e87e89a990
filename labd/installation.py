"""What `labd doctor` looks at where labd is a service: units, directories, secrets, and ports that the world can reach."""

import grp
import ipaddress
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from labd.findings import Finding, Level
from labd.lab import Lab
from labd.settings import INSTALLED, Home
from labd.task import State
from labd.text import printable

ETC = Path("/etc/labd")
OLLAMA_PORT = 11434
# Ray's own defaults, and those of labd.engine.start.
RAY_PORTS = frozenset({6379, 6399, 8265, 10001, *range(6401, 6408)})
_DROP_MODE = 0o3770
_TOOL_TIMEOUT_S = 10.0
_RAY_UNITS = ("labd-ray.service", "labd-node.service")
_FENCE = "/opt/labd/share/interface.conf says how"


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP port that somebody listens on, and the name of the process, where it can be seen."""

    address: str
    port: int
    process: str = ""


def examine_service(home: Home) -> Iterator[Finding]:
    """Look at the finished installation; nothing where the home is another."""
    if home.root != INSTALLED:
        return
    yield from _units()
    yield from _drop_directories(home)
    yield from _secrets()
    yield from address_findings(read_env(ETC / "ray.env"), home.settings.ray.address)


def examine_nodes(home: Home) -> Iterator[Finding]:
    """Say what is wrong with the machines, as they said it to the daemon."""
    status = Lab(home).status()
    nodes = status.facts.get("nodes", []) if status.up else []
    if not nodes:
        told = "the sandbox is tried by the machines that do the work, and none is known"
        yield Finding(
            "nodes", Level.NOTE, told, "Start labd: systemctl start labd; then look again"
        )
    for node in nodes:
        yield from node_findings(node)


def node_findings(node: Mapping[str, Any]) -> Iterator[Finding]:
    """Say what is wrong with one machine, by the facts of `labd nodes --json`."""
    name, facts = f"node {printable(str(node['name']), 60)}", node.get("machine")
    if facts is None:
        yield Finding(name, Level.NOTE, "has not said yet what it is", "Look again in a moment")
        return
    if facts["problem"]:
        yield Finding(name, Level.FAILING, *_halves(facts["problem"]))
        return
    if facts["warning"]:
        yield Finding(name, Level.WARNING, *_halves(facts["warning"]))
    for gap in facts["gaps"]:
        yield Finding(f"{name}: sandbox: {gap['name']}", Level.WARNING, gap["what"], gap["fix"])
    if not facts["gaps"]:
        found = "a sandbox starts there, and what it promises was tried and holds"
        yield Finding(name, Level.OK, found)


def examine_ports() -> Iterator[Finding]:
    """Warn of ports of Ray and of Ollama that the world can reach, as far as this machine's sockets tell."""
    try:
        found = [
            Listener(told.laddr.ip, told.laddr.port, _process_name(told.pid))
            for told in psutil.net_connections("tcp")
            if told.status == psutil.CONN_LISTEN and told.laddr
        ]
    except psutil.AccessDenied:
        yield Finding("ports", Level.NOTE, "this user may not see who listens", "Look as root")
        return
    yield from port_findings(found, fenced=_is_fenced())


def port_findings(listeners: Sequence[Listener], *, fenced: bool) -> Iterator[Finding]:
    """Judge who listens where.

    Args:
        listeners: as the system tells.
        fenced: whether the kernel lets only named addresses through to Ray's units.

    """
    open_ones = [one for one in listeners if is_open(one.address)]
    ray = sorted({one.port for one in open_ones if _is_ray(one)})
    if ray and not fenced:
        shown = ", ".join(str(port) for port in ray[:8]) + (" and more" if ray[8:] else "")
        yield Finding(
            "ports: ray",
            Level.WARNING,
            f"Ray listens on all interfaces ({shown}); only its token keeps strangers out",
            f"Let only your own machines through, by IPAddressAllow= of the unit ({_FENCE}) or a firewall",
        )
    if any(one.port == OLLAMA_PORT or one.process == "ollama" for one in open_ones):
        yield Finding(
            "ports: ollama",
            Level.WARNING,
            "Ollama listens on all interfaces, and asks nobody who he is",
            "Set OLLAMA_HOST to 127.0.0.1 or to this machine's address in your own network"
            " (/opt/labd/share/ollama.conf), or close the port by a firewall",
        )
    if not open_ones:
        yield Finding("ports", Level.OK, "neither Ray nor Ollama listens to the world")


def is_open(address: str) -> bool:
    """Say whether who listens at an address listens to everybody: on all interfaces, or on a public address."""
    try:
        ip = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    return ip.is_unspecified or ip.is_global


def address_findings(env: Mapping[str, str], address: str | None) -> Iterator[Finding]:
    """Say whether Ray's address in ray.env and in the settings are the same."""
    wanted = f"{env.get('LABD_ADDRESS') or '127.0.0.1'}:{env.get('LABD_PORT') or 6399}"
    if address == wanted:
        yield Finding("ray address", Level.OK, wanted)
        return
    yield Finding(
        "ray address",
        Level.FAILING,
        f"{ETC}/labd.yaml says {address or 'nothing'}, and Ray listens at {wanted} ({ETC}/ray.env)",
        f'Write `ray: {{address: "{wanted}"}}` into labd.yaml, then: systemctl restart labd',
    )


def read_env(path: Path) -> dict[str, str]:
    """Read a file of variables as systemd does, but for its quotes; nothing where it can't be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _halves(text: str) -> tuple[str, str]:
    """Part what is wrong from what to do, which is its last sentence."""
    what, _, fix = text.rpartition(". ")
    return (what, fix) if what else (text, "")


def _units() -> Iterator[Finding]:
    if not Path("/run/systemd/system").is_dir():
        yield Finding("units", Level.NOTE, "systemd does not run this machine")
        return
    for unit in ("labd-ray.service", "labd.service"):
        state = _systemctl("is-active", unit) or "unknown"
        if state == "active":
            yield Finding(unit, Level.OK, "active")
            continue
        fix = f"systemctl start {unit}; why it stopped: journalctl -u {unit} -e"
        yield Finding(unit, Level.FAILING, state, fix)
    if _systemctl("is-enabled", "labd.target") != "enabled":
        fix = "systemctl enable labd.target"
        yield Finding("boot", Level.WARNING, "labd does not start with the machine", fix)


def _drop_directories(home: Home) -> Iterator[Finding]:
    wrong = []
    for state in State:
        path = home.spool / state.value
        try:
            facts = path.stat()
            whose = (pwd.getpwuid(facts.st_uid).pw_name, grp.getgrgid(facts.st_gid).gr_name)
        except (OSError, KeyError) as error:
            wrong.append(f"{path}: {error}")
            continue
        if (stat.S_IMODE(facts.st_mode), *whose) != (_DROP_MODE, "labd", "labd"):
            wrong.append(f"{path} is {stat.S_IMODE(facts.st_mode):04o} of {':'.join(whose)}")
    if wrong:
        found = f"wanted {_DROP_MODE:04o} of labd:labd, so that members may drop and move their own files: {'; '.join(wrong)}"
        yield Finding("drop", Level.WARNING, found, "As root: systemd-tmpfiles --create labd.conf")
    else:
        yield Finding("drop", Level.OK, "members of the group labd may drop tasks")


def _secrets() -> Iterator[Finding]:
    if os.geteuid() != 0:
        return
    paths = [ETC / "ray.token", *sorted((ETC / "keys").glob("*"))]
    for path in paths:
        if not path.exists():
            fix = "As root: make install makes one; further machines need a copy of the head's"
            yield Finding(f"secret {path.name}", Level.FAILING, f"{path} is missing", fix)
        elif path.stat().st_mode & 0o077 or path.stat().st_uid != 0:
            found = f"others than root may read or own {path}"
            fix = f"chown root: {path}; chmod 600 {path}; and make a new one, for it may be known"
            yield Finding(f"secret {path.name}", Level.FAILING, found, fix)


def _is_fenced() -> bool:
    """Say whether each Ray unit that runs has addresses that it denies."""
    active = [unit for unit in _RAY_UNITS if _systemctl("is-active", unit) == "active"]
    return bool(active) and all(
        _systemctl("show", "--value", "-p", "IPAddressDeny", unit) for unit in active
    )


def _is_ray(listener: Listener) -> bool:
    return (
        listener.port in RAY_PORTS
        or listener.process in {"raylet", "gcs_server"}
        or listener.process.startswith("ray::")
    )


def _process_name(pid: int | None) -> str:
    if pid is None:
        return ""
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return ""


def _systemctl(*words: str) -> str:
    """Give what systemctl prints, or nothing where there is none or it does not answer."""
    if shutil.which("systemctl") is None:
        return ""
    try:
        done = subprocess.run(
            ["systemctl", *words],  # noqa: S607 - the system's own
            capture_output=True,
            text=True,
            timeout=_TOOL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()
