"""A sandbox that starts ahead of its command, in a directory that becomes the command's own by a rename.

Starting a sandbox takes longer than many commands. So one is kept waiting, empty, and nothing has run in
it. A bind mount follows its directory, so that the waiting sandbox sees it at its new place.

Source: mount(2), rename(2), flock(2).
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from labd.errors import LabdError
from labd.sandbox.held import KILL_TIMEOUT_S, START_TIMEOUT_S, Held, StartFailed, held
from labd.sandbox.launch import Command
from labd.sandbox.meter import Meter
from labd.sandbox.model import Ending, Limits, Request
from labd.sandbox.supervise import Order, Seen, follow
from labd.sandbox.thread import OwnThread
from labd.sandbox.workdir import hand_over

MAX_AGE_S = 600.0
"""A waiting sandbox shows the host as it was at its start: libraries, name servers. Older ones are replaced."""
_NAME = re.compile(r"ahead-[0-9a-f]{16}")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Maker(Protocol):
    """What this module needs of a sandbox."""

    def recipe(self, request: Request) -> tuple[Command, int | None]:
        """Give how to start one for a request, and as which user.

        Raises:
            SandboxError: the host can't keep a promise, or the request can't be met.

        """
        ...


class Ahead:
    """Keeps one sandbox waiting for its command below `base`, made where it is not there. Any thread may use it.

    It serves runs of the sandbox it was made with, for the same memory, processes, CPU, sizes of files and of
    private places, inputs and network, without GPUs, into an absent or empty directory of the same file system. Other
    runs, and a second one at the same time, start a sandbox of their own. One that has waited for ten minutes is
    replaced by another.

    Each is used once: call `prime` again after a run. Where a process ends without `close`, its directory stays for
    `sweep`.
    """

    def __init__(
        self,
        sandbox: Maker,
        base: Path,
        *,
        limits: Limits,
        read_only: Mapping[str, Path] = _NOTHING,
        network: bool = False,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._sandbox = sandbox
        self._max_age_s = max_age_s
        self._base = base.absolute()
        inputs = {inside: source.resolve() for inside, source in read_only.items()}
        self._request = Request((), self._base, inputs, {}, limits, network=network)
        self._mutex = threading.Lock()
        self._spare: _Spare | None = None
        self._closed = False

    def prime(self) -> None:
        """Start a sandbox in the background unless one waits; never raises, for a run can do without."""
        with self._mutex:
            if not self._closed and (self._spare is None or self._spare.over()):
                self._spare = self._new_spare()

    def _new_spare(self) -> "_Spare":
        return _Spare(self._sandbox, self._base, self._request, self._max_age_s, self._renew)

    def _renew(self, aged: "_Spare") -> None:
        """Start another in the place of one that has waited too long."""
        with self._mutex:
            if not self._closed and self._spare is aged:
                self._spare = self._new_spare()

    def trouble(self) -> str:
        """Give why no sandbox waits although one was started; empty if there is no trouble."""
        with self._mutex:
            return "" if self._spare is None else self._spare.trouble()

    def close(self) -> None:
        """End what waits, and remove its directory. `prime` does nothing afterwards; a run that was served goes on."""
        with self._mutex:
            self._closed = True
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def take(self, sandbox: Maker, request: Request) -> "_Spare | None":
        """Give the waiting sandbox, whose directory now lies at the request's; or none if it doesn't fit."""
        with self._mutex:
            spare = self._spare
            if spare is None or sandbox is not self._sandbox:
                return None
            if _shape(request) != _shape(self._request) or not self._fits(request.workdir):
                return None
            self._spare = None
        if spare.ready() and spare.move_to(request.workdir):
            return spare
        spare.end()
        return None

    def _fits(self, workdir: Path) -> bool:
        try:
            same_disk = workdir.stat().st_dev == self._base.stat().st_dev
            return same_disk and not any(workdir.iterdir())
        except OSError:
            return False


def _shape(request: Request) -> tuple[object, ...]:
    """Give what a sandbox can't change any more once it was started."""
    limits = request.limits
    sizes = (limits.file_bytes, limits.shm_bytes, limits.tmp_bytes, limits.cpus, limits.cpu_s)
    inputs = sorted(request.read_only.items())
    return limits.memory_bytes, limits.processes, sizes, inputs, request.gpus, request.network


def _identities(request: Request) -> dict[str, tuple[int, int]]:
    found = {inside: path.stat() for inside, path in request.read_only.items()}
    return {inside: (status.st_dev, status.st_ino) for inside, status in found.items()}


class _Spare:
    """One waiting sandbox, its directory, and the thread that owns both."""

    def __init__(
        self,
        maker: Maker,
        base: Path,
        request: Request,
        max_age_s: float,
        renew: Callable[["_Spare"], None],
    ) -> None:
        self._maker = maker
        self._max_age_s = max_age_s
        self._renew = renew
        self._base = base
        self._request = request
        self._identities: dict[str, tuple[int, int]] = {}
        self._mutex = threading.Lock()
        self._settled = threading.Event()
        """Set when it is ready, or over."""
        self._place: _Place | None = None
        self._order: Order | None = None
        self._went = False
        self._wake_fd: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: OwnThread[Seen | None] = OwnThread(self._whole, "labd-ahead")

    def over(self) -> bool:
        """Say whether it can't be used any more."""
        return self._thread.done()

    def trouble(self) -> str:
        """Give why it is over; empty if it is not, or ended as it should."""
        error = self._thread.error()
        return "" if error is None else str(error)

    def ready(self) -> bool:
        """Wait until it is set up; say False if it can't be, or its inputs are not what they were."""
        self._settled.wait(2 * START_TIMEOUT_S)
        try:
            return not self.over() and _identities(self._request) == self._identities
        except OSError:
            return False

    def move_to(self, workdir: Path) -> bool:
        """Put its directory in the place of an empty one, whose mode it gets; say False if that can't be."""
        place = self._place
        if place is None:
            return False
        try:
            place.replaced = workdir.stat()
            os.fchmod(place.fd, stat.S_IMODE(place.replaced.st_mode))
            place.path.rename(workdir)
        except OSError:
            return False
        return True

    def owner(self) -> tuple[int, int]:
        """Give user and group of the directory that was replaced."""
        if self._place is None or self._place.replaced is None:
            msg = "no directory was replaced"
            raise RuntimeError(msg)
        return self._place.replaced.st_uid, self._place.replaced.st_gid

    def run(self, order: Order) -> Seen | None:
        """Give how the ordered run went; nothing if the sandbox ended before it, so that nothing ran.

        Raises:
            SandboxError: a process would not die.
            OSError: as `follow` gives it.

        """
        self._wake(order)
        try:
            return self._thread.result(order.interrupted)
        except StartFailed:
            return None
        except (LabdError, OSError):
            if self._went:
                raise
            return None

    def end(self) -> None:
        """End it if nothing was ordered, and wait until it is gone."""
        self._wake(None)
        self._thread.join(2 * KILL_TIMEOUT_S)

    def _wake(self, order: Order | None) -> None:
        with self._mutex:
            if self._wake_fd is not None:
                self._order = order
                os.eventfd_write(self._wake_fd, 1)

    def _whole(self) -> Seen | None:
        try:
            return self._kept()
        finally:
            self._close_wake()
            self._settled.set()

    def _kept(self) -> Seen | None:
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _place(self._base) as place:
            request = self._request
            self._identities = _identities(request)
            command, uid = self._maker.recipe(replace(request, workdir=place.path))
            if uid is not None:
                hand_over(place.fd, uid)
            with (
                held(command, uid) as (sandbox, init_pid),
                Meter(init_pid, place.fd, sandbox.group) as meter,
            ):
                self._place = place
                self._settled.set()
                order = self._awaited(sandbox)
                if order is None:
                    return None
                self._went = True
                seen = follow(sandbox, meter, order)
                return None if seen.ending is Ending.KILLED and not seen.begun else seen

    def _awaited(self, sandbox: Held) -> Order | None:
        # Only this thread closes it, after its last look.
        wake_fd = self._wake_fd
        until_s = time.monotonic() + self._max_age_s
        if wake_fd is None or not sandbox.idle(wake_fd, self._max_age_s):
            if time.monotonic() >= until_s:
                self._renew(self)
            return None
        with self._mutex:
            return self._order

    def _close_wake(self) -> None:
        with self._mutex:
            if self._wake_fd is not None:
                os.close(self._wake_fd)
            self._wake_fd = None


@dataclass(slots=True)
class _Place:
    """The directory of a waiting sandbox."""

    path: Path
    fd: int
    replaced: os.stat_result | None = None


@contextmanager
def _place(base: Path) -> Iterator[_Place]:
    """Give a new directory, which is gone after the block unless it was moved; its lock says that somebody lives."""
    path = base / f"ahead-{secrets.token_hex(8)}"
    lock = path.with_suffix(".lock")
    lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _hold(lock, lock_fd)
        try:
            path.mkdir(mode=0o700)
            with _opened(path) as fd:
                place = _Place(path, fd)
                yield place
        finally:
            # What is at the path now, if anything, is still ours. Where it can't go, its lock stays for a sweep.
            if path.exists():
                shutil.rmtree(path)
            lock.unlink()
    finally:
        os.close(lock_fd)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _hold(lock: Path, lock_fd: int) -> None:
    """Take the lock, which a sweep may have taken, and removed, since it was made."""
    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.fstat(lock_fd).st_ino != lock.stat().st_ino:
        raise BlockingIOError(errno.EAGAIN, "swept away", str(lock))


def sweep(base: Path) -> int:
    """Remove the directories below `base` that processes which are dead left waiting; give how many they were.

    Raises:
        OSError: as the system gives it.

    """
    if not base.is_dir():
        return 0
    names = {entry.stem for entry in base.iterdir() if entry.suffix in {"", ".lock"}}
    return sum(_swept(base / name) for name in sorted(names) if _NAME.fullmatch(name))


def _swept(path: Path) -> bool:
    lock = path.with_suffix(".lock")
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = path.is_dir() and not path.is_symlink()
        if there:
            shutil.rmtree(path)
        lock.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return there
