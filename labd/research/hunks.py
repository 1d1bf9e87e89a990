"""What differs between two states of some files: as a patch, and piece by piece, so that pieces can be undone. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_CONTEXT = 3
_MAX_COMPARED = 2000 * 2000
"""Product of the lines on both sides; comparing takes so many steps and, where lines repeat, many more."""
_LINE = re.compile(r"[^\n]*\n|[^\n]+")

_Block = tuple[int, int, int, int]
"""Lines from ``[0]`` to ``[1]`` of the old are those from ``[2]`` to ``[3]`` of the new."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """One piece of a change of one file, changes that lie close together being one piece.

    Attributes:
        path: of the file.
        start: index of the first line of `new` in the new file.
        old, new: the lines with their ends, as they were and as they are.
        text: it as a unified diff, with the file's name.

    """

    path: str
    start: int
    old: tuple[str, ...]
    new: tuple[str, ...]
    text: str


def hunks(old: Mapping[str, str], new: Mapping[str, str]) -> list[Hunk]:
    """Give all pieces of a change, sorted by path and place; a file that one side lacks is empty there."""
    found: list[Hunk] = []
    for path in sorted({*old, *new}):
        before, after = _lines(old.get(path, "")), _lines(new.get(path, ""))
        for blocks in _near(_changes(before, after)):
            start_old, end_old, start, end = (
                blocks[0][0],
                blocks[-1][1],
                blocks[0][2],
                blocks[-1][3],
            )
            found.append(
                Hunk(
                    path,
                    start,
                    tuple(before[start_old:end_old]),
                    tuple(after[start:end]),
                    f"--- a/{path}\n+++ b/{path}\n{_shown(before, after, blocks)}",
                )
            )
    return found


def without_hunk(new: Mapping[str, str], hunk: Hunk) -> dict[str, str]:
    """Give the new files with one piece as it was before.

    Raises:
        ValueError: the piece is not of these files.

    """
    lines = _lines(new[hunk.path])
    end = hunk.start + len(hunk.new)
    if tuple(lines[hunk.start : end]) != hunk.new:
        msg = f"the hunk is not of this {hunk.path}"
        raise ValueError(msg)
    return {**new, hunk.path: "".join([*lines[: hunk.start], *hunk.old, *lines[end:]])}


def patch(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Give a whole change as unified diffs that git-apply(1) takes; empty where nothing differs."""
    parts: list[str] = []
    last = ""
    for hunk in hunks(old, new):
        head, body = f"--- a/{hunk.path}\n+++ b/{hunk.path}\n", hunk.text
        parts.append(body.removeprefix(head) if hunk.path == last else body)
        last = hunk.path
    return "".join(parts)


def count_lines(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[int, int]:
    """Give how many lines were added and how many were removed."""
    added = removed = 0
    for path in {*old, *new}:
        for block in _changes(_lines(old.get(path, "")), _lines(new.get(path, ""))):
            removed += block[1] - block[0]
            added += block[3] - block[2]
    return added, removed


def _lines(text: str) -> list[str]:
    # Not str.splitlines, which also splits at form feeds and others that are no line's end in a file.
    return _LINE.findall(text)


def _changes(old: Sequence[str], new: Sequence[str]) -> list[_Block]:
    """Give the blocks that differ."""
    least = min(len(old), len(new))
    head = next((at for at in range(least) if old[at] != new[at]), least)
    least -= head
    tail = next((at for at in range(least) if old[-1 - at] != new[-1 - at]), least)
    a, b = old[head : len(old) - tail], new[head : len(new) - tail]
    if not a and not b:
        return []
    if len(a) * len(b) > _MAX_COMPARED:
        return [(head, len(old) - tail, head, len(new) - tail)]
    return [
        (head + i, head + i_end, head + j, head + j_end)
        for tag, i, i_end, j, j_end in SequenceMatcher(None, a, b).get_opcodes()
        if tag != "equal"
    ]


def _near(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    """Put blocks together whose context would touch, as a unified diff does."""
    group: list[_Block] = []
    for block in blocks:
        if group and block[0] - group[-1][1] > 2 * _CONTEXT:
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _shown(old: Sequence[str], new: Sequence[str], blocks: Sequence[_Block]) -> str:
    first, last = blocks[0], blocks[-1]
    lead = min(_CONTEXT, first[0])
    trail = min(_CONTEXT, len(old) - last[1])
    start_old, count_old = first[0] - lead, last[1] + trail - first[0] + lead
    start_new, count_new = first[2] - lead, last[3] + trail - first[2] + lead
    shown = [f"@@ -{_range(start_old, count_old)} +{_range(start_new, count_new)} @@\n"]
    at = start_old
    for i, i_end, j, j_end in blocks:
        shown += [f" {line}" for line in old[at:i]]
        shown += [f"-{line}" for line in old[i:i_end]]
        shown += [f"+{line}" for line in new[j:j_end]]
        at = i_end
    shown += [f" {line}" for line in old[at : last[1] + trail]]
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in shown
    )


def _range(start: int, count: int) -> str:
    # An empty range is named by the line before it. Source: diff(1), "Detailed Description of Unified Format".
    return f"{start + 1 if count else start},{count}"
