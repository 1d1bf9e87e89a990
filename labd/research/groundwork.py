"""What every research task begins with: what is asked of it, where its seeds come from, and the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd.errors import ConfigError, ResearchError
from labd.journal import Journal
from labd.research.bench import Bench, Job
from labd.research.provenance import fresh_provenance
from labd.research.record import Provenance, Run
from labd.template import MIN_CONFIRM_SEEDS, Template, missing_requirements


@dataclass(frozen=True, slots=True)
class Brief:
    """What is asked of a research task.

    Raises:
        ConfigError: a number is out of its range.

    """

    task_id: str
    template: Template
    task_text: str
    task_sha256: str
    num_trials: int
    num_confirm_seeds: int
    seed: int = 0
    parallel: int = 1
    """Runs at once. Has no influence on what is found."""
    title: str | None = None
    """``None``: the template's."""
    deadline: float | None = None
    """In `time.monotonic` seconds; the search ends early enough to confirm what it has."""
    spent_s: float = 0.0
    """Of the time until the deadline, what earlier attempts have used."""
    gpus: tuple[int, ...] = ()
    """Indices of the GPUs that the runs may share out."""

    def __post_init__(self) -> None:
        least = {"num_trials": 1, "num_confirm_seeds": MIN_CONFIRM_SEEDS, "parallel": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}, and {low} is the least")


def check_means(template: Template) -> None:
    """Pass if labd's Python has what the template needs.

    Raises:
        ResearchError: a module is missing.

    """
    missing = missing_requirements(template)
    if missing:
        raise ResearchError(
            f"the template needs Python modules that are not installed: {', '.join(missing)}",
            where=str(template.directory),
            fix="Install them into the environment that labd runs in",
        )


def recorded_provenance(brief: Brief, journal: Journal) -> Provenance:
    """Give what the first attempt recorded, so that date and seeds stay what they were."""
    inputs = {
        "template": brief.template.sha256,
        "seed": brief.seed,
        "num_confirm_seeds": brief.num_confirm_seeds,
        "task": brief.task_sha256,
    }

    def fresh() -> dict[str, Any]:
        return fresh_provenance(
            brief.template,
            seed=brief.seed,
            num_confirm_seeds=brief.num_confirm_seeds,
            task_text=brief.task_text,
            task_sha256=brief.task_sha256,
        ).model_dump(mode="json")

    return Provenance.model_validate(journal.step("provenance", inputs, fresh))


def run_baseline(bench: Bench, provenance: Provenance) -> Run:
    """Run the template as it is, on validation and with the seed of the trials.

    Raises:
        ResearchError: it gave no value, so that nothing can be compared with it.

    """
    job = Job("baseline-000", bench.template.baseline, provenance.trial_seed, "validation")
    run = bench.one(job, stage="baseline")
    if run.value is None:
        raise baseline_failed([run], bench.results_dir)
    return run


def baseline_failed(runs: Sequence[Run], results_dir: Path) -> ResearchError:
    """Give the error of a baseline whose `runs` all gave no value."""
    first = runs[0]
    return ResearchError(
        f"the baseline gave no value on {first.split} ({len(runs)} of {len(runs)} runs): {first.reason}",
        where=str(results_dir / first.directory / "log.txt"),
        fix="Make the template's command work with the baseline's parameters",
    )
