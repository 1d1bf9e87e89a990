"""How tasks end, as `labd.hooks` tells it: which facts of an end leave the lab, and no others."""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from labd.errors import TaskFileError
from labd.hooks import Event, Fact, Hooks
from labd.settings import Home
from labd.spool import Spool
from labd.task import State, TaskSpec, parse_task

_CAMPAIGN = "campaign:"


class Announcing:
    """Tells of tasks that are done or have failed, to those who are to be told. Cheap where nobody is."""

    def __init__(self, home: Home, spool: Spool, hooks: Hooks) -> None:
        self._home, self._spool, self._hooks = home, spool, hooks

    def ended(
        self,
        task_id: str,
        state: State,
        facts: Mapping[str, Any],
        *,
        labels: Iterable[str] = (),
        what: str = "",
    ) -> None:
        """Tell of an end that is on record.

        Args:
            task_id: the task's id.
            state: what became of it.
            facts: the event of its end, as the archive has it.
            labels: the task's labels.
            what: its template, or its kind where it has none.

        """
        event = event_of(state)
        if event is not None and self._hooks.wants(event):
            told = facts_of(facts, labels)
            self._hooks.send(
                event, {"task": task_id, "what": what, **told, **self._places(task_id)}
            )

    def stuck(
        self, task_id: str, facts: Mapping[str, Any], *, labels: Iterable[str], what: str
    ) -> None:
        """Tell of an attempt that is stuck; `facts`: the event, as the archive has it."""
        if self._hooks.wants("stuck"):
            keys = ("attempt", "node", "recovery", "evidence")
            told = {key: facts[key] for key in keys} | facts_of({}, labels)
            self._hooks.send(
                "stuck", {"task": task_id, "what": what, **told, **self._places(task_id)}
            )

    def reported(self, path: str, *, campaign: str = "") -> None:
        """Tell that a report was written."""
        self._hooks.send("report", {"path": path, **({"campaign": campaign} if campaign else {})})

    def of_file(self, task_id: str, state: State, name: str, facts: Mapping[str, Any]) -> None:
        """Tell of an end of which no more is known than the file, which is where it belongs by now."""
        event = event_of(state)
        if event is None or not self._hooks.wants(event):
            return
        try:
            spec: TaskSpec | None = parse_task(self._spool.read(state, name), name).spec
        except (TaskFileError, FileNotFoundError):
            spec = None
        labels, what = (spec.labels, kind_of(spec)) if spec is not None else ((), "")
        self.ended(task_id, state, facts, labels=labels, what=what)

    def _places(self, task_id: str) -> dict[str, Fact]:
        page = self._home.settings.page
        places: dict[str, Fact] = {"results": str(self._home.results / task_id)}
        if page.enabled:
            places["page"] = f"{page.address}/?task={quote(task_id, safe='')}"
        return places


def event_of(state: State) -> Event | None:
    """Give what people are told of an end in this state; ``None``: nothing."""
    if state is State.DONE:
        return "done"
    return "failed" if state is State.FAILED else None


def kind_of(spec: TaskSpec) -> str:
    """Give a task's template, or its kind where it has none."""
    return spec.research_template or spec.kind


def facts_of(end: Mapping[str, Any], labels: Iterable[str]) -> dict[str, Fact]:
    """Choose from the event of an end what is told. Pure."""
    error = end.get("error")
    error = error if isinstance(error, Mapping) else {}
    summary = end.get("summary")
    labels = [*labels]
    campaign = next((x.removeprefix(_CAMPAIGN) for x in labels if x.startswith(_CAMPAIGN)), "")
    numbers = ("attempt", "duration_s", "wall_s", "gpu_s", "tokens")
    found: dict[str, Any] = {
        "reason": error.get("message"),
        "code": error.get("code"),
        "summary": [str(line) for line in summary] if isinstance(summary, list) else None,
        "campaign": campaign,
        "labels": labels,
        **{key: end.get(key) for key in numbers},
    }
    return {key: value for key, value in found.items() if value}
