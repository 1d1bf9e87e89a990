"""What is recorded of a paper: cleaned, bounded, with a citation key; and which records are of one paper. Pure."""

import hashlib
import html
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Annotated, Literal, NamedTuple, get_args

from anyascii import anyascii
from pydantic import Field

from labd.template import Record

SourceName = Literal["openalex", "semantic_scholar", "arxiv", "library"]
SOURCE_NAMES: tuple[SourceName, ...] = get_args(SourceName)

MAX_TITLE_CHARS = 500
MAX_ABSTRACT_CHARS = 5000
MAX_NAME_CHARS = 200
MAX_AUTHORS = 100
MAX_URL_CHARS = 500

_KEY = r"^[a-z0-9]{1,100}$"
_DOI = re.compile(r"10\.\d{4,9}/[!-~]{1,200}")
_ARXIV_ID = re.compile(r"(\d{4}\.\d{4,5}|[a-z-]{1,20}(\.[A-Za-z]{2})?/\d{7})(v\d{1,3})?")
_ARXIV_DOI = "10.48550/arxiv."
"""Source: https://info.arxiv.org/help/doi.html (read 2026-11-26)."""
_URL = re.compile(r"https?://[!#-;=?-\[\]_a-z~]{1,490}", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:(?:jats|mml):[a-z]+|i|b|em|strong|sub|sup|scp|sc|tt|p|br|span|title|sec|italic|bold)\b[^<>]{0,200}>",
    re.IGNORECASE,
)
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_JOINERS = "\u200c\u200d"
_SHORT_TITLE_CHARS = 12
"""Shorter ones, such as "Editorial", are shared by papers that have nothing to do with each other."""
_MAX_NAMESAKES = 20
_MAX_YEARS_APART = 2
_GENERATIONS = frozenset({"jr", "sr", "ii", "iii", "iv"})
_SMALL_WORDS = frozenset(
    [
        *("a", "an", "the", "on", "of", "in", "for", "to", "and", "or", "with", "from", "towards"),
        *("toward", "is", "are", "how", "why", "what", "when", "do", "does", "can", "via", "by"),
        *("at", "as", "we", "it", "its", "using"),
    ]
)


class Paper(Record):
    """One paper as a source gave it. All text is somebody else's: cleaned and bounded, never trusted."""

    key: Annotated[str, Field(pattern=_KEY)]
    """For citing; unique among the papers that were put together by `unite`."""
    title: Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARS)]
    authors: Annotated[
        tuple[Annotated[str, Field(max_length=MAX_NAME_CHARS)], ...],
        Field(max_length=MAX_AUTHORS),
    ] = ()
    """As the source writes them: ``Ada Lovelace`` or ``Lovelace, Ada``."""
    year: Annotated[int, Field(ge=1000, le=2999)] | None = None
    venue: Annotated[str, Field(max_length=MAX_TITLE_CHARS)] = ""
    doi: Annotated[str, Field(max_length=250)] = ""
    """In small letters, without ``https://doi.org/``."""
    arxiv_id: Annotated[str, Field(max_length=40)] = ""
    """Without its version."""
    url: Annotated[str, Field(max_length=MAX_URL_CHARS)] = ""
    abstract: Annotated[str, Field(max_length=MAX_ABSTRACT_CHARS)] = ""
    source: SourceName
    """Who gave it; where several did, the first."""
    fetched_on: date
    """When it was fetched; for the library, when its file was last changed."""
    citations: Annotated[int, Field(ge=0)] | None = None


def make_paper(
    source: SourceName,
    fetched_on: date,
    *,
    title: object,
    authors: Iterable[object] = (),
    year: object = None,
    venue: object = None,
    doi: object = None,
    arxiv_id: object = None,
    url: object = None,
    abstract: object = None,
    citations: object = None,
) -> Paper | None:
    """Give the record of what a source said, whatever that is; `None` where it has no title.

    Each part that is not what it should be is left empty; what is too long is cut.
    """
    shown_title = clean(title, MAX_TITLE_CHARS)
    if not shown_title:
        return None
    names = tuple(name for name in _first(authors, MAX_AUTHORS) if name)
    the_year = _whole(year, 1000, 2999)
    the_doi = clean_doi(doi)
    the_id = clean_arxiv_id(arxiv_id) or clean_arxiv_id(_after(the_doi, _ARXIV_DOI))
    return Paper(
        key=_base_key(shown_title, names, the_year),
        title=shown_title,
        authors=names,
        year=the_year,
        venue=clean(venue, MAX_TITLE_CHARS),
        doi=the_doi,
        arxiv_id=the_id,
        url=_address(the_doi, the_id, url),
        abstract=clean(abstract, MAX_ABSTRACT_CHARS),
        source=source,
        fetched_on=fetched_on,
        citations=_whole(citations, 0, 10**9),
    )


def clean(text: object, limit: int) -> str:
    """Give text on one line without markup and control characters, at most `limit` long; "" for what is no text."""
    if not isinstance(text, str):
        return ""
    # What is cut off here bounds the work; tags and entities may make the rest shorter, not longer.
    plain = _TAG.sub("", html.unescape(text[: 8 * limit]))
    kept = "".join(map(_shown, unicodedata.normalize("NFC", plain)))
    line = " ".join(kept.split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def clean_doi(value: object) -> str:
    """Give a DOI in its bare form, or ""."""
    text = clean(value, 300).lower()
    for prefix in (
        "https://doi.org/",
        "http://doi.org/",
        "https://dx.doi.org/",
        "http://dx.doi.org/",
        "doi:",
    ):
        text = text.removeprefix(prefix)
    text = text.strip()
    return text if _DOI.fullmatch(text) and not set(text) & set('<>"{}\\`') else ""


def clean_arxiv_id(value: object) -> str:
    """Give an arXiv identifier without its version, or ""."""
    text = clean(value, 200)
    text = re.sub(r"^(https?://(export\.)?arxiv\.org/abs/|arxiv:)", "", text, flags=re.IGNORECASE)
    found = _ARXIV_ID.fullmatch(text)
    return found[1] if found else ""


def unite(known: Sequence[Paper], new: Iterable[Paper]) -> list[Paper]:
    """Give `known` as it is and then those of `new` that are other papers, each with a key of its own.

    Records are of one paper when they share DOI or arXiv identifier, or title, first author and about the year.
    What the first of them lacks is taken from the others.
    """
    papers = [*known, *new]
    merged: dict[int, Paper] = {}
    for paper, leader in zip(papers, group(papers), strict=True):
        if leader >= len(known):
            merged[leader] = _filled(merged[leader], paper) if leader in merged else paper
    return [*known, *_with_own_keys(merged.values(), {paper.key for paper in known})]


def group(papers: Sequence[Paper]) -> list[int]:
    """Give for each record the place of the first one that is of the same paper."""
    leaders: list[int] = []
    places: dict[str, list[int]] = {}
    for at, paper in enumerate(papers):
        names = _names(paper)
        seen = (i for name in names for i in places.get(name, ())[:_MAX_NAMESAKES])
        near = (i for i in seen if _is_same(papers[i], paper))
        leaders.append(leaders[first] if (first := next(near, None)) is not None else at)
        for name in names:
            places.setdefault(name, []).append(at)
    return leaders


class Name(NamedTuple):
    """The parts of a name; a name that has none is `family` alone."""

    given: str
    family: str
    suffix: str = ""


def parse_name(author: str) -> Name:
    """Give the parts of ``Ada King``, ``King, Ada`` or ``Ada King Jr.``; a group or a company is one part."""
    if author.count(",") > 1 or re.search(r"\band\b", author, re.IGNORECASE):
        return Name("", author)
    if "," in author:
        family, given = (part.strip() for part in author.split(","))
        is_suffix = given.strip(".").lower() in _GENERATIONS
        return parse_name(family)._replace(suffix=given) if is_suffix else Name(given, family)
    words = author.split()
    suffix = words.pop() if len(words) > 2 and words[-1].strip(".").lower() in _GENERATIONS else ""
    return Name(" ".join(words[:-1]), " ".join(words[-1:]), suffix)


def plain_title(title: str) -> str:
    """Give the title's letters and digits alone, so that spellings of one title are equal."""
    folded = unicodedata.normalize("NFKC", title).casefold()
    return "".join(char for char in folded if char.isalnum())


def _first(values: Iterable[object], most: int) -> Iterator[str]:
    for number, value in enumerate(values):
        if number >= most:
            return
        yield clean(value, MAX_NAME_CHARS)


def _shown(char: str) -> str:
    if char.isspace():
        return " "
    if unicodedata.category(char) in _DROPPED and char not in _JOINERS:
        return ""
    return char


def _whole(value: object, low: int, high: int) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value.strip()):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    return None


def _after(text: str, prefix: str) -> str:
    return text.removeprefix(prefix) if text.startswith(prefix) else ""


def _address(doi: str, arxiv_id: str, url: object) -> str:
    if doi:
        return f"https://doi.org/{doi}"
    if arxiv_id:
        return f"https://arxiv.org/abs/{arxiv_id}"
    text = clean(url, MAX_URL_CHARS)
    return text if _URL.fullmatch(text) else ""


def _base_key(title: str, authors: Sequence[str], year: int | None) -> str:
    family = _ascii(parse_name(authors[0]).family)[:30] if authors else ""
    words = [word for word in map(_ascii, title.split()) if word]
    telling = [word for word in words if word not in _SMALL_WORDS]
    word = (telling or words or [hashlib.sha256(title.encode()).hexdigest()[:8]])[0][:30]
    return f"{family or 'anonymous'}{year or 'nd'}{word}"


def _ascii(text: str) -> str:
    return "".join(char for char in anyascii(text).lower() if char.isascii() and char.isalnum())


def _with_own_keys(papers: Iterable[Paper], taken: set[str]) -> list[Paper]:
    keyed = []
    for paper in papers:
        base = _base_key(paper.title, paper.authors, paper.year)
        key = next(key for key in _suffixed(base) if key not in taken)
        taken.add(key)
        keyed.append(paper.model_copy(update={"key": key}))
    return keyed


def _suffixed(base: str) -> Iterator[str]:
    yield base
    for count in range(1, 10**6):
        suffix, rest = "", count
        while rest:
            rest, digit = divmod(rest, 26)
            suffix = string.ascii_lowercase[digit] + suffix
        yield base + suffix


def _names(paper: Paper) -> list[str]:
    names = [f"doi:{paper.doi}"] if paper.doi else []
    names += [f"arxiv:{paper.arxiv_id}"] if paper.arxiv_id else []
    title = plain_title(paper.title)
    return [*names, f"title:{title}"] if len(title) >= _SHORT_TITLE_CHARS else names


def _is_same(one: Paper, other: Paper) -> bool:
    if one.doi and one.doi == other.doi:
        return True
    if one.arxiv_id and one.arxiv_id == other.arxiv_id:
        return True
    title = plain_title(one.title)
    if len(title) < _SHORT_TITLE_CHARS or title != plain_title(other.title):
        return False
    if one.year and other.year and abs(one.year - other.year) > _MAX_YEARS_APART:
        return False
    if not (one.authors and other.authors):
        return True
    one_family, other_family = (parse_name(paper.authors[0]).family for paper in (one, other))
    return _ascii(one_family) == _ascii(other_family)


def _filled(one: Paper, other: Paper) -> Paper:
    names = ("authors", "year", "venue", "doi", "arxiv_id", "abstract", "citations")
    missing = {name for name in names if getattr(one, name) in (None, "", ())}
    update = {name: getattr(other, name) for name in missing}
    filled = one.model_copy(update=update)
    return filled.model_copy(
        update={"url": _address(filled.doi, filled.arxiv_id, one.url or other.url)}
    )
