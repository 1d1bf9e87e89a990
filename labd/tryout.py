"""`labd template`: which templates there are, what one has and lacks, and one run of its baseline."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd.errors import ConfigError, LabdError
from labd.research.experiment import Tools, run_one
from labd.research.measure import settled
from labd.research.record import Run
from labd.sandbox import Sandbox, SandboxConfig
from labd.settings import Home
from labd.template import Template, list_templates, read_template, snapshot
from labd.template.check import Inspection, inspect_template
from labd.text import printable

_SEED = 1
_TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class TriedBaseline:
    """One run of a template's baseline."""

    run: Run
    metric: str
    """What was measured and which way is better; empty where nothing was."""
    tail: tuple[str, ...]
    """Of what it printed, the last lines, safe to print."""
    problem: str = ""
    """Why research could not begin all the same."""


def templates(home: Home) -> list[dict[str, Any]]:
    """Give each template that a task may name: ``name``, ``style``, ``title``, ``metric``, ``directory``, ``problem``."""
    return [_row(name, path) for name, path in list_templates([home.templates]).items()]


def examine_template(home: Home, name_or_directory: str) -> Inspection:
    """Look at a template by its name, or at any directory.

    Raises:
        ConfigError: there is no template of that name.

    """
    directory = Path(name_or_directory)
    if "/" not in name_or_directory and not directory.is_dir():
        known = list_templates([home.templates])
        if name_or_directory not in known:
            raise ConfigError(
                f"there is no template {printable(name_or_directory, 200)}",
                fix=f"Known templates: {', '.join(sorted(known))}; or give a directory",
            )
        directory = known[name_or_directory]
    return inspect_template(directory.absolute(), inputs=home.inputs, forbidden=home.forbidden)


def try_baseline(home: Home, template: Template) -> TriedBaseline:
    """Run the baseline once in the sandbox, on validation, and throw away what it leaves.

    Raises:
        SandboxError: there is no sandbox.
        StorageError: the disk would not take the run's files.

    """
    boxed = home.settings.sandbox
    sandbox = Sandbox(SandboxConfig(uid=boxed.uid, allow_missing=boxed.allow_missing))
    with tempfile.TemporaryDirectory(prefix="labd-template-") as name:
        results = Path(name)
        results.chmod(
            0o755
        )  # the sandbox may have a user of its own, who reads the template there
        run = run_one(
            snapshot(template, results / "template"),
            Tools(sandbox),
            name="baseline-000",
            params=template.baseline,
            seed=_SEED,
            split="validation",
            results_dir=results,
            gpus=tuple(range(template.gpus_per_run)),
        )
        tail = tuple(_tail(results / run.directory))
        if run.value is None:
            return TriedBaseline(run, "", tail, problem=run.reason or "it gave no value")
        try:
            metric = settled(template, run, results).metric
        except LabdError as error:
            return TriedBaseline(run, "", tail, problem=str(error))
    return TriedBaseline(run, f"{metric.name}, {metric.better} is better", tail)


def _row(name: str, path: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("style", "title", "metric"), "")
    row = {"name": name, **row, "directory": str(path), "problem": ""}
    try:
        template = read_template(path)
    except ConfigError as error:
        return row | {"problem": str(error)}
    facts = {"style": template.style, "title": template.title, "metric": template.metric.name}
    return row | facts


def _tail(directory: Path) -> Iterator[str]:
    for log in ("log.txt", "evaluation.txt"):
        if (directory / log).is_file():
            text = (directory / log).read_text(errors="replace")
            yield from (printable(line, 300) for line in text.splitlines()[-_TAIL_LINES:])
