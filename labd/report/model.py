"""What is told of each task, and what a report says, as plain data.

Nothing in here is guessed: what is not on record is ``None`` or an empty text, and is counted as unknown.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from labd.archive import Span

VERSION = 1
"""Of the JSON form. A key may be added under the same version; none changes its meaning or goes away."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Best against baseline on the test split, over fresh seeds, as the paper has it. `low`, `high`: 95 % interval."""

    metric: str
    better: str
    baseline: float
    best: float
    difference: float
    low: float | None
    high: float | None
    n_baseline: int
    n_best: int
    p_value: float | None
    p_corrected: float | None
    comparisons: int | None
    effect_size: float | None


@dataclass(frozen=True, slots=True)
class IdeaTold:
    """An idea of a task. `value`: its best trial's, on validation."""

    title: str
    source: str
    trials: int
    value: float | None


@dataclass(frozen=True, slots=True)
class ModelTokens:
    """What one language model was asked in one task."""

    model: str
    calls: int | None
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Research:
    """What a research task has on record."""

    verdict: str
    """As its claim has it; empty where that can't be read."""
    reason: str
    comparison: Comparison | None
    ideas: tuple[IdeaTold, ...]
    ideas_left_out: int
    trials: int | None
    runs: int | None
    score: float | None
    """Mean of the reviews' overall grades, from 1 to 10."""
    reviews: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt that ended through no fault of the task."""

    at_s: float
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskTold:
    """One task, as a report needs it. All texts but the id are printable."""

    id: str
    state: str
    """``elsewhen``: it only has a share in how busy the lab was."""
    kind: str
    template: str
    model: str
    """Its models, joined by ``+``; empty where it names none."""
    title: str
    ended_s: float | None
    took_s: float | None
    spans: tuple[Span, ...]
    lost: tuple[Lost, ...]
    code: str
    """What its end was an error of, and in `message` in words."""
    message: str
    research: Research | None
    tokens: tuple[ModelTokens, ...]
    tokens_known: bool
    files: tuple[str, ...]
    """Which of ``paper.pdf`` and ``paper.html`` there are."""
    unreadable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Ends for the same reason, but for numbers and names in it."""

    code: str
    message: str
    count: int
    templates: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArmRow:
    """A template (or a kind) with its models."""

    template: str
    model: str
    done: int
    failed: int
    cancelled: int
    improved: int
    task_hours: float
    gpu_hours: float
    tokens: int | None
    """``None``: of no task that used a model is it known."""
    tokens_unknown: int
    """Of how many tasks it is not known how many tokens they used."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One language model, over all tasks that say what they asked it."""

    model: str
    tasks: int
    calls: int | None
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """How busy the lab was, in steps of equal length. `tasks`, `gpus`, `cpus`: the mean number in each step.

    `ended`: how many tasks came to which end in each step.
    """

    since_s: float
    step_s: float
    tasks: tuple[float, ...]
    gpus: tuple[float, ...]
    cpus: tuple[float, ...]
    ended: Mapping[str, tuple[int, ...]]
    task_hours: float
    gpu_hours: float
    cpu_hours: float
    busy_share: float
    """Of the time: in which something ran."""
    unknown_ends: int
    """Attempts of which no end is on record, and which do not run: they count nothing."""


@dataclass(frozen=True, slots=True)
class ArmDecisions:
    """What the adaptive queue added of one arm, and why the last time."""

    arm: str
    added: int
    why: str


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision, in words."""

    at: str
    event: str
    campaign: str
    told: str


@dataclass(frozen=True, slots=True)
class Decisions:
    """What campaigns and the adaptive queue decided. `level_hours`: by machine, at which load, where that is on record."""

    counts: Mapping[str, int]
    arms: tuple[ArmDecisions, ...]
    level_hours: Mapping[str, Mapping[str, float]]
    last: tuple[Decided, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over all tasks of the report."""

    states: Mapping[str, int]
    """Ended ones in the period; running and pending as they are now."""
    papers: int
    verdicts: Mapping[str, int]
    """Of research that is done: ``improved``, ``no_improvement``, ``worse``, ``inconclusive``, ``unknown``."""
    ideas: int
    trials: int
    runs: int
    reviewed: int
    score_mean: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """A report, whole. Lists are bounded; `left_out` says of which how many are not in it."""

    since: datetime
    until: datetime
    made_at: datetime
    campaign: str
    totals: Totals
    improved: tuple[TaskTold, ...]
    others: tuple[TaskTold, ...]
    """Research that is done and did not improve, or says nothing."""
    running: tuple[TaskTold, ...]
    failures: tuple[FailureGroup, ...]
    lost: tuple[FailureGroup, ...]
    arms: tuple[ArmRow, ...]
    models: tuple[ModelRow, ...]
    usage: Usage
    decisions: Decisions
    unreadable: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    left_out: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON data, with its version."""
        data = asdict(self)
        moments = {key: data[key].isoformat() for key in ("since", "until", "made_at")}
        return {"version": VERSION, **data, **moments}
