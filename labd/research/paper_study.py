"""The paper of a study: a model's checked prose, and around it all that labd itself says of the record.

Every number is filled in from the record here (`labd.research.numbers`), and in the abstract and the results the
outcome is labd's statement, whatever a model wrote.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labd.files import write_json
from labd.research.checker import mask_numbers
from labd.research.facts import fact_context, facts_of, trials_of
from labd.research.numbers import Filled, Reference
from labd.research.paper import NUMBERS_FILE, TASK_FILE_NAME, fill_layout, hash_list, run_command
from labd.research.plots_study import STUDY_FIGURES
from labd.research.prose import FIGURE, Cited, Prose, markdown
from labd.research.record import TrialStatus, Verdict
from labd.research.render import Rendered, render
from labd.research.study import Idea, Study
from labd.research.writing import Draft, names_with_digits
from labd.text import head_and_tail, printable

STRUCK_FILE = "paper.struck.json"
CHANGE_FILE = "selected.patch"
"""What the selected code changed in the template's; absent where nothing was selected."""
MAX_TRIALS_SHOWN = 60
_MAX_DIFF_CHARS = 12_000
_MAX_TITLE_CHARS = 200
_MAX_AUTHORS = 12
_MAX_NAMES = 6
_PART = re.compile(r"(?m)^\[\[(\w+)\]\]$")
_OUTCOMES = {
    Verdict.IMPROVED: "an improvement",
    Verdict.NO_IMPROVEMENT: "no improvement found",
    Verdict.WORSE: "a change that did not hold on the test split",
    Verdict.INCONCLUSIVE: "an inconclusive study",
}
_NAMES = {"related_work": "related work"}


@dataclass(frozen=True, slots=True)
class StudyPaper:
    """A study's paper before it is set, with every number traced."""

    title: str
    authors: tuple[str, ...]
    abstract: Filled
    body: Filled
    warnings: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[Reference, ...]:
        """All that was filled in, abstract first."""
        return self.abstract.references + self.body.references


def set_study_paper(study: Study, draft: Draft, results_dir: Path) -> Rendered:
    """Write ``paper.md``, ``.tex``, ``.html``, ``.pdf`` and, beside them, which number is from where and what was struck.

    Raises:
        ResearchError: the record lacks what the text needs, or the text could not be set.
        TimedOut: setting the text took too long.

    """
    paper = draft_study_paper(study, draft, results_dir)
    rendered = render(
        paper.body.text,
        title=paper.title,
        authors=paper.authors,
        date=study.provenance.started_on,
        abstract=paper.abstract.text,
        figures_root=results_dir,
        out_dir=results_dir,
        language=draft.language,
    )
    numbers = [
        asdict(reference)
        for reference in paper.references
        if isinstance(reference.value, int | float) and not isinstance(reference.value, bool)
    ]
    write_json(results_dir / NUMBERS_FILE, numbers)
    write_json(results_dir / STRUCK_FILE, [asdict(struck) for struck in draft.struck])
    return replace(rendered, warnings=paper.warnings + rendered.warnings)


def draft_study_paper(study: Study, draft: Draft, results_dir: Path) -> StudyPaper:
    """Give a study's paper as filled Markdown.

    Raises:
        ResearchError: the record lacks what the text needs; the message lists all of it.

    """
    figures, warnings = _figures(study, results_dir)
    works = _cited(draft, study)
    context = fact_context(study) | {"paper": _derived(study, draft, figures, works, results_dir)}
    printed = {key: fact.printed for key, fact in facts_of(study).items()}
    for name, figure in figures.items():
        shown = f"Figure {{{{ paper.figures.{name}.number }}}}"
        printed[FIGURE + name] = shown if figure else "the figure"
    own = _own_prose()

    def part(match: re.Match[str]) -> str:
        prose = draft.sections[match[1]].prose
        if not prose.blocks:
            return own[match[1]]
        return markdown(prose, printed, lambda key: f"{{{{ paper.works[{works.index(key)}] }}}}")

    return StudyPaper(
        title=_title(study, draft),
        authors=_authors(study),
        abstract=fill_layout("paper_study_abstract.md.j2", context, lambda t: _PART.sub(part, t)),
        body=fill_layout("paper_study.md.j2", context, lambda t: _PART.sub(part, t)),
        warnings=warnings,
    )


def known_figures(figures: Mapping[str, str]) -> dict[str, str]:
    """Give name and meaning of those figures that the text knows, for prompts."""
    return {name: meaning for name, meaning in STUDY_FIGURES.items() if name in figures}


def selected_change(results_dir: Path) -> str:
    """Give what the selected code changed in the template's, as it is on disk, without its middle if it is long."""
    try:
        with (results_dir / CHANGE_FILE).open(encoding="utf-8", errors="replace") as file:
            return head_and_tail(file.read(2**20), _MAX_DIFF_CHARS)
    except FileNotFoundError:
        return ""


def _own_prose() -> dict[str, str]:
    text = (Path(__file__).with_name("layout") / "paper_study_prose.md.j2").read_text("utf-8")
    _, *parts = _PART.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _title(study: Study, draft: Draft) -> str:
    own = " ".join((study.title or study.template_title).split())
    subject = draft.title or mask_numbers(own, names_with_digits(study))
    shown = printable(subject, _MAX_TITLE_CHARS) or study.template
    return f"{shown}: {_OUTCOMES[study.claim.verdict]}"


def _authors(study: Study) -> tuple[str, ...]:
    models = dict.fromkeys(printable(use.model, 100) for use in study.models)
    return tuple(["labd", *(f"{model} (language model)" for model in models)][:_MAX_AUTHORS])


def _figures(study: Study, results_dir: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Give the figures that are there, numbered in the order of the text, and warnings."""
    order = ("baseline_vs_best", "trials", "tree", "ablations", "learning_curves")
    figures: dict[str, Any] = dict.fromkeys(order)
    warnings = []
    for name in order:
        path = study.figures.get(name)
        if path is None:
            continue
        if (results_dir / path).is_file():
            number = 1 + sum(figure is not None for figure in figures.values())
            figures[name] = {"number": number, "path": path}
        else:
            warnings.append(f"figure {name} is left out: there is no {printable(path, 120)}")
    return figures, tuple(warnings)


def _cited(draft: Draft, study: Study) -> list[str]:
    """Give the keys of the works that the paper cites, in the order in which it does so first."""
    order = [section.prose for name, section in draft.sections.items() if name != "abstract"]
    keys = [key for prose in order[:2] for key in _keys(prose)]
    idea = _selected_idea(study)
    known = {str(work.get("key")) for work in study.references}
    if idea is not None and idea.novelty.status == "close_work_found":
        keys += [key for key in idea.novelty.closest if key in known]
    keys += [key for prose in order[2:] for key in _keys(prose)]
    return list(dict.fromkeys(keys))


def _keys(prose: Prose) -> list[str]:
    return [
        key
        for sentence in prose.sentences
        for piece in sentence.pieces
        if isinstance(piece, Cited)
        for key in piece.keys
    ]


def _selected_idea(study: Study) -> Idea | None:
    names = [trial.idea for trial in study.trials if trial.name == study.best_trial]
    return next((idea for idea in study.ideas if idea.name in names), None)


def _derived(
    study: Study,
    draft: Draft,
    figures: Mapping[str, Any],
    works: Sequence[str],
    results_dir: Path,
) -> dict[str, Any]:
    """Give what the text needs beside the record: numbers of figures and tables, counts, masked words."""
    names = names_with_digits(study)
    idea = _selected_idea(study)
    best = next((trial for trial in study.trials if trial.name == study.best_trial), None)
    runs = study.confirm_baseline + study.confirm_best
    authored = {
        author: [
            _NAMES.get(name, name) for name, s in draft.sections.items() if s.author == author
        ]
        for author in ("model", "labd")
    }
    rows = _differences(study)
    return {
        "figures": figures,
        "tables": _tables(study, rows),
        "ideas": [_idea_row(study, one, names) for one in study.ideas],
        "ideas_from_model": any(one.source == "model" for one in study.ideas),
        "selected_idea": None if idea is None else {"title": mask_numbers(idea.title, names)},
        "novelty": None if idea is None else _novelty(idea, names),
        "closest": [
            works.index(key) + 1 for key in (idea.novelty.closest if idea else []) if key in works
        ],
        "arms": _arms(study),
        "differences": rows,
        "failed_confirmations": sum(run.status is not TrialStatus.OK for run in runs),
        "failed_trials": sum(trial.value is None for trial in study.trials),
        "more_trials": len(study.trials) > MAX_TRIALS_SHOWN,
        "reasons": _reasons(study, names),
        "best_diff": selected_change(results_dir) if study.best_trial else "",
        "best_commit": best.commit if best is not None else None,
        "fresh_seeds": study.provenance.trial_seed not in study.provenance.confirm_seeds,
        "confirmed_on": "On the test split"
        if study.has_splits
        else "On the data that the selection was made on as well",
        "repeats": "fresh seeds" if study.has_seeds else "repeated runs",
        "written_by_model": bool(authored["model"]),
        "model_sections": authored["model"],
        "labd_sections": authored["labd"],
        "strikes": _strikes(draft),
        "works": [number + 1 for number in range(len(works))],
        "references": [_work(study, key, number) for number, key in enumerate(works, 1)],
        "digests": _digests(study),
        "run_command": run_command(study.provenance),
        "command": f"labd run {shlex.quote(TASK_FILE_NAME)}",
        "task_file_name": TASK_FILE_NAME,
        "hashes": hash_list(study.provenance),
        "numbers_file": NUMBERS_FILE,
        "struck_file": STRUCK_FILE,
        "calls_directory": "calls/",
        "work_directory": "work/",
    }


def _tables(study: Study, differences: Sequence[Any]) -> dict[str, int | None]:
    """Give the numbers of the tables that there will be, in the order of the text."""
    there = {
        "ideas": bool(study.ideas),
        "confirmation": bool(_arms(study)),
        "differences": bool(differences),
        "trials": bool(study.trials),
        "ablations": bool(study.ablations),
        "versions": bool(study.provenance.packages),
        "models": bool(study.models),
    }
    numbers = iter(range(1, len(there) + 1))
    return {name: next(numbers) if present else None for name, present in there.items()}


def _arms(study: Study) -> list[dict[str, Any]]:
    control = study.control.claim.best if study.control is not None else None
    selected = study.claim.best if study.best_trial is not None else None
    named = (("baseline", study.claim.baseline), ("selected", selected), ("control", control))
    return [
        {"name": name, "sample": sample.model_dump(mode="json")}
        for name, sample in named
        if sample is not None
    ]


def _differences(study: Study) -> list[dict[str, Any]]:
    claims = [("selected minus baseline", study.claim if study.best_trial is not None else None)]
    if study.control is not None:
        claims.append(("control minus baseline", study.control.claim))
        claims.append(("selected minus control", study.control.against))
    return [
        {
            "name": name,
            "claim": claim.model_dump(mode="json"),
            "verdict": claim.verdict.value.replace("_", " "),
        }
        for name, claim in claims
        if claim is not None and claim.difference is not None
    ]


def _idea_row(study: Study, idea: Idea, names: frozenset[str]) -> dict[str, Any]:
    trials = [trial for _, trial in trials_of(study, idea)]
    return {
        "name": idea.name,
        "title": mask_numbers(idea.title, names),
        "source": {"fallback": "labd (fallback)", "seed": "template"}.get(idea.source, "model"),
        "trials": len(trials),
        "ok": sum(trial.value is not None for trial in trials),
    }


def _novelty(idea: Idea, names: frozenset[str]) -> dict[str, Any]:
    found = idea.novelty
    return {
        "status": found.status,
        "reason": mask_numbers(found.reason, names) or "no reason recorded",
        "answered": found.answered or ["no source"],
    }


def _reasons(study: Study, names: frozenset[str]) -> list[dict[str, str]]:
    """Give why trials have no value; the words may be the model's code's own, so numbers are left out."""
    rows = []
    for trial in study.trials:
        reason = trial.refused or (trial.run.reason if trial.run is not None else None)
        if trial.value is None and reason:
            rows.append(
                {"name": trial.name, "reason": mask_numbers(printable(reason, 300), names)}
            )
    return rows


def _strikes(draft: Draft) -> list[dict[str, Any]]:
    rows = []
    for name, section in draft.sections.items():
        kinds = sorted({kind for struck in section.struck for kind in struck.kinds})
        if section.struck:
            section_name = _NAMES.get(name, name)
            rows.append({"section": section_name, "count": len(section.struck), "kinds": kinds})
    return rows


def _digests(study: Study) -> list[dict[str, str]]:
    found = dict.fromkeys((use.model, use.digest) for use in study.models if use.digest)
    return [{"model": model, "digest": digest} for model, digest in found]


def _work(study: Study, key: str, number: int) -> dict[str, Any]:
    """Give a fetched work as it stands in the list of references; what its record lacks is left out."""
    raw = next(work for work in study.references if str(work.get("key")) == key)
    authors = raw.get("authors") or []
    if isinstance(authors, str):
        authors = [authors]
    shown = [_spoken(str(author)) for author in authors[:_MAX_NAMES]]
    shown += ["and others"] if len(authors) > _MAX_NAMES else []
    places = (("doi:", "doi"), ("arXiv:", "arxiv_id"), ("", "url"))
    link = next((f"{form}{raw[name]}" for form, name in places if raw.get(name)), "")
    return {
        "number": number,
        "authors": ", ".join(shown),
        "title": str(raw.get("title") or key),
        "venue": str(raw.get("venue") or ""),
        "year": raw.get("year"),
        "link": link,
    }


def _spoken(name: str) -> str:
    """Give ``Lovelace, Ada`` as ``Ada Lovelace``."""
    last, _, first = name.partition(",")
    return " ".join(f"{first} {last}".split())
