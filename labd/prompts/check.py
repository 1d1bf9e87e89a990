"""What a task of prompts must pass at the drop: its input is there, its texts are Jinja, its schema is a schema."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labd.command.places import Fence, Refused, find_input, located
from labd.errors import ConfigError, TaskFileError
from labd.task import TaskFile
from labd.text import printable

if TYPE_CHECKING:
    from jinja2 import nodes

    from labd.prompts.lines import Line

_MAX_TOLD = 5


def check_prompts(
    task: TaskFile, where: str, *, roots: Sequence[Path], forbidden: Sequence[Path], results: Path
) -> None:
    """Pass if a task of prompts can be begun; other kinds pass. Nothing of its input is read but the first prompt.

    An input in another task's results need not be there yet.

    Raises:
        TaskFileError: it can't; every problem on a line of its own, with its place in the file `where`.

    """
    if task.spec.kind != "prompts":
        return
    # It needs numpy, for which all readers would wait; few tasks are prompts.
    from labd.prompts.lines import Bad, first_line  # noqa: PLC0415

    path, refused = find_input(
        task, fence=Fence(tuple(roots), tuple(forbidden), results), at_run=False
    )
    first: Line | None = None
    if not refused and path.exists():
        try:
            first = first_line(path, templated=task.spec.template is not None)
        except Bad as bad:
            refused = [
                (("input",), f"{printable(str(path))}, first line: {bad.found}", bad.wanted)
            ]
        except OSError as error:
            refused = [
                (("input",), printable(str(path)), f"a file that can be read: {error.strerror}")
            ]
    found = [*refused, *_jinja_problems(task, first), *_schema_problems(task.spec.reply_schema)]
    if found:
        raise TaskFileError(located(task, where, found))


def _jinja_problems(task: TaskFile, first: "Line | None") -> Iterator[Refused]:
    from jinja2 import TemplateSyntaxError  # noqa: PLC0415 - other kinds of tasks need none of it

    from labd.prompts.renderer import make_environment  # noqa: PLC0415

    environment = make_environment()
    for key in ("system", "template"):
        source = getattr(task.spec, key)
        if source is None:
            continue
        try:
            # Only parsed: to compile it would already work out ``"a" * 10 ** 10``.
            tree = environment.parse(source)
        except TemplateSyntaxError as error:
            yield (key,), f"line {error.lineno} of it: {printable(str(error), 200)}", "Jinja"
            continue
        except RecursionError:
            yield (key,), "very deep nesting", "simpler Jinja"
            continue
        if first is not None:
            known = {*first.variables, *environment.globals}
            for name in sorted(_needed(tree) - known)[:_MAX_TOLD]:
                given = ", ".join(sorted(first.variables)[:20]) or "none"
                wanted = f"a variable of the input's first line, which has: {given}"
                yield (key,), f"{{{{ {printable(name, 60)} }}}}", printable(wanted, 500)


def _needed(tree: "nodes.Template") -> set[str]:
    """Give the variables without which a template can't be rendered, whatever their values; perhaps not all of them."""
    from jinja2 import nodes  # noqa: PLC0415 - as above

    made = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    made |= {node.name for node in tree.find_all(nodes.Macro)}
    return {name for name in _read(tree) if name not in made}


def _read(node: "nodes.Node") -> Iterator[str]:
    """Give the names that are surely read; what may be passed over, or may be undefined, is left out."""
    from jinja2 import nodes  # noqa: PLC0415 - as above

    if isinstance(node, nodes.Name):
        yield node.name
        return
    children: Sequence[nodes.Node] = list(node.iter_child_nodes())
    if isinstance(node, nodes.If | nodes.CondExpr):
        children = [node.test]
    elif isinstance(node, nodes.For):
        children = [node.iter]
    elif isinstance(node, nodes.And | nodes.Or):
        children = [node.left]
    elif isinstance(node, nodes.Macro | nodes.CallBlock):
        children = []
    elif isinstance(node, nodes.Test | nodes.Filter) and node.name in _MAY_BE_UNDEFINED:
        children = [child for child in children if child is not node.node]
    for child in children:
        yield from _read(child)


_MAY_BE_UNDEFINED = ("defined", "undefined", "default", "d")


def _schema_problems(schema: Mapping[str, Any] | None) -> Iterator[Refused]:
    if schema is None:
        return
    from labd.llm.structured import Shape  # noqa: PLC0415 - as above

    try:
        Shape(schema)
    except ConfigError as error:
        inner = getattr(error.__cause__, "absolute_path", ())
        yield ("schema", *inner), printable(error.what, 300), error.fix
