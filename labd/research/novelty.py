"""Whether somebody has done it before: an idea looked up in the literature, as far as anybody answers.

What was found is recorded in the journal, so that a resumed task cites what the first attempt fetched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field

from labd.journal import Journal
from labd.literature.model import Found
from labd.literature.novelty import judge_novelty
from labd.literature.paper import Paper
from labd.llm.budget import Part
from labd.research.asking import Asker
from labd.research.study import Idea, NoveltyCheck

MAX_PAPERS_AN_IDEA = 10
MAX_CITABLE = 30
_TIMEOUT_S = 60.0
_ASK = (
    "Somebody may have tried this before. Give one to three short search queries, as for a search engine of"
    " scientific papers: a few technical terms each, no sentences."
)


class _Queries(BaseModel):
    queries: Annotated[
        list[Annotated[str, Field(min_length=3, max_length=200)]],
        Field(min_length=1, max_length=3),
    ]


class Shelf(Protocol):
    """Where works are looked up: `labd.literature.Literature`."""

    def search(self, queries: Sequence[str], *, limit: int, timeout_s: float) -> Found:
        """Give what was found, and who answered."""
        ...


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Ideas with what the literature says of each, and the works that a paper may cite."""

    ideas: list[Idea]
    papers: list[Paper]
    notes: list[str]


def look_up(
    ideas: Sequence[Idea], asker: Asker, journal: Journal, shelf: Shelf | None
) -> LookedUp:
    """Look each idea up. Ideas with close works go behind the others, which otherwise keep their order."""
    if shelf is None:
        return LookedUp(list(ideas), [], [])
    checked: list[Idea] = []
    papers: dict[str, Paper] = {}
    failed: dict[str, str] = {}
    for idea in ideas:
        found = _found(idea, _queries(idea, asker), journal, shelf)
        papers |= {paper.key: paper for paper in found.papers}
        failed |= {str(name): why for name, why in found.failed.items()}
        checked.append(idea.model_copy(update={"novelty": _check(idea, found)}))
    checked.sort(key=lambda idea: idea.novelty.status == "close_work_found")
    ranked = [idea.novelty.closest for idea in checked]
    order = {key: place for place, key in enumerate(key for keys in ranked for key in keys)}
    citable = sorted(papers.values(), key=lambda paper: order.get(paper.key, len(order)))
    notes = [
        f"The source of literature {name} did not answer: {why}" for name, why in failed.items()
    ]
    return LookedUp(checked, citable[:MAX_CITABLE], notes)


def _queries(idea: Idea, asker: Asker) -> list[str]:
    parts = [
        Part("task", _ASK, priority=9, required=True, role="system"),
        Part("idea", f"Title: {idea.title}\n\nHypothesis: {idea.hypothesis}\n\nExperiment: {idea.experiment}", priority=5, shrink="head_and_tail"),
    ]  # fmt: skip
    answer = asker.ask(f"queries/{idea.name}", "ideas", parts, schema=_Queries, num_predict=512)
    asked = [] if answer.problem else list(answer.value.queries)
    return [*asked, idea.title]


def _found(idea: Idea, queries: Sequence[str], journal: Journal, shelf: Shelf) -> Found:
    def fetch() -> dict[str, Any]:
        found = shelf.search(queries, limit=MAX_PAPERS_AN_IDEA, timeout_s=_TIMEOUT_S)
        return found.model_dump(mode="json")

    inputs = {"queries": list(queries), "limit": MAX_PAPERS_AN_IDEA}
    return Found.model_validate(journal.step(f"literature/{idea.name}", inputs, fetch))


def _check(idea: Idea, found: Found) -> NoveltyCheck:
    text = f"{idea.hypothesis}\n{idea.experiment}"
    said = judge_novelty(idea.title, text, found)
    return NoveltyCheck(
        status=said.status,
        reason=said.reason,
        queries=list(said.queries),
        answered=list(said.answered),
        closest=[close.key for close in said.closest],
    )
