"""Early stop: a hopeless run ends, a good one does not, and who looks when does not matter."""

import json
import math
import os
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.research.early import (
    FILE_NAME,
    MAX_FILE_BYTES,
    Curve,
    CurveWatch,
    hopeless,
    read_curves,
    recorded,
)
from labd.research.experiment import Cancelled, Tools, run_one
from labd.research.record import Run, TrialStatus
from labd.template import Metric, Template, load_template
from tests.boxes import make_sandbox
from tests.factories import make_template
from tests.records import make_run

ACCURACY = Metric(name="accuracy", better="higher")
RISING = [0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.84, 0.85]


def curve(values: Sequence[float], first: int = 1) -> Curve:
    return Curve(list(range(first, first + len(values))), list(values))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e101])
def test_a_number_that_is_none_ends_a_run_at_once(bad: float) -> None:
    assert "at step 2" in hopeless(curve([0.5, bad]), None, better="higher")


def test_a_curve_far_below_the_best_ends_after_a_third_of_its_steps_and_not_before() -> None:
    best = curve(RISING * 3)
    low = [0.1] * 30
    assert hopeless(curve(low[:9]), best, better="higher") == ""
    reason = hopeless(curve(low[:10]), best, better="higher", name="accuracy")
    assert (
        reason
        == "until step 10 its accuracy was at best 0.1, and that of the best trial 0.626 on average"
    )
    assert hopeless(curve(low), None, better="higher") == ""
    assert hopeless(curve(low), best, better="lower") == ""
    falling = curve([-value for value in RISING])
    assert hopeless(curve([-0.1] * 5), falling, better="lower")
    assert hopeless(curve([-0.9] * 5), falling, better="lower") == ""


def test_a_slow_start_few_points_and_a_run_as_good_as_the_average_go_on() -> None:
    best = curve(RISING)
    assert hopeless(curve([0.0, 0.1, 0.2, 0.4, 0.8, 0.8]), best, better="higher") == ""
    assert hopeless(Curve([4, 8, 9], [0.0, 0.0, 0.0]), best, better="higher") == ""
    assert hopeless(Curve([4, 8, 9, 10], [0.0, 0.0, 0.0, 0.0]), best, better="higher")


_VALUES = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=30)


@given(_VALUES, st.lists(st.floats(0, 1), max_size=30), st.sampled_from(["higher", "lower"]))
@settings(max_examples=200, deadline=None)
def test_what_is_said_of_a_curve_is_said_of_every_longer_one(
    values: list[float], best: list[float], better: str
) -> None:
    verdicts = [
        bool(hopeless(curve(values[:count]), curve(best), better=better))
        for count in range(len(values) + 1)
    ]
    assert verdicts == sorted(verdicts)


def test_reported_lines_are_read_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    lines = [
        '{"step": 10, "accuracy": 0.5, "loss": NaN, "text": "x", "flag": true, "../x": 1}',
        "nonsense",
        "[1]",
        '{"accuracy": 0.6}',
        '{"step": "x", "accuracy": 0.7}',
        '{"step": NaN, "accuracy": 0.7}',
        "[" * 100_000,
        '{"step": 30, "accuracy": 1' + "0" * 400 + "}",
        '{"step": 40, "accuracy": 0.9',
    ]
    (tmp_path / FILE_NAME).write_text("\n".join(lines))
    found = read_curves(tmp_path)
    assert set(found) == {"accuracy", "loss"}
    assert found["accuracy"] == Curve([10.0, 3.0, 30.0], [0.5, 0.6, math.inf])


def test_a_file_that_is_no_plain_file_of_the_run_reports_nothing(tmp_path: Path) -> None:
    good = tmp_path / "elsewhere"
    good.write_text('{"step": 1, "accuracy": 0.5}\n')
    path = tmp_path / FILE_NAME
    path.symlink_to(good)
    assert read_curves(tmp_path) == {}
    path.unlink()
    os.mkfifo(path)
    assert read_curves(tmp_path) == {}
    path.unlink()
    path.hardlink_to(good)
    assert read_curves(tmp_path) == {}
    path.unlink()
    path.mkdir()
    assert read_curves(tmp_path) == {}
    path.rmdir()
    assert read_curves(tmp_path) == {}
    with path.open("w") as file:
        file.truncate(1000 * MAX_FILE_BYTES)
    assert read_curves(tmp_path) == {}


def test_what_is_recorded_has_its_steps_and_a_bounded_number_of_points() -> None:
    long = Curve(list(range(2500)), [0.5] * 2500)
    bad = curve([0.1, math.nan])
    values, steps = recorded({"loss": [1.0]}, {"accuracy": long, "loss": curve([9.0]), "bad": bad})
    assert values["loss"] == [1.0]
    assert steps == {"accuracy": [float(step) for step in range(0, 2500, 3)]}
    assert len(values["accuracy"]) == len(steps["accuracy"]) == 834
    assert set(values) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("name", "stopped"),
    [
        ("accuracy", True),
        ("validation_accuracy", True),
        ("val_accuracy", True),
        ("train_accuracy", False),
    ],
)
def test_a_watch_compares_the_metrics_own_curve_with_the_best_runs_by_its_recorded_steps(
    tmp_path: Path, name: str, *, stopped: bool
) -> None:
    best = make_run("trial-001", 0.85, curves={name: RISING}, steps={name: list(range(10))})
    rows = [json.dumps({"step": step, name: 0.05}) for step in range(6)]
    (tmp_path / FILE_NAME).write_text("\n".join(rows) + "\n")
    assert ("on average" in CurveWatch(ACCURACY, best)(tmp_path)) == stopped
    assert CurveWatch(ACCURACY, make_run("trial-002", 0.9))(tmp_path) == ""
    assert CurveWatch(ACCURACY, None)(tmp_path) == ""


def test_a_curve_is_no_reason_where_the_best_run_had_none_that_was_finite(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"step": 0, "loss": NaN}\n')
    finite = make_run("trial-001", 0.85, curves={"loss": [0.5]}, steps={"loss": [0.0]})
    assert "loss was nan" in CurveWatch(ACCURACY, finite)(tmp_path)
    assert CurveWatch(ACCURACY, make_run("baseline", 0.8))(tmp_path) == ""


# -- real runs

REPORTS = """
    import json, sys, time
    out, mode = sys.argv[1], json.load(open(sys.argv[2]))["mode"]
    def report(step, value):
        with open(out + "/curves.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "score": value}) + "\\n")
    for step in range(6):
        report(step, float("nan") if mode != "good" and step == 4 else 0.1 * step)
    if mode == "lasting":
        time.sleep(50)
    json.dump({"metrics": {"score": 0.5}}, open(out + "/metrics.json", "w"))
"""


@pytest.fixture
def reporting(tmp_path: Path) -> Template:
    make_template(
        tmp_path / "templates",
        experiment=REPORTS,
        command=["python", "/inputs/template/experiment.py", "{out_dir}", "{params}", "{seed}", "{split}"],
        time_limit="55s",
        curves=True,
        search_space={"mode": {"type": "categorical", "choices": ["good", "lasting"], "baseline": "good"}},
    )  # fmt: skip
    return load_template("tiny", roots=[tmp_path / "templates"])


def run(template: Template, results_dir: Path, mode: str, tools: Tools | None = None) -> Run:
    return run_one(
        template,
        tools or Tools(make_sandbox()),
        name=f"trial-{mode}",
        params={"mode": mode},
        seed=1,
        split="validation",
        results_dir=results_dir,
        watch=CurveWatch(template.metric, None),
    )


@pytest.mark.sandbox
def test_a_run_whose_curve_is_no_number_is_ended_while_it_goes_on(
    reporting: Template, tmp_path: Path
) -> None:
    found = run(reporting, tmp_path, "lasting")
    assert found.status is TrialStatus.HOPELESS
    assert found.value is None
    assert found.reason == "it was stopped as hopeless: score was nan at step 4"
    assert found.exit_code is None
    assert found.wall_s < 50


@pytest.mark.sandbox
def test_a_run_that_was_faster_than_the_look_is_judged_alike(
    reporting: Template, tmp_path: Path
) -> None:
    found = run(reporting, tmp_path, "brief")
    assert (found.status, found.value) == (TrialStatus.HOPELESS, None)
    assert found.reason == "it was stopped as hopeless: score was nan at step 4"


@pytest.mark.sandbox
def test_a_good_run_keeps_its_curve_with_its_steps(reporting: Template, tmp_path: Path) -> None:
    found = run(reporting, tmp_path, "good")
    assert found.value == 0.5
    assert found.steps == {"score": [0, 1, 2, 3, 4, 5]}
    assert found.curves["score"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.sandbox
def test_a_watched_run_can_still_be_cancelled(reporting: Template, tmp_path: Path) -> None:
    cancelled = threading.Event()
    tools = Tools(make_sandbox(), cancelled)
    timer = threading.Timer(1.0, cancelled.set)
    timer.start()
    hangs = REPORTS.replace('mode != "good" and step == 4', "False")
    (reporting.directory / "experiment.py").write_text(textwrap.dedent(hangs))
    with pytest.raises(Cancelled):
        run(reporting, tmp_path, "lasting", tools)
    timer.join()
