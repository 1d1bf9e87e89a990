"""Templates: what is read, what is refused and with which words, and that the shipped one does what it says."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from labd import template as module
from labd.errors import ConfigError
from labd.research.early import read_curves
from labd.template import (
    SHIPPED,
    fill_command,
    list_templates,
    load_template,
    missing_requirements,
    snapshot,
)

GOOD: dict[str, object] = {
    "name": "tiny",
    "title": "A tiny template",
    "description": "It measures nothing much.",
    "command": ["sh", "/inputs/template/run.sh", "{params}", "{seed}", "{split}", "{out_dir}"],
    "metric": {"name": "score", "better": "higher", "description": "how good it is"},
    "time_limit": "10s",
    "memory": "256MiB",
    "num_trials": 4,
    "search_space": {
        "rate": {
            "type": "float",
            "low": 0.1,
            "high": 1.0,
            "description": "a rate",
            "baseline": 0.5,
        },
        "size": {"type": "int", "low": 1, "high": 9, "description": "a size", "baseline": 3},
        "kind": {
            "type": "categorical",
            "choices": ["a", "b"],
            "description": "a kind",
            "baseline": "a",
        },
    },
}


def write_template(root: Path, **over: object) -> Path:
    directory = root / str(over.get("name", "tiny"))
    directory.mkdir(parents=True)
    (directory / "template.yaml").write_text(yaml.safe_dump(GOOD | over, sort_keys=False))
    (directory / "run.sh").write_text("exit 0\n")
    return directory


def refusal(root: Path, name: str = "tiny") -> str:
    with pytest.raises(ConfigError) as caught:
        load_template(name, roots=[root])
    return str(caught.value)


def test_a_template_is_read_with_its_units_and_in_the_order_of_the_file(tmp_path: Path) -> None:
    write_template(tmp_path)
    template = load_template("tiny", roots=[tmp_path])
    assert (template.time_limit_s, template.memory_bytes) == (10.0, 256 * 2**20)
    assert [spec.name for spec in template.space] == ["rate", "size", "kind"]
    assert template.baseline == {"rate": 0.5, "size": 3, "kind": "a"}
    assert template.num_confirm_seeds == 10
    assert list(template.files_sha256) == ["run.sh", "template.yaml"]
    assert template.files_sha256["run.sh"] == hashlib.sha256(b"exit 0\n").hexdigest()


def test_the_hash_follows_contents_and_names_and_nothing_else(tmp_path: Path) -> None:
    directory = write_template(tmp_path)
    first = load_template("tiny", roots=[tmp_path]).sha256
    (directory / "__pycache__").mkdir()
    (directory / "__pycache__" / "x.pyc").write_bytes(b"x")
    os.utime(directory / "run.sh", (1, 1))
    assert load_template("tiny", roots=[tmp_path]).sha256 == first
    (directory / "run.sh").rename(directory / "ran.sh")
    second = load_template("tiny", roots=[tmp_path]).sha256
    (directory / "ran.sh").write_text("exit 1\n")
    assert len({first, second, load_template("tiny", roots=[tmp_path]).sha256}) == 3


def test_an_unknown_name_says_which_are_known_and_which_is_near(tmp_path: Path) -> None:
    write_template(tmp_path)
    text = refusal(tmp_path, "digit")
    assert "did you mean digits?" in text
    assert "diffusion_2d, digits, grokking, nanogpt_lite, tiny" in text


def test_a_path_is_taken_only_below_the_roots(tmp_path: Path) -> None:
    directory = write_template(tmp_path / "inside" / "deep")
    outside = write_template(tmp_path / "outside")
    roots = [tmp_path / "inside"]
    assert load_template("deep/tiny", roots=roots).directory == directory
    assert load_template(str(directory), roots=roots).directory == directory
    for path in (str(outside), "../outside/tiny", "deep/../../outside/tiny", "/etc/"):
        with pytest.raises(ConfigError, match="there is no template at"):
            load_template(path, roots=roots)


def test_links_are_refused_on_the_way_and_inside(tmp_path: Path) -> None:
    directory = write_template(tmp_path / "outside")
    root = tmp_path / "root"
    root.mkdir()
    (root / "tiny").symlink_to(directory)
    (root / "way").symlink_to(directory.parent)
    assert "symbolic link" in refusal(root)
    assert "symbolic link" in refusal(root, "way/tiny")
    (directory / "data").symlink_to("/etc")
    assert "symbolic link" in refusal(directory.parent)


def test_what_is_no_plain_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    directory = write_template(tmp_path)
    os.mkfifo(directory / "pipe")
    assert "plain files" in refusal(tmp_path)


def test_too_much_is_refused(tmp_path: Path) -> None:
    directory = write_template(tmp_path)
    with (directory / "data.bin").open("wb") as file:
        file.truncate(module.MAX_TEMPLATE_BYTES + 1)
    assert "more than 50 MiB" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("over", "wanted"),
    [
        ({"comand": ["x"]}, "nearest known: command"),
        ({"metric": {"name": "score", "better": "bigger", "description": "x"}}, "metric.better"),
        ({"command": ["sh", "{params}", "{seed}", "{out_dir}"]}, "{split}"),
        ({"num_confirm_seeds": 9}, "greater than or equal to 10"),
        ({"num_trials": "4"}, "a whole number"),
        ({"time_limit": "soon"}, "a duration: "),
        ({"memory": "much"}, "memory"),
        ({"name": "other"}, "Give both the same name"),
        ({"search_space": {}}, "search_space"),
        ({"requirements": ["a.b"]}, "requirements"),
    ],
)
def test_a_wrong_file_is_refused_with_the_words_that_help(
    tmp_path: Path, over: dict[str, object], wanted: str
) -> None:
    directory = write_template(tmp_path)
    (directory / "template.yaml").write_text(yaml.safe_dump(GOOD | over))
    text = refusal(tmp_path)
    assert wanted in text
    assert "template.yaml" in text


@pytest.mark.parametrize(
    ("parameter", "wanted"),
    [
        ({"type": "float", "low": 1, "high": 0, "baseline": 0.5}, "low below high"),
        ({"type": "float", "low": 0, "high": 1, "log": True, "baseline": 0.5}, "logarithmic"),
        ({"type": "float", "low": 0, "high": 1, "baseline": 2}, "from low to high"),
        ({"type": "float", "low": 0, "high": 1, "baseline": True}, "from low to high"),
        ({"type": "float", "low": 0, "high": 1, "choices": [1, 2], "baseline": 1}, "categorical"),
        ({"type": "int", "low": 0, "high": 9, "baseline": 2.5}, "whole numbers"),
        ({"type": "int", "low": 0.5, "high": 9, "baseline": 2}, "whole numbers"),
        ({"type": "categorical", "choices": ["a"], "baseline": "a"}, "two to a hundred"),
        ({"type": "categorical", "choices": [1, True], "baseline": 1}, "differ from each other"),
        ({"type": "categorical", "choices": [1, 2], "baseline": True}, "one of the choices"),
        ({"type": "categorical", "choices": [1, 2], "low": 1, "baseline": 1}, "choices only"),
    ],
)
def test_a_parameter_that_can_not_be_searched_is_refused(
    tmp_path: Path, parameter: dict[str, object], wanted: str
) -> None:
    write_template(tmp_path, search_space={"x": parameter | {"description": "x"}})
    assert wanted in refusal(tmp_path)


def test_an_own_template_goes_before_a_shipped_one_of_the_same_name(tmp_path: Path) -> None:
    directory = write_template(tmp_path, name="digits")
    assert list_templates([tmp_path])["digits"] == directory
    assert list_templates([tmp_path / "missing"])["digits"] == SHIPPED / "digits"


def test_only_the_known_placeholders_are_filled_in(tmp_path: Path) -> None:
    command = ["sh", "-c", "awk '{print}' {params} --out={out_dir}", "{seed}", "{split}"]
    write_template(tmp_path, command=command)
    template = load_template("tiny", roots=[tmp_path])
    filled = fill_command(template, params="{seed}", seed=7, split="test", out_dir="/work")
    assert filled == ["sh", "-c", "awk '{print}' {seed} --out=/work", "7", "test"]


def test_modules_that_are_not_there_are_named(tmp_path: Path) -> None:
    write_template(tmp_path, requirements=["json", "no_such_module_here"])
    template = load_template("tiny", roots=[tmp_path])
    assert missing_requirements(template) == ["no_such_module_here"]


def test_a_snapshot_is_what_was_hashed_and_stays_so(tmp_path: Path) -> None:
    directory = write_template(tmp_path)
    template = load_template("tiny", roots=[tmp_path])
    copy = snapshot(template, tmp_path / "copy")
    (directory / "run.sh").write_text("exit 1\n")
    assert (copy.directory / "run.sh").read_text() == "exit 0\n"
    assert snapshot(copy, tmp_path / "copy").directory == tmp_path / "copy"
    # A torn or meddled copy is made again from the original.
    (copy.directory / "run.sh").write_text("exit 2\n")
    with pytest.raises(ConfigError, match="changed after it was read"):
        snapshot(template, tmp_path / "copy")
    (directory / "run.sh").write_text("exit 0\n")
    snapshot(template, tmp_path / "copy")
    assert (copy.directory / "run.sh").read_text() == "exit 0\n"


# The shipped template.


def module_of(name: str) -> ModuleType:
    """Give one of the shipped template's files as a module, without leaving a cache beside it."""
    spec = util.spec_from_file_location(f"digits_{name}", SHIPPED / "digits" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(loaded)
    sys.dont_write_bytecode = before
    return loaded


def run_digits(
    directory: Path, out_dir: Path, seed: int, split: str, **over: object
) -> dict[str, object]:
    """Give what a run of the files in `directory` leaves, and what the shipped evaluation says of it."""
    (out_dir / "evaluation").mkdir(parents=True)
    params = load_template("digits", roots=[]).baseline | over
    (out_dir / "params.json").write_text(json.dumps(params))
    command = ["experiment.py", "--params", str(out_dir / "params.json"), "--seed", str(seed)]
    run_python(directory, *command, "--split", split, "--out-dir", str(out_dir))
    evaluate = ["evaluate.py", "--run-dir", str(out_dir), "--split", split]
    run_python(SHIPPED / "digits", *evaluate, "--out-dir", str(out_dir / "evaluation"))
    written: dict[str, object] = json.loads((out_dir / "evaluation/metrics.json").read_text())
    predicted = json.loads((out_dir / "predictions.json").read_text())
    return written | {
        "predicted": predicted,
        "curves": {name: list(one.values) for name, one in read_curves(out_dir).items()},
    }


def run_python(directory: Path, script: str, *words: str) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-B", str(directory / script), *words]
    subprocess.run(command, check=True, timeout=60, env=env, capture_output=True)


def test_digits_are_split_the_same_in_every_run_and_no_image_is_on_two_sides() -> None:
    digits = module_of("data")
    images, labels = digits.load_digits()
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    train, validation = digits.choose(labels, "validation")
    both, test = digits.choose(labels, "test")
    assert sorted(both) == sorted([*train, *validation])
    assert sorted([*train, *validation, *test]) == list(range(1797))
    for part in (train, validation, test):
        shares = np.bincount(labels[part]) / np.bincount(labels)
        assert shares.max() - shares.min() < 0.02


def test_digits_gives_the_same_bytes_for_a_seed_and_others_for_another(tmp_path: Path) -> None:
    over = {"dropout": 0.2, "shift_probability": 0.5, "label_smoothing": 0.1}
    one = run_digits(SHIPPED / "digits", tmp_path / "a", 1, "validation", **over)
    two = run_digits(SHIPPED / "digits", tmp_path / "b", 1, "validation", **over)
    three = run_digits(SHIPPED / "digits", tmp_path / "c", 2, "validation", **over)
    assert one == two
    assert one != three


def test_digits_does_not_look_at_the_test_images_while_it_searches(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "digits", tmp_path / "blind")
    script = tmp_path / "blind" / "experiment.py"
    # The same program, given test images that are all noise.
    old = "    fit, held_out = choose(labels, args.split)\n"
    assert old in script.read_text()
    blind = "    images[choose(labels, 'test')[1]] = np.random.default_rng(0).random((1, 8, 8))\n"
    script.write_text(script.read_text().replace(old, blind + old))
    seen = run_digits(SHIPPED / "digits", tmp_path / "a", 1, "validation")
    assert run_digits(tmp_path / "blind", tmp_path / "b", 1, "validation") == seen
    assert run_digits(tmp_path / "blind", tmp_path / "c", 1, "test")["metrics"] != seen["metrics"]


def test_digits_learns(tmp_path: Path) -> None:
    metrics = run_digits(SHIPPED / "digits", tmp_path / "a", 3, "test")["metrics"]
    assert isinstance(metrics, dict)
    assert 0.95 < metrics["accuracy"] < 1


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_digits_follows_the_gradient_of_its_loss(dropout: float) -> None:
    digits = module_of("model")
    baseline = load_template("digits", roots=[]).baseline
    params = baseline | {"hidden_units": 5, "label_smoothing": 0.2, "dropout": dropout}
    network = digits.Network(params, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    inputs, labels = rng.random((20, 64)).astype(np.float32), rng.integers(0, 10, 20)
    kept = np.random.default_rng(2).random((20, 5), np.float32) >= dropout
    targets = np.full((20, 10), 0.02)
    targets[np.arange(20), labels] += 0.8

    def loss(index: int, change: float) -> float:
        before = network.flat[index]
        network.flat[index] += np.float32(change)
        w1, b1, w2, b2 = (layer.astype(np.float64) for layer in network.layers)
        network.flat[index] = before
        scores = np.maximum(inputs @ w1 + b1, 0) * kept / (1 - dropout) @ w2 + b2
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return -float((targets * logs).sum(axis=1).mean())

    indices = [0, 100, 321, 330, 370, len(network.flat) - 1]
    numeric = [(loss(index, 1e-2) - loss(index, -1e-2)) / 2e-2 for index in indices]
    network.rng = np.random.default_rng(2)
    network._step(inputs, labels)
    assert network.gradient[indices] == pytest.approx(numeric, abs=5e-4)


def test_digits_has_one_editable_file_and_an_evaluation_that_it_can_not_reach() -> None:
    template = load_template("digits", roots=[])
    assert template.editable == ("model.py",)
    assert "/inputs/template/evaluate.py" in template.evaluate
    assert template.cautions == []


def test_a_run_of_digits_reports_its_curves_while_it_trains(tmp_path: Path) -> None:
    curves = run_digits(SHIPPED / "digits", tmp_path / "a", 3, "validation")["curves"]
    assert isinstance(curves, dict)
    assert set(curves) == {"train_loss", "train_accuracy", "validation_accuracy"}
    assert {len(points) for points in curves.values()} == {60}


@pytest.mark.parametrize(
    ("predictions", "wanted"),
    [
        (None, "is not there"),
        ("[", "is not JSON"),
        ("{}", "not a list of 360 labels"),
        (json.dumps([1] * 359), "not a list of 360 labels"),
        (json.dumps([True] * 360), "no label from 0 to 9"),
        (json.dumps([10] * 360), "no label from 0 to 9"),
        (json.dumps([1.0] * 360), "no label from 0 to 9"),
        ("[" * 100_000, "is not JSON"),
        (" " * (2**20 + 1), "more than 1 MiB"),
    ],
)
def test_the_evaluation_of_digits_takes_labels_only(
    tmp_path: Path, predictions: str | None, wanted: str
) -> None:
    if predictions is not None:
        (tmp_path / "predictions.json").write_text(predictions)
    (tmp_path / "out").mkdir()
    command = [
        sys.executable,
        "-B",
        str(SHIPPED / "digits" / "evaluate.py"),
        "--split",
        "validation",
    ]
    command += ["--run-dir", str(tmp_path), "--out-dir", str(tmp_path / "out")]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode != 0
    assert wanted in done.stderr
    assert not list((tmp_path / "out").iterdir())
