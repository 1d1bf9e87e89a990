"""One exchange with a server: what is sent, what may come back, and what each failure is called.

Streaming always. What comes is bounded: each line, all of them, and the wait for the next. Nothing here knows
what the lines mean; `labd.llm.ollama` and `labd.llm.openai` do.
"""

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from labd.errors import ConfigError
from labd.llm.errors import EndpointMisconfigured, ModelError, Stopped
from labd.llm.faults import Faults, bare, reason
from labd.llm.link import Link, NotHttp
from labd.llm.model import Cancel, Endpoint, Timeouts
from labd.text import printable

MAX_LINE_BYTES = 2**20
MAX_ANSWER_BYTES = 16 * 2**20
"""Of one whole JSON answer, such as a list of models."""
_MAX_REASON_BYTES = 64 * 1024
_MAX_IDLE_LINKS = 32
_MAX_IDLE_S = 20.0
"""What lies between may forget an idle connection without a word, and the next request would wait in vain."""
_SECRET_LENGTH = 6
"""A shorter header is no secret, and might stand in any text."""
_DRAIN_S = 0.25
_DRAIN_BYTES = 64 * 1024

_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_HEADER = re.compile(r"[A-Za-z0-9-]+")

Judge = Callable[[int, str, str], ModelError | None]
"""Makes of a status, the reason and the whole body an error of the API's own; ``None``: as for any server."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an exchange waits: for the first sign of the reply, and then between two."""

    first_s: float
    what: str = "an answer"
    between_s: float = 0.0


class Wire:
    """The way to one endpoint. Safe for threads: each exchange has a connection to itself.

    Attributes:
        url: the endpoint's, without credentials.
        faults: makes its errors.

    """

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, key: str = "") -> None:
        self._url = _usable_url(endpoint)
        self._timeouts = timeouts
        self._headers = {
            "accept-encoding": "identity",
            "user-agent": "labd",
            **_authorization(self._url, key),
            **{name.lower(): value for name, value in endpoint.headers.items()},
        }
        secrets = (key, self._url.password, *endpoint.headers.values())
        self.url = printable(bare(self._url), 300)
        self.faults = Faults(
            f"{printable(endpoint.name, 100)} ({self.url})",
            tuple(secret for secret in secrets if len(secret) >= _SECRET_LENGTH),
        )
        self._lock = threading.Lock()
        self._idle: list[Link] = []
        self._closed = False

    def close(self) -> None:
        """Close the idle connections; exchanges that run on close theirs at their end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    @contextlib.contextmanager
    def exchange(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        patience: Patience,
        judge: Judge | None = None,
        cancel: Cancel | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Iterator["Exchange"]:
        """Send a request and give the reply once its headers say that it went well (2xx).

        Raises:
            ModelError: it did not, or came to nothing, or is no API's reply.
            Stopped: `cancel` was called.

        """
        request = self._request(method, path, body)
        link, response, hook = self._begin(request, patience, cancel)
        exchange = Exchange(self, link, response, patience, max_bytes)
        try:
            self._look_at_headers(exchange, judge)
            yield exchange
            exchange.drain()
        finally:
            if cancel is not None:
                cancel.detach(hook)
            self._give_back(link)

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        patience: Patience | None = None,
        judge: Judge | None = None,
        cancel: Cancel | None = None,
    ) -> Any:
        """Give the JSON that answers one question; by default within the time for a look.

        Raises:
            ModelError: there is none.
            Stopped: `cancel` was called.

        """
        patience = patience or Patience(self._timeouts.look_s, f"the answer of {path}")
        with self.exchange(
            method, path, body, patience=patience, judge=judge, cancel=cancel
        ) as reply:
            return self.parse(reply.whole())

    def parse(self, raw: bytes) -> Any:
        """Read JSON that the server sent.

        Raises:
            EndpointFailed: it is none.
            EndpointMisconfigured: it is a page for people.

        """
        try:
            return json.loads(raw.decode())
        except UnicodeDecodeError as error:
            raise self.faults.failed("sent bytes that are not UTF-8", raw) from error
        except (ValueError, RecursionError) as error:
            if raw.lstrip()[:1] == b"<":
                raise self.faults.no_api() from error
            raise self.faults.failed("sent what is not JSON", raw) from error

    # -- one exchange, step by step

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Request:
        prefix = self._url.raw_path.rstrip(b"/")
        url = self._url.copy_with(raw_path=prefix + path.encode())
        if body is None:
            return httpx.Request(method, url, headers=self._headers)
        # Lone surrogates, which a broken document may hold, become escapes this way and can be sent.
        content = json.dumps(body, separators=(",", ":")).encode()
        headers = {**self._headers, "content-type": "application/json"}
        return httpx.Request(method, url, headers=headers, content=content)

    def _begin(
        self, request: httpx.Request, patience: Patience, cancel: Cancel | None
    ) -> tuple[Link, httpx.Response, Callable[[], None]]:
        while True:
            link = self._take()
            reused = link.served > 0
            hook = link.begin(patience.what, patience.first_s)
            if cancel is not None:
                cancel.attach(hook)
            try:
                return link, link.handle_request(request), hook
            except (OSError, NotHttp) as error:
                if cancel is not None:
                    cancel.detach(hook)
                link.close()
                # A server may close an idle connection just as it is used again. It has then not read the
                # request, so that a fresh connection is no second attempt.
                stale = reused and link.received == 0 and not isinstance(error, TimeoutError)
                if not stale or link.aborted:
                    raise self.faults.name(error, link) from error

    def _take(self) -> Link:
        now = time.monotonic()
        while True:
            with self._lock:
                link = self._idle.pop() if self._idle else None
            if link is None:
                return Link(self._url, self._timeouts.connect_s)
            if link.usable and now - link.idle_since < _MAX_IDLE_S:
                return link
            link.close()

    def _give_back(self, link: Link) -> None:
        """Keep a link whose reply came whole; close any other, which is what makes the server stop, too."""
        if link.usable:
            link.served += 1
            link.idle_since = time.monotonic()
            with self._lock:
                if not self._closed and len(self._idle) < _MAX_IDLE_LINKS:
                    self._idle.append(link)
                    return
        link.close()

    def _look_at_headers(self, exchange: "Exchange", judge: Judge | None) -> None:
        status, headers = exchange.response.status_code, exchange.response.headers
        if 300 <= status < 400:
            raise self.faults.redirected(status, headers.get("location", ""))
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in {"", "identity"}:
            raise EndpointMisconfigured(
                f"the reply is compressed ({self.faults.quote(coding, 40)}), which was not asked for",
                where=self.faults.where,
                fix="Turn compression off in the proxy before the server",
            )
        if status >= 400:
            raise self._refused(exchange, status, judge)
        if headers.get("content-type", "").strip().lower().startswith("text/html"):
            raise self.faults.no_api()

    def _refused(self, exchange: "Exchange", status: int, judge: Judge | None) -> ModelError:
        exchange.max_bytes = _MAX_REASON_BYTES
        exchange.link.expect("the rest of an error", self._timeouts.look_s)
        try:
            raw = exchange.whole()
        except Stopped:
            raise
        except ModelError:
            # The status says enough; a reason that is too long or never ends is none.
            raw = b""
        html = raw.lstrip()[:1] == b"<"
        said = "" if html else reason(raw)
        body = raw.decode(errors="replace")
        error = judge(status, said, body) if judge is not None and not html else None
        return error or self.faults.by_status(status, said, html=html)


class Exchange:
    """A reply as it comes in.

    Attributes:
        received: bytes of its body so far.
        unended: the line given last had no end of its own.

    """

    def __init__(
        self,
        wire: Wire,
        link: Link,
        response: httpx.Response,
        patience: Patience,
        max_bytes: int,
    ) -> None:
        self._wire = wire
        self.link = link
        self.response = response
        self._between_s = patience.between_s
        self.max_bytes = max_bytes
        self.received = 0
        self.unended = False
        self._chunks: Iterator[bytes] = iter(response.stream)  # type: ignore[arg-type]

    def progress(self, what: str = "the next token") -> None:
        """Count the time to the next sign of the reply from now."""
        self.link.expect(what, self._between_s)

    def whole(self) -> bytes:
        """Give all of the body.

        Raises:
            ModelError: it broke off, took too long or is too big.

        """
        return b"".join(self._read())

    def lines(self) -> Iterator[bytes]:
        """Give the body's lines without their ends, each as soon as it is whole; empty ones are left out.

        What stands after the last end of a line is given as a line too: it may be a whole answer without one.

        Raises:
            ModelError: the body broke off, a wait was too long, or a line or all of it is too big.

        """
        rest: list[bytes] = []
        held = 0
        for chunk in self._read():
            if b"\n" not in chunk:
                rest.append(chunk)
                held += len(chunk)
                if held > MAX_LINE_BYTES:
                    raise self._wire.faults.failed(
                        f"sent a line of more than {MAX_LINE_BYTES} bytes"
                    )
                continue
            first, *others = chunk.split(b"\n")
            rest.append(first)
            *whole, last = b"".join(rest), *others
            rest, held = [last], len(last)
            for line in whole:
                if line and not line.isspace():
                    yield line
        last = b"".join(rest)
        if last and not last.isspace():
            self.unended = True
            yield last

    def drain(self) -> None:
        """Read what is left of a reply that has been understood: its mere end, or else the connection is not kept."""
        self.link.expect("the end of the reply", _DRAIN_S)
        self.max_bytes = self.received + _DRAIN_BYTES
        # The reply stands, whatever happens behind it.
        with contextlib.suppress(ModelError):
            for _ in self._read():
                pass

    def _read(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                self.received += len(chunk)
                if self.received > self.max_bytes:
                    raise self._wire.faults.failed(
                        f"sent more than the {self.max_bytes} bytes that the request can explain"
                    )
                yield chunk
        except (OSError, NotHttp) as error:
            raise self._wire.faults.name(error, self.link) from error


def _usable_url(endpoint: Endpoint) -> httpx.URL:
    where = f"endpoint {printable(endpoint.name, 100)}"
    try:
        url = httpx.URL(endpoint.url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"its url is none: {error}", where=where, fix="Mend the url") from error
    usable = _HOST.fullmatch(url.raw_host.decode()) and (url.port or 0) < 2**16
    if url.scheme not in {"http", "https"} or not usable:
        raise ConfigError(
            "its url is not one of http or https with a host",
            where=where,
            fix="Write it like http://HOST:11434",
        )
    for name, value in endpoint.headers.items():
        if not _HEADER.fullmatch(name) or not value.isprintable() or not value.isascii():
            raise ConfigError(
                f"its header {printable(name, 60)} can't be sent",
                where=where,
                fix="Write names of letters, digits and hyphens, and values on one line",
            )
    return url


def _authorization(url: httpx.URL, key: str) -> dict[str, str]:
    if key:
        return {"authorization": f"Bearer {key}"}
    if url.userinfo:
        pair = f"{url.username}:{url.password}".encode()
        return {"authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return {}
