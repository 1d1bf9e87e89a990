"""What the scripted server's models do, and that asking them never does worse than give a problem."""

import ast
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from labd.journal import Journal
from labd.llm.budget import Part
from labd.llm.model import Chat
from labd.llm.structured import Shape
from labd.research.allowance import Allowance
from labd.research.asking import Asker
from labd.research.calling import Patience
from tests.servers.filling import fitting
from tests.servers.fixtures import RunningServer, running_ollama, running_scripted
from tests.servers.scripted import speaker
from tests.servers.speaking import BEHAVIOURS, PAYLOADS, Asked
from tests.test_llm_pool import brokered, endpoint, pool

QUICK = Patience(delays_s=(0.1, 0.2, 0.4, 0.8, 1.6, 3.0))
QUESTION = (
    "Improve this file, and say what you expect of that and why nobody has done so before.\n"
    "model.py\n```python\nrate = 0.1\n```"
)


class Idea(BaseModel):
    title: str = Field(min_length=3, max_length=100)
    hypothesis: str = ""
    score: int = Field(ge=1, le=10)
    kind: Literal["new", "old"]


class Ideas(BaseModel):
    ideas: list[Idea] = Field(min_length=1, max_length=5)
    remark: str | None = None


@pytest.fixture(scope="module")
def node() -> Iterator[RunningServer]:
    names = [f"--model={name}" for name in BEHAVIOURS if name not in {"named", "crashes"}]
    with running_scripted("--behaviour=named", "--max-loaded=50", *names) as server:
        yield server


@pytest.fixture(scope="module")
def lent(node: RunningServer) -> Iterator[Chat]:
    with brokered(endpoint(node, slots=4, max_loaded=50)) as call, pool(call) as it:
        yield it


@contextmanager
def asking(chat: Chat, model: str, directory: Path) -> Iterator[Asker]:
    with Journal(directory / "journal.jsonl") as journal:
        yield Asker(
            chat,
            journal,
            Allowance(),
            models=dict.fromkeys(("ideas", "code", "write", "review"), model),
            num_ctx=8192,
            calls_dir=directory / "calls",
            seed=3,
            patience=QUICK,
        )


def ask_both(asker: Asker, number: int) -> tuple[str, str]:
    """Ask for an object and for a text; give the codes."""
    question = [Part("question", QUESTION)]
    thing = asker.ask(f"ideas-{number}", "ideas", question, schema=Ideas, num_predict=1500)
    text = asker.ask(f"code-{number}", "code", question, num_predict=1500)
    assert isinstance(thing.value, Ideas) != bool(thing.code)
    assert bool(thing.problem) == bool(thing.code)
    return thing.code, text.code


@pytest.mark.parametrize(
    ("model", "codes"),
    [
        ("sane", ("", "")),
        ("garbage", ("bad_reply", "")),
        ("empty", ("bad_reply", "empty")),
        ("blank", ("bad_reply", "empty")),
        ("echo", ("bad_reply", "echo")),
        ("half-json", ("bad_reply", "")),
        ("endless-line", ("bad_reply", "repetition")),
        ("endless", ("cut_short", "cut_short")),
        ("refusal", ("bad_reply", "refusal")),
        ("bad-request", ("request_refused", "request_refused")),
        ("lies", ("", "")),
        ("malicious", ("", "")),
        ("hanging-code", ("", "")),
        ("dies", ("", "")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_a_model_says_is_an_answer_and_nothing_is_raised(
    lent: Chat, tmp_path: Path, model: str, codes: tuple[str, str]
) -> None:
    with asking(lent, model, tmp_path) as asker:
        assert [ask_both(asker, number) for number in range(2)] == [codes, codes]
        assert sum(one.calls for one in asker.use()) == 4


def test_a_model_of_all_ways_by_turns_is_borne_with(lent: Chat, tmp_path: Path) -> None:
    with asking(lent, "mixed", tmp_path) as asker:
        codes = {code for number in range(8) for code in ask_both(asker, number)}
    assert {"", "bad_reply"} < codes


def test_a_server_that_crashes_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    with ExitStack() as held:
        server = held.enter_context(running_scripted("--behaviour=crashes:3", "--restarts"))
        call = held.enter_context(brokered(endpoint(server, slots=4)))
        asker = held.enter_context(asking(held.enter_context(pool(call)), "scripted", tmp_path))
        assert [ask_both(asker, number) for number in range(3)] == [("", "")] * 3


def test_a_model_of_random_weights_is_borne_with(tmp_path: Path) -> None:
    with ExitStack() as held:
        server = held.enter_context(running_ollama("--model=alpha"))
        call = held.enter_context(brokered(endpoint(server)))
        asker = held.enter_context(asking(held.enter_context(pool(call)), "alpha", tmp_path))
        for number in range(3):
            ask_both(asker, number)
        [code, ideas] = asker.use()
        assert (code.calls, ideas.calls) == (3, 3)
        assert min(code.output_tokens, ideas.output_tokens) > 0


def test_a_script_answers_by_its_rules_also_where_the_connection_breaks(tmp_path: Path) -> None:
    script = tmp_path / "rules.py"
    script.write_text(
        "import json\n"
        "def reply(messages, schema, role_hint):\n"
        "    if schema is None:\n"
        "        return f'{role_hint}: {len(messages)}'\n"
        "    return json.dumps({'ideas': [{'title': role_hint, 'score': 7, 'kind': 'new'}]})\n"
    )
    with ExitStack() as held:
        server = held.enter_context(
            running_scripted(f"--script={script}", "--behaviour=dies:2", "--model=one")
        )
        call = held.enter_context(brokered(endpoint(server, slots=4)))
        asker = held.enter_context(asking(held.enter_context(pool(call)), "one", tmp_path))
        question = [Part("question", QUESTION)]
        ideas = asker.ask("a", "ideas", question, schema=Ideas).value
        assert ideas.ideas[0] == Idea(title="ideas", score=7, kind="new")
        assert asker.ask("b", "code", question).text == "code: 1"
        assert (
            asker.ask("c", "write", [Part("question", "Say something about rates.")]).text
            == "write: 1"
        )


def test_what_can_not_be_scripted_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("")
    for behaviour, script in (("no-such", None), ("garbage", empty), ("sane", empty)):
        with pytest.raises(ValueError, match=r"behaviour|script|reply"):
            speaker(behaviour, script)


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_malicious_code_is_python_and_spares_who_runs_it_outside_a_sandbox(name: str) -> None:
    number = list(PAYLOADS).index(name)
    asked = Asked([{"role": "user", "content": QUESTION}], None, "m", number, 10_000)
    said = BEHAVIOURS["malicious"][0](asked, 0)
    assert said.startswith("model.py\n```python\n")
    code = ast.parse(said.split("```python\n")[1].removesuffix("```\n"))
    guard = code.body[1]
    assert isinstance(guard, ast.If)
    assert "sys.exit" in ast.unparse(guard)


@pytest.mark.parametrize("model", [Ideas, Idea], ids=lambda model: model.__name__)
def test_data_made_for_a_schema_fits_it(model: type[BaseModel]) -> None:
    made: Any = fitting(model.model_json_schema(), "a text " * 100)
    assert isinstance(Shape(model).read(json.dumps(made)), model)
