"""From a study to its paper: written by the model, checked and set by labd, reviewed, and once revised if asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labd.errors import StorageError
from labd.files import write_atomic
from labd.research.asking import Asker
from labd.research.experiment import Tools
from labd.research.paper_study import (
    CHANGE_FILE,
    known_figures,
    selected_change,
    set_study_paper,
)
from labd.research.plots_study import draw_study_figures
from labd.research.render import Rendered
from labd.research.review import Reviews, review, write_reviews
from labd.research.study import Study
from labd.research.writing import Draft, improve, write_sections


@dataclass(frozen=True, slots=True)
class Published:
    """A study with its paper in four files, and what was said of it."""

    study: Study
    reviews: Reviews | None = None
    """Of the paper as it stands; ``None`` where none was asked for."""
    warnings: Sequence[str] = field(default=())
    """For the log."""


def publish(
    study: Study,
    *,
    asker: Asker,
    tools: Tools,
    results_dir: Path,
    patch: str,
    language: str,
    num_reviews: int,
    reviewers: Sequence[str],
    improved: bool,
) -> Published:
    """Draw, write, set and review the paper; give the study as the paper told it.

    Args:
        study: without figures and models.
        asker: whom to ask; what it can't answer is written by labd.
        tools: for telling progress.
        results_dir: of the task.
        patch: what the selected code changed in the template's.
        language: of the paper, two letters.
        num_reviews: how many reviews there are to be.
        reviewers: models that take turns at reviewing.
        improved: whether the paper is revised once after them, and reviewed again.

    Raises:
        Cancelled: the work was called off.
        ModelError: no model can be reached at all.
        ResearchError, TimedOut: the text could not be set.
        StorageError: the disk would not take it.

    """
    try:
        tools.progress("paper", 0, 1, "drawing")
        study = study.model_copy(update={"figures": draw_study_figures(study, results_dir)})
        if patch:
            write_atomic(results_dir / CHANGE_FILE, patch.encode())
        desk = _Desk(study, asker, tools, results_dir, tuple(reviewers))
        draft = desk.written(language)
        rendered = desk.set(draft)
        reviews = desk.reviewed(rendered, num_reviews, revised=False)
        if improved and reviews is not None and reviews.comments:
            tools.progress("revision", 0, 1, "writing")
            revised = desk.improved(draft, reviews.comments)
            if revised != draft:
                rendered = desk.set(revised)
                again = desk.reviewed(rendered, num_reviews, revised=True)
                reviews = again if again is not None and again.reviews else reviews
            tools.progress("revision", 1, 1, "written")
    except OSError as error:
        raise StorageError(
            f"the paper could not be written: {error.strerror}", where=str(results_dir)
        ) from error
    return Published(desk.told(), reviews, rendered.warnings)


@dataclass(frozen=True, slots=True)
class _Desk:
    """What each of the steps needs."""

    study: Study
    asker: Asker
    tools: Tools
    results_dir: Path
    reviewers: tuple[str, ...]

    def told(self) -> Study:
        """Give the study with what models were asked until now."""
        used = self.asker.use()
        hours = {**self.study.hours, "calls": sum(one.hours for one in used)}
        counts = {
            **self.study.counts,
            "calls": sum(one.calls for one in used),
            "failed_calls": sum(one.failed for one in used),
        }
        return self.study.model_copy(update={"models": used, "hours": hours, "counts": counts})

    def written(self, language: str) -> Draft:
        self.tools.progress("paper", 0, 1, "writing")
        return write_sections(
            self.told(),
            self.asker,
            figures=known_figures(self.study.figures),
            code=selected_change(self.results_dir),
            language=language,
        )

    def improved(self, draft: Draft, comments: str) -> Draft:
        return improve(
            draft,
            comments,
            self.told(),
            self.asker,
            figures=known_figures(self.study.figures),
            code=selected_change(self.results_dir),
        )

    def set(self, draft: Draft) -> Rendered:
        rendered = set_study_paper(self.told(), draft, self.results_dir)
        self.tools.progress("paper", 1, 1, "paper.pdf")
        return rendered

    def reviewed(self, rendered: Rendered, count: int, *, revised: bool) -> Reviews | None:
        """Have what a reader sees reviewed, and write that down."""
        if count == 0:
            return None
        name = "review-revised" if revised else "review"
        self.tools.progress(name, 0, count, "reading")
        paper = rendered.markdown.read_text(encoding="utf-8")
        reviews = review(
            paper, self.asker, num_reviews=count, round_name=name, models=self.reviewers
        )
        write_reviews(reviews, self.results_dir, revised=revised)
        self.tools.progress(name, count, count, f"{len(reviews.reviews)} that can be read")
        return reviews
