"""The node's end: gives an attempt its results directory on this node, and keeps the head's the same.

What a step recorded is at home before the step's caller goes on. When the head can't be reached for too long,
or has another attempt, this one ends; what it did stays on the node for the next.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from labd.archive import JOURNAL, RESULT
from labd.errors import LabdError, StorageError
from labd.shipping.fetch import Span, bring, bring_template, home_manifest
from labd.shipping.link import Call, Link
from labd.shipping.listing import to_bring
from labd.shipping.model import HomeFile, MirrorLimits, checked_task
from labd.shipping.scratch import Scratch
from labd.shipping.tree import digest_of_first
from labd.shipping.upload import Shipper
from labd.task import parse_task
from labd.text import printable


class Mirror:
    """One attempt's results, on a node that is not the head's. A context manager.

    On entry it brings what the earlier attempts left, and the template. On exit everything is at home, or an
    error is raised, and then the attempt has not succeeded, whatever it says itself.

    Args:
        call: the transport, see `labd.shipping.link.Call`.
        job: the attempt, as the head gave it.
        scratch: this node's directory for this lab's attempts; made if missing.
        limits: what is shipped, and how long is waited.
        on_lost: called once, from any thread, when going on has no more sense, with the reason.

    """

    def __init__(
        self,
        call: Call,
        job: dict[str, Any],
        scratch: Path,
        limits: MirrorLimits | None = None,
        *,
        on_lost: Callable[[LabdError], None] | None = None,
    ) -> None:
        self._given = job
        self._limits = limits or MirrorLimits()
        self._link = Link(call, self._limits.link_timeout_s)
        self._scratch = Scratch(scratch)
        self._scratch_root = scratch
        self._task_id = checked_task(job["task_id"])
        self._who = {"task_id": self._task_id, "attempt": job["attempt"]}
        self._on_lost = on_lost
        self._error: LabdError | None = None
        self._mutex = threading.Lock()
        self._closing = threading.Event()
        self._stack = ExitStack()
        self.job: dict[str, Any] = job
        """The job with the paths of this node, once entered."""

    @property
    def error(self) -> LabdError | None:
        """Why the attempt has to end, if it has to."""
        return self._error

    def __enter__(self) -> Self:
        """Bring what is needed.

        Raises:
            Fenced: the attempt is not the task's last.
            LinkLost: the head could not be reached.
            LabdError: what else the head, or this node's disk, has against it.

        """
        with ExitStack() as stack:
            try:
                directory = stack.enter_context(
                    self._scratch.held(self._task_id, self._limits.lock_timeout_s)
                )
                self._scratch.sweep(
                    most_bytes=self._limits.scratch_bytes,
                    oldest_age_s=self._limits.scratch_age_s,
                    keep=self._task_id,
                )
                self._shipper = self._begin(directory, stack)
            except OSError as error:
                raise _storage(error) from error
            here = _job_here(self._link, self._scratch, self._scratch_root, self._given)
            self.job = {**here, "results_dir": str(directory)}
            self._thread = threading.Thread(target=self._stream, name="shipping", daemon=True)
            self._thread.start()
            self._stack = stack.pop_all()
        return self

    def on_step(self, key: str, replayed: bool) -> None:  # noqa: FBT001, ARG002 - the journal's signature
        """Ship what the step recorded: its files first, then its line.

        Raises:
            Fenced: another attempt has the task.
            LinkLost: the head could not be reached for too long.
            LabdError: what else the head has against it.

        """
        if self._error is not None:
            raise self._error
        if replayed:
            return
        try:
            self._shipper.step()
        except (LabdError, OSError) as error:
            raise self._fail(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ship the rest; without an `error` the result too, and then forget all of it here."""
        with self._stack:
            self._closing.set()
            self._thread.join()
            try:
                if self._error is None and (error is None or isinstance(error, Exception)):
                    self._shipper.finish(result=error is None)
            except (LabdError, OSError) as failure:
                self._fail(failure)
            if error is not None:
                if self._error is not None and error is not self._error:
                    error.add_note(f"not all of it is at home: {self._error}")
            elif self._error is not None:
                raise self._error
            else:
                self._scratch.drop(self._task_id)

    def _begin(self, directory: Path, stack: ExitStack) -> Shipper:
        home, birth = home_manifest(self._link, self._who)
        wanted, left = to_bring(home, self._limits)
        goes_on = self._is_newest(directory, home, birth)
        if goes_on:
            (directory / RESULT).unlink(missing_ok=True)
            # What the head has and this node has not may never have come here: it stays as it is.
            wanted = [path for path in home if (directory / path).exists()]
            left = {path: why for path, why in left.items() if path not in wanted}
        home = {path: home[path] for path in wanted}
        if not goes_on:
            self._bring(directory, home)
        self._scratch.remember(self._task_id, {"attempt": self._who["attempt"], "birth": birth})
        shipper = Shipper(self._link, self._who, directory, home, self._limits)
        stack.callback(shipper.close)
        shipper.leave(left)
        if goes_on:
            shipper.everything()
        return shipper

    def _is_newest(self, directory: Path, home: dict[str, HomeFile], birth: str) -> bool:
        """Say whether the attempt before this one ran here, so that what lies here is what it came to.

        Then steps that it recorded and could not bring home any more are not lost.
        """
        state = self._scratch.state(self._task_id)
        if state.get("attempt") != self._who["attempt"] - 1 or state.get("birth") != birth:
            return False
        journal = home.get(JOURNAL)
        if journal is None:
            return directory.is_dir()
        try:
            with (directory / JOURNAL).open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                same = digest_of_first(file.fileno(), journal.size_bytes) == journal.sha256
        except OSError:
            return False
        return size_bytes >= journal.size_bytes and same

    def _bring(self, directory: Path, files: dict[str, HomeFile]) -> None:
        """Make the directory what the head has."""
        self._scratch.forget(self._task_id)
        old = self._scratch.set_aside(self._task_id)

        def read(spans: Sequence[Span]) -> list[bytes | None]:
            answer: list[bytes | None] = self._link.ask("read", wanted=spans, **self._who)
            return answer

        bring(read, files, directory, old=old)
        self._scratch.drop_old(self._task_id)

    def _stream(self) -> None:
        """Ship logs every second or so, and files now and then, until the attempt ends."""
        files_at = time.monotonic() + self._limits.files_every_s
        while not self._closing.wait(self._limits.log_every_s):
            try:
                self._shipper.logs()
                if time.monotonic() >= files_at:
                    self._shipper.everything()
                    files_at = time.monotonic() + self._limits.files_every_s
            except (LabdError, OSError) as error:
                self._fail(error)
                return

    def _fail(self, error: LabdError | OSError) -> LabdError:
        """Note why the attempt has to end, and give it; the first reason stays."""
        reason = error if isinstance(error, LabdError) else _storage(error)
        with self._mutex:
            first = self._error is None
            self._error = self._error or reason
        self._link.cut(self._error)
        if first and self._on_lost is not None:
            self._on_lost(self._error)
        return self._error


def job_here(
    call: Call, job: dict[str, Any], scratch: Path, limits: MirrorLimits | None = None
) -> dict[str, Any]:
    """Give a job with the paths of this node, which then has its template; its results stay where they are.

    For a node that makes runs of it and has no results of its own. The arguments: as for `Mirror`.

    Raises:
        LabdError: the head could not be reached, or what else it, or this node's disk, has against it.

    """
    limits = limits or MirrorLimits()
    place = Scratch(scratch)
    try:
        place.make()
        _swept(scratch, limits)
        return _job_here(Link(call, limits.link_timeout_s), place, scratch, job)
    except OSError as error:
        raise _storage(error) from error


@functools.cache
def _swept(scratch: Path, limits: MirrorLimits) -> None:
    """Remove what earlier attempts left, once for a process: it is asked for each run."""
    Scratch(scratch).sweep(
        most_bytes=limits.scratch_bytes, oldest_age_s=limits.scratch_age_s, keep=""
    )


def _job_here(
    link: Link, scratch: Scratch, scratch_root: Path, job: dict[str, Any]
) -> dict[str, Any]:
    task = parse_task(job["task_text"].encode(), job["file_name"])
    roots: list[str] = []
    if task.spec.research_template is not None:
        roots = bring_template(link, scratch, task.spec.research_template)
    forbidden = [*job.get("forbidden_roots", []), str(scratch_root)]
    return {**job, "template_roots": roots, "forbidden_roots": forbidden}


def _storage(error: OSError) -> StorageError:
    return StorageError(
        f"this node's disk: {error.strerror}", where=printable(str(error.filename or ""))
    )
