"""Which modules a Python file needs, without running it."""

import ast
import sys
from collections.abc import Iterable, Iterator


def parsed(source: str) -> list[ast.stmt]:
    """Give a module's statements; none where it is no Python, which its first run will say better."""
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def modules_of(source: str, files: Iterable[str]) -> tuple[str, ...]:
    """Give the modules that a file imports whenever it is run, sorted; neither Python's own nor those among `files`."""
    own = {name.partition("/")[0].removesuffix(".py") for name in files} | sys.stdlib_module_names
    return tuple(sorted(set(_imported(parsed(source))) - own))


def _imported(statements: Iterable[ast.stmt]) -> Iterator[str]:
    # What stands in a function, a condition or a try is not needed by every run.
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
