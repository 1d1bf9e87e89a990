"""The strip on top, what runs now, and the table of tasks. Pure: a snapshot and a choice in, markup out."""

from collections.abc import Sequence
from datetime import UTC, datetime

from labd.clock import print_duration, to_iso
from labd.lab import TaskView, why_not
from labd.page.choice import Choice, matching
from labd.page.html import Html, join, tag
from labd.page.snapshot import Snapshot
from labd.page.words import Words
from labd.task import State
from labd.timeline import Stage

ROWS = 100
_MARKS = {
    State.PENDING: "○",
    State.RUNNING: "▶",
    State.DONE: "✓",
    State.FAILED: "✕",
    State.CANCELLED: "⊘",
}
_MOST_RUNNING = 50
_SILENT_S = 30.0


def pulse(snapshot: Snapshot, words: Words) -> Html:
    """Give what tells the browser that the page lives and of when its data is."""
    return tag(
        "p",
        tag("span", words("seen"), " "),
        tag("time", f"{snapshot.at:%H:%M:%S} UTC", datetime=to_iso(snapshot.at)),
        data_at=f"{snapshot.at.timestamp():.3f}",
        data_old=words("old", age="{age}"),
        id="pulse",
    )


def strip(snapshot: Snapshot, words: Words, *, read_only: bool) -> Html:
    """Give the counts by state, and what people have to know: no daemon, paused, still reading."""
    counts = [
        tag("li", tag("b", count), " ", mark(state), " ", words(state.value), class_=state.value)
        for state, count in snapshot.counts.items()
    ]
    return tag(
        "div",
        tag("ul", *counts, class_="counts"),
        tag(
            "div", *_notices(snapshot, words, read_only=read_only), class_="notices", role="status"
        ),
    )


def _notices(snapshot: Snapshot, words: Words, *, read_only: bool) -> list[Html]:
    status = snapshot.status
    notices = []
    if snapshot.failed:
        notices.append(tag("p", words("look_failed", why=snapshot.failed), class_="bad"))
    if not status.up:
        notices.append(tag("p", words("daemon_down"), class_="bad"))
    elif status.age_s is not None and status.age_s > _SILENT_S:
        age = print_duration(60 * (status.age_s // 60) or _SILENT_S)
        notices.append(tag("p", words("daemon_silent", age=age), class_="bad"))
    else:
        notices.append(tag("p", words("daemon_up"), class_="good"))
    if snapshot.paused:
        notices.append(tag("p", words("paused"), class_="warn"))
    elif status.held:
        notices.append(tag("p", words("held", why=status.held), class_="warn"))
    if snapshot.unread:
        notices.append(tag("p", words("reading", count=snapshot.unread)))
    if read_only:
        notices.append(tag("p", words("read_only")))
    return notices


def running(snapshot: Snapshot, words: Words) -> Html:
    """Give what runs now, each with its stage, how long it has run, and how long is left."""
    tasks = [view for view in snapshot.views if view.state is State.RUNNING][:_MOST_RUNNING]
    if not tasks:
        return tag("p", words("nothing_runs"), class_="quiet")
    items = [_running(view, snapshot.stages.get(view.id, ()), words) for view in tasks]
    return tag("ul", *items, class_="now")


def _running(view: TaskView, stages: Sequence[Stage], words: Words) -> Html:
    stage = stages[-1] if stages else None
    parts: list[Html] = []
    if stage is not None:
        share = stage.done / stage.total if stage.total > 0 else 0
        told = f"{stage.name} {stage.done}/{stage.total}"
        parts.append(tag("span", told, class_="stage"))
        parts.append(tag("progress", told, value=f"{share:.3f}", max=1, aria_label=told))
        ends_at = stage.ends_at
        if ends_at is not None:
            pattern = words("left", age="{age}")
            parts.append(
                tag("span", data_until=f"{ends_at:.0f}", data_text=pattern, class_="left")
            )
    return tag(
        "li",
        _pick(view.id, tabbed=True),
        tag("span", words("elapsed"), " ", since(view.moved_at), class_="took"),
        *parts,
    )


def table(snapshot: Snapshot, choice: Choice, words: Words) -> Html:
    """Give the tasks that match, the first hundred of them."""
    found = matching(snapshot.views, choice)
    if not found:
        text = words("no_tasks" if snapshot.views else "empty_lab")
        return tag("p", text, class_="quiet")
    shown = found[:ROWS]
    told = words("matching", count=len(found), all=len(snapshot.views))
    if len(found) > ROWS:
        told = f"{told}; {words('first_rows', rows=ROWS)}"
    keys = ("task", "state", "what", "changed", "took", "why")
    head = [tag("th", words(key), scope="col", class_=key) for key in keys]
    chosen_there = any(view.id == choice.task for view in shown)
    rows = [
        _row(
            view,
            snapshot,
            words,
            chosen=view.id == choice.task,
            tabbed=view.id == choice.task or (number == 0 and not chosen_there),
        )
        for number, view in enumerate(shown)
    ]
    return tag(
        "div",
        tag("p", told, class_="quiet", role="status"),
        tag(
            "div",
            tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="tasks"),
            class_="scroll",
        ),
    )


def _row(view: TaskView, snapshot: Snapshot, words: Words, *, chosen: bool, tabbed: bool) -> Html:
    far = view.progress
    how_far = f"{far.stage} {far.done}/{far.total} {far.detail}" if far else ""
    told = "; ".join(filter(None, [how_far, view.why]))
    if view.state is State.PENDING:
        told = why_not(view, snapshot.status.facts)
    what = view.template or words.known(view.kind)
    took = print_duration(view.took_s) if view.took_s is not None else None
    labels = [tag("span", label, class_="label") for label in view.labels]
    return tag(
        "tr",
        tag(
            "th",
            _pick(view.id, tabbed=tabbed),
            tag("small", view.title) if view.title else None,
            tag("div", *labels) if labels else None,
            scope="row",
        ),
        tag(
            "td",
            mark(view.state),
            " ",
            words(view.state.value),
            class_=f"state {view.state.value}",
        ),
        tag("td", what),
        tag("td", ago(view.moved_at, words)),
        tag("td", since(view.moved_at) if view.state is State.RUNNING else took, class_="n"),
        tag(
            "td",
            tag("span", told[:300], title=told[:2000] if len(told) > 120 else None),
            class_="why",
        ),
        data_id=view.id,
        aria_selected="true" if chosen else "false",
    )


def _pick(task_id: str, *, tabbed: bool) -> Html:
    return tag(
        "button",
        task_id,
        class_="pick",
        type="button",
        data_id=task_id,
        tabindex=0 if tabbed else -1,
    )


def mark(state: State) -> Html:
    """Give a state's sign, which stands beside its word and is no word itself."""
    return tag("span", _MARKS[state], aria_hidden="true", class_="mark")


def moment(at: float) -> str:
    """Print a moment in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def ago(at: float, words: Words) -> Html:
    """Give a moment that the browser prints as how long ago it was."""
    return tag(
        "time",
        moment(at),
        datetime=f"{moment(at)}Z",
        data_ago=f"{at:.0f}",
        data_text=words("ago", age="{age}"),
        title=f"{moment(at)} UTC",
    )


def since(at: float) -> Html:
    """Give a moment that the browser prints as how long it lasts."""
    return tag("time", moment(at), datetime=f"{moment(at)}Z", data_since=f"{at:.0f}")


def choices_of(views: Sequence[TaskView]) -> tuple[list[str], list[str]]:
    """Give the labels and owners that there are, sorted, at most 200 of each."""
    labels = {label for view in views for label in view.labels}
    owners = {view.owner for view in views if view.owner}
    return sorted(labels)[:200], sorted(owners)[:200]


def titled(heading: str, *inside: Html) -> Html:
    """Give a part of the page under its heading."""
    return tag("section", tag("h2", heading), join(inside))
