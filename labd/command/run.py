"""One attempt at a command: run in the sandbox, its output in `log.txt`, its files in `files/`.

Knows the sandbox and the attempt's own results; nothing of Ray, the spool or research.
"""

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd.clock import print_duration
from labd.command.gpus import Gpus, find_gpus
from labd.command.outputs import Kept, settle
from labd.command.places import LOCK, Fence, Places, judge
from labd.files import Unsynced, locked_within
from labd.packing import unpack_all
from labd.sandbox import Ahead, Ending, Limits, Sandbox, SandboxResult
from labd.sandbox.workdir import usage
from labd.task import TaskFile
from labd.text import print_size, printable

FILES = "files"
LOG = "log.txt"
MAX_OLD_LOGS = 5
_OLD_LOG = re.compile(r"log\.attempt-(\d+)\.txt")
_INSIDE_FILES = "/work"
_INSIDE_WORKDIR = "/workdir"
_LOCK_TIMEOUT_S = 60.0
_MAX_COUNTED = 1_000_000
_TAIL_LINES, _TAIL_CHARACTERS = 5, 600


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt that runs the command."""

    task_id: str
    number: int
    results: Path
    """The task's own results directory; it exists."""
    num_cpus: float
    gpus: tuple[int, ...]
    """Indices, as Ray gives them."""
    min_free_bytes: int = 0
    """What has to stay free on the disk where an earlier attempt's files are unpacked."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a command ended."""

    facts: dict[str, Any]
    """For `result.json`: ending, exit_code, cpu_s, peak_memory_bytes, output_bytes, files."""
    summary: str
    """One line."""
    error: dict[str, Any] | None
    """``None`` if the command ended with exit code 0; else ``code``, ``message`` and ``retryable``."""
    disturbed: bool
    """Somebody killed it: this may be the first sign of everything being killed."""


def limits_of(caps: Mapping[str, Any], *, wall_s: float, room_bytes: int) -> Limits:
    """Give a command's limits: the lab's ceilings, its own timeout, and no more disk than there is room."""
    return Limits(
        wall_s=wall_s,
        memory_bytes=caps["memory_bytes"],
        processes=caps["processes"],
        file_bytes=caps.get("file_bytes") or caps["disk_bytes"],
        disk_bytes=max(1, min(caps["disk_bytes"], room_bytes)),
        output_bytes=caps["output_bytes"],
        cpus=caps.get("cpus"),
        cpu_s=caps.get("cpu_time"),
        **{key: caps[key] for key in ("files", "shm_bytes", "tmp_bytes") if key in caps},
    )


def left_in(results: Path) -> int:
    """Give how much of the disk an earlier attempt's files hold, in bytes."""
    try:
        fd = os.open(results / FILES, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return usage(fd, _MAX_COUNTED).size_bytes
    finally:
        os.close(fd)


def run_command(
    task: TaskFile,
    attempt: Attempt,
    sandbox: Sandbox,
    *,
    where: str,
    fence: Fence,
    allow_network: bool,
    limits: Limits,
    ahead: Ahead | None = None,
) -> Report:
    """Run a task's command to its end, and give how it ended; all of its processes are dead then.

    What an earlier attempt left in `files/` is there for this one. The log is durable when this returns.
    A sandbox of `ahead` is used where the command needs no more than it has.

    Raises:
        TaskFileError: what it names may not be named, or is gone.
        StillHeld: an earlier attempt is still alive, or retention is at its results.
        SandboxError: nothing was run.
        StorageError, OSError: the disk would not take what had to be written.

    """
    with _alone(attempt):
        seen = judge(task, where, fence=fence, allow_network=allow_network, at_run=True)
        files = attempt.results / FILES
        files.mkdir(mode=0o755, exist_ok=True)
        gpus = find_gpus(attempt.gpus)
        kills_before = _oom_kills()
        result = sandbox.run(
            _argv(task),
            workdir=files,
            read_only=_read_only(seen),
            env=_environment(task, attempt, gpus),
            limits=limits,
            gpus=gpus.minors,
            log=attempt.results / LOG,
            network=task.spec.network,
            cwd=_INSIDE_WORKDIR if seen.workdir else _INSIDE_FILES,
            ahead=ahead,
        )
        out_of_memory = result.exit_code == -signal.SIGKILL and _oom_kills() > kills_before
        kept = settle(files, task.spec.outputs if result.exit_code == 0 else None)
        error = _error(result, limits, out_of_memory=out_of_memory)
        output_bytes = (attempt.results / LOG).stat().st_size
        if output_bytes:
            changed = Unsynced()
            changed.note(file=attempt.results / LOG)
            changed.sync()
    return _report(result, kept, output_bytes, error)


def _argv(task: TaskFile) -> list[str]:
    run = task.spec.run or ""
    return ["/bin/sh", "-c", run] if isinstance(run, str) else list(run)


def _read_only(seen: Places) -> dict[str, Path]:
    inputs = {f"/inputs/{name}": path for name, path in seen.inputs.items()}
    return {_INSIDE_WORKDIR: seen.workdir, **inputs} if seen.workdir else inputs


def _environment(task: TaskFile, attempt: Attempt, gpus: Gpus) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(max(1, int(attempt.num_cpus))),
        **task.spec.env,
        "LABD_TASK": attempt.task_id,
        "LABD_ATTEMPT": str(attempt.number),
        "LABD_FILES": _INSIDE_FILES,
        "CUDA_VISIBLE_DEVICES": gpus.visible,
    }


@contextmanager
def _alone(attempt: Attempt) -> Iterator[None]:
    """Hold the command's results against other attempts and retention, and have them as the last attempt left them."""
    with locked_within(attempt.results / LOCK, _LOCK_TIMEOUT_S) as fd:
        unpack_all(attempt.results, spare_bytes=attempt.min_free_bytes)
        _put_log_aside(attempt.results, os.pread(fd, 20, 0))
        os.pwrite(fd, f"{attempt.number:<19}\n".encode(), 0)
        yield


def _put_log_aside(results: Path, last: bytes) -> None:
    """Rename the log of the attempt that held the lock `last`, and remove what is older than the last five."""
    if not last.strip().isdigit() or not (results / LOG).exists():
        return
    (results / LOG).replace(results / f"log.attempt-{int(last)}.txt")
    old = {path: _OLD_LOG.fullmatch(path.name) for path in results.iterdir()}
    numbered = sorted((int(match[1]), path) for path, match in old.items() if match)
    for _, path in numbered[:-MAX_OLD_LOGS]:
        path.unlink()


def _oom_kills() -> int:
    """Count what the kernel has killed on this machine because memory ran out. Source: proc_vmstat(5)."""
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _error(result: SandboxResult, limits: Limits, *, out_of_memory: bool) -> dict[str, Any] | None:
    if result.exit_code == 0:
        return None
    if out_of_memory:
        code, what, retryable = "out_of_memory", "the machine ran out of memory", True
    elif result.exit_code is not None:
        code, what, retryable = "exit_code", _exit(result.exit_code), False
    else:
        code, retryable = result.ending.value, result.ending in _RETRYABLE
        what = _WHAT[result.ending].format(
            wall=print_duration(limits.wall_s),
            memory=print_size(limits.memory_bytes),
            cpu=print_duration(limits.cpu_s or limits.wall_s),
            disk=print_size(limits.disk_bytes),
            files=limits.files,
            output=print_size(4 * limits.output_bytes),
        )
    return {"code": code, "message": what + _last_lines(result.output), "retryable": retryable}


_RETRYABLE = frozenset({Ending.KILLED, Ending.MEMORY_LIMIT})
_WHAT: Mapping[Ending, str] = {
    Ending.TIMED_OUT: "it was killed after its timeout of {wall}",
    Ending.CANCELLED: "it was cancelled",
    Ending.OUTPUT_LIMIT: "it was killed after printing more than {output}",
    Ending.DISK_LIMIT: "it was killed for writing more than {disk}, or more than {files} files",
    Ending.MEMORY_LIMIT: "out of memory: it was killed for using more than {memory}",
    Ending.CPU_LIMIT: "it was killed for using more than {cpu} of CPU time",
    Ending.KILLED: "its sandbox was killed from outside",
}


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    # A shell gives exit code 128 + n for its child that died of signal n; here they look the same.
    return f"ended by {name} (exit code {128 - code})"


def _last_lines(output: str) -> str:
    lines = [line for line in output[-8000:].splitlines() if line.strip()][-_TAIL_LINES:]
    if not lines:
        return ", without any output"
    text = " | ".join(line.strip()[:200] for line in lines)
    return f"; it said last: {printable(text[-_TAIL_CHARACTERS:], 2 * _TAIL_CHARACTERS)}"


def _report(
    result: SandboxResult, kept: Kept, output_bytes: int, error: dict[str, Any] | None
) -> Report:
    facts = {
        "ending": result.ending.value,
        "exit_code": result.exit_code,
        "cpu_s": round(result.cpu_s, 3),
        "peak_memory_bytes": result.peak_memory_bytes,
        "output_bytes": output_bytes,
        "files": {"count": kept.files, "size_bytes": kept.size_bytes},
    }
    how = result.ending.value.replace("_", " ")
    if result.exit_code is not None:
        how = _exit(result.exit_code)
    peak = result.peak_memory_bytes
    used = f"{result.cpu_s:.1f} s CPU" + ("" if peak is None else f", {print_size(peak)}")
    count = f"{kept.files} file" + ("" if kept.files == 1 else "s")
    summary = f"{how} after {print_duration(result.wall_s)}; {used}; {count}"
    killed = result.ending is Ending.KILLED or result.exit_code == -signal.SIGKILL
    return Report(facts, summary, error, disturbed=killed)
