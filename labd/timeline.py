"""The stages of a task's work, as its log tells them, and how long what is left may take."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from labd.clock import from_iso
from labd.lab import Lab, progress_of

_MAX_STAGES = 200


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of an attempt. Times are seconds since the epoch, of its first and its last line."""

    name: str
    began_at: float
    last_at: float
    done: int
    total: int
    detail: str = ""

    @property
    def over(self) -> bool:
        """Whether all of it is done."""
        return self.total > 0 and self.done >= self.total

    @property
    def ends_at(self) -> float | None:
        """When the rest of it is done, at the pace so far; ``None`` before something is done, and when all is."""
        if self.over or self.done <= 0 or self.last_at <= self.began_at:
            return None
        pace_s = (self.last_at - self.began_at) / self.done
        return self.last_at + pace_s * (self.total - self.done)


def add_lines(stages: Mapping[str, Stage], lines: Iterable[Mapping[str, Any]]) -> dict[str, Stage]:
    """Give the stages with further log lines; a new attempt begins anew."""
    now = dict(stages)
    for line in lines:
        if line.get("event") == "attempt.started":
            now.clear()
        if line.get("event") != "stage.progress":
            continue
        at = _at(line)
        far = progress_of(dict(line))
        known = now.get(far.stage)
        if known is None:
            if len(now) < _MAX_STAGES:
                now[far.stage] = Stage(far.stage, at, at, far.done, far.total, far.detail)
        else:
            now[far.stage] = replace(
                known, last_at=at, done=far.done, total=far.total, detail=far.detail
            )
    return now


def _at(line: Mapping[str, Any]) -> float:
    try:
        return from_iso(str(line.get("timestamp"))).timestamp()
    except ValueError:
        return 0.0


class Timeline:
    """The stages of one task; each `read` reads only what its log has got since the last."""

    def __init__(self, lab: Lab, task_id: str) -> None:
        self._lab, self._task_id = lab, task_id
        self._offset = 0
        self._stages: dict[str, Stage] = {}

    def read(self) -> tuple[Stage, ...]:
        """Give the stages of the last attempt, in the order in which they began."""
        while True:
            lines, after = self._lab.log_lines(self._task_id, self._offset)
            if after == self._offset:
                return tuple(self._stages.values())
            self._stages, self._offset = add_lines(self._stages, lines), after
