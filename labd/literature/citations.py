"""Fetched records as BibTeX, as CSL JSON and as lines of a list of references. Pure."""

import re
from collections.abc import Iterable
from typing import Any

from bibtexparser.entrypoint import write_string
from bibtexparser.library import Library
from bibtexparser.model import Entry, Field

from labd.literature.paper import Paper, parse_name

_MAX_NAMES = 6
_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}  # fmt: skip
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#~^$@&|!+=%]")
_LIST_MARKER = re.compile(r"^(\(?\w{1,9})([.)])|^([^\w\\])")


def to_bibtex(papers: Iterable[Paper]) -> str:
    """Give the papers as a BibTeX file in UTF-8, an entry each."""
    library = Library([_entry(paper) for paper in papers])
    return write_string(library, unparse_stack=[])


def to_csl_json(papers: Iterable[Paper]) -> list[dict[str, Any]]:
    """Give the papers as items of CSL JSON, which pandoc reads; ``id`` is the key.

    Source: https://docs.citationstyles.org/en/stable/specification.html (read 2026-11-26).
    """
    return [_csl(paper) for paper in papers]


def reference_line(paper: Paper) -> str:
    """Give the paper as one line of Markdown that shows all of it literally: names, year, title, where."""
    names = ", ".join(map(_as_spoken, paper.authors[:_MAX_NAMES])) or "Anonymous"
    if len(paper.authors) > _MAX_NAMES:
        names += ", and others"
    where = [_sentence(paper.venue)] if paper.venue else []
    where += [_place(paper)] if _place(paper) else []
    text = " ".join([f"{names} ({paper.year or 'n.d.'}).", _sentence(paper.title), *where])
    escaped = _MARKUP.sub(lambda found: f"\\{found[0]}", text)
    return _LIST_MARKER.sub(_escape_marker, escaped).replace("www.", "www\\.")


def _escape_marker(found: re.Match[str]) -> str:
    return f"\\{found[3]}" if found[3] else f"{_escape_opening(found[1])}\\{found[2]}"


def _escape_opening(text: str) -> str:
    return f"\\{text}" if text.startswith("(") else text


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "…")) else f"{text}."


def _place(paper: Paper) -> str:
    if paper.doi:
        return f"doi:{paper.doi}"
    return f"arXiv:{paper.arxiv_id}" if paper.arxiv_id else paper.url


def _entry(paper: Paper) -> Entry:
    fields = {
        # Two pairs of braces keep the title's capitals as they are.
        "title": f"{{{_tex(paper.title)}}}",
        "author": " and ".join(map(_tex_name, paper.authors)),
        "year": str(paper.year or ""),
        "journal": _tex(paper.venue),
        # These are read as they are, without LaTeX; what a record lets through holds no brace and no backslash.
        "doi": paper.doi,
        "eprint": paper.arxiv_id,
        "archiveprefix": "arXiv" if paper.arxiv_id else "",
        "url": paper.url,
    }
    kind = "article" if paper.venue else "misc"
    return Entry(
        kind, paper.key, [Field(name, f"{{{value}}}") for name, value in fields.items() if value]
    )


def _tex(text: str) -> str:
    # Dashes and quotes in a row would run together into others.
    return re.sub(r"([-'])(?=\1)", r"\1{}", "".join(_TEX.get(char, char) for char in text))


def _tex_name(name: str) -> str:
    safe = _tex(name)
    # In braces a name is one whole, so that "and" or a second comma in it makes no further people.
    return f"{{{safe}}}" if not parse_name(name).given else safe


def _csl(paper: Paper) -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": paper.key,
        "type": "article-journal" if paper.venue else "article",
        "title": paper.title,
        "author": [_csl_name(name) for name in paper.authors],
        "issued": {"date-parts": [[paper.year]]} if paper.year else {},
        "container-title": paper.venue,
        "DOI": paper.doi,
        "URL": paper.url,
    }
    if paper.arxiv_id:
        item["number"] = f"arXiv:{paper.arxiv_id}"
    return {name: value for name, value in item.items() if value}


def _csl_name(author: str) -> dict[str, str]:
    name = parse_name(author)
    if not (name.given and name.family):
        return {"literal": author}
    return {part: text for part, text in name._asdict().items() if text}


def _as_spoken(author: str) -> str:
    return " ".join(part for part in parse_name(author) if part)
