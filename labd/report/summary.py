"""From tasks and decisions to a report. Pure: the same record gives the same report."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from labd.report.deciding import decisions_of
from labd.report.model import (
    ArmRow,
    FailureGroup,
    ModelRow,
    Report,
    TaskTold,
    Totals,
)
from labd.report.usage import clipped, usage_of

STATES = ("done", "failed", "cancelled", "running", "pending")
VERDICTS = ("improved", "no_improvement", "worse", "inconclusive", "unknown")
MOST_TASKS = 200
"""Tasks of each list."""
_MOST_GROUPS = 40
_MOST_ROWS = 60
_SHOWN_TASKS = 5
_VARYING = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-f]{12,}\b|\d+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a report is made of.

    `pending`: how many tasks wait. `decisions`: the records, oldest first. `notes`: what a reader must know, such as
    what was not looked at.
    """

    tasks: Sequence[TaskTold]
    pending: int = 0
    unknown_ends: int = 0
    decisions: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


def summarise(
    facts: Facts, since: datetime, until: datetime, made_at: datetime, campaign: str = ""
) -> Report:
    """Give the report on what is known of a period.

    Args:
        facts: of tasks that ended in the period or run.
        since: the period's begin, aware.
        until: its end.
        made_at: the present moment.
        campaign: whose tasks they are; empty: of the whole lab.

    """
    since_s, until_s = since.timestamp(), until.timestamp()
    tasks = sorted(facts.tasks, key=lambda one: (-(one.ended_s or until_s), one.id))
    studied = [one for one in tasks if one.state == "done" and one.research is not None]
    improved = sorted((one for one in studied if _verdict(one) == "improved"), key=_certainty)
    others = [one for one in studied if _verdict(one) != "improved"]
    running = [one for one in tasks if one.state == "running"]
    failures = _failures(tasks)
    lost = _lost(tasks, since_s, until_s)
    arms, models = _arms(tasks, since_s, until_s), _models(tasks)
    unreadable = [(one.id, what) for one in tasks for what in one.unreadable]
    whole: dict[str, Sequence[Any]] = {
        "improved": improved, "others": others, "running": running, "unreadable": unreadable,
        "failures": failures, "lost": lost, "arms": arms, "models": models,
    }  # fmt: skip
    most = {
        "failures": _MOST_GROUPS,
        "lost": _MOST_GROUPS,
        "arms": _MOST_ROWS,
        "models": _MOST_ROWS,
    }
    shown = {name: tuple(rows[: most.get(name, MOST_TASKS)]) for name, rows in whole.items()}
    return Report(
        since=since,
        until=until,
        made_at=made_at,
        campaign=campaign,
        totals=_totals(tasks, studied, facts.pending),
        usage=usage_of(tasks, since_s, until_s, facts.unknown_ends),
        decisions=decisions_of(facts.decisions, since_s, until_s, campaign),
        notes=tuple(facts.notes),
        left_out={
            name: len(rows) - len(shown[name])
            for name, rows in whole.items()
            if len(rows) > len(shown[name])
        },
        **shown,
    )


def _totals(tasks: Sequence[TaskTold], studied: Sequence[TaskTold], pending: int) -> Totals:
    states = Counter(one.state for one in tasks)
    verdicts = Counter(_verdict(one) for one in studied)
    told = [one.research for one in studied if one.research is not None]
    scores = [one.score for one in told if one.score is not None]
    return Totals(
        states={state: states[state] for state in STATES} | {"pending": pending},
        papers=sum("paper.pdf" in one.files for one in tasks),
        verdicts={verdict: verdicts[verdict] for verdict in VERDICTS},
        ideas=sum(len(one.ideas) + one.ideas_left_out for one in told),
        trials=sum(one.trials or 0 for one in told),
        runs=sum(one.runs or 0 for one in told),
        reviewed=len(scores),
        score_mean=sum(scores) / len(scores) if scores else None,
    )


def _verdict(task: TaskTold) -> str:
    return (task.research.verdict if task.research else "") or "unknown"


def _certainty(task: TaskTold) -> tuple[float, str]:
    """Sort by the corrected p-value: metrics of different templates can't be compared, and this can."""
    comparison = task.research.comparison if task.research else None
    p = comparison.p_corrected if comparison else None
    return (2.0 if p is None else p, task.id)


def _failures(tasks: Iterable[TaskTold]) -> list[FailureGroup]:
    failed = [one for one in tasks if one.state == "failed"]
    return _grouped(
        (one.code or "unknown", one.message or "no reason is on record", one) for one in failed
    )


def _lost(tasks: Iterable[TaskTold], since_s: float, until_s: float) -> list[FailureGroup]:
    return _grouped(
        (lost.code or "unknown", lost.reason or "no reason is on record", one)
        for one in tasks
        for lost in one.lost
        if since_s <= lost.at_s <= until_s
    )


def _grouped(ends: Iterable[tuple[str, str, TaskTold]]) -> list[FailureGroup]:
    """Group by code and message; what varies from task to task, numbers and the task's own name, does not tell apart."""
    groups: dict[tuple[str, str], list[tuple[str, TaskTold]]] = {}
    for code, message, task in ends:
        alike = _VARYING.sub("#", message.replace(task.id, "…"))
        groups.setdefault((code, alike), []).append((message, task))
    found = [
        FailureGroup(
            code=code,
            message=members[0][0],
            count=len(members),
            templates=tuple(sorted({task.template or task.kind for _, task in members})[:10]),
            tasks=tuple(dict.fromkeys(task.id for _, task in members))[:_SHOWN_TASKS],
        )
        for (code, _), members in groups.items()
    ]
    return sorted(found, key=lambda group: (-group.count, group.code, group.message))


def _arms(tasks: Sequence[TaskTold], since_s: float, until_s: float) -> list[ArmRow]:
    groups: dict[tuple[str, str], list[TaskTold]] = {}
    for one in tasks:
        groups.setdefault((one.template or one.kind, one.model), []).append(one)
    rows = [_arm(*key, members, since_s, until_s) for key, members in groups.items()]
    return sorted(rows, key=lambda row: (-row.gpu_hours, -row.task_hours, row.template, row.model))


def _arm(
    template: str, model: str, members: Sequence[TaskTold], since_s: float, until_s: float
) -> ArmRow:
    states = Counter(one.state for one in members)
    spans = clipped((span for one in members for span in one.spans), since_s, until_s)
    ended = [one for one in members if one.state in {"done", "failed", "cancelled"}]
    unknown = sum(not one.tokens_known for one in ended)
    listed = [used for one in members for used in one.tokens]
    known = len(ended) > unknown or bool(listed)
    return ArmRow(
        template=template,
        model=model,
        done=states["done"],
        failed=states["failed"],
        cancelled=states["cancelled"],
        improved=sum(_verdict(one) == "improved" and one.state == "done" for one in members),
        task_hours=sum(span.ended_s - span.began_s for span in spans) / 3600,
        gpu_hours=sum((span.ended_s - span.began_s) * span.num_gpus for span in spans) / 3600,
        tokens=sum(u.prompt_tokens + u.output_tokens for u in listed) if known else None,
        tokens_unknown=unknown,
    )


def _models(tasks: Iterable[TaskTold]) -> list[ModelRow]:
    rows: dict[str, ModelRow] = {}
    for one in tasks:
        for used in one.tokens:
            row = rows.get(used.model) or ModelRow(used.model, 0, None, 0, 0)
            calls = row.calls if used.calls is None else (row.calls or 0) + used.calls
            rows[used.model] = replace(
                row,
                tasks=row.tasks + 1,
                calls=calls,
                prompt_tokens=row.prompt_tokens + used.prompt_tokens,
                output_tokens=row.output_tokens + used.output_tokens,
            )
    return sorted(
        rows.values(), key=lambda row: (-row.prompt_tokens - row.output_tokens, row.model)
    )
