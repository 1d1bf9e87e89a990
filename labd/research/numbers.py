"""Numbers by reference: text names recorded values, and only here do they become digits.

A template is Jinja, cut down to looking up, looping and asking: no arithmetic, no calls, no strings
built from parts, so that what is printed is always one recorded value under one path. Whatever is
printed is escaped for Markdown. Knows nothing of records, files or papers.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from jinja2 import StrictUndefined, TemplateError, nodes, pass_context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from labd.clock import print_duration
from labd.errors import ResearchError
from labd.research.printing import (
    Scalar,
    escape_markdown,
    fenced_code,
    inline_code,
    show_count,
    show_number,
    show_p,
    show_p_relation,
    show_percent,
    show_plain,
    show_signed,
)
from labd.text import printable

MAX_TEMPLATE_CHARS = 2**20
_MAX_LOOKUPS = 200_000
_MAX_PROBLEMS = 20
_MAX_DIGITS = 17
_MAX_FIRST = 1000

# What stands in a filter's brackets is typed, so it may only be a small number or a word.
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "num": (int,),
    "pct": (int,),
    "signed": (int,),
    "first": (int,),
    "counted": (str, str),
    "codeblock": (str,),
}
_WORD = re.compile(r"[A-Za-z][A-Za-z -]{0,40}")

_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Getitem,
    nodes.Filter, nodes.Test, nodes.Const, nodes.Compare, nodes.Operand, nodes.And, nodes.Or,
    nodes.Not, nodes.If, nodes.CondExpr, nodes.For, nodes.Tuple, nodes.List,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reference:
    """One recorded value as it was printed: where it stands, what it is, what a reader sees."""

    path: str
    value: Scalar
    shown: str


@dataclass(frozen=True, slots=True)
class Filled:
    """Markdown with every reference filled in, and the list of what was filled in, in order."""

    text: str
    references: tuple[Reference, ...]


def fill(template_text: str, context: Mapping[str, Any]) -> Filled:
    """Fill a template's references from `context`, which is plain JSON data.

    Filters: ``num(digits)``, ``pct(decimals)``, ``signed(digits)``, ``p`` and ``p_is`` (p-values as
    ``0.034`` and ``= 0.034``), ``dur`` (seconds), ``counted("trial")`` for numbers; ``code`` and
    ``codeblock("yaml")`` for texts; ``path`` for a picture's path; ``items``, ``first(n)``, ``count`` and
    ``best_first("higher")`` for lists. Without a filter a value is printed as it is.

    Raises:
        ResearchError: the template is not such a template, or asks for what is not there or can't
            be printed; all places at once, each with its line and the nearest known name.

    """
    return _Filler(context).fill(template_text)


class _Value:
    """A recorded value with its path. Templates see its children and its truth, never this object."""

    __slots__ = ("filler", "path", "raw")

    def __init__(self, filler: "_Filler", path: str, raw: object) -> None:
        self.filler = filler
        self.path = path
        self.raw = raw

    def __bool__(self) -> bool:
        return bool(self.raw)

    def __iter__(self) -> Iterator["_Value"]:
        return iter(self.filler.elements(self))

    def __contains__(self, key: object) -> bool:
        return isinstance(self.raw, dict | list) and _raw(key) in self.raw

    def __eq__(self, other: object) -> bool:
        return self.raw == _raw(other)

    def __hash__(self) -> int:
        return hash(self.path)

    def __lt__(self, other: object) -> bool:
        return self.filler.number(self) < _as_float(other)

    def __gt__(self, other: object) -> bool:
        return self.filler.number(self) > _as_float(other)

    def __le__(self, other: object) -> bool:
        return self.filler.number(self) <= _as_float(other)

    def __ge__(self, other: object) -> bool:
        return self.filler.number(self) >= _as_float(other)


class _Missing(_Value):
    """Stands in for what was not found, so that one pass finds all problems."""

    __slots__ = ()


class _Printed(str):
    """Markdown that a filter made; nothing more is to be done to it."""

    __slots__ = ()


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja whose look-ups in recorded values go through the filler and never to Python's attributes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, _Value):
            return obj.filler.child(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, _Value):
            return obj.filler.child(obj, _raw(argument))
        return super().getitem(obj, argument)


class _Filler:
    """One filling: collects references and problems as Jinja goes through the template."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._context = context
        self._references: list[Reference] = []
        self._problems: list[str] = []
        self._lines: dict[str, list[int]] = {}
        self._lookups = 0
        self._env = _Environment(
            undefined=StrictUndefined,
            finalize=pass_context(lambda _context, value: self._finalize(value)),
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.globals.clear()
        self._env.filters.clear()
        self._env.tests.clear()
        self._env.tests["none"] = lambda value: _raw(value) is None
        self._env.filters.update(self._filters())

    def _filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "num": lambda v, digits=4: self._number(
                v, lambda x: show_number(x, min(digits, _MAX_DIGITS))
            ),
            "pct": lambda v, decimals=None: self._number(v, lambda x: show_percent(x, decimals)),
            "signed": lambda v, digits=4: self._number(
                v, lambda x: show_signed(x, min(digits, _MAX_DIGITS))
            ),
            "p": lambda v: self._number(v, show_p),
            "p_is": lambda v: self._number(v, show_p_relation),
            "dur": lambda v: self._number(v, print_duration),
            "counted": self._counted,
            "code": lambda v: self._text(v, inline_code),
            "codeblock": lambda v, language="": self._text(v, lambda t: fenced_code(t, language)),
            "path": self._path,
            "items": self._items,
            "count": self._count,
            "first": self._first,
            "best_first": self._best_first,
        }

    def fill(self, template_text: str) -> Filled:
        try:
            tree = self._parse(template_text)
            names = {name: self._top(name) for name in self._look_over(tree)}
            text = self._env.from_string(tree).render(names)
        except (TemplateError, SyntaxError, RecursionError, TypeError, ValueError) as error:
            # The last two are how a compiled template says that it took a value for another kind.
            line = getattr(error, "lineno", None)
            raise ResearchError(
                f"the template can't be read: {printable(str(error))}",
                where=f"line {line}" if line else "",
            ) from error
        self._raise_problems()
        return Filled(text, tuple(self._references))

    def _parse(self, template_text: str) -> nodes.Template:
        if len(template_text) > MAX_TEMPLATE_CHARS:
            raise ResearchError(
                f"a template of {len(template_text)} characters is longer than {MAX_TEMPLATE_CHARS}"
            )
        return self._env.parse(template_text)

    def _look_over(self, tree: nodes.Template) -> set[str]:
        """Note where each name stands, refuse what is no reference, and give the outermost names."""
        names = set()
        for node in tree.find_all(nodes.Node):
            if not isinstance(node, _ALLOWED):
                self._problem(
                    f"a {type(node).__name__.lower()} is more than a reference", line=node.lineno
                )
            elif isinstance(node, nodes.Name) and node.ctx == "load" and node.name != "loop":
                names.add(node.name)
                self._lines.setdefault(node.name, []).append(node.lineno)
            elif isinstance(node, nodes.Filter):
                self._check_arguments(node)
            elif isinstance(node, nodes.Getattr):
                self._lines.setdefault(node.attr, []).append(node.lineno)
            elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
                self._lines.setdefault(str(node.arg.value), []).append(node.lineno)
        self._raise_problems()
        stored = {n.name for n in tree.find_all(nodes.Name) if n.ctx == "store"}
        return names - stored | (names & stored & set(self._context))

    def _check_arguments(self, node: nodes.Filter) -> None:
        if node.name == "best_first":
            good = len(node.args) == 1
        else:
            kinds = _ARGUMENTS.get(node.name, ())
            good = len(node.args) <= len(kinds) and all(map(_is_plain, node.args, kinds))
        if not good or node.kwargs or node.dyn_args or node.dyn_kwargs:
            self._problem(f"{node.name} can't be used with these arguments", line=node.lineno)

    def _problem(self, text: str, *, line: int | None = None, name: str = "") -> None:
        lines = [line] if line else sorted(set(self._lines.get(name, [])))
        where = f"line {' or '.join(map(str, lines[:3]))}: " if lines else ""
        if where + text not in self._problems:
            self._problems.append(where + text)

    def _raise_problems(self) -> None:
        if not self._problems:
            return
        shown = self._problems[:_MAX_PROBLEMS]
        rest = len(self._problems) - len(shown)
        more = [f"and {rest} more"] if rest else []
        raise ResearchError(
            "the text asks for what the record can't give: " + "; ".join([*shown, *more]),
            fix="Name recorded values only",
        )

    def _top(self, name: str) -> _Value:
        if name in self._context:
            return _Value(self, name, self._context[name])
        return self._not_found(name, name, self._context)

    def _not_found(self, path: str, name: str, known: Mapping[str, Any]) -> _Missing:
        near = get_close_matches(name, [str(key) for key in known], n=1, cutoff=0.5)
        hint = f" (nearest: {printable(near[0], 80)})" if near else ""
        self._problem(f"{printable(path, 200)} is not recorded{hint}", name=name)
        return _Missing(self, path, None)

    def child(self, parent: _Value, key: object) -> _Value:
        """Look `key` up in a dict or list; what is not there is noted and stands as missing."""
        self._count_lookup()
        raw = parent.raw
        if isinstance(raw, dict) and isinstance(key, str):
            path = f"{parent.path}.{key}" if key.isidentifier() else f"{parent.path}[{key!r}]"
            if key in raw:
                return _Value(self, path, raw[key])
            return self._not_found(path, key, raw)
        if isinstance(raw, list) and isinstance(key, int) and 0 <= key < len(raw):
            return _Value(self, f"{parent.path}[{key}]", raw[key])
        path = f"{parent.path}.{key}"
        if isinstance(parent, _Missing):
            return _Missing(self, path, None)
        return self._not_found(path, str(key), {})

    def elements(self, value: _Value) -> list[_Value]:
        """Give a list's elements with their paths."""
        if isinstance(value.raw, list):
            self._count_lookup(len(value.raw))
            return [_Value(self, f"{value.path}[{i}]", raw) for i, raw in enumerate(value.raw)]
        if not isinstance(value, _Missing):
            self._problem(f"{printable(value.path, 200)} is no list to go through")
        return []

    def _count_lookup(self, times: int = 1) -> None:
        self._lookups += times
        if self._lookups > _MAX_LOOKUPS:
            raise ResearchError(f"the template looks up more than {_MAX_LOOKUPS} values")

    def number(self, value: object) -> float:
        """Give a recorded, finite number, or note the problem and give 0."""
        if isinstance(value, _Value):
            raw = value.raw
            if isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw):
                return raw
            if not isinstance(value, _Missing):
                self._problem(f"{printable(value.path, 200)} is {_kind(raw)}, not a number")
        else:
            self._problem(f"{printable(str(value), 80)} is typed, not recorded")
        return 0

    def _record(self, value: _Value, raw: Scalar, shown: str) -> None:
        self._references.append(Reference(value.path, raw, shown))

    def _number(self, value: object, show: Callable[[float], str]) -> _Printed:
        number = self.number(value)
        shown = show(number)
        if isinstance(value, _Value):
            self._record(value, number, shown)
        return _Printed(shown.replace("<", "\\<"))

    def _text(self, value: object, show: Callable[[str], str]) -> _Printed:
        if isinstance(value, _Value):
            raw = value.raw
            if isinstance(raw, bool | int | str) or (
                isinstance(raw, float) and math.isfinite(raw)
            ):
                plain = show_plain(raw)
                self._record(value, raw, plain)
                return _Printed(show(plain))
            if not isinstance(value, _Missing):
                self._problem(f"{printable(value.path, 200)} is {_kind(raw)} and can't be printed")
        else:
            self._problem(f"{printable(str(value), 80)} is typed, not recorded")
        return _Printed("")

    def _finalize(self, value: object) -> str:
        """Make Markdown of what stands in ``{{ }}``."""
        if isinstance(value, _Printed):
            return value
        if isinstance(value, str):
            # One of two words that the template chose between; digits would be a typed number.
            if not any(char.isdigit() for char in value):
                return value
        elif isinstance(value, StrictUndefined):
            return str(value)
        return self._text(value, escape_markdown)

    def _counted(self, value: object, one: str = "item", many: str = "") -> _Printed:
        shown = self._number(value, show_count)
        return _Printed(f"{shown} {one if _raw(value) == 1 else many or one + 's'}")

    def _path(self, value: object) -> _Printed:
        raw = _raw(value)
        if isinstance(raw, str) and re.fullmatch(r"\w[\w./-]{0,200}", raw, re.ASCII):
            return self._text(value, str)
        if isinstance(value, _Value) and not isinstance(value, _Missing):
            self._problem(f"{printable(value.path, 200)} is no plain relative path")
        return _Printed("")

    def _items(self, value: object) -> list[tuple[_Value, _Value]]:
        if isinstance(value, _Value) and isinstance(value.raw, dict):
            self._count_lookup(len(value.raw))
            return [
                (_Value(self, f"{value.path}[{key!r}] (name)", key), self.child(value, key))
                for key in value.raw
            ]
        if isinstance(value, _Value) and not isinstance(value, _Missing):
            self._problem(f"{printable(value.path, 200)} has no named items")
        return []

    def _count(self, value: object) -> _Value:
        raw, path = _raw(value), value.path if isinstance(value, _Value) else "?"
        if isinstance(raw, list | dict):
            return _Value(self, f"{path}.count", len(raw))
        if not isinstance(value, _Missing):
            self._problem(f"{printable(path, 200)} is nothing to count")
        return _Missing(self, path, None)

    def _first(self, value: object, n: int) -> list[_Value]:
        values = value if isinstance(value, list) else self.elements(self._held(value))
        return values[: min(n, _MAX_FIRST)]

    def _best_first(self, value: object, better: object) -> list[_Value]:
        """Sort records by their ``value``, best first, leaving out those that have none; ties keep their order."""
        rows = [
            (row.raw["value"], row)
            for row in self.elements(self._held(value))
            if isinstance(row.raw, dict) and isinstance(row.raw.get("value"), int | float)
        ]
        sign = -1 if _raw(better) == "higher" else 1
        return [row for _, row in sorted(rows, key=lambda pair: sign * pair[0])]

    def _held(self, value: object) -> _Value:
        if isinstance(value, _Value):
            return value
        self._problem(f"{printable(str(value), 80)} is typed, not recorded")
        return _Missing(self, "?", None)


def _is_plain(argument: nodes.Expr, kind: type) -> bool:
    value = argument.value if isinstance(argument, nodes.Const) else None
    if isinstance(value, str):
        return kind is str and _WORD.fullmatch(value) is not None
    return type(value) is int and kind is int


def _raw(value: object) -> object:
    return value.raw if isinstance(value, _Value) else value


def _as_float(value: object) -> float:
    raw = _raw(value)
    return float(raw) if isinstance(raw, int | float) else math.nan


def _kind(raw: object) -> str:
    if raw is None:
        return "empty (null)"
    if isinstance(raw, float):
        return "not finite"
    return {dict: "a group of values", list: "a list", bool: "true or false"}.get(
        type(raw), "a text"
    )
