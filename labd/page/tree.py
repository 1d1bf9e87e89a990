"""A task's trials as a picture: a tree where trials have parents, else their values in order. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labd.page.html import Html, join, tag
from labd.page.words import Words
from labd.trials import BASELINE, Trial, Trials

_MOST = 400
_COLUMN, _ROW, _EDGE = 148, 34, 18
_WIDTH, _HEIGHT, _LEFT = 640, 220, 56


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trial is drawn."""

    x: float
    y: float


def picture(found: Trials, words: Words, *, task: str, chosen: str) -> Html:
    """Give the picture, an SVG whose trials can be chosen; empty where there are none."""
    trials = found.trials[:_MOST]
    if not trials:
        return Html("")
    if any(one.parent for one in trials):
        places = tree_places(trials)
        kind = "trials tree"
        width = max(p.x for p in places.values()) + _COLUMN
        height = max(p.y for p in places.values()) + _ROW
        inside = [
            _edges(trials, places),
            *(_node(t, places[t.name], found, chosen, words, named=True) for t in trials),
        ]
    else:
        places = value_places(trials)
        width, height, kind = _WIDTH, _HEIGHT, "trials values"
        inside = [
            _axis(trials, found, words),
            *(_node(t, places[t.name], found, chosen, words, named=False) for t in trials),
        ]
    label = words("tree", task=task, count=len(trials))
    return tag(
        "svg",
        *inside,
        viewBox=f"0 0 {width:g} {height:g}",
        style=f"width:{width:g}px",
        class_=kind,
        role="group",
        aria_label=label,
    )


def tree_places(trials: Sequence[Trial]) -> dict[str, Place]:
    """Place trials by depth and, among those of one depth, so that lines do not cross. Parents that are
    not there, or that come round in a circle, count as none.
    """
    names = {one.name for one in trials}
    children: dict[str, list[str]] = {}
    for one in trials:
        parent = one.parent if one.parent in names and one.parent != one.name else ""
        children.setdefault(parent, []).append(one.name)
    places: dict[str, Place] = {}
    next_row = 0
    # Depth first without recursion: a chain of debugging may be long. Each trial is met twice, before and after its own.
    stack = [(name, 0, False) for name in reversed(children.get("", []))]
    stack = stack or [(trials[0].name, 0, False)]
    seen: set[str] = set()
    while True:
        while stack:
            name, depth, after = stack.pop()
            own = children.get(name, [])
            if after:
                rows = [places[child].y for child in own if child in places]
                y = (min(rows) + max(rows)) / 2 if rows else _EDGE + _ROW * next_row
                next_row += not rows
                places[name] = Place(_EDGE + _COLUMN * depth, y)
            elif name not in seen:
                seen.add(name)
                stack.append((name, depth, True))
                stack += [
                    (child, depth + 1, False) for child in reversed(own) if child not in seen
                ]
        rest = [one.name for one in trials if one.name not in seen]
        if not rest:
            return places
        stack = [(rest[0], 0, False)]  # a circle of parents: begin somewhere


def value_places(trials: Sequence[Trial]) -> dict[str, Place]:
    """Place trials by their order and value; those without a value at the bottom."""
    low, high = _range(trials)
    step = (_WIDTH - _LEFT - 2 * _EDGE) / max(1, len(trials) - 1)
    places = {}
    for number, one in enumerate(trials):
        share = 0.0 if one.value is None else (one.value - low) / (high - low)
        y = _HEIGHT - _EDGE if one.value is None else _HEIGHT - 46 - share * (_HEIGHT - 46 - _EDGE)
        places[one.name] = Place(round(_LEFT + _EDGE + number * step, 1), round(y, 1))
    return places


def _range(trials: Sequence[Trial]) -> tuple[float, float]:
    values = [one.value for one in trials if one.value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axis(trials: Sequence[Trial], found: Trials, words: Words) -> Html:
    low, high = _range(trials)
    top, bottom = _EDGE, _HEIGHT - 46
    lines = [
        tag("line", x1=_LEFT, x2=_WIDTH - 4, y1=y, y2=y, class_="grid") for y in (top, bottom)
    ]
    texts = [
        tag("text", f"{value:.4g}", x=_LEFT - 6, y=y + 4, class_="axis end")
        for value, y in ((high, top), (low, bottom))
    ]
    if any(one.value is None for one in trials):
        texts.append(tag("text", words("no_value"), x=2, y=_HEIGHT - _EDGE + 4, class_="axis"))
    if found.metric:
        texts.append(tag("text", found.metric, x=_LEFT, y=_HEIGHT - 30, class_="axis"))
    return join([*lines, *texts])


def _edges(trials: Sequence[Trial], places: Mapping[str, Place]) -> Html:
    lines = []
    for one in trials:
        parent = places.get(one.parent)
        if parent is None or one.parent == one.name:
            continue
        child = places[one.name]
        bend = (parent.x + child.x) / 2
        path = f"M{parent.x:g} {parent.y:g} C{bend:g} {parent.y:g} {bend:g} {child.y:g} {child.x:g} {child.y:g}"
        lines.append(tag("path", d=path, class_="edge"))
    return join(lines)


def _node(one: Trial, at: Place, found: Trials, chosen: str, words: Words, *, named: bool) -> Html:
    kind = "ok" if one.value is not None else "bad"
    kind = "base" if one.name == BASELINE else "best" if one.name == found.best else kind
    value = f"{one.value:.4g}" if one.value is not None else words("no_value")
    marks = [
        words(mark)
        for mark, there in (("best", kind == "best"), ("baseline", kind == "base"))
        if there
    ]
    told = ", ".join(filter(None, (one.name, one.move, value, one.status, *marks)))
    shape = (
        tag("path", d=f"M{at.x:g} {at.y - 7:g} l7 7 l-7 7 l-7 -7 z")
        if kind in {"bad", "base"}
        else tag("circle", cx=f"{at.x:g}", cy=f"{at.y:g}", r=8 if kind == "best" else 6)
    )
    label = one.name if one.value is None else f"{_short(one.name)} {value}"
    return tag(
        "g",
        tag("title", told),
        tag("rect", x=f"{at.x - 12:g}", y=f"{at.y - 12:g}", width=24, height=24, class_="hit"),
        shape,
        tag("text", _short(label, 18), x=f"{at.x + 12:g}", y=f"{at.y + 4:g}") if named else None,
        class_=f"trial {kind}",
        role="button",
        tabindex=0,
        data_trial=one.name,
        aria_label=told,
        aria_pressed="true" if one.name == chosen else "false",
    )


def _short(text: str, limit: int = 11) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
