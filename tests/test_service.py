"""The daemon as a service: what the service manager and the journal are told."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labd.journald import entry
from labd.settings import Home
from labd.spool import Spool
from tests.processes import wait_until


class Manager:
    """The service manager's end of the notification socket, as sd_notify(3) has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.05)
        self.told: list[str] = []

    def hear(self) -> list[str]:
        """Give the lines that have come since the last call."""
        new: list[str] = []
        while True:
            try:
                new += self._socket.recv(65536).decode().splitlines()
            except TimeoutError:
                self.told += new
                return new

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def fields(raw: bytes) -> dict[str, str]:
    """Read an entry as journald does."""
    found: dict[str, str] = {}
    while raw:
        line, _, rest = raw.partition(b"\n")
        name, told, value = line.partition(b"=")
        if not told:
            (size,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        found[name.decode()], raw = value.decode(), rest
    return found


def test_the_manager_hears_that_the_daemon_is_ready_lives_and_stops(
    home: Home, manager: Manager
) -> None:
    # A Ray at an address where nobody listens: the daemon is ready all the same, and says what it waits for.
    (home.root / "config" / "labd.yaml").write_text("ray: {address: '127.0.0.1:1'}\n")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "labd.cli", "--home", str(home.root), "up"],
        env={**os.environ, "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "2000000"},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: "READY=1" in manager.hear(), 30, "READY=1")
        wait_until(lambda: "WATCHDOG=1" in manager.hear(), 5, "a turn's sign of life")
        wait_until(lambda: "WATCHDOG=1" in manager.hear(), 5, "another turn's")
        assert "STATUS=0 running, 0 waiting; waits for Ray" in manager.told
        daemon.terminate()
        wait_until(lambda: "STOPPING=1" in manager.hear(), 20, "STOPPING=1")
        assert daemon.wait(20) == 0
    finally:
        daemon.kill()
        daemon.wait()


def test_a_loop_that_hangs_feeds_no_watchdog_and_leaves_a_trace(
    home: Home, manager: Manager, tmp_path: Path
) -> None:
    (home.root / "config" / "labd.yaml").write_text("ray: {address: '127.0.0.1:1'}\n")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "labd.cli", "--home", str(home.root), "up"],
            env={**os.environ, "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "2000000"},
            stderr=stderr,
        )
    try:
        wait_until(lambda: "WATCHDOG=1" in manager.hear(), 30, "a turn's sign of life")
        # A pipe that nobody writes to: who opens it waits, as on a disk that does not answer.
        (home.results / "stuck").mkdir()
        os.mkfifo(home.results / "stuck" / "events.jsonl")
        Spool(home.spool).put(b"kind: command\nrun: 'true'\n", "stuck.yaml")
        heard_s = [time.monotonic()]

        def silent() -> bool:
            if "WATCHDOG=1" in manager.hear():
                heard_s.append(time.monotonic())
            return time.monotonic() - heard_s[-1] > 4

        wait_until(silent, 60, "a watchdog that is not fed for twice its time")
        assert daemon.poll() is None
        daemon.send_signal(signal.SIGABRT)  # what systemd does now
        assert daemon.wait(20) == -signal.SIGABRT
        assert "in tick" in log.read_text()
    finally:
        daemon.kill()
        daemon.wait()


def test_an_entry_has_a_line_for_people_and_every_fact_as_a_field() -> None:
    said = {
        "event": "task.finished",
        "level": "warning",
        "task_id": "x",
        "attempt": 2,
        "node": None,
    }
    assert fields(entry(said)) == {
        "MESSAGE": "task.finished task_id=x attempt=2",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "labd",
        "LABD_EVENT": "task.finished",
        "LABD_TASK_ID": "x",
        "LABD_ATTEMPT": "2",
    }


def test_what_a_field_holds_can_end_no_entry_and_begin_no_other_field() -> None:
    said = {"event": "x", "reason": "a\nPRIORITY=0\n\n_UID=0", "b=c\n": [1, {"d": "\ud800"}]}
    read = fields(entry(said))
    assert read["LABD_REASON"] == "a\nPRIORITY=0\n\n_UID=0"
    assert read["LABD_B_C_"] == json.dumps([1, {"d": "\\ud800"}], ensure_ascii=False).replace(
        "\\\\", "\\"
    )
    assert read["PRIORITY"] == "6"
    assert "_UID" not in read
