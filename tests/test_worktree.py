"""The code of trials in git: the same record gives the same hashes, and what is in it is what ran."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labd.errors import ConfigError
from labd.research.worktree import MAX_TRACKED_BYTES, Worktree, sha256_of
from labd.template import Template, load_template, snapshot
from tests.factories import PARABOLA, make_template

FIRST = {"model.py": "x = 1\n", "sub/net.py": "y = 1\n"}
SECOND = {"model.py": "x = 2\n", "sub/net.py": "y = 1"}


@pytest.fixture
def template(tmp_path: Path) -> Template:
    directory = make_template(
        tmp_path / "templates", experiment=PARABOLA % 0, editable=["model.py", "sub/net.py"]
    )
    (directory / "sub").mkdir()
    (directory / "model.py").write_text("x = 0\n")
    (directory / "sub" / "net.py").write_text("y = 0\n")
    (directory / "run.sh").write_text("#!/bin/sh\n")
    (directory / "run.sh").chmod(0o755)
    (directory / "data.bin").write_bytes(b"0" * (MAX_TRACKED_BYTES + 1))
    (tmp_path / "r").mkdir()
    read = load_template("tiny", roots=[tmp_path / "templates"])
    return snapshot(read, tmp_path / "r" / "template")


def opened(template: Template, results_dir: Path) -> Worktree:
    return Worktree(results_dir, template, started_on="2026-11-22")


def fill(tree: Worktree) -> list[str]:
    return [
        tree.add("trial-000", FIRST, parent=None, message="trial-000: a draft\n\nwhy \x1b[31mred"),
        tree.add("trial-001", SECOND, parent="trial-000", message="trial-001: better"),
        tree.add("trial-002", SECOND, parent=None, message="trial-002: another"),
    ]


def git(tree: Worktree, *words: str) -> str:
    # The repository is root's where the tests are, and of whoever runs them elsewhere.
    command = ["git", "-c", f"safe.directory={tree.directory}", "-C", str(tree.directory), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def tree(template: Template, tmp_path: Path) -> Worktree:
    return opened(template, tmp_path / "r")


def test_git_finds_a_sound_repository_with_a_commit_and_a_branch_for_each_trial(
    tree: Worktree,
) -> None:
    hashes = fill(tree)
    assert git(tree, "fsck", "--full", "--strict") == ""
    branches = git(tree, "for-each-ref", "--format=%(refname:short) %(objectname)").split("\n")
    assert [f"trial-{number:03d} {commit}" for number, commit in enumerate(hashes)] == branches[
        1:4
    ]
    assert git(tree, "log", "--format=%s", "trial-001").split("\n")[:3] == [
        "trial-001: better",
        "trial-000: a draft",
        "The template",
    ]
    assert git(tree, "show", "trial-001:sub/net.py") == "y = 1"
    assert git(tree, "status", "--short") == ""


def test_a_models_words_can_not_drive_a_terminal_from_a_commit(tree: Worktree) -> None:
    fill(tree)
    assert "why \\x1b[31mred" in git(tree, "log", "trial-000")


def test_the_same_trials_have_the_same_hashes_whatever_an_earlier_attempt_left(
    tree: Worktree, template: Template, tmp_path: Path
) -> None:
    hashes = fill(tree)
    tree.close()
    broken = tree.directory / ".git" / "refs" / "heads" / "trial-000"
    broken.write_text("nonsense")
    (broken.parent / "trial-001.lock").touch()
    again = opened(template, tmp_path / "r")
    assert fill(again) == hashes
    assert git(again, "fsck", "--full", "--strict") == ""
    (tmp_path / "elsewhere").mkdir()
    moved = snapshot(template, tmp_path / "elsewhere" / "template")
    assert fill(opened(moved, tmp_path / "elsewhere")) == hashes


def test_a_file_over_the_limit_is_kept_out_and_named(tree: Worktree) -> None:
    assert "data.bin" not in git(tree, "ls-tree", "-r", "--name-only", "template")
    assert f"data.bin ({MAX_TRACKED_BYTES + 1} bytes)" in git(tree, "log", "template")
    assert git(tree, "ls-tree", "template", "run.sh").startswith("100755")


def test_the_patch_of_a_trial_leads_from_its_parent_to_it(tree: Worktree, tmp_path: Path) -> None:
    fill(tree)
    git(tree, "checkout", "-q", "trial-000")
    git(tree, "apply", str(tmp_path / "r" / "trials" / "trial-001" / "diff.patch"))
    assert git(tree, "diff", "trial-001") == ""


def test_a_trial_can_be_shown_to_people(tree: Worktree) -> None:
    fill(tree)
    tree.show("trial-001")
    assert (tree.directory / "model.py").read_text() == "x = 2\n"
    assert git(tree, "status", "--short", "--branch") == "## trial-001\n"
    tree.show(None)
    assert (tree.directory / "model.py").read_text() == "x = 0\n"


def test_code_to_run_is_the_template_with_the_trials_files_and_is_gone_afterwards(
    tree: Worktree, template: Template
) -> None:
    before = os.umask(0o077)
    try:
        with tree.code("trial-000", FIRST) as code:
            there = {
                str(path.relative_to(code.directory)): path
                for path in code.directory.rglob("*")
                if path.is_file()
            }
            assert there.keys() == template.files_sha256.keys()
            assert there["model.py"].read_text() == "x = 1\n"
            assert there["data.bin"].read_bytes() == (template.directory / "data.bin").read_bytes()
            assert code.sha256 == sha256_of(FIRST)
            for path in (*there.values(), there["sub/net.py"].parent, code.directory):
                wanted = 0o004 if path.is_file() else 0o005
                assert stat.S_IMODE(path.stat().st_mode) & wanted == wanted
    finally:
        os.umask(before)
    assert not code.directory.exists()
    assert (template.directory / "model.py").read_text() == "x = 0\n"
    assert (template.directory / "data.bin").stat().st_nlink == 1


def test_code_that_differs_in_a_name_or_a_text_has_another_hash() -> None:
    different = [FIRST, SECOND, {"model.py": "x = 1\n"}, {"a": "b", "c": ""}, {"a": "", "c": "b"}]
    assert len({sha256_of(files) for files in different}) == len(different)
    assert sha256_of(dict(reversed(FIRST.items()))) == sha256_of(FIRST)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8 text"),
        (lambda path: path.write_text("x" * 300_000), "more than 256 KiB"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_file_that_can_not_be_edited_is_told(
    template: Template, tmp_path: Path, break_it: Callable[[Path], object], reason: str
) -> None:
    break_it(template.directory / "model.py")
    with pytest.raises(ConfigError, match=reason):
        opened(template, tmp_path / "r")
