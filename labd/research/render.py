"""Markdown, made by anybody, as four files of one paper: Markdown, LaTeX, HTML and PDF.

Pandoc reads it, `tidy` makes the tree harmless, pandoc writes it, Typst sets the PDF. Whatever the
text is, there is a PDF; what had to be changed is a warning. The same input gives the same bytes.
"""

import base64
import os
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date as Date  # noqa: N812 - `date` is the argument's name
from pathlib import Path
from typing import Any

from labd.errors import LabdError, ResearchError, TimedOut
from labd.files import write_atomic
from labd.research.pandoc import (
    Element,
    Limits,
    clean_text,
    code_block,
    plain_inlines,
    read_markdown,
    write,
)
from labd.research.printing import escape_markdown
from labd.research.tidy import Picture, break_long_words, tidy
from labd.text import printable

MAX_PICTURE_BYTES = 10 * 2**20
MAX_PICTURE_SIDE_PX = 12_000
MAX_TYPESETTINGS = 48
_LAYOUT = Path(__file__).with_name("layout")
_PICTURE_NAME = re.compile(r"\w[\w./-]{0,200}\.png", re.ASCII)
_PNG = b"\x89PNG\r\n\x1a\n"
_CHILD_ENV = ("HOME", "LANG", "PATH", "PYTHONPATH")
_DEFAULT_LIMITS = Limits()
_ABSTRACT_TITLES = {"en": "Abstract", "de": "Zusammenfassung", "ko": "초록"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """The four files of a paper, and what a reader of the log must know about them."""

    markdown: Path
    tex: Path
    html: Path
    pdf: Path
    warnings: tuple[str, ...]


def render(
    markdown: str,
    *,
    title: str,
    authors: Sequence[str],
    date: str,
    abstract: str,
    figures_root: Path,
    out_dir: Path,
    language: str = "en",
    limits: Limits = _DEFAULT_LIMITS,
) -> Rendered:
    """Write ``paper.md``, ``.tex``, ``.html`` and ``.pdf`` into `out_dir`, which must exist.

    Args:
        markdown: the body, untrusted; its headings start at any level.
        title: plain text.
        authors: plain texts.
        date: YYYY-MM-DD; it is printed and dates the PDF.
        abstract: Markdown, untrusted; empty for none.
        figures_root: pictures are PNG files below it, named in the text relative to it.
        out_dir: where the files go.
        language: two letters.
        limits: how long pandoc and Typst may take.

    Raises:
        ResearchError: the date or language is not one, or a writer failed on the tidied text.
        TimedOut: a writer took too long.

    """
    _check(date, language)
    markdown, abstract, title = clean_text(markdown), clean_text(abstract), clean_text(title)
    authors = [clean_text(author) for author in authors]
    pictures = _PictureBook(figures_root, out_dir)
    blocks, warnings = _read(markdown, pictures, limits, headings=True)
    summary, more = _read(abstract, pictures, limits, headings=False)
    paper = _Paper(title, tuple(authors), date, language, blocks, summary, limits)
    warnings += more
    tex = _tex(paper, pictures)
    html = _html(paper, pictures)
    pdf, more = _pdf(paper, pictures)
    warnings += more
    rendered = Rendered(
        markdown=out_dir / "paper.md",
        tex=out_dir / "paper.tex",
        html=out_dir / "paper.html",
        pdf=out_dir / "paper.pdf",
        warnings=tuple(dict.fromkeys(warnings)),
    )
    write_atomic(rendered.markdown, _markdown(title, authors, date, abstract, markdown))
    write_atomic(rendered.tex, tex)
    write_atomic(rendered.html, html)
    write_atomic(rendered.pdf, pdf)
    return rendered


@dataclass(frozen=True, slots=True)
class _Paper:
    title: str
    authors: tuple[str, ...]
    date: str
    language: str
    blocks: list[Element]
    abstract: list[Element]
    limits: Limits

    def meta(self, abstract: list[Element]) -> Element:
        def inlines(text: str) -> Element:
            return {"t": "MetaInlines", "c": plain_inlines(text)}

        meta: Element = {
            "title": inlines(self.title),
            "pagetitle": inlines(self.title),
            "author": {"t": "MetaList", "c": [inlines(author) for author in self.authors]},
            "date": inlines(self.date),
            "lang": inlines(self.language),
            "abstract-title": inlines(_ABSTRACT_TITLES.get(self.language, "Abstract")),
        }
        if abstract:
            meta["abstract"] = {"t": "MetaBlocks", "c": abstract}
        return meta


@dataclass(slots=True)
class _PictureBook:
    """Lets pictures through, and knows each by the name it has in the staged tree."""

    root: Path
    out_dir: Path
    data: dict[str, bytes] = field(default_factory=dict)
    _paths: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str) -> Picture | str:
        if not _PICTURE_NAME.fullmatch(name) or ".." in Path(name).parts:
            return "only plain relative paths of PNG files are pictures"
        try:
            path = (self.root / name).resolve(strict=True)
            if not path.is_relative_to(self.root.resolve()) or not path.is_file():
                return "it is no file among the figures"
            if path.stat().st_size > MAX_PICTURE_BYTES:
                return f"it is larger than {MAX_PICTURE_BYTES} bytes"
            raw = path.read_bytes()
        except OSError as error:
            return f"it can't be read: {error.strerror}"
        width, height = (int.from_bytes(raw[at : at + 4]) for at in (16, 20))
        if (
            not raw.startswith(_PNG)
            or not 0 < min(width, height) <= max(width, height) <= MAX_PICTURE_SIDE_PX
        ):
            return "it is no PNG of a usable size"
        staged = f"picture-{len(self.data) + 1}.png"
        self.data[staged] = raw
        self._paths[staged] = os.path.relpath(path, self.out_dir.resolve())
        # A tall picture is made narrower, so that it and its caption go on a page.
        return Picture(staged, max(10, min(80, round(75 * width / height))))

    def targets(self, element: Any, *, embed: bool) -> Any:
        """Give the tree with each picture's path from `out_dir`, or its content as an address."""
        if isinstance(element, list):
            return [self.targets(part, embed=embed) for part in element]
        if not isinstance(element, dict) or "c" not in element:
            return element
        if element["t"] == "Image":
            attributes, words, (name, _) = element["c"]
            if embed:
                target = "data:image/png;base64," + base64.b64encode(self.data[name]).decode()
            else:
                target = self._paths[name]
            return {"t": "Image", "c": [attributes, words, [target, ""]]}
        return {"t": element["t"], "c": self.targets(element["c"], embed=embed)}


def _check(date: str, language: str) -> None:
    try:
        Date.fromisoformat(date)
    except ValueError as error:
        raise ResearchError(
            f"{printable(date, 40)} is no date", fix="Write it as YYYY-MM-DD"
        ) from error
    if len(date) != 10 or not re.fullmatch(r"[a-z]{2}", language):
        raise ResearchError(
            "a date has ten characters and a language two letters",
            where=printable(f"{date} {language}", 60),
        )


def _read(
    markdown: str, pictures: _PictureBook, limits: Limits, *, headings: bool
) -> tuple[list[Element], list[str]]:
    raw, warnings = read_markdown(markdown, limits)
    try:
        blocks, more = tidy(raw, pictures, headings=headings)
    except RecursionError:
        blocks, more = [code_block(markdown)], ["nested too deeply; shown as code"]
    return blocks, warnings + more


def _markdown(title: str, authors: Sequence[str], date: str, abstract: str, body: str) -> str:
    byline = ", ".join(escape_markdown(author) for author in authors)
    parts = [f"# {escape_markdown(title)}", f"{byline}  \n{date}"]
    if abstract.strip():
        parts += ["## Abstract", abstract.strip()]
    return "\n\n".join([*parts, body.strip()]) + "\n"


def _tex(paper: _Paper, pictures: _PictureBook) -> str:
    def prepared(blocks: list[Element]) -> list[Element]:
        tree = pictures.targets(break_long_words(blocks), embed=False)
        return [_guard_verbatim(block) for block in tree]

    text = write(
        prepared(paper.blocks),
        paper.meta(prepared(paper.abstract)),
        to="latex",
        template=_LAYOUT / "page.tex",
        limits=paper.limits,
    )
    declared, active = _unicode_declarations(text)
    text = text.replace("LABD-UNICODE-DECLARATIONS", declared, 1)
    return text.replace("LABD-UNICODE-SIGNS", active, 1)


def _guard_verbatim(element: Any) -> Any:
    r"""Keep code from ending its own environment: a break that nobody sees goes into each ``\end{``."""
    if isinstance(element, list):
        return [_guard_verbatim(part) for part in element]
    if not isinstance(element, dict) or "c" not in element:
        return element
    if element["t"] == "CodeBlock":
        return code_block(element["c"][1].replace("\\end", "\\\u200bend"))
    return {"t": element["t"], "c": _guard_verbatim(element["c"])}


_TEX_SIGNS = {
    "\u200b": r"\labdbreak", "\u200c": "{}", "\u200d": "{}",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "\N{LESS-THAN OR EQUAL TO}": r"\ensuremath{\le}",
    "\N{GREATER-THAN OR EQUAL TO}": r"\ensuremath{\ge}",
    "\N{NOT EQUAL TO}": r"\ensuremath{\ne}",
    "\N{ALMOST EQUAL TO}": r"\ensuremath{\approx}",
    "\N{RIGHTWARDS ARROW}": r"\ensuremath{\to}",
    "\N{LEFTWARDS ARROW}": r"\ensuremath{\leftarrow}",
    "\N{INFINITY}": r"\ensuremath{\infty}",
    "\N{N-ARY SUMMATION}": r"\ensuremath{\sum}",
} | {
    unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}"): rf"\ensuremath{{\{name}}}"
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "lamda", "mu", "pi",
                 "rho", "sigma", "tau", "phi", "chi", "omega")
} | {
    unicodedata.lookup(f"GREEK CAPITAL LETTER {name.upper()}"): rf"\ensuremath{{\{name}}}"
    for name in ("Gamma", "Delta", "Theta", "Sigma", "Phi", "Omega")
} | {"\N{GREEK SMALL LETTER LAMDA}": r"\ensuremath{\lambda}"}  # fmt: skip
# What inputenc and textcomp set without help: dashes, quotes, dots; the rest needs a declaration, or
# pdflatex stops.
_TEX_KNOWN = frozenset(map(chr, (
    0x2013, 0x2014, 0x2018, 0x2019, 0x201A, 0x201C, 0x201D, 0x201E, 0x2020, 0x2021, 0x2022, 0x2026,
    0x2030, 0x2039, 0x203A, 0x20AC, 0x2122,
)))  # fmt: skip


_TEX_FONTS = (
    *("Noto Serif CJK KR", "Noto Sans CJK KR", "NanumMyeongjo", "NanumGothic", "UnBatang"),
    *("Noto Serif", "Noto Sans", "FreeSerif", "DejaVu Serif", "DejaVu Sans"),
)
"""Of Debian's packages fonts-noto, fonts-nanum, fonts-unfonts-core, fonts-freefont-otf and fonts-dejavu."""


def _unicode_declarations(text: str) -> tuple[str, str]:
    """Give what pdflatex, and what the other two, need to be told of the signs of a text."""
    declared, active, fonts = [], [], False
    for char in sorted({char for char in text if ord(char) > 0x17F} - _TEX_KNOWN):
        code = f"{ord(char):04X}"
        known = _TEX_SIGNS.get(char, "")
        missing = f"\\labdmissing{{{code}}}"
        declared.append(f"  \\DeclareUnicodeCharacter{{{code}}}{{{known or missing}}}")
        wide = r"\labdbreak" if unicodedata.east_asian_width(char) in "WF" else ""
        sign = f"\\labdsign{{{code}}}{wide}"
        active.append(f"  \\labdactive{{{code}}}{{{known or sign}}}")
        fonts = fonts or not known
    offered = [f"  \\labdoffer{{{name}}}" for name in _TEX_FONTS] if fonts else []
    return "\n".join(declared), "\n".join(offered + active)


def _html(paper: _Paper, pictures: _PictureBook) -> str:
    return write(
        pictures.targets(paper.blocks, embed=True),
        paper.meta(pictures.targets(paper.abstract, embed=True)),
        to="html5",
        template=_LAYOUT / "page.html",
        limits=paper.limits,
        options=[
            "--mathml",
            "--number-sections",
            "--shift-heading-level-by=1",
            "--email-obfuscation=none",
        ],
    )


def _pdf(paper: _Paper, pictures: _PictureBook) -> tuple[bytes, list[str]]:
    with tempfile.TemporaryDirectory(prefix="labd-paper-") as name:
        setter = _Typesetter(Path(name), paper, pictures)
        blocks, warnings = paper.blocks, setter.warn_of_glyphs()
        problem = setter.problem(blocks, paper.abstract)
        if problem:
            abstract = setter.mended(paper.abstract)
            blocks = setter.mended(blocks)
            warnings.append(f"parts of the text are shown as code, because Typst said: {problem}")
            problem = setter.problem(blocks, abstract)
        if problem:
            plain = "\n\n".join(_source(block, paper.limits) for block in paper.blocks)
            problem = setter.problem([code_block(plain)], [])
        if problem:
            raise ResearchError(f"no PDF could be set: {problem}")
        return (Path(name) / "paper.pdf").read_bytes(), warnings


class _Typesetter:
    """Sets trees in one directory, and finds the blocks that can't be set."""

    def __init__(self, directory: Path, paper: _Paper, pictures: _PictureBook) -> None:
        self._directory = directory
        self._paper = paper
        self._deadline_s = time.monotonic() + 4 * paper.limits.typeset_s
        self._left = MAX_TYPESETTINGS
        for name, data in pictures.data.items():
            (directory / name).write_bytes(data)
        text = str([paper.title, paper.authors, paper.abstract, paper.blocks])
        self._strange = sorted({char for char in text if _needs_system_font(char)})

    def warn_of_glyphs(self) -> list[str]:
        """Typst leaves out in silence what no font has; say so where it is to be feared."""
        if not self._strange:
            return []
        shown = "".join(self._strange[:10])
        return [f"the PDF shows these signs only if this machine has a font for them: {shown}"]

    def problem(self, blocks: list[Element], abstract: list[Element]) -> str | None:
        """Set the whole; say what Typst or pandoc had against it, or None."""
        paper = self._paper
        try:
            text = write(
                break_long_words(blocks),
                paper.meta(break_long_words(abstract)),
                to="typst",
                template=_LAYOUT / "page.typ",
                limits=paper.limits,
            )
            (self._directory / "paper.typ").write_text(text, encoding="utf-8")
            return self._run()
        except LabdError as error:
            return str(error)

    def _run(self) -> str | None:
        self._left -= 1
        fonts = "system" if self._strange else "embedded"
        module = ["-m", "labd.research.typeset"]
        try:
            done = subprocess.run(
                [sys.executable, "-P", *module, str(self._directory), self._paper.date, fonts],
                capture_output=True,
                timeout=self._paper.limits.typeset_s,
                check=False,
                cwd=self._directory,
                env={name: os.environ[name] for name in _CHILD_ENV if name in os.environ},
            )
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"Typst took longer than {self._paper.limits.typeset_s:g} s") from error
        if done.returncode == 0:
            return None
        complaint = done.stderr.decode(errors="replace").strip().splitlines() or [
            f"code {done.returncode}"
        ]
        return printable(complaint[-1], 200)

    def mended(self, blocks: list[Element]) -> list[Element]:
        """Give the blocks with those as code that can't be set; halves again and again."""
        if not blocks:
            return []
        tired = self._left <= 1 or time.monotonic() > self._deadline_s
        if not tired and self.problem(blocks, []) is None:
            return blocks
        if len(blocks) == 1 or tired:
            return [code_block(_source(block, self._paper.limits)) for block in blocks]
        middle = len(blocks) // 2
        return self.mended(blocks[:middle]) + self.mended(blocks[middle:])


_DEVANAGARI, _GEORGIAN = range(0x0900, 0x0980), range(0x10A0, 0x1100)


def _needs_system_font(char: str) -> bool:
    """Say whether Typst's own fonts lack a sign; of the scripts from Syriac to Vedic they have only two."""
    code = ord(char)
    lacks = code >= 0x2E80 or (
        0x0700 <= code < 0x1D00 and code not in _DEVANAGARI and code not in _GEORGIAN
    )
    return lacks and unicodedata.category(char) not in {"Co", "Cn", "Mn"}


def _source(block: Element, limits: Limits) -> str:
    try:
        return write([block], {}, to="markdown", template=None, limits=limits)
    except LabdError as error:
        return f"(a part of the text that can't be shown: {error})"
