"""The servers to test against do what they say: inference is real, and a node keeps Ollama's rules."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import REPO
from tests.processes import wait_until
from tests.servers import tiny_model
from tests.servers.fixtures import RunningServer, running_llama, running_lmstudio, running_ollama
from tests.servers.tiny_model import TinyModel

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "score": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["title", "score", "tags"],
}
# One client for all, as making one takes long; a connection for each request, as servers come and go.
HTTP = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
SLOW = "--seconds-per-token=0.02"


def ask(model: str = "alpha", text: str = "hello", **over: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **over}


def chat(
    node: RunningServer, model: str = "alpha", text: str = "hello", **over: Any
) -> httpx.Response:
    return HTTP.post(f"{node.url}/api/chat", json=ask(model, text, **over), timeout=30)


def whole(
    node: RunningServer, model: str = "alpha", text: str = "hello", **over: Any
) -> dict[str, Any]:
    reply: dict[str, Any] = chat(node, model, text, stream=False, **over).json()
    return reply


def endless(model: str = "alpha", **over: Any) -> dict[str, Any]:
    """Ask for a reply of some ten thousand tokens: a schema that long keeps the model from stopping."""
    items = {"type": "string", "minLength": 100}
    return ask(model, format={"type": "array", "items": items, "minItems": 400}, **over)


@contextmanager
def long_reply(node: RunningServer, model: str = "alpha") -> Iterator[Iterator[str]]:
    """Get the lines of an endless reply after its first one; it is left at the end."""
    url = f"{node.url}/api/chat"
    with HTTP.stream("POST", url, json=endless(model), timeout=30) as reply:
        lines = reply.iter_lines()
        next(lines)
        yield lines


def keeps_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        isinstance(value["title"], str)
        and isinstance(value["score"], int | float)
        and all(isinstance(tag, str) for tag in value["tags"])
    )


def loading(node: RunningServer, model: str = "alpha") -> bool:
    models = node.counters()["models"]
    return bool(models.get(f"{model}:latest", {}).get("loads"))


# -- the model


def test_a_model_is_the_same_bytes_every_time_and_another_seed_is_another_model(
    tmp_path: Path,
) -> None:
    first = tiny_model.write(TinyModel(seed=1, context_length=512), tmp_path)
    assert tiny_model.gguf(TinyModel(seed=1, context_length=512)) == first.read_bytes()
    assert tiny_model.write(TinyModel(seed=2), tmp_path).read_bytes() != first.read_bytes()
    assert tiny_model.context_length(first) == 512
    assert first.stat().st_size < 600_000


def test_a_model_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    first = tiny_model.write(TinyModel(), tmp_path)
    made_ns = first.stat().st_mtime_ns
    assert tiny_model.write(TinyModel(), tmp_path) == first
    assert first.stat().st_mtime_ns == made_ns
    assert list(tmp_path.iterdir()) == [first]


# -- llama.cpp


def completion(server: RunningServer, **over: Any) -> dict[str, Any]:
    body = {**ask(), "max_tokens": 400, **over}
    reply: dict[str, Any] = HTTP.post(f"{server.url}/v1/chat/completions", json=body).json()
    return reply


def test_llama_streams_repeats_a_seed_and_keeps_a_schema() -> None:
    with running_llama("--slots=2") as server:
        assert server.get("/health") == {"status": "ok"}
        assert len(server.get("/slots")) == 2
        body = {**ask(), "stream": True, "max_tokens": 20, "ignore_eos": True}
        streamed = HTTP.post(f"{server.url}/v1/chat/completions", json=body).text
        assert streamed.count("data: ") > 10
        assert '"finish_reason":"length"' in streamed
        assert streamed.rstrip().endswith("data: [DONE]")
        texts = {completion(server, seed=7)["choices"][0]["message"]["content"] for _ in range(3)}
        assert len(texts) == 1
        form = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
        for seed in range(10):
            said = completion(server, seed=seed, response_format=form)["choices"][0]
            assert keeps_schema(said["message"]["content"])


def test_llama_refuses_what_does_not_fit_and_who_has_no_key() -> None:
    with running_llama("--ctx=256", "--api-key=secret") as server:
        assert completion(server)["error"]["code"] == 401
        at = f"{server.url}/v1/chat/completions"
        key = {"Authorization": "Bearer secret"}
        reply = HTTP.post(at, json=ask(text="hello " * 300), headers=key)
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "exceed_context_size_error"
        assert server.stop() == 0


def test_a_server_heeds_sigterm_from_the_first_moment() -> None:
    for _ in range(6):
        with running_llama() as server:
            assert server.stop() == 0


# -- Ollama's API


def test_a_chat_comes_in_lines_and_ends_with_its_numbers() -> None:
    with running_ollama("--model=alpha") as node:
        reply = chat(node, options={"seed": 3})
        *parts, last = [json.loads(line) for line in reply.text.splitlines()]
        assert reply.headers["content-type"] == "application/x-ndjson"
        assert all(part["done"] is False and part["message"]["content"] for part in parts)
        assert (last["done"], last["done_reason"], last["model"]) == (True, "stop", "alpha")
        assert last["prompt_eval_count"] > 3
        assert last["eval_count"] >= len(parts) - 1
        assert last["total_duration"] > last["load_duration"] > 10_000_000
        together = whole(node, options={"seed": 3})
        assert together["message"]["content"] == "".join(p["message"]["content"] for p in parts)
        made = HTTP.post(f"{node.url}/api/generate", json={"model": "alpha:latest", "prompt": "x"})
        assert json.loads(made.text.splitlines()[0])["response"]
        assert whole(node, options={"num_predict": 2})["done_reason"] in {"length", "stop"}
        assert keeps_schema(whole(node, format=SCHEMA)["message"]["content"])
        assert node.counters()["models"]["alpha:latest"]["served"] == 5


def test_a_node_says_what_it_has(tmp_path: Path) -> None:
    path = tiny_model.write(TinyModel(seed=5, context_length=2048), tmp_path)
    with running_ollama(f"--model=alpha={path}", "--model=deep:7b,thinking,context=1024") as node:
        first, second = node.get("/api/tags")["models"]
        assert first["name"] == "alpha:latest"
        assert first["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert second["name"] == "deep:7b"
        assert second["details"]["context_length"] == 1024
        assert second["capabilities"] == ["completion", "thinking"]
        shown = HTTP.post(f"{node.url}/api/show", json={"model": "Alpha"}).json()
        assert shown["model_info"]["llama.context_length"] == 2048
        assert HTTP.get(node.url).text == "Ollama is running"
        assert node.get("/api/ps") == {"models": []}


@pytest.mark.parametrize(
    ("over", "status", "words"),
    [
        ({"model": "nobody"}, 404, "model 'nobody' not found"),
        ({"think": True}, 400, "does not support thinking"),
        ({"think": "much"}, 400, "invalid think value"),
        ({"keep_alive": "-1"}, 400, "missing unit in duration"),
        ({"format": "yaml"}, 500, "invalid format"),
        ({"options": {"temperature": "hot"}}, 500, "must be of type float32"),
    ],
)
def test_a_wrong_request_gets_ollamas_error(
    plain: RunningServer, over: dict[str, Any], status: int, words: str
) -> None:
    reply = HTTP.post(f"{plain.url}/api/chat", json={**ask(), **over})
    assert reply.status_code == status
    assert words in reply.json()["error"]
    assert plain.total("loads") == 0


@pytest.fixture(scope="module")
def plain() -> Iterator[RunningServer]:
    with running_ollama("--model=alpha") as node:
        yield node


def test_a_thinking_model_thinks_first_unless_told_not_to() -> None:
    found: list[int] = []
    with running_ollama("--model=deep,thinking") as node:
        for seed in range(5):
            text = chat(node, "deep", format=SCHEMA, options={"seed": seed}).text
            *parts, _ = [json.loads(line)["message"] for line in text.splitlines()]
            thoughts = [part for part in parts if part.get("thinking")]
            assert parts[: len(thoughts)] == thoughts
            assert keeps_schema("".join(part["content"] for part in parts))
            found.append(len(thoughts))
        assert max(found) > 3
        assert "thinking" not in whole(node, "deep", think=False)["message"]


def test_a_prompt_too_long_is_cut_to_half_or_refused() -> None:
    options = {"num_ctx": 512, "num_predict": 3}
    with running_ollama("--model=alpha", "--model=bare,native", "--num-ctx=1024") as node:
        cut = whole(node, text="hello " * 400, options=options)
        assert 512 / 2 - 10 < cut["prompt_eval_count"] < 512 / 2 + 10
        for model, over in (("alpha", {"truncate": False}), ("bare", {})):
            refused = chat(node, model, "hello " * 400, options=options, **over)
            assert refused.status_code == 400
            inner = json.loads(refused.json()["error"])["error"]
            assert (inner["type"], inner["n_ctx"]) == ("exceed_context_size_error", 512)
        fits = chat(node, "alpha", options=options, truncate=False, stream=False)
        assert fits.json()["done"] is True
        assert node.counters()["models"]["alpha:latest"]["loads"] == 1


# -- Ollama's scheduler


def test_models_taken_in_turn_load_again_and_again_and_in_batches_only_once() -> None:
    with running_ollama("--model=alpha", "--model=beta", "--max-loaded=1") as node:
        for model in ("alpha", "beta") * 2:
            assert whole(node, model)["done"] is True
        assert node.counters()["load_order"] == ["alpha:latest", "beta:latest"] * 2
        assert node.total("unloads") == 3
        node.reset()
        for model in ("beta", "beta", "alpha", "alpha"):
            whole(node, model)
        assert node.counters()["load_order"] == ["alpha:latest"]
        assert node.loaded() == ["alpha:latest"]


def test_other_runner_options_load_the_model_again() -> None:
    with running_ollama("--model=alpha") as node:
        for num_ctx in (1024, 1024, 2048):
            whole(node, options={"num_ctx": num_ctx, "temperature": num_ctx / 2048})
        assert node.total("loads") == 2
        assert node.get("/api/ps")["models"][0]["context_length"] == 2048
        whole(node, options={"num_ctx": 10**6})
        assert node.get("/api/ps")["models"][0]["context_length"] == 8192


def test_while_a_model_loads_ps_waits_and_version_does_not() -> None:
    with running_ollama("--model=alpha", "--load-seconds=1") as node, ThreadPoolExecutor() as pool:
        reply = pool.submit(chat, node)
        wait_until(lambda: loading(node), what="the load")
        with pytest.raises(httpx.ReadTimeout):
            HTTP.get(f"{node.url}/api/ps", timeout=0.3)
        assert node.get("/api/version") == {"version": "0.33.0"}
        assert node.loaded() == ["alpha:latest"]
        assert reply.result().status_code == 200


def test_a_full_queue_is_refused_but_a_loaded_model_takes_everybody() -> None:
    models = ("--model=alpha", "--model=beta", "--model=gamma")
    with (
        running_ollama(*models, "--max-queue=2", "--load-seconds=0.7") as node,
        ThreadPoolExecutor(8) as pool,
    ):
        first = pool.submit(chat, node, "alpha")
        wait_until(lambda: loading(node), what="the load")
        others = list(pool.map(lambda model: chat(node, model), ["beta", "gamma"] * 3))
        assert first.result().status_code == 200
        assert sorted(reply.status_code for reply in others) == [200] * 2 + [503] * 4
        refused = next(reply for reply in others if reply.status_code == 503)
        assert "maximum pending requests exceeded" in refused.json()["error"]
        many = pool.map(lambda _: chat(node, "alpha"), range(8))
        assert {reply.status_code for reply in many} == {200}


def test_no_more_requests_run_at_once_than_there_are_slots() -> None:
    with (
        running_ollama("--model=alpha", "--num-parallel=2", SLOW) as node,
        ThreadPoolExecutor(6) as pool,
    ):
        replies = list(pool.map(lambda _: whole(node, options={"num_predict": 8}), range(6)))
        assert all(reply["done"] for reply in replies)
        counted = node.counters()["models"]["alpha:latest"]
        assert (counted["in_flight_peak"], counted["served"], counted["loads"]) == (2, 6, 1)


def test_a_client_that_leaves_during_the_load_ends_the_load() -> None:
    with running_ollama("--model=alpha", "--load-seconds=1") as node:
        with pytest.raises(httpx.ReadTimeout):
            HTTP.post(f"{node.url}/api/chat", json=ask(), timeout=0.3)
        wait_until(lambda: node.total("aborted_loads") == 1, what="the end of the load")
        assert node.loaded() == []
        assert whole(node)["done"] is True
        assert node.total("loads") == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_the_middle_frees_the_slot(*, stream: bool) -> None:
    with running_ollama("--model=alpha") as node:
        whole(node, options={"num_predict": 1})
        if stream:
            with long_reply(node):
                assert node.counters()["in_flight"] == {"alpha:latest": 1}
        else:
            with pytest.raises(httpx.ReadTimeout):
                HTTP.post(f"{node.url}/api/chat", json=endless(stream=False), timeout=0.3)
        wait_until(lambda: node.counters()["in_flight"] == {}, 4, "a free slot")
        assert whole(node, options={"num_predict": 1})["done"] is True
        assert node.counters()["models"]["alpha:latest"]["served"] == 2


def test_who_waits_for_a_slot_may_leave() -> None:
    with running_ollama("--model=alpha", SLOW) as node:
        with long_reply(node):
            with pytest.raises(httpx.ReadTimeout):
                HTTP.post(f"{node.url}/api/chat", json=ask(), timeout=0.3)
            wait_until(lambda: node.counters()["seen"][-1].get("failed") == 499, 5, "the leaving")
        assert whole(node, options={"num_predict": 1})["done"] is True


@pytest.mark.parametrize(
    ("busy", "keep_alive_s", "stays"),
    [(True, {"alpha": 60, "beta": 600}, "alpha"), (False, {"alpha": 600, "beta": 60}, "alpha")],
)
def test_an_idle_model_goes_first_then_the_one_kept_for_the_shortest_time(
    *, busy: bool, keep_alive_s: dict[str, int], stays: str
) -> None:
    models = ("--model=alpha", "--model=beta", "--model=gamma", "--max-loaded=2")
    with running_ollama(*models, SLOW) as node:
        for model in ("alpha", "beta"):
            whole(node, model, options={"num_predict": 1}, keep_alive=keep_alive_s[model])
        with long_reply(node) if busy else nullcontext():
            whole(node, "gamma", options={"num_predict": 1})
            assert node.loaded() == [f"{stays}:latest", "gamma:latest"]


def test_a_busy_model_is_not_put_out_before_it_is_done() -> None:
    models = ("--model=alpha", "--model=beta", "--max-loaded=1")
    with running_ollama(*models, SLOW) as node, ThreadPoolExecutor() as pool:
        with long_reply(node) as lines:
            other = pool.submit(chat, node, "beta", options={"num_predict": 1})
            for _ in range(10):
                assert json.loads(next(lines))["done"] is False
            assert not loading(node, "beta")
        assert other.result().status_code == 200
        assert node.loaded() == ["beta:latest"]


def test_a_kept_model_starves_another_until_it_is_unloaded() -> None:
    models = ("--model=alpha", "--model=beta", "--max-loaded=1")
    with running_ollama(*models, SLOW) as node, ThreadPoolExecutor() as pool:
        with long_reply(node):
            other = pool.submit(chat, node, "beta", options={"num_predict": 1})
            wait_until(lambda: len(node.counters()["seen"]) == 2, what="the second request")
            late = pool.submit(chat, node, options={"num_predict": 1}, keep_alive=-1)
            wait_until(lambda: len(node.counters()["seen"]) == 3, what="the third request")
        assert late.result().status_code == 200
        with pytest.raises(TimeoutError):
            other.result(0.5)
        HTTP.post(f"{node.url}/api/generate", json={"model": "alpha", "keep_alive": 0})
        assert other.result(10).status_code == 200


def test_an_unload_is_answered_before_it_is_done() -> None:
    with running_ollama("--model=alpha", "--unload-seconds=0.5") as node:
        assert whole(node)["done"] is True
        (pid,) = node.counters()["pids"].values()
        reply = HTTP.post(f"{node.url}/api/generate", json={"model": "alpha", "keep_alive": 0})
        assert reply.json()["done_reason"] == "unload"
        assert node.loaded() == ["alpha:latest"]
        wait_until(lambda: node.loaded() == [], what="the unload")
        assert not psutil.pid_exists(pid)


def test_an_empty_request_loads_and_keep_alive_ends_it() -> None:
    with running_ollama("--model=alpha", "--keep-alive=-1") as node:
        reply = HTTP.post(f"{node.url}/api/generate", json={"model": "alpha"}).json()
        assert (reply["done_reason"], reply["response"]) == ("load", "")
        assert node.get("/api/ps")["models"][0]["expires_at"] > "2200"
        whole(node, keep_alive="300ms", options={"num_predict": 1})
        wait_until(lambda: node.loaded() == [], what="the end of keep_alive")


def test_gpu_memory_decides_who_may_stay() -> None:
    models = ("--model=alpha,vram=6000", "--model=beta,vram=3000000", "--model=gamma,vram=900000")
    with running_ollama(*models, "--vram-bytes=1000000") as node:
        whole(node, "alpha")
        whole(node, "gamma")
        assert sorted(node.loaded()) == ["alpha:latest", "gamma:latest"]
        whole(node, "beta")
        (beta,) = node.get("/api/ps")["models"]
        assert (beta["size"], beta["size_vram"]) == (3_000_000, 1_000_000)


# -- pulls


def test_a_pull_goes_on_where_it_stopped_also_after_a_kill(tmp_path: Path) -> None:
    arguments = ("--model=alpha", "--available=gamma", f"--store={tmp_path}", "--pull-seconds=1")
    with running_ollama(*arguments) as node:
        first = _pull(node, until=5)
        assert 0 < first[-1] < 600_000
        assert chat(node, "gamma").status_code == 404
        again = _pull(node, until=3)
        assert again[0] >= first[-1]
        node.kill()
    with running_ollama(*arguments) as node:
        last = _pull(node, until=None)
        assert last[0] >= again[-1]
        assert last == sorted(last)
        assert whole(node, "gamma")["done"] is True
    with running_ollama(*arguments) as node:
        assert [model["name"] for model in node.get("/api/tags")["models"]] == ["alpha:latest", "gamma:latest"]  # fmt: skip


def _pull(node: RunningServer, until: int | None) -> list[int]:
    """Follow a pull for so many lines of progress, or to its end; give the bytes that it counted."""
    completed: list[int] = []
    step: dict[str, Any] = {}
    body = {"model": "gamma"}
    with HTTP.stream("POST", f"{node.url}/api/pull", json=body) as reply:
        for line in reply.iter_lines():
            step = json.loads(line)
            if "completed" in step:
                completed.append(step["completed"])
            if len(completed) == until:
                return completed
    assert step == {"status": "success"}
    return completed


def test_a_model_that_nobody_has_cannot_be_pulled() -> None:
    with running_ollama("--model=alpha") as node:
        reply = HTTP.post(f"{node.url}/api/pull", json={"model": "nobody"})
        assert "pulling manifest" in reply.text
        assert "file does not exist" in json.loads(reply.text.splitlines()[-1])["error"]


# -- deaths


def test_a_runner_that_dies_in_the_middle_is_an_error_line_and_the_next_request_loads_again() -> (
    None
):
    with running_ollama("--model=alpha", SLOW) as node:
        with long_reply(node) as lines:
            (pid,) = node.counters()["pids"].values()
            os.kill(pid, signal.SIGKILL)
            *_, last = [json.loads(line) for line in lines]
        assert "unexpectedly stopped" in last["error"]
        assert whole(node, options={"num_predict": 1})["done"] is True
        assert node.total("loads") == 2


def test_a_file_that_is_no_model_does_not_load(tmp_path: Path) -> None:
    path = tiny_model.write(TinyModel(), tmp_path)
    path.write_bytes(path.read_bytes()[:200_000])
    with running_ollama(f"--model=alpha={path}") as node:
        reply = chat(node)
        assert reply.status_code == 500
        assert "llama-server process has terminated" in reply.json()["error"]
        assert node.total("failed_loads") == 1
        assert node.loaded() == []


def test_a_node_that_is_killed_cuts_its_replies_and_takes_its_runners_along() -> None:
    with running_ollama("--model=alpha", SLOW) as node:
        with long_reply(node) as lines:
            (pid,) = node.counters()["pids"].values()
            node.kill()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        wait_until(lambda: not psutil.pid_exists(pid), 10, "the runner's end")


def test_servers_do_not_outlive_whoever_started_them() -> None:
    program = """
import sys, time, httpx
from tests.servers.fixtures import running_ollama
with running_ollama("--model=alpha") as node:
    httpx.post(node.url + "/api/generate", json={"model": "alpha"})
    print(node.pid, *node.counters()["pids"].values(), flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPO, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        starter.kill()
    assert len(pids) == 2
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), 10, "the servers' end")


def test_a_paused_node_answers_nothing_until_it_goes_on() -> None:
    with running_ollama("--model=alpha") as node:
        node.pause()
        with pytest.raises(httpx.ReadTimeout):
            HTTP.get(f"{node.url}/api/version", timeout=0.2)
        node.resume()
        assert node.get("/api/version")


# -- LM Studio


def test_lm_studio_has_its_ways() -> None:
    with running_lmstudio("--model=alpha", "--model=beta", "--ctx=1024") as server:
        at = f"{server.url}/v1/chat/completions"
        lost = HTTP.get(f"{server.url}/api/tags")
        assert lost.status_code == 200
        assert lost.json()["error"] == "Unexpected endpoint or method. (GET /api/tags)"
        assert [m["id"] for m in server.get("/v1/models")["data"]] == ["alpha", "beta"]
        wrong = HTTP.post(at, json=ask(response_format={"type": "json_object"}))
        assert wrong.status_code == 400
        assert HTTP.post(at, json=ask("nobody")).status_code == 404
        streamed = HTTP.post(at, json=ask("alpha", stream=True, max_tokens=10)).text
        assert streamed.rstrip().endswith("data: [DONE]")
        assert HTTP.post(at, json=ask("beta", max_tokens=5)).json()["choices"]
        alpha, beta = server.get("/api/v1/models")["models"]
        assert alpha["loaded_instances"] == []
        assert beta["loaded_instances"][0]["config"] == {"context_length": 1024}


def test_lm_studio_loads_and_unloads_when_told() -> None:
    with running_lmstudio("--model=alpha", "--model=beta", "--api-key=secret") as server:
        key = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=server.url, headers=key) as client:
            assert HTTP.get(f"{server.url}/v1/models").status_code == 401
            config = {"context_length": 512}
            loaded = client.post("/api/v1/models/load", json={"model": "alpha", "config": config})
            assert loaded.json()["config"] == config
            client.post("/v1/chat/completions", json=ask("beta", max_tokens=5))
            models = client.get("/api/v1/models").json()["models"]
            assert [len(m["loaded_instances"]) for m in models] == [1, 1]
            long = client.post("/v1/chat/completions", json=ask("alpha", "hello " * 500))
            assert long.status_code == 400
            gone = client.post("/api/v1/models/unload", json={"instance_id": "alpha"})
            assert gone.json() == {"instance_id": "alpha"}
            again = client.post("/api/v1/models/unload", json={"instance_id": "alpha"})
            assert again.status_code == 404
