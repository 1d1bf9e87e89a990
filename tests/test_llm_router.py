"""The router's promises, tried as a simulation with a clock of its own."""

import itertools
import random
import sys
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.llm.claims import GpuWant, Want
from labd.llm.desk import Change, Rules
from labd.llm.errors import (
    EndpointDown,
    EndpointFailed,
    ModelError,
    ModelMissing,
    ModelRefused,
    RequestRefused,
)
from labd.llm.model import Endpoint, LoadedModel, Look, ModelInfo, name_of
from labd.llm.refusals import Pull
from labd.llm.router import Action, GpuGrant, Grant, Recall, Refusal, Router
from labd.llm.throughput import Throughput

HEAD = "node-of-the-lab"


def look(*models: str, loaded: tuple[str, ...] = (), num_ctx: int = 8192, **over: object) -> Look:
    facts = {
        "health": "up",
        "server": "ollama",
        "models": tuple(ModelInfo(name_of(m), digest=f"digest-{m}") for m in models),
        "loaded": tuple(LoadedModel(name_of(m), num_ctx, 2**30) for m in loaded),
    }
    return Look(**{**facts, **over})  # type: ignore[arg-type]


DOWN = Look("down", problem="nothing answers there")


class Bench:
    """A router, and a clock."""

    def __init__(self, *endpoints: Endpoint, **rules: object) -> None:
        self.now_s = 1000.0
        self.router = Router(Rules(**rules), endpoints)  # type: ignore[arg-type]
        self._tickets = itertools.count()

    def want(self, model: str = "a", holder: str = "h", **over: object) -> str:
        ticket = f"t{next(self._tickets)}"
        facts = {"node_id": HEAD, "num_ctx": 8192, "since_s": self.now_s}
        self.router.want(Want(ticket, holder, model=model, **{**facts, **over}))  # type: ignore[arg-type]
        return ticket

    def want_gpus(self, *gpus: int, holder: str = "x", node_id: str = HEAD) -> str:
        ticket = f"t{next(self._tickets)}"
        self.router.want_gpus(GpuWant(ticket, holder, node_id, gpus or (0,), self.now_s, 3600))
        return ticket

    def step(self, after_s: float = 0.0) -> list[Action]:
        self.now_s += after_s
        for holder in list(self.router.desk.beats):
            self.router.beat(holder, self.now_s)
        return self.router.step(self.now_s)

    def seen(self, endpoint: str, what: Look) -> None:
        self.router.seen(endpoint, what, self.now_s)

    def done(self, change: Change, error: str = "", took_s: float = 10.0) -> None:
        self.router.changed(change.endpoint, took_s, error, self.now_s)

    def grants(self, after_s: float = 0.0) -> list[Grant]:
        return [a for a in self.step(after_s) if isinstance(a, Grant)]

    def changes(self, after_s: float = 0.0) -> list[Change]:
        return [a for a in self.step(after_s) if isinstance(a, Change)]

    def refusal(self, after_s: float = 0.0) -> ModelError:
        [found] = [a for a in self.step(after_s) if isinstance(a, Refusal)]
        return found.error


def one(**over: object) -> Bench:
    """One endpoint that has models a, b and c, with a loaded."""
    bench = Bench(Endpoint("one", "http://one", node_id=HEAD, **over))  # type: ignore[arg-type]
    bench.seen("one", look("a", "b", "c", loaded=("a",)))
    return bench


# --- slots


def test_no_more_requests_are_in_flight_than_there_are_slots_over_all_holders() -> None:
    bench = one(slots=3)
    tickets = [bench.want(holder=f"h{i}") for i in range(5)]
    granted = bench.grants()
    assert [g.ticket for g in granted] == tickets[:3]
    assert bench.grants() == []
    bench.router.give_back(granted[0].lease)
    assert [g.ticket for g in bench.grants()] == [tickets[3]]


def test_a_grant_says_what_to_send_and_which_weights_will_answer() -> None:
    bench = Bench(Endpoint("one", "http://one"))
    bench.seen("one", look("A:latest", loaded=("a",), num_ctx=32768))
    bench.want("a", num_ctx=4096)
    [grant] = bench.grants()
    assert (grant.model, grant.num_ctx, grant.digest) == ("a:latest", 32768, "digest-A:latest")


def test_slots_that_the_server_tells_count_unless_the_settings_say_otherwise() -> None:
    told = look("a", loaded=("a",), slots=2)
    for slots, most in ((None, 2), (4, 4)):
        bench = Bench(Endpoint("one", "http://one", slots=slots))
        bench.seen("one", told)
        for _ in range(6):
            bench.want()
        assert len(bench.grants()) == most


def test_who_has_less_gets_the_next_slot_and_who_has_all_is_asked_for_one_back() -> None:
    bench = one(slots=2)
    for _ in range(4):
        bench.want(holder="greedy")
    first = bench.grants()
    bench.now_s += 1
    mine = bench.want(holder="late")
    recalls = [a for a in bench.step() if isinstance(a, Recall)]
    assert len(recalls) == 1
    assert recalls[0].holder == "greedy"
    assert bench.step() == []  # one back is enough
    assert recalls[0].lease in {g.lease for g in first}
    bench.router.give_back(recalls[0].lease)
    assert [g.ticket for g in bench.grants()] == [mine]


def test_a_silent_holder_loses_what_it_has() -> None:
    bench = one(slots=1)
    bench.want(holder="dead")
    bench.grants()
    waits = bench.want(holder="alive")
    bench.now_s += 31
    bench.router.beat("alive", bench.now_s)
    granted = [a for a in bench.router.step(bench.now_s) if isinstance(a, Grant)]
    assert [g.ticket for g in granted] == [waits]


def test_the_endpoint_with_most_room_serves() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}", slots=2) for n in ("one", "two")))
    for name in ("one", "two"):
        bench.seen(name, look("a", loaded=("a",)))
    for _ in range(4):
        bench.want()
    assert Counter(g.endpoint.name for g in bench.grants()) == {"one": 2, "two": 2}


def test_an_endpoint_of_one_node_only_serves_workers_there() -> None:
    bench = Bench(Endpoint("far", "http://127.0.0.1:11434", only_from="other-node"))
    bench.seen("far", look("a", loaded=("a",)))
    bench.want(node_id="other-node")
    assert len(bench.grants()) == 1
    bench.want(node_id=HEAD)
    assert isinstance(bench.refusal(), EndpointDown)


def test_a_model_that_only_another_node_can_reach_is_missing_and_the_error_says_where_it_is() -> (
    None
):
    bench = Bench(
        Endpoint("far", "http://127.0.0.1:11434", only_from="other-node"),
        Endpoint("near", "http://near"),
    )
    bench.seen("far", look("a"))
    bench.seen("near", look("b"))
    bench.want("a", node_id=HEAD)
    error = bench.refusal()
    assert isinstance(error, ModelMissing)
    assert "far has it" in str(error)


def test_what_a_step_costs_grows_no_faster_than_the_number_of_those_who_wait() -> None:
    def calls(waiting: int) -> int:
        bench = Bench(*(Endpoint(f"e{i}", f"http://e{i}", slots=4) for i in range(4)))
        for i in range(4):
            bench.seen(f"e{i}", look(*"abcdefgh", loaded=("abc"[i % 3],)))
        for i in range(waiting):
            bench.want("abc"[i % 3], holder=f"h{i % 100}")
        bench.step(after_s=1)
        made = 0

        def count(_: object, event: str, __: object) -> None:
            nonlocal made
            made += event in {"call", "c_call"}

        sys.setprofile(count)
        try:
            bench.router.step(bench.now_s)
        finally:
            sys.setprofile(None)
        return made

    few, many = calls(200), calls(400)
    assert many < 2.2 * few
    assert many < 40 * 400


# --- what is loaded when


def test_a_model_that_is_not_loaded_is_loaded_first_where_there_is_room() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}") for n in ("full", "empty")))
    bench.seen("full", look("a", "b", loaded=("a",)))
    bench.seen("empty", look("a", "b"))
    bench.want("b", num_ctx=4096)
    [change] = bench.changes()
    assert change == Change("empty", (), "b:latest", 4096)
    assert bench.step() == []  # it is being done
    bench.done(change)
    assert [g.endpoint.name for g in bench.grants()] == ["empty"]


def test_an_idle_model_goes_at_once_for_a_wanted_one() -> None:
    bench = one()
    bench.want("b")
    assert bench.changes() == [Change("one", ("a:latest",), "b:latest", 8192)]


def test_a_model_that_was_used_a_moment_ago_stays_for_as_long_as_a_load_takes() -> None:
    bench = one()
    bench.router.desk.sides["one"].load_s = 8.0
    bench.want("a", holder="thinking")
    [grant] = bench.grants()
    bench.router.used(grant.lease, bench.now_s, [1.0])
    bench.router.give_back(grant.lease)
    bench.want("b", holder="other")
    assert bench.changes(after_s=7) == []
    assert len(bench.changes(after_s=1.1)) == 1


def test_tokens_are_counted_for_a_minute_and_as_if_they_had_come_evenly() -> None:
    found = Throughput()
    found.add(100.0, 9.5, 600)
    assert found.tokens_per_s(100.0) == pytest.approx(10)
    assert found.tokens_per_s(155.0) == pytest.approx(10 * 5 / 10, abs=1), "half of it is long ago"
    assert found.tokens_per_s(161.0) == 0
    found.add(1000.0, 599.5, 60_000)
    assert found.tokens_per_s(1000.0) == pytest.approx(100, rel=0.01), (
        "of ten minutes only the last one"
    )


def test_a_model_whose_last_user_waits_for_another_is_idle_at_once() -> None:
    bench = one()
    bench.want("a", holder="me")
    [grant] = bench.grants()
    bench.router.used(grant.lease, bench.now_s, [1.0])
    bench.router.give_back(grant.lease)
    bench.want("b", holder="me")
    assert len(bench.changes()) == 1


def test_a_model_in_use_is_drained_and_goes_when_its_turn_is_over() -> None:
    bench = one(slots=1)
    bench.want("a", holder="busy")
    [grant] = bench.grants()
    bench.want("a", holder="busy")
    waits = bench.want("b", holder="patient")
    assert bench.changes(after_s=59) == []
    recalled = [a for a in bench.step(after_s=2) if isinstance(a, Recall)]
    assert [r.lease for r in recalled] == [grant.lease]
    assert bench.step() == []  # drains: nothing new for a, nothing unloaded under a request
    bench.router.give_back(grant.lease)
    [change] = bench.changes()
    assert change == Change("one", ("a:latest",), "b:latest", 8192)
    bench.done(change)
    assert [g.ticket for g in bench.grants()] == [waits]


def test_a_larger_context_is_a_load_and_a_smaller_one_is_served_as_it_is() -> None:
    bench = one()
    bench.want("a", num_ctx=16384)
    assert bench.changes() == [Change("one", ("a:latest",), "a:latest", 16384)]
    bench = one()
    bench.want("a", num_ctx=2048)
    assert [g.num_ctx for g in bench.grants()] == [8192]


def test_one_more_endpoint_loads_a_model_only_when_much_waits_for_it() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}", slots=1) for n in ("one", "two")))
    bench.seen("one", look("a", "b", loaded=("a",)))
    bench.seen("two", look("a", "b", loaded=("b",)))
    bench.router.desk.request_s["a:latest"] = 1.0
    for _ in range(15):
        bench.want("a")
    assert bench.changes() == []
    for _ in range(15):
        bench.want("a")
    assert bench.changes() == [Change("two", ("b:latest",), "a:latest", 8192)]


def test_two_endpoints_never_both_load_for_the_same_few_requests() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}") for n in ("one", "two")))
    for name in ("one", "two"):
        bench.seen(name, look("a"))
    for _ in range(3):
        bench.want("a")
    assert len(bench.changes()) == 1
    assert bench.changes(after_s=1) == []


def test_a_load_that_hangs_is_not_waited_for_where_another_endpoint_can_load() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}") for n in ("one", "two")))
    for name in ("one", "two"):
        bench.seen(name, look("a"))
    ticket = bench.want("a")
    [first] = bench.changes()
    assert bench.changes(after_s=25) == []
    [second] = bench.changes(after_s=10)
    assert {first.endpoint, second.endpoint} == {"one", "two"}
    bench.done(second)
    assert [g.ticket for g in bench.grants()] == [ticket]


def test_servers_that_hold_one_model_for_ever_are_never_asked_to_swap() -> None:
    bench = Bench(Endpoint("cpp", "http://cpp", api="openai"))
    bench.seen("cpp", look("a", loaded=("a",), num_ctx=4096, server="llamacpp"))
    bench.want("a", num_ctx=8192)
    assert [g.num_ctx for g in bench.grants()] == [4096]
    bench.want("b")
    assert isinstance(bench.refusal(), ModelMissing)


def test_a_load_that_fails_is_tried_again_later_and_then_given_up() -> None:
    bench = Bench(Endpoint("one", "http://one"))
    bench.seen("one", look("a"))
    bench.want("a")
    waits_s = []
    for _ in range(3):
        change: list[Change] = []
        while not change:
            change = bench.changes(after_s=1)
            waits_s.append(1)
        bench.done(change[0], error="out of memory")
    error = bench.refusal()
    assert isinstance(error, EndpointFailed)
    assert "out of memory" in str(error)
    assert len(waits_s) > 15  # it did not hammer


def test_a_model_that_could_not_be_loaded_is_tried_again_some_minutes_later() -> None:
    bench = Bench(Endpoint("one", "http://one"))
    bench.seen("one", look("a"))
    bench.want("a")
    for _ in range(3):
        [change] = bench.changes(after_s=60)
        bench.done(change, error="out of memory")
    assert isinstance(bench.refusal(), EndpointFailed)
    bench.want("a")
    assert isinstance(bench.refusal(after_s=30), EndpointFailed)
    bench.want("a")
    assert [c.load for c in bench.changes(after_s=300)] == ["a:latest"]


def test_a_model_that_somebody_else_has_loaded_is_used_whatever_failed_before() -> None:
    bench = Bench(Endpoint("one", "http://one"))
    bench.seen("one", look("a"))
    bench.want("a")
    for _ in range(3):
        [change] = bench.changes(after_s=60)
        bench.done(change, error="out of memory")
    bench.seen("one", look("a", loaded=("a",)))
    assert len(bench.grants()) == 1


def test_a_context_that_a_server_does_not_give_is_an_error_and_not_a_load_after_another() -> None:
    bench = Bench(Endpoint("one", "http://one"))
    bench.seen("one", look("a"))
    bench.want("a", num_ctx=8192)
    loads = 0
    refused: list[Refusal] = []
    for _ in range(30):
        actions = bench.step(after_s=5)
        for change in (a for a in actions if isinstance(a, Change)):
            loads += 1
            bench.done(change)
            bench.seen("one", look("a", loaded=("a",), num_ctx=2048))
        refused += [a for a in actions if isinstance(a, Refusal)]
    assert loads == 3
    assert "2048" in str(refused[0].error)
    bench.want("a", num_ctx=2048)
    assert len(bench.grants()) == 1


def test_two_models_that_are_both_wanted_for_long_do_not_swap_places() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}", slots=1) for n in ("one", "two")))
    bench.seen("one", look("a", "b", loaded=("a",)))
    bench.seen("two", look("a", "b", loaded=("b",)))
    for model in "ab":
        for _ in range(4):
            bench.want(model, holder=f"of-{model}", following=1000)
    bench.grants()
    bench.router.desk.request_s = {"a:latest": 1.0, "b:latest": 1.0}
    bench.step(after_s=1)
    assert bench.step(after_s=200) == []


def test_requests_that_only_other_endpoints_can_serve_do_not_wait_for_the_first_ones_endpoint() -> (
    None
):
    bench = Bench(
        Endpoint("here", "http://here", node_id=HEAD, only_from=HEAD),
        Endpoint("there", "http://there", node_id="other", only_from="other"),
    )
    for name in ("here", "there"):
        bench.seen(name, look("a"))
    bench.want_gpus(0)
    assert [type(a) for a in bench.step()] == [GpuGrant]
    bench.want("a", node_id=HEAD)
    bench.now_s += 1
    bench.want("a", node_id="other")
    assert [c.endpoint for c in bench.changes()] == ["there"]


def test_slots_that_become_free_together_are_shared_by_all_who_wait() -> None:
    bench = one(slots=4)
    for _ in range(4):
        bench.want(holder="many")
    bench.now_s += 0.1
    bench.want(holder="late")
    assert Counter(g.holder for g in bench.grants()) == {"many": 3, "late": 1}


def test_what_is_known_of_holders_goes_with_them() -> None:
    bench = one()
    for i in range(50):
        bench.want(holder=f"h{i}")
        [grant] = bench.grants()
        bench.router.used(grant.lease, bench.now_s, [0.1])
        bench.router.bye(f"h{i}")
    assert bench.router.desk.sides["one"].held["a:latest"].users == {}


# --- refusals


def test_a_model_that_nobody_has_is_refused_with_the_command_that_gets_it() -> None:
    bench = one()
    bench.want("qwen3:14b")
    error = bench.refusal()
    assert isinstance(error, ModelMissing)
    assert "ollama pull qwen3:14b" in str(error)


def test_a_model_that_a_silent_endpoint_may_have_is_waited_for() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}") for n in ("one", "two")), patience_s=300)
    bench.seen("one", look("a"))
    bench.seen("two", DOWN)
    bench.want("b")
    assert bench.step(after_s=299) == []
    error = bench.refusal(after_s=302)
    assert isinstance(error, EndpointDown)
    assert error.retryable
    assert "two: nothing answers there" in str(error)


def test_an_endpoint_that_comes_back_serves_what_waited() -> None:
    bench = Bench(Endpoint("one", "http://one"))
    bench.seen("one", DOWN)
    ticket = bench.want("a")
    assert bench.step(after_s=200) == []
    bench.seen("one", look("a", loaded=("a",)))
    assert [g.ticket for g in bench.grants()] == [ticket]


@pytest.mark.parametrize("name", ["gpt-oss:120b-cloud", "glm-4.6:cloud", "sneaky"])
def test_a_model_that_runs_elsewhere_is_refused_unless_allowed(name: str) -> None:
    has = look(name, loaded=(name,), models=(ModelInfo(name, remote=True),))
    bench = Bench(Endpoint("one", "http://one"))
    bench.seen("one", has)
    bench.want(name)
    assert isinstance(bench.refusal(), ModelRefused)
    bench = Bench(Endpoint("one", "http://one"), allow_remote=True)
    bench.seen("one", has)
    bench.want(name)
    assert len(bench.grants()) == 1


def test_more_context_than_the_model_knows_is_refused() -> None:
    bench = Bench(Endpoint("one", "http://one"))
    bench.seen("one", look("a", models=(ModelInfo("a:latest", max_ctx=4096),)))
    bench.want("a", num_ctx=8192)
    error = bench.refusal()
    assert isinstance(error, RequestRefused)
    assert "num_ctx: 4096" in str(error)


def test_a_missing_model_is_pulled_once_where_that_is_allowed() -> None:
    bench = Bench(Endpoint("one", "http://one"), Endpoint("two", "http://two", pull=True))
    for name in ("one", "two"):
        bench.seen(name, look("a"))
    bench.want("b")
    bench.want("b")
    assert bench.step() == [Pull("two", "b")]
    assert bench.step(after_s=600) == []
    bench.seen("two", look("a", "b"))
    bench.router.pulled("two", "b", "")
    assert [c.load for c in bench.changes()] == ["b:latest"]


def test_a_failed_pull_is_told() -> None:
    bench = Bench(Endpoint("one", "http://one", pull=True))
    bench.seen("one", look("a"))
    bench.want("b")
    assert bench.step() == [Pull("one", "b")]
    bench.router.pulled("one", "b", "file does not exist")
    error = bench.refusal()
    assert isinstance(error, ModelMissing)
    assert "file does not exist" in str(error)


def test_a_failed_download_is_tried_again_some_minutes_later() -> None:
    bench = Bench(Endpoint("one", "http://one", pull=True))
    bench.seen("one", look("a"))
    bench.want("b")
    assert bench.step() == [Pull("one", "b")]
    bench.router.pulled("one", "b", "no way to the internet")
    assert isinstance(bench.refusal(), ModelMissing)
    bench.want("b")
    assert isinstance(bench.refusal(after_s=60), ModelMissing)
    bench.want("b")
    assert bench.step(after_s=300) == [Pull("one", "b")]
    bench.router.pulled("one", "b", "no way to the internet")
    bench.seen("one", look("a", "b"))  # somebody has pulled it by hand
    bench.want("b")
    assert [c.load for c in bench.changes()] == ["b:latest"]


def test_a_download_that_ends_well_without_the_model_is_told_and_not_begun_again() -> None:
    bench = Bench(Endpoint("one", "http://one", pull=True))
    bench.seen("one", look("a"))
    bench.want("library/b")
    assert bench.step() == [Pull("one", "library/b")]
    bench.seen("one", look("a", "b"))
    bench.router.pulled("one", "library/b", "")
    error = bench.refusal()
    assert isinstance(error, ModelMissing)
    assert "another name" in str(error)


def test_an_endpoint_serves_what_it_has_while_it_downloads_something_else() -> None:
    bench = Bench(Endpoint("one", "http://one", pull=True))
    bench.seen("one", look("a", loaded=("a",)))
    bench.want("b")
    assert bench.step() == [Pull("one", "b")]
    bench.want("a")
    assert len(bench.grants()) == 1


# --- endpoints that fail


def test_requests_that_all_fail_at_once_count_as_one_reason_to_rest() -> None:
    bench = one(slots=8)
    for _ in range(8):
        bench.router.failed("one", "a", "endpoint_failed", bench.now_s)
    bench.want("a")
    assert len(bench.grants(after_s=31)) == 1


def test_a_request_that_failed_somewhere_goes_elsewhere_if_it_can() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}") for n in ("one", "two")))
    for name in ("one", "two"):
        bench.seen(name, look("a", loaded=("a",)))
    bench.want("a", tried=frozenset({"one"}))
    assert [g.endpoint.name for g in bench.grants()] == ["two"]
    bench.want("a", tried=frozenset({"one", "two"}))
    assert len(bench.grants()) == 1


def test_a_long_reply_on_trial_is_no_reason_to_refuse_those_who_wait_for_its_end() -> None:
    bench = one(slots=4)
    for _ in range(3):
        bench.router.failed("one", "a", "endpoint_failed", bench.now_s)
    for _ in range(2):
        bench.want("a")
    [trial] = bench.grants(after_s=31)
    for _ in range(10):
        assert bench.step(after_s=60) == []
    bench.router.used(trial.lease, bench.now_s, [600.0])
    assert len(bench.grants()) == 1


def test_after_three_failures_in_a_row_an_endpoint_rests_and_is_then_tried_with_one_request() -> (
    None
):
    bench = one(slots=4)
    for _ in range(3):
        bench.router.failed("one", "a", "endpoint_failed", bench.now_s)
    for _ in range(4):
        bench.want("a")
    assert bench.grants(after_s=29) == []
    granted = bench.grants(after_s=2)
    assert len(granted) == 1  # on trial
    bench.router.failed("one", "a", "endpoint_failed", bench.now_s)
    bench.router.give_back(granted[0].lease)
    assert bench.grants(after_s=31) == []  # it rests for longer now
    [trial] = bench.grants(after_s=30)
    bench.router.used(trial.lease, bench.now_s, [0.5])
    assert len(bench.grants()) == 2  # all that wait


# --- experiments


def test_experiments_wait_until_it_is_known_what_fills_their_gpus() -> None:
    bench = Bench(
        Endpoint("here", "http://here", node_id=HEAD),
        Endpoint("far", "http://far", node_id="other-node"),
    )
    ticket = bench.want_gpus(0)
    assert bench.step() == []
    bench.seen("here", look("a", loaded=("a",)))
    assert bench.changes() == [Change("here", ("a:latest",))]
    bench.done(Change("here", ("a:latest",)))
    assert [a.ticket for a in bench.step() if isinstance(a, GpuGrant)] == [ticket]


def test_experiments_get_gpus_at_once_where_no_model_fills_them() -> None:
    bench = Bench(
        Endpoint("here", "http://here", node_id=HEAD, gpus=(1,)),
        Endpoint("there", "http://there", node_id="other"),
        Endpoint("cpu", "http://cpu", node_id=HEAD, gpus=()),
    )
    for name in ("here", "there", "cpu"):
        bench.seen(name, look("a", loaded=("a",)))
    bench.want_gpus(0)
    assert [type(a) for a in bench.step()] == [GpuGrant]
    bench.want_gpus(1)
    assert [type(a) for a in bench.step()] == [Change]


def test_a_model_on_the_cpu_is_left_alone() -> None:
    bench = Bench(Endpoint("one", "http://one", node_id=HEAD))
    bench.seen("one", look("a", loaded=("a",)))
    bench.seen(
        "one", Look("up", "ollama", models=None, loaded=(LoadedModel("a:latest", 8192, 0),))
    )
    bench.want_gpus(0)
    assert [type(a) for a in bench.step()] == [GpuGrant]


def test_an_idle_model_is_unloaded_for_experiments_and_comes_back_after_them() -> None:
    bench = one()
    bench.want_gpus(0)
    [change] = bench.changes()
    assert change == Change("one", ("a:latest",))
    assert bench.step() == []  # not before it is really unloaded
    bench.done(change)
    [grant] = bench.step()
    assert isinstance(grant, GpuGrant)
    ticket = bench.want("a")
    assert bench.step(after_s=600) == []  # no model comes in under a running experiment
    bench.router.bye("x")
    [load] = bench.changes()
    bench.done(load)
    assert [g.ticket for g in bench.grants()] == [ticket]


def test_experiments_wait_for_requests_in_flight_and_at_most_a_turn_for_those_that_follow() -> (
    None
):
    bench = one(slots=1)
    bench.want("a", holder="llm")
    [grant] = bench.grants()
    bench.want("a", holder="llm")
    bench.want_gpus(0)
    assert bench.step(after_s=59) == []
    assert [type(a) for a in bench.step(after_s=2)] == [Recall]
    bench.router.give_back(grant.lease)
    assert bench.changes() == [Change("one", ("a:latest",))]


def test_experiments_do_not_keep_requests_waiting_beyond_their_turn() -> None:
    bench = one()
    bench.want_gpus(0, holder="x1")
    bench.done(bench.changes()[0])
    [first] = bench.step()
    assert isinstance(first, GpuGrant)
    bench.want("a")
    bench.want_gpus(0, holder="x2")
    assert [type(a) for a in bench.step(after_s=30)] == [GpuGrant]  # joins, within the turn
    bench.want_gpus(0, holder="x3")
    late = bench.step(after_s=31)
    assert late == []  # the request has waited a turn: it is next
    for lease in list(bench.router.desk.gpu_leases):
        bench.router.give_back(lease)
    assert [c.load for c in bench.changes()] == ["a:latest"]


def test_an_experiments_lease_ends_with_its_limit() -> None:
    bench = Bench(Endpoint("one", "http://one", node_id=HEAD))
    bench.seen("one", look("a"))
    bench.want_gpus(0)
    assert [type(a) for a in bench.step()] == [GpuGrant]
    bench.want("a")
    assert bench.changes(after_s=3600) == []
    assert len(bench.changes(after_s=61)) == 1


def test_experiments_wait_until_the_endpoints_on_their_gpus_have_been_looked_at() -> None:
    bench = Bench(Endpoint("one", "http://one", node_id=HEAD))
    bench.want_gpus(0)
    assert bench.step() == []
    bench.seen("one", look("a", loaded=("a",)))
    assert bench.step() == [Change("one", ("a:latest",))]


def test_an_unload_that_failed_is_not_taken_for_done() -> None:
    bench = one()
    bench.want_gpus(0)
    [change] = bench.changes()
    bench.done(change, error="it is still there")
    assert bench.step() == []
    bench.seen("one", look("a", loaded=("a",)))
    assert bench.step() == []  # it is not hammered
    [again] = bench.step(after_s=20)
    assert again == change
    bench.done(change)
    assert [type(a) for a in bench.step()] == [GpuGrant]


def test_experiments_wait_for_requests_whose_model_a_look_does_not_show() -> None:
    bench = one()
    bench.want("a", holder="llm")
    [grant] = bench.grants()
    bench.seen("one", look("a"))  # somebody else unloaded it; the request has it loaded again
    bench.want_gpus(0)
    assert [a for a in bench.step(after_s=200) if not isinstance(a, Recall)] == []
    bench.router.give_back(grant.lease)
    assert bench.step() == [Change("one", ("a:latest",))]


def test_experiments_wait_while_somebody_else_loads_a_model() -> None:
    bench = Bench(Endpoint("one", "http://one", node_id=HEAD))
    bench.seen("one", look("a"))
    bench.seen("one", Look("loading", "ollama"))
    bench.want_gpus(0)
    assert bench.step() == []
    bench.seen("one", look("a", loaded=("a",)))
    assert len(bench.changes()) == 1


def test_one_experiment_after_another_of_the_same_task_costs_no_loads_between_them() -> None:
    bench = one()
    bench.want_gpus(0, holder="search")
    bench.done(bench.changes()[0])
    [first] = bench.step()
    assert isinstance(first, GpuGrant)
    bench.want("a")
    bench.step(after_s=10)
    bench.router.give_back(first.lease)
    assert bench.step() == []
    bench.want_gpus(0, holder="search")
    [second] = bench.step(after_s=0.1)
    assert isinstance(second, GpuGrant)
    bench.step(after_s=51)
    bench.router.give_back(second.lease)  # its turn is over
    assert [c.load for c in bench.changes()] == ["a:latest"]


def test_a_model_comes_back_at_once_when_the_experiments_task_is_over() -> None:
    bench = one()
    bench.want_gpus(0, holder="search")
    bench.done(bench.changes()[0])
    assert [type(a) for a in bench.step()] == [GpuGrant]
    bench.want("a")
    bench.router.bye("search")
    assert [c.load for c in bench.changes()] == ["a:latest"]


# --- the whole, simulated


EXPERIMENT = "experiment"


@dataclass
class World:
    """Endpoints that take `load_s` to load and `request_s` to answer, and a queue of requests and experiments."""

    bench: Bench
    load_s: float
    request_s: float
    experiment_s: float = 20.0
    tick_s: float = 0.1
    loads: int = 0
    waited_s: list[float] = field(default_factory=list)

    def run(self, queue: list[tuple[float, str]], most_s: float = 20_000.0) -> None:
        """Play the requests, each with its time of arrival and model, to their end."""
        begun: dict[str, float] = {}
        busy: list[tuple[float, str]] = []
        changing: list[tuple[float, Change]] = []
        coming = sorted(queue)
        end_s = self.bench.now_s + most_s
        while self.bench.now_s < end_s:
            while coming and coming[0][0] <= self.bench.now_s:
                at_s, model = coming.pop(0)
                ticket = (
                    self.bench.want_gpus(0, holder=f"x{at_s}")
                    if model == EXPERIMENT
                    else self.bench.want(model, holder=f"of-{model}")
                )
                begun[ticket] = at_s
            for end in [b for b in busy if b[0] <= self.bench.now_s]:
                busy.remove(end)
                self.bench.router.used(end[1], self.bench.now_s, [self.request_s])
                self.bench.router.give_back(end[1])
            for ended in [c for c in changing if c[0] <= self.bench.now_s]:
                changing.remove(ended)
                self.bench.done(ended[1], took_s=self.load_s)
            for action in self.bench.step():
                if isinstance(action, Grant | GpuGrant):
                    self.waited_s.append(self.bench.now_s - begun.pop(action.ticket))
                    long_s = self.request_s if isinstance(action, Grant) else self.experiment_s
                    busy.append((self.bench.now_s + long_s, action.lease))
                elif isinstance(action, Change):
                    self.loads += action.load is not None
                    changing.append((self.bench.now_s + self.load_s, action))
                    self.no_request_under(action)
            self.models_and_experiments_apart()
            if not (begun or busy or coming):
                return
            self.bench.now_s += self.tick_s
        raise AssertionError(f"these wait for ever: {begun}")

    def models_and_experiments_apart(self) -> None:
        desk = self.bench.router.desk
        for lease in desk.gpu_leases.values():
            for side in desk.sides.values():
                if side.on_gpus(lease.node_id, lease.gpus):
                    assert not side.held
                    assert not desk.in_flight(side)

    def no_request_under(self, change: Change) -> None:
        desk = self.bench.router.desk
        assert not [
            x
            for x in desk.leases.values()
            if x.endpoint == change.endpoint and x.name in change.unload
        ]


def test_mixed_requests_cost_few_loads_and_nobody_waits_beyond_the_bound() -> None:
    bench = Bench(*(Endpoint(n, f"http://{n}", slots=1) for n in ("one", "two")), turn_s=30.0)
    for name in ("one", "two"):
        bench.seen(name, look("a", "b", "c"))
    random_ = random.Random(1)
    queue = [(1000.0 + i * 0.3, random_.choice("abc")) for i in range(200)]
    world = World(bench, load_s=5.0, request_s=1.0)
    world.run(queue)
    assert len(world.waited_s) == 200
    first_come = 130  # two thirds of 200 requests find another model loaded
    assert world.loads * 5 <= first_come
    # Requests of one model before it, and two turns of others: n - 1 of them, each with a request and a load.
    mine_s = 200 / 3 * 1.0
    assert max(world.waited_s) <= mine_s + 2 * (30.0 + 1.0 + 5.0) + 5.0


def test_a_steady_stream_for_one_model_does_not_starve_another() -> None:
    bench = Bench(Endpoint("one", "http://one", slots=1), turn_s=20.0)
    bench.seen("one", look("a", "b", loaded=("a",)))
    queue = [(1000.0 + i * 1.0, "a") for i in range(300)] + [(1050.0, "b")]
    world = World(bench, load_s=3.0, request_s=1.0)
    world.run(queue)
    assert world.loads == 2


@given(
    st.sampled_from(["a", "ab", "abc"]),
    st.lists(st.tuples(st.floats(1000.0, 1030.0), st.integers(0, 9)), min_size=20, max_size=50),
    st.sampled_from([(1, 1), (2, 1), (1, 3)]),
    st.sampled_from([[HEAD], [HEAD, HEAD], [HEAD, "other"]]),
)
@settings(deadline=None, max_examples=100)
def test_whatever_comes_everybody_gets_a_turn_and_experiments_never_meet_a_model(
    models: str, queue: list[tuple[float, int]], size: tuple[int, int], nodes: list[str]
) -> None:
    slots, max_loaded = size
    ends = [
        Endpoint(f"e{i}", f"http://e{i}", node_id=node, slots=slots, max_loaded=max_loaded)
        for i, node in enumerate(nodes)
    ]
    bench = Bench(*ends, turn_s=30.0)
    for end in ends:
        bench.seen(end.name, look(*models))
    world = World(bench, load_s=5.0, request_s=3.0, tick_s=0.5)
    world.run([(at_s, EXPERIMENT if n == 9 else models[n % len(models)]) for at_s, n in queue])
    assert len(world.waited_s) == len(queue)
