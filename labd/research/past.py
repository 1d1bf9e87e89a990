"""What the lab tried before: the ideas of earlier tasks on a template, and what came of them.

Reads what other tasks left below results/, each of which may be missing, half-written or anything at all: what
can't be read is passed over. Nothing here fails.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import FiniteFloat

from labd.research.plain import NotPlain, read_plain
from labd.template import Record
from labd.text import printable

IDEAS_FILE = "ideas.json"
RESULT_FILE = "result.json"
MAX_PAST = 60
_MAX_LOOKED = 2000
"""Tasks whose ideas are looked for, the newest first; a lab's results may be many thousands."""
_MAX_READ = 100
"""Of them on the same template, those that are read."""
_MAX_IDEAS_BYTES = 2**20
_MAX_RESULT_BYTES = 16 * 2**20
_MAX_ABS = 1e100
_MAX_TITLE = 300
_MAX_HYPOTHESIS = 1000

Outcome = Literal["improved", "no_improvement", "worse", "inconclusive", "failed", "not_run"]
"""``inconclusive``: it was better on validation and is not confirmed, or its confirmation was. ``failed``: it was
tried, and no trial gave a value."""
_VERDICTS: Mapping[str, Outcome] = {
    "improved": "improved",
    "no_improvement": "no_improvement",
    "worse": "worse",
    "inconclusive": "inconclusive",
}
BAD: frozenset[Outcome] = frozenset({"no_improvement", "worse", "failed"})
"""Outcomes that speak against trying it again."""


class PastIdea(Record):
    """An idea of an earlier task. Its texts came from a model, and are untrusted."""

    title: str
    hypothesis: str
    template: str
    outcome: Outcome
    effect: FiniteFloat | None = None
    """Its value less the baseline's on validation: figures of the test split are for no model's eyes."""
    task_id: str


def past_ideas(
    results: Path, template: str, *, without: str = "", limit: int = MAX_PAST
) -> list[PastIdea]:
    """Give what tasks on a template tried, the newest task first and in it the best idea.

    Args:
        results: the directory with a directory for each task.
        template: its name.
        without: the id of the task that asks.
        limit: of ideas, at most.

    """
    found: list[PastIdea] = []
    read = 0
    for directory in _newest(results):
        if len(found) >= limit or read >= _MAX_READ:
            break
        if directory.name == without:
            continue
        told = _object(directory / IDEAS_FILE, _MAX_IDEAS_BYTES)
        if told.get("template") != template:
            continue
        read += 1
        result = _object(directory / RESULT_FILE, _MAX_RESULT_BYTES)
        found += _of_task(directory.name, template, told, _mapping(result.get("research")))
    return found[:limit]


def _newest(results: Path) -> Iterator[Path]:
    """Give the directories of tasks that wrote ideas down, the last written first."""
    stamped = []
    try:
        with os.scandir(results) as entries:
            for entry in entries:
                try:
                    written = os.lstat(os.path.join(entry.path, IDEAS_FILE))  # noqa: PTH118 - a path object for each of many thousands takes longer
                except OSError:
                    continue
                stamped.append((-written.st_mtime_ns, entry.name))
    except OSError:
        return
    for _, name in sorted(stamped)[:_MAX_LOOKED]:
        yield results / name


def _object(path: Path, most_bytes: int) -> Mapping[str, Any]:
    """Read a JSON object; an empty one where there is none that can be read."""
    try:
        return _mapping(json.loads(read_plain(path, most_bytes, linked=True)))
    except (NotPlain, ValueError, RecursionError):
        return {}


def _of_task(
    task_id: str, template: str, told: Mapping[str, Any], study: Mapping[str, Any]
) -> Iterator[PastIdea]:
    for idea in _mappings(told.get("ideas")):
        title = _text(idea.get("title"), _MAX_TITLE)
        if not title:
            continue
        outcome, effect = _outcome(idea.get("name"), study)
        yield PastIdea(
            title=title,
            hypothesis=_text(idea.get("hypothesis"), _MAX_HYPOTHESIS),
            template=template,
            outcome=outcome,
            effect=effect,
            task_id=printable(task_id, 200),
        )


def _outcome(name: object, study: Mapping[str, Any]) -> tuple[Outcome, float | None]:
    """Judge an idea by a study's record: the selected one by the claim, others by their trials; the effect is on validation."""
    trials = [one for one in _mappings(study.get("trials")) if one.get("idea") == name]
    if not trials:
        return "not_run", None
    values = [value for one in trials if (value := _value(one)) is not None]
    baseline = _number(_mapping(study.get("baseline_run")).get("value"))
    if not values or baseline is None:
        return "failed", None
    higher = _mapping(study.get("metric")).get("better") != "lower"
    effect = (max(values) if higher else min(values)) - baseline
    best = study.get("best_trial")
    if best is not None and any(one.get("name") == best for one in trials):
        verdict = _mapping(study.get("claim")).get("verdict")
        known = isinstance(verdict, str) and verdict in _VERDICTS
        return (_VERDICTS[str(verdict)] if known else "inconclusive"), effect
    return ("inconclusive" if (effect > 0) == higher and effect else "no_improvement"), effect


def _value(trial: Mapping[str, Any]) -> float | None:
    return (
        _number(_mapping(trial.get("run")).get("value")) if trial.get("status") == "ok" else None
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN compares as false.
    return float(value) if abs(value) <= _MAX_ABS and math.isfinite(value) else None


def _text(value: object, most: int) -> str:
    return printable(" ".join(value.split()), most) if isinstance(value, str) else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> Sequence[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
