"""Whose turn it is: which model an endpoint holds, and when experiments get its GPUs. Pure decisions over a `Desk`.

The rules, for an endpoint whose memory is full:

- A model that is there goes on as long as it is wanted, because a load costs more than a request.
- What is idle goes at once for what is wanted. A model that somebody used a moment ago is not idle: it stays for
  as long as a load takes (`Side.linger_s`), unless all who used it wait for something themselves.
- A model that is wanted goes when somebody has waited `turn_s` for another and its own turn has lasted `turn_s`.
  So with n models wanted at one endpoint none waits longer than (n - 1) turns, each with the longest request and a load.
- Experiments that want the GPUs are one more model in this: they come first come, first served.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from labd.llm.claims import GpuWant, Want
from labd.llm.desk import Change, Desk, Held, Side

_SPREAD_LOADS = 2.0
_FIRST_REQUEST_S = 1.0
"""Taken for how long a request of a model takes of which none has ended yet."""


def idle(desk: Desk, side: Side, held: Held) -> bool:
    """Say whether nobody is about to use a model that is in memory."""
    if desk.in_flight(side, held.name):
        return False
    mine = desk.wants.kinds(held.name)
    if any(desk.fits(side, want) and side in desk.candidates(want) for want in mine):
        return False
    linger_s = side.linger_s(desk.rules.turn_s)
    return not any(
        desk.now_s - used_s < linger_s and holder in desk.beats and not desk.waits(holder)
        for holder, used_s in held.users.items()
    )


def had_its_turn(desk: Desk, held: Held, waiting_since_s: float) -> bool:
    """Say whether a model that is in use has to go for what waits since then."""
    turn_s = desk.rules.turn_s
    return desk.now_s - waiting_since_s >= turn_s and desk.now_s - held.since_s >= turn_s


def changes(desk: Desk) -> Iterator[Change]:
    """Decide what models to load where; each decision is noted in its `Side.next` at once.

    What is given is to be done when nothing is in flight for what it unloads.
    """
    for name, wants in _by_model(desk):
        first = wants[0]
        sides = [s for s in desk.candidates(first) if s.swaps and not desk.taken(s)]
        have = [s for s in desk.candidates(first) if desk.fits(s, first) or _comes(desk, s, name)]
        if have and not _worth_another(desk, name, have, _backlog(wants)):
            continue
        num_ctx = max(want.num_ctx for want in wants)
        free = [s for s in sides if s not in have and _may_load(desk, s, name)]
        change = _place(desk, name, num_ctx, free, None if have else first.since_s)
        if change is not None:
            desk.sides[change.endpoint].next = change
            yield change


def gpu_changes(desk: Desk) -> Iterator[Change]:
    """Decide what to empty for experiments that wait; noted in `Side.next` at once."""
    for want in sorted(desk.gpu_wants.values(), key=lambda w: w.since_s):
        if gpu_must_wait(desk, want):
            continue
        for side in gpu_sides(desk, want):
            busy = side.change or side.next or side.stale or side.loading
            if busy or not side.fills_gpu or desk.now_s < side.rest_until_s:
                continue
            leaving = list(side.held.values())
            if all(idle(desk, side, h) or had_its_turn(desk, h, want.since_s) for h in leaving):
                side.next = Change(side.name, tuple(h.name for h in leaving))
                side.kept_for = want.ticket
                want.freed_bytes += sum(h.vram_bytes for h in leaving)
                yield side.next


def gpu_sides(desk: Desk, want: GpuWant) -> list[Side]:
    """Give the endpoints that share the experiment's GPUs and can be emptied."""
    return [
        side
        for side in desk.sides.values()
        if side.swaps and side.answers and side.on_gpus(want.node_id, want.gpus)
    ]


def gpu_must_wait(desk: Desk, want: GpuWant) -> bool:
    """Say whether requests that have waited longer come first, or an endpoint has not been looked at yet."""
    if any(s.look is None and s.on_gpus(want.node_id, want.gpus) for s in desk.sides.values()):
        return True  # what it holds is not known yet
    sides = gpu_sides(desk, want)
    if any(side.kept_for == want.ticket for side in sides):
        return False  # its turn has begun
    used = any(lease.node_id == want.node_id for lease in desk.gpu_leases.values()) or any(
        desk.between_experiments(side) for side in sides
    )
    for other, *_ in desk.wants.alike():
        found = desk.candidates(other)
        if other.since_s >= want.since_s or not found or not all(side in sides for side in found):
            continue
        if any(desk.fits(side, other) and not desk.taken(side) for side in found):
            continue  # it is being served, and its model's turn counts
        if not used or desk.now_s - other.since_s >= desk.rules.turn_s:
            return True
    return False


def _by_model(desk: Desk) -> list[tuple[str, list[Want]]]:
    """Give the models that are wanted, each with those wants that the same endpoints can serve, the longest wait first."""
    groups: dict[tuple[str, ...], list[Want]] = {}
    for wants in desk.wants.alike():
        key = (wants[0].name, *(side.name for side in desk.candidates(wants[0])))
        groups.setdefault(key, []).extend(wants)
    for group in groups.values():
        group.sort(key=lambda want: want.since_s)
    in_order = sorted(groups.items(), key=lambda group: group[1][0].since_s)
    return [(key[0], group) for key, group in in_order]


def _worth_another(desk: Desk, name: str, have: Iterable[Side], waiting: int) -> bool:
    """Say whether so much waits for a model that one more endpoint should load it, beside those that have it or will."""
    sides = list(have)
    slots = sum(side.slots for side in sides)
    backlog_s = waiting * desk.request_s.get(name, _FIRST_REQUEST_S) / slots
    return backlog_s > _SPREAD_LOADS * max(side.load_s for side in sides)


def _backlog(wants: Iterable[Want]) -> int:
    """Count the requests that wait, and those that will follow; all wants of a holder tell of the same ones."""
    waiting: Counter[str] = Counter()
    following: dict[str, int] = {}
    for want in wants:
        waiting[want.holder] += 1
        following[want.holder] = max(want.following, following.get(want.holder, 0))
    return waiting.total() + sum(following.values())


def _comes(desk: Desk, side: Side, name: str) -> bool:
    return side.comes(name) and not side.overdue(desk.now_s)


def _may_load(desk: Desk, side: Side, name: str) -> bool:
    error = side.load_errors.get(name)
    if error is not None and desk.now_s < error.again_s:
        return False
    return side.change is None and side.next is None


def _place(
    desk: Desk, name: str, num_ctx: int, sides: Sequence[Side], since_s: float | None
) -> Change | None:
    """Choose where a model is loaded and what goes for it, or give ``None`` where it has to wait.

    `since_s`: since when somebody has waited for it; ``None`` where it is served elsewhere already. Then only what is
    idle goes: two models that much is asked of would else swap places at each turn.
    """
    again = [side for side in sides if name in side.held]  # with too small a context
    for side in sorted(sides, key=lambda s: (len(s.held), s.load_s)):
        if len(side.held) < side.endpoint.max_loaded and side not in again:
            return Change(side.name, (), name, num_ctx)
    victims = [(side, held) for side in sides for held in _victims(side, name)]
    able = [(side, held) for side, held in victims if idle(desk, side, held)]
    if not able and since_s is not None:
        able = [(side, held) for side, held in victims if had_its_turn(desk, held, since_s)]
        able.sort(key=lambda pair: pair[1].since_s)
    else:
        able.sort(key=lambda pair: pair[1].used_s)
    for side, held in able[:1]:
        return Change(side.name, (held.name,), name, num_ctx)
    return None


def _victims(side: Side, name: str) -> list[Held]:
    """Give what could go: of a model that is there with too small a context, only itself."""
    return [side.held[name]] if name in side.held else list(side.held.values())
