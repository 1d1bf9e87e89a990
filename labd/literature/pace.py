"""How often a source may be asked, and whether it is down: one small file each, shared by all processes."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labd.clock import to_iso
from labd.errors import TimedOut
from labd.files import locked_within, write_json
from labd.literature.model import SourceFailed
from labd.literature.paper import SourceName
from labd.text import printable

DOWN_S = 300.0
"""How long a source that failed is not asked again."""
MAX_DOWN_S = 3600.0
"""The longest that a source may ask for to be left alone; OpenAlex asks for half a day when a day's allowance is used."""
_LOCK_S = 5.0


@dataclass(frozen=True, slots=True)
class _State:
    next_at_s: float = 0.0
    down_until_s: float = 0.0
    why: str = ""


class Pace:
    """Turns at one source, `spacing_s` apart, and its failures."""

    def __init__(self, directory: Path, name: SourceName, spacing_s: float) -> None:
        self._path = directory / f"{name}.pace.json"
        self._lock = directory / f"{name}.lock"
        self._spacing_s = spacing_s

    def wait(self, deadline_s: float) -> None:
        """Come back when it is this process's turn.

        Raises:
            SourceFailed: the source is down, or the turn would come after `deadline_s` (monotonic).

        """
        pause_s = self._take(deadline_s)
        if pause_s > 0:
            time.sleep(pause_s)

    def _take(self, deadline_s: float) -> float:
        """Give the seconds until the turn that was taken."""
        left_s = deadline_s - time.monotonic()
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            with locked_within(self._lock, max(0.0, min(left_s, _LOCK_S))):
                now_s, state = time.time(), self._read()
                self._refuse_while_down(state, now_s)
                turn_s = max(now_s, state.next_at_s)
                if turn_s - now_s >= left_s:
                    what = "its turn would come after the time for the search"
                    raise SourceFailed(what, is_down=False)
                self._write(_State(turn_s + self._spacing_s))
                return turn_s - now_s
        except (OSError, TimedOut) as error:
            what = f"its turns can't be kept: {printable(str(error), 200)}"
            raise SourceFailed(what, is_down=False) from error

    def note_failure(self, failure: SourceFailed) -> None:
        """Remember that the source is down, if that is what the failure means."""
        if not failure.is_down:
            return
        pause_s = min(max(failure.retry_after_s or 0.0, DOWN_S), MAX_DOWN_S)
        now_s = time.time()
        try:
            with locked_within(self._lock, _LOCK_S):
                next_at_s = self._read().next_at_s
                self._write(_State(next_at_s, now_s + pause_s, failure.what))
        except (OSError, TimedOut) as error:
            what = f"{failure.what}, and that can't be kept: {printable(str(error), 200)}"
            raise SourceFailed(what) from error

    def _refuse_while_down(self, state: _State, now_s: float) -> None:
        if state.down_until_s > now_s:
            until = to_iso(datetime.fromtimestamp(state.down_until_s, UTC))
            what = f"not asked before {until}, because it failed: {state.why}"
            raise SourceFailed(what, is_down=False)

    def _read(self) -> _State:
        # What is unreadable or from the future (a clock that was set back) is as good as nothing.
        try:
            raw: Any = json.loads(self._path.read_bytes()[:4096])
            state = _State(float(raw["next_at_s"]), float(raw["down_until_s"]), str(raw["why"]))
        except (OSError, ValueError, TypeError, KeyError):
            return _State()
        now_s = time.time()
        is_sane = state.next_at_s < now_s + 100 * self._spacing_s + 1
        is_sane = is_sane and state.down_until_s <= now_s + MAX_DOWN_S
        return state if is_sane else _State()

    def _write(self, state: _State) -> None:
        value = {
            "next_at_s": state.next_at_s,
            "down_until_s": state.down_until_s,
            "why": state.why,
        }
        write_json(self._path, value, durable=False)
