"""structlog, set up for the daemon, the engine and the workers: JSON lines, readable on a terminal, or the journal's fields."""

import json
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from labd.journald import Journal, is_stderr

MAX_LOG_BYTES = 16 * 2**20
_MAX_COPY_BYTES = 2**20

Logger = structlog.typing.FilteringBoundLogger


def _shared() -> list[Any]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def stderr_logger(*, level: str = "info", copy: Path | None = None) -> Logger:
    """Give a logger on stderr: coloured on a terminal, fields in systemd's journal, else one JSON object a line.

    `copy`: a file that gets the lines too, as JSON, for readers; the last one to two MiB of them.
    """
    kept = [_Copy(copy)] if copy else []
    if is_stderr(os.environ):
        # The journal has its own time for each entry. A mapping as the last word becomes the call's keywords.
        journal = [structlog.processors.add_log_level, structlog.processors.format_exc_info]
        return _logger(Journal(), [*journal, *kept], level)
    if sys.stderr.isatty():
        processors = [
            *_shared()[:1],
            *kept,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(),
        ]
    else:
        processors = [*_shared(), *kept, structlog.processors.JSONRenderer(sort_keys=False)]
    return _logger(structlog.WriteLogger(sys.stderr), processors, level)


@contextmanager
def file_logger(path: Path) -> Iterator[Logger]:
    """Give a logger that appends JSON lines to `path` while the block runs; it falls silent, having said so, at 16 MiB."""
    target = _CappedFile(path)
    try:
        yield _logger(target, [*_shared(), structlog.processors.JSONRenderer()], "debug")
    finally:
        target.close()


def _logger(target: object, processors: list[Any], level: str) -> Logger:
    bound: Logger = structlog.wrap_logger(
        target,
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    return bound


class _Copy:
    """A processor that keeps each line in a file as well, and the file before it when that is full."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(
        self, _logger: object, _name: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        facts = {key: value for key, value in line.items() if key != "exc_info"}
        text = json.dumps({**facts, "timestamp": moment}, default=str) + "\n"
        # Lines are for people to look at: a full disk is told by what the daemon itself can't write.
        with suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, text.encode(errors="replace"))
                full = os.fstat(fd).st_size > _MAX_COPY_BYTES
            finally:
                os.close(fd)
            if full:
                self._path.replace(self._path.with_suffix(".old"))
        return line


class _CappedFile:
    """The least that structlog asks of a logger: one method a level, each writing one line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._left = MAX_LOG_BYTES - self._file.tell()

    def msg(self, message: str) -> None:
        line = message.encode() + b"\n"
        if self._left <= 0:
            return
        self._left -= len(line)
        if self._left <= 0:
            line = b'{"event": "log.full", "level": "warning"}\n'
        self._file.write(line)

    debug = info = warning = error = critical = msg

    def close(self) -> None:
        self._file.close()
