"""What the language-model room speaks of: endpoints, messages, options, replies. Does nothing by itself."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from labd.llm.errors import Stopped

Api = Literal["ollama", "openai"]
Server = Literal["ollama", "lmstudio", "llamacpp", "vllm", "openai"]
"""What a server turned out to be, by what it answers; `openai` where it is none of the others."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits. There is no limit on the whole of a reply."""

    connect_s: float = 3.0
    load_s: float = 900.0
    """For a model to load; a client that gives up earlier makes Ollama begin again."""
    first_token_s: float = 120.0
    """For the first token of a model that is loaded."""
    first_token_s_per_1k: float = 15.0
    """More of that for each 1,000 tokens of the prompt, which have to be read first."""
    between_tokens_s: float = 90.0
    look_s: float = 5.0
    """For one question about an endpoint's state."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server of language models. Travels to workers as JSON, but for `key`, which each machine reads itself.

    Attributes:
        name: as people know it.
        url: without a slash at the end.
        node_id: the Ray node whose GPUs it fills; empty: none of the lab's.
        only_from: the Ray node from which alone it can be reached; empty: from everywhere.
        slots: requests that it works on at once for each model; ``None``: what the server says, or 1.
        max_loaded: models that it may hold at once.
        gpus: the devices of its node that it may fill; ``None``: all.
        key_env, key_file, key_credential: where its API key is found; never the key itself.

    """

    name: str
    url: str
    api: Api = "ollama"
    node_id: str = ""
    only_from: str = ""
    slots: int | None = None
    max_loaded: int = 1
    gpus: tuple[int, ...] | None = None
    key_env: str = ""
    key_file: str = ""
    key_credential: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    pull: bool = False
    keep_alive_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Options:
    """How a reply is to be made. `None` leaves the server's own default, but for what labd always sends.

    Attributes:
        model: its name; `name_of` gives the one form in which names are compared.
        num_ctx: the context that is needed, in tokens. A model that is loaded with more is used as it is.
        num_predict: tokens of the reply, thinking included, at most.
        think: whether a model that can do so thinks first; a level where it knows levels.
        allow_cut: take a reply that `num_predict` cut short.
        more: further options, by the server's own names.

    """

    model: str
    num_ctx: int = 8192
    num_predict: int = 2048
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | Literal["low", "medium", "high"] = False
    allow_cut: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply, and where it came from.

    Attributes:
        text: without the thinking.
        value: the validated object where a schema was asked for: of the pydantic class, or JSON data.
        prompt_tokens, output_tokens: as the server counted them; 0 where it did not say.
        load_s, prompt_s, output_s: what the server says of its time; 0 where it does not.
        first_token_s, wall_s: measured here, the wait for a slot not included.
        digest: of the model's weights, where the server tells; else empty.
        num_ctx: what the request was sent with.
        attempts: requests that were begun for it, on all endpoints, repairs not counted.
        repairs: rounds in which the model was shown its error.

    """

    text: str
    model: str
    endpoint: str
    done_reason: str
    value: Any = None
    thinking: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    load_s: float = 0.0
    prompt_s: float = 0.0
    output_s: float = 0.0
    first_token_s: float = 0.0
    wall_s: float = 0.0
    digest: str = ""
    num_ctx: int = 0
    node_id: str = ""
    attempts: int = 1
    repairs: int = 0

    def provenance(self) -> dict[str, Any]:
        """Give as JSON data what a record should keep of where the reply came from, its text left out."""
        names = (
            *("model", "digest", "endpoint", "node_id", "num_ctx", "done_reason"),
            *("prompt_tokens", "output_tokens", "attempts", "repairs"),
        )
        seconds = ("load_s", "prompt_s", "output_s", "first_token_s", "wall_s")
        return {
            **{name: getattr(self, name) for name in names},
            **{name: round(getattr(self, name), 4) for name in seconds},
        }


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that an endpoint has.

    Attributes:
        digest: of its weights; empty where the server does not tell.
        size_bytes: on disk; 0 where it does not tell.
        max_ctx: the longest context that it was trained for; 0 where it does not tell.
        remote: it runs elsewhere, whatever the endpoint says.

    """

    name: str
    digest: str = ""
    size_bytes: int = 0
    max_ctx: int = 0
    remote: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is in an endpoint's memory, with the context that was allocated for it (0: not told)."""

    name: str
    num_ctx: int = 0
    vram_bytes: int = 0


Health = Literal["up", "loading", "busy", "down", "misconfigured"]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an endpoint showed.

    Attributes:
        health: ``loading``: it answers, but a load keeps it from telling what is loaded. ``busy``: it answers
            that it has too much to do. ``misconfigured``: it refuses us, or is no server of this kind.
        models: what it has; ``None`` where it could not be asked.
        loaded: what is in memory; ``None`` where it could not be asked or does not tell.
        slots: how many requests at once, where the server tells.
        problem, fix: empty where all is well.

    """

    health: Health
    server: Server | None = None
    version: str = ""
    models: tuple[ModelInfo, ...] | None = None
    loaded: tuple[LoadedModel, ...] | None = None
    slots: int | None = None
    problem: str = ""
    fix: str = ""


def name_of(model: str) -> str:
    """Give a model's name in the form in which names are compared: lower case, with its tag.

    Source: Ollama takes names without regard to case and ``llama3.2`` for ``llama3.2:latest``.
    """
    name = model.strip().lower()
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def holder_of(task_id: str, attempt: int) -> str:
    """Give the name by which a broker knows an attempt at a task."""
    return f"{task_id}#{attempt}"


def is_remote_name(model: str) -> bool:
    """Say whether a name alone says that the model runs at Ollama's makers: a tag ``cloud`` or ``…-cloud``."""
    return name_of(model).rsplit(":", 1)[-1].endswith("cloud")


class Cancel:
    """A caller's way to give up on a reply from another thread: what waits for it raises `Stopped` at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._hooks: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Whether the caller has given up."""
        return self._cancelled

    def cancel(self) -> None:
        """Give up; nothing happens the second time."""
        with self._lock:
            self._cancelled = True
            hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook()

    def attach(self, hook: Callable[[], None]) -> None:
        """Have `hook` called, once, when the caller gives up; at once if that has been so."""
        with self._lock:
            if not self._cancelled:
                self._hooks.append(hook)
                return
        hook()

    def detach(self, hook: Callable[[], None]) -> None:
        """Have `hook` called no more."""
        with self._lock:
            if hook in self._hooks:
                self._hooks.remove(hook)

    def check(self) -> None:
        """Pass unless the caller has given up.

        Raises:
            Stopped: it has.

        """
        if self._cancelled:
            raise Stopped("the reply is not wanted any more")


class Chat(Protocol):
    """Whoever can have a model reply: a pool of endpoints, or one endpoint."""

    def chat(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        schema: type[BaseModel] | Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
        on_start: Callable[[], None] | None = None,
        following: int = 0,
    ) -> Reply:
        """Give the whole reply; with a `schema`, `Reply.value` is an object that fits it.

        `on_start` is called each time that the request has got a slot and begins. `following`: how many like it
        the caller will ask for after it; so many may be worth one more endpoint's load of the model.

        Raises:
            ModelError: there is none; the class says why.

        """
