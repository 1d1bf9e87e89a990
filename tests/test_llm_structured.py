"""Data comes out of a model as an object that fits its schema, or not at all."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from labd.errors import ConfigError
from labd.llm.client import Client
from labd.llm.errors import BadReply, ContextOverflow, CutShort, RequestRefused
from labd.llm.model import Cancel, Message, Options, Reply
from labd.llm.structured import MAX_DEPTH, RawChat, Shape, Unfit, chat_structured, read_json
from tests.clients import ask, client_of, dropping, options
from tests.servers.fixtures import RunningServer, running_llama, running_ollama


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid")
    x: int
    y: int


class Idea(BaseModel):
    title: str = Field(max_length=60)
    kind: Literal["new", "old"]
    score: float
    points: list[Point] = Field(max_length=2)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def node() -> Iterator[RunningServer]:
    with running_ollama("--model=alpha", "--model=deep,thinking") as server:
        yield server


@pytest.fixture
def client(node: RunningServer) -> Iterator[Client]:
    with client_of(node.url) as made:
        yield made


def roomy(**over: Any) -> Options:
    return options(num_ctx=2048, num_predict=900, **over)


class Listening:
    """Hands each request on, and keeps what the model was told."""

    def __init__(self, chat: RawChat, *, without_schema: Callable[[int], bool]) -> None:
        self._chat = chat
        self._without_schema = without_schema
        self.asked: list[Sequence[Message]] = []

    def __call__(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        schema: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
    ) -> Reply:
        self.asked.append(messages)
        sent = None if self._without_schema(len(self.asked)) else schema
        return self._chat(messages, options, schema=sent, cancel=cancel)


# -- with real models


@pytest.mark.parametrize("model", ["alpha", "deep"])
def test_a_pydantic_model_goes_in_and_an_object_of_it_comes_out(
    client: Client, model: str
) -> None:
    for seed in range(5):
        reply = chat_structured(client.chat, ask(), roomy(model=model, seed=seed), Idea)
        assert isinstance(reply.value, Idea)
        assert reply.repairs == 0


def test_a_json_schema_goes_in_and_data_that_fits_comes_out() -> None:
    with running_llama("--ctx=2048") as llama, client_of(llama.url, "openai") as client:
        reply = chat_structured(client.chat, ask(), roomy(model="tiny", seed=1), SCHEMA)
    assert set(reply.value) == {"name", "n"}
    assert isinstance(reply.value["n"], int)


def test_the_schema_is_in_the_prompt_too_beside_the_system_message(client: Client) -> None:
    listening = Listening(client.chat, without_schema=lambda _: False)
    chat_structured(listening, ask("hi"), roomy(seed=1), SCHEMA)
    chat_structured(listening, [Message("system", "Be short."), *ask("hi")], roomy(seed=1), SCHEMA)
    first, second = listening.asked
    assert [message.role for message in first] == ["system", "user"]
    assert [message.role for message in second] == ["system", "user"]
    assert second[0].content.startswith("Be short.")
    assert all('"required":["name","n"]' in each[0].content for each in (first, second))


def test_a_reply_that_num_predict_cut_is_not_asked_for_again(client: Client) -> None:
    listening = Listening(client.chat, without_schema=lambda _: False)
    with pytest.raises(CutShort) as caught:
        chat_structured(listening, ask(), options(num_predict=3), SCHEMA)
    assert len(listening.asked) == 1
    assert caught.value.text


def test_a_model_that_keeps_to_nothing_fails_after_its_repairs_with_its_last_words(
    node: RunningServer,
) -> None:
    with dropping(node.url, "format") as url, client_of(url) as client:
        listening = Listening(client.chat, without_schema=lambda _: False)
        with pytest.raises(BadReply, match="after it was shown its error 2 times") as caught:
            chat_structured(listening, ask(), roomy(seed=4), SCHEMA)
    assert len(listening.asked) == 3
    assert caught.value.text
    assert not caught.value.retryable


def test_a_model_is_shown_its_own_reply_and_the_error_and_may_mend_it(client: Client) -> None:
    listening = Listening(client.chat, without_schema=lambda number: number == 1)
    reply = chat_structured(listening, ask("hi"), roomy(seed=4), SCHEMA)
    assert reply.repairs == 1
    first, second = listening.asked
    assert second[: len(first)] == first
    assert [message.role for message in second[len(first) :]] == ["assistant", "user"]
    assert second[-2].content
    assert "does not fit" in second[-1].content


def test_no_repairs_means_one_try(client: Client) -> None:
    listening = Listening(client.chat, without_schema=lambda _: True)
    with pytest.raises(BadReply):
        chat_structured(listening, ask(), roomy(seed=4), SCHEMA, max_repairs=0)
    assert len(listening.asked) == 1


def test_a_repair_that_does_not_fit_the_context_is_a_bad_reply_and_a_prompt_that_does_not_is_not(
    client: Client,
) -> None:
    listening = Listening(client.chat, without_schema=lambda _: True)
    long = ask("a b c " * 100)
    with pytest.raises(BadReply):
        chat_structured(listening, long, options(num_ctx=768, num_predict=300, seed=4), SCHEMA)
    with pytest.raises(ContextOverflow):
        chat_structured(client.chat, ask("a b c " * 900), options(), SCHEMA)


def test_a_schema_that_the_server_can_not_turn_into_rules_is_left_to_the_prompt() -> None:
    # A valid schema, but more repetitions than llama.cpp's grammars may have.
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 10**9}
    with running_llama("--ctx=2048") as llama, client_of(llama.url, "openai") as client:
        with pytest.raises(RequestRefused, match="failed to parse grammar"):
            client.chat(ask(), roomy(model="tiny"), schema=schema)
        with pytest.raises(BadReply):
            chat_structured(client.chat, ask(), roomy(model="tiny", seed=1), schema, max_repairs=1)


# -- reading what a model wrote


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a", "n": 1}',
        ' \n{"name": "a", "n": 1}\n ',
        '```json\n{"name": "a", "n": 1}\n```',
        'Here you are:\n```\n{"name": "a", "n": 1}\n```\nAnything else?',
        'Sure [1]! The object {"name": "a", "n": 1} fits, does it not? {"n": 2}',
        '{"n": 3} is wrong, {"name": "a", "n": 1} is right',
    ],
)
def test_text_around_the_object_is_passed_over(text: str) -> None:
    assert Shape(SCHEMA).read(text) == {"name": "a", "n": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("I can't do that.", "not valid JSON"),
        ('{"name": "a", "n": 1', "not valid JSON"),
        ('{"name": "a", "n": "1"}', r"\$\.n: '1' is not of type 'integer'"),
        ('{"name": "a"}', "'n' is a required property"),
        ('{"name": "a", "n": 1, "m": 2}', "Additional properties are not allowed"),
        ('{"name": "a", "n": 1, "n": 2}', "the key 'n' is there twice"),
        ('{"name": "a", "n": NaN}', "NaN is no JSON number"),
        ('{"name": "a", "n": -Infinity}', "-Infinity is no JSON number"),
        ('{"name": "a", "n": 1e999}', "the number 1e999 is too big"),
        ('{"name": "\\ud800", "n": 1}', "half a character"),
        ("[" * 100_000, "deep"),
        ("[" * 70 + "]" * 70, "nested more than 64 deep"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
    ],
)
def test_what_does_not_fit_is_told_in_words_for_the_model(text: str, words: str) -> None:
    with pytest.raises(Unfit, match=words) as caught:
        Shape(SCHEMA).read(text)
    assert len(str(caught.value)) < 800


def test_pydantic_reads_as_it_reads_json_and_says_where_it_does_not() -> None:
    class Day(BaseModel):
        model_config = ConfigDict(strict=True)
        on: date
        pair: tuple[int, int]

    shape = Shape(Day)
    assert shape.read('{"on": "2026-11-26", "pair": [1, 2]}').on == date(2026, 11, 26)
    with pytest.raises(Unfit, match=r"pair\.1: .*integer"):
        shape.read('{"on": "2026-11-26", "pair": [1, "b"]}')


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(JSON_VALUES)
@settings(deadline=None)
def test_all_json_is_read_as_it_was_written(value: Any) -> None:
    text = json.dumps(value)
    if "\\ud" not in text or json.loads(text) == value:
        assert read_json(text) == value


# -- schemas that people wrote


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "'strin' is not valid"),
        ({"properties": []}, "is not of type 'object'"),
        ({"$ref": "https://example.com/a.json"}, "refers to https://example.com/a.json"),
        ({"items": [{"$ref": "file:///etc/passwd"}]}, "refers to file:///etc/passwd"),
        ({"$defs": {"a": {"$dynamicRef": "other#a"}}}, "refers to other#a"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "draft-07"),
        (nested(MAX_DEPTH + 1), "nested more than"),
        ({"enum": ["x" * 70_000]}, "more than 65536"),
        ({"enum": [{1, 2}]}, "not JSON"),
    ],
)
def test_a_schema_that_can_not_be_used_is_refused_before_anything_is_asked(
    schema: dict[str, Any], words: str
) -> None:
    def nobody(*_: Any, **__: Any) -> Reply:
        raise AssertionError

    with pytest.raises(ConfigError, match=words) as caught:
        chat_structured(nobody, ask(), options(), schema)
    assert caught.value.fix


def test_a_schema_may_refer_to_its_own_parts_but_not_round_in_circles() -> None:
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                "required": ["kids"],
            }
        },
    }
    assert Shape(tree).read('{"kids": [{"kids": []}]}')
    with pytest.raises(Unfit, match=r"kids\[0\]: 'kids' is a required property"):
        Shape(tree).read('{"kids": [{}]}')
    with pytest.raises(ConfigError, match="refers to itself without end"):
        Shape({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}).read("1")
