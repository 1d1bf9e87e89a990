"""Whether edited files can be read, and say something else than before. Starts a process to read Python in."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from labd.text import printable

_CHILD = Path(__file__).with_name("parsing.py")
_TIMEOUT_S = 60.0


def problem_of(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Give why the new files are not worth a run; empty where they are.

    Python files have to parse. All in all something must differ beyond white space, comments and docstrings.

    Args:
        old: the files as they were.
        new: the same files as they are to be.

    """
    changed = {path: [old[path], text] for path, text in new.items() if text != old[path]}
    python = {path: pair for path, pair in changed.items() if path.endswith(".py")}
    judged = _judged(python) if python else {}
    if judged is None:
        names = ", ".join(sorted(python))
        return f"Python could not read {names} within its limits: make the code simpler."
    for path in sorted(judged):
        if judged[path] not in {"", "same"}:
            return printable(f"{judged[path]}.", 400)
    differs = any(not judged[path] for path in judged) or any(
        before.split() != after.split()
        for path, (before, after) in changed.items()
        if path not in python
    )
    if differs:
        return ""
    return "The edit changes nothing but white space, comments or docstrings."


def _judged(pairs: Mapping[str, list[str]]) -> dict[str, str] | None:
    """Have a child read the pairs of old and new text; ``None`` if it died of them."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", str(_CHILD)],
            input=json.dumps(pairs),
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={},
            timeout=_TIMEOUT_S,
            check=True,
        )
        judged: dict[str, str] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return None
    return judged if judged.keys() == pairs.keys() else None
