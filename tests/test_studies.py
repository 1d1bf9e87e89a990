"""Research by language models as users meet it: a daemon, real Ray, real servers; weak models, bad ones and a good one."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from labd.task import State
from tests.processes import DaemonProcess
from tests.servers.fixtures import running_scripted
from tests.studylab import StudyLab, audit

TORTURE = bool(os.environ.get("LABD_TORTURE"))
WEAK = ("garbage", "malicious", "dies")
MORE_WEAK = (
    *("half-json", "empty", "blank", "echo", "endless-line", "endless", "refusal"),
    *("bad-request", "lies", "hanging-code"),
)

pytestmark = [pytest.mark.ray, pytest.mark.sandbox, pytest.mark.timeout(1200 if TORTURE else 240)]


GOOD_EDIT = """
EDIT = '''The layer is small and learns slowly, so I widen it and regularise it.

model.py
<<<<<<< SEARCH
        self.rate = params["learning_rate"]
=======
        self.rate = 0.003
>>>>>>> REPLACE
<<<<<<< SEARCH
        self.dropout = params["dropout"]
        self.smoothing = params["label_smoothing"]
        self.shift = params["shift_probability"]
        hidden = params["hidden_units"]
=======
        self.dropout = 0.2
        self.smoothing = 0.1
        self.shift = 0.3
        hidden = 256
>>>>>>> REPLACE
'''

def reply(messages, schema, role_hint):
    return EDIT if role_hint == "code" else "I have nothing to say."
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyLab]:
    """One lab with its daemon, and with two scripted endpoints: of the weak models, and of a good one."""
    root = tmp_path_factory.mktemp("lab")
    script = root / "good.py"
    script.write_text(GOOD_EDIT)
    common = ("--max-loaded=50", "--num-parallel=2")
    with ExitStack() as stack:
        models = (f"--model={name}" for name in (*WEAK, *MORE_WEAK))
        weak = stack.enter_context(running_scripted(*common, "--behaviour=named", *models))
        good = stack.enter_context(running_scripted(*common, f"--script={script}", "--model=good"))
        the_lab = StudyLab(root, weak.url, good.url)
        daemon = DaemonProcess(root)
        stack.callback(daemon.kill_everything)
        yield the_lab


def test_whatever_a_model_answers_its_task_ends_with_a_true_paper(lab: StudyLab) -> None:
    names = (*WEAK, *(MORE_WEAK if TORTURE else ()))
    for name in names:
        lab.drop(name, name)
    ends = lab.wait_all(names, 1000 if TORTURE else 200)
    errors = {name: lab.result(name).get("error") for name in names}
    assert ends == dict.fromkeys(names, State.DONE), errors
    faults = {name: audit(lab.archive.directory(name)) for name in names}
    assert faults == {name: [] for name in names}


def test_a_model_with_a_good_change_of_digits_ends_in_a_paper_that_reports_it(
    lab: StudyLab,
) -> None:
    lab.drop("digits", "good", template="digits", max_runs=1, num_reviews=0, num_cpus=2)
    assert lab.wait_all(["digits"], 200) == {"digits": State.DONE}, lab.result("digits")["error"]
    claim = lab.result("digits")["research"]["claim"]
    assert claim["verdict"] == "improved"
    assert claim["difference_low"] > 0
    results = lab.archive.directory("digits")
    assert audit(results) == []
    shown = {
        n["path"]: n["shown"] for n in json.loads((results / "paper.numbers.json").read_text())
    }
    paper = (results / "paper.md").read_text()
    for bound in ("difference_low", "difference_high"):
        assert shown[f"claim.{bound}"] in paper
