"""How alike two short texts are, so that no idea is tried twice. Pure; works in any script."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_LENGTH = 4
"""Characters of a shingle: long enough to tell words apart, short enough for languages that inflect."""
_SAME_TITLE = 0.75
_SAME_TEXT = 0.65


@dataclass(frozen=True, slots=True)
class Print:
    """What is compared of a text with a title."""

    title: str
    title_shingles: frozenset[str]
    text_shingles: frozenset[str]


def print_of(title: str, text: str = "") -> Print:
    """Make what is compared."""
    plain = _plain(title)
    return Print(plain, _shingles(plain), _shingles(f"{plain} {_plain(text)}".strip()))


def likeness(one: Print, other: Print) -> float:
    """Give how alike two are, from 0 to 1; the same title is 1."""
    if one.title == other.title:
        return 1.0
    return max(
        _shared(one.title_shingles, other.title_shingles),
        _shared(one.text_shingles, other.text_shingles),
    )


def is_repeat(one: Print, others: Iterable[Print]) -> bool:
    """Say whether a text tells the same as one of the others."""
    return any(
        one.title == other.title
        or _shared(one.title_shingles, other.title_shingles) >= _SAME_TITLE
        or _shared(one.text_shingles, other.text_shingles) >= _SAME_TEXT
        for other in others
    )


def _plain(text: str) -> str:
    """Give a text's letters and digits, with single spaces between words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(char if char.isalnum() else " " for char in folded).split())


def _shingles(text: str) -> frozenset[str]:
    padded = f" {text} "
    return frozenset(padded[i : i + _LENGTH] for i in range(max(1, len(padded) - _LENGTH + 1)))


def _shared(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
