"""Numbers for Prometheus, by way of Ray's own exporter on each node; `config/grafana.json` shows them.

Ray puts ``ray_`` before each name, and ``_total`` behind those of counters.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from labd.engine.exported import COUNTERS, GAUGES, HISTOGRAMS, SECONDS


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
                kind, facts = Histogram, {**facts, "boundaries": SECONDS}
            self._made[name] = kind(f"labd_{name}", **facts)
        return self._made[name]
