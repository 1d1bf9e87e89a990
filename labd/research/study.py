"""What a research task with a language model did and found, as data: ideas, trials, evidence, reviews.

The measured part is `labd.research.record`'s. Texts in here came from a model and are untrusted wherever
they land; numbers came from runs only. `None` is what is not known, with a reason beside it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from labd.research.record import Claim, Provenance, Run, claim_lines
from labd.template import Metric, Record

Role = Literal["ideas", "code", "write", "review"]
Policy = Literal["linear", "climb", "tree"]
Move = Literal["draft", "improve", "debug"]

_Line = Annotated[str, Field(max_length=300)]
_Paragraph = Annotated[str, Field(max_length=4000)]
_Score = Annotated[int, Field(ge=1, le=10)]


class NoveltyCheck(Record):
    """What a look into the literature said about an idea. No answer is ``not_checked``, never new."""

    status: Literal["not_checked", "no_close_work_found", "close_work_found"] = "not_checked"
    reason: str = "no literature was searched"
    queries: list[str] = Field(default_factory=list)
    answered: list[str] = Field(default_factory=list)
    """The sources that answered."""
    closest: list[str] = Field(default_factory=list)
    """Keys of the closest works, the closest first."""


class Idea(Record):
    """Something to try, said before anything was run."""

    name: str
    """Unique in the task: ``idea-1``; the order is the rank."""
    title: _Line
    hypothesis: _Paragraph
    experiment: _Paragraph
    """What is to be changed in the code."""
    expected_effect: _Paragraph = ""
    risk: _Paragraph = ""
    interest: _Score | None = None
    feasibility: _Score | None = None
    originality: _Score | None = None
    """These three are the model's own opinion; ``None`` where it gave none."""
    source: Literal["model", "seed", "fallback"] = "model"
    """``seed``: the template's own; ``fallback``: labd's, because the model gave none that could be read."""
    novelty: NoveltyCheck = NoveltyCheck()


class Trial(Record):
    """One state of the code, how it came about, and its run on validation, if it was run."""

    name: str
    """Unique in the task: ``trial-007``, in the order of the moves."""
    idea: str
    parent: str | None
    """The trial whose code was changed; ``None``: the template's."""
    move: Move
    plan: _Paragraph = ""
    """What the model said it would do."""
    status: Literal["ok", "refused", "crashed", "timed_out", "no_metric", "limit", "hopeless"]
    """``refused``: the edit was not run, `refused` says why. ``hopeless``: its curve was, and it was stopped.
    The others are its run's."""
    refused: str | None = None
    run: Run | None = None
    same_as: str | None = None
    """The run of the same code, here ``run``, that was made before; this trial has none of its own."""
    commit: str | None = None
    """In ``work/``; ``None`` where there was no edit to commit."""
    code_sha256: str | None = None
    files_changed: list[str] = Field(default_factory=list)
    lines_added: int = 0
    lines_removed: int = 0
    model: str = ""

    @property
    def value(self) -> float | None:
        """The metric on validation; ``None`` where there is none."""
        return self.run.value if self.run is not None and self.status == "ok" else None


class ModelUse(Record):
    """What one language model was asked in one role."""

    model: str
    digest: str = ""
    role: Role
    calls: int
    failed: int
    """Of the calls: how many gave nothing that could be used."""
    prompt_tokens: int
    output_tokens: int
    hours: FiniteFloat
    """Sum of the recorded time of the calls."""


class Ablation(Record):
    """The winning code without one of its changes, on the test split over fresh seeds."""

    name: str
    hunk: str
    """The change that was taken away, as a unified diff."""
    runs: list[Run]
    claim: Claim
    """The whole winning code against it: `baseline` is the ablated code, `best` the whole."""


class Control(Record):
    """What a search over declared parameters found with as many trials: what the model has to beat."""

    trials: list[Run]
    best_params: dict[str, bool | int | FiniteFloat | str]
    confirm: list[Run]
    claim: Claim
    """Control against baseline."""
    against: Claim | None = None
    """The model's best against the control's: `baseline` is the control's."""


class Study(Record):
    """Everything that a task with a language model did, measured and concluded."""

    title: str
    template: str
    template_title: str
    template_description: str
    researcher: Literal["llm"] = "llm"
    policy: Policy
    metric: Metric
    has_splits: bool = True
    """Whether selection and confirmation measured on different data."""
    has_seeds: bool = True
    """Whether another seed means another run; where not, confirmation repeats the same run."""
    baseline_run: Run
    ideas: list[Idea]
    trials: list[Trial]
    best_trial: str | None
    """``None`` if no trial beat the baseline on validation."""
    confirm_baseline: list[Run]
    confirm_best: list[Run]
    claim: Claim
    ablations: list[Ablation] = Field(default_factory=list)
    control: Control | None = None
    counts: dict[str, int]
    """``ideas``, ``trials``, ``ok``, ``refused``, ``crashed``, …, ``runs``, ``calls``, ``failed_calls``."""
    hours: dict[str, FiniteFloat]
    """``runs``: the sum of recorded times, so that a resumed task says the same."""
    run_s: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Mean seconds of a confirming run, by ``baseline``, ``best``, ``control``: whether compute was equal."""
    models: list[ModelUse]
    references: list[dict[str, Any]] = Field(default_factory=list)
    """Records of works that were really fetched, by `key`; only these can be cited."""
    provenance: Provenance
    figures: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    """Things a reader must know: a limit that ended the work, sentences that were struck."""

    def context(self) -> dict[str, Any]:
        """Give the study as plain JSON data for templates."""
        return self.model_dump(mode="json")


def study_lines(study: Study) -> list[str]:
    """Tell what was done and measured, in three lines for a terminal."""
    claim, counts = study.claim, study.counts
    refused = (
        f", {n} of them without an edit that could be run" if (n := counts["refused"]) else ""
    )
    first = (
        f"{counts['ideas']} ideas, {counts['trials']} trials{refused}, {counts['ok']} gave a value; "
        f"{counts['runs']} runs in all; {study.metric.name}: {study.metric.better} is better"
    )
    return [first, *claim_lines(claim, study.metric.name)]
