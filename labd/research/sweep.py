"""The sweep: a search over a template's parameters, and an honest comparison of what it finds.

Calls the stages in order, each piece through the journal. The search sees the validation split
only; the claim rests on the test split, over seeds that the search never used.
"""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labd.errors import StorageError
from labd.journal import Journal
from labd.research.bench import Bench, Job
from labd.research.evidence import Arm, confirm, cut_notes, failure_notes, judge
from labd.research.experiment import Cancelled, Tools
from labd.research.groundwork import (
    Brief,
    baseline_failed,
    check_means,
    recorded_provenance,
    run_baseline,
)
from labd.research.record import Claim, Importance, Provenance, ResearchRecord, Run, TrialStatus
from labd.research.search import BATCH_SIZE, Better, Observation, influence, propose
from labd.template import snapshot

_SPARE = 1.25
"""How much longer than estimated the runs that confirm may take before a time budget is missed."""


def run_sweep(
    brief: Brief,
    tools: Tools,
    journal: Journal,
    results_dir: Path,
) -> ResearchRecord:
    """Search, confirm, judge and draw; give the record, from which the paper is made.

    The same template, seed and numbers give the same record but for `Run.wall_s`, with any
    `parallel`, and also after a kill: what the journal has is not run again.

    Raises:
        Cancelled: `tools.cancelled` was set.
        OutOfTime: the task's time was over before anything could be compared.
        ConfigError: the template changed while it was read.
        ResearchError: the template can't be judged: its baseline gives no value, it needs a module
            that is not there, or more GPUs than there are.
        SandboxError: there is no sandbox.
        StorageError: the disk would not take the results.

    """
    check_means(brief.template)
    template = snapshot(brief.template, results_dir / "template")
    brief = replace(brief, template=template)
    with Bench(
        template, tools, journal, results_dir, parallel=brief.parallel, gpus=brief.gpus
    ) as lab:
        provenance = recorded_provenance(brief, journal)
        baseline = run_baseline(lab, provenance)
        found = search(brief, lab, journal, baseline, provenance)
        best = select(baseline, found.trials, template.metric.better)
        arms = [Arm("baseline", template.baseline)]
        if best is not None:
            arms.append(Arm("best", best.params))
        confirmed = confirm(lab, arms, provenance.confirm_seeds)
    if not any(run.value is not None for run in confirmed[0]):
        raise baseline_failed(confirmed[0], results_dir)
    tools.progress("analysis", 0, 1, "statistics and parameters")
    claim = judge(
        lab,
        [run.value for run in found.trials],
        confirmed[0],
        confirmed[1] if best is not None else None,
        planned=brief.num_confirm_seeds,
    )
    record = _record(
        brief,
        journal,
        baseline=baseline,
        found=found,
        best=best,
        confirmed=confirmed,
        claim=claim,
        provenance=provenance,
    )
    tools.progress("analysis", 1, 1, record.claim.verdict.value)
    return _with_figures(record, tools, results_dir)


@dataclass(frozen=True, slots=True)
class Searched:
    """The trials of a search, in order of proposal, and why it ended early if it did."""

    trials: list[Run]
    notes: list[str]


def search(
    brief: Brief,
    lab: Bench,
    journal: Journal,
    baseline: Run,
    provenance: Provenance,
    *,
    prefix: str = "",
    confirm_arms: int = 2,
) -> Searched:
    """Search the template's parameters on validation.

    Args:
        brief: what is searched, and how long.
        lab: runs the trials.
        journal: in which the proposals are steps.
        baseline: its run on validation.
        provenance: the seeds.
        prefix: of the names of its runs and steps.
        confirm_arms: how many sides are confirmed afterwards, for which time is kept.

    """
    trials: list[Run] = []
    for batch in itertools.count():
        if len(trials) == brief.num_trials:
            break
        key = f"{prefix}proposal/{batch:03d}"
        proposal = _proposal(
            brief, journal, [baseline, *trials], seed=provenance.search_seed, batch=batch, key=key,
            confirm_arms=confirm_arms, at_once=lab.at_once,
        )  # fmt: skip
        if proposal["stop"] is not None:
            return Searched(trials, [proposal["stop"]])
        first = len(trials)
        jobs = [
            Job(f"{prefix}trial-{first + index:03d}", params, provenance.trial_seed, "validation")
            for index, params in enumerate(proposal["params"])
        ]
        stage = f"{prefix}search"
        trials += lab.many(jobs, stage=stage, done=first, total=brief.num_trials)
    return Searched(trials, [])


def _proposal(
    brief: Brief,
    journal: Journal,
    runs: Sequence[Run],
    *,
    seed: int,
    batch: int,
    key: str,
    confirm_arms: int,
    at_once: int,
) -> dict[str, Any]:
    """Give ``params`` to try, or ``stop`` with the reason; recorded, so that a resumed search agrees.

    `runs` are the baseline and all trials so far.
    """
    history = [Observation(run.params, run.value) for run in runs]
    done = len(runs) - 1
    count = min(BATCH_SIZE, brief.num_trials - done)
    better = brief.template.metric.better
    inputs = {**_search_inputs(brief, history), "seed": seed, "count": count}

    def decide() -> dict[str, object]:
        if _out_of_time(brief, runs, confirm_arms, at_once):
            stop = (
                f"The search ended after {done} of {brief.num_trials} trials, "
                "so that the time given was enough to confirm what it had found."
            )
            return {"params": [], "stop": stop}
        params = propose(
            brief.template.space, history, better=better, count=count, seed=seed, batch=batch
        )
        stop = f"The search ended after {done} trials: every combination had been tried."
        return {"params": params, "stop": None if params else stop}

    decided: dict[str, Any] = journal.step(key, inputs, decide)
    return decided


def _search_inputs(brief: Brief, history: Sequence[Observation]) -> dict[str, Any]:
    observed = [[dict(one.params), one.value] for one in history]
    return {"template": brief.template.sha256, "history": observed}


def _out_of_time(brief: Brief, runs: Sequence[Run], confirm_arms: int, at_once: int) -> bool:
    """Say whether another batch, and the runs that confirm after it, would pass the deadline."""
    if brief.deadline is None:
        return False
    to_come = math.ceil(BATCH_SIZE / at_once) + math.ceil(
        confirm_arms * brief.num_confirm_seeds / at_once
    )
    run_s = statistics.median(run.wall_s for run in runs)
    return time.monotonic() + to_come * run_s * _SPARE > brief.deadline


def select(baseline: Run, trials: Sequence[Run], better: Better) -> Run | None:
    """Give the best trial on validation, the earliest of equals; `None` if none beats the baseline."""
    sign = 1.0 if better == "higher" else -1.0
    best, best_value = None, sign * (baseline.value or 0.0)
    for run in trials:
        if run.value is not None and sign * run.value > best_value:
            best, best_value = run, sign * run.value
    return best


def _importances(
    brief: Brief, journal: Journal, trials: Sequence[Run], best: Run | None
) -> list[Importance]:
    template = brief.template
    history = [Observation(run.params, run.value) for run in trials]
    inputs = _search_inputs(brief, history)
    shares: dict[str, float] | None = journal.step(
        "importance",
        inputs,
        lambda: influence(template.space, history, better=template.metric.better),
    )
    chosen = template.baseline if best is None else best.params
    return [
        Importance(
            name=spec.name,
            share=None if shares is None else shares[spec.name],
            best=chosen[spec.name],
            baseline=spec.baseline,
        )
        for spec in template.space
    ]


def _record(
    brief: Brief,
    journal: Journal,
    *,
    baseline: Run,
    found: Searched,
    best: Run | None,
    confirmed: Sequence[list[Run]],
    claim: Claim,
    provenance: Provenance,
) -> ResearchRecord:
    template = brief.template
    best_runs = confirmed[1] if best is not None else []
    arms = {"the baseline": confirmed[0], "the selected parameters": best_runs}
    return ResearchRecord(
        title=brief.title or template.title,
        template=template.name,
        template_title=template.title,
        template_description=template.description,
        researcher="sweep",
        metric=template.metric,
        space=list(template.space),
        baseline_run=baseline,
        trials=found.trials,
        best_trial=None if best is None else best.name,
        best_params=template.baseline if best is None else dict(best.params),
        confirm_baseline=confirmed[0],
        confirm_best=best_runs,
        claim=claim,
        importances=_importances(brief, journal, found.trials, best),
        counts=_counts(found.trials, 1 + sum(map(len, confirmed))),
        provenance=provenance,
        notes=[
            *found.notes,
            *cut_notes(confirmed, planned=brief.num_confirm_seeds),
            *failure_notes(arms),
            *template.cautions,
        ],
    )


def _counts(trials: Sequence[Run], others: int) -> dict[str, int]:
    by_status = {
        status.value: sum(run.status is status for run in trials) for status in TrialStatus
    }
    return {"trials": len(trials), **by_status, "runs": len(trials) + others}


def _with_figures(record: ResearchRecord, tools: Tools, results_dir: Path) -> ResearchRecord:
    from labd.research.plots import draw_figures

    # Not journaled: drawing takes a second, and the files may have stayed behind on another machine.
    if tools.cancelled.is_set():
        raise Cancelled("the task was cancelled")
    tools.progress("figures", 0, 1, "drawing")
    try:
        figures = draw_figures(record, results_dir)
    except OSError as error:
        raise StorageError(
            f"the figures could not be written: {error.strerror}", where=str(results_dir)
        ) from error
    tools.progress("figures", 1, 1, ", ".join(figures))
    return record.model_copy(update={"figures": figures})
