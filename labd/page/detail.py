"""One chosen task: its state, timeline, log, trials, figures, paper and reviews. What it left behind is untrusted text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from labd.clock import print_duration
from labd.follow import tail
from labd.lab import Lab, TaskView, why_not
from labd.page.choice import TABS, Choice
from labd.page.html import Html, block, join, raw_attribute, tag
from labd.page.overview import ago, mark, since
from labd.page.snapshot import Snapshot
from labd.page.tree import picture
from labd.page.words import Words
from labd.published import plots_of, read_text, version_of
from labd.task import State
from labd.timeline import Stage
from labd.trials import Trial, Trials

_LOG_BYTES = 48 * 1024
_PAPER_BYTES = 8 * 2**20
_DIFF_BYTES = 256 * 1024
_REVIEW_BYTES = 2**20
_MOST_EVENTS = 30
_DOWNLOADS = (("paper.pdf", "PDF"), ("paper.tex", "LaTeX"), ("paper.md", "Markdown"))
PAPER_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a panel is made of."""

    lab: Lab
    snapshot: Snapshot
    view: TaskView
    choice: Choice
    words: Words
    result: Mapping[str, Any]
    trials: Trials
    stages: Sequence[Stage]

    @property
    def results(self) -> Path:
        """The directory of all results."""
        return self.lab.home.results


def nothing(choice: Choice, words: Words) -> Html:
    """Give the panel where no task is chosen, or the chosen one is gone."""
    text = words("gone", task=choice.task) if choice.task else words("choose")
    return tag("p", text, class_="quiet")


def panel(seen: Seen, *, read_only: bool) -> Html:
    """Give the chosen task's panel with its chosen tab."""
    view, words = seen.view, seen.words
    tabs = [
        tag(
            "button",
            words(name),
            type="button",
            role="tab",
            id=f"tab-{name}",
            data_tab=name,
            aria_selected="true" if name == seen.choice.tab else "false",
            aria_controls="tab-panel",
            tabindex=0 if name == seen.choice.tab else -1,
        )
        for name in TABS
    ]
    return tag(
        "article",
        tag("h3", view.id),
        tag("p", view.title, class_="title") if view.title else None,
        tag(
            "p",
            mark(view.state),
            " ",
            words(view.state.value),
            " ",
            ago(view.moved_at, words),
            class_=f"state {view.state.value}",
        ),
        None if read_only else _actions(view, words),
        tag("div", *tabs, role="tablist", aria_label=words("selected")),
        tag(
            "div",
            _TABS[seen.choice.tab](seen),
            role="tabpanel",
            id="tab-panel",
            aria_labelledby=f"tab-{seen.choice.tab}",
            tabindex=0,
            # Another task's log is another log: it begins at its own end.
            data_for=f"{view.id}/{seen.choice.tab}",
        ),
        data_task=view.id,
    )


def _actions(view: TaskView, words: Words) -> Html:
    buttons = []
    if view.state.decided:
        buttons.append(_button("retry", view, words))
    else:
        sure = words("cancel_sure", task=view.id) if view.state is State.RUNNING else None
        buttons.append(_button("cancel", view, words, sure=sure))
    if view.state is State.PENDING:
        buttons.append(
            tag(
                "label",
                words("priority"),
                " ",
                tag(
                    "input",
                    type="number",
                    min=-1000,
                    max=1000,
                    step=1,
                    value=min(1000, view.priority + 1),
                    id="new-priority",
                ),
            )
        )
        buttons.append(_button("raise", view, words))
    return tag("div", *buttons, class_="actions")


def _button(verb: str, view: TaskView, words: Words, sure: str | None = None) -> Html:
    return tag(
        "button",
        words(verb),
        type="button",
        class_=f"ask {verb}",
        data_ask=verb,
        data_id=view.id,
        data_sure=sure,
        aria_label=f"{words(verb)} {view.id}",
    )


# --- the tabs


def _overview(seen: Seen) -> Html:
    view, words = seen.view, seen.words
    why = why_not(view, seen.snapshot.status.facts) if view.state is State.PENDING else ""
    facts: list[tuple[str, Html | str | None]] = [
        ("what", view.template or words.known(view.kind)),
        ("owner", view.owner),
        ("label", ", ".join(view.labels)),
        ("models", ", ".join(view.models)),
        ("priority", str(view.priority)),
        ("dropped", ago(view.dropped_at, words)),
        ("attempt", str(view.attempt) if view.attempt else ""),
        ("nodes", ", ".join(view.nodes)),
        ("took", print_duration(view.took_s) if view.took_s is not None else ""),
        ("tokens", f"{view.tokens:,}" if view.tokens else ""),
    ]
    rows = [join((tag("dt", words(key)), tag("dd", value))) for key, value in facts if value]
    lines = seen.result.get("summary") if view.state is State.DONE else None
    summary = [str(line) for line in lines[:20]] if isinstance(lines, list) else []
    return join(
        (
            tag("p", why or view.why, class_="reason")
            if (why or view.why) and not summary
            else None,
            tag("ul", *(tag("li", line) for line in summary), class_="summary")
            if summary
            else None,
            tag("dl", *rows),
            _timeline(seen),
            _events(seen),
        )
    )


def _timeline(seen: Seen) -> Html | None:
    if not seen.stages:
        return None
    longest_s = max(max(s.last_at - s.began_at, 0.01) for s in seen.stages)
    items = [
        tag(
            "li",
            tag("span", stage.name, class_="l"),
            tag(
                "i",
                class_=f"p {'done' if stage.over else 'running'}",
                style=f"width:{max(1.0, 55 * (stage.last_at - stage.began_at) / longest_s):.1f}%",
            ),
            tag(
                "span", f"{stage.done}/{stage.total}", " · ", _stage_took(stage, seen), class_="v"
            ),
        )
        for stage in seen.stages
    ]
    return join((tag("h4", seen.words("timeline")), tag("ol", *items, class_="stages")))


def _stage_took(stage: Stage, seen: Seen) -> Html | str:
    if stage.over or seen.view.state is not State.RUNNING:
        return print_duration(stage.last_at - stage.began_at)
    ends_at = stage.ends_at
    if ends_at is None:
        return since(stage.began_at)
    pattern = seen.words("left", age="{age}")
    return tag("span", data_until=f"{ends_at:.0f}", data_text=pattern)


def _events(seen: Seen) -> Html | None:
    events = seen.lab.history(seen.view.id).events[-_MOST_EVENTS:]
    items = []
    for event in events:
        error = event.get("error")
        message = error.get("message", "") if isinstance(error, Mapping) else ""
        number = f"{seen.words('attempt')} {event['attempt']}" if event.get("attempt") else ""
        told = " ".join(filter(None, (number, str(event.get("reason", "")), str(message))))
        items.append(
            tag(
                "li",
                tag("time", str(event.get("at", ""))),
                " ",
                tag("b", str(event.get("event", ""))),
                " ",
                told,
            )
        )
    return (
        join((tag("h4", seen.words("events")), tag("ul", *items, class_="events")))
        if items
        else None
    )


def _log(seen: Seen) -> Html:
    lines, size_bytes = tail(seen.lab, seen.view.id, _LOG_BYTES)
    if not lines:
        return tag("p", seen.words("no_log"), class_="quiet")
    note = (
        seen.words("log_end", size=f"{size_bytes / 1024:.0f} KiB")
        if size_bytes > _LOG_BYTES
        else None
    )
    text = block("\n".join(lines))
    return join(
        (
            tag("p", note, class_="quiet") if note else None,
            tag("pre", text, class_="log", tabindex=0, aria_label=seen.words("log")),
        )
    )


def _trials(seen: Seen) -> Html:
    words, found = seen.words, seen.trials
    if not found.trials:
        return tag("p", words("no_trials"), class_="quiet")
    chosen = next((one for one in found.trials if one.name == seen.choice.trial), None)
    return join(
        (
            tag(
                "div",
                picture(found, words, task=seen.view.id, chosen=seen.choice.trial),
                class_="scroll",
            ),
            _trial(seen, chosen) if chosen else tag("p", words("choose_trial"), class_="quiet"),
        )
    )


def _trial(seen: Seen, one: Trial) -> Html:
    words = seen.words
    value = f"{one.value:.6g}" if one.value is not None else ""
    facts = [
        ("idea", one.idea),
        ("move", one.move),
        ("parent", one.parent),
        ("state", one.status),
        ("value", " ".join(filter(None, (seen.trials.metric, value)))),
        ("lines", one.lines),
        ("took", print_duration(one.wall_s) if one.wall_s is not None else ""),
        ("why", one.reason),
        ("params", ", ".join(f"{key} = {value}" for key, value in one.params.items())),
    ]
    rows = [join((tag("dt", words(key)), tag("dd", text))) for key, text in facts if text]
    diff = read_text(seen.results, seen.view.id, f"trials/{one.name}/diff.patch", _DIFF_BYTES)
    shown = None
    if diff:
        shown = tag(
            "pre",
            _diff_lines(diff),
            class_="diff",
            tabindex=0,
            aria_label=words("diff", trial=one.name),
        )
    elif not one.params:
        shown = tag("p", words("no_diff"), class_="quiet")
    return tag(
        "section",
        tag("h4", words("diff", trial=one.name)),
        tag("dl", *rows),
        tag("p", one.plan) if one.plan else None,
        shown,
        class_="trial-detail",
    )


def _diff_lines(diff: str) -> Html:
    kinds = {"+": "add", "-": "del", "@": "at"}
    lines = []
    for line in diff.splitlines():
        kind = kinds.get(line[:1]) if not line.startswith(("+++", "---")) else "at"
        shown = block(line)
        lines.append(tag("span", shown, class_=kind) if kind else shown)
    return Html("\n".join(lines))


def _figures(seen: Seen) -> Html:
    names = plots_of(seen.results, seen.view.id)
    if not names:
        return tag("p", seen.words("no_figures"), class_="quiet")
    figures = []
    for name in names:
        version = version_of(seen.results, seen.view.id, name) or ""
        title = name.removeprefix("plots/").removesuffix(".png").replace("-", " ")
        source = f"{address(seen.view.id, name)}?v={quote(version)}"
        figures.append(
            tag(
                "figure",
                tag(
                    "a",
                    tag("img", src=source, alt=title, loading="lazy"),
                    href=source,
                    target="_blank",
                    rel="noopener",
                ),
                tag("figcaption", title),
            )
        )
    return tag("div", *figures, class_="figures")


def _paper(seen: Seen) -> Html:
    words, task = seen.words, seen.view.id
    links = [
        tag("a", text, href=address(task, name), download=f"{task}-{name}", class_="download")
        for name, text in _DOWNLOADS
        if version_of(seen.results, task, name)
    ]
    page = read_text(seen.results, task, "paper.html", _PAPER_BYTES + 1)
    if page is None and not links:
        return tag("p", words("no_paper"), class_="quiet")
    downloads = (
        tag("p", words("download"), ": ", join(links, " "), class_="downloads") if links else None
    )
    if page is None or len(page) > _PAPER_BYTES:
        return join((downloads, tag("p", words("too_long")) if page else None))
    return join((downloads, paper_frame(page, words("paper_frame", task=task))))


def paper_frame(page: str, title: str) -> Html:
    """Give a paper in a frame in which nothing runs and nothing is loaded, whatever its HTML says."""
    frame = tag("iframe", sandbox="", title=title, class_="paper", referrerpolicy="no-referrer")
    policy = f'<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="{PAPER_POLICY}">'
    return raw_attribute(frame, "srcdoc", policy + page)


def _review(seen: Seen) -> Html:
    words = seen.words
    text = read_text(seen.results, seen.view.id, "review.json", _REVIEW_BYTES)
    try:
        found = json.loads(text) if text else None
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        return tag("p", words("no_review"), class_="quiet")
    reviews = [one for one in _list(found.get("reviews")) if isinstance(one, Mapping)][:20]
    return join(
        (
            _scores(found.get("scores"), words),
            *(_reviewer(number, one, words) for number, one in enumerate(reviews, start=1)),
        )
    )


def _scores(scores: object, words: Words) -> Html | None:
    if not isinstance(scores, Mapping) or not scores:
        return None
    rows = []
    for name, told in list(scores.items())[:40]:
        one = told if isinstance(told, Mapping) else {"mean": told}
        span = f"{_score(one.get('low'))} to {_score(one.get('high'))}" if "low" in one else ""
        rows.append(
            tag(
                "tr",
                tag("th", _word(name), scope="row"),
                tag("td", _score(one.get("mean")), class_="n"),
                tag("td", span, class_="n"),
            )
        )
    head = tag("tr", *(tag("th", words(key), scope="col") for key in ("score", "mean", "range")))
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="scores")


def _reviewer(number: int, review: Mapping[str, Any], words: Words) -> Html:
    rows = []
    for name, told in list(review.items())[:40]:
        items = told if isinstance(told, list) else [told]
        shown = (
            "; ".join(str(item)[:2000] for item in items[:20])
            if not isinstance(told, Mapping)
            else ", ".join(f"{_word(k)} {_score(v)}" for k, v in list(told.items())[:20])
        )
        rows.append(join((tag("dt", _word(name)), tag("dd", shown))))
    return tag("details", tag("summary", words("reviewer", number=number)), tag("dl", *rows))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _word(name: object) -> str:
    return str(name)[:100].replace("_", " ")


def _score(value: object) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, int | float)
        else str(value if value is not None else "")[:200]
    )


def address(task: str, name: str) -> str:
    """Give the address of a published file of a task."""
    return f"/t/{quote(task, safe='')}/{quote(name)}"


_TABS = {
    "overview": _overview,
    "log": _log,
    "trials": _trials,
    "figures": _figures,
    "paper": _paper,
    "review": _review,
}
