"""Where the CPU time of labd's own Python goes for no-op commands: in the daemon's loop, and in a worker's `run`.

The clock is the thread's CPU time, so that a busy machine changes little; the profiler itself doubles or
trebles the cost of Python, so read shares, and take the sums from the runs without it.
"""

import cProfile
import pstats
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from labd import worker
from labd.daemon import Daemon
from labd.log import stderr_logger
from labd.settings import Home, load_home
from labd.task import State
from tests.bench.lab import NO_OP, bench_lab
from tests.conftest import REPO
from tests.factories import write_settings

_LINES = 30


def main(*, small: bool) -> bool:
    """Measure and print, each in a process of its own; say whether all work is there."""
    for what in ("daemon", "worker"):
        for how in ("plain", "profiled"):
            argv = [
                sys.executable,
                "-m",
                "tests.bench.profile",
                what,
                how,
                "60" if small else "300",
            ]
            done = subprocess.run(
                argv, check=False, cwd=REPO, capture_output=True, text=True, timeout=600
            )
            Console().print(done.stdout, markup=False, highlight=False, soft_wrap=True)
            if done.returncode:
                Console().print(done.stderr[-2000:], style="red", markup=False)
                return False
    return True


def _daemon(count: int, profiler: cProfile.Profile | None) -> tuple[str, list[cProfile.Profile]]:
    with bench_lab() as lab:
        lab.mv_all({f"t{number}": NO_OP for number in range(count)})
        daemon = Daemon(load_home(lab.root), stderr_logger(level="info"), once=True)
        begun_s = time.process_time()
        if profiler:
            profiler.enable()
        daemon.run()
        if profiler:
            profiler.disable()
        used_s = time.process_time() - begun_s
        if len(lab.spool.names(State.DONE)) != count:
            sys.exit("not all tasks are done")
    return f"daemon, start and stop included: {1000 * used_s / count:.2f} ms CPU a task", []


def _worker(count: int, profiler: cProfile.Profile | None) -> tuple[str, list[cProfile.Profile]]:
    with tempfile.TemporaryDirectory(prefix="labd-bench-") as name:
        home = write_settings(Path(name))
        jobs = [_job(home, number) for number in range(count)]
        for job in jobs[:3]:
            worker.run(job, [])
        threads: dict[threading.Thread, cProfile.Profile] = {}
        if profiler:
            # The sandbox runs on threads of its own; each gets a profiler when it starts.
            threading.setprofile(lambda *_: _profile_this_thread(threads))
            profiler.enable()
        before_s, before_children_s = _cpu_s()
        outcomes = [worker.run(job, [])["outcome"] for job in jobs[3:]]
        own_s, children_s = _cpu_s()
        if profiler:
            profiler.disable()
            threading.setprofile(None)
        if set(outcomes) != {"done"}:
            sys.exit(f"not all tasks are done: {set(outcomes)}")
    own_ms = 1000 * (own_s - before_s) / len(outcomes)
    children_ms = 1000 * (children_s - before_children_s) / len(outcomes)
    told = f"worker: {own_ms:.2f} ms CPU a task, and {children_ms:.2f} ms of its sandboxes"
    # A profiler of a thread that still runs would count our clock as that thread's.
    return told, [profile for thread, profile in threads.items() if not thread.is_alive()]


def _profile_this_thread(threads: dict[threading.Thread, cProfile.Profile]) -> None:
    sys.setprofile(None)
    threads[threading.current_thread()] = cProfile.Profile(time.thread_time)
    threads[threading.current_thread()].enable()


def _job(home: Home, number: int) -> dict[str, Any]:
    (home.results / f"t{number}").mkdir(parents=True)
    return {
        "task_id": f"t{number}",
        "attempt": 1,
        "node_id": "here",
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "timeout_s": 60.0,
        "task_text": NO_OP,
        "task_sha256": "",
        "file_name": f"t{number}.yaml",
        "results_dir": str(home.results / f"t{number}"),
        "template_roots": [],
        "min_free_bytes": 0,
        "sandbox": home.settings.sandbox.model_dump(mode="json"),
        "allow_network": False,
        "input_roots": [str(path) for path in home.inputs],
        "forbidden_roots": [str(path) for path in home.forbidden],
    }


def _cpu_s() -> tuple[float, float]:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


if __name__ == "__main__":
    the_profiler = cProfile.Profile(time.thread_time) if sys.argv[2] == "profiled" else None
    told, others = {"daemon": _daemon, "worker": _worker}[sys.argv[1]](
        int(sys.argv[3]), the_profiler
    )
    print(told)
    if the_profiler:
        stats = pstats.Stats(the_profiler, *others).strip_dirs()
        stats.sort_stats("cumtime").print_stats(_LINES)
        stats.sort_stats("tottime").print_stats(_LINES)
