"""Every hostile program escapes outside and is contained inside, as root and as an ordinary user."""

import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.case import load

CORPUS = Path(__file__).parent / "hostile"
PROGRAMS = sorted(CORPUS.glob("*/*.py"))
GROUPS = {
    "reading",
    "writing",
    "tampering",
    "network",
    "processes",
    "exhaustion",
    "poison",
    "privilege",
}
REPOSITORY = Path(__file__).resolve().parents[1]
SYSTEM_PYTHON = "/usr/bin/python3"
USER = 64125

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls"),
]


WHOLE = "LABD_TORTURE" in os.environ
# Twice a hundred programs take minutes: without torture each of them runs as one of the two, turn and turn about.
FOR_US, FOR_A_USER = (PROGRAMS, PROGRAMS) if WHOLE else (PROGRAMS[::2], PROGRAMS[1::2])


class Driver:
    """A process that tries programs, as one user."""

    def __init__(self, prefix: list[str], python: str) -> None:
        path = f"{REPOSITORY}:{sysconfig.get_paths()['purelib']}"
        self._process = subprocess.Popen(
            [*prefix, python, "-m", "tests.hostile.case"],
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, program: Path) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{program}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the driver has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        # Leaving the block closes what it reads, at whose end it ends.
        with self._process:
            pass


@pytest.fixture(scope="module")
def as_we_are() -> Iterator[Driver]:
    driver = Driver([], sys.executable)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def as_user() -> Iterator[Driver]:
    if os.geteuid() != 0 or not Path(SYSTEM_PYTHON).exists() or REPOSITORY.is_relative_to("/root"):
        pytest.skip("only root can become another user, who needs a Python and this repository")
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    driver = Driver([*become, "--bounding-set=-all"], SYSTEM_PYTHON)
    yield driver
    driver.close()


def judge(answer: dict[str, Any]) -> None:
    # Outside first: a program that does nothing there shows nothing in here.
    assert answer["outside"] != "", f"it does not even escape outside: {answer}"
    assert answer["escape"] == "", answer


def test_the_corpus_has_all_groups_and_each_program_says_what_would_be_an_escape() -> None:
    assert {path.parent.name for path in PROGRAMS} == GROUPS
    assert len(PROGRAMS) >= 40
    for path in PROGRAMS:
        assert path.read_text().startswith('"""Escape: '), path
        load(path)


@pytest.mark.parametrize("program", FOR_US, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_hostile_program_is_contained(program: Path, as_we_are: Driver) -> None:
    judge(as_we_are.ask(program))


@pytest.mark.parametrize("program", FOR_A_USER, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_hostile_program_is_contained_where_labd_is_an_ordinary_user(
    program: Path, as_user: Driver
) -> None:
    judge(as_user.ask(program))
