"""What a desk knows, as people are shown it: plain data. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from labd.llm.claims import GpuWant, Want
from labd.llm.desk import Desk, Side
from labd.llm.turns import gpu_sides
from labd.text import printable

_MAX_WAITING = 100
_MAX_REASON = 400


def report(desk: Desk, now_s: float, notes: Mapping[str, str]) -> dict[str, Any]:
    """Give endpoints with what they have and do, and who waits, all texts printable.

    ``tokens_per_s`` of an endpoint and of each model there: what they answered the lab's requests with, in the last minute.
    """
    waiting = Counter(want.model for want in desk.wants.values())
    return {
        "endpoints": [_side(desk, side, now_s) for side in desk.sides.values()],
        "waiting": {
            printable(model, 100): count for model, count in waiting.most_common(_MAX_WAITING)
        },
        "waiting_for_gpus": len(desk.gpu_wants),
        "experiments": len(desk.gpu_leases),
        "notes": {printable(model, 100): printable(note, 200) for model, note in notes.items()},
    }


def _side(desk: Desk, side: Side, now_s: float) -> dict[str, Any]:
    look = side.look
    paces = {name: one.tokens_per_s(now_s) for name, one in side.throughputs.items()}
    return {
        "name": printable(side.name, 100),
        "url": printable(side.endpoint.url, 200),
        "api": side.endpoint.api,
        "node_id": side.endpoint.node_id,
        "only_from": side.endpoint.only_from,
        "server": look.server if look else None,
        "version": printable(look.version, 60) if look else "",
        "health": health(side, now_s),
        "problem": printable(look.problem, 200) if look else "",
        "fix": printable(look.fix, 300) if look else "",
        "slots": side.slots,
        "tokens_per_s": round(sum(paces.values()), 1),
        "models": [
            {
                "name": printable(model.name, 100),
                "digest": model.digest,
                "size_bytes": model.size_bytes,
                "remote": model.remote,
                "loaded": name in side.held,
                "num_ctx": side.held[name].num_ctx if name in side.held else 0,
                "vram_bytes": side.held[name].vram_bytes if name in side.held else 0,
                "in_flight": desk.in_flight(side, name),
                "tokens_per_s": round(paces.get(name, 0.0), 1),
            }
            for name, model in side.models.items()
        ],
        "doing": doing(side),
    }


def health(side: Side, now_s: float) -> str:
    """Give an endpoint's health in one word; ``resting`` where it failed too often."""
    if side.look is None:
        return "unseen"
    if side.open_until_s > now_s and side.failures:
        return "resting"
    if side.change is not None and side.change.load and side.answers:
        return "loading"
    return side.look.health


def doing(side: Side) -> str:
    """Say what is being done to an endpoint's memory, or give an empty text."""
    change = side.change or side.next
    if change is None:
        return f"downloads {printable(side.pulling, 100)}" if side.pulling else ""
    target = f"loads {change.load}" if change.load else "makes room for experiments"
    out = f", unloads {', '.join(change.unload)}" if change.unload else ""
    return printable(
        ("" if side.change else "waits for requests to end, then ") + target + out, 300
    )


def why(desk: Desk, want: Want) -> str:
    """Say what a request waits for."""
    sides = desk.candidates(want)
    told = (f"{side.name}: {_hindrance(desk, side, want)}" for side in sides)
    reasons = "; ".join(told) or "no endpoint that has it can be asked now"
    return printable(f"{want.model} waits ({reasons})", _MAX_REASON)


def why_gpus(desk: Desk, want: GpuWant) -> str:
    """Say what an experiment waits for."""
    told = (f"{side.name}: {doing(side) or 'is in use'}" for side in gpu_sides(desk, want))
    return printable(f"GPUs wait ({'; '.join(told) or 'not seen yet'})", _MAX_REASON)


def _hindrance(desk: Desk, side: Side, want: Want) -> str:
    if desk.experimented_on(side):
        return "experiments have its GPUs"
    if what := doing(side):
        return what
    if desk.fits(side, want):
        return f"{desk.in_flight(side, want.name)} of {side.slots} slots are taken"
    error = side.load_errors.get(want.name)
    if error is not None:
        return f"it could not be loaded: {error.message}"
    return f"{', '.join(side.held) or 'nothing'} is loaded"
