"""`labd sandbox`: run a command exactly as a task's command would be run, and say which limits hold; gaps at a start."""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from labd.clock import print_duration
from labd.command.gpus import find_gpus
from labd.command.run import limits_of
from labd.errors import ConfigError
from labd.limits import TaskLimits, settled
from labd.log import Logger
from labd.sandbox import Ending, Limits, Sandbox, SandboxConfig, SandboxResult
from labd.settings import SandboxSettings
from labd.text import print_size, printable

EXIT_LIMIT = 124
"""Of a run that was ended for a limit, as timeout(1) has it."""
_POLL_S = 0.1
_CHUNK_BYTES = 65536
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def run_boxed(
    argv: Sequence[str],
    settings: SandboxSettings,
    *,
    workdir: Path | None,
    gpus: Sequence[int],
    timeout_s: float,
    network: bool,
) -> int:
    """Run the command, its output as it comes, and give the exit code that a shell would; `EXIT_LIMIT` for a limit.

    Raises:
        ConfigError: the settings don't allow the network.
        SandboxError, StorageError: as `Sandbox.run`.

    """
    if network and not settings.allow_network:
        raise ConfigError(
            "the settings don't let a command have the network",
            fix="Write `sandbox: {allow_network: true}` into config/labd.yaml",
        )
    sandbox = Sandbox(_config(settings))
    caps = settled(settings.model_dump(mode="json"), TaskLimits())
    limits = limits_of(caps, wall_s=timeout_s, room_bytes=caps["disk_bytes"])
    _say(describe(limits, sandbox))
    found = find_gpus(gpus)
    with tempfile.TemporaryDirectory(prefix="labd-sandbox-") as name:
        work = workdir or Path(name) / "work"
        work.mkdir(exist_ok=True)
        log = Path(name) / "log"
        log.touch()
        with _shown(log):
            result = sandbox.run(
                argv,
                workdir=work,
                env={"CUDA_VISIBLE_DEVICES": found.visible},
                limits=limits,
                gpus=found.minors,
                log=log,
                network=network,
            )
    return _exit_code(result)


def warn_of_gaps(settings: SandboxSettings, log: Logger) -> None:
    """Try what the sandbox promises, and log each gap; those that the settings don't accept let nothing run."""
    for gap in Sandbox(_config(settings)).gaps():
        accepted = gap.name in settings.allow_missing
        tell = log.warning if accepted else log.error
        tell("sandbox.gap", name=gap.name, what=gap.what, fix=gap.fix, accepted=accepted)


def describe(limits: Limits, sandbox: Sandbox) -> str:
    """Give the limits on a few lines, each with who holds it."""
    missing = {gap.name for gap in sandbox.gaps()}
    kernel = "looked at ten times a second" if "cgroup" in missing else "by the kernel"
    of_all = f"memory {print_size(limits.memory_bytes)} for all processes together ({kernel})"
    parts = [
        f"time {print_duration(limits.wall_s)}",
        of_all,
        f"{limits.processes} processes (by the kernel)",
        f"one file {print_size(limits.file_bytes)} (by the kernel)",
        f"shared memory {print_size(limits.shm_bytes)}, /tmp and HOME {print_size(limits.tmp_bytes)} (by the kernel)",
        f"disk {print_size(limits.disk_bytes)} and {limits.files} files (looked at ten times a second)",
        f"output {print_size(limits.output_bytes)} kept, ended at four times that",
    ]
    if limits.cpus is not None:
        parts.append(f"{limits.cpus:g} CPUs at once (by the kernel)")
    if limits.cpu_s is not None:
        parts.append(f"CPU time {print_duration(limits.cpu_s)} (looked at ten times a second)")
    lines = ["limits: " + "; ".join(parts)]
    lines += [f"does not hold here ({gap.name}): {gap.what}" for gap in sandbox.gaps()]
    return "\n".join(lines)


def _config(settings: SandboxSettings) -> SandboxConfig:
    return SandboxConfig(uid=settings.uid, allow_missing=settings.allow_missing)


def _exit_code(result: SandboxResult) -> int:
    if result.exit_code is None:
        what = "was killed from outside" if result.ending is Ending.KILLED else "hit a limit"
        _say(f"the command {what}: {result.ending.value}, after {print_duration(result.wall_s)}")
        return EXIT_LIMIT
    return result.exit_code if result.exit_code >= 0 else 128 - result.exit_code


@contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Copy what the block writes into the log to standard output, as it comes."""
    over = threading.Event()
    with ThreadPoolExecutor(1, "labd-output") as pool:
        copied = pool.submit(_copy, log, over)
        try:
            yield
        finally:
            over.set()
    copied.result()


def _copy(log: Path, over: threading.Event) -> None:
    out = sys.stdout.buffer
    tame = sys.stdout.isatty()
    with log.open("rb") as file:
        while True:
            last = over.wait(_POLL_S)
            while chunk := file.read(_CHUNK_BYTES):
                out.write(_tamed(chunk) if tame else chunk)
            out.flush()
            if last:
                return


def _tamed(chunk: bytes) -> bytes:
    """Give output that can't drive a terminal: what it would take as an order is shown as an escape."""
    text = chunk.decode(errors="replace")
    return _CONTROL.sub(lambda found: printable(found[0]), text).encode()


def _say(text: str) -> None:
    for line in text.splitlines():
        os.write(2, f"labd: {line}\n".encode())
