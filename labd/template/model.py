"""What a template is once it has been read, as data, and how its commands are filled in. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

from labd.errors import ConfigError

PLACEHOLDERS = ("{params}", "{seed}", "{split}", "{out_dir}", "{run_dir}")
MAX_GUIDANCE_CHARS = 20_000
INPUTS = "/inputs"
"""Where the sandbox of a run has a template's data: each below its name."""
RUN_DIR = f"{INPUTS}/run"
"""Where the evaluation sees what the run left behind."""
TEMPLATE_DIR = f"{INPUTS}/template"

Param = bool | int | FiniteFloat | str
Style = Literal["labd", "ai_scientist", "autoresearch"]
"""How a run is started and where its numbers are found: by ``template.yaml``, or as another system's directory."""
Better = Literal["higher", "lower"]


class Record(BaseModel):
    """Base of all records: frozen, strict about names, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(Record):
    """A metric and which way is better."""

    name: str
    """Empty where the first run of the baseline has to say what there is."""
    better: Better
    description: str = ""


class ParamSpec(Record):
    """One row of the search space."""

    name: str
    type: Literal["float", "int", "categorical"]
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    log: bool = False
    choices: list[Param] | None = None
    description: str = ""
    baseline: Param


@dataclass(frozen=True, slots=True)
class Scale:
    """One size in which an experiment can be run."""

    env: Mapping[str, str]
    """Variables of the run's environment."""
    time_limit_s: float
    memory_bytes: int
    cpus_per_run: int
    gpus_per_run: int


@dataclass(frozen=True, slots=True)
class DataPlace:
    """A file or directory of the host that runs may read, as the template names it."""

    path: str
    """Absolute, or looked for below each of the lab's places for inputs."""
    optional: bool = False
    """Whether a run may go on without it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where another system's experiment expects to lie and to write; places in a run's own directory."""

    directory: str
    """Where its files go, as copies that it may write over, and where the command starts."""
    out_dir: str
    """As the command is told it: from `directory`."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Place to name of the data that is seen there."""
    env: Mapping[str, str] = field(default_factory=dict)


class SeedIdea(Record):
    """An idea that a template brings along."""

    title: str
    experiment: str


@dataclass(frozen=True, slots=True)
class Template:
    """An experiment that can be run, as its `template.yaml` states it, or another system's directory."""

    name: str
    title: str
    description: str
    """For the paper's reader."""
    command: tuple[str, ...]
    """With the placeholders of `PLACEHOLDERS` still in it."""
    metric: Metric
    time_limit_s: float
    """Of one run, wall-clock; of its evaluation as well."""
    cpus_per_run: int
    gpus_per_run: int
    memory_bytes: int
    space: tuple[ParamSpec, ...]
    """In the order of the file; empty where nothing is declared that could be searched."""
    num_trials: int
    num_confirm_seeds: int
    requirements: tuple[str, ...]
    """Modules that the command must be able to import."""
    directory: Path
    sha256: str
    """Over the sorted names and contents of all files."""
    files_sha256: Mapping[str, str]
    """Path inside the template to the SHA-256 of the file."""
    editable: tuple[str, ...] = ()
    """Paths of the files that a language model may change; all others stay as they are."""
    style: Style = "labd"
    guidance: str = ""
    """For whoever changes the experiment, beyond the description; up to `MAX_GUIDANCE_CHARS`."""
    evaluate: tuple[str, ...] = ()
    """A command that measures what `command` left, where no changed file is; empty: `command` measures itself."""
    private: tuple[str, ...] = ()
    """Files that only the evaluation sees, such as the answers of the test split."""
    curves: bool = False
    """Whether the command appends to ``{out_dir}/curves.jsonl`` while it runs, an object with a ``step`` a line."""
    has_splits: bool = True
    """Whether validation and test are two different things; where not, both names mean the same run."""
    has_seeds: bool = True
    """Whether a seed is taken; where not, another seed means the same run again."""
    data: Mapping[str, DataPlace] = field(default_factory=dict)
    """By name what is to be seen at ``/inputs/<name>``."""
    mounts: Mapping[str, Path] | None = None
    """Where on this machine the data lies; ``None``: nobody has looked, see `labd.template.with_data`."""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """The first is the one that is used unless another is asked for."""
    scale: str = ""
    """The one that was chosen, see `scaled`."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the run's environment."""

    @property
    def baseline(self) -> dict[str, Param]:
        """The parameters that everything is compared with."""
        return {spec.name: spec.baseline for spec in self.space}

    @property
    def cautions(self) -> list[str]:
        """What a reader must know of results that come from this template, a sentence each."""
        found = []
        if self.editable and not self.evaluate:
            found.append(
                "The file that was changed also reports the metric, so that a change of the report "
                "can't be told from a change of the result except by reading the code."
            )
        if not self.has_splits:
            found.append(
                "The experiment has no test split of its own: selection and confirmation measured "
                "on the same data, so that the difference may be overstated."
            )
        if not self.has_seeds:
            found.append(
                "The experiment takes no seed: confirmation repeats the same run, so that the "
                "interval shows how much repetitions differ and not how much seeds do."
            )
        return found


def with_metric(template: Template, name: str, better: Better) -> Template:
    """Give the template with another metric, as a task may ask for one that the experiment writes."""
    same = name == template.metric.name
    description = template.metric.description if same else "as named by the task"
    return replace(template, metric=Metric(name=name, better=better, description=description))


def scaled(template: Template, name: str) -> Template:
    """Give the template in one of its sizes, by name.

    Raises:
        ConfigError: it has no such size.

    """
    if name not in template.scales:
        raise ConfigError(
            f"the template {template.name} has no scale {name!r}",
            where="scale",
            fix=f"It has: {', '.join(template.scales) or 'none'}",
        )
    scale = template.scales[name]
    return replace(
        template,
        scale=name,
        env=scale.env,
        time_limit_s=scale.time_limit_s,
        memory_bytes=scale.memory_bytes,
        cpus_per_run=scale.cpus_per_run,
        gpus_per_run=scale.gpus_per_run,
    )


def fill_command(
    template: Template, *, params: str, seed: int, split: str, out_dir: str
) -> list[str]:
    """Give the template's command with the placeholders filled in; all other braces stay as they are."""
    return _filled(template.command, (params, str(seed), split, out_dir))


def fill_evaluate(
    template: Template, *, params: str, seed: int, split: str, out_dir: str
) -> list[str]:
    """Give the command that evaluates a run, with the placeholders filled in."""
    return _filled(template.evaluate, (params, str(seed), split, out_dir, RUN_DIR))


def _filled(command: Sequence[str], values: Sequence[str]) -> list[str]:
    by_holder = dict(zip(PLACEHOLDERS, values, strict=False))
    pattern = re.compile("|".join(map(re.escape, by_holder)))
    return [pattern.sub(lambda match: by_holder[match.group()], part) for part in command]
