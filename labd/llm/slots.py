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
from functools import partial
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
        serves_ctx: the context that requests may ask for; more than `num_ctx` where a server holds one model for ever.
        used: seconds of the requests that the broker has not heard of yet, `tokens` what each was answered with.

    """

    lease: str
    endpoint: Endpoint
    model: str
    num_ctx: int
    digest: str
    serves_ctx: int
    used: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    free_since_s: float = 0.0
    recalled: bool = False


@dataclass(frozen=True, slots=True)
class GpuLease:
    """GPUs for an experiment; `freed_bytes` of their memory were given back for it, or will be in a moment."""

    lease: str
    freed_bytes: int


@dataclass(eq=False, slots=True)
class _Waiter:
    """A thread that waits. What `wish` it shares with others, any of their tickets serves."""

    method: str
    wish: Mapping[str, Any]
    done: threading.Event = field(default_factory=threading.Event)
    slot: Slot | None = None
    gpus: GpuLease | None = None
    error: ModelError | None = None

    def takes(self, slot: Slot) -> bool:
        """Say whether a slot is what it waits for."""
        wish = self.wish
        return (
            self.method == "want"
            and name_of(slot.model) == name_of(wish["model"])
            and slot.serves_ctx >= wish["num_ctx"]
            and slot.endpoint.name not in wish["tried"]
        )

    def like(self, other: "_Waiter") -> bool:
        """Say whether both wait for the same."""
        return (self.method, self.wish) == (other.method, other.wish)


class Slots:
    """What a holder has and wants. Any thread may call; the arguments are those of `labd.llm.pool.Pool`."""

    def __init__(
        self, call: Call, holder: str, node_id: str, notes: Callable[[str, str], None]
    ) -> None:
        self._call, self._holder, self._node_id, self._notes = call, holder, node_id, notes
        self._numbers = itertools.count(1)
        self._news = threading.Condition()
        self._queue: deque[_Waiter] = deque()
        self._tickets: dict[str, tuple[_Waiter, int]] = {}
        """What the broker was asked for, each by a waiter (and for how many that follow), for whoever wishes the same."""
        self._busy: dict[str, Slot] = {}
        self._free: deque[Slot] = deque()
        self._gpus: dict[str, tuple[Sequence[int], float]] = {}
        """What experiments have, by lease: the devices, and until when at most."""
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
        waiter = _Waiter("want", {"model": model, "num_ctx": num_ctx, "tried": sorted(tried)})
        self._wait(waiter, cancel, following)
        if waiter.slot is None:
            raise Stopped("the reply is not wanted any more")
        return waiter.slot

    def release(self, slot: Slot, took_s: float | None, tokens: int = 0) -> None:
        """Hand a slot to who waits for one like it, or keep it for a moment; give it back, where its request failed.

        `took_s` is ``None`` then. `tokens`: what the request was answered with.
        """
        with self._news:
            del self._busy[slot.lease]
            if took_s is not None:
                slot.used.append(took_s)
                slot.tokens.append(tokens)
            keep = not (slot.recalled or took_s is None or self._closed)
            if keep:
                self._place(slot)
            wanted = [] if keep else [asker for asker, _ in self._tickets.values()]
        if not keep:
            self._give_back([slot])
        for asker in wanted:
            self._drop_surplus(asker)

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
        waiter = _Waiter("want_gpus", {"gpus": list(indices), "limit_s": limit_s})
        self._wait(waiter, cancel)
        if waiter.gpus is None:
            raise Stopped("the GPUs are not wanted any more")
        return waiter.gpus

    def give_back_gpus(self, lease: GpuLease) -> None:
        """Need the GPUs no longer."""
        with self._news:
            self._gpus.pop(lease.lease, None)
        back = [{"id": lease.lease, "used": [], "tokens": [], "keep": False}]
        self._send(lambda: self._call("give_back", holder=self._holder, leases=back))

    def close(self) -> None:
        """Give everything back; who waits is told that it is over."""
        with self._news:
            self._closed = True
            for waiter in self._queue:
                waiter.done.set()
            self._news.notify_all()
        if self._started:
            self._send(lambda: self._call("bye", holder=self._holder))

    # --- waiting

    def _wait(self, waiter: _Waiter, cancel: Cancel, following: int = 0) -> None:
        ticket = ""
        with self._news:
            if self._take_free(waiter):
                return
            self._queue.append(waiter)
            self._start()
            if self._asked_for(waiter) < self._waiting_like(waiter):
                ticket = self._new_ticket(waiter, following)
            if self._closed:
                waiter.done.set()
        cancel.attach(waiter.done.set)
        try:
            if ticket:
                self._ask(ticket)
            waiter.done.wait()
        finally:
            cancel.detach(waiter.done.set)
            with self._news:
                if waiter in self._queue:
                    self._queue.remove(waiter)
        if (
            waiter.slot is None
        ):  # who got one comes again in most cases, and then waits with the same ticket
            self._drop_surplus(waiter)
        if waiter.error is not None:
            raise waiter.error

    def _take_free(self, waiter: _Waiter) -> bool:
        """Give a waiter a free slot if there is one for it; with the lock held."""
        # The last first: those that are not needed stay free, and go back to the broker.
        for slot in reversed(self._free):
            if waiter.takes(slot):
                self._free.remove(slot)
                self._busy[slot.lease] = slot
                waiter.slot = slot
                return True
        return False

    def _asked_for(self, waiter: _Waiter) -> int:
        return sum(waiter.like(asker) for asker, _ in self._tickets.values())

    def _waiting_like(self, waiter: _Waiter) -> int:
        return sum(waiter.like(other) for other in self._queue)

    def _new_ticket(self, waiter: _Waiter, following: int) -> str:
        ticket = f"{self._holder}/{next(self._numbers)}"
        self._tickets[ticket] = (waiter, following)
        return ticket

    def _drop_surplus(self, waiter: _Waiter) -> None:
        """Take back what was asked for and is not waited for any more, where nobody does."""
        with self._news:
            alike = [t for t, (asker, _) in self._tickets.items() if waiter.like(asker)]
            gone = [] if self._waiting_like(waiter) else alike
            for ticket in gone:
                del self._tickets[ticket]
        for ticket in gone:
            self._send(partial(self._call, "drop", holder=self._holder, ticket=ticket))

    def _place(self, slot: Slot) -> None:
        """Give a slot to the first that waits for one like it, or keep it free for a moment; with the lock held."""
        for waiter in self._queue:
            if waiter.takes(slot):
                self._queue.remove(waiter)
                self._hand(slot, waiter)
                return
        slot.free_since_s = time.monotonic()
        self._free.append(slot)
        self._news.notify_all()  # for the thread that gives back what stays free

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for target, name in ((self._listen, "models"), (self._tidy, "slots")):
                threading.Thread(target=target, name=name, daemon=True).start()

    def _hand(self, slot: Slot, waiter: _Waiter) -> None:
        self._busy[slot.lease] = slot
        waiter.slot = slot
        waiter.done.set()

    # --- talking to the broker

    def _send(self, call: Callable[[], dict[str, Any]]) -> None:
        """Call the broker; where it is out of reach, `_listen` puts right later what it has not heard."""
        with suppress(OSError):
            self._take(call())

    def _give_back(self, slots: Sequence[Slot], *, keep: bool = False) -> None:
        leases = [
            {"id": slot.lease, "used": slot.used, "tokens": slot.tokens, "keep": keep}
            for slot in slots
        ]
        for slot in slots:
            slot.used, slot.tokens = [], []
        self._send(lambda: self._call("give_back", holder=self._holder, leases=leases))

    def _ask(self, ticket: str) -> None:
        with self._news:
            waiter, following = self._tickets.get(ticket, (None, 0))
        if waiter is None:
            return
        who = {"holder": self._holder, "node_id": self._node_id, "ticket": ticket}
        more = {"following": following} if waiter.method == "want" else {}
        self._send(lambda: self._call(waiter.method, **who, **waiter.wish, **more))

    def _listen(self) -> None:
        heard_s = time.monotonic()
        while not self._closed:
            with self._news:
                held = [*self._busy.values(), *self._free]
                facts = self._facts(held)
            try:
                news = self._call("listen", holder=self._holder, timeout_s=_LISTEN_S, **facts)
            except OSError as error:
                if time.monotonic() - heard_s > _LINK_TIMEOUT_S:
                    self._give_up(str(error))
                time.sleep(_LINK_DELAY_S)
                continue
            heard_s = time.monotonic()
            self._take(news)
            for note in news["notes"]:
                self._notes(note["event"], note["detail"])
            for ticket in news["unknown"]:
                self._ask(ticket)
            self._give_back([slot for slot in held if slot.used], keep=True)

    def _facts(self, held: Sequence[Slot]) -> dict[str, Any]:
        """Give all that is had and waited for, so that a broker which does not know it learns it."""
        now_s = time.monotonic()
        return {
            "leases": [[slot.lease, slot.endpoint.name, name_of(slot.model)] for slot in held],
            "gpu_leases": [
                {"id": lease, "node_id": self._node_id, "gpus": gpus, "left_s": until_s - now_s}
                for lease, (gpus, until_s) in self._gpus.items()
            ],
            "tickets": list(self._tickets),
        }

    def _give_up(self, reason: str) -> None:
        with self._news:
            for waiter in self._queue:
                waiter.error = EndpointDown(
                    f"the lab's broker of models is out of reach: {reason}"
                )
                waiter.done.set()
            self._queue.clear()
            self._tickets.clear()

    def _take(self, news: Mapping[str, Any]) -> None:
        with self._news:
            unwanted = self._take_grants(news)
            again = self._take_refusals(news.get("refusals", ()))
            back = [slot for lease in news.get("recalls", ()) for slot in self._recalled(lease)]
        if unwanted:
            leases = [{"id": lease, "used": [], "tokens": [], "keep": False} for lease in unwanted]
            self._send(lambda: self._call("give_back", holder=self._holder, leases=leases))
        if back:
            self._give_back(back)
        for ticket in again:
            self._ask(ticket)

    def _take_grants(self, news: Mapping[str, Any]) -> list[str]:
        """Hand out what was granted; give the leases that nobody wants any more."""
        unwanted: list[str] = []
        for grant in news.get("grants", ()):
            asker, _ = self._tickets.get(grant["ticket"], (None, 0))
            waiter = self._first_for(grant["ticket"])
            if asker is None or self._closed:
                unwanted.append(grant["lease"])
                continue
            slot = _slot(grant, asker.wish["num_ctx"])
            if waiter is None:
                self._place(slot)
            else:  # also where it has tried this endpoint: there may be no other
                self._hand(slot, waiter)
        for grant in news.get("gpu_grants", ()):
            waiter = self._first_for(grant["ticket"])
            if waiter is None:
                unwanted.append(grant["lease"])
            else:
                waiter.gpus = GpuLease(grant["lease"], grant["freed_bytes"])
                until_s = time.monotonic() + waiter.wish["limit_s"]
                self._gpus[grant["lease"]] = (waiter.wish["gpus"], until_s)
                waiter.done.set()
        return unwanted

    def _take_refusals(self, refusals: Sequence[Mapping[str, Any]]) -> list[str]:
        """Hand out errors; give new tickets for those who wish the same and are still to be told."""
        again: list[str] = []
        for refusal in refusals:
            waiter = self._first_for(refusal["ticket"])
            if waiter is None:
                continue
            waiter.error = error_from_data(refusal["error"])
            waiter.done.set()
            if self._asked_for(waiter) < self._waiting_like(waiter):
                again.append(self._new_ticket(waiter, 0))
        return again

    def _first_for(self, ticket: str) -> _Waiter | None:
        """Give the first that waits for what a ticket was for, and let it wait no longer."""
        asker, _ = self._tickets.pop(ticket, (None, 0))
        if asker is None:
            return None
        waiter = next((other for other in self._queue if other.like(asker)), None)
        if waiter is not None:
            self._queue.remove(waiter)
        return waiter

    def _recalled(self, lease: str) -> list[Slot]:
        if lease in self._busy:
            self._busy[lease].recalled = True
        free = [slot for slot in self._free if slot.lease == lease]
        for slot in free:
            self._free.remove(slot)
        return free

    def _tidy(self) -> None:
        """Give back slots that nobody has used for a moment, and take back what nobody waits for any more."""
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
                wanted = [asker for asker, _ in self._tickets.values()]
            for asker in wanted:
                self._drop_surplus(asker)
            if old:
                self._give_back(old)
            time.sleep(_LINGER_S)


def _slot(grant: Mapping[str, Any], asked_ctx: int) -> Slot:
    return Slot(
        grant["lease"],
        endpoint_from_data(grant["endpoint"]),
        grant["model"],
        grant["num_ctx"],
        grant["digest"],
        max(grant["num_ctx"], asked_ctx),
    )
