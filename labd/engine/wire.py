"""Messages between a driver and its dispatcher: JSON objects, one a line, over a unix socket. Knows no Ray."""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from labd.errors import EngineError

SOCKET = "engine.sock"
"""The socket's name, in the directory of the lab's lock."""

TIMEOUT_S = 5.0
"""For how long a side waits for the other to take what it sends, and how often a silent wait looks up."""

MAX_LINE_BYTES = 64 * 2**20
_READ_BYTES = 2**18


def pack(messages: Iterable[Mapping[str, Any]]) -> bytes:
    """Give the messages as they travel."""
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def lines(connection: socket.socket, idle: Callable[[], None]) -> Iterator[list[dict[str, Any]]]:
    """Give the messages that have come, each time that some have, until the other side goes.

    Args:
        connection: a socket with a time-out.
        idle: called before each wait; what it raises ends this.

    Raises:
        EngineError: a message is longer than `MAX_LINE_BYTES`.
        ValueError: a line is not JSON.
        OSError: the connection broke.

    """
    rest = b""
    while True:
        idle()
        try:
            raw = connection.recv(_READ_BYTES)
        except TimeoutError:
            continue
        if not raw:
            return
        *whole, rest = (rest + raw).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise EngineError(f"a message is longer than {MAX_LINE_BYTES} bytes")
        if whole:
            yield [json.loads(line) for line in whole]


def listen(directory: Path) -> socket.socket:
    """Give a listening socket in the directory, for this user only, in place of any that was there."""
    listener = socket.socket(socket.AF_UNIX)
    with _short(directory) as path:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
    listener.listen()
    return listener


def connect(directory: Path) -> socket.socket:
    """Give a connection to who listens in the directory.

    Raises:
        EngineError: nobody does.

    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    try:
        with _short(directory) as path:
            connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise EngineError(f"the dispatcher can't be reached: {error}") from error
    return connection


def peer_uid(connection: socket.socket) -> int:
    """Give the user id of the process at the other end; see unix(7), SO_PEERCRED."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return int(uid)


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """Give a path to the socket in the directory that fits a socket's 107 bytes, however deep it lies."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{fd}") / SOCKET
    finally:
        os.close(fd)
