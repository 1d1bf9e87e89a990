"""The lab itself: machines with their gauges, language models, and what the daemon said last. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labd.clock import print_duration
from labd.page.charts import history, meter
from labd.page.choice import LEVELS
from labd.page.html import Html, join, tag
from labd.page.snapshot import Snapshot
from labd.page.words import Words

_SAMPLE_S = 5.0
_MOST_LINES = 100
_MOST_TASKS = 20
_SKIP = frozenset({"event", "level", "timestamp", "exception"})


def lab_panel(snapshot: Snapshot, words: Words) -> Html:
    """Give the machines, each with its gauges and what runs there, and the models."""
    nodes = [_node(node, snapshot, words) for node in snapshot.nodes]
    return join(
        (
            tag("div", *nodes, class_="nodes")
            if nodes
            else tag("p", words("no_nodes"), class_="quiet"),
            _models(snapshot.nodes, words),
        )
    )


def _node(node: Mapping[str, Any], snapshot: Snapshot, words: Words) -> Html:
    size = ", ".join(
        f"{node[key]:g} {unit}"
        for key, unit in (("num_cpus", "CPU"), ("num_gpus", "GPU"))
        if isinstance(node.get(key), int | float)
    )
    here, machine = bool(node.get("local")), node.get("machine") or {}
    endpoints = [
        tag(
            "li",
            tag("b", one["name"]),
            " ",
            one["health"],
            " ",
            one.get("problem") or one.get("doing") or None,
        )
        for one in node.get("endpoints", [])
    ]
    tasks = ", ".join(_running(node, snapshot)[:_MOST_TASKS])
    return tag(
        "section",
        tag(
            "h4", node.get("name") or words("elsewhere"), " ", tag("small", size) if size else None
        ),
        _state(node, words),
        *(_gauges(snapshot.load, words) if here else _told(machine, words)),
        *_rest(machine, words),
        tag("p", "▶ ", tasks) if tasks else None,
        tag("ul", *endpoints) if endpoints else None,
        class_="node",
    )


def _running(node: Mapping[str, Any], snapshot: Snapshot) -> list[str]:
    """Give what runs on a machine, as the daemon says it now: what is known of machines is some seconds older."""
    if not snapshot.status.up:
        return []
    told = snapshot.status.facts.get("running", {})
    return [str(task) for task, facts in told.items() if facts.get("node") == node.get("name")]


def _state(node: Mapping[str, Any], words: Words) -> Html | None:
    """Say why a machine gets no new tasks, or that it is the last to get some."""
    if node.get("barred"):
        return tag("p", words("barred", why=node["barred"]), class_="warn")
    if node.get("level") == "high":
        return tag("p", words("load_high", why=node.get("because") or ""), class_="quiet")
    return None


def _told(machine: Mapping[str, Any], words: Words) -> list[Html]:
    """Give what another machine last said of its CPUs, memory and GPUs; nothing of one that does not say it."""
    if machine.get("cpu") is None or not machine.get("memory_bytes"):
        return []
    size = machine["memory_bytes"]
    used = size - machine["memory_free_bytes"]
    gauges = [
        meter(words("cpu"), machine["cpu"], f"{machine['cpu']:.0%}"),
        meter(words("memory"), used / size, f"{_gib(used)} / {_gib(size)} GiB"),
    ]
    for gpu in machine["gpus"]:
        name, vram = words("gpu", index=gpu["index"]), words("vram", index=gpu["index"])
        held = f"{_gib(gpu['used_bytes'])} / {_gib(gpu['memory_bytes'])} GiB"
        gauges.append(meter(name, gpu["busy"], _percent(gpu["busy"])))
        gauges.append(meter(vram, _share(gpu["used_bytes"], gpu["memory_bytes"]), held))
    return gauges


def _rest(machine: Mapping[str, Any], words: Words) -> list[Html]:
    """Give how full a machine's disk is and how hot it is, as it last said."""
    disk, hot = machine.get("disk_used"), machine.get("temperature_c")
    gauges = [] if disk is None else [meter(words("disk"), disk, _percent(disk))]
    if hot is not None:
        gauges.append(tag("p", words("temperature", celsius=f"{hot:.0f}"), class_="quiet"))
    return gauges


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _gauges(load: Sequence[Mapping[str, Any]], words: Words) -> list[Html]:
    if not load:
        return []
    last = load[-1]
    memory = _share(last["memory_used_bytes"], last["memory_bytes"])
    cpus = [one["cpu"] for one in load]
    memories = [_share(one["memory_used_bytes"], one["memory_bytes"]) or 0.0 for one in load]
    told = f"{_gib(last['memory_used_bytes'])} / {_gib(last['memory_bytes'])} GiB"
    gauges = [
        meter(words("cpu"), last["cpu"], f"{last['cpu']:.0%}"),
        history(words("cpu"), cpus),
        meter(words("memory"), memory, told),
        history(words("memory"), memories),
    ]
    for number, gpu in enumerate(last["gpus"]):
        past = [one["gpus"][number] for one in load if len(one["gpus"]) > number]
        gauges += _gpu(gpu, past, words)
    if len(load) > 1:
        age = print_duration(_SAMPLE_S * (len(load) - 1))
        gauges.append(tag("p", words("history", age=age), class_="quiet"))
    return gauges


def _gpu(gpu: Mapping[str, Any], past: Sequence[Mapping[str, Any]], words: Words) -> list[Html]:
    watts = f", {gpu['watts']:.0f} W" if gpu["watts"] is not None else ""
    used = f"{gpu['used']:.0%}{watts}" if gpu["used"] is not None else "?"
    name, vram = words("gpu", index=gpu["index"]), words("vram", index=gpu["index"])
    held = f"{_gib(gpu['vram_used_bytes'])} / {_gib(gpu['vram_bytes'])} GiB"
    return [
        tag("p", gpu["name"] or name, class_="quiet"),
        meter(name, gpu["used"], used),
        history(name, [one["used"] or 0.0 for one in past]),
        meter(vram, _share(gpu["vram_used_bytes"], gpu["vram_bytes"]), held),
    ]


def _models(nodes: Iterable[Mapping[str, Any]], words: Words) -> Html | None:
    rows = []
    for endpoint in (one for node in nodes for one in node.get("endpoints", [])):
        for model in endpoint.get("models", []):
            if not model.get("loaded"):
                continue
            pace = model.get("tokens_per_s")
            rows.append(
                tag(
                    "tr",
                    tag("th", model["name"], scope="row"),
                    tag("td", endpoint["name"]),
                    tag("td", f"{_gib(model.get('vram_bytes'))} GiB", class_="n"),
                    tag(
                        "td",
                        f"{model.get('in_flight', 0)}/{endpoint.get('slots', '?')}",
                        class_="n",
                    ),
                    tag("td", f"{pace:.1f}" if isinstance(pace, int | float) else "", class_="n"),
                )
            )
    if not rows:
        return tag("p", words("no_models"), class_="quiet")
    keys = ("model", "endpoint", "loaded", "in_flight", "tokens_per_s")
    head = tag("tr", *(tag("th", words(key), scope="col") for key in keys))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll")


def daemon_log(lines: Sequence[Mapping[str, Any]], level: str, words: Words) -> Html:
    """Give the last lines of the daemon's log from a level on, the newest first."""
    least = LEVELS.index(level)
    kept = [line for line in lines if _rank(line) >= least][-_MOST_LINES:]
    if not kept:
        return tag("p", words("no_log"), class_="quiet")
    rows = [
        tag(
            "tr",
            tag("td", str(line.get("timestamp", ""))[:19].replace("T", " "), class_="at"),
            tag("td", str(line.get("level", "")), class_=f"level {LEVELS[_rank(line)]}"),
            tag("th", str(line.get("event", "")), scope="row"),
            tag(
                "td",
                " ".join(f"{key}={value}" for key, value in line.items() if key not in _SKIP)[
                    :1000
                ],
                class_="why",
            ),
        )
        for line in reversed(kept)
    ]
    return tag(
        "div",
        tag("table", tag("tbody", *rows), class_="lines"),
        class_="scroll log-lines",
        tabindex=0,
        role="region",
        aria_label=words("daemon_log"),
    )


def _rank(line: Mapping[str, Any]) -> int:
    level = str(line.get("level", "info"))
    return LEVELS.index(level) if level in LEVELS else LEVELS.index("error")


def _share(part: Any, whole: Any) -> float | None:
    return part / whole if isinstance(part, int | float) and whole else None


def _gib(size_bytes: Any) -> str:
    return f"{size_bytes / 2**30:.1f}" if isinstance(size_bytes, int | float) else "?"
