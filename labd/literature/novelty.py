"""Whether an idea is near to a paper that was found. Pure.

What nobody answered is "not checked", and "no close work found" is no more than it says: of the records that
were looked at, none has the idea's words. It is never a claim that an idea is new.
"""

from typing import Annotated, Literal

from pydantic import Field

from labd.literature.model import Found
from labd.literature.paper import Paper, SourceName
from labd.literature.ranking import similarities
from labd.template import Record

Status = Literal["not_checked", "no_close_work_found", "close_work_found"]

CLOSE = 0.5
"""The similarity from which on a paper counts as close work; see docs/literature.md for how it was chosen."""
NUM_CLOSEST = 5


class Near(Record):
    """How near a paper is to an idea."""

    key: str
    similarity: Annotated[float, Field(ge=0, le=1)]


class Novelty(Record):
    """What the papers that were found say of an idea."""

    status: Status
    reason: str
    """One sentence that says what was looked at."""
    queries: tuple[str, ...] = ()
    answered: tuple[SourceName, ...] = ()
    closest: tuple[Near, ...] = ()
    """The nearest first."""


def judge_novelty(
    idea_title: str, idea_text: str, found: Found, *, close: float = CLOSE
) -> Novelty:
    """Compare an idea with the papers of a search, by words alone; from `close` on a paper is close work.

    The similarity of two texts is the cosine of their TF-IDF vectors; that of an idea and a paper is the higher one
    of their titles' and their whole texts', because many a record has no abstract.
    """
    closest = _closest(idea_title, idea_text, found)
    status, reason = _verdict(f"{idea_title} {idea_text}", found, closest, close)
    return Novelty(
        status=status,
        reason=reason,
        queries=found.queries,
        answered=found.answered,
        closest=closest[:NUM_CLOSEST],
    )


def _closest(title: str, text: str, found: Found) -> tuple[Near, ...]:
    papers = found.papers
    by_title = similarities(title, [paper.title for paper in papers])
    by_text = similarities(f"{title} {text}", [_text(paper) for paper in papers])
    nears = [
        Near(key=paper.key, similarity=round(max(both), 4))
        for paper, both in zip(papers, zip(by_title, by_text, strict=True), strict=True)
    ]
    return tuple(sorted(nears, key=lambda near: (-near.similarity, near.key)))


def _text(paper: Paper) -> str:
    return f"{paper.title} {paper.abstract}"


def _verdict(
    idea: str, found: Found, closest: tuple[Near, ...], close: float
) -> tuple[Status, str]:
    failures = "; ".join(f"{name}: {why}" for name, why in found.failed.items())
    without = f" (without an answer: {failures})" if failures else ""
    if not found.answered:
        return "not_checked", f"Nobody was asked with success{without or ': no source is set'}."
    if not closest:
        names = ", ".join(found.answered)
        return "not_checked", f"No record was found at {names}, so nothing was compared{without}."
    if not similarities(idea, [idea])[0]:
        return "not_checked", "The idea holds no word that could be compared."
    looked_at = _looked_at(found)
    if closest[0].similarity >= close:
        near = f"{closest[0].key} is near to it (similarity {closest[0].similarity:.2f})"
        return "close_work_found", f"Of {looked_at}, {near}{without}."
    near = f"none is near to it (the highest similarity is {closest[0].similarity:.2f})"
    return "no_close_work_found", f"Of {looked_at}, {near}{without}."


def _looked_at(found: Found) -> str:
    given = ", ".join(f"{name} {found.records.get(name, 0)}" for name in found.answered)
    count, asked = len(found.papers), len(found.queries)
    records = f"{count} record{'s' * (count != 1)}"
    return f"{records} compared (given by {given}; {asked} {'query' if asked == 1 else 'queries'})"
