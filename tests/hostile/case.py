"""Run hostile programs, named one a line on standard input, outside and inside; answer with a line of JSON each.

Runs as root and as an ordinary user, with labd's own Python or with the system's.
"""

import ast
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labd.sandbox import Ending, Limits, Sandbox
from tests.boxes import make_sandbox
from tests.hostile.stage import Stage

MIB = 2**20
LIMITS = Limits(
    wall_s=20,
    memory_bytes=512 * MIB,
    processes=64,
    disk_bytes=64 * MIB,
    file_bytes=256 * MIB,
    shm_bytes=64 * MIB,
    tmp_bytes=64 * MIB,
    output_bytes=8 * MIB,
)
_NAIVE_TIMEOUT_S, _NAIVE_SHORT_TIMEOUT_S, _READER_TIMEOUT_S = 30.0, 2.5, 2.0
_SIGN = "ESCAPED"
_SIGNED = re.compile(rf"^{_SIGN}", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Program:
    """A hostile program, and what its file says of it."""

    path: Path
    needs_root: bool = False
    """Only root can do outside what it tries."""
    runs: int = 1
    """How often it runs: what an earlier run left may be the escape of a later one."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Of the sandbox, for this program."""


def load(path: Path) -> Program:
    """Read what a program says of itself; it is not run for that."""
    said: dict[str, Any] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in {"NEEDS_ROOT", "RUNS", "LIMITS"}:
                said[name.lower()] = ast.literal_eval(node.value)
    return Program(path, **said)


def try_outside(program: Program) -> str:
    """Run it as anybody would run a script, and give what it escaped with; empty if it did not."""
    with Stage() as stage:
        found, said, work = [], "", stage.root
        for number in range(program.runs):
            work = stage.work(f"outside{number}")
            said = _naive_run(program, stage, work)
            found += [said] if _SIGNED.search(said) else []
        found += [] if stage.victim_lives() else ["the victim is dead"]
        left = stage.survivors()
        found += [f"{len(left)} processes are left"] if left else []
        if program.path.parent.name == "poison":
            found += _naive_reading(work, stage, said)
        return "; ".join(found)[:500]


def _naive_run(program: Program, stage: Stage, work: Path) -> str:
    (work / "stage.json").write_text(json.dumps(stage.outside()))
    log = stage.root / f"{work.name}.log"
    home = {"HOME": str(stage.root / "home"), "PATH": f"{stage.root}/bin:{os.environ['PATH']}"}
    with log.open("w+b") as out:
        process = subprocess.Popen(
            [_python(), str(program.path), stage.mark],
            cwd=work,
            env={**home, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            pass_fds=[stage.secret_fd],
        )
        try:
            # What means to outlive its time is not waited for long.
            short = "wall_s" in program.limits
            process.wait(_NAIVE_SHORT_TIMEOUT_S if short else _NAIVE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                return f"{_SIGN}: it lives on\n"
    return log.read_bytes().decode(errors="replace")


def _naive_reading(work: Path, stage: Stage, said: str) -> list[str]:
    """Read what was left as most programs would, and give what became of that."""
    command = [_python(), str(Path(__file__).parent / "naive.py"), str(work)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_READER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return ["the reader hangs"]
    answer = done.stdout.decode(errors="replace") + said
    found = [f"the reader failed: {done.stderr[-100:]!r}"] if done.returncode else []
    found += ["an escape sequence came through"] if "\x1b" in answer else []
    found += ["a secret came through"] if stage.token in answer else []
    return found + [word for word in ("nan", "inf", "True", "much memory") if word in answer]


def _python() -> str:
    # A virtual environment has no user site, and is not what most people run.
    return "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


def try_inside(program: Program, sandbox: Sandbox) -> dict[str, Any]:
    """Run it in the sandbox, and give how it ended and what it escaped with."""
    with Stage() as stage:
        if program.path.parent.name == "poison":
            # Needs all of labd, which the system's Python may not have.
            from tests.hostile.reading import read_poison  # noqa: PLC0415

            return {"ending": "", "escape": read_poison(program.path, stage, sandbox)}
        found, endings, said = [], [], ""
        for number in range(program.runs):
            work = stage.work(f"inside{number}")
            (work / "stage.json").write_text(json.dumps(stage.inside()))
            (work / "program.py").write_text(program.path.read_text())
            result = sandbox.run(
                ["python", "program.py", stage.mark],
                workdir=work,
                read_only={
                    f"/inputs/{name}": stage.root / name for name in ("baseline", "earlier")
                },
                limits=replace(LIMITS, **program.limits),
            )
            left = stage.survivors()
            found += [f"{len(left)} processes are left"] if left else []
            endings.append(result.ending.value)
            said = result.output
            if result.ending is Ending.EXITED and _SIGNED.search(said):
                found.append(said)
        found += [] if stage.victim_lives() else ["the victim is dead"]
        ending = ", ".join(endings)
        return {"ending": ending, "escape": "; ".join(found)[:500], "said": said[-500:]}


def main() -> None:
    """Answer for each program that is named, until there is no more."""
    sandbox = make_sandbox()
    gaps = [gap.name for gap in sandbox.gaps()]
    for line in sys.stdin:
        program = load(Path(line.strip()))
        begun_s = time.monotonic()
        skipped = program.needs_root and os.geteuid() != 0
        answer = {
            "outside": None if skipped else try_outside(program),
            **try_inside(program, sandbox),
            "gaps": gaps,
            "took_s": round(time.monotonic() - begun_s, 2),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if platform.machine() != "x86_64":
        raise SystemExit("the programs name system calls by their numbers on x86_64")
    main()
