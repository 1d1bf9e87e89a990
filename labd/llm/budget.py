"""Prompts that fit: how many tokens a text takes, and what is left out when not everything has room."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from labd.llm.errors import ContextOverflow, RequestRefused
from labd.llm.model import Message, Options
from labd.text import head_and_tail

_START_BYTES_PER_TOKEN = 2.5
"""Before anything is known. English prose has about 4, program text 3, tables of numbers 2."""
_MOST_BYTES_PER_TOKEN = 12.0
"""More than that no text has on average that people or programs write, runs of blanks aside."""
_LEARN_FROM_BYTES = 400
"""In a shorter prompt the tokens of the chat template weigh too much."""
_REMEMBERED = 32
_ENOUGH = 5
_TOKENS_PER_MESSAGE = 8
"""What a chat template puts around a message."""
_LEAST_CHARACTERS = 200
_JOINT = "\n\n"


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
        size_bytes = max(int(tokens * self._low), 0)
        # The product may have been rounded up to a whole number, of which `estimate` would make one token more.
        return size_bytes - 1 if self.estimate(size_bytes) > max(tokens, 0) else size_bytes


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt.

    Attributes:
        priority: the higher, the longer it stays.
        shrink: whether it is left out as a whole, or may lose its middle.
        required: it stays whatever happens.

    """

    name: str
    text: str
    priority: int = 0
    shrink: Literal["whole", "head_and_tail"] = "whole"
    role: Literal["system", "user", "assistant"] = "user"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits.

    Attributes:
        messages: the parts in their order; neighbours of one role are one message.
        tokens: what it is estimated to take.
        dropped: what was left out: a part's name and which share of it, from 0 to 1.

    """

    messages: tuple[Message, ...]
    tokens: int
    dropped: tuple[tuple[str, float], ...] = ()

    @property
    def text(self) -> str:
        """All of it as one text."""
        return _JOINT.join(message.content for message in self.messages)


def prompt_room(options: Options) -> int:
    """Give the tokens that a prompt may take: the context less the reply.

    Raises:
        RequestRefused: there are none.

    """
    room = options.num_ctx - max(options.num_predict, 0)
    if room <= 0:
        raise RequestRefused(
            f"a reply of {options.num_predict} tokens leaves no room for a prompt in a context of {options.num_ctx}",
            where=options.model,
            fix="Lower num_predict, or raise num_ctx up to what the model was trained for",
        )
    return room


def fit(parts: Sequence[Part], budget_tokens: int, rate: TokenRate) -> Fitted:
    """Make a prompt of the parts that takes at most so many tokens.

    What has the lowest priority goes first, and of equals the earlier. The same parts, budget and rate give the
    same prompt.

    Raises:
        ContextOverflow: what has to stay does not fit, or nothing is left.

    """
    kept = {index: part.text for index, part in enumerate(parts) if part.text}
    dropped: list[tuple[str, float]] = []
    order = sorted(
        (index for index in kept if not parts[index].required),
        key=lambda index: (parts[index].priority, index),
    )
    for index in order:
        over = -_spare_bytes(parts, kept, budget_tokens, rate)
        if over <= 0:
            break
        text = kept.pop(index)
        if parts[index].shrink == "head_and_tail":
            shorter = _shorten(text, size_bytes(text) - over)
            if shorter:
                kept[index] = shorter
        lost = size_bytes(text) - size_bytes(kept.get(index, ""))
        dropped.append((parts[index].name, lost / size_bytes(text)))
    messages = _messages(parts, kept)
    tokens = _tokens(messages, rate)
    if not messages or tokens > budget_tokens:
        raise ContextOverflow(
            f"what has to be in the prompt takes about {tokens} tokens, and there is room for {budget_tokens}",
            where="prompt",
            fix="Raise num_ctx, lower num_predict, or shorten the prompt",
        )
    return Fitted(messages, tokens, tuple(dropped))


def size_bytes(text: str) -> int:
    """Count the bytes of a text in UTF-8."""
    return len(text.encode(errors="replace"))


def _messages(parts: Sequence[Part], kept: Mapping[int, str]) -> tuple[Message, ...]:
    messages: list[Message] = []
    for index in sorted(kept):
        role, text = parts[index].role, kept[index]
        if messages and messages[-1].role == role:
            messages[-1] = Message(role, f"{messages[-1].content}{_JOINT}{text}")
        else:
            messages.append(Message(role, text))
    return tuple(messages)


def _tokens(messages: Sequence[Message], rate: TokenRate) -> int:
    size = sum(size_bytes(message.content) for message in messages)
    return rate.estimate(size) + _TOKENS_PER_MESSAGE * len(messages)


def _spare_bytes(
    parts: Sequence[Part], kept: Mapping[int, str], budget_tokens: int, rate: TokenRate
) -> int:
    """Give how many bytes could be added; below zero, how many are too many."""
    messages = _messages(parts, kept)
    room = rate.bytes_for(budget_tokens - _TOKENS_PER_MESSAGE * len(messages))
    return room - sum(size_bytes(message.content) for message in messages)


def _shorten(text: str, most_bytes: int) -> str:
    """Give the text without its middle, in at most so many bytes; nothing where too little would be left."""
    limit = len(text) * most_bytes // max(size_bytes(text), 1)
    while limit >= _LEAST_CHARACTERS:
        shorter = head_and_tail(text, limit)
        if size_bytes(shorter) <= most_bytes:
            return shorter
        limit = limit * 9 // 10 - 1
    return ""
