"""Reads untrusted Python in a process of its own, since its parser can be made to take for ever, or to crash.

Run by path with an isolated interpreter: knows the standard library only. Nothing of what it reads is executed.
"""

import ast
import json
import resource
import sys
import threading

_CPU_S = 20
_MEMORY_BYTES = 2 * 2**30
_STACK_BYTES = 256 * 2**20
_DEPTH = 20_000


def judge(old: str, new: str, path: str) -> str:
    """Give what is wrong with `new`, one line; empty where it is Python that says something else than `old`."""
    try:
        compile(new, path, "exec", dont_inherit=True)
        sys.setrecursionlimit(_DEPTH)
        after = _meaning(new)
    except SyntaxError as error:
        return f"{path} is not valid Python: line {error.lineno}: {error.msg}"
    except (ValueError, OverflowError) as error:
        return f"{path} is not valid Python: {error}"
    except (RecursionError, MemoryError):
        return f"{path} is nested too deep"
    try:
        same = after == _meaning(old)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        same = False  # what was there could not be read, and this can
    return "same" if same else ""


def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)


def main() -> None:
    """Read ``{path: [old, new]}`` and write ``{path: judgement}``, both as JSON."""
    for which, limit in ((resource.RLIMIT_CPU, _CPU_S), (resource.RLIMIT_AS, _MEMORY_BYTES)):
        resource.setrlimit(which, (limit, limit))
    given = json.load(sys.stdin)
    found: dict[str, str] = {}

    def work() -> None:
        for path, (old, new) in given.items():
            sys.setrecursionlimit(1000)
            found[path] = judge(old, new, path)

    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
