"""Models are asked once for each question, whatever they answer, and within what the task may use up."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from labd.errors import ConfigError
from labd.journal import Journal
from labd.llm.budget import Part
from labd.llm.errors import (
    ContextOverflow,
    EndpointDown,
    EndpointFailed,
    EndpointMisconfigured,
    ModelError,
    ModelMissing,
    RequestRefused,
)
from labd.llm.model import Message, Options
from labd.research.allowance import Allowance
from labd.research.asking import Answer, Asker, derived_seed
from labd.research.calling import Patience
from labd.research.experiment import Cancelled
from labd.research.replies import problem_of, without_thoughts
from tests.chats import Speaks, Spoken, tokens
from tests.processes import wait_until

QUICK = Patience(delays_s=(0.0, 0.0, 0.0), total_s=30.0, first_s=30.0)
QUESTION = (
    "Which of the settings of this training should be tried with another value, and why that one?"
)
MODELS: dict[Any, str] = {"ideas": "small", "code": "small", "write": "big", "review": "big"}


class Plan(BaseModel):
    name: str
    score: float = Field(ge=0)


@pytest.fixture
def asking(tmp_path: Path) -> Callable[..., Any]:
    """Give what opens an attempt at one task again and again: same journal, new asker."""

    @contextmanager
    def attempt(speaks: Speaks | str, **over: Any) -> Iterator[tuple[Asker, Spoken]]:
        chat = Spoken(speaks, counting=over.pop("counting", True))
        with Journal(tmp_path / "journal.jsonl") as journal:
            given = {
                "models": MODELS,
                "num_ctx": 2048,
                "calls_dir": tmp_path / "calls",
                "seed": 1,
                "patience": QUICK,
                **over,
            }
            allowance = given.pop("allowance", None) or Allowance()
            yield Asker(chat, journal, allowance, **given), chat

    return attempt


def parts(text: str = QUESTION, **over: Any) -> list[Part]:
    return [Part("question", text, **over)]


def failing(*errors: ModelError | str) -> Speaks:
    """Give what says each in turn, and the last one for ever."""
    left = list(errors)

    def speaks(_: Sequence[Message], __: Options) -> str | ModelError:
        return left.pop(0) if len(left) > 1 else left[0]

    return speaks


# -- once


def test_a_question_of_an_earlier_attempt_is_not_asked_again(asking: Any) -> None:
    said = '{"name": "wider", "score": 2}'
    with asking(said) as (asker, chat):
        first = [
            asker.ask("ideas/one", "ideas", parts(), schema=Plan),
            asker.ask("x", "write", parts()),
        ]
        assert len(chat.asked) == 2
        use = asker.use()
    with asking("something else") as (asker, chat):
        again = [
            asker.ask("ideas/one", "ideas", parts(), schema=Plan),
            asker.ask("x", "write", parts()),
        ]
        assert (chat.asked, asker.use()) == ([], use)
        assert asker.allowance.tokens == sum(
            one.prompt_tokens + one.output_tokens for one in first
        )
    assert again == first
    assert first[0].value == Plan(name="wider", score=2)


@pytest.mark.parametrize(
    "over",
    [
        {"variant": 1},
        {"role": "write"},
        {"num_predict": 100},
        {"temperature": 0.5},
        {"schema": Plan},
        {"parts": parts("another question")},
    ],
    ids=lambda over: next(iter(over)),
)
def test_another_question_under_the_same_key_is_asked(asking: Any, over: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"role": "ideas", "parts": parts()}
    with asking('{"name": "a", "score": 1}') as (asker, chat):
        for given in (asked, {**asked, **over}, asked):
            asker.ask("ideas/one", **given)
    assert len(chat.asked) == 2


def test_what_was_learnt_of_tokens_does_not_make_a_resumed_attempt_ask_again(asking: Any) -> None:
    long = [Part("code", "x = 1  # a line\n" * 1500, shrink="head_and_tail"), *parts()]
    with asking("yes") as (asker, chat):
        for number in range(8):
            asker.ask(f"early-{number}", "code", parts(QUESTION * (8 + number)))
        asker.ask("late", "code", long)
        learnt = chat.texts[-1]
    with asking("no") as (asker, chat):
        asker.ask("late", "code", long)
        assert not chat.asked
        asker.ask("later", "code", long)
    # The prompt that a fresh attempt would make is another one indeed, as it knows less.
    assert len(chat.texts[0]) < len(learnt)


def test_an_answer_is_the_same_fresh_and_replayed_whatever_its_class(asking: Any) -> None:
    class Odd(BaseModel):
        pair: tuple[int, str]
        when: bytes

    said = '{"pair": [1, "a"], "when": "2024"}'
    with asking(said) as (asker, _):
        fresh = asker.ask("odd", "code", parts(), schema=Odd)
    with asking("no") as (asker, _):
        assert asker.ask("odd", "code", parts(), schema=Odd) == fresh
    assert fresh.value == Odd(pair=(1, "a"), when=b"2024")


@given(st.integers(0, 2**63), st.text(), st.integers(0, 100))
def test_seeds_are_what_servers_take_and_differ_by_variant(
    seed: int, key: str, variant: int
) -> None:
    one = derived_seed(seed, key, variant)
    assert 0 <= one < 2**31
    assert one == derived_seed(seed, key, variant) != derived_seed(seed, key, variant + 1)


# -- bad replies


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("<think>Let me see. What could it be", "empty"),
        ("a" * 3000, "repetition"),
        ("I will try again. " * 100, "repetition"),
        (" ".join(str(n * 7919 % 10007) for n in range(2500)), "cut_short"),
        ("I'm sorry, but I can't help with that request.", "refusal"),
        ("I\u2019m sorry, I cannot assist with this.", "refusal"),
        ("죄송하지만 그 요청은 도와드릴 수 없습니다.", "refusal"),
        (QUESTION, "echo"),
        (f"user: {QUESTION}\nassistant: user: {QUESTION}", "echo"),
        (QUESTION[:90], "echo"),
    ],
    ids=lambda value: value[:12],
)
def test_a_reply_of_no_use_is_an_answer_with_a_problem(asking: Any, said: str, code: str) -> None:
    with asking(said) as (asker, _):
        answer = asker.ask("one", "write", parts(), num_predict=1000)
        assert (answer.code, bool(answer.problem)) == (code, True)
        [use] = asker.use()
    assert (use.calls, use.failed) == (1, 1)


def test_one_endless_line_is_told_from_a_long_paragraph() -> None:
    words = [f"{n * 7919 % 10007:x}" for n in range(4000)]
    assert problem_of(" ".join(words), [])[0] == "endless_line"
    assert problem_of(" ".join(words[:800]), []) == ("", "")
    lines = "\n".join(" ".join(words[start : start + 8]) for start in range(0, 4000, 8))
    assert problem_of(lines, []) == ("", "")


@pytest.mark.parametrize(
    "said",
    [
        "yes",
        "Sorry for the confusion earlier: the learning rate should be doubled, as the loss still falls.",
        "Unfortunately the model overfits; more dropout helps.",
        "I'm sorry, I can't see why it fails, but:\n```python\nx = 1\n```",
        "The question is which of the settings of this training should be tried.",
        "학습률을 두 배로 늘리면 손실이 더 빨리 줄어들 것으로 예상한다. 검증 정확도로 확인한다.",
    ],
    ids=lambda said: said[:12],
)
def test_a_plain_reply_is_no_problem(said: str) -> None:
    assert problem_of(said, [Message("user", f"Answer yes or no. {QUESTION}")]) == ("", "")


def test_what_was_shown_and_comes_back_changed_or_shortened_is_no_echo() -> None:
    code = "".join(f"def step_{n}(x):\n    return x * {n}\n\n" for n in range(40))
    asked = [
        Message("user", f"Improve this file:\n```python\n{code}```\n{QUESTION}"),
        Message("assistant", f"I will make the seventh step longer. {QUESTION}"),
        Message("user", "Give it again, mended."),
    ]
    changed = f"I will make the seventh step longer. {QUESTION} As follows: " + code.replace(
        "x * 7", "x * 7.5"
    )
    for said in (f"```python\n{changed}```", f"```python\n{code}```", code[:900]):
        assert problem_of(said, asked) == ("", "")
    assert problem_of(f"{asked[0].content}\n\nSure!", asked)[0] == "echo"


def test_thinking_left_in_the_text_is_taken_away() -> None:
    assert without_thoughts("<think>\nhm <b>\n</think>\n\nThe answer.").strip() == "The answer."
    assert without_thoughts("It has <think> tags </think> inside.").startswith("It has <think>")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("no JSON at all", "bad_reply"),
        ('{"name": "a"', "bad_reply"),
        ('{"name": "a", "score": -1}', "bad_reply"),
        ('{"name": "a", "score": "nan"}', "bad_reply"),
        ('{"name": "a", "score": "inf"}', "bad_reply"),
        ('{"name": "' + "ab" * 9000, "cut_short"),
        (f'{{"name": "{"b" * 30}", "score": 1}}', ""),
    ],
    ids=lambda value: value[:24],
)
def test_an_object_fits_its_class_or_is_none(asking: Any, said: str, code: str) -> None:
    with asking(said) as (asker, chat):
        answer = asker.ask("one", "ideas", parts(), schema=Plan, num_predict=500)
    assert answer.code == code
    assert (answer.value is None) == bool(code)
    # What all rounds took is counted, also where nothing came of it.
    sent = sum(tokens(message.content) for asked in chat.asked for message in asked)
    assert answer.prompt_tokens == sent
    assert answer.output_tokens == sum(min(tokens(said), 500) for _ in chat.asked)


def test_what_a_reply_cost_that_is_cut_in_its_repair_is_counted_whole(asking: Any) -> None:
    long = '{"name": "' + "ab" * 9000
    with asking(failing("no JSON", long)) as (asker, chat):
        answer = asker.ask("one", "ideas", parts(), schema=Plan, num_predict=100)
    sent = sum(tokens(message.content) for asked in chat.asked for message in asked)
    assert (answer.code, len(chat.asked)) == ("cut_short", 2)
    assert (answer.prompt_tokens, answer.output_tokens) == (sent, tokens("no JSON") + 100)


def test_the_description_of_a_class_has_room_in_the_prompt(asking: Any) -> None:
    class Wide(BaseModel):
        name: str = Field(description="as it is " * 300)

    def speaks(messages: Sequence[Message], options: Options) -> str | ModelError:
        size = sum(len(message.content.encode()) for message in messages) / 2.5
        fits = size <= options.num_ctx - options.num_predict
        return '{"name": "a"}' if fits else ContextOverflow("too long")

    with asking(speaks) as (asker, chat):
        long = [Part("code", "x = 1  # a line\n" * 3000, shrink="head_and_tail"), *parts()]
        assert asker.ask("one", "code", long, schema=Wide, num_predict=100).problem == ""
    assert len(chat.asked) == 1


def test_texts_with_halves_of_characters_do_no_harm(asking: Any) -> None:
    with asking("half \ud83d a character") as (asker, _):
        answer = asker.ask("one", "write", parts(f"{QUESTION} \udc00"))
    assert (answer.problem, answer.text) == ("", "half ? a character")


def test_refused_requests_and_prompts_that_can_not_fit_are_answers(asking: Any) -> None:
    with asking(failing(RequestRefused("temperature is too hot"))) as (asker, chat):
        refused = asker.ask("one", "write", parts())
        too_long = asker.ask("two", "write", parts(QUESTION * 200, required=True))
    assert (refused.code, too_long.code, len(chat.asked)) == (
        "request_refused",
        "context_overflow",
        1,
    )


@pytest.mark.parametrize("bytes_per_token", [0.6, 1, 2])
def test_a_prompt_that_proves_too_long_is_shortened(asking: Any, bytes_per_token: float) -> None:
    def speaks(messages: Sequence[Message], options: Options) -> str | ModelError:
        size = sum(len(message.content.encode()) for message in messages) / bytes_per_token
        return (
            ContextOverflow("too long") if size > options.num_ctx - options.num_predict else "fine"
        )

    with asking(speaks) as (asker, chat):
        long = [Part("code", "x = 1  # a line\n" * 3000, shrink="head_and_tail"), *parts()]
        answers = [asker.ask(f"q{n}", "code", long, num_predict=100) for n in range(3)]
        assert [answer.problem for answer in answers] == ["", "", ""]
        first, asked = asker.use()[0].calls, len(chat.asked)
        assert all(QUESTION in text for text in chat.texts)
    assert first == 3
    assert asked < 12


# -- bad servers


def test_a_server_that_dies_now_and_then_costs_nothing(asking: Any) -> None:
    calls = iter(range(1, 1000))

    def speaks(_: Sequence[Message], __: Options) -> str | ModelError:
        return EndpointDown("the connection broke") if next(calls) % 2 == 1 else "fine"

    with asking(speaks) as (asker, chat):
        answers = [asker.ask(f"q{n}", "write", parts()) for n in range(10)]
        assert asker.use()[0].failed == 0
    assert {answer.text for answer in answers} == {"fine"}
    assert len(chat.asked) == 20


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (EndpointDown("nobody", fix="Start it"), 4),
        (EndpointFailed("CUDA error"), 4),
        (ModelMissing("no such model", fix="ollama pull small"), 1),
        (EndpointMisconfigured("401"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_was_never_there_is_an_error_and_nothing_is_recorded(
    asking: Any, tmp_path: Path, error: ModelError, tries: int
) -> None:
    with asking(failing(error)) as (asker, chat):
        with pytest.raises(type(error)) as caught:
            asker.ask("one", "ideas", parts())
        assert caught.value.retryable == error.retryable
        assert len(chat.asked) == tries
    assert not (tmp_path / "journal.jsonl").read_text()
    with asking("there again") as (asker, _):
        assert asker.ask("one", "ideas", parts()).text == "there again"


def test_each_model_has_to_have_been_there_once(asking: Any) -> None:
    def speaks(_: Sequence[Message], options: Options) -> str | ModelError:
        return "fine" if options.model == "small" else ModelMissing("no such model")

    with asking(speaks) as (asker, _):
        assert asker.ask("one", "ideas", parts()).text == "fine"
        with pytest.raises(ModelMissing):
            asker.ask("two", "write", parts())


def test_a_model_that_is_gone_later_is_an_answer_and_is_waited_for_once_only(asking: Any) -> None:
    down = EndpointDown("the connection was refused")
    said = failing("fine", *[down] * 5, "fine again")
    with asking(said) as (asker, chat):
        codes = [asker.ask(f"q{n}", "write", parts()).code for n in range(4)]
        assert codes == ["", "endpoint_down", "endpoint_down", ""]
        # Once, four times, once, and once with success.
        assert len(chat.asked) == 7
        assert asker.use()[0].failed == 2


def test_a_pause_ends_when_the_work_is_called_off(asking: Any) -> None:
    cancelled = threading.Event()
    patience = Patience(delays_s=(600.0,), total_s=600.0, first_s=600.0)
    with asking(failing(EndpointDown("x")), cancelled=cancelled, patience=patience) as (
        asker,
        chat,
    ):

        def call_off() -> None:
            wait_until(lambda: bool(chat.asked))
            cancelled.set()

        threading.Thread(target=call_off, daemon=True).start()
        with pytest.raises(Cancelled):
            asker.ask("one", "ideas", parts())


def test_a_request_that_nobody_takes_any_more_is_given_up(asking: Any) -> None:
    def speaks(_: Sequence[Message], __: Options) -> str | ModelError:
        return "fine" if len(chat.asked) == 1 else EndpointDown("the connection was refused")

    quick = Patience(delays_s=(), total_s=30.0, first_s=30.0, probe_s=0.2)
    with asking(speaks, patience=quick) as (asker, chat):
        assert asker.ask("one", "write", parts()).problem == ""
        assert asker.ask("two", "write", parts()).code == "endpoint_down"
        chat.chat = Slow("", takes=False).chat
        answer = asker.ask("three", "write", parts())
    assert (answer.code, answer.problem) == ("endpoint_down", "no server took the request")


def test_a_model_that_is_gone_for_several_questions_sends_the_task_back(asking: Any) -> None:
    def speaks(_: Sequence[Message], __: Options) -> str | ModelError:
        return "fine" if len(chat.asked) == 1 else EndpointDown("the connection was refused")

    quick = Patience(delays_s=(), total_s=30.0, first_s=30.0, probe_s=0.2)
    with asking(speaks, patience=quick) as (asker, chat):
        assert asker.ask("one", "write", parts()).problem == ""
        assert asker.ask("two", "write", parts()).code == "endpoint_down"
        assert asker.ask("three", "write", parts()).code == "endpoint_down"
        with pytest.raises(EndpointDown) as caught:
            asker.ask("four", "write", parts())
    assert caught.value.retryable


class Slow(Spoken):
    """Takes for ever, until the request is given up; `takes`: it begins to work on it."""

    def __init__(self, speaks: str, *, takes: bool = True) -> None:
        super().__init__(speaks)
        self._takes = takes

    def chat(self, *args: Any, cancel: Any = None, **more: Any) -> Any:
        over = threading.Event()
        cancel.attach(over.set)
        if self._takes:
            more["on_start"]()
        self.asked.append(args[0])
        over.wait(60)
        cancel.check()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Callable[..., Asker]]:
    with Journal(tmp_path / "journal.jsonl") as journal:
        yield lambda allowance, **over: Asker(
            Slow(""),
            journal,
            allowance,
            models=MODELS,
            num_ctx=2048,
            calls_dir=tmp_path / "calls",
            seed=1,
            patience=QUICK,
            **over,
        )


def test_a_call_ends_at_once_when_the_work_is_called_off_and_is_not_recorded(
    slow: Callable[..., Asker], tmp_path: Path
) -> None:
    cancelled = threading.Event()
    asker = slow(Allowance(), cancelled=cancelled)
    threading.Timer(0.1, cancelled.set).start()
    with pytest.raises(Cancelled):
        asker.ask("one", "ideas", parts())
    with pytest.raises(Cancelled):
        asker.ask("two", "ideas", parts())
    assert not (tmp_path / "journal.jsonl").read_text()


def test_a_call_ends_when_the_time_is_over(slow: Callable[..., Asker]) -> None:
    asker = slow(Allowance(deadline=time.monotonic() + 0.3))
    answer = asker.ask("one", "ideas", parts())
    assert (answer.code, answer.problem) == (
        "allowance",
        "The time that the task has was used up.",
    )
    assert asker.use()[0].hours > 0


# -- what may be used up


def test_nothing_is_asked_when_the_tokens_are_used_up_and_that_is_on_record(asking: Any) -> None:
    with asking("fine", allowance=Allowance(max_tokens_total=60)) as (asker, chat):
        answers = [asker.ask(f"q{n}", "write", parts()) for n in range(5)]
        codes = [answer.code for answer in answers]
        assert codes == ["", "", "", "allowance", "allowance"]
        assert (len(chat.asked), asker.use()[0].calls) == (3, 3)
        assert not any(char.isdigit() for char in answers[-1].problem)
    with asking("fine", allowance=Allowance(max_tokens_total=60)) as (asker, chat):
        # In another order, as threads may have it: still what is on record.
        again = [asker.ask(f"q{n}", "write", parts()) for n in reversed(range(5))]
        assert (again[::-1], chat.asked) == (answers, [])


def test_replies_of_no_use_use_up_the_tokens_too(asking: Any) -> None:
    with asking("no JSON", allowance=Allowance(max_tokens_total=2000)) as (asker, chat):
        answers = [asker.ask(f"q{n}", "ideas", parts(), schema=Plan) for n in range(50)]
        assert {answers[0].code, answers[-1].code} == {"bad_reply", "allowance"}
        assert asker.allowance.tokens == sum(
            map(tokens, (m.content for a in chat.asked for m in a))
        ) + (len(chat.asked) * tokens("no JSON"))


@pytest.mark.parametrize("schema", [None, Plan], ids=["fine", "of-no-use"])
def test_tokens_that_no_server_counts_are_used_up_too(
    asking: Any, schema: type[Plan] | None
) -> None:
    used, paid = list[tuple[int, int]](), list[int]()
    for _ in range(2):
        with asking("fine", allowance=Allowance(2000), counting=False) as (asker, chat):
            answers = [asker.ask(f"q{n}", "write", parts(), schema=schema) for n in range(80)]
            assert answers[-1].code == "allowance"
            used.append((asker.allowance.tokens, asker.use()[0].prompt_tokens))
            paid.append(len(chat.asked))
    assert used[0] == used[1]
    assert (used[0][0] >= 2000, used[0][1] > 0) == (True, True)
    assert (paid[0] > 0, paid[1]) == (True, 0)


def test_a_question_that_is_asked_twice_is_paid_for_once(asking: Any) -> None:
    with asking("fine") as (asker, _):
        one = asker.ask("one", "write", parts())
        asker.ask("one", "write", parts())
        assert asker.allowance.tokens == one.prompt_tokens + one.output_tokens


def test_an_allowance_names_what_is_used_up_and_knows_shares() -> None:
    now = [100.0]
    it = Allowance(1000, 2, 200.0, clock=lambda: now[0])
    assert (it.out_of(), it.runs_left, it.seconds_left(0.5)) == ("", 2, 50.0)
    it.spend_tokens(700)
    assert it.out_of() == ""
    assert it.out_of(0.7).startswith("The part of the tokens")
    it.spend_run()
    it.spend_run()
    assert it.out_of() == "All runs that the task may make (`max_runs`) were made."
    assert it.out_of(of=("tokens", "time")) == ""
    now[0] = 150.0
    assert it.out_of(0.5, of=("time",)).startswith("The part of the time")
    assert it.out_of(0.51, of=("time",)) == ""
    now[0] = 200.0
    assert it.out_of() == "The time that the task has was used up."
    assert Allowance().out_of() == ""
    assert Allowance().seconds_left() is None


def test_an_allowance_loses_no_count_to_threads() -> None:
    it = Allowance()

    def spend() -> None:
        for _ in range(20_000):
            it.spend_tokens(1)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert it.tokens == 80_000


# -- what is kept


def test_the_whole_prompt_and_reply_lie_in_a_file(asking: Any, tmp_path: Path) -> None:
    with asking("fine") as (asker, _):
        asker.ask(
            "trial/trial-001/edit", "code", [Part("system", "Be brief.", role="system"), *parts()]
        )
        asker.ask("trial/trial-001/edit", "code", parts(), variant=2)
    kept = json.loads((tmp_path / "calls/trial/trial-001/edit.json").read_text())
    assert kept["messages"] == [["system", "Be brief."], ["user", QUESTION]]
    assert (kept["text"], kept["model"], kept["role"]) == ("fine", "small", "code")
    assert (tmp_path / "calls/trial/trial-001/edit.2.json").exists()


@pytest.mark.parametrize("key", ["../up", "/etc/x", "a//b", "a/../b", "", "a b", ".hidden", "A"])
def test_a_key_can_not_name_a_file_elsewhere(asking: Any, key: str) -> None:
    with asking("fine") as (asker, chat):
        with pytest.raises(ConfigError):
            asker.ask(key, "code", parts())
        assert not chat.asked


def test_use_tells_roles_apart_and_does_not_depend_on_the_order(asking: Any) -> None:
    asked = [("a", "ideas"), ("b", "code"), ("c", "code"), ("d", "write")]
    found = []
    for order in (asked, asked[::-1]):
        with asking("fine") as (asker, _):
            for key, role in order:
                asker.ask(key, role, parts())
                asker.ask(key, role, parts())
            found.append(asker.use())
    assert found[0] == found[1]
    shown = [(one.model, one.role, one.calls) for one in found[0]]
    assert shown == [("big", "write", 1), ("small", "code", 2), ("small", "ideas", 1)]
    assert found[0][0].digest == "d" * 64


def test_the_journal_takes_a_reply_of_any_size(asking: Any, tmp_path: Path) -> None:
    def speaks(_: Sequence[Message], __: Options) -> str:
        return "\n".join(f"{n * 7919 % 1000003:x} 한국어" for n in range(60_000))

    with asking(speaks, num_ctx=10_000_000) as (asker, _):
        answer: Answer = asker.ask("one", "code", parts(), num_predict=5_000_000)
    assert answer.code == "too_long"
    assert len(answer.text) < 100_000
    assert (tmp_path / "journal.jsonl").stat().st_size < 600_000
    assert (tmp_path / "calls/one.json").stat().st_size < 3_000_000
