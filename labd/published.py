"""The files that people may be shown, of a task's results and of the lab's reports, and the one way to open them.

What a task left behind is not trusted: a name must be on the list, no part of its path may be a link, and
what is opened must be a plain file. Everything else is as if it were not there.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from labd.errors import NotFound
from labd.text import printable

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}"
_KINDS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), media_type)
    for pattern, media_type in (
        (r"paper\.pdf", "application/pdf"),
        (r"paper\.html", "text/html; charset=utf-8"),
        (r"paper\.(tex|md)", "text/plain; charset=utf-8"),
        (r"(result|review|ideas|paper\.numbers)\.json", "application/json"),
        (r"(output|errors|log|events)\.jsonl", "text/plain; charset=utf-8"),
        (r"log\.txt", "text/plain; charset=utf-8"),
        (rf"plots/{_NAME}\.png", "image/png"),
        (rf"trials/{_NAME}/diff\.patch", "text/plain; charset=utf-8"),
    )
)
REPORT_NAME = re.compile(
    r"(?P<of>[A-Za-z0-9._-]{1,200})--(?P<at>\d{8}T\d{6}Z)\.(?P<form>html|md|json)"
)
"""The name of a report that is kept: what it is of, an instant, and its form."""
_REPORT_TYPES = {
    "html": "text/html; charset=utf-8",
    "md": "text/plain; charset=utf-8",
    "json": "application/json",
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_PLOTS = 100
_MAX_REPORTS = 500


@dataclass(frozen=True, slots=True)
class Published:
    """An open file that may be shown. `version` changes when its content does."""

    fd: int
    name: str
    media_type: str
    size_bytes: int
    version: str


def media_type_of(name: str) -> str | None:
    """Give the media type of a published name, or ``None`` for what is not published."""
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), None)


@contextmanager
def opened(results: Path, task_id: str, name: str) -> Iterator[Published]:
    """Open `name` in the results of a task for as long as the block runs.

    Raises:
        NotFound: there is no such file, or it may not be shown; which of them is not told.

    """
    kind = media_type_of(name)
    if kind is None:
        raise _not_there(name)
    with _opened(results, (task_id, *name.split("/")), name, kind) as file:
        yield file


@contextmanager
def opened_report(shelf: Path, name: str) -> Iterator[Published]:
    """Open a kept report for as long as the block runs.

    Raises:
        NotFound: there is none of this name, or it may not be shown.

    """
    known = REPORT_NAME.fullmatch(name)
    if known is None:
        raise _not_there(name)
    with _opened(shelf, (name,), name, _REPORT_TYPES[known["form"]]) as file:
        yield file


@contextmanager
def _opened(root: Path, parts: tuple[str, ...], name: str, kind: str) -> Iterator[Published]:
    fd = _walk(root, parts, _FLAGS)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise _not_there(name)
        version = f"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"
        yield Published(fd, name, kind, info.st_size, version)
    finally:
        os.close(fd)


def _walk(root: Path, parts: tuple[str, ...], flags: int) -> int:
    """Open what is at the end of a path below a directory, following no link on the way."""
    if not all(_plain(part) for part in parts):
        raise _not_there("/".join(parts))
    fd = -1
    try:
        fd = os.open(root, _DIRECTORY)
        for part in parts[:-1]:
            fd, above = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd), fd
            os.close(above)
        fd, above = os.open(parts[-1], flags, dir_fd=fd), fd
        os.close(above)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise _not_there("/".join(parts[1:])) from error
    return fd


def read_text(results: Path, task_id: str, name: str, most_bytes: int) -> str | None:
    """Give a published file as text, its first bytes where it is longer, or ``None`` if there is none."""
    try:
        with opened(results, task_id, name) as file:
            return os.pread(file.fd, most_bytes, 0).decode(errors="replace")
    except NotFound:
        return None


def version_of(results: Path, task_id: str, name: str) -> str | None:
    """Give what changes when a published file's content does, or ``None`` if there is none."""
    try:
        with opened(results, task_id, name) as file:
            return file.version
    except NotFound:
        return None


def plots_of(results: Path, task_id: str) -> list[str]:
    """Give the published names of a task's plots, sorted, at most 100."""
    try:
        fd = _walk(results, (task_id, "plots"), _DIRECTORY | os.O_NOFOLLOW)
    except NotFound:
        return []
    try:
        found = sorted(os.listdir(fd))  # noqa: PTH208 - of an open directory
    finally:
        os.close(fd)
    return [f"plots/{name}" for name in found if media_type_of(f"plots/{name}")][:_MAX_PLOTS]


@dataclass(frozen=True, slots=True)
class Kept:
    """A report that is kept. `of`: ``lab``, or a campaign with its step; `written_s`: when, as seconds since 1970."""

    name: str
    of: str
    form: str
    written_s: float
    size_bytes: int


def reports_of(shelf: Path) -> list[Kept]:
    """Give the reports that are kept, the one that was written last first, at most 500."""
    found = []
    with suppress(FileNotFoundError), os.scandir(shelf) as entries:
        for entry in entries:
            known = REPORT_NAME.fullmatch(entry.name)
            if known is None or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):  # the oldest make room meanwhile
                info = entry.stat(follow_symlinks=False)
                found.append(
                    Kept(entry.name, known["of"], known["form"], info.st_mtime, info.st_size)
                )
    return sorted(found, key=lambda one: one.written_s, reverse=True)[:_MAX_REPORTS]


def _plain(part: str) -> bool:
    return bool(part) and part not in {".", ".."} and not any(c in part for c in "/\\\0")


def _not_there(name: str) -> NotFound:
    return NotFound("there is no such published file", where=printable(name, 200))
