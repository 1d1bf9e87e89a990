"""A document tree from untrusted Markdown, made harmless for every writer. Pure but for the pictures.

Whatever is not known to be harmless is shown as text: raw code of a format, mathematics with unknown
commands, pictures that were not let through, addresses. Attributes do not survive.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from labd.research.formula import math_problem
from labd.research.pandoc import Element, code_block, plain_inlines
from labd.text import printable

MAX_BLOCK_DEPTH = 4
MAX_INLINE_DEPTH = 12
MAX_TABLE_ROWS = 400
MAX_TABLE_COLUMNS = 30
_MAX_SPOKEN_CHARS = 400
_LONG_WORD = 32
_BREAK_EVERY = 16
_BREAK = "\u200b"
_FULL_WIDTH_CHARS = 92
_LONG_CELL = 45
# A letter of code is so much wider than one of text.
_CODE_CHAR = 1.25
_NO_ATTRIBUTES = ["", [], []]

_LANGUAGE = re.compile(r"[a-z0-9+-]{1,20}")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that may be shown: the path to write, and its width as a share of the line."""

    target: str
    width_pct: int


Pictures = Callable[[str], Picture | str]
"""Gives the picture for a path in the text, or why there is none."""


def tidy(
    blocks: Sequence[Element], pictures: Pictures, *, headings: bool = True
) -> tuple[list[Element], list[str]]:
    """Give the blocks with only harmless elements left, and one warning for each thing that was changed.

    Without `headings`, as in an abstract, they become bold lines.

    Raises:
        RecursionError: the text is nested deeper than Python can go.

    """
    tidier = _Tidier(pictures, headings=headings)
    tidier.see_headings(blocks)
    return tidier.blocks(blocks, 0), list(dict.fromkeys(tidier.warnings))


def break_long_words(element: Any) -> Any:
    """Give the tree with a zero-width space in each word too long for a line."""
    if isinstance(element, list):
        return [break_long_words(part) for part in element]
    if not isinstance(element, dict):
        return element
    kind, content = element["t"], element.get("c")
    if content is None or kind == "Math":
        return element
    if kind == "Str":
        return {"t": kind, "c": _broken(content)}
    if kind in {"Code", "CodeBlock"}:
        return {"t": kind, "c": [content[0], _broken(content[1])]}
    return {"t": kind, "c": break_long_words(content)}


def _broken(text: str) -> str:
    def broken(match: re.Match[str]) -> str:
        word = match.group()
        return _BREAK.join(word[i : i + _BREAK_EVERY] for i in range(0, len(word), _BREAK_EVERY))

    return re.sub(rf"\S{{{_LONG_WORD},}}", broken, text)


class _Tidier:
    def __init__(self, pictures: Pictures, *, headings: bool) -> None:
        self.warnings: list[str] = []
        self._headings = headings
        self._in_note = False
        self._pictures = pictures
        self._anchors: dict[str, str] = {}
        self._headings_seen = 0
        self._top_level = 1

    def see_headings(self, blocks: Sequence[Element]) -> None:
        """Name the headings anew, so that no identifier comes from the text, and find the top level."""
        headings = [block["c"] for block in blocks if block["t"] == "Header"]
        for number, (_, attributes, _) in enumerate(headings, start=1):
            self._anchors.setdefault(attributes[0], f"section-{number}")
        self._top_level = min((level for level, _, _ in headings), default=1)

    def blocks(self, blocks: Iterable[Element], depth: int) -> list[Element]:
        out: list[Element] = []
        for block in blocks:
            out += self._block(block["t"], block.get("c"), depth)
        return out

    def _block(self, kind: str, content: Any, depth: int) -> list[Element]:
        match kind:
            case "Plain" | "Para":
                return [{"t": kind, "c": self.inlines(content)}]
            case "LineBlock":
                return [{"t": "Para", "c": self.inlines(_joined(content))}]
            case "CodeBlock":
                classes = [name for name in content[0][1][:1] if _LANGUAGE.fullmatch(name)]
                return [code_block(content[1], *classes)]
            case "RawBlock":
                self.warnings.append("code of another format is shown as text")
                return [code_block(content[1])]
            case "Header":
                return [self._heading(content, depth)]
            case "HorizontalRule":
                return [{"t": kind}]
            case "BlockQuote" | "BulletList" | "OrderedList" | "DefinitionList" | "Div":
                return self._container(kind, content, depth)
            case "Figure":
                return self._figure(content)
            case "Table":
                return [self._table(content)]
        self.warnings.append(f"a block of unknown kind was left out: {printable(kind, 40)}")
        return []

    def _heading(self, content: Any, depth: int) -> Element:
        level, attributes, inlines = content
        words = self.inlines(_without_notes(inlines))
        if depth > 0 or not self._headings:
            return {"t": "Para", "c": [{"t": "Strong", "c": words}]}
        self._headings_seen += 1
        classes = [name for name in attributes[1] if name == "unnumbered"]
        anchor = f"section-{self._headings_seen}"
        return {
            "t": "Header",
            "c": [min(level - self._top_level + 1, 3), [anchor, classes, []], words],
        }

    def _container(self, kind: str, content: Any, depth: int) -> list[Element]:
        if kind == "Div":
            return self.blocks(content[1], depth)
        items = {
            "BlockQuote": [content],
            "BulletList": content,
            "OrderedList": content[1] if kind == "OrderedList" else [],
            "DefinitionList": [],
        }[kind]
        if depth >= MAX_BLOCK_DEPTH:
            self.warnings.append("deeper nesting was made flat")
            if kind == "DefinitionList":
                items = [
                    [{"t": "Plain", "c": term}, *_joined_lists(texts)] for term, texts in content
                ]
            return self.blocks(_joined_lists(items), depth)
        if kind == "BlockQuote":
            return [{"t": kind, "c": self.blocks(content, depth + 1)}]
        if kind == "DefinitionList":
            pairs = [
                [self.inlines(term), [self.blocks(text, depth + 1) for text in texts]]
                for term, texts in content
            ]
            return [{"t": kind, "c": pairs}]
        cleaned = [self.blocks(item, depth + 1) for item in items]
        if kind == "OrderedList":
            start = min(max(0, content[0][0]), 9999)
            return [{"t": kind, "c": [[start, {"t": "Decimal"}, {"t": "Period"}], cleaned]}]
        return [{"t": kind, "c": cleaned}]

    def _figure(self, content: Any) -> list[Element]:
        _, (_, caption), inner = content
        inlines = [part for block in inner for part in _words_of(block)]
        images = [part for part in inlines if part["t"] == "Image"]
        words = self.inlines(_without_notes(_joined(map(_words_of, caption))))
        words = [word for word in words if word["t"] != "Image"]
        shown = self._image(images[0]["c"], words) if len(images) == 1 else None
        if shown is None or shown["t"] != "Image":
            return [{"t": "Para", "c": [shown or {"t": "Str", "c": "[picture]"}]}]
        plain = [{"t": "Plain", "c": words}] if words else []
        return [
            {"t": "Figure", "c": [_NO_ATTRIBUTES, [None, plain], [{"t": "Plain", "c": [shown]}]]}
        ]

    def _image(self, content: Any, words: list[Element]) -> Element:
        _, _, (path, _) = content
        picture = self._pictures(path)
        if isinstance(picture, str):
            self.warnings.append(f"picture {printable(path, 120)} left out: {picture}")
            note = [{"t": "Str", "c": "[picture"}, {"t": "Space"}, {"t": "Str", "c": "left"}]
            note += [{"t": "Space"}, {"t": "Str", "c": "out:"}, {"t": "Space"}]
            return {"t": "Emph", "c": [*note, *words, {"t": "Str", "c": "]"}]}
        attributes = ["", [], [["width", f"{picture.width_pct}%"]]]
        spoken = plain_inlines(_text_of(words)[:_MAX_SPOKEN_CHARS])
        return {"t": "Image", "c": [attributes, spoken, [picture.target, ""]]}

    def _table(self, content: Any) -> Element:
        _, (_, caption), columns, (_, head), bodies, (_, foot) = content
        rows = [row for body in bodies for row in [*body[2], *body[3]]] + foot
        if len(rows) > MAX_TABLE_ROWS or len(columns) > MAX_TABLE_COLUMNS:
            self.warnings.append("a table was cut, because it was too large for a page")
        head, rows = [
            [[_NO_ATTRIBUTES, self._cells(row[1])] for row in part[:MAX_TABLE_ROWS]]
            for part in (head, rows)
        ]
        columns = columns[:MAX_TABLE_COLUMNS]
        widths = _column_widths(len(columns), [row[1] for row in head + rows])
        words = self.inlines(_without_notes(_joined(map(_words_of, caption))))
        return {
            "t": "Table",
            "c": [
                _NO_ATTRIBUTES,
                [None, [{"t": "Plain", "c": words}] if words else []],
                [[align, width] for (align, _), width in zip(columns, widths, strict=True)],
                [_NO_ATTRIBUTES, head],
                [[_NO_ATTRIBUTES, 0, [], rows]],
                [_NO_ATTRIBUTES, []],
            ],
        }

    def _cells(self, cells: list[Any]) -> list[Any]:
        out = []
        for cell in cells[:MAX_TABLE_COLUMNS]:
            words = self.inlines(_without_notes(_joined(map(_words_of, cell[4]))))
            content = [{"t": "Plain", "c": words}]
            out.append([_NO_ATTRIBUTES, {"t": "AlignDefault"}, 1, 1, content])
        return out

    def inlines(self, inlines: Iterable[Element], depth: int = 0) -> list[Element]:
        out: list[Element] = []
        for inline in inlines:
            out += self._inline(inline["t"], inline.get("c"), depth)
        return out

    def _inline(self, kind: str, content: Any, depth: int) -> list[Element]:
        match kind:
            case "Str":
                return [{"t": kind, "c": content}]
            case "Space" | "SoftBreak" | "LineBreak":
                return [{"t": kind}]
            case "Code" | "RawInline":
                return [{"t": "Code", "c": [_NO_ATTRIBUTES, content[1]]}]
            case "Math":
                return [self._math(*content)]
            case "Note":
                return self._note(content)
            case "Link":
                return self._link(content, depth)
            case "Image":
                words = self.inlines(_without_notes(content[1]), depth + 1)
                return [self._image(content, words)]
        return self._nested(kind, content, depth)

    def _nested(self, kind: str, content: Any, depth: int) -> list[Element]:
        if kind in {"Emph", "Strong", "Superscript", "Subscript"}:
            inner = self.inlines(content, depth + 1)
            return [{"t": kind, "c": inner}] if depth < MAX_INLINE_DEPTH else inner
        if kind in {"Underline", "Strikeout", "SmallCaps"}:
            return self.inlines(content, depth + 1)
        if kind in {"Quoted", "Cite", "Span"}:
            return self.inlines(content[1], depth + 1)
        self.warnings.append(f"something of unknown kind was left out: {printable(kind, 40)}")
        return []

    def _note(self, content: list[Element]) -> list[Element]:
        """Give a footnote as one paragraph: TeX sets neither code nor tables nor notes in it."""
        if self._in_note:
            return []
        self._in_note = True
        words = self.inlines(_joined(_words_of(block) for block in content))
        self._in_note = False
        return [{"t": "Note", "c": [{"t": "Para", "c": words}]}]

    def _math(self, kind: Element, tex: str) -> Element:
        problem = math_problem(tex)
        if problem is None:
            return {"t": "Math", "c": [kind, tex]}
        self.warnings.append(f"a formula is shown as text: {printable(problem, 80)}")
        return {"t": "Code", "c": [_NO_ATTRIBUTES, tex]}

    def _link(self, content: Any, depth: int) -> list[Element]:
        _, inner, (address, _) = content
        words = self.inlines(inner, depth + 1)
        if address.startswith("#") and address[1:] in self._anchors:
            anchor = "#" + self._anchors[address[1:]]
            return [{"t": "Link", "c": [_NO_ATTRIBUTES, words, [anchor, ""]]}]
        # A paper takes nobody anywhere unasked: addresses are there to be read.
        if _text_of(words).removeprefix("mailto:") == address.removeprefix("mailto:"):
            return words
        return [*words, {"t": "Space"}, {"t": "Str", "c": f"({address})"}]


def _joined(parts: Iterable[list[Element]]) -> list[Element]:
    out: list[Element] = []
    for part in parts:
        out += [*part, {"t": "Space"}]
    return out[:-1]


def _words_of(block: Element) -> list[Element]:
    if block["t"] in {"Plain", "Para"}:
        return list(block["c"])
    return plain_inlines(_text_of(block))


def _joined_lists(lists: Iterable[Iterable[Element]]) -> list[Element]:
    return [element for part in lists for element in part]


def _without_notes(inlines: Iterable[Element]) -> list[Element]:
    return [inline for inline in inlines if inline["t"] != "Note"]


def _text_of(element: Any) -> str:
    if isinstance(element, list):
        return "".join(map(_text_of, element))
    if not isinstance(element, dict):
        return ""
    kind, content = element.get("t"), element.get("c")
    if content is None:
        return " "
    if kind == "Str":
        return str(content)
    if kind in {"Code", "Math", "CodeBlock", "RawBlock", "RawInline"}:
        return str(content[1])
    return _text_of(content)


def _column_widths(count: int, rows: Sequence[Sequence[Any]]) -> list[Element]:
    """Give default widths if the longest cells fit into a line side by side, or else shares of it.

    Each column gets what its longest word needs, and the rest of the line goes to the longer texts.
    """
    needs, wishes = [4.0] * count, [4.0] * count
    for row in rows:
        for index, cell in enumerate(row[:count]):
            text = _text_of(cell[4])
            per_char = _CODE_CHAR if _is_code(cell[4]) else 1.0
            word = max(map(len, text.split()), default=0)
            needs[index] = max(needs[index], min(word, _LONG_WORD) * per_char + 2)
            wishes[index] = max(wishes[index], min(len(text), _LONG_CELL) * per_char + 2)
    if sum(wishes) <= _FULL_WIDTH_CHARS:
        return [{"t": "ColWidthDefault"}] * count
    left = max(0.0, _FULL_WIDTH_CHARS - sum(needs))
    wanted = [wish - need for wish, need in zip(wishes, needs, strict=True)]
    share = left / max(sum(wanted), 1.0)
    widths = [need + share * more for need, more in zip(needs, wanted, strict=True)]
    return [{"t": "ColWidth", "c": round(width / sum(widths), 4)} for width in widths]


def _is_code(blocks: Sequence[Element]) -> bool:
    return any(inline["t"] == "Code" for block in blocks for inline in _words_of(block))
