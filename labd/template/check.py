"""`labd template check`: what a directory has and lacks to be a template, requirement by requirement. Runs nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from labd.clock import print_duration
from labd.errors import ConfigError
from labd.template import ai_scientist, autoresearch
from labd.template.form import FILE_NAME
from labd.template.loading import (
    foreign_style,
    is_template,
    missing_requirements,
    read_template,
    seed_ideas,
    with_data,
)
from labd.template.model import Template
from labd.text import printable

_SYSTEMS = {"AI-Scientist": ai_scientist.FILES, "autoresearch": autoresearch.FILES}
_NAMES = {"labd": FILE_NAME, "ai_scientist": "AI-Scientist", "autoresearch": "autoresearch"}


class State(StrEnum):
    """How a requirement stands."""

    OK = "ok"
    NOTE = "note"
    """It is as it is; somebody who reads the results has to know."""
    OPEN = "open"
    """Known only once the baseline was run."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that a template needs."""

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is to be said of a directory."""

    template: Template | None
    """``None`` where it can't be read as one; with the places of its data where they are there."""
    requirements: tuple[Requirement, ...]

    @property
    def passes(self) -> bool:
        """Whether nothing is missing."""
        return all(one.state is not State.MISSING for one in self.requirements)


def inspect_template(
    directory: Path, *, inputs: Sequence[Path] = (), forbidden: Sequence[Path] = ()
) -> Inspection:
    """Look at a directory: what it is, and what it lacks.

    Args:
        directory: also outside of the places for templates.
        inputs: below which the data of templates may lie.
        forbidden: where it may not.

    """
    if not is_template(directory):
        return Inspection(None, tuple(_unknown(directory)))
    try:
        template = read_template(directory)
    except ConfigError as error:
        return Inspection(None, (Requirement("form", State.MISSING, str(error)),))
    found = [*_form(template), *_running(template), *_research(template)]
    try:
        template = with_data(template, roots=inputs, forbidden=forbidden)
        found += _data(template, inputs)
    except ConfigError as error:
        found.append(Requirement("data", State.MISSING, str(error)))
    return Inspection(template, tuple(found))


def _unknown(directory: Path) -> Iterator[Requirement]:
    if not directory.is_dir():
        yield Requirement("directory", State.MISSING, f"{printable(str(directory))} is none")
        return
    yield Requirement(
        FILE_NAME,
        State.MISSING,
        "there is none",
        "Copy a shipped template's and change it; or bring all files of one of the systems below",
    )
    for system, names in _SYSTEMS.items():
        has = [name for name in names if (directory / name).is_file()]
        lacks = ", ".join(name for name in names if name not in has)
        found = f"has {', '.join(has) or 'nothing of it'}, lacks {lacks}"
        yield Requirement(f"as a directory of {system}", State.MISSING, found)


def _form(template: Template) -> Iterator[Requirement]:
    files = len(template.files_sha256)
    how = _NAMES[template.style]
    said = FILE_NAME in template.files_sha256 or template.style == "labd"
    detail = f"{how}, {files} files" + (
        f", with a {FILE_NAME}" if said and how != FILE_NAME else ""
    )
    yield Requirement("form", State.OK, detail)
    if template.style == "labd" and (other := foreign_style(template.directory)):
        yield Requirement("form", State.NOTE, f"{FILE_NAME} goes before the files of {other}")


def _running(template: Template) -> Iterator[Requirement]:
    limits = (
        f"at most {print_duration(template.time_limit_s)}, {template.memory_bytes // 2**20} MiB, "
    )
    limits += f"{template.cpus_per_run} CPUs, {template.gpus_per_run} GPUs"
    yield Requirement("command", State.OK, f"{_words(template.command)} ({limits})")
    if template.evaluate:
        yield Requirement("evaluation", State.OK, _words(template.evaluate))
    if template.private:
        yield Requirement("seen by the evaluation only", State.OK, ", ".join(template.private))
    if template.scales:
        yield Requirement("scale", State.OK, f"{', '.join(template.scales)}; {template.scale} now")
    missing = missing_requirements(template)
    if missing:
        yield Requirement(
            "modules",
            State.MISSING,
            f"not installed: {', '.join(missing)}",
            "Install them into the environment that labd runs in",
        )
    elif template.requirements:
        yield Requirement("modules", State.OK, ", ".join(template.requirements))


def _research(template: Template) -> Iterator[Requirement]:
    yield _metric(template)
    space = ", ".join(spec.name for spec in template.space)
    can_sweep = f"over {space}" if space else "not possible: no search_space"
    yield Requirement("researcher: sweep", State.OK if space else State.NOTE, can_sweep)
    editable = ", ".join(template.editable)
    can_edit = f"changes {editable}" if editable else "not possible: no editable files"
    yield Requirement("researcher: llm", State.OK if editable else State.NOTE, can_edit)
    ideas = len(seed_ideas(template))
    if ideas:
        yield Requirement("seed ideas", State.OK, f"{ideas}")
    for caution in template.cautions:
        yield Requirement("to be said in the paper", State.NOTE, caution)


def _metric(template: Template) -> Requirement:
    metric = template.metric
    if not metric.name:
        return Requirement(
            "metric",
            State.OPEN,
            metric.description,
            "Run the baseline with --run; or name it in the task: `metric: {name: ..., better: lower}`",
        )
    found = f"{metric.name}, {metric.better} is better: {metric.description}"
    return Requirement("metric", State.OK, printable(found, 500))


def _data(template: Template, inputs: Sequence[Path]) -> Iterator[Requirement]:
    mounts = template.mounts or {}
    for name, place in template.data.items():
        if name in mounts:
            yield Requirement(f"data: {name}", State.OK, printable(str(mounts[name])))
            continue
        places = ", ".join(str(root / place.path) for root in inputs) or "no place for inputs"
        yield Requirement(
            f"data: {name}", State.NOTE, f"none, which may be right; looked at {printable(places)}"
        )


def _words(command: Sequence[str]) -> str:
    return printable(" ".join(command), 300)
