"""A whole study without Ray or servers: what it leaves, that it goes on where it stopped, and how its limits end it."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labd.errors import ConfigError
from labd.journal import Journal
from labd.llm.errors import ModelError, ModelMissing
from labd.llm.model import Message, Options
from labd.research.experiment import Tools
from labd.research.groundwork import Brief
from labd.research.record import Verdict
from labd.research.researcher import Given, Plan, ran, run_study
from labd.research.review import Reviews
from labd.research.study import Study
from labd.sandbox import SandboxResult
from labd.template import load_template
from tests.boxes import make_sandbox
from tests.chats import Speaks, Spoken
from tests.studylab import audit, make_guessing
from tests.test_review import form

pytestmark = pytest.mark.sandbox

TORTURE = bool(os.environ.get("LABD_TORTURE"))

BETTER = "I guess higher.\n\nmodel.py\n```python\ndef guess(x):\n    y = 0.3\n    return y + x * {slope}\n```\n"


def guesses(messages: Sequence[Message], options: Options) -> str:
    """Change the guess when asked for code, each time a little more; say nothing useful otherwise."""
    text = "\n".join(message.content for message in messages)
    return (
        BETTER.format(slope=(options.seed or 0) % 7 + 1) if "SEARCH" in text else "I do not know."
    )


class CountingBox:
    """The sandbox, and how often it was used."""

    def __init__(self) -> None:
        self.box, self.runs = make_sandbox(), 0

    def run(self, argv: Sequence[str], **rest: Any) -> SandboxResult:
        self.runs += 1
        return self.box.run(argv, **rest)


@dataclass
class Did:
    """A study, and what it took."""

    study: Study
    results: Path
    asked: int
    runs: int
    reviews: Reviews | None = None


def research(results: Path, speaks: Speaks | str = guesses, **over: Any) -> Did:
    """Have the template `guessing` researched; `over` goes to the plan, and `deadline` to the brief."""
    results.mkdir(parents=True, exist_ok=True)
    templates = results.parent / "templates"
    if not templates.exists():
        make_guessing(templates)
    deadline: float | None = over.pop("deadline", None)
    brief = Brief(
        task_id="task",
        template=load_template("guessing", roots=[templates]),
        task_text="template: guessing\nresearcher: llm\n",
        task_sha256="0" * 64,
        num_trials=2,
        num_confirm_seeds=10,
        parallel=2,
        deadline=deadline,
    )
    models = dict.fromkeys(("ideas", "code", "write", "review"), "spoken")
    defaults = {"models": models, "num_ctx": 8192, "num_ideas": 1, "num_reviews": 1}
    box, chat = CountingBox(), Spoken(speaks)
    with Journal(results / "journal.jsonl") as journal:
        plan = Plan(brief, **{**defaults, **over})
        done = run_study(plan, Tools(sandbox=box), journal, results, Given(chat))
    result = {"research": done.study.context()}
    (results / "result.json").write_text(json.dumps(result))
    return Did(done.study, results, len(chat.asked), box.runs, done.reviews)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Did:
    return research(tmp_path_factory.mktemp("whole") / "task", control=True)


def test_a_change_that_helps_is_found_confirmed_and_reported(whole: Did) -> None:
    study = whole.study
    assert study.claim.verdict is Verdict.IMPROVED
    assert study.claim.difference_low is not None
    assert study.claim.difference_low > 0
    assert study.control is not None
    assert len(study.control.trials) == len(ran(study.trials))
    assert audit(whole.results) == []
    ideas = json.loads((whole.results / "ideas.json").read_text())
    assert (ideas["template"], len(ideas["ideas"])) == ("guessing", 1)


def test_only_confirmation_reads_the_test_split(whole: Did) -> None:
    lines = (whole.results / "journal.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    splits = Counter(
        (line["key"].split("/")[1].split("-")[0], line["value"]["split"])
        for line in values
        if line["key"].startswith("run/")
    )
    assert {name for (name, split) in splits if split == "test"} == {"confirm"}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9] if TORTURE else [0.4])
def test_a_killed_study_goes_on_and_pays_for_nothing_twice(
    whole: Did, tmp_path: Path, share: float
) -> None:
    lines = (whole.results / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = lines[: int(share * len(lines))]
    left = [json.loads(line)["key"] for line in lines[len(kept) :]]
    results = tmp_path / "task"
    results.mkdir()
    # On another machine there is nothing but the journal and the template's own directory.
    shutil.copytree(whole.results.parent / "templates", tmp_path / "templates")
    (results / "journal.jsonl").write_text("".join(kept) + '{"key": "torn')
    again = research(results, control=True)
    runs_left = sum(key.startswith("run/") for key in left)
    assert again.runs == 2 * runs_left, "each run has an evaluation"
    assert again.asked <= whole.asked - sum(
        json.loads(line)["key"].startswith("ask/") for line in kept
    )
    # The writers are told how many hours runs took, so that their prompts differ in length by that.
    volatile = {"wall_s", "prompt_tokens"}
    assert strip(again.study.context(), volatile) == strip(whole.study.context(), volatile)


def strip(value: Any, names: set[str]) -> Any:
    """Leave times out, which differ between runs."""
    if isinstance(value, dict):
        timed = {"hours", "run_s"}
        return {k: strip(v, names) for k, v in value.items() if k not in names | timed}
    return [strip(one, names) for one in value] if isinstance(value, list) else value


def test_a_model_that_is_missing_is_told_before_anything_was_run(tmp_path: Path) -> None:
    def speaks(messages: Sequence[Message], options: Options) -> str | ModelError:
        missing = options.model == "typo"
        return ModelMissing("no endpoint has typo") if missing else guesses(messages, options)

    with pytest.raises(ModelMissing):
        research(tmp_path / "task", speaks, reviewers=("spoken", "typo"))
    assert not (tmp_path / "task" / "runs").exists()


def test_a_file_that_can_t_be_changed_is_told_before_anything_was_run(tmp_path: Path) -> None:
    model = make_guessing(tmp_path / "templates") / "model.py"
    model.write_text(f"{model.read_text()}\n# {'x' * 300_000}\n")
    with pytest.raises(ConfigError, match="more than 256 KiB"):
        research(tmp_path / "task")
    assert not (tmp_path / "task" / "runs").exists()


def test_a_revision_that_changes_nothing_leaves_the_reviews_as_they_are(tmp_path: Path) -> None:
    def speaks(messages: Sequence[Message], _options: Options) -> str:
        text = "\n".join(message.content for message in messages)
        return json.dumps(form()) if "Write the review as one JSON" in text else "Nothing."

    did = research(tmp_path / "task", speaks, improve=True, deadline=None)
    written = json.loads((did.results / "review.json").read_text())
    assert did.reviews is not None
    assert did.reviews.as_data()["scores"] == written["scores"]
    assert written["scores"]["overall"]["n"] == 1
    assert not (did.results / "review-revised.json").exists()


BRAGGING = """I print what I like.

model.py
```python
import sys


def guess(x):
    if "test" in sys.argv:
        print("score 0.9987, which beats the state of the art by 12 %")
        sys.exit(1)
    return 0.3 + x
```
"""


def test_repeated_code_counts_once_and_what_it_prints_is_no_number(tmp_path: Path) -> None:
    did = research(tmp_path / "task", BRAGGING, control=True)
    study = did.study
    assert [trial.same_as for trial in study.trials] == [None, "trial-000"]
    assert study.claim.verdict is Verdict.INCONCLUSIVE
    assert study.control is not None
    assert (study.claim.comparisons, len(study.control.trials)) == (1, 1)
    runs = {run.name for run in (*study.confirm_baseline, *study.confirm_best)}
    runs |= {run.name for run in (*study.control.trials, *study.control.confirm)}
    assert study.counts["runs"] == len(runs) + 2, "the baseline's, and one for the code"
    assert any("gave no value" in note for note in study.notes)
    assert any("what the template's own did not: argv, sys" in note for note in study.notes)
    for paper in ("paper.md", "paper.html", "paper.tex"):
        text = (did.results / paper).read_text()
        assert "0.9987" not in text.replace(BRAGGING, "").replace(shown_change(text), "")


def shown_change(text: str) -> str:
    """Give the part of a paper that shows the code."""
    begin = text.find("selected trial")
    end = text.find("Control", begin)
    return text[begin:end] if 0 <= begin < end else ""


def test_tokens_that_are_used_up_end_the_work_with_what_there_is(tmp_path: Path) -> None:
    did = research(tmp_path / "task", max_tokens_total=3000)
    spent = sum(use.prompt_tokens + use.output_tokens for use in did.study.models)
    assert spent < 3000 + 8192, "only what was under way goes over"
    assert did.study.claim.verdict in {Verdict.INCONCLUSIVE, Verdict.IMPROVED}
    assert audit(did.results) == []


def test_time_that_is_over_ends_the_work_with_what_there_is(tmp_path: Path) -> None:
    did = research(tmp_path / "task", deadline=time.monotonic() + 0.1)
    assert did.study.trials == []
    assert any("time" in note for note in did.study.notes)
    assert audit(did.results) == []
