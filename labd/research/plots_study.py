"""The figures of a study's paper: the same study gives the same bytes, and no figure shows what was not recorded."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labd.research.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    arms,
    learning_curves,
    legend_above,
    metric_label,
    new_figure,
    save_figures,
    tick,
)
from labd.research.record import Run, Sample
from labd.research.study import Ablation, Study, Trial
from labd.template import Metric

STUDY_FIGURES = {
    "trials": "the trials in their order, by idea, with the best so far and the baseline (validation)",
    "tree": "which trial came from which",
    "baseline_vs_best": "the runs on the test split, with means and intervals",
    "ablations": "what the selected code loses without each of its changes (test split)",
    "learning_curves": "learning curves as the runs reported them",
}
"""The figures that the text knows, in the order in which it shows them, and what each shows."""
MAX_TREE_TRIALS = 80
_IDEA_LOOKS = ((BLUE, "o"), (GREEN, "D"), (PURPLE, "^"), (YELLOW, "v"), (SKY, "s"))
_MAX_IDEAS_NAMED = len(_IDEA_LOOKS)


def draw_study_figures(study: Study, results_dir: Path) -> dict[str, str]:
    """Draw what the study has data for into ``plots/`` and give name and path of each figure.

    Raises:
        OSError: a file could not be written.

    """
    return save_figures(
        results_dir,
        {
            "trials": lambda: trials_in_order(
                study.metric, study.baseline_run, study.trials, study.best_trial
            ),
            "tree": lambda: trial_tree(study.trials, study.best_trial),
            "baseline_vs_best": lambda: study_arms(study),
            "ablations": lambda: ablations(study.metric, study.ablations),
            "learning_curves": lambda: learning_curves(study.confirm_baseline, study.confirm_best),
        },
    )


def study_arms(study: Study) -> Figure | None:
    """Draw baseline, selected code and the control on test; `None` unless the first two have values."""
    baseline, best = study.claim.baseline, study.claim.best
    if baseline is None or best is None:
        return None
    samples: dict[str, Sample] = {"baseline": baseline, "selected": best}
    if study.control is not None and study.control.claim.best is not None:
        samples["control"] = study.control.claim.best
    return arms(study.metric, samples)


def trials_in_order(
    metric: Metric, baseline_run: Run, trials: Sequence[Trial], best_trial: str | None
) -> Figure | None:
    """Draw each trial's value by its number, marked by its idea; `None` if no trial has a value."""
    points = [(at, trial) for at, trial in enumerate(trials, 1) if trial.value is not None]
    if not points:
        return None
    figure, axes = new_figure(5.8, 3.6)
    for name, look in _looks(trials).items():
        mine = [
            (at, trial.value or 0.0) for at, trial in points if _shown_as(trial, trials) == name
        ]
        if mine:
            color, marker = look
            axes.plot(*zip(*mine, strict=True), marker, color=color, markersize=5, label=name)
    _running_best(axes, metric, points, len(trials))
    if baseline_run.value is not None:
        axes.axhline(baseline_run.value, color=ORANGE, linestyle="--", label="baseline")
    selected = [(at, trial.value or 0.0) for at, trial in points if trial.name == best_trial]
    for at, value in selected:
        axes.plot(
            [at], [value], "o", color="black", fillstyle="none", markersize=11, label="selected"
        )
    failed = [at for at, trial in enumerate(trials, 1) if trial.value is None]
    if failed:
        # In axes coordinates upwards: a failed trial has no value, so it is put on none.
        place = axes.get_xaxis_transform()
        axes.plot(
            failed, [0.02] * len(failed), "x", color=GREY, markersize=5, label="no value",
            transform=place, clip_on=False,
        )  # fmt: skip
    axes.set_xlabel("trial, in order")
    axes.set_ylabel(metric_label(metric, "validation"))
    axes.set_xlim(0.5, len(trials) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(4, len(labels)), fontsize=8
    )
    return figure


def _running_best(
    axes: Axes, metric: Metric, points: Sequence[tuple[int, Trial]], last: int
) -> None:
    pick = max if metric.better == "higher" else min
    values = [trial.value or 0.0 for _, trial in points]
    running = [pick(values[: at + 1]) for at in range(len(values))]
    places = [at for at, _ in points]
    axes.step([*places, last], [*running, running[-1]], where="post", color=GREY, linewidth=1)


def _looks(trials: Sequence[Trial]) -> Mapping[str, tuple[str, str]]:
    """Give colour and marker of each idea; the rest, where there are many, look alike."""
    ideas = sorted({trial.idea for trial in trials}, key=lambda name: (len(name), name))
    looks = dict(zip(ideas[:_MAX_IDEAS_NAMED], _IDEA_LOOKS, strict=False))
    return looks | {"other ideas": (GREY, ".")} if len(ideas) > _MAX_IDEAS_NAMED else looks


def _shown_as(trial: Trial, trials: Sequence[Trial]) -> str:
    return trial.idea if trial.idea in _looks(trials) else "other ideas"


def trial_tree(trials: Sequence[Trial], best_trial: str | None) -> Figure | None:
    """Draw which trial was made of which, the template at the top; `None` for less than two or too many."""
    if not 2 <= len(trials) <= MAX_TREE_TRIALS:
        return None
    places = tree_places(trials)
    width = max(x for x, _ in places.values()) + 1
    depth = max(y for _, y in places.values())
    figure, axes = new_figure(max(4.0, min(7.2, 0.55 * width + 1.5)), 1.4 + 0.7 * depth)
    for trial in trials:
        (x, y), (px, py) = places[trial.name], places[trial.parent or ""]
        axes.plot([px, x], [-py, -y], color="#BFBFBF", linewidth=1, zorder=1)
    groups = (
        ("value", BLUE, "o", [t for t in trials if t.value is not None]),
        ("no value", GREY, "X", [t for t in trials if t.value is None]),
        ("selected", ORANGE, "*", [t for t in trials if t.name == best_trial]),
    )
    for label, color, marker, members in groups:
        if members:
            xs, ys = zip(*(places[trial.name] for trial in members), strict=True)
            size = 13 if marker == "*" else 8
            shown = [-y for y in ys]
            axes.plot(xs, shown, marker, color=color, markersize=size, label=label, linestyle="")
    x, y = places[""]
    axes.plot([x], [-y], "s", color="black", markersize=7, label="template")
    for number, trial in enumerate(trials, 1):
        x, y = places[trial.name]
        axes.annotate(
            str(number),
            (x, -y),
            xytext=(0, -12),
            textcoords="offset points",
            ha="center",
            fontsize=6,
        )
    axes.set_axis_off()
    axes.margins(0.08, 0.2)
    legend_above(figure, axes)
    return figure


def tree_places(trials: Sequence[Trial]) -> dict[str, tuple[float, int]]:
    """Give for each trial's name, and ``""`` for the template, its column and depth.

    A parent stands over the middle of its children. A trial whose parent is no earlier trial hangs on the template.
    """
    known = [""]
    children: dict[str, list[str]] = {"": []}
    for trial in trials:
        parent = trial.parent if trial.parent in known else ""
        children[parent or ""].append(trial.name)
        children[trial.name] = []
        known.append(trial.name)
    depth = {"": 0}
    for name in known:
        depth |= dict.fromkeys(children[name], depth[name] + 1)
    columns: dict[str, float] = {}
    leaves = iter(range(len(known)))
    order = _children_first(children)
    for name in order:
        below = [columns[child] for child in children[name]]
        columns[name] = (below[0] + below[-1]) / 2 if below else float(next(leaves))
    return {name: (columns[name], depth[name]) for name in known}


def _children_first(children: Mapping[str, Sequence[str]]) -> list[str]:
    """Give all names so that each comes after those below it, from left to right, without recursion."""
    order, waiting = [], [""]
    while waiting:
        name = waiting.pop()
        order.append(name)
        waiting += children[name]
    return order[::-1]


def ablations(metric: Metric, found: Sequence[Ablation]) -> Figure | None:
    """Draw for each ablation the difference to the whole code with its interval; `None` without any."""
    rows = [
        (one.name, one.claim.difference, one.claim.difference_low, one.claim.difference_high)
        for one in found
        if one.claim.difference is not None
    ]
    if not rows:
        return None
    figure, axes = new_figure(5.2, 1.3 + 0.4 * len(rows))
    for place, (_, difference, low, high) in enumerate(reversed(rows)):
        if low is not None and high is not None:
            axes.hlines(place, low, high, color=BLUE, linewidth=1.8)
        axes.plot([difference or 0.0], [place], "o", color=BLUE, markersize=6)
    axes.axvline(0, color=ORANGE, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"without {tick(name, 24)}" for name, *_ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{tick(metric.name, 30)}: whole code minus ablated code (test)")
    axes.grid(visible=False, axis="y")
    return figure
