"""A worker's way to the lab's language models: slots from the broker, replies from the endpoints."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import BaseModel

from labd.errors import ConfigError
from labd.llm.client import Client, connect
from labd.llm.errors import EndpointMisconfigured, ModelError, Stopped
from labd.llm.model import Cancel, Endpoint, Message, Options, Reply, Timeouts
from labd.llm.slots import Slot, Slots
from labd.llm.structured import chat_structured
from labd.llm.vram import watching
from labd.llm.wireform import Call

_RETRY_DELAYS_S = (0.2, 1.0, 3.0, 5.0)
_MAX_TRIES = 5

Connect = Callable[[Endpoint, Timeouts], Client]


class Pool:
    """The lab's models, for one attempt at a task; a `labd.llm.model.Chat`. Any thread may call.

    Args:
        call: to the broker, see `labd.llm.wireform.Call`.
        holder: this attempt's name, unlike any other's.
        node_id: the Ray node that this process runs on.
        notes: gets an event's name and a short text on why requests wait, now and then; must not raise.

    """

    def __init__(
        self,
        call: Call,
        *,
        holder: str,
        node_id: str,
        timeouts: Timeouts | None = None,
        notes: Callable[[str, str], None] = lambda _event, _detail: None,
        connect: Connect = connect,
    ) -> None:
        self._slots = Slots(call, holder, node_id, notes)
        self._timeouts = timeouts or Timeouts()
        self._connect = connect
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}
        self._asks = 0

    @property
    def asks(self) -> int:
        """How many requests are under way or wait, those for GPUs counted until they are there."""
        return self._asks

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with self._lock:
            self._asks += 1
        try:
            yield
        finally:
            with self._lock:
                self._asks -= 1

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
        """Give the whole reply, from whichever endpoint has a slot for the model.

        Until the first token has come, a failure of an endpoint is tried elsewhere, some times.

        Raises:
            ModelError: there is no reply; the class says why.

        """
        how = _How(cancel or Cancel(), on_start, following)

        def ask(
            messages: Sequence[Message],
            options: Options,
            *,
            schema: Mapping[str, Any] | None = None,
            cancel: Cancel | None = None,
        ) -> Reply:
            del cancel  # it is in `how`
            return self._routed(messages, options, schema, how)

        with self._asking():
            if schema is None:
                return ask(messages, options)
            return chat_structured(ask, messages, options, schema, cancel=cancel)

    def _routed(
        self,
        messages: Sequence[Message],
        options: Options,
        schema: Mapping[str, Any] | None,
        how: "_How",
    ) -> Reply:
        tried: list[str] = []
        while True:
            slot = self._slots.get(
                options.model, options.num_ctx, frozenset(tried), how.cancel, how.following
            )
            name = slot.endpoint.name
            how.first.clear()
            began_s = time.monotonic()
            try:
                reply = self._ask(slot, messages, options, schema, how)
            except ModelError as error:
                if error.elsewhere and name in self._clients:
                    # Told first: the slot would go to the next request before the endpoint is known to be ill.
                    self._slots.failed(slot, error.code)
                answered = not (error.elsewhere or isinstance(error, Stopped))
                self._slots.release(slot, time.monotonic() - began_s if answered else None)
                if how.first.is_set() or not error.elsewhere or len(tried) + 1 >= _MAX_TRIES:
                    raise
                if name in tried:
                    how.pause(_RETRY_DELAYS_S[min(len(tried), len(_RETRY_DELAYS_S)) - 1])
                tried.append(name)
                continue
            except BaseException:
                self._slots.release(slot, None)
                raise
            self._slots.release(slot, reply.wall_s, reply.output_tokens)
            return replace(
                reply,
                endpoint=name,
                node_id=slot.endpoint.node_id,
                digest=slot.digest or reply.digest,
                num_ctx=slot.num_ctx,
                attempts=len(tried) + 1,
            )

    def _ask(
        self,
        slot: Slot,
        messages: Sequence[Message],
        options: Options,
        schema: Mapping[str, Any] | None,
        how: "_How",
    ) -> Reply:
        if how.on_start is not None:
            how.on_start()
        sent = replace(options, model=slot.model, num_ctx=slot.num_ctx)
        client = self._client(slot.endpoint)
        return client.chat(
            messages, sent, schema=schema, cancel=how.cancel, on_first=how.first.set
        )

    def _client(self, endpoint: Endpoint) -> Client:
        with self._lock:
            if endpoint.name not in self._clients:
                try:
                    self._clients[endpoint.name] = self._connect(endpoint, self._timeouts)
                except (
                    ConfigError
                ) as error:  # no fault of the endpoint's: this machine lacks its key
                    raise EndpointMisconfigured(
                        error.what, where=error.where, fix=error.fix
                    ) from error
            return self._clients[endpoint.name]

    @contextmanager
    def gpus(
        self, indices: Sequence[int], limit_s: float, cancel: Cancel | None = None
    ) -> Iterator[None]:
        """Have these GPUs of this node while the block runs: no model of the lab's endpoints fills them then.

        Waits for requests in flight, first come, first served, and until the memory is really free.
        `limit_s`: how long they are needed at most.

        Raises:
            Stopped: `cancel` was used while it waited.
            MemoryHeld: models were unloaded, and their memory did not become free.

        """
        with watching() as vram:
            with self._asking():
                lease = self._slots.get_gpus(indices, limit_s, cancel or Cancel())
            try:
                with self._asking():
                    vram.wait_until_freed(lease.freed_bytes)
                vram.close()
                yield
            finally:
                self._slots.give_back_gpus(lease)

    def close(self) -> None:
        """Give everything back; who waits is told that the task is over."""
        self._slots.close()
        for client in self._clients.values():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(slots=True)
class _How:
    """What belongs to one call of `Pool.chat`."""

    cancel: Cancel
    on_start: Callable[[], None] | None
    following: int
    first: threading.Event = field(default_factory=threading.Event)
    """Set when the first token has come."""

    def pause(self, seconds: float) -> None:
        """Wait, or end at once with `Stopped`."""
        over = threading.Event()
        self.cancel.attach(over.set)
        over.wait(seconds)
        self.cancel.detach(over.set)
        self.cancel.check()
