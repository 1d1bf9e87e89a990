"""The report as Markdown that reads as well in a terminal or a mail as it is.

Texts of tasks stand between backticks, which leave nothing in them to be taken for markup.
"""

from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from labd.clock import print_duration
from labd.report import words
from labd.report.model import FailureGroup, Report, TaskTold, Usage
from labd.report.render import Links
from labd.text import printable

_BLOCKS = " ▁▂▃▄▅▆▇█"
_MOST_MARKS = 72
_MOST_DECISIONS = 20


def markdown(report: Report, links: Links) -> str:
    """Give the report as Markdown."""
    parts = [
        *_head(report),
        *_improved(report, links),
        *_others(report, links),
        *_failures("What failed, and why", report, "failures"),
        *_failures("Attempts that were lost and tried again", report, "lost"),
        *_unreadable(report),
        *_running(report),
        *_busy(report.usage),
        *_arms(report),
        *_models(report),
        *_decided(report),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def code(text: str, limit: int = 200) -> str:
    """Give untrusted text as a code span: nothing in it is markup, of Markdown, HTML or a terminal."""
    clean = printable(text, limit).replace("`", "'").replace("|", "¦").strip()
    return f"`{clean}`" if clean else "`-`"


def _head(report: Report) -> list[str]:
    totals, usage = report.totals, report.usage
    states = ", ".join(f"{n:,} {state}" for state, n in totals.states.items())
    lines = [
        f"# {words.title_of(report)}",
        "",
        f"{words.moment(report.since)} to {words.moment(report.until)}",
        "",
        f"- Tasks: {states}",
        (
            f"- Research: {totals.verdicts['improved']:,} improved, {totals.verdicts['no_improvement']:,} no improvement, "
            f"{totals.verdicts['worse']:,} worse, {totals.verdicts['inconclusive']:,} inconclusive, "
            f"{totals.verdicts['unknown']:,} not on record"
        ),
        f"- Papers {totals.papers:,}, ideas {totals.ideas:,}, trials {totals.trials:,}, runs {totals.runs:,}",
        f"- {words.hours(usage.task_hours)} task hours, {words.hours(usage.gpu_hours)} GPU hours",
    ]
    return [*lines, *(f"- {note}" for note in report.notes), ""]


def _improved(report: Report, links: Links) -> list[str]:
    lines = ["## What improved", ""]
    if not report.improved:
        lines += ["Nothing.", ""]
    for task in report.improved:
        lines += [
            f"- {_named(task)}",
            *(f"  {line}" for line in _comparison(task)),
            *_paper(task, links),
        ]
    return [*lines, *_more(report, "improved")]


def _comparison(task: TaskTold) -> list[str]:
    found = task.research.comparison if task.research else None
    if found is None:
        return ["nothing was compared"]
    return [
        (
            f"{code(found.metric)}: {words.figure(found.baseline)} → {words.figure(found.best)}, difference "
            f"**{words.figure(found.difference, signed=True)}** (95 %: {words.interval(found)})"
        ),
        f"{words.samples(found)}, {words.corrected(found)}; {found.better} is better",
    ]


def _paper(task: TaskTold, links: Links) -> list[str]:
    if task.research is None:
        return []
    told = f"  reviews: {words.score(task.research.score, task.research.reviews)}"
    named = [f"[{name}]({links.file(task.id, name)})" for name in task.files]
    ideas = [f"  - idea: {code(idea.title)}" for idea in task.research.ideas[:5]]
    return [told, f"  {' '.join(named) or 'no paper'}", *ideas]


def _others(report: Report, links: Links) -> list[str]:
    if not report.others:
        return []
    lines = ["## Other papers", ""]
    for task in report.others:
        verdict = words.VERDICT_WORDS[task.research.verdict if task.research else ""]
        lines += [
            f"- {_named(task)}: **{verdict}**",
            f"  {_comparison(task)[0]}",
            *_paper(task, links),
        ]
    return [*lines, *_more(report, "others")]


def _failures(title: str, report: Report, name: str) -> list[str]:
    groups: Sequence[FailureGroup] = getattr(report, name)
    if not groups:
        return [f"## {title}", "", "Nothing.", ""] if name == "failures" else []
    lines = [f"## {title}", ""]
    for group in groups:
        tasks = ", ".join(code(task, 80) for task in group.tasks)
        lines += [
            f"- {words.times(group)}, {code(group.code)} ({', '.join(map(code, group.templates))})",
            f"  {code(group.message, 300)}",
            f"  {tasks}{', …' if group.count > len(group.tasks) else ''}",
        ]
    return [*lines, *_more(report, name)]


def _unreadable(report: Report) -> list[str]:
    if not report.unreadable:
        return []
    lines = [f"- {code(task)}: {code(what, 300)}" for task, what in report.unreadable]
    return ["## What can't be read", "", *lines, *_more(report, "unreadable")]


def _running(report: Report) -> list[str]:
    if not report.running:
        return []
    return [
        "## Still running",
        "",
        *(f"- {_named(task)}" for task in report.running),
        *_more(report, "running"),
    ]


def _busy(usage: Usage) -> list[str]:
    lines = [
        "## How busy the lab was",
        "",
        f"Something ran for {words.share(usage.busy_share)} of the time.",
        "",
        *_course("tasks running", usage.tasks),
        *_course("GPUs given to tasks", usage.gpus),
        words.COUNTS_WHAT,
        f"A mark is {print_duration(usage.step_s * _each(len(usage.tasks)))} long.",
    ]
    if usage.unknown_ends:
        lines.append(
            f"Attempts of which no end is on record, which count nothing: {usage.unknown_ends}."
        )
    return [*lines, ""]


def _course(label: str, values: Sequence[float]) -> list[str]:
    most = max(values, default=0.0)
    if not most:
        return []
    each = _each(len(values))
    means = [
        sum(part) / len(part)
        for part in (values[at : at + each] for at in range(0, len(values), each))
    ]
    marks = "".join(_BLOCKS[min(8, -int(-8 * mean // most))] for mean in means)
    return [f"    {marks}", "", f"{label}, at most {words.figure(most)} in the mean of a step", ""]


def _each(count: int) -> int:
    return max(1, -(-count // _MOST_MARKS))


def _arms(report: Report) -> list[str]:
    if not report.arms:
        return []
    rows = [
        (
            code(row.template, 40), code(row.model, 40) if row.model else "", f"{row.done:,}", f"{row.failed:,}", f"{row.improved:,}",
            words.hours(row.task_hours), words.hours(row.gpu_hours),
            words.count(row.tokens) + (f" + {row.tokens_unknown} unknown" if row.tokens_unknown and row.tokens is not None else ""),
        )
        for row in report.arms
    ]  # fmt: skip
    header = ("template", "model", "done", "failed", "improved", "task h", "GPU h", "tokens")
    return ["## By template and model", "", *_table(header, rows, 2), *_more(report, "arms")]


def _models(report: Report) -> list[str]:
    if not report.models:
        return []
    rows = [
        (code(r.model, 60), f"{r.tasks:,}", words.count(r.calls), f"{r.prompt_tokens:,}", f"{r.output_tokens:,}")
        for r in report.models
    ]  # fmt: skip
    header = ("model", "tasks", "calls", "tokens of prompts", "tokens of replies")
    return ["## Language models", "", *_table(header, rows, 1), *_more(report, "models")]


def _decided(report: Report) -> list[str]:
    decided = report.decisions
    if not decided.last:
        return []
    counts = ", ".join(f"{code(event, 60)} {count:,}" for event, count in decided.counts.items())
    lines = ["## What campaigns and the adaptive queue decided", "", counts, ""]
    for node, levels in decided.level_hours.items():
        told = ", ".join(f"{code(name)} {words.hours(h)} h" for name, h in levels.items())
        lines += [f"Load of {code(node)}, as far as it is on record: {told}", ""]
    lines += [
        f"- {code(row.arm)}: {row.added:,} tasks; {code(row.why, 400)}" for row in decided.arms
    ]
    lines += ["", "The last ones:", ""]
    for one in decided.last[:_MOST_DECISIONS]:
        lines.append(
            f"- {code(one.at)} {code(one.event)} {code(one.campaign)} {code(one.told, 300)}"
        )
    return [*lines, ""]


def _more(report: Report, name: str) -> list[str]:
    left = report.left_out.get(name)
    return ["", f"… and {left:,} more, which are left out.", ""] if left else [""]


def _named(task: TaskTold) -> str:
    title = f" {code(task.title)}" if task.title else ""
    model = f" with {code(task.model)}" if task.model else ""
    return f"{code(task.id)}{title} ({code(task.template or task.kind)}{model})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> list[str]:
    """Give a table whose columns are as wide as what is in them; the first `texts` are to the left."""
    listed = [tuple(header), *rows]
    widths = [max(cell_len(row[at]) for row in listed) for at in range(len(header))]
    lines = []
    for row in listed:
        cells = [
            cell + " " * (width - cell_len(cell))
            if at < texts
            else " " * (width - cell_len(cell)) + cell
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    marks = [
        "-" * width if at < texts else f"{'-' * (width - 1)}:" for at, width in enumerate(widths)
    ]
    return [lines[0], f"| {' | '.join(marks)} |", *lines[1:]]
