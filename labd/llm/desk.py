"""What a router knows: the endpoints as they were last seen, and, from `labd.llm.claims`, who waits and who holds what.

No decisions.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from labd.llm.claims import GpuLease, GpuWant, Leases, Want, Wants
from labd.llm.model import Endpoint, LoadedModel, Look, ModelInfo, is_remote_name, name_of
from labd.llm.throughput import Throughput

_SWAPS = ("ollama", "lmstudio")
_FIRST_LOAD_S = 10.0
_OVERDUE_LOADS = 3.0
_LEAST_LINGER_S = 2.0
_RETRY_LOAD_S = 5.0
_FORGET_S = 300.0
_NEVER_S = float("inf")
_ALL_GPUS = tuple(range(1024))


@dataclass(frozen=True, slots=True)
class Rules:
    """What people set. `turn_s`: how long a model or experiments may keep what others wait for."""

    turn_s: float = 60.0
    patience_s: float = 300.0
    allow_remote: bool = False
    holder_ttl_s: float = 30.0
    """A holder that was silent for so long is dead, and holds nothing any more."""
    lost_s: float = 90.0
    """A lease that its holder does not know of after so long never reached it, or its return was not heard."""
    breaker_failures: int = 3
    breaker_open_s: float = 30.0
    load_tries: int = 3


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to an endpoint's memory: first unload, then load. Without `load` it is left empty."""

    endpoint: str
    unload: tuple[str, ...]
    load: str | None = None
    num_ctx: int = 0
    kind: Literal["change"] = "change"


@dataclass(slots=True)
class Held:
    """A model in an endpoint's memory. `since_s`: when its turn began; `users`: when each holder last used it."""

    name: str
    num_ctx: int
    vram_bytes: int
    since_s: float
    used_s: float
    asked_ctx: int = 0
    """The context that it was just loaded for; 0 once a look has told what it really has."""
    users: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class LoadError:
    """That a model did not load, how often in a row, and when it may be tried again."""

    count: int
    message: str
    again_s: float
    forgotten_s: float
    """When it counts no more: what failed then may work now, and somebody may have put it right."""


@dataclass(slots=True)
class Experiments:
    """Whose experiments have an endpoint's GPUs or had them last; `since_s`: when their turn began."""

    since_s: float
    used_s: float
    holder: str


@dataclass(slots=True)
class Side:
    """One endpoint as it is known."""

    endpoint: Endpoint
    look: Look | None = None
    models: dict[str, ModelInfo] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    change: Change | None = None
    """Being done now."""
    change_since_s: float = 0.0
    next: Change | None = None
    """To be done as soon as nothing is in flight for what it unloads."""
    kept_for: str = ""
    """The ticket of the experiments for which it is kept empty."""
    failures: int = 0
    open_until_s: float = 0.0
    trips: int = 0
    load_s: float = _FIRST_LOAD_S
    load_errors: dict[str, LoadError] = field(default_factory=dict)
    pulling: str = ""
    stale: bool = False
    """What is in its memory is not known until the next look, because a change failed half-way."""
    rest_until_s: float = 0.0
    """It is not to be emptied again before, because that failed."""
    experiments: "Experiments | None" = None
    throughputs: dict[str, Throughput] = field(default_factory=dict)
    """By model; only of models that were used."""

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self.endpoint.name

    @property
    def swaps(self) -> bool:
        """Whether models can be loaded and unloaded there."""
        return self.look is not None and self.look.server in _SWAPS

    @property
    def answers(self) -> bool:
        """Whether it was there when last looked at."""
        return self.look is not None and self.look.health not in {"down", "misconfigured"}

    @property
    def slots(self) -> int:
        """How many requests it works on at once for one model."""
        told = self.look.slots if self.look else None
        return self.endpoint.slots or told or 1

    @property
    def fills_gpu(self) -> bool:
        """Whether it holds graphics memory, as far as it tells; what does not tell is taken to."""
        if self.change is not None or self.stale or self.loading:
            return True
        tells = self.look is not None and self.look.server == "ollama"
        return any(h.vram_bytes or not tells for h in self.held.values())

    @property
    def loading(self) -> bool:
        """Whether somebody has a model loaded there that is not seen yet."""
        return self.look is not None and self.look.health == "loading"

    def on_gpus(self, node_id: str, gpus: tuple[int, ...]) -> bool:
        """Say whether it may fill one of these devices."""
        mine = _ALL_GPUS if self.endpoint.gpus is None else self.endpoint.gpus
        return self.endpoint.node_id == node_id and not set(mine).isdisjoint(gpus)

    def leaves(self, name: str) -> bool:
        """Say whether a model is about to be unloaded."""
        return any(name in change.unload for change in (self.change, self.next) if change)

    def comes(self, name: str) -> bool:
        """Say whether a model is about to be loaded."""
        return any(change.load == name for change in (self.change, self.next) if change)

    def overdue(self, now_s: float) -> bool:
        """Say whether a change takes so long that one had better not wait for it."""
        lasts_s = _OVERDUE_LOADS * max(self.load_s, _FIRST_LOAD_S)
        return self.change is not None and now_s - self.change_since_s > lasts_s

    def linger_s(self, turn_s: float) -> float:
        """Give how long a model is left alone that somebody may want again: as long as it took to load.

        Waiting as long as a load costs never costs more than twice the best that could be done, whatever
        comes. Source: Karlin, Manasse, Rudolph, Sleator, "Competitive snoopy caching", Algorithmica 3 (1988).
        """
        return min(turn_s, max(_LEAST_LINGER_S, self.load_s))

    def seen(self, look: Look, now_s: float) -> None:
        """Take what a look has shown."""
        self.look = look
        self.stale = False
        if look.health in {"down", "misconfigured"}:
            self.held.clear()
            self.next = None
            return
        if look.models is not None:
            self.models = {name_of(model.name): model for model in look.models}
            for name in self.models.keys() & self.load_errors.keys():
                if self.load_errors[name].again_s == _NEVER_S:
                    del self.load_errors[name]  # it could not be had, and is there now
        if look.loaded is not None and self.change is None:
            self._hold(look.loaded, now_s)
        elif look.loaded is None and look.server and not self.swaps:
            self._hold([LoadedModel(model.name) for model in self.models.values()], now_s)

    def hold_new(self, name: str, num_ctx: int, now_s: float) -> None:
        """Take a model for loaded just now; how much graphics memory it has, the next look tells."""
        self.held[name] = Held(name, num_ctx, 1, now_s, now_s, num_ctx)

    def failed(self, name: str, message: str, now_s: float) -> None:
        """Note that a model could not be loaded; it is tried again, later each time."""
        old = self.load_errors.get(name)
        count = old.count + 1 if old else 1
        again_s = now_s + _RETRY_LOAD_S * 3 ** (count - 1)
        self.load_errors[name] = LoadError(count, message, again_s, now_s + _FORGET_S)

    def refuse(self, name: str, message: str, now_s: float) -> None:
        """Note that a model can't be had, and that trying at once again is no use."""
        self.load_errors[name] = LoadError(1, message, _NEVER_S, now_s + _FORGET_S)

    def _hold(self, loaded: Iterable[LoadedModel], now_s: float) -> None:
        found: dict[str, Held] = {}
        for model in loaded:
            name = name_of(model.name)
            old = self.held.get(name)
            found[name] = Held(
                name,
                model.num_ctx,
                model.vram_bytes,
                old.since_s if old else now_s,
                old.used_s if old else now_s,
                users=old.users if old else {},
            )
            if old and 0 < model.num_ctx < old.asked_ctx:
                told = (
                    f"it has a context of {model.num_ctx} there where {old.asked_ctx} were asked"
                )
                self.failed(name, told, now_s)
            elif old and old.asked_ctx:
                self.load_errors.pop(name, None)
        self.held = found


@dataclass(slots=True)
class Desk:
    """All that is known, as of `now_s`."""

    rules: Rules
    sides: dict[str, Side] = field(default_factory=dict)
    wants: Wants = field(default_factory=Wants)
    leases: Leases = field(default_factory=Leases)
    gpu_wants: dict[str, GpuWant] = field(default_factory=dict)
    gpu_leases: dict[str, GpuLease] = field(default_factory=dict)
    beats: dict[str, float] = field(default_factory=dict)
    """When each holder was last heard of."""
    request_s: dict[str, float] = field(default_factory=dict)
    """How long requests take by model, a moving mean."""
    now_s: float = 0.0

    def in_flight(self, side: Side, name: str | None = None) -> int:
        """Count the leases of an endpoint, or those for one model."""
        return self.leases.count(side.name, name)

    def reachable(self, want: Want) -> Iterator[Side]:
        """Give the endpoints that the want's worker can reach."""
        for side in self.sides.values():
            if side.endpoint.only_from in {"", want.node_id}:
                yield side

    def may_run(self, side: Side, want: Want) -> bool:
        """Say whether the endpoint has the model, in a form that may be used."""
        model = side.models.get(want.name)
        if model is None:
            return False
        remote = model.remote or is_remote_name(want.model)
        return self.rules.allow_remote or not remote

    def trusted(self, side: Side) -> bool:
        """Say whether an endpoint that failed may be tried again; while it is on trial, with one request."""
        if side.failures < self.rules.breaker_failures:
            return True
        return self.now_s >= side.open_until_s and self.in_flight(side) == 0

    def candidates(self, want: Want) -> list[Side]:
        """Give the endpoints that could serve the want now or after a load."""
        found = [
            side
            for side in self.reachable(want)
            if side.answers and self.may_run(side, want) and self.trusted(side)
        ]
        fresh = [side for side in found if side.name not in want.tried]
        return fresh or found

    def fits(self, side: Side, want: Want) -> bool:
        """Say whether the model is in memory there, stays, and has room for the want's context."""
        held = side.held.get(want.name)
        if held is None or side.leaves(want.name):
            return False
        return not (side.swaps and held.num_ctx and held.num_ctx < want.num_ctx)

    def taken(self, side: Side) -> bool:
        """Say whether experiments have the endpoint's GPUs, or are to have them next."""
        if side.stale or side.kept_for or (side.next is not None and side.next.load is None):
            return True
        return side.swaps and (self.experimented_on(side) or self.between_experiments(side))

    def experimented_on(self, side: Side) -> bool:
        """Say whether experiments run on the endpoint's GPUs."""
        return any(side.on_gpus(x.node_id, x.gpus) for x in self.gpu_leases.values())

    def between_experiments(self, side: Side) -> bool:
        """Say whether the next experiment of a task may come in a moment, so that a load now would be for nothing.

        It is waited for as a model is that was just used, and no longer than the turn of experiments.
        """
        last = side.experiments
        if last is None or last.holder not in self.beats or last.holder in self.wants.holders:
            return False
        turn_s = self.rules.turn_s
        lasts_s = min(last.used_s + side.linger_s(turn_s), last.since_s + turn_s)
        return self.now_s < lasts_s

    def waits(self, holder: str) -> bool:
        """Say whether a holder waits for something."""
        return holder in self.wants.holders or any(
            want.holder == holder for want in self.gpu_wants.values()
        )

    def held_by(self, side: Side, name: str) -> Counter[str]:
        """Count the leases of each holder for a model at an endpoint, those that are recalled left out."""
        return Counter(
            lease.holder
            for lease in self.leases.values()
            if (lease.endpoint, lease.name) == (side.name, name) and not lease.recalled
        )
