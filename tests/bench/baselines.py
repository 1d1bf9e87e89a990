"""What the queue is compared with, each in a process of its own: bare threads, and plain Ray core.

Both run the same sandboxed command as the queue does, by the same `Sandbox.run`; each run has a working
directory of its own, made before and removed after. Neither keeps a file or survives anything.
"""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd.sandbox import Sandbox
from tests.bench.cpu import group, used_s
from tests.bench.lab import SLOTS
from tests.boxes import make_sandbox
from tests.conftest import REPO

_TIMEOUT_S = 600.0
# Not -m: Ray's workers find a function by its module's name, and must not find __main__.
_MAIN = "from tests.bench.baselines import main; main()"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a baseline took: wall seconds, and CPU seconds of all its processes, where they can be counted."""

    wall_s: float
    cpu_s: float | None


def measure(kind: str, count: int, argv: Sequence[str]) -> Measured:
    """Run `argv` `count` times in sandboxes, `SLOTS` at a time, on ``threads`` or ``ray``; warmed up before."""
    with group(f"{kind}-{time.monotonic_ns()}") as cgroup:
        entered = cgroup.entered() if cgroup else contextlib.nullcontext()
        with entered:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _MAIN, kind, str(count)),
                    *(str(cgroup.path) if cgroup else "", *argv),
                ],
                cwd=REPO,
                env={**os.environ, "PYTHONPATH": str(REPO)},
                stdout=subprocess.PIPE,
                text=True,
            )
        with process:
            out, _ = process.communicate(timeout=_TIMEOUT_S)
        if process.returncode:
            message = f"the baseline {kind} ended with {process.returncode}"
            raise AssertionError(message)
    return Measured(**json.loads(out.splitlines()[-1]))


def sandboxed(argv: Sequence[str], root: str) -> int | None:
    """Run a command in a new directory below `root`, which is gone afterwards; give its exit code."""
    workdir = Path(tempfile.mkdtemp(dir=root))
    try:
        return _box().run(argv, workdir=workdir).exit_code
    finally:
        shutil.rmtree(workdir)


def main() -> None:
    """Be one baseline's process: KIND COUNT GROUP WORD…; print what `Measured` has."""
    kind, count, cgroup, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    runner = {"threads": _on_threads, "ray": _on_ray}[kind]
    with tempfile.TemporaryDirectory(prefix="labd-bench-") as root, runner(argv, root) as run:
        run(2 * SLOTS)
        before_s = used_s(Path(cgroup)) if cgroup else 0.0
        begun_s = time.monotonic()
        codes = run(count)
        wall_s = time.monotonic() - begun_s
        cpu_s = used_s(Path(cgroup)) - before_s if cgroup else None
    if codes != [0] * count:
        sys.exit(f"{len([code for code in codes if code])} commands failed")
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}))


Run = Callable[[int], list[int | None]]


@functools.cache
def _box() -> Sandbox:
    return make_sandbox()


@contextlib.contextmanager
def _on_threads(argv: Sequence[str], root: str) -> Iterator[Run]:
    def run(count: int) -> list[int | None]:
        codes: list[int | None] = []
        left = iter(range(count))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                codes.append(sandboxed(argv, root))

        threads = [threading.Thread(target=work) for _ in range(SLOTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return codes

    yield run


@contextlib.contextmanager
def _on_ray(argv: Sequence[str], root: str) -> Iterator[Run]:
    from labd.engine.embedded import environment  # noqa: PLC0415 - only where it is needed

    environment()  # the same settings as the queue's own Ray: no niceness, no memory monitor
    os.environ.update({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"})
    import ray  # noqa: PLC0415 - only after the environment is set

    ray.init(
        address="local",
        num_cpus=SLOTS,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
    )
    task: Any = ray.remote(num_cpus=1, max_retries=0)(sandboxed)
    try:
        yield lambda count: list(ray.get([task.remote(argv, root) for _ in range(count)]))
    finally:
        ray.shutdown()
