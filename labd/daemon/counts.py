"""What is counted for Prometheus, until the engine has taken it. Lost with the daemon: the record is the truth."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

_EVERY_S = 5.0
_MAX_OBSERVED = 10_000

Tags = tuple[tuple[str, str], ...]


class Counts:
    """Numbers as `labd.engine.metrics` has them."""

    def __init__(self) -> None:
        self._counters: defaultdict[tuple[str, Tags], float] = defaultdict(float)
        self._observed: list[tuple[str, Tags, float]] = []
        self._due_s = 0.0

    def claimed(self, waited_s: float) -> None:
        """Count a claim, and for how long the task had waited."""
        self._observe("task_wait_s", waited_s)

    def ended(self, state: str, code: str, run_s: float, outcome: Mapping[str, Any]) -> None:
        """Count the end of an attempt: its state, or ``lost``; why; and what the worker says that it used."""
        self._observe("task_run_s", run_s, state=state)
        self._count("tasks_ended", 1, state=state, code=code)
        self._count("gpu_s", outcome.get("gpu_s") or 0)
        self._count("tokens", outcome.get("tokens") or 0)
        for limit, number in (outcome.get("limits_hit") or {}).items():
            self._count("sandbox_kills", number, limit=limit)

    def due(self, gauges: Iterable[tuple[str, float, Mapping[str, str]]]) -> list[dict[str, Any]]:
        """Give what there is to tell, now and then, with the gauges as they are; nothing before its time."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return []
        self._due_s = now_s + _EVERY_S
        counted, self._counters = self._counters, defaultdict(float)
        observed, self._observed = self._observed, []
        return [
            *({"name": name, "value": value, "tags": dict(tags)} for name, value, tags in gauges),
            *(
                {"name": name, "value": value, "tags": dict(tags)}
                for (name, tags), value in counted.items()
            ),
            *({"name": name, "value": v, "tags": dict(tags)} for name, tags, v in observed),
        ]

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:
            self._counters[name, tuple(tags.items())] += value

    def _observe(self, name: str, value: float, **tags: str) -> None:
        if len(self._observed) < _MAX_OBSERVED:
            self._observed.append((name, tuple(tags.items()), value))
