"""Which endpoints there are: those of the settings, and each machine's own Ollama."""

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from labd.llm.client import connect
from labd.llm.model import Endpoint, Timeouts
from labd.llm.wireform import endpoint_from_data

OLLAMA_PORT = 11434
_LOOK_S = 2.0
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of the cluster. `address`: by which others reach it; `local`: it is the lab's own."""

    id: str
    name: str
    address: str
    local: bool = False


def placed(endpoints: Iterable[Mapping[str, Any]], machines: Sequence[Machine]) -> list[Endpoint]:
    """Give the settings' endpoints, each with the node whose GPUs it fills, and from where it can be reached.

    Args:
        endpoints: as `labd.llm.wireform.endpoint_to_data` gives them, and ``node``: a machine's name, or ``None``.
        machines: all that there are.

    """
    all_facts = [dict(facts) for facts in endpoints]
    nodes = [facts.pop("node") for facts in all_facts]
    found = [endpoint_from_data(facts) for facts in all_facts]
    # A name server that does not answer takes its time for each name.
    with ThreadPoolExecutor(_THREADS) as threads:
        addresses = list(threads.map(lambda endpoint: addresses_of(_host(endpoint.url)), found))
    return [
        _placed(endpoint, node, addresses_, machines)
        for endpoint, node, addresses_ in zip(found, nodes, addresses, strict=True)
    ]


def _placed(
    endpoint: Endpoint, node: str | None, addresses: frozenset[str], machines: Sequence[Machine]
) -> Endpoint:
    by_name = next((machine for machine in machines if machine.name == node), None)
    machine = machine_at(addresses, machines) if node is None else by_name
    here = next((m for m in machines if m.local), None)
    # A loopback of the settings is that of the lab's own machine, and no worker elsewhere may take it for its own.
    alone = here is not None and is_loopback(*addresses) and not is_loopback(here.address)
    return replace(
        endpoint,
        node_id=machine.id if machine else "",
        only_from=here.id if here is not None and alone else "",
    )


def addresses_of(host: str) -> frozenset[str]:
    """Give a host's addresses, none where its name can't be resolved."""
    try:
        return frozenset(str(info[4][0]).split("%")[0] for info in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return frozenset()


def is_loopback(*addresses: str) -> bool:
    """Say whether one of these addresses is a machine's own alone."""
    try:
        return any(ipaddress.ip_address(address).is_loopback for address in addresses)
    except ValueError:
        return False  # a name that only Ray can make something of


def machine_at(addresses: Iterable[str], machines: Sequence[Machine]) -> Machine | None:
    """Give the machine that has one of the addresses, as far as they tell."""
    if is_loopback(*addresses):
        return next((machine for machine in machines if machine.local), None)
    return next((machine for machine in machines if machine.address in addresses), None)


def own_ollama_urls(environment: Mapping[str, str], address: str = "") -> list[str]:
    """Give where a machine's own Ollama may listen, seen from itself, the likeliest first.

    Source: Ollama's FAQ and its envconfig.Host: OLLAMA_HOST is what it binds to, by default 127.0.0.1:11434.
    As that may be set for Ollama's own service alone, `address`, by which others reach the machine, comes last.
    """
    text = environment.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, _, rest = text.rpartition("://")
    rest = rest.split("/")[0]
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"  # an IPv6 address without a port
    default = {"http": 80, "https": 443}.get(scheme, OLLAMA_PORT)
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "127.0.0.1", parts.port or default
    except ValueError:
        host, port = "127.0.0.1", OLLAMA_PORT
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - what it is bound to, not what we bind to
        host = "127.0.0.1"
    return list(dict.fromkeys(_url(h, port) for h in (host, address) if h))


def find_own(address: str = "") -> str:
    """Give the URL of this machine's own Ollama if one answers, else an empty text."""
    # OLLAMA_HOST is also what Ollama's command line talks to, which may be another machine.
    urls = (url for url in own_ollama_urls(os.environ, address) if _is_here(_host(url)))
    return next((url for url in urls if is_ollama(url)), "")


def _is_here(host: str) -> bool:
    """Say whether the host is this machine: only its own addresses can be bound to."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.bind(address)
                return True
    except (OSError, UnicodeError):
        return False
    return False


def is_ollama(url: str) -> bool:
    """Say whether an Ollama answers there, within some seconds."""
    client = connect(Endpoint("own", url), Timeouts(connect_s=_LOOK_S, look_s=_LOOK_S))
    try:
        look = client.look()
    finally:
        client.close()
    return look.server == "ollama" and look.health != "down"


def reach(machine: Machine, url: str) -> str:
    """Give the URL at which a machine's own Ollama answers from elsewhere; empty: it does so at none.

    Args:
        machine: where it was found.
        url: where it listens, seen from there.

    """
    if machine.local and is_loopback(machine.address):
        return url  # there is no elsewhere
    own = [] if is_loopback(*addresses_of(_host(url))) else [url]
    outside = _url(machine.address, urlsplit(url).port or OLLAMA_PORT)
    return next((u for u in dict.fromkeys([*own, outside]) if is_ollama(u)), "")


def found_on(
    machine: Machine,
    url: str,
    outside: str,
    known: Sequence[Endpoint],
    machines: Sequence[Machine],
) -> Endpoint | None:
    """Give a machine's own Ollama as an endpoint, or ``None`` where it is one of the `known`.

    Args:
        machine: where it was found.
        url: where it listens, seen from there.
        outside: what `reach` gave.
        known: endpoints that have their `node_id`.
        machines: all that there are. Those with the same address are the same machine, whatever Ray says:
            one that came back before it was missed.

    """
    port = urlsplit(url).port
    same = {m.id for m in machines if m.address == machine.address}
    if any(e.node_id in same and urlsplit(e.url).port == port for e in known):
        return None
    taken = {e.name for e in known}
    names = (machine.name, f"{machine.name}:{port}", f"{machine.name}:{machine.id}")
    name = next(n for n in names if n not in taken)
    if outside:
        return Endpoint(name, outside, node_id=machine.id)
    return Endpoint(name, url, node_id=machine.id, only_from=machine.id)


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
