"""The hostile server does to a client what the names of its behaviours say."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.processes import wait_until
from tests.servers.behaviours import BEHAVIOURS
from tests.servers.fixtures import running_hostile
from tests.servers.hostile import HostileServer

PATHS = ("/api/chat", "/v1/chat/completions")
# One client for all, as making one takes long; a connection for each request, as servers come and go.
HTTP = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as hostile:
        yield hostile


def get(server: HostileServer, behaviour: str, path: str = "/api/chat") -> httpx.Response:
    return HTTP.post(server.at(behaviour) + path, json=BODY, timeout=0.5)


def words(reply: httpx.Response) -> list[str]:
    """Give the words of a stream of either API."""
    found = []
    for line in reply.text.splitlines():
        if line.removeprefix("data: ").startswith("{"):
            value = json.loads(line.removeprefix("data: "))
            choices = value.get("choices", [])
            said = choices[0]["delta"] if choices else value.get("message", {})
            found.append(said.get("content", ""))
    return [word for word in found if word]


def done(reply: httpx.Response) -> str | None:
    """Give why the reply says that it ended, if it says so."""
    for line in reply.text.splitlines():
        text = line.removeprefix("data: ")
        if text.startswith("{"):
            value = json.loads(text)
            choices = value.get("choices") or [{}]
            if reason := value.get("done_reason") or choices[0].get("finish_reason"):
                return str(reason)
    return None


@pytest.mark.parametrize("path", PATHS)
def test_a_fine_reply_is_fine(server: HostileServer, path: str) -> None:
    reply = get(server, "fine:4", path)
    assert words(reply) == [" word0", " word1", " word2", " word3"]
    assert done(reply) == "stop"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("behaviour", "ends", "held"),
    [
        ("error-line", (0, None), '"error"'),
        ("error-after-tokens:2", (2, None), '"error"'),
        ("no-done:2", (2, None), ""),
        ("length", (3, "length"), ""),
        ("empty", (0, "stop"), ""),
        ("html", (0, None), "<!doctype html>"),
        ("unexpected-endpoint", (0, None), "Unexpected endpoint"),
        ("null", (0, "stop"), "null"),
        ("list", (0, "stop"), "[]"),
        ("odd-content", (1, "stop"), "[1, 2]"),
        ("nested:50000", (0, "stop"), "[" * 50_000),
        ("drip:0.001", (1, "stop"), " slow"),
    ],
)
def test_it_says_200_and_means_something_else(
    server: HostileServer, path: str, behaviour: str, ends: tuple[int, str | None], held: str
) -> None:
    reply = get(server, behaviour, path)
    assert reply.status_code == 200
    assert (len(words(reply)), done(reply)) == ends
    assert held in reply.text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("behaviour", "status"),
    [("unauthorized", 401), ("forbidden", 403), ("no-model", 404), ("failure", 500)],
)
def test_it_refuses(server: HostileServer, path: str, behaviour: str, status: int) -> None:
    reply = get(server, behaviour, path)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert isinstance(error, dict if path.startswith("/v1") else str)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "behaviour", ["hang-before-headers", "hang-in-headers", "hang-after-tokens:2"]
)
def test_it_hangs(server: HostileServer, path: str, behaviour: str) -> None:
    before = server.counts["client_left"]
    with pytest.raises(httpx.ReadTimeout):
        get(server, behaviour, path)
    wait_until(lambda: server.counts["client_left"] > before, 5, "the count of who left")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("behaviour", ["cut", "length-too-long", "bad-chunk", "reset"])
def test_it_breaks_the_connection(server: HostileServer, path: str, behaviour: str) -> None:
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        get(server, behaviour, path)


def test_what_it_sends_need_not_be_text_or_whole(server: HostileServer) -> None:
    with pytest.raises(UnicodeDecodeError):
        get(server, "bad-utf8").content.decode()
    for behaviour in ("half-line", "length-too-short"):
        with pytest.raises(json.JSONDecodeError):
            json.loads(get(server, behaviour).text.splitlines()[-1])


def test_it_sends_the_client_to_another_port(server: HostileServer) -> None:
    with HostileServer() as other:
        port = other.url.rpartition(":")[2]
        reply = get(server, f"redirect:{port}")
        assert reply.status_code == 302
        assert reply.headers["location"] == f"{other.url}/api/chat"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("behaviour", ["endless-tokens", "endless-line", "gzip-bomb"])
def test_it_never_ends_and_sees_who_leaves(
    server: HostileServer, path: str, behaviour: str
) -> None:
    before = server.counts["client_left"]
    count = 0
    with HTTP.stream("POST", server.at(behaviour) + path, json=BODY) as reply:
        for part in reply.iter_bytes(100_000):
            count += len(part)
            if count > 5_000_000:
                break
    wait_until(lambda: server.counts["client_left"] > before, 5, "the count of who left")
    assert count > 5_000_000


def test_endless_headers_are_endless(server: HostileServer) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        get(server, "endless-headers")


def test_a_small_bomb_unpacks_to_what_it_promises(server: HostileServer) -> None:
    with HTTP.stream("POST", server.at("gzip-bomb:20e6") + "/api/chat", json=BODY) as reply:
        count = sum(len(part) for part in reply.iter_bytes())
        assert 19e6 < count < 22e6
        assert reply.num_bytes_downloaded < 100_000


def test_it_is_unavailable_so_many_times(server: HostileServer) -> None:
    statuses = [get(server, "unavailable:3").status_code for _ in range(5)]
    assert statuses == [503, 503, 503, 200, 200]


def test_a_script_is_followed_and_its_last_entry_stays() -> None:
    with HostileServer("failure", "unavailable:2", "unavailable:2", "no-model", "fine") as server:
        at = f"{server.url}/api/chat"
        statuses = [HTTP.post(at, json=BODY).status_code for _ in range(7)]
        assert statuses == [500, 503, 503, 404, 200, 200, 200]
        assert HTTP.get(f"{server.url}/api/version").json() == {"version": "0.33.0"}
        counters: dict[str, Any] = HTTP.get(f"{server.url}/_test/counters").json()
        assert (counters["requests"], counters["fine"]) == (7, 3)
        assert counters["seen"][0] == {"path": "/api/chat", "behaviour": "failure", "body": BODY}


def test_it_can_treat_gets_so_too() -> None:
    with HostileServer("unauthorized", also_gets=True) as server:
        assert HTTP.get(f"{server.url}/api/tags").status_code == 401


def test_it_ends_while_clients_wait() -> None:
    with ThreadPoolExecutor() as pool:
        with HostileServer("hang-before-headers") as server:
            at = f"{server.url}/api/chat"
            waiting = [pool.submit(HTTP.post, at, json=BODY, timeout=30) for _ in range(3)]
            wait_until(lambda: server.counts["requests"] == 3, 5, "the requests")
        assert all(isinstance(w.exception(), httpx.RemoteProtocolError) for w in waiting)
    assert not [t for t in threading.enumerate() if "_serve" in t.name]
    assert server.counts["client_left"] == 0


def test_it_runs_as_a_process_and_explains_each_behaviour() -> None:
    with running_hostile("no-model") as server:
        assert HTTP.post(f"{server.url}/api/chat", json=BODY).status_code == 404
        assert server.counters()["requests"] == 1
    assert all(act.__doc__ for act, _ in BEHAVIOURS.values())


def test_a_behaviour_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no behaviour 'nice'"):
        HostileServer("nice")
