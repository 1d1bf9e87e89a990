"""One attempt at a task of prompts: every line of its input asked once, every reply on record as it comes.

Knows the endpoints only as a `labd.llm.model.Chat`; nothing of Ray or the spool.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labd.clock import print_duration
from labd.command.places import LOCK, Fence, find_input, located
from labd.errors import TaskFileError
from labd.files import locked_within
from labd.llm.errors import BadReply, ModelError, Stopped
from labd.llm.model import Cancel, Chat, Options, Reply
from labd.log import Logger
from labd.prompts.crew import Crew
from labd.prompts.lines import Bad, InputError, Prompts, open_prompts
from labd.prompts.pace import Pace
from labd.prompts.policy import Again, Over, Own, Policy, Ticket
from labd.prompts.records import Asked, Known, Records
from labd.prompts.wording import Wording, asked_of, prompt_sha256, sha256_of
from labd.task import TaskFile, TaskSpec
from labd.text import printable

_LOCK_TIMEOUT_S = 60.0
_MAX_TOLD = 20
_SHARE_KEPT = 0.03
_LEAST_KEPT_S = 3.0
_MOST_SHARE_KEPT = 0.1

_NO_MODEL = "no model: neither the task nor the settings name one"
_NAME_ONE = "Add `model: …` to the task, or `llm: {model: …}` to config/labd.yaml"

Progress = Callable[[str, int, int, str], None]
"""Gets the stage, how many of how many, and a detail."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up.

    Attributes:
        deadline_s: on the clock of `time.monotonic`: nothing is asked after it.
        timeout_s: the task's own, of which the deadline is a part; for people to read.
        silence_s: how long no prompt may be answered at all, while all that come back have failed.

    """

    deadline_s: float
    timeout_s: float
    silence_s: float = 300.0

    @classmethod
    def within(cls, started_s: float, timeout_s: float) -> "Patience":
        """Leave enough of a timeout for writing down what there is."""
        kept_s = max(_SHARE_KEPT * timeout_s, min(_LEAST_KEPT_S, _MOST_SHARE_KEPT * timeout_s))
        return cls(started_s + timeout_s - kept_s, timeout_s)

    def over(self) -> Over | None:
        """Give the end of the attempt, if its time is over."""
        if time.monotonic() < self.deadline_s:
            return None
        timeout = print_duration(self.timeout_s)
        return Over("timed_out", f"it was stopped just before its timeout of {timeout}")


@dataclass(frozen=True, slots=True)
class Report:
    """How an attempt ended."""

    facts: dict[str, Any]
    """For `result.json`: input, model, prompts, tokens, tokens_per_s, endpoints."""
    summary: str
    """One line."""
    error: dict[str, Any] | None
    """``None`` if the task is done; else ``code``, ``message`` and ``retryable``."""


@dataclass(slots=True)
class _Counts:
    """What this attempt got."""

    replies: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    put_back: int = 0
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)


def run_prompts(
    task: TaskFile,
    chat: Chat,
    *,
    where: str,
    results: Path,
    fence: Fence,
    defaults: Options,
    patience: Patience,
    progress: Progress,
    log: Logger,
) -> Report:
    """Have every prompt of a task answered that is not on record yet, and write what there is.

    Args:
        task: of kind prompts.
        chat: whom to ask; called by many threads.
        where: the task's file, for messages.
        results: the task's own directory; it exists.
        fence: where the input may lie.
        defaults: what holds for a task that does not say; the model may be empty.
        patience: when to give up.
        progress: how far it is.
        log: the attempt's.

    Raises:
        TaskFileError: the input may not be had, or is not what it should be; nothing was asked.
        StillHeld: an earlier attempt is still alive, or retention is at its results.
        StorageError, OSError: the disk would not take what had to be written.

    """
    options = options_of(task.spec, defaults)
    if not options.model:
        raise TaskFileError(_NO_MODEL, where=where, fix=_NAME_ONE)
    with ExitStack() as held:
        held.enter_context(locked_within(results / LOCK, _LOCK_TIMEOUT_S))
        path, refused = find_input(task, fence=fence, at_run=True)
        if refused:
            raise TaskFileError(located(task, where, refused))
        wording = Wording(task.spec)
        held.callback(wording.close)
        try:
            prompts = held.enter_context(_opened(path, wording, patience, progress))
        except _Ended as ended:
            return Report({}, "the input was not read to its end", _error(ended.over))
        work = _Work(
            task,
            chat,
            options=options,
            prompts=prompts,
            wording=wording,
            patience=patience,
            progress=progress,
            log=log,
            results=results,
        )
        held.callback(work.records.close)
        return work.run()


def options_of(spec: TaskSpec, defaults: Options) -> Options:
    """Give the options of a task's requests; what it leaves out is as in `defaults`."""
    given = {
        name: value
        for name in spec.options.model_fields_set
        if (value := getattr(spec.options, name)) is not None
    }
    model = spec.model if isinstance(spec.model, str) else defaults.model
    return replace(defaults, model=model, **given)


class _Ended(Exception):
    """The attempt has to end before anything was asked."""

    def __init__(self, over: Over) -> None:
        super().__init__(over)
        self.over = over


def _opened(path: Path, wording: Wording, patience: Patience, progress: Progress) -> Prompts:
    """Look through the whole input, and make every prompt once, so that nothing is asked if one is bad."""
    pace = Pace(time.monotonic())

    def tick(lines: int) -> None:
        if (over := patience.over()) is not None:
            raise _Ended(over)
        if pace.due(time.monotonic()):
            progress("input", 0, 1, f"{lines:,} lines read")

    prompts = open_prompts(path, templated=wording.templated, check=wording.messages, tick=tick)
    progress("input", 1, 1, f"{len(prompts):,} prompts")
    return prompts


class _Work:
    """One attempt, once its input is known to be good."""

    def __init__(
        self,
        task: TaskFile,
        chat: Chat,
        *,
        options: Options,
        prompts: Prompts,
        wording: Wording,
        patience: Patience,
        progress: Progress,
        log: Logger,
        results: Path,
    ) -> None:
        self._task_id = results.name
        self._chat, self._options, self._schema = chat, options, task.spec.reply_schema
        self._prompts, self._wording, self._patience = prompts, wording, patience
        self._progress, self._log = progress, log
        asked = asked_of(options, self._schema)
        texts = {"system": task.spec.system, "template": task.spec.template}
        self.records = Records(
            results, prompts, Asked(prompts.sha256, sha256_of({**asked, **texts})), self._hash_of
        )
        self._reused = self.records.count(Known.REPLY)
        self._policy = Policy(
            silence_s=patience.silence_s,
            max_errors=task.spec.max_errors,
            errors=self.records.count(Known.ERROR),
        )
        self._mutex = threading.Lock()
        self._counts = _Counts()
        self._errors = self.records.count(Known.ERROR)
        self._over: Over | None = None
        self._cancel = Cancel()
        self._pace = Pace(time.monotonic())
        self._crew = Crew(self._tickets(), self._ask, self._cancel.cancel)

    def run(self) -> Report:
        """Ask what is not on record, and write the outputs, whatever happened."""
        facts = {"prompts": len(self._prompts), "on_record": self._reused}
        self._log.info("prompts.begun", **facts, input_sha256=self._prompts.sha256)
        if self.records.unreadable:
            self._log.warning("prompts.record_unreadable", lines=self.records.unreadable)
        try:
            self._crew.run(self._turn)
        finally:
            self.records.sync(at_once=True)
            self.records.write_outputs()
        self._tell(time.monotonic())
        return self._report()

    # --- in the threads

    def _tickets(self) -> Iterator[Ticket]:
        for index in range(len(self._prompts)):
            if self.records.known(index) is Known.NOTHING:
                yield Ticket(index)

    def _ask(self, ticket: Ticket, started: Callable[[], None]) -> float | None:
        line = self._prompts.line(ticket.index)
        try:
            messages = self._wording.messages(line)
        except Bad as bad:
            raise InputError(bad.found, where=f"{self._prompts.path}, id {line.id}") from bad
        sha256 = prompt_sha256(messages, self._options, self._schema)
        try:
            reply = self._chat.chat(
                messages,
                self._options,
                schema=self._schema,
                cancel=self._cancel,
                on_start=started,
                following=max(0, self._left() - self._crew.threads),
            )
            self._take(ticket, line.id, sha256, reply)
        except Stopped as error:
            return None if self._cancel.cancelled else self._judge(ticket, line.id, sha256, error)
        except ModelError as error:
            return self._judge(ticket, line.id, sha256, error)
        return None

    def _take(self, ticket: Ticket, own_id: str, sha256: str, reply: Reply) -> None:
        try:
            self.records.add_reply(ticket.index, own_id, sha256, reply)
        except ValueError as error:
            raise BadReply(f"the reply can't be kept as JSON: {error}") from error
        with self._mutex:
            self._policy.replied()
            counts = self._counts
            counts.replies += 1
            counts.prompt_tokens += reply.prompt_tokens
            counts.output_tokens += reply.output_tokens
            counts.sources[reply.endpoint, reply.digest] += 1
            self._pace.count(reply.output_tokens)

    def _judge(self, ticket: Ticket, own_id: str, sha256: str, error: ModelError) -> float | None:
        with self._mutex:
            verdict = self._policy.judge(error, ticket, time.monotonic())
            if isinstance(verdict, Again):
                self._counts.put_back += 1
                if self._counts.put_back <= _MAX_TOLD:
                    self._warn("prompt.put_back", own_id, error, delay_s=verdict.delay_s)
                return verdict.delay_s
            own = isinstance(verdict, Own) or verdict.own
            if own:
                self._errors += 1
                self._pace.count(0)
                if self._errors <= _MAX_TOLD:
                    self._warn("prompt.failed", own_id, error)
        if own:
            self.records.add_error(ticket.index, own_id, sha256, error)
        if isinstance(verdict, Over):
            self._end(verdict)
        return None

    def _warn(self, event: str, own_id: str, error: ModelError, **facts: Any) -> None:
        self._log.warning(event, prompt=own_id, code=error.code, detail=str(error)[:500], **facts)

    def _end(self, over: Over) -> None:
        with self._mutex:
            self._over = self._over or over
        self._crew.stop()

    # --- in the thread of the attempt

    def _turn(self) -> None:
        self.records.sync()
        if self._over is None and (over := self._patience.over()) is not None:
            self._end(over)
        now_s = time.monotonic()
        if self._pace.due(now_s):
            self._tell(now_s)

    def _tell(self, now_s: float) -> None:
        left, total = self._left(), len(self._prompts)
        detail = self._pace.detail(now_s, left, self._errors)
        self._progress("prompts", total - left, total, detail)

    def _left(self) -> int:
        return len(self._prompts) - self._reused - self._counts.replies - self._errors

    def _hash_of(self, index: int) -> str:
        try:
            messages = self._wording.messages(self._prompts.line(index))
        except Bad:
            return ""
        return prompt_sha256(messages, self._options, self._schema)

    # --- the end

    def _report(self) -> Report:
        answered = self.records.count(Known.REPLY)
        over = self._over
        if over is None and not answered:
            over = Over(
                "no_reply",
                f"no prompt has a reply; errors.jsonl says why of each: {self._first_error()}",
            )
        if over is not None and not over.retryable:
            self.records.end()
        total = len(self._prompts)
        if over is not None and total - answered - self._errors > 0:
            told = f"{over.message}. {answered:,} of {total:,} prompts are answered"
            goes_on = (
                ""
                if over.retryable
                else f"; `labd retry {printable(self._task_id)}` goes on with the rest"
            )
            over = Over(over.code, told + goes_on, over.retryable)
        error = None if over is None else _error(over)
        return Report(self._facts(answered), self._summary(answered), error)

    def _first_error(self) -> str:
        return self.records.first_error() or "none was asked"

    def _facts(self, answered: int) -> dict[str, Any]:
        counts, prompts = self._counts, self._prompts
        return {
            "input": {
                "path": str(prompts.path),
                "sha256": prompts.sha256,
                "size_bytes": prompts.size_bytes,
            },
            "model": self._options.model,
            "prompts": {
                "total": len(prompts),
                "answered": answered,
                "answered_before": self._reused,
                "errors": self._errors,
                "put_back": counts.put_back,
            },
            "tokens": counts.prompt_tokens + counts.output_tokens,
            "output_tokens": counts.output_tokens,
            "tokens_per_s": round(self._pace.tokens_per_s(time.monotonic()), 1),
            "endpoints": [
                {"endpoint": endpoint, "digest": digest, "replies": replies}
                for (endpoint, digest), replies in sorted(counts.sources.items())
            ],
        }

    def _summary(self, answered: int) -> str:
        counts, errors = self._counts, self._errors
        parts = [f"{answered:,} of {len(self._prompts):,} prompts answered"]
        if self._reused:
            parts.append(f"{self._reused:,} of them before this attempt")
        if errors:
            parts.append(f"{errors:,} error{'' if errors == 1 else 's'}")
        rate = self._pace.tokens_per_s(time.monotonic())
        tokens = _short(counts.prompt_tokens + counts.output_tokens)
        text = f"{', '.join(parts)}; {rate:,.0f} tokens/s; {tokens} tokens"
        digests = {digest for _, digest in counts.sources if digest}
        return (
            text
            if len(digests) < 2
            else f"{text}; {len(digests)} different weights under this name"
        )


def _error(over: Over) -> dict[str, Any]:
    return {"code": over.code, "message": over.message, "retryable": over.retryable}


def _short(count: int) -> str:
    """Give a count for people: ``950``, ``12.3 k``, ``1.2 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
