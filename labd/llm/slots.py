"""The slots and GPUs that one process has from the broker, and the threads that wait for more.

A slot that was got is kept for the next request, and given back when none came for a moment or when the
broker asks for it: so a long batch asks the broker hardly ever.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from labd.llm.errors import EndpointDown, ModelError, Stopped
from labd.llm.model import Cancel, Endpoint, name_of
from labd.llm.wireform import Call, endpoint_from_data, error_from_data

_LINGER_S = 0.2
_LISTEN_S = 10.0
_LINK_DELAY_S = 1.0
_LINK_TIMEOUT_S = 120.0


@dataclass(slots=True)
class Slot:
    """The right to have one request at a time at one endpoint.

    Attributes:
        lease: the broker's name for it.
        model: as the endpoint names it.
        num_ctx: what requests are to be sent with.
        digest: of the model's weights, where the endpoint tells.
        used: seconds of the requests that the broker has not heard of yet.

    """

    lease: str
    endpoint: Endpoint
    model: str
    num_ctx: int
    digest: str
    used: list[float] = field(default_factory=list)
    free_since_s: float = 0.0
    recalled: bool = False


@dataclass(frozen=True, slots=True)
class GpuLease:
    """GPUs for an experiment; `freed_bytes` of their memory were given back for it, or will be in a moment."""

    lease: str
    freed_bytes: int


@dataclass(slots=True)
class _Waiter:
    """A thread that waits, and how it asked."""

    ask: Callable[[], dict[str, Any]]
    slot: Slot | None = None
    gpus: GpuLease | None = None
    error: ModelError | None = None

    @property
    def waits(self) -> bool:
        return self.slot is None and self.gpus is None and self.error is None


class Slots:
    """What a holder has and wants. Any thread may call; the arguments are those of `labd.llm.pool.Pool`."""

    def __init__(
        self, call: Call, holder: str, node_id: str, notes: Callable[[str], None]
    ) -> None:
        self._call, self._holder, self._node_id, self._notes = call, holder, node_id, notes
        self._tickets = itertools.count(1)
        self._news = threading.Condition()
        self._waiters: dict[str, _Waiter] = {}
        self._busy: dict[str, Slot] = {}
        self._free: deque[Slot] = deque()
        self._started = False
        self._closed = False

    # --- slots

    def get(
        self,
        model: str,
        num_ctx: int,
        tried: frozenset[str],
        cancel: Cancel,
        following: int = 0,
    ) -> Slot:
        """Wait for a slot, however long that takes; at another endpoint than those `tried`, if there is one.

        `following`: as in `labd.llm.model.Chat`.

        Raises:
            ModelError: there will be none. Stopped: `cancel` was used, or this is closed.

        """
        with self._news:
            # The last first: those that are not needed stay free, and go back to the broker.
            for slot in reversed(self._free):
                fits = name_of(slot.model) == name_of(model) and slot.num_ctx >= num_ctx
                if fits and slot.endpoint.name not in tried:
                    self._free.remove(slot)
                    self._busy[slot.lease] = slot
                    return slot
        facts = {
            "model": model,
            "num_ctx": num_ctx,
            "tried": sorted(tried),
            "following": following,
        }
        found = self._wait("want", facts, cancel)
        if found.slot is None:
            raise Stopped("the reply is not wanted any more")
        return found.slot

    def release(self, slot: Slot, took_s: float | None) -> None:
        """Keep a slot for the next request; or give it back at once, where its request failed (`took_s` is ``None``)."""
        with self._news:
            del self._busy[slot.lease]
            if took_s is not None:
                slot.used.append(took_s)
            keep = not (slot.recalled or took_s is None or self._closed)
            if keep:
                slot.free_since_s = time.monotonic()
                self._free.append(slot)
                if len(self._free) == 1:
                    self._news.notify_all()  # for the thread that gives back what stays free
        if not keep:
            self._give_back([slot])

    def failed(self, slot: Slot, code: str) -> None:
        """Tell the broker that an endpoint failed."""
        told = {"endpoint": slot.endpoint.name, "model": slot.model, "code": code}
        self._send(lambda: self._call("failed", holder=self._holder, **told))

    # --- GPUs

    def get_gpus(self, indices: Sequence[int], limit_s: float, cancel: Cancel) -> GpuLease:
        """Wait for GPUs of this node.

        Raises:
            Stopped: `cancel` was used, or this is closed.

        """
        facts = {"gpus": list(indices), "limit_s": limit_s}
        found = self._wait("want_gpus", facts, cancel)
        if found.gpus is None:
            raise Stopped("the GPUs are not wanted any more")
        return found.gpus

    def give_back_gpus(self, lease: GpuLease) -> None:
        """Need the GPUs no longer."""
        back = [{"id": lease.lease, "used": [], "keep": False}]
        self._send(lambda: self._call("give_back", holder=self._holder, leases=back))

    def close(self) -> None:
        """Give everything back; who waits is told that it is over."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        if self._started:
            self._send(lambda: self._call("bye", holder=self._holder))

    # --- waiting

    def _wait(self, method: str, facts: Mapping[str, Any], cancel: Cancel) -> _Waiter:
        ticket = f"{self._holder}/{next(self._tickets)}"
        who = {"holder": self._holder, "node_id": self._node_id, "ticket": ticket}
        waiter = _Waiter(lambda: self._call(method, **who, **facts))
        with self._news:
            self._waiters[ticket] = waiter
            self._start()
        cancel.attach(self._wake)
        try:
            self._send(waiter.ask)
            with self._news:
                while waiter.waits and not (cancel.cancelled or self._closed):
                    self._news.wait()
        finally:
            cancel.detach(self._wake)
            with self._news:
                del self._waiters[ticket]  # what is granted from here on is given back
        if waiter.error is not None:
            raise waiter.error
        if waiter.waits:
            self._send(lambda: self._call("drop", holder=self._holder, ticket=ticket))
            raise Stopped("it is not wanted any more")
        return waiter

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for target, name in ((self._listen, "models"), (self._tidy, "slots")):
                threading.Thread(target=target, name=name, daemon=True).start()

    # --- talking to the broker

    def _send(self, call: Callable[[], dict[str, Any]]) -> None:
        """Call the broker; where it is out of reach, `_listen` puts right later what it has not heard."""
        with suppress(OSError):
            self._take(call())

    def _give_back(self, slots: Sequence[Slot], *, keep: bool = False) -> None:
        leases = [{"id": slot.lease, "used": slot.used, "keep": keep} for slot in slots]
        for slot in slots:
            slot.used = []
        self._send(lambda: self._call("give_back", holder=self._holder, leases=leases))

    def _listen(self) -> None:
        lost_s = 0.0
        while not self._closed:
            with self._news:
                held = [*self._busy.values(), *self._free]
                tickets = list(self._waiters)
            leases = [[slot.lease, slot.endpoint.name, name_of(slot.model)] for slot in held]
            facts = {"leases": leases, "tickets": tickets, "timeout_s": _LISTEN_S}
            try:
                news = self._call("listen", holder=self._holder, **facts)
            except OSError as error:
                if lost_s > _LINK_TIMEOUT_S:
                    self._give_up(str(error))
                time.sleep(_LINK_DELAY_S)
                lost_s += _LINK_DELAY_S
                continue
            lost_s = 0.0
            self._take(news)
            for note in news["notes"]:
                self._notes(note)
            self._ask_again(news["unknown"])
            self._give_back([slot for slot in held if slot.used], keep=True)

    def _ask_again(self, tickets: Sequence[str]) -> None:
        for ticket in tickets:
            with self._news:
                waiter = self._waiters.get(ticket)
                waits = waiter is not None and waiter.waits
            if waiter is not None and waits:
                self._send(waiter.ask)

    def _give_up(self, reason: str) -> None:
        with self._news:
            for waiter in self._waiters.values():
                if waiter.waits:
                    waiter.error = EndpointDown(
                        f"the lab's broker of models is out of reach: {reason}"
                    )
            self._news.notify_all()

    def _take(self, news: Mapping[str, Any]) -> None:
        unwanted: list[str] = []
        with self._news:
            for grant in news.get("grants", ()):
                if waiter := self._waiting(grant["ticket"]):
                    waiter.slot = _slot(grant)
                    self._busy[waiter.slot.lease] = waiter.slot
                else:
                    unwanted.append(grant["lease"])
            for grant in news.get("gpu_grants", ()):
                if waiter := self._waiting(grant["ticket"]):
                    waiter.gpus = GpuLease(grant["lease"], grant["freed_bytes"])
                else:
                    unwanted.append(grant["lease"])
            for refusal in news.get("refusals", ()):
                if waiter := self._waiting(refusal["ticket"]):
                    waiter.error = error_from_data(refusal["error"])
            back = [slot for lease in news.get("recalls", ()) for slot in self._recalled(lease)]
            self._news.notify_all()
        if unwanted:
            leases = [{"id": lease, "used": [], "keep": False} for lease in unwanted]
            self._send(lambda: self._call("give_back", holder=self._holder, leases=leases))
        if back:
            self._give_back(back)

    def _waiting(self, ticket: str) -> _Waiter | None:
        waiter = self._waiters.get(ticket)
        return waiter if waiter is not None and waiter.waits else None

    def _recalled(self, lease: str) -> list[Slot]:
        if lease in self._busy:
            self._busy[lease].recalled = True
        free = [slot for slot in self._free if slot.lease == lease]
        for slot in free:
            self._free.remove(slot)
        return free

    def _tidy(self) -> None:
        """Give back slots that nobody has used for a moment."""
        while True:
            with self._news:
                while not (self._free or self._closed):
                    self._news.wait()
                if self._closed:
                    return
                before_s = time.monotonic() - _LINGER_S
                old = [slot for slot in self._free if slot.free_since_s <= before_s]
                for slot in old:
                    self._free.remove(slot)
            if old:
                self._give_back(old)
            time.sleep(_LINGER_S)


def _slot(grant: Mapping[str, Any]) -> Slot:
    return Slot(
        grant["lease"],
        endpoint_from_data(grant["endpoint"]),
        grant["model"],
        grant["num_ctx"],
        grant["digest"],
    )
