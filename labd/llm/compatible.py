"""What an OpenAI-compatible server is and has. These servers agree on the chat and on nothing else.

Which one it is shows in what it says, not in its status: LM Studio answers 200 to paths that it does not know.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from labd.llm.base import BaseClient, PullProgress, count, health_of, mapping
from labd.llm.errors import (
    EndpointFailed,
    EndpointMisconfigured,
    ModelError,
    ModelMissing,
    RequestRefused,
)
from labd.llm.model import (
    Cancel,
    Endpoint,
    LoadedModel,
    Look,
    ModelInfo,
    Options,
    Server,
    Timeouts,
    name_of,
)
from labd.llm.wire import Patience

_OWNERS: Mapping[str, Server] = {
    "llamacpp": "llamacpp",
    "vllm": "vllm",
    "library": "ollama",
    "organization_owner": "lmstudio",
    "organization-owner": "lmstudio",
}
"""`owned_by` of a model in /v1/models. Source: what these servers answer, 2026."""
_NO_MODEL = re.compile(
    r"model_not_found|model.*(does not exist|not found|not loaded)|invalid model identifier",
    re.IGNORECASE | re.DOTALL,
)
_NO_PATH = "Unexpected endpoint"


class CompatibleServer(BaseClient):
    """All of a client of such a server but the chat."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts) -> None:
        if endpoint.url.endswith("/v1"):
            # People write the url of a hosted API with this part, that of a server of their own without.
            endpoint = replace(endpoint, url=endpoint.url.removesuffix("/v1"))
        super().__init__(endpoint, timeouts)
        self._server: Server | None = None
        self._windows: dict[str, int] = {}

    # -- what is there

    def look(self) -> Look:
        """Say what state the endpoint is in. Never raises for what the server does; some seconds at most."""
        try:
            models = self._models()
        except ModelError as error:
            if "Loading model" in error.what:
                # Source: llama.cpp answers 503 with these words until its model is loaded.
                return Look(health="loading", server="llamacpp")
            return Look(health=health_of(error), problem=error.what, fix=error.fix)
        seen = Look(health="up", server=self._server, models=models)
        if self._server == "ollama":
            return replace(
                seen,
                health="misconfigured",
                problem="this is Ollama, whose OpenAI-compatible API drops num_ctx",
                fix="Set the endpoint's api: ollama",
            )
        try:
            return self._closer(seen)
        except ModelError as error:
            return replace(seen, health=health_of(error), problem=error.what, fix=error.fix)

    def _closer(self, seen: Look) -> Look:
        if self._server == "lmstudio":
            models, loaded = self._lmstudio_models()
            return replace(seen, models=models, loaded=loaded)
        if self._server == "llamacpp":
            props = mapping(self._wire.ask("GET", "/props"))
            build = props.get("build_info")
            return replace(
                seen,
                version=self._faults.quote(build, 60) if isinstance(build, str) else "",
                loaded=self._all_loaded(seen),
                slots=count(props, "total_slots") or None,
            )
        if self._server == "vllm":
            version = mapping(self._wire.ask("GET", "/version")).get("version")
            return replace(
                seen, version=self._faults.quote(str(version), 60), loaded=self._all_loaded(seen)
            )
        return seen

    def _all_loaded(self, seen: Look) -> tuple[LoadedModel, ...]:
        return tuple(
            LoadedModel(model.name, self._windows.get(name_of(model.name), 0))
            for model in seen.models or ()
        )

    def _models(self, cancel: Cancel | None = None) -> tuple[ModelInfo, ...]:
        """Ask for the models, and find out by the way which server this is and what contexts it has."""
        found = mapping(self._wire.ask("GET", "/v1/models", cancel=cancel))
        data = found.get("data")
        if not isinstance(data, list):
            if _NO_PATH in str(found.get("error")):
                raise self._hides_its_models()
            raise self._faults.no_api("what an OpenAI-compatible /v1/models does not say")
        entries = [
            each for each in data if isinstance(each, dict) and isinstance(each.get("id"), str)
        ]
        for each in entries:
            window = count(each, "max_model_len") or count(mapping(each.get("meta")), "n_ctx")
            if window:
                self._windows[name_of(each["id"])] = window
        self._server = self._server or self._identify(entries)
        return tuple(
            ModelInfo(
                name=each["id"],
                size_bytes=count(mapping(each.get("meta")), "size"),
                max_ctx=self._windows.get(name_of(each["id"]), 0),
            )
            for each in entries
        )

    def _identify(self, entries: Sequence[Mapping[str, Any]]) -> Server:
        for each in entries:
            if count(each, "max_model_len"):
                return "vllm"
            server = _OWNERS.get(str(each.get("owned_by")))
            if server is not None:
                return server
        with suppress(ModelError):
            self._lmstudio_models()
            return "lmstudio"
        return "openai"

    def _hides_its_models(self) -> EndpointMisconfigured:
        # Source: LM Studio's bug tracker: this is also its answer where a token is wanted and none came.
        return EndpointMisconfigured(
            "LM Studio does not give its models; it does so where it wants an API token, too",
            where=self.where,
            fix="Set key_env or key_file of the endpoint, and check its url",
        )

    def _lmstudio_models(self) -> tuple[tuple[ModelInfo, ...], tuple[LoadedModel, ...]]:
        models, loaded = [], []
        for each in self._lmstudio_entries():
            models.append(
                ModelInfo(
                    name=each["key"],
                    size_bytes=count(each, "size_bytes"),
                    max_ctx=count(each, "max_context_length"),
                )
            )
            for instance in _instances(each):
                window = count(mapping(instance.get("config")), "context_length")
                loaded.append(LoadedModel(each["key"], window))
                self._windows[name_of(each["key"])] = window
        return tuple(models), tuple(loaded)

    def _lmstudio_entries(self) -> list[dict[str, Any]]:
        # Source: LM Studio's documentation of its REST API v1 (0.4, 2026).
        entries = mapping(self._wire.ask("GET", "/api/v1/models")).get("models")
        if not isinstance(entries, list):
            raise self._faults.no_api("what LM Studio's /api/v1/models does not say")
        return [
            each for each in entries if isinstance(each, dict) and isinstance(each.get("key"), str)
        ]

    def max_ctx(self, model: str) -> int:
        """Give the longest context that can be asked for, in tokens; 0 where the server does not say.

        llama.cpp and vLLM fix it at their start; LM Studio can load up to what the model was trained for.

        Raises:
            ModelMissing: the endpoint does not have the model.
            ModelError: it does not answer.

        """
        models = self._models()
        if self._server == "lmstudio":
            models, _ = self._lmstudio_models()
        for each in models:
            if name_of(each.name) == name_of(model):
                return each.max_ctx
        raise self._missing(model)

    # -- loading and unloading

    def load(
        self,
        model: str,
        num_ctx: int,
        *,
        more: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        """Have the model in memory, or raise; only LM Studio loads at a wish, all others hold what they hold.

        Raises:
            ModelError: it could not be loaded.
            Stopped: `cancel` was called.

        """
        self.max_ctx(model)
        if self._server == "lmstudio" and not self._lmstudio_has(model, num_ctx):
            answer = self._wire.ask(
                "POST",
                "/api/v1/models/load",
                {"model": model, "context_length": num_ctx, **(more or {})},
                patience=Patience(self._timeouts.load_s, f"the load of {model}"),
                judge=self._judge_for(Options(model=model)),
                cancel=cancel,
            )
            if "error" in mapping(answer):
                raise self._mid_stream(answer["error"], json.dumps(answer), Options(model=model))
            self._windows[name_of(model)] = num_ctx
        self._warmth.used(name_of(model), 0)

    def _lmstudio_has(self, model: str, num_ctx: int) -> bool:
        _, loaded = self._lmstudio_models()
        return any(
            name_of(each.name) == name_of(model) and each.num_ctx >= num_ctx for each in loaded
        )

    def unload(self, model: str, *, within_s: float = 120.0, cancel: Cancel | None = None) -> None:
        """Have the model out of memory, or raise.

        Raises:
            RequestRefused: this server can't do that.
            EndpointSilent: it is still there after `within_s`.
            ModelError: the endpoint does not answer.
            Stopped: `cancel` was called.

        """
        if self._server is None:
            self._models()
        if self._server != "lmstudio":
            raise RequestRefused(
                f"the server does not unload models, so {model} stays",
                where=self.where,
                fix="Stop the server to free its memory",
            )
        self._warmth.forget(name_of(model))
        for each in self._lmstudio_entries():
            for instance in _instances(each) if name_of(each["key"]) == name_of(model) else ():
                self._wire.ask(
                    "POST",
                    "/api/v1/models/unload",
                    {"instance_id": instance.get("id")},
                    patience=Patience(within_s, f"the unload of {model}"),
                    judge=self._judge_for(Options(model=model)),
                    cancel=cancel,
                )
        self._await_unloaded(model, lambda: self._lmstudio_models()[1], within_s, cancel)

    def pull(
        self,
        model: str,
        on_progress: Callable[[PullProgress], None] | None = None,  # noqa: ARG002
        *,
        cancel: Cancel | None = None,  # noqa: ARG002
    ) -> None:
        """Pass if the model is there; none of these servers is asked to download one.

        Raises:
            ModelMissing: it is not there.
            ModelError: the endpoint does not answer.

        """
        self.max_ctx(model)

    # -- errors

    def _judge(self, status: int, said: str, body: str, options: Options) -> ModelError | None:
        if status in {400, 413, 500}:
            overflow = self._overflow(said, body, options)
            if overflow is not None:
                return overflow
        if status in {400, 404} and _NO_MODEL.search(f"{said} {body}"):
            return self._missing(options.model)
        if status in {400, 422}:
            return self._refused(said)
        return None

    def _mid_stream(self, error: object, body: str, options: Options) -> ModelError:
        said = error if isinstance(error, str) else str(mapping(error).get("message", error))
        if _NO_PATH in said:
            return self._faults.no_api(f"{self._faults.quote(said)}")
        overflow = self._overflow(said, body, options)
        if overflow is not None:
            return overflow
        if _NO_MODEL.search(said):
            return self._missing(options.model)
        return EndpointFailed(
            f"the server broke off the reply: {self._faults.quote(said)}",
            where=self.where,
            fix="See the server's log; often the memory was not enough",
        )

    def _missing(self, model: str) -> ModelMissing:
        fixes: Mapping[Server, str] = {
            "lmstudio": f"Run there: lms get {model}",
            "ollama": f"Run there: ollama pull {model}",
            "vllm": f"Start the server with it: vllm serve {model}",
            "llamacpp": f"Start the server with it, and with --alias {model}",
        }
        return ModelMissing(
            f"the endpoint does not have the model {model}",
            where=self.where,
            fix=fixes.get(self._server or "openai", "Check the model's name"),
        )


def _instances(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = entry.get("loaded_instances")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
