"""The client of OpenAI-compatible servers, against llama.cpp's own server and one with LM Studio's ways."""

import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labd.errors import ConfigError
from labd.llm.errors import (
    ContextOverflow,
    CutShort,
    EndpointDown,
    EndpointMisconfigured,
    ModelMissing,
    RequestRefused,
    Stopped,
)
from labd.llm.model import Cancel, LoadedModel, Options
from tests.clients import QUICK, ask, client_of, long_reply, options
from tests.processes import wait_until
from tests.servers.fixtures import (
    RunningServer,
    running_llama,
    running_lmstudio,
    running_ollama,
)
from tests.servers.hostile import HostileServer

KEY = "sk-not-for-anybodys-eyes"
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 30}, "score": {"type": "integer"}},
    "required": ["title", "score"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llama() -> Iterator[RunningServer]:
    with running_llama("--name=tiny", "--slots=2", "--ctx=1024", "--thinking") as server:
        yield server


@pytest.fixture(scope="module")
def studio() -> Iterator[RunningServer]:
    with running_lmstudio("--model=alpha", "--model=beta", "--ctx=2048") as server:
        yield server


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    with running_llama(f"--api-key={KEY}") as server:
        yield server


def tiny(**over: Any) -> Options:
    return options("tiny", **over)


# -- replies


def test_a_reply_has_its_counts_and_times(llama: RunningServer) -> None:
    begun: list[int] = []
    with client_of(llama.url, "openai") as client:
        reply = client.chat(ask(), tiny(seed=2), on_first=lambda: begun.append(1))
        again = client.chat(ask(), tiny(seed=2))
    assert reply.text == again.text
    assert reply.done_reason in {"stop", "length"}
    assert reply.prompt_tokens > 0
    assert 0 < reply.output_tokens <= 40
    assert reply.output_s > 0
    assert 0 < reply.first_token_s <= reply.wall_s
    assert begun == [1]


def test_thinking_is_kept_apart_and_can_be_turned_off(llama: RunningServer) -> None:
    with client_of(llama.url, "openai") as client:
        thought = [client.chat(ask(), tiny(think=True, seed=n, num_predict=900)) for n in range(4)]
        assert all(reply.thinking for reply in thought)
        # The tiny model writes such marks anywhere; what the server took for thinking is not in the text.
        assert not any(reply.text.startswith("<think>") for reply in thought)
        assert not any(reply.thinking in reply.text for reply in thought)
        assert not client.chat(ask(), tiny(think=False, seed=1)).thinking
        with pytest.raises(CutShort, match="still thinking"):
            client.chat(ask(), tiny(think=True, seed=1, num_predict=2))


def test_a_schema_is_kept_by_the_server(llama: RunningServer) -> None:
    with client_of(llama.url, "openai") as client:
        reply = client.chat(ask(), tiny(num_predict=400, allow_cut=False), schema=SCHEMA)
    assert set(json.loads(reply.text)) == {"title", "score"}


def test_a_cut_reply_is_an_error_that_tells_which_limit_it_was(llama: RunningServer) -> None:
    with client_of(llama.url, "openai") as client:
        endless = {"more": {"ignore_eos": True}, "allow_cut": False}
        with pytest.raises(CutShort, match=r"after 5 tokens \(num_predict: 5\)"):
            client.chat(ask(), tiny(num_predict=5, **endless))
        with pytest.raises(CutShort, match="when the context was full"):
            client.chat(ask(), tiny(num_predict=5000, **endless))


def test_a_prompt_that_does_not_fit_is_an_error_with_the_numbers(llama: RunningServer) -> None:
    with (
        client_of(llama.url, "openai") as client,
        pytest.raises(ContextOverflow, match=r"the prompt has \d{4} tokens, the context 1024"),
    ):
        client.chat(ask("a b c " * 900), tiny())


def test_a_request_that_is_wrong_is_refused(llama: RunningServer) -> None:
    with client_of(llama.url, "openai") as client:
        with pytest.raises(RequestRefused):
            client.chat(ask(), tiny(), schema={"type": "nonsense"})
        with pytest.raises(RequestRefused, match="no messages"):
            client.chat([], tiny())


def test_the_url_may_end_with_v1_as_hosted_servers_write_it(llama: RunningServer) -> None:
    with client_of(f"{llama.url}/v1", "openai") as client:
        assert client.chat(ask(), tiny()).output_tokens
        assert client.look().health == "up"


def test_a_reply_that_is_finished_stands_without_the_counts_behind_it() -> None:
    with HostileServer("fine:2") as hostile, client_of(hostile.url, "openai") as client:
        reply = client.chat(ask(), options("m"))
    assert (reply.text, reply.done_reason) == (" word0 word1", "stop")


def test_a_server_that_dies_in_the_middle_of_a_reply_is_down() -> None:
    endless = tiny(num_predict=7000, more={"ignore_eos": True})
    with (
        running_llama("--ctx=8192") as server,
        client_of(server.url, "openai") as client,
        long_reply(client, endless) as reply,
    ):
        server.kill()
        with pytest.raises(EndpointDown):
            reply.result(timeout=30)


# -- keys


def test_a_key_from_the_environment_opens_the_server(
    guarded: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_KEY", f"{KEY}\n")
    with client_of(guarded.url, "openai", key_env="LLM_KEY") as client:
        assert client.look().health == "up"
        assert client.chat(ask(), tiny()).output_tokens


def test_a_key_from_a_file_opens_the_server_if_nobody_else_can_read_it(
    guarded: RunningServer, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    with client_of(guarded.url, "openai", key_file=str(path)) as client:
        assert client.chat(ask(), tiny()).output_tokens
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with (
            pytest.raises(ConfigError, match=rf"mode {mode:04o}.*chmod 600"),
            client_of(guarded.url, "openai", key_file=str(path)),
        ):
            pass


def test_a_key_that_systemd_passed_on_opens_the_server(
    guarded: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "key_studio").write_text(f"{KEY}\n")
    with client_of(guarded.url, "openai", key_credential="studio") as client:
        assert client.chat(ask(), tiny()).output_tokens


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    path.chmod(0o600)
    os.chown(path, 12345, -1)
    with (
        pytest.raises(ConfigError, match="belongs to another user"),
        client_of("http://x", "openai", key_file=str(path)),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("two words", "is no key"),
        ("two\nlines", "is no key"),
        ("schlüssel", "is no key"),
        ("x" * 5000, "too long"),
    ],
)
def test_what_is_no_key_is_a_mistake_in_the_settings(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with (
        pytest.raises(ConfigError, match=words) as caught,
        client_of("http://x", "openai", key_file=str(path)),
    ):
        pass
    assert not text or text not in str(caught.value)


def test_a_key_that_is_not_there_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    places: list[dict[str, Any]] = [
        {"key_env": "NOT_SET_ANYWHERE"},
        {"key_file": str(tmp_path / "none")},
        {"key_credential": "none"},
    ]
    for over in places:
        with pytest.raises(ConfigError) as caught, client_of("http://x", "openai", **over):
            pass
        assert caught.value.fix


def test_a_wrong_key_is_told_and_is_in_no_error_log_or_repr(
    guarded: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("LLM_KEY", "sk-wrong-but-secret")
    with client_of(guarded.url, "openai", key_env="LLM_KEY") as client:
        look = client.look()
        with pytest.raises(EndpointMisconfigured, match="status 401") as caught:
            client.chat(ask(), tiny())
        shown = f"{client!r} {client.where} {look} {caught.value!r} {caught.value} {caplog.text}"
    assert look.health == "misconfigured"
    assert "key" in look.fix
    assert "sk-wrong" not in shown


def test_a_server_that_repeats_the_key_does_not_get_it_into_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The hostile server's words hold this one.
    monkeypatch.setenv("LLM_KEY", "unauthorized")
    with (
        HostileServer("unauthorized") as hostile,
        client_of(hostile.url, "openai", key_env="LLM_KEY") as client,
        pytest.raises(EndpointMisconfigured) as caught,
    ):
        client.chat(ask(), options("m"))
    assert "[secret]" in caught.value.what
    assert "unauthorized" not in str(caught.value)


# -- which server it is


def test_llama_cpp_is_known_by_its_words_with_its_slots_and_context(llama: RunningServer) -> None:
    with client_of(llama.url, "openai") as client:
        look = client.look()
        assert client.max_ctx("tiny") == 1024
        with pytest.raises(ModelMissing, match="does not have the model other"):
            client.load("other", 1024)
        client.load("tiny", 1024)
        with pytest.raises(RequestRefused, match="does not unload"):
            client.unload("tiny")
    assert (look.health, look.server, look.slots) == ("up", "llamacpp", 2)
    assert look.loaded == (LoadedModel("tiny", 1024),)


def test_lm_studio_is_known_and_what_it_holds(studio: RunningServer) -> None:
    with client_of(studio.url, "openai") as client:
        client.load("alpha", 1536)
        look = client.look()
        assert client.chat(ask(), options("alpha")).output_tokens
        assert (look.health, look.server) == ("up", "lmstudio")
        assert {model.name for model in look.models or ()} == {"alpha", "beta"}
        assert look.loaded == (LoadedModel("alpha", 1536),)
        loads = studio.total("loads")
        client.load("alpha", 1024)
        assert studio.total("loads") == loads
        client.unload("alpha")
        assert client.look().loaded == ()
        with pytest.raises(ModelMissing, match="lms get nobody"):
            client.load("nobody", 1024)


def test_lm_studio_with_a_key_tells_who_comes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_KEY", KEY)
    with running_lmstudio("--model=alpha", f"--api-key={KEY}") as studio:
        with client_of(studio.url, "openai") as client:
            assert client.look().health == "misconfigured"
        with client_of(studio.url, "openai", key_env="LLM_KEY") as client:
            assert client.look().health == "up"


def test_a_path_that_lm_studio_does_not_know_is_no_success() -> None:
    with (
        HostileServer("unexpected-endpoint", also_gets=True) as hostile,
        client_of(hostile.url, "openai") as client,
    ):
        look = client.look()
        with pytest.raises(EndpointMisconfigured):
            client.chat(ask(), options("m"))
    assert look.health == "misconfigured"
    assert "LM Studio does not give its models" in look.problem


def test_ollama_is_sent_to_its_own_api() -> None:
    with running_ollama("--model=alpha") as node, client_of(node.url, "openai") as client:
        look = client.look()
    assert (look.health, look.server) == ("misconfigured", "ollama")
    assert look.fix == "Set the endpoint's api: ollama"


def test_a_server_of_no_known_kind_is_used_as_what_it_says_it_is() -> None:
    with HostileServer("fine") as hostile, client_of(hostile.url, "openai") as client:
        look = client.look()
        assert client.chat(ask(), options("m")).text
    assert (look.health, look.server, look.loaded) == ("up", "openai", None)


@pytest.mark.parametrize(
    ("behaviour", "health"),
    [
        ("hang-before-headers", "down"),
        ("html", "misconfigured"),
        ("forbidden", "misconfigured"),
        ("unavailable:1000", "busy"),
        ("failure", "down"),
        ("reset", "down"),
        ("list", "down"),
    ],
)
def test_a_look_never_raises_and_says_what_to_do(behaviour: str, health: str) -> None:
    with (
        HostileServer(behaviour, also_gets=True) as hostile,
        client_of(hostile.url, "openai", QUICK) as client,
    ):
        look = client.look()
    assert (look.health, bool(look.problem), bool(look.fix)) == (health, True, True)


def test_a_llama_cpp_that_still_reads_its_model_is_loading() -> None:
    # In the words that it has for this; the tiny model is read too fast to catch it at that.
    with (
        HostileServer("loading", also_gets=True) as hostile,
        client_of(hostile.url, "openai") as client,
    ):
        look = client.look()
    assert (look.health, look.server, look.problem) == ("loading", "llamacpp", "")


def test_giving_up_reaches_the_question_that_comes_before_the_first_reply() -> None:
    cancel = Cancel()
    with (
        HostileServer("hang-before-headers", also_gets=True) as hostile,
        client_of(hostile.url, "openai") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        reply = pool.submit(client.chat, ask(), options("m"), cancel=cancel)
        wait_until(lambda: hostile.counters().get("requests"))
        cancel.cancel()
        with pytest.raises(Stopped):
            reply.result(timeout=30)
