"""What is on its way to its place: `results/.incoming/`, files named by the hash of what they hold.

``<sha256>.part`` grows at its end; when it is whole and its hash is right it becomes ``<sha256>`` and is never
written again. The total is bounded, and what nobody came back for is removed by age.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd.errors import Busy, StorageError
from labd.shipping.model import (
    CHUNK_BYTES,
    ShippingError,
    StoreLimits,
    checked_count,
    checked_raw,
    checked_sha256,
)
from labd.shipping.tree import digest_of_first, write_all

INCOMING = ".incoming"
_PART = ".part"
_COPY = ".copy-"
_MEASURE_EVERY_BYTES = 64 * 2**20
_RUNNING_HASHES = 64
_FEW = 4
_SYNC_THREADS = 8
"""Half the time of one thread for 256 files of 1 kB, on ext4 over a slow disk. Measured 2026-11-22."""
_OPEN_PART = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file: `raw` at `offset` of what has `sha256` and is `size_bytes` long."""

    sha256: str
    offset: int
    raw: bytes
    size_bytes: int


def checked_parts_of(parts: object, limits: StoreLimits) -> list[Part]:
    """Give the pieces that a message carries.

    Raises:
        ShippingError: they are none, or too much.

    """
    if not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
        raise ShippingError("these are no pieces of files")
    checked = [_checked_part(part, limits) for part in parts]
    if len({part.sha256 for part in checked}) < len(checked):
        raise ShippingError("one message carries two pieces of one file")
    if sum(len(part.raw) for part in checked) > CHUNK_BYTES:
        raise ShippingError(f"one message carries more than {CHUNK_BYTES} bytes")
    return checked


def _checked_part(part: Mapping[str, Any], limits: StoreLimits) -> Part:
    raw = checked_raw(part.get("raw"), CHUNK_BYTES)
    size_bytes = checked_count(part.get("size"), limits.max_file_bytes, "the file's size")
    if len(raw) > size_bytes:
        raise ShippingError("a piece is larger than its file")
    offset = checked_count(part.get("offset"), size_bytes - len(raw), "the piece's offset")
    return Part(checked_sha256(part.get("sha256")), offset, raw, size_bytes)


def _is_at(fd: int, path: Path) -> bool:
    """Say whether the open file is still what the path names."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(info, os.fstat(fd))


def _sync(fds: Sequence[int]) -> None:
    """Make files durable, several at a time: the file system then commits many at once."""
    if len(fds) <= _FEW:
        for fd in fds:
            os.fsync(fd)
        return
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        for done in [pool.submit(os.fsync, fd) for fd in fds]:
            done.result()


class Incoming:
    """The files on their way. Any thread, and any process, may use it."""

    def __init__(self, results: Path, limits: StoreLimits) -> None:
        self._root = results / INCOMING
        self._limits = limits
        self._mutex = threading.Lock()
        self._hashers: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._held_bytes = 0
        self._unmeasured_bytes = _MEASURE_EVERY_BYTES

    def missing(self, hashes: Sequence[str]) -> dict[str, int]:
        """Give how far each file is that is not here whole."""
        found: dict[str, int] = {}
        for sha256 in hashes:
            if not self.path(sha256).is_file():
                try:
                    found[sha256] = self._part(sha256).lstat().st_size
                except FileNotFoundError:
                    found[sha256] = 0
        return found

    def path(self, sha256: str) -> Path:
        """Give where a whole file is, if it is here."""
        return self._root / sha256

    def add(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """Take pieces; give for each how far its file is (`size`) and whether it is `whole`, and durable then.

        A piece behind the end of what is here is not taken. A file whose hash is wrong starts again from 0.

        Raises:
            Busy: there is no room among what is on its way, or another sender is at the same file.
            StorageError: there is no room on the disk.

        """
        self._make_room(sum(len(part.raw) for part in parts))
        with ExitStack() as stack:
            taken = [self._append(part, stack) for part in parts]
            whole = [self._is_whole(part, *got) for part, got in zip(parts, taken, strict=True)]
            _sync([fd for (fd, _), good in zip(taken, whole, strict=True) if good and fd >= 0])
            return [
                self._finish(part, fd, size, whole=good)
                for part, (fd, size), good in zip(parts, taken, whole, strict=True)
            ]

    def copy(self, sha256: str) -> Path:
        """Give a durable copy of a whole file, to be moved to its place.

        Raises:
            OSError: as the system gives it.

        """
        fd, name = tempfile.mkstemp(prefix=f"{sha256}{_COPY}", dir=self._root)
        with os.fdopen(fd, "wb") as file, self.path(sha256).open("rb") as source:
            shutil.copyfileobj(source, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
        return Path(name)

    def sweep(self) -> None:
        """Remove what nobody touched for as long as the limits say, and measure the rest."""
        oldest = time.time() - self._limits.incoming_age_s
        held_bytes = 0
        for path in list(self._root.iterdir()) if self._root.is_dir() else []:
            with suppress(FileNotFoundError):
                info = path.lstat()
                if info.st_mtime < oldest:
                    path.unlink()
                else:
                    held_bytes += info.st_size
        with self._mutex:
            self._held_bytes, self._unmeasured_bytes = held_bytes, 0

    def _part(self, sha256: str) -> Path:
        return self._root / f"{sha256}{_PART}"

    def _make_room(self, size_bytes: int) -> None:
        self._root.mkdir(exist_ok=True)
        if shutil.disk_usage(self._root).free - size_bytes < self._limits.min_free_bytes:
            raise StorageError(
                f"less than {self._limits.min_free_bytes} bytes would be left on the disk of results/",
                fix="Make room",
            )
        with self._mutex:
            self._unmeasured_bytes += size_bytes
            most = max(self._held_bytes + self._unmeasured_bytes, 0)
            stale = self._unmeasured_bytes >= _MEASURE_EVERY_BYTES
        if stale or most > self._limits.incoming_bytes:
            self.sweep()
            with self._mutex:
                self._unmeasured_bytes += size_bytes
                most = self._held_bytes + self._unmeasured_bytes
        if most > self._limits.incoming_bytes:
            raise Busy(f"more than {self._limits.incoming_bytes} bytes are on their way already")

    def _append(self, part: Part, stack: ExitStack) -> tuple[int, int]:
        """Write a piece; give the open file and its length. A file that is whole already gives -1."""
        if self.path(part.sha256).is_file():
            return -1, part.size_bytes
        fd = os.open(self._part(part.sha256), _OPEN_PART, 0o600)
        stack.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy("another sender is at the same file") from error
        if not _is_at(fd, self._part(part.sha256)):
            raise Busy("another sender has just finished the same file")
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        fresh = part.raw[size_bytes - part.offset :] if part.offset <= size_bytes else b""
        write_all(fd, fresh)
        self._follow(part.sha256, size_bytes, fresh)
        return fd, size_bytes + len(fresh)

    def _is_whole(self, part: Part, fd: int, size_bytes: int) -> bool:
        return fd < 0 or (
            size_bytes >= part.size_bytes
            and self._digest(part.sha256, fd, size_bytes) == part.sha256
        )

    def _finish(self, part: Part, fd: int, size_bytes: int, *, whole: bool) -> dict[str, Any]:
        if whole and fd >= 0:
            self._part(part.sha256).rename(self.path(part.sha256))
        elif not whole and size_bytes >= part.size_bytes:
            self._part(part.sha256).unlink(missing_ok=True)
            size_bytes = 0
        return {"size": size_bytes, "whole": whole}

    def _follow(self, sha256: str, offset: int, raw: bytes) -> None:
        """Hash what arrives as it arrives, so that a big file need not be read again for it."""
        with self._mutex:
            running, done = self._hashers.pop(sha256, (None, 0))
        if offset == 0:
            running, done = hashlib.sha256(), 0
        if running is not None and done == offset:
            running.update(raw)
            with self._mutex:
                self._hashers[sha256] = (running, done + len(raw))
                if len(self._hashers) > _RUNNING_HASHES:
                    self._hashers.popitem(last=False)

    def _digest(self, sha256: str, fd: int, size_bytes: int) -> str:
        with self._mutex:
            running, done = self._hashers.pop(sha256, (None, 0))
        if running is not None and done == size_bytes:
            return str(running.hexdigest())
        return digest_of_first(fd, size_bytes)
