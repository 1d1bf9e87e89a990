"""Directories that untrusted code filled, as a whole: walked, measured and removed without following a link."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labd.errors import StorageError
from labd.text import printable

MAX_DEPTH = 256
"""Of directories that are open at once; labd lets no run leave as deep a tree."""
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REMOVE_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Item:
    """Something below a directory: by its path from there, and by the open directory that it is in."""

    path: str
    parent_fd: int
    name: str
    info: os.stat_result


@dataclass(frozen=True, slots=True)
class Size:
    """What lies somewhere: blocks in use, hard links counted once, and entries of any type."""

    size_bytes: int = 0
    entries: int = 0
    apparent_bytes: int = 0
    """What reading all of the files gives: holes in them take no room on the disk, and count here."""


def walk(root: Path) -> Iterator[Item]:
    """Give what is below a directory, in the order of names, each directory before what is in it.

    What vanishes meanwhile is left out; a `parent_fd` is open until the next item is asked for.

    Raises:
        NotADirectoryError: the root is none, or a link.
        StorageError: there are directories within directories beyond `MAX_DEPTH`.
        OSError: a directory would not let us look.

    """
    levels = [_Level(os.open(root, _OPEN_DIR), "")]
    try:
        while levels:
            level = levels[-1]
            if not level.names:
                os.close(levels.pop().fd)
                continue
            item = level.next()
            if item is None:
                continue
            yield item
            if stat.S_ISDIR(item.info.st_mode):
                if len(levels) >= MAX_DEPTH:
                    raise StorageError("directories are too deep", where=printable(str(root)))
                levels.append(
                    _Level(os.open(item.name, _OPEN_DIR, dir_fd=level.fd), item.path + "/")
                )
    finally:
        for level in levels:
            os.close(level.fd)


class _Level:
    """An open directory and what is left of its names."""

    def __init__(self, fd: int, prefix: str) -> None:
        self.fd, self.prefix = fd, prefix
        self.names = sorted(os.listdir(fd), reverse=True)

    def next(self) -> Item | None:
        name = self.names.pop()
        try:
            info = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return Item(self.prefix + name, self.fd, name, info)


def size_of(path: Path) -> Size:
    """Measure a file, a link, or a directory with all that is below it; nothing where nothing is.

    Raises:
        StorageError, OSError: as `walk`.

    """
    size, problem = measure(path)
    if problem is not None:
        raise problem
    return size


def measure(path: Path) -> tuple[Size, StorageError | OSError | None]:
    """Give what `size_of` gives; or how much was seen, and what `size_of` would raise, where not all could be seen."""
    size_bytes, entries, apparent_bytes = 0, 0, 0
    linked: set[int] = set()
    try:
        info = path.lstat()
        size_bytes, entries = info.st_blocks * 512, 1
        for item in walk(path) if stat.S_ISDIR(info.st_mode) else ():
            entries += 1
            if stat.S_ISREG(item.info.st_mode):
                apparent_bytes += item.info.st_size
            if item.info.st_nlink > 1 and not stat.S_ISDIR(item.info.st_mode):
                if item.info.st_ino in linked:
                    continue
                linked.add(item.info.st_ino)
            size_bytes += item.info.st_blocks * 512
    except FileNotFoundError:
        pass
    except (StorageError, OSError) as problem:
        return Size(size_bytes, entries, apparent_bytes), problem
    return Size(size_bytes, entries, apparent_bytes), None


@contextmanager
def as_owner_of(fd: int) -> Iterator[None]:
    """Have root do what the block does as the owner of an open directory: what is made is theirs, and no link leads it astray.

    Nothing changes for anybody but root. The whole process is the owner meanwhile.

    Raises:
        OSError: the system does not let root become somebody else.

    """
    owner = os.fstat(fd)
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def remove_tree(path: Path) -> None:
    """Remove a directory that untrusted code filled, however deep or forbidding it is; a link itself, not where it leads.

    Raises:
        StorageError: something is left.

    """
    # shutil.rmtree recurses in Python and fails on a thousand nested directories; rm(1) does not.
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        if not os.path.lexists(path):
            return
        subprocess.run(
            [*command, "--", str(path)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_REMOVE_TIMEOUT_S,
        )
    if os.path.lexists(path):
        raise StorageError("the directory could not be removed", where=printable(str(path)))
