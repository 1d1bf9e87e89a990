"""Tasks of prompts: what their input may be, what is asked and how often, what is left after every kind of end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from labd import worker
from labd.cli.base import app
from labd.command.places import Fence
from labd.drop import check_drop
from labd.errors import TaskFileError
from labd.lab import Lab
from labd.llm.broker import Broker
from labd.llm.desk import Rules
from labd.llm.errors import (
    BadReply,
    ContextOverflow,
    CutShort,
    EndpointDown,
    EndpointMisconfigured,
    ModelError,
    ModelMissing,
    ModelRefused,
    RequestRefused,
)
from labd.llm.hands import DirectHands
from labd.llm.model import Cancel, Chat, Endpoint, Message, Options, Reply
from labd.llm.pool import Pool
from labd.log import file_logger
from labd.prompts.crew import MAX_THREADS, Crew
from labd.prompts.lines import InputError, open_prompts
from labd.prompts.pace import Pace
from labd.prompts.policy import Again, Over, Own, Policy, Ticket
from labd.prompts.run import Patience, Report, options_of, run_prompts
from labd.prompts.wording import Renderer, RenderError, RenderLimits
from labd.settings import load_home
from labd.task import PromptOptions, parse_task
from tests.conftest import REPO
from tests.processes import wait_until
from tests.servers.fixtures import RunningServer, running_ollama

DEAD_AFTER_S = 60.0


class Local:
    """Answers by itself: a `Chat` whose endpoint is a function. Has `slots`; counts what it is asked."""

    def __init__(
        self, answer: Callable[[str, int], str | ModelError] | None = None, slots: int = 4
    ) -> None:
        self._answer = answer or (lambda text, _: f"re: {text}")
        self._free = threading.Semaphore(slots)
        self._lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.sent: list[Sequence[Message]] = []
        self.options: list[Options] = []
        self.following: list[int] = []

    def chat(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        schema: type[BaseModel] | Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
        on_start: Callable[[], None] | None = None,
        following: int = 0,
    ) -> Reply:
        with self._free:
            if cancel is not None:
                cancel.check()
            if on_start is not None:
                on_start()
            text = messages[-1].content
            with self._lock:
                self.asked[text] += 1
                count = self.asked[text]
                self.sent.append(messages)
                self.options.append(options)
                self.following.append(following)
            said = self._answer(text, count)
        if isinstance(said, ModelError):
            raise said
        return Reply(
            said,
            options.model,
            "local",
            "stop",
            value={"said": said} if schema else None,
            prompt_tokens=3,
            output_tokens=5,
        )


class Held:
    """Answers nothing until the caller gives up, as a server that loads for ever."""

    def __init__(self, slots: int = 4) -> None:
        self.begun = 0
        self._slots = slots

    def chat(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        schema: object = None,
        cancel: Cancel | None = None,
        on_start: Callable[[], None] | None = None,
        following: int = 0,
    ) -> Reply:
        gone = threading.Event()
        assert cancel is not None
        cancel.attach(gone.set)
        self.begun += 1
        if self.begun <= self._slots and on_start is not None:
            on_start()
        assert gone.wait(DEAD_AFTER_S)
        cancel.check()
        raise AssertionError(messages, options, schema, following)


class Place:
    """A lab's home with an input; runs tasks of prompts without a daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("data", "results", "spool", "config"):
            (root / name).mkdir()
        self.home = load_home(root)
        self.input = root / "data" / "in.jsonl"
        self.told: list[tuple[str, int, int, str]] = []

    def write(self, *lines: object, raw: bytes | None = None) -> None:
        """Write the input: each line as JSON, or the bytes themselves."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self.input.write_bytes(text.encode() if raw is None else raw)

    def text(self, **keys: Any) -> str:
        given = {"kind": "prompts", "input": "in.jsonl", "model": "m", **keys}
        return yaml.safe_dump(
            {key: value for key, value in given.items() if value is not None}, sort_keys=False
        )

    def results(self, task_id: str = "x") -> Path:
        directory = self.home.results / task_id
        directory.mkdir(exist_ok=True)
        return directory

    def run(
        self,
        chat: Chat,
        *,
        task_id: str = "x",
        timeout_s: float = 600.0,
        silence_s: float = 300.0,
        default_model: str = "",
        **keys: Any,
    ) -> Report:
        """Run an attempt at the task of these keys."""
        now_s = time.monotonic()
        patience = Patience(Patience.within(now_s, timeout_s).deadline_s, timeout_s, silence_s)
        with file_logger(self.results(task_id) / "log.jsonl") as log:
            return run_prompts(
                parse_task(self.text(**keys).encode(), "x.yaml"),
                chat,
                where="x.yaml",
                results=self.results(task_id),
                fence=Fence(self.home.inputs, self.home.forbidden, self.home.results),
                defaults=Options(default_model),
                patience=patience,
                progress=lambda *told: self.told.append(told),
                log=log,
            )

    def lines(self, name: str = "output.jsonl", task_id: str = "x") -> list[dict[str, Any]]:
        text = (self.results(task_id) / name).read_text()
        return [json.loads(line) for line in text.splitlines()]

    def refused(self, chat: Chat | None = None, **keys: Any) -> list[str]:
        """Give what is said of an input of which nothing may be asked."""
        never = Local()
        with pytest.raises(TaskFileError) as caught:
            self.run(chat or never, **keys)
        assert not never.asked
        return str(caught.value).replace(f"{self.input}:", "").splitlines()

    def dropped(self, text: str) -> str:
        """Give what is said of a task at the drop, or an empty text."""
        try:
            check_drop(parse_task(text.encode(), "x.yaml"), "x.yaml", self.home)
        except TaskFileError as error:
            return str(error)
        return ""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def code(report: Report) -> str:
    """Give the code of a failed attempt, with a ``+`` where it is tried again."""
    assert report.error is not None
    return str(report.error["code"]) + ("+" if report.error["retryable"] else "")


# --- the input


def test_each_line_is_asked_once_and_the_output_is_in_the_inputs_order(place: Place) -> None:
    place.write(
        "a text",
        {"prompt": "an object", "id": "own"},
        {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]},
        {"prompt": "häßlich 日本 🙂", "id": 7},
    )  # fmt: skip
    first = threading.Event()

    def slow_first(text: str, _: int) -> str:
        if text == "a text":
            assert first.wait(DEAD_AFTER_S)
        elif text == "three":
            first.set()
        return f"re: {text} 🙂"

    chat = Local(slow_first)
    report = place.run(chat)
    assert report.error is None
    assert [(line["id"], line["line"], line["text"]) for line in place.lines()] == [
        ("1", 1, "re: a text 🙂"),
        ("own", 2, "re: an object 🙂"),
        ("3", 3, "re: three 🙂"),
        ("7", 4, "re: häßlich 日本 🙂 🙂"),
    ]
    assert set(chat.asked.values()) == {1}
    assert (
        place.lines("replies.jsonl")[-1]["id"] != "7"
        or place.lines("replies.jsonl")[1]["id"] != "1"
    )
    assert place.lines("errors.jsonl") == []
    assert place.lines()[0]["provenance"]["endpoint"] == "local"
    assert len(place.lines()[0]["prompt_sha256"]) == 64
    assert report.facts["tokens"] == 4 * 8
    assert report.summary.startswith("4 of 4 prompts answered; ")
    assert report.summary.endswith(" tokens/s; 32 tokens")


@pytest.mark.parametrize(
    "raw",
    [
        b'\xef\xbb\xbf"a"\n"b"\n',
        b'"a"\r\n\r\n"b"\r\n',
        b'\n  \n"a"\n\n"b"',
        b'"a"\n"b"',
    ],
)
def test_bom_crlf_blank_lines_and_a_missing_last_newline_are_fine(
    place: Place, raw: bytes
) -> None:
    place.write(raw=raw)
    assert place.run(Local()).error is None
    assert [line["text"] for line in place.lines()] == ["re: a", "re: b"]
    numbers = [number for number, line in enumerate(raw.splitlines(), start=1) if b'"' in line]
    assert [line["line"] for line in place.lines()] == numbers
    assert [line["id"] for line in place.lines()] == [str(number) for number in numbers]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "1: no prompt in the whole file; wanted: at least one line"),
        (b"nope", "1: not JSON: Expecting value at column 1; wanted: one JSON value"),
        (b'"a" "b"', "1: not JSON: Extra data"),
        (b"[1]", "1: found a list; wanted: a text, or an object with one of prompt and messages"),
        (b"3", "1: found a number"),
        (b"null", "1: found null"),
        (b'"ok"\n"\xff"', "2: byte 0xff is not UTF-8"),
        (b'{"prompt": NaN}', "1: found NaN; wanted: finite numbers"),
        (b'{"prompt": "a", "variables": {"x": -Infinity}}', "1: found -Infinity"),
        (b'{"prompt": "a", "prompt": "b"}', '1: the key "prompt" stands twice'),
        (b'{"promt": "a"}', '1: the unknown key "promt"; wanted: prompt, messages, variables, id, system; nearest known: prompt'),
        (b'{"word": "a"}', "your own go into variables"),
        (b'{"prompt": "a", "messages": []}', "1: both prompt and messages"),
        (b'{"id": "a"}', "1: no prompt; wanted"),
        (b'{"variables": {}}', "variables alone need a `template` in the task"),
        (b'{"prompt": "a", "variables": [1]}', "1: variables: found a list; wanted: variables: an object"),
        (b'{"prompt": 3}', "1: prompt: found a number; wanted: prompt: a text"),
        (b'{"prompt": " "}', "1: prompt: found an empty text"),
        (b'{"prompt": "a", "system": 3}', "1: system: found a number"),
        (b'{"prompt": "a", "id": ""}', '1: id: found ""; wanted: id: a printable text'),
        (b'{"prompt": "a", "id": "a\\u001b[31m"}', "1: id: found"),
        (b'{"prompt": "a", "id": true}', "1: id: found true"),
        (b'{"prompt": "a", "id": "' + b"x" * 201 + b'"}', "1: id: found"),
        (b'{"messages": []}', "1: messages: found a list; wanted: messages: a list of 1 to 1000"),
        (b'{"messages": ["a"]}', "1: messages.0: found a text; wanted: an object with role and content"),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', '1: messages.0.role: found "tool"; wanted: system, user, assistant'),
        (b'{"messages": [{"role": "user", "content": "a", "x": 1}]}', "1: messages.0: found an object"),
        (b'{"messages": [{"role": ["user"], "content": "a"}]}', "1: messages.0.role: found"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]}', "the last is of the assistant"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}]}', "1: messages.1.role: found system"),
        (rb'"\ud83d"', "1: half a character"),
        (b"[" * 100_000, "1: very deep nesting"),
        (b'"' + b"x" * 2**20 + b'"\n"ok"', "1: more than 1048576 bytes; wanted: a shorter line"),
        (b'{"prompt": "a", "id": "b"}\n"x"\n{"prompt": "a", "id": "b"}', "3: the id of line 1; wanted: an id of its own"),
        (b'{"prompt": "a", "id": "2"}\n"x"', "2: the id of line 1"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_prompt_is_told_and_nothing_is_asked(
    place: Place, raw: bytes, said: str
) -> None:
    place.write(raw=raw)
    (told,) = place.refused()
    assert told.startswith(said) or said in told


def test_all_bad_lines_are_told_at_once_the_first_twenty_in_words(place: Place) -> None:
    place.write(*(number if number % 2 else "good" for number in range(101)))
    told = place.refused()
    assert [line.split(":")[0] for line in told[:20]] == [str(2 * n) for n in range(1, 21)]
    assert told[20].endswith("… and 30 more bad lines")
    assert len(told) == 21


def test_a_long_line_is_the_whole_of_what_is_wrong_and_its_neighbours_are_read(
    place: Place,
) -> None:
    long = json.dumps("x" * (2**20 - 2)).encode()
    place.write(raw=b'"before"\n' + long + b'\n"after"\n')
    assert place.run(Local(lambda text, _: str(len(text)))).error is None
    assert [line["text"] for line in place.lines()] == ["6", str(2**20 - 2), "5"]


def test_what_can_not_be_read_or_may_not_be_named_is_refused(place: Place) -> None:
    assert place.refused()[0].startswith("x.yaml:2:1: input: found")
    place.input.mkdir()
    assert "wanted: a file" in place.refused()[0]
    (place.root / "outside.jsonl").write_text('"a"')
    assert (
        "wanted: a place below one of" in place.refused(input=str(place.root / "outside.jsonl"))[0]
    )
    assert "wanted: a place below one of" in place.refused(input="../outside.jsonl")[0]
    (place.root / "data" / "link").symlink_to(place.root / "outside.jsonl")
    assert "which leads to" in place.refused(input="link")[0]
    os.mkfifo(place.root / "data" / "pipe")
    assert "wanted: a file" in place.refused(input="pipe")[0]


def test_a_million_lines_cost_no_memory_but_their_places(tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    with big.open("w") as file:
        file.writelines(f'"{"x" * 200} {number}"\n' for number in range(100_000))
    code = (
        "import resource, sys; from pathlib import Path; from labd.prompts.lines import open_prompts\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "prompts = open_prompts(Path(sys.argv[1]), templated=False)\n"
        "assert len(prompts) == 100_000 and prompts.line(99_999).messages[0].content.endswith(' 99999')\n"
        "assert prompts.index_of('70000') == 69_999\n"
        "print(1024 * (peak() - before) / len(prompts))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(big)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 150, "bytes a line, of more than 200"


def test_more_than_a_million_prompts_are_too_many(tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    big.write_bytes(b"1\n" * 1_000_001)
    # Lines that are no prompts, because reading them is faster; they count all the same.
    with pytest.raises(InputError, match="and 999,981 more bad lines"):
        open_prompts(big, templated=False)


def test_what_the_guide_shows_is_what_runs(place: Place) -> None:
    guide = (REPO / "docs" / "prompts.md").read_text()
    place.input = place.root / "data" / "questions.jsonl"
    place.write(raw=re.findall(r"```json\n(.*?)```", guide, re.DOTALL)[0].encode())
    (place.root / "data" / "words.jsonl").write_text(
        '{"variables": {"word": "dog"}, "id": "dog-fr"}'
    )
    shown = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    shown.append((REPO / "config" / "examples" / "prompts.yaml").read_text())
    for text in shown:
        assert place.dropped(text) == ""
        keys = {"model": None, **yaml.safe_load(text)}
        report = place.run(Local(), task_id=f"t{len(text)}", default_model="m", **keys)
        assert report.error is None


# --- the wording


def test_system_and_template_are_rendered_with_each_lines_variables(place: Place) -> None:
    place.write(
        {"variables": {"word": "dog", "tone": "kind"}},
        {"variables": {"word": "猫 {{ tone }} <b>", "tone": "{{ word }}"}},
        {"variables": {"word": "cow"}, "system": "Own {{ word }}"},
    )
    chat = Local(slots=1)
    system = "Be {{ tone|default('plain') }}."
    assert place.run(chat, template="Say {{ word }} in French.\n", system=system).error is None
    sent = [[(message.role, message.content) for message in one] for one in chat.sent]
    assert sorted(sent) == sorted([
        [("system", "Be kind."), ("user", "Say dog in French.")],
        [("system", "Be {{ word }}."), ("user", "Say 猫 {{ tone }} <b> in French.")],
        [("system", "Own {{ word }}"), ("user", "Say cow in French.")],
    ])  # fmt: skip


def test_a_plain_system_text_goes_before_messages_that_have_none(place: Place) -> None:
    place.write(
        "a {{ b }}",
        {"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": "b"}]},
        {"prompt": "c", "system": ""},
    )
    chat = Local()
    assert place.run(chat, system="Terse.").error is None
    sent = sorted([(message.role, message.content) for message in one] for one in chat.sent)
    assert sent == sorted([
        [("system", "Terse."), ("user", "a {{ b }}")],
        [("system", "mine"), ("user", "b")],
        [("user", "c")],
    ])  # fmt: skip


def test_a_line_that_the_template_can_not_take_is_told_with_all_others(place: Place) -> None:
    place.write(
        {"variables": {"word": "dog"}}, {"variables": {"wrod": "dog"}}, "text", {"variables": {"word": ""}}
    )  # fmt: skip
    told = place.refused(template="{{ word }}")
    assert (
        told[0]
        == "2: template: 'word' is undefined; wanted: variables that it can be rendered with"
    )
    assert told[1].startswith("3: found prompt; wanted: an object with variables for the template")
    assert told[2].startswith("4: template: it gives an empty prompt")
    assert len(told) == 3


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ ''.__class__ }}", "unsafe"),
        ("{{ x.__class__.__mro__ }}", "unsafe"),
        ("{{ x|attr('__class__') }}", "unsafe"),
        ("{{ '{0.__class__}'.format(x) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ x.append(1) }}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 0.5 s"),
        ("{{ 9 ** (9 ** 9) }}", "more than 0.5 s"),
        ("{{ x|join('a' * 10 ** 10) }}", "too much memory"),
        ("{{ 'a'|center(10 ** 10) }}", "too much memory"),
        ("{{ '%1000000000d'|format(3) }}", "too much memory"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "more than 4,000,000 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself too deeply"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "too deeply"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ x|random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "undefined"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ x.y.z }}", "no attribute 'y'"),
    ],
)  # fmt: skip
def test_hostile_jinja_ends_in_words(source: str, said: str) -> None:
    with Renderer({"template": source}, RenderLimits(cpu_s=0.5)) as renderer:
        with pytest.raises(RenderError) as caught:
            renderer.render({"x": ["a", "b"]})
        assert said in caught.value.what


def test_a_renderer_goes_on_after_one_that_it_died_of() -> None:
    source = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}ok"
    with Renderer({"template": source}, RenderLimits(cpu_s=0.3)) as renderer:
        assert renderer.render({"n": 2}) == {"template": "ok"}
        with pytest.raises(RenderError, match=r"more than 0\.3 s"):
            renderer.render({"n": 99_999})
        assert renderer.render({"n": 2}) == {"template": "ok"}


# --- replies and errors


def test_options_of_a_task_are_those_of_a_request_and_nothing_else() -> None:
    known = {field.name for field in fields(Options)}
    assert set(PromptOptions.model_fields) == known - {"model"}
    text = "kind: prompts\ninput: a\noptions: {num_ctx: 1024, temperature: 0, stop: x, think: low, more: {a: 1}}"
    spec = parse_task(text.encode(), "x.yaml").spec
    assert options_of(spec, Options("the-default")) == Options(
        "the-default", num_ctx=1024, temperature=0.0, stop=("x",), think="low", more={"a": 1}
    )


def test_a_task_without_a_model_has_the_settings_own_or_is_refused(place: Place) -> None:
    place.write("a")
    assert "no model" in place.refused(model=None)[0]
    chat = Local()
    assert place.run(chat, model=None, default_model="house").error is None
    assert chat.options[0].model == "house"


def test_with_a_schema_the_output_has_values(place: Place) -> None:
    place.write("a")
    assert place.run(Local(), schema={"type": "object"}).error is None
    (line,) = place.lines()
    assert line["value"] == {"said": "re: a"}
    assert "text" not in line


def test_what_utf8_can_not_hold_is_replaced_and_what_json_can_not_is_an_error(
    place: Place,
) -> None:
    place.write("half", "whole")
    assert place.run(Local(lambda text, _: "a\ud83d b" if text == "half" else text)).error is None
    assert [line["text"] for line in place.lines()] == ["a\ufffd b", "whole"]


def test_an_error_of_a_prompts_own_is_kept_beside_the_replies(place: Place) -> None:
    cut = CutShort("it was cut", where="local", fix="More tokens")
    cut.text = "so far"
    errors: dict[str, ModelError] = {
        "b": cut,
        "c": BadReply("no JSON"),
        "d": ContextOverflow("too long"),
        "e": RequestRefused("no such option"),
    }
    place.write("a", "b", "c", "d", "e")
    chat = Local(lambda text, _: errors.get(text, text))
    report = place.run(chat)
    assert report.error is None
    assert report.summary.startswith("1 of 5 prompts answered, 4 errors; ")
    assert [line["id"] for line in place.lines()] == ["1"]
    assert place.lines("errors.jsonl") == [
        {"id": "2", "line": 2, "code": "cut_short", "message": "local: it was cut. More tokens", "text": "so far"},
        {"id": "3", "line": 3, "code": "bad_reply", "message": "no JSON"},
        {"id": "4", "line": 4, "code": "context_overflow", "message": "too long"},
        {"id": "5", "line": 5, "code": "request_refused", "message": "no such option"},
    ]  # fmt: skip
    assert set(chat.asked.values()) == {1}
    # The same attempt's number again, after a crash that came too late to matter.
    assert place.run(chat).error is None
    assert set(chat.asked.values()) == {1}


def test_a_task_none_of_whose_prompts_has_a_reply_has_failed_and_a_retry_asks_again(
    place: Place,
) -> None:
    place.write("a", "b")
    report = place.run(Local(lambda text, _: BadReply(f"no JSON for {text}")))
    assert code(report) == "no_reply"
    assert "no JSON for a" in str(report.error)
    assert len(place.lines("errors.jsonl")) == 2
    assert place.run(Local()).error is None
    assert (len(place.lines()), place.lines("errors.jsonl")) == (2, [])


@pytest.mark.parametrize("kind", [ModelMissing, ModelRefused, EndpointMisconfigured])
def test_what_is_wrong_with_the_model_ends_the_task_at_once(
    place: Place, kind: type[ModelError]
) -> None:
    place.write(*(f"p{number}" for number in range(200)))
    chat = Local(lambda *_: kind("not there", where="m", fix="ollama pull m"), slots=2)
    report = place.run(chat)
    assert code(report) == kind.code
    assert "m: not there. ollama pull m. 0 of 200 prompts are answered" in str(report.error)
    assert sum(chat.asked.values()) < 20
    assert place.lines("errors.jsonl") == []


def test_a_refusal_of_the_first_twenty_for_one_reason_ends_the_task(place: Place) -> None:
    place.write(*(f"p{number}" for number in range(200)))
    chat = Local(lambda *_: RequestRefused("unknown option"), slots=1)
    report = place.run(chat)
    assert code(report) == "request_refused"
    assert "the first 20 prompts were all refused: unknown option" in str(report.error)
    assert sum(chat.asked.values()) < 150
    other = Local(lambda text, _: "ok" if text == "p0" else RequestRefused("unknown option"))
    assert place.run(other, task_id="y").error is None
    assert len(place.lines("errors.jsonl", "y")) == 199


def test_too_many_errors_end_the_task_where_the_file_says_so(place: Place) -> None:
    place.write(*(f"p{number}" for number in range(100)))
    chat = Local(lambda text, _: "ok" if text < "p3" else BadReply("no"), slots=1)
    report = place.run(chat, max_errors=3)
    assert code(report) == "too_many_errors"
    assert sum(chat.asked.values()) < 60
    assert "`labd retry x` goes on with the rest" in str(report.error)


def test_a_prompt_whose_endpoint_fails_is_asked_again_while_others_go_on(place: Place) -> None:
    place.write("flaky", *(f"p{number}" for number in range(20)))
    order: list[str] = []

    def answer(text: str, count: int) -> str | ModelError:
        order.append(text)
        return EndpointDown("it broke off") if text == "flaky" and count < 3 else text

    report = place.run(Local(answer))
    assert report.error is None
    assert order.index("flaky") < 4
    assert order[-1] == "flaky"
    assert order.count("flaky") == 3
    assert report.facts["prompts"]["put_back"] == 2
    assert [line["text"] for line in place.lines()] == ["flaky", *(f"p{n}" for n in range(20))]


def test_where_nobody_answers_for_long_the_attempt_ends_to_be_tried_again(place: Place) -> None:
    place.write(*(f"p{number}" for number in range(30)))
    report = place.run(Local(lambda *_: EndpointDown("connection refused")), silence_s=0.5)
    assert code(report) == "endpoint_down+"
    assert "connection refused" in str(report.error)
    assert "labd retry" not in str(report.error)
    assert place.run(Local()).error is None


def test_policy_gives_a_prompt_five_more_tries_unless_nobody_answers_at_all() -> None:
    policy = Policy(silence_s=300.0, max_errors=None)
    ticket, down = Ticket(0), EndpointDown("down")
    delays = []
    for number in range(20):
        verdict = policy.judge(down, ticket, float(number))
        assert isinstance(verdict, Again)
        delays.append(verdict.delay_s)
    assert delays[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 16.0][:5] + delays[5:6]
    assert max(delays) <= 30.0
    policy.replied()
    assert isinstance(policy.judge(down, ticket, 30.0), Own)
    assert isinstance(policy.judge(down, Ticket(1), 31.0), Again)


def test_policy_ends_a_silence_only_after_several_failures_and_no_answer_between() -> None:
    policy = Policy(silence_s=300.0, max_errors=None)
    down = EndpointDown("down")
    assert isinstance(policy.judge(down, Ticket(0), 0.0), Again)
    assert isinstance(policy.judge(down, Ticket(1), 1000.0), Again)
    policy.judge(BadReply("an answer all the same"), Ticket(2), 1001.0)
    for number in range(5):
        assert isinstance(policy.judge(down, Ticket(3 + number), 1002.0), Again)
    verdict = policy.judge(down, Ticket(9), 1302.0)
    assert isinstance(verdict, Over)
    assert verdict.retryable


# --- ends


def test_a_timeout_leaves_what_there_is_and_a_retry_goes_on(place: Place) -> None:
    place.write(*(f"p{number}" for number in range(8)))
    held = Held(slots=2)

    class Half(Local):
        def chat(self, messages: Sequence[Message], options: Options, **rest: Any) -> Reply:
            if messages[-1].content in {"p5", "p6", "p7"}:
                return held.chat(messages, options, **rest)
            return super().chat(messages, options, **rest)

    report = place.run(Half(), timeout_s=1.0)
    assert code(report) == "timed_out"
    assert (report.error or {})["message"] == (
        "it was stopped just before its timeout of 1.0 s. "
        "5 of 8 prompts are answered; `labd retry x` goes on with the rest"
    )
    assert len(place.lines()) == 5
    chat = Local()
    report = place.run(chat)
    assert report.error is None
    assert set(chat.asked) == {"p5", "p6", "p7"}
    assert report.summary.startswith("8 of 8 prompts answered, 5 of them before this attempt; ")
    assert [line["text"] for line in place.lines()] == [f"re: p{number}" for number in range(8)]


def test_a_fault_in_a_thread_ends_the_attempt_and_comes_out_of_it(place: Place) -> None:
    place.write(*(f"p{number}" for number in range(50)))

    def answer(text: str, _: int) -> str:
        if text == "p10":
            raise KeyError(text)
        return text

    with pytest.raises(KeyError):
        place.run(Local(answer))
    assert len(place.lines()) >= 1


def test_an_input_that_changes_while_it_is_used_ends_the_attempt(place: Place) -> None:
    place.write(*(f"p{number}" for number in range(300)))

    def answer(text: str, _: int) -> str:
        if text == "p50":
            place.write(*(f"q{number}" for number in range(300)))
        return text

    chat = Local(answer)
    with pytest.raises(InputError, match="it changed while the task ran"):
        place.run(chat)
    assert all(text.startswith("p") for text in chat.asked)
    # Of the fifty before it some may be under way still: the chat has four slots.
    assert 40 <= len(place.lines()) < 300


def test_an_input_is_not_read_to_its_end_when_the_attempt_has_to_end(place: Place) -> None:
    place.write(*(f"p{number}" for number in range(2000)))
    chat = Local()
    assert code(place.run(chat, timeout_s=0.0)) == "timed_out"
    assert not chat.asked


# --- going on


def test_replies_to_lines_that_have_changed_since_are_not_used(place: Place) -> None:
    place.write({"prompt": "a", "id": "a"}, {"prompt": "b", "id": "b"}, {"prompt": "c", "id": "c"})
    assert place.run(Local(lambda text, _: f"old {text}")).error is None
    place.write({"prompt": "c", "id": "c"}, {"prompt": "B", "id": "b"}, {"prompt": "d", "id": "a"})
    chat = Local(lambda text, _: f"new {text}")
    assert place.run(chat).error is None
    assert set(chat.asked) == {"B", "d"}
    assert [(line["line"], line["text"]) for line in place.lines()] == [
        (1, "old c"),
        (2, "new B"),
        (3, "new d"),
    ]


def test_replies_of_another_model_or_system_text_are_not_used(place: Place) -> None:
    place.write("a")
    assert place.run(Local(lambda *_: "first"), model=None, default_model="m1").error is None
    assert place.run(Local(lambda *_: "second"), model=None, default_model="m2").error is None
    assert [line["text"] for line in place.lines()] == ["second"]
    # And back again: the reply of the first is still on record.
    chat = Local(lambda *_: "third")
    assert place.run(chat, model=None, default_model="m1").error is None
    assert [line["text"] for line in place.lines()] == ["first"]
    assert not chat.asked


def test_a_torn_last_line_and_one_that_can_not_be_read_are_asked_again(place: Place) -> None:
    place.write("a", "b", "c")
    assert place.run(Local(lambda text, _: f"old {text}", slots=1)).error is None
    path = place.results() / "replies.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    by_id = {json.loads(line).get("id"): line for line in lines}
    torn = by_id["3"][: len(by_id["3"]) // 2]
    path.write_bytes(lines[0] + b"\0" * 100 + b"\n" + by_id["1"] + torn)
    chat = Local(lambda text, _: f"new {text}")
    assert place.run(chat).error is None
    assert set(chat.asked) == {"b", "c"}
    assert [line["text"] for line in place.lines()] == ["old a", "new b", "new c"]


# --- many at a time


@pytest.mark.parametrize("slots", [1, 7, 40])
def test_all_slots_are_filled_and_only_a_few_requests_wait(slots: int) -> None:
    lock, free = threading.Lock(), threading.Semaphore(slots)
    full, inside, most_inside, most_threads, turns = threading.Event(), 0, 0, 0, 0

    def turn() -> None:
        nonlocal most_threads, turns
        turns += 1
        most_threads = max(most_threads, crew.threads)

    def ask(_: Ticket, started: Callable[[], None]) -> None:
        nonlocal inside, most_inside
        with free:
            started()
            with lock:
                inside += 1
                most_inside, last = max(most_inside, inside), inside == slots
            if last and not full.is_set():
                enough = turns + 3
                wait_until(lambda: turns >= enough)
                full.set()
            assert full.wait(DEAD_AFTER_S)
            with lock:
                inside -= 1

    crew = Crew(map(Ticket, range(20 * slots)), ask, lambda: None)
    crew.run(turn)
    assert most_inside == slots
    assert most_threads <= slots + 2
    assert crew.threads == 0


def test_threads_stop_where_several_have_waited_for_long() -> None:
    slots, left = 12, list[int]()
    free, begun = threading.Semaphore(slots), threading.Barrier(slots)

    def ask(ticket: Ticket, started: Callable[[], None]) -> None:
        free.acquire()
        started()
        if ticket.index < slots:
            begun.wait(DEAD_AFTER_S)
            if ticket.index:
                return  # its slot is gone, as with a dead endpoint
        else:
            time.sleep(0.15)
        free.release()
        left.append(crew.threads)

    crew = Crew(map(Ticket, range(slots + 22)), ask, lambda: None)
    crew.run(lambda: None)
    assert max(left) >= slots
    assert left[-4] <= 4


def test_a_request_tells_how_many_follow(place: Place) -> None:
    place.write(*(f"p{number}" for number in range(50)))
    chat = Local(slots=1)
    assert place.run(chat).error is None
    assert chat.following[0] >= 45
    assert chat.following[-1] <= 1
    assert sorted(chat.following, reverse=True) == chat.following


def test_there_are_never_more_threads_than_a_limit() -> None:
    many = threading.Event()
    seen: set[int] = set()

    def ask(_: Ticket, started: Callable[[], None]) -> None:
        started()
        seen.add(threading.get_ident())
        if len(seen) >= MAX_THREADS:
            many.set()
        assert many.wait(DEAD_AFTER_S)

    Crew(map(Ticket, range(4 * MAX_THREADS)), ask, lambda: None).run(lambda: None)
    assert len(seen) == MAX_THREADS


def test_progress_lines_grow_rarer_and_stay_few_over_a_week() -> None:
    pace = Pace(0.0)
    told = [second / 4 for second in range(4 * 7 * 86400) if pace.due(second / 4)]
    assert told[:3] == [0.0, 1.25, 2.5]
    gaps = [after - before for before, after in pairwise(told)]
    assert min(gaps) >= 1.0
    assert max(gaps) <= 60.25
    assert len(told) < 11_000


def test_the_detail_says_the_rate_of_the_last_minute_and_the_time_that_is_left() -> None:
    pace = Pace(0.0)
    assert pace.detail(0.0, 10, 0) == ""
    for second in range(1, 121):
        pace.count(100)
        pace.detail(float(second), 10, 0)
    assert pace.detail(120.0, 600, 1) == "100 tokens/s, 10 m 00 s left, 1 error"
    for second in range(121, 300):
        pace.detail(float(second), 600, 2)
    assert pace.detail(300.0, 600, 2) == "2 errors"


# --- real servers


NODE = "here"


@contextmanager
def pool(*servers: RunningServer, slots: int = 2) -> Iterator[Pool]:
    """Give a pool of real endpoints, as a worker has it, with its broker in this process."""
    urls = [server.url for server in servers]
    with broker(*urls, slots=slots) as answer, Pool(answer, holder="x#1", node_id=NODE) as it:
        yield it


@contextmanager
def broker(*urls: str, slots: int = 2) -> Iterator[Callable[..., dict[str, Any]]]:
    endpoints = [Endpoint(f"e{n}", url, slots=slots) for n, url in enumerate(urls)]
    hands, before = DirectHands(), set(threading.enumerate())
    it = Broker(Rules(), lambda: endpoints, hands, look_every_s=0.2)
    try:
        yield it.answer
    finally:
        it.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(DEAD_AFTER_S)
        for _, client in hands._clients.values():
            client.close()


KEYS: dict[str, Any] = {
    "model": "alpha",
    "options": {"num_ctx": 2048, "num_predict": 16, "allow_cut": True, "seed": 1},
}


def test_a_real_model_answers_each_prompt_once_on_two_endpoints(place: Place) -> None:
    total = 150
    place.write(*(f"Question {number}?" for number in range(total)))
    arguments = ("--model=alpha", "--num-parallel=2", "--seconds-per-token=0.003")
    with running_ollama(*arguments) as one, running_ollama(*arguments) as two:
        with pool(one, two) as chat:
            report = place.run(chat, **KEYS)
        served = [one.total("served"), two.total("served")]
    assert report.error is None, report
    assert [line["line"] for line in place.lines()] == list(range(1, total + 1))
    assert sum(served) == total
    assert min(served) > 20
    used = Counter(line["provenance"]["endpoint"] for line in place.lines())
    assert used == {"e0": served[0], "e1": served[1]}
    assert all(len(line["provenance"]["digest"]) == 64 for line in place.lines())
    assert report.facts["tokens"] == sum(
        line["provenance"]["prompt_tokens"] + line["provenance"]["output_tokens"]
        for line in place.lines()
    )


def test_a_schema_gives_objects_that_fit_it_and_an_overflow_is_the_prompts_own(
    place: Place,
) -> None:
    place.write("short", "long " * 3000, "short again")
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    with running_ollama("--model=alpha") as server, pool(server) as chat:
        report = place.run(
            chat, model="alpha", schema=schema, options={"num_ctx": 1024, "num_predict": 200}
        )
    assert report.error is None, report
    assert [line["value"]["yes"] in {True, False} for line in place.lines()] == [True, True]
    assert [(line["id"], line["code"]) for line in place.lines("errors.jsonl")] == [
        ("2", "context_overflow")
    ]


KILLED = """
import json, sys, time
from pathlib import Path
from labd.command.places import Fence
from labd.llm.broker import Broker
from labd.llm.desk import Rules
from labd.llm.hands import DirectHands
from labd.llm.model import Endpoint, Options
from labd.llm.pool import Pool
from labd.log import file_logger
from labd.prompts.run import Patience, run_prompts
from labd.task import parse_task

root, url, text = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
broker = Broker(Rules(), lambda: [Endpoint("e0", url, slots=2)], DirectHands(), look_every_s=0.2)
with Pool(broker.answer, holder="x#1", node_id="here") as chat, file_logger(root / "log.jsonl") as log:
    run_prompts(
        parse_task(text.encode(), "x.yaml"), chat, where="x.yaml", results=root / "results" / "x",
        fence=Fence((root / "data",), (), root / "results"), defaults=Options(""),
        patience=Patience.within(time.monotonic(), 600), progress=lambda *_: None, log=log,
    )
"""


def test_after_sigkill_in_the_middle_only_what_is_not_on_record_is_asked(place: Place) -> None:
    total = 60
    place.write(*({"prompt": f"Question {n}?", "id": f"q{n}"} for n in range(total)))
    replies = place.results() / "replies.jsonl"
    with running_ollama(
        "--model=alpha", "--num-parallel=2", "--seconds-per-token=0.003"
    ) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(place.root), server.url, place.text(**KEYS)]
        )
        try:
            wait_until(lambda: replies.exists() and replies.read_bytes().count(b"\n") > 15)
        finally:
            process.kill()
            process.wait(DEAD_AFTER_S)
        assert process.returncode == -signal.SIGKILL
        on_record = {line["id"]: line for line in place.lines("replies.jsonl")[1:]}
        assert 15 <= len(on_record) < total
        served_before = server.total("served")
        with pool(server) as chat:
            report = place.run(chat, **KEYS)
        served = server.total("served") - served_before
    assert report.error is None
    assert report.facts["prompts"]["answered_before"] == len(on_record)
    # What was on its way when it was killed may be served a moment later; nothing else is asked twice.
    assert total - len(on_record) <= served <= total - len(on_record) + 2
    output = place.lines()
    assert [line["id"] for line in output] == [f"q{n}" for n in range(total)]
    assert [line for line in output if line["id"] in on_record] == sorted(
        on_record.values(), key=lambda line: line["index"]
    )
    assert (
        max(
            Counter(
                line.get("id") for line in place.lines("replies.jsonl") if "id" in line
            ).values()
        )
        == 1
    )


def test_an_endpoint_killed_in_mid_batch_and_started_again_loses_nothing(place: Place) -> None:
    total = 40
    place.write(*(f"Question {n}?" for n in range(total)))
    arguments = ("--model=alpha", "--num-parallel=2", "--seconds-per-token=0.003")
    replies, reports = place.results() / "replies.jsonl", list[Report]()
    with running_ollama(*arguments) as first, pool(first) as chat:
        thread = threading.Thread(target=lambda: reports.append(place.run(chat, **KEYS)))
        thread.start()
        wait_until(lambda: replies.exists() and replies.read_bytes().count(b"\n") > 10)
        first.kill()
        before = replies.read_bytes().count(b"\n") - 1
        port = first.url.rsplit(":", 1)[1]
        with running_ollama(*arguments, f"--port={port}"):
            thread.join(DEAD_AFTER_S)
    assert [report.error for report in reports] == [None]
    assert before < total
    assert [line["line"] for line in place.lines()] == list(range(1, total + 1))
    assert place.lines("errors.jsonl") == []
    assert len([line for line in place.lines("replies.jsonl") if "id" in line]) == total


# --- in the lab


def job(place: Place, text: str, **over: Any) -> dict[str, Any]:
    return {
        "task_id": "x",
        "attempt": 1,
        "node_id": NODE,
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "timeout_s": 60.0,
        "task_text": text,
        "task_sha256": "",
        "file_name": "x.yaml",
        "results_dir": str(place.results()),
        "template_roots": [],
        "min_free_bytes": 0,
        "sandbox": {},
        "allow_network": False,
        "wants_models": True,
        "default_model": "alpha",
        "default_num_ctx": 8192,
        "input_roots": [str(path) for path in place.home.inputs],
        "forbidden_roots": [str(path) for path in place.home.forbidden],
        **over,
    }


def test_a_worker_runs_a_task_of_prompts_and_people_see_how_far_it_is(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write(*({"variables": {"number": number}} for number in range(10)))
    text = place.text(**{**KEYS, "model": None, "template": "Question {{ number }}?"})
    with running_ollama("--model=alpha") as server, broker(server.url) as answer:
        outcome = worker.run(job(place, text), [], models=answer)
    assert (outcome["outcome"], outcome["error"]) == ("done", None)
    assert outcome["summary"][0].startswith("10 of 10 prompts answered; ")
    assert outcome["tokens"] > 10
    assert outcome["prompts"]["answered"] == 10
    assert json.loads((place.results() / "result.json").read_text())["input"]["sha256"]
    lab = Lab(place.home)
    progress = lab.progress("x")
    assert progress is not None
    assert (progress.stage, progress.done, progress.total) == ("prompts", 10, 10)
    assert " tokens/s" in progress.detail
    (place.root / "spool" / "done").mkdir()
    (place.root / "spool" / "done" / "x.yaml").write_text(text)
    (place.root / "spool" / "pending").mkdir()
    with pytest.raises(SystemExit) as ended:
        app(["--home", str(place.root), "show", "x"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert str(place.results() / "output.jsonl") in shown
    assert "10 of 10 prompts answered" in shown
    assert lab.find("x").template == ""


def test_a_worker_without_a_way_to_models_says_so(place: Place) -> None:
    place.write("a")
    outcome = worker.run(job(place, place.text()), [])
    assert (outcome["outcome"], outcome["error"]["code"]) == ("failed", "config")


# --- the drop


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"input": "none.jsonl"}, "x.yaml:2:1: input: found {data}/none.jsonl; wanted: a file that is there"),
        ({"input": "/etc/passwd"}, "x.yaml:2:1: input: found /etc/passwd; wanted: a place below one of: {data}"),
        ({"input": "bad.jsonl"}, "x.yaml:2:1: input: found {data}/bad.jsonl, first line: no prompt; wanted"),
        ({"template": "{{ word }}"}, "x.yaml:2:1: input: found {data}/in.jsonl, first line: found prompt; wanted: an object with variables"),
        ({"template": "{{ word"}, "x.yaml:4:1: template: found line 1 of it: unexpected end of template"),
        ({"template": "{{ word|nope }}", "input": "v.jsonl"}, ""),
        ({"template": "{{ wrod }}", "input": "v.jsonl"}, "x.yaml:4:1: template: found {{{{ wrod }}}}; wanted: a variable of the input's first line, which has: word"),
        ({"system": "{% if %}"}, "x.yaml:4:1: system: found line 1 of it"),
        ({"system": "{{ a }}"}, "x.yaml:4:1: system: found {{{{ a }}}}; wanted: a variable of the input's first line, which has: none"),
        ({"schema": {"type": "objekt"}}, "x.yaml:5:3: schema.type: found"),
        ({"schema": {"properties": {"a": {"minimum": "3"}}}}, "schema.properties.a.minimum: found"),
        ({"schema": {"$ref": "https://example.org/schema"}}, "x.yaml:4:1: schema: found"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_the_drop_with_its_place(
    place: Place, keys: dict[str, Any], said: str
) -> None:
    place.write("a")
    (place.root / "data" / "bad.jsonl").write_text('{"id": "a"}')
    (place.root / "data" / "v.jsonl").write_text('{"variables": {"word": 1}}')
    told = place.dropped(place.text(**keys))
    wanted = said.format(data=place.root / "data")
    assert (wanted in told) if wanted else (told == ""), told


@pytest.mark.parametrize(
    "template",
    [
        "{{ word }}{% if more is defined %}{{ more }}{% endif %}{{ other|default('x') }}",
        "{% for part in word %}{{ part }}{{ loop.index }}{% endfor %}{% set a = 1 %}{{ a }}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(word) }}{{ word or nothing }}",
        "{{ range(3)|list }}{{ a if word else b }}{{ 10 ** 10 ** 10 }}",
    ],
)
def test_a_template_that_may_do_with_the_first_lines_variables_passes(
    place: Place, template: str
) -> None:
    place.write({"variables": {"word": "dog"}})
    assert place.dropped(place.text(template=template)) == ""


def test_all_that_is_wrong_is_told_at_once_in_the_files_order(place: Place) -> None:
    text = place.text(input="none.jsonl", system="{% x %}", schema={"type": 3}, template="{{")
    assert [line.split(": ")[1] for line in place.dropped(text).splitlines()] == [
        "input",
        "system",
        "schema.type",
        "template",
    ]


def test_results_of_another_task_may_be_the_input_and_may_come_later(place: Place) -> None:
    for name in ("results/first/files/p.jsonl", str(place.home.results / "first/files/p.jsonl")):
        text = place.text(input=name, after="first")
        assert place.dropped(text) == ""
    (place.home.results / "first" / "files").mkdir(parents=True)
    (place.home.results / "first" / "files" / "p.jsonl").write_text('"a"\n')
    assert place.dropped(place.text(input="results/first/files/p.jsonl")) == ""
    assert place.run(Local(), input="results/first/files/p.jsonl").error is None
    assert len(place.lines()) == 1


def test_a_command_may_have_the_replies(place: Place) -> None:
    place.write("a")
    assert place.run(Local()).error is None
    text = yaml.safe_dump(
        {
            "kind": "command",
            "run": "ls",
            "inputs": {"replies": str(place.results() / "output.jsonl")},
        }
    )
    assert place.dropped(text) == ""
