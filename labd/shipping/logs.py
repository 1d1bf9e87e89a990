"""The logs of an attempt, on their way home while they grow."""

import hashlib
import os
import threading
from collections.abc import Mapping
from typing import Any

from labd.shipping.link import Link
from labd.shipping.model import CHUNK_BYTES, ShippingError
from labd.shipping.tree import digest_of_first, last_line_end, read_span, reading

_EMPTY_SHA256 = hashlib.sha256().hexdigest()
_ANEW = 3


class LogStream:
    """One log. When it was begun anew on the node, or changed before its end, it begins anew on the head too.

    Args:
        link: to the store.
        who: the task's id and the attempt.
        root_fd: the task's directory on this node, open.
        name: the log's name in it.
        home_bytes: how much of the file as it is now the head has.

    """

    def __init__(
        self, link: Link, who: Mapping[str, Any], root_fd: int, name: str, home_bytes: int
    ) -> None:
        self._link = link
        self._who = who
        self._root_fd = root_fd
        self._name = name
        self._mutex = threading.Lock()
        self._at = home_bytes
        self._inode: int | None = None
        self._shipped = hashlib.sha256()
        self._hashed = False

    def ship(self) -> None:
        """Ship what is new, of JSON lines the whole ones; nothing if there is no log.

        Raises:
            LabdError: as `Link.ask`.

        """
        with self._mutex:
            try:
                with reading(self._root_fd, (self._name,)) as fd:
                    self._ship(fd)
            except FileNotFoundError:
                return

    def finish(self) -> None:
        """Ship what is new, and see that what the head has is what the log is now: it may have changed in its middle."""
        with self._mutex:
            try:
                with reading(self._root_fd, (self._name,)) as fd:
                    self._ship(fd)
                    if digest_of_first(fd, self._at) != self._shipped.hexdigest():
                        self._begin_anew()
                        self._ship(fd)
            except FileNotFoundError:
                return

    def _ship(self, fd: int) -> None:
        info = os.fstat(fd)
        if not self._hashed:
            self._follow(fd)
        if info.st_size < self._at or self._inode not in {None, info.st_ino}:
            self._begin_anew()
        self._inode = info.st_ino
        size = os.fstat(fd).st_size
        end = last_line_end(fd, size) if self._name.endswith(".jsonl") else size
        for _ in range(_ANEW):
            if self._append(fd, end):
                return
            self._begin_anew()
        raise ShippingError("the head's log is not what was sent to it", where=self._name)

    def _follow(self, fd: int) -> None:
        """Hash what the head has from before."""
        offset = 0
        while offset < self._at and (
            piece := read_span(fd, offset, min(CHUNK_BYTES, self._at - offset))
        ):
            self._shipped.update(piece)
            offset += len(piece)
        self._hashed = True

    def _append(self, fd: int, end: int) -> bool:
        """Send up to `end`; say whether it fitted to what the head has."""
        while self._at < end:
            piece = read_span(fd, self._at, min(CHUNK_BYTES, end - self._at))
            if self._name.endswith(".jsonl"):
                piece = piece[: piece.rfind(b"\n") + 1]
            if not piece:
                return True
            try:
                answer = self._link.ask(
                    "append", path=self._name, offset=self._at, raw=piece, **self._who
                )
            except ShippingError:
                return False
            if not answer["taken"]:
                return False
            self._shipped.update(piece)
            self._at += len(piece)
        return True

    def _begin_anew(self) -> None:
        part = {"sha256": _EMPTY_SHA256, "offset": 0, "raw": b"", "size": 0}
        self._link.ask("chunks", parts=[part])
        files = {self._name: {"sha256": _EMPTY_SHA256, "size": 0, "mode": 0o644}}
        self._link.ask("place", files=files, remove=[], **self._who)
        self._at, self._shipped, self._inode = 0, hashlib.sha256(), None
