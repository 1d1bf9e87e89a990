"""Answers kept on disk, a JSON file for each query of each source; bounded in age and in bytes."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from labd.files import write_atomic
from labd.literature.paper import Paper, SourceName
from labd.template import Record

_VERSION: Literal[1] = 1
_MAX_FILES = 5000
_MAX_ANSWER_BYTES = 8 * 2**20


class _Answer(Record):
    version: Literal[1]
    source: SourceName
    query: str
    limit: int
    fetched_at: AwareDatetime
    papers: tuple[Paper, ...]


class Cache:
    """Answers of sources. One that can't be read counts as none."""

    def __init__(self, directory: Path, *, max_age: timedelta, max_bytes: int) -> None:
        self._directory = directory
        self._max_age = max_age
        self._max_bytes = max_bytes

    def get(self, source: SourceName, query: str, limit: int, now: datetime) -> list[Paper] | None:
        """Give what the source answered, `None` if that is not known or too old."""
        try:
            with self._path(source, query, limit).open("rb") as file:
                answer = _Answer.model_validate_json(file.read(_MAX_ANSWER_BYTES + 1))
        except (OSError, ValidationError):
            return None
        is_asked = (answer.source, answer.query, answer.limit) == (source, query, limit)
        age = now - answer.fetched_at
        if not is_asked or not timedelta(0) <= age < self._max_age:
            return None
        return list(answer.papers)

    def put(
        self, source: SourceName, query: str, limit: int, papers: Sequence[Paper], now: datetime
    ) -> None:
        """Keep an answer, and drop the oldest ones that there is no room for.

        Raises:
            OSError: as the system gives it; nothing was kept.

        """
        answer = _Answer(
            version=_VERSION,
            source=source,
            query=query,
            limit=limit,
            fetched_at=now,
            papers=tuple(papers),
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(source, query, limit)
        write_atomic(path, answer.model_dump_json() + "\n", durable=False)
        self._prune()

    def _path(self, source: SourceName, query: str, limit: int) -> Path:
        name = hashlib.sha256(f"{source}\n{limit}\n{query}".encode()).hexdigest()[:40]
        return self._directory / f"{source}-{name}.json"

    def _prune(self) -> None:
        with os.scandir(self._directory) as entries:
            files = [
                (entry.path, entry.stat()) for entry in entries if entry.name.endswith(".json")
            ]
        files.sort(key=lambda file: file[1].st_mtime_ns, reverse=True)
        total_bytes = 0
        for number, (path, info) in enumerate(files):
            total_bytes += info.st_size
            if total_bytes > self._max_bytes or number >= _MAX_FILES:
                # Another process may have dropped it already.
                with suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108 - a text
