"""Edits as a model writes them: blocks of code in a reply of any form. Pure.

Replies are untrusted; whatever is not clear is refused and never guessed.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from labd.text import printable

MAX_REPLY_CHARS = 2**20
MAX_EDITS = 100
MAX_SHOWN_LINE = 300
_MAX_PLAN_LINES = 40
_MAX_PLAN = 2000

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)")
_SEARCH = re.compile(r"\s*<{5,9}\s*(?:SEARCH|ORIGINAL|HEAD|OLD)\b.*", re.IGNORECASE)
_DIVIDER = re.compile(r"\s*={5,9}\s*")
_REPLACE = re.compile(r"\s*>{5,9}(?:\s*\w+)?\s*")
_PATH = re.compile(r"(?<![\w./\\-])[\w./\\-]{1,200}\.[A-Za-z]\w{0,9}(?![\w/\\-])")
_BEFORE_NAME = re.compile(
    r"^(?:(?:the\s+)?(?:new\s+)?file(?:\s?name)?|path)\s*:?\s+", re.IGNORECASE
)
_DECORATION = "#*`:>- \t\"'()[],"
_ROOTS = ("/inputs/template/", "inputs/template/", "./", "a/", "b/")
_NOT_PYTHON = frozenset(
    {"bash", "sh", "shell", "console", "text", "txt", "plaintext", "output", "log", "diff", "patch"}
    | {"markdown", "md", "json", "yaml", "yml", "toml", "ini", "csv", "xml", "html", "tex", "latex"}
)  # fmt: skip


class Unusable(ValueError):
    """A reply holds no edit that can be made; its text is written for the model."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A file as it is to be. `path` is ``None`` where the reply names none.

    `sure`: the reply says plainly which file it is, and does not only mention it before the block.
    """

    path: str | None
    text: str
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Swap:
    """Lines of a file, and the lines that are to stand in their place."""

    path: str | None
    search: tuple[str, ...]
    replacement: tuple[str, ...]


Edit = Whole | Swap


def plan_of(reply: str) -> str:
    """Give what a reply says before its first block, printable and in at most some lines."""
    lines: list[str] = []
    for line in reply.rpartition("</think>")[2].splitlines():
        if _FENCE.fullmatch(line) or _SEARCH.fullmatch(line):
            break
        lines.append(printable(line.strip(), MAX_SHOWN_LINE))
    while lines and (not lines[-1] or _PATH.fullmatch(lines[-1].strip(_DECORATION))):
        lines.pop()
    return "\n".join(lines[:_MAX_PLAN_LINES])[:_MAX_PLAN].strip()


def parse_edits(reply: str, known: Collection[str]) -> list[Edit]:
    """Give the edits that a reply holds, in its order: files in fenced blocks, and SEARCH/REPLACE blocks.

    Args:
        reply: a model's, of any form.
        known: paths of the template's files, to tell a file's name in the text around a block.

    Raises:
        Unusable: there are none, or one is not whole.

    """
    if len(reply) > MAX_REPLY_CHARS:
        raise Unusable(f"The reply has more than {MAX_REPLY_CHARS} characters.")
    # Some servers leave a model's thinking in its reply, and drafts of code in that.
    text = reply.rpartition("</think>")[2].replace("\r\n", "\n")
    edits = _carried(_Reader(text.split("\n"), known).edits())
    if len(edits) > MAX_EDITS:
        raise Unusable(f"The reply holds more than {MAX_EDITS} edits.")
    plain = [edit for edit in edits if isinstance(edit, Swap) or edit.sure]
    # Beside what is plain, other blocks are illustrations.
    edits = plain or [edit for edit in edits if edit.path is not None] or edits
    if not edits:
        raise Unusable(
            "The reply holds no edit. Give SEARCH/REPLACE blocks, or the whole new file in a fenced code block "
            "with the file's name on the line before it."
        )
    return edits


def _carried(edits: Iterator[Edit]) -> list[Edit]:
    """Give blocks without a name, which follow one with a name, that name: it has to match there anyway."""
    found: list[Edit] = []
    last: str | None = None
    for edit in edits:
        if isinstance(edit, Swap):
            last = edit.path or last
            found.append(replace(edit, path=last))
        else:
            found.append(edit)
    return found


class _Reader:
    """Goes through a reply line by line."""

    def __init__(self, lines: Sequence[str], known: Collection[str]) -> None:
        self._lines = lines
        self._known = known

    def edits(self) -> Iterator[Edit]:
        at, before = 0, ""
        while at < len(self._lines):
            line = self._lines[at]
            fence = _FENCE.fullmatch(line)
            if _SEARCH.fullmatch(line):
                end = self._end_of_swap(at)
                yield self._swap(at, end, self._named_around(before))
                at, before = end, ""
            elif fence:
                end = self._end_of_fence(at, fence["fence"])
                yield from self._fenced(at, end, fence, before)
                at, before = end, ""
            elif line.strip():
                before = line
            at += 1

    def _fenced(self, start: int, end: int, fence: re.Match[str], before: str) -> Iterator[Edit]:
        named = self._named_in(fence["info"]) or self._named_alone(before)
        body = range(start + 1, end)
        at = next((at for at in body if _SEARCH.fullmatch(self._lines[at])), None)
        if at is None:
            indent = len(fence["indent"])
            lines = [_without_indent(line, indent) for line in self._lines[start + 1 : end]]
            yield from self._whole(lines, fence["info"], named, before)
            return
        named = named or self._named_around(before)
        last = ""
        while at < end:
            if _SEARCH.fullmatch(self._lines[at]):
                named = self._named_around(last) or named
                after = self._end_of_swap(at)
                yield self._swap(at, after, named)
                at, last = after, ""
            elif self._lines[at].strip():
                last = self._lines[at]
            at += 1

    def _whole(
        self, lines: Sequence[str], info: str, named: str | None, before: str
    ) -> Iterator[Edit]:
        first = lines[0] if lines else ""
        if named is None:
            named = self._named_alone(first)
            if named is not None and first.strip() == named:
                lines = lines[1:]
        path = named or self._named_around(before)
        language = (re.findall(r"\w+", info) or [""])[0].lower()
        if language in _NOT_PYTHON and (path is None or path.endswith(".py")):
            return
        yield Whole(path, "\n".join(lines).rstrip() + "\n", sure=named is not None)

    def _end_of_fence(self, start: int, fence: str) -> int:
        closing = re.compile(rf"\s*{re.escape(fence[0])}{{{len(fence)},}}\s*")
        at = start + 1
        while at < len(self._lines):
            if _SEARCH.fullmatch(self._lines[at]):
                at = self._end_of_swap(at)
            elif closing.fullmatch(self._lines[at]):
                return at
            at += 1
        raise Unusable("The last code block is not closed, so something may be missing from it.")

    def _end_of_swap(self, start: int) -> int:
        for at in range(start + 1, len(self._lines)):
            if _REPLACE.fullmatch(self._lines[at]):
                return at
            if _SEARCH.fullmatch(self._lines[at]):
                break
        raise Unusable("A SEARCH block has no `>>>>>>> REPLACE` line at its end.")

    def _swap(self, start: int, end: int, named: str | None) -> Swap:
        dividers = [at for at in range(start + 1, end) if _DIVIDER.fullmatch(self._lines[at])]
        if len(dividers) > 1:
            dividers = [at for at in dividers if self._lines[at].strip() == "======="]
        if len(dividers) != 1:
            raise Unusable(
                f"A SEARCH block has {len(dividers)} lines `=======` and needs exactly one, between the lines to "
                "find and the lines to put in their place."
            )
        middle = dividers[0]
        search, replacement = self._lines[start + 1 : middle], self._lines[middle + 1 : end]
        return Swap(named, tuple(search), tuple(replacement))

    def _named_in(self, text: str) -> str | None:
        """Give the only path in a fence's info string, as in ``python title="model.py"``."""
        found = _PATH.findall(text[:MAX_SHOWN_LINE])
        return self._tidy(found[0]) if len(found) == 1 else None

    def _named_alone(self, line: str) -> str | None:
        """Give the path that a line consists of, decoration aside."""
        if len(line) > MAX_SHOWN_LINE:
            return None
        bare = _BEFORE_NAME.sub("", line.strip(_DECORATION).removeprefix("// "))
        bare = bare.strip(_DECORATION)
        return self._tidy(bare) if _PATH.fullmatch(bare) else None

    def _named_around(self, line: str) -> str | None:
        """Give the path that a line consists of, or the only file of the template that it mentions."""
        if len(line) > MAX_SHOWN_LINE:
            return None
        mentioned = {self._tidy(path) for path in _PATH.findall(line)} & set(self._known)
        return self._named_alone(line) or (mentioned.pop() if len(mentioned) == 1 else None)

    def _tidy(self, path: str) -> str:
        """Give the known file that is meant, or the path as it is, which nothing will then accept."""
        path = path.replace("\\", "/")
        for root in _ROOTS:
            if path.removeprefix(root) in self._known:
                return path.removeprefix(root)
        same_name = [known for known in self._known if known.endswith(f"/{path}")]
        return same_name[0] if len(same_name) == 1 else path


def _without_indent(line: str, most: int) -> str:
    return line[min(most, len(line) - len(line.lstrip(" \t"))) :]
