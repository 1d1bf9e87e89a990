"""How many tokens a second a model has answered with in the last minute. Pure."""

_WINDOW_S = 60


class Throughput:
    """Tokens by the second, of the last minute; a request's tokens count as if they had come evenly while it lasted."""

    def __init__(self) -> None:
        self._tokens: dict[int, float] = {}
        """By whole seconds."""

    def add(self, now_s: float, took_s: float, tokens: int) -> None:
        """Take a request that ended a moment ago; `took_s`: how long it took."""
        first, last = int(now_s - max(0.0, took_s)), int(now_s)
        each = tokens / (last - first + 1)
        for second in range(max(first, last - _WINDOW_S + 1), last + 1):
            self._tokens[second] = self._tokens.get(second, 0.0) + each
        self._forget(now_s)

    def tokens_per_s(self, now_s: float) -> float:
        """Give the mean of the last minute."""
        self._forget(now_s)
        return sum(self._tokens.values()) / _WINDOW_S

    def _forget(self, now_s: float) -> None:
        oldest = int(now_s) - _WINDOW_S + 1
        self._tokens = {second: one for second, one in self._tokens.items() if second >= oldest}
