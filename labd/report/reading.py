"""From what a task left on record to what is told of it. Pure, and tolerant: what can't be read is named, and nothing fails."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from labd.clock import at_s_of
from labd.report.model import Comparison, IdeaTold, Lost, ModelTokens, Research
from labd.text import printable

ENDS = {"done": "done", "failed": "failed", "cancelled": "cancelled", "refused": "failed"}
MAX_IDEAS = 16
_MAX_TEXT = 300
_MAX_NUMBER = 1e15


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _line(value: object) -> str:
    return printable(value, _MAX_TEXT) if isinstance(value, str) else ""


_Line = Annotated[str, BeforeValidator(_line)]
_Count = Annotated[int, Field(ge=0, le=10**15)]


class _Sample(_Part):
    n: _Count
    mean: FiniteFloat


class _Claim(_Part):
    verdict: Literal["improved", "no_improvement", "worse", "inconclusive"]
    reason: _Line = ""
    baseline: _Sample | None = None
    best: _Sample | None = None
    difference: FiniteFloat | None = None
    difference_low: FiniteFloat | None = None
    difference_high: FiniteFloat | None = None
    effect_size: FiniteFloat | None = None
    p_value: FiniteFloat | None = None
    p_corrected: FiniteFloat | None = None
    comparisons: _Count | None = None


class _Metric(_Part):
    name: _Line = ""
    better: Literal["higher", "lower"] = "higher"


class _Use(_Part):
    model: _Line
    calls: _Count
    prompt_tokens: _Count
    output_tokens: _Count


class Ended(_Part):
    """What a task's events say of its end."""

    state: str
    at_s: float
    took_s: float | None = None
    code: str = ""
    message: str = ""


def end_of(events: Sequence[Mapping[str, Any]]) -> Ended | None:
    """Give a task's last end; ``None`` where its last event is none."""
    last = events[-1] if events else {}
    state, at_s = ENDS.get(str(last.get("event"))), at_s_of(last)
    if state is None or at_s is None:
        return None
    error = last.get("error")
    error = error if isinstance(error, Mapping) else {}
    took_s = number(last.get("duration_s"))
    return Ended(
        state=state,
        at_s=at_s,
        took_s=number(last.get("wall_s")) if took_s is None else took_s,
        code=_line(error.get("code")),
        message=_line(error.get("message")),
    )


def lost_of(events: Iterable[Mapping[str, Any]]) -> list[Lost]:
    """Give the attempts that the infrastructure lost."""
    found = ((event, at_s_of(event)) for event in events if event.get("event") == "lost")
    return [
        Lost(at_s, _line(event.get("code")), _line(event.get("reason")))
        for event, at_s in found
        if at_s is not None
    ]


def research_of(result: Mapping[str, Any]) -> tuple[Research | None, list[str]]:
    """Give what a result says of its research, and what in it can't be read; ``None`` where it has none."""
    research = result.get("research")
    if not isinstance(research, Mapping):
        return None, []
    wrong: list[str] = []
    claim = _claim(research.get("claim"), wrong)
    comparison = _comparison(claim, research.get("metric")) if claim else None
    if claim is not None and claim.verdict == "improved" and comparison is None:
        wrong.append("its claim says improved, and not by how much")
        claim = None
    ideas = _ideas(research)
    counts = research.get("counts")
    counts = counts if isinstance(counts, Mapping) else {}
    score, reviews = _score(result.get("reviews"))
    told = Research(
        verdict=claim.verdict if claim else "",
        reason=claim.reason if claim else "",
        comparison=comparison,
        ideas=tuple(ideas[:MAX_IDEAS]),
        ideas_left_out=max(0, len(ideas) - MAX_IDEAS),
        trials=_count(counts.get("trials")),
        runs=_count(counts.get("runs")),
        score=score,
        reviews=reviews,
        notes=tuple(_line(note) for note in _list(research.get("notes"))[:10] if _line(note)),
    )
    return told, wrong


def _claim(value: object, wrong: list[str]) -> _Claim | None:
    try:
        return _Claim.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        wrong.append(
            printable(f"its claim can't be read: {at or 'it'}: {first['msg']}", _MAX_TEXT)
        )
        return None


def _comparison(claim: _Claim, metric: object) -> Comparison | None:
    if claim.baseline is None or claim.best is None or claim.difference is None:
        return None
    try:
        named = _Metric.model_validate(metric)
    except ValidationError:
        named = _Metric()
    return Comparison(
        metric=named.name,
        better=named.better,
        baseline=claim.baseline.mean,
        best=claim.best.mean,
        difference=claim.difference,
        low=claim.difference_low,
        high=claim.difference_high,
        n_baseline=claim.baseline.n,
        n_best=claim.best.n,
        p_value=claim.p_value,
        p_corrected=claim.p_corrected,
        comparisons=claim.comparisons,
        effect_size=claim.effect_size,
    )


def _ideas(research: Mapping[str, Any]) -> list[IdeaTold]:
    metric = research.get("metric")
    lower = isinstance(metric, Mapping) and metric.get("better") == "lower"
    tried: Counter[str] = Counter()
    best: dict[str, float] = {}
    for trial in _mappings(research.get("trials")):
        idea, run = str(trial.get("idea") or ""), trial.get("run")
        tried[idea] += 1
        value = number(run.get("value")) if isinstance(run, Mapping) else None
        if value is not None and trial.get("status") == "ok":
            pick = min if lower else max
            best[idea] = pick(best.get(idea, value), value)
    return [
        IdeaTold(
            _line(idea.get("title")),
            _line(idea.get("source")),
            tried[str(idea.get("name"))],
            best.get(str(idea.get("name"))),
        )
        for idea in _mappings(research.get("ideas"))
    ]


def _score(reviews: object) -> tuple[float | None, int]:
    overall = reviews.get("overall") if isinstance(reviews, Mapping) else None
    if not isinstance(overall, Mapping):
        return None, 0
    mean, n = number(overall.get("mean")), _count(overall.get("n"))
    if mean is None or not 1 <= mean <= 10 or not n:
        return None, 0
    return mean, n


def tokens_of(
    kind: str, *, asks_models: bool, result: Mapping[str, Any]
) -> tuple[list[ModelTokens], bool]:
    """Give what a task asked of which models, and whether that is all on record.

    A task that failed on its way has no count of what it had asked by then: that is unknown, not nothing.
    """
    if kind == "prompts":
        return _prompt_tokens(result)
    if not asks_models:
        return [], True
    research = result.get("research")
    listed = research.get("models") if isinstance(research, Mapping) else None
    if not isinstance(listed, list):
        return [], False
    found: dict[str, list[_Use]] = {}
    known = True
    for one in listed:
        try:
            use = _Use.model_validate(one)
        except ValidationError:
            known = False
            continue
        found.setdefault(use.model, []).append(use)
    return [
        ModelTokens(
            model,
            sum(use.calls for use in uses),
            sum(use.prompt_tokens for use in uses),
            sum(use.output_tokens for use in uses),
        )
        for model, uses in found.items()
    ], known


def _prompt_tokens(result: Mapping[str, Any]) -> tuple[list[ModelTokens], bool]:
    total, output = _count(result.get("tokens")), _count(result.get("output_tokens"))
    model = _line(result.get("model"))
    if total is None or output is None or not model or output > total:
        return [], False
    # A later attempt counts what it asked itself, and not what was answered before it.
    prompts = result.get("prompts")
    before = prompts.get("answered_before") if isinstance(prompts, Mapping) else None
    return [ModelTokens(model, None, total - output, output)], before == 0


def number(value: object) -> float | None:
    """Give a finite number of a sane size, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) <= _MAX_NUMBER else None


def _count(value: object) -> int | None:
    found = number(value)
    return int(found) if found is not None and found >= 0 else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [one for one in _list(value) if isinstance(one, Mapping)]
