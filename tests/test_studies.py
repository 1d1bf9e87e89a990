"""Research by language models as users meet it: a daemon, real Ray, real servers; weak models, bad ones and a good one."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from labd.task import State
from tests.processes import DaemonProcess
from tests.servers.fixtures import running_scripted
from tests.studylab import StudyLab, audit

TORTURE = bool(os.environ.get("LABD_TORTURE"))
WEAK = ("garbage", "half-json", "malicious", "dies")
MORE_WEAK = (
    *("empty", "blank", "echo", "endless-line", "endless", "refusal"),
    *("bad-request", "lies", "hanging-code"),
)

pytestmark = [pytest.mark.ray, pytest.mark.sandbox, pytest.mark.timeout(1200 if TORTURE else 240)]


def test_whatever_a_model_answers_its_task_ends_with_a_true_paper(tmp_path: Path) -> None:
    names = (*WEAK, *(MORE_WEAK if TORTURE else ()))
    with ExitStack() as stack:
        models = [f"--model={name}" for name in names]
        node = stack.enter_context(
            running_scripted("--behaviour=named", "--max-loaded=50", "--num-parallel=2", *models)
        )
        lab = StudyLab(tmp_path, node.url)
        for name in names:
            lab.drop(name, name)
        daemon = DaemonProcess(tmp_path)
        stack.callback(daemon.kill_everything)
        ends = lab.wait(names, 1000 if TORTURE else 200)
        assert ends == dict.fromkeys(names, State.DONE), {
            name: lab.result(name).get("error") for name in names
        }
        faults = {name: audit(lab.archive.directory(name)) for name in names}
        assert faults == {name: [] for name in names}
