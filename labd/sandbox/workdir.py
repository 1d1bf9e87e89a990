"""The one directory that a run may write, before, during and after it. Knows files only.

While a run lives, what is in the directory is hostile and changes under our hands: names are only
opened relative to a directory that is already open, and links are never followed. A directory too deep
to walk, or not readable to us, counts as too large: what can't be measured can't be limited.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

MAX_DEPTH = 64
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Usage:
    """What a directory holds."""

    size_bytes: int
    """Blocks in use, hard links counted once."""
    files: int
    """Entries of any type."""
    whole: bool = True
    """False: a part could not be measured, or there were more entries than was asked for."""


@dataclass(slots=True)
class _Found:
    parent_fd: int
    name: str
    status: os.stat_result
    depth: int
    """Of the parent: 0 in the directory itself."""
    entered: bool = True
    """Set to False by the walker's user, so that a directory is not entered."""


class _Unreadable(PermissionError):
    """A directory that is still there would not let us look."""


def usage(root_fd: int, max_files: int) -> Usage:
    """Measure the open directory, stopping after `max_files` entries."""
    size_bytes, count = 0, 0
    linked: set[int] = set()
    try:
        for found in _walk(root_fd):
            count += 1
            if count > max_files or found.depth >= MAX_DEPTH:
                return Usage(size_bytes, count, whole=False)
            if found.status.st_nlink > 1 and not stat.S_ISDIR(found.status.st_mode):
                if found.status.st_ino in linked:
                    continue
                linked.add(found.status.st_ino)
            size_bytes += found.status.st_blocks * 512
    except _Unreadable:
        return Usage(size_bytes, count, whole=False)
    return Usage(size_bytes, count)


def hand_over(root_fd: int, uid: int) -> None:
    """Give the open directory and what is in it to user and group `uid`. Only root can.

    A file with several hard links keeps its owner: its other names may lie outside.

    Raises:
        OSError: as the system gives it.

    """
    for found in _walk(root_fd):
        if stat.S_ISDIR(found.status.st_mode) or found.status.st_nlink == 1:
            os.chown(found.name, uid, uid, dir_fd=found.parent_fd, follow_symlinks=False)
    os.fchown(root_fd, uid, uid)


def take_back(root_fd: int, run_uid: int, owner: tuple[int, int] | None) -> tuple[Usage, int]:
    """Make the directory that a dead run leaves safe to read, and give its usage and how much was removed.

    Afterwards it holds only plain files, directories that may be read and written, and relative links
    that can't lead out. Other links, FIFOs, sockets and directories deeper than `MAX_DEPTH` are gone.
    Modes change only of what belongs to `run_uid`, as whom the run ran; `owner`, user and group, gets
    all that; ``None`` leaves owners as they are.

    A link stays if its target climbs only at its start and not above the directory: then it goes down from a real
    directory inside, through names that are real or such links again.

    Raises:
        OSError: as the system gives it.

    """
    before = os.fstat(root_fd)
    size_bytes, count, removed = 0, 0, 0
    linked: set[int] = set()
    os.fchmod(root_fd, stat.S_IMODE(before.st_mode) & 0o777 | 0o700)
    for found in _walk(root_fd):
        count += 1
        if not _may_stay(found):
            _remove(root_fd, found)
            removed += 1
            continue
        if found.status.st_uid == run_uid:
            _settle(found, owner)
        if found.status.st_ino not in linked:
            linked.add(found.status.st_ino)
            size_bytes += found.status.st_blocks * 512
    if owner is not None:
        os.fchown(root_fd, *owner)
    return Usage(size_bytes, count), removed


def _may_stay(found: _Found) -> bool:
    mode = found.status.st_mode
    if stat.S_ISDIR(mode):
        return found.depth + 1 < MAX_DEPTH
    if stat.S_ISLNK(mode):
        parts = os.readlink(found.name, dir_fd=found.parent_fd).split("/")
        climbs = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
        return bool(parts[0]) and climbs <= found.depth and ".." not in parts[climbs:]
    return stat.S_ISREG(mode)


def _settle(found: _Found, owner: tuple[int, int] | None) -> None:
    mode = stat.S_IMODE(found.status.st_mode)
    if not stat.S_ISLNK(found.status.st_mode):
        wanted = mode & 0o777 | (0o700 if stat.S_ISDIR(found.status.st_mode) else 0o600)
        if wanted != mode:
            os.chmod(found.name, wanted, dir_fd=found.parent_fd)
    if owner is not None:
        os.chown(found.name, *owner, dir_fd=found.parent_fd, follow_symlinks=False)


def _remove(root_fd: int, found: _Found) -> None:
    if not stat.S_ISDIR(found.status.st_mode):
        os.unlink(found.name, dir_fd=found.parent_fd)
        return
    found.entered = False
    # A tree of any depth goes without recursion: directories in it are first moved to the top.
    doomed, serial = [_to_top(root_fd, found.parent_fd, found.name, 0)], 0
    while doomed:
        top = doomed.pop()
        fd = os.open(top, _OPEN_DIR, dir_fd=root_fd)
        try:
            for entry in _entries(fd):
                if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                    serial += 1
                    doomed.append(_to_top(root_fd, fd, entry.name, serial))
                else:
                    os.unlink(entry.name, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(top, dir_fd=root_fd)


def _to_top(root_fd: int, parent_fd: int, name: str, serial: int) -> str:
    target = f".labd-remove-{os.getpid()}-{serial}"
    os.chmod(name, 0o700, dir_fd=parent_fd)
    os.rename(name, target, src_dir_fd=parent_fd, dst_dir_fd=root_fd)
    return target


def _walk(root_fd: int) -> Iterator[_Found]:
    """Give what is below an open directory, each before what is in it; what vanishes is left out.

    A directory is opened after its turn, so that its mode may be changed first.

    Raises:
        _Unreadable: a directory would not open.

    """
    with ExitStack() as opened:
        levels = [_Level(os.open(".", _OPEN_DIR, dir_fd=root_fd))]
        opened.callback(_close_all, levels)
        while levels:
            entry = next(levels[-1].scan, None)
            if entry is None:
                levels.pop().close()
                continue
            fd = levels[-1].fd
            status = _status(fd, entry.name)
            if status is None:
                continue
            found = _Found(fd, entry.name, status, len(levels) - 1)
            yield found
            if stat.S_ISDIR(status.st_mode) and found.entered:
                child = _open_below(fd, entry.name)
                if child is not None:
                    levels.append(_Level(child))


class _Level:
    """An open directory and how far its entries were read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.scan = os.scandir(fd)

    def close(self) -> None:
        self.scan.close()
        os.close(self.fd)


def _close_all(levels: list[_Level]) -> None:
    for level in levels:
        level.close()


def _status(parent_fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise _Unreadable(error.errno, "can't be looked into", name) from error


def _open_below(parent_fd: int, name: str) -> int | None:
    try:
        return os.open(name, _OPEN_DIR, dir_fd=parent_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise _Unreadable(error.errno, "can't be looked into", name) from error


def _entries(fd: int) -> list[os.DirEntry[str]]:
    with os.scandir(fd) as scan:
        return list(scan)
