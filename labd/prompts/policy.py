"""What becomes of a prompt that was not answered: again later, an error of its own, or the end of the attempt. Pure."""

from dataclasses import dataclass

from labd.clock import print_duration
from labd.llm.errors import (
    EndpointMisconfigured,
    ModelError,
    ModelMissing,
    ModelRefused,
    RequestRefused,
)

MAX_AGAIN = 5
_FIRST_DELAY_S, _MAX_DELAY_S = 1.0, 30.0
_REFUSED_IN_A_ROW = 20
_FAILED_IN_A_ROW = 5
_OF_THE_MODEL = (ModelMissing, ModelRefused, EndpointMisconfigured)


@dataclass(slots=True)
class Ticket:
    """One prompt on its way. `again`: how often it was put back; `since`: replies before its first failure."""

    index: int
    again: int = 0
    since: int = -1


@dataclass(frozen=True, slots=True)
class Again:
    """The prompt is asked again after so long, while others go on."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Own:
    """The error is the prompt's own."""


@dataclass(frozen=True, slots=True)
class Over:
    """The attempt ends. `own`: with an error that is the prompt's own."""

    code: str
    message: str
    retryable: bool = False
    own: bool = False


Verdict = Again | Own | Over


class Policy:
    """Judges what comes back, in the order in which it comes. Not safe for threads; time is handed in.

    Args:
        silence_s: how long no prompt may be answered at all, while all that come back have failed.
        max_errors: how many prompts may have an error of their own; ``None``: all but one.

    """

    def __init__(self, *, silence_s: float, max_errors: int | None, errors: int = 0) -> None:
        self._silence_s = silence_s
        self._max_errors = max_errors
        self._errors = errors
        self._answers = 0
        self._failed_in_a_row = 0
        self._failing_since_s = 0.0
        self._replied = False
        self._refused: tuple[str, int] = ("", 0)

    def replied(self) -> None:
        """Note a reply."""
        self._replied = True
        self._answered()

    def judge(self, error: ModelError, ticket: Ticket, now_s: float) -> Verdict:
        """Say what becomes of a prompt after an error."""
        if isinstance(error, _OF_THE_MODEL):
            return Over(error.code, str(error))
        if error.retryable or error.elsewhere:
            return self._failed(error, ticket, now_s)
        self._answered()
        self._errors += 1
        return self._refusals(error) or self._too_many() or Own()

    def _answered(self) -> None:
        # An error of the prompt's own is an answer, too: somebody was there.
        self._answers += 1
        self._failed_in_a_row = 0

    def _failed(self, error: ModelError, ticket: Ticket, now_s: float) -> Verdict:
        if self._failed_in_a_row == 0:
            self._failing_since_s = now_s
        self._failed_in_a_row += 1
        silent_s = now_s - self._failing_since_s
        if self._failed_in_a_row >= _FAILED_IN_A_ROW and silent_s >= self._silence_s:
            before = f"no prompt was answered for {print_duration(silent_s)}; the last error: "
            return Over(error.code, f"{before}{error}", retryable=True)
        if ticket.since < 0:
            ticket.since = self._answers
        # Where nobody has answered anything since, the fault is not this prompt's.
        if ticket.again >= MAX_AGAIN and self._answers > ticket.since:
            self._errors += 1
            return self._too_many() or Own()
        ticket.again += 1
        return Again(min(_FIRST_DELAY_S * 2.0 ** (ticket.again - 1), _MAX_DELAY_S))

    def _refusals(self, error: ModelError) -> Over | None:
        """End it where the first prompts are all refused for one reason, which is then not theirs."""
        if self._replied or not isinstance(error, RequestRefused):
            self._refused = ("", 0)
            return None
        text, count = self._refused
        self._refused = (error.what, count + 1 if text == error.what else 1)
        if self._refused[1] < _REFUSED_IN_A_ROW:
            return None
        return Over(
            error.code,
            f"the first {_REFUSED_IN_A_ROW} prompts were all refused: {error}",
            own=True,
        )

    def _too_many(self) -> Over | None:
        if self._max_errors is None or self._errors <= self._max_errors:
            return None
        return Over(
            "too_many_errors",
            f"{self._errors} prompts can't be answered, and `max_errors` is {self._max_errors}",
        )
