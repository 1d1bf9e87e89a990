"""Wants and leases: who waits, and who holds what, in tables that are quick to ask.

A *want* is a request that waits for a slot; a *lease* is the right to have one request at a time at one
endpoint for one model, used again and again until it is given back or recalled. Experiments want and hold
a node's GPUs in the same way.
"""

from collections import Counter
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field

from labd.llm.model import name_of


@dataclass(slots=True)
class Want:
    """A request that waits. `tried`: endpoints at which it failed; `node_id`: where its worker runs."""

    ticket: str
    holder: str
    node_id: str
    model: str
    num_ctx: int
    since_s: float
    tried: frozenset[str] = frozenset()
    following: int = 0
    """Requests like it that the holder will make after it."""
    stuck_since_s: float | None = None
    """Since when no endpoint could be asked at all."""
    name: str = field(init=False)
    """The model's name in the form in which names are compared."""

    def __post_init__(self) -> None:
        self.name = name_of(self.model)

    @property
    def likeness(self) -> "Likeness":
        """What tells wants apart: those of one likeness can be served by the same endpoints."""
        return self.name, self.node_id, self.num_ctx, self.tried


Likeness = tuple[str, str, int, frozenset[str]]


class Wants(MutableMapping[str, Want]):
    """Wants by ticket. Hundreds may wait for the same, so those that are alike are looked at once."""

    def __init__(self) -> None:
        self._all: dict[str, Want] = {}
        self._alike: dict[Likeness, dict[str, Want]] = {}
        self.holders: Counter[str] = Counter()
        """How many each holder has."""

    def __getitem__(self, ticket: str) -> Want:
        return self._all[ticket]

    def __setitem__(self, ticket: str, want: Want) -> None:
        self.pop(ticket, None)
        self._all[ticket] = want
        self._alike.setdefault(want.likeness, {})[ticket] = want
        self.holders[want.holder] += 1

    def __delitem__(self, ticket: str) -> None:
        want = self._all.pop(ticket)
        alike = self._alike[want.likeness]
        del alike[ticket]
        if not alike:
            del self._alike[want.likeness]
        self.holders[want.holder] -= 1
        if not self.holders[want.holder]:
            del self.holders[want.holder]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def alike(self, name: str | None = None) -> list[list[Want]]:
        """Give all wants, or those for one model, in lists of those that are alike, the longest wait first."""
        return [
            sorted(wants.values(), key=lambda want: want.since_s)
            for likeness, wants in self._alike.items()
            if name in {None, likeness[0]}
        ]

    def kinds(self, name: str | None = None) -> list[Want]:
        """Give one want, any, of each likeness, for all models or for one."""
        return [
            next(iter(wants.values()))
            for likeness, wants in self._alike.items()
            if name in {None, likeness[0]}
        ]


@dataclass(slots=True)
class Lease:
    """One slot of one endpoint for one model."""

    id: str
    holder: str
    endpoint: str
    name: str
    since_s: float
    recalled: bool = False


class Leases(MutableMapping[str, Lease]):
    """Leases by their ids, counted by endpoint and model."""

    def __init__(self) -> None:
        self._all: dict[str, Lease] = {}
        self._counts: Counter[tuple[str, str | None]] = Counter()

    def __getitem__(self, lease_id: str) -> Lease:
        return self._all[lease_id]

    def __setitem__(self, lease_id: str, lease: Lease) -> None:
        self.pop(lease_id, None)
        self._all[lease_id] = lease
        self._count(lease, 1)

    def __delitem__(self, lease_id: str) -> None:
        self._count(self._all.pop(lease_id), -1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def count(self, endpoint: str, name: str | None) -> int:
        """Count those of an endpoint, for one model or for all."""
        return self._counts[endpoint, name]

    def _count(self, lease: Lease, more: int) -> None:
        for key in ((lease.endpoint, lease.name), (lease.endpoint, None)):
            self._counts[key] += more
            if not self._counts[key]:
                del self._counts[key]


@dataclass(slots=True)
class GpuWant:
    """An experiment that waits for GPUs of its node, and will want them for `limit_s` at most."""

    ticket: str
    holder: str
    node_id: str
    gpus: tuple[int, ...]
    since_s: float
    limit_s: float
    freed_bytes: int = 0
    """Graphics memory of what was unloaded for it, as the servers said."""


@dataclass(slots=True)
class GpuLease:
    """An experiment that has them, until `until_s` at most."""

    id: str
    holder: str
    node_id: str
    gpus: tuple[int, ...]
    since_s: float
    until_s: float
