"""A model's reply becomes an edit of some files, or a reason that the model can act on. Pure but for `check`'s parser.

Only files that may be changed can be named, so that no reply reaches any other path.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice

from labd.research.blocks import MAX_SHOWN_LINE, Edit, Swap, Unusable, Whole
from labd.research.syntax import problem_of
from labd.template import Template
from labd.text import printable

MAX_FILE_BYTES = 256 * 1024
MAX_FILE_LINES = 10_000
_MAX_SHOWN_LINES = 12
_LEAST_PART = 8
"""Characters of a part of a line that may stand for the line."""
_LEFT_OUT = re.compile(
    r"""\s*(?:\#|//|/\*|<!--)\s*(?:
        (?:\.{3}|…)\s*$                                                   # nothing but dots
        | (?:\.{3}|…|\[).*\b(?:rest|remaining|existing|unchanged|same|previous|original|omitted|code)\b.*
        | .*\b(?:rest|remaining|existing|unchanged|same|previous|original|omitted)\b.*(?:\.{3}|…)\W*$
        | (?:the\s+)?(?:rest|remainder)\s+of\s+(?:the\s+|your\s+)?(?:code|file|script|module|class|function)s?\b.*
    )""",
    re.IGNORECASE | re.VERBOSE,
)


# -- making an edit


def apply(template: Template, files: Mapping[str, str], edits: Sequence[Edit]) -> dict[str, str]:
    """Give the files after the edits, made in their order; `files` are those that may be changed.

    Raises:
        Unusable: an edit names no file that may be changed, or its lines are not found in exactly one place.

    """
    revised = dict(files)
    written: set[str] = set()
    for number, edit in enumerate(edits, 1):
        path = _target(template, files, edit)
        if isinstance(edit, Whole):
            if path in written:
                raise Unusable(f"There are two blocks for {path}: give the whole file once.")
            written.add(path)
            revised[path] = _whole_text(edit, path, files[path])
        else:
            revised[path] = _swapped(edit, path, revised[path], number)
    return revised


def _target(template: Template, files: Mapping[str, str], edit: Edit) -> str:
    allowed = ", ".join(sorted(files))
    if edit.path is None:
        if len(files) == 1:
            return next(iter(files))
        raise Unusable(
            f"A block does not say which file it is for. Write one of these on the line before it: {allowed}."
        )
    if edit.path in files:
        return edit.path
    shown = printable(edit.path, 100)
    why = "is read-only" if edit.path in template.files_sha256 else "is none of the files"
    raise Unusable(f"{shown} {why}, and only these may be changed: {allowed}.")


def _whole_text(edit: Whole, path: str, old: str) -> str:
    if not edit.text.strip():
        raise Unusable(f"The block for {path} is empty.")
    defined = re.compile(r"^(?:async\s+def|def|class)\s+(\w+)", re.MULTILINE)
    gone = sorted(set(defined.findall(old)) - set(defined.findall(edit.text)))
    if gone and not edit.sure:
        raise Unusable(
            f"The block seems to be a part of {path} only, since {', '.join(gone[:5])} is not in it. Use a "
            f"SEARCH/REPLACE block, or give the whole file with {path} alone on the line before the block."
        )
    return edit.text


def _swapped(edit: Swap, path: str, text: str, number: int) -> str:
    lines = text.split("\n")
    if not any(line.strip() for line in edit.search):
        if not text.strip():
            return "\n".join(edit.replacement).rstrip() + "\n"
        raise Unusable(f"SEARCH block {number}, for {path}, has no lines to find.")
    for search, replacement in (
        (edit.search, edit.replacement),
        (_trimmed(edit.search), _trimmed(edit.replacement)),
    ):
        for places in (_exact(lines, search, str), _exact(lines, search, str.rstrip)):
            if len(places) == 1:
                return _put(lines, places[0], len(search), replacement)
            if places:
                raise Unusable(
                    f"SEARCH block {number} matches more than one place in {path}: repeat more of the lines around it."
                )
        moved = _shifted(lines, search, replacement)
        if moved is not None:
            return _put(lines, moved[0], len(search), moved[1])
        part = "".join(search).strip()
        if (
            len(search) == len(replacement) == 1
            and len(part) >= _LEAST_PART
            and text.count(part) == 1
        ):
            return text.replace(part, replacement[0].strip())
    raise Unusable(
        f"SEARCH block {number} does not match {path}: its lines have to be there exactly so. "
        f"{_nearest(lines, edit.search)}"
    )


def _trimmed(lines: Sequence[str]) -> tuple[str, ...]:
    """Give the lines without empty ones at both ends."""
    full = [at for at, line in enumerate(lines) if line.strip()]
    return tuple(lines[full[0] : full[-1] + 1]) if full else ()


def _put(lines: Sequence[str], at: int, count: int, replacement: Sequence[str]) -> str:
    return "\n".join([*lines[:at], *replacement, *lines[at + count :]])


def _exact(lines: Sequence[str], search: Sequence[str], key: Callable[[str], str]) -> list[int]:
    """Give the first two places where the lines are found, compared by `key`."""
    wanted, there = [key(line) for line in search], [key(line) for line in lines]
    found = (
        at
        for at in range(len(there) - len(wanted) + 1)
        if there[at] == wanted[0] and there[at : at + len(wanted)] == wanted
    )
    return list(islice(found, 2))


def _shifted(
    lines: Sequence[str], search: Sequence[str], replacement: Sequence[str]
) -> tuple[int, list[str]] | None:
    """Find lines that are indented otherwise, all by the same; give the place and the replacement, indented so."""
    places = _exact(lines, search, str.strip)
    if len(places) != 1:
        return None
    there = lines[places[0] : places[0] + len(search)]
    pairs = [(_indent(a), _indent(b)) for a, b in zip(there, search, strict=True) if a.strip()]
    deeper = [a.removesuffix(b) for a, b in pairs if a.endswith(b)]
    if len(deeper) == len(pairs) and len(set(deeper)) == 1:
        return places[0], [deeper[0] + line if line.strip() else line for line in replacement]
    shallower = [b.removesuffix(a) for a, b in pairs if b.endswith(a)]
    if len(shallower) == len(pairs) and len(set(shallower)) == 1:
        extra = shallower[0]
        if all(line.startswith(extra) for line in replacement if line.strip()):
            return places[0], [line.removeprefix(extra) for line in replacement]
    return None


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _nearest(lines: Sequence[str], search: Sequence[str]) -> str:
    """Show the lines that are most like what was looked for."""
    wanted = {line.strip() for line in search if line.strip()}
    starts = [at for at, line in enumerate(lines) if line.strip() in wanted]
    if not starts:
        first = next(line.strip() for line in search if line.strip())[:MAX_SHOWN_LINE]
        stripped = [line.strip()[:MAX_SHOWN_LINE] for line in lines[:MAX_FILE_LINES]]
        near = get_close_matches(first, stripped, n=1, cutoff=0.6)
        if not near:
            return "No line of it is there."
        starts = [stripped.index(near[0])]
    size = min(len(search) + 2, _MAX_SHOWN_LINES)

    def hits(at: int) -> int:
        return sum(line.strip() in wanted for line in lines[at : at + size])

    at = max(max(starts, key=hits) - 1, 0)
    shown = "\n".join(line[:MAX_SHOWN_LINE] for line in lines[at : at + size])
    return f"The nearest lines there are:\n{shown}"


# -- judging what came of it


def check(template: Template, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Give why the new files may not or need not be run, for the model; empty where they should be.

    Args:
        template: says what may be changed; all else, its evaluation among it, has to stay as it is.
        old: the files that may be changed, as they were.
        new: the same, as they are to be.

    """
    for path in sorted(new):
        if path not in template.editable or path not in old:
            return f"{printable(path, 100)} may not be changed."
        problem = "" if new[path] == old[path] else _unfit(path, old[path], new[path])
        if problem:
            return problem
    return problem_of(old, new)


def _unfit(path: str, old: str, new: str) -> str:
    try:
        size_bytes = len(new.encode())
    except UnicodeEncodeError:
        return f"{path} holds half a character (a lone surrogate)."
    if size_bytes > MAX_FILE_BYTES or new.count("\n") > MAX_FILE_LINES:
        return f"{path} has more than {MAX_FILE_BYTES // 1024} KiB or {MAX_FILE_LINES} lines."
    if "\0" in new:
        return f"{path} holds a NUL character."
    had = set(old.split("\n"))
    for line in new.split("\n"):
        if len(line) <= MAX_SHOWN_LINE and _LEFT_OUT.fullmatch(line) and line not in had:
            return (
                f"{path} leaves code out where it says {printable(line.strip(), 80)!r}: give the whole file, or a "
                "SEARCH/REPLACE block for what changes."
            )
    return ""
