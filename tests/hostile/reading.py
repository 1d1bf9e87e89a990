"""Reading what a poisonous run left, by labd's own reader of experiments."""

import json
import math
import unicodedata
from pathlib import Path

from labd.research.experiment import Tools, run_one
from labd.research.record import Run
from labd.sandbox import Sandbox
from labd.template import load_template
from tests.factories import make_template
from tests.hostile.stage import Stage


def read_poison(path: Path, stage: Stage, sandbox: Sandbox) -> str:
    """Run the program as a template's experiment; give what came through, or nothing."""
    told = f"json.loads({json.dumps(stage.inside())!r})"
    program = path.read_text().replace('json.load(open("stage.json"))', told)
    templates = stage.root / "templates"
    make_template(templates, name="tiny", experiment=program, time_limit="20s", memory="512MiB")
    results = stage.work("results")
    run = run_one(
        load_template("tiny", roots=[templates]),
        Tools(sandbox),
        name="run",
        params={"x": 0.5},
        seed=1,
        split="test",
        results_dir=results,
    )
    found = _shown(run)
    if run.value is not None and (not math.isfinite(run.value) or run.value != 1.0):
        found.append(f"a value came through: {run.value}")
    if stage.token in repr(run) + _texts(results):
        found.append("a secret came through")
    directory = results / "runs" / "run"
    strange = {entry.name for entry in directory.iterdir()} - {
        "params.json",
        "log.txt",
        "metrics.json",
    }
    return "; ".join(found + ([f"something is left: {strange}"] if strange else []))


def _shown(run: Run) -> list[str]:
    texts = [run.reason or "", *run.curves]
    found = [
        f"control characters came through: {text[:50]!r}"
        for text in texts
        if any(unicodedata.category(char) in {"Cc", "Cf"} for char in text)
    ]
    found += [f"code came through: {text[:50]!r}" for text in run.curves if set(text) & set("<\\")]
    return found + [f"a text of {len(text)} characters" for text in texts if len(text) > 1000]


def _texts(root: Path) -> str:
    return "".join(p.read_text(errors="replace") for p in root.rglob("*") if p.is_file())
