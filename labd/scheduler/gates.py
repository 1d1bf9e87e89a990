"""What keeps a task from being planned at all, and how long a lost one waits."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

_RETRY_DELAYS_S = (1.0, 10.0, 60.0, 300.0)


def gate(
    now_unix_s: float,
    not_before_unix_s: float | None,
    after: Sequence[str],
    state_of: Callable[[str], str | None],
    retry_in_s: float | None,
) -> str:
    """Give the reason why a task can't even be planned yet, or nothing.

    Args:
        now_unix_s: the present time.
        not_before_unix_s: when the task may start, or None.
        after: the tasks that must be done before.
        state_of: gives the state of a task by its id, or None where there is no such task.
        retry_in_s: how long the task may not be tried again yet, or None.

    """
    if not_before_unix_s is not None and now_unix_s < not_before_unix_s:
        minute = datetime.fromtimestamp(math.ceil(not_before_unix_s / 60) * 60, UTC)
        return f"waits until {minute:%Y-%m-%d %H:%M} UTC"
    missing = [(task, state) for task in after if (state := state_of(task)) != "done"]
    if missing:  # first what somebody has to do something about
        task, state = min(missing, key=lambda each: each[1] in {"pending", "running"})
        return f"waits for {task}, which {_STATES.get(state or '', f'is {state}')}"
    if retry_in_s is not None and retry_in_s > 0:
        return f"waits {math.ceil(retry_in_s)} s before it is tried again"
    return ""


_STATES = {
    "": "nobody has submitted",
    "pending": "waits itself",
    "failed": "failed: retry it or cancel this",
    "cancelled": "was cancelled: retry it or cancel this",
}


def retry_delay_s(losses: int) -> float:
    """Give how many seconds to wait after so many losses: 0 after none, then 1, 10, 60, and 300 from the fourth on."""
    return _RETRY_DELAYS_S[min(losses, len(_RETRY_DELAYS_S)) - 1] if losses > 0 else 0.0
