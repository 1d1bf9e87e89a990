"""The indexes on the network: what each is asked, and how its reply is read. Readers are pure and trust nothing."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Any, TypeVar
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from labd.apikey import read_api_key
from labd.errors import ConfigError
from labd.literature.fetch import get
from labd.literature.model import Options, SourceFailed
from labd.literature.paper import MAX_ABSTRACT_CHARS, Paper, SourceName, make_paper
from labd.literature.ranking import words

SPACING_S: Mapping[SourceName, float] = {
    "openalex": 0.2,
    "semantic_scholar": 1.1,
    "arxiv": 3.0,
}
"""Between two requests. Sources (read 2026-11-26): https://www.semanticscholar.org/product/api, one a second with a
key; https://info.arxiv.org/help/api/tou.html, one in three seconds; OpenAlex allows a hundred a second, which is
never needed: https://developers.openalex.org/api-reference/authentication."""
_URLS: Mapping[SourceName, str] = {
    "openalex": "https://api.openalex.org",
    "semantic_scholar": "https://api.semanticscholar.org",
    "arxiv": "https://export.arxiv.org",
}
_OPENALEX_FIELDS = "id,doi,title,publication_year,authorships,primary_location,abstract_inverted_index,cited_by_count,ids"
_S2_FIELDS = "title,authors,year,venue,externalIds,url,abstract,citationCount"
_ARXIV_WORDS = 10
_ATOM = "{http://www.w3.org/2005/Atom}"
_ARXIV = "{http://arxiv.org/schemas/atom}"
_MAX_WORD_POSITION = 20_000
_T = TypeVar("_T")


class OpenAlex:
    """OpenAlex, by its API of 2026: without a key of one's own it answers a few queries a day.

    Source: https://developers.openalex.org/api-reference/works (read 2026-11-26).
    """

    name: SourceName = "openalex"

    def __init__(self, options: Options, today: Callable[[], date]) -> None:
        self._options = options
        self._today = today

    def search(self, query: str, limit: int, deadline_s: float) -> list[Paper]:
        """Give papers as `Source.search` does."""
        options = self._options
        key = _key(options.openalex_key_env, options.openalex_key_file, "openalex_key")
        params = {"search": _words_only(query), "per_page": str(limit), "select": _OPENALEX_FIELDS}
        params |= {"api_key": key} if key else {}
        params |= {"mailto": options.mailto} if options.mailto else {}
        raw = get(
            _url(options, self.name, "/works"), params, _headers(options), deadline_s=deadline_s
        )
        return read_openalex(raw, self._today())[:limit]


class SemanticScholar:
    """Semantic Scholar's academic graph; without a key it often refuses.

    Source: https://api.semanticscholar.org/api-docs/graph (read 2026-11-26).
    """

    name: SourceName = "semantic_scholar"

    def __init__(self, options: Options, today: Callable[[], date]) -> None:
        self._options = options
        self._today = today

    def search(self, query: str, limit: int, deadline_s: float) -> list[Paper]:
        """Give papers as `Source.search` does."""
        options = self._options
        key = _key(options.s2_key_env, options.s2_key_file, "s2_key")
        headers = _headers(options) | ({"x-api-key": key} if key else {})
        params = {"query": _words_only(query), "limit": str(limit), "fields": _S2_FIELDS}
        url = _url(options, self.name, "/graph/v1/paper/search")
        raw = get(url, params, headers, deadline_s=deadline_s)
        return read_semantic_scholar(raw, self._today())[:limit]


class Arxiv:
    """arXiv's API, which answers in Atom.

    Source: https://info.arxiv.org/help/api/user-manual.html (read 2026-11-26).
    """

    name: SourceName = "arxiv"

    def __init__(self, options: Options, today: Callable[[], date]) -> None:
        self._options = options
        self._today = today

    def search(self, query: str, limit: int, deadline_s: float) -> list[Paper]:
        """Give papers as `Source.search` does."""
        terms = list(dict.fromkeys(words(query)))[:_ARXIV_WORDS]
        if not terms:
            raise SourceFailed("the query holds no word to search for", is_down=False)
        params = {
            # Any of the words: it sorts by relevance itself, and all of them are rarely in one record.
            "search_query": " OR ".join(f"all:{term}" for term in terms),
            "start": "0",
            "max_results": str(limit),
            "sortBy": "relevance",
            "sortOrder": "descending",
        }
        url = _url(self._options, self.name, "/api/query")
        raw = get(url, params, _headers(self._options), deadline_s=deadline_s)
        return read_arxiv(raw, self._today())[:limit]


def read_openalex(raw: bytes, today: date) -> list[Paper]:
    """Give the papers of a reply.

    Raises:
        SourceFailed: it is no reply of OpenAlex.

    """
    items = _items(_object(raw), "results")
    return _papers(items, lambda item: _openalex_paper(item, today))


def read_semantic_scholar(raw: bytes, today: date) -> list[Paper]:
    """Give the papers of a reply.

    Raises:
        SourceFailed: it is no reply of Semantic Scholar.

    """
    reply = _object(raw)
    # Where there is nothing it says so with a total of zero, and leaves the list away.
    items = [] if reply.get("total") == 0 and "data" not in reply else _items(reply, "data")
    return _papers(items, lambda item: _s2_paper(item, today))


def read_arxiv(raw: bytes, today: date) -> list[Paper]:
    """Give the papers of a reply; DTDs and entities are refused.

    Raises:
        SourceFailed: it is no reply of arXiv, or says that something went wrong.

    """
    try:
        feed = fromstring(raw, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        # LookupError and ValueError: an encoding that Python does not know, or that expat can't use.
        raise SourceFailed("the reply is no Atom feed") from error
    if feed.tag != f"{_ATOM}feed":
        raise SourceFailed("the reply is no Atom feed")
    entries = feed.findall(f"{_ATOM}entry")
    if any("arxiv.org/api/errors" in _child(entry, f"{_ATOM}id") for entry in entries):
        raise SourceFailed("it says that the query is wrong", is_down=False)
    return _papers(entries, lambda entry: _arxiv_paper(entry, today))


def _words_only(query: str) -> str:
    """Give the query without what an index may take for an operator.

    A hyphen finds nothing at Semantic Scholar, says its documentation; words in capitals are operators at OpenAlex.
    """
    text = " ".join(re.findall(r"\w+", query.lower()))
    if not text:
        raise SourceFailed("the query holds no word to search for", is_down=False)
    return text


def _key(key_env: str, key_file: str, setting: str) -> str:
    try:
        return read_api_key(key_env, key_file, where=f"literature.{setting}")
    except ConfigError as error:
        raise SourceFailed(str(error), is_down=False) from error


def _url(options: Options, name: SourceName, path: str) -> str:
    return options.urls.get(name, _URLS[name]).rstrip("/") + path


def _headers(options: Options) -> dict[str, str]:
    contact = f" (mailto:{options.mailto})" if options.mailto else ""
    return {"User-Agent": f"labd{contact}", "Accept": "application/json, application/atom+xml"}


def _object(raw: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SourceFailed("the reply is no JSON") from error
    if not isinstance(reply, dict):
        raise SourceFailed("the reply is no JSON object")
    return reply


def _items(reply: Mapping[str, Any], name: str) -> list[Any]:
    items = reply.get(name)
    if not isinstance(items, list):
        raise SourceFailed(f"the reply has no list of {name}")
    return items


def _papers(items: list[_T], read: Callable[[_T], Paper | None]) -> list[Paper]:
    papers = [paper for item in items if (paper := read(item))]
    if items and not papers:
        raise SourceFailed(f"none of the {len(items)} records in the reply can be read")
    return papers


def _openalex_paper(item: object, today: date) -> Paper | None:
    record = _dict(item)
    place = _dict(record.get("primary_location"))
    authors = (_dict(_dict(one).get("author")) for one in _list(record.get("authorships")))
    return make_paper(
        "openalex",
        today,
        title=record.get("title"),
        authors=(author.get("display_name") for author in authors),
        year=record.get("publication_year"),
        venue=_dict(place.get("source")).get("display_name"),
        doi=record.get("doi"),
        arxiv_id=place.get("landing_page_url"),
        url=place.get("landing_page_url") or record.get("id"),
        abstract=_from_inverted(_dict(record.get("abstract_inverted_index"))),
        citations=record.get("cited_by_count"),
    )


def _from_inverted(index: Mapping[str, Any]) -> str:
    """Give a text from the positions of its words."""
    placed = sorted(
        (at, word)
        for word, positions in index.items()
        for at in _list(positions)
        if isinstance(at, int) and 0 <= at < _MAX_WORD_POSITION
    )
    return " ".join(word for _, word in placed[:MAX_ABSTRACT_CHARS])


def _s2_paper(item: object, today: date) -> Paper | None:
    record = _dict(item)
    ids = _dict(record.get("externalIds"))
    return make_paper(
        "semantic_scholar",
        today,
        title=record.get("title"),
        authors=(_dict(one).get("name") for one in _list(record.get("authors"))),
        year=record.get("year"),
        venue=record.get("venue"),
        doi=ids.get("DOI"),
        arxiv_id=ids.get("ArXiv"),
        url=record.get("url"),
        abstract=record.get("abstract"),
        citations=record.get("citationCount"),
    )


def _arxiv_paper(entry: Element, today: date) -> Paper | None:
    published = re.match(r"\s*(\d{4})-", _child(entry, f"{_ATOM}published"))
    return make_paper(
        "arxiv",
        today,
        title=_child(entry, f"{_ATOM}title"),
        authors=(_child(one, f"{_ATOM}name") for one in entry.findall(f"{_ATOM}author")),
        year=published[1] if published else None,
        venue=_child(entry, f"{_ARXIV}journal_ref"),
        doi=_child(entry, f"{_ARXIV}doi"),
        arxiv_id=_child(entry, f"{_ATOM}id"),
        url=_child(entry, f"{_ATOM}id"),
        abstract=_child(entry, f"{_ATOM}summary"),
    )


def _child(element: Element, tag: str) -> str:
    child = element.find(tag)
    return (child.text or "") if child is not None else ""


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Iterator[Any]:
    return iter(value if isinstance(value, list) else ())
