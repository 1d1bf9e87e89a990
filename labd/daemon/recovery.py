"""What an earlier daemon or engine left behind: running/ is made true by what the engine holds and what is on record."""

import time
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from labd.archive import JOURNAL, History, also_of
from labd.daemon.attempts import Active, Attempts
from labd.daemon.endings import error_of, kept
from labd.daemon.house import House
from labd.daemon.telling import Once
from labd.engine.types import Ended, Held
from labd.errors import JournalError, LabdError
from labd.scheduler import Demand
from labd.spool import Entry
from labd.task import State, parse_task
from labd.text import printable

_FRUITLESS_STARTS = 10


class Recovery:
    """Deals with what is in running/ and is of no attempt of ours, and with what the engine holds that we don't know."""

    def __init__(self, house: House, attempts: Attempts) -> None:
        self._attempts, self._spool, self._archive = attempts, house.spool, house.archive
        self._announcing, self._engine = house.announcing, house.engine
        self._log, self._once = house.log, Once(house.log)
        self.failed = 0
        self._put_back: list[str] = []

    def put_back(self) -> list[str]:
        """Give the names of the files that went back to pending/ since the last call: nobody else may tell of them in time."""
        names, self._put_back = self._put_back, []
        return names

    def reconcile(self, held: Iterable[Held]) -> None:
        """Make running/ true, by what the engine says that it has, whenever it comes up.

        What it has goes on; what it has not and was ours is lost; what an earlier daemon left is moved on
        if it is decided, and queued again if not; what nobody wants any more is ended.
        """
        of = {h.task_id: h for h in held}
        for active in self._attempts.active.values():
            mine = of.pop(active.task_id, None)
            if mine is not None and mine.attempt == active.attempt:
                if active.leaving:
                    self._engine.cancel(active.task_id, active.attempt)
                continue
            if mine is not None:
                self._engine.cancel(mine.task_id, mine.attempt)
            self._engine.cancel(active.task_id, active.attempt)
            lost = Ended(active.task_id, active.attempt, "lost", None, "the engine ended under it")
            self._attempts.ended.setdefault(active.task_id, lost)
        self.recover("interrupted", of)
        for unwanted in of.values():
            self._end_unwanted(unwanted)

    def _end_unwanted(self, held: Held) -> None:
        """End an attempt whose file left running/ while nobody looked; its id is not free until it has ended."""
        self._log.warning("attempt.unwanted", task_id=held.task_id, attempt=held.attempt)
        self._engine.cancel(held.task_id, held.attempt)
        try:
            history = self._archive.history(held.task_id)
        except JournalError:
            return
        claim = history.last
        if claim.get("event") == "claimed" and claim.get("attempt") == held.attempt:
            self._attempts.active[held.task_id] = self._orphan(held, claim)

    def _orphan(self, held: Held, claim: Mapping[str, Any]) -> Active:
        name = held.task_id + PurePath(str(claim["file"])).suffix
        version, now_s = (0, 0, 0), time.monotonic()
        for state, there in self._spool.where(held.task_id):
            entry = self._spool.entry(state, there)
            if entry is not None and self._attempts.sha256_of(there, state) == claim["sha256"]:
                version = entry.version
        return Active(
            held.task_id,
            name,
            version,
            str(claim["sha256"]),
            held.attempt,
            Demand(float(claim.get("num_cpus", 1)), float(claim.get("num_gpus", 0))),
            str(claim["uid"]),
            held.node_id,
            deadline_s=now_s,
            timeout_s=0.0,
            since_s=now_s - held.age_s,
            max_retries=0,
            also=also_of(claim),
            leaving="moved",
            told_s=now_s,
        )

    def recover(self, event: str, held: dict[str, Held] | None = None) -> None:
        """Deal with every file in running/ that is not of an attempt of ours, recording `event` for what goes back to pending/.

        What the engine holds is taken out of `held` and goes on.
        """
        of = held if held is not None else {}
        for entry in list(self._spool.entries(State.RUNNING)):
            active = self._attempts.active.get(entry.id)
            if active is not None and active.name == entry.name:
                continue
            try:
                self._recover_one(entry, event, of)
            except FileNotFoundError:
                continue
            except LabdError as error:
                self._attempts.reasons[entry.name] = str(error)
                shown = printable(entry.name)
                self._once.error(
                    f"{shown}: {error}", "task.not_recovered", task=shown, reason=str(error)
                )

    def _recover_one(self, entry: Entry, event: str, held: dict[str, Held]) -> None:
        history = self._archive.history(entry.id)
        if not self._is_its_file(entry, history):
            self._put_back.append(self._spool.move(entry.name, State.RUNNING, State.PENDING))
            self._log.info("task.put_back", task=printable(entry.name))
            return
        if history.ended is not None:
            self._roll_forward(entry, history.ended, history.events[-1])
            return
        if history.last.get("event") != "claimed":  # what became of the attempt is on record
            self._go_on_later(entry)
            return
        mine = held.get(entry.id)
        if mine is not None and mine.attempt == history.attempt:
            self._adopt(entry, mine)
            del held[entry.id]
            return
        result = self._archive.result(entry.id) or {}
        if history.attempt and result.get("attempt") == history.attempt:
            self._take_result(entry, history, result)
            return
        self._queue_again(entry, history, event)

    def _is_its_file(self, entry: Entry, history: History) -> bool:
        """Say whether this is what was claimed last under its id, and neither a copy nor another file."""
        if entry.id in self._attempts.active or not history.attempt:
            return False
        if self._attempts.sha256_of(entry.name) != history.sha256:
            return False
        copied = any(state.decided for state, _ in self._spool.where(entry.id))
        return history.ended is None or not copied

    def _adopt(self, entry: Entry, held: Held) -> None:
        task = parse_task(self._spool.read(State.RUNNING, entry.name), f"running/{entry.name}")
        self._attempts.adopt(entry, task, held.attempt, held.node_id, held.age_s)
        self._log.info("task.adopted", task_id=entry.id, attempt=held.attempt, age_s=held.age_s)

    def _take_result(self, entry: Entry, history: History, result: Mapping[str, Any]) -> None:
        """Go by the result that the worker left when nobody was there to hear of it."""
        state = State.DONE if result.get("outcome") == "done" else State.FAILED
        error = result.get("error") or {}
        if state is State.FAILED and error.get("retryable"):
            code, reason = error.get("code"), error.get("message")
            self._archive.record(
                entry.id,
                "lost",
                attempt=history.attempt,
                code=code,
                reason=reason,
                wall_s=result.get("wall_s"),
            )
            self._go_on_later(entry)
            return
        self._archive.record(entry.id, state.value, attempt=history.attempt, **kept(result))
        self._roll_forward(entry, state, result)

    def _roll_forward(self, entry: Entry, state: State, facts: Mapping[str, Any]) -> None:
        there = self._spool.move(entry.name, State.RUNNING, state)
        moved = self._spool.entry(state, there)
        if moved is not None and moved.version != entry.version:
            # Somebody put another file in its place in between: that one is a new task.
            self._put_back.append(self._spool.move(there, state, State.PENDING, entry.name))
            return
        self._attempts.decided.append(entry.id)
        self._log.info("task.rolled_forward", task_id=entry.id, state=state.value)
        self._announcing.of_file(entry.id, state, there, facts)

    def _queue_again(self, entry: Entry, history: History, event: str) -> None:
        steps = self._journal_lines(entry.id)
        if history.attempt:
            self._archive.record(entry.id, event, attempt=history.attempt, journal_lines=steps)
            if _fruitless(self._archive.history(entry.id)):
                self._give_up(entry, history)
                return
        self._go_on_later(entry)
        facts = {"after_attempt": history.attempt, "journal_lines": steps}
        self._log.info("task.requeued", task_id=entry.id, **facts)

    def _go_on_later(self, entry: Entry) -> None:
        self._attempts.make_way(entry.name)
        self._put_back.append(self._spool.move(entry.name, State.RUNNING, State.PENDING))

    def _give_up(self, entry: Entry, history: History) -> None:
        what = f"labd ended {_FRUITLESS_STARTS} times under it without its getting any further"
        error = error_of("interrupted", what)
        result = {
            "task_id": entry.id,
            "attempt": history.attempt,
            "outcome": "failed",
            "error": error,
        }
        self._archive.write_result(entry.id, result)
        self._archive.record(entry.id, "failed", attempt=history.attempt, error=error)
        there = self._spool.move(entry.name, State.RUNNING, State.FAILED)
        self.failed += 1
        self._announcing.of_file(entry.id, State.FAILED, there, result)
        self._log.error("task.finished", task_id=entry.id, state="failed", reason=what)

    def _journal_lines(self, task_id_: str) -> int:
        try:
            with (self._archive.directory(task_id_) / JOURNAL).open("rb") as file:
                return sum(1 for _ in file)
        except OSError:
            return 0


def _fruitless(history: History) -> bool:
    lines = [int(e["journal_lines"]) for e in history.since_asked() if e["event"] == "interrupted"]
    last = lines[-_FRUITLESS_STARTS:]
    return len(last) == _FRUITLESS_STARTS and last[0] == last[-1]
