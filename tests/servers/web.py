"""What the servers here share of HTTP: JSON and chunked replies, and knowing at once that a client has left."""

import contextlib
import json
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"


class Failure(Exception):
    """A reply with an error status; `message` goes into the body."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class ClientLeft(Exception):
    """The client closed its connection; nobody is there to reply to."""


class Hangup:
    """Whether one request's client has left. Callbacks run once, at that moment or at once."""

    def __init__(self) -> None:
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def set(self) -> None:
        """Say that the client has left."""
        with self._lock:
            self._left.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        """Whether the client has left."""
        return self._left.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep for `timeout_s`, or until the client leaves; say whether it has."""
        return self._left.wait(timeout_s)

    def then(self, callback: Callable[[], object]) -> None:
        """Run `callback` when the client leaves."""
        with self._lock:
            if not self._left.is_set():
                self._callbacks.append(callback)
                return
        callback()


class HangupWatch:
    """One thread that watches the sockets of all requests in progress."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._lock = threading.Lock()
        self._hangups: dict[int, tuple[Hangup, socket.socket]] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                with self._lock:
                    hangup, connection = self._hangups.get(fd, (None, None))
                    # The event may be of an earlier connection that had the same number.
                    left = connection is not None and _is_at_its_end(connection)
                if hangup is not None and left:
                    hangup.set()

    def begin(self, connection: socket.socket) -> Hangup:
        """Watch until `end`."""
        hangup = Hangup()
        with self._lock:
            self._hangups[connection.fileno()] = (hangup, connection)
            self._poll.register(connection, select.EPOLLRDHUP | select.EPOLLET)
        return hangup

    def end(self, connection: socket.socket) -> None:
        """Watch no longer; the connection may take its next request."""
        with self._lock:
            self._hangups.pop(connection.fileno(), None)
            self._poll.unregister(connection)


def _is_at_its_end(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Handler(BaseHTTPRequestHandler):
    """One connection of HTTP/1.1."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        """Answer one request, whatever its method (`self.command`)."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer a GET."""
        self.answer()

    def do_HEAD(self) -> None:
        """Answer a HEAD, as a GET without the body."""
        self.answer()

    def do_POST(self) -> None:
        """Answer a POST."""
        self.answer()

    def do_DELETE(self) -> None:
        """Answer a DELETE."""
        self.answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def at(self) -> str:
        """Give the path that was asked for, without the query."""
        return urlsplit(self.path).path

    def raw_body(self) -> bytes:
        """Give the request's body."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, status: int, body: Any, kind: str = JSON, **headers: str) -> None:
        """Send a whole reply; what is not text goes as JSON."""
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def begin_stream(self, kind: str) -> None:
        """Send the head of a reply in chunks."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_chunk(self, data: bytes) -> None:
        """Send one chunk; an empty one ends the reply."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


class Server(ThreadingHTTPServer):
    """A thread per connection. A client that leaves in the middle is no error."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        super().__init__(address, handler)
        self.watch = HangupWatch()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{host}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, unless it was the client."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def serve_in_thread(self) -> None:
        """Serve from now on, in a thread."""
        threading.Thread(target=self.serve_forever, daemon=True).start()


def lines(values: Iterable[Mapping[str, Any]]) -> Iterable[bytes]:
    """Give each value as a line of JSON."""
    return (json.dumps(value).encode() + b"\n" for value in values)


def shut(connection: socket.socket) -> None:
    """End a connection that another thread may be waiting on."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
