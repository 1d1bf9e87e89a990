"""Trials of an idea: a model edits the code, the edit is judged, and what passes is run on validation.

Everything that a later step depends on is a step of the journal: the moves, the replies, the judgements, the runs
and the ends of their logs. So a killed search goes on as it would have, on another machine too. Batches have a
fixed size, and all of a batch are planned before the first of it has run.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labd.errors import ResearchError
from labd.files import read_tail
from labd.journal import Journal
from labd.llm.budget import Part
from labd.research.allowance import Allowance
from labd.research.asking import Answer, Asker
from labd.research.bench import Bench, Job
from labd.research.blocks import Unusable, parse_edits, plan_of
from labd.research.briefing import edit_parts, outcome, repair_parts
from labd.research.early import CurveWatch
from labd.research.edits import apply, check
from labd.research.hunks import count_lines
from labd.research.policy import Manner, Step, batch_size, next_moves
from labd.research.record import Run
from labd.research.replies import clean
from labd.research.study import Idea, Trial
from labd.research.worktree import Worktree, sha256_of
from labd.text import printable

MAX_REPAIRS = 2
"""How often a model may mend an edit that was refused."""
NUM_PREDICT = 8192
"""Tokens of an edit at most, where the context is twice as long."""
MAX_LOG_CHARS = 3000
_SPARE = 1.25
"""How much longer than estimated runs may take before the time is missed."""
MAX_REFUSED = 500
"""Characters of a refusal that are kept; the model was told all of it."""
_MENDABLE = frozenset(
    {"", "empty", "echo", "refusal", "cut_short", "bad_reply", "too_long", "endless_line"}
    | {"repetition"}
)
"""Codes of answers that are the model's own fault; of others, asking again at once makes nothing better."""
_LOG_TAIL_BYTES = 64 * 1024
_MAX_FIXED_BYTES = 64 * 1024

Progress = Callable[[str, int, int, str], None]


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What trials are made with; the same for all ideas of a task.

    Attributes:
        baseline: the template's run on validation, whose parameters and seed all trials have.
        manner: how to search.
        seed: of what the search draws.
        share: of tokens and time that may be used up, 0 to 1.
        confirm_runs: how many runs follow the search, for which time has to be left.
        curves: whether the template reports curves while it runs, by which a run may be stopped early.
        progress: told what comes of trials.

    """

    bench: Bench
    asker: Asker
    journal: Journal
    allowance: Allowance
    worktree: Worktree
    baseline: Run
    manner: Manner = field(default_factory=Manner)
    seed: int = 0
    share: float = 1.0
    confirm_runs: int = 0
    curves: bool = False
    progress: Progress = _silent


@dataclass(frozen=True, slots=True)
class Tried:
    """The trials of one idea, in order, and why there are no more; empty where all were made that were asked for."""

    trials: list[Trial]
    stopped: str


def run_trials(
    idea: Idea, shop: Workshop, *, max_trials: int, earlier: Sequence[Trial] = ()
) -> Tried:
    """Make trials of an idea until there are `max_trials`, or something is used up.

    What a model or its code does wrong ends as a trial with a reason. Trials are numbered on from `earlier`, those
    of other ideas; code that was run before in the task is not run again.

    Raises:
        Cancelled: the work was called off.
        ModelError: no model can be reached at all, see `Asker.ask`.
        ResearchError: the template names no file that may be changed, or its baseline has no value.
        SandboxError: there is no sandbox.
        StorageError: the disk would not take it.

    """
    if not shop.worktree.original:
        raise ResearchError(
            "the template names no file that a model may change",
            where=str(shop.bench.template.directory),
            fix="Name some under `editable` in template.yaml",
        )
    if shop.baseline.value is None:
        raise ResearchError("the baseline has no value to compare with", where=shop.baseline.name)
    search = _Search(idea, shop, earlier)
    trials: list[Trial] = []
    while True:
        steps, stopped = search.plan(trials, max_trials)
        if not steps:
            return Tried(trials, stopped)
        trials += search.batch(steps, trials, max_trials)


def seconds_needed(walls_s: Sequence[float], batches: Sequence[int], at_once: int) -> float:
    """Estimate how long batches of so many runs take, one after the other, from how long other runs took."""
    rounds = sum(-(-count // at_once) for count in batches)
    return _SPARE * statistics.median(walls_s) * rounds


@dataclass(frozen=True, slots=True)
class _Proposal:
    """What a model would change: files, or a reason why there are none."""

    name: str
    step: Step
    base: Mapping[str, str]
    plan: str = ""
    model: str = ""
    files: Mapping[str, str] | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class _Started:
    """A proposal on its way: its run, its own or that of the same code."""

    proposal: _Proposal
    run: "Future[Run] | None" = None
    sha256: str | None = None
    commit: str | None = None
    repeated: bool = False


class _Search:
    """The trials of one idea. Only `_propose` runs in other threads, on what it is given."""

    def __init__(self, idea: Idea, shop: Workshop, earlier: Sequence[Trial]) -> None:
        self._idea = idea
        self._shop = shop
        self._template = shop.bench.template
        self._earlier = earlier
        self._fixed = _fixed_files(shop.worktree)
        self._logs: dict[str, str] = {}
        self._runs: dict[str, Future[Run]] = {}
        self._known(sha256_of(shop.worktree.original), shop.baseline)
        for trial in earlier:
            if trial.run is not None and trial.code_sha256 is not None:
                self._known(trial.code_sha256, trial.run)

    def _known(self, sha256: str, run: Run) -> None:
        done: Future[Run] = Future()
        done.set_result(run)
        self._runs.setdefault(sha256, done)

    # -- what to do next

    def plan(self, trials: Sequence[Trial], max_trials: int) -> tuple[list[Step], str]:
        """Give the moves of the next batch, or why there is none; recorded, because time and tokens decide too."""
        shop = self._shop
        done = len(trials)
        inputs = {
            "template": self._template.sha256,
            "idea": self._idea.model_dump(mode="json", exclude={"novelty"}),
            "trials": [[one.name, one.move, one.parent, one.status, one.value] for one in trials],
            "manner": asdict(shop.manner),
            "seed": shop.seed,
            "left": max_trials - done,
        }

        def decide() -> dict[str, Any]:
            stopped = shop.allowance.out_of(shop.share) if done < max_trials else ""
            runs_left = shop.allowance.runs_left
            count = batch_size(shop.manner.policy, max_trials - done)
            count = count if runs_left is None else min(count, runs_left)
            stopped = stopped or self._short_of_time(trials, count)
            if stopped or count <= 0:
                return {"steps": [], "stopped": stopped}
            steps = next_moves(
                trials,
                shop.manner,
                baseline=shop.baseline.value or 0.0,
                better=self._template.metric.better,
                count=count,
                seed=shop.seed,
            )
            return {"steps": steps, "stopped": ""}

        decided = shop.journal.step(f"moves/{self._idea.name}/{done:03d}", inputs, decide)
        return [Step(*step) for step in decided["steps"]], decided["stopped"]

    def _short_of_time(self, trials: Sequence[Trial], count: int) -> str:
        """Say that another batch, and what confirms after it, would not be done in time; empty where it would."""
        shop = self._shop
        left_s = shop.allowance.seconds_left()
        if left_s is None:
            return ""
        runs = [shop.baseline, *(one.run for one in (*self._earlier, *trials) if one.run)]
        needed_s = seconds_needed(
            [run.wall_s for run in runs], [count, shop.confirm_runs], shop.bench.at_once
        )
        return (
            "the time left was needed to confirm what had been found." if left_s < needed_s else ""
        )

    # -- one batch

    def batch(
        self, steps: Sequence[Step], trials: Sequence[Trial], max_trials: int
    ) -> list[Trial]:
        """Make a trial of each move: replies are asked for at once, and each is run as soon as it is there."""
        shop = self._shop
        first = len(self._earlier) + len(trials)
        shop.progress("trials", len(trials), max_trials, f"{self._idea.name}: {len(steps)} edits")
        watch = self._watch(trials)
        made: list[Trial] = []
        with ExitStack() as opened, ThreadPoolExecutor(len(steps), "edit") as pool:
            futures = [
                pool.submit(
                    self._propose,
                    *self._question(f"trial-{first + index:03d}", steps, index, trials),
                )
                for index in range(len(steps))
            ]
            started = [self._start(future.result(), opened, watch) for future in futures]
            for each in started:
                made.append(self._ended(each))
                detail = f"{made[-1].name}: {outcome(made[-1], self._template.metric.name)}"
                shop.progress("trials", len(trials) + len(made), max_trials, detail)
        return made

    def _watch(self, trials: Sequence[Trial]) -> CurveWatch | None:
        if not self._shop.curves:
            return None
        metric = self._template.metric
        sign = 1.0 if metric.better == "higher" else -1.0
        runs = [trial.run for trial in (*self._earlier, *trials) if trial.value is not None]
        good = [run for run in (self._shop.baseline, *runs) if run is not None]
        return CurveWatch(metric, max(good, key=lambda run: sign * (run.value or 0.0)))

    def _question(
        self, name: str, steps: Sequence[Step], index: int, trials: Sequence[Trial]
    ) -> tuple[_Proposal, list[Part]]:
        step = steps[index]
        parent = next((trial for trial in trials if trial.name == step.parent), None)
        code = self._shop.worktree.files(step.parent)
        parts = edit_parts(
            self._template,
            self._idea,
            step.move,
            code=code,
            fixed=self._fixed,
            baseline=self._shop.baseline,
            parent=parent,
            trials=trials,
            others=self._earlier,
            nth=(1 + steps[:index].count(step), steps.count(step)),
            log=self._logs.get(step.parent or "", "") if step.move == "debug" else "",
        )
        return _Proposal(name, step, code), parts

    def _propose(self, asked: _Proposal, first: Sequence[Part]) -> _Proposal:
        """Ask for an edit, and some times for a better one; give what can be run, or the last refusal."""
        parts, refused, answer = first, "", None
        for attempt in range(1 + MAX_REPAIRS):
            what = f"repair-{attempt}" if attempt else "edit"
            answer = self._shop.asker.ask(
                f"trial/{asked.name}/{what}", "code", parts, num_predict=NUM_PREDICT
            )
            if answer.code == "echo" and attempt:
                refused += " The model then gave the same reply again."
                break
            try:
                files = self._edited(f"{asked.name}-{attempt}", asked.base, answer)
            except Unusable as error:
                refused = str(error)
            else:
                return replace(asked, plan=plan_of(answer.text), model=answer.model, files=files)
            if answer.code not in _MENDABLE:
                break
            parts = repair_parts(first, answer.text, refused)
        plan, model = ("", "") if answer is None else (plan_of(answer.text), answer.model)
        return replace(asked, plan=plan, model=model, refused=printable(refused, MAX_REFUSED))

    def _edited(self, name: str, base: Mapping[str, str], answer: Answer) -> dict[str, str]:
        if answer.problem:
            raise Unusable(f"{printable(answer.problem, 400)}.")
        files = apply(self._template, base, parse_edits(answer.text, self._template.files_sha256))
        # Recorded: what can be parsed depends on the machine's Python, and on how busy it is.
        problem = self._shop.journal.step(
            f"check/{name}",
            {"old": sha256_of(base), "new": _hash(files)},
            lambda: check(self._template, base, files),
        )
        if problem:
            raise Unusable(problem)
        return files

    def _start(self, proposal: _Proposal, opened: ExitStack, watch: CurveWatch | None) -> _Started:
        shop, name, files = self._shop, proposal.name, proposal.files
        if files is None:
            return _Started(proposal)
        parent = proposal.step.parent
        subject = (
            f"{name}: {proposal.step.move} of {parent or 'the template'}, for {self._idea.name}"
        )
        commit = shop.worktree.add(
            name,
            files,
            parent=parent,
            message=f"{subject}\n\n{self._idea.title}\n\n{proposal.plan}",
        )
        sha256 = sha256_of(files)
        if sha256 in self._runs:
            run = self._runs[sha256]
            return _Started(proposal, run, sha256, commit, repeated=True)
        code = opened.enter_context(shop.worktree.code(name, files))
        job = Job(name, shop.baseline.params, shop.baseline.seed, "validation", code, watch)
        run = self._runs[sha256] = shop.bench.start(job)
        # Whatever happens, the code stays until its run is over.
        opened.callback(wait, [run])
        shop.allowance.spend_run()
        return _Started(proposal, run, sha256, commit)

    def _ended(self, started: _Started) -> Trial:
        proposal = started.proposal
        run = None if started.run is None else started.run.result()
        if run is not None and run.value is None:
            self._logs[proposal.name] = self._log(run)
        files = proposal.base if proposal.files is None else proposal.files
        added, removed = count_lines(proposal.base, files)
        return Trial(
            name=proposal.name,
            idea=self._idea.name,
            parent=proposal.step.parent,
            move=proposal.step.move,
            plan=proposal.plan,
            status="refused" if run is None else run.status.value,
            refused=proposal.refused if run is None else None,
            run=run,
            same_as=run.name if run is not None and started.repeated else None,
            commit=started.commit,
            code_sha256=started.sha256,
            files_changed=sorted(path for path in files if files[path] != proposal.base[path]),
            lines_added=added,
            lines_removed=removed,
            model=proposal.model,
        )

    def _log(self, run: Run) -> str:
        """Give the end of a run's log; recorded, because the file may have stayed on another machine."""
        path = self._shop.bench.results_dir / run.directory / "log.txt"
        inputs = {"run": run.name, "status": run.status.value, "reason": run.reason}
        text: str = self._shop.journal.step(f"log/{run.name}", inputs, lambda: _tail(path))
        return text


def _hash(files: Mapping[str, str]) -> str:
    """Hash files that nobody has judged yet: they may hold what is no text."""
    return sha256_of({path: clean(text) for path, text in files.items()})


def _tail(path: Path) -> str:
    try:
        raw = read_tail(path, _LOG_TAIL_BYTES)
    except OSError:
        return ""  # it can't be had, and the run's reason has to do
    lines = [printable(line, 300) for line in raw.decode(errors="replace").splitlines()]
    return "\n".join(lines)[-MAX_LOG_CHARS:]


def _fixed_files(worktree: Worktree) -> dict[str, str]:
    """Give the template's own program text, for a model to understand what it can't change."""
    found: dict[str, str] = {}
    for path in sorted(worktree.template.files_sha256):
        source = worktree.template.directory / path
        hidden = path in worktree.original or path in worktree.template.private
        if hidden or not re.search(r"\.(py|md|sh)$", path):
            continue
        raw = source.read_bytes()
        if len(raw) <= _MAX_FIXED_BYTES:
            found[path] = raw.decode(errors="replace")
    return found
