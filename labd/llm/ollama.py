"""A client of Ollama's own API.

Not its OpenAI-compatible one, which drops num_ctx, keep_alive and truncate.
Source: Ollama's source code of August 2026 (0.33) and its API documentation.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from labd.llm.base import (
    Asked,
    BaseClient,
    Counts,
    PullProgress,
    count,
    health_of,
    mapping,
    seconds,
)
from labd.llm.draft import Draft, max_reply_bytes
from labd.llm.errors import (
    EndpointBusy,
    EndpointDown,
    EndpointFailed,
    EndpointMisconfigured,
    EndpointSilent,
    ModelError,
    ModelMissing,
)
from labd.llm.model import (
    Cancel,
    Endpoint,
    LoadedModel,
    Look,
    ModelInfo,
    Options,
    Timeouts,
    is_remote_name,
    name_of,
)
from labd.llm.wire import Exchange, Patience

_DIGESTS_LAST_S = 300.0
_NO_DIGEST_LASTS_S = 5.0
_MAX_PULL_BYTES = 2**30
"""Of progress lines, some 150 bytes each."""
_MAX_LAYERS = 1000
_FAULT_OF_THE_REQUEST = re.compile(r"option \"|invalid format|failed to parse (grammar|schema)")
_NO_MODEL = re.compile(r"model .*not found")
_BUSY = "maximum pending requests"


class OllamaClient(BaseClient):
    """Talks with one Ollama server. Safe for threads; opens connections as needed and keeps them."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts) -> None:
        super().__init__(endpoint, timeouts)
        self._trained: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._digests_at = float("-inf")

    # -- chat

    def _asked_ctx(self, options: Options) -> int:
        return options.num_ctx

    def _window(self, options: Options) -> int:
        # llama.cpp rounds a context up to a multiple of 256; Ollama does not go beyond the model's own.
        window = -(-options.num_ctx // 256) * 256
        with self._lock:
            trained = self._trained.get(name_of(options.model), 0)
        return min(window, trained) if trained else window

    def _converse(self, asked: Asked, patience: Patience, draft: Draft) -> Counts:
        with self._wire.exchange(
            "POST",
            "/api/chat",
            self._chat_body(asked),
            patience=patience,
            judge=self._judge_for(asked.options),
            cancel=asked.cancel,
            max_bytes=max_reply_bytes(asked.options),
        ) as exchange:
            return _counts(self._read_chat(exchange, draft, asked.options))

    def _chat_body(self, asked: Asked) -> dict[str, Any]:
        options = asked.options
        given = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "seed": options.seed,
            "stop": list(options.stop) or None,
        }
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [{"role": each.role, "content": each.content} for each in asked.messages],
            "stream": True,
            "think": options.think,
            "truncate": False,
            "keep_alive": self.endpoint.keep_alive_s,
            "options": {
                **options.more,
                **{name: value for name, value in given.items() if value is not None},
                "num_ctx": options.num_ctx,
                "num_predict": options.num_predict,
            },
        }
        if asked.schema is not None:
            body["format"] = asked.schema
        return body

    def _read_chat(self, exchange: Exchange, draft: Draft, options: Options) -> dict[str, Any]:
        for line in exchange.lines():
            part = self._object(exchange, line)
            if "error" in part:
                raise self._mid_stream(part["error"], options)
            message = part.get("message")
            if isinstance(message, dict):
                content = self._piece(message.get("content"))
                thinking = self._piece(message.get("thinking"))
                if content or thinking:
                    draft.add(exchange, content, thinking)
            if part.get("done") is True:
                return part
        raise self._broken_off("the reply ended without its last line (done), so it is not whole")

    # -- errors

    def _judge(self, status: int, said: str, body: str, options: Options) -> ModelError | None:
        if status == 404:
            return self._missing(options.model) if _NO_MODEL.match(said) else None
        if status in {400, 500}:
            overflow = self._overflow(said, body, options)
            if overflow is not None:
                return overflow
        if status == 400 and "does not support thinking" in said:
            return self._cannot_think(options)
        if status == 400 or (status == 500 and _FAULT_OF_THE_REQUEST.search(said)):
            return self._refused(said)
        return None

    def _mid_stream(self, error: object, options: Options) -> ModelError:
        said = error if isinstance(error, str) else json.dumps(error)
        overflow = self._overflow(said, said, options)
        if overflow is not None:
            return overflow
        if "Unexpected endpoint" in said:
            return self._is_lmstudio()
        if _BUSY in said:
            return EndpointBusy(
                f"the server has too much to do: {self._faults.quote(said)}",
                where=self.where,
                fix="Try later, or give the endpoint fewer slots",
            )
        return EndpointFailed(
            f"the server broke off the reply: {self._faults.quote(said)}",
            where=self.where,
            fix="See the server's log; often the memory was not enough",
        )

    def _missing(self, model: str) -> ModelMissing:
        return ModelMissing(
            f"the endpoint does not have the model {model}",
            where=self.where,
            fix=f"Run there: ollama pull {model}",
        )

    def _is_lmstudio(self) -> EndpointMisconfigured:
        return EndpointMisconfigured(
            "this is LM Studio, not Ollama",
            where=self.where,
            fix="Set the endpoint's api: openai",
        )

    # -- what is there

    def look(self) -> Look:
        """Say what state the endpoint is in. Never raises for what the server does; some seconds at most."""
        try:
            version = self._version()
        except ModelError as error:
            return Look(health=health_of(error), problem=error.what, fix=error.fix)
        seen = Look(health="up", server="ollama", version=version)
        try:
            seen = replace(seen, models=self._models())
        except EndpointSilent as error:
            return replace(seen, health="busy", problem=error.what, fix=error.fix)
        except ModelError as error:
            return replace(seen, health=health_of(error), problem=error.what, fix=error.fix)
        try:
            return replace(seen, loaded=self.loaded())
        except EndpointSilent:
            # Ollama holds the answer back for as long as a model loads.
            return replace(seen, health="loading")
        except ModelError as error:
            return replace(seen, health=health_of(error), problem=error.what, fix=error.fix)

    def _version(self) -> str:
        found = mapping(self._wire.ask("GET", "/api/version"))
        version = found.get("version")
        if isinstance(version, str):
            return self._faults.quote(version, 60)
        if "Unexpected endpoint" in str(found.get("error")):
            raise self._is_lmstudio()
        raise self._faults.no_api("what Ollama's /api/version does not say")

    def _models(self) -> tuple[ModelInfo, ...]:
        models = tuple(_model_of(each) for each in self._listing("/api/tags"))
        with self._lock:
            self._digests = {name_of(model.name): model.digest for model in models}
            self._trained |= {name_of(model.name): model.max_ctx for model in models}
            self._digests_at = time.monotonic()
        return models

    def loaded(self) -> tuple[LoadedModel, ...]:
        """Give the models in memory.

        Raises:
            EndpointSilent: among other things, a model is being loaded.
            ModelError: the endpoint does not tell.

        """
        return tuple(
            LoadedModel(each["name"], count(each, "context_length"), count(each, "size_vram"))
            for each in self._listing("/api/ps")
        )

    def _listing(self, path: str) -> list[dict[str, Any]]:
        models = mapping(self._wire.ask("GET", path)).get("models")
        if not isinstance(models, list):
            raise self._faults.no_api(f"what Ollama's {path} does not say")
        return [
            each for each in models if isinstance(each, dict) and isinstance(each.get("name"), str)
        ]

    def _digest(self, model: str) -> str:
        with self._lock:
            known = self._digests.get(name_of(model), "")
            age_s = time.monotonic() - self._digests_at
        if age_s < (_DIGESTS_LAST_S if known else _NO_DIGEST_LASTS_S):
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
            known = self._trained.get(name_of(model), 0)
        if known:
            return known
        found = self._wire.ask(
            "POST", "/api/show", {"model": model}, judge=self._judge_for(Options(model=model))
        )
        info = mapping(mapping(found).get("model_info"))
        length = count(info, f"{info.get('general.architecture')}.context_length")
        with self._lock:
            self._trained[name_of(model)] = length
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
            "options": {**(more or {}), "num_ctx": num_ctx},
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
        options = Options(model=model)
        body = {"model": model, "messages": [], "stream": True, "keep_alive": 0}
        self._warmth.forget(name_of(model))
        self._ask_done(body, options, self._timeouts.look_s, f"the unload of {model}", cancel)
        self._await_unloaded(model, self.loaded, within_s, cancel)

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
        limit_s = self._timeouts.load_s
        with self._wire.exchange(
            "POST",
            "/api/pull",
            {"model": model, "stream": True},
            patience=Patience(limit_s, f"progress in pulling {model}", limit_s),
            judge=self._judge_for(Options(model=model)),
            cancel=cancel,
            max_bytes=_MAX_PULL_BYTES,
        ) as exchange:
            for progress in self._read_pull(exchange, model):
                if on_progress is not None:
                    on_progress(progress)

    def _read_pull(self, exchange: Exchange, model: str) -> Iterable[PullProgress]:
        layers: dict[str, tuple[int, int]] = {}
        for line in exchange.lines():
            part = self._object(exchange, line)
            if "error" in part:
                raise self._pull_failed(model, str(part["error"]))
            exchange.progress(f"progress in pulling {model}")
            status, digest = str(part.get("status", "")), part.get("digest")
            if isinstance(digest, str) and len(layers) < _MAX_LAYERS:
                layers[digest] = (count(part, "completed"), count(part, "total"))
            done, total = (sum(numbers) for numbers in zip((0, 0), *layers.values(), strict=True))
            yield PullProgress(self._faults.quote(status, 80), done, total)
            if status == "success":
                return
        raise EndpointDown(
            f"the pull of {model} ended without success",
            where=self.where,
            fix=f"Try again, or run there: ollama pull {model}",
        )

    def _pull_failed(self, model: str, said: str) -> ModelError:
        if "file does not exist" in said or "not found" in said:
            return ModelMissing(
                f"{model} can't be pulled, there is no such model: {self._faults.quote(said)}",
                where=self.where,
                fix="Check the model's name",
            )
        return EndpointFailed(
            f"the pull of {model} failed: {self._faults.quote(said)}",
            where=self.where,
            fix="Check the machine's way to the internet and its free disk space",
        )


def _model_of(entry: Mapping[str, Any]) -> ModelInfo:
    digest = entry.get("digest")
    return ModelInfo(
        name=entry["name"],
        digest=digest if isinstance(digest, str) else "",
        size_bytes=count(entry, "size"),
        max_ctx=count(mapping(entry.get("details")), "context_length"),
        remote=bool(entry.get("remote_host") or entry.get("remote_model"))
        or is_remote_name(entry["name"]),
    )


def _counts(last: Mapping[str, Any]) -> Counts:
    reason = last.get("done_reason")
    return Counts(
        done_reason=reason if isinstance(reason, str) and reason else "stop",
        prompt_tokens=count(last, "prompt_eval_count"),
        output_tokens=count(last, "eval_count"),
        load_s=seconds(last, "load_duration", 1e9),
        prompt_s=seconds(last, "prompt_eval_duration", 1e9),
        output_s=seconds(last, "eval_duration", 1e9),
    )
