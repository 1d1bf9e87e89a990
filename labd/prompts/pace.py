"""How fast prompts are answered, and when it is time to say so. Pure: time is handed in."""

from collections import deque

from labd.clock import print_duration

_WINDOW_S = 60.0
_MAX_INTERVAL_S = 60.0
_RARER = 60.0


class Pace:
    """Counts replies from `start_s` on; all times are of one monotonic clock, in seconds."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._told_s: float | None = None
        self._tokens = 0
        self._ended = 0
        # Moments, about one a second, each with the counts so far.
        self._seen: deque[tuple[float, int, int]] = deque([(start_s, 0, 0)])

    def count(self, output_tokens: int) -> None:
        """Note that a prompt has come to its end, with so many tokens."""
        self._tokens += output_tokens
        self._ended += 1

    def due(self, now_s: float) -> bool:
        """Say whether it is time for a line: once a second at first, then ever rarer, at last once a minute."""
        interval_s = min(_MAX_INTERVAL_S, 1.0 + (now_s - self._start_s) / _RARER)
        if self._told_s is not None and now_s - self._told_s < interval_s:
            return False
        self._told_s = now_s
        return True

    def detail(self, now_s: float, left: int, errors: int) -> str:
        """Say tokens per second of the last minute, how long the `left` prompts will take at that rate, and errors."""
        self._note(now_s)
        then_s, tokens, ended = self._seen[0]
        past_s = now_s - then_s
        parts = []
        if past_s > 0 and self._ended > ended:
            parts.append(f"{(self._tokens - tokens) / past_s:,.0f} tokens/s")
            if left:
                parts.append(f"{print_duration(left * past_s / (self._ended - ended))} left")
        if errors:
            parts.append(f"{errors:,} error{'' if errors == 1 else 's'}")
        return ", ".join(parts)

    def tokens_per_s(self, now_s: float) -> float:
        """Give the rate over all the time."""
        return self._tokens / max(now_s - self._start_s, 1e-9)

    def _note(self, now_s: float) -> None:
        if now_s - self._seen[-1][0] >= 1.0:
            self._seen.append((now_s, self._tokens, self._ended))
        # One that is older than the window stays, so that there is always something to compare with.
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - _WINDOW_S:
            self._seen.popleft()
