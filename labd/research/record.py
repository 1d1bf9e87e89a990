"""What a research task found, as data: the only source of numbers for a paper.

Written as `result.json` by the archive; the paper quotes it by reference. All values are finite; what
is not known is ``None`` with a reason beside it, never 0 or NaN.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from labd.template import Metric, Param, ParamSpec, Record


class TrialStatus(StrEnum):
    """How one run of an experiment ended. Only ``ok`` carries a value."""

    OK = "ok"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    NO_METRIC = "no_metric"
    LIMIT = "limit"
    HOPELESS = "hopeless"
    """Its curve was, and it was stopped."""


class Run(Record):
    """One run of a template's command in the sandbox."""

    name: str
    """Unique in the task: ``baseline-000``, ``trial-007``, ``confirm-best-003``."""
    params: dict[str, Param]
    seed: int
    split: Literal["validation", "test"]
    status: TrialStatus
    value: FiniteFloat | None
    """The metric on `split`; ``None`` unless `status` is ``ok``."""
    reason: str | None = None
    """Why there is no value, in one line; ``None`` where there is one."""
    curves: dict[str, list[FiniteFloat]] = Field(default_factory=dict)
    """Series by step that the run reported, such as ``train_loss``; at most 1000 points each."""
    steps: dict[str, list[FiniteFloat]] = Field(default_factory=dict)
    """Of those curves that it reported while it went on: the step of each point."""
    wall_s: float
    exit_code: int | None
    directory: str
    """Relative to the task's results: ``runs/trial-007``."""
    metrics_sha256: str | None = None


class Sample(Record):
    """A metric over fresh seeds."""

    values: list[FiniteFloat]
    n: int
    mean: FiniteFloat
    sd: FiniteFloat | None
    """Sample standard deviation (n - 1); ``None`` for n < 2."""
    ci_low: FiniteFloat | None
    ci_high: FiniteFloat | None
    """95 % confidence interval of the mean, Student's t; ``None`` for n < 2."""


class Verdict(StrEnum):
    """What the evidence says about best against baseline."""

    IMPROVED = "improved"
    NO_IMPROVEMENT = "no_improvement"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    """Too few runs succeeded to say anything; `Claim.reason` says which."""


class Claim(Record):
    """Best against baseline on the test split, over fresh seeds. Differences are best minus baseline."""

    verdict: Verdict
    reason: str
    """One sentence a reader can check: which rule gave this verdict."""
    baseline: Sample | None
    best: Sample | None
    difference: FiniteFloat | None
    difference_low: FiniteFloat | None
    difference_high: FiniteFloat | None
    effect_size: FiniteFloat | None
    """Hedges' g, signed like `difference`; ``None`` where both samples have no variance."""
    p_value: FiniteFloat | None
    """Welch's t-test, two-sided; ``None`` where there is no variance to test against."""
    p_corrected: FiniteFloat | None
    """Bonferroni over `comparisons`."""
    comparisons: int
    alpha: FiniteFloat


class Importance(Record):
    """How one parameter of the search space went with the metric over the trials."""

    name: str
    share: FiniteFloat | None
    """Share of explained variance, 0 to 1; ``None`` where it could not be computed."""
    best: Param
    baseline: Param


class Provenance(Record):
    """What someone needs to do it again."""

    labd_version: str
    python_version: str
    platform: str
    packages: dict[str, str]
    template: str
    template_sha256: str
    files_sha256: dict[str, str]
    command: list[str]
    search_seed: int
    """Seeds the sampler that proposes parameters."""
    trial_seed: int
    """The one seed with which every trial of the search runs."""
    confirm_seeds: list[int]
    started_on: str
    """Date (UTC) of the first attempt, YYYY-MM-DD."""
    task_file: str
    """The task file's text, as it was dropped."""
    task_sha256: str


class ResearchRecord(Record):
    """Everything a sweep measured and concluded."""

    title: str
    template: str
    template_title: str
    template_description: str
    researcher: Literal["sweep"]
    metric: Metric
    space: list[ParamSpec]
    baseline_run: Run
    """The baseline on validation, same seed as the trials."""
    trials: list[Run]
    """In order of proposal."""
    best_trial: str | None
    """Name of the selected trial; ``None`` if no trial beat the baseline on validation."""
    best_params: dict[str, Param]
    """The baseline's own where no trial beat it."""
    confirm_baseline: list[Run]
    confirm_best: list[Run]
    claim: Claim
    importances: list[Importance]
    counts: dict[str, int]
    """``trials``, ``ok``, ``crashed``, ``timed_out``, ``no_metric``, ``limit``, ``runs`` (all runs of the task)."""
    provenance: Provenance
    figures: dict[str, str] = Field(default_factory=dict)
    """Figure name to path relative to the task's results: ``best_so_far`` to ``plots/best-so-far.png``."""
    notes: list[str] = Field(default_factory=list)
    """Things a reader must know, such as an interrupted search."""

    def context(self) -> dict[str, Any]:
        """Give the record as plain JSON data for templates."""
        return self.model_dump(mode="json")


def outcome_lines(record: ResearchRecord) -> list[str]:
    """Tell what was measured, in three lines for a terminal."""
    metric, counts = record.metric, record.counts
    trials = f"{counts['trials']} trials, {counts['ok']} of them gave a value"
    lines = [f"{trials}; {counts['runs']} runs in all; {metric.name}: {metric.better} is better"]
    return [*lines, *claim_lines(record.claim, metric.name)]


def claim_lines(claim: Claim, metric: str) -> list[str]:
    """Tell what a claim says, in two lines for a terminal."""
    if claim.baseline and claim.best and claim.difference is not None:
        low, high = claim.difference_low, claim.difference_high
        between = "" if low is None or high is None else f" (95 %: {low:+.4f} to {high:+.4f})"
        compared = (
            f"{metric} on test, {claim.best.n} fresh seeds: {claim.baseline.mean:.4f} → "
            f"{claim.best.mean:.4f}, difference {claim.difference:+.4f}{between}"
        )
    else:
        compared = "nothing to compare with the baseline on the test split"
    return [compared, f"{claim.verdict.value.replace('_', ' ')}: {claim.reason}"]
