"""The client of Ollama keeps the rules that its ways of August 2026 call for, with real inference behind."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from labd.llm.base import PullProgress
from labd.llm.errors import (
    ContextOverflow,
    CutShort,
    EndpointBusy,
    EndpointDown,
    EndpointFailed,
    EndpointMisconfigured,
    EndpointSilent,
    ModelError,
    ModelMissing,
    RequestRefused,
    Stopped,
)
from labd.llm.model import Cancel, LoadedModel, Message, Timeouts
from tests.clients import PATIENT, QUICK, ask, client_of, dropping, long_reply, options
from tests.processes import wait_until
from tests.servers import tiny_model
from tests.servers.fixtures import RunningServer, running_llama, running_lmstudio, running_ollama
from tests.servers.hostile import HostileServer

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 30}, "score": {"type": "integer"}},
    "required": ["title", "score"],
    "additionalProperties": False,
}
ENDLESS: dict[str, Any] = {
    "schema": {
        "type": "array",
        "minItems": 400,
        "items": {"type": "string", "minLength": 100},
    },
}
"""Keeps a tiny model from ending: some ten thousand tokens."""
LONG = options(num_predict=4000)


@pytest.fixture(scope="module")
def node() -> Iterator[RunningServer]:
    """A node with a model of each kind, which holds all of them at once."""
    with running_ollama(
        *("--model=alpha", "--model=beta,native", "--model=deep,thinking"), "--max-loaded=3"
    ) as server:
        yield server


@pytest.fixture
def slow() -> Iterator[RunningServer]:
    """A node of one model at 100 tokens a second, for one test alone."""
    with running_ollama("--model=alpha", "--seconds-per-token=0.01") as server:
        yield server


def last_seen(node: RunningServer) -> dict[str, Any]:
    seen: dict[str, Any] = node.counters()["seen"][-1]
    return seen


# -- replies


def test_a_reply_says_where_it_came_from_and_what_it_took(node: RunningServer) -> None:
    with client_of(node.url, node_id="abc") as client:
        reply = client.chat(ask(), options("Alpha", seed=3, num_predict=20))
    digest = next(
        m["digest"] for m in node.get("/api/tags")["models"] if m["name"] == "alpha:latest"
    )
    assert reply.text
    assert (reply.digest, reply.endpoint, reply.node_id) == (digest, "node-1", "abc")
    assert (reply.model, reply.num_ctx) == ("Alpha", 1024)
    assert 0 < reply.output_tokens <= 20
    assert reply.prompt_tokens > 0
    assert reply.output_s > 0
    assert 0 < reply.first_token_s <= reply.wall_s
    assert set(reply.provenance()) >= {"model", "digest", "endpoint", "prompt_tokens"}


def test_what_keeps_a_node_from_surprises_is_always_sent(node: RunningServer) -> None:
    with client_of(node.url, keep_alive_s=77.0) as client:
        client.chat(
            ask(),
            options(
                num_ctx=1280,
                num_predict=7,
                temperature=0.5,
                top_p=0.9,
                top_k=11,
                seed=1,
                stop=("the end",),
                more={"repeat_penalty": 1.1},
            ),
        )
    seen = last_seen(node)
    assert seen["stream"] is True
    assert seen["truncate"] is False
    assert seen["think"] is False
    assert seen["keep_alive"] == 77.0
    assert seen["options"] == {
        "num_ctx": 1280,
        "num_predict": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 11,
        "seed": 1,
        "stop": ["the end"],
        "repeat_penalty": 1.1,
    }


def test_the_same_seed_gives_the_same_text_and_the_first_token_is_told(
    node: RunningServer,
) -> None:
    begun: list[int] = []
    with client_of(node.url) as client:
        texts = {
            client.chat(ask(), options(seed=9), on_first=lambda: begun.append(1)).text
            for _ in range(2)
        }
        other = client.chat(ask(), options(seed=10)).text
    assert len(texts) == 1
    assert other not in texts
    assert len(begun) == 2


def test_a_schema_goes_to_the_server_which_holds_the_model_to_it(node: RunningServer) -> None:
    with client_of(node.url) as client:
        asked = options(num_predict=500, seed=1, allow_cut=False)
        reply = client.chat(ask(), asked, schema=SCHEMA)
    assert set(json.loads(reply.text)) == {"title", "score"}


def test_thinking_is_kept_apart_and_may_use_up_the_reply(node: RunningServer) -> None:
    with client_of(node.url) as client:
        replies = [
            client.chat(ask(), options("deep", think=True, num_predict=900, seed=seed))
            for seed in range(4)
        ]
        assert all(reply.thinking for reply in replies)
        assert not any("<think>" in reply.text for reply in replies)
        assert not client.chat(ask(), options("deep", think=False)).thinking
        with pytest.raises(CutShort, match="still thinking when 3 tokens were used up"):
            client.chat(ask(), options("deep", think=True, num_predict=3, seed=1))


def test_a_reply_that_was_cut_is_an_error_unless_it_may_be(node: RunningServer) -> None:
    with client_of(node.url) as client:
        asked = options(num_predict=5, temperature=0)
        cut = client.chat(ask(), asked)
        with pytest.raises(CutShort, match=r"cut after 5 tokens .*Raise num_predict") as caught:
            client.chat(ask(), options(num_predict=5, temperature=0, allow_cut=False))
    assert cut.done_reason == "length"
    assert caught.value.text == cut.text


# -- the context


@pytest.mark.parametrize("model", ["alpha", "beta"])
def test_a_prompt_that_does_not_fit_is_an_error_with_the_numbers(
    node: RunningServer, model: str
) -> None:
    with client_of(node.url) as client:
        with pytest.raises(
            ContextOverflow, match=r"the prompt has \d{4} tokens, the context 1024"
        ):
            client.chat(ask("a b c " * 600), options(model))
        many = [Message("user", "a b c " * 40)] * 20
        with pytest.raises(ContextOverflow, match="Raise num_ctx"):
            client.chat(many, options(model))


def test_a_prompt_that_a_server_cut_all_the_same_is_an_error(node: RunningServer) -> None:
    with (
        dropping(node.url, "truncate") as url,
        client_of(url) as client,
    ):
        for number in range(6):
            client.chat(ask("a b c " * (100 + number)), options(num_ctx=1280))
        with pytest.raises(
            ContextOverflow, match=r"the server cut the prompt: it read \d+ tokens"
        ):
            client.chat(ask("a b c " * 600), options(num_ctx=1280))


def test_a_reply_that_ran_past_the_context_is_an_error(node: RunningServer) -> None:
    with (
        client_of(node.url) as client,
        pytest.raises(ContextOverflow, match="ran past the context"),
    ):
        client.chat(ask(), options(num_ctx=256, num_predict=900), **ENDLESS)


def test_a_context_is_no_longer_than_what_the_model_was_trained_for(tmp_path: Path) -> None:
    path = tiny_model.write(tiny_model.TinyModel(7, thinking=False, context_length=512), tmp_path)
    with running_ollama(f"--model=small={path}") as node, client_of(node.url) as client:
        asked = options("small", num_ctx=4096, num_predict=900)
        with pytest.raises(ContextOverflow, match="more than its 512"):
            client.chat(ask(), asked, **ENDLESS)
        assert client.max_ctx("small") == 512


def test_the_longest_context_is_the_models_own(node: RunningServer) -> None:
    with client_of(node.url) as client:
        assert client.max_ctx("alpha") == 8192
        with pytest.raises(ModelMissing):
            client.max_ctx("nobody")


# -- refusals


def test_a_missing_model_comes_with_the_command_that_gets_it(node: RunningServer) -> None:
    with client_of(node.url) as client, pytest.raises(ModelMissing) as caught:
        client.chat(ask(), options("nobody:7b"))
    assert caught.value.fix.endswith("ollama pull nobody:7b")


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"think": True}, r"alpha can't think, and think is True.*think: false"),
        ({"more": {"top_k": "many"}}, r'option "top_k" must be of type'),
    ],
)
def test_a_request_that_is_wrong_is_refused_for_good(
    node: RunningServer, over: dict[str, Any], words: str
) -> None:
    with client_of(node.url) as client, pytest.raises(RequestRefused, match=words) as caught:
        client.chat(ask(), options(**over))
    assert not caught.value.retryable
    assert not caught.value.elsewhere


def test_no_messages_are_no_request(node: RunningServer) -> None:
    with client_of(node.url) as client, pytest.raises(RequestRefused, match="no messages"):
        client.chat([], options())


# -- state


def test_a_look_shows_models_digests_contexts_and_what_is_loaded(node: RunningServer) -> None:
    with client_of(node.url) as client:
        client.load("beta", 512)
        look = client.look()
    assert (look.health, look.server, look.version, look.problem) == ("up", "ollama", "0.33.0", "")
    models = {model.name: model for model in look.models or ()}
    assert set(models) == {"alpha:latest", "beta:latest", "deep:latest"}
    assert len({model.digest for model in models.values()}) == 3
    assert models["alpha:latest"].max_ctx == 8192
    assert not models["alpha:latest"].remote
    assert LoadedModel("beta:latest", 512) in (look.loaded or ())


def test_load_and_unload_do_what_they_say_and_chats_then_load_nothing() -> None:
    with (
        running_ollama("--model=alpha", "--unload-seconds=0.3") as node,
        client_of(node.url) as client,
    ):
        client.load("alpha", 1024)
        client.chat(ask(), options())
        assert node.total("loads") == 1
        client.unload("alpha")
        assert client.look().loaded == ()
        assert node.get("/api/ps")["models"] == []
        client.unload("alpha")
        with pytest.raises(ModelMissing):
            client.load("nobody", 1024)


def test_a_model_that_works_is_waited_for_before_it_counts_as_unloaded(
    slow: RunningServer,
) -> None:
    cancel = Cancel()
    with client_of(slow.url) as client, long_reply(client, LONG, cancel, **ENDLESS) as reply:
        with pytest.raises(EndpointSilent, match="still in memory"):
            client.unload("alpha", within_s=0.2)
        cancel.cancel()
        with pytest.raises(Stopped):
            reply.result(timeout=30)
        client.unload("alpha")


def test_while_another_model_loads_nothing_counts_as_unloaded() -> None:
    # The node does not say what it holds until that is done.
    with ExitStack() as stack:
        node = stack.enter_context(
            running_ollama("--model=alpha", "--model=beta", "--load-seconds=1.5")
        )
        client = stack.enter_context(client_of(node.url))
        glance = stack.enter_context(client_of(node.url, timeouts=QUICK))
        client.load("alpha", 1024)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        load = pool.submit(client.load, "beta", 1024)
        wait_until(lambda: glance.look().health == "loading")
        glance.unload("alpha")
        assert [model.name for model in glance.look().loaded or ()] == ["beta:latest"]
        load.result(timeout=30)


def test_a_load_is_seen_as_such_and_can_be_given_up() -> None:
    cancel = Cancel()
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha", "--load-seconds=3600"))
        client = stack.enter_context(client_of(node.url))
        glance = stack.enter_context(client_of(node.url, timeouts=QUICK))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(cancel.cancel)
        load = pool.submit(lambda: client.load("alpha", 1024, cancel=cancel))
        wait_until(lambda: node.total("loads"))
        look = glance.look()
        assert (look.health, look.server, look.loaded) == ("loading", "ollama", None)
        assert look.models
        cancel.cancel()
        with pytest.raises(Stopped):
            load.result(timeout=30)
        wait_until(lambda: node.total("aborted_loads"))


def test_the_first_token_of_a_model_that_has_to_be_loaded_gets_the_time_for_that() -> None:
    slow = Timeouts(load_s=60.0, first_token_s=0.5, first_token_s_per_1k=0.0, look_s=30.0)
    with (
        running_ollama("--model=alpha", "--load-seconds=1.5") as node,
        client_of(node.url, timeouts=slow) as client,
    ):
        client.chat(ask(), options())
        assert node.total("loads") == 1


@pytest.mark.parametrize(
    ("server", "health", "words"),
    [
        (running_llama, "misconfigured", "no LLM API here"),
        (running_lmstudio, "misconfigured", "this is LM Studio"),
    ],
)
def test_another_kind_of_server_is_told_by_what_it_says(
    server: Any, health: str, words: str
) -> None:
    with server() as other, client_of(other.url) as client:
        look = client.look()
    assert look.health == health
    assert words in look.problem
    assert look.fix


@pytest.mark.parametrize(
    ("behaviour", "health"),
    [
        ("hang-before-headers", "down"),
        ("html", "misconfigured"),
        ("unauthorized", "misconfigured"),
        ("unavailable:1000", "busy"),
        ("failure", "down"),
        ("cut", "down"),
        ("nested", "down"),
        ("endless-line", "down"),
        ("redirect:1", "misconfigured"),
        ("null", "down"),
    ],
)
def test_a_look_never_raises_and_says_what_to_do(behaviour: str, health: str) -> None:
    with (
        HostileServer(behaviour, also_gets=True) as hostile,
        client_of(hostile.url, timeouts=QUICK) as client,
    ):
        look = client.look()
    assert look.health == health
    assert look.problem
    assert look.fix


def test_nobody_there_is_down() -> None:
    with client_of("http://127.0.0.1:1") as client:
        look = client.look()
    assert (look.health, look.problem) == ("down", "nothing answers there")


# -- what happens to servers


def test_a_server_that_dies_in_the_middle_of_a_reply_is_down_and_no_reply_is_made_of_it(
    slow: RunningServer,
) -> None:
    with client_of(slow.url) as client, long_reply(client, LONG, **ENDLESS) as reply:
        slow.kill()
        with pytest.raises(EndpointDown) as caught:
            reply.result(timeout=30)
        assert caught.value.retryable
        assert caught.value.elsewhere
        with pytest.raises(EndpointDown, match="nothing answers there"):
            client.chat(ask(), options())
        assert client.look().health == "down"


def test_a_model_that_dies_in_the_middle_of_a_reply_has_failed(slow: RunningServer) -> None:
    with client_of(slow.url) as client, long_reply(client, LONG, **ENDLESS) as reply:
        for runner in psutil.Process(slow.pid).children():
            runner.kill()
        with pytest.raises(EndpointFailed):
            reply.result(timeout=30)
        assert client.chat(ask(), options()).text is not None


def test_a_server_that_stops_answering_is_silent_and_works_again_afterwards(
    slow: RunningServer,
) -> None:
    limits = Timeouts(between_tokens_s=0.5, look_s=0.5, load_s=30.0, first_token_s=30.0)
    with (
        client_of(slow.url, timeouts=limits) as client,
        long_reply(client, LONG, **ENDLESS) as reply,
    ):
        slow.pause()
        with pytest.raises(EndpointSilent, match=r"the next token did not come within 0\.5 s"):
            reply.result(timeout=30)
        assert client.look().health == "down"
        slow.resume()
        wait_until(lambda: client.look().health == "up")
        with client_of(slow.url) as again:
            again.chat(ask(), options())


def test_a_full_queue_is_busy() -> None:
    cancel = Cancel()
    with ExitStack() as stack:
        node = stack.enter_context(
            running_ollama(
                *("--model=alpha", "--model=beta", "--model=deep"),
                *("--load-seconds=3600", "--max-queue=1"),
            )
        )
        client = stack.enter_context(client_of(node.url))
        pool = stack.enter_context(ThreadPoolExecutor(8))
        stack.callback(cancel.cancel)
        names = ("alpha", "beta", "deep", "alpha", "beta", "deep")
        waiting = [pool.submit(client.chat, ask(), options(name), cancel=cancel) for name in names]
        wait_until(lambda: any(each.done() for each in waiting))
        refused = next(each for each in waiting if each.done())
        assert isinstance(refused.exception(), EndpointBusy)
        cancel.cancel()


def test_a_stranger_at_the_port_of_an_ollama_is_misconfigured() -> None:
    with HostileServer("html") as hostile, client_of(hostile.url) as client:
        with pytest.raises(EndpointMisconfigured):
            client.load("m", 1024)
        with pytest.raises(EndpointMisconfigured):
            client.pull("m")


# -- pulling


def test_a_pull_shows_its_progress_in_bytes_and_the_model_is_there(tmp_path: Path) -> None:
    seen: list[PullProgress] = []
    with (
        running_ollama("--available=gamma", f"--store={tmp_path}") as node,
        client_of(node.url) as client,
    ):
        client.pull("gamma", seen.append)
        assert client.chat(ask(), options("gamma")).digest
    done = [each.done_bytes for each in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes > 100_000
    assert seen[-1].status == "success"


def test_a_pull_that_was_given_up_goes_on_where_it_was(tmp_path: Path) -> None:
    cancel = Cancel()
    after: list[PullProgress] = []

    def stop_half_way(progress: PullProgress) -> None:
        if progress.done_bytes > progress.total_bytes / 2 > 0:
            cancel.cancel()

    with (
        running_ollama("--available=gamma", f"--store={tmp_path}", "--pull-seconds=1") as node,
        client_of(node.url) as client,
    ):
        with pytest.raises(Stopped):
            client.pull("gamma", stop_half_way, cancel=cancel)
        with pytest.raises(ModelMissing):
            client.chat(ask(), options("gamma"))
        client.pull("gamma", after.append)
    begun = next(each for each in after if each.total_bytes)
    assert begun.done_bytes > begun.total_bytes / 2


def test_a_model_that_nobody_has_can_not_be_pulled(node: RunningServer) -> None:
    with client_of(node.url, timeouts=PATIENT) as client, pytest.raises(ModelMissing):
        client.pull("nobody")


@pytest.mark.parametrize(
    ("behaviour", "kind"), [("no-done", EndpointDown), ("error-line", EndpointFailed)]
)
def test_a_pull_that_ends_without_success_is_none(behaviour: str, kind: type[ModelError]) -> None:
    with (
        HostileServer(behaviour) as hostile,
        client_of(hostile.url) as client,
        pytest.raises(kind),
    ):
        client.pull("m")
