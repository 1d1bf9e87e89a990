"""Valid things with one line to change one part of them."""

import textwrap
from pathlib import Path
from typing import Any

import yaml

from labd.settings import Home, load_home
from tests.boxes import ACCEPTED_GAPS

TASK = {"kind": "research", "template": "digits"}


def task_text(**over: Any) -> str:
    """A valid task file's text; ``None`` takes a key away."""
    return yaml.safe_dump(
        {k: v for k, v in {**TASK, **over}.items() if v is not None}, sort_keys=False
    )


def write_settings(root: Path, **settings: Any) -> Home:
    """Write a lab's settings, which accept the gap that tests accept; give the home."""
    (root / "config").mkdir(parents=True, exist_ok=True)
    boxed = {"allow_missing": sorted(ACCEPTED_GAPS), **settings.pop("sandbox", {})}
    # The page takes seconds of a CPU to start, and its port is one for all; its own tests start it.
    page = {"enabled": False, **settings.pop("page", {})}
    text = yaml.safe_dump({"sandbox": boxed, "page": page, **settings}, sort_keys=False)
    (root / "config" / "labd.yaml").write_text(text)
    return load_home(root)


def parabola_space(baseline: float) -> dict[str, Any]:
    """A search space for `PARABOLA`. Nothing beats a baseline of 0.7: half as many runs are needed then."""
    described = "where on the parabola"
    return {
        "x": {
            "type": "float",
            "low": 0.0,
            "high": 1.0,
            "baseline": baseline,
            "description": described,
        }
    }


def make_template(root: Path, name: str = "tiny", *, experiment: str, **over: Any) -> Path:
    """Write a template that runs `experiment` (Python); give its directory."""
    directory = root / name
    directory.mkdir(parents=True)
    described: dict[str, Any] = {
        "name": name,
        "title": "A tiny experiment",
        "description": "The metric is a parabola of x with a little noise by seed.",
        "command": ["python", "/inputs/template/experiment.py", "--params", "{params}", "--seed", "{seed}", "--split", "{split}", "--out_dir", "{out_dir}"],
        "metric": {"name": "score", "better": "higher", "description": "a made score"},
        "time_limit": "20s",
        "memory": "1GiB",
        "cpus_per_run": 1,
        "num_trials": 4,
        "num_confirm_seeds": 10,
        "search_space": parabola_space(0.1),
    }  # fmt: skip
    (directory / "template.yaml").write_text(
        yaml.safe_dump({**described, **over}, sort_keys=False)
    )
    (directory / "experiment.py").write_text(textwrap.dedent(experiment))
    return directory


PARABOLA = """
    import argparse, json, pathlib, random, time
    parser = argparse.ArgumentParser()
    for name in ("--params", "--seed", "--split", "--out_dir"):
        parser.add_argument(name)
    args = parser.parse_args()
    x = json.loads(pathlib.Path(args.params).read_text())["x"]
    score = 1 - (x - 0.7) ** 2 + random.Random(f"{args.seed}{args.split}{x}").gauss(0, 0.01)
    time.sleep(%s)
    out = pathlib.Path(args.out_dir)
    out.mkdir(exist_ok=True)
    (out / "metrics.json").write_text(json.dumps({"metrics": {"score": score}, "curves": {"loss": [1, 0.5, 0.25]}}))
"""
