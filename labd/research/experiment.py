"""One run of a template's command in the sandbox, and the reading of what it left behind.

What a run writes is hostile until checked here: afterwards a run is a value with a reason beside
each value that is missing. Knows the sandbox as a given tool and nothing of searches or papers.
"""

import hashlib
import json
import math
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from labd.errors import LabdError, StorageError
from labd.files import write_atomic, write_json
from labd.research.early import (
    CURVE_NAME,
    MAX_ABS_VALUE,
    MAX_CURVES,
    Watch,
    read_curves,
    recorded,
    watching,
)
from labd.research.early import MAX_POINTS as MAX_CURVE_POINTS
from labd.research.record import Run, TrialStatus
from labd.sandbox import Ending, Limits, SandboxResult
from labd.template import Param, Template, fill_command
from labd.text import printable

MAX_METRICS_BYTES = 4 * 2**20
_REMOVE_TIMEOUT_S = 600.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


_MAX_KILLED = 3
_KILLED_PAUSE_S = 0.5
"""Whoever kills all processes kills this one too within that time, and nothing is recorded."""


class Cancelled(LabdError):
    """The work was called off from outside; what was under way is not recorded."""

    code = "cancelled"


class SandboxTool(Protocol):
    """What this package needs of a sandbox."""

    def run(
        self,
        argv: Sequence[str],
        *,
        workdir: Path,
        read_only: Mapping[str, Path],
        env: Mapping[str, str],
        limits: Limits,
        gpus: Sequence[int],
        log: Path | None,
        cancelled: threading.Event | None,
    ) -> SandboxResult:
        """Run `argv` with `workdir` as its only writable place and say how it ended."""
        ...


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the work is given from outside."""

    sandbox: SandboxTool
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set by somebody else to call the work off."""
    progress: Callable[[str, int, int, str], None] = _silent
    """Called from the sweep's own thread with stage, done, total, detail."""


def run_one(
    template: Template,
    tools: Tools,
    *,
    name: str,
    params: Mapping[str, Param],
    seed: int,
    split: Literal["validation", "test"],
    results_dir: Path,
    gpus: Sequence[int] = (),
    code: Path | None = None,
    watch: Watch | None = None,
) -> Run:
    """Run the template's command once and give what it measured, or why it measured nothing.

    `code`: a directory that the command sees in place of the template's own. `watch` looks at the run's output
    directory while it goes on, and once after its end; a run that it calls hopeless is ended, and has no value.

    A run that somebody killed, the kernel short of memory perhaps, says nothing about the experiment:
    it is run again, and counts as crashed only if that happens three times.

    Leaves ``runs/<name>/`` with `params.json`, `log.txt` and, of a good run, `metrics.json`. The
    run's own directory is removed when it has been read: it is of any size and holds anything.

    Raises:
        Cancelled: `tools.cancelled` was set.
        SandboxError: there is no sandbox, so nothing was run.
        StorageError: the disk would not take the run's files.

    """
    if tools.cancelled.is_set():
        raise Cancelled("the task was cancelled")
    directory = results_dir / "runs" / name
    work = directory / "work"

    def once(stop: threading.Event) -> SandboxResult:
        _prepare(directory, work, params)
        return tools.sandbox.run(
            fill_command(
                template, params="/work/params.json", seed=seed, split=split, out_dir="/work"
            ),
            workdir=work,
            read_only={"/inputs/template": code or template.directory},
            env=_environment(template.cpus_per_run),
            limits=Limits(wall_s=template.time_limit_s, memory_bytes=template.memory_bytes),
            gpus=gpus,
            log=directory / "log.txt",
            cancelled=stop,
        )

    try:
        with watching(watch, work, tools.cancelled) as stop:
            result = once(stop.event)
            for _ in range(_MAX_KILLED - 1):
                if not _was_killed(result):
                    break
                tools.cancelled.wait(_KILLED_PAUSE_S)
                result = once(stop.event)
        if result.ending is Ending.CANCELLED and not stop.reason:
            raise Cancelled("the task was cancelled", where=name)
        measured = _judge(result, template, work, stop.reason)
        if measured.raw is not None:
            write_atomic(directory / "metrics.json", measured.raw)
    except OSError as error:
        raise StorageError(
            f"the run's files could not be written: {error.strerror}", where=str(directory)
        ) from error
    finally:
        # Also on a full disk: what the run left is what fills it.
        remove_tree(work)
    return Run(
        name=name,
        params=dict(params),
        seed=seed,
        split=split,
        status=measured.status,
        value=measured.value,
        reason=measured.reason,
        curves=measured.curves,
        steps=measured.steps,
        wall_s=round(result.wall_s, 3),
        exit_code=result.exit_code,
        directory=f"runs/{name}",
        metrics_sha256=None if measured.raw is None else hashlib.sha256(measured.raw).hexdigest(),
    )


def remove_tree(path: Path) -> None:
    """Remove a directory that untrusted code filled, however deep or forbidding it is.

    Raises:
        StorageError: something is left.

    """
    # shutil.rmtree recurses in Python and fails on a thousand nested directories; rm(1) does not.
    commands = (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"])
    for command in commands:
        if not os.path.lexists(path):
            return
        subprocess.run(
            [*command, "--", str(path)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_REMOVE_TIMEOUT_S,
        )
    if os.path.lexists(path):
        raise StorageError("the directory could not be removed", where=printable(str(path)))


@dataclass(frozen=True, slots=True)
class _Measured:
    status: TrialStatus
    value: float | None = None
    reason: str | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)
    raw: bytes | None = None


class _NoMetricError(Exception):
    """Internal: why `metrics.json` gives no value."""


def _prepare(directory: Path, work: Path, params: Mapping[str, Param]) -> None:
    remove_tree(directory)
    work.mkdir(parents=True)
    write_json(directory / "params.json", dict(params))
    write_json(work / "params.json", dict(params))


def _environment(cpus: int) -> dict[str, str]:
    # Sets and dicts of strings are ordered by the hash seed: fixed, so that a seed means a result.
    return {**dict.fromkeys(_THREAD_VARIABLES, str(cpus)), "PYTHONHASHSEED": "0"}


def _judge(result: SandboxResult, template: Template, work: Path, stopped: str = "") -> _Measured:
    if stopped:
        return _Measured(TrialStatus.HOPELESS, reason=f"it was stopped as hopeless: {stopped}")
    over = {
        Ending.OUTPUT_LIMIT: "it printed more than it may",
        Ending.DISK_LIMIT: "it wrote more to disk than it may",
        Ending.CPU_LIMIT: "it used more CPU time than it may",
        Ending.MEMORY_LIMIT: "it took more memory than it may",
    }
    if result.ending is Ending.TIMED_OUT:
        reason = f"it did not end within its {template.time_limit_s:g} s"
        return _Measured(TrialStatus.TIMED_OUT, reason=reason)
    if result.ending in over:
        return _Measured(TrialStatus.LIMIT, reason=over[result.ending])
    if result.ending is Ending.KILLED:
        reason = f"its sandbox was killed from outside, {_MAX_KILLED} times"
        return _Measured(TrialStatus.CRASHED, reason=reason)
    if result.exit_code != 0:
        return _Measured(TrialStatus.CRASHED, reason=_crash_reason(result))
    try:
        raw = _read_metrics(work / "metrics.json")
        parsed = _parse(raw)
        value = _metric(parsed, template.metric.name)
    except _NoMetricError as error:
        return _Measured(TrialStatus.NO_METRIC, reason=str(error))
    curves, steps = recorded(_curves(parsed.get("curves")), read_curves(work))
    return _Measured(TrialStatus.OK, value=value, curves=curves, steps=steps, raw=raw)


def _was_killed(result: SandboxResult) -> bool:
    return result.ending is Ending.KILLED or result.exit_code == -signal.SIGKILL


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


def _read_metrics(path: Path) -> bytes:
    """Read a file that untrusted code named, without following, waiting for or trusting anything."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _NoMetricError("it wrote no metrics.json") from error
    except OSError as error:
        reason = f"its metrics.json is not a plain readable file: {error.strerror}"
        raise _NoMetricError(reason) from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            raise _NoMetricError("its metrics.json is not a plain file with one name")
        if info.st_size > MAX_METRICS_BYTES:
            raise _NoMetricError(f"its metrics.json has more than {MAX_METRICS_BYTES} bytes")
        return os.read(fd, MAX_METRICS_BYTES)
    finally:
        os.close(fd)


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
