"""A task: what a task file may say, and the states that its directory gives it. Pure."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from labd.errors import TaskFileError
from labd.fields import (
    METRIC_NAME,
    Amount,
    AnyPath,
    Globs,
    HostPath,
    InputName,
    Labels,
    Language,
    Line,
    Moment,
    Name,
    Seconds,
    Stops,
    Switch,
    Text,
    Thinking,
    Variable,
    WholeNumber,
    Words,
    distinct,
    json_data,
    matching,
    one_or_many,
    patience,
    read_text,
)
from labd.limits import TaskLimits
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


Role = Literal["ideas", "code", "write", "review"]
_KEYS_OF: Mapping[str, tuple[str, ...]] = {
    "research": (
        *("template", "researcher", "model", "num_ideas", "max_runs", "num_seeds", "metric"),
        "scale",
        *("search", "control", "max_tokens_total", "max_hours"),
        *("num_reviews", "improve", "language"),
        "num_nodes",
    ),
    "command": ("run", "env", "workdir", "inputs", "outputs", "network"),
    "prompts": ("input", "model", "system", "template", "reply_schema", "options", "max_errors"),
}
"""Which keys a kind has beside those that all have."""
_MAX_SCHEMA_BYTES = 64 * 1024
_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
# What a request holds beside options. An option of one of these names would replace it.
_REQUESTS_OWN = frozenset(
    {
        "messages",
        "prompt",
        "stream",
        "format",
        "response_format",
        "keep_alive",
        "truncate",
        "shift",
    }
    | {"max_tokens", "max_completion_tokens", "n", "stream_options", "reasoning_effort"}
)


def _task_reference(value: str) -> str:
    name = value if value.endswith(SUFFIXES) else value + SUFFIXES[0]
    if "/" in name or not is_task_name(name) or name_problem(name):
        msg = "a task's id, such as `train` or `train.yaml`"
        raise ValueError(msg)
    return task_id(name)


def _name_or_prompt(
    value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> str:
    """Take a name, or in a task of prompts the text of a prompt."""
    return read_text(value) if info.data.get("kind") == "prompts" else str(handler(value))


def _servers_own(name: str) -> str:
    if name in PromptOptions.model_fields or name == "model" or name in _REQUESTS_OWN:
        msg = "an option of the server's own; labd sets this one itself"
        raise ValueError(msg)
    return name


Reference = Annotated[Text, AfterValidator(_task_reference)]


_LLM_ONLY = (
    *("model", "num_ideas", "search", "control", "max_tokens_total"),
    *("num_reviews", "improve", "language"),
)
"""Keys of a research task that only a language model's research heeds."""


class MetricChoice(BaseModel):
    """What a research task is to go by, where its template leaves that open or means something else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=METRIC_NAME)]
    better: Literal["higher", "lower"]


class PromptOptions(BaseModel):
    """How replies are made: `labd.llm.model.Options` says what each is. Absent: its default there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_ctx: Annotated[WholeNumber, Field(ge=128, le=10_000_000)] | None = None
    num_predict: Annotated[WholeNumber, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[Amount, Field(ge=0, le=10)] | None = None
    top_p: Annotated[Amount, Field(gt=0, le=1)] | None = None
    top_k: Annotated[WholeNumber, Field(ge=0, le=1_000_000)] | None = None
    seed: Annotated[WholeNumber, Field(ge=0, lt=2**31)] | None = None
    stop: Stops | None = None
    think: Thinking | None = None
    allow_cut: Switch | None = None
    more: (
        Annotated[
            dict[
                Annotated[
                    str,
                    AfterValidator(matching(_OPTION, "an option's name")),
                    AfterValidator(_servers_own),
                ],
                Any,
            ],
            Field(max_length=100),
            AfterValidator(json_data(10_000)),
        ]
        | None
    ) = None
    """Further options by the server's own names."""


class TaskSpec(BaseModel):
    """What a task file says. Nothing in it can set the task's id, its paths or its trust."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["research", "command", "prompts"] = "research"
    title: Name | None = None
    template: Annotated[Name, WrapValidator(_name_or_prompt)] | None = None
    """The name of a research template, or in a task of prompts the Jinja text of the prompt."""
    researcher: Literal["sweep", "llm"] | None = None
    model: Name | dict[Role, Name | tuple[Name, ...]] | None = None
    """One for all roles, or one for each; for reviews also several, which take turns."""
    num_ideas: Annotated[WholeNumber, Field(ge=1, le=1000)] | None = None
    max_runs: Annotated[WholeNumber, Field(ge=1, le=100_000)] | None = None
    num_seeds: Annotated[WholeNumber, Field(ge=10, le=1000)] | None = None
    metric: MetricChoice | None = None
    scale: Name | None = None
    """One of the sizes that the template can be run in; ``None``: its first."""
    search: Literal["linear", "climb", "tree"] | None = None
    """How the next code to change is picked; ``None``: ``tree``."""
    control: Switch | None = None
    """Whether a search without a model gets as many trials, for comparison."""
    max_tokens_total: Annotated[WholeNumber, Field(ge=1)] | None = None
    """Tokens of all prompts and replies together."""
    max_hours: Annotated[Amount, Field(gt=0, le=10_000)] | None = None
    """After so long the task ends with what it has; `timeout` ends it whatever it has."""
    num_reviews: Annotated[WholeNumber, Field(ge=0, le=20)] | None = None
    improve: Switch | None = None
    """Whether the paper is revised once after its reviews, and reviewed again."""
    language: Language | None = None
    """Of the paper."""
    run: (
        Annotated[
            Annotated[Line, Tag("a text")] | Annotated[Words, Tag("a list")],
            Discriminator(lambda value: "a list" if isinstance(value, list | tuple) else "a text"),
        ]
        | None
    ) = None
    """What a command runs: a text for ``sh -c``, or a program and its arguments. ``None`` in other kinds only."""
    env: Annotated[dict[Variable, Text], Field(max_length=200)] = Field(default_factory=dict)
    workdir: HostPath | None = None
    inputs: Annotated[dict[InputName, HostPath], Field(max_length=50)] = Field(
        default_factory=dict
    )
    """Places of the host by name; a command sees each at ``/inputs/<name>``, read-only."""
    outputs: Globs = ("**",)
    """Patterns of what is kept of a command's files. The default keeps all."""
    network: Switch = False
    input: AnyPath | None = None
    """A file of prompts, one JSON value a line. ``None`` in other kinds only."""
    system: Text | None = None
    """The system message of each prompt, plain or Jinja."""
    reply_schema: (
        Annotated[dict[str, Any], AfterValidator(json_data(_MAX_SCHEMA_BYTES))] | None
    ) = Field(None, alias="schema")
    """The JSON schema that each reply has to fit."""
    options: PromptOptions = PromptOptions()
    max_errors: Annotated[WholeNumber, Field(ge=0, le=1_000_000)] | None = None
    """The task fails when more prompts than this can't be answered; ``None``: only if all can't."""
    seed: Annotated[WholeNumber, Field(ge=0, lt=2**31)] = 0
    priority: Annotated[WholeNumber, Field(ge=-1000, le=1000)] = 0
    timeout: Seconds | None = None
    stuck_after: Annotated[float | None, BeforeValidator(patience)] = None
    """For how long nothing of it may move before it is taken for stuck; 0: for ever; ``None``: as the settings say."""
    limits: TaskLimits = TaskLimits()
    """What each run of it may use, beside its time."""
    max_retries: Annotated[WholeNumber, Field(ge=0, le=100)] = 2
    num_gpus: Annotated[Amount, Field(ge=0, le=1024)] = 0.0
    num_cpus: Annotated[Amount, Field(gt=0, le=4096)] = 1.0
    num_nodes: Annotated[WholeNumber, Field(ge=1, le=64)] = 1
    """On how many machines its runs may go on at once, where others leave room; each gives `num_cpus` and `num_gpus`."""
    labels: Labels = ()
    after: Annotated[
        tuple[Reference, ...],
        BeforeValidator(one_or_many),
        Field(max_length=100),
        AfterValidator(distinct),
    ] = ()
    """Ids of tasks that have to be done before this one starts."""
    not_before: Moment | None = None
    """In UTC."""

    @field_validator(*{key for keys in _KEYS_OF.values() for key in keys}, mode="before")
    @classmethod
    def _belongs_to_kind(cls, value: object, info: ValidationInfo) -> object:
        # Runs only for keys that the file has; `kind` comes first in the model, so it is known here.
        field, kind = str(info.field_name), info.data.get("kind")
        if kind is None or field in _KEYS_OF[kind]:
            return value
        key = cls.model_fields[field].alias or field
        owners = " or ".join(owner for owner, keys in _KEYS_OF.items() if field in keys)
        if kind == "research":
            msg = f"kind: {owners} beside it: a research task has no {key}"
        else:
            shown = "a command" if kind == "command" else "a task of prompts"
            msg = f"no {key} in {shown}: it belongs to kind: {owners}"
        raise ValueError(msg)

    @field_validator("model")
    @classmethod
    def _one_model(cls, value: object, info: ValidationInfo) -> object:
        if info.data.get("kind") == "prompts" and not isinstance(value, str):
            msg = "one model's name, such as qwen3:8b"
            raise ValueError(msg)
        roles = value if isinstance(value, dict) else {}
        for role, names in roles.items():
            if isinstance(names, tuple) and (role != "review" or not 1 <= len(names) <= 20):
                msg = "one model for each role, and for review one to twenty"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _whole_task(self) -> "TaskSpec":
        if self.kind == "command" and self.run is None:
            raise _at("kind", self.kind, "a key `run` beside it, such as `run: python3 train.py`")
        if self.kind == "prompts" and self.input is None:
            raise _at(
                "kind", self.kind, "a key `input` beside it, such as `input: questions.jsonl`"
            )
        if self.kind == "research" and self.template is None:
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

    @property
    def asks_models(self) -> bool:
        """Whether the task asks language models."""
        return self.kind == "prompts" or self.by_llm

    @property
    def by_llm(self) -> bool:
        """Whether a language model does the research: where the file says so, or names a model and nothing else."""
        if self.kind != "research":
            return False
        return self.researcher == "llm" or (self.researcher is None and self.model is not None)

    @property
    def models(self) -> tuple[str, ...]:
        """The language models that the task names and will ask."""
        if not self.asks_models or self.model is None:
            return ()
        named = (self.model,) if isinstance(self.model, str) else tuple(self.model.values())
        each = (one if isinstance(one, tuple) else (one,) for one in named)
        return tuple(dict.fromkeys(name for names in each for name in names))

    @property
    def research_template(self) -> str | None:
        """The name of the template that the task is about; ``None`` where it is no research."""
        return self.template if self.kind == "research" else None

    def warnings(self) -> list[str]:
        """Say which keys have no effect in this task."""
        seeded = "seed" in self.model_fields_set
        if self.kind == "command":
            return ["seed: has no effect in a command"] if seeded else []
        if self.kind == "prompts":
            said = ["seed: has no effect here; put it under `options`"] if seeded else []
            limited = "limits" in self.model_fields_set
            return said + (["limits: has no effect here: prompts run nothing"] if limited else [])
        if self.by_llm:
            return []
        why = "has no effect with researcher: sweep, which uses no model"
        return [f"{name}: {why}" for name in _LLM_ONLY if getattr(self, name) is not None]


def _at(key: str, found: Any, wanted: str) -> ValidationError:
    """Make an error of the whole file that is told at the place of one of its keys."""
    detail = InitErrorDetails(
        type=PydanticCustomError("value_error", "{wanted}", {"wanted": wanted}),
        loc=(key,),
        input=found,
    )
    return ValidationError.from_exception_data("task", [detail])


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task file that was read and found valid."""

    spec: TaskSpec
    text: str
    sha256: str
    raw: bytes
    """As it was read: `text` has no byte order mark."""


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
    return TaskFile(spec, raw.decode("utf-8-sig"), hashlib.sha256(raw).hexdigest(), raw)


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
