"""What a node did, for tests and benches to read at `GET /_test/counters`."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SEEN_MAX = 5000


class Counters:
    """Counts by model, the last requests, and how long the node loaded and generated."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._in_flight: Counter[str] = Counter()
        self._load_order: list[str] = []
        self._seen: deque[dict[str, Any]] = deque(maxlen=_SEEN_MAX)
        self._since = time.monotonic()
        self._busy_s = self._loading_s = 0.0
        self._busy_from: float | None = None

    def reset(self) -> None:
        """Begin anew. In the middle of requests the peaks and the busy time come out wrong."""
        with self._lock:
            self._clear()

    def count(self, model: str, what: str, amount: int = 1) -> None:
        """Add to one count of a model."""
        with self._lock:
            self._counts.setdefault(model, Counter())[what] += amount

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Count a load and its time, whatever comes of it."""
        self.count(model, "loads")
        with self._lock:
            self._load_order.append(model)
        began = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._loading_s += time.monotonic() - began

    @contextmanager
    def generating(self, model: str) -> Iterator[None]:
        """Count a request that holds a slot."""
        with self._lock:
            if not self._in_flight.total():
                self._busy_from = time.monotonic()
            self._in_flight[model] += 1
            counts = self._counts.setdefault(model, Counter())
            counts["in_flight_peak"] = max(counts["in_flight_peak"], self._in_flight[model])
        try:
            yield
        finally:
            with self._lock:
                self._in_flight[model] -= 1
                if not self._in_flight.total():
                    self._busy_s += self._busy_now_s()
                    self._busy_from = None

    def _busy_now_s(self) -> float:
        return 0.0 if self._busy_from is None else time.monotonic() - self._busy_from

    def saw(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Note a request and what it asked for besides its text; the caller adds how it ended."""
        noted = {key: value for key, value in body.items() if key not in {"messages", "prompt"}}
        record = {"path": path, "num_messages": len(body.get("messages") or []), **noted}
        with self._lock:
            self._seen.append(record)
        return record

    def report(self) -> dict[str, Any]:
        """Give everything as JSON would have it; times are in seconds since the start or the last reset."""
        with self._lock:
            totals: Counter[str] = Counter()
            for counts in self._counts.values():
                totals.update(counts)
            return {
                "models": {name: dict(counts) for name, counts in self._counts.items()},
                "totals": {name: n for name, n in totals.items() if name != "in_flight_peak"},
                "in_flight": {name: n for name, n in self._in_flight.items() if n},
                "load_order": list(self._load_order),
                "wall_s": time.monotonic() - self._since,
                "busy_s": self._busy_s + self._busy_now_s(),
                "loading_s": self._loading_s,
                "seen": list(self._seen),
            }
