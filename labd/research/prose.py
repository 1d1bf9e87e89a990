"""Prose that a language model wrote, as data: blocks of sentences of pieces, and nothing else of Markdown.

What a model may write is plain paragraphs and lists with ``{{ key }}`` for a value, ``[@key]`` for a work and
``{{ figure_name }}`` for a figure. Whatever else it writes becomes a `Foreign` piece, for the checker to
refuse, or is left out with its kind in `Prose.left_out`. Pure; judges nothing.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from labd.research.formula import math_problem
from labd.research.printing import escape_markdown, inline_code

MAX_PROSE_CHARS = 40_000
"""More of a reply is not read."""
MAX_BLOCKS = 80
FIGURE = "figure_"
"""Begins the key that stands for a figure."""


@dataclass(frozen=True, slots=True)
class Words:
    """Plain text, to be shown as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Value:
    """A recorded value, by its key."""

    key: str


@dataclass(frozen=True, slots=True)
class Cited:
    """Works, by their keys."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Code:
    """A name out of a program."""

    text: str


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that TeX and Typst can set."""

    tex: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something that may not stand in prose."""

    text: str
    what: str


Piece = Words | Value | Cited | Figure | Code | Formula | Foreign


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence, with the blanks around its pieces as they were."""

    pieces: tuple[Piece, ...]

    @property
    def source(self) -> str:
        """The sentence as a model writes it."""
        return "".join(map(_source, self.pieces)).strip()

    @property
    def words(self) -> str:
        """What stands in words, with a sign that is no letter in place of everything else."""
        return "".join(p.text if isinstance(p, Words) else "\ufffc" for p in self.pieces).strip()


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, or an item of a list."""

    kind: Literal["paragraph", "item"]
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class Prose:
    """A text of blocks."""

    blocks: tuple[Block, ...] = ()
    left_out: tuple[str, ...] = ()
    """Kinds of what was not read as prose: ``table``, ``code``, …"""

    @property
    def sentences(self) -> Iterator[Sentence]:
        """All sentences, in order."""
        return (sentence for block in self.blocks for sentence in block.sentences)

    @property
    def source(self) -> str:
        """The text as a model writes it."""
        lines = []
        for block in self.blocks:
            text = " ".join(sentence.source for sentence in block.sentences)
            lines.append(f"- {text}" if block.kind == "item" else text)
        return "\n\n".join(lines)

    def keeping(self, keep: Callable[[Sentence], bool]) -> "Prose":
        """Give the text with only those of its sentences."""
        blocks = []
        for block in self.blocks:
            kept = tuple(sentence for sentence in block.sentences if keep(sentence))
            if kept:
                blocks.append(Block(block.kind, kept))
        return Prose(tuple(blocks), self.left_out)


def markdown(prose: Prose, printed: Mapping[str, str], number_of: Callable[[str], str]) -> str:
    """Give the prose as a template for `labd.research.numbers.fill`.

    Args:
        prose: checked; a `Foreign` piece in it is shown literally.
        printed: for each key of a value or figure the template text that prints it.
        number_of: gives for a work's key the template text that prints its number.

    """
    lines: list[str] = []
    for block in prose.blocks:
        sentences = (_printed(sentence, printed, number_of) for sentence in block.sentences)
        text = " ".join(sentences)
        lines += [f"- {text}" if block.kind == "item" else text, ""]
    return "\n".join(lines)


def _printed(
    sentence: Sentence, printed: Mapping[str, str], number_of: Callable[[str], str]
) -> str:
    out = []
    for piece in sentence.pieces:
        match piece:
            case Value(key):
                out.append(printed[key])
            case Figure(name):
                out.append(printed[FIGURE + name])
            case Cited(keys):
                out.append("\\[" + ", ".join(map(number_of, keys)) + "\\]")
            case Code(text):
                out.append(inline_code(_no_tag(text)))
            case Formula(tex):
                out.append(f"${_no_tag(tex)}$")
            case Words(text) | Foreign(text):
                out.append(_literal(text))
    return "".join(out).strip()


def _literal(text: str) -> str:
    if not text.strip():
        return " " if text else ""
    shown = escape_markdown(_without_braces(text), limit=MAX_PROSE_CHARS)
    before, after = text[:1].isspace(), text[-1:].isspace()
    return f"{' ' if before else ''}{shown}{' ' if after else ''}"


def _without_braces(text: str) -> str:
    return text.replace("{", "(").replace("}", ")")


def _no_tag(text: str) -> str:
    """Give the text with a blank where the tag of a template would begin; it changes no formula."""
    return re.sub(r"{(?=[{#%])", "{ ", text)


def _source(piece: Piece) -> str:
    match piece:
        case Value(key):
            return f"{{{{ {key} }}}}"
        case Figure(name):
            return f"{{{{ {FIGURE}{name} }}}}"
        case Cited(keys):
            return "[" + "; ".join(f"@{key}" for key in keys) + "]"
        case Code(text):
            return f"`{text}`"
        case Formula(tex):
            return f"${tex}$"
    return piece.text


# -- reading

_THINKING = re.compile(r"(?is)<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)")
_FENCED_WHOLE = re.compile(r"(?s)\A\s*```[a-z]*[ \t]*\n(.*?)\n```\s*\Z")
_FENCED = re.compile(r"(?ms)^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)")
_ITEM = re.compile(r"[ \t]*(?:[-*+\u2022]|\(?\d{1,3}[.)])[ \t]+")
_HEADING = re.compile(r"[ \t]*(?:#{1,6}(?:[ \t]|$)|\*\*[^*]{1,80}\*\*:?[ \t]*$)|[=\-_*~ ]{3,}$")
_TABLE = re.compile(r"[ \t]*\|")

_PIECE = re.compile(
    r"\{\{(?P<value>[^{}\n]{1,120})\}\}"
    r"|\{(?P<loose>[a-z][a-z0-9_\\]{2,60})\}"
    r"|\[(?P<cited>[^\[\]\n]{0,20}@[^\[\]\n]{1,300})\]"
    r"|!\[[^\]\n]{0,300}\]\((?:figure:)?(?P<figure>\w[\w-]{0,60})\)"
    r"|(?P<link>!?\[[^\]\n]{0,300}\]\([^)\n]{0,500}\))"
    r"|(?P<ticks>`+)(?P<code>[^`\n]{1,200})(?P=ticks)"
    r"|\$(?P<math>[^$\n]{1,400})\$"
    r"|(?P<html></?[A-Za-z!][^<>\n]{0,300}>)"
    r"|(?P<tex>\\[A-Za-z]+(?:\*?(?:\[[^\]\n]{0,100}\])?\{[^{}\n]{0,200}\})*)"
    r"|(?P<brace>[{}]+[%#]?)"
)
_KEY = re.compile(r"[A-Za-z_]\w{0,80}", re.ASCII)
_CITE_KEY = re.compile(r"@([\w:.+/-]{1,120})")
_EMPHASIS = re.compile(r"(\*{1,3}|(?<!\w)_{1,3})(?=\S)(.{1,200}?)(?<=\S)\1(?!\w)")
_SAID_FIGURE = re.compile(r"(?i)\b(?:figure|fig\.)[\s\u00a0]*$")
# A full stop ends a sentence if a blank follows and the word before is no abbreviation.
_END = re.compile(
    r"(?<![\s(]e\.g\.)(?<![\s(]i\.e\.)(?<!et al\.)(?<![\s(]cf\.)(?<![\s(]vs\.)(?<!approx\.)(?<!Fig\.)"
    r"(?<=[.!?\u2026])[\"'\u201d\u2019)]*\s+|(?<=[\u3002\uff01\uff1f])\s*"
)


def read(text: str) -> Prose:
    """Give the prose in a model's reply, whatever it is."""
    text = _THINKING.sub("", text[:MAX_PROSE_CHARS])
    whole = _FENCED_WHOLE.match(text)
    if whole:
        text = whole[1]
    left_out = {"code"} if _FENCED.search(text) else set()
    text = _FENCED.sub("\n", text)
    blocks: list[Block] = []
    for kind, raw in _raw_blocks(text, left_out):
        sentences = tuple(_sentences(raw))
        if sentences:
            blocks.append(Block(kind, sentences))
    if len(blocks) > MAX_BLOCKS:
        left_out.add("rest")
    return Prose(tuple(blocks[:MAX_BLOCKS]), tuple(sorted(left_out)))


def _raw_blocks(
    text: str, left_out: set[str]
) -> Iterator[tuple[Literal["paragraph", "item"], str]]:
    kind: Literal["paragraph", "item"] = "paragraph"
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        item = _ITEM.match(line)
        skipped = "table" if _TABLE.match(line) else "heading" if _HEADING.match(line) else ""
        if (item or skipped or not line.strip()) and lines:
            yield kind, " ".join(lines)
            kind, lines = "paragraph", []
        if skipped:
            left_out.add(skipped)
        elif item:
            kind, lines = "item", [line[item.end() :].strip()]
        elif line.strip():
            lines.append(line.strip().lstrip(">").strip())


def _sentences(text: str) -> Iterator[Sentence]:
    """Split at the ends of sentences, which only stand in words."""
    pieces: list[Piece] = []
    for piece in _pieces(_EMPHASIS.sub(r"\2", text)):
        if not isinstance(piece, Words):
            pieces.append(piece)
            continue
        at = 0
        for end in _END.finditer(piece.text):
            pieces.append(Words(piece.text[at : end.end()].rstrip()))
            yield from _sentence(pieces)
            pieces, at = [], end.end()
        if piece.text[at:]:
            pieces.append(Words(piece.text[at:]))
    yield from _sentence(pieces)


def _sentence(pieces: list[Piece]) -> Iterator[Sentence]:
    sentence = Sentence(tuple(pieces))
    if sentence.source:
        yield sentence


def _pieces(text: str) -> Iterator[Piece]:
    at = 0
    for match in _PIECE.finditer(text):
        piece = _piece(match)
        before = text[at : match.start()]
        if isinstance(piece, Figure):
            before = _SAID_FIGURE.sub("", before)
        if before:
            yield Words(before)
        yield piece
        at = match.end()
    if text[at:]:
        yield Words(text[at:])


def _piece(match: re.Match[str]) -> Piece:
    kind, text = match.lastgroup, match.group()
    found = match.group(kind) if kind else ""
    match kind:
        case "value" | "loose":
            key = found.split("|")[0].replace("\\", "").strip().strip("-").strip()
            if _KEY.fullmatch(key):
                return Figure(key.removeprefix(FIGURE)) if key.startswith(FIGURE) else Value(key)
            return Foreign(text, "braces around something that is no key")
        case "cited":
            keys = tuple(key.rstrip(".") for key in _CITE_KEY.findall(found))
            return Cited(keys) if keys else Foreign(text, "a citation without a key")
        case "figure":
            return Figure(found.removeprefix(FIGURE))
        case "code":
            return Code(found.strip()) if found.strip() else Words(" ")
        case "math":
            problem = math_problem(found)
            return Foreign(text, f"a formula: {problem}") if problem else Formula(found)
        case "link":
            return Foreign(text, "a link or picture")
        case "html":
            return Foreign(text, "HTML")
        case "tex":
            return Foreign(text, "a LaTeX command")
    return Foreign(text, "braces")
