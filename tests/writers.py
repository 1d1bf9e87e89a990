"""Models that write papers, good and bad, as functions for `tests.chats.Spoken`."""

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from labd.journal import Journal
from labd.llm.errors import EndpointDown, ModelError
from labd.llm.model import Chat, Message, Options
from labd.research.allowance import Allowance
from labd.research.asking import Asker
from labd.research.calling import Patience
from labd.research.paper_briefing import SECTION_ORDERS

Speaks = Callable[[Sequence[Message], Options], str | ModelError]

TITLE = "A wider hidden layer for handwritten digits"
GOOD = {
    "abstract": (
        "We ask whether a wider hidden layer helps a small network to read handwritten digits. A language model "
        "proposed {{ num_ideas }} ideas, of which {{ num_ideas_tried }} were tried. They were compared on validation, "
        "and the selected one was measured again on test."
    ),
    "introduction": (
        "A small network that reads handwritten digits is the subject of this study. Such networks are trained with "
        "back-propagation [@lecun1998gradient]. We ask whether a change of the hidden layer makes it better."
    ),
    "related_work": (
        "Networks of this kind have long been trained on images of documents [@lecun1998gradient]. Handwritten "
        "digits were also read elsewhere [@kim2020손글씨; @bare]."
    ),
    "method": (
        "The selected trial widens the hidden layer in `model.py`. It adds {{ lines_added }} lines to the code and "
        "removes {{ lines_removed }}. The change is meant to give the network more room."
    ),
    "results": (
        "The baseline has a mean of {{ baseline_mean }} on the test split. {{ figure_baseline_vs_best }} has the single "
        "runs, and {{ figure_trials }} the order of the trials.\n\n- Of {{ num_trials }} trials, {{ num_crashed }} "
        "crashed before they gave a value.\n- The others went on to the end of their runs."
    ),
    "discussion": (
        "A wider layer has more weights that can be fitted to the digits. Whether this holds for other data is a "
        "question for another study."
    ),
    "limitations": (
        "All of the runs use one division of the data. The network is small, and the digits are easy to read."
    ),
}  # fmt: skip
KOREAN = (
    "이 연구는 손으로 쓴 숫자를 읽는 작은 신경망을 다룬다. 기준 코드의 평균은 {{ baseline_mean }}이다. "
    "{{ figure_trials }}에 시도의 순서가 나와 있다."
)


def section_of(messages: Sequence[Message]) -> str:
    """Tell which part of a paper a prompt asks for: `title`, or a section's name; empty for none."""
    text = "\n".join(message.content for message in messages)
    if "Write a title for the paper" in text:
        return "title"
    return next((name for name, order in SECTION_ORDERS.items() if order.order in text), "")


def good(messages: Sequence[Message], _options: Options) -> str:
    section = section_of(messages)
    return TITLE if section == "title" else GOOD[section]


def says(text: str) -> Speaks:
    return lambda _messages, _options: text


def echo(messages: Sequence[Message], _options: Options) -> str:
    return "\n\n".join(message.content for message in messages)


def half_echo(messages: Sequence[Message], _options: Options) -> str:
    return messages[0].content.replace("\n- ", "\n\n")


def noise(_messages: Sequence[Message], options: Options) -> str:
    """Give what random weights give: pieces of words of many scripts, and marks."""
    pieces = re.findall(
        r"\S+",
        "ing thé 한 qu {{ ;; der 了 zor ## _the ▁an ** ]] он the } of | $ \\x ment 字 ed . and by 7",
    )
    seed = (options.seed or 1) % 2**31
    out = []
    for _ in range(300):
        seed = seed * 1103515245 % 2**31 + 12345
        out.append(pieces[(seed >> 16) % len(pieces)])
    return " ".join(out)


LIES = (
    "Our method achieves an accuracy of 99.97 percent and outperforms the state of the art [@smith2024]. The selected "
    "code is significantly better than the baseline. The baseline reaches {{ best_mean }} only. As Jones et al. found, "
    "this is a breakthrough. It more than doubles the accuracy of {{ invented_fact }}."
)
BEHAVIOURS: dict[str, Speaks] = {
    "garbage": noise,
    "empty": says(""),
    "blanks": says(" \n\n \t"),
    "its own prompt": echo,
    "the rules": half_echo,
    "half JSON": says('{"text": "The accuracy of the network is '),
    "JSON": says('{"section": "results", "text": ["a", "b"], "accuracy": 0.999}'),
    "one endless line": says("word " * 4000),
    "one endless word": says("a" * 8000),
    "refusal": says("I'm sorry, but as an AI language model I can't help with that."),
    "chatter": says("Sure! Here is the section you asked for.\n\nLet me know if you need anything else."),
    "lies": says(LIES),
    "code": says("```python\nimport os\nos.system('rm -rf /')\nprint('accuracy: 0.999')\n```"),
    "markup": says("<script>alert(1)</script> \\input{/etc/passwd} {% for x in y %} {{ x.__class__ }} [[results]]"),
    "another language": says("Das Netz liest die Ziffern besser als zuvor. Es ist nun viel genauer geworden."),
    "placeholders": says("INTRODUCTION HERE\n\nTODO: write this.\n\nLorem ipsum dolor sit amet."),
}  # fmt: skip


def dies(_messages: Sequence[Message], _options: Options) -> ModelError:
    return EndpointDown("the connection broke", where="spoken")


def make_asker(
    chat: Chat,
    directory: Path,
    journal: Journal,
    allowance: Allowance | None = None,
    num_ctx: int = 8192,
) -> Asker:
    """Give an asker whose every role is one model, and that has little patience."""
    return Asker(
        chat,
        journal,
        allowance or Allowance(),
        models={"ideas": "tiny", "code": "tiny", "write": "tiny", "review": "tiny"},
        num_ctx=num_ctx,
        calls_dir=directory / "calls",
        seed=7,
        cancelled=threading.Event(),
        patience=Patience(delays_s=(0.0,), total_s=5.0, first_s=5.0),
    )  # fmt: skip
