"""What a campaign file may say, and reading one with the place of everything that is wrong. Pure."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from labd.campaigns.schedule import read_cron
from labd.errors import ConfigError
from labd.fields import Amount, Name, Seconds, Switch, WholeNumber, moment
from labd.task import TaskSpec
from labd.text import printable
from labd.yamlfile import Document, InvalidFile, Place, Problem, check, load_yaml

MAX_TASKS = 10_000
"""Of one firing."""
FILL = "fill"
"""What stands for the step in the ids of tasks that the adaptive queue adds."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9._]|-(?!-)){0,59}")
_OWN_KEYS = frozenset({"priority", "labels"})

_At = tuple[str | int, ...]


class Intensity(StrEnum):
    """How much of the lab a step takes: ideas in each task that a model researches, and tasks at once."""

    LIGHT = "light"
    MEDIUM = "medium"
    HEAVY = "heavy"
    EXTREME = "extreme"

    @property
    def num_ideas(self) -> int:
        """Ideas of each task, where a language model has them and the file does not say."""
        return {"light": 2, "medium": 4, "heavy": 8, "extreme": 16}[self.value]

    @property
    def parallel(self) -> int:
        """Tasks of the step that wait to start or run at once."""
        return {"light": 1, "medium": 2, "heavy": 4, "extreme": 16}[self.value]


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or value == FILL:
        msg = f"a name of a-z, 0-9, ., _ and single -, up to 60 long, and not {FILL}"
        raise ValueError(msg)
    return value


def _zone(value: object) -> object:
    try:
        return ZoneInfo(str(value)).key
    except (KeyError, ValueError, OSError):
        msg = "a time zone's name, such as Europe/Berlin or UTC"
        raise ValueError(msg) from None


Cron = Annotated[str, AfterValidator(read_cron)]
StepName = Annotated[str, AfterValidator(_name)]
Priority = Annotated[WholeNumber, Field(ge=-1000, le=1000)]
Values = Annotated[list[Any], Field(min_length=1, max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Part):
    """How far a campaign may go."""

    max_queued: Annotated[WholeNumber, Field(ge=1, le=100_000)] = 20
    """Tasks of it that wait; the rest of a firing follows as they start."""
    max_running: Annotated[WholeNumber, Field(ge=1, le=100_000)] | None = None
    """Tasks of it that wait or run: so never more of it run. Absent: what the intensity says."""
    max_gpu_hours: Annotated[Amount, Field(gt=0)] | None = None
    """Of its tasks that ended in the last seven days, and of those that wait or run, as they are expected to take."""


class Adaptive(_Part):
    """Keeping the lab busy with a campaign's tasks, as far as the machines' load allows."""

    exploration: Annotated[Amount, Field(gt=0, le=1)] = 0.1
    """The share of the tasks that is given out evenly, whatever has paid off."""
    lasts: Seconds | None = None
    """How long after each firing it goes on; absent: always, or until the step that winds down."""


class Work(_Part):
    """What to submit, and when; a step of a campaign, or all that it does."""

    schedule: Cron | None = None
    task: dict[str, Any] = Field(default_factory=dict)
    """Keys of each task."""
    matrix: Annotated[dict[str, Values], Field(max_length=20)] = Field(default_factory=dict)
    """Values of keys of the tasks; one task for each combination."""
    intensity: Intensity | None = None
    priority: Priority | None = None
    report: Switch = False
    """Whether a report is due when it fires."""
    wind_down: Switch = False
    """Whether it ends what the campaign does: tasks that wait are cancelled, nothing is added."""


class CampaignFile(Work):
    """All of a campaign file; unknown keys are errors."""

    enabled: Switch = True
    title: Name | None = None
    time_zone: Annotated[str, BeforeValidator(_zone)] = "UTC"
    missed: Literal["once", "skip"] = "once"
    """What becomes of a firing while no daemon ran."""
    missed_within: Seconds = 86_400.0
    """How late it may run, where missed ones do."""
    until: Annotated[datetime, BeforeValidator(moment)] | None = None
    """From when on nothing fires any more."""
    limits: Limits = Limits()
    adaptive: Adaptive | None = None
    steps: Annotated[dict[StepName, Work], Field(max_length=50)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _does_something(self) -> "CampaignFile":
        if not (self.schedule or self.steps or self.adaptive):
            msg = "a `schedule`, `steps` or `adaptive`, which say when it does something"
            raise ValueError(msg)
        if self.schedule and self.steps:
            msg = "either a `schedule` of its own, or `steps` that each have one"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a campaign does at its instants. `name` is empty where the campaign has no steps.

    `combinations` are the keys of each of its tasks.
    """

    name: str
    cron: str | None
    combinations: tuple[Mapping[str, Any], ...]
    intensity: Intensity
    report: bool
    wind_down: bool


@dataclass(frozen=True)
class Campaign:
    """A campaign that was read and found valid. `adaptive` names the tasks that it may add to the queue."""

    name: str
    spec: CampaignFile
    steps: tuple[Step, ...]
    pool: tuple[Mapping[str, Any], ...]
    sha256: str

    @property
    def label(self) -> str:
        """The label that each of its tasks has."""
        return f"campaign:{self.name}"

    @cached_property
    def zone(self) -> ZoneInfo:
        """Where its clock hangs."""
        return ZoneInfo(self.spec.time_zone)

    @property
    def startable(self) -> tuple[Step, ...]:
        """The steps that have tasks, which somebody may start by hand; where none has, the adaptive queue's as one step."""
        steps = tuple(step for step in self.steps if step.combinations)
        if steps or not self.pool:
            return steps
        return (Step(FILL, None, self.pool, Intensity.MEDIUM, report=False, wind_down=False),)

    @property
    def prefix(self) -> str:
        """How the ids of its tasks begin, and no others."""
        return f"{self.name}--"

    def step(self, name: str) -> Step | None:
        """Give the step of this name."""
        return next((step for step in self.steps if step.name == name), None)


def parse_campaign(raw: bytes, stem: str, where: str) -> Campaign:
    """Read the campaign file `where`, whose name without its ending is `stem`.

    Raises:
        ConfigError: with every problem on a line of its own, each with file, line and column.

    """
    try:
        spec, steps, pool = _read(raw, stem)
    except InvalidFile as error:
        shown = printable(where)
        raise ConfigError("\n".join(p.located(shown) for p in error.problems[:20])) from error
    return Campaign(stem, spec, steps, pool, hashlib.sha256(raw).hexdigest())


def _read(
    raw: bytes, stem: str
) -> tuple[CampaignFile, tuple[Step, ...], tuple[Mapping[str, Any], ...]]:
    document = load_yaml(raw)
    spec = check(CampaignFile, document)
    if not _NAME.fullmatch(stem):
        found = f"the file is named {printable(stem, 80)!r}"
        wanted = "a name of a-z, 0-9, ., _ and single -, up to 60 long"
        raise InvalidFile([Problem(Place(1, 1), "", found, wanted)])
    reader = _Reader(stem, spec, document)
    steps, pool = reader.steps(), reader.pool()
    if reader.problems:
        raise InvalidFile(reader.problems)
    return spec, steps, pool


class _Reader:
    """Makes the combinations of each step, and collects what is wrong with them."""

    def __init__(self, name: str, spec: CampaignFile, document: Document) -> None:
        self._name, self._spec, self._document = name, spec, document
        self.problems: list[Problem] = []
        self._said: set[_At] = set()

    def steps(self) -> tuple[Step, ...]:
        spec = self._spec
        if spec.steps:
            return tuple(
                self._step(name, work, ("steps", name)) for name, work in spec.steps.items()
            )
        return (self._step("", spec, ()),) if spec.schedule and not spec.adaptive else self._bare()

    def _bare(self) -> tuple[Step, ...]:
        """Give the step of an adaptive campaign: it opens the time in which tasks are added, and has none itself."""
        spec = self._spec
        if spec.schedule is None:
            return ()
        level = spec.intensity or Intensity.MEDIUM
        return (Step("", spec.schedule, (), level, spec.report, spec.wind_down),)

    def pool(self) -> tuple[Mapping[str, Any], ...]:
        """Give what an adaptive campaign may add."""
        if self._spec.adaptive is None:
            return ()
        return tuple(self._combinations(self._spec, (), self._spec.intensity))

    def _step(self, name: str, work: Work, at: tuple[str, ...]) -> Step:
        spec = self._spec
        if name and work.schedule is None:
            self._wrong((*at, "schedule"), "the key is missing", "a cron line")
        level = work.intensity or spec.intensity
        idle = (work.report or work.wind_down) and not (work.task or work.matrix)
        found = () if idle else tuple(self._combinations(work, at, level))
        level = level or Intensity.MEDIUM
        return Step(name, work.schedule, found, level, work.report, work.wind_down)

    def _combinations(
        self, work: Work, at: tuple[str, ...], level: Intensity | None
    ) -> Iterator[dict[str, Any]]:
        matrix = work.matrix or self._spec.matrix
        matrix_at = (*at, "matrix") if work.matrix else ("matrix",)
        number = 1
        for values in matrix.values():
            number *= len(values)
        if number > MAX_TASKS:
            self._wrong(matrix_at, f"{number} combinations", f"at most {MAX_TASKS}")
            return
        for key in matrix.keys() & _OWN_KEYS:
            self._wrong((*matrix_at, key), f"found {key}", "another key: this is the campaign's")
        for picked in itertools.product(*(range(len(values)) for values in matrix.values())):
            chosen = dict(zip(matrix, picked, strict=True))
            keys = self._keys(work, {k: matrix[k][i] for k, i in chosen.items()}, level)
            self._check(keys, at, matrix_at, chosen)
            yield keys

    def _keys(
        self, work: Work, picked: Mapping[str, Any], level: Intensity | None
    ) -> dict[str, Any]:
        spec = self._spec
        merged = {**spec.task, **work.task, **picked}
        keys = {key: value for key, value in merged.items() if value is not None}
        priority = spec.priority if work.priority is None else work.priority
        if priority is not None:
            keys["priority"] = priority
        labels = keys.get("labels", [])
        labels = [labels] if isinstance(labels, str) else labels
        keys["labels"] = (
            [*labels, f"campaign:{self._name}"] if isinstance(labels, list) else labels
        )
        by_model = keys.get("kind", "research") == "research" and (
            keys.get("researcher") == "llm" or ("researcher" not in keys and "model" in keys)
        )
        if level is not None and by_model:
            keys.setdefault("num_ideas", level.num_ideas)
        return keys

    def _check(
        self,
        keys: Mapping[str, Any],
        at: _At,
        matrix_at: _At,
        chosen: Mapping[str, int],
    ) -> None:
        """Say once for each place what is wrong with a task."""
        try:
            TaskSpec.model_validate(dict(keys))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                key = str(item["loc"][0]) if item["loc"] else ""
                if key in chosen:
                    place: _At = (*matrix_at, key, chosen[key])
                else:
                    own = (*at, "task", *item["loc"])
                    place = own if own[: len(at) + 2] in self._document.places else own[len(at) :]
                self._wrong(place, *_found_and_wanted(item))

    def _wrong(self, at: _At, found: str, wanted: str) -> None:
        if at in self._said:
            return
        self._said.add(at)
        shown = printable(".".join(str(part) for part in at), 100)
        self.problems.append(Problem(self._document.place(at), shown, found, wanted))


def _found_and_wanted(item: Any) -> tuple[str, str]:
    if item["type"] == "extra_forbidden":
        near = get_close_matches(str(item["loc"][-1]), TaskSpec.model_fields, 1)
        return "unknown key", "a key of a task" + (f", such as {near[0]}" if near else "")
    wanted = str(item["msg"])
    for start in ("Value error, ", "Input should be "):
        wanted = wanted.removeprefix(start)
    found = printable(repr(item["input"]), 80) if item["loc"] else "a task that is not whole"
    return f"found {found}", wanted
