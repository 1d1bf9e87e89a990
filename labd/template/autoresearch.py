"""Directories made for autoresearch: what they are to labd, and where the number of their run is.

Owns that system's contract, and runs nothing: `train.py` is changed, `prepare.py` is not, a run takes a fixed
time, reads what was prepared from ``~/.cache/autoresearch`` and prints its metric on a line of its own.
Source: karpathy/autoresearch at 228791f, `program.md`, `prepare.py` and `train.py`.
"""

import ast
import math
import re
from collections.abc import Mapping
from pathlib import Path

from labd.template.files import digest, read_regular
from labd.template.imports import modules_of, parsed
from labd.template.model import MAX_GUIDANCE_CHARS, DataPlace, Metric, Stage, Template

FILES = ("program.md", "train.py", "prepare.py")
"""By these a directory is known."""
CACHE = "cache"
"""The name of what was prepared, as data."""
METRIC = Metric(
    name="val_bpb",
    better="lower",
    description="bits per byte of held-out text, as the run prints it",
)

_MAX_SOURCE_BYTES = 4 * 2**20
_MEMORY_BYTES = 8 * 2**30
_NUM_TRIALS = 20
_NUM_CONFIRM = 10
# A run trains for its budget and is given up at twice that.
_BUDGET_S = 300.0
_LEAST_LIMIT_S = 60.0
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def read(directory: Path, files: Mapping[str, str]) -> Template:
    """Give the template that such a directory is; nothing beside the files themselves is needed."""
    texts = {
        name: read_regular(directory / name, _MAX_SOURCE_BYTES).decode(errors="replace")
        for name in FILES
    }
    modules = {*modules_of(texts["train.py"], files), *modules_of(texts["prepare.py"], files)}
    return Template(
        name=directory.name,
        title=directory.name.replace("_", " "),
        description="A training run of fixed length, whose code is changed so that it reaches a better "
        f"{METRIC.name} in the same time.",
        guidance=texts["program.md"].strip()[:MAX_GUIDANCE_CHARS],
        command=("python", "train.py"),
        metric=METRIC,
        time_limit_s=max(_LEAST_LIMIT_S, 2 * time_budget_s(texts["prepare.py"])),
        cpus_per_run=1,
        gpus_per_run=0,
        memory_bytes=_MEMORY_BYTES,
        space=(),
        num_trials=_NUM_TRIALS,
        num_confirm_seeds=_NUM_CONFIRM,
        requirements=tuple(sorted(modules)),
        directory=directory,
        sha256=digest(files),
        files_sha256=files,
        editable=("train.py",),
        style="autoresearch",
        has_splits=False,
        has_seeds=False,
        data={CACHE: DataPlace(directory.name, optional=True)},
    )


def stage(template: Template) -> Stage:
    """Give where a run lies: its home is a place of its own, so that the cache is found there."""
    links = {"home/.cache/autoresearch": CACHE} if CACHE in (template.mounts or {}) else {}
    return Stage("repository", ".", links, env={"HOME": "/work/home"})


def time_budget_s(prepare: str) -> float:
    """Give the seconds that `prepare.py` sets for the training, or the usual ones."""
    for node in parsed(prepare):
        match node:
            case ast.Assign(
                targets=[ast.Name(id="TIME_BUDGET")],
                value=ast.Constant(value=int() | float() as budget_s),
            ) if budget_s is not True and 0 < budget_s < 10**7:
                return float(budget_s)
    return _BUDGET_S


def value_in(output: str, name: str) -> float:
    """Give the number on the last line ``name: number`` of a run's output.

    Raises:
        ValueError: there is none, or it is not finite; the text says so.

    """
    lines = re.findall(rf"^{re.escape(name)}:[ \t]*(\S+)[ \t]*\r?$", output, re.MULTILINE)
    if not lines:
        msg = f"it printed no line {name}: with a number"
        raise ValueError(msg)
    if not re.fullmatch(_NUMBER, lines[-1]) or not math.isfinite(float(lines[-1])):
        msg = f"the last {name} that it printed is no finite number"
        raise ValueError(msg)
    return float(lines[-1])
