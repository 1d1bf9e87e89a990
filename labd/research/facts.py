"""Facts of a study that a text may name: a key for each recorded value, and how it is shown.

A text says ``{{ best_mean }}``; only here is it settled which value of the record that is, and what it is
evidence for. Pure; knows nothing of prose.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from labd.research.numbers import fill
from labd.research.printing import Scalar
from labd.research.record import Claim, Verdict
from labd.research.study import Idea, Study, Trial

CONFIDENCE = 0.95
"""Level of all intervals in `labd.research.record.Sample` and `Claim`."""
MAX_TRIALS = 60
"""So many trials have a key of their own; a text that names more is a table."""

Side = Literal["", "baseline", "selected"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of the record that a text may name.

    Attributes:
        path: the value's place in `fact_context`, as a template names it.
        show: the filter of `labd.research.numbers` that prints it; empty for none.
        shown: what a reader sees, also in prompts.
        side: whose value it is, where it is one side's of a comparison.
        evidence: what it is evidence for: a key of `verdicts`, ``validation``, or empty for what compares nothing.

    """

    key: str
    path: str
    show: str
    meaning: str
    value: Scalar
    shown: str
    side: Side = ""
    evidence: str = ""

    @property
    def printed(self) -> str:
        """The fact as a template of `labd.research.numbers` prints it."""
        return f"{{{{ {self.path} | {self.show} }}}}" if self.show else f"{{{{ {self.path} }}}}"


@dataclass(frozen=True, slots=True)
class _Draft:
    key: str
    path: str
    show: str
    meaning: str
    side: Side = ""
    evidence: str = ""


def fact_context(study: Study) -> dict[str, Any]:
    """Give the study as plain data with what was counted from it under ``derived``."""
    return study.context() | {"derived": _derived(study)}


def facts_of(study: Study) -> dict[str, Fact]:
    """Give all that is known and can be named, by key, in the order in which a text would tell it."""
    context = fact_context(study)
    drafts = [draft for draft in _drafts(study) if _look_up(context, draft.path) is not None]
    unfinished = [
        Fact(d.key, d.path, d.show, d.meaning, 0, "", d.side, d.evidence) for d in drafts
    ]
    filled = fill("\n".join(fact.printed for fact in unfinished), context)
    return {
        d.key: Fact(d.key, d.path, d.show, d.meaning, found.value, found.shown, d.side, d.evidence)
        for d, found in zip(drafts, filled.references, strict=True)
    }


def verdicts(study: Study) -> dict[str, Verdict]:
    """Give what was found, by what facts are evidence for: ``test``, ``control``, ``ablation_1``, …"""
    found = {"test": study.claim.verdict}
    for number, ablation in enumerate(study.ablations, 1):
        found[f"ablation_{number}"] = ablation.claim.verdict
    if study.control is not None:
        found["control"] = study.control.claim.verdict
        if study.control.against is not None:
            found["against_control"] = study.control.against.verdict
    return found


def trials_of(study: Study, idea: Idea) -> list[tuple[int, Trial]]:
    """Give an idea's trials with their places in the study's list."""
    return [(at, trial) for at, trial in enumerate(study.trials) if trial.idea == idea.name]


def _derived(study: Study) -> dict[str, Any]:
    tried = {trial.idea for trial in study.trials}
    return {
        "confidence": CONFIDENCE,
        "ideas_tried": len(tried),
        "prompt_tokens": sum(use.prompt_tokens for use in study.models),
        "output_tokens": sum(use.output_tokens for use in study.models),
        "confirm_seeds": len(study.provenance.confirm_seeds),
        "control_trials": len(study.control.trials) if study.control else None,
        "ablations": len(study.ablations),
    }


def _drafts(study: Study) -> Iterator[_Draft]:
    metric = study.metric.name
    yield _Draft(
        "metric", "metric.name", "", f"the metric's name; {study.metric.better} is better"
    )
    yield _Draft("template", "template", "code", "the template's name")
    yield from _claimed(study.claim, "claim", "", "test", ("the baseline", "the selected code"))
    yield _Draft(
        "baseline_validation", "baseline_run.value", "num",
        f"{metric} of the baseline's one run on validation", "baseline", "validation",
    )  # fmt: skip
    yield from _of_trials(study)
    yield from _counted()
    for number, ablation in enumerate(study.ablations, 1):
        name = f"ablation_{number}"
        sides = (f"the selected code without {ablation.name}", "the whole selected code")
        yield from _claimed(
            ablation.claim, f"ablations[{number - 1}].claim", f"{name}_", name, sides
        )
    if study.control is not None:
        sides = ("the baseline", "the best of the parameter search")
        yield from _claimed(study.control.claim, "control.claim", "control_", "control", sides)
        yield _Draft("control_trials", "derived.control_trials", "", "trials of the search")
        if study.control.against is not None:
            sides = ("the best of the parameter search", "the selected code")
            yield from _claimed(
                study.control.against, "control.against", "against_control_", "against_control", sides
            )  # fmt: skip


_OF_SIDES = (
    ("mean", "mean", "num", "mean over fresh seeds on test"),
    ("sd", "sd", "num(3)", "standard deviation over those seeds"),
    ("low", "ci_low", "num", "lower end of the mean's interval"),
    ("high", "ci_high", "num", "upper end of the mean's interval"),
    ("runs", "n", "", "number of runs with a value"),
)
_OF_DIFFERENCES = (
    ("difference", "signed(3)", "difference of the means"),
    ("difference_low", "signed(3)", "lower end of the difference's interval"),
    ("difference_high", "signed(3)", "upper end of the difference's interval"),
    ("effect_size", "signed(3)", "Hedges' g"),
    ("p_value", "p", "p of this single comparison"),
    ("p_corrected", "p", "p corrected for the number of comparisons"),
)


def _claimed(
    claim: Claim, path: str, prefix: str, evidence: str, sides: tuple[str, str]
) -> Iterator[_Draft]:
    """Give the facts of one comparison, whose second side is the one that is hoped for."""
    main = prefix == ""
    for field, who, side in (("baseline", sides[0], "baseline"), ("best", sides[1], "selected")):
        if getattr(claim, field) is None:
            continue
        whose: Side = ("baseline" if side == "baseline" else "selected") if main else ""
        for name, of, show, what in _OF_SIDES if main else _OF_SIDES[:1]:
            yield _Draft(
                f"{prefix}{field}_{name}", f"{path}.{field}.{of}", show, f"{who}: {what}", whose,
                evidence if name != "runs" else "",
            )  # fmt: skip
    between = f"{sides[1]} minus {sides[0]}"
    for name, show, what in _OF_DIFFERENCES:
        yield _Draft(prefix + name, f"{path}.{name}", show, f"{what}, {between}", "", evidence)
    if main:
        yield _Draft("comparisons", f"{path}.comparisons", "", "comparisons corrected for")
        yield _Draft(
            "alpha", f"{path}.alpha", "num(2)", "level that the corrected p is held against"
        )


def _of_trials(study: Study) -> Iterator[_Draft]:
    for at, trial in enumerate(study.trials):
        if trial.name == study.best_trial:
            yield _Draft("best_trial", f"trials[{at}].name", "code", "name of the selected trial")
            yield _Draft(
                "best_validation", f"trials[{at}].run.value", "num",
                "the selected trial's one run on validation", "selected", "validation",
            )  # fmt: skip
            yield _Draft("lines_added", f"trials[{at}].lines_added", "", "lines its edit added")
            yield _Draft("lines_removed", f"trials[{at}].lines_removed", "", "and removed")
    for at, trial in enumerate(study.trials[:MAX_TRIALS]):
        if trial.value is not None:
            key = trial.name.replace("-", "_")
            yield _Draft(
                key, f"trials[{at}].run.value", "num", f"{trial.name}: its one run on validation", "",
                "validation",
            )  # fmt: skip


def _counted() -> Iterator[_Draft]:
    yield _Draft("confidence", "derived.confidence", "pct", "level of all intervals")
    yield _Draft("num_seeds", "derived.confirm_seeds", "", "fresh seeds on test, for each side")
    yield _Draft("num_ideas", "counts.ideas", "", "ideas that were proposed")
    yield _Draft("num_ideas_tried", "derived.ideas_tried", "", "ideas that trials were made of")
    yield _Draft("num_trials", "counts.trials", "", "trials, run or not")
    for name, what in (
        ("ok", "gave a value"),
        ("refused", "had no edit that could be run"),
        ("crashed", "crashed"),
        ("timed_out", "ran out of time"),
        ("no_metric", "reported no metric"),
        ("limit", "went over another limit"),
        ("hopeless", "were stopped, because their curve was hopeless"),
    ):
        yield _Draft(f"num_{name}", f"counts.{name}", "", f"trials that {what}")
    yield _Draft("num_runs", "counts.runs", "", "all runs of the task")
    yield _Draft("num_calls", "counts.calls", "", "calls of language models")
    yield _Draft("num_failed_calls", "counts.failed_calls", "", "of these, without a usable reply")
    yield _Draft("run_hours", "hours.runs", "num(3)", "hours of runs")
    yield _Draft("call_hours", "hours.calls", "num(3)", "hours of calls")
    yield _Draft("num_ablations", "derived.ablations", "", "ablations")


def _look_up(context: Mapping[str, Any], path: str) -> object:
    """Give the value at a path like ``trials[3].run.value``, or `None` where there is none."""
    value: Any = context
    for part in path.replace("]", "").replace("[", ".").split("."):
        if isinstance(value, list):
            value = value[int(part)]
        elif isinstance(value, Mapping):
            value = value.get(part)
        else:
            return None
    return value
