"""The input of a task of prompts: JSON lines, read once to find what is wrong, then line by line as needed.

Only where each line begins is kept in memory, and 16 bytes of its id's hash.
"""

import codecs
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from labd.errors import TaskFileError
from labd.llm.model import Message
from labd.text import printable

MAX_LINE_BYTES = 2**20
MAX_LINES = 1_000_000
MAX_TOLD = 20
MAX_ID_CHARACTERS = 200
_MAX_MESSAGES = 1000
_KEYS = ("prompt", "messages", "variables", "id", "system")
_ROLES = ("system", "user", "assistant")
_CHUNK_BYTES = 2**20
_TICK_LINES = 500
_ONE = "a text, or an object with one of prompt and messages"
_VARIABLES = 'an object with variables for the template, such as {"variables": {"word": "dog"}}'


class InputError(TaskFileError):
    """The input of a task of prompts is not what it should be, or has changed while it was used."""

    code = "input"


class Bad(Exception):
    """A line is not a prompt: what was found, and what is wanted."""

    def __init__(self, found: str, wanted: str) -> None:
        super().__init__(found, wanted)
        self.found, self.wanted = found, wanted


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input. `messages` is empty where the template makes the prompt of `variables`."""

    id: str
    messages: tuple[Message, ...] = ()
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def parse_line(raw: bytes, number: int, *, templated: bool) -> Line:
    """Read one line. `templated`: the task has a template, so the line gives variables.

    Raises:
        Bad: it is not a prompt.

    """
    value = _json(raw)
    if isinstance(value, str):
        value = {"prompt": value}
    elif not isinstance(value, dict):
        raise Bad(f"found {_kind(value)}", _VARIABLES if templated else _ONE)
    _check_keys(value, templated=templated)
    given = value.get("id")
    return Line(
        str(number) if given is None else _id(given),
        () if templated else _messages(value),
        _text(value, "system") if value.get("system") is not None else None,
        value.get("variables") or {},
    )


def _json(raw: bytes) -> Any:
    if len(raw) > MAX_LINE_BYTES:
        raise Bad(f"more than {MAX_LINE_BYTES} bytes", "a shorter line")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Bad(f"byte 0x{raw[error.start]:02x} is not UTF-8", "UTF-8") from error
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Bad(r"half a character, such as \ud83d alone", "whole characters") from error
    except RecursionError as error:
        raise Bad("very deep nesting", "a flatter line") from error
    except json.JSONDecodeError as error:
        raise Bad(f"not JSON: {error.msg} at column {error.colno}", "one JSON value") from error
    except ValueError as error:
        raise Bad(f"not JSON: {printable(str(error), 100)}", "one JSON value") from error
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in value if keys.count(key) > 1)
        raise Bad(f"the key {_shown(twice)} stands twice", "each key once")
    return value


def _no_number(name: str) -> NoReturn:
    raise Bad(f"found {name}", "finite numbers")


def _check_keys(value: Mapping[str, Any], *, templated: bool) -> None:
    for key in value:
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, n=1, cutoff=0.6)
            hint = f"; nearest known: {near[0]}" if near else "; your own go into variables"
            raise Bad(f"the unknown key {_shown(key)}", f"{', '.join(_KEYS)}{hint}")
    asks = [key for key in ("prompt", "messages") if key in value]
    if templated and (asks or "variables" not in value):
        raise Bad(f"found {asks[0] if asks else 'no variables'}", _VARIABLES)
    if not templated and len(asks) != 1:
        hint = "; variables alone need a `template` in the task" if "variables" in value else ""
        raise Bad("both prompt and messages" if asks else "no prompt", _ONE + hint)
    if not isinstance(value.get("variables") or {}, dict):
        raise Bad(f"variables: found {_kind(value['variables'])}", "variables: an object")


def _id(given: object) -> str:
    text = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    fits = isinstance(text, str) and text.strip() and printable(text, MAX_ID_CHARACTERS) == text
    if not isinstance(text, str) or not fits:
        raise Bad(
            f"id: found {_shown(given)}",
            f"id: a printable text of at most {MAX_ID_CHARACTERS} characters, or a whole number",
        )
    return text


def _messages(value: Mapping[str, Any]) -> tuple[Message, ...]:
    if "prompt" in value:
        return (Message("user", _text(value, "prompt")),)
    given = value["messages"]
    if not isinstance(given, list) or not 1 <= len(given) <= _MAX_MESSAGES:
        raise Bad(f"messages: found {_kind(given)}", f"messages: a list of 1 to {_MAX_MESSAGES}")
    messages = tuple(_message(one, place) for place, one in enumerate(given))
    if messages[-1].role != "user":
        raise Bad(f"messages: the last is of the {messages[-1].role}", "the last of the user")
    return messages


def _message(given: object, place: int) -> Message:
    wanted = "an object with role and content"
    if not isinstance(given, dict) or set(given) != {"role", "content"}:
        raise Bad(f"messages.{place}: found {_kind(given)}", wanted)
    role = given["role"]
    if role not in _ROLES:
        raise Bad(f"messages.{place}.role: found {_shown(role)}", ", ".join(_ROLES))
    if role == "system" and place:
        raise Bad(f"messages.{place}.role: found system", "a system message as the first only")
    return Message(role, _text(given, "content", f"messages.{place}.content"))


def _text(value: Mapping[str, Any], key: str, name: str = "") -> str:
    text = value[key]
    if not isinstance(text, str):
        raise Bad(f"{name or key}: found {_kind(text)}", f"{name or key}: a text")
    if key != "system" and not text.strip():
        raise Bad(
            f"{name or key}: found an empty text", f"{name or key}: a text that says something"
        )
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    shown = {int: "a number", float: "a number", type(None): "null"}
    return {**names, **shown}[type(value)]


def _shown(value: object) -> str:
    return printable(json.dumps(value, ensure_ascii=False)[:200], 80)


class Prompts:
    """The lines of an input that was found good. Any thread may call; the file stays open.

    Attributes:
        path: where it is.
        sha256: of the whole file.
        size_bytes: of the whole file.
        numbers: of each prompt, the number of its line, from 1.

    """

    def __init__(self, fd: int, path: Path, scan: "_Scan", *, templated: bool) -> None:
        self._fd, self.path, self._templated = fd, path, templated
        self._offsets = np.frombuffer(scan.offsets, dtype=np.uint64)
        self.numbers = np.frombuffer(scan.numbers, dtype=np.uint32)
        self._ids = np.frombuffer(bytes(scan.ids), dtype="S16")
        self._order = np.argsort(self._ids, kind="stable")
        self._sorted = self._ids[self._order]
        self.size_bytes, self._mtime_ns = scan.size_bytes, scan.mtime_ns
        self.sha256 = scan.sha256

    def __len__(self) -> int:
        return len(self._offsets)

    def line(self, index: int) -> Line:
        """Read a line again.

        Raises:
            InputError: the file is not the one any more that was looked through.

        """
        raw = self._raw(index)
        # Looked at after the read: what changes a file gives it its new time before its new bytes.
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) == (self.size_bytes, self._mtime_ns):
            number = int(self.numbers[index])
            try:
                line = parse_line(raw, number, templated=self._templated)
            except Bad:
                line = None
            if line is not None and _digest(line.id) == self._ids[index]:
                return line
        raise InputError("it changed while the task ran", where=str(self.path), fix=_AGAIN)

    def index_of(self, own_id: str) -> int | None:
        """Give the index of the prompt with this id, or ``None``."""
        place = int(np.searchsorted(self._sorted, _digest(own_id)))
        if place < len(self._sorted) and self._sorted[place] == _digest(own_id):
            return int(self._order[place])
        return None

    def duplicates(self) -> list[tuple[int, int]]:
        """Give pairs of indices with the same id, the first before the second, in the order of the second."""
        same = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        firsts: dict[bytes, int] = {}
        pairs = []
        for place in same:
            first = firsts.setdefault(bytes(self._sorted[place]), int(self._order[place]))
            pairs.append((first, int(self._order[place + 1])))
        return sorted(pairs, key=lambda pair: pair[1])

    def _raw(self, index: int) -> bytes:
        offset = int(self._offsets[index])
        parts, length = [], 0
        while length <= MAX_LINE_BYTES + 2:
            part = os.pread(self._fd, 8192 if length == 0 else 2**18, offset + length)
            end = part.find(b"\n")
            parts.append(part if end < 0 else part[:end])
            length += len(part)
            if end >= 0 or not part:
                break
        return b"".join(parts).removesuffix(b"\r")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_AGAIN = "`labd retry` begins with what it is then, and asks nothing again that is the same"


def _digest(own_id: str) -> bytes:
    # numpy leaves out NUL bytes at a text's end, so there are none.
    return hashlib.blake2b(own_id.encode(), digest_size=16).digest()[:15] + b"."


@dataclass(slots=True)
class _Scan:
    """What is found out while the file is read from its beginning to its end."""

    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    numbers: "array[int]" = field(default_factory=lambda: array("I"))
    ids: bytearray = field(default_factory=bytearray)
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    bad: int = 0
    size_bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""

    def refuse(self, number: int, bad: Bad) -> None:
        self.bad += 1
        if len(self.problems) < MAX_TOLD:
            self.problems.append((number, bad.found, bad.wanted))


def open_prompts(
    path: Path,
    *,
    templated: bool,
    check: Callable[[Line], object] = lambda _: None,
    tick: Callable[[int], None] = lambda _: None,
) -> Prompts:
    """Look through a file of prompts, and give it if every line is one.

    Args:
        path: the file, links resolved.
        templated: the task has a template.
        check: gets each line that is well-formed; raises `Bad` if nothing can be made of it. Is not called any
            more once so many lines are bad that no more are told.
        tick: gets the number of lines so far, now and then; what it raises ends the reading.

    Raises:
        InputError: it is no such file; the first 20 bad lines, each with what was found and what is wanted.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"it can't be read: {error.strerror}", where=str(path)) from error
    try:
        scan = _scan(fd, templated=templated, check=check, tick=tick)
        prompts = Prompts(fd, path, scan, templated=templated)
        for first, second in prompts.duplicates():
            own = f"the id of line {prompts.numbers[first]}"
            scan.refuse(int(prompts.numbers[second]), Bad(own, "an id of its own"))
        if not scan.bad and not len(prompts):
            scan.refuse(1, Bad("no prompt in the whole file", "at least one line"))
    except BaseException:
        os.close(fd)
        raise
    if scan.bad:
        prompts.close()
        raise InputError(_told(path, scan))
    return prompts


def first_line(path: Path, *, templated: bool) -> Line | None:
    """Read the first prompt of a file; ``None`` where it has none.

    Raises:
        Bad: it is none.
        OSError: the file can't be read.

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        raw = file.readline(MAX_LINE_BYTES + 3).removeprefix(codecs.BOM_UTF8)
        for number in range(1, 1000):
            if raw.strip():
                return parse_line(raw.rstrip(b"\r\n"), number, templated=templated)
            raw = file.readline(MAX_LINE_BYTES + 3)
    return None


def _told(path: Path, scan: _Scan) -> str:
    shown = printable(str(path), 1000)
    scan.problems.sort(key=lambda problem: problem[0])
    lines = [
        f"{shown}:{number}: {found}; wanted: {wanted}" for number, found, wanted in scan.problems
    ]
    if scan.bad > len(lines):
        lines.append(f"{shown}: … and {scan.bad - len(lines):,} more bad lines")
    return "\n".join(lines)


def _scan(
    fd: int, *, templated: bool, check: Callable[[Line], object], tick: Callable[[int], None]
) -> _Scan:
    scan, sha256, offset = _Scan(), hashlib.sha256(), 0
    before = os.fstat(fd)
    with os.fdopen(os.dup(fd), "rb", buffering=_CHUNK_BYTES) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 2):
            number += 1
            begins, size = offset, len(raw)
            sha256.update(raw)
            rest = raw
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 2)
                sha256.update(rest)
                size += len(rest)
            offset += size
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                raw, begins = raw[3:], begins + 3
            if number % _TICK_LINES == 0:
                tick(number)
            if raw.strip():
                _take(scan, raw, number, begins, templated=templated, check=check)
            if len(scan.offsets) > MAX_LINES:
                scan.refuse(number, Bad(f"more than {MAX_LINES:,} prompts", "several tasks"))
                break
    scan.size_bytes, scan.mtime_ns, scan.sha256 = offset, before.st_mtime_ns, sha256.hexdigest()
    return scan


def _take(
    scan: _Scan,
    raw: bytes,
    number: int,
    begins: int,
    *,
    templated: bool,
    check: Callable[[Line], object],
) -> None:
    try:
        line = parse_line(raw.rstrip(b"\r\n"), number, templated=templated)
        if scan.bad < MAX_TOLD:
            check(line)
    except Bad as bad:
        scan.refuse(number, bad)
        return
    scan.offsets.append(begins)
    scan.numbers.append(number)
    scan.ids += _digest(line.id)
