"""Asking language models in the course of a task: each question a step of the journal, each answer on record.

A question is told by what is asked, not by how much of it had room in the prompt: how many tokens a text takes is
learnt on the way, and what is learnt in one attempt must not make another attempt pay again.
"""

import hashlib
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from labd.errors import ConfigError, StorageError
from labd.files import write_json
from labd.journal import Journal, digest
from labd.llm.budget import Part
from labd.llm.model import Chat, Options
from labd.research.allowance import Allowance
from labd.research.calling import Called, Caller, Notes, Patience, Think
from labd.research.experiment import Cancelled
from labd.research.replies import MAX_TEXT_BYTES, clean
from labd.research.study import ModelUse, Role
from labd.text import head_and_tail

MAX_VALUE_BYTES = 2**20
"""Of the object of a structured reply, as JSON."""
_MAX_KEPT = 2**20
"""Characters of a reply, and of the thinking before it, in its file."""
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question. All texts are a model's, and untrusted.

    Attributes:
        text: the reply without the thinking; where there is a problem, what there was of it.
        value: of the class that was asked for; ``None`` where none was, or there is a problem.
        problem: why the answer can't be used, in words; empty where it can.
        code: the problem in one word, such as ``bad_reply``, ``cut_short``, ``empty``, ``echo``, ``refusal``,
            ``allowance`` (not asked, because tokens or time are used up), ``endpoint_down``.
        model: who was asked.
        prompt_tokens, output_tokens: as the servers counted them, repairs included; an estimate where one did not.
        dropped: the parts of the prompt that the model did not see whole: which share, from 0 to 1.

    """

    text: str
    value: Any
    problem: str
    code: str
    model: str
    prompt_tokens: int
    output_tokens: int
    dropped: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Question:
    key: str
    role: Role
    parts: Sequence[Part]
    schema: type[BaseModel] | None
    options: Options
    variant: int

    def inputs(self) -> dict[str, Any]:
        """Give what tells this question from others."""
        options = self.options
        return {
            "role": self.role,
            "model": options.model,
            "num_ctx": options.num_ctx,
            "num_predict": options.num_predict,
            "temperature": options.temperature,
            "think": options.think,
            "seed": options.seed,
            "variant": self.variant,
            "schema": None if self.schema is None else self.schema.model_json_schema(),
            "parts": [
                [part.name, part.text, part.priority, part.shrink, part.role, part.required]
                for part in self.parts
            ],
        }


class Asker:
    """Asks the models of a task. Any thread may call, but not two at once with the same question.

    Args:
        chat: whom to ask.
        journal: in which each question is a step.
        allowance: what may be used up; tokens of earlier attempts are counted when their steps are replayed.
        models: for each role the name of its model.
        num_ctx: the context of all requests, in tokens.
        calls_dir: where each prompt and reply is kept whole, for people to read; made where it is missing.
        seed: the task's, from which each question has its own.
        cancelled: set by somebody else to call the work off.
        think: whether models that can do so think first.
        patience: with servers that fail.
        notes: told of what goes wrong, by any thread.

    """

    def __init__(
        self,
        chat: Chat,
        journal: Journal,
        allowance: Allowance,
        *,
        models: Mapping[Role, str],
        num_ctx: int,
        calls_dir: Path,
        seed: int,
        cancelled: threading.Event | None = None,
        think: Think = False,
        patience: Patience | None = None,
        notes: Notes = lambda _event, _detail: None,
    ) -> None:
        self.allowance, self.journal = allowance, journal
        self._models, self._calls_dir = dict(models), calls_dir
        self._num_ctx, self._seed, self._think, self._notes = num_ctx, seed, think, notes
        self._cancelled = cancelled or threading.Event()
        self._caller = Caller(
            chat,
            allowance=allowance,
            cancelled=self._cancelled,
            patience=patience or Patience(),
            notes=notes,
        )
        self._lock = threading.Lock()
        self._used: dict[str, dict[str, Any]] = {}

    def ask(
        self,
        key: str,
        role: Role,
        parts: Sequence[Part],
        *,
        schema: type[BaseModel] | None = None,
        num_predict: int = 2048,
        temperature: float | None = None,
        variant: int = 0,
        model: str | None = None,
    ) -> Answer:
        """Give what the role's model says, or what it said when the same was asked before.

        Args:
            key: the question's name in the task, such as ``trial/trial-007/edit``.
            role: whose model is asked.
            parts: of the prompt; what has no room is left out by priority.
            schema: the class of an object that is wanted; a text, where it is ``None``. Two replies that do not fit
                it are asked for again.
            num_predict: tokens of the reply at most; never more than half of the context.
            temperature: ``None``: the server's own.
            variant: another number asks the same with another seed.
            model: asked in place of the role's own.

        Raises:
            Cancelled: the work was called off.
            ModelError: the model has not answered in this attempt and can't be reached, or is not there. Where it is
                `retryable`, the same may work later.
            StorageError: the disk would not take the answer.

        """
        if self._cancelled.is_set():
            raise Cancelled("the task was cancelled")
        question = _Question(
            key=key,
            role=role,
            parts=tuple(replace(part, text=clean(part.text)) for part in parts),
            schema=schema,
            options=self._options(
                role,
                key,
                num_predict=num_predict,
                temperature=temperature,
                variant=variant,
                model=model,
            ),
            variant=variant,
        )
        inputs = question.inputs()
        recorded = self.journal.step(f"ask/{_safe(key)}", inputs, lambda: self._ask(question))
        self._count(f"{key}/{digest(inputs)}", recorded)
        return _answer(question, recorded)

    def use(self) -> list[ModelUse]:
        """Give what each model was asked in each role, as far as answers were asked for in this attempt."""
        with self._lock:
            records = list(self._used.values())
        groups: dict[tuple[str, Role], list[dict[str, Any]]] = {}
        for record in records:
            groups.setdefault((record["model"], record["role"]), []).append(record)
        return [_use(model, role, groups[model, role]) for model, role in sorted(groups)]

    def _options(
        self,
        role: Role,
        key: str,
        *,
        num_predict: int,
        temperature: float | None,
        variant: int,
        model: str | None,
    ) -> Options:
        if model is None and role not in self._models:
            raise ConfigError(
                f"no model is named for {role}",
                fix="Add `model: …` to the task or to config/labd.yaml",
            )
        return Options(
            model=model or self._models[role],
            num_ctx=self._num_ctx,
            num_predict=min(num_predict, self._num_ctx // 2),
            temperature=temperature,
            seed=derived_seed(self._seed, key, variant),
            think=self._think,
        )

    def _ask(self, question: _Question) -> dict[str, Any]:
        called = self._caller.call(question.parts, question.options, question.schema)
        record = _record(question, called)
        if called.tries:
            self._keep(question, called, record)
        if record["problem"]:
            self._notes("call.failed", f"{question.key}: {record['problem']}")
        return record

    def _keep(self, question: _Question, called: Called, record: Mapping[str, Any]) -> None:
        """Write the whole prompt and reply to a file."""
        ending = f".{question.variant}.json" if question.variant else ".json"
        path = self._calls_dir / f"{question.key}{ending}"
        kept = {
            "key": question.key,
            **{name: value for name, value in record.items() if name not in {"text", "value"}},
            "num_predict": question.options.num_predict,
            "temperature": question.options.temperature,
            "messages": [[message.role, message.content] for message in called.messages],
            "thinking": head_and_tail(called.thinking, _MAX_KEPT),
            "text": head_and_tail(called.text, _MAX_KEPT),
            "value": record["value"],
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, kept)
        except OSError as error:
            raise StorageError(
                f"the reply could not be kept: {error.strerror}", where=str(path)
            ) from error

    def _count(self, step: str, record: dict[str, Any]) -> None:
        """Take a step into account, once, be it replayed or not."""
        with self._lock:
            if step in self._used or not record["tries"]:
                return
            self._used[step] = record
        self.allowance.spend_tokens(record["prompt_tokens"] + record["output_tokens"])


def derived_seed(seed: int, key: str, variant: int = 0) -> int:
    """Give a seed from 0 to 2**31 - 1 that depends on all three."""
    raw = hashlib.sha256(f"{seed}/{variant}/{key}".encode()).digest()
    return int.from_bytes(raw[:4]) >> 1


def _record(question: _Question, called: Called) -> dict[str, Any]:
    value, unfit = _as_data(called.value)
    code, problem = ("bad_reply", unfit) if unfit else (called.code, called.problem)
    text = called.text
    if len(text.encode()) > MAX_TEXT_BYTES:
        text = head_and_tail(text, MAX_TEXT_BYTES // 8)
    return {
        "role": question.role,
        "model": question.options.model,
        "seed": question.options.seed,
        "text": text,
        "value": value,
        "code": code,
        "problem": problem,
        "prompt_tokens": called.prompt_tokens,
        "output_tokens": called.output_tokens,
        "wall_s": called.wall_s,
        "tries": called.tries,
        "dropped": {name: round(share, 3) for name, share in called.dropped.items()},
        "provenance": called.provenance,
    }


def _as_data(value: BaseModel | None) -> tuple[Any, str]:
    """Give a validated object as JSON data, or why it can't be kept."""
    if value is None:
        return None, ""
    data = value.model_dump(mode="json")
    try:
        raw = json.dumps(data, allow_nan=False)
    except ValueError:
        return None, "the reply holds a number that is not finite"
    if len(raw) > MAX_VALUE_BYTES:
        return None, f"the reply has more than {MAX_VALUE_BYTES} bytes"
    return data, ""


def _answer(question: _Question, record: Mapping[str, Any]) -> Answer:
    value, code, problem = None, record["code"], record["problem"]
    if question.schema is not None and not problem:
        try:
            value = question.schema.model_validate_json(json.dumps(record["value"]))
        except ValidationError:
            code, problem = "bad_reply", "the reply that is on record does not fit what is wanted"
    return Answer(
        text=record["text"],
        value=value,
        problem=problem,
        code=code,
        model=record["model"],
        prompt_tokens=record["prompt_tokens"],
        output_tokens=record["output_tokens"],
        dropped=record.get("dropped", {}),  # a journal may be older
    )


def _use(model: str, role: Role, records: Sequence[Mapping[str, Any]]) -> ModelUse:
    digests = sorted({str(record["provenance"].get("digest", "")) for record in records} - {""})
    return ModelUse(
        model=model,
        digest=", ".join(digests),
        role=role,
        calls=len(records),
        failed=sum(bool(record["problem"]) for record in records),
        prompt_tokens=sum(record["prompt_tokens"] for record in records),
        output_tokens=sum(record["output_tokens"] for record in records),
        # An exact sum, so that it does not depend on the order in which answers came.
        hours=round(math.fsum(record["wall_s"] for record in records) / 3600, 6),
    )


def _safe(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{key!r} can't be the name of a question")
    return key
