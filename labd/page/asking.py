"""What people ask of the lab with the page: the same calls as the command line's. Nothing here knows Gradio."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

from labd.errors import LabdError, NotFound, TaskFileError
from labd.lab import Lab
from labd.page.html import Html, tag
from labd.page.words import Words

_LINE = re.compile(r"(?P<line>\d+):(?P<column>\d+): (?P<rest>.*)", re.DOTALL)
_KEY = re.compile(r"(?P<key>[A-Za-z_]\w*(?:\.[\w-]+)*): (?P<text>.*)", re.DOTALL)
_NAME = "task.yaml"
_MOST_PROBLEMS = 20
FORM_KEYS = (
    *("title", "template", "run", "max_runs", "seed", "num_cpus", "num_gpus", "priority"),
    *("timeout", "labels"),
)
"""The keys of a task file that the form has fields for, beside ``kind``."""


_NUMBERS = frozenset({"max_runs", "seed", "num_cpus", "num_gpus", "priority"})


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing that is wrong with a task file, by its key and place where they are known."""

    key: str
    text: str
    line: int = 0
    column: int = 0


def problems_of(error: LabdError, name: str) -> list[FieldProblem]:
    """Take apart what the checker said of a file of this name."""
    if not isinstance(error, TaskFileError):
        return [FieldProblem("", str(error))]
    return [_problem(line.removeprefix(f"{name}:").strip()) for line in str(error).splitlines()][
        :_MOST_PROBLEMS
    ]


def _problem(text: str) -> FieldProblem:
    line = column = 0
    if placed := _LINE.fullmatch(text):
        line, column, text = int(placed["line"]), int(placed["column"]), placed["rest"]
    if keyed := _KEY.fullmatch(text):
        return FieldProblem(keyed["key"], keyed["text"], line, column)
    return FieldProblem("", text, line, column)


def form_text(kind: str, fields: Mapping[str, str | None]) -> str:
    """Give the task file that a form's fields stand for; what was left empty is left out.

    A number's field that holds none is passed on as it is: the checker says what it wants.
    """
    said: dict[str, Any] = {"kind": kind}
    for key in FORM_KEYS:
        value = fields.get(key) or ""
        if not value.strip():
            continue
        said[key] = value.split() if key == "labels" else _number(key, value.strip())
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=4096)


def _number(key: str, text: str) -> str | int | float:
    if key in _NUMBERS:
        with suppress(ValueError):
            return int(text)
        with suppress(ValueError):
            return float(text)
    return text


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: `said` for people, and what is wrong, if something is. `task`: what to look at."""

    said: str
    problems: tuple[FieldProblem, ...] = ()
    task: str = ""
    ok: bool = True


def ask(lab: Lab, verb: str, task: str, priority: Any, words: Words) -> Answer:
    """Cancel, retry or raise a task, or pause or resume dispatching, and say what came of it."""
    try:
        if verb == "pause":
            lab.pause()
        elif verb == "resume":
            lab.resume()
        elif verb in {"cancel", "retry", "raise"}:
            return _ask_task(lab, verb, task, priority, words)
        else:
            return Answer(f"{verb}?", ok=False)
    except LabdError as error:
        return Answer(str(error), ok=False)
    return Answer(words(f"did_{verb}"))


def _ask_task(lab: Lab, verb: str, task: str, priority: Any, words: Words) -> Answer:
    if lab.find(task).id != task:
        raise NotFound("there is no such task any more", where=task)
    if verb == "raise":
        if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 1000:
            return Answer(f"{words('priority')}: -1000 … 1000", ok=False)
        lab.set_priority(task, priority)
        return Answer(words("did_raise", task=task, priority=priority), task=task)
    (lab.cancel if verb == "cancel" else lab.retry)(task)
    return Answer(words(f"did_{verb}", task=task), task=task)


def start(lab: Lab, name: str, step: str, words: Words) -> Answer:
    """Submit the tasks of a campaign's step now, and say what came of it."""
    try:
        tasks = lab.run_campaign(name, step)
    except LabdError as error:
        return Answer(str(error), ok=False)
    return Answer(words("did_start", name=f"{name} {step}".strip(), tasks=len(tasks)))


def submit(lab: Lab, text: str, name: str, words: Words, *, check_only: bool = False) -> Answer:
    """Check a task file's text, and submit it unless only that was asked."""
    name = name.strip() or _NAME
    try:
        if check_only:
            lab.check_text(text, name)
            return Answer(words("fine"))
        task = lab.submit_text(text, name)
    except LabdError as error:
        return Answer("", tuple(problems_of(error, name)), ok=False)
    return Answer(words("submitted", task=task), task=task)


def shown(answer: Answer, words: Words, *, fields: bool) -> Html:
    """Give an answer as markup. `fields`: the problems of the form's own keys are shown at its fields."""
    if answer.ok:
        return tag("p", answer.said, class_="good", role="status")
    rest = [one for one in answer.problems if not (fields and one.key in FORM_KEYS)]
    items = [
        tag(
            "li",
            tag("span", words("at_line", line=one.line, column=one.column), ": ", class_="quiet")
            if one.line and not fields
            else None,
            tag("code", one.key, ": ") if one.key else None,
            one.text,
        )
        for one in rest
    ]
    return tag(
        "div",
        tag("p", answer.said, class_="bad") if answer.said else None,
        tag("ul", *items, class_="field-errors") if items else None,
        role="alert",
    )
