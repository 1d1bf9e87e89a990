"""What people write in files: types for pydantic's models, each of which says what is wanted where something else stands. Pure."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, PlainSerializer, TypeAdapter

from labd.clock import from_iso, parse_duration, to_iso

Seconds = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(float)]
METRIC_NAME = r"^[A-Za-z_][A-Za-z0-9_./-]{0,99}$"
"""Of metrics, also those that other systems' experiments write."""
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
WholeNumber = Annotated[int, Field(strict=True)]
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False)]

MAX_TEXT_BYTES = 60_000
"""Of one text of a command; the kernel takes 131,071 bytes at most. Source: execve(2), MAX_ARG_STRLEN."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
# A shell, which starts a command, gives these a meaning of its own or will not have them set.
_SHELLS_OWN = re.compile(r"_|IFS|OPTIND|PPID|E?UID|GROUPS|LINENO|PS4|ENV|SHELLOPTS|BASH.*")
_ANY_PATH = re.compile(r"(?s)(?=.*[^/\s])[^\x00]{1,4095}")
_LABEL = re.compile(r"[A-Za-z0-9._/:-]{1,100}")
_INPUT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_LANGUAGE = re.compile(r"[a-z]{2}")
_BYTES = TypeAdapter(ByteSize)


def read_text(value: object) -> str:
    """Give a text that is one, without NUL and not too long; raises `ValueError` with what is wanted."""
    if not isinstance(value, str):
        msg = "a text, in quotes where YAML would read a number or true"
        raise ValueError(msg)  # noqa: TRY004 - pydantic turns only ValueError into a message
    if "\0" in value or len(value.encode()) > MAX_TEXT_BYTES:
        msg = f"a text without NUL, of at most {MAX_TEXT_BYTES} bytes"
        raise ValueError(msg)
    return value


def one_or_many(value: object) -> object:
    """Give a list of one where a text stands for a list of texts."""
    return [value] if isinstance(value, str) else value


def matching(pattern: re.Pattern[str], wanted: str) -> Callable[[str], str]:
    """Give what lets a text through that is all of the pattern; else it says what is wanted."""

    def fits(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(wanted)
        return value

    return fits


def _variable(name: str) -> str:
    if name.startswith("LABD_") or name == "CUDA_VISIBLE_DEVICES":
        msg = "another name: labd sets this variable itself"
        raise ValueError(msg)
    if _SHELLS_OWN.fullmatch(name):
        msg = "another name: this variable is the shell's own"
        raise ValueError(msg)
    return name


def _absolute(value: str) -> str:
    if not value.startswith("/") or len(value.encode()) > 4095:
        msg = "an absolute path, such as /data/mnist"
        raise ValueError(msg)
    return value


def _glob(value: str) -> str:
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or len(value) > 1000:
        msg = "a relative pattern without .., such as `checkpoints/*.pt` or `**/*.csv`"
        raise ValueError(msg)
    return value


def _some(most: int) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    def fits(values: tuple[str, ...]) -> tuple[str, ...]:
        if not 1 <= len(values) <= most or not values[0].strip():
            msg = f"a list of one to {most} texts, the first not empty"
            raise ValueError(msg)
        return values

    return fits


def _program(values: tuple[str, ...]) -> tuple[str, ...]:
    if values[0].startswith("-"):
        msg = "a program as the first word, without - in front"
        raise ValueError(msg)
    return values


def _stops(values: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(values) <= 16 or not all(values):
        msg = "one to 16 texts, none of them empty"
        raise ValueError(msg)
    return values


def _thinking(value: object) -> object:
    level = isinstance(value, str) and value in {"low", "medium", "high"}
    if not (level or isinstance(value, bool)):
        msg = "true, false, low, medium or high"
        raise ValueError(msg)
    return value


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """Give each text once, in order."""
    return tuple(dict.fromkeys(values))


def json_data(most_bytes: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Give what lets an object through that JSON can hold, in at most so many bytes."""

    def fits(value: dict[str, Any]) -> dict[str, Any]:
        try:
            size_bytes = len(json.dumps(value, allow_nan=False))
        except ValueError:
            msg = "finite numbers only"
            raise ValueError(msg) from None
        if size_bytes > most_bytes:
            msg = f"at most {most_bytes} bytes as JSON"
            raise ValueError(msg)
        return value

    return fits


def _size(value: object) -> object:
    wanted = "a size in bytes or with its unit, such as 8GiB or 500MB"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(wanted)  # noqa: TRY004 - pydantic turns only ValueError into a message
    try:
        return int(_BYTES.validate_python(value))
    except (ValueError, OverflowError) as error:
        raise ValueError(wanted) from error


def moment(value: object) -> datetime:
    """Read a time with its zone; give it in UTC.

    Raises:
        ValueError: it is none, with what is wanted.

    """
    wanted = "a time with its zone, such as 2026-11-23T08:00:00+09:00 or 2026-11-22T23:00:00Z"
    if not isinstance(value, str):
        raise ValueError(wanted)  # noqa: TRY004 - pydantic turns only ValueError into a message
    try:
        naive = datetime.fromisoformat(value).tzinfo is None
        read = None if naive else from_iso(value).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(wanted) from error
    if read is None:
        msg = f"{wanted}: this one has no zone"
        raise ValueError(msg)
    return read


def patience(value: object) -> float:
    """Read a time limit that may be none: 0 and null."""
    # A tuple, because a value may be a list, which no set can be asked for.
    if value is None or (not isinstance(value, bool) and value in (0, "0")):
        return 0.0
    try:
        return parse_duration(value if isinstance(value, int | float) else str(value))
    except ValueError as error:
        msg = f"{error}, or 0 for no limit"
        raise ValueError(msg) from error


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        msg = "true or false"
        raise ValueError(msg)  # noqa: TRY004 - pydantic turns only ValueError into a message
    return value


Switch = Annotated[bool, BeforeValidator(_switch)]
Patience = Annotated[float, BeforeValidator(patience)]
"""Seconds; 0: no limit."""
Text = Annotated[str, BeforeValidator(read_text)]
Line = Annotated[Text, AfterValidator(matching(re.compile(r"(?s).*\S.*"), "a command"))]
Words = Annotated[tuple[Text, ...], AfterValidator(_some(1000)), AfterValidator(_program)]
Variable = Annotated[
    str,
    AfterValidator(
        matching(_VARIABLE, "a variable's name: letters, digits and _, no digit first")
    ),
    AfterValidator(_variable),
]
HostPath = Annotated[Text, AfterValidator(_absolute)]
InputName = Annotated[
    str, AfterValidator(matching(_INPUT_NAME, "a name of letters, digits, . _ and -"))
]
Label = Annotated[
    Text, AfterValidator(matching(_LABEL, "a label of letters, digits and . _ - / :, up to 100"))
]
Glob = Annotated[Text, AfterValidator(_glob)]
Size = Annotated[int, BeforeValidator(_size)]
Moment = Annotated[datetime, BeforeValidator(moment), PlainSerializer(to_iso)]
Language = Annotated[str, AfterValidator(matching(_LANGUAGE, "two letters, such as en or ko"))]
AnyPath = Annotated[Text, AfterValidator(matching(_ANY_PATH, "a file's path"))]
Stops = Annotated[tuple[Text, ...], BeforeValidator(one_or_many), AfterValidator(_stops)]
Thinking = Annotated[bool | str, BeforeValidator(_thinking)]
Globs = Annotated[tuple[Glob, ...], BeforeValidator(one_or_many), AfterValidator(_some(100))]
Labels = Annotated[
    tuple[Label, ...], BeforeValidator(one_or_many), Field(max_length=20), AfterValidator(distinct)
]
