"""The processes and the directory of a Ray of our own: told from all others, and ended. Knows no Ray.

A driver is the leader of a session of its own (see setsid(2)), and all of its Ray's processes stay in
that session, whoever their parent comes to be. Measured on Ray 2.60: after a SIGKILL of the driver its
workers live on for 2-3 s, and the agents of its dashboard and runtime environments for about a minute.
"""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from labd.errors import EngineError

_TEMP_ROOT = Path("/tmp")  # noqa: S108 - Ray's sockets need a short path; the directory below is 0700
_ROOT_LOCK = ".lock"
_OWNER_LOCK = "owner.lock"
_POLL_S = 0.05
_SWEEP_TIMEOUT_S = 5.0


class Temp:
    """A short directory for the Ray of this process, its own for as long as this process lives.

    Making one ends and removes what drivers of this user left behind that are gone.

    Raises:
        EngineError: the directory's parent belongs to somebody else, or can't be made.

    """

    def __init__(self) -> None:
        root = _root()
        with _locked(root / _ROOT_LOCK):
            _sweep(root)
            self.path = temp_of(os.getpid())
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(mode=0o700)
            self._owner_fd = _open_lock(self.path / _OWNER_LOCK)
            fcntl.flock(self._owner_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Remove the directory and let go of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._owner_fd)


def temp_of(pid: int) -> Path:
    """Give the directory of the Ray of the driver `pid`, whether it exists or not."""
    return _TEMP_ROOT / f"labd-ray-{os.getuid()}" / str(pid)


def remove_temp(pid: int) -> None:
    """Remove the directory of a driver that is gone."""
    shutil.rmtree(temp_of(pid), ignore_errors=True)


def end_session(pid: int, timeout_s: float, *, spare: Sequence[int] = ()) -> list[int]:
    """SIGKILL the Ray of the driver `pid`, all but `spare`, and wait; give the ids that were still there.

    A process is ended only if it is ours, in the driver's session, and has a file open below the
    driver's directory: a process id alone may have come to be somebody else's.
    """
    temp = f"{temp_of(pid)}/"
    deadline = time.monotonic() + timeout_s
    ended: list[int] = []
    while (left := _members(pid, temp, {*spare, os.getpid()})) and time.monotonic() < deadline:
        ended += [member for member in left if member not in ended]
        _kill_and_wait(left, pid, temp)
    return ended


def wait_for_any(pids: Sequence[int]) -> list[int]:
    """Wait, without an end, until some of the processes are gone; give their ids.

    Raises:
        ProcessLookupError: one of them does not exist already.

    """
    poller = select.poll()
    fds = {os.pidfd_open(pid): pid for pid in pids}
    for fd in fds:
        poller.register(fd, select.POLLIN)
    try:
        return [fds[fd] for fd, _ in poller.poll()]
    finally:
        for fd in fds:
            os.close(fd)


def wait_for_lock(path: Path, timeout_s: float) -> None:
    """Wait until nobody holds the file locked (see `sharing_lock`).

    Raises:
        EngineError: somebody still holds it.

    """
    deadline = time.monotonic() + timeout_s
    fd = _open_lock(path)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > deadline:
                raise EngineError(
                    f"workers of an earlier engine still run after {timeout_s:g} s",
                    where=str(path),
                    fix="End the processes that hold this file (see fuser(1))",
                )
            time.sleep(_POLL_S)
    finally:
        os.close(fd)


@contextlib.contextmanager
def sharing_lock(path: Path) -> Iterator[None]:
    """Hold a share of the lock on `path` for as long as the block runs or this process lives.

    No child inherits it across exec. Waits while `wait_for_lock` of another process has it, which is
    a moment.
    """
    fd = _open_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def _root() -> Path:
    root = temp_of(0).parent
    root.mkdir(mode=0o700, exist_ok=True)
    facts = root.lstat()
    if root.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise EngineError(
            "somebody else may write to this directory", where=str(root), fix="Remove it"
        )
    return root


def _sweep(root: Path) -> None:
    """End and remove what is left of drivers that are gone: nobody holds the lock in their directory."""
    for old in root.iterdir():
        if not old.name.isdecimal() or old.is_symlink():
            continue
        fd = _open_lock(old / _OWNER_LOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
        end_session(int(old.name), _SWEEP_TIMEOUT_S)
        shutil.rmtree(old, ignore_errors=True)


def _members(session: int, temp: str, spare: set[int]) -> list[int]:
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - ids, not paths
    return [pid for pid in pids if pid not in spare and _belongs(pid, session, temp)]


def _belongs(pid: int, session: int, temp: str) -> bool:
    try:
        if os.getsid(pid) != session or Path(f"/proc/{pid}").stat().st_uid != os.getuid():
            return False
        fds = Path(f"/proc/{pid}/fd")
        return any(str(_target(fd)).startswith(temp) for fd in fds.iterdir())
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return False


def _target(fd: Path) -> Path:
    try:
        return fd.readlink()
    except FileNotFoundError:
        return Path()


def _kill_and_wait(pids: Sequence[int], session: int, temp: str) -> None:
    poller = select.poll()
    fds: list[int] = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fds.append(os.pidfd_open(pid))
            # Asked again now that the descriptor holds the process: the id can't change hands any more.
            if _belongs(pid, session, temp):
                signal.pidfd_send_signal(fds[-1], signal.SIGKILL)
                poller.register(fds[-1], select.POLLIN)
    while gone := poller.poll(_POLL_S * 1000):
        for fd, _ in gone:
            poller.unregister(fd)
    for fd in fds:
        os.close(fd)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = _open_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
