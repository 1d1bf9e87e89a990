"""Signs of an attempt: what its worker says of itself in a file, and what others on its node see of it.

Each worker process has one file, named by its id and when it began, which no other process ever has. Others reach it
by a file beside that, or by its process id.

Source: proc_pid_stat(5), field 22; pidfd_open(2).
"""

import fcntl
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from labd.archive import JOURNAL, LOG, OUTPUT
from labd.files import read_json_object, write_json
from labd.worker.boxes import RUNS

_BEAT_S = 1.0
_LINE_BYTES = 4096
_MAX_NAMES = 20
_SUFFIX, _ASKED = ".json", ".ask"
_USED = ("work_cpu_s", "written_bytes", "read_bytes")
_SUMMED = (*_USED, "output_bytes", "shipped_bytes")


class Afar:
    """What the runs of this process's attempt on other machines come to, by what these say of them. Any thread may call."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._sums: Counter[str] = Counter()
        self._last: dict[object, Mapping[str, Any]] = {}

    def clear(self) -> None:
        """Begin anew, for another attempt."""
        with self._mutex:
            self._sums.clear()

    @contextmanager
    def one(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Give what takes the signs of one run, as `signs_of` gives them there, for the length of a block."""
        run = object()

        def note(signs: Mapping[str, Any]) -> None:
            with self._mutex:
                before = self._last.get(run, {})
                for name in _SUMMED:
                    self._sums[name] += max(0, signs[name] - before.get(name, 0))
                self._last[run] = signs

        try:
            yield note
        finally:
            with self._mutex:
                self._last.pop(run, None)

    def facts(self) -> dict[str, Any]:
        """Give sums over all runs so far, and ``asks`` and ``gpu_use`` of those that go on."""
        with self._mutex:
            now = list(self._last.values())
            sums = {name: self._sums[name] for name in _SUMMED}
        asks = sum(signs["asks"] for signs in now)
        return {**sums, "asks": asks, "gpu_use": _busiest(signs["gpu_use"] for signs in now)}


AFAR = Afar()


@dataclass(frozen=True, slots=True)
class _Said:
    """What a process says of itself; `facts` never change."""

    facts: Mapping[str, Any]
    results: Path | None
    asks: Callable[[], int]
    shipped: Callable[[], int]

    def line(self, beats: int) -> bytes:
        """Give how it stands, in less than `_LINE_BYTES`; of the names of runs only as many as there is room for."""
        runs = RUNS.under_way()
        names = [run.name[:100] for run in runs[:_MAX_NAMES]]
        afar = AFAR.facts()
        output_bytes = self._size(OUTPUT) + sum(_size(run.log) for run in runs)
        facts = {
            **self.facts,
            "beats": beats,
            "journal_bytes": self._size(JOURNAL),
            "log_bytes": self._size(LOG),
            "output_bytes": output_bytes + afar.pop("output_bytes"),
            "asks": self.asks() + afar.pop("asks"),
            "shipped_bytes": self.shipped() + afar.pop("shipped_bytes"),
            "afar": afar,
        }
        while True:
            line = json.dumps({**facts, "runs": names}).encode()
            if len(line) < _LINE_BYTES or not names:
                return line
            names.pop()

    def _size(self, name: str) -> int:
        return 0 if self.results is None else _size(self.results / name)


class Beats:
    """What a process says of its attempt, in a file of its own in a directory, made if missing.

    The file is locked for as long as it can be written, so that an old line is never taken for a process that stands still.

    Raises:
        OSError: the disk would not take it.

    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{process_name()}{_SUFFIX}"
        self._asked = path.with_suffix(_ASKED)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mutex = threading.Lock()
        self._said: _Said | None = None
        self._number = 0
        self._locked = False
        self._busy = threading.Event()
        threading.Thread(target=self._beat, name="beats", daemon=True).start()

    @contextmanager
    def during(
        self,
        job: Mapping[str, Any],
        gpus: Sequence[int],
        *,
        results: Path | None = None,
        asks: Callable[[], int] | None = None,
        shipped: Callable[[], int] | None = None,
    ) -> Iterator[None]:
        """Say for the length of a block that this process has an attempt; a block inside it says more, and then this one again.

        `results`: where its files grow on this node. `asks`, `shipped`: see `labd.scheduler.Signs`; what a block does not have, it
        takes from the one around it.
        """
        facts = {"task_id": job["task_id"], "attempt": job["attempt"], "gpus": list(gpus)}
        with self._mutex:
            before = self._said
            around = before or _Said(facts, None, _none, _none)
            said = _Said(facts, results, asks or around.asks, shipped or around.shipped)
            self._say(said)
        self._busy.set()
        try:
            yield
        finally:
            with self._mutex:
                self._say(before)

    def _say(self, said: _Said | None) -> None:
        """Say this from now on; with the lock held."""
        self._said = said
        self._write()

    def _beat(self) -> None:
        while self._busy.wait():
            with self._mutex:
                if self._said is None:
                    self._busy.clear()
                    continue
                self._write()
            self._hear()
            time.sleep(_BEAT_S)

    def _write(self) -> None:
        """Say how it stands, or by giving up the lock that it can't; with the mutex held. A disk that is full shows elsewhere."""
        self._number += 1
        line = b"{}" if self._said is None else self._said.line(self._number)
        try:
            os.pwrite(self._fd, line.ljust(_LINE_BYTES), 0)
            if not self._locked:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._locked = True
        except BlockingIOError:
            return  # somebody is reading: the next beat locks it
        except OSError:
            self._locked = False
            with suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _hear(self) -> None:
        """Do what another process on this node asks of this one."""
        asked = read_json_object(self._asked)
        if asked is None:
            return
        self._asked.unlink(missing_ok=True)
        with self._mutex:
            mine = self._said is not None and _same(self._said.facts, asked)
        if mine:
            RUNS.end_stuck()


def attempts_here(directory: Path, gpu_use: Mapping[int, float]) -> list[dict[str, Any]]:
    """Give the attempts that workers on this node have: ``task_id``, ``attempt``, and what `labd.scheduler.Signs` has.

    One whose worker can't say how it stands is left out.

    Args:
        directory: of `Beats`; files of processes that are gone are removed.
        gpu_use: how busy each GPU is now, by its index, 0 to 1.

    """
    return list(_seen(directory, gpu_use).values())


def signs_of(directory: Path, pid: int, gpu_use: Mapping[int, float]) -> dict[str, Any] | None:
    """Give what `attempts_here` gives of one process; nothing where it has no attempt."""
    return _seen(directory, gpu_use).get(pid)


def _seen(directory: Path, gpu_use: Mapping[int, float]) -> dict[int, dict[str, Any]]:
    said = {pid: facts for pid, path, facts in _said(directory) if _is_written(path)}
    used = _used_by(said) if said else {}
    found = {}
    for pid, facts in said.items():
        gpus, afar = facts.pop("gpus"), facts.pop("afar")
        uses = [gpu_use[gpu] for gpu in gpus if gpu in gpu_use] or list(gpu_use.values())
        use = max(uses) if gpus and uses else None
        own = used.get(pid) or _used(None, {})
        own |= {name: own[name] + afar[name] for name in _USED}
        found[pid] = {**facts, **own, "gpu_use": _busiest((use, afar["gpu_use"]))}
    return found


def _busiest(uses: Iterable[float | None]) -> float | None:
    return max((use for use in uses if use is not None), default=None)


def reach(directory: Path, task_id: str, attempt: int, how: str) -> bool:
    """Have an attempt's workers on this node end its runs as stuck (``end_runs``), or kill them (``kill``); say if there are any."""
    wanted = {"task_id": task_id, "attempt": attempt}
    found = [(pid, path) for pid, path, facts in _said(directory) if _same(facts, wanted)]
    for pid, path in found:
        if how == "kill":
            _kill(pid, path)
        else:
            write_json(path.with_suffix(_ASKED), wanted, durable=False)
    return bool(found)


def _is_written(path: Path) -> bool:
    """Say whether its process can write to a file, and so keeps it locked."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _none() -> int:
    return 0


def _kill(pid: int, path: Path) -> None:
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            if lives(path.stem):  # so it is this process still that has the id
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def _said(directory: Path) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Give the ids and the files of living processes with what they say, where they have an attempt."""
    for path in directory.glob(f"*{_SUFFIX}") if directory.is_dir() else ():
        if not lives(path.stem):
            for gone in (path, path.with_suffix(_ASKED)):
                gone.unlink(missing_ok=True)
        elif facts := read_json_object(path):
            yield int(path.stem.partition("-")[0]), path, facts


def process_name() -> str:
    """Give a name for this process that no other ever has on this machine."""
    return f"{os.getpid()}-{_began(os.getpid())}"


def lives(name: str) -> bool:
    """Say whether the process lives that has this name."""
    pid, _, began = name.partition("-")
    return pid.isdecimal() and _began(int(pid)) == began


def _began(pid: int) -> str:
    """Give when a process began, in clock ticks since the machine did; empty where it is gone."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return raw[raw.rindex(b")") :].split()[20].decode()


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("task_id", "attempt"))


def _size(path: Path | None) -> int:
    try:
        return 0 if path is None else path.stat().st_size
    except OSError:
        return 0


def _used_by(pids: Iterable[int]) -> dict[int, dict[str, float]]:
    """Give what `_used` gives for each process."""
    children: dict[int, list[psutil.Process]] = {}
    mine: dict[int, psutil.Process] = {}
    wanted = set(pids)
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process)
        if process.pid in wanted:
            mine[process.pid] = process
    return {pid: _used(process, children) for pid, process in mine.items()}


def _used(
    process: psutil.Process | None, children: Mapping[int, Sequence[psutil.Process]]
) -> dict[str, float]:
    """Give a process's own CPU seconds, those of all below it, the dead ones' too, and what these have written and read."""
    own_s = work_s = 0.0
    written_bytes = read_bytes = 0
    below: list[psutil.Process] = []
    if process is not None:
        with suppress(psutil.Error):
            used = process.cpu_times()
            own_s, work_s = used.user + used.system, used.children_user + used.children_system
        below += children.get(process.pid, ())
    while below:
        one = below.pop()
        below += children.get(one.pid, ())
        with suppress(psutil.Error):
            work_s += sum(one.cpu_times()[:4])
            used_io = one.io_counters()
            written_bytes += used_io.write_chars
            read_bytes += used_io.read_chars
    return {
        "own_cpu_s": own_s,
        "work_cpu_s": work_s,
        "written_bytes": written_bytes,
        "read_bytes": read_bytes,
    }
