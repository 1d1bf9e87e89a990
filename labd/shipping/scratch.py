"""What a node keeps of the tasks whose attempts it runs: one directory each, held by one attempt at a time.

``<scratch>/results/<task id>/`` is the results directory of the attempt, ``<scratch>/state/`` says what is in
it, ``<scratch>/templates/<sha256>/`` holds templates. All of it may be removed while no attempt runs.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labd.errors import Busy
from labd.files import read_json_object, write_json
from labd.shipping.tree import opened, walk
from labd.text import printable
from labd.trees import remove_tree

_LOCK_POLL_S = 0.05
_MAX_ENTRIES = 1_000_000
_LOCK = ".lock"
_STATE = ".json"


class Scratch:
    """The scratch directory of one node, for one lab."""

    def __init__(self, root: Path) -> None:
        self.results = root / "results"
        self.templates = root / "templates"
        self._old = root / "old"
        self._state = root / "state"

    def make(self) -> None:
        """Make its directories, where they are missing."""
        for directory in (self.results, self.templates, self._old, self._state):
            directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def held(self, task_id: str, timeout_s: float) -> Iterator[Path]:
        """Hold a task's directory, which may not exist yet, against other attempts and the sweep.

        Raises:
            Busy: another attempt held it for all of `timeout_s`.

        """
        self.make()
        fd = _lock_within(self._lock_path(task_id), timeout_s)
        try:
            yield self.results / task_id
        finally:
            os.close(fd)

    def state(self, task_id: str) -> dict[str, Any]:
        """Give what `remember` was told, or nothing if that was before the machine last started."""
        # After a loss of power, files that were never synced may be empty: nothing is known of them.
        value = read_json_object(self._state_path(task_id)) or {}
        return value if value.get("boot") == _boot_id() else {}

    def remember(self, task_id: str, state: dict[str, Any]) -> None:
        """Keep `state` for the next attempt on this node."""
        write_json(self._state_path(task_id), {**state, "boot": _boot_id()})

    def forget(self, task_id: str) -> None:
        """Let the next attempt trust nothing of what lies here."""
        self._state_path(task_id).unlink(missing_ok=True)

    def set_aside(self, task_id: str) -> Path:
        """Move a task's directory out of the way, in the place of what was set aside before; give where to."""
        aside = self._old / task_id
        if not (self.results / task_id).exists():
            return aside
        remove_tree(aside)
        (self.results / task_id).rename(aside)
        return aside

    def drop_old(self, task_id: str) -> None:
        """Remove what was set aside.

        Raises:
            StorageError: something is left.

        """
        remove_tree(self._old / task_id)

    def drop(self, task_id: str) -> None:
        """Remove all there is of a task.

        Raises:
            StorageError: something is left.

        """
        self.forget(task_id)
        for directory in (self.results, self._old):
            remove_tree(directory / task_id)
        self._lock_path(task_id).unlink(missing_ok=True)

    @contextmanager
    def template_held(self, sha256: str, timeout_s: float = 60.0) -> Iterator[None]:
        """Hold a template against other attempts that bring the same one.

        Raises:
            Busy: another held it for all of `timeout_s`.

        """
        fd = _lock_within(self._template_lock(sha256), timeout_s)
        try:
            yield
        finally:
            os.close(fd)

    def drop_template(self, sha256: str) -> None:
        """Remove a template, or what a killed attempt left of it.

        Raises:
            StorageError: something is left.

        """
        for name in (sha256, f".{sha256}.part"):
            remove_tree(self.templates / name)

    def sweep(self, *, most_bytes: int, oldest_age_s: float, keep: str) -> None:
        """Remove what earlier attempts left: what is too old, and then the oldest until the rest fits.

        What an attempt holds, and the task `keep`, stays. A template's age is that of its last use.
        """
        tasks = {path.name for root in (self.results, self._old) for path in root.iterdir()}
        ages = sorted((self._age_s(name), name) for name in tasks - {keep})
        total_bytes = 0
        for age_s, name in ages:
            size_bytes = sum(_size(root / name) for root in (self.results, self._old))
            total_bytes += size_bytes
            if age_s > oldest_age_s or total_bytes > most_bytes:
                total_bytes -= size_bytes
                self._drop_if_free(name)
        for path in self.templates.iterdir():
            if _age_s(path) > oldest_age_s:
                remove_tree(path)
                self._template_lock(path.name).unlink(missing_ok=True)

    def _drop_if_free(self, task_id: str) -> None:
        fd = _lock(self._lock_path(task_id))
        if fd is not None:
            try:
                self.drop(task_id)
            finally:
                os.close(fd)

    def _age_s(self, task_id: str) -> float:
        """Give how long ago an attempt last began or ended here."""
        return _age_s(self._lock_path(task_id))

    def _lock_path(self, task_id: str) -> Path:
        return self._state / f"{task_id}{_LOCK}"

    def _template_lock(self, sha256: str) -> Path:
        # No task's id begins with a dot.
        return self._state / f".template-{sha256}{_LOCK}"

    def _state_path(self, task_id: str) -> Path:
        return self._state / f"{task_id}{_STATE}"


def _lock_within(path: Path, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    while (fd := _lock(path)) is None:
        if time.monotonic() > deadline:
            raise Busy(
                f"another attempt still holds the scratch after {timeout_s:g} s",
                where=printable(path.stem),
            )
        time.sleep(_LOCK_POLL_S)
    return fd


def _lock(path: Path) -> int | None:
    """Give the lock, or `None` while another has it. Its file may be removed by who had it: then it is made anew."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if os.fstat(fd).st_nlink > 0:
            os.utime(fd)
            return fd
        os.close(fd)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _size(path: Path) -> int:
    """Give the bytes that a tree holds on the disk, but for what is too deep to ship."""
    try:
        with opened(path) as fd:
            everything = walk(fd, left_out=lambda _: "", max_entries=_MAX_ENTRIES)
            return sum(found.info.st_blocks * 512 for found in everything)
    except FileNotFoundError:
        return 0


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
