"""Numbers for Prometheus, by way of Ray's own exporter on each node; `config/grafana.json` shows them.

Ray puts ``ray_`` before each name, and ``_total`` behind those of counters.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.1, 1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600]

GAUGES = {
    "queue_depth": ("tasks in a state", ("state",)),
    "nodes": ("machines, and of them those that get new tasks", ("state",)),
}
HISTOGRAMS = {
    "task_wait_s": ("from the drop, or the end of the attempt before, to the claim", ()),
    "task_run_s": ("from the claim to the end", ("state",)),
}
COUNTERS = {
    "tasks_ended": ("attempts that ended, and why", ("state", "code")),
    "gpu_s": ("seconds of GPUs that attempts had", ()),
    "tokens": ("tokens of language models that attempts used", ()),
    "sandbox_kills": ("runs that were ended for a limit", ("limit",)),
    "model_loads": ("language models that were loaded", ("endpoint",)),
}


class Metrics:
    """The numbers of one process: made when first used, because Ray has to be there."""

    def __init__(self, lab: str) -> None:
        self._lab = lab
        self._made: dict[str, Any] = {}

    def take(self, numbers: Iterable[Mapping[str, Any]]) -> None:
        """Take numbers: each has ``name``, ``value`` and ``tags``; counters are told what is new, gauges what is."""
        for one in numbers:
            metric = self._metric(one["name"])
            tags = {**one["tags"], "lab": self._lab}
            if isinstance(metric, Gauge):
                metric.set(one["value"], tags)
            elif isinstance(metric, Histogram):
                metric.observe(max(one["value"], 1e-3), tags)
            elif one["value"] > 0:
                metric.inc(one["value"], tags)

    def _metric(self, name: str) -> Any:
        if name not in self._made:
            what, keys = {**GAUGES, **HISTOGRAMS, **COUNTERS}[name]
            facts: dict[str, Any] = {"description": what, "tag_keys": (*keys, "lab")}
            kind: Any = Gauge if name in GAUGES else Counter
            if name in HISTOGRAMS:
                kind, facts = Histogram, {**facts, "boundaries": _SECONDS}
            self._made[name] = kind(f"labd_{name}", **facts)
        return self._made[name]
