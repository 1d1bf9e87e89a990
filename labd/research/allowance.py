"""What a task may use up in all: tokens, runs and time. Knows nothing of what they are used for."""

import threading
import time
from collections.abc import Callable
from typing import Literal

Means = Literal["tokens", "runs", "time"]
_ALL: tuple[Means, ...] = ("time", "tokens", "runs")


class Allowance:
    """What is left of a task's tokens, runs and time. Any thread may call.

    Who begins something asks `out_of` before, and tells what it took afterwards; what is under way when a limit is
    reached goes on to its end. So a limit can be passed by what was under way.

    Args:
        max_tokens_total: of prompts and replies together; ``None``: any number.
        max_runs: of experiments; ``None``: any number.
        deadline: on the clock; ``None``: none.
        spent_s: of the time until the deadline, what earlier attempts have used.
        clock: gives seconds.

    """

    def __init__(
        self,
        max_tokens_total: int | None = None,
        max_runs: int | None = None,
        deadline: float | None = None,
        *,
        spent_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.deadline = deadline
        self._max = {"tokens": max_tokens_total, "runs": max_runs}
        self._spent = {"tokens": 0, "runs": 0}
        self._clock = clock
        self._began_s = clock() - spent_s
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """How many tokens were used."""
        return self._spent["tokens"]

    @property
    def runs(self) -> int:
        """How many runs were made."""
        return self._spent["runs"]

    @property
    def runs_left(self) -> int | None:
        """How many runs may still be made; ``None``: any number."""
        most = self._max["runs"]
        return None if most is None else max(0, most - self.runs)

    def spend_tokens(self, count: int) -> None:
        """Tell of tokens that were used, also of those that an earlier attempt used."""
        self._spend("tokens", count)

    def spend_run(self) -> None:
        """Tell of a run that was made, also of one that an earlier attempt made."""
        self._spend("runs", 1)

    def seconds_left(self, share: float = 1.0) -> float | None:
        """Give the seconds until a share of the time from the start to the deadline is over; ``None``: no deadline."""
        if self.deadline is None:
            return None
        return self._began_s + share * (self.deadline - self._began_s) - self._clock()

    def out_of(self, share: float = 1.0, *, of: tuple[Means, ...] = _ALL) -> str:
        """Give one plain sentence that names what is used up, without numbers; empty where nothing is.

        Args:
            share: of tokens and time, the part that may be used for what is asked about; runs have no shares.
            of: what is needed, so that a text can still be written when all runs were made.

        """
        part = "" if share >= 1 else "the part of "
        left_s = self.seconds_left(share) if "time" in of else None
        if left_s is not None and left_s <= 0:
            return _sentence(f"{part}the time that the task has was used up")
        if "tokens" in of and self._reached("tokens", share):
            return _sentence(
                f"{part}the tokens that the task has (`max_tokens_total`) was used up"
            )
        if "runs" in of and self._reached("runs", 1.0):
            return "All runs that the task may make (`max_runs`) were made."
        return ""

    def _spend(self, means: str, count: int) -> None:
        with self._lock:
            self._spent[means] += count

    def _reached(self, means: str, share: float) -> bool:
        most = self._max[means]
        return most is not None and self._spent[means] >= share * most


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
