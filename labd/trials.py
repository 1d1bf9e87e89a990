"""The trials of a research task, as its result or, before there is one, its journal tells them. Pure.

What a task left behind is read with tolerance: what is missing or of another form is left out.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

BASELINE = "baseline"
_MOST = 2_000


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial. `parent` is another trial's name, or empty; `value` is ``None`` where it gave none."""

    name: str
    parent: str = ""
    move: str = ""
    idea: str = ""
    status: str = ""
    value: float | None = None
    reason: str = ""
    plan: str = ""
    lines: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    wall_s: float | None = None


@dataclass(frozen=True, slots=True)
class Trials:
    """All trials of a task. `better` is ``higher`` or ``lower``; `best` a trial's name, or empty."""

    researcher: str
    metric: str
    better: str
    best: str
    trials: tuple[Trial, ...]


NONE = Trials("", "", "higher", "", ())


def trials_of(research: Mapping[str, Any]) -> Trials:
    """Give the trials of a result's ``research``."""
    metric = _mapping(research.get("metric"))
    listed = research.get("trials")
    trials = (
        [_trial(one) for one in listed[:_MOST] if isinstance(one, Mapping)]
        if isinstance(listed, list)
        else []
    )
    baseline = _mapping(research.get("baseline_run"))
    if baseline and not any(one.name == BASELINE for one in trials):
        if any(one.move for one in trials):  # of a researcher whose trials come from one another
            roots = {"", _text(baseline.get("name"))}
            trials = [replace(t, parent=BASELINE) if t.parent in roots else t for t in trials]
        trials = [_renamed(_trial(baseline)), *trials]
    named = tuple(one for one in trials if one.name)
    better = _text(metric.get("better")) or "higher"
    best = _text(research.get("best_trial")) or _best(named, better)
    return Trials(
        _text(research.get("researcher")), _text(metric.get("name")), better, best, named
    )


def trials_of_steps(steps: Iterable[Mapping[str, Any]]) -> Trials:
    """Give the trials that a journal holds so far: the runs on validation among its steps."""
    found: dict[str, Trial] = {}
    for step in steps:
        value = step.get("value")
        kind = _text(step.get("key")).partition("/")[0]
        if kind not in {"run", "trial"} or not isinstance(value, Mapping):
            continue
        trial = _trial(value)
        if value.get("split", "validation") == "validation" and trial.name and len(found) < _MOST:
            found[trial.name] = trial
    trials = tuple(
        _renamed(one) if one.name.startswith("baseline-") else one for one in found.values()
    )
    return Trials("", "", "higher", "", trials)


def _renamed(baseline: Trial) -> Trial:
    facts = (baseline.status, baseline.value, baseline.reason)
    return Trial(BASELINE, "", "", "", *facts, params=baseline.params, wall_s=baseline.wall_s)


def _trial(one: Mapping[str, Any]) -> Trial:
    run = _mapping(one.get("run")) or one
    added, removed = one.get("lines_added"), one.get("lines_removed")
    return Trial(
        name=_text(one.get("name")),
        parent=_text(one.get("parent")),
        move=_text(one.get("move")),
        idea=_text(one.get("idea")),
        status=_text(run.get("status")) or _text(one.get("status")),
        value=_number(run.get("value")),
        reason=_text(one.get("refused")) or _text(run.get("reason")),
        plan=_text(one.get("plan")),
        lines=f"+{added} -{removed}"
        if isinstance(added, int) and isinstance(removed, int)
        else "",
        params={str(k): str(v) for k, v in _mapping(one.get("params")).items()},
        wall_s=_number(run.get("wall_s")),
    )


def _best(trials: Iterable[Trial], better: str) -> str:
    sign = 1 if better == "higher" else -1
    valued = [(sign * one.value, one.name) for one in trials if one.value is not None]
    return max(valued, default=(0.0, ""))[1]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
