"""A server that misbehaves, for both APIs: Ollama's lines of JSON and OpenAI's server-sent events.

  python -m tests.servers.hostile --port 9999
  curl -N localhost:9999/hang-after-tokens:3/api/chat -d '{"model": "m"}'

The first part of the path is what it does, NAME or NAME:NUMBER; without one it does what its script says, one
entry per POST, the last one for ever. A GET of a list or a version without such a part is answered well, so
that the server looks healthy. `HostileServer` is the same in a thread. Every connection ends after one reply.
"""

import contextlib
import json
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, Self

from tests.servers.behaviours import BEHAVIOURS, UNAVAILABLE, Exchange
from tests.servers.lifetime import Lifetime, make_parser
from tests.servers.web import ClientLeft, shut

_HEAD_MAX_BYTES = 65536
_SEEN_MAX = 1000
_GOOD_GETS: dict[str, Any] = {
    "/": "Ollama is running",
    "/health": {"status": "ok"},
    "/api/version": {"version": "0.33.0"},
    "/api/ps": {"models": []},
    "/api/tags": {"models": [{"name": "m:latest", "model": "m:latest", "size": 1, "digest": "0" * 64, "capabilities": ["completion"]}]},
    "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model"}]},
}  # fmt: skip


class HostileServer:
    """A hostile server in a thread, as a context manager.

    `script` holds what it does to the POSTs in turn (see `BEHAVIOURS`); `also_gets` has it treat GETs so, too.
    """

    def __init__(
        self, *script: str, host: str = "127.0.0.1", port: int = 0, also_gets: bool = False
    ) -> None:
        for name in script:
            _split(name)
        self.script = deque(script or ("fine",))
        self.counts: Counter[str] = Counter()
        self.seen: deque[dict[str, Any]] = deque(maxlen=_SEEN_MAX)
        self._also_gets, self._lock = also_gets, threading.Lock()
        self._used: Counter[str] = Counter()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._stopping = threading.Event()
        self._listener = socket.create_server((host, port), backlog=512)
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def at(self, behaviour: str) -> str:
        """Give the base address under which it behaves so."""
        _split(behaviour)
        return f"{self.url}/{behaviour}"

    def counters(self) -> dict[str, Any]:
        """Give counts: connections, requests, finished, client_left, bytes_sent, open, and one per behaviour."""
        with self._lock:
            return {**self.counts, "open": len(self._open), "seen": list(self.seen)}

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        self._stopping.set()
        shut(self._listener)
        self._accepting.join(10)
        self._listener.close()
        with self._lock:
            left = dict(self._open)
        for connection, thread in left.items():
            shut(connection)
            thread.join(10)

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self.counts["connections"] += 1
                self._open[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        exchange = Exchange(connection)
        outcome = "finished"
        with connection:
            try:
                if request := _read_request(connection):
                    self._behave(exchange, *request)
            except (ClientLeft, ConnectionError):
                outcome = "stopped" if self._stopping.is_set() else "client_left"
            with self._lock:
                self.counts[outcome] += 1
                self.counts["bytes_sent"] += exchange.bytes_sent
                del self._open[connection]

    def _behave(self, exchange: Exchange, method: str, path: str, body: Any) -> None:
        first, _, rest = path.lstrip("/").partition("/")
        named = first.partition(":")[0] in BEHAVIOURS
        path = f"/{rest}" if named else path
        exchange.path, exchange.body = path, body
        if method == "GET" and not named and not self._also_gets:
            self._answer_well(exchange)
            return
        with self._lock:
            behaviour = first if named else self._next()
            self.counts["requests"] += 1
            self.counts[behaviour] += 1
            self.seen.append({"path": path, "behaviour": behaviour, "body": body})
            self._used[behaviour] += 1
            times = self._used[behaviour]
        name, number = _split(behaviour)
        if name == UNAVAILABLE and times > (number or 1):
            name = "fine"
        act, usual = BEHAVIOURS[name]
        act(exchange, usual if number is None else number)

    def _next(self) -> str:
        return self.script.popleft() if len(self.script) > 1 else self.script[0]

    def _answer_well(self, exchange: Exchange) -> None:
        if exchange.path == "/_test/counters":
            exchange.reply(200, self.counters())
        elif exchange.path in _GOOD_GETS:
            exchange.reply(200, _GOOD_GETS[exchange.path])
        else:
            exchange.reply(404, "404 page not found")


def _split(behaviour: str) -> tuple[str, float | None]:
    name, _, number = behaviour.partition(":")
    if name not in BEHAVIOURS:
        raise ValueError(f"no behaviour {name!r}; there are {', '.join(BEHAVIOURS)}")
    return name, float(number) if number else None


def _read_request(connection: socket.socket) -> tuple[str, str, Any] | None:
    """Give method, path and JSON body, or nothing if the client said nothing."""
    data = b""
    for part in _parts(connection):
        data += part
        head, found, body = data.partition(b"\r\n\r\n")
        if not found and len(data) < _HEAD_MAX_BYTES:
            continue
        first, *fields = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (field.partition(":") for field in fields)}
        if len(body) >= int(headers.get("content-length", 0)):
            method, path, _ = first.split(" ")
            with contextlib.suppress(ValueError):
                return method, path, json.loads(body)
            return method, path, None
    return None


def _parts(connection: socket.socket) -> Iterator[bytes]:
    while part := connection.recv(65536):
        yield part


def main() -> None:
    """Serve until told to end."""
    known = "\n".join(
        f"  {name:22}{(act.__doc__ or '').splitlines()[0]}" + (f" [{usual:g}]" if usual else "")
        for name, (act, usual) in BEHAVIOURS.items()
    )
    parser = make_parser("hostile", __doc__, f"behaviours, and their usual NUMBER:\n{known}")
    parser.add_argument("script", nargs="*", metavar="BEHAVIOUR", help="for the POSTs in turn")
    parser.add_argument("--also-gets", action="store_true", help="treat GETs so, too")
    asked = parser.parse_args()
    life = Lifetime(with_stdin=asked.with_stdin)
    server = HostileServer(
        *asked.script, host=asked.host, port=asked.port, also_gets=asked.also_gets
    )
    life.serve(url=server.url)
    life.leave()


if __name__ == "__main__":
    main()
