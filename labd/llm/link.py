"""One connection to a server: an httpx transport whose every wait ends at a deadline, or when somebody breaks it.

httpx's own transport knows one time-out for each read, so a server that sends a byte now and then could hold a
reply for ever, and another thread can't wake a reader. This one owns its socket, so both are possible. Replies
are parsed by httptools (llhttp, Node's parser), which takes half the time of h11 where each token is a chunk.
A link is never shared by two exchanges at a time, and never used again after one of them failed.
"""

import contextlib
import functools
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import httptools
import httpx

_READ_BYTES = 2**16
_MAX_HEAD_BYTES = 2**16
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""A machine that lost its power while a model loads is noticed after two minutes, not after the time for loads."""


class Aborted(OSError):
    """Somebody broke the link."""


class BrokenOff(OSError):
    """The server closed the connection before its reply was whole."""


class NotHttp(Exception):
    """What came is no HTTP."""


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Give the one TLS context of this process, with the machine's own certificates: making one takes 20 ms."""
    return ssl.create_default_context()


class _Incoming:
    """One reply as it is parsed; httptools calls its methods."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.chunks: list[bytes] = []
        self.whole = False
        self.excess = False
        self._until_closed = True
        self._kept = False
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.excess = self.whole

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200:
            # "100 Continue" and its like are no replies.
            self.headers.clear()
            return
        self.status = status
        bounded = {b"content-length", b"transfer-encoding"}
        self._until_closed = not any(name.lower() in bounded for name, _ in self.headers)
        # Asked for now: at the end of the message the parser has forgotten it.
        self._kept = self.parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self.chunks.append(data)

    def on_message_complete(self) -> None:
        self.whole = self.status > 0

    def feed(self, data: bytes) -> None:
        """Take what came.

        Raises:
            NotHttp: it can't be read.

        """
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise NotHttp(str(error)) from error

    def end(self) -> None:
        """Take the end of the connection, which ends a reply that says no length.

        Raises:
            BrokenOff: it is not the end of the reply.

        """
        if not (self.status and self._until_closed):
            raise BrokenOff
        self.whole = True

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on the same connection."""
        return self.whole and self._kept and not self.excess and not self._until_closed


class Link(httpx.BaseTransport):
    """One connection, opened by its first request.

    Attributes:
        waiting_for: what the present deadline is for, in words.
        limit_s: how long that was given.
        connected: whether the connection has stood.
        received: bytes that came in answer to the present request.
        served: requests that were answered whole over it.
        idle_since: when that last was so, by the monotonic clock.

    """

    def __init__(self, url: httpx.URL, connect_s: float) -> None:
        self._tls = url.scheme == "https"
        self._host = url.raw_host.decode()
        self._port = url.port or (443 if self._tls else 80)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timeout_s = 0.0
        self._aborted = False
        self._number = 0
        self._connect_s = connect_s
        self._incoming: _Incoming | None = None
        self.connected = False
        self.received = 0
        self.served = 0
        self.idle_since = 0.0
        self.waiting_for = ""
        self.limit_s = 0.0
        self.deadline = 0.0
        self._first = ("an answer", connect_s)

    # -- waiting

    def begin(self, what: str, limit_s: float) -> Callable[[], None]:
        """Say what the next request waits for, and how long; a connection that it needs has its own limit.

        Returns:
            What breaks the connection from any thread, for as long as it serves this request: whoever reads,
            writes or connects over it then wakes at once.

        """
        self._first = (what, limit_s)
        self.received = 0
        with self._lock:
            self._number += 1
        return functools.partial(self._abort, self._number)

    def expect(self, what: str, limit_s: float) -> None:
        """Begin to wait for `what`, for at most `limit_s` seconds from now."""
        self.waiting_for = what
        self.limit_s = limit_s
        self.deadline = time.monotonic() + limit_s

    def _limit(self) -> socket.socket:
        """Give the socket, with the time to the deadline as its time-out."""
        held = self._socket
        if self._aborted or held is None:
            raise Aborted
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        # Setting a time-out is a system call, so it is not done anew for each token: one that is a little
        # too long is good enough, and one that is too short is never kept.
        if not left <= self._timeout_s <= left * 1.1:
            self._timeout_s = left * 1.05
            held.settimeout(self._timeout_s)
        return held

    # -- one request

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and give the reply as soon as its headers are there.

        Raises:
            OSError: the connection failed; `TimeoutError`, `Aborted` and `BrokenOff` are among it.
            NotHttp: what came is none.

        """
        self._incoming = None
        if not self.connected:
            self._connect()
        self.expect(*self._first)
        lost = self._send(_head(request) + request.read())
        incoming = self._incoming = _Incoming()
        while not incoming.status:
            if self.received > _MAX_HEAD_BYTES:
                msg = f"headers of more than {_MAX_HEAD_BYTES} bytes"
                raise NotHttp(msg)
            try:
                self._receive(incoming)
            except (BrokenOff, ConnectionResetError) as error:
                raise (lost or error) from error
        return httpx.Response(incoming.status, headers=incoming.headers, stream=_Body(self))

    def _send(self, data: bytes) -> OSError | None:
        """Send, or give the reason why the server took no more: it may have said why before it closed."""
        rest = memoryview(data)
        while rest:
            held = self._limit()
            try:
                rest = rest[held.send(rest) :]
            except (BrokenPipeError, ConnectionResetError) as error:
                if self._aborted:
                    raise Aborted from error
                return error
        return None

    def _receive(self, incoming: _Incoming) -> None:
        held = self._limit()
        try:
            data = held.recv(_READ_BYTES)
        except OSError as error:
            raise (Aborted() if self._aborted else error) from error
        if data:
            self.received += len(data)
            incoming.feed(data)
        elif self._aborted:
            raise Aborted
        else:
            incoming.end()

    def body(self) -> Iterator[bytes]:
        """Give the body of the present reply as it comes.

        Raises:
            OSError: the connection failed; `TimeoutError`, `Aborted` and `BrokenOff` are among it.
            NotHttp: what came is none.

        """
        incoming = self._incoming
        if incoming is None:
            return
        while True:
            chunks = incoming.chunks
            if chunks:
                data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                chunks.clear()
                yield data
            if incoming.whole:
                return
            self._receive(incoming)

    # -- the connection

    def _connect(self) -> None:
        failure = OSError("the name has no address")
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise socket.gaierror(str(error)) from error
        for family, kind, protocol, _, address in found:
            self._hold(socket.socket(family, kind, protocol))
            self.expect("a connection", self._connect_s)
            try:
                held = self._limit()
                held.connect(address)
                _tune(held)
            except OSError as error:
                self._drop()
                if self._aborted:
                    raise Aborted from error
                failure = error
            else:
                self.connected = True
                if self._tls:
                    self._begin_tls(held)
                return
        raise failure

    def _begin_tls(self, plain: socket.socket) -> None:
        wrapped = tls_context().wrap_socket(
            plain, server_hostname=self._host, do_handshake_on_connect=False
        )
        self._hold(wrapped)
        self._timeout_s = 0.0
        self.expect("a TLS handshake", self._connect_s)
        self._limit()
        wrapped.do_handshake()

    def _hold(self, held: socket.socket) -> None:
        with self._lock:
            self._socket = held
            self._timeout_s = 0.0

    def _drop(self) -> None:
        # Under the lock, lest an abort hit another socket that got this one's number.
        with self._lock:
            held, self._socket = self._socket, None
            if held is not None:
                held.close()

    def _abort(self, number: int) -> None:
        with self._lock:
            if number != self._number:
                # Somebody gave up too late: the link has gone over to another request.
                return
            self._aborted = True
            if self._socket is not None:
                # Not the TLS socket's own shutdown, which drops its state under the reader.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    @property
    def replied(self) -> bool:
        """Whether the headers of the present reply have come."""
        return self._incoming is not None and self._incoming.status > 0

    @property
    def aborted(self) -> bool:
        """Whether somebody broke it."""
        return self._aborted

    @property
    def usable(self) -> bool:
        """Whether another request may be sent: the last reply was whole and the server has not closed it."""
        held, incoming = self._socket, self._incoming
        if self._aborted or held is None or incoming is None or not incoming.reusable:
            return False
        poll = select.poll()
        poll.register(held, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the connection; nothing happens the second time."""
        self._drop()


class _Body(httpx.SyncByteStream):
    """The bytes of a reply, as they come."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __iter__(self) -> Iterator[bytes]:
        return self._link.body()


def _head(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % pair for pair in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _tune(held: socket.socket) -> None:
    held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            held.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
