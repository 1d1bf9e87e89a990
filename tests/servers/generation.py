"""What an Ollama node does with one chat: options, overflow, thinking, and the numbers at the end.

Two ways, as in Ollama of August 2026. *Rendered*: the node makes the prompt, and cuts one that is too long to
about half the window without a word. *Native*: llama.cpp makes the prompt, and one too long is an error (400).
Before either, whole messages are dropped, oldest first. `truncate: false` makes overflow an error in both.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.servers import upstream
from tests.servers.catalogue import Model
from tests.servers.scheduler import Runner, RunnerOptions
from tests.servers.web import ClientLeft, Failure, Hangup

_RUNNER_OPTIONS = frozenset(
    {"num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
)
_INTEGERS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict"}
    | {"num_keep", "seed", "num_predict", "top_k", "repeat_last_n"}
)
_FLOATS = frozenset(
    {"top_p", "min_p", "typical_p", "temperature"}
    | {"repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": -1}
_NUM_KEEP = 4
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_LONGEST_S = 3e8
_EFFORTS = ("low", "medium", "high", "max")

Message = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A piece of the reply."""

    content: str = ""
    thinking: str = ""


@dataclass(frozen=True)
class End:
    """The end of the reply; `numbers` holds counts, and durations in nanoseconds."""

    reason: str
    numbers: dict[str, int] = field(default_factory=dict)


def keep_alive_s(value: Any) -> float | None:
    """Read `keep_alive`: a number of seconds, or a duration such as ``5m``; negative is for ever.

    Raises:
        Failure: 400, it is neither.

    """
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = _duration_s(value)
    else:
        raise Failure(400, f"Unsupported type: '{type(value).__name__}'")
    return math.inf if seconds < 0 else min(seconds, _LONGEST_S)


def _duration_s(text: str) -> float:
    unsigned = text.lstrip("+-")
    parts = re.findall(r"(\d+\.?\d*)(h|ms|m|us|µs|ns|s)", unsigned)
    if unsigned != "0" and (not parts or unsigned != "".join(n + unit for n, unit in parts)):
        bare = re.fullmatch(r"[\d.]+", unsigned)
        raise Failure(400, f'time: {"missing unit in" if bare else "invalid"} duration "{text}"')
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    return -seconds if text.startswith("-") else seconds


def checked_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Give the request's options, of which unknown ones are ignored.

    Raises:
        Failure: 500, one has the wrong type.

    """
    options = {key: v for key, v in (body.get("options") or {}).items() if v is not None}
    for name in options.keys() & (_INTEGERS | _FLOATS):
        if isinstance(options[name], bool) or not isinstance(options[name], int | float):
            wanted = "integer" if name in _INTEGERS else "float32"
            raise Failure(500, f'option "{name}" must be of type {wanted}')
    return options


def runner_options(body: Mapping[str, Any], model: Model, default_ctx: int) -> RunnerOptions:
    """Give what of a request's options decides how its model is loaded."""
    options = checked_options(body)
    num_ctx = max(int(options.get("num_ctx") or default_ctx), 4)
    others = {name: options[name] for name in _RUNNER_OPTIONS & options.keys()}
    if body.get("shift") is False:
        others["shift"] = False
    return RunnerOptions(min(num_ctx, model.context_length), tuple(sorted(others.items())))


def check_request(body: Mapping[str, Any], model: Model) -> None:
    """Refuse what can be refused before a model is loaded.

    Raises:
        Failure: 400, `think` is no such value or the model cannot; 500, `format` is neither "json" nor a schema.

    """
    think, wanted = body.get("think"), body.get("format")
    if think is not None and not isinstance(think, bool) and think not in _EFFORTS:
        raise Failure(
            400,
            f'invalid think value: "{think}" (must be "high", "medium", "low", "max", true, or false)',
        )
    if think and not model.thinking:
        raise Failure(400, f'"{body.get("model")}" does not support thinking')
    if wanted not in (None, "", "json") and not isinstance(wanted, dict):
        raise Failure(
            500, f'invalid format: {wanted!r}; expected "json" or a valid JSON Schema object'
        )


class Generation:
    """One chat on one runner, whose slot it holds."""

    def __init__(
        self, runner: Runner, body: Mapping[str, Any], messages: list[Message], hangup: Hangup
    ) -> None:
        self._runner, self._body, self._hangup = runner, body, hangup
        self._num_ctx = runner.options.num_ctx
        self._truncate = body.get("truncate") is not False
        self._messages = self._newest(messages) if self._truncate else messages

    def run(self, seconds_per_token: float) -> Iterator[Part | End]:
        """Give the reply piece by piece, and its end.

        Raises:
            Failure: overflow (400), a bad schema (400), or the runner died (500).
            ClientLeft: the client left.

        """
        native = self._runner.model.native and not self._body.get("raw")
        for piece in self._native() if native else self._rendered():
            if isinstance(piece, Part) and seconds_per_token:
                self._pause(seconds_per_token)
            yield piece

    def _pause(self, seconds: float) -> None:
        if self._hangup.wait(seconds):
            raise ClientLeft
        # A runner that was killed meanwhile must not go on talking from what it said before.
        process = self._runner.process
        if process is None or not process.alive:
            raise Failure(500, upstream.DIED)

    def _sampling(self) -> dict[str, Any]:
        options = {**_DEFAULTS, **checked_options(self._body)}
        most = 10 * self._num_ctx
        asked = int(options.pop("num_predict", -1))
        options["n_predict"] = most if asked < 0 else min(asked, most)
        options["n_keep"] = int(options.pop("num_keep", _NUM_KEEP))
        known = (_INTEGERS | _FLOATS | {"n_predict", "n_keep", "stop"}) - _RUNNER_OPTIONS
        return {name: value for name, value in options.items() if name in known - {"num_ctx"}}

    def _native(self) -> Iterator[Part | End]:
        ask = {**self._sampling(), "messages": self._messages}
        if wanted := self._body.get("format"):
            schema = {"type": "json_schema", "json_schema": {"name": "reply", "schema": wanted}}
            ask["response_format"] = {"type": "json_object"} if wanted == "json" else schema
        if self._runner.model.thinking:
            ask["chat_template_kwargs"] = {"enable_thinking": self._body.get("think") is not False}
        for event in self._events("/v1/chat/completions", ask):
            for choice in event.get("choices", []):
                delta = choice["delta"]
                part = Part(delta.get("content") or "", delta.get("reasoning_content") or "")
                if part != Part():
                    yield part
                if choice["finish_reason"]:
                    cut = choice["finish_reason"] == "length"
                    yield End("length" if cut else "stop", _numbers(event))

    def _rendered(self) -> Iterator[Part | End]:
        ask = {**self._sampling(), "prompt": self._prompt()}
        if wanted := self._body.get("format"):
            ask["json_schema"] = {"type": "object"} if wanted == "json" else wanted
        for event in self._events("/completion", ask):
            if event.get("content"):
                yield Part(event["content"])
            if event.get("stop"):
                cut = event.get("stop_type") == "limit"
                yield End("length" if cut else "stop", _numbers(event))

    def _events(self, path: str, ask: dict[str, Any]) -> Iterator[Any]:
        for event in upstream.events(self._runner.url, path, ask, self._hangup):
            if "error" in event:
                raise Failure(500, str(event["error"].get("message", event["error"])))
            yield event

    def _prompt(self) -> str | list[int]:
        """Give the prompt's text, or its tokens where the middle had to go."""
        text: str = self._body["prompt"] if self._body.get("raw") else self._render(self._messages)
        tokens = self._tokens(text)
        if not self._truncate or len(tokens) < self._num_ctx:
            return text
        keep = min(_NUM_KEEP + 1, self._num_ctx - 1)
        length = self._num_ctx - max((self._num_ctx - keep) // 2, 1)
        return tokens[:keep] + tokens[len(tokens) - (length - keep) :]

    def _newest(self, messages: list[Message]) -> list[Message]:
        """Leave out whole messages, oldest first, until the rest fits; system messages and the last one stay."""
        for first in range(len(messages)):
            system = [m for m in messages[:first] if m.get("role") == "system"]
            kept = system + messages[first:]
            last = first == len(messages) - 1
            if last or len(self._tokens(self._render(kept))) <= self._num_ctx:
                return kept
        return messages

    def _render(self, messages: list[Message]) -> str:
        reply = upstream.ask(self._runner.url, "/apply-template", {"messages": messages})
        return str(reply["prompt"])

    def _tokens(self, text: str) -> list[int]:
        ask = {"content": text, "add_special": True, "parse_special": True}
        tokens: list[int] = upstream.ask(self._runner.url, "/tokenize", ask)["tokens"]
        return tokens


def _numbers(event: Mapping[str, Any]) -> dict[str, int]:
    timings = event.get("timings") or {}
    return {
        "prompt_eval_count": timings.get("cache_n", 0) + timings.get("prompt_n", 0),
        "prompt_eval_duration": int(timings.get("prompt_ms", 0) * 1e6),
        "eval_count": timings.get("predicted_n", 0),
        "eval_duration": int(timings.get("predicted_ms", 0) * 1e6),
    }
