"""One run of a template's command in the sandbox, with its evaluation where the template has one.

What a run writes is hostile: `labd.research.measure` reads it. Afterwards a run is a value, or a reason
why there is none. Knows the sandbox as a given tool and nothing of searches or papers.
"""

import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from labd.errors import LabdError, ResearchError, StorageError
from labd.files import write_atomic, write_json
from labd.research.early import Stop, Watch, watching
from labd.research.measure import (
    MAX_KILLED,
    METRICS_NAME,
    Measured,
    judge,
    judge_evaluation,
    read_pictures,
)
from labd.research.record import Run
from labd.sandbox import Ending, Limits, SandboxResult
from labd.template import (
    Param,
    Stage,
    Template,
    ai_scientist,
    autoresearch,
    copy_files,
    fill_command,
    fill_evaluate,
)
from labd.template.model import INPUTS, RUN_DIR, TEMPLATE_DIR
from labd.trees import remove_tree

Split = Literal["validation", "test"]

LOG_NAME = "log.txt"
"""What a run printed, in its directory."""
_WORK = "/work"
_PARAMS = f"{_WORK}/params.json"
_REMOVE_TIMEOUT_S = 600.0
_PLOT_LIMIT_S = 600.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_KILLED_PAUSE_S = 0.5
"""Whoever kills all processes kills this one too within that time, and nothing is recorded."""


class Cancelled(LabdError):
    """The work was called off from outside; what was under way is not recorded."""

    code = "cancelled"


class OutOfTime(LabdError):
    """The time of the whole task is over, so that a run was ended or not begun; nothing of it is recorded."""

    code = "timed_out"


class SlotLost(LabdError):
    """A place for runs on another machine is none any more; the run that was to be made there says nothing."""

    code = "slot_lost"


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
        cwd: str,
    ) -> SandboxResult:
        """Run `argv` with `workdir` as its only writable place and say how it ended."""
        ...


class Elsewhere(Protocol):
    """Room for one run at a time on another machine."""

    def make(
        self, order: Mapping[str, Any], log: Path, cancelled: threading.Event
    ) -> Mapping[str, Any]:
        """Have the run of an order made there (see `labd.research.elsewhere`); give its answer. `log`: where its log will be here.

        Raises:
            Cancelled: `cancelled` was set meanwhile.
            OutOfTime: the time of the whole task was over.
            SlotLost: it can't be made there.

        """
        ...

    def given_up(self, run: str, reason: str) -> None:
        """Hear that no more runs are made there, and with which it ended."""
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
    elsewhere: Sequence[Elsewhere] = ()
    """Room for more runs, on other machines. Has no influence on what is found."""


def run_one(
    template: Template,
    tools: Tools,
    *,
    name: str,
    params: Mapping[str, Param],
    seed: int,
    split: Split,
    results_dir: Path,
    gpus: Sequence[int] = (),
    code: Path | None = None,
    watch: Watch | None = None,
) -> Run:
    """Run the template's command once and give what it measured, or why it measured nothing.

    `code`: a directory that the command sees in place of the template's own. Where the template has an
    evaluation, that alone measures, in a sandbox of its own with the template's own files. `watch` looks at the run's
    output directory while it goes on, and once after its end; a run that it calls hopeless is ended, and has no value.

    A run that somebody killed, the kernel short of memory perhaps, says nothing about the experiment:
    it is run again, and counts as crashed only if that happens three times.

    Leaves ``runs/<name>/`` with `params.json`, `log.txt` and, of a good run, `metrics.json`; with an evaluation
    `evaluation.txt`, its log, and where the baseline drew something of its own, `plots/`. The run's own
    directory is removed when it has been read: it is of any size and holds anything.

    Raises:
        Cancelled: `tools.cancelled` was set.
        OutOfTime: the time of the whole task was over.
        ResearchError: nobody looked for the template's data.
        SandboxError: there is no sandbox, so nothing was run.
        StorageError: the disk would not take the run's files.

    """
    if tools.cancelled.is_set():
        raise Cancelled("the task was cancelled")
    place = _Place(template, results_dir / "runs" / name, code)
    runner = _Runner(
        template, tools, name, tuple(gpus), read_only=_inputs(template, code, place.empty)
    )
    try:
        result, measured, wall_s = _made(
            runner, place, params=params, seed=seed, split=split, watch=watch
        )
        if measured.raw is not None:
            write_atomic(place.directory / METRICS_NAME, measured.raw)
        if code is None and split == "validation" and measured.reason is None:
            _draw(runner, place)
    except OSError as error:
        raise StorageError(
            f"the run's files could not be written: {error.strerror}", where=str(place.directory)
        ) from error
    finally:
        # Also on a full disk: what the run left is what fills it.
        place.clear()
    return _record(
        measured, result, name=name, params=params, seed=seed, split=split, wall_s=wall_s
    )


def _made(
    runner: "_Runner",
    place: "_Place",
    *,
    params: Mapping[str, Param],
    seed: int,
    split: Split,
    watch: Watch | None,
) -> tuple[SandboxResult, Measured, float]:
    """Run the command, and the evaluation if there is one: how the command ended, what was measured, and the seconds."""
    template, cancelled = runner.template, runner.tools.cancelled
    with watching(watch, place.out_dir, cancelled) as stop:
        result = runner.run(
            fill_command(
                template, params=_PARAMS, seed=seed, split=split, out_dir=place.told_out_dir
            ),
            place.work,
            log=place.directory / LOG_NAME,
            cwd=place.cwd,
            prepare=lambda: place.prepare(params),
            env=place.stage.env,
            stop=stop,
        )
    measured = judge(result, template, place.out_dir, stop.reason)
    if not template.evaluate or measured.reason is not None:
        return result, measured, result.wall_s
    argv = fill_evaluate(template, params=_PARAMS, seed=seed, split=split, out_dir=_WORK)
    evaluated = _evaluate(runner, place, argv, params)
    found = judge_evaluation(evaluated, template, place.evaluation)
    found = replace(found, curves={**measured.curves, **found.curves}, steps=measured.steps)
    return result, found, result.wall_s + evaluated.wall_s


def _record(
    measured: Measured,
    result: SandboxResult,
    *,
    name: str,
    params: Mapping[str, Param],
    seed: int,
    split: Split,
    wall_s: float,
) -> Run:
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
        wall_s=round(wall_s, 3),
        exit_code=result.exit_code,
        directory=f"runs/{name}",
        metrics_sha256=None if measured.raw is None else hashlib.sha256(measured.raw).hexdigest(),
    )


class _Place:
    """Where one run lies on the disk, and how it is told that inside."""

    def __init__(self, template: Template, directory: Path, code: Path | None) -> None:
        self.directory = directory
        self.work = directory / "work"
        self.evaluation = directory / "evaluation"
        self.empty = directory / "empty"
        self._template, self._code = template, code
        self.stage = _stage(template, edited=code is not None)
        self.home = self.work / self.stage.directory
        self.out_dir = self.home / self.stage.out_dir
        self.cwd = os.path.normpath(f"{_WORK}/{self.stage.directory}")
        self.told_out_dir = _WORK if template.style == "labd" else self.stage.out_dir

    def prepare(self, params: Mapping[str, Param]) -> None:
        """Make the directory anew, as the run expects it."""
        remove_tree(self.directory)
        self.work.mkdir(parents=True)
        write_json(self.directory / "params.json", dict(params))
        if self._template.private:
            self.empty.touch(0o444)
        if self._template.style == "labd":
            write_json(self.work / "params.json", dict(params))
            return
        copy_files(self._template, self.home, self._code)
        # What the author's own run left would be taken for what this one does.
        remove_tree(self.home / "run_0")
        for link, data in self.stage.links.items():
            (self.work / link).parent.mkdir(parents=True, exist_ok=True)
            (self.work / link).symlink_to(f"{INPUTS}/{data}")

    def clear(self) -> None:
        """Remove what untrusted code had in its hands."""
        remove_tree(self.evaluation)
        remove_tree(self.work)
        self.empty.unlink(missing_ok=True)


def _stage(template: Template, *, edited: bool) -> Stage:
    match template.style:
        case "ai_scientist":
            return ai_scientist.stage(template, edited=edited)
        case "autoresearch":
            return autoresearch.stage(template)
    return Stage(".", ".")


def _inputs(template: Template, code: Path | None, empty: Path) -> dict[str, Path]:
    """Give what a run sees of the host, by the place inside; in place of a private file the one that is `empty`."""
    if template.mounts is None and template.data:
        raise ResearchError(
            f"nobody looked for the data of the template {template.name}",
            where=", ".join(template.data),
            fix="Give it through labd.template.with_data first",
        )
    data = {f"{INPUTS}/{name}": path for name, path in (template.mounts or {}).items()}
    hidden = {f"{TEMPLATE_DIR}/{name}": empty for name in template.private}
    return {TEMPLATE_DIR: code or template.directory, **hidden, **data}


@dataclass(frozen=True, slots=True)
class _Runner:
    """Calls the sandbox for one run."""

    template: Template
    tools: Tools
    name: str
    gpus: tuple[int, ...]
    read_only: Mapping[str, Path]

    def run(
        self,
        argv: Sequence[str],
        work: Path,
        *,
        log: Path,
        prepare: Callable[[], None],
        cwd: str = _WORK,
        env: Mapping[str, str] | None = None,
        read_only: Mapping[str, Path] | None = None,
        wall_s: float | None = None,
        stop: Stop | None = None,
    ) -> SandboxResult:
        """Run a command, again while it is killed from outside, each time after `prepare`, unless `stop` ends it.

        Raises:
            Cancelled: the work was called off meanwhile.
            OutOfTime: the time of the whole task was over.

        """
        template, cancelled = self.template, stop.event if stop else self.tools.cancelled

        def once() -> SandboxResult:
            prepare()
            return self.tools.sandbox.run(
                argv,
                workdir=work,
                read_only=read_only or self.read_only,
                env={**_environment(template.cpus_per_run), **template.env, **(env or {})},
                limits=Limits(
                    wall_s=wall_s or template.time_limit_s, memory_bytes=template.memory_bytes
                ),
                gpus=self.gpus,
                log=log,
                cancelled=cancelled,
                cwd=cwd,
            )

        result = once()
        for _ in range(MAX_KILLED - 1):
            if not _was_killed(result):
                break
            cancelled.wait(_KILLED_PAUSE_S)
            result = once()
        if result.ending is Ending.CANCELLED and not (stop and stop.reason):
            raise Cancelled("the task was cancelled", where=self.name)
        if result.ending is Ending.OUT_OF_TIME:
            raise OutOfTime("the task's time limit was nearly over", where=self.name)
        return result


def _evaluate(
    runner: _Runner, place: _Place, argv: Sequence[str], params: Mapping[str, Param]
) -> SandboxResult:
    """Measure what the run left, which is seen read-only, by the template's own files and never by changed ones."""

    def prepare() -> None:
        remove_tree(place.evaluation)
        place.evaluation.mkdir()
        write_json(place.evaluation / "params.json", dict(params))

    _open(place.work)
    whole = _inputs(replace(runner.template, private=()), None, place.empty)
    return runner.run(
        argv,
        place.evaluation,
        log=place.directory / "evaluation.txt",
        prepare=prepare,
        read_only={**whole, RUN_DIR: place.out_dir},
    )


def _draw(runner: _Runner, place: _Place) -> None:
    """Let another system's directory draw the plots of its baseline; what it can't draw is left out."""
    files = runner.template.files_sha256
    if runner.template.style != "ai_scientist" or ai_scientist.PLOT not in files:
        return
    runner.run(
        ["python", ai_scientist.PLOT],
        place.work,
        log=place.directory / "plot.txt",
        prepare=lambda: None,
        cwd=place.cwd,
        env=place.stage.env,
        wall_s=min(_PLOT_LIMIT_S, runner.template.time_limit_s),
    )
    pictures = read_pictures(place.home, besides=files)
    if pictures:
        (place.directory / "plots").mkdir(exist_ok=True)
    for name, picture in pictures.items():
        write_atomic(place.directory / "plots" / name, picture)


def _open(path: Path) -> None:
    """Let another user read what lies there, as the sandbox of the evaluation may have one; links are not followed."""
    _call("chmod", "-R", "a+rX", "--", str(path))


def _call(*command: str) -> None:
    subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_REMOVE_TIMEOUT_S,
    )


def _environment(cpus: int) -> dict[str, str]:
    # Sets and dicts of strings are ordered by the hash seed: fixed, so that a seed means a result.
    return {**dict.fromkeys(_THREAD_VARIABLES, str(cpus)), "PYTHONHASHSEED": "0"}


def _was_killed(result: SandboxResult) -> bool:
    return result.ending is Ending.KILLED or result.exit_code == -signal.SIGKILL
