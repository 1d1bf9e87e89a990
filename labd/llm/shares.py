"""Who gives slots back, so that all who want a model get their share of it. Pure decisions over a `Desk`."""

from collections import Counter
from collections.abc import Iterator, Sequence

from labd.llm.claims import Lease, Likeness, Want
from labd.llm.desk import Desk, Side


def to_share(desk: Desk) -> Iterator[Lease]:
    """Give the leases to ask back from who has more than who waits for the same model and has fewer.

    Each is to be recalled before the next one is taken from here.
    """
    keeps = Counter(x.holder for x in desk.leases.values() if not x.recalled)
    for name in dict.fromkeys(want.name for want in desk.wants.kinds()):
        wants = [want for alike in desk.wants.alike(name) for want in alike]
        full = {want.likeness: _full(desk, want) for want in desk.wants.kinds(name)}
        coming = sum(x.recalled and x.name == name for x in desk.leases.values())
        held: dict[Likeness, Counter[str]] = {}
        wants.sort(key=lambda w: (keeps[w.holder], w.since_s))  # as slots will be given
        for ahead, want in enumerate(wants):
            sides = full[want.likeness]
            if coming > ahead or not sides:
                continue
            if want.likeness not in held:
                held[want.likeness] = _held(desk, sides, name)
            lease = _to_share(desk, want, sides, held[want.likeness])
            if lease is not None:
                coming += not lease.recalled
                yield lease
                held.clear()


def _full(desk: Desk, want: Want) -> list[Side]:
    """Give the endpoints that have the model, if all their slots are taken."""
    sides = [side for side in desk.candidates(want) if desk.fits(side, want)]
    free = any(desk.in_flight(side, want.name) < side.slots for side in sides)
    return [] if free else sides


def _held(desk: Desk, sides: Sequence[Side], name: str) -> Counter[str]:
    return sum((desk.held_by(side, name) for side in sides), Counter())


def _to_share(desk: Desk, want: Want, sides: Sequence[Side], held: Counter[str]) -> Lease | None:
    """Give the oldest lease of who has most, if that is too much beside what the want's holder has."""
    most, count = max(held.items(), key=lambda pair: pair[1], default=("", 0))
    mine = held[want.holder]
    if most == want.holder or count <= (mine + 1 if mine else 0):
        return None
    names = {side.name for side in sides}
    leases = (x for x in desk.leases.values() if x.holder == most and x.name == want.name)
    return min((x for x in leases if x.endpoint in names), key=lambda x: (x.recalled, x.since_s))
