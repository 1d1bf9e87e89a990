"""Directories made for AI-Scientist: what they are to labd, and where the numbers of their runs are.

Owns that system's contract, and runs nothing: `experiment.py --out_dir=run_N`, started in the directory it
lies in, two levels below a place that also holds `data` for the baseline and three levels below for all else,
leaves `run_N/final_info.json`; `plot.py` draws all runs that lie there.
Source: SakanaAI/AI-Scientist at 9dffdc4, `ai_scientist/perform_experiments.py`, `launch_scientist.py` and templates.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labd.errors import ConfigError
from labd.fields import METRIC_NAME
from labd.template.files import BASELINE_INFO, digest, read_regular
from labd.template.imports import modules_of
from labd.template.model import (
    MAX_GUIDANCE_CHARS,
    Better,
    DataPlace,
    Metric,
    Stage,
    Template,
)
from labd.text import printable

FILES = ("experiment.py", "prompt.json")
"""By these a directory is known."""
PLOT = "plot.py"
INFO_NAME = "final_info.json"
MAX_INFO_BYTES = 4 * 2**20
DATA = "data"
UNKNOWN_METRIC = Metric(
    name="",
    better="lower",
    description="not known yet: the first run of the baseline says what there is",
)

_TIME_LIMIT_S = 7200.0
_MEMORY_BYTES = 8 * 2**30
_NUM_TRIALS = 10
_NUM_CONFIRM = 10
_HIGHER = frozenset(
    {"acc", "accuracy", "auc", "auroc", "bleu", "f1", "iou", "precision", "psnr", "r2", "recall", "return", "reward"}
    | {"score", "ssim", "success"}
)  # fmt: skip
_LOWER = frozenset(
    {"bpb", "bpc", "cer", "distance", "divergence", "err", "error", "fid", "kl", "loss", "lpips", "mae", "mse", "nll"}
    | {"perplexity", "ppl", "regret", "rmse", "time", "wer"}
)  # fmt: skip
# What an experiment costs is a metric only where there is no other.
_COST = frozenset({"time", "seconds", "tokens", "speed", "memory", "step", "steps", "epoch"})
_HELD_OUT = frozenset({"val", "valid", "validation", "test", "eval", "heldout"})
_SPREAD = frozenset({"std", "stds", "stderr", "stderrs", "sem", "var", "ci"})


def read(directory: Path, files: Mapping[str, str]) -> Template:
    """Give the template that such a directory is; nothing beside the files themselves is needed.

    Raises:
        ConfigError: `prompt.json` is not what it should be.

    """
    prompt = _prompt(directory)
    source = read_regular(directory / "experiment.py", MAX_INFO_BYTES).decode(errors="replace")
    description = prompt["task_description"] or f"The experiment {directory.name}."
    guidance = "\n\n".join(filter(None, (prompt["system"], prompt["task_description"])))
    return Template(
        name=directory.name,
        title=directory.name.replace("_", " "),
        description=description[:4000],
        guidance=guidance[:MAX_GUIDANCE_CHARS],
        command=("python", "experiment.py", "--out_dir={out_dir}"),
        metric=_shipped_metric(directory, files),
        time_limit_s=_TIME_LIMIT_S,
        cpus_per_run=1,
        gpus_per_run=0,
        memory_bytes=_MEMORY_BYTES,
        space=(),
        num_trials=_NUM_TRIALS,
        num_confirm_seeds=_NUM_CONFIRM,
        requirements=modules_of(source, files),
        directory=directory,
        sha256=digest(files),
        files_sha256=files,
        editable=("experiment.py",),
        style="ai_scientist",
        has_splits=False,
        has_seeds=False,
        data={DATA: DataPlace(directory.name, optional=True)},
    )


def stage(template: Template, *, edited: bool) -> Stage:
    """Give where a run lies; experiments tell the baseline by the literal name ``run_0`` and by its depth."""
    if not edited:
        place, out_dir = f"lab/templates/{template.name}", "run_0"
    else:
        place, out_dir = f"lab/results/{template.name}/idea", "run_1"
    mounts = template.mounts or {}
    return Stage(place, out_dir, {"lab/data": DATA} if DATA in mounts else {})


def parse_info(raw: bytes) -> dict[str, Any]:
    """Give what a run wrote: of each dataset an object with its means by name.

    Means that are one number have their dataset's name; of means within means, as of several molecules, each is a
    dataset ``outer/inner``.

    Raises:
        ValueError: it is not JSON, nested too deep, or not datasets with their means; the text says so.

    """
    try:
        info = json.loads(raw)
    except RecursionError as error:
        msg = f"its {INFO_NAME} is nested too deep"
        raise ValueError(msg) from error
    except ValueError as error:
        msg = f"its {INFO_NAME} is not JSON: {printable(str(error), 200)}"
        raise ValueError(msg) from error
    if not isinstance(info, dict) or not info:
        msg = f"its {INFO_NAME} is not an object of datasets"
        raise ValueError(msg)
    for name, dataset in info.items():
        if not isinstance(dataset, dict) or "means" not in dataset:
            msg = f"its {INFO_NAME} has no means for {printable(name, 60)}"
            raise ValueError(msg)
    return dict(part for name, dataset in info.items() for part in _by_name(name, dataset))


def _by_name(name: str, dataset: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    means = dataset["means"]
    if isinstance(means, dict) and means and all(isinstance(one, dict) for one in means.values()):
        yield from ((f"{name}/{inner}", {"means": one}) for inner, one in means.items())
    else:
        yield name, {**dataset, "means": {name: means}} if _is_number(means) else dataset


def settle_metric(info: Mapping[str, Any]) -> Metric:
    """Choose the metric among what a run of the baseline wrote, by well-known names.

    Of the values that all datasets have, one on held-out data goes before others, others before one on training
    data and that before a cost; among equals the first in the file.

    Raises:
        ConfigError: of no value is it known whether more of it is better.

    """
    shared = [
        name
        for name in _numbers(next(iter(info.values()))["means"])
        if all(name in _numbers(dataset["means"]) for dataset in info.values())
    ]
    known = [(name, better) for name in shared if (better := direction(name)) is not None]
    if not known:
        shown = ", ".join(shared[:20]) or "none that is a number in all datasets"
        raise ConfigError(
            f"of no value that the baseline writes is it known whether more of it is better: {printable(shown, 500)}",
            where=INFO_NAME,
            fix="Name one in the task file: `metric: {name: ..., better: lower}`",
        )
    name, better = min(known, key=lambda one: _rank(one[0]))
    over = f", mean over {len(info)} datasets" if len(info) > 1 else ""
    return Metric(name=name, better=better, description=f"as the experiment writes it{over}")


def direction(name: str) -> Better | None:
    """Say by its name whether more or less of a metric is better; the last word that is known decides."""
    for word in reversed(_words(name)):
        if word in _HIGHER:
            return "higher"
        if word in _LOWER:
            return "lower"
    return None


def value_of(info: Mapping[str, Any], name: str) -> float:
    """Give a metric of a run: of one dataset for ``dataset/metric``, or the mean over all datasets.

    A dataset's name alone stands for its only value.

    Where the values of single seeds are there, their mean is computed from them.

    Raises:
        ValueError: it is not there, or no finite number; the text says so.

    """
    datasets = dict(info)
    dataset, slash, rest = name.rpartition("/")
    if slash and dataset in info:
        datasets, name = {dataset: info[dataset]}, rest
    elif name in info:
        datasets = {name: info[name]}
    return math.fsum(_one(key, dataset, name) for key, dataset in datasets.items()) / len(datasets)


def _one(dataset_name: str, dataset: Mapping[str, Any], name: str) -> float:
    by_seed = dataset.get("final_info_dict")
    seeds = by_seed.get(name.removesuffix("_mean")) if isinstance(by_seed, dict) else None
    means = dataset["means"]
    if isinstance(seeds, list) and seeds and all(map(_is_number, seeds)):
        value = math.fsum(map(float, seeds)) / len(seeds)
    elif not isinstance(means, dict) or name not in means:
        msg = f"its {INFO_NAME} has no {name} for {printable(dataset_name, 60)}"
        raise ValueError(msg)
    elif not _is_number(means[name]):
        msg = f"its {name} for {printable(dataset_name, 60)} is not a finite number"
        raise ValueError(msg)
    else:
        value = float(means[name])
    return value


def _prompt(directory: Path) -> dict[str, str]:
    path = directory / "prompt.json"
    try:
        prompt = json.loads(read_regular(path, MAX_INFO_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"not JSON: {printable(str(error), 200)}", where=printable(str(path))
        ) from error
    if not isinstance(prompt, dict):
        raise ConfigError("not a JSON object", where=printable(str(path)))
    return {key: str(prompt.get(key) or "").strip() for key in ("system", "task_description")}


def _shipped_metric(directory: Path, files: Mapping[str, str]) -> Metric:
    if str(BASELINE_INFO) not in files:
        return UNKNOWN_METRIC
    try:
        return settle_metric(parse_info(read_regular(directory / BASELINE_INFO, MAX_INFO_BYTES)))
    except (ValueError, ConfigError):
        # Then labd's own run of the baseline says it, or says what is wrong with it.
        return UNKNOWN_METRIC


def _numbers(means: object) -> dict[str, float]:
    if not isinstance(means, dict):
        return {}
    return {
        name: float(value)
        for name, value in means.items()
        if re.fullmatch(METRIC_NAME, name) and _is_number(value)
    }


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _rank(name: str) -> int:
    words = set(_words(name))
    if words & _SPREAD:
        return 4
    if words & _COST:
        return 3
    if words & _HELD_OUT:
        return 0
    return 2 if words & {"train", "training"} else 1


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
