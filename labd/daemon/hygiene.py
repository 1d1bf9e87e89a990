"""Room on the disk: whether there is enough to start work, what cleans up, and logs that nobody else bounds."""

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from labd.daemon.chores import Chores
from labd.log import Logger
from labd.settings import Home

LOG_BYTES = 8 * 2**20
"""How long a log gets that another process writes; as much again is kept of what came before."""
_PRUNE = ("prune", "--automatic")
_EVERY_S = 6 * 3600.0
_WHEN_FULL_EVERY_S = 1800.0
_TIMEOUT_S = 2 * 3600.0
_LOGS_EVERY_S = 60.0
_ENOUGH = 1.1
"""Of the limit that has to be free before claiming goes on, so that it does not flutter about the limit."""


class Hygiene:
    """Takes a turn in the loop, and never waits. `logs`: of processes that append to them."""

    def __init__(
        self,
        home: Home,
        chores: Chores,
        log: Logger,
        logs: Sequence[Path] = (),
        *,
        first_after_s: float = 600.0,
    ) -> None:
        self._home, self._chores, self._log, self._logs = home, chores, log, logs
        now_s = time.monotonic()
        self._prune_s = now_s + first_after_s if home.settings.retention.wanted else float("inf")
        self._pruned_s = float("-inf")
        self._logs_s = now_s
        self._full = False
        self._held = ""

    @property
    def next_s(self) -> float:
        """When to take the next turn, by the monotonic clock."""
        return min(self._prune_s, self._logs_s)

    def turn(self) -> None:
        """Do what is due: start a prune, cut logs."""
        now_s = time.monotonic()
        if self._full and self._prune_s < float("inf"):
            self._prune_s = min(self._prune_s, self._pruned_s + _WHEN_FULL_EVERY_S)
        if now_s >= self._prune_s:
            self._chores.start("prune", _PRUNE, timeout_s=_TIMEOUT_S)
            self._pruned_s, self._prune_s = now_s, now_s + _EVERY_S
        if now_s >= self._logs_s:
            self._logs_s = now_s + _LOGS_EVERY_S
            for path in self._logs:
                cut_log(path)

    def why_no_room(self) -> str:
        """Give why nothing may be claimed for lack of space, or an empty text."""
        wanted = self._home.settings.min_free_bytes
        free = shutil.disk_usage(self._home.results).free
        self._full = is_full(free, wanted, was_full=self._full)
        if not self._full:
            return ""
        return (
            f"waits for disk space: {self._home.results} has {free >> 20} MiB free, "
            f"wanted {wanted >> 20} MiB"
        )

    def tell(self, held: str) -> None:
        """Log that nothing new is started, and why, when that begins or its kind changes, and when it is over."""
        kind = held.partition(":")[0]
        if kind == self._held:
            return
        self._held = kind
        if held:
            self._log.warning("claiming.held", reason=held)
        else:
            self._log.info("claiming.resumed")


def is_full(free_bytes: int, wanted_bytes: int, *, was_full: bool) -> bool:
    """Say whether there is too little space to start work: below the limit, or, where it was, not clearly above it."""
    return free_bytes < wanted_bytes * (_ENOUGH if was_full else 1)


def cut_log(path: Path, most_bytes: int = LOG_BYTES) -> None:
    """Keep the end of a log that has become too long in a file beside it, and begin it anew.

    Whoever writes it goes on, because it was opened for appending; lines of this very moment may be lost.
    """
    # It is for people to look at: where the disk is full, that is told elsewhere, and tried again in a minute.
    with suppress(OSError), path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most_bytes:
            return
        file.seek(size - most_bytes)
        path.with_suffix(".old").write_bytes(file.read(most_bytes))
        os.ftruncate(file.fileno(), 0)
