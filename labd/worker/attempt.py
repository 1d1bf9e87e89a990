"""One attempt at a task, on the node that runs it: builds the tools, does the work, writes the result.

Called by the engine in a Ray worker process; runs as well without Ray. Knows the sandbox, the journal,
commands, prompts and research; nothing of the spool or of Ray. What research needs takes half a second to import,
so that is done by the first research task of a process only.
"""

import atexit
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labd.archive import LOG, Archive
from labd.clock import to_iso, utc_now
from labd.command.places import Fence
from labd.command.run import Attempt, Report, left_in, limits_of, run_command
from labd.errors import ConfigError, LabdError, SandboxError, StorageError, TaskFileError
from labd.files import JsonLines
from labd.limits import TaskLimits, settled
from labd.log import Logger, file_logger
from labd.sandbox import Ahead, sweep
from labd.task import TaskFile, parse_task
from labd.worker.boxes import LIMITS_HIT, gpus_free, note_ending, progress_to, sandbox_of
from labd.worker.signs import AFAR, Beats

if TYPE_CHECKING:
    from labd.llm.pool import Pool
    from labd.llm.wireform import Call
    from labd.worker.elsewhere import Machines

_FAILURE_PAUSE_S = 0.5
_PRIME_AFTER_S = 0.05
_TELL_EVERY_S = 10.0
_MAX_TOLD = 500

AHEAD = ".ahead"
"""Below the results: where sandboxes that wait for a command have their directories."""

OnStep = Callable[[str, bool], None]
"""Gets the key of each step of a journal, and whether it was replayed."""


@dataclass(frozen=True, slots=True)
class _Did:
    """What an attempt came to."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the result beside what every attempt has."""
    error: Mapping[str, Any] | None = None
    disturbed: bool = False
    """Something that it had started may have been killed from outside."""


def run(
    job: Mapping[str, Any],
    gpus: Sequence[int],
    on_step: OnStep | None = None,
    models: "Call | None" = None,
    signs: Path | None = None,
    *,
    machines: "Machines | None" = None,
) -> dict[str, Any]:
    """Do the attempt; give its outcome: ``attempt``, ``outcome`` (done or failed), ``error``, ``summary``.

    `models`: the way to the lab's broker of language models, where the job may need one. `signs`: a directory of this
    node in which workers say what they are at, see `labd.worker.signs.Beats`. `machines`: further ones for its runs.

    Never raises for what the task, its template or the disk did; such things are a failed outcome
    with ``code``, ``message`` and ``retryable`` in ``error``.
    """
    started = utc_now()
    clock = time.monotonic()
    LIMITS_HIT.clear()
    AFAR.clear()
    results = Path(job["results_dir"])
    with (
        pool_of(job, models) as pool,
        saying(signs, job, gpus, results=results, asks=lambda: 0 if pool is None else pool.asks),
    ):
        did = _guarded(lambda: _attempt(job, gpus, on_step, clock, pool=pool, machines=machines))
    if did.disturbed:
        # A killed helper process may be the first sign of everything being killed: then this process
        # does not live to put a failure on record that the task has nothing to do with.
        time.sleep(_FAILURE_PAUSE_S)
    wall_s = time.monotonic() - clock
    outcome: dict[str, Any] = {
        "task_id": job["task_id"],
        "attempt": job["attempt"],
        "outcome": "failed" if did.error else "done",
        "error": did.error,
        "tokens": 0,
        **did.facts,
        "started_at": to_iso(started),
        "finished_at": to_iso(utc_now()),
        "wall_s": round(wall_s, 3),
        "gpu_s": round(wall_s * job["num_gpus"] * (1 + len(job.get("also_nodes", ()))), 3),
        "limits_hit": dict(LIMITS_HIT),
    }
    return _keep(job, outcome)


class _Primer:
    """Has a sandbox wait for the next command, once none has begun or ended for a moment.

    Not at once: where short commands follow one another, starting ahead only costs (1.9 ms of CPU a run, measured).
    """

    def __init__(self, ahead: Ahead) -> None:
        self.ahead = ahead
        self._changed_s = 0.0
        self._changed = threading.Event()
        threading.Thread(target=self._prime_when_quiet, name="labd-primer", daemon=True).start()

    @contextmanager
    def busy(self) -> Iterator[Ahead]:
        """Run a command in the block."""
        self._note()
        try:
            yield self.ahead
        finally:
            self._note()

    def _note(self) -> None:
        self._changed_s = time.monotonic()
        self._changed.set()

    def _prime_when_quiet(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            while (left_s := self._changed_s + _PRIME_AFTER_S - time.monotonic()) > 0:
                time.sleep(left_s)
            self.ahead.prime()


@dataclass(slots=True)
class _Kept:
    """What this process keeps from one attempt to the next."""

    primer: _Primer | None = None
    beats: Beats | None = None


_kept = _Kept()


def warm_up(config: Mapping[str, Any]) -> None:
    """Do in advance, once for the process, what commands would wait for: imports, the sandbox's trial, a first sandbox.

    Args:
        config: ``results`` (the directory of all results, on this machine) and ``sandbox``, as in a job.

    """
    if _kept.primer is not None:
        return
    settings = config["sandbox"]
    sandbox = sandbox_of(settings["uid"], frozenset(settings["allow_missing"]))
    sandbox.gaps()
    sandbox.end_stuck()
    sweep(Path(config["results"]) / AHEAD)
    # Time and room on the disk are each run's own; a sandbox that waits has only the other limits.
    usual = settled(settings, TaskLimits())
    limits = limits_of(usual, wall_s=1.0, room_bytes=settings["disk_bytes"])
    ahead = Ahead(sandbox, Path(config["results"]) / AHEAD, limits=limits)
    ahead.prime()
    atexit.register(ahead.close)
    _kept.primer = _Primer(ahead)


def gaps(settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Give what the sandbox can't promise in this process, tried once: ``name``, ``what``, ``fix``.

    Args:
        settings: ``sandbox`` as in a job.

    """
    sandbox = sandbox_of(settings["uid"], frozenset(settings["allow_missing"]))
    return [{"name": gap.name, "what": gap.what, "fix": gap.fix} for gap in sandbox.gaps()]


def _guarded(work: Callable[[], _Did], *, started: bool = False) -> _Did:
    """Give what the work came to, its errors as data. `started`: it starts helpers that somebody may kill."""
    try:
        return work()
    except LabdError as error:
        told = {"code": error.code, "message": str(error), "retryable": error.retryable}
        idle = isinstance(error, TaskFileError | ConfigError)
        disturbed = isinstance(error, SandboxError) or (started and not idle)
        return _Did(error=told, disturbed=disturbed)
    except OSError as error:
        message = f"{error.strerror}: {error.filename}"
        told = {"code": "storage", "message": message, "retryable": True}
        return _Did(error=told, disturbed=started)
    except Exception as error:  # noqa: BLE001 - the worker's one border: a fault of ours is an outcome, with its trace
        told = {
            "code": "bug",
            "message": f"a fault in labd: {type(error).__name__}: {error}",
            "retryable": False,
            "traceback": traceback.format_exc(),
        }
        return _Did(error=told, disturbed=started)


@contextmanager
def pool_of(
    job: Mapping[str, Any], models: "Call | None", *, run: str = ""
) -> Iterator["Pool | None"]:
    """Give the attempt's way to language models and to GPUs that they fill, if it may need one.

    `run`: the one run of it that this process makes, where the attempt itself goes on elsewhere.
    """
    if models is None:
        yield None
        return
    from labd.llm.model import holder_of  # noqa: PLC0415 - most commands need none of it
    from labd.llm.pool import Pool  # noqa: PLC0415 - as above

    holder = "/".join([holder_of(job["task_id"], job["attempt"]), *([run] if run else [])])
    with Pool(models, holder=holder, node_id=job["node_id"], notes=_waits(job)) as pool:
        yield pool


@contextmanager
def saying(
    directory: Path | None,
    job: Mapping[str, Any],
    gpus: Sequence[int],
    *,
    results: Path | None = None,
    asks: Callable[[], int] | None = None,
    shipped: Callable[[], int] | None = None,
) -> Iterator[None]:
    """Say for the length of a block, for others on this node, that this process has the attempt.

    `directory`: as `signs` in `run`; the other arguments: see `labd.worker.signs.Beats.during`. One block may be inside another.
    """
    if directory is not None and _kept.beats is None:
        # Without a file for them the signs are missing, which is no evidence of anything, and the work can still be done.
        with suppress(OSError):
            _kept.beats = Beats(directory)
    if _kept.beats is None:
        yield
        return
    with _kept.beats.during(job, gpus, results=results, asks=asks, shipped=shipped):
        yield


def _waits(job: Mapping[str, Any]) -> Callable[[str, str], None]:
    """Give what says in the attempt's log why it waits for a model or for GPUs, now and then and not for ever."""
    facts = {"task_id": job["task_id"], "attempt": job["attempt"]}
    said: dict[str, float] = {}

    def tell(event: str, detail: str) -> None:
        now_s = time.monotonic()
        last_s = max(said.values(), default=float("-inf"))
        if detail in said or now_s - last_s < _TELL_EVERY_S or len(said) >= _MAX_TOLD:
            return
        said[detail] = now_s
        # A full disk is told by what the attempt itself can't write.
        with suppress(OSError), file_logger(Path(job["results_dir"]) / LOG) as log:
            log.bind(**facts).info(event, detail=detail)

    return tell


def _attempt(
    job: Mapping[str, Any],
    gpus: Sequence[int],
    on_step: OnStep | None,
    clock: float,
    *,
    pool: "Pool | None",
    machines: "Machines | None",
) -> _Did:
    task = parse_task(job["task_text"].encode(), job["file_name"])
    if task.spec.kind == "command":
        with gpus_free(pool, gpus, job["timeout_s"]):
            return _command(_after_wait(job, time.monotonic() - clock), task, gpus)
    with file_logger(Path(job["results_dir"]) / LOG) as plain:
        log = plain.bind(task_id=job["task_id"], attempt=job["attempt"])
        log.info("attempt.started", node=job["node_id"], gpus=list(gpus))

        def work() -> _Did:
            if task.spec.kind == "prompts":
                return _prompts(job, task, log, clock=clock, pool=pool)
            from labd.worker.research import do_research  # noqa: PLC0415 - see the module's docstring

            return _Did(
                do_research(
                    *(job, task, gpus, log),
                    on_step=on_step,
                    clock=clock,
                    pool=pool,
                    machines=machines,
                )
            )

        did = _guarded(work, started=True)
        try:
            log.info(
                "attempt.finished",
                outcome="failed" if did.error else "done",
                error=did.error,
                wall_s=round(time.monotonic() - clock, 3),
            )
        except OSError as error:
            return replace(did, facts={**did.facts, "log_lost": str(error)})
    return did


def _keep(job: Mapping[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    """Write the result, and give the outcome without the research, which is in the result."""
    archive = Archive(Path(job["results_dir"]).parent)
    try:
        archive.write_result(job["task_id"], outcome)
    except StorageError as error:
        if outcome["outcome"] == "done":
            told = {"code": error.code, "message": str(error), "retryable": True}
            outcome |= {"outcome": "failed", "error": told}
    outcome.pop("research", None)
    return outcome


def _warn(results: Path, warnings: Sequence[str], job: Mapping[str, Any]) -> None:
    """Say in the log which keys have no effect; a command's own log is its output, so that is all there is."""
    if not warnings:
        return
    facts = {"task_id": job["task_id"], "attempt": job["attempt"]}
    said = {"event": "task.key_ignored", "level": "warning", "timestamp": to_iso(utc_now())}
    with JsonLines(results / LOG) as lines:
        for warning in warnings:
            lines.append({**facts, "key": warning, **said}, durable=False)


def _after_wait(job: Mapping[str, Any], waited_s: float) -> Mapping[str, Any]:
    """Give a job with the time that it has left: the daemon's clock ran while it waited for its GPUs' memory."""
    if waited_s < 1:
        return job
    return {**job, "timeout_s": max(1.0, job["timeout_s"] - waited_s)}


def _command(job: Mapping[str, Any], task: TaskFile, gpus: Sequence[int]) -> _Did:
    results = Path(job["results_dir"])
    _warn(results, task.spec.warnings(), job)
    with _kept.primer.busy() if _kept.primer else nullcontext() as ahead:
        report = _run_command(job, task, gpus, results, ahead)
    note_ending(str(report.facts.get("ending")))
    facts = {**report.facts, "summary": [report.summary]}
    return _Did(facts, report.error, report.disturbed)


def _run_command(
    job: Mapping[str, Any],
    task: TaskFile,
    gpus: Sequence[int],
    results: Path,
    ahead: Ahead | None,
) -> Report:
    return run_command(
        task,
        Attempt(
            job["task_id"],
            job["attempt"],
            results,
            job["num_cpus"],
            tuple(gpus),
            int(job["min_free_bytes"]),
        ),
        sandbox_of(job["sandbox"]["uid"], frozenset(job["sandbox"]["allow_missing"])),
        where=job["file_name"],
        fence=_fence(job),
        allow_network=job["allow_network"],
        limits=limits_of(
            settled(job["sandbox"], task.spec.limits),
            wall_s=job["timeout_s"],
            room_bytes=_room(job),
        ),
        ahead=ahead,
    )


def _fence(job: Mapping[str, Any]) -> Fence:
    return Fence(
        tuple(Path(root) for root in job["input_roots"]),
        tuple(Path(root) for root in job["forbidden_roots"]),
        Path(job["results_dir"]).parent,
    )


def _prompts(
    job: Mapping[str, Any], task: TaskFile, log: Logger, *, clock: float, pool: "Pool | None"
) -> _Did:
    from labd.llm.model import Options  # noqa: PLC0415 - see the module's docstring
    from labd.prompts.run import Patience, run_prompts  # noqa: PLC0415

    for warning in task.spec.warnings():
        log.warning("task.key_ignored", key=warning)
    if pool is None:
        raise ConfigError("this attempt has no way to language models", where=job["node_id"])
    report = run_prompts(
        task,
        pool,
        where=job["file_name"],
        results=Path(job["results_dir"]),
        fence=_fence(job),
        defaults=Options(job["default_model"] or "", num_ctx=job["default_num_ctx"]),
        patience=Patience.within(clock, job["timeout_s"]),
        progress=progress_to(log),
        log=log,
    )
    return _Did({**report.facts, "summary": [report.summary]}, report.error)


def _room(job: Mapping[str, Any]) -> int:
    """Give how much a command may write, with what an earlier attempt of it has left."""
    results = Path(job["results_dir"])
    left_bytes = left_in(results) if job["attempt"] > 1 else 0
    return shutil.disk_usage(results).free - int(job["min_free_bytes"]) + left_bytes
