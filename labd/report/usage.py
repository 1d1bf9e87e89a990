"""How busy the lab was: from the times in which tasks held CPUs and GPUs to their number over time. Pure."""

import math
from collections.abc import Iterable, Sequence

from labd.archive import Span
from labd.report.model import TaskTold, Usage

_STEPS = (
    300.0,
    900.0,
    1800.0,
    3600.0,
    2 * 3600.0,
    6 * 3600.0,
    12 * 3600.0,
    86_400.0,
    7 * 86_400.0,
)
_MOST_STEPS = 180
_ENDS = ("done", "failed", "cancelled")


def usage_of(
    tasks: Sequence[TaskTold], since_s: float, until_s: float, unknown_ends: int = 0
) -> Usage:
    """Give how many tasks ran, and how many CPUs and GPUs they held, from `since_s` to `until_s`."""
    spans = clipped((span for task in tasks for span in task.spans), since_s, until_s)
    step_s = _step_for(until_s - since_s)
    count = max(1, math.ceil((until_s - since_s) / step_s))
    busy, gpus, cpus = ([0.0] * count for _ in range(3))
    for span in spans:
        first, last = (int((at_s - since_s) / step_s) for at_s in (span.began_s, span.ended_s))
        for index in range(first, min(last, count - 1) + 1):
            begin_s = since_s + index * step_s
            inside_s = min(span.ended_s, begin_s + step_s) - max(span.began_s, begin_s)
            # The last step may be cut short by the end of the period.
            share = max(0.0, inside_s) / max(1e-9, min(step_s, until_s - begin_s))
            busy[index] += share
            cpus[index] += share * span.num_cpus
            gpus[index] += share * span.num_gpus
    ended = {state: [0] * count for state in _ENDS}
    for task in tasks:
        if task.state in ended and task.ended_s is not None and since_s <= task.ended_s <= until_s:
            ended[task.state][min(count - 1, int((task.ended_s - since_s) / step_s))] += 1
    hours = [(span.ended_s - span.began_s) / 3600 for span in spans]
    return Usage(
        since_s=since_s,
        step_s=step_s,
        tasks=tuple(busy),
        gpus=tuple(gpus),
        cpus=tuple(cpus),
        ended={state: tuple(counts) for state, counts in ended.items()},
        task_hours=math.fsum(hours),
        gpu_hours=math.fsum(h * s.num_gpus for h, s in zip(hours, spans, strict=True)),
        cpu_hours=math.fsum(h * s.num_cpus for h, s in zip(hours, spans, strict=True)),
        busy_share=_covered_s(spans) / max(1e-9, until_s - since_s),
        unknown_ends=unknown_ends,
    )


def clipped(spans: Iterable[Span], since_s: float, until_s: float) -> list[Span]:
    """Give the parts of spans that lie in a period."""
    parts = (
        Span(max(s.began_s, since_s), min(s.ended_s, until_s), s.num_cpus, s.num_gpus)
        for s in spans
    )
    return [part for part in parts if part.ended_s > part.began_s]


def _covered_s(spans: Sequence[Span]) -> float:
    """Give for how long at least one of them lasted."""
    covered_s, reached_s = 0.0, -math.inf
    for span in sorted(spans, key=lambda one: one.began_s):
        covered_s += max(0.0, span.ended_s - max(span.began_s, reached_s))
        reached_s = max(reached_s, span.ended_s)
    return covered_s


def _step_for(length_s: float) -> float:
    fitting = (step_s for step_s in _STEPS if length_s / step_s <= _MOST_STEPS)
    return next(fitting, length_s / _MOST_STEPS)
