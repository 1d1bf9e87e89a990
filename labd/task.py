"""A task: what a task file may say, and the states that its directory gives it. Pure."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from labd.clock import parse_duration
from labd.errors import TaskFileError
from labd.text import printable
from labd.yamlfile import InvalidFile, check, load_yaml

SUFFIXES = (".yaml", ".yml")
MAX_ID_BYTES = 250


class State(StrEnum):
    """Where a task is: the name of its file's directory under the spool."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def decided(self) -> bool:
        """Whether the task has ended, for as long as nobody moves it."""
        return self not in {State.PENDING, State.RUNNING}


Seconds = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(float)]
Role = Literal["ideas", "code", "write", "review"]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
WholeNumber = Annotated[int, Field(strict=True)]
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class TaskSpec(BaseModel):
    """What a task file says. Nothing in it can set the task's id, its paths or its trust."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["research", "command", "prompts"] = "research"
    title: Name | None = None
    template: Name | None = None
    researcher: Literal["sweep", "llm"] | None = None
    model: Name | dict[Role, Name] | None = None
    num_ideas: Annotated[WholeNumber, Field(ge=1, le=1000)] | None = None
    max_runs: Annotated[WholeNumber, Field(ge=1, le=100_000)] | None = None
    num_seeds: Annotated[WholeNumber, Field(ge=10, le=1000)] | None = None
    seed: Annotated[WholeNumber, Field(ge=0, lt=2**31)] = 0
    priority: Annotated[WholeNumber, Field(ge=-1000, le=1000)] = 0
    timeout: Seconds | None = None
    max_retries: Annotated[WholeNumber, Field(ge=0, le=100)] = 2
    num_gpus: Annotated[Amount, Field(ge=0, le=1024)] = 0.0
    num_cpus: Annotated[Amount, Field(gt=0, le=4096)] = 1.0

    @field_validator("kind", "researcher")
    @classmethod
    def _is_built(cls, value: str | None) -> str | None:
        if value in {"command", "prompts", "llm"}:
            msg = f"research or sweep: {value} is a word of the task file, but not built yet in this version"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _whole_task(self) -> "TaskSpec":
        if self.template is None:
            msg = "a template for a research task, such as `template: digits`"
            raise ValueError(msg)
        return self

    @field_validator("num_gpus")
    @classmethod
    def _parts_of_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            msg = "whole GPUs above 1: Ray gives out parts of one GPU only"
            raise ValueError(msg)
        return value

    def warnings(self) -> list[str]:
        """Say which keys have no effect in this task."""
        ignored = [name for name in ("model", "num_ideas") if getattr(self, name) is not None]
        return [
            f"{name}: has no effect with researcher: sweep, which uses no model"
            for name in ignored
        ]


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task file that was read and found valid."""

    spec: TaskSpec
    text: str
    sha256: str


def parse_task(raw: bytes, name: str) -> TaskFile:
    """Read a task file's bytes.

    Raises:
        TaskFileError: with every problem on a line of its own, each with file, line and column.

    """
    try:
        spec = check(TaskSpec, load_yaml(raw))
    except InvalidFile as error:
        shown = printable(name)
        lines = [problem.located(shown) for problem in error.problems[:20]]
        raise TaskFileError("\n".join(lines)) from error
    return TaskFile(spec, raw.decode("utf-8-sig"), hashlib.sha256(raw).hexdigest())


def is_task_name(name: str) -> bool:
    """Say whether a file of this name is meant as a task: ``*.yaml`` or ``*.yml``, not hidden or temporary."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def task_id(name: str) -> str:
    """Give the id that a file name stands for: its stem."""
    return PurePath(name).stem


def name_problem(name: str) -> str:
    """Say why a file of this name can't be a task, or give an empty text."""
    if any(0xDC80 <= ord(char) <= 0xDCFF for char in name):
        return "the file's name is not UTF-8; rename it"
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "the file's name holds control characters; rename it"
    if len(name.encode()) > MAX_ID_BYTES + len(".yaml"):
        return f"the file's name is longer than {MAX_ID_BYTES + len('.yaml')} bytes; rename it"
    return ""


def check_name(name: str) -> None:
    """Pass if a file of this name can be a task.

    Raises:
        TaskFileError: it can't; the text says what to do.

    """
    if problem := name_problem(name):
        raise TaskFileError(problem, where=printable(name))


def numbered(name: str, number: int) -> str:
    """Give the name of the `number`-th file of that name: ``x.yaml``, ``x-2.yaml``, ``x-3.yaml``, …, at most 255 bytes."""
    if number < 2:
        return name
    path = PurePath(name)
    tail = f"-{number}{path.suffix}"
    stem = path.stem.encode()[: 255 - len(tail.encode())].decode(errors="ignore")
    return stem + tail
