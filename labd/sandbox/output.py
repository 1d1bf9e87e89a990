"""The output of a run, kept within a limit. Knows files only."""

import os
from pathlib import Path
from typing import Self


class Output:
    """Keeps the first and the last half of `limit_bytes` of what comes, and states what was cut between.

    The head goes to `log` as it comes, so that people can follow; the tail when the run is over. The
    file is ours, not the run's: it is made anew, and never through a link.

    Raises:
        OSError: the log can't be made.

    """

    def __init__(self, limit_bytes: int, log: Path | None) -> None:
        self._head_limit = (limit_bytes + 1) // 2
        self._tail_limit = limit_bytes - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self.total_bytes = 0
        self._log_fd: int | None = None
        if log is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._log_fd = os.open(log, flags, 0o644)

    def feed(self, chunk: bytes) -> None:
        """Take what came next.

        Raises:
            OSError: the log can't be written.

        """
        self.total_bytes += len(chunk)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            self._write(chunk[:room])
            chunk = chunk[room:]
        self._tail += chunk
        # Cut only now and then: each cut moves the tail.
        if len(self._tail) > 2 * self._tail_limit + 65536:
            self._cut_tail()

    def finish(self) -> str:
        """Write the rest to the log and give all that was kept, undecodable bytes replaced.

        Raises:
            OSError: the log can't be written.

        """
        self._cut_tail()
        cut_bytes = self.total_bytes - len(self._head) - len(self._tail)
        notice = f"\n… {cut_bytes} bytes of output cut …\n".encode() if cut_bytes else b""
        self._write(notice + self._tail)
        return bytes(self._head + notice + self._tail).decode(errors="replace")

    def close(self) -> None:
        """Close the log."""
        if self._log_fd is not None:
            os.close(self._log_fd)
            self._log_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _cut_tail(self) -> None:
        del self._tail[: max(0, len(self._tail) - self._tail_limit)]

    def _write(self, data: bytes) -> None:
        while data and self._log_fd is not None:
            data = data[os.write(self._log_fd, data) :]
