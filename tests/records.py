"""Research records for tests: complete and valid by default, one argument to change one thing."""

import struct
import zlib
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from labd.research.record import (
    Claim,
    Importance,
    Provenance,
    ResearchRecord,
    Run,
    Sample,
    TrialStatus,
    Verdict,
)
from labd.template import Metric, ParamSpec

TASK_TEXT = (
    "kind: research\ntemplate: digits\nresearcher: sweep\ntitle: Handwritten digits\nseed: 7\n"
)
FIGURES = {
    "best_so_far": "plots/best-so-far.png",
    "baseline_vs_best": "plots/baseline-vs-best.png",
    "importance": "plots/importance.png",
    "learning_curves": "plots/learning-curves.png",
}


def make_run(name: str, value: float | None, **over: Any) -> Run:
    fields: dict[str, Any] = {
        "name": name,
        "params": {"lr": 0.01, "hidden": 64, "shift": False, "optimiser": "adam"},
        "seed": 1000,
        "split": "validation",
        "status": TrialStatus.OK if value is not None else TrialStatus.CRASHED,
        "value": value,
        "reason": None
        if value is not None
        else "exit code 1: ZeroDivisionError: division by zero",
        "wall_s": 1.25,
        "exit_code": 0,
        "directory": f"runs/{name}",
    }
    return Run(**fields | over)


def make_sample(mean: float, **over: Any) -> Sample:
    fields: dict[str, Any] = {
        "values": [mean - 0.004, mean, mean + 0.004] * 3 + [mean],
        "n": 10,
        "mean": mean,
        "sd": 0.003266,
        "ci_low": mean - 0.002336,
        "ci_high": mean + 0.002336,
    }
    return Sample(**fields | over)


def make_claim(**over: Any) -> Claim:
    fields: dict[str, Any] = {
        "verdict": Verdict.IMPROVED,
        "reason": "The corrected p-value is below alpha and the difference is in the better direction.",
        "baseline": make_sample(0.95317),
        "best": make_sample(0.97184),
        "difference": 0.01867,
        "difference_low": 0.0156,
        "difference_high": 0.02174,
        "effect_size": 5.4731,
        "p_value": 0.0000021,
        "p_corrected": 0.0000504,
        "comparisons": 24,
        "alpha": 0.05,
    }
    return Claim(**fields | over)


def make_space() -> list[ParamSpec]:
    return [
        ParamSpec(
            name="lr",
            type="float",
            low=0.0001,
            high=0.1,
            log=True,
            baseline=0.01,
            description="Learning rate",
        ),
        ParamSpec(
            name="hidden", type="int", low=16, high=256, baseline=64, description="Hidden units"
        ),
        ParamSpec(name="shift", type="categorical", choices=[False, True], baseline=False),
        ParamSpec(name="optimiser", type="categorical", choices=["sgd", "adam"], baseline="adam"),
    ]


def make_provenance(**over: Any) -> Provenance:
    fields: dict[str, Any] = {
        "labd_version": "0.1.0",
        "python_version": "3.11.7",
        "platform": "Linux-6.1.0-x86_64",
        "packages": {"numpy": "2.4.1", "optuna": "4.9.0", "scikit-learn": "1.9.0"},
        "template": "digits",
        "template_sha256": "ab" * 32,
        "files_sha256": {"experiment.py": "cd" * 32, "template.yaml": "ef" * 32},
        "command": [
            "python",
            "/inputs/template/experiment.py",
            "--params",
            "{params}",
            "--seed",
            "{seed}",
        ],
        "search_seed": 7,
        "trial_seed": 1000,
        "confirm_seeds": list(range(2001, 2011)),
        "started_on": "2026-11-22",
        "task_file": TASK_TEXT,
        "task_sha256": "12" * 32,
    }
    return Provenance(**fields | over)


def make_trials(count: int = 24) -> list[Run]:
    """Give trials of which every eighth crashed; their values go up and down."""
    return [
        make_run(
            f"trial-{i:03}",
            None if i % 8 == 5 else 0.93 + (i * 7 % 24) * 0.0019,
            params={
                "lr": 0.0003 * (i + 1),
                "hidden": 16 + 8 * i,
                "shift": i % 2 == 0,
                "optimiser": "sgd",
            },
        )
        for i in range(count)
    ]


def make_record(**over: Any) -> ResearchRecord:
    """Give the record of a sweep of 24 trials that improved on its baseline."""
    trials = over.get("trials", make_trials())
    statuses = [trial.status for trial in trials]
    counts = {status.value: statuses.count(status) for status in TrialStatus}
    fields: dict[str, Any] = {
        "title": "Handwritten digits",
        "template": "digits",
        "template_title": "A small network reads handwritten digits",
        "template_description": "A network with one hidden layer learns the UCI digits, 8 by 8 pixels each.",
        "researcher": "sweep",
        "metric": Metric(
            name="accuracy", better="higher", description="share of digits named correctly"
        ),
        "space": make_space(),
        "baseline_run": make_run("baseline-000", 0.9512),
        "trials": trials,
        "best_trial": "trial-017",
        "best_params": {"lr": 0.0054, "hidden": 152, "shift": False, "optimiser": "sgd"},
        "confirm_baseline": [
            make_run(f"confirm-baseline-{i:03}", 0.95, seed=2001 + i, split="test")
            for i in range(10)
        ],
        "confirm_best": [
            make_run(f"confirm-best-{i:03}", 0.97, seed=2001 + i, split="test") for i in range(10)
        ],
        "claim": make_claim(),
        "importances": [
            Importance(name="lr", share=0.612, best=0.0054, baseline=0.01),
            Importance(name="hidden", share=0.2381, best=152, baseline=64),
            Importance(name="shift", share=0.1401, best=False, baseline=False),
            Importance(name="optimiser", share=None, best="sgd", baseline="adam"),
        ],
        "counts": counts | {"trials": len(trials), "runs": len(trials) + 21},
        "provenance": make_provenance(),
        "figures": dict(FIGURES),
        "notes": [],
    }
    return ResearchRecord(**fields | over)


def verdict_records() -> dict[str, ResearchRecord]:
    """Give one record for each way in which a sweep can end."""
    nothing: dict[str, Any] = dict.fromkeys(
        (
            "difference",
            "difference_low",
            "difference_high",
            "effect_size",
            "p_value",
            "p_corrected",
        )
    )
    no_best = make_claim(
        verdict="no_improvement",
        reason="No trial beat the baseline on validation.",
        best=None,
        **nothing,
    )
    return {
        "improved": make_record(),
        "no_improvement": make_record(
            claim=make_claim(
                verdict="no_improvement",
                reason="The corrected p-value is not below alpha.",
                best=make_sample(0.9541),
                difference=0.00093,
                difference_low=-0.0021,
                difference_high=0.00397,
                effect_size=0.272,
                p_value=0.5329,
                p_corrected=1.0,
            )
        ),
        "no_trial_better": make_record(
            claim=no_best,
            baseline_run=make_run("baseline-000", 0.9912),
            best_trial=None,
            best_params={"lr": 0.01, "hidden": 64, "shift": False, "optimiser": "adam"},
            confirm_best=[],
        ),
        "worse": make_record(
            claim=make_claim(
                verdict="worse",
                reason="The corrected p-value is below alpha and the difference is in the worse direction.",
                best=make_sample(0.93),
                difference=-0.02317,
                difference_low=-0.02624,
                difference_high=-0.0201,
                effect_size=-6.79,
            )
        ),
        "inconclusive": make_record(
            claim=make_claim(
                verdict="inconclusive",
                reason="Fewer than two runs of the best succeeded.",
                baseline=None,
                best=None,
                **nothing,
            ),
            trials=[make_run(f"trial-{i:03}", None) for i in range(5)],
            best_trial=None,
            best_params={},
            confirm_baseline=[],
            confirm_best=[],
            importances=[],
        ),
        "inconclusive_selected": make_record(
            claim=make_claim(
                verdict="inconclusive",
                reason="No confirming run of the selected trial succeeded.",
                best=None,
                **nothing,
            ),
            confirm_best=[
                make_run(f"confirm-best-{i:03}", None, seed=2001 + i, split="test")
                for i in range(10)
            ],
        ),
        "no_trials": make_record(
            claim=no_best,
            trials=[],
            best_trial=None,
            best_params={},
            confirm_best=[],
            importances=[],
        ),
    }


def draw_figures(results_dir: Path, figures: dict[str, str] | None = None) -> None:
    """Put a real, small plot wherever the record says that there is one."""
    for name, path in (FIGURES if figures is None else figures).items():
        target = results_dir / path
        target.parent.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=(6.4, 3.6), dpi=80)
        axes = figure.subplots()
        axes.plot([0.93, 0.95, 0.96, 0.97], marker="o")
        axes.set_xlabel("trial")
        axes.set_ylabel(name)
        figure.savefig(target, metadata={"Software": None})


def png_bytes(width: int = 40, height: int = 30) -> bytes:
    """Give a grey PNG without a plotting library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\x00" + b"\xc8" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
