"""What a running sandbox uses, seen from outside. Knows files only.

Processes are listed from the sandbox's own ``/proc``, which shows exactly those of its namespace, however
they detached themselves. What is read changes meanwhile; a process that is gone counts nothing.

Source: proc_pid_smaps_rollup(5), proc_pid_statm(5), proc_pid_stat(5), pidfd_send_signal(2).
"""

import os
import resource
import signal
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

from labd.sandbox.cgroup import Group
from labd.sandbox.command import HOME, SHM, TMP

_PAGE_BYTES = resource.getpagesize()
_MAX_READ_BYTES = 4096
_STOP_TIMEOUT_S = 0.1
"""For all of a run to stop: a process that starts others all the time, or hangs in the kernel, is not waited for."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Meter:
    """Measures the sandbox whose process 1 has host id `init_pid` and has been set up, by its `group` if it has one."""

    def __init__(self, init_pid: int, workdir_fd: int, group: Group | None = None) -> None:
        self.group = group
        self._cpu_s = 0.0
        self._opened = ExitStack()
        root = f"/proc/{init_pid}/root"
        try:
            self._proc_fd = self._open(f"{root}/proc")
            self._tmpfs_fds = [self._open(f"{root}{place}") for place in (SHM, TMP, HOME)]
            self._tmpfs_devices = {os.fstat(fd).st_dev for fd in self._tmpfs_fds}
        except BaseException:
            self._opened.close()
            raise
        self._disk_device = os.fstat(workdir_fd).st_dev
        self.peak_memory_bytes: int | None = None

    def close(self) -> None:
        """Let go of the sandbox's directories."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def unlinked_bytes(self) -> tuple[int, int]:
        """Give what open files without a name hold: on the working directory's disk, and in memory."""
        sizes: dict[tuple[int, int], int] = {}
        for pid in self._pids():
            for status in self._open_files(pid):
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
                    sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
        disk = sum(size for (device, _), size in sizes.items() if device == self._disk_device)
        known = {self._disk_device, *self._tmpfs_devices}
        return disk, sum(size for (device, _), size in sizes.items() if device not in known)

    def memory_bytes(self, unlinked_bytes: int) -> int:
        """Give what the sandbox holds now, or a sum that is no more than the peak so far.

        Private and mapped file pages, shared ones once, and shared memory: what is mapped, or what lies in the
        sandbox's tmpfs and in the `unlinked_bytes` of memory files, whichever is more (they overlap). Where a
        control group counts it, its own memory and shared memory.
        """
        counted = None if self.group is None else self.group.memory_bytes()
        if counted is not None:
            self.peak_memory_bytes = max(counted, self.peak_memory_bytes or 0)
            return counted
        lying = unlinked_bytes + sum(_used_bytes(fd) for fd in self._tmpfs_fds)
        pids = self._pids()
        bound = lying + sum(self._resident_bytes(pid) for pid in pids)
        # The exact sum walks page tables: 10 ms and more for a few GiB. It is never above the bound.
        if self.peak_memory_bytes is not None and bound <= self.peak_memory_bytes:
            return bound
        sums = [self._proportional_bytes(pid) for pid in pids]
        held = sum(own for own, _ in sums) + max(lying, sum(shared for _, shared in sums))
        self.peak_memory_bytes = max(held, self.peak_memory_bytes or 0)
        return held

    def lying_files(self) -> int:
        """Give how many files the private place has that has most of them."""
        return max(_used_files(fd) for fd in self._tmpfs_fds)

    def cpu_s(self) -> float:
        """Give the CPU time of all processes: exactly by a control group; else the largest sum seen of those that live and what they waited for."""
        counted = None if self.group is None else self.group.cpu_s()
        if counted is not None:
            return counted
        stats = [self._read(f"{pid}/stat").rpartition(")")[2].split() for pid in self._pids()]
        used_s = sum(sum(map(int, stat[11:15])) for stat in stats if stat) / _TICKS_PER_S
        # What nobody has waited for is gone from the sum when it ends.
        self._cpu_s = max(used_s, self._cpu_s)
        return self._cpu_s

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep all processes of the sandbox from running, as far as that can be, for the length of a block."""
        if self.group is not None and self.group.freeze(frozen=True):
            try:
                yield
            finally:
                self.group.freeze(frozen=False)
            return
        stopped: set[str] = set()
        try:
            # Those that run may start others meanwhile, and go on until they leave the kernel or the
            # processor that they are on is told; what was stopped before stays so afterwards.
            deadline_s = time.monotonic() + _STOP_TIMEOUT_S
            while running := {
                pid for pid in self._pids() if pid != "1" and not self._is_stopped(pid)
            }:
                self._signal(running, signal.SIGSTOP)
                stopped |= running
                if time.monotonic() > deadline_s:
                    break
                time.sleep(0.0005)
            yield
        finally:
            self._signal(stopped, signal.SIGCONT)

    def _is_stopped(self, pid: str) -> bool:
        return self._read(f"{pid}/stat").rpartition(")")[2].split()[:1] in (["T"], ["Z"], [])

    def _signal(self, pids: Iterable[str], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(OSError):
                # A directory of a process can be signalled like a pidfd, also one of an inner namespace.
                fd = os.open(
                    pid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc_fd
                )
                try:
                    signal.pidfd_send_signal(fd, number)
                finally:
                    os.close(fd)

    def _open(self, path: str) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._opened.callback(os.close, fd)
        return fd

    def _pids(self) -> list[str]:
        with suppress(OSError):
            return [name for name in os.listdir(self._proc_fd) if name.isdecimal()]  # noqa: PTH208 - a descriptor
        return []

    def _read(self, name: str) -> str:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc_fd)
        except OSError:
            return ""
        try:
            return os.read(fd, _MAX_READ_BYTES).decode(errors="replace")
        except OSError:
            return ""
        finally:
            os.close(fd)

    def _open_files(self, pid: str) -> list[os.stat_result]:
        found = []
        with suppress(OSError):
            fd = os.open(
                f"{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc_fd
            )
            try:
                for name in os.listdir(fd):  # noqa: PTH208 - a descriptor
                    with suppress(OSError):
                        found.append(os.stat(name, dir_fd=fd))
            finally:
                os.close(fd)
        return found

    def _resident_bytes(self, pid: str) -> int:
        parts = self._read(f"{pid}/statm").split()
        return int(parts[1]) * _PAGE_BYTES if len(parts) > 1 else 0

    def _proportional_bytes(self, pid: str) -> tuple[int, int]:
        """Private and file pages, and shared memory; all counted as resident where the kernel won't say."""
        kib = {}
        for line in self._read(f"{pid}/smaps_rollup").splitlines()[1:]:
            name, _, value = line.partition(":")
            kib[name] = int(value.split()[0])
        if "Pss" not in kib:
            return self._resident_bytes(pid), 0
        shared = kib.get("Pss_Shmem", 0)
        return (kib["Pss"] - shared) * 1024, shared * 1024


def _used_bytes(fd: int) -> int:
    status = os.fstatvfs(fd)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _used_files(fd: int) -> int:
    status = os.fstatvfs(fd)
    return status.f_files - status.f_ffree
