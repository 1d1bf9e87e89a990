"""structlog, set up for the daemon, the engine and the workers: JSON lines, or readable on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

MAX_LOG_BYTES = 16 * 2**20

Logger = structlog.typing.FilteringBoundLogger


def _shared() -> list[Any]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def stderr_logger(*, level: str = "info") -> Logger:
    """Give a logger on stderr: coloured lines where that is a terminal, else one JSON object a line."""
    if sys.stderr.isatty():
        processors = [
            *_shared()[:1],
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(),
        ]
    else:
        processors = [*_shared(), structlog.processors.JSONRenderer(sort_keys=False)]
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
