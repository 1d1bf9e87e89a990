"""A task's working directories as archives: `runs/` becomes `runs.tar.gz`, and back again. Knows files only.

A killed `pack` leaves the directory whole, a killed `unpack` the archive whole or both: where both are there, they
hold the same, and the directory counts. Whoever calls holds the task's locks.
"""

import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from labd.errors import StorageError
from labd.files import fsync_dir, writing_atomic
from labd.text import printable
from labd.trees import Item, remove_tree, walk

WORKING = ("files", "runs")
"""What a command made, and what the runs of an experiment did: the most of what a task leaves."""
_SUFFIX = ".tar.gz"
_HASH = "LABD.sha256"
_LEVEL = 6
_PIECE_BYTES = 2**20
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def archive_of(results: Path, name: str) -> Path:
    """Give where the archive of a working directory is, whether it exists or not."""
    return results / (name + _SUFFIX)


def archived(results: Path) -> list[str]:
    """Give the names of the working directories that are there as archives only."""
    return [
        name
        for name in WORKING
        if archive_of(results, name).is_file() and not os.path.lexists(results / name)
    ]


def leftovers(results: Path) -> list[Path]:
    """Give what a killed `pack`, `unpack` or prune left behind."""
    found = [results / f".{what}-{name}" for what in ("removing", "unpacking") for name in WORKING]
    found += results.glob(".*.tmp")
    return [path for path in found if os.path.lexists(path)]


def pack(results: Path, name: str, *, go_on: Callable[[], None] = lambda: None) -> None:
    """Put a working directory into its archive, read that back and compare, and only then remove the directory.

    `go_on` is called again and again; what it raises ends the packing, and is passed on.

    Raises:
        StorageError: it holds what is no file, directory or link, or the archive does not give back what was put in;
            the directory is as it was.
        OSError: as the system gives it.

    """
    directory, archive = results / name, archive_of(results, name)
    with writing_atomic(archive) as file:
        written = _write(file, directory, name, go_on)
        file.flush()
        if _read_back(Path(f"/proc/self/fd/{file.fileno()}"), go_on) != written:
            raise StorageError(
                "the archive does not hold what was put into it", where=printable(str(directory))
            )
    discard(results, name)


def discard(results: Path, name: str) -> None:
    """Remove a working directory so that none of it is ever seen half gone.

    Raises:
        StorageError: something is left. OSError: as the system gives it.

    """
    doomed = results / f".removing-{name}"
    remove_tree(doomed)
    if os.path.lexists(results / name):
        (results / name).rename(doomed)
        fsync_dir(results)
        remove_tree(doomed)


def unpack(results: Path, name: str, *, spare_bytes: int = 0) -> bool:
    """Give a working directory back from its archive, which then goes; say whether there was an archive.

    `spare_bytes`: what has to stay free on the disk.

    Raises:
        StorageError: the archive is damaged, or there is no room; it is still there, and nothing else is.
        OSError: as the system gives it.

    """
    archive = archive_of(results, name)
    if not archive.is_file():
        return False
    staging = results / f".unpacking-{name}"
    remove_tree(staging)
    if not os.path.lexists(results / name):
        _check_room(archive, _least_bytes(archive), spare_bytes)
        staging.mkdir(mode=0o700)
        try:
            _extract(archive, staging, spare_bytes)
            (staging / name).rename(results / name)
        except StorageError:
            remove_tree(staging)
            raise
        except (tarfile.TarError, EOFError, ValueError, OSError) as error:
            remove_tree(staging)
            raise StorageError(
                f"can't be unpacked: {error}",
                where=printable(str(archive)),
                fix="Look at it with tar",
            ) from error
        fsync_dir(staging)
        fsync_dir(results)
        remove_tree(staging)
    archive.unlink()
    fsync_dir(results)
    return True


def unpack_all(results: Path, *, spare_bytes: int = 0) -> list[str]:
    """Give back every working directory that is archived; give their names.

    Raises:
        StorageError, OSError: as `unpack`.

    """
    return [name for name in WORKING if unpack(results, name, spare_bytes=spare_bytes)]


# --- writing


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class _Watched:
    """A file to read from, which asks at each read whether to go on."""

    def __init__(self, source: _Readable, go_on: Callable[[], None]) -> None:
        self._source, self._go_on = source, go_on

    def read(self, size: int = -1, /) -> bytes:
        self._go_on()
        return self._source.read(size)


def _sha256(source: _Readable) -> str:
    running = hashlib.sha256()
    while piece := source.read(_PIECE_BYTES):
        running.update(piece)
    return running.hexdigest()


def _write(
    file: IO[bytes], directory: Path, name: str, go_on: Callable[[], None]
) -> Mapping[str, str]:
    """Write the archive; give what is in it, as `_read_back` gives it."""
    written: dict[str, str] = {}
    with tarfile.open(
        fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT, compresslevel=_LEVEL
    ) as tar:
        top = _member(name, directory.lstat())
        tar.addfile(top)
        written[name] = _told(top)
        for item in walk(directory):
            go_on()
            member = _member(f"{name}/{item.path}", item.info)
            _add(tar, member, item, go_on)
            written[member.name] = _told(member)
    return written


def _add(
    tar: tarfile.TarFile, member: tarfile.TarInfo, item: Item, go_on: Callable[[], None]
) -> None:
    if member.issym():
        member.linkname = os.readlink(item.name, dir_fd=item.parent_fd)
    if not member.isfile():
        tar.addfile(member)
        return
    fd = os.open(item.name, _OPEN_FILE, dir_fd=item.parent_fd)
    with os.fdopen(fd, "rb") as source:
        member.size = os.fstat(fd).st_size
        watched = _Watched(source, go_on)
        member.pax_headers = {_HASH: _sha256(watched)}
        source.seek(0)
        tar.addfile(member, watched)


def _member(path: str, info: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.mode = stat.S_IMODE(info.st_mode) & 0o777
    member.mtime = info.st_mtime
    kinds = {
        stat.S_IFREG: tarfile.REGTYPE,
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
    }
    kind = kinds.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        raise StorageError("is no file, directory or link", where=printable(path), fix="Remove it")
    member.type = kind
    return member


def _told(member: tarfile.TarInfo) -> str:
    what = member.linkname if member.issym() else member.pax_headers.get(_HASH, "")
    return f"{member.type!r} {member.mode:o} {member.size} {what}"


def _read_back(path: Path, go_on: Callable[[], None]) -> Mapping[str, str]:
    """Give each member's kind, mode, size, and the hash of what is really in it."""
    found: dict[str, str] = {}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            if source := tar.extractfile(member) if member.isfile() else None:
                member.pax_headers = {_HASH: _sha256(_Watched(source, go_on))}
            found[member.name] = _told(member)
    return found


# --- reading


def _least_bytes(archive: Path) -> int:
    """Give what comes out of an archive at least.

    gzip's last four bytes say how much went in, modulo 2^32. Source: RFC 1952, section 2.3.1.
    """
    with archive.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        file.seek(max(0, size_bytes - 4))
        return max(size_bytes, int.from_bytes(file.read(4), "little"))


def _check_room(path: Path, wanted_bytes: int, spare_bytes: int) -> None:
    free_bytes = shutil.disk_usage(path).free
    if free_bytes - spare_bytes < wanted_bytes:
        raise StorageError(
            f"there is no room to unpack it: {free_bytes >> 20} MiB are free, of which {spare_bytes >> 20} MiB "
            f"have to stay so, and the next {wanted_bytes >> 20} MiB don't fit",
            where=printable(str(path)),
            fix="Make room, see `labd prune --dry-run`",
        )


def _extract(archive: Path, staging: Path, spare_bytes: int) -> None:
    """Make what is in the archive below `staging`, durably. No member lies in what is no directory of the archive's own."""
    modes: dict[str, int] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            above, _, name = member.name.rpartition("/")
            if (above and above not in modes) or name in {"", ".", ".."}:
                msg = f"{member.name[:200]!r} is out of place"
                raise ValueError(msg)
            path = staging / member.name
            if member.isdir():
                path.mkdir(mode=0o700)
                modes[member.name] = member.mode & 0o777
            elif member.issym():
                path.symlink_to(member.linkname)
            elif member.isreg():
                # What an archive says of its size as a whole is not to be relied on.
                _check_room(archive, member.size, spare_bytes)
                _extract_file(tar, member, path)
            else:
                msg = f"{member.name[:200]!r} is no file, directory or link"
                raise ValueError(msg)
    for directory, mode in reversed(modes.items()):
        (staging / directory).chmod(mode | 0o700)
        fsync_dir(staging / directory)


def _extract_file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        msg = f"{member.name[:200]!r} is no file"
        raise ValueError(msg)
    running = hashlib.sha256()
    with path.open("xb") as target:
        while piece := source.read(_PIECE_BYTES):
            running.update(piece)
            target.write(piece)
        target.flush()
        os.fchmod(target.fileno(), member.mode & 0o777)
        os.fsync(target.fileno())
    if running.hexdigest() != member.pax_headers.get(_HASH):
        msg = f"{member.name[:200]!r} is not what was put in"
        raise ValueError(msg)
    os.utime(path, (member.mtime, member.mtime))
