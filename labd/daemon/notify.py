"""Telling the service manager how the daemon is, as sd_notify(3) has it; silent where none started it.

The watchdog is fed by the loop's own progress and by nothing else: a thread for it would feed it
also while the loop hangs.

Source: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5) "WatchdogSec=".
"""

import os
import socket
import time
from collections.abc import MutableMapping

from labd.text import printable

_FEEDS_IN_TIME = 4
_AT_LEAST_APART_S = 0.5
_MAX_STATUS = 200


class Notifier:
    """What systemd is told. Takes its variables out of `environment`, so that no child speaks for the daemon."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        within_us = environment.pop("WATCHDOG_USEC", "")
        whose = environment.pop("WATCHDOG_PID", "")
        mine = whose in {"", str(os.getpid())}
        self._every_s = int(within_us) / 1e6 / _FEEDS_IN_TIME if mine and within_us else None
        self._fed_s = float("-inf")
        self._status = ""

    @property
    def due_in_s(self) -> float:
        """Give how long the loop may wait before it has to say that it lives."""
        if self._every_s is None or not self._address:
            return float("inf")
        return max(0.0, self._fed_s + self._every_s - time.monotonic())

    def progress(self, status: str) -> None:
        """Say that a turn of the loop is over, the first time that the daemon is ready, and in a few words how things are.

        At most twice a second.
        """
        now_s = time.monotonic()
        if not self._address or now_s - self._fed_s < _AT_LEAST_APART_S:
            return
        told = ["READY=1"] if self._fed_s == float("-inf") else []
        self._fed_s = now_s
        shown = printable(status, _MAX_STATUS)
        if shown != self._status:
            self._status = shown
            told.append(f"STATUS={shown}")
        if self._every_s is not None:
            told.append("WATCHDOG=1")
        if told:
            self._send("\n".join(told))

    def stopping(self) -> None:
        """Say that the daemon ends."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A name that begins with @ is of the abstract namespace, see unix(7).
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(1.0)
            try:
                channel.connect(address)
                channel.send(text.encode())
            except OSError:
                # Nobody listens, or not in time: who is not heard for too long is started anew, which is right.
                return
