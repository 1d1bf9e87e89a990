"""A directory that untrusted code has written: walked, read and changed without following a link.

Names are opened only relative to a directory that is open already. Nothing here blocks on a FIFO,
recurses, or believes a size before it has read as much.
"""

import errno
import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labd.shipping.model import MAX_DEPTH, Parts, path_problem
from labd.shipping.tally import SHIPPED

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A link on the way or at the end, a file on the way, a socket.
_NO_PLAIN_FILE = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENXIO})
_PIECE_BYTES = 2**20
_SETTLED_NS = 50_000_000
"""A file that changed less than this before it was read may change again without its times showing it."""
_MAX_HASHES = 200_000

Signature = tuple[int, int, int, int, int]


def signature(info: os.stat_result) -> Signature:
    """Give what changes whenever a file's content does: device, inode, size and both times."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@contextmanager
def opened(path: Path | str, *, dir_fd: int | None = None) -> Iterator[int]:
    """Hold a directory open that is no link.

    Raises:
        OSError: as the system gives it.

    """
    fd = os.open(path, OPEN_DIR, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def parent_of(root_fd: int, parts: Parts) -> Iterator[int]:
    """Hold the directory open that the last of `parts` is in.

    Raises:
        OSError: as the system gives it; `NotADirectoryError` also for a link on the way.

    """
    fd = os.dup(root_fd)
    try:
        for name in parts[:-1]:
            below = os.open(name, OPEN_DIR, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


@contextmanager
def reading(root_fd: int, parts: Parts) -> Iterator[int]:
    """Hold a plain file open for reading.

    Raises:
        FileNotFoundError: there is no plain file of that path.
        OSError: as the system gives it.

    """
    try:
        with parent_of(root_fd, parts) as parent_fd:
            fd = os.open(parts[-1], _OPEN_FILE, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in _NO_PLAIN_FILE:
            raise FileNotFoundError(2, "no plain file", "/".join(parts)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(2, "no plain file", "/".join(parts))
        yield fd
    finally:
        os.close(fd)


def read_span(fd: int, offset: int, size_bytes: int) -> bytes:
    """Read so many bytes, fewer only at the file's end."""
    pieces: list[bytes] = []
    while size_bytes > 0 and (piece := os.pread(fd, size_bytes, offset)):
        pieces.append(piece)
        offset += len(piece)
        size_bytes -= len(piece)
    return b"".join(pieces)


def write_all(fd: int, raw: bytes) -> None:
    """Write all of it at the file's position."""
    left = memoryview(raw)
    while left:
        left = left[os.write(fd, left) :]


def last_line_end(fd: int, size_bytes: int) -> int:
    """Give the length of the whole lines in the first `size_bytes`."""
    end = size_bytes
    while end > 0:
        start = max(0, end - 65_536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def digest_of_first(fd: int, size_bytes: int) -> str:
    """Give the SHA-256 of the first `size_bytes`."""
    running = hashlib.sha256()
    offset = 0
    while offset < size_bytes:
        piece = os.pread(fd, min(_PIECE_BYTES, size_bytes - offset), offset)
        if not piece:
            break
        running.update(piece)
        SHIPPED.read(len(piece))
        offset += len(piece)
    return running.hexdigest()


class Hashes:
    """The SHA-256 of open files, remembered for as long as a file shows no sign of change. Any thread may ask."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], tuple[Signature, str]] = OrderedDict()
        self._mutex = threading.Lock()

    def of(self, fd: int, *, tries: int = 1) -> str | None:
        """Give the hash of a file that stood still while it was read, or `None`: it changed each time."""
        for _ in range(tries):
            began_ns = time.time_ns()
            before = os.fstat(fd)
            if known := self.known(before):
                return known
            sha256 = digest_of_first(fd, before.st_size)
            if signature(os.fstat(fd)) == signature(before):
                self.learn(before, sha256, read_at_ns=began_ns)
                return sha256
        return None

    def known(self, info: os.stat_result) -> str | None:
        """Give the remembered hash of a file that looks as it did."""
        with self._mutex:
            seen, sha256 = self._known.get((info.st_dev, info.st_ino), (None, ""))
        return sha256 if seen == signature(info) else None

    def learn(self, info: os.stat_result, sha256: str, *, read_at_ns: int) -> None:
        """Remember a hash, unless the file changed so shortly before that another change would not show."""
        if max(info.st_mtime_ns, info.st_ctime_ns) > read_at_ns - _SETTLED_NS:
            return
        with self._mutex:
            self._known[info.st_dev, info.st_ino] = (signature(info), sha256)
            if len(self._known) > _MAX_HASHES:
                self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Found:
    """Something below a directory; `problem` says why it can't be shipped."""

    path: str
    info: os.stat_result
    problem: str = ""


@dataclass(slots=True)
class _Level:
    fd: int
    prefix: str
    names: list[str]


def walk(
    root_fd: int, *, left_out: Callable[[str], str], max_entries: int, after: str = ""
) -> Iterator[Found]:
    """Give each plain file below an open directory, and all else with its problem, in the order of paths.

    `left_out` is asked for each path and says why it is none of ours, or nothing. What vanishes is
    passed over. After `max_entries` the next is given with that as its problem, and the walk ends.
    `after`: only what comes behind that path.
    """
    begin = tuple(after.split("/")) if after else ()
    levels = [_level(os.dup(root_fd), "", max_entries)]
    count = 0
    try:
        while levels:
            level = levels[-1]
            if not level.names:
                os.close(levels.pop().fd)
                continue
            found = _look(level, level.names.pop(), left_out)
            if found is None or _is_before(found.path, begin):
                continue
            count += 1
            if count > max_entries:
                yield Found(found.path, found.info, f"comes after the first {max_entries} entries")
                return
            if found.problem or not stat.S_ISDIR(found.info.st_mode):
                if found.path != after:
                    yield found
            else:
                try:
                    levels.append(_below(level.fd, found.path, max_entries))
                except OSError as error:
                    yield Found(found.path, found.info, f"can't be read: {error.strerror}")
    finally:
        for level in levels:
            os.close(level.fd)


def _is_before(path: str, begin: Parts) -> bool:
    parts = tuple(path.split("/"))
    return parts < begin[: len(parts)]


def _below(parent_fd: int, path: str, max_entries: int) -> _Level:
    fd = os.open(path.rsplit("/", 1)[-1], OPEN_DIR, dir_fd=parent_fd)
    return _level(fd, f"{path}/", max_entries)


def _level(fd: int, prefix: str, max_entries: int) -> _Level:
    names: list[str] = []
    with os.scandir(fd) as scan:
        for entry in scan:
            names.append(entry.name)
            if len(names) > max_entries:
                break
    names.sort(reverse=True)
    return _Level(fd, prefix, names)


def _look(level: _Level, name: str, left_out: Callable[[str], str]) -> Found | None:
    path = level.prefix + name
    try:
        info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    problem = left_out(path) or path_problem(path)
    if not problem and stat.S_ISDIR(info.st_mode):
        problem = f"is deeper than {MAX_DEPTH}" if path.count("/") + 1 >= MAX_DEPTH else ""
    elif not problem and stat.S_ISLNK(info.st_mode):
        problem = "is a symbolic link"
    elif not problem and not stat.S_ISREG(info.st_mode):
        problem = "is not a plain file"
    return Found(path, info, problem)
