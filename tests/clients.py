"""Clients of language models for the tests, and what stands between them and a server: TLS, an older version."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

from labd.llm.client import Client, connect
from labd.llm.model import Cancel, Endpoint, Message, Options, Reply, Timeouts
from tests.processes import wait_until

QUICK = Timeouts(
    connect_s=1.0,
    load_s=0.2,
    first_token_s=0.4,
    first_token_s_per_1k=0.0,
    between_tokens_s=0.4,
    look_s=0.5,
)
"""For servers that are to be found silent."""
PATIENT = Timeouts(
    connect_s=10.0, load_s=60.0, first_token_s=60.0, between_tokens_s=60.0, look_s=30.0
)
"""For servers that answer, however busy the machine is."""


def ask(text: str = "hello there, tell me about the nodes") -> list[Message]:
    """Give a conversation of one message."""
    return [Message("user", text)]


def options(model: str = "alpha", **over: Any) -> Options:
    """Give options for a tiny model; a reply may be cut unless the test says otherwise."""
    return Options(
        **{"model": model, "num_ctx": 1024, "num_predict": 40, "allow_cut": True, **over}
    )


@contextmanager
def client_of(
    url: str,
    api: Literal["ollama", "openai"] = "ollama",
    timeouts: Timeouts = PATIENT,
    **over: Any,
) -> Iterator[Client]:
    """Give a client of the server at `url`, closed at the end."""
    client = connect(Endpoint(name="node-1", url=url, api=api, **over), timeouts)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def long_reply(
    client: Client, asked: Options, cancel: Cancel | None = None, **over: Any
) -> Iterator[Future[Reply]]:
    """Give what will come of a reply that has begun and does not end by itself; it is given up at the end."""
    begun = threading.Event()
    cancel = cancel or Cancel()
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(
            lambda: client.chat(ask(), asked, cancel=cancel, on_first=begun.set, **over)
        )
        try:
            wait_until(lambda: begun.is_set() or reply.done(), what="the first token")
            yield reply
        finally:
            cancel.cancel()


def connections_to(url: str) -> set[int]:
    """Give the local ports of this process's open connections to the server at `url`."""
    port = urlsplit(url).port
    return {
        each.laddr.port
        for each in psutil.Process().net_connections("tcp")
        if each.status == psutil.CONN_ESTABLISHED and each.raddr.port == port
    }


@contextmanager
def behind_tls(url: str, context: ssl.SSLContext) -> Iterator[str]:
    """Give the https URL of a door before the server at `url`."""
    target = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            inside = context.wrap_socket(plain, server_side=True)
            with inside, socket.create_connection(target) as outside:
                back = threading.Thread(target=carry, args=(outside, inside))
                back.start()
                carry(inside, outside)
                back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                thread = threading.Thread(target=serve, args=(listener.accept()[0],))
                thread.start()
                threads.append(thread)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"https://localhost:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join(10)


@contextmanager
def dropping(url: str, *fields: str) -> Iterator[str]:
    """Give the URL of a door before the server at `url` that takes fields out of requests.

    It makes of a server one that knows these fields not, as older versions or those with a fault do.
    """
    target = urlsplit(url)

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _pass(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if raw:
                body = {k: v for k, v in json.loads(raw).items() if k not in fields}
                raw = json.dumps(body).encode()
            link = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            with contextlib.closing(link):
                link.request(self.command, self.path, raw, {"Content-Type": "application/json"})
                reply = link.getresponse()
                data = reply.read()
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _pass  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
