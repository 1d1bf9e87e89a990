"""The one interface to a server of language models, whichever API it speaks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from labd.llm.base import PullProgress
from labd.llm.budget import TokenRate
from labd.llm.model import Cancel, Endpoint, Look, Message, Options, Reply, Timeouts
from labd.llm.ollama import OllamaClient
from labd.llm.openai import OpenAIClient


class Client(Protocol):
    """One endpoint. Safe for threads. What can go wrong is a `ModelError`, whose class says what."""

    @property
    def where(self) -> str:
        """The endpoint as errors name it: its name and its URL without credentials."""

    @property
    def url(self) -> str:
        """The endpoint's URL without credentials."""

    def chat(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        schema: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
        on_first: Callable[[], None] | None = None,
    ) -> Reply:
        """Give the whole reply; `schema` is sent along, the reply not checked against it."""

    def look(self) -> Look:
        """Say what state the endpoint is in; never raises for what the server does."""

    def max_ctx(self, model: str) -> int:
        """Give the longest context that can be asked for, in tokens; 0 where the server does not say."""

    def load(
        self,
        model: str,
        num_ctx: int,
        *,
        more: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        """Have the model in memory, or raise. `more`: the same further options that chats will have."""

    def unload(self, model: str, *, within_s: float = 120.0, cancel: Cancel | None = None) -> None:
        """Have the model out of memory, or raise."""

    def pull(
        self,
        model: str,
        on_progress: Callable[[PullProgress], None] | None = None,
        *,
        cancel: Cancel | None = None,
    ) -> None:
        """Have the model on the endpoint's disk, or raise."""

    def rate(self, model: str) -> TokenRate:
        """Give what is known of the model's tokens; it learns with each reply."""

    def close(self) -> None:
        """Close the connections that are not in use."""


def connect(endpoint: Endpoint, timeouts: Timeouts | None = None) -> Client:
    """Give a client of the endpoint; nothing is sent yet.

    Raises:
        ConfigError: its key, URL or headers can't be used.

    """
    kind = OllamaClient if endpoint.api == "ollama" else OpenAIClient
    return kind(endpoint, timeouts or Timeouts())
