"""What changed code reaches for beyond what the template's own did: modules, files, the caller. Pure.

Changed code runs beside the data, and where the answers that it is measured on lie within its reach it can read
them. Nothing here forbids that: what is an honest import can't be told by its name. It is said in the paper, so that
no reader has to find it in the diff. Names are looked for as text, so that a comment may be taken for code, and code
that hides its names is not found.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from labd.text import printable

_MAX_NAMES = 12
_IMPORT = re.compile(
    r"(?:^|[;:])[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import\b|import[ \t]+([\w.]+(?:[ \t]+as[ \t]+\w+)?"
    r"(?:[ \t]*,[ \t]*[\w.]+(?:[ \t]+as[ \t]+\w+)?)*))",
    re.MULTILINE,
)
_OPENING = re.compile(
    r"(?<![\w.])(?:open|exec|eval|compile)(?=[ \t]*\()"
    r"|(?<!\w)(?:__import__|import_module|_getframe|getenv|system|popen|Popen|iterdir|r?glob|listdir|scandir|walk|load"
    r"|read_text|read_bytes|read_csv|read_pickle|loadtxt|genfromtxt|fromfile|memmap|get_objects|settrace)(?=[ \t]*\()"
    r"|\b(?:argv|environ|f_back|f_locals|sys\.modules|__globals__|__builtins__)\b"
)
_HARMLESS = frozenset(
    re.findall(
        r"\w+",
        """
        __future__ abc collections contextlib copy dataclasses enum functools heapq itertools math numbers
        numpy operator random statistics string time torch types typing typing_extensions warnings
        """,
    )
)
"""Modules that compute, and read nothing by being there."""


def reach_notes(
    old: Mapping[str, str], new: Mapping[str, str], *, quoted: Callable[[str], str] = str
) -> list[str]:
    """Say for a reader what the selected code reaches for that the template's did not; nothing where that is nothing.

    Args:
        old: the files that may be changed, as the template has them.
        new: the same as they are in the selected code.
        quoted: makes of a name, which is a model's own word, what a reader may see of it.

    """
    known = {name for text in old.values() for name in _names(text)}
    found = {name for text in new.values() for name in _names(text)} - known
    if not found:
        return []
    shown = ", ".join(quoted(printable(name, 60)) for name in sorted(found)[:_MAX_NAMES])
    more = " and more" if len(found) > _MAX_NAMES else ""
    note = (
        f"The selected code reaches for what the template's own did not: {shown}{more}. It may have read what it is "
        "measured on, if that lies within its reach; the change has to be read before the result is believed."
    )
    return [note]


def _names(text: str) -> Iterator[str]:
    for match in _IMPORT.finditer(text):
        for part in (match[1] or match[2]).split(","):
            module = part.split()[0]
            if module.partition(".")[0] not in _HARMLESS:
                yield module
    yield from (match.group() for match in _OPENING.finditer(text))
