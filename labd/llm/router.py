"""Which request goes to which endpoint: a state machine without clock, threads or network.

A `Router` is told what happens, and `step` gives what is to be done about it. `labd.llm.turns` has the rules by
which models come and go; here is who gets a free slot, who has to give one back, and who is refused.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from labd.llm.claims import GpuLease, GpuWant, Lease, Want
from labd.llm.desk import Change, Desk, Experiments, Held, Rules, Side
from labd.llm.errors import ModelError, ModelMissing
from labd.llm.model import Endpoint, Look, name_of
from labd.llm.refusals import Pull, no_way
from labd.llm.shares import to_share
from labd.llm.throughput import Throughput
from labd.llm.turns import changes, gpu_changes, gpu_must_wait

_MEAN_WEIGHT = 0.2
_RETRY_UNLOAD_S = 10.0
_GPU_GRACE_S = 60.0
_MAX_TRIPS = 4


@dataclass(frozen=True, slots=True)
class Grant:
    """A want has a slot. `num_ctx` is what requests are to be sent with."""

    ticket: str
    holder: str
    lease: str
    endpoint: Endpoint
    model: str
    num_ctx: int
    digest: str


@dataclass(frozen=True, slots=True)
class GpuGrant:
    """An experiment has its GPUs, as far as the lab's own requests go; `freed_bytes` were unloaded for it."""

    ticket: str
    holder: str
    lease: str
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Recall:
    """A lease is to be given back as soon as its request has ended."""

    holder: str
    lease: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A want can't be served."""

    ticket: str
    holder: str
    error: ModelError


Action = Grant | GpuGrant | Recall | Refusal | Pull | Change


class Router:
    """The state machine. Not for several threads at once.

    Args:
        rules: what people set.
        endpoints: as for `know`.
        name: begins the names of leases; another one after each start, because holders still have leases of the last.

    """

    def __init__(
        self, rules: Rules, endpoints: Sequence[Endpoint] = (), *, name: str = ""
    ) -> None:
        self.desk = Desk(rules)
        self._ids = (f"{name}{number}" for number in itertools.count(1))
        self.know(endpoints)

    # --- told what is

    def know(self, endpoints: Sequence[Endpoint]) -> None:
        """Take these for all the endpoints that there are; what is known of each stays."""
        old = self.desk.sides
        self.desk.sides = {e.name: old.get(e.name) or Side(e) for e in endpoints}
        for endpoint in endpoints:
            self.desk.sides[endpoint.name].endpoint = endpoint
        gone = [i for i, x in self.desk.leases.items() if x.endpoint not in self.desk.sides]
        for lease in gone:
            del self.desk.leases[lease]

    def seen(self, endpoint: str, look: Look, now_s: float) -> None:
        """Take what a look at an endpoint has shown."""
        side = self.desk.sides.get(endpoint)
        if side is None:
            return
        was_down, before = not side.answers, side.held
        side.seen(look, now_s)
        if side.answers and look.loaded is not None and side.change is None:
            # What was unloaded by somebody else while it is asked comes back with the next request.
            for lease in self.desk.leases.values():
                if lease.endpoint == endpoint and lease.name not in side.held:
                    old = before.get(lease.name)
                    side.held[lease.name] = old or Held(lease.name, 0, 1, now_s, now_s)
        if was_down and side.answers:
            side.failures = 0  # it came back: what failed before was that

    def want(self, want: Want) -> None:
        """Let a request wait for a slot; one of the same ticket is replaced."""
        self.desk.wants[want.ticket] = want
        self.beat(want.holder, want.since_s)

    def want_gpus(self, want: GpuWant) -> None:
        """Let an experiment wait for GPUs of its node."""
        self.desk.gpu_wants[want.ticket] = want
        self.beat(want.holder, want.since_s)

    def drop(self, ticket: str) -> None:
        """Forget a want that is not wanted any more."""
        self.desk.wants.pop(ticket, None)
        self.desk.gpu_wants.pop(ticket, None)

    def beat(self, holder: str, now_s: float) -> None:
        """Hear that a holder is alive."""
        self.desk.beats[holder] = now_s

    def adopt(self, lease: Lease) -> None:
        """Take a lease for given that a holder says it has, as after a start of this process."""
        if lease.endpoint in self.desk.sides or not self.desk.sides:
            self.desk.leases.setdefault(lease.id, lease)

    def adopt_gpus(self, lease: GpuLease) -> None:
        """Take it for given that a holder has GPUs."""
        lease.until_s += _GPU_GRACE_S
        self.desk.gpu_leases.setdefault(lease.id, lease)

    def has_only(self, holder: str, leases: Collection[str], now_s: float) -> None:
        """Take back what a holder has long had, as it seems here, and does not know of."""
        for table in (self.desk.leases, self.desk.gpu_leases):
            mine = [x for x in table.values() if x.holder == holder and x.id not in leases]
            for lease in mine:
                if now_s - lease.since_s > self.desk.rules.lost_s:
                    self.give_back(lease.id)

    def recalled(self, holder: str) -> list[str]:
        """Give the leases that a holder is to give back."""
        mine = (lease for lease in self.desk.leases.values() if lease.holder == holder)
        return [lease.id for lease in mine if lease.recalled]

    def bye(self, holder: str) -> None:
        """Forget a holder and all that it has and wants."""
        self.desk.beats.pop(holder, None)
        for table in (
            self.desk.wants,
            self.desk.gpu_wants,
            self.desk.leases,
            self.desk.gpu_leases,
        ):
            mine = [key for key, value in table.items() if value.holder == holder]
            for key in mine:
                del table[key]
        for side in self.desk.sides.values():
            for held in side.held.values():
                held.users.pop(holder, None)

    def used(
        self, lease_id: str, now_s: float, seconds: Sequence[float], tokens: Sequence[int] = ()
    ) -> None:
        """Hear how long the requests took that a lease was used for, and how many tokens each was answered with."""
        lease = self.desk.leases.get(lease_id)
        side = self.desk.sides.get(lease.endpoint) if lease else None
        if lease is None or side is None:
            return
        for took_s in seconds:
            old_s = self.desk.request_s.get(lease.name, took_s)
            self.desk.request_s[lease.name] = old_s + _MEAN_WEIGHT * (took_s - old_s)
        for took_s, count in zip(seconds, tokens, strict=False):
            side.throughputs.setdefault(lease.name, Throughput()).add(now_s, took_s, count)
        if seconds:
            side.failures = side.trips = 0
        held = side.held.get(lease.name)
        if held is not None:
            held.used_s = now_s
            held.users[lease.holder] = now_s

    def give_back(self, lease_id: str) -> None:
        """Take a lease back, of either kind."""
        self.desk.leases.pop(lease_id, None)
        lease = self.desk.gpu_leases.pop(lease_id, None)
        if lease is None:
            return
        for side in self._on_gpus_of(lease):
            if side.experiments is not None:
                side.experiments.used_s = self.desk.now_s
                side.experiments.holder = lease.holder

    def failed(self, endpoint: str, model: str, code: str, now_s: float) -> None:
        """Hear that a request failed at an endpoint, by the error's code."""
        side = self.desk.sides.get(endpoint)
        if side is None:
            return
        if code == ModelMissing.code:
            side.models.pop(name_of(model), None)
            return
        side.failures += 1
        rests = now_s < side.open_until_s  # what was in flight when it began to fails too
        if side.failures >= self.desk.rules.breaker_failures and not rests:
            side.trips = min(side.trips + 1, _MAX_TRIPS)
            side.open_until_s = now_s + self.desk.rules.breaker_open_s * 2 ** (side.trips - 1)

    def changed(self, endpoint: str, took_s: float, error: str, now_s: float) -> None:
        """Hear that the change of an endpoint's memory is over; what is loaded now, the next look tells.

        `error`: why it failed, or empty.
        """
        side = self.desk.sides.get(endpoint)
        if side is None or side.change is None:
            return
        change, side.change = side.change, None
        if error:
            side.stale = bool(change.unload)
            side.rest_until_s = now_s + _RETRY_UNLOAD_S
            if change.load is not None:
                side.failed(change.load, error, now_s)
            return
        for name in change.unload:
            side.held.pop(name, None)
        if change.load is None:
            return
        side.load_s = took_s
        side.hold_new(change.load, change.num_ctx, now_s)

    def pulled(self, endpoint: str, model: str, error: str) -> None:
        """Hear that a download is over; what is there now, a look has told before."""
        side = self.desk.sides.get(endpoint)
        if side is None:
            return
        side.pulling = ""
        name, look = name_of(model), side.look
        if error:
            side.refuse(name, f"the download failed: {error}", self.desk.now_s)
        elif look is not None and look.models is not None and name not in side.models:
            told = f"{side.name} downloaded it, and has it under another name"
            side.refuse(name, told, self.desk.now_s)

    # --- asked what to do

    def step(self, now_s: float) -> list[Action]:
        """Decide all that can be decided now. Each action is noted as done."""
        desk = self.desk
        desk.now_s = now_s
        self._bury()
        actions: list[Action] = list(self._refuse())
        actions += self._grant_gpus()
        actions += self._grant()
        for change in (*gpu_changes(desk), *changes(desk)):
            actions += self._recall_for(change)
        for lease in to_share(desk):
            actions += self._recall(lease)
        actions += self._begin_changes()
        return actions

    def _bury(self) -> None:
        oldest_s = self.desk.now_s - self.desk.rules.holder_ttl_s
        for holder in [h for h, at_s in self.desk.beats.items() if at_s < oldest_s]:
            self.bye(holder)
        for lease in list(self.desk.gpu_leases.values()):
            if self.desk.now_s > lease.until_s:
                del self.desk.gpu_leases[lease.id]
        for side in self.desk.sides.values():
            for name in [
                n for n, e in side.load_errors.items() if self.desk.now_s > e.forgotten_s
            ]:
                del side.load_errors[name]
            if side.kept_for and side.kept_for not in self.desk.gpu_wants:
                side.kept_for = ""
                if side.next is not None and side.next.load is None:
                    side.next = None
            if side.next is not None and side.next.load and not self._is_wanted(side.next.load):
                side.next = None

    def _is_wanted(self, name: str) -> bool:
        return bool(self.desk.wants.kinds(name))

    # --- grants

    def _grant(self) -> Iterator[Grant]:
        """Give free slots to who waits: first to who has least, then to who has waited longest."""
        mine = Counter(lease.holder for lease in self.desk.leases.values())
        alike = {wants[0].likeness: wants for wants in self.desk.wants.alike()}
        while True:
            served = [w for w in alike.values() if w and self._free_slot(w[0])]
            first = min(
                (want for wants in served for want in wants),
                key=lambda w: (mine[w.holder], w.since_s),
                default=None,
            )
            side = self._free_slot(first) if first else None
            if first is None or side is None:
                return
            alike[first.likeness].remove(first)
            mine[first.holder] += 1
            yield self._lease(first, side)

    def _free_slot(self, want: Want) -> Side | None:
        desk = self.desk
        free: list[tuple[float, Side]] = []
        for side in desk.candidates(want):
            if desk.fits(side, want) and not desk.taken(side):
                load = desk.in_flight(side, want.name) / side.slots
                if load < 1:
                    free.append((load, side))
        return min(free, key=lambda pair: (pair[0], pair[1].name))[1] if free else None

    def _lease(self, want: Want, side: Side) -> Grant:
        desk = self.desk
        lease = Lease(f"l{next(self._ids)}", want.holder, side.name, want.name, desk.now_s)
        desk.leases[lease.id] = lease
        del desk.wants[want.ticket]
        held = side.held[want.name]
        held.used_s = held.users[want.holder] = desk.now_s
        num_ctx = held.num_ctx or want.num_ctx
        model = side.models[want.name]
        return Grant(
            want.ticket, want.holder, lease.id, side.endpoint, model.name, num_ctx, model.digest
        )

    def _recall_for(self, change: Change) -> Iterator[Recall]:
        for lease in self.desk.leases.values():
            if lease.endpoint == change.endpoint and lease.name in change.unload:
                yield from self._recall(lease)

    def _recall(self, lease: Lease) -> Iterator[Recall]:
        if not lease.recalled:
            lease.recalled = True
            yield Recall(lease.holder, lease.id)

    def _grant_gpus(self) -> Iterator[GpuGrant]:
        desk = self.desk
        for want in sorted(desk.gpu_wants.values(), key=lambda w: w.since_s):
            if gpu_must_wait(desk, want):
                continue
            if any(self._in_use(side) for side in self._on_gpus_of(want)):
                continue
            del desk.gpu_wants[want.ticket]
            lease = GpuLease(
                f"g{next(self._ids)}", want.holder, want.node_id, want.gpus,
                desk.now_s, desk.now_s + want.limit_s + _GPU_GRACE_S,
            )  # fmt: skip
            for side in self._on_gpus_of(want):
                if not (desk.experimented_on(side) or desk.between_experiments(side)):
                    side.experiments = Experiments(desk.now_s, desk.now_s, want.holder)
            desk.gpu_leases[lease.id] = lease
            yield GpuGrant(want.ticket, want.holder, lease.id, want.freed_bytes)

    def _on_gpus_of(self, want: GpuWant | GpuLease) -> list[Side]:
        return [s for s in self.desk.sides.values() if s.on_gpus(want.node_id, want.gpus)]

    def _in_use(self, side: Side) -> bool:
        """Say whether an endpoint fills its GPUs, or is about to be changed."""
        if not (side.swaps and side.answers):
            return False
        return bool(side.fills_gpu or side.next)

    def _begin_changes(self) -> Iterator[Change]:
        for side in self.desk.sides.values():
            change = side.next
            if change is None or side.change is not None:
                continue
            if not any(self.desk.in_flight(side, name) for name in change.unload):
                side.next, side.change, side.change_since_s = None, change, self.desk.now_s
                yield change

    # --- refusals

    def _refuse(self) -> Iterator[Refusal | Pull]:
        for wants in self.desk.wants.alike():
            for want in wants:
                answer = no_way(self.desk, want)
                if isinstance(answer, Pull):
                    self.desk.sides[answer.endpoint].pulling = answer.model
                    yield answer
                elif answer is not None:
                    del self.desk.wants[want.ticket]
                    yield Refusal(want.ticket, want.holder, answer)
                else:
                    self._wait_like(want, wants)
                    break

    def _wait_like(self, first: Want, wants: Sequence[Want]) -> None:
        """Note of wants that wait as one like them does since when they are stuck; they have not waited for longer."""
        for want in wants:
            if first.stuck_since_s is None:
                want.stuck_since_s = None
            elif want.stuck_since_s is None:
                want.stuck_since_s = self.desk.now_s
