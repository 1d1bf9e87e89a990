"""What a template may say beyond a command: data, sizes, files to change; and how a task is refused that does not fit."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from labd.drop import check_drop
from labd.errors import ConfigError, ResearchError, TaskFileError
from labd.journal import Journal
from labd.research.bench import Bench, Job
from labd.research.experiment import Tools, run_one
from labd.research.record import TrialStatus
from labd.settings import Home
from labd.task import parse_task
from labd.template import (
    Template,
    list_templates,
    load_template,
    refuse_researcher,
    scaled,
    with_data,
    with_metric,
)
from tests.boxes import make_sandbox
from tests.factories import make_template, write_settings

NOTHING = "import json\njson.dump({'metrics': {'score': 1.0}}, open('/work/metrics.json', 'w'))\n"


def made(root: Path, experiment: str = NOTHING, **over: Any) -> Template:
    return load_template(
        "tiny", roots=[make_template(root / "templates", experiment=experiment, **over).parent]
    )


def refusal(root: Path, **over: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        made(root, **over)
    return str(caught.value)


@pytest.mark.parametrize(
    ("over", "wanted"),
    [
        ({"evaluate": ["x", "{split}", "{out_dir}"]}, "an evaluation that holds {run_dir}"),
        ({"evaluate": ["x", "{run_dir}", "{out_dir}"]}, "an evaluation that holds {split}"),
        ({"editable": ["nothing.py"]}, "nothing.py is no file of the experiment"),
        ({"editable": ["template.yaml"]}, "template.yaml is no file of the experiment"),
        ({"editable": ["../experiment.py"]}, "is no file of the experiment"),
        ({"private": ["experiment.py"]}, "an evaluation, which alone sees private files"),
        (
            {"private": ["x"], "evaluate": ["x", "{run_dir}", "{split}", "{out_dir}"]},
            "private: x is no file",
        ),
        (
            {"private": ["x"], "editable": ["x"], "evaluate": ["{run_dir}{split}{out_dir}"]},
            "and not both: x",
        ),
        ({"data": {"template": "x"}}, "other names below data"),
        ({"data": {"../x": "x"}}, "data"),
        ({"scale": {"gpu": {"env": {"lower": "1"}}}}, "scale.gpu.env"),
        ({"scale": {"gpu": {"gpus_per_run": -1}}}, "scale.gpu.gpus_per_run"),
        ({"scale": {"gpu": {"time": "1s"}}}, "nearest known: time_limit"),
        ({"time_limit": "0s"}, "time_limit"),
        ({"splits": "no"}, "splits"),
        ({"adapter": "ai_scientists"}, "nearest known: ai_scientist"),
    ],
)
def test_a_wrong_key_is_refused_with_the_words_that_help(
    tmp_path: Path, over: dict[str, Any], wanted: str
) -> None:
    assert wanted in refusal(tmp_path, **over)


def test_there_has_to_be_something_to_try(tmp_path: Path) -> None:
    directory = make_template(tmp_path, experiment=NOTHING)
    path = directory / "template.yaml"
    before = path.read_text()
    path.write_text(before[: before.index("search_space")])
    with pytest.raises(ConfigError, match="search_space, or editable files"):
        load_template("tiny", roots=[tmp_path])


def test_without_splits_seeds_and_space_the_command_needs_no_such_words_and_the_paper_says_so(
    tmp_path: Path,
) -> None:
    command = ["python", "/inputs/template/experiment.py", "{out_dir}"]
    directory = make_template(
        tmp_path, experiment=NOTHING, command=command, splits=False, seeds=False
    )
    path = directory / "template.yaml"
    text = path.read_text()
    path.write_text(text[: text.index("search_space")] + text[text.index("splits") :])
    path.write_text(path.read_text() + "editable: [experiment.py]\n")
    template = load_template("tiny", roots=[tmp_path])
    assert (template.space, template.baseline) == ((), {})
    assert len(template.cautions) == 3


def test_the_first_scale_is_used_unless_another_is_asked_for(tmp_path: Path) -> None:
    scale = {"ci": {"env": {"STEPS": 5}, "time_limit": "9s"}, "gpu": {"env": {"STEPS": "5000"}, "gpus_per_run": 1, "memory": "8GiB"}}  # fmt: skip
    template = made(tmp_path, scale=scale, time_limit="1h", gpus_per_run=0)
    assert (template.scale, template.time_limit_s, dict(template.env)) == ("ci", 9, {"STEPS": "5"})
    big = scaled(template, "gpu")
    assert (big.scale, dict(big.env)) == ("gpu", {"STEPS": "5000"})
    assert (big.gpus_per_run, big.memory_bytes) == (1, 8 * 2**30)
    assert big.time_limit_s == 3600
    with pytest.raises(ConfigError, match="It has: ci, gpu"):
        scaled(template, "huge")


@pytest.mark.sandbox
def test_a_run_has_the_variables_of_its_scale_and_the_data_that_is_named(tmp_path: Path) -> None:
    experiment = """
        import json, os
        value = int(os.environ["STEPS"]) + int(open("/inputs/table/numbers.txt").read())
        for name in ("/inputs/table/numbers.txt", "/inputs/table/new"):
            try:
                open(name, "w")
            except OSError:
                value += 1
        json.dump({"metrics": {"score": value}}, open("/work/metrics.json", "w"))
    """
    (tmp_path / "data" / "table").mkdir(parents=True)
    (tmp_path / "data" / "table" / "numbers.txt").write_text("30")
    template = made(
        tmp_path, experiment, data={"table": "table"}, scale={"ci": {"env": {"STEPS": 5}}}
    )
    given: dict[str, Any] = {"name": "a", "params": {"x": 0.5}, "seed": 1, "split": "test"}
    given |= {"results_dir": tmp_path}
    with pytest.raises(ResearchError, match="nobody looked for the data"):
        run_one(template, Tools(make_sandbox()), **given)
    template = with_data(template, roots=[tmp_path / "data"])
    run = run_one(template, Tools(make_sandbox()), **given)
    assert (run.status, run.value) == (TrialStatus.OK, 37)


def test_data_is_taken_from_the_places_for_inputs_only(tmp_path: Path) -> None:
    inside, outside, closed = (tmp_path / name for name in ("inside", "outside", "inside/closed"))
    for directory in (inside, outside, closed):
        directory.mkdir()
        (directory / "numbers").write_text("1")
    (inside / "way-out").symlink_to(outside)
    rules: dict[str, Any] = {"roots": [inside], "forbidden": [closed]}

    def asked(path: str) -> Template:
        return made(Path(tempfile.mkdtemp(dir=tmp_path)), data={"table": path})

    found = with_data(asked("numbers"), **rules)
    assert found.mounts == {"table": inside / "numbers"}
    assert with_data(asked(str(inside / "numbers")), **rules).mounts == found.mounts
    for path in ("../outside/numbers", "way-out/numbers", "closed/numbers", ".", str(outside)):
        with pytest.raises(ConfigError, match="data: table may not lie at"):
            with_data(asked(path), **rules)
    with pytest.raises(ConfigError, match="data: table is not there"):
        with_data(asked("nothing"), **rules)
    with pytest.raises(ConfigError, match="may not lie at"):
        with_data(asked("numbers"), roots=[])


def test_a_task_that_the_template_can_not_serve_is_refused_at_the_drop(tmp_path: Path) -> None:
    home = write_settings(tmp_path)
    directory = make_template(home.templates, experiment=NOTHING, editable=["experiment.py"])
    path = directory / "template.yaml"
    text = path.read_text()
    path.write_text(text[: text.index("search_space")] + "editable: [experiment.py]\n")
    said = dropped(home, "template: tiny\nresearcher: sweep\n")
    assert said.startswith("idea.yaml:2:1: researcher: ")
    assert "declares no search_space" in said
    assert "Write `researcher: llm`" in said
    path.write_text(text.replace("editable:\n- experiment.py\n", ""))
    with pytest.raises(ConfigError, match="no editable files"):
        refuse_researcher(load_template("tiny", roots=[home.templates]), "llm")
    path.write_text(text + "data: {table: /etc}\n")
    assert "idea.yaml:1:1: template: data: table may not lie at /etc" in dropped(
        home, "template: tiny\n"
    )


def dropped(home: Home, text: str) -> str:
    with pytest.raises(TaskFileError) as caught:
        check_drop(parse_task(text.encode(), "idea.yaml"), "idea.yaml", home)
    return str(caught.value)


def test_another_metric_may_be_asked_for(tmp_path: Path) -> None:
    metric = with_metric(made(tmp_path), "loss", "lower").metric
    assert (metric.name, metric.better) == ("loss", "lower")


def test_two_gigabytes_in_a_template_are_refused_by_their_size_alone(tmp_path: Path) -> None:
    directory = make_template(tmp_path / "templates", experiment=NOTHING)
    with (directory / "weights.bin").open("wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(ConfigError, match="more than 50 MiB"):
        load_template("tiny", roots=[directory.parent])
    assert "tiny" in list_templates([directory.parent])


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("leaves", "status", "reason"),
    [
        ("print('x' * 79 + '\\n', end='') if n % 1 == 0 else 0", TrialStatus.OK, None),
        ("print(('x' * 79 + '\\n') * 4, end='')", TrialStatus.LIMIT, "it printed more than it may"),
    ],
    ids=["20-mb", "80-mb"],
)  # fmt: skip
def test_a_long_log_is_kept_within_its_limit(
    tmp_path: Path, leaves: str, status: TrialStatus, reason: str | None
) -> None:
    template = made(tmp_path, f"for n in range(250_000):\n    {leaves}\n{NOTHING}")
    run = run_one(
        template,
        Tools(make_sandbox()),
        name="a",
        params={"x": 0.5},
        seed=1,
        split="test",
        results_dir=tmp_path,
    )
    assert (run.status, run.reason) == (status, reason)
    assert (tmp_path / run.directory / "log.txt").stat().st_size < 9 * 2**20


@pytest.mark.sandbox
def test_a_file_of_two_gigabytes_is_neither_written_nor_kept(tmp_path: Path) -> None:
    experiment = f"""
import os
with open("/work/sparse.bin", "wb") as file:
    try:
        file.truncate(2 * 2**30)
    except OSError as error:
        print(error)
{NOTHING}
"""
    run = run_one(
        made(tmp_path, experiment),
        Tools(make_sandbox()),
        name="a",
        params={"x": 0.5},
        seed=1,
        split="test",
        results_dir=tmp_path,
    )
    left = {path.name: path.stat().st_size for path in (tmp_path / run.directory).iterdir()}
    assert set(left) <= {"params.json", "log.txt", "metrics.json"}
    assert sum(left.values()) < 2**20


@pytest.mark.sandbox
def test_a_metric_that_is_another_each_time_is_what_was_recorded_first(tmp_path: Path) -> None:
    experiment = """
        import json, os
        score = int.from_bytes(os.urandom(6), "big") / 2**48
        json.dump({"metrics": {"score": score}}, open("/work/metrics.json", "w"))
    """
    template = made(tmp_path, experiment)

    def value(journal_name: str) -> float | None:
        with (
            Journal(tmp_path / journal_name) as journal,
            Bench(template, Tools(make_sandbox()), journal, tmp_path, parallel=1) as bench,
        ):
            return bench.one(
                Job("baseline-000", {"x": 0.5}, 1, "validation"), stage="baseline"
            ).value

    first = value("one.jsonl")
    assert first is not None
    assert value("one.jsonl") == first
    assert value("another.jsonl") != first
