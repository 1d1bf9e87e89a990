"""A client of Ollama's own API.

Not its OpenAI-compatible one, which drops num_ctx, keep_alive and truncate.
Source: Ollama's source code of August 2026 (0.33) and its API documentation.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labd.llm.budget import TokenRate
from labd.llm.draft import Draft, Warmth, max_reply_bytes, prompt_bytes
from labd.llm.errors import (
    ContextOverflow,
    EndpointBusy,
    EndpointDown,
    EndpointFailed,
    EndpointMisconfigured,
    EndpointSilent,
    ModelError,
    ModelMissing,
    RequestRefused,
)
from labd.llm.model import (
    Cancel,
    Endpoint,
    Health,
    LoadedModel,
    Look,
    Message,
    ModelInfo,
    Options,
    Reply,
    Timeouts,
    is_remote_name,
    name_of,
)
from labd.llm.wire import Exchange, Patience, Wire

_DIGESTS_LAST_S = 300.0
_UNLOAD_POLL_S = 0.05
_UNLOAD_POLL_MAX_S = 1.0
_OVERFLOW = re.compile(
    r"exceed_context_size|context_length_exceeded|context (length|size|window)|number of tokens to keep",
    re.IGNORECASE,
)
_FAULT_OF_THE_REQUEST = re.compile(r"\boption \"|invalid format|failed to parse (grammar|schema)")


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a download is; bytes of all layers that are known so far."""

    status: str
    done_bytes: int
    total_bytes: int


class OllamaClient:
    """Talks with one Ollama server. Safe for threads; opens connections as needed and keeps them."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, *, key: str = "") -> None:
        self.endpoint = endpoint
        self._timeouts = timeouts
        self._wire = Wire(endpoint, timeouts, key)
        self._warmth = Warmth(timeouts, endpoint.keep_alive_s)
        self._lock = threading.Lock()
        self._rates: dict[str, TokenRate] = {}
        self._max_ctx: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._digests_at = float("-inf")

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._wire.close()

    def rate(self, model: str) -> TokenRate:
        """Give what is known of the model's tokens; it learns with each reply."""
        with self._lock:
            return self._rates.setdefault(name_of(model), TokenRate())

    # -- chat

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
            raise RequestRefused("there are no messages", where=self._wire.where)
        size = prompt_bytes(messages)
        rate = self.rate(options.model)
        draft = Draft(self._wire, options, on_first)
        name = name_of(options.model)
        patience = self._warmth.patience(name, options.num_ctx, rate.estimate(size))
        try:
            with self._wire.exchange(
                "POST",
                "/api/chat",
                self._chat_body(messages, options, schema),
                patience=patience,
                judge=self._judge_for(options),
                cancel=cancel,
                max_bytes=max_reply_bytes(options),
            ) as exchange:
                last = self._read_chat(exchange, draft, options)
        except ModelError:
            self._warmth.forget(name)
            raise
        self._warmth.used(name, options.num_ctx)
        return self._reply(draft, last, options, size, rate)

    def _chat_body(
        self, messages: Sequence[Message], options: Options, schema: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        given = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "seed": options.seed,
            "stop": list(options.stop) or None,
        }
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [{"role": each.role, "content": each.content} for each in messages],
            "stream": True,
            "think": options.think,
            "truncate": False,
            "keep_alive": self.endpoint.keep_alive_s,
            "options": {
                "num_ctx": options.num_ctx,
                "num_predict": options.num_predict,
                **{name: value for name, value in given.items() if value is not None},
                **options.more,
            },
        }
        if schema is not None:
            body["format"] = schema
        return body

    def _read_chat(self, exchange: Exchange, draft: Draft, options: Options) -> dict[str, Any]:
        for part in self._objects(exchange):
            if "error" in part:
                raise self._mid_stream(part["error"], options)
            message = part.get("message")
            content, thinking = "", ""
            if isinstance(message, dict):
                content, thinking = message.get("content") or "", message.get("thinking") or ""
                if not isinstance(content, str) or not isinstance(thinking, str):
                    raise self._wire.failed("sent a message whose content is no text")
            if content or thinking:
                draft.add(exchange, content, thinking)
            if part.get("done") is True:
                return part
        raise EndpointDown(
            "the reply ended without its last line (done), so it is not whole",
            where=self._wire.where,
            fix="See the server's log; the model's process may have died",
        )

    def _objects(self, exchange: Exchange) -> "Sequence[dict[str, Any]] | Any":
        for line in exchange.lines():
            try:
                found = json.loads(line.decode())
            except (ValueError, RecursionError):
                found = self._unreadable(exchange, line)
            if not isinstance(found, dict):
                raise self._wire.failed("sent a line that is no JSON object", line)
            yield found

    def _unreadable(self, exchange: Exchange, line: bytes) -> Any:
        if exchange.unended and not line.lstrip().startswith(b"<"):
            raise EndpointDown(
                "the reply ended in the middle of a line",
                where=self._wire.where,
                fix="See the server's log; the model's process may have died",
            )
        return self._wire.parse(line)

    def _reply(
        self, draft: Draft, last: Mapping[str, Any], options: Options, size: int, rate: TokenRate
    ) -> Reply:
        prompt, output = _count(last, "prompt_eval_count"), _count(last, "eval_count")
        reason = last.get("done_reason")
        reason = reason if isinstance(reason, str) else ""
        self._check_context(options, size, rate, prompt, output)
        if reason == "length":
            draft.check_whole(output, context_full=output < options.num_predict)
        rate.learn(size, prompt)
        return Reply(
            text=draft.text,
            thinking=draft.thinking,
            model=options.model,
            endpoint=self.endpoint.name,
            done_reason=reason or "stop",
            prompt_tokens=prompt,
            output_tokens=output,
            load_s=_count(last, "load_duration") / 1e9,
            prompt_s=_count(last, "prompt_eval_duration") / 1e9,
            output_s=_count(last, "eval_duration") / 1e9,
            first_token_s=draft.first_s if draft.first_s is not None else draft.wall_s,
            wall_s=draft.wall_s,
            digest=self._digest(options.model),
            num_ctx=options.num_ctx,
            node_id=self.endpoint.node_id,
        )

    def _check_context(
        self, options: Options, size: int, rate: TokenRate, prompt: int, output: int
    ) -> None:
        # llama.cpp rounds a context up to a multiple of 256, and the last token needs no room in it.
        window = -(-options.num_ctx // 256) * 256
        if prompt + output > window + 1:
            raise ContextOverflow(
                f"the reply ran past the context: {prompt} tokens of prompt and {output} of reply are more"
                f" than num_ctx {options.num_ctx}, so that the beginning was forgotten",
                where=self._wire.where,
                fix="Raise num_ctx, shorten the prompt, or lower num_predict",
            )
        may_not_fit = rate.estimate(size) > options.num_ctx
        if prompt and may_not_fit and prompt < rate.at_least(size):
            raise ContextOverflow(
                f"the server cut the prompt: it read {prompt} tokens of {size} bytes, which are at least"
                f" {rate.at_least(size)} tokens (num_ctx {options.num_ctx})",
                where=self._wire.where,
                fix="Raise num_ctx, or shorten the prompt",
            )

    # -- errors

    def _judge_for(self, options: Options) -> Callable[[int, str], ModelError | None]:
        return lambda status, said: self._judge(status, said, options)

    def _judge(self, status: int, said: str, options: Options) -> ModelError | None:
        if status == 404:
            return (
                self._missing(options.model)
                if "not found" in said and "page" not in said
                else None
            )
        if status in {400, 500} and _OVERFLOW.search(said):
            return self._overflow(said, options)
        if status == 400 and "does not support thinking" in said:
            return RequestRefused(
                f"{options.model} can't think, and think is {options.think!r}",
                where=self._wire.where,
                fix="Set think: false, or use a model that can",
            )
        if status == 400 or (status == 500 and _FAULT_OF_THE_REQUEST.search(said)):
            return RequestRefused(
                f"the server refuses the request: {self._wire.quote(said)}",
                where=self._wire.where,
                fix="Check the options, the schema and the model's name",
            )
        return None

    def _mid_stream(self, error: object, options: Options) -> ModelError:
        said = error if isinstance(error, str) else json.dumps(error)
        if _OVERFLOW.search(said):
            return self._overflow(said, options)
        if "Unexpected endpoint" in said:
            return self._is_lmstudio()
        if "maximum pending requests" in said:
            return EndpointBusy(
                f"the server has too much to do: {self._wire.quote(said)}", where=self._wire.where
            )
        return EndpointFailed(
            f"the server broke off the reply: {self._wire.quote(said)}",
            where=self._wire.where,
            fix="See the server's log; often the memory was not enough",
        )

    def _missing(self, model: str) -> ModelMissing:
        return ModelMissing(
            f"the endpoint does not have the model {model}",
            where=self._wire.where,
            fix=f"Run there: ollama pull {model}",
        )

    def _overflow(self, said: str, options: Options) -> ContextOverflow:
        found = overflow_numbers(said)
        sizes = (
            f"the prompt has {found[0]} tokens, the context {found[1]}"
            if found
            else f"the prompt does not fit ({self._wire.quote(said)})"
        )
        return ContextOverflow(
            f"{sizes}; num_ctx is {options.num_ctx}",
            where=self._wire.where,
            fix="Raise num_ctx, or shorten the prompt",
        )

    def _is_lmstudio(self) -> EndpointMisconfigured:
        return EndpointMisconfigured(
            "this is LM Studio, not Ollama",
            where=self._wire.where,
            fix="Set the endpoint's api: openai",
        )

    # -- what is there

    def look(self) -> Look:
        """Say what state the endpoint is in. Never raises for what the server does; some seconds at most."""
        try:
            version = self._version()
        except ModelError as error:
            return Look(health=_health_of(error), problem=error.what, fix=error.fix)
        seen = Look(health="up", server="ollama", version=version)
        try:
            seen = replace(seen, models=self._models())
        except ModelError as error:
            return replace(seen, health=_health_of(error), problem=error.what, fix=error.fix)
        try:
            return replace(seen, loaded=self.loaded())
        except EndpointSilent:
            # Ollama holds the answer back for as long as a model loads.
            return replace(seen, health="loading")
        except ModelError as error:
            return replace(seen, health=_health_of(error), problem=error.what, fix=error.fix)

    def _version(self) -> str:
        found = self._wire.ask("GET", "/api/version")
        version = found.get("version") if isinstance(found, dict) else None
        if isinstance(version, str):
            return self._wire.quote(version, 60)
        if isinstance(found, dict) and "Unexpected endpoint" in str(found.get("error")):
            raise self._is_lmstudio()
        raise self._wire.no_api("what Ollama's /api/version does not say")

    def _models(self) -> tuple[ModelInfo, ...]:
        models = tuple(_model_of(each) for each in self._listing("/api/tags"))
        with self._lock:
            self._digests = {name_of(model.name): model.digest for model in models}
            self._digests_at = time.monotonic()
        return models

    def loaded(self) -> tuple[LoadedModel, ...]:
        """Give the models in memory.

        Raises:
            EndpointSilent: among other things, a model is being loaded.
            ModelError: the endpoint does not tell.

        """
        return tuple(
            LoadedModel(each["name"], _count(each, "context_length"), _count(each, "size_vram"))
            for each in self._listing("/api/ps")
        )

    def _listing(self, path: str) -> list[dict[str, Any]]:
        found = self._wire.ask("GET", path)
        models = found.get("models") if isinstance(found, dict) else None
        if not isinstance(models, list):
            raise self._wire.no_api(f"what Ollama's {path} does not say")
        return [
            each for each in models if isinstance(each, dict) and isinstance(each.get("name"), str)
        ]

    def _digest(self, model: str) -> str:
        with self._lock:
            known = self._digests.get(name_of(model), "")
            fresh = time.monotonic() - self._digests_at < _DIGESTS_LAST_S
        if known and fresh:
            return known
        try:
            self._models()
        except ModelError:
            # The reply is there; that the server does not say now whose it is makes it no worse.
            return known
        with self._lock:
            return self._digests.get(name_of(model), "")

    def max_ctx(self, model: str) -> int:
        """Give the longest context that the model was trained for, in tokens; 0 where the server does not say.

        Raises:
            ModelMissing: the endpoint does not have the model.
            ModelError: it does not answer.

        """
        with self._lock:
            if model in self._max_ctx:
                return self._max_ctx[model]
        found = self._wire.ask(
            "POST", "/api/show", {"model": model}, judge=self._judge_for(Options(model=model))
        )
        info = found.get("model_info") if isinstance(found, dict) else None
        info = info if isinstance(info, dict) else {}
        length = _count(info, f"{info.get('general.architecture')}.context_length")
        with self._lock:
            self._max_ctx[model] = length
        return length

    # -- loading and unloading

    def load(
        self,
        model: str,
        num_ctx: int,
        *,
        more: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        """Have the model in memory with that context, or raise. Giving up makes Ollama abandon the load.

        Raises:
            ModelError: it could not be loaded.
            Stopped: `cancel` was called.

        """
        options = Options(model=model, num_ctx=num_ctx)
        body = {
            "model": model,
            "messages": [],
            "stream": True,
            "keep_alive": self.endpoint.keep_alive_s,
            "options": {"num_ctx": num_ctx, **(more or {})},
        }
        self._ask_done(body, options, self._timeouts.load_s, f"the load of {model}", cancel)
        self._warmth.used(name_of(model), num_ctx)

    def unload(self, model: str, *, within_s: float = 120.0, cancel: Cancel | None = None) -> None:
        """Have the model out of memory, or raise. A request that it still works on is finished first.

        Raises:
            EndpointSilent: it is still there after `within_s`.
            ModelError: the endpoint does not answer.
            Stopped: `cancel` was called.

        """
        until = time.monotonic() + within_s
        options = Options(model=model)
        body = {"model": model, "messages": [], "stream": True, "keep_alive": 0}
        self._warmth.forget(name_of(model))
        self._ask_done(body, options, self._timeouts.look_s, f"the unload of {model}", cancel)
        pause_s = _UNLOAD_POLL_S
        while self._holds(model):
            if time.monotonic() > until:
                raise EndpointSilent(
                    f"{model} is still in memory {within_s:g} s after it was to be unloaded",
                    where=self._wire.where,
                    fix="A request may still run on it; else restart the server",
                )
            _pause(pause_s, cancel)
            pause_s = min(2 * pause_s, _UNLOAD_POLL_MAX_S)

    def _holds(self, model: str) -> bool:
        try:
            return any(name_of(each.name) == name_of(model) for each in self.loaded())
        except EndpointSilent:
            # Another model loads; what is in memory is told after that.
            return True

    def _ask_done(
        self,
        body: Mapping[str, Any],
        options: Options,
        limit_s: float,
        what: str,
        cancel: Cancel | None,
    ) -> None:
        with self._wire.exchange(
            "POST",
            "/api/chat",
            body,
            patience=Patience(limit_s, what, limit_s),
            judge=self._judge_for(options),
            cancel=cancel,
        ) as exchange:
            self._read_chat(exchange, Draft(self._wire, options), options)

    def pull(
        self,
        model: str,
        on_progress: Callable[[PullProgress], None] | None = None,
        *,
        cancel: Cancel | None = None,
    ) -> None:
        """Have the model on the endpoint's disk, or raise. What was downloaded before counts.

        Raises:
            ModelMissing: no such model is known where Ollama gets them.
            ModelError: the download failed; calling again goes on where it stopped.
            Stopped: `cancel` was called.

        """
        layers: dict[str, tuple[int, int]] = {}
        limit_s = self._timeouts.load_s
        with self._wire.exchange(
            "POST",
            "/api/pull",
            {"model": model, "stream": True},
            patience=Patience(limit_s, f"progress in pulling {model}", limit_s),
            judge=self._judge_for(Options(model=model)),
            cancel=cancel,
            max_bytes=2**30,
        ) as exchange:
            for part in self._objects(exchange):
                if "error" in part:
                    raise self._pull_failed(model, str(part["error"]))
                exchange.progress()
                status = str(part.get("status", ""))
                if status == "success":
                    return
                _note_layer(layers, part)
                if on_progress is not None:
                    done, total = (
                        (sum(each) for each in zip(*layers.values(), strict=True))
                        if layers
                        else (0, 0)
                    )
                    on_progress(PullProgress(self._wire.quote(status, 80), done, total))
        raise EndpointDown(
            f"the pull of {model} ended without success",
            where=self._wire.where,
            fix=f"Try again, or run there: ollama pull {model}",
        )

    def _pull_failed(self, model: str, said: str) -> ModelError:
        if "file does not exist" in said or "not found" in said:
            return ModelMissing(
                f"{model} can't be pulled, there is no such model: {self._wire.quote(said)}",
                where=self._wire.where,
                fix="Check the model's name",
            )
        return EndpointFailed(
            f"the pull of {model} failed: {self._wire.quote(said)}",
            where=self._wire.where,
            fix="Check the machine's way to the internet and its free disk space",
        )


def overflow_numbers(said: str) -> tuple[int, int] | None:
    """Give the prompt's and the context's tokens from an overflow error, however often it was wrapped as JSON.

    Source: llama.cpp's ``exceed_context_size_error`` has ``n_prompt_tokens`` and ``n_ctx``; Ollama hands it on as
    a string within its own.
    """
    numbers = [re.search(rf"n_{name}\\*\"\s*:\s*(\d+)", said) for name in ("prompt_tokens", "ctx")]
    if numbers[0] is None or numbers[1] is None:
        return None
    return int(numbers[0][1]), int(numbers[1][1])


def _model_of(entry: Mapping[str, Any]) -> ModelInfo:
    details = entry.get("details")
    digest = entry.get("digest")
    return ModelInfo(
        name=entry["name"],
        digest=digest if isinstance(digest, str) else "",
        size_bytes=_count(entry, "size"),
        max_ctx=_count(details, "context_length") if isinstance(details, dict) else 0,
        remote=bool(entry.get("remote_host") or entry.get("remote_model"))
        or is_remote_name(entry["name"]),
    )


def _note_layer(layers: dict[str, tuple[int, int]], part: Mapping[str, Any]) -> None:
    digest = part.get("digest")
    if isinstance(digest, str) and len(layers) < 1000:
        layers[digest] = (_count(part, "completed"), _count(part, "total"))


def _count(mapping: Mapping[str, Any], name: str) -> int:
    value = mapping.get(name)
    return value if type(value) is int and 0 <= value < 2**63 else 0


def _pause(seconds: float, cancel: Cancel | None) -> None:
    if cancel is None:
        time.sleep(seconds)
        return
    woken = threading.Event()
    cancel.attach(woken.set)
    woken.wait(seconds)
    cancel.detach(woken.set)
    cancel.check()


def _health_of(error: ModelError) -> Health:
    if isinstance(error, EndpointBusy):
        return "busy"
    return "misconfigured" if isinstance(error, EndpointMisconfigured) else "down"
