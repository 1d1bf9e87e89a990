"""What a model is told when it is asked for an edit: pure functions from what is known to the parts of a prompt."""

import re
from collections.abc import Mapping, Sequence

from labd.llm.budget import Part
from labd.research.record import Run
from labd.research.study import Idea, Trial
from labd.template import Template
from labd.text import head_and_tail, printable

_MAX_IDEA = 1500
_MAX_REPLY = 8000
_MAX_LISTED = 20
_MAX_OTHERS = 5
_PRIORITY = {"code": 90, "log": 80, "guidance": 60, "tried": 40, "fixed": 10}

_MOVES = {
    "draft": "Make a first version of the idea, as simple as it can be, in the code above.",
    "improve": "The code above runs. Make one change to it that carries the idea further and should give a better value.",
    "debug": "The code above failed. Find the fault and mend it, and keep to the idea.",
}


def edit_parts(
    template: Template,
    idea: Idea,
    move: str,
    *,
    code: Mapping[str, str],
    fixed: Mapping[str, str],
    baseline: Run,
    parent: Trial | None,
    trials: Sequence[Trial],
    others: Sequence[Trial],
    nth: tuple[int, int] = (1, 1),
    log: str = "",
) -> list[Part]:
    """Give the prompt for an edit.

    Args:
        template: what the experiment is.
        idea: to be tried.
        move: draft, improve or debug.
        code: the files that may be changed, as the parent has them.
        fixed: text files that may not, to be understood.
        baseline: the run of the template as it is.
        parent: the trial whose code it is; ``None``: the template's.
        trials: of the idea so far.
        others: of other ideas.
        nth: which of how many edits it is that are asked for at once by the same move from the same code.
        log: the end of what the parent's run printed, to debug.

    """
    name, better = template.metric.name, template.metric.better
    parts = [
        Part("system", _SYSTEM, role="system", required=True),
        Part("task", _task(template), required=True),
        Part("guidance", template.guidance, _PRIORITY["guidance"], "head_and_tail"),
        Part("idea", _idea(idea), required=True),
        Part(
            "fixed",
            _files("Files that stay as they are:", fixed),
            _PRIORITY["fixed"],
            "head_and_tail",
        ),
        Part(
            "code", _files("Files that you may change:", code), _PRIORITY["code"], "head_and_tail"
        ),
        Part("tried", _tried(trials, others, name), _PRIORITY["tried"], "head_and_tail"),
        Part("state", _state(baseline, parent, trials, name, better), required=True),
    ]
    if log:
        parts.append(
            Part(
                "log",
                f"The end of what it printed:\n{fenced(log)}",
                _PRIORITY["log"],
                "head_and_tail",
            )
        )
    wanted = _MOVES[move] if nth[1] == 1 else f"{_MOVES[move]} {_OTHERWISE.format(*nth)}"
    parts.append(Part("move", f"{wanted}\n\n{_form(sorted(code))}", required=True))
    return parts


def repair_parts(first: Sequence[Part], reply: str, refusal: str) -> list[Part]:
    """Give the prompt for another try: the first one, the reply to it, and why that can't be used."""
    said = head_and_tail(reply, _MAX_REPLY)
    why = f"Nothing was run, because your reply can't be used. {refusal}\n\nGive the whole edit again, mended."
    return [
        *first,
        *([Part("reply", said, 20, "head_and_tail", role="assistant")] if said.strip() else []),
        Part("refusal", why, required=True),
    ]


def fenced(text: str, language: str = "") -> str:
    """Give a text as a fenced block, with a fence that is not in it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    ending = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{ending}{fence}"


_MEASURED = "It is measured afterwards, by code that you can't change, on data that your code need not read."
_MEASURES = (
    "Leave how it is measured and reported exactly as it is: a change of that is no result."
)
_OTHERWISE = (
    "This is number {} of {} edits of this code that are made at the same time, each by somebody who does not see "
    "the others: do it in another way than the first that comes to mind."
)
_SYSTEM = (
    "You are a researcher. You test an idea by changing the code of an experiment, so that its metric gets better "
    "honestly. Change what is asked and nothing else. A run has no network, and no other libraries than those that "
    "are imported already and Python's own."
)


def _task(template: Template) -> str:
    metric = template.metric
    return (
        f"# The experiment: {template.title}\n{template.description}\n\n"
        f"Metric: {metric.name}, {metric.better} is better. {metric.description}\n"
        f"{_MEASURED if template.evaluate else _MEASURES}\n"
        f"One run may take {template.time_limit_s:g} s and {template.memory_bytes // 2**20} MiB of memory; "
        "one that takes more counts as failed."
    )


def _idea(idea: Idea) -> str:
    return (
        f"# The idea: {idea.title}\n"
        f"Hypothesis: {head_and_tail(idea.hypothesis, _MAX_IDEA)}\n"
        f"What to change: {head_and_tail(idea.experiment, _MAX_IDEA)}"
    )


def _files(title: str, files: Mapping[str, str]) -> str:
    if not files:
        return ""
    shown = [
        f"{path}\n{fenced(text, 'python' if path.endswith('.py') else '')}"
        for path, text in sorted(files.items())
    ]
    return "\n\n".join([f"# {title}", *shown])


def _tried(trials: Sequence[Trial], others: Sequence[Trial], name: str) -> str:
    lines = [_line(trial, name) for trial in trials[-_MAX_LISTED:]]
    good = [trial for trial in others if trial.value is not None]
    elsewhere = [_line(trial, name) for trial in good[-_MAX_OTHERS:]]
    found = "# What was tried of this idea\n" + "\n".join(lines) if lines else ""
    if elsewhere:
        found += "\n\n# What was tried of other ideas\n" + "\n".join(elsewhere)
    return found.strip()


def _line(trial: Trial, name: str) -> str:
    came_from = "the template" if trial.parent is None else trial.parent
    plan = printable(trial.plan.split("\n")[0], 160)
    return (
        f"- {trial.name} ({trial.move}, from {came_from}): {outcome(trial, name)}. {plan}".rstrip()
    )


def outcome(trial: Trial, name: str) -> str:
    """Tell in a few words what came of a trial."""
    if trial.refused is not None:
        return f"not run: {printable(trial.refused, 160)}"
    if trial.value is not None:
        return f"{name} {trial.value:.6g}"
    reason = "" if trial.run is None else printable(trial.run.reason or "", 200)
    return f"{trial.status}: {reason}"


def _state(
    baseline: Run, parent: Trial | None, trials: Sequence[Trial], name: str, better: str
) -> str:
    lines = [f"The unchanged experiment has {name} {baseline.value:.6g}."]
    values = [trial.value for trial in trials if trial.value is not None]
    if values:
        best = max(values) if better == "higher" else min(values)
        lines.append(f"The best trial of this idea so far has {best:.6g}.")
    if parent is not None:
        lines.append(
            f"The code above is that of {parent.name}, which gave: {outcome(parent, name)}."
        )
    return "\n".join(lines)


def _form(paths: Sequence[str]) -> str:
    path = paths[0]
    return (
        f"Only these files may be changed: {', '.join(paths)}. First say in two or three sentences what you change "
        "and why. Then give the edit in one of two forms, with the name of the file on the line before each block.\n\n"
        "For a small change, the lines to find, exactly as they are in the file and enough of them that they are "
        f"there once, and the lines to put in their place:\n\n{path}\n<<<<<<< SEARCH\nold lines\n=======\nnew lines\n"
        f">>>>>>> REPLACE\n\nFor a large change, the whole new file, with nothing left out:\n\n{path}\n"
        "```\nall of the new file\n```"
    )
