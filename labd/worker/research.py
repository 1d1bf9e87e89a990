"""A research task on its node: from the job to the brief, and the sweep or the study that it asks for."""

import importlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from labd.archive import JOURNAL
from labd.errors import ConfigError
from labd.journal import Journal
from labd.literature.model import Options
from labd.literature.search import Literature
from labd.log import Logger
from labd.packing import unpack_all
from labd.research.experiment import Tools
from labd.research.groundwork import Brief
from labd.research.paper import write_paper
from labd.research.past import past_ideas
from labd.research.record import outcome_lines
from labd.research.researcher import Given, Plan, run_study
from labd.research.study import Role, study_lines
from labd.research.sweep import run_sweep
from labd.task import TaskFile, TaskSpec
from labd.template import Template
from labd.worker.boxes import CappedSandbox, progress_to
from labd.worker.elsewhere import Machines, room_elsewhere, template_of

if TYPE_CHECKING:
    from labd.llm.pool import Pool

LITERATURE = ".literature"
"""Below the results: answers of indexes of papers, to be used again."""
_DEADLINE_SHARE = (
    0.8  # of the task's timeout, after which the search stops and the paper is written
)
_RUNS_SHARE = (
    0.9  # of it, after which no run goes on, and what there is is judged and written down
)
_SHORT_S, _LEAST_KEPT_S, _MOST_KEPT_S = 60.0, 15.0, 300.0


def do_research(
    job: Mapping[str, Any],
    task: TaskFile,
    gpus: Sequence[int],
    log: Logger,
    *,
    on_step: Callable[[str, bool], None] | None,
    clock: float,
    pool: "Pool | None",
    machines: Machines | None,
) -> dict[str, Any]:
    """Do the research; give what belongs into the result: ``research``, ``summary``, ``tokens``.

    Raises:
        LabdError: it could not be done; the class says why.

    """
    _import_ahead()
    spec, results = task.spec, Path(job["results_dir"])
    for warning in spec.warnings():
        log.warning("task.key_ignored", key=warning)
    template = template_of(job, spec)
    until_s = clock + last_run_s(job["timeout_s"])
    tools = Tools(
        sandbox=CappedSandbox(
            job["sandbox"],
            spec.limits,
            job["min_free_bytes"],
            pool,
            until_s=until_s,
        ),
        cancelled=threading.Event(),
        progress=progress_to(log),
        elsewhere=room_elsewhere(job, template, machines, log, until_s=until_s),
    )
    with Journal(results / JOURNAL, on_step=on_step) as journal:
        unpack_all(results, spare_bytes=job["min_free_bytes"])
        brief = _brief(job, spec, template, gpus, clock, spent_s=journal.spent_s)
        if len(journal):
            log.info("journal.resumed", steps=len(journal))
        if spec.by_llm:
            return _study(job, spec, brief, tools=tools, journal=journal, pool=pool, log=log)
        record = run_sweep(brief, tools, journal, results)
        log.info("stage.progress", stage="paper", done=0, total=1, detail="writing")
        rendered = write_paper(record, results)
    for warning in rendered.warnings:
        log.warning("paper.warning", detail=warning)
    log.info("stage.progress", stage="paper", done=1, total=1, detail="paper.pdf")
    return {"research": record.context(), "summary": outcome_lines(record)}


def _study(
    job: Mapping[str, Any],
    spec: TaskSpec,
    brief: Brief,
    *,
    tools: Tools,
    journal: Journal,
    pool: "Pool | None",
    log: Logger,
) -> dict[str, Any]:
    if pool is None:
        raise ConfigError("this attempt has no way to language models", where=job["node_id"])
    plan = Plan(
        brief,
        models=_models(spec, job["default_model"]),
        num_ctx=job["default_num_ctx"],
        num_ideas=spec.num_ideas or 3,
        policy=spec.search or "tree",
        control=bool(spec.control),
        max_tokens_total=spec.max_tokens_total,
        num_reviews=3 if spec.num_reviews is None else spec.num_reviews,
        reviewers=_reviewers(spec),
        improve=bool(spec.improve),
        language=spec.language or "en",
    )
    results = Path(job["results_dir"])
    past = past_ideas(results.parent, brief.template.name, without=job["task_id"])
    published = run_study(plan, tools, journal, results, Given(pool, past, _shelf(job)))
    for warning in published.warnings:
        log.warning("paper.warning", detail=warning)
    study, reviews = published.study, published.reviews
    return {
        "research": study.context(),
        "reviews": None if reviews is None else reviews.as_data()["scores"],
        "summary": [*study_lines(study), *([] if reviews is None else [reviews.told()])],
        "tokens": sum(use.prompt_tokens + use.output_tokens for use in study.models),
    }


def _shelf(job: Mapping[str, Any]) -> Literature | None:
    """Give where papers are looked up; ``None`` where the settings name nothing."""
    options = Options.model_validate(job["literature"])
    if not options.library and not options.online:
        return None
    return Literature(options, Path(job["results_dir"]).parent / LITERATURE)


def _models(spec: TaskSpec, default: str | None) -> dict[Role, str]:
    """Give the model of each role: the task's, else the settings', else another role's; of several the first."""
    given = spec.model if isinstance(spec.model, dict) else {}
    named = {role: one if isinstance(one, str) else one[0] for role, one in given.items()}
    one = spec.model if isinstance(spec.model, str) else default or next(iter(named.values()), "")
    if not one:
        raise ConfigError(
            "no model: neither the task nor the settings name one",
            where="model",
            fix="Add `model: …` to the task, or `llm: {model: …}` to config/labd.yaml",
        )
    return {role: named.get(role, one) for role in get_args(Role)}


def _reviewers(spec: TaskSpec) -> tuple[str, ...]:
    several = spec.model.get("review") if isinstance(spec.model, dict) else None
    return several if isinstance(several, tuple) else ()


def _brief(
    job: Mapping[str, Any],
    spec: TaskSpec,
    template: Template,
    gpus: Sequence[int],
    clock: float,
    *,
    spent_s: float,
) -> Brief:
    within_s, spent_s = time_left(job["timeout_s"], spec.max_hours, spent_s)
    per_run = max(1, template.cpus_per_run)
    return Brief(
        task_id=job["task_id"],
        title=spec.title,
        template=template,
        seed=spec.seed,
        num_trials=spec.max_runs or template.num_trials,
        num_confirm_seeds=spec.num_seeds or template.num_confirm_seeds,
        parallel=max(1, int(job["num_cpus"] // per_run)),
        deadline=clock + within_s,
        spent_s=spent_s,
        task_text=job["task_text"],
        task_sha256=job["task_sha256"],
        gpus=tuple(gpus),
    )


def time_left(timeout_s: float, max_hours: float | None, spent_s: float) -> tuple[float, float]:
    """Give how long an attempt may search, and what earlier ones have used of that time.

    Args:
        timeout_s: of each attempt.
        max_hours: of all attempts together.
        spent_s: what earlier ones have used.

    """
    attempt_s = min(_DEADLINE_SHARE * timeout_s, last_run_s(timeout_s))
    hours_s = 3600 * (max_hours or math.inf) - spent_s
    return (hours_s, spent_s) if hours_s < attempt_s else (attempt_s, 0.0)


def last_run_s(timeout_s: float) -> float:
    """Give when the last run has to be over, in seconds from the attempt's begin, so that a paper is written in time."""
    if timeout_s < _SHORT_S:
        return timeout_s  # there is no time for a paper in any case
    kept_s = min(_MOST_KEPT_S, max(_LEAST_KEPT_S, (1 - _RUNS_SHARE) * timeout_s))
    return timeout_s - kept_s


def _import_ahead() -> None:
    """Begin to import what is needed late in a task, while its experiments run."""
    names = ("labd.research.stats", "labd.research.plots", "optuna.importance", "sklearn.ensemble")
    threading.Thread(
        target=lambda: [importlib.import_module(name) for name in names],
        name="imports",
        daemon=True,
    ).start()
