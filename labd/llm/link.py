"""One connection to a server: an httpx transport whose every wait ends at a deadline, or when somebody breaks it.

httpx's own sockets know one time-out for each read, so a server that sends a byte now and then could hold a
reply for ever, and another thread can't wake a reader. This one owns its socket, so both are possible. It is
never shared by two exchanges at a time, and never used again after one of them failed.
"""

import contextlib
import functools
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator

import httpcore
import httpx

_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""A machine that lost its power while a model loads is noticed after two minutes, not after the time for loads."""


class Aborted(OSError):
    """The link was broken by `Link.abort`."""


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Give the one TLS context of this process, with the machine's own certificates: making one takes 20 ms."""
    return ssl.create_default_context()


class Link(httpx.BaseTransport):
    """One connection, opened by its first request.

    Attributes:
        waiting_for: what the present deadline is for, in words.
        limit_s: how long that was given.
        connected: whether the connection has stood.
        received: bytes that came in answer to the present request.
        ended: whether the server closed its side.
        served: requests that were answered whole over it.

    """

    def __init__(self, url: httpx.URL, connect_s: float) -> None:
        origin = httpcore.Origin(
            url.raw_scheme,
            url.raw_host,
            url.port or (443 if url.scheme == "https" else 80),
        )
        self._core = httpcore.HTTPConnection(
            origin,
            ssl_context=tls_context() if url.scheme == "https" else None,
            network_backend=_Network(self),
        )
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False
        self._connect_s = connect_s
        self._first = ("an answer", connect_s)
        self.expect("a connection", connect_s)
        self.connected = False
        self.received = 0
        self.ended = False
        self.served = 0
        self.idle_since = time.monotonic()

    def expect(self, what: str, limit_s: float) -> None:
        """Begin to wait for `what`, for at most `limit_s` seconds from now."""
        self.waiting_for = what
        self.limit_s = limit_s
        self.deadline = time.monotonic() + limit_s

    def begin(self, what: str, limit_s: float) -> None:
        """Say what the next request waits for, and how long; a connection that it needs has its own limit."""
        self._first = (what, limit_s)
        self.received = 0
        self.begun()

    def begun(self) -> None:
        """Count the time of the request from now."""
        self.expect(*self._first)

    def connecting(self, what: str) -> None:
        """Count the time to connect from now."""
        self.expect(what, self._connect_s)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and give the reply as soon as its headers are there.

        Raises:
            OSError: the connection failed, `TimeoutError` and `Aborted` among it.
            httpcore.ProtocolError: what came is no HTTP.

        """
        reply = self._core.handle_request(
            httpcore.Request(
                request.method,
                httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
            )
        )
        return httpx.Response(reply.status, headers=reply.headers, stream=_Body(reply))

    def abort(self) -> None:
        """Break the connection from any thread: whoever reads, writes or connects over it wakes at once."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                # Not the TLS socket's own shutdown, which drops its state under the reader.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    @property
    def aborted(self) -> bool:
        """Whether somebody broke it."""
        return self._aborted

    @property
    def usable(self) -> bool:
        """Whether another request may be sent: the last reply was whole and the server has not closed it."""
        return not self._aborted and self._core.is_idle() and not self._core.has_expired()

    def close(self) -> None:
        """Close the connection; nothing happens the second time."""
        self._core.close()
        self.drop()

    def hold(self, held: socket.socket) -> None:
        """Take `held` as the socket that `abort` breaks.

        Raises:
            Aborted: that has happened already.

        """
        with self._lock:
            self._socket = held
            if self._aborted:
                raise Aborted

    def drop(self) -> None:
        """Close the socket. Under the lock, lest `abort` hit another socket that got its number."""
        with self._lock:
            held, self._socket = self._socket, None
            if held is not None:
                held.close()

    def left_s(self) -> float:
        """Give the seconds to the deadline.

        Raises:
            TimeoutError: it has passed.
            Aborted: somebody broke the link.

        """
        if self._aborted:
            raise Aborted
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Body(httpx.SyncByteStream):
    """The bytes of a reply, as they come."""

    def __init__(self, reply: httpcore.Response) -> None:
        self._reply = reply

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._reply.stream)  # type: ignore[arg-type]

    def close(self) -> None:
        self._reply.close()


class _Stream(httpcore.NetworkStream):
    """A link's socket, as httpcore reads and writes it. Its own time-outs are not used: the link's deadline is."""

    def __init__(self, link: Link, held: socket.socket) -> None:
        self._link = link
        self._socket = held
        self._timeout_s = 0.0

    def _limit(self) -> None:
        # Setting a time-out is a system call, so it is not done anew for each token: one that is a little
        # too long is good enough, and one that is too short is never kept.
        left = self._link.left_s()
        if not left <= self._timeout_s <= left * 1.1:
            self._timeout_s = left * 1.05
            self._socket.settimeout(self._timeout_s)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        self._limit()
        data = self._socket.recv(max_bytes)
        if data:
            self._link.received += len(data)
        elif self._link.aborted:
            raise Aborted
        else:
            self._link.ended = True
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        rest = memoryview(buffer)
        try:
            while rest:
                self._limit()
                rest = rest[self._socket.send(rest) :]
        except (BrokenPipeError, ConnectionResetError) as error:
            # httpcore then reads what the server said before it closed, which may be a reason.
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._link.drop()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        wrapped = ssl_context.wrap_socket(
            self._socket, server_hostname=server_hostname, do_handshake_on_connect=False
        )
        self._link.hold(wrapped)
        self._link.connecting("a TLS handshake")
        wrapped.settimeout(self._link.left_s())
        wrapped.do_handshake()
        self._link.begun()
        return _Stream(self._link, wrapped)

    def get_extra_info(self, info: str) -> object:
        """Answer what httpcore asks of an idle connection: bytes to read there mean that it was closed."""
        if info != "is_readable":
            return None
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))


class _Network(httpcore.NetworkBackend):
    """Opens the socket of one link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        failure = OSError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            held = socket.socket(family, kind, protocol)
            self._link.hold(held)
            self._link.connecting("a connection")
            try:
                held.settimeout(self._link.left_s())
                held.connect(address)
                _tune(held)
            except OSError as error:
                self._link.drop()
                if self._link.aborted:
                    raise Aborted from error
                failure = error
            else:
                self._link.connected = True
                self._link.begun()
                return _Stream(self._link, held)
        raise failure


def _tune(held: socket.socket) -> None:
    held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            held.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
