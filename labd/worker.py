"""One attempt at a task, on the node that runs it: builds the tools, does the research, writes the result.

Called by the engine in a Ray worker process; runs as well without Ray. Knows the sandbox, the journal
and research; nothing of the spool or of Ray.
"""

import importlib
import shutil
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from labd.archive import JOURNAL, LOG, Archive
from labd.clock import to_iso, utc_now
from labd.errors import LabdError, StorageError
from labd.journal import Journal
from labd.log import Logger, file_logger
from labd.research.experiment import Tools
from labd.research.paper import write_paper
from labd.research.record import outcome_lines
from labd.research.sweep import Brief, run_sweep
from labd.sandbox import Limits, Sandbox, SandboxConfig, SandboxResult
from labd.task import TaskSpec, parse_task
from labd.template import load_template

_FAILURE_PAUSE_S = 0.5
_DEADLINE_SHARE = (
    0.8  # of the task's timeout, after which the search stops and the paper is written
)


def run(job: dict[str, Any], gpus: list[int]) -> dict[str, Any]:
    """Do the attempt; give its outcome: ``attempt``, ``outcome`` (done or failed), ``error``, ``summary``.

    Never raises for what the task, its template or the disk did; such things are a failed outcome
    with ``code``, ``message`` and ``retryable`` in ``error``.
    """
    started = utc_now()
    clock = time.monotonic()
    results = Path(job["results_dir"])
    outcome: dict[str, Any] = {
        "task_id": job["task_id"],
        "attempt": job["attempt"],
        "outcome": "failed",
    }
    log: Logger | None = None
    try:
        log = file_logger(results / LOG).bind(task_id=job["task_id"], attempt=job["attempt"])
        log.info("attempt.started", node=job["node_id"], gpus=gpus)
        outcome |= _research(job, gpus, results, log, clock) | {"outcome": "done", "error": None}
    except LabdError as error:
        outcome["error"] = {
            "code": error.code,
            "message": str(error),
            "retryable": error.retryable,
        }
    except OSError as error:
        outcome["error"] = {
            "code": "storage",
            "message": f"{error.strerror}: {error.filename}",
            "retryable": True,
        }
    except Exception as error:  # noqa: BLE001 - the worker's one border: a fault of ours is an outcome, with its trace
        message = f"a fault in labd: {type(error).__name__}: {error}"
        outcome["error"] = {
            "code": "bug",
            "message": message,
            "retryable": False,
            "traceback": traceback.format_exc(),
        }
    if outcome["outcome"] == "failed":
        # A killed helper process may be the first sign of everything being killed: then this process
        # does not live to put a failure on record that the task has nothing to do with.
        time.sleep(_FAILURE_PAUSE_S)
    outcome |= {
        "started_at": to_iso(started),
        "finished_at": to_iso(utc_now()),
        "wall_s": round(time.monotonic() - clock, 3),
        "gpu_s": round((time.monotonic() - clock) * job["num_gpus"], 3),
        "tokens": 0,
    }
    return _keep(job, outcome, log)


def _keep(job: dict[str, Any], outcome: dict[str, Any], log: Logger | None) -> dict[str, Any]:
    research = outcome.pop("research", None)
    whole = {**outcome, **({"research": research} if research else {})}
    archive = Archive(Path(job["results_dir"]).parent)
    try:
        archive.write_result(job["task_id"], whole)
    except StorageError as error:
        if outcome["outcome"] == "done":
            outcome |= {
                "outcome": "failed",
                "error": {"code": error.code, "message": str(error), "retryable": True},
            }
    if log is not None:
        try:
            log.info(
                "attempt.finished",
                outcome=outcome["outcome"],
                error=outcome["error"],
                wall_s=outcome["wall_s"],
            )
        except OSError as error:
            outcome["log_lost"] = str(error)
    return outcome


def _research(
    job: dict[str, Any], gpus: list[int], results: Path, log: Logger, clock: float
) -> dict[str, Any]:
    _import_ahead()
    task = parse_task(job["task_text"].encode(), job["file_name"])
    spec = task.spec
    for warning in spec.warnings():
        log.warning("task.key_ignored", key=warning)
    template = load_template(
        spec.template or "", roots=[Path(root) for root in job["template_roots"]]
    )
    tools = Tools(
        sandbox=_CappedSandbox(job["sandbox"], job["min_free_bytes"]),
        cancelled=threading.Event(),
        progress=lambda stage, done, total, detail: log.info(
            "stage.progress", stage=stage, done=done, total=total, detail=detail
        ),
    )
    with Journal(results / JOURNAL) as journal:
        if len(journal):
            log.info("journal.resumed", steps=len(journal))
        record = run_sweep(_brief(job, spec, template, gpus, clock), tools, journal, results)
        log.info("stage.progress", stage="paper", done=0, total=1, detail="writing")
        rendered = write_paper(record, results)
    for warning in rendered.warnings:
        log.warning("paper.warning", detail=warning)
    log.info("stage.progress", stage="paper", done=1, total=1, detail="paper.pdf")
    return {"research": record.context(), "summary": outcome_lines(record)}


def _brief(
    job: dict[str, Any], spec: TaskSpec, template: Any, gpus: list[int], clock: float
) -> Brief:
    per_run = max(1, template.cpus_per_run)
    return Brief(
        task_id=job["task_id"],
        title=spec.title,
        template=template,
        seed=spec.seed,
        num_trials=spec.max_runs or template.num_trials,
        num_confirm_seeds=spec.num_seeds or template.num_confirm_seeds,
        parallel=max(1, int(job["num_cpus"] // per_run)),
        deadline=clock + _DEADLINE_SHARE * job["timeout_s"],
        task_text=job["task_text"],
        task_sha256=job["task_sha256"],
        gpus=tuple(gpus),
    )


class _CappedSandbox:
    """The sandbox with the settings' ceilings over what a template asks for, and room left on the disk."""

    def __init__(self, settings: dict[str, Any], reserve_bytes: int) -> None:
        self._box = Sandbox(
            SandboxConfig(uid=settings["uid"], allow_missing=frozenset(settings["allow_missing"]))
        )
        self._settings = settings
        self._reserve_bytes = reserve_bytes

    def run(
        self, argv: Sequence[str], *, workdir: Path, limits: Limits, **rest: Any
    ) -> SandboxResult:
        caps = self._settings
        room = shutil.disk_usage(workdir).free - self._reserve_bytes
        capped = replace(
            limits,
            memory_bytes=min(limits.memory_bytes, caps["memory_bytes"]),
            processes=min(limits.processes, caps["processes"]),
            disk_bytes=max(1, min(limits.disk_bytes, caps["disk_bytes"], room)),
            output_bytes=min(limits.output_bytes, caps["output_bytes"]),
        )
        return self._box.run(argv, workdir=workdir, limits=capped, **rest)


def _import_ahead() -> None:
    """Begin to import what is needed late in a task, while its experiments run."""
    names = ("labd.research.stats", "labd.research.plots", "optuna.importance", "sklearn.ensemble")
    threading.Thread(
        target=lambda: [importlib.import_module(name) for name in names],
        name="imports",
        daemon=True,
    ).start()
