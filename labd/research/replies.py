"""Whether a model's reply is worth reading at all: pure judgements over its text and what it was asked."""

import re
import zlib
from collections.abc import Sequence

from labd.llm.model import Message
from labd.text import printable

MAX_TEXT_BYTES = 512 * 1024
"""Of a reply that is kept. No file that a model may write is as big."""
_MAX_LINE = 8000
"""Characters. A long paragraph has three thousand."""
_MOST_PACKED = 12.0
"""Prose packs to a third, program text to a fifth, a sentence again and again to a fortieth."""
_PACKED_FROM = 1000
_ECHO_FROM = 80
"""Characters; what is shorter may be in a prompt and be a good answer all the same."""
_MAX_REFUSAL = 600
_THOUGHTS = re.compile(r"\A\s*<think>.*?(</think>|\Z)", re.DOTALL)
_BLANKS = re.compile(r"\s+")
_REFUSAL = re.compile(
    r"\A\W*(i'?m sorry|i am sorry|sorry|i apologi[sz]e|my apologies|unfortunately|as an ai\b"
    r"|i can('t|not| not)|i('m| am) (not able|unable)|i (won't|will not|must decline)"
    r"|죄송|抱歉|对不起|申し訳)",
    re.IGNORECASE,
)
_DECLINES = re.compile(
    r"can('t|not| not)|unable|not able|won't|will not|decline|as an ai|수 없|无法|不能|できません",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Give a text that can be written as UTF-8."""
    return text.encode(errors="replace").decode()


def without_thoughts(text: str) -> str:
    """Give a reply without the thinking that some servers leave in it, at its beginning.

    Source: models of the kind of DeepSeek-R1 write it between ``<think>`` and ``</think>``; a server without a
    parser for that passes it on.
    """
    return _THOUGHTS.sub("", text, count=1)


def problem_of(text: str, messages: Sequence[Message]) -> tuple[str, str]:
    """Give why a reply in prose or code is of no use, as a short code and in words; both empty where it may be of use."""
    if not text.strip():
        return "empty", "the reply is empty"
    if len(text.encode()) > MAX_TEXT_BYTES:
        return "too_long", f"the reply has more than {MAX_TEXT_BYTES} bytes"
    if _is_refusal(text):
        return "refusal", f"the model declines: {printable(text.strip(), 200)}"
    if _is_echo(text, messages):
        return "echo", "the reply repeats what was asked"
    longest = max(len(line) for line in text.splitlines())
    if longest > _MAX_LINE:
        return "endless_line", "the reply holds a line without end"
    if _repeats_itself(text):
        return "repetition", "the reply says the same again and again"
    return "", ""


def _is_refusal(text: str) -> bool:
    # What holds a block of code is an answer, however sorry the model is.
    if len(text) > _MAX_REFUSAL or "```" in text:
        return False
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return bool(_REFUSAL.match(text) and _DECLINES.search(text))


def _is_echo(text: str, messages: Sequence[Message]) -> bool:
    """Say whether a reply is the beginning of the prompt or of a message in it, or holds a whole message.

    What was shown in the middle of a message may well come back: a file, a paragraph without one of its sentences.
    """
    said = _one_line(text)
    asked = [_one_line(one.content) for one in messages if one.role != "assistant"]
    if len(said) >= _ECHO_FROM and any(one.startswith(said) for one in (*asked, " ".join(asked))):
        return True
    return any(len(one) >= _ECHO_FROM and one in said for one in asked)


def _one_line(text: str) -> str:
    return _BLANKS.sub(" ", text).strip()


def _repeats_itself(text: str) -> bool:
    raw = text.encode()
    return len(raw) >= _PACKED_FROM and len(raw) / len(zlib.compress(raw)) > _MOST_PACKED
