"""What the daemon says: each lasting trouble once in the log, and its state in a file for readers."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labd.clock import to_iso, utc_now
from labd.files import write_json
from labd.log import Logger

STATUS = "status.json"
_MAX_SAID = 10_000
_AT_MOST_EVERY_S = 0.5
_AT_LEAST_EVERY_S = 10.0


class Once:
    """A logger for what would else be said at every tick."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._said: set[str] = set()

    def warning(self, key: str, event: str, **facts: object) -> None:
        """Log a warning, unless it was under this key before."""
        if self._is_new(key):
            self._log.warning(event, **facts)

    def error(self, key: str, event: str, **facts: object) -> None:
        """Log an error, unless it was under this key before."""
        if self._is_new(key):
            self._log.error(event, **facts)

    def _is_new(self, key: str) -> bool:
        if key in self._said:
            return False
        if len(self._said) >= _MAX_SAID:
            self._said.clear()
        self._said.add(key)
        return True


class StatusFile:
    """Tells readers what only the daemon knows: soon after each change, and now and then."""

    def __init__(self, run_dir: Path, once: Once) -> None:
        self._path = run_dir / STATUS
        self._once = once
        self._last: Mapping[str, Any] = {}
        self._written_s = 0.0
        self.due_in_s = _AT_LEAST_EVERY_S

    def ready(self) -> bool:
        """Say whether it may be written again; how long not, is in `due_in_s`."""
        self.due_in_s = self._written_s + _AT_MOST_EVERY_S - time.monotonic()
        return self.due_in_s <= 0

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write the facts, unless they are the same and were written lately. Not durable: it is made anew at a start."""
        now_s = time.monotonic()
        self.due_in_s = _AT_LEAST_EVERY_S
        if facts == self._last and now_s - self._written_s < _AT_LEAST_EVERY_S:
            return
        self._last, self._written_s = facts, now_s
        try:
            write_json(self._path, {**facts, "at": to_iso(utc_now())}, durable=False)
        except OSError as error:
            self._once.error(f"status: {error}", "status.not_written", reason=str(error))
