"""One question to a language model, whatever the model and its servers do: what came back, or why nothing of use did.

A model's failure is a result here. A server's failure is waited for, within bounds. Knows nothing of journals.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from labd.llm.budget import Fitted, Part, TokenRate, fit, prompt_room, size_bytes
from labd.llm.errors import (
    BadReply,
    ContextOverflow,
    CutShort,
    EndpointDown,
    ModelError,
    RequestRefused,
    Stopped,
)
from labd.llm.model import Cancel, Chat, Message, Options, Reply, name_of
from labd.llm.structured import Shape
from labd.research.allowance import Allowance
from labd.research.experiment import Cancelled
from labd.research.replies import clean, problem_of, without_thoughts
from labd.text import printable

Think = bool | Literal["low", "medium", "high"]
Notes = Callable[[str, str], None]
"""Gets an event's name and a short text; called by any thread, must not raise."""

ALLOWANCE = "allowance"
"""The code of a call that was not made, or ended, because the task has used up what it has."""
_POLL_S = 0.1
_MAX_REFITS = 6
_TOKENS_OF_A_MESSAGE = 16
_MAX_LOST = 3
"""After so many calls in a row that nobody answered the task had better come back later, and go on from its journal."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long servers that fail are waited for. What a pool of endpoints waits itself comes on top.

    Attributes:
        delays_s: the pauses between the tries of one call, of which there is one more.
        total_s: after so long no further try of a call is begun.
        first_s: the same as long as the model has not answered anything, when the task may as well come back later.
        probe_s: how long a server has to take a request, after nobody was there for the last one.

    """

    delays_s: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 60.0)
    total_s: float = 600.0
    first_s: float = 60.0
    probe_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Called:
    """What came of a call.

    Attributes:
        text: the reply without the thinking, or what there was of it.
        value: the object that was asked for by a schema; ``None`` where there is none.
        code, problem: why it is of no use; both empty where it may be.
        wall_s: seconds in which a server worked on it.
        tries: requests that were begun, those of a pool and its repairs not counted.
        messages: what was sent; empty where nothing was.
        dropped: the prompt's parts that had no room, or not all of it: which share had none.
        provenance: see `labd.llm.model.Reply.provenance`; empty where there was no whole reply.

    """

    text: str = ""
    thinking: str = ""
    value: BaseModel | None = None
    code: str = ""
    problem: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    wall_s: float = 0.0
    tries: int = 0
    messages: tuple[Message, ...] = ()
    dropped: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


class _Model:
    """What is known of one model during an attempt."""

    def __init__(self) -> None:
        self.rate = TokenRate()
        self.answered = False
        """Somebody was there for it."""
        self.silent = False
        """The last call of it was given up because nobody was there."""
        self.lost = 0
        """So many calls in a row were given up."""

    def heard(self) -> None:
        """Note an answer, be it a bad one."""
        self.answered, self.silent, self.lost = True, False, 0

    def give_up(self, error: ModelError) -> None:
        """Note a call that nobody answers.

        Raises:
            ModelError: it is better to come back later than to go on without the model.

        """
        self.silent = True
        self.lost += 1
        if not self.answered or (error.retryable and self.lost >= _MAX_LOST):
            raise error


@dataclass(slots=True)
class _Effort:
    """What one call has taken so far."""

    began_s: float
    tries: int = 0
    failures: int = 0
    refits: int = 0
    worked_s: float = 0.0
    fitted: Fitted | None = None
    around_bytes: int = 0
    """Of the prompt: what is put beside the fitted parts, the schema's description."""

    @property
    def prompt_bytes(self) -> int:
        """The bytes of the whole prompt."""
        messages = () if self.fitted is None else self.fitted.messages
        return self.around_bytes + sum(size_bytes(message.content) for message in messages)


class Caller:
    """Asks models and bears with them. Any thread may call.

    Args:
        chat: whom to ask.
        allowance: whose deadline ends a call.
        cancelled: set by somebody else to call all off.
        patience: with servers that fail.
        notes: told of what went wrong.

    """

    def __init__(
        self,
        chat: Chat,
        *,
        allowance: Allowance,
        cancelled: threading.Event,
        patience: Patience,
        notes: Notes,
    ) -> None:
        self._chat, self._allowance, self._cancelled = chat, allowance, cancelled
        self._patience, self._notes = patience, notes
        self._lock = threading.Lock()
        self._models: dict[str, _Model] = {}

    def call(
        self, parts: Sequence[Part], options: Options, schema: type[BaseModel] | None
    ) -> Called:
        """Give what a model says to a prompt made of `parts`, as much of them as fits.

        Raises:
            Cancelled: the work was called off.
            ModelError: the model has not answered anything yet and can't be reached, or is not there; or it has not
                been reached for several calls in a row.

        """
        model = self._model(options.model)
        effort = _Effort(time.monotonic())
        while True:
            self._check_cancelled()
            if out := self._allowance.out_of(of=("time", "tokens")):
                return _nothing(effort, ALLOWANCE, out)
            try:
                _fit(effort, parts, options, schema, model.rate)
                reply = self._once(effort, options, schema, model)
            except ContextOverflow as error:
                if effort.refits < _MAX_REFITS and _learnt(effort, options, model):
                    continue
                return _failed(effort, error, model)
            except (BadReply, CutShort, RequestRefused) as error:
                model.heard()
                return _failed(effort, error, model)
            except Stopped as error:
                return self._stopped(effort, error, model)
            except ModelError as error:
                if not self._again(effort, error, model):
                    return _failed(effort, error, model)
            else:
                model.heard()
                return _judged(effort, reply, model)

    def _model(self, name: str) -> _Model:
        with self._lock:
            return self._models.setdefault(name_of(name), _Model())

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the task was cancelled")

    def _once(
        self, effort: _Effort, options: Options, schema: type[BaseModel] | None, model: _Model
    ) -> Reply:
        """Ask once. The time that servers worked is added up, also of what fails."""
        if effort.fitted is None:
            raise ContextOverflow("there is no prompt")
        cancel, begun_s = Cancel(), list[float]()
        try:
            with self._watched(cancel, begun_s, probe=model.silent):
                reply = self._chat.chat(
                    effort.fitted.messages,
                    options,
                    schema=schema,
                    cancel=cancel,
                    on_start=lambda: begun_s.append(time.monotonic()),
                )
        except ModelError:
            effort.worked_s += time.monotonic() - begun_s[0] if begun_s else 0.0
            raise
        finally:
            effort.tries += bool(begun_s)
        effort.worked_s += reply.wall_s
        return reply

    @contextmanager
    def _watched(self, cancel: Cancel, begun_s: Sequence[float], *, probe: bool) -> Iterator[None]:
        """Give up on a request when the work is called off, or the time is over, or nobody takes it."""
        over = threading.Event()
        probed_until_s = time.monotonic() + self._patience.probe_s

        def unwanted() -> bool:
            untaken = probe and not begun_s and time.monotonic() > probed_until_s
            return (
                self._cancelled.is_set() or untaken or bool(self._allowance.out_of(of=("time",)))
            )

        def watch() -> None:
            while not over.wait(_POLL_S):
                if unwanted():
                    cancel.cancel()
                    return

        thread = threading.Thread(target=watch, name="watch-call", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _stopped(self, effort: _Effort, error: Stopped, model: _Model) -> Called:
        """Judge a request that was given up.

        Raises:
            ModelError: see `_Model.give_up`.

        """
        self._check_cancelled()
        if out := self._allowance.out_of(of=("time",)):
            return _nothing(effort, ALLOWANCE, out)
        if not model.silent:
            raise error  # not by us: whoever lends the models has closed
        untaken = EndpointDown("no server took the request")
        model.give_up(untaken)
        return _failed(effort, untaken, model)

    def _again(self, effort: _Effort, error: ModelError, model: _Model) -> bool:
        """Wait before the next try after a server's failure, or say that there is none.

        Raises:
            ModelError: there is none, see `_Model.give_up`.

        """
        patience = self._patience
        limit_s = patience.total_s if model.answered else patience.first_s
        waited_s = time.monotonic() - effort.began_s
        patient = not model.silent and waited_s < limit_s
        if error.retryable and patient and effort.failures < len(patience.delays_s):
            delay_s = patience.delays_s[effort.failures]
            effort.failures += 1
            self._notes("call.again", f"in {delay_s:g} s: {printable(str(error), 300)}")
            self._pause(delay_s)
            return True
        model.give_up(error)
        return False

    def _pause(self, seconds: float) -> None:
        left_s = self._allowance.seconds_left()
        self._cancelled.wait(seconds if left_s is None else max(0.0, min(seconds, left_s)))


def _fit(
    effort: _Effort,
    parts: Sequence[Part],
    options: Options,
    schema: type[BaseModel] | None,
    rate: TokenRate,
) -> None:
    room = prompt_room(options)
    if schema is not None:  # its description goes into the prompt, too
        effort.around_bytes = size_bytes(Shape(schema).described)
        room -= rate.estimate(effort.around_bytes) + _TOKENS_OF_A_MESSAGE
    effort.fitted = None
    effort.fitted = fit(parts, room, rate)


def _learnt(effort: _Effort, options: Options, model: _Model) -> bool:
    """Take from a prompt that was too long that such text takes more tokens; say whether that helps."""
    if effort.fitted is None:
        return False  # what has to be in it does not fit
    model.heard()
    effort.refits += 1
    before = model.rate.estimate(options.num_ctx)
    # No more than twice what was thought: it may have been too long for another reason than its text.
    tokens = min(options.num_ctx, 2 * model.rate.estimate(effort.prompt_bytes))
    model.rate.learn(effort.prompt_bytes, tokens)
    return model.rate.estimate(options.num_ctx) > before


def _judged(effort: _Effort, reply: Reply, model: _Model) -> Called:
    messages = () if effort.fitted is None else effort.fitted.messages
    if not reply.repairs:  # else the tokens are those of several prompts
        model.rate.learn(effort.prompt_bytes, reply.prompt_tokens)
    text, thinking = without_thoughts(clean(reply.text)), clean(reply.thinking)
    code, problem = ("", "") if reply.value is not None else problem_of(text, messages)
    said_bytes = size_bytes(reply.text) + size_bytes(thinking)
    return Called(
        text=text,
        thinking=thinking,
        value=reply.value,
        code=code,
        problem=problem,
        prompt_tokens=reply.prompt_tokens or _estimated(model, effort.prompt_bytes),
        output_tokens=reply.output_tokens or _estimated(model, said_bytes),
        provenance=reply.provenance(),
        **_of(effort),
    )


def _estimated(model: _Model, text_bytes: int) -> int:
    """Give the tokens of a text that no server has counted, so that a task without counts ends all the same."""
    return model.rate.estimate(text_bytes)


def _failed(effort: _Effort, error: ModelError, model: _Model) -> Called:
    text, prompt_tokens, output_tokens = "", 0, 0
    if isinstance(error, BadReply | CutShort):
        text = clean(error.text)
        prompt_tokens = error.prompt_tokens or _estimated(model, effort.prompt_bytes)
        output_tokens = error.output_tokens or _estimated(model, size_bytes(text))
    return Called(
        text=text,
        code=error.code,
        problem=printable(error.what, 600),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        **_of(effort),
    )


def _nothing(effort: _Effort, code: str, problem: str) -> Called:
    return Called(code=code, problem=problem, **_of(effort))


def _of(effort: _Effort) -> dict[str, Any]:
    fitted = effort.fitted if effort.tries else None
    return {
        "wall_s": round(effort.worked_s, 3),
        "tries": effort.tries,
        "messages": () if fitted is None else fitted.messages,
        "dropped": {} if fitted is None else dict(fitted.dropped),
    }
