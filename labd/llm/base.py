"""What the clients of all APIs have in common: their connections, what they learn of models, their judgements."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labd.llm.budget import TokenRate
from labd.llm.draft import Draft, Warmth, prompt_bytes
from labd.llm.errors import (
    ContextOverflow,
    EndpointBusy,
    EndpointDown,
    EndpointMisconfigured,
    EndpointSilent,
    ModelError,
    RequestRefused,
)
from labd.llm.keys import read_key
from labd.llm.model import (
    Cancel,
    Endpoint,
    Health,
    LoadedModel,
    Message,
    Options,
    Reply,
    Timeouts,
    name_of,
)
from labd.llm.wire import Exchange, Judge, Patience, Wire

_POLL_S = 0.05
_POLL_MAX_S = 1.0
_OVERFLOW = re.compile(
    r"exceed_context_size|context_length_exceeded|context (length|size|window)|number of tokens to keep",
    re.IGNORECASE,
)
_NUMBERS = (
    # llama.cpp, also inside a string of Ollama's; vLLM and OpenAI.
    re.compile(r"n_prompt_tokens\\*\"\s*:\s*(?P<prompt>\d+).*?n_ctx\\*\"\s*:\s*(?P<window>\d+)"),
    re.compile(r"context length is (?P<window>\d+) tokens.*?(?P<prompt>\d+) (input )?tokens"),
)
_MOST_TOKENS_PER_BYTE = 2
_ROOM = 2**14
"""Tokens that a server may put around a prompt: its own instructions, and what it thinks unseen."""


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a download is; bytes of all layers that are known so far."""

    status: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server says of a whole reply; zero where it says nothing."""

    done_reason: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    load_s: float = 0.0
    prompt_s: float = 0.0
    output_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a reply."""

    messages: Sequence[Message]
    options: Options
    schema: Mapping[str, Any] | None
    cancel: Cancel | None


class BaseClient:
    """A client of one endpoint, whichever API that speaks. Safe for threads."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts) -> None:
        self.endpoint = endpoint
        self._timeouts = timeouts
        self._wire = Wire(endpoint, timeouts, read_key(endpoint))
        self._faults = self._wire.faults
        self._warmth = Warmth(timeouts, endpoint.keep_alive_s)
        self._lock = threading.Lock()
        self._rates: dict[str, TokenRate] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._faults.where})"

    @property
    def where(self) -> str:
        """The endpoint as errors name it: its name and its URL without credentials."""
        return self._faults.where

    @property
    def url(self) -> str:
        """The endpoint's URL without credentials."""
        return self._wire.url

    def close(self) -> None:
        """Close the connections that are not in use; those in use close at their end."""
        self._wire.close()

    def rate(self, model: str) -> TokenRate:
        """Give what is known of the model's tokens; it learns with each reply."""
        with self._lock:
            return self._rates.setdefault(name_of(model), TokenRate())

    # -- replies

    def chat(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        schema: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
        on_first: Callable[[], None] | None = None,
    ) -> Reply:
        """Give the whole reply to `messages`; `on_first` is called when it begins.

        Raises:
            ModelError: there is none; the class says why.
            Stopped: `cancel` was called.

        """
        if not messages:
            raise RequestRefused(
                "there are no messages",
                where=self.where,
                fix="Give the model something to reply to",
            )
        self._prepare(cancel)
        draft = Draft(self._wire, options, on_first)
        asked = Asked(messages, options, schema, cancel)
        name, num_ctx, size = (
            name_of(options.model),
            self._asked_ctx(options),
            prompt_bytes(messages),
        )
        patience = self._warmth.patience(name, num_ctx, self.rate(name).estimate(size))
        try:
            counts = self._converse(asked, patience, draft)
        except ModelError:
            self._warmth.forget(name)
            raise
        self._warmth.used(name, num_ctx)
        digest = self._digest(options.model)
        return self._reply(draft, counts, asked, size, digest)

    def _prepare(self, cancel: Cancel | None) -> None:
        """Find out what has to be known of the server before a chat."""

    def _asked_ctx(self, options: Options) -> int:
        """Give the context that a model is loaded with for a request; 0 where a request can't choose it."""
        raise NotImplementedError

    def _window(self, options: Options) -> int:
        """Give the context that a request had, in tokens; 0 where that is not known."""
        raise NotImplementedError

    def _converse(self, asked: Asked, patience: Patience, draft: Draft) -> Counts:
        """Send a request and take its reply into the draft."""
        raise NotImplementedError

    def _digest(self, model: str) -> str:  # noqa: ARG002
        """Give the digest of a model's weights; empty where the server does not tell."""
        return ""

    def _reply(
        self, draft: Draft, counts: Counts, asked: Asked, size_bytes: int, digest: str
    ) -> Reply:
        """Judge a reply that ended well on the wire."""
        options = asked.options
        counts = _believed(counts, size_bytes + len(draft.text.encode(errors="replace")), options)
        self._check_context(counts, options, size_bytes)
        if counts.done_reason == "length":
            full = 0 < counts.output_tokens < options.num_predict
            draft.check_whole(counts.prompt_tokens, counts.output_tokens, context_full=full)
        self.rate(options.model).learn(size_bytes, counts.prompt_tokens)
        return Reply(
            text=draft.text,
            thinking=draft.thinking,
            model=options.model,
            endpoint=self.endpoint.name,
            done_reason=counts.done_reason,
            prompt_tokens=counts.prompt_tokens,
            output_tokens=counts.output_tokens,
            load_s=counts.load_s,
            prompt_s=counts.prompt_s,
            output_s=counts.output_s,
            first_token_s=draft.first_s if draft.first_s is not None else draft.wall_s,
            wall_s=draft.wall_s,
            digest=digest,
            num_ctx=options.num_ctx,
            node_id=self.endpoint.node_id,
        )

    def _check_context(self, counts: Counts, options: Options, size_bytes: int) -> None:
        window = self._window(options)
        prompt, output = counts.prompt_tokens, counts.output_tokens
        # The last token of a reply needs no room in the context.
        if window and prompt + output > window + 1:
            raise ContextOverflow(
                f"the reply ran past the context: {prompt} tokens of prompt and {output} of reply are more"
                f" than its {window}, so that the beginning was forgotten",
                where=self.where,
                fix="Raise num_ctx, shorten the prompt, or lower num_predict",
            )
        rate = self.rate(options.model)
        least = rate.at_least(size_bytes)
        # Where all of it would have fitted nothing was cut: old servers do not count what they had cached.
        if 0 < prompt < least and rate.estimate(size_bytes) > (window or options.num_ctx):
            raise ContextOverflow(
                f"the server cut the prompt: it read {prompt} tokens of {size_bytes} bytes, which are at"
                f" least {least} tokens",
                where=self.where,
                fix="Raise num_ctx, or shorten the prompt",
            )

    # -- errors

    def _overflow(self, said: str, body: str, options: Options) -> ContextOverflow | None:
        """Give the error for a prompt that is too long, if that is what the server says."""
        if not (_OVERFLOW.search(said) or _OVERFLOW.search(body)):
            return None
        numbers = overflow_numbers(body) or overflow_numbers(said)
        sizes = (
            f"the prompt has {numbers[0]} tokens, the context {numbers[1]}"
            if numbers
            else f"the prompt does not fit: {self._faults.quote(said)}"
        )
        return ContextOverflow(
            f"{sizes} (num_ctx is {options.num_ctx})",
            where=self.where,
            fix="Raise num_ctx, or shorten the prompt",
        )

    def _cannot_think(self, options: Options) -> RequestRefused:
        return RequestRefused(
            f"{options.model} can't think, and think is {options.think!r}",
            where=self.where,
            fix="Set think: false, or use a model that can",
        )

    def _refused(self, said: str) -> RequestRefused:
        return RequestRefused(
            f"the server refuses the request: {self._faults.quote(said)}",
            where=self.where,
            fix="Check the options, the schema and the model's name",
        )

    def _broken_off(self, what: str) -> EndpointDown:
        return EndpointDown(
            what,
            where=self.where,
            fix="See the server's log; the process that runs the model may have died",
        )

    def _object(self, exchange: Exchange, line: bytes) -> dict[str, Any]:
        """Read one object of a stream."""
        try:
            found = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            if exchange.unended and not line.lstrip().startswith(b"<"):
                raise self._broken_off("the reply ended in the middle of a line") from error
            found = self._wire.parse(line)
        if not isinstance(found, dict):
            raise self._faults.failed("sent what is no JSON object", line)
        return found

    def _piece(self, value: object) -> str:
        """Give a piece of text from a stream; nothing for null."""
        if isinstance(value, str):
            return value
        if value is None:
            return ""
        raise self._faults.failed("sent a message whose content is no text")

    # -- waiting

    def _await_unloaded(
        self,
        model: str,
        loaded: Callable[[], Iterable[LoadedModel]],
        within_s: float,
        cancel: Cancel | None,
    ) -> None:
        until = time.monotonic() + within_s
        pause_s = _POLL_S
        while self._holds(model, loaded):
            if time.monotonic() > until:
                raise EndpointSilent(
                    f"{model} is still in memory {within_s:g} s after it was to be unloaded",
                    where=self.where,
                    fix="A request may still run on it; else restart the server",
                )
            pause(pause_s, cancel)
            pause_s = min(2 * pause_s, _POLL_MAX_S)

    def _holds(self, model: str, loaded: Callable[[], Iterable[LoadedModel]]) -> bool:
        try:
            return any(name_of(each.name) == name_of(model) for each in loaded())
        except EndpointSilent:
            # Ollama holds this answer back while another model loads.
            return True

    def _judge_for(self, options: Options) -> Judge:
        return lambda status, said, body: self._judge(status, said, body, options)

    def _judge(self, status: int, said: str, body: str, options: Options) -> ModelError | None:
        raise NotImplementedError


def overflow_numbers(said: str) -> tuple[int, int] | None:
    """Give the tokens of the prompt and of the context from an overflow error, however often it was wrapped.

    Source: llama.cpp's ``exceed_context_size_error`` has ``n_prompt_tokens`` and ``n_ctx``; Ollama hands it on as
    a string within its own; vLLM and OpenAI write a sentence.
    """
    for pattern in _NUMBERS:
        found = pattern.search(said)
        if found is not None:
            return int(found["prompt"]), int(found["window"])
    return None


def _believed(counts: Counts, size_bytes: int, options: Options) -> Counts:
    """Give the counts without those that no prompt and reply of so many bytes can have."""
    prompt, output = counts.prompt_tokens, counts.output_tokens
    return replace(
        counts,
        prompt_tokens=prompt if prompt <= _MOST_TOKENS_PER_BYTE * size_bytes + _ROOM else 0,
        # What a model thinks and does not show counts here, too.
        output_tokens=output
        if output <= _MOST_TOKENS_PER_BYTE * (size_bytes + options.num_predict) + _ROOM
        else 0,
    )


def count(mapping: Mapping[str, Any], name: str) -> int:
    """Give a whole number that a server sent; 0 where it sent none."""
    value = mapping.get(name)
    return value if type(value) is int and 0 <= value < 2**63 else 0


def seconds(mapping: Mapping[str, Any], name: str, per_second: float) -> float:
    """Give a duration that a server sent in its own unit; 0 where it sent none."""
    value = mapping.get(name)
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return max(float(value) / per_second, 0.0) if usable and value is not None else 0.0


def mapping(value: object) -> Mapping[str, Any]:
    """Give an object that a server sent; an empty one where it sent something else."""
    return value if isinstance(value, dict) else {}


def health_of(error: ModelError) -> Health:
    """Say what state an endpoint is in that answered with this error."""
    if isinstance(error, EndpointBusy):
        return "busy"
    return "misconfigured" if isinstance(error, EndpointMisconfigured) else "down"


def pause(duration_s: float, cancel: Cancel | None) -> None:
    """Wait; the end of a reply's use ends the wait.

    Raises:
        Stopped: `cancel` was called.

    """
    if cancel is None:
        time.sleep(duration_s)
        return
    woken = threading.Event()
    cancel.attach(woken.set)
    woken.wait(duration_s)
    cancel.detach(woken.set)
    cancel.check()
