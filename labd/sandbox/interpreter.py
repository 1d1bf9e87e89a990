"""labd's own Python as a run sees it: what has to be shown of it, and under which path. Starts nothing."""

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labd.errors import SandboxError

WORK = "/work"
# A virtual environment below /work would be hidden by, or litter, the run's own /work.
_MOVED = "/opt/labd"


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path, resolved, and where it is seen inside."""

    source: Path
    inside: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Interpreter:
    """labd's own Python as a run sees it."""

    executable: str
    binds: tuple[Bind, ...]


@functools.cache
def interpreter() -> Interpreter:
    """Find what has to be seen of the running Python: its prefixes and each hop of its links. Looked up once.

    Raises:
        SandboxError: the interpreter lies where it can't be shown without showing too much.

    """
    if not sys.executable:
        raise SandboxError(
            "the running Python doesn't know its own path", fix="Start labd from a venv"
        )
    binds: dict[str, Bind] = {}
    for prefix in dict.fromkeys(
        (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)
    ):
        for path in dict.fromkeys((os.path.normpath(prefix), os.path.realpath(prefix))):
            _refuse_wide(path)
            if not _seen(path, binds):
                binds[_inside(path)] = Bind(Path(path).resolve(), _inside(path))
    for hop in _hops(sys.executable):
        if not _seen(hop, binds):
            binds[_inside(hop)] = Bind(Path(hop).resolve(), _inside(hop))
    return Interpreter(_inside(os.path.normpath(sys.executable)), tuple(binds.values()))


def _refuse_wide(path: str) -> None:
    wide = {"/", "/home", "/root", "/opt", "/var", "/srv", "/mnt", os.environ.get("HOME", "/")}
    # A virtual environment may be moved aside, but names its base by path.
    base = path in {os.path.normpath(sys.base_prefix), os.path.realpath(sys.base_prefix)}
    if path in wide or (base and _inside(path) != path):
        raise SandboxError(
            f"the running Python is installed in {path}, which a sandbox can't show",
            fix="Install labd in a virtual environment of its own, with a Python outside /work",
        )


def _inside(path: str) -> str:
    return _MOVED + path if path == WORK or path.startswith(WORK + "/") else path


def _seen(path: str, binds: Mapping[str, Bind]) -> bool:
    inside = PurePosixPath(_inside(path))
    return any(inside.is_relative_to(place) for place in (*binds, "/usr"))


def _hops(path: str) -> Iterator[str]:
    hop = Path(path)
    for _ in range(40):
        hop = Path(os.path.normpath(hop))
        yield str(hop)
        if not hop.is_symlink():
            return
        hop = hop.parent / hop.readlink()
