"""Files that untrusted code or another task left, read without following, waiting for or trusting anything."""

import os
import stat
from pathlib import Path


class NotPlain(Exception):
    """Why a file can't be read; the text goes on a sentence that begins with the file."""


class Missing(NotPlain):
    """There is no such file."""


def read_plain(path: Path, limit_bytes: int, *, cut: bool = False, linked: bool = False) -> bytes:
    """Give a plain file's bytes.

    Args:
        path: of the file; a symbolic link there is not followed.
        limit_bytes: a longer one is refused, or `cut`.
        cut: take the beginning of a longer one.
        linked: whether it may have further names.

    Raises:
        NotPlain: it can't be read; `Missing`: it is not there.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing("is missing") from error
    except OSError as error:
        raise NotPlain(f"is not a plain readable file: {error.strerror}") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or (info.st_nlink != 1 and not linked):
            raise NotPlain("is not a plain file with one name")
        if info.st_size > limit_bytes and not cut:
            raise NotPlain(f"has more than {limit_bytes} bytes")
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(limit_bytes)
    except OSError as error:
        raise NotPlain(f"can't be read: {error.strerror}") from error
    finally:
        os.close(fd)
