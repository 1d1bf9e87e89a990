"""Prompts fit their budget, keep what matters most, and say what they left out."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labd.llm.budget import Fitted, Part, TokenRate, fit, prompt_room, size_bytes
from labd.llm.errors import ContextOverflow, RequestRefused
from labd.llm.model import Message, Options
from tests.clients import ask, client_of, options
from tests.servers.fixtures import running_ollama

TEXTS = st.text(st.sampled_from("ab \nä漢😀"), max_size=1200)
PARTS = st.lists(
    st.builds(
        Part,
        name=st.sampled_from(["task", "code", "log", "notes"]),
        text=TEXTS,
        priority=st.integers(0, 3),
        shrink=st.sampled_from(["whole", "head_and_tail"]),
        role=st.sampled_from(["system", "user", "assistant"]),
        required=st.booleans(),
    ),
    max_size=6,
)


@st.composite
def rates(draw: st.DrawFn) -> TokenRate:
    rate = TokenRate()
    for size, per_token in draw(
        st.lists(st.tuples(st.integers(400, 9000), st.floats(1.0, 9.0)), max_size=12)
    ):
        rate.learn(size, max(int(size / per_token), 1))
    return rate


def attempt(parts: list[Part], budget: int, rate: TokenRate) -> Fitted | None:
    try:
        return fit(parts, budget, rate)
    except ContextOverflow:
        return None


@given(PARTS, st.integers(1, 2000), rates())
def test_what_is_fitted_fits_and_keeps_what_is_required(
    parts: list[Part], budget: int, rate: TokenRate
) -> None:
    fitted = attempt(parts, budget, rate)
    if fitted is None:
        required = [part for part in parts if part.required and part.text]
        least = sum(size_bytes(part.text) for part in required)
        # Only what has to stay may be too much; else it is because nothing could be kept.
        assert (
            not required or rate.estimate(least) + 8 * len(required) + 2 * len(required) > budget
        )
        return
    sizes = sum(size_bytes(message.content) for message in fitted.messages)
    assert rate.estimate(sizes) + 8 * len(fitted.messages) == fitted.tokens <= budget
    for part in parts:
        if part.required:
            assert part.text in fitted.text


@given(PARTS, st.integers(1, 2000), rates())
def test_what_is_lost_is_told_and_what_is_not_told_is_there(
    parts: list[Part], budget: int, rate: TokenRate
) -> None:
    fitted = attempt(parts, budget, rate)
    if fitted is None:
        return
    dropped = {name for name, _ in fitted.dropped}
    assert all(0 < share <= 1 for _, share in fitted.dropped)
    for part in parts:
        if part.name not in dropped:
            assert part.text in fitted.text
    lost = [part for part in parts if part.name in dropped]
    assert dropped <= {part.name for part in lost}
    if not dropped:
        whole = "\n\n".join(part.text for part in parts if part.text)
        assert fitted.text == whole


@given(PARTS, st.integers(1, 2000), st.integers(0, 500), rates())
def test_more_room_never_loses_more(
    parts: list[Part], budget: int, more: int, rate: TokenRate
) -> None:
    small, big = attempt(parts, budget, rate), attempt(parts, budget + more, rate)
    if small is not None:
        assert big is not None
        assert len(big.dropped) <= len(small.dropped)


def test_the_lowest_priority_goes_first_and_of_equals_the_earlier() -> None:
    parts = [
        Part("old", "o" * 500, 1),
        Part("new", "n" * 500, 1),
        Part("log", "l" * 500, 0),
        Part("task", "t" * 500, 9, required=True),
    ]
    rate = TokenRate()
    names = [
        [name for name, _ in fit(parts, budget, rate).dropped] for budget in (900, 700, 500, 300)
    ]
    assert names == [[], ["log"], ["log", "old"], ["log", "old", "new"]]
    with pytest.raises(ContextOverflow, match="takes about 208 tokens, and there is room for 100"):
        fit(parts, 100, rate)


def test_a_part_may_lose_its_middle_and_says_so_in_its_place() -> None:
    log = "first line\n" + "x" * 5000 + "\nlast line"
    parts = [Part("task", "Say why."), Part("log", log, -1, "head_and_tail")]
    fitted = fit(parts, 500, TokenRate())
    assert fitted.text.startswith("Say why.\n\nfirst line\n")
    assert fitted.text.endswith("last line")
    assert "characters cut" in fitted.text
    assert fitted.dropped[0][0] == "log"
    assert 0.6 < fitted.dropped[0][1] < 0.9
    assert fitted.tokens > 400


def test_neighbours_of_one_role_are_one_message() -> None:
    parts = [
        Part("rules", "Be short.", role="system"),
        Part("a", "one"),
        Part("nothing", ""),
        Part("b", "two"),
        Part("said", "three", role="assistant"),
    ]
    assert fit(parts, 500, TokenRate()).messages == (
        Message("system", "Be short."),
        Message("user", "one\n\ntwo"),
        Message("assistant", "three"),
    )


def test_nothing_is_no_prompt() -> None:
    with pytest.raises(ContextOverflow):
        fit([Part("a", "")], 100, TokenRate())


def test_the_room_for_a_prompt_is_the_context_less_the_reply() -> None:
    assert prompt_room(Options("m", num_ctx=8192, num_predict=2048)) == 6144
    with pytest.raises(RequestRefused, match="no room for a prompt in a context of 2048"):
        prompt_room(Options("m", num_ctx=2048, num_predict=2048))


# -- tokens


def test_estimates_lean_to_the_side_that_does_no_harm() -> None:
    rate = TokenRate()
    assert rate.estimate(1000) == 400
    assert rate.at_least(1200) == 100
    for _ in range(5):
        rate.learn(4000, 1000)
    assert 1000 < rate.estimate(4000) <= 1250
    assert 750 <= rate.at_least(4000) < 1000


def test_one_odd_prompt_makes_estimates_careful_and_short_ones_teach_nothing() -> None:
    rate = TokenRate()
    for _ in range(20):
        rate.learn(4000, 1000)
    before = rate.estimate(4000)
    rate.learn(100, 100)
    rate.learn(4000, 0)
    rate.learn(4000, 10**9)
    assert rate.estimate(4000) == before
    rate.learn(4000, 2000)
    assert rate.estimate(4000) > 2000


@given(rates(), st.integers(0, 10**6))
def test_bytes_and_tokens_agree(rate: TokenRate, number: int) -> None:
    assert rate.at_least(number) <= rate.estimate(number)
    assert rate.estimate(rate.bytes_for(number)) <= number
    assert rate.estimate(number) <= rate.estimate(number + 1)


def test_bytes_and_tokens_agree_where_their_product_is_rounded_up() -> None:
    rate = TokenRate()
    rate.learn(400, 154)
    assert rate.estimate(rate.bytes_for(77)) <= 77


def test_many_threads_may_teach_at_once() -> None:
    rate = TokenRate()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tokens: rate.learn(4000, tokens), [900, 1000, 1100] * 300))
    assert rate.estimate(4000) == pytest.approx(1100 / 0.9, abs=2)


def test_a_client_learns_from_what_the_server_counts() -> None:
    with running_ollama("--model=alpha") as node, client_of(node.url) as client:
        first = client.rate("alpha").estimate(3000)
        sentence = "the result of the test is true, and the next step is data "
        for number in range(10, 16):
            client.chat(ask(sentence * number), options(num_ctx=2048))
        text = sentence * 20
        counted = client.chat(ask(text), options(num_ctx=2048)).prompt_tokens
        learnt = client.rate("Alpha:latest").estimate(size_bytes(text))
    assert learnt != first
    assert counted <= learnt < 1.5 * counted
