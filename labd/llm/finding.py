"""Which endpoints there are: those of the settings, and each machine's own Ollama."""

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from labd.llm.client import connect
from labd.llm.model import Endpoint, Timeouts
from labd.llm.wireform import endpoint_from_data

OLLAMA_PORT = 11434
_LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of the cluster. `address`: by which others reach it; `local`: it is the lab's own."""

    id: str
    name: str
    address: str
    local: bool = False


def placed(endpoints: Iterable[Mapping[str, Any]], machines: Sequence[Machine]) -> list[Endpoint]:
    """Give the settings' endpoints, each with the node whose GPUs it fills.

    Args:
        endpoints: as `labd.llm.wireform.endpoint_to_data` gives them, and ``node``: a machine's name, or ``None``.
        machines: all that there are.

    """
    found = []
    for facts in endpoints:
        data = dict(facts)
        node = data.pop("node")
        endpoint = endpoint_from_data(data)
        machine = next((m for m in machines if m.name == node), None)
        if node is None:
            machine = machine_of(endpoint.url, machines)
        found.append(replace(endpoint, node_id=machine.id if machine else ""))
    return found


def machine_of(url: str, machines: Sequence[Machine]) -> Machine | None:
    """Give the machine that a URL leads to, as far as its host's addresses tell."""
    host = urlsplit(url).hostname or ""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return None
    if any(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in addresses):
        return next((machine for machine in machines if machine.local), None)
    return next((machine for machine in machines if machine.address in addresses), None)


def own_ollama_url(environment: Mapping[str, str]) -> str:
    """Give where a machine's own Ollama would listen, seen from itself.

    Source: Ollama's FAQ: OLLAMA_HOST is what it binds to, by default 127.0.0.1:11434.
    """
    set_ = environment.get("OLLAMA_HOST", "").strip()
    parts = urlsplit(set_ if "//" in set_ else f"//{set_}")
    try:
        port = parts.port or OLLAMA_PORT
    except ValueError:
        port = OLLAMA_PORT
    host = parts.hostname or "127.0.0.1"
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - what it is bound to, not what we bind to
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def find_own(environment: Mapping[str, str] | None = None) -> str:
    """Give the URL of this machine's own Ollama if one answers, else an empty text."""
    url = own_ollama_url(os.environ if environment is None else environment)
    return url if is_ollama(url) else ""


def is_ollama(url: str) -> bool:
    """Say whether an Ollama answers there, within some seconds."""
    client = connect(Endpoint("own", url), Timeouts(connect_s=_LOOK_S, look_s=_LOOK_S))
    try:
        look = client.look()
    finally:
        client.close()
    return look.server == "ollama" and look.health != "down"


def found_on(machine: Machine, url: str, known: Sequence[Endpoint]) -> Endpoint | None:
    """Give a machine's own Ollama as an endpoint, or ``None`` where it is one of the `known`.

    Args:
        machine: where it was found.
        url: where it listens, seen from there.
        known: endpoints that have their `node_id`.

    """
    port = urlsplit(url).port
    if any(e.node_id == machine.id and urlsplit(e.url).port == port for e in known):
        return None
    endpoint = Endpoint(machine.name, url, node_id=machine.id)
    taken = {e.name for e in known}
    if endpoint.name in taken:
        endpoint = replace(endpoint, name=f"{machine.name}:{port}")
    if machine.local:
        return endpoint
    outside = f"http://{machine.address}:{port}"
    if is_ollama(outside):
        return replace(endpoint, url=outside)
    return replace(endpoint, only_from=machine.id)
