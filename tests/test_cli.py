"""The command line, as a process: what it prints, where, and how it exits. No daemon runs here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labd.settings import Home
from labd.spool import Spool
from labd.task import State
from tests.factories import task_text
from tests.foreign_data import FOREIGN, give_data


def labd(
    home: Path | None, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    at = ["--home", str(home)] if home else []
    command = [sys.executable, "-m", "labd.cli", *at, *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "LABD_HOME"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=cwd, env=environment, check=False
    )


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "idea.yaml"
    path.write_text(task_text())
    return path


def test_a_task_is_submitted_listed_cancelled_and_asked_for_again(home: Home, task: Path) -> None:
    assert labd(home.root, "submit", str(task)).stdout == "idea\n"
    assert labd(home.root, "submit", str(task)).stdout == "idea-2\n"
    listed = json.loads(labd(home.root, "list", "--json").stdout)
    assert {(t["id"], t["state"], t["template"]) for t in listed["tasks"]} == {
        ("idea", "pending", "digits"),
        ("idea-2", "pending", "digits"),
    }
    assert labd(home.root, "cancel", "idea").returncode == 0
    assert Spool(home.spool).names(State.CANCELLED) == ["idea.yaml"]
    assert labd(home.root, "retry", "idea").returncode == 0
    assert sorted(Spool(home.spool).names(State.PENDING)) == ["idea-2.yaml", "idea.yaml"]


def test_the_file_is_copied_byte_for_byte(home: Home, task: Path) -> None:
    task.write_bytes(b"# \xc3\xbc\r\ntemplate:   digits\r\n")
    labd(home.root, "submit", str(task))
    assert (
        home.spool / "pending" / "idea.yaml"
    ).read_bytes() == b"# \xc3\xbc\r\ntemplate:   digits\r\n"


def test_a_bad_file_is_told_and_not_submitted_but_the_others_are(
    home: Home, task: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("tempalte: digits\n")
    done = labd(home.root, "submit", str(bad), str(task))
    assert done.returncode == 1
    assert done.stdout == "idea\n"
    assert f"{bad}:1:1: tempalte: unknown key" in done.stderr
    assert Spool(home.spool).names(State.PENDING) == ["idea.yaml"]


def test_check_tells_every_problem_and_needs_no_lab(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("template: digits\nnum_gpus: -1\nprioritty: 1\n")
    done = labd(None, "check", str(bad), cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert "unknown key; nearest known: priority; " in done.stdout.splitlines()[1]
    (entry,) = json.loads(labd(None, "check", "--json", str(bad), cwd=tmp_path).stdout)
    assert (entry["ok"], len(entry["problems"])) == (False, 2)


def test_check_warns_of_keys_without_effect_and_of_unknown_templates(
    home: Home, tmp_path: Path
) -> None:
    quiet = tmp_path / "quiet.yaml"
    quiet.write_text(task_text(researcher="sweep", model="qwen2.5-coder:14b"))
    assert "model: has no effect" in labd(home.root, "check", str(quiet)).stdout
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text(task_text(template="digitz"))
    done = labd(home.root, "check", str(unknown))
    assert done.returncode == 1
    assert "digits" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "nothing"], 3),
        (["logs", "nothing"], 3),
        (["cancel", "nothing"], 3),
        (["retry", "idea"], 4),
        (["list", "--state", "lost"], 2),
        (["frobnicate"], 2),
        (["submit", "/nowhere.yaml"], 1),
    ],
)
def test_exit_codes_say_what_kind_of_failure_it_was(
    home: Home, arguments: list[str], code: int
) -> None:
    (home.spool / "pending" / "idea.yaml").write_text(task_text())
    assert labd(home.root, *arguments).returncode == code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "Did you mean 'list'?"),
        (["lst"], "Did you mean 'list'?"),
        (["notify", "foo"], "'foo' is not one of failed, stuck, report, done"),
        (["report", "-o", "x.pdf"], "end its name in .json, .html, .md"),
        (["check", "."], "it is no plain file"),
        (["priority", "idea", "5"], "idea is done: only a task that waits"),
    ],
)
def test_a_slip_is_told_with_what_is_meant(home: Home, arguments: list[str], said: str) -> None:
    (home.spool / "done" / "idea.yaml").write_text(task_text())
    done = labd(home.root, *arguments, cwd=home.root)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert not (home.root / "x.pdf").exists()


def test_no_lab_is_told_with_what_to_do(tmp_path: Path) -> None:
    done = labd(None, "list", cwd=tmp_path)
    assert done.returncode == 3
    assert "LABD_HOME" in done.stderr


def test_bad_settings_are_told_with_their_line(home: Home) -> None:
    (home.root / "config" / "labd.yaml").write_text("spool: spool\nsandbox:\n  memory_byts: 1\n")
    done = labd(home.root, "list")
    assert done.returncode == 1
    assert "labd.yaml:3:3: sandbox.memory_byts: unknown key" in done.stderr
    assert "memory_bytes" in done.stderr


def test_an_empty_settings_file_means_the_defaults(home: Home) -> None:
    (home.root / "config" / "labd.yaml").write_text("# nothing set\n")
    assert labd(home.root, "list").returncode == 0


def test_a_unique_beginning_of_an_id_is_enough(home: Home, task: Path) -> None:
    labd(home.root, "submit", str(task))
    assert labd(home.root, "show", "id").returncode == 0
    labd(home.root, "submit", str(task))
    ambiguous = labd(home.root, "show", "id")
    assert ambiguous.returncode == 3
    assert "idea-2" in ambiguous.stderr


def test_a_hostile_name_never_drives_the_terminal(home: Home) -> None:
    name = "\x1b[2J\u202eevil.yaml"
    (home.spool / "pending" / name).write_text(task_text())
    for arguments in (["list"], ["show", name], ["list", "--json"]):
        done = labd(home.root, *arguments)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout + done.stderr
        assert "\u202e" not in done.stdout + done.stderr


def test_readers_import_neither_ray_nor_gradio(home: Home, task: Path) -> None:
    labd(home.root, "submit", str(task))
    for arguments in (
        ["--help"],
        ["list"],
        ["show", "idea"],
        ["logs", "idea"],
        ["check", str(task)],
    ):
        code = f"import sys; sys.argv = ['labd', '--home', {str(home.root)!r}, *{arguments!r}]\nfrom labd.cli import main\ntry: main()\nexcept SystemExit: pass\nprint({{m for m in ('ray', 'gradio', 'torch', 'numpy', 'scipy', 'optuna', 'matplotlib') if m in sys.modules}}, file=sys.stderr)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stderr.splitlines()[-1] == "set()", arguments


HELP = """
import contextlib, io, json, sys
from labd.cli import main
told = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ["labd", *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    told[" ".join(words)] = out.getvalue()
print(json.dumps(told))
"""


def test_every_verb_has_worked_examples_in_its_help() -> None:
    verbs = (
        "up",
        "submit",
        "run",
        "list",
        "show",
        "logs",
        "cancel",
        "retry",
        "check",
        "doctor",
        "models",
        "nodes",
        "drain",
        "undrain",
        "sandbox",
        "template list",
        "template check",
    )
    # All in one process, as each of them would say it: a start takes most of a second.
    words = json.dumps([[], *(verb.split() for verb in verbs)])
    done = subprocess.run(
        [sys.executable, "-c", HELP, words], capture_output=True, text=True, timeout=60, check=True
    )
    told = json.loads(done.stdout)
    for verb in verbs:
        assert verb.split()[0] in told[""]
        assert "\n\n  Examples:\n    labd " in told[verb], verb
    assert "..." not in told[""].replace("[ARGS]...", "")  # no command's line is cut


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["sh", "-c", "id -u; exit 7"], 7, "1000"),
        (["sh", "-c", "kill -SEGV $$"], 139, ""),
        (["sh", "-c", "echo begun; sleep 60"], 124, "begun"),
        (["no-such-command"], 127, "no-such-command"),
    ],
)
def test_a_command_can_be_tried_in_the_sandbox(
    home: Home, command: list[str], code: int, says: str
) -> None:
    done = labd(home.root, "sandbox", "--timeout", "2s", "--", *command)
    assert done.returncode == code, done.stderr
    assert says in done.stdout
    assert "labd: limits: time 2.0 s; memory 4 GiB for all processes together" in done.stderr


@pytest.mark.sandbox
def test_a_tried_command_writes_the_directory_that_was_named_and_nothing_else(
    home: Home, tmp_path: Path
) -> None:
    work = tmp_path / "try"
    script = f"echo x >made; cat {home.root}/spool/secret"
    (home.spool / "secret").write_text("a secret")
    done = labd(home.root, "sandbox", "--workdir", str(work), "--", "sh", "-c", script)
    assert done.returncode == 1
    assert "a secret" not in done.stdout
    assert (work / "made").read_text() == "x\n"
    assert labd(home.root, "sandbox", "--network", "--", "true").returncode == 1


@pytest.mark.sandbox
def test_the_baseline_of_a_directory_can_be_tried_from_the_command_line(home: Home) -> None:
    shutil.copytree(FOREIGN, home.templates)
    give_data(home.inputs[0])
    done = labd(home.root, "template", "check", "tinytext", "--run", "--json")
    assert done.returncode == 0, done.stderr
    tried = json.loads(done.stdout)["baseline"]
    assert tried["metric"] == "val_bpb, lower is better"
    assert 0 < tried["value"] < 8
    done = labd(home.root, "template", "check", str(FOREIGN / "outbreak"), "--run")
    assert done.returncode == 1
    assert "Name one in the task file" in done.stdout
    listed = json.loads(labd(home.root, "template", "list", "--json").stdout)
    assert {one["name"]: one["style"] for one in listed} == {
        "diffusion_2d": "labd",
        "digits": "labd",
        "grokking": "labd",
        "modular": "ai_scientist",
        "nanogpt_lite": "labd",
        "outbreak": "ai_scientist",
        "tinytext": "autoresearch",
    }
