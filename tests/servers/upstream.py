"""Talking to a llama.cpp server from the servers that stand in front of one."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from tests.servers.web import ClientLeft, Failure, Hangup, shut

_TIMEOUT_S = 600.0
DIED = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"


def send(url: str, path: str, body: Any) -> tuple[http.client.HTTPConnection, socket.socket]:
    """POST `body`; give the connection, for its reply, and its socket."""
    where = urlsplit(url)
    link = http.client.HTTPConnection(where.hostname or "", where.port, timeout=_TIMEOUT_S)
    link.connect()
    link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return link, link.sock


def ask(url: str, path: str, body: Any) -> Any:
    """POST `body` and give the JSON reply.

    Raises:
        Failure: it answered with an error (its status and text), or died (500).

    """
    try:
        link, _ = send(url, path, body)
        with closing(link):
            reply = link.getresponse()
            data = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise Failure(500, DIED) from error
    if reply.status >= 400:
        raise Failure(reply.status, data.decode().strip())
    return json.loads(data)


def events(url: str, path: str, body: dict[str, Any], hangup: Hangup) -> Iterator[Any]:
    """POST `body` and give the events of the streamed reply; leaving ends the generation.

    Raises:
        Failure: as for `ask`, also in the middle of the stream.
        ClientLeft: `hangup` was set.

    """
    try:
        link, connection = send(url, path, {**body, "stream": True})
        hangup.then(lambda: shut(connection))
        with closing(link):
            reply = link.getresponse()
            if reply.status >= 400:
                raise Failure(reply.status, reply.read().decode().strip())
            for line in reply:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])
    except (OSError, http.client.HTTPException, ValueError) as error:
        if not hangup.is_set():
            raise Failure(500, DIED) from error
    if hangup.is_set():
        raise ClientLeft
