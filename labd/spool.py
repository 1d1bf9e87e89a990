"""The spool: five directories whose names are states, and the renames between them.

The only mover of task files in labd. A file's bytes are never changed; a move never overwrites. Anyone
else may move files too: the loser of a race gets `FileNotFoundError`, and the directories decide.
"""

import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from labd.errors import Busy, MoveRefused, StorageError, TaskFileError
from labd.files import locked, open_for_writing_elsewhere, rename_durable, write_atomic
from labd.task import SUFFIXES, State, is_task_name, numbered, task_id
from labd.text import printable
from labd.yamlfile import MAX_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in one of the spool's directories that is meant as a task."""

    name: str
    mtime_ns: int
    size_bytes: int
    inode: int
    is_file: bool
    uid: int

    @property
    def id(self) -> str:
        """The task id that the name stands for."""
        return task_id(self.name)


class Spool:
    """The directories under `root`. Readers never create them; `prepare` does."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the five directories and the daemon's own."""
        for state in State:
            self.directory(state).mkdir(parents=True, exist_ok=True)
        (self.root / ".labd").mkdir(mode=0o700, exist_ok=True)

    def directory(self, state: State) -> Path:
        """Give the directory that means `state`."""
        return self.root / state.value

    def entries(self, state: State) -> Iterator[Entry]:
        """Give the tasks in `state`, in the directory's own order; none if there is no directory."""
        try:
            scan = os.scandir(self.directory(state))
        except FileNotFoundError:
            return
        with scan:
            for item in scan:
                if not is_task_name(item.name):
                    continue
                try:
                    info = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield _entry(item.name, info)

    def names(self, state: State) -> list[str]:
        """Give only the names of the tasks in `state`; the cheapest look at a long directory."""
        try:
            with os.scandir(self.directory(state)) as scan:
                return [item.name for item in scan if is_task_name(item.name)]
        except FileNotFoundError:
            return []

    def ignored(self) -> list[str]:
        """Give the names in pending/ that are not taken for tasks, hidden and temporary ones left out."""
        try:
            names = [path.name for path in self.directory(State.PENDING).iterdir()]
        except FileNotFoundError:
            return []
        passing = (".tmp", ".part", "~")
        return sorted(
            n
            for n in names
            if not is_task_name(n) and not n.startswith(".") and not n.endswith(passing)
        )

    def entry(self, state: State, name: str) -> Entry | None:
        """Look at one name, or give ``None`` if it is not there."""
        try:
            return _entry(name, os.lstat(self.directory(state) / name))
        except FileNotFoundError:
            return None

    def holds(self, state: State, name: str) -> bool:
        """Say whether `name` is in `state`."""
        return os.path.lexists(self.directory(state) / name)

    def where(self, wanted_id: str) -> list[tuple[State, str]]:
        """Give every state that has a file of this id, with the file's name; usually one."""
        return [
            (state, wanted_id + suffix)
            for state in State
            for suffix in SUFFIXES
            if self.holds(state, wanted_id + suffix)
        ]

    def read(self, state: State, name: str) -> bytes:
        """Give a task file's bytes, at most 1 MiB, without following links or waiting on a FIFO.

        Raises:
            FileNotFoundError: somebody moved it.
            TaskFileError: it is not a plain file, too long, or can't be read.

        """
        where = f"{state.value}/{printable(name)}"
        try:
            fd = _open(self.directory(state) / name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TaskFileError(
                _not_readable(self.directory(state) / name, error), where=where
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise TaskFileError(
                    "it is not a plain file", where=where, fix="A task is a YAML file"
                )
            raw = _read_up_to(fd, MAX_BYTES + 1)
        finally:
            os.close(fd)
        if len(raw) > MAX_BYTES:
            raise TaskFileError(
                f"the file has more than {MAX_BYTES} bytes",
                where=where,
                fix="Task files are small",
            )
        return raw

    def being_written(self, entry: Entry, settle_s: float, now_s: float) -> bool:
        """Say whether somebody is still writing the pending file: by the kernel's word, else by its being still.

        `now_s` is the wall clock; a file touched less than `settle_s` ago counts as being written
        where the kernel can't say.
        """
        try:
            fd = _open(self.directory(State.PENDING) / entry.name)
        except OSError:
            return False  # reading it will say what is wrong
        try:
            writer = open_for_writing_elsewhere(fd)
        finally:
            os.close(fd)
        if writer is None:
            return now_s - entry.mtime_ns / 1e9 < settle_s
        return writer

    def move(self, name: str, source: State, target: State, new_name: str | None = None) -> str:
        """Rename a task from one state to another, durably; give the name it has there.

        If the name is taken there, the next numbered one is used. (Ids are unique; this is for
        files that somebody put there by hand.)

        Raises:
            FileNotFoundError: somebody else moved it first.
            StorageError: the system would not rename.

        """
        wanted = new_name or name
        for number in range(1, 10_000):
            there = numbered(wanted, number)
            try:
                rename_durable(self.directory(source) / name, self.directory(target) / there)
            except FileExistsError:
                continue
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StorageError(
                    f"can't rename to {target.value}/: {error.strerror}", where=printable(name)
                ) from error
            return there
        raise MoveRefused(f"{target.value}/ is full of files of that name", where=printable(name))

    def put(self, raw: bytes, name: str) -> None:
        """Put a new file into pending/ so that no reader sees half of it.

        Raises:
            FileExistsError: the name is taken in pending/.

        """
        write_atomic(self.directory(State.PENDING) / name, raw, replace=False)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the spool's one daemon for as long as the block runs.

        Raises:
            Busy: another daemon is; the text says its process id.

        """
        path = self.root / ".labd" / "lock"
        try:
            with locked(path) as fd:
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                yield
        except BlockingIOError as error:
            holder = path.read_text().strip() or "unknown"
            raise Busy(
                f"another labd (process {holder}) already runs on this spool",
                where=str(self.root),
                fix="Drop files into it as it is, or stop that one first",
            ) from error

    def holder(self) -> int | None:
        """Give the process id of the daemon that holds the spool, or ``None`` if none does."""
        path = self.root / ".labd" / "lock"
        if not path.exists():
            return None
        try:
            with locked(path):
                return None
        except BlockingIOError:
            text = path.read_text().strip()
            return int(text) if text.isdecimal() else None


class Watcher(FileSystemEventHandler):
    """Sets an event whenever something happens in the spool's directories. A hint, never the truth."""

    def __init__(self, spool: Spool, wake: threading.Event) -> None:
        self._wake = wake
        self._observer = Observer()
        for state in (State.PENDING, State.RUNNING):
            self._observer.schedule(self, str(spool.directory(state)))

    def start(self) -> None:
        """Begin to watch."""
        self._observer.start()

    def stop(self) -> None:
        """Stop watching."""
        # watchdog complains of events that come while it stops; nobody can do anything about them.
        logging.getLogger("watchdog").setLevel(logging.CRITICAL)
        self._observer.stop()
        self._observer.join(timeout=5)

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Wake the daemon for whatever may have changed a directory."""
        if event.event_type not in {"opened", "closed_no_write"}:
            self._wake.set()


def _entry(name: str, info: os.stat_result) -> Entry:
    return Entry(
        name, info.st_mtime_ns, info.st_size, info.st_ino, stat.S_ISREG(info.st_mode), info.st_uid
    )


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _read_up_to(fd: int, limit: int) -> bytes:
    raw = b""
    while len(raw) < limit and (chunk := os.read(fd, limit - len(raw))):
        raw += chunk
    return raw


def _not_readable(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return "it is a symbolic link; copy the file itself"
    return f"it can't be read: {error.strerror}"
