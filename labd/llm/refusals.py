"""When a request can't be served, and what the asker is told: pure, over a `Desk`."""

from collections.abc import Sequence
from dataclasses import dataclass

from labd.clock import print_duration
from labd.llm.claims import Want
from labd.llm.desk import Desk, Side
from labd.llm.errors import (
    EndpointDown,
    EndpointFailed,
    ModelError,
    ModelMissing,
    ModelRefused,
    RequestRefused,
)
from labd.llm.model import is_remote_name, name_of
from labd.text import printable


@dataclass(frozen=True, slots=True)
class Pull:
    """An endpoint is to download a model that none has."""

    endpoint: str
    model: str


def no_way(desk: Desk, want: Want) -> ModelError | Pull | None:
    """Give why a want can never be served, or the download that would help; ``None``: it may wait."""
    sides = list(desk.reachable(want))
    if not sides:
        return EndpointDown(
            "there is no endpoint of language models",
            fix="Start Ollama on one of the machines, or name a server below `endpoints:` in config/labd.yaml",
        )
    if is_remote_name(want.model) and not desk.rules.allow_remote:
        return _remote(want)
    able = desk.candidates(want)
    if able:
        want.stuck_since_s = None
        return _unusable(desk, want, able)
    having = [side for side in sides if want.name in side.models]
    if having and not any(desk.may_run(side, want) for side in having):
        return _remote(want)
    unknown = [side for side in sides if side.look is None or not (side.answers or side.models)]
    if any(side.answers and desk.in_flight(side) for side in having):
        want.stuck_since_s = None  # one is on trial
        return None
    if having or unknown:
        return _patience(desk, want, sides)
    return _missing(desk, want, sides)


def _remote(want: Want) -> ModelError:
    return ModelRefused(
        f"the model {printable(want.model, 100)} runs on somebody else's machines",
        fix="Choose a local model, or allow it with `llm: {allow_remote: true}` in config/labd.yaml",
    )


def _unusable(desk: Desk, want: Want, able: Sequence[Side]) -> ModelError | None:
    """Give what keeps every endpoint that has the model from serving it, if something does for good."""
    # What holds one model for ever is asked with the context that it has.
    longest = [side.models[want.name].max_ctx if side.swaps else 0 for side in able]
    if all(longest) and want.num_ctx > max(longest):
        return RequestRefused(
            f"num_ctx is {want.num_ctx}, and {printable(want.model, 100)} knows at most {max(longest)}",
            fix=f"Write `num_ctx: {max(longest)}` or less",
        )
    errors = [side.load_errors.get(want.name) for side in able]
    usable = any(desk.fits(side, want) for side in able)
    if not usable and all(error and error.count >= desk.rules.load_tries for error in errors):
        told = {
            side.name: error.message for side, error in zip(able, errors, strict=True) if error
        }
        where, what = next(iter(told.items()))
        return EndpointFailed(
            f"the model {printable(want.model, 100)} can't be loaded: {what}",
            where=printable(where, 100),
            fix="Look into the log of that server",
        )
    return None


def _missing(desk: Desk, want: Want, sides: Sequence[Side]) -> ModelError | Pull | None:
    shown = printable(want.model, 100)
    pulling = [side for side in sides if side.pulling]
    if any(name_of(side.pulling) == want.name for side in pulling):
        return None
    may_pull = [side for side in sides if side.endpoint.pull and side.answers and side.swaps]
    failed = [error for side in may_pull if (error := side.load_errors.get(want.name))]
    if may_pull and not failed:
        free = [side for side in may_pull if not side.pulling]
        return Pull(free[0].name, want.model) if free else None
    alone = [s for s in desk.sides.values() if s not in sides and want.name in s.models]
    if alone:
        return ModelMissing(
            f"no endpoint that work on this machine can reach has the model {shown}",
            fix=f"{printable(alone[0].name, 60)} has it: let it listen on an address that the others reach (OLLAMA_HOST)",
        )
    by_ollama = any(side.endpoint.api == "ollama" for side in sides)
    why = (
        failed[0].message
        if failed
        else f"looked at: {', '.join(printable(s.name, 60) for s in sides)}"
    )
    return ModelMissing(
        f"no endpoint has the model {shown} ({why})",
        fix=f"On one of those machines: ollama pull {shown}" if by_ollama else "Load it there",
    )


def _patience(desk: Desk, want: Want, sides: Sequence[Side]) -> ModelError | None:
    if want.stuck_since_s is None:
        want.stuck_since_s = desk.now_s
    waited_s = desk.now_s - want.stuck_since_s
    if waited_s < desk.rules.patience_s:
        return None
    problems = "; ".join(f"{side.name}: {_problem(side)}" for side in sides)
    return EndpointDown(
        f"no endpoint could be asked for {print_duration(waited_s)} ({printable(problems, 600)})",
        fix="`labd models` shows their state",
    )


def _problem(side: Side) -> str:
    if side.look is None:
        return "not seen yet"
    return side.look.problem or "failed too often, and rests"
