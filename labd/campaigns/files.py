"""Campaigns on the disk: `config/campaigns/`, read again as it changes, and what is remembered of them."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labd.campaigns.firing import Memory, memory_from_json
from labd.campaigns.model import Campaign, parse_campaign
from labd.campaigns.tasks import Draft
from labd.errors import ConfigError, StorageError
from labd.files import JsonLines, json_objects, locked_within, read_tail, write_json
from labd.task import SUFFIXES
from labd.text import printable
from labd.yamlfile import MAX_BYTES

MEMORY, DECISIONS, OUTCOMES, LOCK = (
    "campaigns.json",
    "decisions.jsonl",
    "outcomes.jsonl",
    "campaigns.lock",
)
"""The daemon's files below `labd.settings.Home.run_dir`: what was fired, why, what became of tasks; and a lock."""
_MAX_FILES = 200
_LOCK_WAIT_S = 10.0


@dataclass(slots=True)
class Library:
    """The campaigns of a directory. `refresh` reads what has changed; `problems` are by file name."""

    directory: Path
    campaigns: dict[str, Campaign] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def refresh(self) -> list[str]:
        """Read what has changed; give the names of the files that did, or went."""
        try:
            found = sorted(self.directory.iterdir())[: 10 * _MAX_FILES]
        except FileNotFoundError:
            found = []
        paths = [p for p in found if p.suffix in SUFFIXES and p.name[0] != "."][:_MAX_FILES]
        versions: dict[str, tuple[int, int, int]] = {}
        for path in paths:
            try:
                info = path.stat()
            except OSError:
                continue
            versions[path.name] = (info.st_ino, info.st_mtime_ns, info.st_size)
        changed = [n for n in {**self._seen, **versions} if self._seen.get(n) != versions.get(n)]
        for name in changed:
            self._forget(name)
        self._seen = versions
        for name in changed:
            if name in versions:
                self._read(self.directory / name)
        return changed

    def _forget(self, name: str) -> None:
        self.problems.pop(name, None)
        self.campaigns.pop(Path(name).stem, None)

    def _read(self, path: Path) -> None:
        try:
            campaign = read_campaign(path)
        except ConfigError as error:
            self.problems[path.name] = str(error)
            return
        if campaign.name in self.campaigns:
            self.problems[path.name] = f"{printable(path.name)}: another file has this name"
        else:
            self.campaigns[campaign.name] = campaign


def read_campaign(path: Path) -> Campaign:
    """Read one campaign file.

    Raises:
        ConfigError: it can't be read or is not valid; every problem with file, line and column.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the campaign can't be read: {error.strerror}", where=printable(str(path))
        ) from error
    return parse_campaign(raw, path.stem, str(path))


class Remembered:
    """The file that says what was fired. Written whole, by the daemon alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Memory]:
        """Give what is remembered of each campaign; nothing where there is no file.

        Raises:
            ConfigError: what is there can't be read.

        """
        try:
            value = json.loads(self._path.read_bytes())
            return {str(name): memory_from_json(one) for name, one in value["campaigns"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"not what labd wrote: {error}", where=str(self._path)) from error

    def set_aside(self) -> Path:
        """Rename what can't be read, for somebody to look at; give where it is."""
        aside = self._path.with_suffix(".unreadable")
        self._path.replace(aside)
        return aside

    def write(self, memories: Mapping[str, Memory]) -> None:
        """Put it down, durably.

        Raises:
            StorageError: the disk would not take it.

        """
        value = {"campaigns": {name: memory.as_json() for name, memory in memories.items()}}
        try:
            write_json(self._path, value)
        except OSError as error:
            raise StorageError(
                f"can't remember the campaigns: {error.strerror}", where=str(self._path)
            ) from error


class BoundedLines:
    """An append-only file of JSON lines that keeps the last ones: at `max_bytes` it becomes ``.old``, and the older goes."""

    def __init__(self, path: Path, max_bytes: int = 4 * 2**20) -> None:
        self._path, self._max_bytes = path, max_bytes

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records, not durably; raises `OSError` where the disk won't take them."""
        if not records:
            return
        with JsonLines(self._path) as lines:
            starts = [lines.append(record, durable=False) for record in records]
        if starts[-1] > self._max_bytes:
            self._path.replace(self._path.with_suffix(".old"))

    @property
    def paths(self) -> tuple[Path, Path]:
        """The two files, the older first."""
        return self._path.with_suffix(".old"), self._path

    def read(self, last_bytes: int | None = None) -> list[dict[str, Any]]:
        """Give what is kept, or the last so many bytes of each file, oldest first; what is no whole line is left out."""
        found: list[dict[str, Any]] = []
        for path in self.paths:
            try:
                raw = path.read_bytes() if last_bytes is None else read_tail(path, last_bytes)
            except OSError:
                continue
            found += json_objects(raw)
        return found


def submit(
    drafts: Sequence[Draft],
    *,
    lock: Path,
    known: Callable[[str], bool],
    put: Callable[[bytes, str], None],
    wait_s: float = _LOCK_WAIT_S,
) -> list[str]:
    """Put task files into the queue, each once for ever; give the ids of those that are new.

    Args:
        drafts: the files.
        lock: held meanwhile, so that of two who submit the same one is late.
        known: whether there is or was a task of this id.
        put: puts bytes under a name; raises `FileExistsError` where it is taken.
        wait_s: how long to wait for the lock.

    Raises:
        TimedOut: another holds the lock. OSError: the disk would not take them.

    """
    new = []
    with locked_within(lock, wait_s):
        for draft in drafts:
            if known(draft.id):
                continue
            try:
                put(draft.text.encode(), draft.name)
            except FileExistsError:
                continue
            new.append(draft.id)
    return new
