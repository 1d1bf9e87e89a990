"""Indexes of papers: OpenAlex, Semantic Scholar and arXiv at one address, well-behaved or not, in a thread.

    with LiteratureServer() as server:
        server.behave("arxiv", "retry-after:1", "fine")
        Literature(server.options(), cache_dir, spacing_s=QUICK).search(["sparse attention"])

They hold the same `CORPUS`, found by words. What each does to its requests in turn is its script, the last entry
for ever; `BEHAVIOURS` and the status codes are what it may do.
"""

import gzip
import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from labd.literature.model import Options
from labd.literature.paper import SOURCE_NAMES, SourceName
from tests.servers.web import Handler, Server

QUICK: dict[SourceName, float] = dict.fromkeys(SOURCE_NAMES, 0.0)
"""No time between requests."""
_PATHS: dict[str, SourceName] = {
    "/works": "openalex",
    "/graph/v1/paper/search": "semantic_scholar",
    "/api/query": "arxiv",
}
_DRIP_S = 0.02
Item = dict[str, Any]

CORPUS: tuple[Item, ...] = (
    {
        "title": "Sparse attention for long sequences",
        "authors": ["Ada Lovelace", "Jörg Müller"],
        "year": 2019,
        "venue": "Journal of Attention",
        "doi": "10.1000/Sparse.2019",
        "arxiv": "1904.01509",
        "abstract": "Attention over long sequences is made cheap by looking at few positions.",
        "citations": 12,
    },
    {
        "title": "Delayed generalisation in small networks",
        "authors": ["Grace Hopper"],
        "year": 2022,
        "venue": "",
        "doi": "",
        "arxiv": "2201.02177",
        "abstract": "Small networks learn modular arithmetic long after they have memorised it.",
        "citations": 3,
    },
    {
        "title": "Sparse attention for images",
        "authors": ["Alan Turing"],
        "year": 2021,
        "venue": "Proceedings of Images",
        "doi": "10.1000/images",
        "arxiv": "",
        "abstract": "Images are read by sparse attention.",
        "citations": 0,
    },
)


class LiteratureServer:
    """All three indexes, as a context manager."""

    def __init__(self, *corpus: Item, tls: ssl.SSLContext | None = None) -> None:
        self.corpus = corpus or CORPUS
        self.requests: list[tuple[SourceName, dict[str, str], dict[str, str], float]] = []
        """Who was asked, the query's parameters, the headers, and when by the monotonic clock."""
        self._scripts: dict[SourceName, deque[str]] = {}
        self._lock = threading.Lock()
        self.ended = threading.Event()
        outer = self

        class Bound(_Handler):
            index = outer

        self._server = Server(("127.0.0.1", 0), Bound)
        self.url = self._server.url
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self.url = self.url.replace("http://", "https://")

    def __enter__(self) -> Self:
        # Looks often whether it is to end: there is a server for each test.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def behave(self, name: SourceName, *script: str) -> None:
        """Have a source do this to its next requests, and the last of it to all others."""
        self._scripts[name] = deque(script)

    def behave_all(self, *script: str) -> None:
        """Have every source do this."""
        for name in _PATHS.values():
            self.behave(name, *script)

    def options(self, **over: Any) -> Options:
        """Give settings by which these indexes are asked."""
        urls = dict.fromkeys(_PATHS.values(), self.url)
        return Options.model_validate({"online": True, "urls": urls, **over})

    def count(self, name: SourceName | None = None) -> int:
        """Give how many requests there were."""
        with self._lock:
            return sum(name in (None, one[0]) for one in self.requests)

    def next(
        self, name: SourceName, params: dict[str, str], headers: dict[str, str]
    ) -> tuple[str, int]:
        """Note a request and give what to do with it, and a number for it."""
        with self._lock:
            self.requests.append((name, params, headers, time.monotonic()))
            script = self._scripts.get(name) or deque(["fine"])
            entry = script.popleft() if len(script) > 1 else script[0]
            what, _, number = entry.partition(":")
            return what, int(number or 0)


class _Handler(Handler):
    index: LiteratureServer

    def answer(self) -> None:
        name = _PATHS.get(self.at())
        if name is None:
            self.reply(404, {"error": "no such path"})
            return
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        what, number = self.index.next(name, query, dict(self.headers.items()))
        if what.isdecimal():
            self.reply(int(what), {"message": "no"})
            return
        BEHAVIOURS[what](self, name, query, number)

    def send_body(self, data: bytes, kind: str = "application/json", **headers: str) -> None:
        """Send a whole reply."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be HTTP, and close."""
        self.close_connection = True
        self.wfile.write(data)


_Behaviour = Callable[[_Handler, SourceName, dict[str, str], int], None]
BEHAVIOURS: dict[str, _Behaviour] = {}


def _behaviour(function: _Behaviour) -> _Behaviour:
    BEHAVIOURS[function.__name__.strip("_").replace("_", "-")] = function
    return function


@_behaviour
def _fine(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    handler.send_body(_WRITERS[name](_found(handler.index.corpus, name, query)))


@_behaviour
def _empty(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del query
    handler.send_body(_WRITERS[name]([]))


@_behaviour
def _packed(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    data = _WRITERS[name](_found(handler.index.corpus, name, query))
    handler.send_body(gzip.compress(data), Content_Encoding="gzip")


@_behaviour
def _half_packed(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    """All of the answer, without what proves that it is all."""
    data = _WRITERS[name](_found(handler.index.corpus, name, query))
    handler.send_body(gzip.compress(data)[:-8], Content_Encoding="gzip")


@_behaviour
def _bare_dtd(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    feed = _WRITERS[name](_found(handler.index.corpus, name, query)).decode()
    handler.send_body(feed.replace("<feed", "<!DOCTYPE feed><feed", 1).encode())


@_behaviour
def _retry_after(handler: _Handler, name: SourceName, query: dict[str, str], seconds: int) -> None:
    del name, query
    handler.reply(429, {"message": "too many requests"}, **{"Retry-After": str(seconds)})


@_behaviour
def _hang(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.index.ended.wait(60)


@_behaviour
def _drip_head(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_raw(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not handler.index.ended.wait(_DRIP_S):
        handler.wfile.write(b"a")


@_behaviour
def _drip_body(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.begin_stream("application/json")
    while not handler.index.ended.wait(_DRIP_S):
        handler.send_chunk(b" ")


@_behaviour
def _endless(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.begin_stream("application/json")
    while not handler.index.ended.is_set():
        handler.send_chunk(b" " * 2**16)


@_behaviour
def _bomb(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_body(gzip.compress(b" " * 2**26), Content_Encoding="gzip")


@_behaviour
def _brotli(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_body(b"\x8b\x00\x80{}\x03", Content_Encoding="br")


@_behaviour
def _badly_packed(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_body(b"no gzip at all", Content_Encoding="gzip")


@_behaviour
def _cut(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_raw(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"results": [')


@_behaviour
def _slam(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_raw(b"")


@_behaviour
def _no_http(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_raw(bytes(range(256)) * 4)


@_behaviour
def _redirect(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_response(302)
    handler.send_header("Location", f"{handler.index.url}/works?followed=1")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@_behaviour
def _html(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_body(b"<!doctype html><html><body>Please log in<br></html>", "text/html")


@_behaviour
def _binary(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_body(bytes(range(256)) * 100)


@_behaviour
def _nothing(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    handler.send_body(b"")


@_behaviour
def _deep(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del query
    depth = 100_000
    handler.send_body(b"<a>" * depth if name == "arxiv" else b"[" * depth + b"]" * depth)


@_behaviour
def _no_list(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del query
    handler.send_body(
        b"<rss/>" if name == "arxiv" else b'{"results": {"a": 1}, "data": 7, "total": 3}'
    )


@_behaviour
def _wrong_items(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del query
    items: list[Any] = [
        1,
        None,
        "x",
        [],
        {},
        {"title": 7},
        {"title": {"a": "b"}},
        {"title": "  \x00 "},
    ]
    feed = f'<feed xmlns="{_ATOM}"><entry/><entry><title> </title></entry></feed>'
    body = json.dumps({"results": items, "data": items, "total": 8})
    handler.send_body((feed if name == "arxiv" else body).encode())


@_behaviour
def _wrong_parts(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    """One good title in a record of which all else is of another type than it should be."""
    del query
    odd = {
        "title": "A good title\u202e\u0007 of\ud800 a record",
        "authors": {"name": 1}, "authorships": [7, {"author": "x"}, {"author": {"display_name": ["y"]}}],
        "year": True, "publication_year": "soon", "venue": ["a"], "primary_location": "here",
        "doi": 10.1000, "externalIds": {"DOI": {}, "ArXiv": "not one"}, "url": "javascript:alert(1)",
        "id": ["W1"], "abstract": 3, "citationCount": -4, "cited_by_count": 1e400,
        "abstract_inverted_index": {"word": [10**12, -1, "x", None, 0], "other": {"1": 2}},
    }  # fmt: skip
    entry = "<entry><title>A good title of a record</title><author/><id>javascript:x</id><published>soon</published></entry>"
    feed = f'<feed xmlns="{_ATOM}">{entry}</feed>'
    body = json.dumps({"results": [odd], "data": [odd], "total": 1})
    handler.send_body((feed if name == "arxiv" else body).encode())


@_behaviour
def _dtd(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    levels = "".join(
        f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' if n else '<!ENTITY a0 "lol">' for n in range(10)
    )
    entry = "<entry><title>&a9;</title></entry>"
    handler.send_body(f'<!DOCTYPE x [{levels}]><feed xmlns="{_ATOM}">{entry}</feed>'.encode())


@_behaviour
def _outside_entity(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    entity = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    handler.send_body(
        f'{entity}<feed xmlns="{_ATOM}"><entry><title>&e;</title></entry></feed>'.encode()
    )


@_behaviour
def _huge_title(handler: _Handler, name: SourceName, query: dict[str, str], size_mb: int) -> None:
    del query
    item = {**CORPUS[0], "title": "a huge title " * (size_mb * 10**6 // 13)}
    handler.send_body(_WRITERS[name]([item]))


@_behaviour
def _query_error(handler: _Handler, name: SourceName, query: dict[str, str], _: int) -> None:
    del name, query
    entry = "<entry><id>http://arxiv.org/api/errors#bad</id><title>Error</title></entry>"
    handler.send_body(f'<feed xmlns="{_ATOM}">{entry}</feed>'.encode())


_ATOM = "http://www.w3.org/2005/Atom"


def _found(corpus: tuple[Item, ...], name: SourceName, query: dict[str, str]) -> list[Item]:
    text = {"openalex": "search", "semantic_scholar": "query", "arxiv": "search_query"}[name]
    most = {"openalex": "per_page", "semantic_scholar": "limit", "arxiv": "max_results"}[name]
    words = set(query[text].lower().replace("all:", "").replace(" or ", " ").split())
    scored = [
        (-len(words & set(f"{item['title']} {item['abstract']}".lower().split())), at)
        for at, item in enumerate(corpus)
    ]
    return [corpus[at] for score, at in sorted(scored) if score < 0][: int(query[most])]


def _openalex(items: list[Item]) -> bytes:
    return json.dumps({"meta": {"count": len(items)}, "results": [*map(_work, items)]}).encode()


def _work(item: Item) -> Item:
    index: dict[str, list[int]] = {}
    for at, word in enumerate(item["abstract"].split()):
        index.setdefault(word, []).append(at)
    arxiv = f"https://arxiv.org/abs/{item['arxiv']}" if item["arxiv"] else None
    return {
        "id": "https://openalex.org/W1",
        "doi": f"https://doi.org/{item['doi']}" if item["doi"] else None,
        "title": item["title"],
        "publication_year": item["year"],
        "authorships": [{"author": {"display_name": name}} for name in item["authors"]],
        "primary_location": {
            "landing_page_url": arxiv,
            "source": {"display_name": item["venue"]} if item["venue"] else None,
        },
        "abstract_inverted_index": index or None,
        "cited_by_count": item["citations"],
    }


def _semantic_scholar(items: list[Item]) -> bytes:
    # As the service does it: no list at all where nothing was found.
    reply: Item = {"total": len(items), "offset": 0}
    if items:
        reply["data"] = [*map(_s2_item, items)]
    return json.dumps(reply).encode()


def _s2_item(item: Item) -> Item:
    ids = {"DOI": item["doi"], "ArXiv": item["arxiv"], "CorpusId": 1}
    return {
        "paperId": "1" * 40,
        "title": item["title"],
        "authors": [{"authorId": "1", "name": name} for name in item["authors"]],
        "year": item["year"],
        "venue": item["venue"],
        "externalIds": {key: value for key, value in ids.items() if value},
        "url": "https://www.semanticscholar.org/paper/1",
        "abstract": item["abstract"] or None,
        "citationCount": item["citations"],
    }


def _arxiv(items: list[Item]) -> bytes:
    entries = "".join(_entries(items))
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<feed xmlns="{_ATOM}">{entries}</feed>'.encode()
    )


def _entries(items: list[Item]) -> Iterator[str]:
    for item in items:
        authors = "".join(f"<author><name>{escape(n)}</name></author>" for n in item["authors"])
        doi = f"<a:doi>{escape(item['doi'])}</a:doi>" if item["doi"] else ""
        yield (
            f'<entry xmlns:a="http://arxiv.org/schemas/atom"><id>http://arxiv.org/abs/{item["arxiv"]}v2</id>'
            f"<published>{item['year']}-04-03T00:00:00Z</published><title>{escape(item['title'])}</title>"
            f"<summary>{escape(item['abstract'])}</summary>{authors}{doi}</entry>"
        )


_WRITERS: dict[SourceName, Callable[[list[Item]], bytes]] = {
    "openalex": _openalex,
    "semantic_scholar": _semantic_scholar,
    "arxiv": _arxiv,
}
