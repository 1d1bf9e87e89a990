"""What machines and endpoints say of themselves, as readings of load. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from labd.campaigns.load import Load, free_load
from labd.clock import from_iso

_FRESH_S = 15.0
_HEALTHY = frozenset({"up", "loading"})


def load_of(
    facts: Mapping[str, Any], *, cpus: float, gpus: float, models: bool, heated: bool = False
) -> Load:
    """Give a machine's load of what it said of itself.

    Args:
        facts: as `labd.engine.probe.Prober` has them; it is compared with what *this* machine has.
        cpus: how many of its CPUs the lab's tasks hold.
        gpus: how many of its GPUs.
        models: whether endpoints of the lab are there, whose models are meant to fill its GPUs.
        heated: whether the lab's tasks ran there just now; while they do, and beside endpoints, it is heated in any case.

    """
    memory, cpu = facts["memory_bytes"], facts["cpu"]
    devices = facts["gpus"]
    heated = heated or models or cpus > 0 or gpus > 0
    count = len(devices)
    use = [gpu["busy"] for gpu in devices if gpu["busy"] is not None]
    filled = sum(gpu["used_bytes"] for gpu in devices)
    holds = sum(gpu["memory_bytes"] for gpu in devices)
    watched = bool(count) and not models
    return Load(
        cpu=None if cpu is None else free_load(cpu, facts["cpus"], cpus),
        memory=1 - facts["memory_free_bytes"] / memory,
        disk=facts["disk_used"],
        gpu=free_load(sum(use) / len(use), count, gpus) if watched and use else None,
        gpu_memory=free_load(filled / holds, count, gpus) if watched and holds else None,
        temperature_c=_temperature_c(facts, heated=heated),
    )


def _temperature_c(facts: Mapping[str, Any], *, heated: bool) -> float | None:
    """Give the temperature of the hottest part that counts.

    A processor that works is hot by design: up to some 90 °C a GPU, up to its limit a CPU. So what the lab itself has heated
    counts only where a GPU is so hot that it slows itself down, as its driver says.
    """
    hot = [] if heated else [facts["temperature_c"]]
    for gpu in facts["gpus"]:
        at_c, slows_at_c = gpu["temperature_c"], gpu.get("slowdown_c")
        if at_c is not None and (not heated or (slows_at_c is not None and at_c >= slows_at_c)):
            hot.append(at_c)
    return max((float(one) for one in hot if one is not None), default=None)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The endpoints of language models that answer: how many requests at once, their load, and on which nodes they are."""

    calls: int | None = None
    load: Load = field(default_factory=Load)
    node_ids: Collection[str] = ()


def endpoints_of(facts: Mapping[str, Any], now: datetime) -> Endpoints:
    """Give what the broker last said of the endpoints; nothing where that is too old.

    Raises:
        KeyError, TypeError, ValueError: it is not what a broker writes.

    """
    if (now - from_iso(facts["at"])).total_seconds() > _FRESH_S:
        return Endpoints()
    good = [one for one in facts["endpoints"] if one["health"] in _HEALTHY]
    slots = sum(int(one["slots"]) for one in good)
    if not slots:
        return Endpoints()
    load = Load(
        queue=sum(facts["waiting"].values()) / slots,
        tokens_per_s=sum(float(one["tokens_per_s"]) for one in good),
    )
    return Endpoints(slots, load, frozenset(one["node_id"] for one in good))
