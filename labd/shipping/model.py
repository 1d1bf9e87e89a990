"""What both ends of shipping agree on: names that are safe, limits, errors, and how errors travel. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from labd.archive import EVENTS, JOURNAL, LOG
from labd.errors import (
    Busy,
    ConfigError,
    JournalError,
    LabdError,
    MoveRefused,
    NotFound,
    StorageError,
)
from labd.text import printable

CHUNK_BYTES = 4 * 2**20
"""The most file content that one message carries."""
APPEND_BYTES = 8 * 2**20
"""The most that one append carries: a journal's longest line is longer than a chunk."""
MAX_DEPTH = 64
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
LOG_TEXT = "log.txt"
STREAMED = (LOG, LOG_TEXT)
"""Logs that grow under a reader's eyes; they may also be begun anew."""
APPENDED = (JOURNAL, *STREAMED)
COMMAND_LOCK = ".lock"
"""A command's attempt holds it while it works, and keeps its number in it for the next; see `labd.command`."""
NOT_SHIPPED = "not-shipped.json"

Parts = tuple[str, ...]

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ShippingError(LabdError):
    """What was asked of the store is not allowed, or the two ends hold what can't both be right."""

    code = "shipping"


class Fenced(MoveRefused):
    """The attempt is not the task's last, or the task has ended: nothing of it is taken any more."""

    code = "fenced"


class LinkLost(LabdError):
    """The head could not be reached for as long as was to be waited."""

    code = "link_lost"
    retryable = True


_ERRORS: dict[str, type[LabdError]] = {
    cls.code: cls
    for cls in (Busy, ConfigError, Fenced, JournalError, NotFound, ShippingError, StorageError)
}


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What the head takes."""

    max_file_bytes: int = 64 * 2**30
    incoming_bytes: int = 128 * 2**30
    """Of all that is on its way and not in its place yet."""
    incoming_age_s: float = 86_400.0
    """What is on its way and was not touched for so long is removed."""
    min_free_bytes: int = 2**30
    """Nothing is taken that would leave less room on the disk."""
    lock_timeout_s: float = 20.0
    page_s: float = 5.0
    """How long one page of a manifest is worked on, but for the one file that is being read."""
    page_files: int = 2000


@dataclass(frozen=True, slots=True)
class MirrorLimits:
    """What a node ships of one task, and how long it tries."""

    exclude: tuple[str, ...] = (".cache/**", "__pycache__/**", "*.tmp", "/.*", "runs/*/work/**")
    """Globs. Without a slash (but for a last ``/**``) a name at any depth; else a path from the task's directory."""
    max_file_bytes: int = 16 * 2**30
    max_total_bytes: int = 64 * 2**30
    max_files: int = 20_000
    link_timeout_s: float = 300.0
    """For how long a lost link is tried again before the attempt ends."""
    lock_timeout_s: float = 60.0
    """For how long to wait for an earlier attempt that is still dying on this node."""
    log_every_s: float = 1.0
    files_every_s: float = 60.0
    """How often files are shipped while no step ends."""
    scratch_bytes: int = 100 * 2**30
    """Of what earlier attempts left on this node; the oldest go first."""
    scratch_age_s: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class HomeFile:
    """A file as the head has it."""

    size_bytes: int
    sha256: str
    mode: int


def checked_parts(path: object) -> Parts:
    """Give the parts of a relative path that may be written in a task's directory.

    Raises:
        ShippingError: it may not: absolute, with ``..``, too long or deep, not UTF-8, or the daemon's own.

    """
    if isinstance(path, str) and not (problem := path_problem(path)):
        parts = tuple(path.split("/"))
        if parts[0] != EVENTS:
            return parts
        problem = "belongs to the daemon"
    else:
        problem = problem if isinstance(path, str) else "is no text"
    raise ShippingError(f"the path {printable(str(path), 200)!r} {problem}")


def path_problem(path: str) -> str:
    """Say why a relative path can't be shipped, or give an empty text."""
    try:
        size_bytes = len(path.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    parts = path.split("/")
    if "\0" in path or any(part in {"", ".", ".."} for part in parts):
        return "is not a plain relative path"
    if len(parts) > MAX_DEPTH:
        return f"is deeper than {MAX_DEPTH}"
    if size_bytes > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return f"is longer than {MAX_PATH_BYTES} bytes, or one of its names than {MAX_NAME_BYTES}"
    return ""


def checked_task(task_id: object) -> str:
    """Give the id of a task as the name of its directory.

    Raises:
        ShippingError: it can't be one.

    """
    if isinstance(task_id, str) and "/" not in task_id and not task_id.startswith("."):
        problem = path_problem(task_id)
        if not problem:
            return task_id
    raise ShippingError(f"{printable(str(task_id), 200)!r} is no task's id")


def checked_sha256(value: object) -> str:
    """Give a SHA-256 in hex digits.

    Raises:
        ShippingError: it is none.

    """
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return value
    raise ShippingError(f"{printable(str(value), 100)!r} is no SHA-256")


def checked_count(value: object, most: int, what: str) -> int:
    """Give a whole number from 0 to `most`.

    Raises:
        ShippingError: it is none.

    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
        return value
    raise ShippingError(f"{what} is {printable(str(value), 100)}, and 0 to {most} is allowed")


def checked_raw(value: object, most_bytes: int) -> bytes:
    """Give the bytes that a message carries.

    Raises:
        ShippingError: they are none, or too many.

    """
    if isinstance(value, bytes) and len(value) <= most_bytes:
        return value
    raise ShippingError(f"a message carries at most {most_bytes} bytes of a file")


def kept_mode(mode: int) -> int:
    """Give the rights that a shipped file has: its owner's and readers', never set-uid or others' writing."""
    return mode & 0o755 | 0o600


def excluded_by(path: str, patterns: tuple[str, ...]) -> str:
    """Give the pattern that names this path, or an empty text; below a named directory the walker does not go."""
    if path == COMMAND_LOCK:
        return ""
    name = path.rsplit("/", 1)[-1]
    for pattern in patterns:
        stem = pattern.removesuffix("/**")
        whole = "/" in stem
        if fnmatchcase(path if whole else name, stem.removeprefix("/")):
            return pattern
    return ""


def error_from_data(data: Mapping[str, Any]) -> LabdError:
    """Make the error that the other end had."""
    cls = _ERRORS.get(str(data.get("code")), ShippingError)
    return cls(
        str(data.get("what", "")), where=str(data.get("where", "")), fix=str(data.get("fix", ""))
    )
