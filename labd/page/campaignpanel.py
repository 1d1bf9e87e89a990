"""What the lab does by itself: when campaigns fire, what is still to come of them, and what was decided and why. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from labd.agenda import Arm, Firing, Opened, Plan
from labd.page.html import Html, join, tag
from labd.page.snapshot import Snapshot
from labd.page.words import Words

_MOST_PLANS = 100
_NEXT = 4
_WHY_LENGTH = 600


def campaigns_panel(snapshot: Snapshot, words: Words, *, read_only: bool) -> Html:
    """Give each campaign with its next firings and its mix, the load that it goes by, and the last decisions."""
    agenda = snapshot.agenda
    if not agenda.plans:
        return tag("p", words("no_campaigns"), class_="quiet")
    plans = [
        _plan(plan, snapshot, words, read_only=read_only) for plan in agenda.plans[:_MOST_PLANS]
    ]
    return join(
        (
            _load(snapshot.nodes, words),
            tag("div", *plans, class_="plans"),
            _decisions(agenda.decisions, words),
        )
    )


def _load(nodes: Iterable[Mapping[str, Any]], words: Words) -> Html | None:
    """Say how loaded each machine is, and why; nothing where no adaptive campaign is in its time."""
    told = [
        tag(
            "li",
            tag("b", str(node.get("name") or "")),
            " ",
            tag("span", words.known(f"level_{node['level']}"), class_=_LEVELS.get(node["level"])),
            f": {node['because']}" if node.get("because") else None,
        )
        for node in nodes
        if node.get("level")
    ]
    return tag("ul", *told, class_="loads", aria_label=words("load")) if told else None


_LEVELS = {"normal": "good", "high": "warn", "critical": "bad"}


def _plan(plan: Plan, snapshot: Snapshot, words: Words, *, read_only: bool) -> Html:
    if plan.problem:
        lines = [tag("li", line) for line in plan.problem.splitlines()[:20]]
        return tag(
            "section",
            tag("h4", plan.name),
            tag("p", words("plan_invalid"), class_="bad"),
            tag("ul", *lines, class_="field-errors"),
            class_="node",
        )
    waiting, running = snapshot.campaign_tasks.get(plan.name, (0, 0))
    facts = [
        *_fact(
            words("plan_next"), [_firing(one, words, coming=True) for one in plan.next[:_NEXT]]
        ),
        *_fact(words("plan_last"), [_firing(plan.last, words)] if plan.last else []),
        *_fact(words("tasks"), _tasks(waiting, running, words)),
        *_fact(words("plan_open"), [_opened(one, words) for one in plan.opened]),
    ]
    return tag(
        "section",
        tag("h4", plan.name, " ", tag("small", plan.title) if plan.title else None),
        _state(plan, words),
        tag("dl", *facts) if facts else None,
        _arms(plan.arms, words),
        None if read_only else _starts(plan, words),
        class_="node",
    )


def _starts(plan: Plan, words: Words) -> Html | None:
    """Give a button for each step that may be started by hand."""
    buttons = [
        tag(
            "button",
            words("start_step", step=step) if len(plan.starts) > 1 else words("start_now"),
            type="button",
            class_="ask",
            data_start=plan.name,
            data_step=step,
            data_sure=words("start_sure", name=f"{plan.name} {step}".strip(), tasks=tasks),
        )
        for step, tasks in plan.starts
    ]
    return tag("div", *buttons, class_="actions") if buttons else None


def _state(plan: Plan, words: Words) -> Html:
    zone = tag("span", f", {plan.zone}", class_="quiet")
    if plan.enabled and plan.adds:
        return tag("p", tag("span", words("plan_adds"), class_="good"), zone)
    return tag("p", words("plan_on" if plan.enabled else "plan_off"), zone, class_="quiet")


def _fact(name: str, values: list[Html]) -> list[Html]:
    if not values:
        return []
    return [tag("dt", name), tag("dd", *(tag("div", value) for value in values))]


def _firing(firing: Firing, words: Words, *, coming: bool = False) -> Html:
    at, step = firing.at, f"{firing.step}: " if firing.step else ""
    when = tag("time", f"{at:%Y-%m-%d %H:%M}", datetime=at.isoformat(timespec="minutes"))
    told = words("in_age" if coming else "ago", age="{age}")
    key = {"data_until" if coming else "data_ago": f"{at.timestamp():.0f}"}
    away = tag("span", data_text=told, class_="quiet", **key)
    number = words("plan_tasks", count=firing.tasks) if firing.tasks else None
    parts = [step, when, " (", away, ")", f", {number}" if number else None]
    return join(parts)


def _tasks(waiting: int, running: int, words: Words) -> list[Html]:
    parts = [
        f"{count} {words(word)}"
        for count, word in ((running, "running"), (waiting, "pending"))
        if count
    ]
    return [join([", ".join(parts)])] if parts else []


def _opened(opened: Opened, words: Words) -> Html:
    step = f"{opened.step}: " if opened.step else ""
    return join([f"{step}{words('plan_came', done=opened.done, tasks=opened.tasks)}"])


def _arms(arms: Iterable[Arm], words: Words) -> Html | None:
    """Give the templates with their models: the share that each is to get, what it paid, and after how many tasks."""
    rows = [
        tag(
            "tr",
            tag("th", arm.name, scope="row"),
            tag(
                "td",
                tag("i", class_="p took", style=f"width:{100 * arm.share:.1f}%"),
                class_="bar",
            ),
            tag("td", f"{arm.share:.0%}", class_="n"),
            tag("td", f"{arm.profile.payoff:.2f}", class_="n"),
            tag("td", f"{arm.profile.success:.0%}", class_="n"),
            tag("td", _about(arm.profile.duration_s), class_="n"),
            tag("td", arm.profile.tasks, class_="n"),
            tag("td", arm.added, class_="n"),
        )
        for arm in arms
    ]
    if not rows:
        return None
    keys = (
        "arm",
        "",
        "arm_share",
        "arm_payoff",
        "arm_success",
        "arm_takes",
        "arm_ended",
        "arm_added",
    )
    head = tag(
        "tr", *(tag("th", words(k), scope="col") if k else tag("td", class_="bar") for k in keys)
    )
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="arms")
    return _region(table, words("arms"))


def _about(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _decisions(decisions: Iterable[Mapping[str, Any]], words: Words) -> Html | None:
    rows = [
        tag(
            "tr",
            tag("td", str(one.get("at", ""))[:19].replace("T", " "), class_="at"),
            tag("th", _what(one, words), scope="row"),
            tag("td", " ".join(str(one[k]) for k in ("campaign", "step") if one.get(k))),
            tag("td", _because(one), class_="why"),
        )
        for one in decisions
    ]
    if not rows:
        return None
    table = tag("table", tag("tbody", *rows), class_="lines decisions")
    heading = tag("h4", words("decisions"))
    return join((heading, _region(table, words("decisions"), "scroll log-lines")))


def _region(table: Html, name: str, class_: str = "scroll") -> Html:
    return tag("div", table, class_=class_, tabindex=0, role="region", aria_label=name)


def _what(decision: Mapping[str, Any], words: Words) -> str:
    event = str(decision.get("event", ""))
    return words.known(f"event_{event.replace('.', '_')}").removeprefix("event_")


_PLACED = frozenset({"event", "at", "campaign", "step", "instant", "why"})


def _because(decision: Mapping[str, Any]) -> str:
    rest = [f"{key}={value}" for key, value in decision.items() if key not in _PLACED and value]
    return "; ".join(part for part in (" ".join(rest), str(decision.get("why", ""))) if part)[
        :_WHY_LENGTH
    ]
