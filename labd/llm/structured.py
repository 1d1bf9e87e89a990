"""Replies that are data: a schema in, an object that fits it out, or a clear failure.

The schema goes to the server, which may hold the model to it, and into the prompt, because a server does not show
it to the model. Nothing of that is trusted: the reply is read and checked here.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn, Protocol

import jsonschema
import pydantic
from referencing import Registry

from labd.errors import ConfigError
from labd.llm.errors import BadReply, ContextOverflow, CutShort, RequestRefused
from labd.llm.model import Cancel, Message, Options, Reply
from labd.text import head_and_tail, printable

MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 64
_MAX_REPLY_BYTES = 8 * 2**20
_MAX_SHOWN = 4000
_MAX_STARTS = 50
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_ABOUT_THE_SCHEMA = re.compile(r"schema|grammar|response_format|\bformat\b", re.IGNORECASE)
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_ADDED_UP = ("prompt_tokens", "output_tokens", "load_s", "prompt_s", "output_s", "wall_s")
_NOTHING = Reply("", "", "", "")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class RawChat(Protocol):
    """Whoever gives a model's reply as it is, with the schema merely sent along."""

    def __call__(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        schema: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
    ) -> Reply:
        """Give the whole reply."""


class Unfit(ValueError):
    """A reply is no JSON, or does not fit its schema; its text is made to be shown to the model."""


class Shape:
    """What a reply has to look like: a pydantic class, or a JSON schema of Draft 2020-12.

    Raises:
        ConfigError: the schema can't be used: not valid, too big, or it refers to what is elsewhere.

    """

    def __init__(self, schema: type[pydantic.BaseModel] | Mapping[str, Any]) -> None:
        self._class = schema if isinstance(schema, type) else None
        self.json_schema: Mapping[str, Any] = (
            schema.model_json_schema() if isinstance(schema, type) else schema
        )
        if self._class is None:
            _check_schema(self.json_schema)

    @cached_property
    def _validator(self) -> Any:
        # An empty registry: nothing is fetched from anywhere, whatever the schema names.
        return jsonschema.Draft202012Validator(self.json_schema, registry=Registry())

    @cached_property
    def described(self) -> str:
        """What a model is told of it."""
        text = json.dumps(self.json_schema, ensure_ascii=False, separators=(",", ":"))
        return (
            "Reply with JSON only, without any text around it and without a code fence."
            f" It has to fit this JSON Schema:\n{text}"
        )

    def read(self, text: str) -> Any:
        """Give the object that a reply holds; text around it, such as a code fence, is passed over.

        Raises:
            Unfit: there is none that fits.

        """
        problem: Unfit | None = None
        for candidate in _candidates(text):
            try:
                return self._check(candidate)
            except Unfit as error:
                problem = problem or error
        raise problem or Unfit("there is no JSON in it")

    def _check(self, text: str) -> Any:
        value = read_json(text)
        if self._class is not None:
            try:
                return self._class.model_validate_json(json.dumps(value))
            except pydantic.ValidationError as error:
                raise Unfit(_of_pydantic(error)) from error
        try:
            found = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except RecursionError as error:
            raise ConfigError(
                "the schema refers to itself without end",
                where="schema",
                fix="Let each `$ref` to what is around it stand below a property or an item",
            ) from error
        if found is not None:
            raise Unfit(f"{found.json_path}: {printable(found.message, 300)}")
        return value


def chat_structured(
    chat: RawChat,
    messages: Sequence[Message],
    options: Options,
    schema: type[pydantic.BaseModel] | Mapping[str, Any] | Shape,
    *,
    max_repairs: int = 2,
    cancel: Cancel | None = None,
) -> Reply:
    """Give a reply whose `value` fits `schema`; a model whose reply does not is shown its error and asked again.

    A reply that `num_predict` cut is not asked for again: the same budget would cut it again. Tokens and seconds, of
    the reply as of the error, are those of all rounds.

    Raises:
        BadReply: after `max_repairs` further rounds it still does not fit. `text` is the last one.
        CutShort: `num_predict` or the context ended it.
        ConfigError: the schema can't be used.
        ModelError: there is no reply.

    """
    shape = schema if isinstance(schema, Shape) else Shape(schema)
    asked = _with_description(messages, shape)
    options = replace(options, allow_cut=False)
    sent: Mapping[str, Any] | None = shape.json_schema
    turn, repairs = asked, 0
    failed: BadReply | None = None
    spent = _NOTHING
    while True:
        try:
            reply = _summed(chat(turn, options, schema=sent, cancel=cancel), spent)
        except CutShort as error:
            error.prompt_tokens += spent.prompt_tokens
            error.output_tokens += spent.output_tokens
            raise
        except RequestRefused as error:
            # A server that can't make rules of this schema leaves it to the prompt and to the check here.
            if sent is None or not _ABOUT_THE_SCHEMA.search(error.what):
                raise
            sent = None
            continue
        except ContextOverflow as error:
            # The prompt fitted, and only with the error and the reply it does no more.
            raise (failed or error) from error
        try:
            # Source: LM Studio's bug tracker: the object may come as the thinking, with no text after it.
            value = shape.read(reply.text if reply.text.strip() else reply.thinking)
        except Unfit as error:
            failed, spent = _bad(reply, error, repairs), reply
            if repairs == max_repairs:
                raise failed from error
            repairs += 1
            turn = [*asked, *_repair(reply.text, error)]
        else:
            return replace(reply, value=value, repairs=repairs)


def _bad(reply: Reply, error: Unfit, repairs: int) -> BadReply:
    shown = f", also after it was shown its error {repairs} times" if repairs else ""
    return BadReply(
        f"the reply of {reply.model} does not fit the schema{shown}: {error}",
        where=reply.endpoint,
        fix="Use a model that is better at JSON, or a simpler schema",
        text=reply.text,
        prompt_tokens=reply.prompt_tokens,
        output_tokens=reply.output_tokens,
    )


def _summed(reply: Reply, before: Reply) -> Reply:
    """Give a reply with what the rounds before it took."""
    return replace(
        reply, **{name: getattr(reply, name) + getattr(before, name) for name in _ADDED_UP}
    )


def _with_description(messages: Sequence[Message], shape: Shape) -> list[Message]:
    first, *rest = messages
    if first.role == "system":
        return [Message("system", f"{first.content}\n\n{shape.described}"), *rest]
    return [Message("system", shape.described), *messages]


def _repair(text: str, error: Unfit) -> list[Message]:
    return [
        Message("assistant", head_and_tail(text, _MAX_SHOWN) or "(nothing)"),
        Message(
            "user",
            f"That does not fit: {error}. Reply again, with the corrected JSON and nothing else.",
        ),
    ]


def _of_pydantic(error: pydantic.ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(str(step) for step in each['loc']) or 'all of it'}: {each['msg']}"
        for each in problems[:5]
    ]
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return printable("; ".join(shown), 600) + more


# -- reading JSON that a model wrote


def read_json(text: str) -> Any:
    """Read JSON strictly: no NaN or infinite numbers, no key twice, no half characters, not too deep.

    Raises:
        Unfit: it is none.

    """
    if len(text) > _MAX_REPLY_BYTES:
        raise Unfit(f"it has more than {_MAX_REPLY_BYTES} characters")
    try:
        value = _DECODER.decode(text)
    except Unfit:
        raise
    except RecursionError as error:
        raise Unfit(f"it is nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise Unfit(f"it is not valid JSON: {printable(str(error), 200)}") from error
    if _depth(value) > MAX_DEPTH:
        raise Unfit(f"it is nested more than {MAX_DEPTH} deep")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unfit("a text in it holds half a character (a lone surrogate)") from error
    return value


def _candidates(text: str) -> Iterator[str]:
    """Give what may be the object: the whole text, what is fenced, what begins with a bracket."""
    text = text.strip()
    yield text
    for found in list(_FENCE.finditer(text))[:_MAX_STARTS]:
        yield found[1]
    end = 0
    for found in list(re.finditer(r"[{\[]", text))[:_MAX_STARTS]:
        if found.start() < end:
            continue
        try:
            _, end = _DECODER.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            # It is no JSON from here on; the whole text has been judged above.
            continue
        yield text[found.start() : end]


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise Unfit(f"the key {printable(twice, 60)!r} is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise Unfit(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Unfit(f"the number {printable(digits, 40)} is too big")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_twice, parse_constant=_no_constant, parse_float=_finite
)


# -- schemas that people wrote


def _check_schema(schema: Mapping[str, Any]) -> None:
    try:
        size = len(json.dumps(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise _unusable(f"it is not JSON: {error}") from error
    if size > MAX_SCHEMA_BYTES:
        raise _unusable(f"it has {size} bytes, more than {MAX_SCHEMA_BYTES}")
    if _depth(schema) > MAX_DEPTH:
        raise _unusable(f"it is nested more than {MAX_DEPTH} deep")
    dialect = schema.get("$schema", _DIALECT)
    if str(dialect).rstrip("#") != _DIALECT:
        raise _unusable(f"it is written for {printable(str(dialect), 100)}")
    for each in _parts(schema):
        for name in _REFERENCES:
            target = each.get(name, "#")
            if isinstance(target, str) and not target.startswith("#"):
                raise _unusable(f"it refers to {printable(target, 100)}, which is not in it")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise _unusable(f"{error.json_path}: {printable(error.message, 200)}") from error


def _unusable(what: str) -> ConfigError:
    return ConfigError(
        f"the JSON schema can't be used: {what}",
        where="schema",
        fix="Write one of Draft 2020-12 that holds all that it refers to",
    )


def _parts(value: object) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield each
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)


def _depth(value: object) -> int:
    """Give how deep a value is nested, without recursion, and no further than is too deep."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, Mapping | list | tuple)
            for inner in (each.values() if isinstance(each, Mapping) else each)
        ]
    return depth
