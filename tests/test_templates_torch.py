"""The shipped templates that train with torch: their data and their evaluations without it; whole runs where it is."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from labd.journal import Journal
from labd.research.bench import Bench
from labd.research.experiment import Tools, run_one
from labd.research.groundwork import Brief, recorded_provenance, run_baseline
from labd.research.record import Run, TrialStatus
from labd.research.sweep import search
from labd.template import SHIPPED, Template, copy_files, load_template, scaled
from labd.template.check import inspect_template
from tests.boxes import make_sandbox

NAMES = ("grokking", "diffusion_2d", "nanogpt_lite")
CURVES = {
    "grokking": {"add_train_loss", "add_train_accuracy", "add_validation_accuracy"},
    "diffusion_2d": {
        f"{shape}_{curve}"
        for shape in ("spiral", "ring", "board", "knot")
        for curve in ("train_loss", "validation_distance")
    },
    "nanogpt_lite": {"train_bits", "validation_bits"},
}
each = pytest.mark.parametrize("name", NAMES)
needs_torch = pytest.mark.skipif(
    util.find_spec("torch") is None, reason="torch is not installed: pip install labd[torch]"
)


def data_of(name: str, changed: Mapping[str, str] | None = None) -> ModuleType:
    """Give a template's `data.py` as a module, with words of it replaced."""
    path = SHIPPED / name / "data.py"
    text = path.read_text()
    for old, new in (changed or {}).items():
        assert old in text
        text = text.replace(old, new)
    spec = util.spec_from_loader(f"{name}_data_{len(sys.modules)}", loader=None)
    assert spec is not None
    module = util.module_from_spec(spec)
    # Where a dataclass is made, its module has to be known by name.
    sys.modules[spec.name] = module
    exec(compile(text, path, "exec"), module.__dict__)
    return module


def drawn(name: str, data: ModuleType, split: str) -> list[np.ndarray]:
    """Give all that a run in the size `ci` can draw for a split, the evaluation's part at the end."""
    if name == "grokking":
        world = data.draw_world(split, "add", 29, 70)
        return [world.shown, world.shown_answers, world.hidden, world.hidden_answers]
    if name == "diffusion_2d":
        return [draw(split, shape, 50) for shape in data.SHAPES for draw in (data.draw_training, data.draw_reference)]  # fmt: skip
    language = data.draw_language(split, 4, 30)
    contexts = data.draw_contexts(language, split, 20, 48)
    return [data.draw_text(language, split, 2000), contexts, data.next_shares(language, contexts)]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


# What is there without torch.


@each
def test_a_template_has_all_that_is_asked_of_one(name: str) -> None:
    inspection = inspect_template(SHIPPED / name)
    # Where there is no torch, that and nothing else is missing.
    lacking = [one for one in inspection.requirements if one.state.value == "missing"]
    assert all("torch" in one.found + one.fix for one in lacking)
    assert len(lacking) == (util.find_spec("torch") is None)
    template = inspection.template
    assert template is not None
    assert (template.name, template.editable, template.cautions) == (name, ("model.py",), [])
    assert (template.requirements, template.curves) == (("torch", "numpy"), True)
    assert 4 <= len(template.space) <= 7
    assert "/inputs/template/evaluate.py" in template.evaluate


@each
def test_the_small_size_is_the_default_and_the_large_one_takes_a_gpu(name: str) -> None:
    template = load_template(name, roots=[])
    assert list(template.scales) == ["ci", "gpu"]
    assert (template.scale, template.gpus_per_run, template.cpus_per_run) == ("ci", 0, 1)
    large = scaled(template, "gpu")
    assert large.gpus_per_run == 1
    assert set(large.env) == set(template.env)
    assert int(large.env["UPDATES"]) > 10 * int(template.env["UPDATES"])


@each
def test_all_files_of_a_template_are_python_and_only_the_run_needs_torch(name: str) -> None:
    for path in (SHIPPED / name).glob("*.py"):
        text = path.read_text()
        compile(text, path, "exec")
        assert ("import torch" in text) == (path.name in {"experiment.py", "model.py"})


@each
def test_a_split_is_the_same_in_every_run_and_the_other_is_another(name: str) -> None:
    data = data_of(name)
    validation, test = (drawn(name, data, split) for split in ("validation", "test"))
    assert same(validation, drawn(name, data_of(name), "validation"))
    assert not any(np.array_equal(*pair) for pair in zip(validation, test, strict=True))


@each
def test_nothing_of_a_validation_run_comes_from_the_seed_of_the_test_split(name: str) -> None:
    data = data_of(name)
    other = data_of(name, {str(data.SPLIT_SEEDS["test"]): "77"})
    assert same(drawn(name, data, "validation"), drawn(name, other, "validation"))
    assert not same(drawn(name, data, "test"), drawn(name, other, "test"))


@pytest.mark.parametrize("operation", ["add", "subtract", "divide", "squares"])
def test_grokking_shows_a_part_of_the_equations_and_hides_the_others(operation: str) -> None:
    world = data_of("grokking").draw_world("validation", operation, 11, 60)
    shown, hidden = (
        {tuple(pair) for pair in part.tolist()} for part in (world.shown, world.hidden)
    )
    assert not shown & hidden
    every = 11 * 10 if operation == "divide" else 121
    assert (len(world.shown), len(shown | hidden)) == (round(0.6 * every), every)
    # Each row of a group's table, and of what is nearly one, has each answer once.
    pairs = np.concatenate([world.shown, world.hidden])
    answers = np.concatenate([world.shown_answers, world.hidden_answers])
    rows = [
        len(set(answers[pairs[:, 1] == symbol].tolist())) for symbol in set(pairs[:, 1].tolist())
    ]
    assert set(rows) == ({6} if operation == "squares" else {11})


def test_grokking_calculates_modulo_a_prime() -> None:
    calculate = data_of("grokking").calculate
    left, right = np.array([5, 3, 6]), np.array([4, 5, 0])
    assert calculate("add", left, right, 7).tolist() == [2, 1, 6]
    assert calculate("subtract", left, right, 7).tolist() == [1, 5, 6]
    assert calculate("squares", left, right, 7).tolist() == [6, 6, 1]
    divided = calculate("divide", left, right, 7)
    assert divided.tolist()[2] == -1
    assert (divided * right % 7).tolist()[:2] == [5, 3]


def test_the_distance_of_diffusion_2d_is_that_of_a_shift_and_sees_a_lost_part() -> None:
    data = data_of("diffusion_2d")
    reference = data.draw_reference("validation", "ring")
    assert data.distance(reference, reference) == 0
    # A shift by s is one by |s cos a| along the direction a, which is 2 s / pi on average.
    shifted = data.distance(reference + np.array([0.3, 0.0]), reference)
    assert shifted == pytest.approx(0.3 * 2 / math.pi, rel=1e-3)
    true = data.distance(data.draw_training("validation", "ring", 1000), reference)
    half = data.distance(reference[reference[:, 0] > 0][:1000], reference)
    assert true < 0.06
    assert half > 0.4


def test_the_shapes_of_diffusion_2d_differ_and_are_of_one_size() -> None:
    data = data_of("diffusion_2d")
    drawn = {shape: data.draw_reference("test", shape) for shape in data.SHAPES}
    for points in drawn.values():
        assert np.abs(points.mean(axis=0)).max() < 0.05
        assert 0.6 < points.std(axis=0).min() <= points.std(axis=0).max() < 1.2
    apart = [data.distance(drawn[a], drawn[b]) for a in drawn for b in drawn if a < b]
    assert min(apart) > 0.1


def test_the_true_shares_of_nanogpt_lite_are_those_with_which_it_writes() -> None:
    data = data_of("nanogpt_lite")
    language = data.draw_language("validation", 2, 6)
    length, number = 14, 40_000
    texts = data.draw_contexts(language, "validation", number, length + 1)
    contexts, places = np.unique(texts[:, :length], axis=0, return_inverse=True)
    shares = data.next_shares(language, contexts)
    assert shares.sum(axis=1) == pytest.approx(np.ones(len(contexts)))
    followed = np.zeros_like(shares)
    np.add.at(followed, (places.ravel(), texts[:, length]), 1)
    assert not followed[shares == 0].any()
    counts = followed.sum(axis=1, keepdims=True)
    often = counts[:, 0] >= 300
    assert often.sum() >= 10
    # Some hundred shares are compared: five standard deviations are not passed by luck.
    deviation = np.sqrt(shares * (1 - shares) / counts)
    far = np.abs(followed / counts - shares)[often] / np.maximum(deviation[often], 1e-3)
    assert far.max() < 5


def test_no_prediction_of_nanogpt_lite_is_below_the_floor() -> None:
    data = data_of("nanogpt_lite")
    language = data.draw_language("test", 4, 30)
    truth = data.next_shares(language, data.draw_contexts(language, "test", 50, 48))
    floor = data.cross_entropy(truth, truth)
    entropy = -np.sum(truth[truth > 0] * np.log2(truth[truth > 0])) / len(truth)
    assert floor == pytest.approx(entropy, abs=1e-6)
    rng = np.random.default_rng(0)
    for weight in (1e-3, 0.1, 1.0):
        noise = rng.dirichlet(np.ones(len(data.ALPHABET)), len(truth))
        assert data.cross_entropy(truth, (1 - weight) * truth + weight * noise) > floor
    even = np.full_like(truth, 1 / len(data.ALPHABET))
    assert data.cross_entropy(truth, even) == pytest.approx(math.log2(len(data.ALPHABET)))
    assert math.isfinite(data.cross_entropy(truth, np.eye(len(data.ALPHABET))[[0] * len(truth)]))


# The evaluations, with answers made here.


def evaluated(
    name: str, directory: Path, answers: object, split: str = "test"
) -> subprocess.CompletedProcess[str]:
    """Have a template's evaluation measure answers; text is left as it is."""
    file = "samples.json" if name == "diffusion_2d" else "predictions.json"
    if answers is not None:
        text = answers if isinstance(answers, str) else json.dumps(answers)
        (directory / file).write_text(text)
    (directory / "out").mkdir()
    command = [sys.executable, "-B", str(SHIPPED / name / "evaluate.py"), "--split", split]
    command += ["--run-dir", str(directory), "--out-dir", str(directory / "out")]
    env = os.environ | load_template(name, roots=[]).env | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        command, check=False, timeout=60, env=env, capture_output=True, text=True
    )


def best_answers(name: str, split: str) -> Any:
    """Give what a perfect run of the size `ci` would leave."""
    data, env = data_of(name), load_template(name, roots=[]).env
    if name == "grokking":
        world = data.draw_world(split, "add", int(env["MODULUS"]), int(env["SHOWN_PERCENT"]))
        return {"add": world.hidden_answers.tolist()}
    if name == "diffusion_2d":
        number = int(env["SAMPLES"])
        return {s: data.draw_reference(split, s)[:number].tolist() for s in data.SHAPES}
    language = data.draw_language(split, int(env["TOPICS"]), int(env["WORDS"]))
    contexts = data.draw_contexts(language, split, int(env["CONTEXTS"]), int(env["CONTEXT"]))
    return data.next_shares(language, contexts).tolist()


@each
def test_an_evaluation_knows_perfect_answers_and_those_of_the_other_split(
    name: str, tmp_path: Path
) -> None:
    found = []
    for split in ("test", "validation"):
        directory = tmp_path / split
        directory.mkdir()
        done = evaluated(name, directory, best_answers(name, "test"), split)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((directory / "out" / "metrics.json").read_text())["metrics"])
    right, wrong = found
    if name == "grokking":
        assert (right["accuracy"], wrong["accuracy"] < 0.2) == (1, True)
    elif name == "diffusion_2d":
        assert right["distance"] < 1.5 * right["floor"] < wrong["distance"]
    else:
        assert right["bits_per_character"] == right["floor"]
        assert wrong["bits_per_character"] > wrong["floor"] + 1


@pytest.mark.parametrize(
    ("name", "change", "wanted"),
    [
        *[(name, None, "is not there") for name in NAMES],
        *[(name, "[" * 100_000, "is not JSON") for name in NAMES],
        *[(name, " " * (16 * 2**20 + 1), "MiB") for name in NAMES],
        ("grokking", [], "not an object with: add"),
        ("grokking", {"add": [1]}, "no list of 252 answers"),
        ("grokking", {"add": [29] * 252}, "no symbol below 29"),
        ("grokking", {"add": [True] * 252}, "no symbol below 29"),
        ("diffusion_2d", {"ring": []}, "not an object with"),
        ("diffusion_2d", [[0.0, 0.0]] * 999, "no list of 1000 points"),
        ("diffusion_2d", [[0.0, float("nan")]] * 1000, "not finite"),
        ("diffusion_2d", [[0.0]] * 1000, "no pair of decimal numbers"),
        ("diffusion_2d", [[[0.0], 0.0]] * 1000, "no pair of decimal numbers"),
        ("nanogpt_lite", [[1.0]] * 500, "a row that is not 18 shares"),
        ("nanogpt_lite", [[1.0] * 18] * 500, "does not sum to 1"),
        ("nanogpt_lite", [[-1.0, 2.0] + [0.0] * 16] * 500, "negative"),
        ("nanogpt_lite", [[float("nan")] * 18] * 500, "does not sum to 1"),
        ("nanogpt_lite", [[1.0] + [0.0] * 17] * 499, "not a list of 500 rows"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else "",
)  # fmt: skip
def test_an_evaluation_refuses_what_is_no_answer(
    name: str, change: object, wanted: str, tmp_path: Path
) -> None:
    if name == "diffusion_2d" and isinstance(change, list):
        change = dict.fromkeys(("spiral", "ring", "board", "knot"), change)
    done = evaluated(name, tmp_path, change)
    assert done.returncode != 0
    assert wanted in done.stderr
    assert not list((tmp_path / "out").iterdir())


# Whole runs in the sandbox.


def run(template: Template, directory: Path, name: str, **over: Any) -> Run:
    given: dict[str, Any] = {"params": template.baseline, "seed": 1, "split": "validation"}
    found = run_one(
        template, Tools(make_sandbox()), name=name, results_dir=directory, **given | over
    )
    log = directory / found.directory / "log.txt"
    assert found.status is TrialStatus.OK, f"{found.reason}\n{log.read_text()[-2000:]}"
    return found


@needs_torch
@pytest.mark.sandbox
@pytest.mark.timeout(900)
@each
def test_a_run_repeats_with_its_seed_and_differs_by_seed_and_split(
    name: str, tmp_path: Path
) -> None:
    template = load_template(name, roots=[])
    one = run(template, tmp_path, "one")
    again = run(template, tmp_path, "again")
    assert (one.metrics_sha256, one.curves) == (again.metrics_sha256, again.curves)
    assert set(one.curves) == CURVES[name]
    tests = [run(template, tmp_path, f"test-{seed}", seed=seed, split="test") for seed in (1, 2)]
    assert not any("validation" in curve for test in tests for curve in test.curves)
    assert len({found.value for found in (one, *tests)}) == 3


@needs_torch
@pytest.mark.sandbox
@pytest.mark.timeout(900)
@each
def test_a_sweep_of_four_trials_gives_four_values(name: str, tmp_path: Path) -> None:
    template = load_template(name, roots=[])
    template = replace(template, env={**template.env, "UPDATES": "20"})
    brief = Brief("sweep", template, "kind: research\n", "0" * 64, 4, 10)
    tools = Tools(make_sandbox())
    with (
        Journal(tmp_path / "journal.jsonl") as journal,
        Bench(template, tools, journal, tmp_path, parallel=1, gpus=()) as lab,
    ):
        provenance = recorded_provenance(brief, journal)
        baseline = run_baseline(lab, provenance)
        found = search(brief, lab, journal, baseline, provenance)
    assert [trial.status for trial in found.trials] == [TrialStatus.OK] * 4
    assert len({trial.value for trial in (baseline, *found.trials)}) >= 4


@needs_torch
@pytest.mark.sandbox
@pytest.mark.timeout(900)
def test_a_model_that_looks_ahead_in_nanogpt_lite_gains_nothing(tmp_path: Path) -> None:
    template = load_template("nanogpt_lite", roots=[])
    template = replace(template, env={**template.env, "UPDATES": "60"})
    copy_files(template, tmp_path / "code")
    model = tmp_path / "code" / "model.py"
    text = model.read_text()
    assert "is_causal=True" in text
    model.chmod(0o644)
    model.write_text(text.replace("is_causal=True", "is_causal=False"))
    honest = run(template, tmp_path, "honest")
    ahead = run(template, tmp_path, "ahead", code=tmp_path / "code")
    assert ahead.curves["train_bits"][-1] < honest.curves["train_bits"][-1] + 0.1
    assert ahead.value is not None
    assert honest.value is not None
    assert ahead.value > honest.value - 0.05
