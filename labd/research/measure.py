"""What a run left behind, read: a value, or a status and a reason why there is none. Runs nothing.

What a run writes is hostile until checked here.
"""

import json
import math
import re
import signal
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labd.errors import ConfigError, ResearchError
from labd.research.early import CURVE_NAME, MAX_ABS_VALUE, MAX_CURVES, read_curves, recorded
from labd.research.early import MAX_POINTS as MAX_CURVE_POINTS
from labd.research.plain import Missing, NotPlain, read_plain
from labd.research.record import Run, TrialStatus
from labd.sandbox import Ending, SandboxResult
from labd.template import Template, ai_scientist, autoresearch
from labd.text import printable

MAX_METRICS_BYTES = 4 * 2**20
MAX_KILLED = 3
"""How often a run may be killed from outside before that counts against it."""
METRICS_NAME = "metrics.json"

MAX_PICTURES = 20
MAX_PICTURE_BYTES = 5 * 2**20
PICTURE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.png")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run gave."""

    status: TrialStatus
    value: float | None = None
    reason: str | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)
    """Of those curves that were reported on the way."""
    raw: bytes | None = None
    """The file with the metric, as it is kept."""


class _NoMetricError(Exception):
    """Internal: why there is no value."""


def judge(result: SandboxResult, template: Template, out_dir: Path, stopped: str = "") -> Measured:
    """Give what a run of the command measured, by its ending and what lies in its directory for results.

    With an evaluation to come the value is not looked for: the status is then ``ok`` without one. `stopped`: why the
    run was ended as hopeless, if it was.
    """
    if stopped:
        return Measured(TrialStatus.HOPELESS, reason=f"it was stopped as hopeless: {stopped}")
    failed = _failure(result, template)
    if failed is not None:
        return failed
    reported = read_curves(out_dir) if template.curves else {}
    if template.evaluate:
        curves, steps = recorded({}, reported)
        return Measured(TrialStatus.OK, curves=curves, steps=steps)
    try:
        found = _found(result, template, out_dir)
    except _NoMetricError as error:
        return Measured(TrialStatus.NO_METRIC, reason=str(error))
    curves, steps = recorded(found.curves, reported)
    return replace(found, curves=curves, steps=steps)


def judge_evaluation(result: SandboxResult, template: Template, out_dir: Path) -> Measured:
    """Give what the evaluation of a run measured; where it fails, the run has left nothing that can be measured."""
    failed = _failure(result, template)
    if failed is not None:
        return Measured(TrialStatus.NO_METRIC, reason=f"its evaluation failed: {failed.reason}")
    try:
        return _own(out_dir, template)
    except _NoMetricError as error:
        return Measured(TrialStatus.NO_METRIC, reason=f"its evaluation failed: {error}")


def settled(template: Template, baseline: Run, results_dir: Path) -> Template:
    """Give the template with the metric that a run of the baseline wrote, where it had to be waited for.

    Raises:
        ResearchError: what the run wrote is not there any more.
        ConfigError: it holds nothing of which labd knows whether more is better.

    """
    if template.metric.name:
        return template
    path = results_dir / baseline.directory / METRICS_NAME
    try:
        raw = _read_plain(path, MAX_METRICS_BYTES)
        info = ai_scientist.parse_info(raw)
    except (_NoMetricError, ValueError) as error:
        raise ResearchError(
            f"the metric is not known: {error}",
            where=printable(str(path)),
            fix="Name it in the task file: `metric: {name: ..., better: lower}`",
        ) from error
    return replace(template, metric=ai_scientist.settle_metric(info))


def read_pictures(directory: Path, *, besides: Container[str]) -> dict[str, bytes]:
    """Give the PNG files that code left in a directory, by name; not those `besides`, nor too many or too big ones."""
    found: dict[str, bytes] = {}
    for path in sorted(directory.iterdir()):
        if len(found) == MAX_PICTURES or not PICTURE_NAME.fullmatch(path.name):
            continue
        try:
            raw = b"" if path.name in besides else _read_plain(path, MAX_PICTURE_BYTES)
        except _NoMetricError:
            continue
        if raw.startswith(_PNG):
            found[path.name] = raw
    return found


def _found(result: SandboxResult, template: Template, out_dir: Path) -> Measured:
    match template.style:
        case "ai_scientist":
            return _info(template, out_dir)
        case "autoresearch":
            return _printed(result.output, template)
    return _own(out_dir, template)


def _own(out_dir: Path, template: Template) -> Measured:
    raw = _read_plain(out_dir / METRICS_NAME, MAX_METRICS_BYTES)
    parsed = _parse(raw)
    value = _metric(parsed, template.metric.name)
    return Measured(TrialStatus.OK, value=value, curves=_curves(parsed.get("curves")), raw=raw)


def _info(template: Template, out_dir: Path) -> Measured:
    raw = _read_plain(out_dir / ai_scientist.INFO_NAME, MAX_METRICS_BYTES)
    try:
        info = ai_scientist.parse_info(raw)
        name = template.metric.name or ai_scientist.settle_metric(info).name
        value = ai_scientist.value_of(info, name)
    except (ValueError, ConfigError) as error:
        raise _NoMetricError(str(error)) from error
    return Measured(TrialStatus.OK, value=_bounded(value, name), raw=raw)


def _printed(output: str, template: Template) -> Measured:
    name = template.metric.name
    try:
        value = _bounded(autoresearch.value_in(output, name), name)
    except ValueError as error:
        raise _NoMetricError(str(error)) from error
    raw = json.dumps({"metrics": {name: value}}).encode()
    return Measured(TrialStatus.OK, value=value, raw=raw)


def _failure(result: SandboxResult, template: Template) -> Measured | None:
    """Say how a run ended that did not end well; ``None``: it did."""
    over = {
        Ending.OUTPUT_LIMIT: "it printed more than it may",
        Ending.DISK_LIMIT: "it wrote more to disk than it may",
        Ending.CPU_LIMIT: "it used more CPU time than it may",
        Ending.MEMORY_LIMIT: "it took more memory than it may",
    }
    if result.ending is Ending.TIMED_OUT:
        reason = f"it did not end within its {template.time_limit_s:g} s"
        return Measured(TrialStatus.TIMED_OUT, reason=reason)
    if result.ending is Ending.STUCK:
        reason = "stuck: it was ended because nothing in it moved any more"
        return Measured(TrialStatus.TIMED_OUT, reason=reason)
    if result.ending in over:
        return Measured(TrialStatus.LIMIT, reason=over[result.ending])
    if result.ending is Ending.KILLED:
        reason = f"its sandbox was killed from outside, {MAX_KILLED} times"
        return Measured(TrialStatus.CRASHED, reason=reason)
    if result.exit_code != 0:
        return Measured(TrialStatus.CRASHED, reason=_crash_reason(result))
    return None


def _crash_reason(result: SandboxResult) -> str:
    code = result.exit_code
    if code is None:
        how = "it was killed"
    elif code < 0:
        how = f"it was ended by {_signal_name(-code)}"
    else:
        how = f"it ended with exit code {code}"
    lines = [line.strip() for line in result.output.splitlines() if line.strip()]
    return f"{how}: {printable(lines[-1], 300)}" if lines else f"{how} and printed nothing"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read_plain(path: Path, limit_bytes: int) -> bytes:
    try:
        return read_plain(path, limit_bytes)
    except Missing as error:
        raise _NoMetricError(f"it wrote no {path.name}") from error
    except NotPlain as error:
        raise _NoMetricError(f"its {path.name} {error}") from error


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(raw)
    except RecursionError as error:
        raise _NoMetricError("its metrics.json is nested too deep") from error
    except ValueError as error:
        raise _NoMetricError(
            f"its metrics.json is not JSON: {printable(str(error), 200)}"
        ) from error
    if not isinstance(parsed, dict):
        raise _NoMetricError("its metrics.json is not a JSON object")
    return parsed


def _metric(parsed: Mapping[str, Any], name: str) -> float:
    metrics = parsed.get("metrics")
    if not isinstance(metrics, dict):
        raise _NoMetricError("its metrics.json has no object named metrics")
    if name not in metrics:
        raise _NoMetricError(f"its metrics.json has no metric named {name}")
    value = metrics[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NoMetricError(f"its metric {name} is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise _NoMetricError(f"its metric {name} is {value}")
    return _bounded(value, name)


def _bounded(value: float, name: str) -> float:
    if abs(value) > MAX_ABS_VALUE:
        raise _NoMetricError(f"its metric {name} is beyond {MAX_ABS_VALUE:g}")
    return float(value)


def _curves(given: object) -> dict[str, list[float]]:
    """Give the curves that are lists of numbers, each up to its first point that isn't one."""
    if not isinstance(given, dict):
        return {}
    kept: dict[str, list[float]] = {}
    for name, points in given.items():
        if len(kept) < MAX_CURVES and CURVE_NAME.fullmatch(name) and isinstance(points, list):
            good = _leading_numbers(points)
            if good:
                kept[name] = good
    return kept


def _leading_numbers(points: Sequence[object]) -> list[float]:
    good: list[float] = []
    for point in points[:MAX_CURVE_POINTS]:
        if isinstance(point, bool) or not isinstance(point, int | float):
            break
        # NaN compares as false, so it ends the curve here as infinity does.
        if not abs(point) <= MAX_ABS_VALUE:
            break
        good.append(float(point))
    return good
