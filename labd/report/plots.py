"""The pictures of a report, as SVG that takes its colours from the page around it, light or dark.

No text of a task is drawn. matplotlib is imported by the first picture; its settings hold for the time of drawing only.
"""

import io
import itertools
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from labd.report.model import Usage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that nothing else has: in the finished SVG each becomes a variable of the page's style sheet.
_COLOURS = {"#010101": "ink", "#020202": "rule", "#030303": "a", "#040404": "b", "#050505": "c"}
_INK, _RULE, _A, _B, _C = _COLOURS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "labd",
    "font.size": 10.0,
    "font.family": ["DejaVu Sans"],
    "text.color": _INK,
    "text.parse_math": False,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_WIDTH_IN, _HEIGHT_IN = 5.2, 2.1
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"')


def draw_usage(usage: Usage, since: datetime) -> dict[str, str]:
    """Give the pictures that there is data for, as SVG elements, by what they show."""
    ended = any(any(counts) for counts in usage.ended.values())
    drawn: dict[str, str] = {}
    if not (ended or any(usage.tasks)):
        return drawn
    # Its import takes half a second.
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        if any(usage.tasks):
            drawn["tasks"] = _svg(_area(usage, since, usage.tasks, _A, "tasks running"), "t")
        if any(usage.gpus):
            drawn["gpus"] = _svg(_area(usage, since, usage.gpus, _B, "GPUs given to tasks"), "g")
        if ended:
            drawn["ended"] = _svg(_bars(usage, since), "e")
    return drawn


def _area(
    usage: Usage, since: datetime, values: Sequence[float], colour: str, label: str
) -> "Figure":
    figure, axes = _axes(label)
    edges = _edges(usage, since, len(values))
    axes.stairs(list(values), _numbers(edges), fill=True, color=colour, alpha=0.35, linewidth=0)
    axes.stairs(list(values), _numbers(edges), color=colour, linewidth=1.2, baseline=None)
    _finish(axes, edges)
    return figure


def _bars(usage: Usage, since: datetime) -> "Figure":
    figure, axes = _axes("tasks ended")
    edges = _edges(usage, since, len(usage.tasks))
    numbers = _numbers(edges)
    widths = [end - begin for begin, end in itertools.pairwise(numbers)]
    below = [0.0] * len(widths)
    for state, colour in zip(("done", "failed", "cancelled"), (_A, _B, _C), strict=True):
        counts = usage.ended[state]
        if any(counts):
            axes.bar(
                numbers[:-1], counts, widths, bottom=below, align="edge", color=colour, label=state
            )
        below = [low + count for low, count in zip(below, counts, strict=True)]
    axes.legend(loc="lower left", bbox_to_anchor=(0.3, 1.0), ncols=3, borderaxespad=0.2)
    _finish(axes, edges)
    return figure


def _axes(label: str) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_title(label, loc="left", fontsize=10)
    return figure, axes


def _finish(axes: "Axes", edges: Sequence[datetime]) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    dates, zone = _dates(), edges[0].tzinfo
    locator = dates.AutoDateLocator(tz=zone, minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=zone))
    first, last = _numbers([edges[0], edges[-1]])
    axes.set_xlim(first, last)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def _edges(usage: Usage, since: datetime, count: int) -> list[datetime]:
    return [since + timedelta(seconds=usage.step_s * index) for index in range(count + 1)]


def _numbers(moments: Sequence[datetime]) -> list[float]:
    return [float(number) for number in _dates().date2num(list(moments))]


def _dates() -> Any:
    """Give matplotlib's module of dates, which has no types."""
    import matplotlib.dates  # noqa: PLC0415

    return matplotlib.dates


def _svg(figure: "Figure", prefix: str) -> str:
    """Give the figure as an element whose ids are its own and whose colours are the page's."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = _HEAD.sub("", out.getvalue(), count=1)
    text = _SIZE.sub(lambda found: found.group(1) or "", text, count=2)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, name in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text
