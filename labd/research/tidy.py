"""A document tree from untrusted Markdown, made harmless for every writer. Pure but for the pictures.

Whatever is not known to be harmless is shown as text: raw code of a format, mathematics with unknown
commands, pictures that were not let through, addresses. Attributes do not survive.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from labd.research.pandoc import Element, code_block
from labd.text import printable

MAX_BLOCK_DEPTH = 4
MAX_INLINE_DEPTH = 12
MAX_TABLE_ROWS = 400
MAX_TABLE_COLUMNS = 30
MAX_MATH_CHARS = 2000
_LONG_WORD = 32
_BREAK_EVERY = 16
_BREAK = "\u200b"
_FULL_WIDTH_CHARS = 84
_NO_ATTRIBUTES = ["", [], []]

_LANGUAGE = re.compile(r"[a-z0-9+-]{1,20}")
_MATH_WORDS = frozenset(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho
    sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega
    frac tfrac dfrac binom sqrt sum prod int iint oint lim limsup liminf sup inf min max arg log ln exp sin
    cos tan det dim ker Pr hat bar tilde vec dot ddot overline underline widehat widetilde overbrace
    underbrace mathbb mathbf mathcal mathfrak mathit mathrm mathsf mathtt boldsymbol operatorname text
    textbf textit textrm left right big Big bigl bigr Bigl Bigr cdot cdots ldots dots vdots ddots times div
    pm mp ast star circ bullet oplus otimes le leq ge geq ne neq equiv approx sim simeq cong propto ll gg
    subset subseteq supset supseteq in notin ni cup cap setminus emptyset forall exists neg land lor wedge
    vee to rightarrow leftarrow Rightarrow Leftarrow leftrightarrow Leftrightarrow mapsto infty partial
    nabla ell Re Im mid nmid parallel perp angle langle rangle lfloor rfloor lceil rceil lVert rVert lvert
    rvert quad qquad prime dagger top bot hbar colon displaystyle textstyle""".split()
)
_MATH_TOKEN = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_MATH_SIGNS = frozenset("{},;:!| ")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that may be shown: the path to write, and its width as a share of the line."""

    target: str
    width_pct: int


Pictures = Callable[[str], Picture | str]
"""Gives the picture for a path in the text, or why there is none."""


def tidy(blocks: Sequence[Element], pictures: Pictures) -> tuple[list[Element], list[str]]:
    """Give the blocks with only harmless elements left, and one warning for each thing that was changed."""
    tidier = _Tidier(pictures)
    tidier.see_headings(blocks)
    return tidier.blocks(blocks, 0), list(dict.fromkeys(tidier.warnings))


def break_long_words(element: Any) -> Any:  # noqa: ANN401 - any part of the tree
    """Give the tree with a zero-width space in each word too long for a line."""
    if isinstance(element, list):
        return [break_long_words(part) for part in element]
    if not isinstance(element, dict):
        return element
    kind, content = element.get("t"), element.get("c")
    if kind == "Str":
        return {"t": kind, "c": _broken(content)}
    if kind in {"Code", "CodeBlock"}:
        return {"t": kind, "c": [content[0], _broken(content[1])]}
    if kind == "Math" or content is None:
        return element
    return {"t": kind, "c": break_long_words(content)}


def _broken(text: str) -> str:
    def broken(match: re.Match[str]) -> str:
        word = match.group()
        return _BREAK.join(word[i : i + _BREAK_EVERY] for i in range(0, len(word), _BREAK_EVERY))

    return re.sub(rf"\S{{{_LONG_WORD},}}", broken, text)


def math_problem(tex: str) -> str | None:
    """Say why a formula is not let through to TeX, or give None.

    Only known commands pass: in a .tex file a formula is a program.
    """
    if len(tex) > MAX_MATH_CHARS:
        return f"longer than {MAX_MATH_CHARS} characters"
    for match in _MATH_TOKEN.finditer(tex):
        name = match.group(1)
        if name not in _MATH_WORDS and name not in _MATH_SIGNS:
            return f"unknown command \\{name}"
    bare = _MATH_TOKEN.sub(lambda m: " " if m.group(1) in _MATH_SIGNS else m.group(), tex)
    bad = set(bare) & set('%#~$&`"') or {"^^"} & {bare[i : i + 2] for i in range(len(bare))}
    if bad or "\n\n" in tex or bare.endswith("\\"):
        return "signs that end or leave a formula"
    if not _balanced(bare) or len(re.findall(r"\\left\b", bare)) != len(
        re.findall(r"\\right\b", bare)
    ):
        return "brackets that do not match"
    if not bare.strip() or re.search(
        r"[\^_]\s*(?:[\^_}]|$)|\^\s*(?:\w|\{[^{}]*\})\s*\^|_\s*(?:\w|\{[^{}]*\})\s*_", bare
    ):
        return "an index without its term"
    return None


def _balanced(tex: str) -> bool:
    depth = 0
    for char in tex:
        depth += (char == "{") - (char == "}")
        if not 0 <= depth <= 20:
            return False
    return depth == 0


class _Tidier:
    def __init__(self, pictures: Pictures) -> None:
        self.warnings: list[str] = []
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

    def _block(self, kind: str, content: Any, depth: int) -> list[Element]:  # noqa: ANN401, PLR0911 - one line a kind
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
                return [self._heading(*content, depth)]
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

    def _heading(
        self, level: int, attributes: list[Any], inlines: list[Element], depth: int
    ) -> Element:
        words = self.inlines(_without_notes(inlines))
        if depth > 0:
            return {"t": "Para", "c": [{"t": "Strong", "c": words}]}
        self._headings_seen += 1
        classes = [name for name in attributes[1] if name == "unnumbered"]
        anchor = f"section-{self._headings_seen}"
        return {
            "t": "Header",
            "c": [min(level - self._top_level + 1, 3), [anchor, classes, []], words],
        }

    def _container(self, kind: str, content: Any, depth: int) -> list[Element]:  # noqa: ANN401 - any part
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

    def _figure(self, content: Any) -> list[Element]:  # noqa: ANN401 - any part
        _, (_, caption), inner = content
        inlines = [
            part for block in inner for part in block.get("c", []) if isinstance(part, dict)
        ]
        images = [part for part in inlines if part["t"] == "Image"]
        words = self.inlines(_without_notes(_joined(block.get("c", []) for block in caption)))
        shown = self._image(images[0]["c"], words) if len(images) == 1 else None
        if shown is None or shown["t"] != "Image":
            return [{"t": "Para", "c": [shown or {"t": "Str", "c": "[picture]"}]}]
        plain = [{"t": "Plain", "c": words}] if words else []
        return [
            {"t": "Figure", "c": [_NO_ATTRIBUTES, [None, plain], [{"t": "Plain", "c": [shown]}]]}
        ]

    def _image(self, content: Any, words: list[Element]) -> Element:  # noqa: ANN401 - any part
        _, _, (path, _) = content
        picture = self._pictures(path)
        if isinstance(picture, str):
            self.warnings.append(f"picture {printable(path, 120)} left out: {picture}")
            note = [{"t": "Str", "c": "[picture"}, {"t": "Space"}, {"t": "Str", "c": "left"}]
            note += [{"t": "Space"}, {"t": "Str", "c": "out:"}, {"t": "Space"}]
            return {"t": "Emph", "c": [*note, *words, {"t": "Str", "c": "]"}]}
        attributes = ["", [], [["width", f"{picture.width_pct}%"]]]
        return {"t": "Image", "c": [attributes, words, [picture.target, ""]]}

    def _table(self, content: Any) -> Element:  # noqa: ANN401 - any part
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
        words = self.inlines(_without_notes(_joined(block.get("c", []) for block in caption)))
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
        return [
            [
                _NO_ATTRIBUTES,
                {"t": "AlignDefault"},
                1,
                1,
                [
                    {
                        "t": "Plain",
                        "c": self.inlines(
                            _without_notes(_joined(b.get("c", []) for b in cell[4]))
                        ),
                    }
                ],
            ]
            for cell in cells[:MAX_TABLE_COLUMNS]
        ]

    def inlines(self, inlines: Iterable[Element], depth: int = 0) -> list[Element]:
        out: list[Element] = []
        for inline in inlines:
            out += self._inline(inline["t"], inline.get("c"), depth)
        return out

    def _inline(self, kind: str, content: Any, depth: int) -> list[Element]:  # noqa: ANN401, PLR0911 - one line a kind
        match kind:
            case "Str":
                return [{"t": kind, "c": content}]
            case "Space" | "SoftBreak" | "LineBreak":
                return [{"t": kind}]
            case "Emph" | "Strong" | "Superscript" | "Subscript":
                inner = self.inlines(content, depth + 1)
                return [{"t": kind, "c": inner}] if depth < MAX_INLINE_DEPTH else inner
            case "Underline" | "Strikeout" | "SmallCaps":
                return self.inlines(content, depth + 1)
            case "Quoted" | "Cite" | "Span":
                return self.inlines(content[1], depth + 1)
            case "Code":
                return [{"t": kind, "c": [_NO_ATTRIBUTES, content[1]]}]
            case "RawInline":
                return [{"t": "Code", "c": [_NO_ATTRIBUTES, content[1]]}]
            case "Math":
                return [self._math(*content)]
            case "Link":
                return self._link(content, depth)
            case "Image":
                return [self._image(content, self.inlines(_without_notes(content[1]), depth + 1))]
            case "Note":
                return (
                    [{"t": kind, "c": self.blocks(content, MAX_BLOCK_DEPTH)}] if depth == 0 else []
                )
        self.warnings.append(f"something of unknown kind was left out: {printable(kind, 40)}")
        return []

    def _math(self, kind: Element, tex: str) -> Element:
        problem = math_problem(tex)
        if problem is None:
            return {"t": "Math", "c": [kind, tex]}
        self.warnings.append(f"a formula is shown as text: {printable(problem, 80)}")
        return {"t": "Code", "c": [_NO_ATTRIBUTES, tex]}

    def _link(self, content: Any, depth: int) -> list[Element]:  # noqa: ANN401 - any part
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
        # A block's content that is not inlines (code: attributes and text) is shown as its text.
        if part and not isinstance(part[0], dict):
            part = [{"t": "Str", "c": str(part[-1])}]
        out += [*part, {"t": "Space"}]
    return out[:-1]


def _joined_lists(lists: Iterable[Iterable[Element]]) -> list[Element]:
    return [element for part in lists for element in part]


def _without_notes(inlines: Iterable[Element]) -> list[Element]:
    return [inline for inline in inlines if inline["t"] != "Note"]


def _text_of(element: Any) -> str:  # noqa: ANN401 - any part of the tree
    if isinstance(element, list):
        return "".join(map(_text_of, element))
    if not isinstance(element, dict):
        return ""
    kind, content = element.get("t"), element.get("c")
    if kind == "Str":
        return str(content)
    if kind in {"Code", "Math"}:
        return str(content[1])
    return " " if content is None else _text_of(content)


def _column_widths(count: int, rows: Sequence[Sequence[Any]]) -> list[Element]:
    """Give default widths if the longest cells fit into a line side by side, or else shares of it."""
    lengths = [1] * count
    for row in rows:
        for index, cell in enumerate(row[:count]):
            lengths[index] = max(lengths[index], len(_text_of(cell[4])))
    if sum(lengths) + 3 * count <= _FULL_WIDTH_CHARS:
        return [{"t": "ColWidthDefault"}] * count
    weights = [min(max(length, 5), 45) for length in lengths]
    return [{"t": "ColWidth", "c": round(weight / sum(weights), 4)} for weight in weights]
