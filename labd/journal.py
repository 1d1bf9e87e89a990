"""The journal of one task's work: what was paid for once is never paid for again.

`Journal.step` gives back what an earlier attempt recorded under the same key, or runs and records.
The file is append-only JSON lines, each fsynced before `step` returns. An exclusive lock on the
file keeps two attempts from writing at once. Knows files only.
"""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from labd.clock import to_iso, utc_now
from labd.errors import JournalError, StillHeld, StorageError
from labd.files import JsonLines, read_json_lines

MAX_LINE_BYTES = 4 * 2**20
_LOCK_POLL_S = 0.05


def digest(value: object) -> str:
    """Give the first 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    raw = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(raw.encode()).hexdigest()[:16]


class Journal:
    """A task's journal, open for one attempt. Any thread may call `step`.

    Args:
        path: the journal's file; made if missing, its directory must exist.
        lock_timeout_s: how long to wait for an earlier attempt, still dying, to let go.
        on_step: called after each step with its key and whether it was replayed.

    Raises:
        StillHeld: another live attempt, or retention, holds the journal.
        JournalError: a line other than a torn last one is not readable.

    """

    def __init__(
        self,
        path: Path,
        *,
        lock_timeout_s: float = 60.0,
        on_step: Callable[[str, bool], None] | None = None,
    ) -> None:
        self._path = path
        self._on_step = on_step
        self._lock_fd = _lock(path, lock_timeout_s)
        self._lines = JsonLines(path)
        self._mutex = threading.Lock()
        self._recorded: dict[str, Any] = {}
        self.spent_s = 0.0
        """How long earlier attempts had the journal open, each until it recorded its last line."""
        self._opened_s = time.monotonic()
        try:
            for line in read_json_lines(path):
                self._recorded[line["key"]] = line["value"]
                self.spent_s = max(self.spent_s, float(line.get("spent_s", 0.0)))
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise JournalError(
                f"the journal can't be read: {error}",
                where=str(path),
                fix="Move the file aside to do the work again from the start",
            ) from error

    def step(self, key: str, inputs: Mapping[str, Any], fn: Callable[[], Any]) -> Any:
        """Give back the JSON value recorded for `key` and `inputs`, or call `fn` and record what it gives.

        What `fn` raises is passed on and nothing is recorded.

        Raises:
            JournalError: `fn` gave something that is not JSON, or too much of it.
            StorageError: the line could not be written.

        """
        full_key = f"{key}/{digest(inputs)}"
        with self._mutex:
            if full_key in self._recorded:
                value, replayed = self._recorded[full_key], True
            else:
                value, replayed = None, False
        if not replayed:
            started = time.monotonic()
            value = fn()
            value = self._record(full_key, value, time.monotonic() - started)
        if self._on_step is not None:
            self._on_step(key, replayed)
        return value

    def _record(self, key: str, value: object, wall_s: float) -> Any:
        spent_s = self.spent_s + time.monotonic() - self._opened_s
        line = {
            "key": key,
            "at": to_iso(utc_now()),
            "wall_s": round(wall_s, 3),
            "spent_s": round(spent_s, 3),
            "value": value,
        }
        try:
            raw = json.dumps(line, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise JournalError(f"step {key} gave what is not JSON: {error}") from error
        if len(raw.encode()) > MAX_LINE_BYTES:
            raise JournalError(
                f"step {key} gave {len(raw)} characters, more than {MAX_LINE_BYTES} bytes",
                fix="Keep large things in files and record their path and hash",
            )
        # What callers get is what a replay would give: tuples are lists, keys are texts.
        value = json.loads(raw)["value"]
        with self._mutex:
            try:
                self._lines.append(line)
            except OSError as error:
                raise StorageError(
                    f"the journal could not be written: {error.strerror}", where=str(self._path)
                ) from error
            self._recorded[key] = value
        return value

    def __len__(self) -> int:
        return len(self._recorded)

    def close(self) -> None:
        """Let go of the file and the lock."""
        self._lines.close()
        os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _lock(path: Path, timeout_s: float) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(fd)
                raise StillHeld(
                    f"another attempt or retention still holds the journal after {timeout_s:g} s",
                    where=str(path),
                ) from error
            time.sleep(_LOCK_POLL_S)
