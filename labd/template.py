"""Templates: a directory that says what an experiment is, what it measures and what may be changed.

Owns the reading and checking of `template.yaml`, the hash over a template's files, and the copy of
them that a task's runs really use. Runs nothing.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    FiniteFloat,
    model_validator,
)

from labd.clock import parse_duration
from labd.errors import ConfigError, TaskFileError
from labd.files import fsync_dir
from labd.task import TaskFile
from labd.text import printable
from labd.yamlfile import MAX_BYTES, InvalidFile, check, load_yaml

MAX_TEMPLATE_BYTES = 50 * 2**20
MAX_TEMPLATE_FILES = 2000
MIN_CONFIRM_SEEDS = 10
"""Fewer runs than this can't carry a claim, so nobody may ask for fewer."""
PLACEHOLDERS = ("{params}", "{seed}", "{split}", "{out_dir}")
SHIPPED = Path(__file__).parent / "templates"
FILE_NAME = "template.yaml"

# Made by tools and not by the template's author; they are neither hashed nor given to a run.
_IGNORED = frozenset({"__pycache__", ".git"})
_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_WORD = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"

_Name = Annotated[str, Field(pattern=_NAME)]
_Word = Annotated[str, Field(pattern=_WORD)]
_Text = Annotated[str, Field(min_length=1, max_length=4000)]
_Seconds = Annotated[float, BeforeValidator(parse_duration)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


Param = bool | int | FiniteFloat | str


class Record(BaseModel):
    """Base of all records: frozen, strict about names, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(Record):
    """A metric and which way is better."""

    name: str
    better: Literal["higher", "lower"]
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


class _TemplateFile(_Strict):
    name: _Name
    title: Annotated[str, Field(min_length=1, max_length=200)]
    description: _Text
    command: Annotated[
        list[Annotated[str, Field(max_length=4000)]], Field(min_length=1, max_length=200)
    ]
    metric: _Metric
    time_limit: _Seconds
    cpus_per_run: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus_per_run: Annotated[int, Field(ge=0, le=64)] = 0
    memory: Annotated[ByteSize, Field(ge=2**20)] = ByteSize(2 * 2**30)
    search_space: Annotated[dict[_Word, _Parameter], Field(min_length=1, max_length=50)]
    num_trials: Annotated[int, Field(ge=1, le=10_000)]
    num_confirm_seeds: Annotated[int, Field(ge=MIN_CONFIRM_SEEDS, le=1000)] = MIN_CONFIRM_SEEDS
    requirements: list[_Word] = []
    editable: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=50)] = []

    @model_validator(mode="after")
    def _command_is_whole(self) -> Self:
        joined = "\n".join(self.command)
        missing = [holder for holder in PLACEHOLDERS if holder not in joined]
        if missing:
            msg = f"a command that holds {', '.join(missing)}, so that runs can differ and be measured"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class Template:
    """An experiment that can be run, as its `template.yaml` states it."""

    name: str
    title: str
    description: str
    command: tuple[str, ...]
    """With the placeholders of `PLACEHOLDERS` still in it."""
    metric: Metric
    time_limit_s: float
    """Of one run, wall-clock."""
    cpus_per_run: int
    gpus_per_run: int
    memory_bytes: int
    space: tuple[ParamSpec, ...]
    """In the order of the file."""
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

    @property
    def baseline(self) -> dict[str, Param]:
        """The parameters that everything is compared with."""
        return {spec.name: spec.baseline for spec in self.space}


def list_templates(roots: Sequence[Path]) -> dict[str, Path]:
    """Give the directory of each template by name: those in `roots`, earlier ones first, then the shipped."""
    found: dict[str, Path] = {}
    for root in (*roots, SHIPPED):
        if not root.is_dir():
            continue
        for path in sorted(root.iterdir()):
            if re.match(_NAME, path.name) and (path / FILE_NAME).is_file():
                found.setdefault(path.name, path)
    return found


def load_template(name_or_path: str, *, roots: Sequence[Path]) -> Template:
    """Read a template by its name, or by a path that lies in one of `roots`.

    Raises:
        ConfigError: there is no such template, or it is not valid; the text says file and line.

    """
    directory = _find(name_or_path, roots)
    path = directory / FILE_NAME
    files = _hash_files(directory)
    try:
        parsed = check(_TemplateFile, load_yaml(_read_regular(path, MAX_BYTES + 1)))
    except InvalidFile as error:
        lines = [problem.located(printable(str(path))) for problem in error.problems[:20]]
        raise ConfigError("\n".join(lines)) from error
    if parsed.name != directory.name:
        raise ConfigError(
            f"the template says it is {parsed.name!r}, but its directory is {printable(directory.name)!r}",
            where=printable(str(path)),
            fix="Give both the same name",
        )
    return _template(parsed, directory, files)


def check_template(task: TaskFile, name: str, *, roots: Sequence[Path]) -> None:
    """Pass if the task's template is there and valid, so that a wrong name is told at the drop.

    Raises:
        TaskFileError: it is not; with the place of the key in the file `name`.

    """
    try:
        load_template(task.spec.template or "", roots=roots)
    except ConfigError as error:
        place = load_yaml(task.text.encode()).place(("template",))
        where = f"{printable(name)}:{place.line}:{place.column}" if place else printable(name)
        raise TaskFileError(f"template: {error}", where=where) from error


def missing_requirements(template: Template) -> list[str]:
    """Give the modules that the template asks for and that labd's Python can't import."""
    return [name for name in template.requirements if importlib.util.find_spec(name) is None]


def snapshot(template: Template, target: Path) -> Template:
    """Copy the template's files to `target` and give the template that lies there.

    A run then sees what was hashed, whatever happens to the original while a task runs. What is at
    `target` already is used if it is the same, and replaced if it is not.

    Raises:
        ConfigError: the template's files are no longer those that were hashed.

    """
    if target.is_dir() and _digest(_hash_files(target)) == template.sha256:
        return replace(template, directory=target)
    part = target.with_name(f".{target.name}.part")
    for leftover in (part, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    for name in template.files_sha256:
        copy = part / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(_read_regular(template.directory / name, MAX_TEMPLATE_BYTES))
        copy.chmod(0o755 if os.access(template.directory / name, os.X_OK) else 0o644)
    # A run may have another user than labd has: it reads these whatever labd's umask is.
    for folder, _, _ in os.walk(part):
        Path(folder).chmod(0o755)
    if _digest(_hash_files(part)) != template.sha256:
        raise ConfigError(
            "the template changed after it was read",
            where=printable(str(template.directory)),
            fix="Let it rest and run the task again",
        )
    part.rename(target)
    fsync_dir(target.parent)
    return replace(template, directory=target)


def _template(parsed: _TemplateFile, directory: Path, files: Mapping[str, str]) -> Template:
    return Template(
        name=parsed.name,
        title=parsed.title,
        description=parsed.description,
        command=tuple(parsed.command),
        metric=Metric(**parsed.metric.model_dump()),
        time_limit_s=parsed.time_limit,
        cpus_per_run=parsed.cpus_per_run,
        gpus_per_run=parsed.gpus_per_run,
        memory_bytes=int(parsed.memory),
        space=tuple(one.spec(name) for name, one in parsed.search_space.items()),
        num_trials=parsed.num_trials,
        num_confirm_seeds=parsed.num_confirm_seeds,
        requirements=tuple(parsed.requirements),
        editable=tuple(parsed.editable),
        directory=directory,
        sha256=_digest(files),
        files_sha256=files,
    )


def _find(name_or_path: str, roots: Sequence[Path]) -> Path:
    known = list_templates(roots)
    shown = printable(name_or_path, 200)
    if "/" not in name_or_path:
        if name_or_path in known:
            return _without_links(known[name_or_path], known[name_or_path].parent)
        near = get_close_matches(name_or_path, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"there is no template {shown}{hint}",
            fix=f"Known templates: {', '.join(sorted(known))}",
        )
    for root in roots:
        path = Path(os.path.normpath(root / name_or_path))
        if path.is_relative_to(root) and path != root and (path / FILE_NAME).is_file():
            return _without_links(path, root)
    raise ConfigError(
        f"there is no template at {shown} in any of the places for templates",
        fix=f"Put its directory into one of: {', '.join(str(root) for root in roots) or 'none is set'}",
    )


def _without_links(path: Path, root: Path) -> Path:
    """Give the absolute path, and refuse one that a symbolic link below `root` leads to."""
    real_root = root.resolve()
    absolute = real_root / path.relative_to(root)
    if absolute.resolve() != absolute:
        raise ConfigError(
            "a template may not be reached through a symbolic link",
            where=printable(str(path)),
            fix="Copy the directory there instead",
        )
    return absolute


def _hash_files(directory: Path) -> dict[str, str]:
    """Give the SHA-256 of each file, sorted by path; refuse what is not a plain file or is too much."""
    found: dict[str, str] = {}
    total_bytes = 0
    for folder, folders, names in os.walk(directory, onerror=_raise):
        folders[:] = [name for name in folders if name not in _IGNORED]
        for name in (*folders, *names):
            path = Path(folder) / name
            size_bytes = _plain_size(path)
            if size_bytes is None:
                continue
            total_bytes += size_bytes
            if total_bytes > MAX_TEMPLATE_BYTES or len(found) >= MAX_TEMPLATE_FILES:
                raise ConfigError(
                    f"the template has more than {MAX_TEMPLATE_BYTES // 2**20} MiB or {MAX_TEMPLATE_FILES} files",
                    where=printable(str(directory)),
                    fix="Keep data out of it: let the command read an installed package's",
                )
            raw = _read_regular(path, MAX_TEMPLATE_BYTES)
            found[str(path.relative_to(directory))] = hashlib.sha256(raw).hexdigest()
    return dict(sorted(found.items()))


def _plain_size(path: Path) -> int | None:
    """Give a plain file's size, `None` for a directory; refuse the rest."""
    info = path.lstat()
    if stat.S_ISDIR(info.st_mode):
        return None
    if stat.S_ISREG(info.st_mode) and _is_utf8(path.name):
        return info.st_size
    kind = (
        "a symbolic link" if stat.S_ISLNK(info.st_mode) else "not a plain file with a UTF-8 name"
    )
    raise ConfigError(
        f"this is {kind}, and a template may hold plain files and directories only",
        where=printable(str(path)),
        fix="Put a copy of the file in its place",
    )


def _is_utf8(name: str) -> bool:
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in name)


def _read_regular(path: Path, limit_bytes: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return file.read(limit_bytes)
    except OSError as error:
        raise ConfigError(
            f"the file can't be read: {error.strerror}", where=printable(str(path))
        ) from error


def _raise(error: OSError) -> None:
    where = printable(str(error.filename))
    raise ConfigError(f"the directory can't be read: {error.strerror}", where=where) from error


def _digest(files: Mapping[str, str]) -> str:
    lines = "".join(f"{sha256}  {name}\0" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def fill_command(
    template: Template, *, params: str, seed: int, split: str, out_dir: str
) -> list[str]:
    """Give the template's command with the placeholders filled in; all other braces stay as they are."""
    values = dict(zip(PLACEHOLDERS, (params, str(seed), split, out_dir), strict=True))
    pattern = re.compile("|".join(re.escape(holder) for holder in PLACEHOLDERS))
    return [pattern.sub(lambda match: values[match.group()], part) for part in template.command]
