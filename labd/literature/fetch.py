"""One GET over HTTP, whose every wait ends at a deadline and whose reply has a limit. Follows no redirects.

httpx knows one time-out for each read, so a server that sends a byte now and then could hold a request for ever;
its own transport, httpcore, takes a network backend, and the one here gives each read what is left until the
deadline. httpcore also logs no addresses, in which OpenAlex wants its key.
"""

import email.utils
import re
import ssl
import time
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

import httpcore

from labd.literature.model import SourceFailed
from labd.text import printable

MAX_REPLY_BYTES = 8 * 2**20
CONNECT_S = 10.0
SILENCE_S = 20.0
"""arXiv takes seconds for many a query; nothing at all for this long is no reply."""
_CHUNK_BYTES = 2**16
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_THIS_REQUEST_ONLY = frozenset({400, 404, 413, 414, 422})
_SocketOptions = Iterable[httpcore.SOCKET_OPTION]


def get(
    url: str, params: Mapping[str, str], headers: Mapping[str, str], *, deadline_s: float
) -> bytes:
    """Give the body of a reply with status 200.

    Raises:
        SourceFailed: there is none; the text names neither parameters nor headers.

    """
    sent = [*{"Accept-Encoding": "gzip", "Connection": "close", **headers}.items()]
    timeouts = {"connect": CONNECT_S, "read": SILENCE_S, "write": SILENCE_S, "pool": CONNECT_S}
    host = printable(url.split("/")[2], 100)
    backend, tls = _Backend(deadline_s), ssl.create_default_context()
    try:
        # As bytes: of a text that is not ASCII httpcore says `TypeError`.
        address = f"{url}?{urlencode(params)}".encode("ascii")
        with (
            httpcore.ConnectionPool(tls, network_backend=backend) as pool,
            pool.stream("GET", address, headers=sent, extensions={"timeout": timeouts}) as reply,
        ):
            _check_status(reply, host)
            return _body(reply, host)
    except httpcore.TimeoutException as error:
        raise SourceFailed(f"{host} did not reply in time", retryable=True) from error
    except httpcore.NetworkError as error:
        reason = printable(str(error), 200) or type(error).__name__
        raise SourceFailed(f"{host} can't be reached: {reason}", retryable=True) from error
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        reason = printable(str(error), 200)
        raise SourceFailed(
            f"{host} broke off or does not speak HTTP: {reason}", retryable=True
        ) from error
    except ValueError as error:
        # Among them `UnicodeError`, which looking up a name raises for what can't be one.
        what = f"{host} is no address, or it sent labd on to one that is none"
        raise SourceFailed(what) from error


def _check_status(reply: httpcore.Response, host: str) -> None:
    status = reply.status
    if status == 200:
        return
    if 300 <= status < 400:
        target = urlsplit(_header(reply, b"location")).netloc
        what = f"{host} sent labd on to {printable(target, 100) or 'elsewhere'}, which it does not follow"
        raise SourceFailed(f"{what}; name another address in literature.urls")
    if status in {401, 402, 403}:
        raise SourceFailed(f"{host} refused with HTTP {status}: it wants a key, or another one")
    raise SourceFailed(
        f"{host} replied with HTTP {status}",
        retryable=status in _AGAIN,
        retry_after_s=retry_after_s(_header(reply, b"retry-after"), datetime.now(UTC)),
        is_down=status not in _THIS_REQUEST_ONLY,
    )


def retry_after_s(value: str, now: datetime) -> float | None:
    """Give the seconds that a Retry-After header asks for, from 0 to a year; `None` where it says nothing clear."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        seconds = float(value)
    else:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (aware - now).total_seconds()
    return min(max(0.0, seconds), 366 * 86400.0)


def _body(reply: httpcore.Response, host: str) -> bytes:
    coding = _header(reply, b"content-encoding").strip().lower()
    if coding not in {"", "identity", "gzip"}:
        raise SourceFailed(f"{host} packed its reply in a way that was not asked for")
    unpack = zlib.decompressobj(wbits=31) if coding == "gzip" else None
    parts: list[bytes] = []
    size_bytes = 0
    for chunk in reply.iter_stream():
        try:
            data = unpack.decompress(chunk, MAX_REPLY_BYTES + 1) if unpack else chunk
        except zlib.error as error:
            raise SourceFailed(f"{host} sent a reply that can't be unpacked") from error
        size_bytes += len(data)
        if size_bytes > MAX_REPLY_BYTES:
            raise SourceFailed(f"{host} sent more than {MAX_REPLY_BYTES // 2**20} MiB")
        parts.append(data)
    if unpack and not unpack.eof:
        raise SourceFailed(f"{host} broke off its reply", retryable=True)
    return b"".join(parts)


def _header(reply: httpcore.Response, name: bytes) -> str:
    values = (value for key, value in reply.headers if key.lower() == name)
    return next(values, b"").decode("latin-1")


class _Backend(httpcore.SyncBackend):
    """The network, until a deadline."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__()
        self._deadline_s = deadline_s

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _SocketOptions | None = None,
    ) -> httpcore.NetworkStream:
        """Connect as httpcore does, and never later than the deadline."""
        left_s = _left(self._deadline_s, timeout)
        stream = super().connect_tcp(host, port, left_s, local_address, socket_options)
        return _Stream(stream, self._deadline_s)


class _Stream(httpcore.NetworkStream):
    """A connection, until a deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline_s: float) -> None:
        self._inner = inner
        self._deadline_s = deadline_s

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(min(max_bytes, _CHUNK_BYTES), _left(self._deadline_s, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._deadline_s, timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left_s = _left(self._deadline_s, timeout)
        return _Stream(
            self._inner.start_tls(ssl_context, server_hostname, left_s), self._deadline_s
        )

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


def _left(deadline_s: float, timeout_s: float | None) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise httpcore.ReadTimeout
    return left_s if timeout_s is None else min(left_s, timeout_s)
