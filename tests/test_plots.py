"""Figures: the same bytes for the same record, left out where there is nothing to show, never a crash."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from labd.research.plots import (
    baseline_vs_best,
    best_so_far,
    draw_figures,
    importance,
    learning_curves,
)
from labd.research.record import Importance, ResearchRecord, Run
from labd.research.stats import compare, no_candidate
from labd.template import Metric, Param, ParamSpec
from tests.records import make_record, make_run

METRIC = Metric(name="accuracy", better="higher", description="share that is right")
SPACE = [
    ParamSpec(name="rate", type="float", low=1e-4, high=1e-1, log=True, baseline=1e-2),
    ParamSpec(name="share", type="float", low=0.0, high=1.0, baseline=0.0),
    ParamSpec(name="size", type="int", low=1, high=64, baseline=8),
    ParamSpec(name="kind", type="categorical", choices=["adam", "sgd"], baseline="adam"),
]
NAMES = {"best_so_far", "baseline_vs_best", "importance", "learning_curves"}


def params(index: int) -> dict[str, Param]:
    kind = "sgd" if index % 2 else "adam"
    return {"rate": 1e-4 * (index + 1), "share": index / 20, "size": index + 1, "kind": kind}


def trials(count: int = 12) -> list[Run]:
    return [
        make_run(f"trial-{i:03d}", 0.9 + 0.005 * (i % 7), params=params(i)) for i in range(count)
    ]


def arm(name: str, level: float, **over: Any) -> list[Run]:
    return [
        make_run(
            f"confirm-{name}-{i:03d}",
            level + i / 1000,
            split="test",
            curves={"train_loss": [2 - i / 50, 1.0, 0.5], "train_accuracy": [0.5, 0.8, level]},
            **over,
        )
        for i in range(10)
    ]


def full_record(**over: Any) -> ResearchRecord:
    one, two = arm("baseline", 0.93), arm("best", 0.96)
    values = [[run.value for run in runs if run.value is not None] for runs in (one, two)]
    fields: dict[str, Any] = {
        "metric": METRIC,
        "space": SPACE,
        "baseline_run": make_run("baseline-000", 0.92, params=params(0)),
        "trials": trials(),
        "confirm_baseline": one,
        "confirm_best": two,
        "claim": compare(*values, better="higher", planned=10, comparisons=12),
        "importances": [
            Importance(name=spec.name, share=0.25, best=spec.baseline, baseline=spec.baseline)
            for spec in SPACE
        ],
        "figures": {},
    }
    return make_record(**fields | over)


def test_a_whole_record_gives_all_figures_as_pictures_of_a_size_to_print(tmp_path: Path) -> None:
    paths = draw_figures(full_record(), tmp_path)
    assert set(paths) == NAMES
    assert paths["best_so_far"] == "plots/best-so-far.png"
    for path in paths.values():
        picture = imread(tmp_path / path)
        assert min(picture.shape[:2]) > 400
        assert picture[..., :3].min() < 0.2  # something is drawn
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == sorted(
        Path(path).name for path in paths.values()
    )


def test_the_same_record_gives_the_same_bytes_whatever_the_users_settings_are(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = draw_figures(full_record(), tmp_path / "a")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20}):
        draw_figures(full_record(), tmp_path / "b")
        assert mpl.rcParams["font.size"] == 30  # and they are put back
    for path in one.values():
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_what_there_is_no_data_for_is_left_out(tmp_path: Path) -> None:
    record = full_record(
        trials=[make_run(f"trial-{i:03d}", None, params=params(i)) for i in range(4)],
        best_trial=None,
        confirm_best=[],
        claim=no_candidate([0.9, 0.91], verdict="inconclusive", reason="none", comparisons=4),  # type: ignore[arg-type]
        importances=[],
    )
    assert set(draw_figures(record, tmp_path)) == {"learning_curves"}
    bare = record.model_copy(update={"confirm_baseline": []})
    assert draw_figures(bare, tmp_path) == {}


def test_the_best_so_far_goes_the_way_of_the_metric_and_on_to_the_last_trial() -> None:
    runs = [make_run(f"t{i}", value) for i, value in enumerate([3.0, 5.0, 1.0, None])]
    for better, expected in (("higher", [3, 5, 5, 5]), ("lower", [3, 3, 1, 1])):
        metric = METRIC.model_copy(update={"better": better})
        figure = best_so_far(metric, make_run("b", 2.0), runs)
        assert figure is not None
        lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
        drawn = {label: np.asarray(line.get_data()).tolist() for label, line in lines.items()}
        assert drawn["best so far"] == [[1, 2, 3, 4], expected]
        assert drawn["trial"] == [[1, 2, 3], [3, 5, 1]]
        assert drawn["no value"][0] == [4]
        assert drawn["baseline"][1] == [2, 2]
        assert better in figure.axes[0].get_ylabel()


def test_all_axes_have_labels() -> None:
    record = full_record()
    figures = [
        best_so_far(METRIC, record.baseline_run, record.trials),
        importance(METRIC, SPACE, record.importances, record.trials),
        learning_curves(record.confirm_baseline, record.confirm_best),
        baseline_vs_best(METRIC, record.claim.baseline, record.claim.best),
    ]
    for figure in figures:
        assert figure is not None
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_xticklabels()[0].get_text()
        assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels()[0].get_text()


@pytest.mark.parametrize("count", [1, 2])
def test_few_points_are_no_reason_to_fail(tmp_path: Path, count: int) -> None:
    short = [
        run.model_copy(update={"curves": {"loss": [1.0] * count}})
        for run in arm("best", 0.9)[:count]
    ]
    claim = compare([0.9] * count, [0.9] * count, better="lower", planned=10, comparisons=1)
    record = full_record(
        trials=trials(count), confirm_baseline=short, confirm_best=short, claim=claim
    )
    drawn = set(draw_figures(record, tmp_path))
    assert drawn == NAMES - ({"learning_curves"} if count == 1 else set())


def test_odd_names_and_values_are_drawn_as_text_without_a_warning(tmp_path: Path) -> None:
    odd = ["$x_{1$", "\N{HANGUL SYLLABLE GA}\n\x1b[31m", "a" * 90, "\N{RIGHT-TO-LEFT OVERRIDE}"]
    space = [ParamSpec(name="kind$", type="categorical", choices=[*odd], baseline=odd[0])]
    runs = [make_run(f"t{i}", 1e99 * (-1) ** i, params={"kind$": odd[i % 4]}) for i in range(9)]
    shares = [Importance(name="kind$", share=1.0, best=odd[1], baseline=odd[0])]
    record = full_record(
        metric=METRIC.model_copy(update={"name": "$\\frac{"}),
        space=space,
        trials=runs,
        importances=shares,
    )
    assert set(draw_figures(record, tmp_path)) == NAMES


def test_a_hundred_parameters_do_not_make_a_figure_of_a_metre(tmp_path: Path) -> None:
    space = [
        ParamSpec(name=f"p{i}", type="float", low=0, high=1, baseline=0.5) for i in range(100)
    ]
    runs = [
        make_run(f"t{i}", 0.1 * i, params={spec.name: 0.1 * i for spec in space}) for i in range(9)
    ]
    shares = [Importance(name=spec.name, share=0.01, best=0.5, baseline=0.5) for spec in space]
    paths = draw_figures(full_record(space=space, trials=runs, importances=shares), tmp_path)
    assert imread(tmp_path / paths["importance"]).shape[0] < 1400
