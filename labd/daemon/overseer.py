"""Stuck work: what the machines say of the attempts there, what the rule makes of it, and what people ask for by hand.

The rule is `labd.scheduler.stuck`. Each thing that is done is an event of its task and a line in the log, with the evidence.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from labd.daemon.attempts import Active, Attempts
from labd.daemon.house import House
from labd.daemon.telling import Once
from labd.errors import StorageError
from labd.scheduler import (
    Recovery,
    Signs,
    Standing,
    Verdict,
    evidence,
    judge,
    next_recovery,
    seen,
    told_to_end,
)
from labd.settings import RECOVER_REQUESTS

_MAX_ASKED_BYTES = 4096
_EVERY_S = 0.5
_TOLD = 2
"""Of the evidence, so many facts are in the reason of an end; all are in the event."""
_COUNTS = tuple(
    f.name for f in fields(Signs) if f.name not in {"at_s", "beats", "gpu_use", "runs"}
)
_Key = tuple[str, int]
_Look = tuple[float, dict[_Key, Signs]]


class Overseer:
    """Looks after the attempts that the engine has. `name_of` gives a node's name by its id."""

    def __init__(self, house: House, attempts: Attempts, *, name_of: Callable[[str], str]) -> None:
        self._home, self._attempts, self._archive = house.home, attempts, house.archive
        self._engine, self._log, self._announcing = house.engine, house.log, house.announcing
        self._name_of = name_of
        self._standings: dict[_Key, Standing] = {}
        self._said: dict[_Key, str] = {}
        self._once = Once(house.log)
        self._next_s = 0.0

    def take(self, machines: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what machines say, by node id, of the attempts that they have."""
        now_s = time.monotonic()
        told = {
            node: said for node, facts in machines.items() if (said := self._read(node, facts))
        }
        for active in self._attempts.active.values():
            if active.node_id not in told:
                continue
            at_s, signs = told[active.node_id]
            one = signs.get(_key(active), Signs(at_s))
            self._standings[_key(active)] = seen(self._standing(active, now_s), one, now_s)

    def turn(self) -> None:
        """Do what is due about stuck work, and what people have asked for, now and then."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        living = {_key(active) for active in self._attempts.active.values()}
        for kept in (self._standings, self._said):
            for gone in kept.keys() - living:
                del kept[gone]
        for active in self._overseen():
            standing = self._standing(active, now_s)
            verdict = judge(standing, losses=active.losses, max_retries=active.max_retries)
            if verdict is not None:
                self._recover(active, verdict, by="rule")
        for active in self._asked():
            self._recover(active, self._by_hand(active), by="hand")

    def facts(self, active: Active) -> dict[str, Any]:
        """Give for readers how an attempt stands: for how long nothing has moved, what would be done, and in how long."""
        now_s = time.monotonic()
        standing = self._standing(active, now_s)
        due_s = standing.due_s - standing.looked_s
        return {
            "seen": standing.signs is not None,
            "idle_s": round(standing.idle_s, 1),
            "last_moved": standing.what,
            "limit_s": standing.limit_s,
            "due_in_s": None if due_s == float("inf") else round(max(0.0, due_s), 1),
            "next": (recovery := self._next(active, standing)),
            "next_in_words": _WHAT[recovery],
            "evidence": list(evidence(standing)),
        }

    def reasons(self) -> Iterator[tuple[str, str]]:
        """Give what was done about attempts that go on, by file name."""
        for active in self._attempts.active.values():
            if said := self._said.get(_key(active)):
                yield active.name, said

    def _read(self, node_id: str, facts: Mapping[str, Any]) -> _Look | None:
        """Give what one machine says, or nothing: one with another labd, or an unreadable one, is no evidence."""
        if facts.get("problem") or "attempts" not in facts:
            return None
        try:
            return _signs_of(facts)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            node = self._name_of(node_id)
            self._once.warning(
                f"{node}: {type(error).__name__}",
                "signs.unreadable",
                node=node,
                reason=repr(error),
            )
            return None

    # --- deciding

    def _overseen(self) -> list[Active]:
        """Give the attempts that are neither ending nor over."""
        ended = self._attempts.ended
        return [
            a for a in self._attempts.active.values() if not a.leaving and a.task_id not in ended
        ]

    def _standing(self, active: Active, now_s: float) -> Standing:
        known = self._standings.get(_key(active))
        return known or Standing(active.stuck_after_s, now_s, looked_s=now_s)

    @staticmethod
    def _next(active: Active, standing: Standing) -> Recovery:
        return next_recovery(standing, losses=active.losses, max_retries=active.max_retries)

    def _by_hand(self, active: Active) -> Verdict:
        standing = self._standing(active, time.monotonic())
        asked = "somebody asked for it by hand"
        return Verdict(self._next(active, standing), (asked, *evidence(standing)))

    # --- acting

    def _recover(self, active: Active, verdict: Verdict, *, by: str) -> None:
        """Put on record that an attempt is stuck, and recover it."""
        facts = {
            "attempt": active.attempt,
            "node": self._name_of(active.node_id),
            "recovery": verdict.recovery,
            "by": by,
            "evidence": list(verdict.evidence),
        }
        words = f"{'; '.join(verdict.evidence)}. What is done: {_WHAT[verdict.recovery]}"
        try:
            self._archive.record(active.task_id, "stuck", durable=False, **facts, reason=words)
        except StorageError as error:
            # It will be found stuck again, and the disk's trouble is told by others as well.
            self._log.error("stuck.not_recorded", task_id=active.task_id, reason=str(error))
            return
        self._log.warning("task.stuck", task_id=active.task_id, **facts)
        self._announcing.stuck(active.task_id, facts, labels=active.labels, what=active.what)
        now_s = time.monotonic()
        if verdict.recovery == "end_run":
            key = _key(active)
            self._standings[key] = told_to_end(self._standing(active, now_s), now_s)
            stuck = f"was stuck: {verdict.evidence[0]}; its runs were ended"
            self._said[key] = stuck if by == "rule" else "its runs were ended by hand"
            self._engine.end_runs(active.task_id, active.attempt)
        else:
            # Whether it is tried again is for its end to say, by the same count.
            self._attempts.end(active, "stuck", "; ".join(verdict.evidence[:_TOLD]))

    # --- what people ask

    def _asked(self) -> Iterator[Active]:
        """Give the attempts that people want recovered now; each request is used up."""
        overseen = {_key(active): active for active in self._overseen()}
        for path in self._home.run_dir.glob(RECOVER_REQUESTS):
            try:
                raw = path.read_bytes()[:_MAX_ASKED_BYTES]
                path.unlink()
                facts = json.loads(raw)
                key = (str(facts["task_id"]), int(facts["attempt"]))
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._log.warning("recover.unreadable", path=str(path), reason=repr(error))
                continue
            if key in overseen:
                yield overseen.pop(key)


_WHAT: Mapping[Recovery, str] = {
    "end_run": "end the runs under way; the study goes on",
    "retry": "end the attempt and try again, elsewhere if it can be",
    "fail": "end the attempt and give up: the retries are used up",
}


def _key(active: Active) -> _Key:
    return active.task_id, active.attempt


def _signs_of(facts: Mapping[str, Any]) -> _Look:
    """Give when a machine was looked at, by its own clock, and what was seen of each attempt there."""
    at_s = float(facts["looked_s"])
    found: dict[_Key, Signs] = {}
    for one in facts["attempts"]:
        counts = {key: _number(one[key]) for key in _COUNTS}
        beats, use = one["beats"], one["gpu_use"]
        found[str(one["task_id"]), int(one["attempt"])] = Signs(
            at_s,
            beats=None if beats is None else int(beats),
            gpu_use=None if use is None else float(use),
            runs=tuple(str(name) for name in one["runs"]),
            **counts,
        )
    return at_s, found


def _number(value: Any) -> Any:
    """Give a number as it is.

    Raises:
        TypeError, ValueError: it is none.

    """
    float(value)
    return value
