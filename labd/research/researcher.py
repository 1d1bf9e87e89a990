"""The research that a language model proposes and labd disposes of: from ideas to a reviewed paper.

Calls the stages in order, each piece through the journal. Trials see the validation split only; the claim
rests on the test split, over seeds that no trial used. Nothing that a model says becomes a number.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from labd.errors import StorageError
from labd.files import write_json
from labd.journal import Journal
from labd.llm.budget import Part
from labd.llm.model import Chat
from labd.research.ablation import ablate, pieces, seconds_needed
from labd.research.allowance import Allowance, Means
from labd.research.asking import Asker
from labd.research.bench import Bench
from labd.research.checker import mask_numbers
from labd.research.control import Searched, control_of, search_without_model
from labd.research.evidence import Arm, confirm, cut_notes, failure_notes, judge, values_of
from labd.research.experiment import OutOfTime, Tools
from labd.research.groundwork import (
    Brief,
    baseline_failed,
    check_means,
    recorded_provenance,
    run_baseline,
)
from labd.research.hunks import patch
from labd.research.ideas import gather_ideas
from labd.research.measure import settled
from labd.research.novelty import LookedUp, Shelf, look_up
from labd.research.past import IDEAS_FILE, PastIdea
from labd.research.policy import Manner
from labd.research.publishing import Published, publish
from labd.research.reach import reach_notes
from labd.research.record import Provenance, Run
from labd.research.search import Better
from labd.research.study import Ablation, Idea, Policy, Role, Study, Trial
from labd.research.sweep import select
from labd.research.trials import Workshop, run_trials
from labd.research.worktree import Worktree, editable_texts
from labd.template import Metric, Template, refuse_researcher, seed_ideas, snapshot

_HELLO_TOKENS = 16
EXPLORING_SHARE = 0.7
"""Of the tokens and the time, for ideas and trials: the rest is kept for evidence, paper and reviews."""
_NO_ABLATION = "There was no time left to take the winning changes away one at a time."


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a study beside its brief."""

    brief: Brief
    models: Mapping[Role, str]
    num_ctx: int
    num_ideas: int = 3
    policy: Policy = "tree"
    control: bool = False
    max_tokens_total: int | None = None
    num_reviews: int = 3
    reviewers: tuple[str, ...] = ()
    """Models that take turns at reviewing; none: the one of the role `review`."""
    improve: bool = False
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Given:
    """What a study is given from outside, beside the tools of every task."""

    chat: Chat
    past: Sequence[PastIdea] = ()
    """What the lab tried before."""
    shelf: Shelf | None = None
    """``None``: no literature is searched."""


def run_study(
    plan: Plan, tools: Tools, journal: Journal, results_dir: Path, given: Given
) -> Published:
    """Have a model research, write and review; give the study and its reviews, with their files in `results_dir`.

    The same journal gives the same study: no request that was answered and no run that ended is repeated.

    Raises:
        Cancelled: `tools.cancelled` was set.
        OutOfTime: the task's time was over before anything could be compared.
        ConfigError: the template changed while it was read, or names nothing, or nothing readable, that a model may change.
        ResearchError: the template can't be judged: its baseline gives no value, or needs what is not there.
        ModelError: no model could be reached at all.
        SandboxError: there is no sandbox.
        StorageError: the disk would not take the results.

    """
    check_means(plan.brief.template)
    template = snapshot(plan.brief.template, results_dir / "template")
    refuse_researcher(template, "llm")
    editable_texts(template)  # a file that can't be changed is told before anything is run
    brief = replace(plan.brief, template=template)
    plan = replace(plan, brief=brief)
    allowance = Allowance(plan.max_tokens_total, deadline=brief.deadline, spent_s=brief.spent_s)
    asker = Asker(
        given.chat,
        journal,
        allowance,
        models=plan.models,
        num_ctx=plan.num_ctx,
        calls_dir=results_dir / "calls",
        seed=brief.seed,
        cancelled=tools.cancelled,
    )
    provenance = recorded_provenance(brief, journal)
    _greet(plan, asker)
    with _bench(plan, tools, journal, results_dir) as bench:
        baseline = run_baseline(bench, provenance)
    # A foreign template may not say what it measures: then the baseline has.
    recorded = journal.step(
        "metric",
        {"run": baseline.metrics_sha256, "metric": template.metric.model_dump(mode="json")},
        lambda: settled(template, baseline, results_dir).metric.model_dump(mode="json"),
    )
    brief = replace(brief, template=replace(template, metric=Metric.model_validate(recorded)))
    plan = replace(plan, brief=brief)
    with _bench(plan, tools, journal, results_dir) as bench:
        desk = _Desk(plan, tools, journal, results_dir, given, bench, asker, allowance)
        study, patch_text = _study(desk, provenance, baseline)
    return publish(
        study,
        asker=asker,
        tools=tools,
        results_dir=results_dir,
        patch=patch_text,
        language=plan.language,
        num_reviews=plan.num_reviews,
        reviewers=plan.reviewers,
        improved=plan.improve,
    )


def _greet(plan: Plan, asker: Asker) -> None:
    """Ask each of several models for a word, so that one that is missing is told before anything was paid for.

    Raises:
        ModelError: a model can't be reached, or is not there.

    """
    roles = {model: role for role, model in plan.models.items()}
    roles |= dict.fromkeys(plan.reviewers, "review")
    if len(roles) == 1:
        return  # it is asked for ideas next
    for number, (model, role) in enumerate(roles.items()):
        hello = [Part("hello", "Reply with the word ready.", required=True)]
        asker.ask(f"hello/{number}", role, hello, num_predict=_HELLO_TOKENS, model=model)


def _bench(plan: Plan, tools: Tools, journal: Journal, results_dir: Path) -> Bench:
    brief = plan.brief
    return Bench(
        brief.template,
        tools,
        journal,
        results_dir,
        parallel=brief.parallel,
        gpus=brief.gpus,
    )


@dataclass(frozen=True, slots=True)
class _Desk:
    """What each stage needs."""

    plan: Plan
    tools: Tools
    journal: Journal
    results_dir: Path
    given: Given
    bench: Bench
    asker: Asker
    allowance: Allowance

    def limit(self, where: str, *, of: tuple[Means, ...]) -> str:
        """Say which limit is reached, or nothing; recorded, so that a resumed task stops where it had stopped."""
        said: str = self.journal.step(f"limit/{where}", {}, lambda: self.allowance.out_of(of=of))
        return said


def _study(desk: _Desk, provenance: Provenance, baseline: Run) -> tuple[Study, str]:
    """Give what was found, and what the selected code changed."""
    bench, template, planned = desk.bench, desk.bench.template, desk.plan.brief.num_confirm_seeds
    thought = _think(desk)
    notes = [*template.cautions, *thought.notes]
    work = Worktree(desk.results_dir, template, started_on=provenance.started_on)
    with closing(work):
        trials = _try_out(desk, thought.ideas, work, baseline, provenance, notes=notes)
        best = best_of(trials, baseline, template.metric.better)
        work.show(None if best is None else best.name)
        searched = _search_too(desk, baseline, provenance, trials, notes)
        confirmed = _confirm(desk, work, provenance, best, searched)
        notes += cut_notes([*confirmed.values()], planned=planned)
        if not values_of(confirmed["baseline"]):
            raise baseline_failed(confirmed["baseline"], desk.results_dir)
        ablations = _ablate(desk, work, provenance, best, confirmed, notes=notes)
        code = work.files(None), work.files(None if best is None else best.name)
        changed, notes = patch(*code), [*notes, *reach_notes(*code, quoted=mask_numbers)]
    measured = [trial.value for trial in ran(trials)]
    control = None
    if searched is not None:
        control = control_of(
            bench, searched, confirmed, planned=planned, model_trials=len(measured)
        )
    runs = [baseline, *(trial.run for trial in ran(trials) if trial.run is not None)]
    runs += [run for arm in confirmed.values() for run in arm]
    runs += [run for ablation in ablations for run in ablation.runs]
    runs += control.trials if control is not None else []
    names = {"baseline": "the baseline", "best": "the selected code", "control": "the control"}
    arms = {names[arm]: of for arm, of in confirmed.items()}
    arms |= {f"the selected code without {one.name}": one.runs for one in ablations}
    study = Study(
        title=desk.plan.brief.title or template.title,
        template=template.name,
        template_title=template.title,
        template_description=template.description,
        policy=desk.plan.policy,
        metric=template.metric,
        has_splits=template.has_splits,
        has_seeds=template.has_seeds,
        baseline_run=baseline,
        ideas=thought.ideas,
        trials=trials,
        best_trial=None if best is None else best.name,
        confirm_baseline=confirmed["baseline"],
        confirm_best=confirmed.get("best", []),
        claim=judge(
            bench, measured, confirmed["baseline"], confirmed.get("best"), planned=planned
        ),
        ablations=ablations,
        control=control,
        counts=_counts(thought.ideas, trials, runs),
        hours={"runs": sum(run.wall_s for run in runs) / 3600},
        run_s={arm: _mean_s(of) for arm, of in confirmed.items() if values_of(of)},
        models=[],
        references=[paper.model_dump(mode="json") for paper in thought.papers],
        provenance=provenance,
        # What a run printed last is quoted there, and a number in it is no measurement of labd's.
        notes=[*notes, *failure_notes(arms, quoted=mask_numbers)],
    )
    return study, changed


def _think(desk: _Desk) -> LookedUp:
    """Gather ideas, look them up, and write them down before anything is tried."""
    desk.tools.progress("ideas", 0, desk.plan.num_ideas, "thinking")
    template = desk.bench.template
    ideas = gather_ideas(
        desk.asker,
        template,
        num_ideas=desk.plan.num_ideas,
        past=desk.given.past,
        seed_ideas=seed_ideas(template),
    )
    looked = look_up(ideas, desk.asker, desk.journal, desk.given.shelf)
    write_ideas(desk.results_dir, template, looked.ideas)
    desk.tools.progress("ideas", len(ideas), len(ideas), looked.ideas[0].title)
    return looked


def _try_out(
    desk: _Desk,
    ideas: Sequence[Idea],
    work: Worktree,
    baseline: Run,
    provenance: Provenance,
    *,
    notes: list[str],
) -> list[Trial]:
    """Try the ideas, each with its share of the trials that are left; what ended that early goes to `notes`."""
    template, most = desk.bench.template, desk.plan.brief.num_trials
    trials: list[Trial] = []
    shop = Workshop(
        desk.bench,
        desk.asker,
        desk.journal,
        desk.allowance,
        work,
        baseline,
        manner=Manner(desk.plan.policy),
        seed=provenance.search_seed,
        share=EXPLORING_SHARE,
        confirm_runs=(2 + desk.plan.control) * desk.plan.brief.num_confirm_seeds,
        curves=template.curves,
        progress=lambda stage, done, _total, detail: desk.tools.progress(
            stage, len(trials) + done, most, detail
        ),
    )
    stopped: dict[str, list[str]] = {}
    for number, idea in enumerate(ideas):
        share = -(-(most - len(trials)) // (len(ideas) - number))
        tried = run_trials(idea, shop, max_trials=share, earlier=tuple(trials))
        trials += tried.trials
        if tried.stopped:
            stopped.setdefault(tried.stopped, []).append(idea.name)
    for reason, of in stopped.items():
        notes.append(f"The trials of {', '.join(of)} ended early: {reason}")
    return trials


def ran(trials: Sequence[Trial]) -> list[Trial]:
    """Give the trials that have a run of their own; others were refused, or are the code of an earlier one."""
    return [trial for trial in trials if trial.run is not None and trial.same_as is None]


def best_of(trials: Sequence[Trial], baseline: Run, better: Better) -> Trial | None:
    """Give the best trial on validation, the earliest of equals; `None` if none beats the baseline."""
    runs = [trial.run for trial in trials if trial.run is not None and trial.value is not None]
    chosen = select(baseline, runs, better)
    return next((trial for trial in trials if trial.run == chosen), None) if chosen else None


def _search_too(
    desk: _Desk,
    baseline: Run,
    provenance: Provenance,
    trials: Sequence[Trial],
    notes: list[str],
) -> Searched | None:
    """Search without a model where the task asks for that, with as many trials as the model had runs."""
    if not desk.plan.control:
        return None
    count = len(ran(trials))
    reason = "" if count else "no trial of the model's had a run."
    if not desk.bench.template.space:
        reason = "the template declares no parameters to search."
    reason = reason or desk.limit("control", of=("time",))
    if reason:
        notes.append(f"There was no search without a model to compare with: {reason}")
        return None
    searched = search_without_model(
        desk.plan.brief, desk.bench, desk.journal, baseline, provenance, num_trials=count
    )
    notes += [f"Of the search without a model: {note}" for note in searched.notes]
    return searched


def _confirm(
    desk: _Desk,
    work: Worktree,
    provenance: Provenance,
    best: Trial | None,
    searched: Searched | None,
) -> dict[str, list[Run]]:
    """Run baseline, best and control on test, each over the same fresh seeds; give the runs by arm."""
    baseline = desk.bench.template.baseline
    arms = [Arm("baseline", baseline), *(searched.arms if searched is not None else [])]
    with ExitStack() as stack:
        if best is not None:
            code = stack.enter_context(work.code("confirm", work.files(best.name)))
            arms.insert(1, Arm("best", baseline, code))
        runs = confirm(desk.bench, arms, provenance.confirm_seeds)
    return {arm.name: of for arm, of in zip(arms, runs, strict=True)}


def _ablate(
    desk: _Desk,
    work: Worktree,
    provenance: Provenance,
    best: Trial | None,
    confirmed: Mapping[str, list[Run]],
    *,
    notes: list[str],
) -> list[Ablation]:
    """Take the winning code's changes away one at a time, where it has several and there is time."""
    if best is None or not values_of(confirmed["best"]):
        return []
    old, new = work.files(None), work.files(best.name)
    found = pieces(desk.bench, desk.journal, old, new)
    notes += [found.note] if found.note else []
    parts = found.kept
    if not parts:
        return []
    needed_s = seconds_needed(desk.bench, parts, confirmed["best"])
    left_s = desk.allowance.seconds_left()
    short = left_s is not None and needed_s > left_s
    if desk.journal.step("limit/ablation", {}, lambda: short):
        notes.append(_NO_ABLATION)
        return []
    places = itertools.count(1)
    try:
        return ablate(
            desk.bench,
            parts,
            new,
            confirmed["best"],
            seeds=provenance.confirm_seeds,
            place=lambda files: work.code(f"ablation-{next(places):02d}", files),
        )
    except OutOfTime:
        notes.append(_NO_ABLATION)
        return []


def _mean_s(runs: Sequence[Run]) -> float:
    return statistics.mean(run.wall_s for run in runs if run.value is not None)


def _counts(ideas: Sequence[Idea], trials: Sequence[Trial], runs: Sequence[Run]) -> dict[str, int]:
    by_status = dict.fromkeys(get_args(Trial.model_fields["status"].annotation), 0)
    by_status |= Counter(trial.status for trial in trials)
    return {"ideas": len(ideas), "trials": len(trials), **by_status, "runs": len(runs)}


def write_ideas(results_dir: Path, template: Template, ideas: Sequence[Idea]) -> None:
    """Write ``ideas.json``, by which later tasks know what was tried here.

    Raises:
        StorageError: the disk would not take it.

    """
    try:
        write_json(
            results_dir / IDEAS_FILE,
            {
                "template": template.name,
                "ideas": [idea.model_dump(mode="json") for idea in ideas],
            },
        )
    except OSError as error:
        raise StorageError(
            f"the ideas could not be written: {error.strerror}", where=str(results_dir)
        ) from error
