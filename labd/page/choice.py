"""What one open page has chosen to see: task, tab, filters. It is kept in the page's address, to outlive a reload."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from labd.lab import TaskView

TABS = ("overview", "log", "trials", "figures", "paper", "review")
LEVELS = ("debug", "info", "warning", "error")
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Choice:
    """An empty text chooses nothing in particular."""

    task: str = ""
    tab: str = "overview"
    trial: str = ""
    find: str = ""
    state: str = ""
    kind: str = ""
    label: str = ""
    owner: str = ""
    level: str = "info"

    def with_(self, **changes: str) -> "Choice":
        """Give the choice with changes; another task begins without a trial."""
        clean = {key: value[:_LONGEST] for key, value in changes.items()}
        new = replace(self, **clean)
        if new.task != self.task and "trial" not in clean:
            new = replace(new, trial="")
        return replace(
            new,
            tab=new.tab if new.tab in TABS else "overview",
            level=new.level if new.level in LEVELS else "info",
        )


def from_query(query: Mapping[str, str]) -> Choice:
    """Read a choice from an address; what it does not know is left out."""
    known = {field.name for field in fields(Choice)}
    return Choice().with_(**{key: value for key, value in query.items() if key in known})


def matching(views: Sequence[TaskView], choice: Choice) -> list[TaskView]:
    """Give the tasks that pass the filters, in their order."""
    words = choice.find.casefold().split()
    return [
        view for view in views if _passes(view, choice) and all(w in _text(view) for w in words)
    ]


def _passes(view: TaskView, choice: Choice) -> bool:
    return (
        (not choice.state or view.state.value == choice.state)
        and (not choice.kind or view.kind == choice.kind)
        and (not choice.label or choice.label in view.labels)
        and (not choice.owner or view.owner == choice.owner)
    )


def _text(view: TaskView) -> str:
    parts = (view.id, view.title, view.template, view.owner, view.why, *view.labels, *view.models)
    return "\n".join(parts).casefold()
