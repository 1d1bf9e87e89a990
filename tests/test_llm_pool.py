"""Pools and their broker before real servers: who waits, what is loaded, what happens when something dies."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from labd.errors import ConfigError
from labd.llm.broker import Broker
from labd.llm.client import Client, connect
from labd.llm.desk import Rules
from labd.llm.errors import (
    CutShort,
    EndpointDown,
    ModelMissing,
    Stopped,
)
from labd.llm.hands import DirectHands
from labd.llm.model import Cancel, Endpoint, Message, Options, Timeouts
from labd.llm.pool import Pool
from labd.llm.wireform import Call
from tests.processes import wait_until
from tests.servers.fixtures import RunningServer, running_llama, running_ollama

NODE = "the-labs-node"
HELLO = [Message("user", "hello")]


def options(model: str = "alpha", **over: Any) -> Options:
    return Options(
        **{
            "model": model,
            "num_ctx": 2048,
            "num_predict": 24,
            "allow_cut": True,
            "seed": 1,
            **over,
        }
    )


class Switch:
    """A way to a broker that can be cut, or led to another one. Only plain data passes."""

    def __init__(self, broker: Broker) -> None:
        self.broker: Broker | None = broker
        self.calls: Counter[str] = Counter()
        self.lose_requests: set[str] = set()
        self.lose_answers: set[str] = set()
        """Methods of which the next request, or its answer, does not arrive."""

    def __call__(self, method: str, /, **data: Any) -> dict[str, Any]:
        broker = self.broker
        self.calls[method] += 1
        if broker is None:
            raise ConnectionError("nobody is there")
        if method in self.lose_requests:
            self.lose_requests.discard(method)
            raise TimeoutError("the request was lost")
        answer: dict[str, Any] = json.loads(
            json.dumps(broker.answer(method, **json.loads(json.dumps(data))))
        )
        if method in self.lose_answers:
            self.lose_answers.discard(method)
            raise TimeoutError("the answer was lost")
        return answer


def broker_of(endpoints: Sequence[Endpoint], *, hear_first_s: float = 0.0, **rules: Any) -> Broker:
    return Broker(
        Rules(**rules),
        lambda: endpoints,
        DirectHands(),
        look_every_s=0.5,
        hear_first_s=hear_first_s,
    )


@contextmanager
def brokered(*endpoints: Endpoint, **rules: Any) -> Iterator[Switch]:
    switch = Switch(broker_of(endpoints, **rules))
    yield switch
    if switch.broker is not None:
        switch.broker.close()


@contextmanager
def pool(call: Call, holder: str = "task#1") -> Iterator[Pool]:
    with Pool(call, holder=holder, node_id=NODE) as it:
        yield it


def endpoint(server: RunningServer, name: str = "one", **over: Any) -> Endpoint:
    return Endpoint(name, server.url, node_id=NODE, **over)


def reported(call: Call) -> dict[str, Any]:
    [found] = call("report")["endpoints"]
    assert isinstance(found, dict)
    return found


def in_flight(call: Call) -> int:
    return sum(model["in_flight"] for model in reported(call)["models"])


def peak(server: RunningServer) -> int:
    return int(server.counters()["models"].get("alpha:latest", {}).get("in_flight_peak", 0))


def test_replies_say_where_they_came_from() -> None:
    with (
        running_ollama("--model=alpha") as node,
        brokered(endpoint(node)) as call,
        pool(call) as models,
    ):
        reply = models.chat(HELLO, options())
    assert reply.endpoint == "one"
    assert reply.node_id == NODE
    assert reply.model
    assert (
        reply.digest == node.digests["alpha:latest"] if hasattr(node, "digests") else reply.digest
    )
    assert reply.num_ctx == 2048
    assert reply.output_tokens > 0
    assert reply.attempts == 1


def test_all_workers_together_never_have_more_in_flight_than_there_are_slots() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha", "--num-parallel=4"))
        call = stack.enter_context(brokered(endpoint(node, slots=2)))
        pools = [stack.enter_context(pool(call, f"task-{i}#1")) for i in range(3)]
        with ThreadPoolExecutor(12) as threads:
            replies = list(threads.map(lambda i: pools[i % 3].chat(HELLO, options()), range(36)))
        most = peak(node)
    assert len(replies) == 36
    assert most == 2


def test_a_slot_goes_from_thread_to_thread_without_asking_the_broker() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha"))
        call = stack.enter_context(brokered(endpoint(node)))
        models = stack.enter_context(pool(call))
        with ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(lambda _: models.chat(HELLO, options()), range(80)))
        assert len(replies) == 80
        assert call.calls["want"] < 20
        wait_until(lambda: in_flight(call) == 0)
        told = call("report")
        assert told["waiting"] == {}
        tokens_per_s = sum(reply.output_tokens for reply in replies) / 60
        [end] = told["endpoints"]
        assert tokens_per_s > 1
        for pace in (end["tokens_per_s"], end["models"][0]["tokens_per_s"]):
            assert pace == pytest.approx(tokens_per_s, abs=0.1)


def test_models_take_turns_and_are_unloaded_before_the_next_one_comes() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(
            running_ollama("--model=alpha", "--model=beta", "--max-loaded=3")
        )
        call = stack.enter_context(brokered(endpoint(node)))
        one = stack.enter_context(pool(call, "one"))
        for model in ("alpha", "beta", "alpha"):
            one.chat(HELLO, options(model))
            assert node.loaded() == [f"{model}:latest"]
        assert node.total("loads") == 3


def test_a_stream_for_one_model_does_not_starve_another() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(
            running_ollama("--model=alpha", "--model=beta", "--max-loaded=1")
        )
        call = stack.enter_context(brokered(endpoint(node), turn_s=0.5))
        busy = stack.enter_context(pool(call, "busy"))
        stop = threading.Event()

        def stream() -> None:
            while not stop.is_set():
                busy.chat(HELLO, options("alpha"))

        with ThreadPoolExecutor(2) as threads:
            for _ in range(2):
                threads.submit(stream)
            wait_until(lambda: node.total("served") > 3)
            with pool(call, "patient") as patient:
                reply = patient.chat(HELLO, options("beta"))
            stop.set()
        assert reply.output_tokens > 0
        assert node.total("loads") <= 3


def test_a_dead_endpoint_is_left_for_another_one() -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_ollama("--model=alpha")) for _ in range(2)]
        ends = [endpoint(n, name) for n, name in zip(nodes, ("one", "two"), strict=True)]
        call = stack.enter_context(brokered(*ends))
        models = stack.enter_context(pool(call))
        first = models.chat(HELLO, options())
        dead = 0 if first.endpoint == "one" else 1
        nodes[dead].kill()
        reply = models.chat(HELLO, options())
        assert reply.endpoint == ends[1 - dead].name


def test_an_endpoint_whose_key_this_machine_lacks_is_left_for_another_one_and_not_taken_for_ill() -> (
    None
):
    def connect_here(end: Endpoint, timeouts: Timeouts) -> Client:
        if end.name == "one":
            raise ConfigError("the environment has no KEY")
        return connect(end, timeouts)

    with ExitStack() as stack:
        nodes = [stack.enter_context(running_ollama("--model=alpha")) for _ in range(2)]
        ends = [endpoint(n, name) for n, name in zip(nodes, ("one", "two"), strict=True)]
        call = stack.enter_context(brokered(*ends))
        models = stack.enter_context(Pool(call, holder="h", node_id=NODE, connect=connect_here))
        replies = [models.chat(HELLO, options()) for _ in range(4)]
        assert {reply.endpoint for reply in replies} == {"two"}
        assert call.calls["failed"] == 0


def test_a_slot_is_kept_when_only_the_reply_was_no_good() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha"))
        call = stack.enter_context(brokered(endpoint(node)))
        models = stack.enter_context(pool(call))
        for _ in range(20):
            with pytest.raises(CutShort):
                models.chat(HELLO, options(num_predict=1, allow_cut=False))
        assert call.calls["want"] < 10


def test_work_goes_on_when_the_only_endpoint_comes_back() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha"))
        port = node.url.rsplit(":", 1)[1]
        call = stack.enter_context(brokered(endpoint(node)))
        models = stack.enter_context(pool(call))
        models.chat(HELLO, options())
        node.kill()
        wait_until(lambda: reported(call)["health"] == "down")
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(models.chat, HELLO, options())
            stack.enter_context(running_ollama("--model=alpha", f"--port={port}"))
            assert waiting.result(30).output_tokens > 0


def test_an_endpoint_that_stays_away_is_an_error_that_may_be_tried_later() -> None:
    with running_ollama("--model=alpha") as node:
        gone = endpoint(node)
    with (
        brokered(gone, patience_s=0.3) as call,
        pool(call) as models,
        pytest.raises(EndpointDown, match="no endpoint could be asked") as caught,
    ):
        models.chat(HELLO, options())
    assert caught.value.retryable


def test_a_model_that_is_nowhere_is_told_with_the_command() -> None:
    with (
        running_ollama("--model=alpha") as node,
        brokered(endpoint(node)) as call,
        pool(call) as models,
        pytest.raises(ModelMissing, match="ollama pull nobody:7b"),
    ):
        models.chat(HELLO, options("nobody:7b"))


def test_a_model_is_pulled_where_that_is_allowed_and_its_progress_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("labd.llm.slots._LISTEN_S", 0.2)
    notes: list[tuple[str, str]] = []
    with ExitStack() as stack:
        node = stack.enter_context(
            running_ollama("--model=alpha", "--available=beta", "--pull-seconds=1")
        )
        call = stack.enter_context(brokered(endpoint(node, pull=True)))
        models = stack.enter_context(
            Pool(call, holder="h", node_id=NODE, notes=lambda *note: notes.append(note))
        )
        assert models.chat(HELLO, options("beta")).output_tokens > 0
    told = [detail for event, detail in notes if event == "model.pulling"]
    assert any("beta: one downloads it" in detail and "%" in detail for detail in told)


def test_structured_replies_come_as_objects() -> None:
    class Idea(BaseModel):
        name: str
        score: int

    with (
        running_ollama("--model=alpha") as node,
        brokered(endpoint(node)) as call,
        pool(call) as models,
    ):
        reply = models.chat(HELLO, options(num_predict=400, temperature=0.8), schema=Idea)
    assert isinstance(reply.value, Idea)


def test_experiments_have_the_gpus_alone_and_models_come_back_after_them() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha,vram=8000000000"))
        call = stack.enter_context(brokered(endpoint(node)))
        llm = stack.enter_context(pool(call, "llm"))
        experiment = stack.enter_context(pool(call, "experiment"))
        llm.chat(HELLO, options())
        wait_until(lambda: reported(call)["models"][0]["vram_bytes"] > 1)
        threads = stack.enter_context(ThreadPoolExecutor(1))
        with experiment.gpus([0], limit_s=60):
            assert node.loaded() == []
            waiting = threads.submit(llm.chat, HELLO, options())
            time.sleep(0.5)  # nothing to wait for: it must not happen
            assert not waiting.done()
            assert node.loaded() == []
        assert waiting.result(30).output_tokens > 0


def test_experiments_on_other_gpus_or_nodes_leave_models_alone() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha,vram=8000000000"))
        call = stack.enter_context(brokered(endpoint(node, gpus=(1,))))
        llm = stack.enter_context(pool(call, "llm"))
        llm.chat(HELLO, options())
        with llm.gpus([0], limit_s=60):
            assert node.loaded() == ["alpha:latest"]


def test_a_request_that_is_not_wanted_any_more_ends_at_once_while_it_waits() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha", "--seconds-per-token=0.2"))
        call = stack.enter_context(brokered(endpoint(node)))
        models = stack.enter_context(pool(call))
        threads = stack.enter_context(ThreadPoolExecutor(2))
        first, second = Cancel(), Cancel()
        held = threads.submit(models.chat, HELLO, options(num_predict=500), cancel=first)
        wait_until(lambda: in_flight(call) == 1)
        waiting = threads.submit(models.chat, HELLO, options(), cancel=second)
        wait_until(lambda: call("report")["waiting"])
        second.cancel()
        with pytest.raises(Stopped):
            waiting.result(5)
        assert call("report")["waiting"] == {}
        first.cancel()
        with pytest.raises(Stopped):
            held.result(5)
        wait_until(lambda: in_flight(call) == 0)


def test_a_worker_that_was_killed_holds_nothing_any_more() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha"))
        call = stack.enter_context(brokered(endpoint(node), holder_ttl_s=3.0))
        call(
            "want",
            holder="killed",
            node_id=NODE,
            ticket="t",
            model="alpha",
            num_ctx=2048,
            tried=[],
        )
        wait_until(lambda: in_flight(call) == 1)
        models = stack.enter_context(pool(call))
        assert models.chat(HELLO, options()).output_tokens > 0


def test_a_new_broker_learns_from_the_workers_what_the_old_one_gave_out() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha", "--seconds-per-token=0.1"))
        ends = [endpoint(node)]
        call = stack.enter_context(brokered(*ends))
        models = stack.enter_context(pool(call))
        threads = stack.enter_context(ThreadPoolExecutor(3))
        asked = [threads.submit(models.chat, HELLO, options(num_predict=30)) for _ in range(3)]
        wait_until(lambda: peak(node) == 1)
        old, call.broker = call.broker, None
        assert old is not None
        old.close()
        call.broker = broker_of(ends)
        assert all(reply.result(60).output_tokens > 0 for reply in asked)
        assert peak(node) == 1


@pytest.mark.parametrize(
    ("kind", "method"),
    [("lose_answers", "want"), ("lose_answers", "listen"), ("lose_requests", "give_back")],
)
def test_a_slot_is_not_lost_with_a_message(kind: str, method: str) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha"))
        call = stack.enter_context(brokered(endpoint(node), lost_s=1.0))
        one = stack.enter_context(pool(call, "one"))
        getattr(call, kind).add(method)
        assert one.chat(HELLO, options()).output_tokens > 0
        wait_until(lambda: in_flight(call) == 0)
        assert not getattr(call, kind)


def test_a_new_broker_loads_no_model_under_a_running_experiment() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_ollama("--model=alpha,vram=8000000000"))
        ends = [endpoint(node)]
        call = stack.enter_context(brokered(*ends))
        llm = stack.enter_context(pool(call, "llm"))
        experiment = stack.enter_context(pool(call, "experiment"))
        threads = stack.enter_context(ThreadPoolExecutor(1))
        with experiment.gpus([0], limit_s=60):
            old, call.broker = call.broker, None
            assert old is not None
            old.close()
            call.broker = broker_of(ends, hear_first_s=2.0)
            wait_until(lambda: call("report")["experiments"] == 1)
            waiting = threads.submit(llm.chat, HELLO, options())
            wait_until(lambda: call("report")["waiting"])
            time.sleep(2.5)  # nothing to wait for: it must not happen
            assert node.loaded() == []
        assert waiting.result(30).output_tokens > 0


def wanted_by(call: Call, holder: str) -> str:
    """Have a holder of which nothing else is heard ask for a slot; give the lease, if it got one at once."""
    facts = {"node_id": NODE, "model": "alpha", "num_ctx": 2048, "tried": []}
    grants = call("want", holder=holder, ticket=f"{holder}/1", **facts)["grants"]
    return str(grants[0]["lease"]) if grants else ""


def listened(call: Call, holder: str, *leases: str, timeout_s: float = 0.1) -> dict[str, Any]:
    had = [[lease, "one", "alpha:latest"] for lease in leases]
    return call(
        "listen", holder=holder, leases=had, gpu_leases=[], tickets=[], timeout_s=timeout_s
    )


def test_leases_of_two_brokers_are_never_taken_for_each_other() -> None:
    with running_ollama("--model=alpha") as node:
        leases = set()
        for _ in range(2):
            with brokered(endpoint(node)) as call:
                # At once, where the broker knows by now that the model is loaded.
                lease = wanted_by(call, "h")
                wait_until(lambda: in_flight(call) == 1)
                if not lease:
                    [grant] = listened(call, "h", timeout_s=5)["grants"]
                    lease = grant["lease"]
                leases.add(lease)
    assert len(leases) == 2


def test_a_recall_that_came_before_its_lease_was_known_comes_again() -> None:
    with running_ollama("--model=alpha") as node, brokered(endpoint(node)) as call:
        wanted_by(call, "first")
        [grant] = listened(call, "first", timeout_s=10)["grants"]
        wanted_by(call, "second")
        assert listened(call, "first")["recalls"] == [grant["lease"]]
        assert listened(call, "first", grant["lease"])["recalls"] == [grant["lease"]]


def test_what_a_killed_worker_had_is_free_as_soon_as_somebody_says_so() -> None:
    with running_ollama("--model=alpha") as node, brokered(endpoint(node)) as call:
        wanted_by(call, "killed")
        [grant] = listened(call, "killed", timeout_s=10)["grants"]
        with ThreadPoolExecutor(1) as threads:
            late = threads.submit(
                listened, call, "killed", grant["lease"], timeout_s=20
            )  # it was sent while it lived
            wait_until(lambda: call.calls["listen"] == 2)
            call("bye", holder="killed")
            assert late.result(5)["grants"] == []
        listened(call, "killed", grant["lease"])
        assert in_flight(call) == 0
        with pool(call) as models:
            assert models.chat(HELLO, options()).output_tokens > 0


def test_a_broker_out_of_reach_for_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labd.llm.slots._LINK_TIMEOUT_S", 0.5)
    monkeypatch.setattr("labd.llm.slots._LINK_DELAY_S", 0.1)
    with (
        running_ollama("--model=alpha") as node,
        brokered(endpoint(node)) as call,
        pool(call) as models,
    ):
        broker, call.broker = call.broker, None
        with pytest.raises(EndpointDown, match="out of reach"):
            models.chat(HELLO, options())
        call.broker = broker


def test_a_server_of_one_model_is_used_with_the_slots_and_context_that_it_has() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running_llama("--slots=2", "--ctx=512", "--name=tiny"))
        end = Endpoint("cpp", server.url, api="openai")
        call = stack.enter_context(brokered(end))
        models = stack.enter_context(pool(call))
        reply = models.chat(HELLO, options("tiny"))
        assert reply.num_ctx == 512
        assert reported(call)["slots"] == 2


def test_what_goes_on_is_written_where_people_can_see_it(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    with running_ollama("--model=alpha") as node:
        broker = Broker(
            Rules(), lambda: [endpoint(node)], DirectHands(), status_path=path, look_every_s=0.2
        )

        def said() -> bool:
            if not path.exists():
                return False
            [found] = json.loads(path.read_text())["endpoints"]
            return bool(found["health"] == "up" and found["models"])

        wait_until(said)
        broker.close()
