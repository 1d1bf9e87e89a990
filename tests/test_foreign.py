"""Directories made for other systems run unmodified: where they lie, what is read, and what is not known.

Those in `tests/foreign` were written for these tests, to the contracts of AI-Scientist and autoresearch.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labd.errors import ConfigError, ResearchError
from labd.research.experiment import Tools, run_one
from labd.research.measure import settled
from labd.research.record import Run, TrialStatus
from labd.settings import Home
from labd.template import (
    Template,
    ai_scientist,
    autoresearch,
    copy_files,
    list_templates,
    load_template,
    seed_ideas,
    snapshot,
    with_data,
    with_metric,
)
from labd.template.check import State, inspect_template
from labd.tryout import examine_template
from tests.boxes import make_sandbox
from tests.foreign_data import FOREIGN, give_data


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """A place for templates with copies of the directories, and their data beside it."""
    shutil.copytree(FOREIGN, tmp_path / "templates")
    give_data(tmp_path / "data")
    return [tmp_path / "templates"]


def ready(roots: list[Path], name: str) -> Template:
    return with_data(load_template(name, roots=roots), roots=[roots[0].parent / "data"])


def run(template: Template, results: Path, **over: Any) -> Run:
    given: dict[str, Any] = {"name": "baseline-000", "params": {}, "seed": 1}
    given |= {"split": "validation", "results_dir": results}
    return run_one(template, Tools(make_sandbox()), **given | over)


def changed(template: Template, target: Path, name: str, old: str, new: str) -> Path:
    copy_files(template, target)
    text = (target / name).read_text()
    assert old in text
    (target / name).write_text(text.replace(old, new))
    return target


def test_they_are_templates_without_a_template_file(roots: list[Path]) -> None:
    assert set(list_templates(roots)) == {"outbreak", "modular", "tinytext"} | set(
        list_templates([])
    )
    outbreak, tiny = (load_template(name, roots=roots) for name in ("outbreak", "tinytext"))
    assert (outbreak.style, outbreak.editable) == ("ai_scientist", ("experiment.py",))
    assert outbreak.guidance.startswith("You are an epidemiologist")
    assert outbreak.description.startswith("A model of an outbreak")
    assert outbreak.requirements == ("numpy", "scipy")
    assert (outbreak.metric.name, outbreak.time_limit_s) == ("", 7200)
    assert [idea.title for idea in seed_ideas(outbreak)] == ["Fewer contacts while many are ill"]
    assert (tiny.style, tiny.editable) == ("autoresearch", ("train.py",))
    assert (tiny.metric.name, tiny.metric.better) == ("val_bpb", "lower")
    assert "lower is better" in tiny.guidance


def test_what_others_left_there_is_no_part_of_the_template(roots: list[Path]) -> None:
    before = load_template("outbreak", roots=roots)
    assert "latex/template.tex" not in before.files_sha256
    for left in ("run_0/all_results.npy", "run_1/final_info.json", ".venv/x", "__pycache__/y"):
        path = roots[0] / "outbreak" / left
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    (roots[0] / "outbreak" / "run_2.py").write_text("")
    after = load_template("outbreak", roots=roots)
    assert set(after.files_sha256) - set(before.files_sha256) == {"run_2.py"}


@pytest.mark.sandbox
def test_the_baseline_is_run_0_two_levels_below_its_data_and_the_rest_run_1_three_levels_below(
    roots: list[Path], tmp_path: Path
) -> None:
    template = snapshot(ready(roots, "modular"), tmp_path / "snapshot")
    first = run(template, tmp_path)
    assert (first.status, first.reason) == (TrialStatus.OK, None)
    template = settled(template, first, tmp_path)
    assert (template.metric.name, template.metric.better) == ("final_val_loss_mean", "lower")
    assert "mean over 2 datasets" in template.metric.description
    info = json.loads((tmp_path / first.directory / "metrics.json").read_text())
    by_seed = [info[name]["final_info_dict"]["final_val_loss"] for name in info]
    assert first.value == pytest.approx(sum(sum(one) / 2 for one in by_seed) / 2)
    code = changed(template, tmp_path / "code", "experiment.py", "STEPS = 150", "STEPS = 1")
    second = run(template, tmp_path, name="trial-000", code=code)
    assert (second.status, second.reason) == (TrialStatus.OK, None)
    assert second.value != first.value
    assert run(template, tmp_path, name="again", code=template.directory).value == first.value


def test_only_the_template_as_it_is_runs_as_the_baseline(roots: list[Path]) -> None:
    template = ready(roots, "modular")
    baseline, trial = (ai_scientist.stage(template, edited=edited) for edited in (False, True))
    assert (baseline.directory, baseline.out_dir) == ("lab/templates/modular", "run_0")
    assert (trial.directory.count("/"), trial.out_dir) == (3, "run_1")
    assert dict(trial.links) == {"lab/data": "data"}


@pytest.mark.sandbox
def test_the_baseline_draws_its_own_plots_which_are_kept(
    roots: list[Path], tmp_path: Path
) -> None:
    template = with_metric(ready(roots, "outbreak"), "infected_peak", "lower")
    found = run(template, tmp_path)
    assert found.status is TrialStatus.OK
    assert found.value is not None
    assert found.value > 100
    plots = tmp_path / found.directory / "plots"
    assert [path.name for path in plots.iterdir()] == ["outbreak_run_0.png"]


@pytest.mark.sandbox
def test_pictures_that_are_none_and_links_are_not_kept(roots: list[Path], tmp_path: Path) -> None:
    plot = roots[0] / "outbreak" / "plot.py"
    plot.write_text(
        "import os\nopen('fake.png', 'w').write('GIF89a')\n"
        "os.symlink('run_0/final_info.json', 'link.png')\n"
        "open('big.png', 'wb').write(b'\\x89PNG\\r\\n\\x1a\\n' + bytes(6 * 2**20))\nraise SystemExit(3)\n"
    )
    found = run(with_metric(ready(roots, "outbreak"), "infected_peak", "lower"), tmp_path)
    assert found.status is TrialStatus.OK
    assert not (tmp_path / found.directory / "plots").exists()


@pytest.mark.sandbox
def test_a_metric_of_which_nobody_knows_the_direction_has_to_be_named(
    roots: list[Path], tmp_path: Path
) -> None:
    template = ready(roots, "outbreak")
    found = run(template, tmp_path)
    assert found.value is None
    assert "infected_peak_day, infected_peak, total_infected" in (found.reason or "")
    assert "metric: {name: ..., better: lower}" in (found.reason or "")
    with pytest.raises(ResearchError, match="the metric is not known"):
        settled(template, found, tmp_path)


@pytest.mark.sandbox
def test_what_an_earlier_run_of_the_author_left_is_not_taken_for_a_result(
    roots: list[Path], tmp_path: Path
) -> None:
    directory = roots[0] / "modular"
    (directory / "run_0").mkdir()
    stale = {"x_plus_y": {"means": {"final_val_loss_mean": 0.0}}}
    (directory / "run_0" / "final_info.json").write_text(json.dumps(stale))
    (directory / "experiment.py").write_text("print('nothing')\n")
    template = ready(roots, "modular")
    assert template.metric.name == "final_val_loss_mean"
    found = run(template, tmp_path)
    assert (found.status, found.value) == (TrialStatus.NO_METRIC, None)
    assert found.reason == "it wrote no final_info.json"


@pytest.mark.sandbox
def test_autoresearch_finds_its_cache_and_its_last_line_counts(
    roots: list[Path], tmp_path: Path
) -> None:
    template = ready(roots, "tinytext")
    found = run(template, tmp_path)
    assert (found.status, found.reason) == (TrialStatus.OK, None)
    assert found.value is not None
    assert 0 < found.value < 8
    code = changed(template, tmp_path / "code", "train.py", "SMOOTHING = 1.0", "SMOOTHING = 0.01")
    better = run(template, tmp_path, name="trial-000", code=code)
    assert better.value is not None
    assert better.value < found.value
    # The file that may not be changed is the template's own, whatever lies beside the code.
    (code / "prepare.py").write_text("print('val_bpb: 0')\nraise SystemExit(0)\n")
    assert run(template, tmp_path, name="trial-002", code=code).value == better.value
    without = run(replace(template, mounts={}), tmp_path, name="trial-001")
    assert (without.status, without.value) == (TrialStatus.CRASHED, None)


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("val_bpb: 1.5\n", 1.5),
        ("---\nval_bpb:          0.997900\r\nseconds: 3\n", 0.9979),
        ("val_bpb: 9\nval_bpb: 1e-3", 0.001),
        ("val_bpb: nan\n", "no finite number"),
        ("val_bpb: 1\nval_bpb: inf\n", "no finite number"),
        ("val_bpb: 1e999\n", "no finite number"),
        ("  val_bpb: 1\n", "no line"),
        ("my_val_bpb: 1\n", "no line"),
        ("val_bpb: 1 2\n", "no line"),
        ("", "no line"),
    ],
)
def test_a_printed_metric_is_a_line_of_its_own(output: str, value: float | str) -> None:
    if isinstance(value, float):
        assert autoresearch.value_in(output, "val_bpb") == value
        return
    with pytest.raises(ValueError, match=value):
        autoresearch.value_in(output, "val_bpb")


@pytest.mark.parametrize(
    ("prepare", "budget_s"),
    [
        ("TIME_BUDGET = 300 # s", 300),
        ("TIME_BUDGET = 20.5", 20.5),
        ("TIME_BUDGET = -1", 300),
        ("TIME_BUDGET = True", 300),
        ("x = 1", 300),
        ("not python", 300),
    ],
)
def test_the_budget_of_time_is_read_without_running_anything(
    prepare: str, budget_s: float
) -> None:
    assert autoresearch.time_budget_s(prepare) == budget_s


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("best_val_loss_mean", "lower"),
        ("val_acc", "higher"),
        ("final_test_accuracy", "higher"),
        ("total_train_time", "lower"),
        ("val_bpb", "lower"),
        ("error_of_score", "higher"),
        ("eval-F1", "higher"),
        ("infected_peak", None),
        ("lossless", None),
        ("", None),
    ],
)
def test_a_direction_is_known_by_whole_words(name: str, better: str | None) -> None:
    assert ai_scientist.direction(name) == better


def means(**values: object) -> dict[str, Any]:
    return {"means": values}


def test_a_held_out_value_is_chosen_before_training_cost_and_spread() -> None:
    info = {"a": means(train_time=1, loss_stderr=0.1, train_loss=2, loss=3, val_loss=4, val_acc=1)}
    order = []
    while info["a"]["means"]:
        order.append(ai_scientist.settle_metric(info).name)
        del info["a"]["means"][order[-1]]
    assert order == ["val_loss", "val_acc", "loss", "train_loss", "train_time", "loss_stderr"]


@pytest.mark.parametrize(
    "info",
    [
        {"a": means(val_loss=1), "b": means(val_acc=1)},
        {"a": means(val_loss=True)},
        {"a": means(val_loss=float("nan"))},
        {"a": means(val_loss=10**400)},
        {"a": means(**{"val loss": 1})},
        {"a": {"means": 3.0}},
        {"a": {"means": {"molecule": {"loss": 1}}}},
    ],
)
def test_what_is_no_number_everywhere_is_no_metric(info: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="of no value"):
        ai_scientist.settle_metric(info)


def test_a_value_is_computed_from_its_seeds_and_over_all_datasets() -> None:
    info = {"a": means(loss_mean=9.0) | {"final_info_dict": {"loss": [1, 3]}}, "b": means(loss_mean=4.0)}  # fmt: skip
    assert ai_scientist.value_of(info, "loss_mean") == 3.0
    assert ai_scientist.value_of(info, "a/loss_mean") == 2.0
    assert ai_scientist.value_of(info, "b/loss_mean") == 4.0
    info["a"]["final_info_dict"] = {"loss": [1, "x"]}
    assert ai_scientist.value_of(info, "a/loss_mean") == 9.0
    for name in ("acc", "b/acc", "c/loss_mean"):
        with pytest.raises(ValueError, match="has no"):
            ai_scientist.value_of(info, name)


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        ({"probe_accuracy": {"means": 0.5, "stds": 0.1}}, "probe_accuracy", 0.5),
        ({"mols": {"means": {"a": {"mae": 1.0}, "b": {"mae": 3.0}}}}, "mae", 2.0),
    ],
    ids=["one-number", "means-within-means"],
)
def test_means_of_other_shapes_are_read(written: dict[str, Any], name: str, value: float) -> None:
    info = ai_scientist.parse_info(json.dumps(written).encode())
    assert ai_scientist.settle_metric(info).name == name
    assert ai_scientist.value_of(info, name) == value
    two = {"mnist": {"means": 0.9}, "cifar": {"means": 0.7}}
    assert ai_scientist.value_of(ai_scientist.parse_info(json.dumps(two).encode()), "cifar") == 0.7
    with pytest.raises(ConfigError, match="of no value"):
        ai_scientist.settle_metric(ai_scientist.parse_info(json.dumps(two).encode()))


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"", "not JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b"[1]", "not an object of datasets"),
        (b"{}", "not an object of datasets"),
        (b'{"a": 1}', "no means for a"),
        (b'{"a": {"\\u001b[31m": 1}}', "no means for a"),
    ],
)
def test_what_a_run_wrote_is_refused_where_it_is_not_the_contracts(
    raw: bytes, wanted: str
) -> None:
    with pytest.raises(ValueError, match=wanted):
        ai_scientist.parse_info(raw)


@pytest.mark.parametrize("prompt", ["", "[", "[1]", "[" * 200_000])
def test_a_prompt_that_can_not_be_read_says_where(roots: list[Path], prompt: str) -> None:
    (roots[0] / "outbreak" / "prompt.json").write_text(prompt)
    with pytest.raises(ConfigError, match=r"prompt\.json"):
        load_template("outbreak", roots=roots)


@pytest.mark.parametrize(
    "ideas", ["", "{}", "[1, {}]", '[{"Title": "x"}]', "[" * 200_000, '[{"Title": "", "Experiment": "y"}]']
)  # fmt: skip
def test_seed_ideas_that_can_not_be_read_are_left_out(roots: list[Path], ideas: str) -> None:
    (roots[0] / "outbreak" / "seed_ideas.json").write_text(ideas)
    assert seed_ideas(load_template("outbreak", roots=roots)) == []


def test_a_template_file_beside_them_may_say_what_differs(roots: list[Path]) -> None:
    path = roots[0] / "outbreak" / "template.yaml"
    path.write_text(
        "adapter: ai_scientist\ntime_limit: 30s\ngpus_per_run: 1\ndata: {data: elsewhere}\n"
        "metric: {name: town/infected_peak, better: lower, description: how many are ill at once}\n"
    )
    template = load_template("outbreak", roots=roots)
    assert (template.style, template.time_limit_s, template.gpus_per_run) == (
        "ai_scientist",
        30,
        1,
    )
    assert (template.metric.name, template.data["data"].optional) == ("town/infected_peak", False)
    path.write_text("adapter: ai_scientist\ntimelimit: 30s\n")
    with pytest.raises(ConfigError, match=r"template\.yaml:2:1: .*nearest known: time_limit"):
        load_template("outbreak", roots=roots)


# What `labd template` says of them.


def test_a_directory_that_is_none_is_told_what_each_kind_would_need(tmp_path: Path) -> None:
    (tmp_path / "experiment.py").write_text("")
    found = inspect_template(tmp_path)
    assert (found.template, found.passes) == (None, False)
    said = {one.name: one.found for one in found.requirements}
    assert said["template.yaml"] == "there is none"
    assert said["as a directory of AI-Scientist"] == "has experiment.py, lacks prompt.json"
    assert not inspect_template(tmp_path / "nothing").passes


def test_each_requirement_of_a_directory_is_told(roots: list[Path]) -> None:
    inputs = [roots[0].parent / "data"]
    found = inspect_template(roots[0] / "outbreak", inputs=inputs)
    assert found.passes
    states = {one.name: one.state for one in found.requirements}
    assert states["metric"] is State.OPEN
    assert states["data: data"] is State.NOTE
    assert states["researcher: sweep"] is State.NOTE
    (roots[0] / "outbreak" / "experiment.py").write_text("import no_such_module_here\n")
    lacking = inspect_template(roots[0] / "outbreak", inputs=inputs)
    assert not lacking.passes
    assert "no_such_module_here" in str(lacking.requirements)
    (roots[0] / "outbreak" / "link").symlink_to("/etc")
    assert "symbolic link" in str(inspect_template(roots[0] / "outbreak").requirements)


def test_a_name_that_no_template_has_is_told_with_those_that_there_are(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"Known templates: .*digits"):
        examine_template(home, "nothing")
