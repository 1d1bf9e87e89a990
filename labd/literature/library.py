"""The user's own library: BibTeX and JSON-lines files of this machine, searched by BM25. Needs no network."""

import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from bibtexparser.entrypoint import parse_string
from bibtexparser.middlewares.names import split_multiple_persons_names
from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexwalker import LatexWalkerError

from labd.literature.model import SourceFailed
from labd.literature.paper import MAX_ABSTRACT_CHARS, Paper, SourceName, make_paper, unite
from labd.literature.ranking import Index
from labd.text import printable

MAX_FILE_BYTES = 64 * 2**20
MAX_FILES = 1000
MAX_PAPERS = 100_000
_BIBTEX = frozenset({".bib", ".bibtex"})
_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_MAX_LATEX_CHARS = 2 * MAX_ABSTRACT_CHARS
_LATEX = re.compile(r"[\\{}$~%]|--|``|''")
_TO_TEXT = LatexNodes2Text(math_mode="verbatim", strict_latex_spaces=False)
_VENUES = ("journal", "journaltitle", "booktitle", "venue", "howpublished", "publisher", "school")
_MAX_PROBLEMS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Contents:
    papers: Sequence[Paper]
    index: Index
    problems: Sequence[str]


class Library:
    """Papers in files of the user's own; read when first asked, and again when one has changed."""

    name: SourceName = "library"

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._lock = threading.Lock()
        self._stamp: object = None
        self._contents = _Contents((), Index(()), ())

    def search(self, query: str, limit: int, deadline_s: float) -> list[Paper]:  # noqa: ARG002 - reading can't be broken off
        """Give papers as `Source.search` does.

        Raises:
            SourceFailed: no record can be read; the text says of each file why.

        """
        contents = self._read()
        if not contents.papers:
            raise SourceFailed(self._told(contents) or "its files hold no record", is_down=False)
        return [contents.papers[number] for number in contents.index.best(query, limit)]

    def problems(self) -> str:
        """Give what of the files can't be read, and why; "" if all can."""
        return self._told(self._read())

    @staticmethod
    def _told(contents: _Contents) -> str:
        more = len(contents.problems) - _MAX_PROBLEMS_SHOWN
        shown = [*contents.problems[:_MAX_PROBLEMS_SHOWN], *([f"{more} more"] if more > 0 else [])]
        return "; ".join(shown)

    def _read(self) -> _Contents:
        with self._lock:
            files, problems = _files(self._paths)
            stamp = [(path, *_stamp(path)) for path in files]
            if stamp != self._stamp:
                self._contents = _load(files, problems)
                self._stamp = stamp
            return self._contents


def _files(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Give the files that are named, or in a directory that is; and what can't be found."""
    files: list[Path] = []
    problems: list[str] = []
    for path in paths:
        try:
            found = sorted(path.iterdir()) if path.is_dir() else [path]
        except OSError as error:
            problems.append(f"{_shown(path)}: {error.strerror}")
            continue
        known = [one for one in found if one.suffix.lower() in _BIBTEX | _JSON_LINES]
        if not known:
            problems.append(f"{_shown(path)}: no file that ends in .bib or .jsonl")
        files += known
    return list(dict.fromkeys(files))[:MAX_FILES], problems


def _stamp(path: Path) -> tuple[int, int]:
    try:
        info = path.stat()
    except OSError:
        return (0, 0)
    return (info.st_mtime_ns, info.st_size)


def _load(files: Iterable[Path], problems: Iterable[str]) -> _Contents:
    papers: list[Paper] = []
    told = list(problems)
    for path in files:
        try:
            read, unread = _read_file(path)
        except (OSError, ValueError) as error:
            told.append(
                f"{_shown(path)}: {printable(getattr(error, 'strerror', None) or str(error), 200)}"
            )
            continue
        papers += read
        if unread:
            told.append(f"{_shown(path)}: {unread} of {unread + len(read)} records can't be read")
    if len(papers) > MAX_PAPERS:
        told.append(f"only the first {MAX_PAPERS} of {len(papers)} records are used")
    kept = unite((), papers[:MAX_PAPERS])
    return _Contents(kept, Index(f"{paper.title} {paper.abstract}" for paper in kept), told)


def _read_file(path: Path) -> tuple[list[Paper], int]:
    """Give the papers of a file, and how many of its records can't be read."""
    if not path.is_file():
        msg = "no such file" if not path.exists() else "not a plain file"
        raise ValueError(msg)
    with path.open("rb") as file:
        changed_on = datetime.fromtimestamp(path.stat().st_mtime, UTC).date()
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        msg = f"more than {MAX_FILE_BYTES // 2**20} MiB"
        raise ValueError(msg)
    text = raw.decode("utf-8-sig", errors="replace")
    if path.suffix.lower() in _BIBTEX:
        return read_bibtex(text, changed_on)
    return read_json_lines(text, changed_on)


def read_bibtex(text: str, changed_on: date) -> tuple[list[Paper], int]:
    """Give the papers of a BibTeX file, and how many entries can't be read."""
    # Each broken entry is a line in its log; they are counted here instead.
    logging.getLogger("bibtexparser").setLevel(logging.CRITICAL)
    library = parse_string(text)
    entries = [{field.key.lower(): field.value for field in one.fields} for one in library.entries]
    papers = [paper for one in entries if (paper := _from_bibtex(one, changed_on))]
    return papers, len(library.failed_blocks) + len(entries) - len(papers)


def read_json_lines(text: str, changed_on: date) -> tuple[list[Paper], int]:
    """Give the papers of a file of JSON objects, one a line, and how many lines can't be read."""
    lines = [line for line in text.split("\n") if line.strip()]
    papers = [paper for line in lines if (paper := _from_json(line, changed_on))]
    return papers, len(lines) - len(papers)


def _from_bibtex(fields: Mapping[str, Any], changed_on: date) -> Paper | None:
    get = {name: value for name, value in fields.items() if isinstance(value, str)}.get
    year = re.search(r"[12]\d{3}", get("year") or get("date") or "")
    eprint = get("eprint", "")
    return make_paper(
        "library",
        changed_on,
        title=_plain(get("title", "")),
        authors=map(_plain, _people(get("author") or get("editor") or "")),
        year=year[0] if year else None,
        venue=_plain(next(filter(None, map(get, _VENUES)), "")),
        # An escaped underscore is the one thing of LaTeX that DOIs and addresses are full of.
        doi=get("doi", "").replace("\\_", "_"),
        arxiv_id=eprint if get("archiveprefix", "arxiv").lower() == "arxiv" else "",
        url=get("url", "").replace("\\_", "_"),
        abstract=_plain(get("abstract", "")),
    )


def _people(text: str) -> list[str]:
    people: list[str] = split_multiple_persons_names(text[:_MAX_LATEX_CHARS])
    return people


def _plain(latex: str) -> str:
    """Give LaTeX as the text that it prints."""
    cut = latex[:_MAX_LATEX_CHARS]
    if not _LATEX.search(cut):
        return cut
    try:
        text: str = _TO_TEXT.latex_to_text(cut)
    except (LatexWalkerError, RecursionError, ValueError, IndexError):
        # Not LaTeX that can be read: its letters then, which is what a search needs.
        return re.sub(r"[\\{}$]+", "", cut)
    return text


def _from_json(line: str, changed_on: date) -> Paper | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    authors = record.get("authors") or record.get("author") or ()
    if isinstance(authors, str):
        authors = re.split(r"\s+and\s+|\s*;\s*", authors[:_MAX_LATEX_CHARS])
    named = authors if isinstance(authors, list) else ()
    return make_paper(
        "library",
        changed_on,
        title=record.get("title"),
        authors=(one.get("name") if isinstance(one, dict) else one for one in named),
        year=record.get("year"),
        venue=record.get("venue") or record.get("journal"),
        doi=record.get("doi"),
        arxiv_id=record.get("arxiv_id"),
        url=record.get("url"),
        abstract=record.get("abstract"),
        citations=record.get("citations"),
    )


def _shown(path: Path) -> str:
    return printable(path.name or str(path), 100)
