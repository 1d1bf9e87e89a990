"""Real daemons for the tests: started, watched with a deadline, and killed by process id."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")


POLL_S = 0.02
COSTLY_S = 0.5
"""Between two looks that start a process each: without a pause they would take a core from what they wait for."""


def free_port() -> int:
    """Give a port of the loopback that nobody has just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(
    condition: Callable[[], T],
    timeout_s: float = 60.0,
    what: str = "the condition",
    *,
    every_s: float = POLL_S,
) -> T:
    """Give the first true value of `condition`, or fail at the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every_s)
    message = f"{what} did not come true within {timeout_s:g} s"
    raise AssertionError(message)


class DaemonProcess:
    """`labd up` as a process of its own; its log goes to `<home>/daemon.log`, after those of earlier ones."""

    def __init__(
        self, home: Path, arguments: Sequence[str] = (), *, enter: Sequence[str] = ()
    ) -> None:
        self.home = home
        self.log_path = home / "daemon.log"
        self._log_begins = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *enter,
                    *(sys.executable, "-m", "labd.cli"),
                    *("--home", str(home), "up"),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._family: set[psutil.Process] = set()

    def log(self) -> list[dict[str, Any]]:
        """Give this daemon's log lines that are JSON."""
        lines = []
        for line in self.log_path.read_bytes()[self._log_begins :].splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def said(self, event: str) -> list[dict[str, Any]]:
        """Give the log lines of one event."""
        return [line for line in self.log() if line.get("event") == event]

    def wait_ready(self, timeout_s: float = 90.0) -> None:
        """Wait until the engine takes jobs."""
        wait_until(lambda: self.said("engine.ready"), timeout_s, "engine.ready")

    def family(self) -> set[psutil.Process]:
        """Give the daemon and everything below it, also what was seen earlier and lives on."""
        with contextlib.suppress(psutil.NoSuchProcess):
            me = psutil.Process(self.process.pid)
            self._family |= {me, *me.children(recursive=True)}
        for known in list(self._family):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._family |= set(known.children(recursive=True))
        return {p for p in self._family if p.is_running()}

    def kill_everything(self) -> None:
        """SIGKILL the daemon, Ray and all their children at once, and wait until they are gone."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(family), timeout=10)
        self.process.wait(10)

    def kill_worker(self, title: str) -> int:
        """SIGKILL the Ray workers whose title holds `title`; say how many there were."""
        killed = 0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if any(title in part for part in process.cmdline()):
                    process.kill()
                    killed += 1
        return killed

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM and wait; give the exit code."""
        self.family()
        os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(timeout_s)
