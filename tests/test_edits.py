"""Edits out of replies: what is clear is made, in whatever form; what is not is refused with a reason."""

import subprocess
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labd.research.blocks import Unusable, parse_edits, plan_of
from labd.research.edits import MAX_FILE_BYTES, apply, check
from labd.research.hunks import count_lines, hunks, patch, without_hunk
from labd.research.reach import reach_notes
from labd.research.syntax import problem_of
from labd.template import Template, load_template
from tests.factories import PARABOLA, make_template

MODEL = '''import math

def train(data, rate):
    """Train."""
    for row in data:
        if row:
            step(row, rate)
    return rate


def step(row, rate):
    return row * rate
'''
CHANGED = MODEL.replace("row * rate", "row * rate * 2")
SWAP = "<<<<<<< SEARCH\n    return row * rate\n=======\n    return row * rate * 2\n>>>>>>> REPLACE"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """A template with a driver that stays and one file that may be changed."""
    root = tmp_path_factory.mktemp("templates")
    directory = make_template(root, experiment=PARABOLA % 0, editable=["model.py"])
    (directory / "model.py").write_text(MODEL)
    return load_template("tiny", roots=[root])


def revise(template: Template, files: Mapping[str, str], reply: str) -> dict[str, str]:
    """Give the files after what a reply asks for, as a trial does."""
    new = apply(template, files, parse_edits(reply, template.files_sha256))
    if problem := check(template, files, new):
        raise Unusable(problem)
    return new


def revised(template: Template, reply: str) -> str:
    return revise(template, {"model.py": MODEL}, reply)["model.py"]


@pytest.mark.parametrize(
    "reply",
    [
        f"I double it.\n\nmodel.py\n{SWAP}\n",
        f"model.py\n```python\n{SWAP}\n```",
        f"```python\nmodel.py\n{SWAP}\n```",
        f"**model.py**\n```\n{SWAP}\n```\nDone.",
        f"### `./model.py`\n{SWAP}",
        f"Here is the edit of `model.py`:\n{SWAP}",
        f"Only the file that there is can be meant.\n{SWAP}",
        f"/inputs/template/model.py\n{SWAP}",
        f"model.py\n{SWAP}".replace("\n", "\r\n"),
        f"model.py\n{SWAP.replace('SEARCH', 'ORIGINAL').replace('REPLACE', 'UPDATED')}",
        f"model.py\n{SWAP.replace('<<<<<<<', '<<<<<').replace('>>>>>>>', '>>>>>>>>')}",
        f"model.py\n{SWAP.replace('    return', 'return')}",  # indented otherwise
        "model.py\n" + SWAP.replace("rate\n=", "rate   \n="),  # blanks at a line's end
        "model.py\n<<<<<<< SEARCH\nrow * rate\n=======\nrow * rate * 2\n>>>>>>> REPLACE",
        "model.py\n" + SWAP.replace("SEARCH\n", "SEARCH\n\n").replace("=======\n", "=======\n\n"),
        f"<think>model.py\n```\nx = 1\n```\n</think>model.py\n{SWAP}",
        f"A sketch:\n```python\nx = 2\n```\nand so\n\nmodel.py\n{SWAP}",
        f"model.py\n```python\n{CHANGED}```",
        f"```python model.py\n{CHANGED}```",
        f"```python:model.py\n{CHANGED}```",
        f'```python title="model.py"\n{CHANGED}```',
        f"```model.py\n{CHANGED}```",
        f"File: model.py\n\n```python\n{CHANGED}\n\n```",
        f"File name: `model.py`\n~~~\n{CHANGED}~~~",
        f"```\nmodel.py\n{CHANGED}```",
        f"The new `model.py` is:\n\n```python\n{CHANGED}```\n",
        f"```python\n{CHANGED}```",
        f"Install it:\n```bash\npip install x\n```\nmodel.py\n```python\n{CHANGED}```\nIt prints\n```\n1\n```",
        "- model.py\n  ```python\n" + textwrap.indent(CHANGED, "  ") + "  ```",
    ],
)  # fmt: skip
def test_an_edit_is_found_in_whatever_form_a_model_gives_it(
    template: Template, reply: str
) -> None:
    assert revised(template, reply) == CHANGED


def test_the_files_name_stays_where_it_is_a_comment_of_the_file(template: Template) -> None:
    assert revised(template, f"```python\n# model.py\n{CHANGED}```") == f"# model.py\n{CHANGED}"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no edit"),
        ("I would double the rate.", "no edit"),
        ("```bash\nrm -rf /\n```", "no edit"),
        ("Run `python model.py`:\n```bash\npython model.py\n```", "no edit"),
        ("model.py\n```diff\n-a\n+b\n```", "no edit"),
        (f"experiment.py\n```python\n{CHANGED}```", "experiment.py is read-only"),
        (f"experiment.py\n{SWAP}", "experiment.py is read-only"),
        (f"template.yaml\n```yaml\nname: x\n```\nmodel.py\n{SWAP}", "template.yaml is read-only"),
        (f"../model.py\n```python\n{CHANGED}```", "../model.py is none of the files"),
        (f"/etc/cron.d/model.py\n```python\n{CHANGED}```", "none of the files"),
        (f"src/../../model.py\n{SWAP}", "none of the files"),
        (f"model2.py\n```python\n{CHANGED}```", "model2.py is none of the files"),
        (f"```python\n{CHANGED}```\n```python\nx = 1\n```", "two blocks"),
        (f"model.py\n```python\n{CHANGED}", "not closed"),
        ("model.py\n<<<<<<< SEARCH\na\n=======\nb\n", "no `>>>>>>> REPLACE`"),
        ("model.py\n<<<<<<< SEARCH\na\n>>>>>>> REPLACE\n", "0 lines `=======`"),
        ("model.py\n<<<<<<< SEARCH\na\n=======\nb\n=======\nc\n>>>>>>> REPLACE\n", "2 lines `=======`"),
        ("model.py\n<<<<<<< SEARCH\n    return row / rate\n=======\nb\n>>>>>>> REPLACE\n", "The nearest lines there are:\ndef step(row, rate):\n    return row * rate"),
        ("model.py\n<<<<<<< SEARCH\nlorem ipsum dolor\n=======\nb\n>>>>>>> REPLACE\n", "No line of it is there"),
        ("model.py\n<<<<<<< SEARCH\n\n=======\nb\n>>>>>>> REPLACE\n", "no lines to find"),
        ("model.py\n<<<<<<< SEARCH\n\n\n=======\n\n>>>>>>> REPLACE\n", "no lines to find"),
        ("model.py\n<<<<<<< SEARCH\n\nimport math\n=======\nimport math\n>>>>>>> REPLACE\n", "nothing but white space"),
        (f"model.py\n```python\n{MODEL}```", "changes nothing"),
        (f"model.py\n```python\n# new\n{MODEL.replace('Train.', 'Trains it all.')}\n\n```", "changes nothing"),
        ("model.py\n```python\n```", "is empty"),
        ("model.py\n```python\ndef train(:\n```", "not valid Python: line 1"),
        ("In `model.py`, one would write\n```python\nrate = 3\n```", "a part of model.py only"),
        ("```python\nrate = 3\n```", "a part of model.py only"),
        ("model.py\n```python\nimport math\n# ... rest of the code\n```", "leaves code out"),
        ("model.py\n```python\nimport math\n# ... existing code ...\n```", "leaves code out"),
        ("model.py\n```python\nimport math\n# rest of the code unchanged\n```", "leaves code out"),
        ("model.py\n```python\nimport math\n# ...\n```", "leaves code out"),
        (f"model.py\n```python\n{CHANGED}x = '\x00'\n```", "NUL"),
        (f"model.py\n```python\n{CHANGED}x = '\ud800'\n```", "half a character"),
        (f"model.py\n```python\n{CHANGED}x = '{'y' * MAX_FILE_BYTES}'\n```", "more than 256 KiB"),
        ("x" * 2**20 + "y", "more than 1048576 characters"),
        (f"model.py\n{SWAP}\n" * 101, "more than 100 edits"),
    ],
)  # fmt: skip
def test_what_is_no_edit_or_not_clear_is_refused_with_a_reason_to_act_on(
    template: Template, reply: str, reason: str
) -> None:
    with pytest.raises(Unusable) as refused:
        revised(template, reply)
    assert reason in str(refused.value)


def test_lines_that_are_there_twice_are_not_guessed_at(template: Template) -> None:
    twice = MODEL + "\n\ndef again(row, rate):\n    return row * rate\n"
    with pytest.raises(Unusable, match="more than one place"):
        revise(template, {"model.py": twice}, f"model.py\n{SWAP}")


def test_blocks_are_made_in_their_order_and_the_next_ones_go_on_in_the_same_file(
    template: Template,
) -> None:
    second = SWAP.replace("rate * 2", "rate * 3").replace("row * rate\n", "row * rate * 2\n")
    assert revised(template, f"model.py\n{SWAP}\nand\n{second}") == CHANGED.replace("* 2", "* 3")


def test_a_block_without_a_name_is_refused_where_it_could_be_for_two_files(
    template: Template,
) -> None:
    two = replace(template, editable=("model.py", "other.py"))
    files = {"model.py": MODEL, "other.py": "x = 1\n"}
    with pytest.raises(Unusable, match="does not say which file"):
        revise(two, files, SWAP)
    assert revise(two, files, f"model.py\n{SWAP}") == {"model.py": CHANGED, "other.py": "x = 1\n"}


def test_a_comment_like_one_that_leaves_code_out_stays_where_it_was(template: Template) -> None:
    old = f"# ... the rest of the code is below\n{MODEL}"
    new = old.replace("row * rate", "row * rate * 2")
    assert revise(template, {"model.py": old}, f"model.py\n```\n{new}```")["model.py"] == new


def test_files_that_may_not_be_changed_are_refused_by_the_check_itself(template: Template) -> None:
    for path in ("experiment.py", "template.yaml", "../x.py", "new.py"):
        assert "may not be changed" in check(template, {"model.py": MODEL, path: ""}, {path: "x"})
    assert check(template, {"model.py": MODEL}, {"model.py": CHANGED}) == ""


def test_the_plan_is_what_stands_before_the_first_block(template: Template) -> None:
    del template
    assert (
        plan_of(f"I double it.\n\x1b[31mReally.\n\nmodel.py\n{SWAP}")
        == "I double it.\n\\x1b[31mReally."
    )
    assert plan_of("```\nx\n```") == ""
    assert len(plan_of("word " * 100_000)) <= 2000


@pytest.mark.parametrize(
    "source",
    [
        "(" * 300 + ")" * 300,
        "-" * 100_000 + "1",
        "a" + ".b" * 100_000,
        "x = " + "+".join(["1"] * 100_000),
        "f" + "()" * 50_000,
        "if x:\n  pass\n" + "elif x:\n  pass\n" * 20_000,
        "\n".join(f"{' ' * depth}if x:" for depth in range(300)) + "\n" + " " * 300 + "pass\n",
        "lambda: " * 30_000 + "1",
        "{" * 150,
        "x = '''" + "a\n" * 10,
        "f'" + "{" * 200,
    ],
    ids=lambda source: source[:6].strip(),
)
def test_code_that_is_made_to_break_a_parser_is_judged_in_time(source: str) -> None:
    problem = problem_of({"m.py": "x = 0\n"}, {"m.py": source})
    assert problem == "" or "m.py" in problem


def test_a_change_of_text_that_is_not_python_counts_but_for_white_space() -> None:
    assert problem_of({"a.yaml": "a: 1\n"}, {"a.yaml": "a: 2\n"}) == ""
    assert "nothing but" in problem_of({"a.yaml": "a: 1\n"}, {"a.yaml": "a:  1\n\n"})
    assert problem_of({"m.py": "def broken(:\n"}, {"m.py": "x = 1\n"}) == ""


_WORDS = st.lists(
    st.sampled_from(
        ["model.py", "experiment.py", "```", "```python", "````", "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE",
         "import math", "    return row * rate", "x", "", "# ...", "~~~", "../a.py", "</think>", "\ud800", "\0"]
    ),
    max_size=14,
)  # fmt: skip


@given(_WORDS)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_reply_holds_it_is_read_or_refused(lines: list[str]) -> None:
    try:
        edits = parse_edits("\n".join(lines), ["model.py", "experiment.py"])
    except Unusable:
        return
    assert edits


# -- pieces of a change

_TEXTS = st.lists(st.sampled_from(["a", "b", "c", "", "\x0c", "d e"]), max_size=40).map("\n".join)


@given(_TEXTS, _TEXTS)
@settings(max_examples=300, deadline=None)
def test_undoing_all_pieces_gives_what_was_there_before(old: str, new: str) -> None:
    pieces = hunks({"m.py": old}, {"m.py": new})
    files = {"m.py": new}
    for hunk in reversed(pieces):
        files = without_hunk(files, hunk)
    assert files == {"m.py": old}
    assert bool(pieces) == (old != new)
    added, removed = count_lines({"m.py": old}, {"m.py": new})
    shown = [line for hunk in pieces for line in hunk.text.split("\n")[3:]]
    assert added == sum(line.startswith("+") for line in shown)
    assert removed == sum(line.startswith("-") for line in shown)


def test_pieces_lie_apart_and_each_can_be_undone_alone() -> None:
    old = {"m.py": "".join(f"line {number}\n" for number in range(40)), "n.py": "x\n"}
    new = {
        "m.py": old["m.py"].replace("line 3\n", "line three\n").replace("line 30\n", ""),
        "n.py": "y\n",
    }
    first, second, third = hunks(old, new)
    assert first.text.startswith("--- a/m.py\n+++ b/m.py\n@@ -1,7 +1,7 @@\n line 0\n")
    without = without_hunk(new, first)
    assert "line 3\n" in without["m.py"]
    assert "line 30\n" not in without["m.py"]
    assert without_hunk(new, second)["m.py"].count("line") == 40
    assert (third.path, third.old, third.new) == ("n.py", ("x\n",), ("y\n",))
    with pytest.raises(ValueError, match="not of this"):
        without_hunk(old, first)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a\nb\nc\n", "a\nB\nc\nd"),
        ("", "x\n"),
        ("x", ""),
        ("a\n" * 30, "b\n" + "a\n" * 28 + "b\n"),
        ("a\n\x0cb\n", "a\n\x0cc\n"),
    ],
)  # fmt: skip
def test_git_makes_the_same_of_a_patch(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "m.py").write_bytes(old.encode())
    text = patch({"m.py": old, "n.py": "same\n"}, {"m.py": new, "n.py": "same\n"})
    subprocess.run(["git", "apply"], cwd=tmp_path, input=text.encode(), check=True)
    assert (tmp_path / "m.py").read_bytes() == new.encode()


def test_a_patch_of_an_empty_file_names_the_line_before_it() -> None:
    assert "@@ -0,0 +1,1 @@\n+x\n" in patch({"m.py": ""}, {"m.py": "x\n"})


def test_comparing_what_repeats_itself_ends_in_time() -> None:
    lines = [f"{number % 80}\n" for number in range(9000)]
    old, new = "".join(lines), "".join(reversed(lines))
    pieces = hunks({"m.py": old}, {"m.py": new})
    assert without_hunk({"m.py": new}, pieces[0]) == {"m.py": old}


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("from sklearn.datasets import load_digits", "sklearn.datasets"),
        ("import os, data as d", "data, os"),
        ("x = 1; import evaluate", "evaluate"),
        ("def f():\n    import  data", "data"),
        ("text = open('/inputs/template/data.py')", "open"),
        ("labels = np.load(where)", "load"),
        ("split = sys.argv[3]", "argv"),
        ("frame = sys._getframe(1).f_back", "_getframe, f_back"),
    ],
)
def test_what_changed_code_reaches_for_is_told_to_the_reader(added: str, named: str) -> None:
    (note,) = reach_notes({"model.py": MODEL}, {"model.py": f"{MODEL}\n{added}\n"})
    assert f"did not: {named}. It may have read" in note
    assert reach_notes({"model.py": added}, {"model.py": f"{MODEL}\n{added}\n"}) == []


def test_what_only_computes_is_not_told() -> None:
    honest = "import numpy as np\nfrom torch import nn\nmodel.eval()\nre.compile(x)\nmodel.modules()\nreload = 1\n"
    assert reach_notes({"model.py": MODEL}, {"model.py": MODEL + honest}) == []
    assert reach_notes({"model.py": MODEL}, {"model.py": MODEL}) == []
