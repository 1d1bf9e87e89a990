"""The form of `template.yaml`: what it may say, and with which words a wrong one is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator

from labd.clock import parse_duration
from labd.fields import METRIC_NAME
from labd.template.files import digest
from labd.template.model import (
    INPUTS,
    MAX_GUIDANCE_CHARS,
    TEMPLATE_DIR,
    DataPlace,
    Metric,
    Param,
    ParamSpec,
    Scale,
    Style,
    Template,
)

FILE_NAME = "template.yaml"
MIN_CONFIRM_SEEDS = 10
"""Fewer runs than this can't carry a claim, so nobody may ask for fewer."""
_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ANY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_WORD = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
_VARIABLE = r"^[A-Z_][A-Z0-9_]{0,63}$"
# Places below /inputs that a run has anyway.
_TAKEN = ("template", "run")

_Name = Annotated[str, Field(pattern=_NAME)]
_Word = Annotated[str, Field(pattern=_WORD)]
_Text = Annotated[str, Field(min_length=1, max_length=4000)]
_Title = Annotated[str, Field(min_length=1, max_length=200)]
_Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Command = Annotated[
    list[Annotated[str, Field(max_length=4000)]], Field(min_length=1, max_length=200)
]
_Cpus = Annotated[int, Field(ge=1, le=1024)]
_Gpus = Annotated[int, Field(ge=0, le=64)]
_Memory = Annotated[ByteSize, Field(ge=2**20)]
_Trials = Annotated[int, Field(ge=1, le=10_000)]
_Confirm = Annotated[int, Field(ge=MIN_CONFIRM_SEEDS, le=1000)]
_HostPath = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00]+$")]
_Paths = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=50)]
_Data = Annotated[dict[_Name, _HostPath], Field(max_length=20)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Metric(_Strict):
    name: _Word
    better: Literal["higher", "lower"]
    description: _Text


class _Parameter(_Strict):
    type: Literal["float", "int", "categorical"]
    low: _Finite | None = None
    high: _Finite | None = None
    log: bool = False
    choices: list[bool | int | _Finite | Annotated[str, Field(max_length=100)]] | None = None
    description: Annotated[str, Field(max_length=4000)] = ""
    baseline: bool | int | _Finite | Annotated[str, Field(max_length=100)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problem = _choices_problem(self) if self.type == "categorical" else _range_problem(self)
        if problem:
            raise ValueError(problem)
        return self

    def spec(self, name: str) -> ParamSpec:
        """Give the parameter as a row of the record's search space, with floats as floats."""
        fields = self.model_dump()
        if self.type == "float":
            fields["baseline"] = float(self.baseline)
        return ParamSpec(name=name, **fields)


def _choices_problem(parameter: _Parameter) -> str:
    choices = parameter.choices or []
    if (parameter.low, parameter.high, parameter.log) != (None, None, False):
        return "choices only: low, high and log belong to the types float and int"
    if not 2 <= len(choices) <= 100:
        return "two to a hundred choices"
    # 1, 1.0 and true are equal here as they are in a search, where they could not be told apart.
    if len(set(choices)) != len(choices):
        return "choices that differ from each other"
    if not any(_same(parameter.baseline, choice) for choice in choices):
        return "a baseline that is one of the choices"
    return ""


def _same(one: Param, other: Param) -> bool:
    return type(one) is type(other) and one == other


def _range_problem(parameter: _Parameter) -> str:
    low, high, baseline = parameter.low, parameter.high, parameter.baseline
    if parameter.choices is not None:
        return "low and high: choices belong to the type categorical"
    if low is None or high is None or not low < high:
        return "low and high, with low below high"
    if parameter.log and low <= 0:
        return "low above zero, because the scale is logarithmic"
    if isinstance(baseline, bool | str) or not low <= baseline <= high:
        return "a baseline that is a number from low to high"
    whole = all(float(value).is_integer() for value in (low, high))
    if parameter.type == "int" and not (isinstance(baseline, int) and whole and abs(high) < 2**53):
        return "whole numbers, because the type is int"
    return ""


class _Scale(_Strict):
    env: Annotated[
        dict[Annotated[str, Field(pattern=_VARIABLE)], str | int | _Finite], Field(max_length=100)
    ] = {}
    time_limit: _Seconds | None = None
    memory: _Memory | None = None
    cpus_per_run: _Cpus | None = None
    gpus_per_run: _Gpus | None = None

    def scale(self, whole: "TemplateFile") -> Scale:
        """Give the size, with what it does not say as the template says it."""
        return Scale(
            env={name: str(value) for name, value in self.env.items()},
            time_limit_s=self.time_limit or whole.time_limit,
            memory_bytes=int(self.memory or whole.memory),
            cpus_per_run=self.cpus_per_run or whole.cpus_per_run,
            gpus_per_run=whole.gpus_per_run if self.gpus_per_run is None else self.gpus_per_run,
        )


class _WithData(_Strict):
    data: _Data = {}

    @model_validator(mode="after")
    def _places_are_free(self) -> Self:
        taken = [name for name in self.data if name in _TAKEN]
        if taken:
            msg = f"other names below data: {INPUTS}/{taken[0]} is what a run has anyway"
            raise ValueError(msg)
        return self

    def places(self) -> dict[str, DataPlace]:
        """Give what `data` names."""
        return {name: DataPlace(path) for name, path in self.data.items()}


class TemplateFile(_WithData):
    """A template in labd's own form."""

    name: _Name
    title: _Title
    description: _Text
    guidance: Annotated[str, Field(max_length=MAX_GUIDANCE_CHARS)] = ""
    command: _Command
    evaluate: _Command | None = None
    metric: _Metric
    time_limit: _Seconds
    cpus_per_run: _Cpus = 1
    gpus_per_run: _Gpus = 0
    memory: _Memory = ByteSize(2 * 2**30)
    splits: bool = True
    seeds: bool = True
    curves: bool = False
    search_space: Annotated[dict[_Word, _Parameter], Field(min_length=1, max_length=50)] | None = (
        None
    )
    scale: Annotated[dict[_Name, _Scale], Field(max_length=20)] = {}
    num_trials: _Trials
    num_confirm_seeds: _Confirm = MIN_CONFIRM_SEEDS
    requirements: list[_Word] = []
    editable: _Paths = []
    private: _Paths = []

    @model_validator(mode="after")
    def _something_can_change(self) -> Self:
        if not self.search_space and not self.editable:
            raise ValueError("search_space, or editable files, so that there is something to try")
        return self

    @model_validator(mode="after")
    def _commands_are_whole(self) -> Self:
        by_need = {"{params}": bool(self.search_space), "{seed}": self.seeds}
        by_need |= {"{split}": self.splits, "{out_dir}": True}
        needed = [holder for holder, need in by_need.items() if need]
        _refuse_missing("a command", self.command, needed)
        if self.evaluate is not None:
            split = ["{split}"] if self.splits else []
            _refuse_missing("an evaluation", self.evaluate, ["{run_dir}", "{out_dir}", *split])
            _refuse_edited(self.evaluate, self.editable)
        elif self.private:
            raise ValueError("an evaluation, which alone sees private files")
        both = sorted(set(self.private) & set(self.editable))
        if both:
            msg = f"a file that is private or editable, and not both: {both[0]}"
            raise ValueError(msg)
        return self

    def template(self, directory: Path, files: Mapping[str, str]) -> Template:
        """Give the template that the file and its directory make."""
        return Template(
            name=self.name,
            title=self.title,
            description=self.description,
            guidance=self.guidance,
            command=tuple(self.command),
            evaluate=tuple(self.evaluate or ()),
            metric=Metric(**self.metric.model_dump()),
            time_limit_s=self.time_limit,
            cpus_per_run=self.cpus_per_run,
            gpus_per_run=self.gpus_per_run,
            memory_bytes=int(self.memory),
            has_splits=self.splits,
            has_seeds=self.seeds,
            curves=self.curves,
            space=tuple(one.spec(name) for name, one in (self.search_space or {}).items()),
            scales={name: one.scale(self) for name, one in self.scale.items()},
            data=self.places(),
            num_trials=self.num_trials,
            num_confirm_seeds=self.num_confirm_seeds,
            requirements=tuple(self.requirements),
            editable=tuple(self.editable),
            private=tuple(self.private),
            directory=directory,
            sha256=digest(files),
            files_sha256=files,
        )


def _refuse_missing(what: str, command: Sequence[str], needed: Sequence[str]) -> None:
    joined = "\n".join(command)
    missing = [holder for holder in needed if holder not in joined]
    if missing:
        msg = f"{what} that holds {', '.join(missing)}, so that runs can differ and be measured"
        raise ValueError(msg)


def _refuse_edited(evaluate: Sequence[str], editable: Sequence[str]) -> None:
    words = {word.removeprefix(f"{TEMPLATE_DIR}/") for word in evaluate}
    both = sorted(words & set(editable))
    if both:
        msg = f"an evaluation that nobody may change: {both[0]} is under editable as well"
        raise ValueError(msg)


class _ForeignMetric(_Metric):
    name: Annotated[str, Field(pattern=METRIC_NAME)]


class AdapterFile(_WithData):
    """What a `template.yaml` may say beside another system's experiment: that it is one, and what differs."""

    adapter: Literal["ai_scientist", "autoresearch"]
    title: _Title | None = None
    description: _Text | None = None
    metric: _ForeignMetric | None = None
    time_limit: _Seconds | None = None
    cpus_per_run: _Cpus | None = None
    gpus_per_run: _Gpus | None = None
    memory: _Memory | None = None
    num_trials: _Trials | None = None
    num_confirm_seeds: _Confirm | None = None
    requirements: list[_Word] | None = None

    @property
    def style(self) -> Style:
        """The system whose directory it is."""
        return self.adapter

    def changes(self) -> dict[str, Any]:
        """Give what it says as fields of a `Template`."""
        said: dict[str, Any] = {
            "title": self.title,
            "description": self.description,
            "metric": None if self.metric is None else Metric(**self.metric.model_dump()),
            "time_limit_s": self.time_limit,
            "cpus_per_run": self.cpus_per_run,
            "gpus_per_run": self.gpus_per_run,
            "memory_bytes": None if self.memory is None else int(self.memory),
            "num_trials": self.num_trials,
            "num_confirm_seeds": self.num_confirm_seeds,
            "requirements": None if self.requirements is None else tuple(self.requirements),
            "data": self.places() or None,
        }
        return {name: value for name, value in said.items() if value is not None}
