"""What the hostile server can do to one request, each a function of the exchange and a number.

Each sends a streamed chat of the API that was asked for (`/v1/…` is OpenAI's, all else Ollama's), or what it
takes for one. Nothing here stores what it sends: the endless ones repeat one block.
"""

import json
import select
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from tests.servers.web import EVENTS, JSON, NDJSON, ClientLeft

UNAVAILABLE = "unavailable"
_BLOCK_BYTES = 1 << 20
_REASONS = {200: "OK", 302: "Found", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}


class Exchange:
    """One request and its connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.path, self.bytes_sent = "/", 0
        self.body: Any = None

    @property
    def openai(self) -> bool:
        """Whether OpenAI's API was asked for."""
        return self.path.startswith("/v1/")

    def send(self, data: bytes) -> None:
        """Send as it is."""
        self._connection.sendall(data)
        self.bytes_sent += len(data)

    def head(self, status: int, kind: str = JSON, **headers: object) -> None:
        """Send the status line and headers; underscores in names stand for hyphens."""
        fields = {"Content-Type": kind, "Connection": "close", **headers}
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def reply(self, status: int, body: Any, kind: str = JSON, **headers: object) -> None:
        """Send a whole reply."""
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.head(status, kind, Content_Length=len(data), **headers)
        self.send(data)

    def error(self, status: int, message: str) -> None:
        """Send an error in the words of the API."""
        self.reply(status, {"error": {"message": message} if self.openai else message})

    def begin(self, **headers: object) -> None:
        """Begin a stream in chunks."""
        kind = EVENTS if self.openai else NDJSON
        self.head(200, kind, Transfer_Encoding="chunked", **headers)

    def chunk(self, data: bytes) -> None:
        """Send a chunk; an empty one ends the reply."""
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def finish(self) -> None:
        """Send the end of a good reply."""
        self.chunk(self.last())
        self.chunk(b"")

    def event(self, value: object) -> bytes:
        """Give a value as one line, or as one event."""
        text = json.dumps(value)
        return f"data: {text}\n\n".encode() if self.openai else f"{text}\n".encode()

    def token(self, text: object) -> bytes:
        """Give one piece of the reply."""
        if self.openai:
            delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            return self.event({"object": "chat.completion.chunk", "choices": [delta]})
        part = (
            {"response": text}
            if "generate" in self.path
            else {"message": {"role": "assistant", "content": text}}
        )
        return self.event({"model": "m", **part, "done": False})

    def last(self, reason: str = "stop", counts: tuple[int, int] = (5, 3)) -> bytes:
        """Give the end of the reply, with the tokens of prompt and reply."""
        prompt, output = counts
        if self.openai:
            end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
            usage = {"prompt_tokens": prompt, "completion_tokens": output}
            return (
                self.event(end) + self.event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
            )
        part = (
            {"response": ""}
            if "generate" in self.path
            else {"message": {"role": "assistant", "content": ""}}
        )
        said = {"prompt_eval_count": prompt, "eval_count": output, "total_duration": 10**6}
        return self.event({"model": "m", **part, "done": True, "done_reason": reason, **said})

    def wait(self, timeout_s: float | None = None) -> None:
        """Do nothing, until the time is over.

        Raises:
            ClientLeft: the client closed the connection.

        """
        readable, _, _ = select.select([self._connection], [], [], timeout_s)
        if readable and not self._connection.recv(65536):
            raise ClientLeft

    def repeat(self, block: bytes, total_bytes: float) -> None:
        """Send chunks of one block until `total_bytes` of it have gone."""
        for _ in range(max(1, int(total_bytes) // len(block))):
            self.chunk(block)

    def reset(self) -> None:
        """Close with a reset in place of an end."""
        linger = struct.pack("ii", 1, 0)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._connection.close()


def _words(exchange: Exchange, count: float) -> None:
    exchange.begin()
    for number in range(int(count)):
        exchange.chunk(exchange.token(f" word{number}"))


def _fine(exchange: Exchange, number: float) -> None:
    """Answer NUMBER words, well."""
    _words(exchange, number)
    exchange.finish()


def _counts(exchange: Exchange, number: float) -> None:
    """Answer some words, and claim NUMBER tokens of prompt and reply each."""
    _words(exchange, 3)
    exchange.chunk(exchange.last(counts=(int(number), int(number))))
    exchange.chunk(b"")


def _hang(exchange: Exchange, _: float) -> None:
    """Take the request and say nothing."""
    exchange.wait()


def _hang_in_headers(exchange: Exchange, _: float) -> None:
    """Send half of the headers, and nothing more."""
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: appl")
    exchange.wait()


def _hang_after(exchange: Exchange, number: float) -> None:
    """Send NUMBER words, and nothing more."""
    _words(exchange, number)
    exchange.wait()


def _endless_headers(exchange: Exchange, number: float) -> None:
    """Send NUMBER bytes of headers."""
    exchange.send(b"HTTP/1.1 200 OK\r\n")
    for count in range(int(number) // 100):
        exchange.send(b"X-%08d: %s\r\n" % (count, b"y" * 86))


def _error_line(exchange: Exchange, number: float) -> None:
    """Send NUMBER words and then an error, in a reply with status 200."""
    _words(exchange, number)
    message = "an error was encountered while running the model: CUDA error"
    exchange.chunk(exchange.event({"error": {"message": message} if exchange.openai else message}))
    exchange.chunk(b"")


def _html(exchange: Exchange, _: float) -> None:
    """Send a web page with status 200."""
    exchange.reply(200, "<!doctype html><title>Sign in</title><p>Welcome to the WLAN", "text/html")


def _unexpected(exchange: Exchange, _: float) -> None:
    """Say with status 200 that there is no such path, as LM Studio does."""
    error = f"Unexpected endpoint or method. (POST {exchange.path})"
    exchange.reply(200, {"error": error})


def _half_line(exchange: Exchange, number: float) -> None:
    """Send NUMBER words and half a line, and end the reply."""
    _words(exchange, number)
    exchange.chunk(exchange.token(" half")[:25])
    exchange.chunk(b"")


def _no_end(exchange: Exchange, number: float) -> None:
    """Send NUMBER words, and end the reply without saying that it is done."""
    _words(exchange, number)
    exchange.chunk(b"")


def _cut(exchange: Exchange, number: float) -> None:
    """Send NUMBER words, and close the connection in the middle of the reply."""
    _words(exchange, number)


def _bad_utf8(exchange: Exchange, _: float) -> None:
    """Send a word that is not UTF-8, and the rest well."""
    exchange.begin()
    exchange.chunk(exchange.token("WORD").replace(b"WORD", b"caf\xe9 \xff\xfe \xed\xa0\x80"))
    exchange.finish()


def _redirect(exchange: Exchange, number: float) -> None:
    """Send the client to port NUMBER of this machine."""
    exchange.head(302, Location=f"http://127.0.0.1:{number:.0f}{exchange.path}", Content_Length=0)


def _endless_tokens(exchange: Exchange, number: float) -> None:
    """Send NUMBER bytes of words."""
    exchange.begin()
    token = exchange.token(" again and again")
    exchange.repeat(token * (_BLOCK_BYTES // len(token)), number)
    exchange.finish()


def _endless_line(exchange: Exchange, number: float) -> None:
    """Send NUMBER bytes of one line."""
    exchange.begin()
    exchange.chunk(exchange.token("WORD").partition(b"WORD")[0])
    exchange.repeat(b"a" * _BLOCK_BYTES, number)
    exchange.chunk(exchange.token("WORD").partition(b"WORD")[2])
    exchange.finish()


def _gzip_bomb(exchange: Exchange, number: float) -> None:
    """Send what unpacks to NUMBER bytes, packed a thousandfold."""
    exchange.begin(Content_Encoding="gzip")
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(exchange.token("WORD").partition(b"WORD")[0])
    exchange.chunk(start + packer.flush(zlib.Z_FULL_FLUSH))
    # After a full flush a block depends on nothing before it, so that the same bytes can go again.
    block = packer.compress(b"a" * _BLOCK_BYTES) + packer.flush(zlib.Z_FULL_FLUSH)
    exchange.repeat(block, number * len(block) / _BLOCK_BYTES)
    exchange.chunk(b"")


def _status(status: int, message: str) -> Callable[[Exchange, float], None]:
    def behave(exchange: Exchange, _: float) -> None:
        exchange.error(status, message)

    behave.__doc__ = f"Answer with status {status}."
    return behave


def _unavailable(exchange: Exchange, _: float) -> None:
    """Answer with status 503 NUMBER times, and well from then on."""
    exchange.error(503, "server busy, please try again.  maximum pending requests exceeded")


def _drip(exchange: Exchange, number: float) -> None:
    """Send a good reply, one byte every NUMBER seconds."""
    exchange.begin()
    for byte in exchange.token(" slow") + exchange.last():
        exchange.chunk(bytes([byte]))
        exchange.wait(number)
    exchange.chunk(b"")


def _promise_more(exchange: Exchange, number: float) -> None:
    """Promise NUMBER bytes more than there are, and close."""
    data = exchange.token(" short") + exchange.last()
    exchange.head(200, NDJSON, Content_Length=len(data) + int(number))
    exchange.send(data)


def _promise_less(exchange: Exchange, number: float) -> None:
    """Promise NUMBER bytes less than there are."""
    data = exchange.token(" long") + exchange.last()
    exchange.head(200, NDJSON, Content_Length=len(data) - int(number))
    exchange.send(data)


def _bad_chunk(exchange: Exchange, number: float) -> None:
    """Send NUMBER words, and then a chunk whose length is no number."""
    _words(exchange, number)
    exchange.send(b"zz\r\nnonsense\r\n")


def _reset(exchange: Exchange, number: float) -> None:
    """Send NUMBER words, and reset the connection."""
    _words(exchange, number)
    exchange.wait(0.05)
    exchange.reset()


def _length(exchange: Exchange, number: float) -> None:
    """Send NUMBER words, and say that the limit of words was reached."""
    _words(exchange, number)
    exchange.chunk(exchange.last("length"))
    exchange.chunk(b"")


def _empty(exchange: Exchange, _: float) -> None:
    """Send a good reply without a word."""
    exchange.begin()
    exchange.finish()


def _says(value: object) -> Callable[[Exchange, float], None]:
    def behave(exchange: Exchange, _: float) -> None:
        exchange.begin()
        exchange.chunk(exchange.event(value))
        exchange.finish()

    behave.__doc__ = f"Send {json.dumps(value)} where a word belongs, and end well."
    return behave


def _odd_content(exchange: Exchange, _: float) -> None:
    """Send a word that is a list of numbers."""
    exchange.begin()
    exchange.chunk(exchange.token([1, 2]))
    exchange.finish()


def _nested(exchange: Exchange, number: float) -> None:
    """Send lists in lists, NUMBER deep."""
    exchange.begin()
    start = b"data: " if exchange.openai else b""
    exchange.chunk(start + b"[" * int(number) + b"]" * int(number) + b"\n\n")
    exchange.finish()


_Act = Callable[[Exchange, float], None]
BEHAVIOURS: Mapping[str, tuple[_Act, float]] = {
    "fine": (_fine, 3),
    "counts": (_counts, 1e12),
    "hang-before-headers": (_hang, 0),
    "hang-in-headers": (_hang_in_headers, 0),
    "hang-after-tokens": (_hang_after, 3),
    "endless-headers": (_endless_headers, 1e8),
    "error-line": (_error_line, 0),
    "error-after-tokens": (_error_line, 3),
    "html": (_html, 0),
    "unexpected-endpoint": (_unexpected, 0),
    "half-line": (_half_line, 3),
    "no-done": (_no_end, 3),
    "cut": (_cut, 3),
    "bad-utf8": (_bad_utf8, 0),
    "redirect": (_redirect, 1),
    "endless-tokens": (_endless_tokens, 1e9),
    "endless-line": (_endless_line, 1e9),
    "gzip-bomb": (_gzip_bomb, 1e10),
    "unauthorized": (_status(401, "unauthorized"), 0),
    "forbidden": (_status(403, "forbidden"), 0),
    "no-model": (_status(404, "model 'm' not found"), 0),
    "failure": (_status(500, "llama-server process has terminated: CUDA out of memory"), 0),
    UNAVAILABLE: (_unavailable, 1),
    "loading": (_status(503, "Loading model"), 0),
    "drip": (_drip, 0.05),
    "length-too-long": (_promise_more, 100),
    "length-too-short": (_promise_less, 20),
    "bad-chunk": (_bad_chunk, 3),
    "reset": (_reset, 3),
    "length": (_length, 3),
    "empty": (_empty, 0),
    "null": (_says(None), 0),
    "list": (_says([]), 0),
    "odd-content": (_odd_content, 0),
    "nested": (_nested, 1e5),
}  # fmt: skip
