"""Sending what changed on the node: whole files first, then the journal's lines that may name them, the result last.

A file is sent as it stood still: hashed and sent from one unchanged state, or left for the next time.
"""

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labd.archive import JOURNAL, MAX_RESULT_BYTES, RESULT
from labd.errors import StorageError
from labd.files import write_json
from labd.shipping.link import Link
from labd.shipping.listing import Listing, take_stock
from labd.shipping.logs import LogStream
from labd.shipping.model import (
    APPEND_BYTES,
    CHUNK_BYTES,
    NOT_SHIPPED,
    STREAMED,
    HomeFile,
    MirrorLimits,
    ShippingError,
    kept_mode,
)
from labd.shipping.tree import (
    Found,
    Hashes,
    digest_of_first,
    last_line_end,
    read_span,
    reading,
    signature,
)
from labd.text import printable

_SMALL_BYTES = 2**20
_BATCH_FILES = 256
_REMOVE_AT_ONCE = 1000
_PASSES = 4
_SETTLE_PAUSE_S = 0.2


@dataclass(slots=True)
class _Batch:
    """Files whose contents travel together, and then go to their places together."""

    files: dict[str, HomeFile] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    size_bytes: int = 0

    def holds(self, raw: bytes) -> bool:
        """Say whether there is room for a small file."""
        return len(self.files) < _BATCH_FILES and self.size_bytes + len(raw) <= CHUNK_BYTES

    def add(self, path: str, file: HomeFile, raw: bytes | None) -> None:
        """Take a file; `raw` is ``None`` if its content is on the head already."""
        self.files[path] = file
        if raw is not None and file.sha256 not in self.parts:
            part = {"sha256": file.sha256, "offset": 0, "raw": raw, "size": len(raw)}
            self.parts[file.sha256] = part
            self.size_bytes += len(raw)


@dataclass(slots=True)
class _Passed:
    """The paths that would not stand still, and those that were sent and did not get there."""

    restless: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Shipper:
    """Ships one task's directory for one attempt. Any thread may call any method.

    Args:
        link: to the store.
        who: the task's id and the attempt, as each of the store's methods wants them.
        directory: the task's directory on this node.
        home: what the head has of it.
        limits: what is shipped.

    """

    def __init__(
        self,
        link: Link,
        who: Mapping[str, Any],
        directory: Path,
        home: dict[str, HomeFile],
        limits: MirrorLimits,
    ) -> None:
        self._link = link
        self._who = who
        self._directory = directory
        self._limits = limits
        self._hashes = Hashes()
        self._mutex = threading.Lock()
        self._left: dict[str, str] = {}
        self._journal_bytes = home[JOURNAL].size_bytes if JOURNAL in home else 0
        self._home = home
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._streams = [
            LogStream(link, who, self._fd, name, home[name].size_bytes if name in home else 0)
            for name in STREAMED
        ]

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)

    def leave(self, left: Mapping[str, str]) -> None:
        """State these paths, with the reasons, as not shipped; the head's are left as they are."""
        self._left.update(left)
        for path in left:
            self._home.pop(path, None)

    def logs(self) -> None:
        """Ship the logs' new lines.

        Raises:
            LabdError: as `Link.ask`.

        """
        for stream in self._streams:
            stream.ship()

    def step(self) -> None:
        """Ship the files that changed, and then the journal's whole lines; what an other thread shipped, is.

        Raises:
            LabdError: as `Link.ask`.
            OSError: the directory can't be read.

        """
        wanted = self._journal_end()
        with self._mutex:
            if wanted > self._journal_bytes:
                self._files_then_journal()

    def everything(self) -> None:
        """Ship the files that changed, whether a step ended or not, and then the journal."""
        with self._mutex:
            self._files_then_journal()

    def finish(self, *, result: bool) -> None:
        """Ship all there is, the statement of what was left out, and then `result.json` if it is wanted."""
        with self._mutex:
            listing = self._files(last=True)
            self._state_left_out(listing)
            for stream in self._streams:
                stream.finish()
            self._journal(self._journal_end())
            if result:
                self._send_alone(RESULT)

    def _files_then_journal(self) -> None:
        # Read before the files are looked for: a line's files are written before the line is.
        end = self._journal_end()
        self._files()
        self._journal(end)

    # --- whole files

    def _files(self, *, last: bool = False) -> Listing:
        """Ship changed files; those that will not stand still are for the next time, or stated if this is the last."""
        listing, passed = self._round()
        for number in range(1, _PASSES):
            if not passed.failed and not (passed.restless and last):
                break
            time.sleep(_SETTLE_PAUSE_S * number)
            listing, passed = self._round()
        if passed.failed:
            raise StorageError(
                "the head lost what was sent, time after time", where=printable(passed.failed[0])
            )
        for path in passed.restless:
            listing.left_out[path] = "changed all the time while it was read"
        return listing

    def _round(self) -> tuple[Listing, _Passed]:
        listing = take_stock(self._fd, self._limits)
        listing.left_out |= self._left
        gone = listing.gone(self._home)
        passed = self._pass(listing, gone)
        self._remove(gone)
        return listing, passed

    def _pass(self, listing: Listing, gone: list[str]) -> _Passed:
        """Ship what changed."""
        batch = _Batch()
        passed = _Passed()
        for found in listing.files:
            if self._is_home(found.path, self._hashes.known(found.info), found.info):
                continue
            try:
                read = self._read(found)
            except OSError:
                read = None  # replaced by a link or a directory, or gone, since it was listed
            if read is None:
                passed.restless.append(found.path)
                continue
            file, raw = read
            if self._is_home(found.path, file.sha256, found.info):
                continue
            if not batch.holds(raw or b""):
                passed.failed += self._send(batch, gone)
                batch = _Batch()
            batch.add(found.path, file, raw)
        passed.failed += self._send(batch, gone)
        return passed

    def _is_home(self, path: str, sha256: str | None, info: os.stat_result) -> bool:
        home = self._home.get(path)
        return home is not None and home.sha256 == sha256 and home.mode == kept_mode(info.st_mode)

    def _read(self, found: Found) -> tuple[HomeFile, bytes | None] | None:
        """Give a file that stood still, with its content unless the head has that; `None` if it did not."""
        with reading(self._fd, tuple(found.path.split("/"))) as fd:
            began_ns = time.time_ns()
            before = os.fstat(fd)
            mode = kept_mode(before.st_mode)
            if before.st_size > _SMALL_BYTES:
                sha256 = self._hashes.of(fd, tries=2)
                sent = sha256 is not None and self._send_big(found.path, fd, sha256)
                return (HomeFile(before.st_size, str(sha256), mode), None) if sent else None
            raw = read_span(fd, 0, before.st_size)
            if signature(os.fstat(fd)) != signature(before) or len(raw) != before.st_size:
                return None
            sha256 = hashlib.sha256(raw).hexdigest()
            self._hashes.learn(before, sha256, read_at_ns=began_ns)
            return HomeFile(len(raw), sha256, mode), raw

    def _send_big(self, path: str, fd: int, sha256: str) -> bool:
        """Send an open file from where the head has it; give whether it arrived whole, with that hash."""
        home = self._home.get(path)
        if home is not None and home.sha256 == sha256:
            return True
        offset = self._link.ask("missing", hashes=[sha256]).get(sha256)
        size = os.fstat(fd).st_size
        for _ in range(2 * (size // CHUNK_BYTES) + 8):
            if offset is None:
                return True
            raw = read_span(fd, min(offset, size), min(CHUNK_BYTES, size - min(offset, size)))
            if not raw and offset < size:
                return False
            answer = self._link.ask(
                "chunk", sha256=sha256, offset=min(offset, size), raw=raw, size=size
            )
            if not answer["whole"] and answer["size"] == 0:
                return False
            offset = None if answer["whole"] else answer["size"]
        return False

    def _send(self, batch: _Batch, gone: list[str]) -> list[str]:
        """Send a batch and put it in place; give the paths that did not get there."""
        if not batch.files:
            return []
        if batch.parts:
            self._link.ask("chunks", parts=list(batch.parts.values()))
        files = {
            path: {"sha256": file.sha256, "size": file.size_bytes, "mode": file.mode}
            for path, file in batch.files.items()
        }
        # A file where a directory was: what was in it has to go first.
        in_the_way = [path for path in gone if any(above in files for above in _above(path))]
        answer = self._link.ask("place", files=files, remove=in_the_way, **self._who)
        if answer["absent"]:
            return sorted(batch.files)
        self._home |= batch.files
        return []

    def _remove(self, gone: list[str]) -> None:
        for start in range(0, len(gone), _REMOVE_AT_ONCE):
            some = gone[start : start + _REMOVE_AT_ONCE]
            self._link.ask("place", files={}, remove=some, **self._who)
            for path in some:
                self._home.pop(path, None)

    def _state_left_out(self, listing: Listing) -> None:
        report = self._directory / NOT_SHIPPED
        if listing.left_out:
            write_json(report, listing.report())
            self._send_alone(NOT_SHIPPED)
        else:
            report.unlink(missing_ok=True)
            self._remove([NOT_SHIPPED] if NOT_SHIPPED in self._home else [])

    # --- journal and result

    def _journal_end(self) -> int:
        try:
            with reading(self._fd, (JOURNAL,)) as fd:
                return last_line_end(fd, os.fstat(fd).st_size)
        except FileNotFoundError:
            return 0

    def _journal(self, end: int) -> None:
        if end <= self._journal_bytes:
            return
        with reading(self._fd, (JOURNAL,)) as fd:
            while self._journal_bytes < end:
                start = self._journal_bytes
                piece = read_span(fd, start, min(APPEND_BYTES, end - start))
                piece = piece[: piece.rfind(b"\n") + 1]
                answer = self._link.ask(
                    "append", path=JOURNAL, offset=start, raw=piece, **self._who
                )
                if not piece or not answer["taken"]:
                    raise ShippingError(
                        f"the head's journal has {answer['size']} bytes, and had {start}"
                    )
                self._journal_bytes += len(piece)

    def _send_alone(self, name: str) -> None:
        """Send a file of labd's own, if it is there, whatever the limits are."""
        for _ in range(_PASSES):
            try:
                with reading(self._fd, (name,)) as fd:
                    size_bytes = os.fstat(fd).st_size
                    if size_bytes > MAX_RESULT_BYTES:
                        raise ShippingError(f"{name} is larger than {MAX_RESULT_BYTES} bytes")
                    sha256 = digest_of_first(fd, size_bytes)
                    sent = self._send_big(name, fd, sha256)
            except FileNotFoundError:
                return
            batch = _Batch({name: HomeFile(size_bytes, sha256, 0o644)})
            if sent and not self._send(batch, []):
                return
        raise StorageError("the head lost what was sent, time after time", where=name)


def _above(path: str) -> Iterable[str]:
    while path := path.rpartition("/")[0]:
        yield path
