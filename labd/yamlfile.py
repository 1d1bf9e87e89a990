"""YAML that people write, read safely, with the place of every key, and checked against a model.

What is refused: more than 1 MiB, anything but UTF-8, tags, anchors and aliases, duplicate keys, keys
that are not text, more than one document, nesting deeper than 32. Scalars follow YAML 1.2's core
schema: ``1e-3`` is a number, ``yes`` and ``12:30`` are texts.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from labd.text import printable

MAX_BYTES = 2**20
_MAX_DEPTH = 32
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path_ = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan,
}  # fmt: skip

_PLAIN = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid dictionary": "keys and values",
    "a valid dictionary or instance of PromptOptions": "keys and values",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file."""

    place: Place | None
    key: str
    found: str
    wanted: str
    nearest: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: " if self.key else ""
        near = f"; nearest known: {self.nearest}" if self.nearest else ""
        return f"{text}{self.found}{near}; wanted: {self.wanted}"

    def located(self, name: str) -> str:
        """Give ``name:line:column: text``, as compilers print it."""
        where = f"{name}:{self.place.line}:{self.place.column}" if self.place else name
        return f"{where}: {self}"


class InvalidFile(ValueError):
    """The file is not what was wanted; `problems` says all that was found wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Document:
    """A file's data and the place of each key (of each item, in lists)."""

    data: Any
    places: Mapping[Path_, Place | None]

    def place(self, path: Path_) -> Place | None:
        """Give the place of the key, or of the nearest key above it that has one."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path[:-1]
        return self.places.get(())


def load_yaml(raw: bytes) -> Document:
    """Read one YAML document.

    Raises:
        InvalidFile: with the first thing that is wrong.

    """
    text = _decode(raw)
    events = _events(text)
    places: dict[Path_, Place | None] = {}
    data: Any = None
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _refuse(event, "", "a second document (after ---)", "one document")
        elif isinstance(event, yaml.NodeEvent):
            data = _build(event, events, (), places)
    return Document(data, places)


def check(model: type[M], document: Document) -> M:
    """Make a `model` of the document.

    Raises:
        InvalidFile: with everything that is wrong, in the order of the file.

    """
    if not isinstance(document.data, dict):
        place = document.place(()) or Place(1, 1)
        kind = "nothing" if document.data is None else _kind(document.data)
        raise InvalidFile(
            [Problem(place, "", f"found {kind}", "keys and values, such as `kind: research`")]
        )
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        problems = [_problem(model, document, item) for item in error.errors(include_url=False)]
        far = Place(10**9, 0)
        problems.sort(key=lambda p: ((p.place or far).line, (p.place or far).column))
        raise InvalidFile(problems) from error


def _decode(raw: bytes) -> str:
    start = Place(1, 1)
    if len(raw) > MAX_BYTES:
        raise InvalidFile(
            [Problem(None, "", f"the file has {len(raw)} bytes", f"at most {MAX_BYTES}")]
        )
    if not raw.strip():
        raise InvalidFile(
            [Problem(start, "", "the file is empty", "keys and values, such as `kind: research`")]
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        found = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise InvalidFile(
            [Problem(Place(line, column), "", found, "a YAML text in UTF-8")]
        ) from error
    if "\x00" in text:
        raise InvalidFile([Problem(None, "", "the file holds NUL bytes", "a YAML text in UTF-8")])
    return text


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else None
        found = printable(f"not YAML: {error.problem or error.context or error}", 200)
        line = "".join(text.split("\n")[mark.line : mark.line + 1]) if mark else ""
        tab = line.startswith("\t", mark.column if mark else 0)
        wanted = "spaces, as YAML takes no tab here" if tab else "valid YAML"
        raise InvalidFile([Problem(place, "", found, wanted)]) from error
    except yaml.reader.ReaderError as error:
        # libyaml counts bytes and gives a number, the parser in Python counts characters and gives one.
        by_bytes = isinstance(error.character, int)
        before = text.encode()[: error.position].decode() if by_bytes else text[: error.position]
        place = Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        number = error.character if by_bytes else ord(error.character)
        found = f"not YAML: the character U+{number:04X}"
        raise InvalidFile([Problem(place, "", found, "printable text")]) from error
    except yaml.YAMLError as error:
        found = printable(f"not YAML: {error}", 200)
        raise InvalidFile([Problem(None, "", found, "valid YAML")]) from error


def _build(
    event: yaml.Event, events: Iterator[yaml.Event], path: Path_, places: dict[Path_, Place | None]
) -> Any:
    places.setdefault(path, _place(event))
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise _refuse(event, _name(path), "an anchor or alias (& or *)", "the value itself")
    if tag := getattr(event, "tag", None):
        raise _refuse(event, _name(path), f"the tag {printable(tag, 60)}", "a plain value")
    if len(path) > _MAX_DEPTH:
        raise _refuse(event, _name(path[:3]), "nesting deeper than 32", "a flatter file")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(child := next(events), yaml.SequenceEndEvent):
            items.append(_build(child, events, (*path, len(items)), places))
        return items
    return _mapping(events, path, places)


def _mapping(
    events: Iterator[yaml.Event], path: Path_, places: dict[Path_, Place | None]
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _scalar(event) if isinstance(event, yaml.ScalarEvent) and not event.tag else None
        if not isinstance(key, str):
            raise _refuse(event, _name(path), "a key that is not a text", "a word as key")
        if key in data:
            first = first_place.line if (first_place := places[*path, key]) else "?"
            raise _refuse(
                event,
                _name((*path, key)),
                f"the key stands twice, first in line {first}",
                "each key once",
            )
        places[*path, key] = _place(event)
        data[key] = None
        data[key] = _build(next(events), events, (*path, key), places)
    return data


def _scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if event.style:  # quoted or a block; the C parser gives "" for a plain one
        return text
    if text in _WORDS:
        return _WORDS[text]
    if len(text) < 64:
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


def _refuse(event: yaml.Event, key: str, found: str, wanted: str) -> InvalidFile:
    return InvalidFile([Problem(_place(event), key, found, wanted)])


def _place(event: yaml.Event) -> Place | None:
    mark = event.start_mark
    return Place(mark.line + 1, mark.column + 1) if mark else None


def _name(path: Path_) -> str:
    return printable(".".join(str(part) for part in path), 100)


def _kind(value: object) -> str:
    names = {
        dict: "keys and values",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)


def _problem(model: type[BaseModel], document: Document, item: Any) -> Problem:
    path = tuple(part for part in item["loc"] if _is_in(document.data, item["loc"], part))
    place = document.place(path)
    key = _name(path or item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(model, path)
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        return Problem(
            place,
            key,
            "unknown key",
            "one of " + ", ".join(sorted(known)),
            near[0] if near else "",
        )
    if item["type"] == "missing":
        return Problem(place, _name(item["loc"]), "the key is missing", "a value for it")
    wanted = str(item["msg"])
    for prefix in ("Value error, ", "Input should be ", "Input should "):
        wanted = wanted.removeprefix(prefix)
    shown = item["input"]
    if not item["loc"]:
        found = "the keys do not fit together"
    elif isinstance(shown, dict | list):
        found = f"found {_kind(shown)}"
    else:
        found = f"found {printable(repr(shown), 80)}"
    return Problem(place, key, found, _PLAIN.get(wanted, wanted), _near_choice(item))


def _is_in(data: object, loc: tuple[str | int, ...], part: str | int) -> bool:
    # pydantic puts names of union members into the location; only what is in the file has a place.
    here: Any = data
    for step in loc:
        if not isinstance(here, dict | list):
            return False
        if _has(here, step):
            if step == part:
                return True
            here = here[step]  # type: ignore[index]
        elif step == part:
            return False
    return False


def _has(here: dict[str, Any] | list[Any], step: str | int) -> bool:
    if isinstance(here, dict):
        return step in here
    return isinstance(step, int) and 0 <= step < len(here)


def _known_keys(model: type[BaseModel], path: Path_) -> list[str]:
    here: Any = model
    for part in path[:-1]:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        else:  # dict[str, Model] and list[Model]: the last argument says what each item is
            here = (get_args(here) or (None,))[-1]
    return (
        [field.alias or name for name, field in here.model_fields.items()]
        if isinstance(here, type) and issubclass(here, BaseModel)
        else []
    )


def _near_choice(item: Any) -> str:
    expected = (
        str(item.get("ctx", {}).get("expected", ""))
        if item["type"] in {"literal_error", "enum"}
        else ""
    )
    choices = re.findall(r"'([^']+)'", expected)
    near = difflib.get_close_matches(str(item["input"]), choices, n=1, cutoff=0.5)
    return near[0] if near else ""
