"""Prompts that fit: how many tokens a text takes, and what is left out when not everything has room."""

import threading
from collections import deque

_START_BYTES_PER_TOKEN = 2.5
"""Before anything is known. English prose has about 4, program text 3, tables of numbers 2."""
_MOST_BYTES_PER_TOKEN = 12.0
"""More than that no text has on average that people or programs write, runs of blanks aside."""
_LEARN_FROM_BYTES = 400
"""In a shorter prompt the tokens of the chat template weigh too much."""
_REMEMBERED = 32
_ENOUGH = 5


class TokenRate:
    """How many bytes of prompt make a token of one model, learnt from the counts that servers return.

    Safe for threads. Estimates lean to the side that does no harm: `estimate` says rather too many tokens,
    `at_least` rather too few.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[float] = deque(maxlen=_REMEMBERED)
        self._low = _START_BYTES_PER_TOKEN
        self._high = _MOST_BYTES_PER_TOKEN

    def learn(self, prompt_bytes: int, tokens: int) -> None:
        """Take a server's count of a whole prompt. Short prompts, and counts that can't be, teach nothing."""
        if prompt_bytes < _LEARN_FROM_BYTES or tokens <= 0 or tokens > 2 * prompt_bytes:
            return
        with self._lock:
            self._seen.append(prompt_bytes / tokens)
            least, most = min(self._seen), max(self._seen)
            enough = len(self._seen) >= _ENOUGH
            self._low = 0.9 * least if enough else min(_START_BYTES_PER_TOKEN, 0.9 * least)
            self._high = 1.25 * most if enough else _MOST_BYTES_PER_TOKEN

    def estimate(self, size_bytes: int) -> int:
        """Give the tokens that a text of so many bytes may well take, rather too many than too few."""
        return -int(-size_bytes // self._low)

    def at_least(self, size_bytes: int) -> int:
        """Give the tokens that a text of so many bytes takes for certain, as far as one can tell."""
        return int(size_bytes / self._high)

    def bytes_for(self, tokens: int) -> int:
        """Give the bytes of text for which `estimate` says at most `tokens`."""
        return max(int(tokens * self._low), 0)
