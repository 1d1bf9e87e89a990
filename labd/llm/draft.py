"""A reply while it grows, whichever API it comes by: its pieces, its limits, and what it is at the end."""

import threading
import time
from collections.abc import Callable, Sequence

from labd.llm.budget import size_bytes
from labd.llm.errors import CutShort
from labd.llm.model import Message, Options, Timeouts
from labd.llm.wire import Exchange, Patience, Wire

_BYTES_PER_TOKEN = 2048
_EXTRA_BYTES = 2**20
_EXTRA_PIECES = 256
_WARM_S = 240.0


def prompt_bytes(messages: Sequence[Message]) -> int:
    """Count the bytes of all messages in UTF-8."""
    return sum(size_bytes(message.content) for message in messages)


def max_reply_bytes(options: Options) -> int:
    """Give the bytes that the reply to a request can take on the wire, generously."""
    return _EXTRA_BYTES + _BYTES_PER_TOKEN * 2 * _most_tokens(options)


def _most_tokens(options: Options) -> int:
    # Without a limit of its own a reply ends at ten windows. Source: Ollama's `num_predict` of -1.
    return options.num_predict if options.num_predict > 0 else 10 * options.num_ctx


def whole_text(pieces: Sequence[str]) -> str:
    """Join pieces to text that can be written: halves of a character become one, lone ones become ``U+FFFD``."""
    text = "".join(pieces)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Draft:
    """The pieces of one reply. For one thread.

    Attributes:
        first_s: seconds from the request to the first piece; ``None`` before it.

    """

    def __init__(
        self, wire: Wire, options: Options, on_first: Callable[[], None] | None = None
    ) -> None:
        self._wire = wire
        self._options = options
        self._on_first = on_first
        self._most_pieces = 2 * _most_tokens(options) + _EXTRA_PIECES
        self._begun = time.monotonic()
        self._contents: list[str] = []
        self._thoughts: list[str] = []
        self._pieces = 0
        self.first_s: float | None = None

    def add(self, exchange: Exchange, content: str, thinking: str) -> None:
        """Take one piece.

        Raises:
            EndpointFailed: there have been more than the request allows.

        """
        if content:
            self._contents.append(content)
        if thinking:
            self._thoughts.append(thinking)
        self._pieces += 1
        if self._pieces > self._most_pieces:
            limit = self._options.num_predict
            raise self._wire.faults.failed(f"goes on although only {limit} tokens were asked for")
        if self.first_s is None:
            self.first_s = time.monotonic() - self._begun
            if self._on_first is not None:
                self._on_first()
        exchange.progress()

    @property
    def wall_s(self) -> float:
        """Seconds since the request."""
        return time.monotonic() - self._begun

    @property
    def text(self) -> str:
        """The reply without the thinking."""
        return whole_text(self._contents)

    @property
    def thinking(self) -> str:
        """What the model thought before it replied."""
        return whole_text(self._thoughts)

    def check_whole(self, prompt_tokens: int, tokens: int, *, context_full: bool) -> None:
        """Judge a reply of so many tokens that ended because a limit was reached.

        Raises:
            CutShort: it is not to be taken so, or there is none after the thinking.

        """
        used = f"{tokens} tokens" if tokens else "all tokens"
        if self._thoughts and not "".join(self._contents).strip():
            what = f"the model was still thinking when {used} were used up, so there is no reply"
            fix = "Raise num_predict, or set think: false"
        elif self._options.allow_cut:
            return
        elif context_full:
            what = f"the reply was cut when the context was full, after {used}"
            fix = "Raise num_ctx, or shorten the prompt"
        else:
            what = f"the reply was cut after {used} (num_predict: {self._options.num_predict})"
            fix = "Raise num_predict"
        raise CutShort(
            what,
            where=self._wire.faults.where,
            fix=fix,
            text=self.text,
            prompt_tokens=prompt_tokens,
            output_tokens=tokens,
        )


class Warmth:
    """Which models have lately replied at one endpoint, and so need not be loaded. Safe for threads.

    The first token of a model that may have to be loaded gets the time for that, too: a client that gives up
    while Ollama loads makes it begin again.
    """

    def __init__(self, timeouts: Timeouts, keep_alive_s: float) -> None:
        self._timeouts = timeouts
        self._last_s = min(_WARM_S, keep_alive_s / 2 if keep_alive_s >= 0 else _WARM_S)
        self._lock = threading.Lock()
        self._used: dict[tuple[str, int], float] = {}

    def patience(self, model: str, num_ctx: int, tokens: int) -> Patience:
        """Say how long to wait for a reply to a prompt of so many tokens."""
        limits = self._timeouts
        first_s = limits.first_token_s + limits.first_token_s_per_1k * tokens / 1000
        with self._lock:
            used = self._used.get((model, num_ctx))
        if used is None or time.monotonic() - used > self._last_s:
            return Patience(
                first_s + limits.load_s, "the first token (or the load)", limits.between_tokens_s
            )
        return Patience(first_s, "the first token", limits.between_tokens_s)

    def used(self, model: str, num_ctx: int) -> None:
        """Note that the model is loaded."""
        with self._lock:
            self._used[model, num_ctx] = time.monotonic()

    def forget(self, model: str) -> None:
        """Note that the model may be loaded no more."""
        with self._lock:
            for known in [known for known in self._used if known[0] == model]:
                del self._used[known]
