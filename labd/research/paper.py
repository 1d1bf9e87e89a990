"""The paper of a parameter sweep: the record's numbers in a fixed text, set in four formats.

No language model has a part in it, and nothing in it depends on how long anything took: the same
record gives the same paper.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labd.errors import ResearchError
from labd.files import write_json
from labd.research.numbers import Filled, Reference, fill
from labd.research.record import Provenance, ResearchRecord, Run, TrialStatus, Verdict
from labd.research.render import Rendered, render
from labd.text import printable

CONFIDENCE = 0.95
"""Level of all intervals in `Sample` and `Claim`."""
FIGURES = ("baseline_vs_best", "best_so_far", "learning_curves", "importance")
"""The figures that the text knows, in the order in which it shows them."""
NUMBERS_FILE = "paper.numbers.json"
TASK_FILE_NAME = "task.yaml"
_AUTHOR = "labd (written from a template, without a language model)"
_LAYOUT = Path(__file__).with_name("layout")
_PLACEHOLDER = re.compile(r"'(\{\w+\})'")
_MAX_WIDE_PARAMETERS = 7
_MAX_TITLE_CHARS = 160
_OUTCOMES = {
    Verdict.IMPROVED: "a parameter search improves on the baseline",
    Verdict.NO_IMPROVEMENT: "a parameter search finds no improvement",
    Verdict.WORSE: "the setting that a parameter search selected is worse than the baseline",
    Verdict.INCONCLUSIVE: "a parameter search without a conclusion",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A paper's text before it is set, with every number traced."""

    title: str
    abstract: Filled
    body: Filled
    warnings: tuple[str, ...]

    @property
    def references(self) -> tuple[Reference, ...]:
        """All that was filled in, abstract first."""
        return self.abstract.references + self.body.references


def write_paper(record: ResearchRecord, results_dir: Path) -> Rendered:
    """Write the sweep's paper into `results_dir`, in four formats, and ``paper.numbers.json`` beside it.

    The latter lists each number in the paper with its path in the record and the full value.
    Figures are taken from where `record.figures` says, below `results_dir`; a missing one is left out
    with a warning.

    Raises:
        ResearchError: the record lacks what the text needs, or the text could not be set.
        TimedOut: setting the text took too long.

    """
    draft = draft_paper(record, results_dir)
    rendered = render(
        draft.body.text,
        title=draft.title,
        authors=[_AUTHOR],
        date=record.provenance.started_on,
        abstract=draft.abstract.text,
        figures_root=results_dir,
        out_dir=results_dir,
    )
    numbers = [
        asdict(reference)
        for reference in draft.references
        if isinstance(reference.value, int | float) and not isinstance(reference.value, bool)
    ]
    write_json(results_dir / NUMBERS_FILE, numbers)
    return replace(rendered, warnings=draft.warnings + rendered.warnings)


def draft_paper(record: ResearchRecord, results_dir: Path) -> Draft:
    """Give the sweep's paper as filled Markdown.

    Raises:
        ResearchError: the record lacks what the text needs; the message lists all of it.

    """
    figures, warnings = _figures(record, results_dir)
    context = record.context() | {"paper": _derived(record, figures)}
    subject = printable(" ".join(record.title.split()), _MAX_TITLE_CHARS) or record.template
    return Draft(
        title=f"{subject}: {_OUTCOMES[record.claim.verdict]}",
        abstract=fill_layout("paper_sweep_abstract.md.j2", context),
        body=fill_layout("paper_sweep.md.j2", context),
        warnings=warnings,
    )


def fill_layout(
    name: str, context: Mapping[str, Any], prepare: Callable[[str], str] = lambda text: text
) -> Filled:
    """Fill the text of that name that labd has; `prepare` may put parts into it before.

    Raises:
        ResearchError: the record lacks what the text needs; the message lists all of it.

    """
    text = (_LAYOUT / name).read_text(encoding="utf-8")
    try:
        return fill(prepare(text), context)
    except ResearchError as error:
        where = f"{name}: {error.where}" if error.where else name
        raise ResearchError(error.what, where=where, fix=error.fix) from error


def _figures(record: ResearchRecord, results_dir: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Give the figures that are there, numbered in the order of the text, and warnings."""
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    warnings = [
        f"figure {printable(name, 60)} is not known to the paper"
        for name in record.figures
        if name not in figures
    ]
    number = 0
    for name in FIGURES:
        path = record.figures.get(name)
        if path is None:
            continue
        if (results_dir / path).is_file():
            number += 1
            figures[name] = {"number": number, "path": path}
        else:
            warnings.append(f"figure {name} is left out: there is no {printable(path, 120)}")
    return figures, tuple(warnings)


def _derived(record: ResearchRecord, figures: dict[str, Any]) -> dict[str, Any]:
    """Give what the text needs beside the record: numbers of figures and tables, counts, file names."""
    confirmations = record.confirm_baseline + record.confirm_best
    failed = [trial.model_dump(mode="json") for trial in record.trials if _failed(trial)]
    return {
        "confidence": CONFIDENCE,
        "figures": figures,
        "tables": _tables(record),
        "failed_trials": failed,
        "failed_confirmations": sum(map(_failed, confirmations)),
        "wide_trials": len(record.space) <= _MAX_WIDE_PARAMETERS,
        "run_command": run_command(record.provenance),
        "fresh_seeds": record.provenance.trial_seed not in record.provenance.confirm_seeds,
        "numbers_file": NUMBERS_FILE,
        "command": f"labd run {TASK_FILE_NAME}",
        "task_file_name": TASK_FILE_NAME,
        "hashes": hash_list(record.provenance),
        "runs_directory": "runs/",
        "result_file": "result.json",
    }


def _failed(run: Run) -> bool:
    return run.status is not TrialStatus.OK


def _tables(record: ResearchRecord) -> dict[str, int | None]:
    """Give the numbers of the tables that there will be, in the order of the text."""
    claim, selected = record.claim, record.best_trial is not None
    there = {
        "space": True,
        "confirmation": claim.baseline is not None or (claim.best is not None and selected),
        "difference": claim.difference is not None and selected,
        "parameters": selected,
        "trials": any(trial.value is not None for trial in record.trials),
        "importances": any(row.share is not None for row in record.importances),
        "versions": bool(record.provenance.packages),
    }
    numbers = iter(range(1, len(there) + 1))
    return {name: next(numbers) if present else None for name, present in there.items()}


def run_command(provenance: Provenance) -> str:
    """Give the command of a run as one would type it, its placeholders as they are."""
    return _PLACEHOLDER.sub(r"\1", shlex.join(provenance.command))


def hash_list(provenance: Provenance) -> str:
    """List hashes as ``sha256sum`` does, the template's as a whole first."""
    rows = [
        (provenance.template_sha256, "(whole template)"),
        (provenance.task_sha256, TASK_FILE_NAME),
        *((sha256, printable(name, 200)) for name, sha256 in provenance.files_sha256.items()),
    ]
    return "\n".join(f"{sha256}  {name}" for sha256, name in rows)
