"""A reply is whole or an error that says what, where and what to do, whatever the server does."""

import pickle
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Literal

import psutil
import pytest
import trustme

from labd.errors import ConfigError
from labd.llm import link
from labd.llm.client import Client
from labd.llm.draft import whole_text
from labd.llm.errors import (
    CutShort,
    EndpointBusy,
    EndpointDown,
    EndpointFailed,
    EndpointMisconfigured,
    EndpointSilent,
    ModelError,
    ModelMissing,
    Stopped,
)
from labd.llm.model import Cancel, Timeouts
from tests.clients import (
    QUICK,
    ask,
    behind_tls,
    client_of,
    connections_to,
    long_reply,
    options,
)
from tests.processes import wait_until
from tests.servers.behaviours import BEHAVIOURS
from tests.servers.fixtures import RunningServer, running_llama, running_ollama
from tests.servers.hostile import HostileServer

Api = Literal["ollama", "openai"]
APIS: tuple[Api, ...] = ("ollama", "openai")
FAULTS: dict[str, tuple[type[ModelError], str]] = {
    "hang-before-headers": (EndpointSilent, "did not come within"),
    "hang-in-headers": (EndpointSilent, "did not come within"),
    "hang-after-tokens": (EndpointSilent, "the next token did not come within 0.4 s"),
    "drip:0.1": (EndpointSilent, "did not come within"),
    "endless-headers": (EndpointMisconfigured, "headers of more than"),
    "error-line": (EndpointFailed, "CUDA error"),
    "error-after-tokens": (EndpointFailed, "CUDA error"),
    "html": (EndpointMisconfigured, "no LLM API here: it answers with HTML"),
    "unexpected-endpoint": (EndpointMisconfigured, ""),
    "half-line": (EndpointDown, "in the middle of a line"),
    "no-done": (EndpointDown, "not whole"),
    "cut": (EndpointDown, "the connection broke"),
    "reset": (EndpointDown, "the connection broke"),
    "bad-utf8": (EndpointFailed, "not UTF-8"),
    "redirect:1": (EndpointMisconfigured, "redirects (status 302) to http://127.0.0.1:1/"),
    "endless-tokens": (EndpointFailed, "only 40 tokens were asked for"),
    "endless-line": (EndpointFailed, "a line of more than 1048576 bytes"),
    "gzip-bomb": (EndpointMisconfigured, "compressed"),
    "unauthorized": (EndpointMisconfigured, "status 401"),
    "forbidden": (EndpointMisconfigured, "status 403"),
    "no-model": (ModelMissing, "does not have the model m"),
    "failure": (EndpointFailed, "CUDA out of memory"),
    "unavailable:1000": (EndpointBusy, "status 503"),
    "loading": (EndpointBusy, "status 503: Loading model"),
    "length-too-short": (EndpointFailed, ""),
    "bad-chunk": (EndpointFailed, "broke the rules of HTTP"),
    "null": (EndpointFailed, "no JSON object: null"),
    "list": (EndpointFailed, "no JSON object: []"),
    "odd-content": (EndpointFailed, "no text"),
    "nested": (EndpointFailed, "not JSON"),
}
LONG = options("m", num_predict=7000, more={"ignore_eos": True})
FINE = {"fine", "counts", "empty", "length", "length-too-long"}


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
def llama() -> Iterator[RunningServer]:
    with running_llama("--slots=2", "--ctx=8192") as server:
        yield server


@pytest.fixture(scope="module")
def node() -> Iterator[RunningServer]:
    with running_ollama("--model=m", "--num-parallel=4") as server:
        yield server


def chat_with(client: Client, cancel: Cancel | None = None) -> str:
    return client.chat(ask(), options("m"), cancel=cancel).text


def test_no_fault_of_the_hostile_server_is_left_out() -> None:
    assert {name.partition(":")[0] for name in FAULTS} | FINE == set(BEHAVIOURS)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("behaviour", FAULTS)
def test_each_fault_is_told_as_what_it_is(behaviour: str, api: Api) -> None:
    kind, words = FAULTS[behaviour]
    with (
        HostileServer(behaviour) as hostile,
        client_of(hostile.url, api, QUICK) as client,
        pytest.raises(kind) as caught,
    ):
        chat_with(client)
    error = caught.value
    assert type(error) is kind
    assert words in error.what
    assert "node-1" in error.where
    assert hostile.url in error.where
    assert error.fix
    assert len(str(error)) < 1000
    assert str(error).isprintable()


@pytest.mark.parametrize("api", APIS)
def test_a_fine_reply_comes_whole_and_an_empty_one_is_a_reply(
    hostile: HostileServer, api: Api
) -> None:
    with client_of(hostile.url, api) as client:
        assert chat_with(client) == " word0 word1 word2"
    with client_of(hostile.at("empty")) as client:
        assert chat_with(client) == ""


@pytest.mark.parametrize("api", APIS)
def test_counts_that_can_t_be_are_not_believed_and_cost_no_reply(api: Api) -> None:
    with HostileServer("counts:1e12") as hostile, client_of(hostile.url, api) as client:
        reply = client.chat(ask(), options("m"))
    assert (reply.text, reply.prompt_tokens, reply.output_tokens) == (" word0 word1 word2", 0, 0)


def test_a_reply_that_is_done_stands_although_the_connection_then_breaks(
    hostile: HostileServer,
) -> None:
    with client_of(hostile.at("length-too-long")) as client:
        assert chat_with(client) == " short"


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("behaviour", ["endless-tokens:1e10", "endless-line:1e10"])
def test_endless_tokens_are_cut_off_after_little(behaviour: str, api: Api) -> None:
    with HostileServer(behaviour) as hostile:
        with client_of(hostile.url, api) as client, pytest.raises(EndpointFailed):
            chat_with(client)
        wait_until(lambda: not hostile.counters()["open"])
        assert hostile.counters()["bytes_sent"] < 64 * 2**20


def test_a_redirect_is_not_followed(hostile: HostileServer) -> None:
    with HostileServer() as target:
        port = target.url.rpartition(":")[2]
        with (
            client_of(hostile.at(f"redirect:{port}")) as client,
            pytest.raises(EndpointMisconfigured),
        ):
            chat_with(client)
        assert target.counters().get("connections", 0) == 0


def test_proxies_of_the_environment_are_not_used(
    hostile: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with client_of(hostile.url) as client:
        assert chat_with(client)


# -- connections


def test_one_connection_serves_one_request_after_the_other(node: RunningServer) -> None:
    with client_of(node.url) as client:
        chat_with(client)
        first = connections_to(node.url)
        chat_with(client)
        assert client.look().health == "up"
        assert len(first) == 1
        assert connections_to(node.url) == first
    assert not connections_to(node.url)


def test_requests_at_once_have_connections_of_their_own(node: RunningServer) -> None:
    seeds = [1, 2, 3, 4] * 8
    with client_of(node.url) as client, ThreadPoolExecutor(8) as pool:
        texts = list(
            pool.map(lambda seed: client.chat(ask(), options("m", seed=seed)).text, seeds)
        )
        assert len(set(texts)) == 4
        assert texts == texts[:4] * 8
        assert 1 < len(connections_to(node.url)) <= 8


def test_a_server_that_closes_idle_connections_costs_no_request(llama: RunningServer) -> None:
    # llama.cpp closes a connection after a streamed reply, a moment after the last byte.
    with client_of(llama.url, "openai") as client:
        for _ in range(150):
            client.chat(ask("hi"), options("m", num_predict=1))


def test_a_name_that_nobody_knows_is_down() -> None:
    with (
        client_of("http://a..b:11434") as client,
        pytest.raises(EndpointDown, match="name is not known"),
    ):
        chat_with(client)


def test_a_server_that_comes_back_is_used_again() -> None:
    with client_of("http://127.0.0.1:1") as nobody, pytest.raises(EndpointDown, match="nothing"):
        chat_with(nobody)
    with running_llama() as first:
        port = first.url.rpartition(":")[2]
        with client_of(first.url, "openai") as client:
            chat_with(client)
            first.kill()
            with pytest.raises(EndpointDown):
                chat_with(client)
            with running_llama(f"--port={port}"):
                assert chat_with(client) is not None


def test_a_failed_exchange_leaves_no_connection(hostile: HostileServer) -> None:
    with client_of(hostile.at("hang-after-tokens"), timeouts=QUICK) as client:
        with pytest.raises(EndpointSilent):
            chat_with(client)
        # It is the server's thread that ends a little later.
        assert not connections_to(hostile.url)
        wait_until(lambda: not hostile.counters()["open"])


# -- giving up


@pytest.mark.parametrize(
    "behaviour", ["hang-before-headers", "hang-in-headers", "hang-after-tokens"]
)
@pytest.mark.parametrize("api", APIS)
def test_giving_up_wakes_whoever_waits_and_closes(behaviour: str, api: Api) -> None:
    cancel = Cancel()
    with (
        HostileServer(behaviour) as hostile,
        client_of(hostile.url, api) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        reply = pool.submit(chat_with, client, cancel)
        wait_until(lambda: hostile.counters().get("requests"))
        cancel.cancel()
        with pytest.raises(Stopped):
            reply.result(timeout=30)
        assert not connections_to(hostile.url)
        wait_until(lambda: not hostile.counters()["open"])


def test_who_has_given_up_before_sends_nothing(hostile: HostileServer) -> None:
    cancel = Cancel()
    cancel.cancel()
    before = hostile.counters().get("requests", 0)
    with client_of(hostile.url) as client, pytest.raises(Stopped):
        chat_with(client, cancel)
    assert hostile.counters().get("requests", 0) == before


def test_giving_up_on_a_real_reply_frees_its_slot_and_the_client_goes_on(
    llama: RunningServer,
) -> None:
    def busy() -> bool:
        return any(slot["is_processing"] for slot in llama.get("/slots"))

    cancel = Cancel()
    with (
        client_of(llama.url, "openai") as client,
        long_reply(client, LONG, cancel) as reply,
    ):
        assert busy()
        cancel.cancel()
        with pytest.raises(Stopped):
            reply.result(timeout=30)
        wait_until(lambda: not busy())
        assert chat_with(client) is not None


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The URL of a socket that takes no more connections: they are neither made nor refused."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"


def test_a_machine_that_takes_no_connection_is_down(black_hole: str) -> None:
    with (
        client_of(black_hole, timeouts=QUICK) as client,
        pytest.raises(EndpointDown, match="no connection within 1 s"),
    ):
        chat_with(client)


def test_giving_up_ends_the_wait_for_a_connection_too(black_hole: str) -> None:
    cancel = Cancel()

    def connecting() -> bool:
        port = int(black_hole.rpartition(":")[2])
        return any(
            each.status == psutil.CONN_SYN_SENT and each.raddr.port == port
            for each in psutil.Process().net_connections("tcp")
            if each.laddr.port not in occupied
        )

    occupied = {each.laddr.port for each in psutil.Process().net_connections("tcp")}
    endless = Timeouts(connect_s=3600.0)
    with client_of(black_hole, timeouts=endless) as client, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(chat_with, client, cancel)
        wait_until(connecting)
        cancel.cancel()
        with pytest.raises(Stopped):
            reply.result(timeout=30)


def test_who_gives_up_too_late_does_not_harm_the_next_request(node: RunningServer) -> None:
    late: list[Callable[[], None]] = []

    class Late(Cancel):
        """Keeps what it would call, as if its thread had been stopped just before."""

        def attach(self, hook: Callable[[], None]) -> None:
            late.append(hook)

    with client_of(node.url) as client:
        chat_with(client, Late())
        used = connections_to(node.url)
        client.chat(ask(), options("m"), on_first=late[0])
        assert connections_to(node.url) == used


# -- secrets, URLs and TLS


def test_credentials_in_a_url_are_used_and_never_shown(hostile: HostileServer) -> None:
    url = hostile.at("unauthorized").replace("http://", "http://mia:hunter22@")
    with client_of(url) as client, pytest.raises(EndpointMisconfigured) as caught:
        chat_with(client)
    assert "hunter22" not in f"{caught.value!r} {caught.value} {client!r} {client.where}"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://a b:1", "http://x:99999", "x"])
def test_what_is_no_url_is_a_mistake_in_the_settings(url: str) -> None:
    with pytest.raises(ConfigError, match="url"), client_of(url):
        pass


@pytest.mark.parametrize("header", [{"a b": "c"}, {"a": "c\r\nd: e"}, {"a": "ü"}])
def test_what_is_no_header_is_a_mistake_in_the_settings(header: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="header"), client_of("http://x", headers=header):
        pass


@pytest.fixture(autouse=True)
def _no_context_of_others() -> Iterator[None]:
    link.tls_context.cache_clear()
    yield
    link.tls_context.cache_clear()


def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def test_a_server_behind_tls_is_used_and_can_be_given_up(
    llama: RunningServer, authority: trustme.CA
) -> None:
    cancel = Cancel()
    with (
        behind_tls(llama.url, server_side(authority)) as url,
        client_of(url, "openai") as client,
    ):
        assert client.look().health == "up"
        texts = {client.chat(ask(), options("m", seed=5)).text for _ in range(3)}
        assert len(texts) == 1
        with pytest.raises(Stopped):
            client.chat(ask(), LONG, cancel=cancel, on_first=cancel.cancel)


def test_a_certificate_that_nobody_vouches_for_is_refused(
    llama: RunningServer, authority: trustme.CA
) -> None:
    stranger = server_side(trustme.CA())
    assert authority is not None
    with (
        behind_tls(llama.url, stranger) as url,
        client_of(url, "openai") as client,
        pytest.raises(EndpointMisconfigured, match="TLS failed"),
    ):
        chat_with(client)


def test_https_to_a_server_that_speaks_http_is_a_mistake_in_the_settings(
    node: RunningServer,
) -> None:
    with (
        client_of(node.url.replace("http:", "https:")) as client,
        pytest.raises(EndpointMisconfigured, match="TLS failed"),
    ):
        chat_with(client)


def test_a_server_that_answers_no_handshake_is_not_waited_for_long(llama: RunningServer) -> None:
    # llama.cpp waits for the rest of what it takes for a request.
    with (
        client_of(llama.url.replace("http:", "https:"), timeouts=QUICK) as client,
        pytest.raises(EndpointSilent, match="a TLS handshake did not come within 1 s"),
    ):
        chat_with(client)


def test_halves_of_characters_become_whole_or_are_marked() -> None:
    assert whole_text(["ab", "c"]) == "abc"
    assert whole_text(["a\ud83d", "\ude00 \udc00"]) == "a😀 \ufffd"


def test_errors_travel_to_another_process_with_their_text() -> None:
    error = CutShort(
        "what", where="where", fix="fix", text="half a", prompt_tokens=7, output_tokens=3
    )
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, CutShort)
    assert (str(again), again.text) == (str(error), "half a")
    assert (again.prompt_tokens, again.output_tokens) == (7, 3)
