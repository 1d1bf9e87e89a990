"""What stands before the page: who may ask for what, from where. An ASGI application around another.

Only what the page itself needs is let through: Gradio's ways to fetch files of this machine, to send files to
it and to look into it are closed. A name that this page does not go by is refused, so that no other site's
name can be pointed at it (DNS rebinding); whatever changes something must come from the page itself.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from labd.text import printable

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
USER_HEADER = b"x-labd-user"
MAX_BODY_BYTES = 2 * 2**20

_LANGUAGE = r"/(?:en|ko)"
_OPEN = re.compile(r"/(?:sign-in|healthz|favicon\.ico)")
_FRONT = re.compile(rf"/|{_LANGUAGE}/?")
_GET = re.compile(
    rf"/|/(?:sign-in|healthz|favicon\.ico)|/(?:t|results|reports)/.*|{_LANGUAGE}/?|{_LANGUAGE}/(?:config|theme\.css|manifest\.json"
    r"|favicon\.ico|assets/.*|static/.*|svelte/.*|gradio_api/(?:queue/data|app_id|startup-events|heartbeat/[a-z0-9]+))"
)
_POST = re.compile(rf"/sign-in|/sign-out|{_LANGUAGE}/gradio_api/(?:queue/join/?|reset/?|cancel/?)")

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def allowed_hosts(host: str, port: int, names: Iterable[str]) -> frozenset[str]:
    """Give every ``Host`` by which browsers may ask for the page."""
    bare = f"[{host}]" if ":" in host and not host.startswith("[") else host
    known = {bare, *LOOPBACK, *names} - {"0.0.0.0", "[::]"}  # noqa: S104 - these are no names
    return frozenset(text.lower() for name in known for text in (name, f"{name}:{port}"))


def is_loopback(host: str) -> bool:
    """Say whether nobody but this machine can ask an address."""
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


class Guard:
    """Lets requests through to `app`. `user`: who a request comes from, by its headers; ``None``: nobody known."""

    def __init__(
        self,
        app: App,
        hosts: frozenset[str],
        user: Callable[[dict[str, str]], str | None] | None,
    ) -> None:
        self._app, self._hosts, self._user = app, hosts, user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page has no use for websockets
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        status, text = self._refusal(scope["method"], scope["path"], headers)
        if status == 401 and scope["method"] == "GET" and _FRONT.fullmatch(scope["path"]):
            await _redirect(send, "/sign-in")
        elif status:
            await _answer(send, status, text)
        else:
            await self._app(self._named(scope, headers), _bounded(receive), _with_headers(send))

    def _named(self, scope: Scope, headers: dict[str, str]) -> Scope:
        """Say who asks in a header that nobody else can set."""
        user = self._user(headers) if self._user is not None else None
        kept = [(key, value) for key, value in scope["headers"] if key != USER_HEADER]
        named = [(USER_HEADER, (user or "").encode(errors="replace"))]
        return {**scope, "headers": kept + named}

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return 421, (
                f"labd: the page does not go by the name {printable(host, 100)!r}; "
                "`page: {names: [...]}` in config/labd.yaml tells it further names"
            )
        if method not in {"GET", "HEAD", "POST"}:
            return 405, "labd: no such method here"
        known = (_POST if method == "POST" else _GET).fullmatch(path)
        if not known or ".." in path.split("/"):
            return 404, "labd: there is nothing here"
        if method == "POST" and not _from_the_page(host, headers):
            return 403, "labd: only the page itself may ask for that"
        if self._user is not None and not _OPEN.fullmatch(path) and self._user(headers) is None:
            return 401, "labd: sign in first, at /sign-in"
        return 0, ""


def _from_the_page(host: str, headers: dict[str, str]) -> bool:
    """Say whether a request was made by a page of this very origin, as browsers tell it."""
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin", "").lower()
    if site is not None and site != "same-origin":
        return False
    if not origin:
        return site == "same-origin"
    return origin in {f"http://{host}", f"https://{host}"}


def _bounded(receive: Receive) -> Receive:
    """Give the request's body up to the limit; what sends more is taken for one that hung up."""
    got = 0

    async def bounded() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        return message if got <= MAX_BODY_BYTES else {"type": "http.disconnect"}

    return bounded


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            there = {key.lower() for key, _ in headers}
            headers += [(key, value) for key, value in _HEADERS if key not in there]
            if b"content-security-policy" not in there:
                headers.append((b"content-security-policy", POLICY.encode()))
            message = {**message, "headers": headers}
        await send(message)

    return sending


async def _redirect(send: Send, where: str) -> None:
    await _answer(send, 303, "", ((b"location", where.encode()),))


async def _answer(
    send: Send, status: int, text: str, more: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-security-policy", b"default-src 'none'"),
        (b"cache-control", b"no-store"),
        *_HEADERS,
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})
