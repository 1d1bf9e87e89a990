"""Early stop: the curves that a run reports while it goes on, and when they say that it is hopeless.

A running experiment may append JSON lines such as ``{"step": 100, "accuracy": 0.9}`` to ``curves.jsonl`` in its
output directory. They are hostile until read here.
"""

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from labd.research.plain import NotPlain, read_plain
from labd.research.record import Run
from labd.template import Metric

FILE_NAME = "curves.jsonl"
MAX_FILE_BYTES = 4 * 2**20
MAX_CURVES = 32
MAX_POINTS = 1000
"""Of a curve that is recorded; of a longer one every second point is, or every third and so on."""
MAX_ABS_VALUE = 1e100
"""A larger metric is taken for a mistake; the statistics square what they get."""
_LEAST_POINTS = 4
_LEAST_SHARE = 1 / 3
"""Of the best trial's steps; before that, a slow start says little."""
_POLL_S = 0.25
_LOOK_S = 0.5
_REST = 30
"""A look is followed by so many times its own duration without one."""

CURVE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

Watch = Callable[[Path], str]
"""Gets a run's output directory now and then, and gives why it should be ended, or nothing."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A series by step; the values may be NaN or infinite."""

    steps: Sequence[float]
    values: Sequence[float]


def hopeless(curve: Curve, best: Curve | None, *, better: str, name: str = "value") -> str:
    """Say why a curve so far shows that its run is not worth its time; empty where it does not.

    It does where it holds a number that is none, and where the best of it is worse than the average of the best
    trial's curve until the same step. What is said of a curve is said of every longer one that begins with it, so
    that it does not matter when somebody looks.

    Source: the median stopping rule with one completed trial, Golovin et al. (2017), Google Vizier, section 3.2.1,
    https://doi.org/10.1145/3097983.3098043.
    """
    for step, value in zip(curve.steps, curve.values, strict=True):
        if not abs(value) <= MAX_ABS_VALUE:
            return f"{name} was {value} at step {step:g}"
    if best is None or not best.steps:
        return ""
    sign = 1.0 if better == "higher" else -1.0
    so_far, total, at = -math.inf, 0.0, 0
    for count, (step, value) in enumerate(zip(curve.steps, curve.values, strict=True), 1):
        so_far = max(so_far, sign * value)
        while at < len(best.steps) and best.steps[at] <= step:
            total, at = total + sign * best.values[at], at + 1
        early = count < _LEAST_POINTS or step < _LEAST_SHARE * best.steps[-1]
        if not early and at and so_far < total / at:
            return (
                f"until step {step:g} its {name} was at best {sign * so_far:.4g}, and that of the best trial "
                f"{sign * total / at:.4g} on average"
            )
    return ""


@dataclass(frozen=True, slots=True)
class CurveWatch:
    """A `Watch` that ends a run for its curves: one that is not finite, or the metric's own against the best trial's.

    The metric's own are those that have its name, alone or after ``validation_`` or ``val_``. A curve that the best
    trial did not report, or reported with values that are not finite, is no reason: there the template's own code may do so.
    """

    metric: Metric
    best: Run | None
    _sizes: dict[Path, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, out_dir: Path) -> str:
        """Give why the run should be ended, or nothing."""
        raw = _reported(out_dir)
        if self._sizes.get(out_dir) == len(raw):
            return ""
        self._sizes[out_dir] = len(raw)
        known = self._known()
        for name, curve in _parsed(raw).items():
            if self.best is not None and name not in self.best.steps:
                continue
            reason = hopeless(curve, known.get(name), better=self.metric.better, name=name)
            if reason:
                return reason
        return ""

    def as_data(self) -> dict[str, Any]:
        """Give it as plain JSON data."""
        best = None if self.best is None else self.best.model_dump(mode="json")
        return {"metric": self.metric.model_dump(mode="json"), "best": best}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Make one of what `as_data` gave."""
        best = None if data["best"] is None else Run.model_validate(data["best"])
        return cls(Metric.model_validate(data["metric"]), best)

    def _known(self) -> dict[str, Curve]:
        best, name = self.best, self.metric.name
        if best is None:
            return {}
        return {
            curve: Curve(best.steps[curve], best.curves[curve])
            for curve in (name, f"validation_{name}", f"val_{name}")
            if curve in best.steps
        }


def read_curves(out_dir: Path) -> dict[str, Curve]:
    """Give what a run has reported so far; nothing where its file is no plain file. Lines that are none are left out."""
    return _parsed(_reported(out_dir))


def recorded(
    curves: Mapping[str, list[float]], reported: Mapping[str, Curve]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Give the curves of a good run, and the steps of those that it reported on its way.

    Args:
        curves: from its `metrics.json`; these hold where both have one of a name.
        reported: what `read_curves` gave at its end.

    """
    values, steps = dict(curves), {}
    for name, curve in reported.items():
        finite = all(abs(value) <= MAX_ABS_VALUE for value in curve.values)
        if name not in curves and finite and len(values) < MAX_CURVES:
            every = -(-len(curve.values) // MAX_POINTS)
            values[name] = list(curve.values[::every])
            steps[name] = list(curve.steps[::every])
    return values, steps


def _reported(out_dir: Path) -> bytes:
    """Give what the run's file of curves holds now; nothing where it is no plain file."""
    try:
        return read_plain(out_dir / FILE_NAME, MAX_FILE_BYTES, cut=True)
    except NotPlain:
        return b""


def _parsed(raw: bytes) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    # The last piece is half a line, or nothing.
    for index, line in enumerate(raw.split(b"\n")[:-1]):
        for name, step, value in _points(line, index):
            if name in points or len(points) < MAX_CURVES:
                points.setdefault(name, []).append((step, value))
    return {
        name: Curve([step for step, _ in pairs], [value for _, value in pairs])
        for name, pairs in points.items()
    }


def _points(line: bytes, index: int) -> Iterator[tuple[str, float, float]]:
    """Give name, step and value of all that a line reports; the line's own number is the step where it has none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return
    step = _number(row.get("step", index)) if isinstance(row, dict) else None
    if step is None or not abs(step) < 2**53:
        return
    for name, given in row.items():
        value = _number(given)
        if value is not None and name != "step" and CURVE_NAME.fullmatch(name):
            yield name, step, value


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


# -- ending a run


@dataclass(slots=True)
class Stop:
    """How a run is ended from outside.

    Attributes:
        event: ends the run when it is set.
        reason: why `watch` had it ended; empty otherwise.

    """

    event: threading.Event
    reason: str = ""


@contextmanager
def watching(watch: Watch | None, out_dir: Path, cancelled: threading.Event) -> Iterator[Stop]:
    """Have a run ended while the block runs, for `cancelled` or for what `watch` says.

    `Stop.reason` is final after the block: `watch` has a last look then, so that a run is judged by what it
    reported and not by who was faster.
    """
    if watch is None:
        yield Stop(cancelled)
        return
    stop, over = Stop(threading.Event()), threading.Event()

    def look() -> None:
        stop.reason = stop.reason or watch(out_dir)
        if stop.reason:
            stop.event.set()

    def guard() -> None:
        next_look_s = time.monotonic() + _LOOK_S
        while not over.wait(_POLL_S):
            if cancelled.is_set():
                stop.event.set()
            if time.monotonic() >= next_look_s:
                began_s = time.monotonic()
                look()
                took_s = time.monotonic() - began_s
                next_look_s = began_s + max(_LOOK_S, _REST * took_s)

    thread = threading.Thread(target=guard, name="watch", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        over.set()
        thread.join()
    look()
