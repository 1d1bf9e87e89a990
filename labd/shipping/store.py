"""The head's end: the one door through which a worker on another node reaches `results/<task id>/`.

Every method may be repeated, and does no harm when it is; a message or its answer may be lost at any time. The
attempt is checked against the task's events under a lock on the task's directory, so that an earlier attempt,
however long it lives, changes nothing behind a later one's back.
"""

import fcntl
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labd.archive import EVENTS, JOURNAL, Archive
from labd.errors import Busy, LabdError, NotFound, StorageError
from labd.shipping.blobs import Incoming, checked_parts_of
from labd.shipping.model import (
    APPEND_BYTES,
    APPENDED,
    CHUNK_BYTES,
    COMMAND_LOCK,
    Fenced,
    ShippingError,
    StoreLimits,
    checked_count,
    checked_parts,
    checked_raw,
    checked_sha256,
    checked_task,
    kept_mode,
    path_problem,
)
from labd.shipping.place import Placement, checked_removals, checked_wanted
from labd.shipping.tree import (
    Hashes,
    last_line_end,
    opened,
    read_span,
    reading,
    signature,
    walk,
    write_all,
)
from labd.template import SHIPPED, load_template
from labd.text import printable

_LOCK_POLL_S = 0.02
_MAX_ENTRIES = 1_000_000
_MAX_HASHES_ASKED = 10_000
_APPEND_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Claim:
    attempt: int
    ended: bool
    birth: str
    """The hash of the task's first event: another task of the same name has another."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A task's directory, open and locked, and what its events said."""

    fd: int
    claim: _Claim
    check: Callable[[], object]
    """Raises `Fenced` if the attempt is the last one no longer."""


class Store:
    """The results of one lab, for its workers on other nodes. Any thread may call any method."""

    def __init__(
        self,
        results: Path,
        limits: StoreLimits | None = None,
        *,
        template_roots: Sequence[Path] = (),
    ) -> None:
        self._results = results
        self._limits = limits or StoreLimits()
        self._template_roots = tuple(template_roots)
        self._archive = Archive(results)
        self._incoming = Incoming(results, self._limits)
        self._hashes = Hashes()
        self._claims: dict[str, tuple[tuple[int, ...], _Claim]] = {}
        self._mutex = threading.Lock()
        self._methods: Mapping[str, Callable[..., Any]] = {
            "manifest": self.manifest,
            "read": self.read,
            "append": self.append,
            "missing": self.missing,
            "chunk": self.chunk,
            "chunks": self.chunks,
            "place": self.place,
            "template_manifest": self.template_manifest,
            "template_read": self.template_read,
        }

    def answer(self, method: str, /, **data: Any) -> dict[str, Any]:
        """Call a method for the other end: gives ``{"value": …}``, or ``{"error": …}`` for what it raised.

        This is what a transport carries; both ways are plain data with bytes in it.
        """
        try:
            if method not in self._methods:
                raise ShippingError(f"there is no method {printable(str(method), 50)}")
            return {"value": self._methods[method](**data)}
        except LabdError as error:
            return {"error": error.as_data()}
        except (TypeError, ValueError, KeyError) as error:
            refused = ShippingError(f"{method}: {type(error).__name__}: {printable(str(error))}")
            return {"error": refused.as_data()}
        except OSError as error:
            place = printable(str(error.filename or self._results))
            failed = StorageError(f"{method}: {error.strerror}", where=place)
            return {"error": failed.as_data()}

    # --- what is there

    def manifest(self, task_id: str, attempt: int, after: str = "") -> dict[str, Any]:
        """Give what the task's directory holds, behind the path `after`, a page at a time.

        Gives ``files`` (path → ``size``, ``sha256``, ``mode``; of JSON lines the whole ones), ``next`` (what
        to ask for as `after`, or ``None``) and ``birth``. Links and the daemon's own files are not in it.

        Raises:
            Fenced: the attempt is not the last one.
            Busy: another process is at the task.

        """
        deadline = time.monotonic() + self._limits.page_s
        files: dict[str, dict[str, Any]] = {}
        with self._task(task_id, attempt) as task:
            _cut_torn_lines(task.fd)
            for found in walk(task.fd, left_out=_not_mine, max_entries=_MAX_ENTRIES, after=after):
                if found.problem:
                    continue
                with reading(task.fd, tuple(found.path.split("/"))) as fd:
                    sha256, info = self._hashes.of(fd, tries=3), os.fstat(fd)
                if sha256 is None:
                    raise Busy("a file changes all the time", where=printable(found.path))
                mode = kept_mode(info.st_mode)
                files[found.path] = {"size": info.st_size, "sha256": sha256, "mode": mode}
                if len(files) >= self._limits.page_files or time.monotonic() > deadline:
                    return {"files": files, "next": found.path, "birth": task.claim.birth}
        return {"files": files, "next": None, "birth": task.claim.birth}

    def read(
        self, task_id: str, attempt: int, wanted: Sequence[Sequence[Any]]
    ) -> list[bytes | None]:
        """Give a part of each file in `wanted` (path, offset, size), at most 4 MiB in all; `None` for no such file."""
        with self._task(task_id, attempt) as task:
            return _read_spans(task.fd, wanted)

    # --- what grows

    def append(
        self, task_id: str, attempt: int, path: str, offset: int, raw: bytes
    ) -> dict[str, Any]:
        """Write `raw` at `offset` of a journal or log, which has to be that long; gives its length now (`size`).

        What is there already is accepted when it is the same. A piece behind the end is not taken:
        ``taken`` is false then. The journal is durable on return. JSON lines come whole.

        Raises:
            Fenced: the attempt is not the last one.
            ShippingError: the file is none that grows, a line is not whole, or what is there differs.

        """
        name, whole = str(path), checked_raw(raw, APPEND_BYTES)
        if name not in APPENDED:
            raise ShippingError(f"only {', '.join(APPENDED)} grow", where=printable(name, 200))
        start = checked_count(offset, self._limits.max_file_bytes, "the offset")
        if name.endswith(".jsonl") and whole and not whole.endswith(b"\n"):
            raise ShippingError("the last line is not whole", where=name)
        with self._task(task_id, attempt) as task:
            return _append(task.fd, name, start, whole)

    # --- whole files

    def missing(self, hashes: Sequence[str]) -> dict[str, int]:
        """Give how far each file is that is not here whole, waiting for its place."""
        if len(hashes) > _MAX_HASHES_ASKED:
            raise ShippingError(f"more than {_MAX_HASHES_ASKED} hashes at once")
        return self._incoming.missing([checked_sha256(value) for value in hashes])

    def chunk(self, sha256: str, offset: int, raw: bytes, size: int) -> dict[str, Any]:
        """Take a piece of the file that has this hash and size; see `chunks`."""
        part = {"sha256": sha256, "offset": offset, "raw": raw, "size": size}
        return self.chunks([part])[0]

    def chunks(self, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Take pieces (``sha256``, ``offset``, ``raw``, ``size``), at most 4 MiB; give for each how far its file is.

        A file is ``whole`` once its hash was found right, and durable then. One whose hash is wrong starts
        again from 0.

        Raises:
            Busy: too much is on its way already.
            StorageError: the disk is full.

        """
        return self._incoming.add(checked_parts_of(parts, self._limits))

    def place(
        self, task_id: str, attempt: int, files: Mapping[str, Mapping[str, Any]], remove: list[str]
    ) -> dict[str, Any]:
        """Put whole files (path → ``sha256``, ``size``, ``mode``) in place by durable renames, `result.json` last.

        Gives ``absent``: hashes that would be needed and are not here; then nothing was done.

        Raises:
            Fenced: the attempt is not the last one.
            ShippingError: a path may not be written or removed.

        """
        wanted = checked_wanted(files, self._limits.max_file_bytes)
        removals = checked_removals(remove, wanted)
        with self._task(task_id, attempt) as task:
            placement = Placement(task.fd, self._incoming, self._hashes, task.check)
            missing = placement.missing(wanted)
            absent = self._incoming.missing(sorted({one.sha256 for one in missing}))
            if not absent:
                placement.apply(missing, removals)
            return {"absent": sorted(absent)}

    def sweep(self) -> None:
        """Remove what is on its way and was not touched for long."""
        self._incoming.sweep()

    # --- templates

    def template_manifest(self, name: str) -> dict[str, Any]:
        """Give the ``sha256`` of a template, its ``directory`` below its root, its ``files``, and if it is ``shipped``.

        Raises:
            ConfigError: there is no such template in the roots that this store was made with.

        """
        template = load_template(_checked_template(name), roots=self._template_roots)
        shipped = template.directory.is_relative_to(SHIPPED.resolve())
        files: dict[str, dict[str, Any]] = {}
        with opened(template.directory) as fd:
            for path, sha256 in template.files_sha256.items():
                with reading(fd, tuple(path.split("/"))) as file_fd:
                    info = os.fstat(file_fd)
                files[path] = {
                    "size": info.st_size,
                    "sha256": sha256,
                    "mode": kept_mode(info.st_mode),
                }
        return {
            "sha256": template.sha256,
            "directory": name if "/" in name else template.directory.name,
            "shipped": shipped,
            "files": files,
        }

    def template_read(self, name: str, wanted: Sequence[Sequence[Any]]) -> list[bytes | None]:
        """Give a part of each file in `wanted` (path, offset, size) of a template, at most 4 MiB in all."""
        template = load_template(_checked_template(name), roots=self._template_roots)
        with opened(template.directory) as fd:
            return _read_spans(fd, wanted)

    # --- the fence

    @contextmanager
    def _task(self, task_id: str, attempt: int) -> Iterator[_Held]:
        name = checked_task(task_id)
        with ExitStack() as stack:
            try:
                fd = stack.enter_context(opened(self._results / name))
            except OSError as error:
                raise NotFound("the task has no results", where=printable(name)) from error
            deadline = time.monotonic() + self._limits.lock_timeout_s
            _lock(fd, deadline)
            # A worker on this machine holds one of these while it works: an earlier attempt may be dying here.
            for held in (JOURNAL, COMMAND_LOCK):
                with suppress(FileNotFoundError):
                    _lock(stack.enter_context(reading(fd, (held,))), deadline)
            claim = self._check(name, attempt)
            yield _Held(fd, claim, partial(self._check, name, attempt))

    def _check(self, task_id: str, attempt: int) -> _Claim:
        claim = self._claim(task_id)
        if claim.attempt != attempt or isinstance(attempt, bool):
            raise Fenced(
                f"attempt {printable(str(attempt), 20)} is not the task's last, which is {claim.attempt}",
                where=printable(task_id),
            )
        if claim.ended:
            raise Fenced("the task has ended", where=printable(task_id))
        return claim

    def _claim(self, task_id: str) -> _Claim:
        path = self._results / task_id / EVENTS
        try:
            seen = signature(path.lstat())
        except FileNotFoundError:
            return _Claim(0, ended=False, birth="")
        with self._mutex:
            known = self._claims.get(task_id)
        if known is not None and known[0] == seen:
            return known[1]
        history = self._archive.history(task_id)
        first = json.dumps([dict(event) for event in history.events[:1]], sort_keys=True)
        birth = hashlib.sha256(first.encode()).hexdigest()
        claim = _Claim(history.attempt, history.ended is not None, birth)
        with self._mutex:
            self._claims[task_id] = (seen, claim)
        return claim


def _checked_template(name: object) -> str:
    if isinstance(name, str) and not path_problem(name):
        return name
    raise ShippingError(
        f"{printable(str(name), 200)!r} is no template that can be brought to another node",
        fix="Name it, or give its path below the directory of templates",
    )


def _not_mine(path: str) -> str:
    return "belongs to the daemon" if path == EVENTS else ""


def _lock(fd: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise Busy("another process is at the task's results") from error
            time.sleep(_LOCK_POLL_S)


def _read_spans(root_fd: int, wanted: Sequence[Sequence[Any]]) -> list[bytes | None]:
    spans = [
        (
            checked_parts(path),
            checked_count(offset, 2**62, "the offset"),
            checked_count(size, CHUNK_BYTES, "the size"),
        )
        for path, offset, size in wanted
    ]
    if sum(size for _, _, size in spans) > CHUNK_BYTES:
        raise ShippingError(f"more than {CHUNK_BYTES} bytes at once")
    return [_read_or_none(root_fd, *span) for span in spans]


def _read_or_none(root_fd: int, parts: tuple[str, ...], offset: int, size: int) -> bytes | None:
    try:
        with reading(root_fd, parts) as fd:
            return read_span(fd, offset, size)
    except FileNotFoundError:
        return None


def _append(task_fd: int, name: str, offset: int, raw: bytes) -> dict[str, Any]:
    with _growing(task_fd, name) as fd:
        size = _length(fd, name)
        if offset > size:
            return {"taken": False, "size": size}
        there = read_span(fd, offset, min(len(raw), size - offset))
        if not raw.startswith(there):
            raise ShippingError(
                f"what is there from byte {offset} is not what was sent again", where=name
            )
        fresh = raw[len(there) :]
        try:
            write_all(fd, fresh)
            if name == JOURNAL:
                os.fsync(fd)
        except OSError:
            # On a full disk half a line may be there: take it back, so that the file stays readable.
            os.ftruncate(fd, size)
            raise
        if offset == 0:
            os.fsync(task_fd)
        return {"taken": True, "size": size + len(fresh)}


@contextmanager
def _growing(task_fd: int, name: str, *, create: int = os.O_CREAT) -> Iterator[int]:
    fd = os.open(name, _APPEND_FLAGS | create, 0o644, dir_fd=task_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ShippingError("what is there is not a plain file", where=name)
        yield fd
    finally:
        os.close(fd)


def _length(fd: int, name: str) -> int:
    """Give the file's length, of JSON lines without a torn last one, which is cut."""
    size = os.fstat(fd).st_size
    end = last_line_end(fd, size) if name.endswith(".jsonl") else size
    if end < size:
        os.ftruncate(fd, end)
        os.fsync(fd)
    return end


def _cut_torn_lines(task_fd: int) -> None:
    for name in APPENDED:
        with suppress(FileNotFoundError), _growing(task_fd, name, create=0) as fd:
            _length(fd, name)
