"""Log lines to systemd's journal with their facts as fields, by its native protocol.

``journalctl -u labd LABD_TASK_ID=my-idea`` then finds what a text search only guesses at.

Source: "Native Journal Protocol" of systemd (systemd.io/JOURNAL_NATIVE_PROTOCOL), systemd.exec(5)
"$JOURNAL_STREAM", systemd.journal-fields(7).
"""

import json
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

SOCKET = "/run/systemd/journal/socket"
_MAX_VALUE = 8192
_MAX_FIELDS = 64
_NO_FIELD_CHARACTER = re.compile(r"[^A-Z0-9_]")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def is_stderr(environment: Mapping[str, str]) -> bool:
    """Say whether what is written to stderr goes to the journal: systemd names its device and inode."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        facts = os.fstat(2)
        return (int(device), int(inode)) == (facts.st_dev, facts.st_ino)
    except (ValueError, OSError):
        return False


class Journal:
    """The least that structlog asks of a logger: one method a level, each sending one entry.

    What the journal does not take in time goes to stderr, which it reads too.
    """

    def __init__(self, address: str = SOCKET) -> None:
        self._address = address
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.settimeout(1.0)

    def msg(self, **facts: Any) -> None:
        """Send an entry; `facts` has ``event`` and ``level``, as structlog gives them."""
        try:
            self._channel.sendto(entry(facts), self._address)
        except OSError:
            os.write(2, json.dumps(facts, default=str).encode() + b"\n")

    debug = info = warning = error = critical = msg


def entry(facts: Mapping[str, Any]) -> bytes:
    """Give an entry of the journal: a line for people, and each fact as a field of its own, ``LABD_`` before its name."""
    level = str(facts.get("level", "info"))
    fields = {
        "MESSAGE": _message(facts),
        "PRIORITY": str(_PRIORITIES.get(level, 6)),
        "SYSLOG_IDENTIFIER": "labd",
        **dict(_fields(facts)),
    }
    return b"".join(_packed(name, value) for name, value in fields.items())


def _message(facts: Mapping[str, Any]) -> str:
    told = [
        f"{name}={_text(value)}"
        for name, value in facts.items()
        if name not in {"event", "level", "timestamp", "exception"} and value is not None
    ]
    line = " ".join([str(facts.get("event", "")), *told])
    return f"{line}\n{facts['exception']}" if "exception" in facts else line


def _fields(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in list(facts.items())[:_MAX_FIELDS]:
        if name not in {"level", "timestamp"} and value is not None:
            yield f"LABD_{_NO_FIELD_CHARACTER.sub('_', name.upper())}"[:64], _text(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _packed(name: str, value: str) -> bytes:
    raw = value.encode(errors="backslashreplace")[:_MAX_VALUE]
    if b"\n" in raw:  # such a value travels with its length before it
        return name.encode() + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n"
    return name.encode() + b"=" + raw + b"\n"
