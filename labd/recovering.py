"""Stuck work as people see it and ask about it: `labd recover`. Files only, as in `labd.lab`."""

from dataclasses import dataclass
from typing import Any

from labd.errors import MoveRefused, NotFound
from labd.files import write_json
from labd.lab import Lab
from labd.text import printable


@dataclass(frozen=True, slots=True)
class Stand:
    """How a running task stands, as the daemon last said it.

    Attributes:
        idle_s: for how long nothing had moved when its machine was last looked at.
        limit_s: for how long nothing may; 0: for ever.
        due_in_s: when something is done about it by rule if nothing moves until then; None: never.
        recovery: what that is: ``end_run``, ``retry`` or ``fail``.
        words: the same for people.

    """

    task_id: str
    attempt: int
    node: str
    seen: bool
    idle_s: float
    last_moved: str
    limit_s: float
    due_in_s: float | None
    recovery: str
    words: str
    evidence: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {
            "task_id": self.task_id, "attempt": self.attempt, "node": self.node, "seen": self.seen,
            "idle_s": self.idle_s, "last_moved": self.last_moved, "limit_s": self.limit_s,
            "due_in_s": self.due_in_s, "recovery": self.recovery, "evidence": list(self.evidence),
        }  # fmt: skip


def stands(lab: Lab) -> list[Stand]:
    """Give how each running task stands; none where no daemon runs. The longest idle first."""
    status = lab.status()
    running = status.facts.get("running", {}) if status.up else {}
    found = [_stand(task_id, facts) for task_id, facts in running.items() if "signs" in facts]
    return sorted(found, key=lambda stand: (-stand.idle_s, stand.task_id))


def stand_of(lab: Lab, wanted: str) -> Stand:
    """Give how one running task stands, by its id or how that begins.

    Raises:
        NotFound: there is no such task. MoveRefused: it does not run, or the daemon has not said so yet.

    """
    view = lab.find(wanted)
    for stand in stands(lab):
        if stand.task_id == view.id:
            return stand
    raise MoveRefused(
        f"{printable(view.id)} is {view.state.value}, and no daemon says that it runs",
        fix="Only what runs can be recovered; `labd retry` asks for an ended task again",
    )


def ask(lab: Lab, stand: Stand) -> None:
    """Have the daemon recover an attempt now, whether it is stuck or not.

    Raises:
        MoveRefused: it is not for you to ask.
        NotFound: there is no daemon's directory to ask in.

    """
    path = lab.home.recover_request(stand.task_id)
    try:
        write_json(path, {"task_id": stand.task_id, "attempt": stand.attempt})
    except PermissionError as error:
        raise MoveRefused(
            "tasks are recovered by who runs the lab",
            where=str(path),
            fix="As root, or as the user that labd runs as: sudo -u labd labd recover TASK",
        ) from error
    except FileNotFoundError as error:
        raise NotFound("no daemon was ever started here", where=str(lab.home.root)) from error


def _stand(task_id: str, facts: dict[str, Any]) -> Stand:
    signs = facts["signs"]
    return Stand(
        task_id,
        int(facts["attempt"]),
        str(facts["node"]),
        seen=bool(signs["seen"]),
        idle_s=float(signs["idle_s"]),
        last_moved=str(signs["last_moved"]),
        limit_s=float(signs["limit_s"]),
        due_in_s=signs["due_in_s"],
        recovery=str(signs["next"]),
        words=str(signs["next_in_words"]),
        evidence=tuple(str(line) for line in signs["evidence"]),
    )
