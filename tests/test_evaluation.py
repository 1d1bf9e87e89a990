"""An evaluation of its own: whatever changed code does, it can't measure itself."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

from labd.errors import ConfigError
from labd.research.experiment import Tools, run_one
from labd.research.record import Run, TrialStatus
from labd.template import Template, copy_files, load_template
from tests.boxes import make_sandbox
from tests.factories import make_template

DRIVER = """
    import json, sys
    sys.path.insert(0, "/inputs/template")
    from model import answer
    with open("/work/answer.json", "w") as file:
        json.dump(answer(), file)
"""
EVALUATE = """
    import json, sys
    answer = json.load(open("/inputs/run/answer.json"))
    if answer == "slow":
        import time
        time.sleep(60)
    json.dump({"metrics": {"score": 1 - abs(answer - 0.6)}}, open("/work/metrics.json", "w"))
    print("seed", *sys.argv[1:])
"""
HONEST = "def answer():\n    return 0.5\n"
CHEAT = 'json.dump({"metrics": {"score": 1.0}}, open("/work/metrics.json", "w"))'


@pytest.fixture
def template(tmp_path: Path) -> Template:
    directory = make_template(
        tmp_path / "templates",
        experiment=DRIVER,
        evaluate=[
            "python", "/inputs/template/evaluate.py", "{seed}", "{split}", "{run_dir}", "{out_dir}", "{params}"
        ],
        editable=["model.py"],
        time_limit="2s",
    )  # fmt: skip
    (directory / "evaluate.py").write_text(textwrap.dedent(EVALUATE))
    (directory / "model.py").write_text(HONEST)
    return load_template("tiny", roots=[directory.parent])


def run_changed(template: Template, tmp_path: Path, **files: str) -> Run:
    """Run the template's command with files of a changed copy in place of its own."""
    code = tmp_path / "code"
    copy_files(template, code)
    for name, text in files.items():
        (code / f"{name}.py").write_text(textwrap.dedent(text))
    return run(template, tmp_path, code=code)


def run(template: Template, tmp_path: Path, **over: Any) -> Run:
    given: dict[str, Any] = {"name": "trial-000", "params": {"x": 0.5}, "seed": 7}
    given |= {"split": "validation", "results_dir": tmp_path}
    return run_one(template, Tools(make_sandbox()), **given | over)


@pytest.mark.sandbox
def test_the_evaluation_measures_and_its_log_and_metric_are_kept(
    template: Template, tmp_path: Path
) -> None:
    found = run(template, tmp_path)
    assert found.status is TrialStatus.OK
    assert found.value == pytest.approx(0.9)
    directory = tmp_path / found.directory
    kept = {path.name for path in directory.iterdir()}
    assert kept == {"params.json", "log.txt", "evaluation.txt", "metrics.json"}
    said = (directory / "evaluation.txt").read_text()
    assert said == "seed 7 validation /inputs/run /work /work/params.json\n"


@pytest.mark.sandbox
@pytest.mark.parametrize(
    "changed",
    [
        {"model": f"import json\n{CHEAT}\n{HONEST}"},
        {"evaluate": f"import json\n{CHEAT}\n", "model": HONEST},
        {"model": f"open('/work/json.py', 'w').write('raise SystemExit(0)')\n{HONEST}"},
        {"model": f"import os\nos.umask(0o777)\n{HONEST}"},
        {"model": f"import os\nos.mkdir('/work/run')\nos.chmod('/work/run', 0)\n{HONEST}"},
    ],
    ids=["own-metric", "other-evaluator", "shadowed-module", "unreadable", "closed-directory"],
)
def test_a_change_counts_for_what_it_answers_and_for_nothing_else(
    template: Template, tmp_path: Path, changed: dict[str, str]
) -> None:
    found = run_changed(template, tmp_path, **changed)
    assert found.status is TrialStatus.OK
    assert found.value == pytest.approx(0.9)
    assert not (tmp_path / found.directory / "work").exists()
    assert not (tmp_path / found.directory / "evaluation").exists()


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("model", "status", "reason"),
    [
        (f"import json, os\n{CHEAT}\nos._exit(0)", TrialStatus.NO_METRIC, "its evaluation failed: it ended with exit code 1"),
        ("def answer(): return 'slow'", TrialStatus.NO_METRIC, "its evaluation failed: it did not end within its 2 s"),
        ("def answer(): return float('nan')", TrialStatus.NO_METRIC, "its evaluation failed: its metric score is nan"),
        ("import os\nos.symlink('/inputs/template/template.yaml', '/work/answer.json')\nos._exit(0)", TrialStatus.NO_METRIC, "FileNotFoundError"),
        ("import sys\nsys.exit('no')", TrialStatus.CRASHED, "exit code 1: no"),
        ("def answer():\n    while True: pass", TrialStatus.TIMED_OUT, "did not end within its 2 s"),
    ],
    ids=["metric-and-out", "slow-to-judge", "nan", "link", "crash", "hang"],
)  # fmt: skip
def test_what_leaves_nothing_to_measure_has_no_value(
    template: Template, tmp_path: Path, model: str, status: TrialStatus, reason: str
) -> None:
    found = run_changed(template, tmp_path, model=model)
    assert (found.status, found.value) == (status, None)
    assert reason in (found.reason or "")


@pytest.mark.sandbox
def test_a_private_file_is_there_for_the_evaluation_only(tmp_path: Path) -> None:
    experiment = """
        from pathlib import Path
        seen = {path.name: path.read_text() for path in Path("/inputs/template").glob("*.txt")}
        Path("/work/seen.txt").write_text(repr(seen))
        print(seen)
    """
    evaluate = """
        import json
        print(open("/inputs/template/answers.txt").read(), open("/inputs/run/seen.txt").read())
        json.dump({"metrics": {"score": 1.0}}, open("/work/metrics.json", "w"))
    """
    command = ["python", "/inputs/template/evaluate.py", "{run_dir}", "{split}", "{out_dir}"]
    directory = make_template(
        tmp_path / "templates", experiment=experiment, evaluate=command, private=["answers.txt"]
    )
    (directory / "evaluate.py").write_text(textwrap.dedent(evaluate))
    (directory / "answers.txt").write_text("the answers")
    template = load_template("tiny", roots=[directory.parent])
    for over in ({}, {"code": directory}):
        found = run(template, tmp_path, **over)
        kept = tmp_path / found.directory
        assert (found.value, (kept / "log.txt").read_text()) == (1.0, "{'answers.txt': ''}\n")
        assert "the answers {'answers.txt': ''}" in (kept / "evaluation.txt").read_text()
        assert not (kept / "empty").exists()


@pytest.mark.sandbox
def test_curves_are_read_from_what_the_run_appended(tmp_path: Path) -> None:
    experiment = """
        import json
        with open("/work/curves.jsonl", "w") as file:
            for step, loss in enumerate([3.0, 2.0, 1.0]):
                bad = float("nan") if step else 1
                file.write(json.dumps({"step": step, "loss": loss, "bad": bad, "../x": 1}) + "\\n")
            file.write('{"step": 4, "lo')
        json.dump({"metrics": {"score": 1.0}}, open("/work/metrics.json", "w"))
    """
    directory = make_template(tmp_path / "templates", experiment=experiment, curves=True)
    found = run(load_template("tiny", roots=[directory.parent]), tmp_path)
    assert (found.value, found.curves) == (1.0, {"loss": [3.0, 2.0, 1.0]})


def test_nobody_may_change_what_evaluates(tmp_path: Path) -> None:
    evaluate = ["python", "/inputs/template/experiment.py", "{run_dir}", "{split}", "{out_dir}"]
    directory = make_template(
        tmp_path, experiment="", evaluate=evaluate, editable=["experiment.py"]
    )
    with pytest.raises(ConfigError, match=r"experiment\.py is under editable as well"):
        load_template("tiny", roots=[directory.parent])
