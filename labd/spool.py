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
from pathlib import Path, PurePath
from typing import Any

from watchdog.events import DirModifiedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify_c import InotifyConstants, InotifyFD

from labd.errors import Busy, MoveRefused, StorageError, TaskFileError
from labd.files import (
    Unsynced,
    exchange,
    fsync_dir,
    locked,
    open_for_writing_elsewhere,
    rename_noreplace,
    write_atomic,
)
from labd.task import SUFFIXES, State, is_task_name, numbered, task_id
from labd.text import printable
from labd.yamlfile import MAX_BYTES

PAUSED = "paused"
"""In the spool's root: while a file of this name is there, nothing new is started."""
_MAX_HINTS = 100_000
_MAX_ENDED_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in one of the spool's directories that is meant as a task."""

    name: str
    mtime_ns: int
    size_bytes: int
    inode: int
    is_file: bool
    uid: int
    moved_ns: int = 0
    """When it was last renamed (or its owner or mode changed), which is when it came into its state."""

    @property
    def id(self) -> str:
        """The task id that the name stands for."""
        return task_id(self.name)

    @property
    def version(self) -> tuple[int, int, int]:
        """What changes when the file is replaced or written to."""
        return (self.inode, self.mtime_ns, self.size_bytes)


@dataclass(frozen=True, slots=True)
class Look:
    """A pending file as it was found: its bytes, or why there are none.

    `being_written`: somebody may not be done with it. `problem`: it is nothing that can be read.
    """

    entry: Entry
    raw: bytes | None = None
    being_written: bool = False
    problem: TaskFileError | None = None


class Spool:
    """The directories under `root`. Readers never create them; `prepare` does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unsynced = Unsynced()
        # Texts, because a claim takes some twenty looks at names, and making a Path costs more than a look.
        self._at = {state: os.path.join(root, state.value, "") for state in State}  # noqa: PTH118

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
            scan = os.scandir(self._at[state])
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
        """Give only the names of the tasks in `state`; the cheapest look at a long directory but for `count`."""
        return [name for name in self.all_names(state) if is_task_name(name)]

    def count(self, state: State) -> int:
        """Count the tasks in `state`; under a second for a million."""
        try:
            names = os.listdir(self._at[state])  # noqa: PTH208 - in C, because directories get long
        except FileNotFoundError:
            return 0
        return sum(1 for name in names if name.endswith(SUFFIXES) and name[0] != ".")

    def all_names(self, state: State) -> Iterator[str]:
        """Give every name in `state`, also of what is no task, reading the directory as it goes."""
        try:
            scan = os.scandir(self._at[state])
        except FileNotFoundError:
            return
        with scan:
            for item in scan:
                yield item.name

    def entry(self, state: State, name: str) -> Entry | None:
        """Look at one name, or give ``None`` if it is not there."""
        try:
            return _entry(name, os.lstat(self._at[state] + name))
        except FileNotFoundError:
            return None

    def holds(self, state: State, name: str) -> bool:
        """Say whether `name` is in `state`."""
        return os.path.lexists(self._at[state] + name)

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
        path = self._at[state] + name
        try:
            fd = _open(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TaskFileError(_not_readable(path, error), where=where) from error
        try:
            return _task_bytes(fd, os.fstat(fd), where)
        finally:
            os.close(fd)

    def look(self, name: str, settle_s: float, now_s: float) -> Look | None:
        """Look at a pending file, or give ``None`` if it is gone.

        Whether somebody is still writing it is for the kernel to say; where it can't, a file touched
        less than `settle_s` ago, by the wall clock `now_s`, counts as being written.
        """
        where = f"{State.PENDING.value}/{printable(name)}"
        path = self._at[State.PENDING] + name
        try:
            fd = _open(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            unread = self.entry(State.PENDING, name)
            problem = TaskFileError(_not_readable(path, error), where=where)
            return None if unread is None else Look(unread, problem=problem)
        try:
            info = os.fstat(fd)
            entry = _entry(name, info)
            writer = open_for_writing_elsewhere(fd) if entry.is_file else False
            if writer or (writer is None and 0 <= now_s - info.st_mtime < settle_s):
                return Look(entry, being_written=True)
            try:
                return Look(entry, _task_bytes(fd, info, where))
            except TaskFileError as error:
                return Look(entry, problem=error)
        finally:
            os.close(fd)

    def move(
        self,
        name: str,
        source: State,
        target: State,
        new_name: str | None = None,
        *,
        durable: bool = True,
    ) -> str:
        """Rename a task from one state to another; give the name it has there.

        If the name is taken there, the next numbered one is used. (Ids are unique; this is for
        files that somebody put there by hand.) With `durable` off it is durable only after `sync`.

        Raises:
            FileNotFoundError: somebody else moved it first.
            StorageError: the system would not rename.

        """
        wanted = new_name or name
        here, there = self._at[source], self._at[target]
        for number in range(1, 10_000):
            free = numbered(wanted, number)
            try:
                rename_noreplace(here + name, there + free)
            except FileExistsError:
                continue
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StorageError(
                    f"can't rename to {target.value}/: {error.strerror}", where=printable(name)
                ) from error
            self._unsynced.note(here, there)
            if target.decided:
                self._note_ended(target, free)
            if durable:
                self.sync()
            return free
        raise MoveRefused(f"{target.value}/ is full of files of that name", where=printable(name))

    @property
    def unsynced(self) -> bool:
        """Whether a move is not durable yet."""
        return bool(self._unsynced)

    def sync(self) -> None:
        """Make every move durable, with one fsync for each directory.

        Raises:
            StorageError: the disk would not; what was not synced is tried again by the next call.

        """
        try:
            self._unsynced.sync()
        except OSError as error:
            raise StorageError(
                f"can't make the spool durable: {error.strerror}", where=str(self.root)
            ) from error

    def recent(self, state: State, count: int) -> Iterator[Entry]:
        """Give the tasks that labd moved to `state` and that are still there, last first, at most `count`.

        For directories too long to look at each file of. What people moved there by hand is not in it.
        """
        prefix, seen = f"{state.value}/".encode(), set[bytes]()
        for path in (self._ended_log, self._ended_log.with_suffix(".old")):
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                continue
            for line in reversed(lines):
                if len(seen) >= count:
                    return
                if line.startswith(prefix) and line not in seen:
                    entry = self.entry(state, os.fsdecode(line.removeprefix(prefix)))
                    if entry is not None:
                        seen.add(line)
                        yield entry

    @property
    def _ended_log(self) -> Path:
        return self.root / ".labd" / "ended.log"

    def _note_ended(self, state: State, name: str) -> None:
        """Keep a list of what ended last. A convenience for lists: a state is where the file is, never this."""
        line = os.fsencode(f"{state.value}/{name}") + b"\n"
        path = self._ended_log
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, line)
                if os.fstat(fd).st_size > _MAX_ENDED_BYTES:
                    path.replace(path.with_suffix(".old"))
            finally:
                os.close(fd)
        except OSError:
            return  # somebody else's spool, or a full disk: lists of a long directory miss this one

    def put(self, raw: bytes, name: str) -> None:
        """Put a new file into pending/ so that no reader sees half of it.

        Raises:
            FileExistsError: the name is taken in pending/.

        """
        write_atomic(self.directory(State.PENDING) / name, raw, replace=False)

    def put_instead(self, raw: bytes, entry: Entry) -> bool:
        """Put a new file in the place of a pending one that is as `entry` says; say whether it still was there so.

        The new file keeps the old one's age and owner, and with them its place in the order.

        Raises:
            StorageError: the system would not.

        """
        directory = self.directory(State.PENDING)
        path, new = directory / entry.name, directory / f".{entry.inode}.instead.tmp"
        try:
            write_atomic(new, raw)
            os.chown(new, entry.uid, -1)
            os.utime(new, ns=(entry.mtime_ns, entry.mtime_ns))
            exchange(new, path)
            if _entry(entry.name, new.lstat()).version != entry.version:
                exchange(new, path)  # somebody put another file there in between: theirs stays
                return False
            fsync_dir(directory)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(
                f"can't put a new file into pending/: {error.strerror}",
                where=printable(entry.name),
            ) from error
        finally:
            new.unlink(missing_ok=True)
        return True

    @property
    def paused(self) -> bool:
        """Whether nothing new is to be started."""
        return (self.root / PAUSED).exists()

    def pause(self) -> None:
        """Have nothing new started, until `resume`. Also across restarts.

        Raises:
            OSError: as the system gives it.

        """
        write_atomic(self.root / PAUSED, b"")

    def resume(self) -> None:
        """Let work start again.

        Raises:
            OSError: as the system gives it.

        """
        (self.root / PAUSED).unlink(missing_ok=True)
        fsync_dir(self.root)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the spool's one daemon for as long as the block runs.

        Raises:
            Busy: another daemon is; the text says its process id.

        """
        path = self.root / ".labd" / "lock"
        try:
            # Nobody else may open it: who can, may lock it, and keep a daemon from starting.
            with locked(path, mode=0o600) as fd:
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
        """Give the process id of the daemon that holds the spool, or ``None`` if none does.

        Raises:
            PermissionError: the lock is another user's.

        """
        path = self.root / ".labd" / "lock"
        if not path.exists():
            return None
        try:
            with locked(path):
                return None
        except BlockingIOError:
            text = path.read_text().strip()
            return int(text) if text.isdecimal() else None


class _Emitter(InotifyEmitter):
    """Asks the kernel for arrivals and deletions only.

    watchdog holds a departure, and everything behind it, back for half a second, in case the file
    arrives elsewhere; with our own renames that would delay each drop after a claim (490 ms, measured
    with watchdog 7.1).
    """

    def get_event_mask_from_filter(self) -> Any:
        """Give the bits of inotify(7)."""
        bits = InotifyConstants
        if PurePath(os.fsdecode(self.watch.path)).name == State.RUNNING:
            return bits.IN_DELETE | bits.IN_DELETE_SELF
        arrivals = bits.IN_CREATE | bits.IN_CLOSE_WRITE | bits.IN_MOVED_TO
        return arrivals | bits.IN_DELETE | bits.IN_DELETE_SELF


class _Observer(BaseObserver):
    def __init__(self) -> None:
        self._inotify_fd = InotifyFD()
        self._inotify_fd.start()
        super().__init__(_Emitter, inotify_fd=self._inotify_fd)

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self._inotify_fd.stop()
        self._inotify_fd.join()


class Watcher(FileSystemEventHandler):
    """Collects the names that something happened to in pending/. A hint, never the truth.

    `wake` is set at each, and when something may have left running/ for cancelled/ or for good.
    """

    def __init__(self, spool: Spool, wake: threading.Event) -> None:
        self._wake = wake
        self._pending = os.fspath(spool.directory(State.PENDING)) + os.sep
        self._names: dict[str, None] = {}
        self._mutex = threading.Lock()
        self._observer = _Observer()
        for state in (State.PENDING, State.RUNNING, State.CANCELLED):
            self._observer.schedule(self, os.fspath(spool.directory(state)))
        self._observer.schedule(self, os.fspath(spool.root))  # where the pause is

    def start(self) -> str:
        """Begin to watch; give why that can't be, or an empty text. Looking now and then works without."""
        try:
            self._observer.start()
        except OSError as error:  # no more inotify instances or watches
            return str(error)
        return ""

    def stop(self) -> None:
        """Stop watching."""
        if not self._observer.is_alive():
            return
        # watchdog complains of events that come while it stops; nobody can do anything about them.
        logging.getLogger("watchdog").setLevel(logging.CRITICAL)
        self._observer.stop()
        self._observer.join(timeout=5)

    def hints(self) -> list[str]:
        """Give the names in pending/ that something happened to since the last call, each once, oldest first."""
        with self._mutex:
            names, self._names = self._names, {}
        return list(names)

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Wake the daemon for whatever may have changed a directory."""
        if isinstance(event, DirModifiedEvent):
            return  # comes with each of the others
        path = os.fsdecode(event.src_path)
        if path.startswith(self._pending):
            with self._mutex:
                # What does not fit is found by the next look at the whole directory.
                if len(self._names) < _MAX_HINTS:
                    self._names[path[len(self._pending) :]] = None
        self._wake.set()


def _entry(name: str, info: os.stat_result) -> Entry:
    return Entry(
        name,
        info.st_mtime_ns,
        info.st_size,
        info.st_ino,
        stat.S_ISREG(info.st_mode),
        info.st_uid,
        info.st_ctime_ns,
    )


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _task_bytes(fd: int, info: os.stat_result, where: str) -> bytes:
    if not stat.S_ISREG(info.st_mode):
        raise TaskFileError("it is not a plain file", where=where, fix="A task is a YAML file")
    raw = _read_up_to(fd, MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise TaskFileError(
            f"the file has more than {MAX_BYTES} bytes", where=where, fix="Task files are small"
        )
    return raw


def _read_up_to(fd: int, limit: int) -> bytes:
    raw = b""
    while len(raw) < limit and (chunk := os.read(fd, limit - len(raw))):
        raw += chunk
    return raw


def _not_readable(path: str, error: OSError) -> str:
    if os.path.islink(path):  # noqa: PTH114 - texts, as above
        return "it is a symbolic link; copy the file itself"
    return f"it can't be read: {error.strerror}"
