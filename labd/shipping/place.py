"""Putting whole files at their place in a task's directory on the head, durably and by rename only."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from labd.archive import JOURNAL, RESULT
from labd.errors import NotFound
from labd.shipping.blobs import Incoming
from labd.shipping.model import (
    Parts,
    ShippingError,
    checked_count,
    checked_parts,
    checked_sha256,
    kept_mode,
)
from labd.shipping.tree import OPEN_DIR, Hashes, parent_of, reading

_LAST: Parts = (RESULT,)
_NEVER_REMOVED = {(RESULT,), (JOURNAL,)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as it is to lie in a task's directory."""

    parts: Parts
    sha256: str
    size_bytes: int
    mode: int


def checked_wanted(files: object, most_bytes: int) -> list[Wanted]:
    """Give the files that a message names, `result.json` last.

    Raises:
        ShippingError: one may not lie there, or lies where another has to be a directory.

    """
    if not isinstance(files, Mapping):
        raise ShippingError("these are no files")
    wanted = [_checked_file(path, facts, most_bytes) for path, facts in files.items()]
    taken = {one.parts for one in wanted}
    for one in wanted:
        if any(one.parts[:end] in taken for end in range(1, len(one.parts))):
            raise ShippingError(f"a file and a directory can't both be at {one.parts[0]!r}")
    return sorted(wanted, key=lambda one: one.parts == _LAST)


def _checked_file(path: object, facts: object, most_bytes: int) -> Wanted:
    parts = checked_parts(path)
    if parts[0] == JOURNAL:
        raise ShippingError("the journal only grows: its lines are appended")
    if not isinstance(facts, Mapping):
        raise ShippingError("a file has no facts")
    return Wanted(
        parts,
        checked_sha256(facts.get("sha256")),
        checked_count(facts.get("size"), most_bytes, "the file's size"),
        kept_mode(checked_count(facts.get("mode"), 0o7777, "the file's mode")),
    )


def checked_removals(paths: object, wanted: Iterable[Wanted]) -> list[Parts]:
    """Give the paths that a message wants removed.

    Raises:
        ShippingError: one may not be.

    """
    if not isinstance(paths, list | tuple):
        raise ShippingError("these are no paths")
    removals = [checked_parts(path) for path in paths]
    if _NEVER_REMOVED & {parts[:1] for parts in removals} or {w.parts for w in wanted} & set(
        removals
    ):
        raise ShippingError("what is asked to be removed has to stay")
    return removals


class Placement:
    """One change of a task's directory. `check` is asked before each step and raises if the attempt is fenced off."""

    def __init__(
        self, task_fd: int, incoming: Incoming, hashes: Hashes, check: Callable[[], object]
    ) -> None:
        self._task_fd = task_fd
        self._incoming = incoming
        self._hashes = hashes
        self._check = check
        self._touched: set[Parts] = set()

    def missing(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Give those that do not lie there yet; the rights of those that do are put right."""
        return [one for one in wanted if not self._lies_there(one)]

    def apply(self, missing: list[Wanted], removals: Iterable[Parts]) -> None:
        """Put all files in place, take away the removals, and then put `result.json`; durable on return.

        What is called again after a crash at any point comes to the same end.

        Raises:
            ShippingError: a directory that is not empty is where a file has to be.
            OSError: as the system gives it.

        """
        doomed = list(removals)
        uses = Counter(one.sha256 for one in missing)
        for one in missing:
            if one.parts == _LAST:
                self._remove(doomed)
                doomed = []
                self._sync()
            self._check()
            self._put(one, last_use=uses[one.sha256] == 1, doomed=doomed)
            uses[one.sha256] -= 1
        self._remove(doomed)
        self._sync()

    def _lies_there(self, one: Wanted) -> bool:
        try:
            with reading(self._task_fd, one.parts) as fd:
                info = os.fstat(fd)
                if info.st_size != one.size_bytes or self._hashes.of(fd) != one.sha256:
                    return False
                if kept_mode(info.st_mode) != one.mode:
                    os.fchmod(fd, one.mode)
                return True
        except FileNotFoundError:
            return False

    def _put(self, one: Wanted, *, last_use: bool, doomed: list[Parts]) -> None:
        blob = self._incoming.path(one.sha256)
        source = blob if last_use else self._incoming.copy(one.sha256)
        try:
            source.chmod(one.mode)
            self._make_way(one.parts, doomed)
            with parent_of(self._task_fd, one.parts) as parent_fd:
                os.rename(source, one.parts[-1], dst_dir_fd=parent_fd)
        except FileNotFoundError as error:
            raise NotFound("a file on its way is gone", where="/".join(one.parts)) from error
        self._touched.add(one.parts[:-1])

    def _make_way(self, parts: Parts, doomed: list[Parts]) -> None:
        """Make the directories down to a file, in the place of anything else; and no directory where it will be."""
        for end in range(1, len(parts)):
            with parent_of(self._task_fd, parts[:end]) as parent_fd:
                if _is_directory(parent_fd, parts[end - 1]):
                    continue
                with suppress(FileNotFoundError):
                    os.unlink(parts[end - 1], dir_fd=parent_fd)
                os.mkdir(parts[end - 1], 0o755, dir_fd=parent_fd)
            self._touched.add(parts[: end - 1])
        with parent_of(self._task_fd, parts) as parent_fd:
            in_the_way = _is_directory(parent_fd, parts[-1])
        if in_the_way:
            self._remove([other for other in doomed if other[: len(parts)] == parts])
            self._remove_empty(parts)

    def _remove_empty(self, parts: Parts) -> None:
        with parent_of(self._task_fd, parts) as parent_fd:
            below = []
            fd = os.open(parts[-1], OPEN_DIR, dir_fd=parent_fd)
            try:
                with os.scandir(fd) as scan:
                    below = [entry.name for entry in scan]
                if all(_is_directory(fd, name) for name in below):
                    for name in below:
                        self._remove_empty((*parts, name))
            finally:
                os.close(fd)
            try:
                os.rmdir(parts[-1], dir_fd=parent_fd)
            except OSError as error:
                raise ShippingError(
                    "a directory that is not empty is where a file has to be",
                    where="/".join(parts),
                ) from error

    def _remove(self, doomed: Iterable[Parts]) -> None:
        for parts in doomed:
            self._check()
            with (
                suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
                parent_of(self._task_fd, parts) as parent_fd,
            ):
                os.unlink(parts[-1], dir_fd=parent_fd)
                self._touched.add(parts[:-1])

    def _sync(self) -> None:
        for parts in sorted(self._touched, key=len, reverse=True):
            with (
                suppress(FileNotFoundError, NotADirectoryError),
                parent_of(self._task_fd, (*parts, ".")) as fd,
            ):
                os.fsync(fd)
        self._touched.clear()


def _is_directory(parent_fd: int, name: str) -> bool:
    try:
        info = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(info.st_mode)
