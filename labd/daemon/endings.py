"""How attempts end: what is put on record, where the file goes, and what is tried again."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labd.clock import print_duration
from labd.daemon.attempts import Active, Attempts
from labd.daemon.house import House
from labd.daemon.intake import Intake
from labd.daemon.telling import Once
from labd.engine.types import Ended
from labd.errors import JournalError, LabdError, StorageError
from labd.scheduler import retry_delay_s
from labd.task import State
from labd.text import printable

_WHAT_LOST = {"worker_lost": "its worker died", "stuck": "it was stuck"}


@dataclass(frozen=True, slots=True)
class _Decision:
    """What was recorded of an end, and where the file goes for it; `retry_at_s` for one that goes back to pending/."""

    active: Active
    state: State
    retry_at_s: float = 0.0


class Endings:
    """Settles what the engine said of ends. All of a turn are recorded and made durable, then their files are moved."""

    def __init__(self, house: House, attempts: Attempts) -> None:
        self._attempts, self._spool, self._archive = attempts, house.spool, house.archive
        self._announcing = house.announcing
        self._log, self._once = house.log, Once(house.log)
        self.failed = 0

    def settle(self, intake: Intake) -> None:
        """Record how attempts ended, and move their files; what the disk won't take is tried again later."""
        decisions: list[_Decision] = []
        for ended in list(self._attempts.ended.values()):
            active = self._attempts.active[ended.task_id]
            try:
                decision = self._decide(active, ended)
            except (StorageError, JournalError) as error:
                self._not_settled(active, error)
                continue
            if decision is None:
                self._attempts.let_go(active)
            else:
                decisions.append(decision)
        for decision in decisions:
            try:
                self._archive.sync(decision.active.task_id)
            except StorageError as error:
                self._not_settled(decision.active, error)
            else:
                self._carry_out(decision, intake)

    def _decide(self, active: Active, ended: Ended) -> _Decision | None:
        """Record what became of an attempt; ``None``: its file is not ours to move any more."""
        if active.leaving == "moved" or not self._attempts.has_its_file(active):
            if active.end is None:
                self._record_moved(active)
            return None
        if active.end is not None:
            return _Decision(active, active.end)
        facts: dict[str, Any] = {
            "attempt": active.attempt,
            "duration_s": _duration_s(active),
        }
        outcome = self._outcome(active, ended)
        if active.leaving == "timed_out" and outcome is None:
            limit = print_duration(active.timeout_s)
            error = error_of("timed_out", f"took longer than its time limit of {limit}")
            return self._finish(active, State.FAILED, facts | {"error": error})
        stuck = active.leaving == "stuck"
        code, reason = ("stuck", active.why) if stuck else ("worker_lost", ended.reason)
        if not active.counted:
            active.counted = True
            self._count(active, outcome or {"outcome": "lost", "error": {"code": code}})
        if outcome is None:
            return self._lost(active, facts, code, reason)
        if outcome["outcome"] == "done":
            return self._finish(active, State.DONE, facts | kept(outcome))
        error = outcome.get("error") or {}
        if error.get("retryable"):
            return self._lost(active, facts, str(error["code"]), str(error["message"]))
        return self._finish(active, State.FAILED, facts | kept(outcome))

    def _count(self, active: Active, outcome: Mapping[str, Any]) -> None:
        code = str((outcome.get("error") or {}).get("code", ""))
        run_s = time.monotonic() - active.since_s
        self._attempts.counts.ended(str(outcome["outcome"]), code, run_s, outcome)

    def _outcome(self, active: Active, ended: Ended) -> Mapping[str, Any] | None:
        """Give what the worker made of the attempt, also where it died, or was ended, after it had put that on record."""
        if ended.how == "returned":
            return ended.outcome
        result = self._archive.result(active.task_id)
        return result if result is not None and result.get("attempt") == active.attempt else None

    def _finish(self, active: Active, state: State, facts: Mapping[str, Any]) -> _Decision:
        error = facts.get("error")
        if error and (self._archive.result(active.task_id) or {}).get("attempt") != active.attempt:
            self._archive.write_result(
                active.task_id,
                {
                    "task_id": active.task_id,
                    "attempt": active.attempt,
                    "outcome": state.value,
                    "error": error,
                },
            )
        self._archive.record(active.task_id, state.value, durable=False, **facts)
        active.end, active.end_facts = state, facts
        self.failed += state is State.FAILED
        self._say_finished(active, state, facts)
        return _Decision(active, state)

    def _say_finished(self, active: Active, state: State, facts: Mapping[str, Any]) -> None:
        error = facts.get("error")
        say = self._log.info if state is State.DONE else self._log.error
        say(
            "task.finished",
            task_id=active.task_id,
            attempt=active.attempt,
            state=state.value,
            reason=error["message"] if error else None,
            duration_s=facts["duration_s"],
        )

    def _lost(self, active: Active, facts: Mapping[str, Any], code: str, reason: str) -> _Decision:
        """Queue a task again, within its limit: its infrastructure failed, not the task itself."""
        if not active.loss:
            self._archive.record(
                active.task_id,
                "lost",
                durable=False,
                attempt=active.attempt,
                code=code,
                reason=reason,
                duration_s=facts["duration_s"],
            )
            active.loss = code
        losses = self._archive.history(active.task_id).count("lost")
        if losses > active.max_retries:
            what = _WHAT_LOST.get(code, f"it failed ({code})")
            times = f"{losses} time{'' if losses == 1 else 's'}"
            message = (
                f"{what} {times}, and max_retries is {active.max_retries}; the last time: {reason}"
            )
            error = error_of(code, message)
            return self._finish(active, State.FAILED, {**facts, "error": error})
        delay_s = retry_delay_s(losses)
        self._log.warning(
            "task.lost",
            task_id=active.task_id,
            attempt=active.attempt,
            reason=reason,
            retry_in_s=delay_s,
        )
        return _Decision(active, State.PENDING, time.monotonic() + delay_s)

    def _carry_out(self, decision: _Decision, intake: Intake) -> None:
        active = decision.active
        try:
            if decision.state is State.PENDING:
                self._attempts.make_way(active.name)
            there = self._spool.move(active.name, State.RUNNING, decision.state, durable=False)
        except FileNotFoundError:
            shown = printable(active.name)
            self._log.warning("task.moved_meanwhile", task=shown, decided=decision.state.value)
            self._announce(active)
        except StorageError as error:
            # The end is on record: a later start or Ready moves the file on.
            self._log.error("task.not_moved", task_id=active.task_id, reason=str(error))
        else:
            moved = self._spool.entry(decision.state, there)
            if moved is not None and not self._attempts.has_its_file(
                active, decision.state, there
            ):
                # Somebody put another file in its place in between: that one is a new task.
                intake.look_at(self._spool.move(there, decision.state, State.PENDING, active.name))
            elif decision.state is State.PENDING:
                self._attempts.let_go(active)
                intake.retry_at(there, decision.retry_at_s)
                return
            else:
                self._announce(active)
        self._attempts.let_go(active)

    def _announce(self, active: Active) -> None:
        if active.end is not None:
            facts = active.end_facts or {}
            self._announcing.ended(
                active.task_id, active.end, facts, labels=active.labels, what=active.what
            )

    def _not_settled(self, active: Active, error: LabdError) -> None:
        self._attempts.reasons[active.name] = f"its end could not be recorded: {error}"
        self._once.error(
            f"{active.task_id}: {error}",
            "task.not_settled",
            task_id=active.task_id,
            reason=str(error),
        )

    def _record_moved(self, active: Active) -> None:
        """Record what the task is by where its file is now: it left running/ under the attempt."""
        state = self._attempts.state_of_file(active)
        undecided = state in {State.PENDING, State.RUNNING}
        event = "requeued" if undecided else "cancelled"
        facts = {
            "attempt": active.attempt,
            "moved_to": state.value if state else "nowhere",
            "duration_s": _duration_s(active),
        }
        self._archive.record(active.task_id, event, durable=False, **facts)
        self._log.info("task.finished", task_id=active.task_id, state=event, **facts)


def _duration_s(active: Active) -> float:
    """Give for how long an attempt has held what it was given."""
    return round(time.monotonic() - active.since_s, 3)


def error_of(code: str, message: str) -> dict[str, Any]:
    """Give an error as results and events hold it."""
    return {"code": code, "message": message, "retryable": False}


def kept(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Give the part of a worker's outcome that goes into the event of the task's end."""
    keys = ("error", "summary", "wall_s", "gpu_s", "tokens")
    return {key: outcome[key] for key in keys if outcome.get(key) is not None}
