"""Durable files: the only place that fsyncs, locks or renames.

A write is a dot-temp in the same directory, fsync, rename, fsync of the directory. An append is one
``write`` and an fsync. Everything raises `OSError` as the system gives it; callers say what it means.
"""

import ctypes
import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

from labd.errors import StillHeld

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_LOCK_POLL_S = 0.05
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says where a disk, or a user's part of one, is full."""
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_libc = ctypes.CDLL(None, use_errno=True)


def fsync_dir(directory: str | Path) -> None:
    """Make the directory's entries durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(
    path: Path, data: bytes | str, *, mode: int = 0o644, replace: bool = True, durable: bool = True
) -> None:
    """Put `data` at `path` so that a reader, also after a crash, sees all of it or what was there before.

    With `durable` off that holds for a crash of ours, and not for one of the machine.

    Raises:
        FileExistsError: the path is taken, and `replace` is off.

    """
    raw = data.encode() if isinstance(data, str) else data
    with writing_atomic(path, mode=mode, replace=replace, durable=durable) as file:
        file.write(raw)


@contextmanager
def writing_atomic(
    path: Path, *, mode: int = 0o644, replace: bool = True, durable: bool = True
) -> Iterator[IO[bytes]]:
    """Give a file to write, which is at `path` when the block has ended, as by `write_atomic`.

    What the block raises leaves `path` as it was.

    Raises:
        FileExistsError: the path is taken, and `replace` is off.

    """
    fd, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        if replace:
            Path(name).replace(path)
        else:
            rename_noreplace(Path(name), path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        fsync_dir(path.parent)


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write `value` as JSON, a key of its top level a line; NaN and infinities are refused with `ValueError`."""
    write_atomic(path, _json_lines(value), durable=durable)


def _json_lines(value: object) -> str:
    # Not by ``indent``, for which the encoder in C can't be used: ten times slower on the way of each task.
    if not isinstance(value, Mapping):
        return _JSON(value) + "\n"
    parts = ",\n".join(f"  {_JSON(str(key))}: {_JSON(part)}" for key, part in value.items())
    return f"{{\n{parts}\n}}\n"


class Unsynced:
    """Changes that are not durable yet; one fsync of a directory or a file then serves many of them."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._directories: set[str] = set()

    def note(self, *directories: str | Path, file: str | Path | None = None) -> None:
        """Remember what has changed."""
        self._directories.update(str(directory) for directory in directories)
        if file is not None:
            self._files.add(os.fspath(file))

    def __bool__(self) -> bool:
        return bool(self._files or self._directories)

    def sync(self, below: str = "") -> None:
        """Make it durable, or only what is at or below a path; what is gone meanwhile needs nothing.

        Raises:
            OSError: as the system gives it; what was not synced is remembered.

        """
        for path in [path for path in self._files if path.startswith(below)]:
            with suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            self._files.discard(path)
        for directory in [path for path in self._directories if path.startswith(below)]:
            with suppress(FileNotFoundError):
                fsync_dir(directory)
            self._directories.discard(directory)


def rename_noreplace(source: str | Path, target: str | Path) -> None:
    """Rename, but never over something; see renameat2(2). Durable when both directories are synced.

    Raises:
        FileNotFoundError: the source is gone; another mover was faster.
        FileExistsError: the target is taken.

    """
    done = _libc.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
    )
    if done == 0:
        return
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(code, os.strerror(code), str(source), None, str(target))
    # File systems without the flag (NFS among them): the check and the rename are two steps there.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)  # noqa: PTH104 - texts or paths


def exchange(one: str | Path, other: str | Path) -> None:
    """Give two files each other's name, at once; see renameat2(2). Durable when their directories are synced.

    Raises:
        FileNotFoundError: one of them is gone; nothing was renamed.
        OSError: as the system gives it; not every file system can do it.

    """
    done = _libc.renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


class JsonLines:
    """An append-only file of JSON objects, one a line, each durable when `append` returns, if it is asked to be.

    A torn last line, left by a crash in mid-write, is cut off before the first append and is never
    given back by `read`.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = os.fspath(path)
        self._fd: int | None = None

    def append(self, record: Mapping[str, Any], *, durable: bool = True) -> int:
        """Write one line and fsync it; give the offset at which it begins."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        fd = self._open(durable=durable)
        start = os.fstat(fd).st_size
        try:
            written = os.write(fd, line)
            while written < len(line):
                written += os.write(fd, line[written:])
            if durable:
                os.fsync(fd)
        except OSError:
            # On a full disk half a line may be there: take it back, so that the file stays readable.
            os.ftruncate(fd, start)
            raise
        return start

    def sync(self) -> None:
        """Make durable what was appended since the file was opened."""
        if self._fd is not None:
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, *, durable: bool) -> int:
        if self._fd is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            if os.fstat(fd).st_size:
                _cut_torn_line(fd)
            elif durable:
                fsync_dir(os.path.dirname(self._path))  # noqa: PTH120 - a text
            self._fd = fd
        return self._fd


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Give each whole line's object in order; nothing if there is no file; a torn last line is left out.

    Raises:
        ValueError: a line before the last is not a JSON object; the text names file and line.

    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                msg = f"{path}:{number}: not JSON: {error}"
                raise ValueError(msg) from error
            if not isinstance(record, dict):
                msg = f"{path}:{number}: not a JSON object"
                raise ValueError(msg)  # noqa: TRY004 - one error for "not what we wrote"
            yield record


def json_objects(raw: bytes) -> Iterator[dict[str, Any]]:
    """Give the JSON objects among lines that may be cut, or be anything; what is none is left out."""
    for line in raw.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Give the object that a JSON file of labd's own holds, or ``None`` if there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_tail(path: Path, most_bytes: int) -> bytes:
    """Give the end of a file; raises `OSError` if it can't be read."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most_bytes))
        return file.read(most_bytes)


def _cut_torn_line(fd: int) -> None:
    size = os.fstat(fd).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        chunk = os.pread(fd, end - start, start)
        newline = chunk.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
        os.fsync(fd)


@contextmanager
def locked(path: Path, *, mode: int = 0o644) -> Iterator[int]:
    """Hold an exclusive flock on `path` (made with `mode` if missing) for as long as the block runs, or raise at once.

    Raises:
        BlockingIOError: another process holds it.

    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def locked_within(path: Path, timeout_s: float) -> Iterator[int]:
    """Hold the lock as `locked` does, and wait for it until then.

    Raises:
        StillHeld: another process held it all the time.

    """
    deadline_s = time.monotonic() + timeout_s
    with ExitStack() as held:
        fd = -1
        while fd < 0:
            try:
                fd = held.enter_context(locked(path))
            except BlockingIOError as error:
                if time.monotonic() > deadline_s:
                    raise StillHeld(
                        f"another process still holds it after {timeout_s:g} s", where=str(path)
                    ) from error
                time.sleep(_LOCK_POLL_S)
        yield fd


def open_for_writing_elsewhere(fd: int) -> bool | None:
    """Say whether any process has the open file `fd` (opened read-only) open for writing.

    Asks the kernel for a read lease, which it refuses while there is a writer. ``None``: the kernel
    would not say (a file of another owner, or a file system without leases).
    Source: fcntl(2), "Leases". The caller must ignore SIGIO: a writer that comes in between asks
    the lease's holder with it, and its default action ends the process.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
