"""The node's end of the link: asks the store, and asks again for as long as a message or its answer was lost."""

import threading
import time
from collections.abc import Callable
from typing import Any

from labd.errors import Busy, LabdError
from labd.shipping.model import LinkLost, error_from_data
from labd.shipping.tally import SHIPPED
from labd.text import printable

Call = Callable[..., dict[str, Any]]
"""``call(method, /, **data)`` gives what `Store.answer` gave. It may be called by two threads at once, has a
time-out of its own, and raises `OSError` (`ConnectionError` or `TimeoutError`) or `EOFError` where the message
or its answer may be lost."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0


class Link:
    """The store as the node sees it. After `cut` every call ends at once."""

    def __init__(self, call: Call, timeout_s: float) -> None:
        self._call = call
        self._timeout_s = timeout_s
        self._cut = threading.Event()
        self._reason: LabdError | None = None

    def ask(self, method: str, /, **data: Any) -> Any:
        """Give what the store's method gives. All of them may be repeated, so a lost answer costs nothing.

        Raises:
            LinkLost: no answer came within the time-out.
            LabdError: what the store raised; `Busy` only after it was so for the whole time-out.

        """
        deadline = time.monotonic() + self._timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            if self._reason is not None:
                raise self._reason
            value, error = self._once(method, data)
            if error is None:
                return value
            if not isinstance(error, Busy | LinkLost) or time.monotonic() + pause_s > deadline:
                raise error
            self._cut.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def cut(self, reason: LabdError) -> None:
        """Let every call from now on raise `reason`, and no longer wait for the head."""
        self._reason = self._reason or reason
        self._cut.set()

    def _once(self, method: str, data: dict[str, Any]) -> tuple[Any, LabdError | None]:
        try:
            reply = self._call(method, **data)
        except (OSError, EOFError) as error:
            said = printable(str(error) or type(error).__name__, 200)
            lost = LinkLost(
                f"the head could not be reached for {self._timeout_s:g} s: {said}", where=method
            )
            return None, lost
        if "value" in reply:
            SHIPPED.answered(data, reply["value"])
            return reply["value"], None
        return None, error_from_data(reply["error"])
