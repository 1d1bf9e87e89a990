"""What of the host a command may name: only what lies below the lab's places for inputs. Changes nothing.

Paths are judged with their links resolved, so that a link can't lead out. What belongs to the lab itself
is never seen by a command, with one exception: the results of one task, as input of another.
"""

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labd.errors import TaskFileError
from labd.files import locked
from labd.packing import archived
from labd.task import TaskFile
from labd.text import printable
from labd.yamlfile import Place, Problem, load_yaml

LOCK = ".lock"
"""In a command's results: locked while an attempt runs."""
_LOCKS = (LOCK, "journal.jsonl")
_PLAIN_YAML = re.compile(r"[A-Za-z0-9._/][A-Za-z0-9._/-]*")

_NO_NETWORK = (
    "false, or the line `allow_network: true` below `sandbox:` in config/labd.yaml, and a restart"
)

_Key = tuple[str | int, ...]
Refused = tuple[_Key, str, str]
"""A key, what was found there, and what is wanted."""
_INPUT: _Key = ("input",)
_KINDS: Mapping[_Key, str] = {("workdir",): "a directory", _INPUT: "a file"}


@dataclass(frozen=True, slots=True)
class Places:
    """What a command gets of the host, links resolved."""

    workdir: Path | None = None
    inputs: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fence:
    """Where a command's paths may lie.

    `forbidden` is not seen, nor is a directory around it. Below `results`, the results of a single task may be
    named all the same, without being below one of the `roots`.
    """

    roots: tuple[Path, ...]
    forbidden: tuple[Path, ...]
    results: Path

    def resolved(self) -> "Fence":
        """Give the same fence with all links resolved, and the results among what is forbidden."""
        results = _real(self.results)
        closed = tuple(dict.fromkeys((*map(_real, self.forbidden), results)))
        return Fence(tuple(map(_real, self.roots)), closed, results)

    def task_of(self, path: Path) -> str:
        """Give the id of the task whose results the path lies in, or an empty text."""
        if path == self.results or not path.is_relative_to(self.results):
            return ""
        task_id = path.relative_to(self.results).parts[0]
        return "" if task_id.startswith(".") else task_id

    def refusal(self, path: Path) -> str:
        """Say what is wanted instead of this path, or give an empty text if it may be named."""
        exempt = {self.results} if self.task_of(path) else set()
        for closed in (path for path in self.forbidden if path not in exempt):
            if path.is_relative_to(closed) or closed.is_relative_to(path):
                return (
                    "a place apart from the lab's own spool, settings and results "
                    f"(of those, {self.results}/<id> may be named)"
                )
        if exempt or any(path.is_relative_to(root) for root in self.roots):
            return ""
        shown = ", ".join(map(str, self.roots)) or "no directory yet"
        return (
            f"a place below one of: {shown}; or this line in config/labd.yaml, and a restart: "
            f"`inputs: [{', '.join(map(_yaml, (*self.roots, _to_add(path))))}]`"
        )


def check_command(
    task: TaskFile,
    where: str,
    *,
    roots: Sequence[Path],
    forbidden: Sequence[Path],
    results: Path,
    allow_network: bool,
) -> None:
    """Pass if a command may have what it names, so that a wrong path is told at the drop; other kinds pass.

    What lies in another task's results need not be there yet.

    Raises:
        TaskFileError: it may not; every problem on a line of its own, with its place in the file `where`.

    """
    if task.spec.kind == "command":
        fence = Fence(tuple(roots), tuple(forbidden), results)
        judge(task, where, fence=fence, allow_network=allow_network, at_run=False)


def judge(
    task: TaskFile, where: str, *, fence: Fence, allow_network: bool, at_run: bool
) -> Places:
    """Give the real places that a command names, if it may have them.

    `at_run`: right before it runs, when all must be there, and nothing may belong to a task that is running.

    Raises:
        TaskFileError: it may not have what it names; all problems, as in `check_command`.

    """
    found: list[Refused] = []
    if task.spec.network and not allow_network:
        found.append((("network",), "true", _NO_NETWORK))
    real, refused = _judged(_named(task), fence, at_run=at_run)
    if found or refused:
        raise TaskFileError(located(task, where, found + refused))
    inputs = {str(key[1]): path for key, path in real.items() if len(key) > 1}
    return Places(real.get(("workdir",)), inputs)


def find_input(task: TaskFile, *, fence: Fence, at_run: bool) -> tuple[Path, list[Refused]]:
    """Give the real place of a task's `input`, a single file, and why it may not be had, if so.

    A relative path is looked for in each of the fence's roots, in their order, and then, where it begins with
    the name of the directory of all results, from beside that. `at_run` is as in `judge`.
    """
    named = Path(task.spec.input or "")
    if not named.is_absolute():
        places = [root / named for root in fence.roots]
        # What is not there is meant in the first of them, but in the results if it begins so.
        meant = [*places, Path("/") / named][0]
        if named.parts[:1] == (fence.results.name,):
            meant = fence.results.parent / named
        named = next(filter(os.path.lexists, [*places, meant]), meant)
    real, refused = _judged({_INPUT: named}, fence, at_run=at_run)
    return real[_INPUT], refused


def _judged(
    named: Mapping[_Key, Path], fence: Fence, *, at_run: bool
) -> tuple[dict[_Key, Path], list[Refused]]:
    """Give the real places of what is named, and those that may not be had."""
    real = {key: _real(path) for key, path in named.items()}
    real_fence = fence.resolved() if named else fence
    refused: list[Refused] = []
    for key, path in real.items():
        wanted = real_fence.refusal(path) or _missing(path, key, real_fence, at_run=at_run)
        if wanted:
            refused.append((key, _shown(named[key], path), printable(wanted, 2000)))
    return real, refused


def _named(task: TaskFile) -> dict[_Key, Path]:
    spec = task.spec
    named: dict[_Key, Path] = {("inputs", name): Path(path) for name, path in spec.inputs.items()}
    return named if spec.workdir is None else {("workdir",): Path(spec.workdir), **named}


def _shown(named: Path, path: Path) -> str:
    leads = "" if path == named else f", which leads to {printable(str(path), 200)}"
    return f"{printable(str(named), 200)}{leads}"


def located(task: TaskFile, where: str, found: Sequence[Refused]) -> str:
    """Give a line for each key that was refused, at most 20, with its place in the file, in the file's order."""
    document = load_yaml(task.text.encode())
    problems = [
        Problem(
            document.place(key) or Place(1, 1),
            ".".join(map(str, key)),
            f"found {shown}",
            wanted,
        )
        for key, shown, wanted in found
    ]
    problems.sort(key=lambda one: (one.place.line, one.place.column) if one.place else (0, 0))
    return "\n".join(one.located(printable(where)) for one in problems[:20])


def _missing(path: Path, key: _Key, fence: Fence, *, at_run: bool) -> str:
    """Say what should be at the path, or give an empty text if it is there."""
    kinds = _KINDS.get(key, "a file or directory")
    owner = fence.task_of(path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if owner and archived(fence.results / owner):
            return f"{kinds} that is there; its task's files are compressed: `labd unpack {owner}`"
        return "" if owner and not at_run else f"{kinds} that is there"
    except OSError as error:
        return f"{kinds} that can be looked at: {error.strerror}"
    fits = (stat.S_ISDIR(mode) and "directory" in kinds) or (
        stat.S_ISREG(mode) and "file" in kinds
    )
    if not fits:
        return kinds
    if at_run and owner and _is_running(fence.results / owner):
        # Its files are in the hands of its own command, which could put a link in their place.
        return f"a task that is not running: put `after: {owner}` into the file"
    return ""


def _is_running(results: Path) -> bool:
    for name in _LOCKS:
        if not (results / name).exists():
            continue
        try:
            with locked(results / name):
                pass
        except BlockingIOError:
            return True
    return False


def _real(path: Path) -> Path:
    # Gives a path that is no real one where links go round; that is then neither file nor directory.
    return Path(os.path.realpath(path))


def _to_add(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _yaml(path: Path) -> str:
    text = str(path)
    return text if _PLAIN_YAML.fullmatch(text) else json.dumps(text, ensure_ascii=False)
