"""Digits that somebody typed into a template of a paper, where only recorded numbers may stand."""

import re
from dataclasses import dataclass

from jinja2 import Environment


@dataclass(frozen=True, slots=True)
class Untraced:
    """Digits that a template types itself, with the line (from 1) on which they stand."""

    text: str
    line: int


_NOT_PROSE = re.compile(
    r"(?ms)^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[`~]*\s*$"  # fenced code
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"  # code in a line
    r"|\]\([^)\n]*\)|\{#[^}\n]*\}"  # targets of links and pictures, anchors
    r"|^#{1,6}\s+[\d.]+\s"  # a heading's number
    r"|^\s*\d{1,3}[.)]\s"  # an item's number
    r"|\b(?:Fig(?:ure|\.)|Table|Section|Sec\.|Equation|Eq\.)s?[\s\u00a0]\(?[\d.]+\)?"
)
_DIGITS = re.compile(r"(?<![\w-])[+\-\u2212]?\d[\d.,]*(?:e[+-]?\d+)?|(?<=[-\d])\d*\.\d+")


def untraced(template_text: str) -> list[Untraced]:
    """Give the digits that stand in a template's prose and come from no record.

    Left out: Jinja tags, code, headings' and items' numbers, references to figures and tables, link
    targets, and whole numbers that are part of a name (SHA-256, F1).
    """
    prose = "".join(
        text if kind == "data" else re.sub(r"[^\n]", " ", text)
        for _, kind, text in Environment(keep_trailing_newline=True).lex(template_text)
    )
    prose = _NOT_PROSE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), prose)
    return [
        Untraced(match.group(), prose.count("\n", 0, match.start()) + 1)
        for match in _DIGITS.finditer(prose)
    ]
