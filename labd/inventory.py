"""What language models and machines the lab has: as the broker last said it, or, where none works, by a look of our own."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from labd.clock import from_iso, utc_now
from labd.lab import Lab
from labd.llm.desk import Rules
from labd.llm.finding import Machine, find_own, found_on, placed
from labd.llm.hands import DirectHands
from labd.llm.model import Timeouts
from labd.llm.report import report
from labd.llm.router import Router
from labd.settings import Home
from labd.text import printable

_FRESH_S = 15.0
_LOOK_TIMEOUTS = Timeouts(connect_s=2.0, look_s=5.0)
_THREADS = 16
_THIS = "this machine"
_UNKNOWN = {
    "id": "",
    "name": _THIS,
    "num_cpus": None,
    "num_gpus": None,
    "local": True,
    "drained": False,
    "level": None,
    "because": "",
    "barred": "",
    "machine": None,
}


def models(lab: Lab) -> dict[str, Any]:
    """Give endpoints with what they have and do, and who waits, as `labd.llm.report.report` has it.

    ``live`` says that the lab's broker said so a moment ago; without one the endpoints are asked, and
    what goes on is not known: ``tokens_per_s`` is ``None`` then.
    """
    told = _told(lab)
    return {**(told or _asked(lab.home)), "live": told is not None}


def nodes(lab: Lab) -> list[dict[str, Any]]:
    """Give the machines that the daemon has, each with its endpoints and the tasks that run there.

    Without a daemon there is this machine only. Endpoints on no machine of the lab come last, under an empty name.
    """
    status, found = lab.status(), models(lab)
    told = status.facts.get("nodes", []) if status.up else []
    machines = [*told] or [dict(_UNKNOWN)]
    running: defaultdict[str, list[str]] = defaultdict(list)
    for task, facts in status.facts.get("running", {}).items() if status.up else ():
        for node in (facts["node"], *facts.get("also", ())):
            running[node].append(task)
    local = next((m["id"] for m in machines if m.get("local")), "")
    endpoints: defaultdict[str | None, list[Any]] = defaultdict(list)
    for endpoint in found["endpoints"]:
        node_id = endpoint["node_id"]
        if node_id and not found["live"]:
            node_id = local  # found without the daemon: ids of machines mean nothing
        known = any(machine["id"] == node_id for machine in machines)
        endpoints[node_id if known and (node_id or not told) else None].append(endpoint)
    listed = [
        {**machine, "running": running[machine["name"]], "endpoints": endpoints[machine["id"]]}
        for machine in machines
    ]
    if endpoints[None]:
        elsewhere = {**_UNKNOWN, "name": "", "local": False}
        listed.append({**elsewhere, "running": [], "endpoints": endpoints[None]})
    return listed


def _told(lab: Lab) -> dict[str, Any] | None:
    try:
        facts = json.loads(lab.home.models_status.read_bytes())
        age_s = (utc_now() - from_iso(facts["at"])).total_seconds()
    except (OSError, ValueError, KeyError):
        return None
    return facts if age_s <= _FRESH_S and isinstance(facts, dict) else None


def _asked(home: Home) -> dict[str, Any]:
    router = router_of(home)
    found = report(router.desk, router.desk.now_s, {})
    for endpoint in found["endpoints"]:
        for told in (endpoint, *endpoint["models"]):
            told["tokens_per_s"] = None
    return found


def router_of(home: Home) -> Router:
    """Look at all endpoints of the settings, and at this machine's own Ollama; give what was seen."""
    here = Machine("here", _THIS, "127.0.0.1", local=True)
    endpoints = placed([e.facts(home.root) for e in home.settings.endpoints], [here])
    if home.settings.llm.discover and (url := find_own()):
        own = found_on(here, url, url, endpoints, [here])
        endpoints += [own] if own else []
    router = Router(Rules(allow_remote=home.settings.llm.allow_remote), endpoints)
    with DirectHands(_LOOK_TIMEOUTS) as hands, ThreadPoolExecutor(_THREADS) as threads:
        for endpoint, look in zip(endpoints, threads.map(hands.look, endpoints), strict=True):
            router.seen(endpoint.name, look, 0.0)
    return router


# --- in lines for people


def model_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Give a table's rows: model, endpoint, state, size, context, requests in flight, digest."""
    for endpoint in found["endpoints"]:
        for model in endpoint["models"]:
            state = "loaded" if model["loaded"] else "on disk"
            yield (
                model["name"],
                endpoint["name"],
                "elsewhere" if model["remote"] else state,
                _gib(model["vram_bytes"] if model["vram_bytes"] > 1 else model["size_bytes"]),
                str(model["num_ctx"] or ""),
                f"{model['in_flight']}/{endpoint['slots']}"
                if found["live"] and model["loaded"]
                else "",
                model["digest"].removeprefix("sha256:")[:12],
            )


def endpoint_lines(endpoints: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say of each endpoint how it is, what it does, and what to do where something is wrong."""
    for endpoint in endpoints:
        server = " ".join(
            filter(None, (endpoint["server"] or endpoint["api"], endpoint["version"]))
        )
        yield f"{endpoint['name']}: {endpoint['health']}, {server} at {endpoint['url']}{_whose(endpoint)}"
        pace = endpoint.get("tokens_per_s")
        told = f"{pace:g} tokens/s in the last minute" if pace else ""
        for text in (told, endpoint["doing"], endpoint["problem"], endpoint["fix"]):
            if text:
                yield f"  {text}"


def state_lines(node: Mapping[str, Any]) -> Iterator[str]:
    """Say why a node gets no new tasks, or only what others have no room for; `node` as `nodes` has it."""
    if node.get("barred"):
        yield f"no new tasks: {printable(str(node['barred']), 300)}"
    elif node.get("level") == "high":
        told = printable(str(node.get("because")), 300)
        yield f"its load is high: new tasks go elsewhere while there is room ({told})"


def machine_lines(facts: Mapping[str, Any] | None) -> Iterator[str]:
    """Say what a machine is and does, and what is wrong with it; `facts` as `labd.engine.probe` has them."""
    if facts is None:
        return
    for text in (facts["problem"], facts["warning"]):
        if text:
            yield f"WARNING: {text}"
    if "cpus" not in facts:
        return
    yield _load_line(facts)
    for gpu in facts["gpus"]:
        yield _gpu_line(gpu)
        for process in gpu["processes"]:
            held = process["used_bytes"]
            size = f" {_gib(held)}" if held else ""
            yield f"  process {process['pid']} {process['name']}{size}"
    if facts["no_gpu"]:
        yield facts["no_gpu"]
    yield f"labd {facts['labd']}, Ray {facts['ray']}, Python {facts['python']}, Linux {facts['kernel']}"
    for gap in facts["gaps"]:
        yield f"the sandbox has the gap {gap['name']}: {gap['what']}"


def _load_line(facts: Mapping[str, Any]) -> str:
    """Say what a machine has and does; what another labd there does not tell is left out."""
    free, of = facts["memory_free_bytes"], facts["memory_bytes"]
    cpu, disk, hot = (facts.get(key) for key in ("cpu", "disk_used", "temperature_c"))
    parts = [
        f"load {facts['load']:g} of {facts['cpus']}",
        f"CPU {cpu:.0%}" if cpu is not None else "",
        f"memory {_gib(free)} free of {_gib(of)}",
        f"disk {disk:.0%} full" if disk is not None else "",
        f"{hot:.0f} °C" if hot is not None else "",
    ]
    return ", ".join(filter(None, parts))


def _gpu_line(gpu: Mapping[str, Any]) -> str:
    parts = [
        f"GPU {gpu['index']}: {gpu['name']}",
        f"{_gib(gpu['used_bytes']) or '0 GiB'} of {_gib(gpu['memory_bytes'])} used",
    ]
    if gpu["busy"] is not None:
        parts.append(f"{gpu['busy']:.0%} busy")
    if gpu["temperature_c"] is not None:
        parts.append(f"{gpu['temperature_c']} °C")
    return ", ".join(parts)


def _whose(endpoint: Mapping[str, Any]) -> str:
    return ", for its own machine only" if endpoint["only_from"] else ""


def different_weights(endpoints: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Give the models that are not the same everywhere: by name, for each digest the endpoints that have it."""
    seen: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for endpoint in endpoints:
        for model in endpoint["models"]:
            if model["digest"]:
                seen[model["name"]][model["digest"]].append(endpoint["name"])
    return {name: dict(digests) for name, digests in seen.items() if len(digests) > 1}


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes else ""
