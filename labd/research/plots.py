"""The figures of a paper, drawn from a record: the same record gives the same bytes.

A figure that its data can't fill is left out. Uses matplotlib's objects and nothing of pyplot's; its
settings hold for the time of drawing only, in which no other thread may draw.
"""

import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labd.files import write_atomic
from labd.research.record import Importance, ResearchRecord, Run, Sample, TrialStatus
from labd.template import Metric, Param, ParamSpec
from labd.text import printable

DPI = 160
MAX_PARAMETERS_SHOWN = 8
MAX_CURVES_SHOWN = 3
_SCATTERS_IN_ROW = 3
# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/: told apart by all kinds of colour vision,
# and these three by their brightness too, in print without colours.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"
GREEN, PURPLE, SKY, YELLOW = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Names come from templates: a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
}


def draw_figures(record: ResearchRecord, results_dir: Path) -> dict[str, str]:
    """Draw what the record has data for into ``plots/`` and give name and path of each figure.

    Paths are relative to `results_dir`, as in `ResearchRecord.figures`.

    Raises:
        OSError: a file could not be written.

    """
    claim, metric = record.claim, record.metric
    return save_figures(
        results_dir,
        {
            "best_so_far": lambda: best_so_far(metric, record.baseline_run, record.trials),
            "baseline_vs_best": lambda: baseline_vs_best(metric, claim.baseline, claim.best),
            "importance": lambda: importance(
                metric, record.space, record.importances, record.trials
            ),
            "learning_curves": lambda: learning_curves(
                record.confirm_baseline, record.confirm_best
            ),
        },
    )


def save_figures(
    results_dir: Path, draw: Mapping[str, Callable[[], Figure | None]]
) -> dict[str, str]:
    """Draw figures in labd's style into ``plots/`` and give name and path of each that there is data for.

    Raises:
        OSError: a file could not be written.

    """
    (results_dir / "plots").mkdir(exist_ok=True)
    with mpl.rc_context():
        # A user's own matplotlibrc must not change the bytes.
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figures = {name: drawing() for name, drawing in draw.items()}
        drawn = {name: _png(figure) for name, figure in figures.items() if figure is not None}
    paths = {name: f"plots/{name.replace('_', '-')}.png" for name in drawn}
    for name, raw in drawn.items():
        write_atomic(results_dir / paths[name], raw)
    return paths


def best_so_far(metric: Metric, baseline_run: Run, trials: Sequence[Run]) -> Figure | None:
    """Draw each trial's value, the best up to it, and the baseline; `None` if no trial has a value."""
    points = [(index, run.value) for index, run in enumerate(trials, 1) if run.value is not None]
    if not points:
        return None
    figure, axes = new_figure(5.6, 3.4)
    numbers = [number for number, _ in points]
    values = [value for _, value in points]
    axes.plot(numbers, values, "o", color=BLUE, markersize=4, label="trial")
    pick = max if metric.better == "higher" else min
    running = [pick(values[: index + 1]) for index in range(len(values))]
    # The best holds until the last trial, also where the last ones failed.
    axes.step(
        [*numbers, len(trials)],
        [*running, running[-1]],
        where="post",
        color=BLUE,
        label="best so far",
    )
    if baseline_run.value is not None:
        axes.axhline(baseline_run.value, color=ORANGE, linestyle="--", label="baseline")
    failed = [index for index, run in enumerate(trials, 1) if run.status is not TrialStatus.OK]
    if failed:
        # In axes coordinates upwards: a failed trial has no value, so it is put on none.
        axes.plot(
            failed,
            [0.02] * len(failed),
            "x",
            color=GREY,
            markersize=5,
            label="no value",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    axes.set_xlabel("trial, in order of proposal")
    axes.set_ylabel(metric_label(metric, "validation"))
    axes.set_xlim(0.5, len(trials) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(figure, axes)
    return figure


def baseline_vs_best(
    metric: Metric, baseline: Sample | None, best: Sample | None
) -> Figure | None:
    """Draw the values over fresh seeds with mean and 95 % interval; `None` unless both have values."""
    if baseline is None or best is None:
        return None
    return arms(metric, {"baseline": baseline, "selected": best})


def arms(metric: Metric, samples: Mapping[str, Sample]) -> Figure:
    """Draw up to three samples by name, the baseline's first, side by side."""
    figure, axes = new_figure(4.2 if len(samples) < 3 else 5.2, 3.4)
    looks = ((ORANGE, "s"), (BLUE, "o"), (GREEN, "D"))
    for place, (sample, (color, marker)) in enumerate(zip(samples.values(), looks, strict=False)):
        spread = [
            place - 0.16 + 0.12 * (index / max(1, sample.n - 1) - 0.5) for index in range(sample.n)
        ]
        axes.plot(spread, sample.values, marker, color=color, markersize=3.5, alpha=0.7)
        if sample.ci_low is not None and sample.ci_high is not None:
            axes.vlines(place + 0.1, sample.ci_low, sample.ci_high, color=color, linewidth=1.8)
        axes.plot([place + 0.1], [sample.mean], marker, color=color, markersize=7)
    labels = [f"{name}\n(n = {sample.n})" for name, sample in samples.items()]
    axes.set_xticks(range(len(samples)), labels)
    axes.set_xlim(-0.6, len(samples) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(metric_label(metric, "test"))
    axes.set_title("small: one run; large: mean and 95 % interval", fontsize=8, color="#404040")
    return figure


def importance(
    metric: Metric,
    space: Sequence[ParamSpec],
    importances: Sequence[Importance],
    trials: Sequence[Run],
) -> Figure | None:
    """Draw each parameter's share as a bar, and the metric against it; `None` without shares."""
    shares = {one.name: one.share for one in importances if one.share is not None}
    runs = [run for run in trials if run.value is not None]
    shown = sorted(
        (spec for spec in space if spec.name in shares), key=lambda spec: -shares[spec.name]
    )
    shown = shown[:MAX_PARAMETERS_SHOWN]
    if not shown or not runs:
        return None
    rows = -(-len(shown) // _SCATTERS_IN_ROW)
    figure = Figure(figsize=(7.2, 0.9 + 1.4 * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, 1 + _SCATTERS_IN_ROW, width_ratios=(1.3, 1, 1, 1))
    bars = figure.add_subplot(grid[:, 0])
    figure.supxlabel("dashed: the baseline's value", fontsize=7, x=0.98, ha="right")
    names = [spec.name for spec in reversed(shown)]
    bars.barh(range(len(names)), [shares[name] for name in names], color=BLUE, height=0.6)
    bars.set_yticks(range(len(names)), [tick(name, 18) for name in names])
    bars.set_xlabel("share of explained variance")
    bars.grid(visible=False, axis="y")
    for index, spec in enumerate(shown):
        row, column = divmod(index, _SCATTERS_IN_ROW)
        axes = figure.add_subplot(grid[row, 1 + column])
        _scatter(
            axes, spec, [run.params[spec.name] for run in runs], [run.value or 0.0 for run in runs]
        )
        if column == 0:
            axes.set_ylabel(f"{tick(metric.name, 18)} on validation", fontsize=7)
    return figure


def learning_curves(baseline: Sequence[Run], best: Sequence[Run]) -> Figure | None:
    """Draw the series that runs reported, mean and range over seeds; `None` if there is none of two points."""
    groups = ((baseline, "baseline", ORANGE, "--"), (best, "selected", BLUE, "-"))
    names = list(dict.fromkeys(name for runs, *_ in groups for run in runs for name in run.curves))
    names = [name for name in names if any(_columns(runs, name) for runs, *_ in groups)]
    names = names[:MAX_CURVES_SHOWN]
    if not names:
        return None
    figure = Figure(
        figsize=(3.6 * len(names) if len(names) > 1 else 5.2, 3.2), dpi=DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), place)
        for runs, label, color, line in groups:
            columns = _columns(runs, name)
            if not columns:
                continue
            steps = range(1, len(columns) + 1)
            axes.fill_between(
                steps,
                [min(c) for c in columns],
                [max(c) for c in columns],
                color=color,
                alpha=0.2,
                linewidth=0,
            )
            axes.plot(
                steps, [statistics.fmean(c) for c in columns], line, color=color, label=label
            )
        axes.set_xlabel("step")
        axes.set_ylabel(name.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if place == 1:
            axes.legend()
    return figure


def _columns(runs: Sequence[Run], name: str) -> list[tuple[float, ...]]:
    """Give the runs' values step by step, as far as all that have the curve go; empty below two steps."""
    curves = [run.curves[name] for run in runs if name in run.curves]
    columns = list(zip(*curves, strict=False))
    return columns if len(columns) > 1 else []


def _scatter(
    axes: Axes, spec: ParamSpec, params: Sequence[Param], values: Sequence[float]
) -> None:
    choices = spec.choices or []
    if spec.type == "categorical":
        places: list[float] = [choices.index(param) for param in params]
        at: float = choices.index(spec.baseline)
    else:
        places, at = [float(param) for param in params], float(spec.baseline)
    axes.axvline(at, color=ORANGE, linestyle="--", linewidth=1)
    axes.plot(places, values, "o", color=BLUE, markersize=2.5)
    axes.set_xlabel(tick(spec.name, 24), fontsize=7)
    axes.tick_params(labelsize=6)
    if choices:
        axes.set_xticks(range(len(choices)), [tick(str(choice), 8) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif spec.low is not None and spec.high is not None:
        _whole_range(axes, spec.low, spec.high, log=spec.log)


def _whole_range(axes: Axes, low: float, high: float, *, log: bool) -> None:
    """Show the range that the search had, also where it did not go."""
    margin = 0.05
    if not log:
        axes.set_xlim(low - margin * (high - low), high + margin * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        return
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlim(low * (low / high) ** margin, high * (high / low) ** margin)
    ticks = (low, math.sqrt(low) * math.sqrt(high), high)
    axes.set_xticks(ticks, [f"{tick:.2g}" if tick < 10 else f"{tick:.0f}" for tick in ticks])


def new_figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """Give an empty figure of a size in inches, and its axes."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def legend_above(figure: Figure, axes: Axes) -> None:
    """Put the axes' legend over them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)


def metric_label(metric: Metric, split: str) -> str:
    """Give the label of an axis with the metric's values."""
    return f"{tick(metric.name, 40)} on {split}\n({metric.better} is better)"


def tick(text: str, limit: int) -> str:
    """Give a label that the font has all characters of; others would be boxes and a warning."""
    plain = printable(text, limit * 4)
    plain = "".join(char if ord(char) < 0x250 else "?" for char in plain)
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Matplotlib would write its version into the file.
    metadata: Mapping[str, str | None] = {"Software": None}
    figure.savefig(buffer, format="png", dpi=DPI, metadata=metadata)
    return buffer.getvalue()
