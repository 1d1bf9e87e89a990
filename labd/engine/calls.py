"""Asking an actor: plain data there and plain data back, and its loss as the errors of a lost connection."""

from collections.abc import Callable, Collection
from typing import Any

import ray

TIMEOUT_S = 60.0

Call = Callable[..., dict[str, Any]]


def calls_to(actor: Any, who: str, *, apart: Collection[str] = ()) -> Call:
    """Give ``call(method, /, **data) -> data``, bound to an actor that has ``answer(method, data)``.

    `apart`: methods that have a group of the actor's threads of the same name for themselves. What the call raises:
    `TimeoutError`: no answer within a minute; `ConnectionError`: the actor is gone. Both name it as `who`.
    """

    def call(method: str, /, **data: Any) -> dict[str, Any]:
        asked = actor.answer
        if method in apart:
            asked = asked.options(concurrency_group=method)
        try:
            answer: dict[str, Any] = ray.get(asked.remote(method, data), timeout=TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(f"{who} did not answer") from error
        except ray.exceptions.RayError as error:
            raise ConnectionError(f"{who} is gone: {type(error).__name__}") from error
        return answer

    return call
