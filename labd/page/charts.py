"""Small pictures of numbers: bars, meters and the history of one. Pure; each says its numbers in words too."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from labd.clock import print_duration
from labd.lab import TaskView
from labd.page.html import Html, join, tag
from labd.page.words import Words
from labd.task import State

_EDGES_S = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0)
_MOST_ROWS = 12
_ENDED = (State.DONE, State.FAILED, State.CANCELLED)


def bars(title: str, rows: Sequence[tuple[str, Mapping[str, int]]], words: Words) -> Html:
    """Give a titled table of bars, each of parts that have a class and a name of their own."""
    most = max((sum(parts.values()) for _, parts in rows), default=0)
    lines = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", _bar(parts, most), class_="bar"),
            tag("td", _told(parts, words), class_="n"),
        )
        for name, parts in rows
    ]
    return tag("table", tag("caption", title), tag("tbody", *lines), class_="bars")


def _bar(parts: Mapping[str, int], most: int) -> Html:
    return join(
        tag("i", class_=f"p {kind}", style=f"width:{100 * count / most:.2f}%")
        for kind, count in parts.items()
        if count
    )


def _told(parts: Mapping[str, int], words: Words) -> str:
    if len(parts) == 1:
        return str(next(iter(parts.values())))
    return ", ".join(f"{count} {words.known(kind)}" for kind, count in parts.items() if count)


def distributions(views: Iterable[TaskView], counts: Mapping[State, int], words: Words) -> Html:
    """Give the states, the durations, and the outcomes by template and model."""
    ended = [view for view in views if view.state in _ENDED]
    pictures = [
        bars(
            words("states"),
            [(words(state.value), {state.value: count}) for state, count in counts.items()],
            words,
        )
    ]
    if not ended:
        return tag("div", *pictures, tag("p", words("nothing_ended")), class_="charts")
    durations = bars(words("durations"), _durations(ended), words)
    templates = _outcomes((view.template or view.kind, view.state) for view in ended)
    models = _outcomes((model, view.state) for view in ended for model in view.models)
    pictures += [durations, bars(words("by_template"), templates, words)]
    if models:
        pictures.append(bars(words("by_model"), models, words))
    return tag("div", *pictures, class_="charts")


def _durations(ended: Iterable[TaskView]) -> list[tuple[str, dict[str, int]]]:
    names = [f"< {print_duration(edge)}" for edge in _EDGES_S] + [
        f"≥ {print_duration(_EDGES_S[-1])}"
    ]
    found = [0] * len(names)
    for view in ended:
        if view.took_s is not None:
            found[sum(view.took_s >= edge for edge in _EDGES_S)] += 1
    return [(name, {"took": count}) for name, count in zip(names, found, strict=True)]


def _outcomes(ends: Iterable[tuple[str, State]]) -> list[tuple[str, dict[str, int]]]:
    found: dict[str, Counter[str]] = {}
    for name, state in ends:
        found.setdefault(name, Counter())[state.value] += 1
    ranked = sorted(found.items(), key=lambda item: (-item[1].total(), item[0]))[:_MOST_ROWS]
    return [
        (name, {state.value: outcomes[state.value] for state in _ENDED})
        for name, outcomes in ranked
    ]


def meter(label: str, share: float | None, told: str) -> Html:
    """Give a gauge: its name, a bar, and what it stands for in words."""
    shown = min(1.0, max(0.0, share)) if share is not None else 0.0
    return tag(
        "div",
        tag("span", label, class_="l"),
        tag(
            "meter",
            told,
            min=0,
            max=1,
            high="0.9",
            value=f"{shown:.2f}",
            aria_label=f"{label}: {told}",
        ),
        tag("span", told, class_="v"),
        class_="meter",
    )


def history(label: str, shares: Sequence[float]) -> Html:
    """Give the course of a share between 0 and 1 as a line; empty for less than two values."""
    if len(shares) < 2:
        return Html("")
    step = 120 / (len(shares) - 1)
    points = " ".join(
        f"{number * step:.1f},{24 - 22 * min(1.0, max(0.0, share)):.1f}"
        for number, share in enumerate(shares)
    )
    told = f"{label}: {statistics.fmean(shares):.0%}"
    return tag(
        "svg",
        tag("polyline", points=points),
        viewBox="0 0 120 26",
        preserveAspectRatio="none",
        class_="history",
        role="img",
        aria_label=told,
    )
