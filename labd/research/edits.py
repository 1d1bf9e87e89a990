"""A model's reply becomes an edit of some files, or a reason that the model can act on. Pure but for `check`'s parser.

Replies are untrusted and come in many forms; whatever is not clear is refused and never guessed. Only files that
may be changed can be named, so that no reply reaches any other path.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice

from labd.research.syntax import problem_of
from labd.template import Template
from labd.text import printable

MAX_FILE_BYTES = 256 * 1024
MAX_FILE_LINES = 10_000
MAX_REPLY_CHARS = 2**20
MAX_EDITS = 100
_MAX_NAME_LINE = 300
_MAX_SHOWN_LINES = 12
_LEAST_PART = 8
"""Characters of a part of a line that may stand for the line."""
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
    {
        "bash",
        "sh",
        "shell",
        "console",
        "text",
        "txt",
        "plaintext",
        "output",
        "log",
        "diff",
        "patch",
    }
    | {
        "markdown",
        "md",
        "json",
        "yaml",
        "yml",
        "toml",
        "ini",
        "csv",
        "xml",
        "html",
        "tex",
        "latex",
    }
)
_LEFT_OUT = re.compile(
    r"""\s*(?:\#|//|/\*|<!--)\s*(?:
        (?:\.{3}|…)\s*$                                                   # nothing but dots
        | (?:\.{3}|…|\[).*\b(?:rest|remaining|existing|unchanged|same|previous|original|omitted|code)\b.*
        | .*\b(?:rest|remaining|existing|unchanged|same|previous|original|omitted)\b.*(?:\.{3}|…)\W*$
        | (?:the\s+)?(?:rest|remainder)\s+of\s+(?:the\s+|your\s+)?(?:code|file|script|module|class|function)s?\b.*
    )""",
    re.IGNORECASE | re.VERBOSE,
)


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


def revise(template: Template, files: Mapping[str, str], reply: str) -> dict[str, str]:
    """Give the files after what a reply asks for; `files` are those that may be changed.

    Raises:
        Unusable: the reply holds no edit, or one that can't be made, or may not be.

    """
    revised = apply(template, files, parse_edits(reply, template.files_sha256))
    problem = check(template, files, revised)
    if problem:
        raise Unusable(problem)
    return revised


def plan_of(reply: str) -> str:
    """Give what a reply says before its first block, printable and in at most some lines."""
    lines: list[str] = []
    for line in reply.rpartition("</think>")[2].splitlines():
        if _FENCE.fullmatch(line) or _SEARCH.fullmatch(line):
            break
        lines.append(printable(line.strip(), _MAX_NAME_LINE))
    while lines and (not lines[-1] or _PATH.fullmatch(lines[-1].strip(_DECORATION))):
        lines.pop()
    return "\n".join(lines[:_MAX_PLAN_LINES])[:_MAX_PLAN].strip()


# -- reading a reply


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
        found = _PATH.findall(text[:_MAX_NAME_LINE])
        return self._tidy(found[0]) if len(found) == 1 else None

    def _named_alone(self, line: str) -> str | None:
        """Give the path that a line consists of, decoration aside."""
        if len(line) > _MAX_NAME_LINE:
            return None
        bare = _BEFORE_NAME.sub("", line.strip(_DECORATION).removeprefix("// "))
        bare = bare.strip(_DECORATION)
        return self._tidy(bare) if _PATH.fullmatch(bare) else None

    def _named_around(self, line: str) -> str | None:
        """Give the path that a line consists of, or the only file of the template that it mentions."""
        if len(line) > _MAX_NAME_LINE:
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
        first = next(line.strip() for line in search if line.strip())[:_MAX_NAME_LINE]
        stripped = [line.strip()[:_MAX_NAME_LINE] for line in lines[:MAX_FILE_LINES]]
        near = get_close_matches(first, stripped, n=1, cutoff=0.6)
        if not near:
            return "No line of it is there."
        starts = [stripped.index(near[0])]
    size = min(len(search) + 2, _MAX_SHOWN_LINES)

    def hits(at: int) -> int:
        return sum(line.strip() in wanted for line in lines[at : at + size])

    at = max(max(starts, key=hits) - 1, 0)
    shown = "\n".join(line[:_MAX_NAME_LINE] for line in lines[at : at + size])
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
        if len(line) <= _MAX_NAME_LINE and _LEFT_OUT.fullmatch(line) and line not in had:
            return (
                f"{path} leaves code out where it says {printable(line.strip(), 80)!r}: give the whole file, or a "
                "SEARCH/REPLACE block for what changes."
            )
    return ""
