"""A template's files: which they are, their hash, and the copy that a task's runs really use."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from labd.errors import ConfigError
from labd.files import fsync_dir
from labd.template.model import Style, Template
from labd.text import printable

MAX_TEMPLATE_BYTES = 50 * 2**20
MAX_TEMPLATE_FILES = 2000

# Made by tools and not by the template's author; they are neither hashed nor given to a run.
_IGNORED = frozenset({"__pycache__", ".git"})
# What other systems and people leave beside an experiment: environments, papers, results of other runs.
_IGNORED_ELSEWHERE = _IGNORED | {".venv", "venv", ".ipynb_checkpoints", "latex", ".github"}
BASELINE_INFO = PurePosixPath("run_0/final_info.json")
"""Of an AI-Scientist directory: what its author's own run of the baseline gave."""


def hash_files(directory: Path, style: Style = "labd") -> dict[str, str]:
    """Give the SHA-256 of each file, sorted by path; refuse what is not a plain file or is too much.

    Raises:
        ConfigError: it is not all plain files, or too much of them.

    """
    found: dict[str, str] = {}
    total_bytes = 0
    kept = _kept(style)
    for folder, folders, names in os.walk(directory, onerror=_raise):
        here = PurePosixPath(Path(folder).relative_to(directory))
        folders[:] = [name for name in folders if kept(here / name)]
        for name in (*folders, *names):
            path = Path(folder) / name
            if not kept(here / name) or (size_bytes := _plain_size(path)) is None:
                continue
            total_bytes += size_bytes
            if total_bytes > MAX_TEMPLATE_BYTES or len(found) >= MAX_TEMPLATE_FILES:
                raise ConfigError(
                    f"the template has more than {MAX_TEMPLATE_BYTES // 2**20} MiB or {MAX_TEMPLATE_FILES} files",
                    where=printable(str(directory)),
                    fix="Keep data out of it: let the command read an installed package's, or name it under data",
                )
            raw = read_regular(path, MAX_TEMPLATE_BYTES)
            found[str(path.relative_to(directory))] = hashlib.sha256(raw).hexdigest()
    return dict(sorted(found.items()))


def digest(files: Mapping[str, str]) -> str:
    """Give the SHA-256 over the names and hashes of files."""
    lines = "".join(f"{sha256}  {name}\0" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_regular(path: Path, limit_bytes: int) -> bytes:
    """Read a plain file, at most `limit_bytes` of it, without following a link.

    Raises:
        ConfigError: it can't be read.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return file.read(limit_bytes)
    except OSError as error:
        raise ConfigError(
            f"the file can't be read: {error.strerror}", where=printable(str(path))
        ) from error


def snapshot(template: Template, target: Path) -> Template:
    """Copy the template's files to `target` and give the template that lies there.

    A run then sees what was hashed, whatever happens to the original while a task runs. What is at
    `target` already is used if it is the same, and replaced if it is not.

    Raises:
        ConfigError: the template's files are no longer those that were hashed.

    """
    if target.is_dir() and digest(hash_files(target, template.style)) == template.sha256:
        return replace(template, directory=target)
    part = target.with_name(f".{target.name}.part")
    for leftover in (part, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    copy_files(template, part)
    # A run may have another user than labd has: it reads these whatever labd's umask is.
    for folder, _, _ in os.walk(part):
        Path(folder).chmod(0o755)
    if digest(hash_files(part, template.style)) != template.sha256:
        raise ConfigError(
            "the template changed after it was read",
            where=printable(str(template.directory)),
            fix="Let it rest and run the task again",
        )
    part.rename(target)
    fsync_dir(target.parent)
    return replace(template, directory=target)


def copy_files(template: Template, target: Path, source: Path | None = None) -> None:
    """Copy the template's files into a directory, which is made; the editable ones from `source`, if it is given."""
    for name in template.files_sha256:
        edited = source is not None and name in template.editable
        original = (source if source is not None and edited else template.directory) / name
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(read_regular(original, MAX_TEMPLATE_BYTES))
        copy.chmod(0o755 if os.access(original, os.X_OK) else 0o644)


def _kept(style: Style) -> Callable[[PurePosixPath], bool]:
    """Give what says whether a path inside a template belongs to it."""
    if style == "labd":
        return lambda path: path.name not in _IGNORED

    def kept(path: PurePosixPath) -> bool:
        if path.parts[0].startswith("run_") and "." not in path.parts[0]:
            return path in (BASELINE_INFO, BASELINE_INFO.parent)
        return path.name not in _IGNORED_ELSEWHERE

    return kept


def _plain_size(path: Path) -> int | None:
    """Give a plain file's size, `None` for a directory; refuse the rest."""
    info = path.lstat()
    if stat.S_ISDIR(info.st_mode):
        return None
    if stat.S_ISREG(info.st_mode) and _is_utf8(path.name):
        return info.st_size
    kind = (
        "a symbolic link" if stat.S_ISLNK(info.st_mode) else "not a plain file with a UTF-8 name"
    )
    raise ConfigError(
        f"this is {kind}, and a template may hold plain files and directories only",
        where=printable(str(path)),
        fix="Put a copy of the file in its place",
    )


def _is_utf8(name: str) -> bool:
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in name)


def _raise(error: OSError) -> None:
    where = printable(str(error.filename))
    raise ConfigError(f"the directory can't be read: {error.strerror}", where=where) from error
