"""Trials of an idea: whatever a model says, it ends as trials that say what came of it; killed or not, as the same."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labd.errors import ResearchError
from labd.journal import Journal
from labd.llm.errors import EndpointDown, ModelError
from labd.llm.model import Message, Options
from labd.research.allowance import Allowance
from labd.research.asking import Asker
from labd.research.bench import Bench, Job
from labd.research.calling import Patience
from labd.research.experiment import Cancelled, Tools
from labd.research.policy import Manner
from labd.research.record import Run, TrialStatus
from labd.research.study import Idea, Trial
from labd.research.trials import MAX_REPAIRS, Tried, Workshop, run_trials
from labd.research.worktree import Worktree
from labd.sandbox import Sandbox, SandboxResult
from labd.template import load_template, snapshot
from tests.chats import Spoken
from tests.factories import make_template

pytestmark = pytest.mark.sandbox
DRIVER = """
    import json, sys
    import model
    out, params, seed, split = sys.argv[1:]
    score = model.score(int(seed)) + (1.0 if split == "test" else 0.0)
    with open(out + "/curves.jsonl", "w") as file:
        for step in range(6):
            file.write(json.dumps({"step": step, "score": score * step / 5}) + "\\n")
    if score is not None and score < 100:
        json.dump({"metrics": {"score": score}}, open(out + "/metrics.json", "w"))
"""
MODEL = "def score(seed):\n    return 0.5\n"
IDEA = Idea(
    name="idea-1",
    title="A larger score",
    hypothesis="A larger number is larger.",
    experiment="Return more from score.",
)
Speaks = Callable[[Sequence[Message], Options], str | ModelError]


def swap(old: str, new: str, plan: str = "I change a number.") -> str:
    return f"{plan}\n\nmodel.py\n<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE\n"


def body(new: str, plan: str = "I write it anew.") -> str:
    return f"{plan}\n\nmodel.py\n```python\ndef score(seed):\n    {new}\n```\n"


class Counting:
    """A real sandbox that remembers which runs it made."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.runs: list[str] = []

    def run(self, argv: Sequence[str], *, workdir: Path, **rest: Any) -> SandboxResult:
        self.runs.append(workdir.parent.name)
        return self._sandbox.run(argv, workdir=workdir, **rest)


class Lab:
    """A task's tools over one results directory, and what went through them."""

    def __init__(self, root: Path, sandbox: Sandbox) -> None:
        self.root = root
        self.sandbox = Counting(sandbox)
        self.told: list[str] = []
        self.cancelled = threading.Event()
        self.spoken = Spoken("nothing")
        if not (root / "templates").exists():
            directory = make_template(
                root / "templates",
                experiment=DRIVER,
                command=["python", "/inputs/template/experiment.py", "{out_dir}", "{params}", "{seed}", "{split}"],
                time_limit="3s",
                editable=["model.py"],
                curves=True,
            )  # fmt: skip
            (directory / "model.py").write_text(MODEL)

    @contextmanager
    def shop(
        self,
        speaks: Speaks | str,
        *,
        allowance: Allowance | None = None,
        parallel: int = 2,
        num_ctx: int = 16384,
        **over: Any,
    ) -> Iterator[Workshop]:
        results_dir = self.root / "r"
        results_dir.mkdir(exist_ok=True)
        read = load_template("tiny", roots=[self.root / "templates"])
        template = snapshot(read, results_dir / "template")
        tools = Tools(self.sandbox, self.cancelled)
        self.spoken = Spoken(speaks)
        limits = allowance or Allowance()
        with (
            Journal(results_dir / "journal.jsonl") as journal,
            Bench(template, tools, journal, results_dir, parallel=parallel) as bench,
        ):
            asker = Asker(
                self.spoken,
                journal,
                limits,
                models={"code": "coder"},
                num_ctx=num_ctx,
                calls_dir=results_dir / "calls",
                seed=1,
                cancelled=self.cancelled,
                patience=Patience(delays_s=(0.01,), total_s=0.05, first_s=0.05),
            )
            worktree = Worktree(results_dir, template, started_on="2026-11-22")
            baseline = bench.one(
                Job("baseline-000", template.baseline, 7, "validation"), stage="baseline"
            )
            yield Workshop(
                bench,
                asker,
                journal,
                limits,
                worktree,
                baseline,
                progress=lambda *told: self.told.append(str(told[-1])),
                **over,
            )
            worktree.close()

    def tried(self, speaks: Speaks | str, *, max_trials: int = 4, **over: Any) -> Tried:
        with self.shop(speaks, **over) as shop:
            return run_trials(IDEA, shop, max_trials=max_trials)


@pytest.fixture
def lab(tmp_path: Path, sandbox: Sandbox) -> Lab:
    return Lab(tmp_path, sandbox)


def in_turn(*replies: str | ModelError) -> Speaks:
    """Give the replies one after the other, and the last one again and again."""
    waiting = list(replies)
    lock = threading.Lock()

    def speak(_messages: Sequence[Message], _options: Options) -> str | ModelError:
        with lock:
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return speak


LINEAR = Manner(policy="linear")


def test_a_good_edit_is_run_committed_and_measured(lab: Lab) -> None:
    found = lab.tried(swap("    return 0.5", "    return 0.75"), max_trials=1, manner=LINEAR)
    (trial,) = found.trials
    assert found.stopped == ""
    assert (trial.name, trial.move, trial.parent) == ("trial-000", "draft", None)
    assert (trial.status, trial.value, trial.plan) == ("ok", 0.75, "I change a number.")
    assert (trial.files_changed, trial.lines_added, trial.lines_removed) == (["model.py"], 1, 1)
    assert (trial.model, trial.refused, trial.same_as) == ("coder", None, None)
    assert trial.run is not None
    assert (trial.run.seed, trial.run.split) == (7, "validation")
    patch = (lab.root / "r" / "trials" / "trial-000" / "diff.patch").read_text()
    assert patch.endswith(" def score(seed):\n-    return 0.5\n+    return 0.75\n")
    assert (lab.root / "r" / "runs" / "trial-000" / "metrics.json").exists()
    head = lab.root / "r" / "work" / ".git" / "refs" / "heads" / "trial-000"
    assert head.read_text().strip() == trial.commit
    assert list((lab.root / "r" / ".code").iterdir()) == []


def test_the_next_edit_begins_where_the_last_good_one_ended(lab: Lab) -> None:
    replies = in_turn(*[swap(f"return 0.{n}", f"return 0.{n + 1}") for n in (5, 6, 7)])
    trials = lab.tried(replies, max_trials=3, manner=LINEAR).trials
    assert [trial.value for trial in trials] == [0.6, 0.7, 0.8]
    assert [trial.parent for trial in trials] == [None, "trial-000", "trial-001"]
    last = lab.spoken.texts[-1]
    assert "return 0.7" in last
    assert "trial-000 (draft, from the template): score 0.6. I change a number." in last
    assert "The code above is that of trial-001, which gave: score 0.7." in last
    assert "import model" in last, "the fixed driver is shown"


def test_a_crash_a_timeout_and_a_missing_metric_are_three_outcomes_and_none_a_number(
    lab: Lab,
) -> None:
    replies = in_turn(
        body("raise KeyError(seed)"),
        body("import time; time.sleep(30)"),
        body("return 100.0"),
    )
    manner = Manner(policy="linear", max_debug_depth=0)
    trials = lab.tried(replies, max_trials=3, manner=manner).trials
    assert [trial.status for trial in trials] == ["crashed", "timed_out", "no_metric"]
    assert all(trial.value is None for trial in trials)
    assert all(trial.commit for trial in trials)


def test_a_crash_is_repaired_with_the_end_of_its_log_before_the_model(lab: Lab) -> None:
    replies = in_turn(
        body("print('on the way'); return undefined_name"),
        swap("return undefined_name", "return 0.9", "It needs a number."),
    )
    crashed, repaired = lab.tried(replies, max_trials=2, manner=LINEAR).trials
    assert (repaired.move, repaired.parent, repaired.value) == ("debug", "trial-000", 0.9)
    prompt = lab.spoken.texts[-1]
    assert "on the way" in prompt
    assert "NameError: name 'undefined_name' is not defined" in prompt
    assert "The code above failed" in prompt
    assert crashed.status == "crashed"


def test_a_refused_edit_is_asked_for_again_with_the_reason_a_bounded_number_of_times(
    lab: Lab,
) -> None:
    replies = in_turn(
        swap("    return 0.4", "    return 1.0"), swap("    return 0.5", "    return 0.6")
    )
    (trial,) = lab.tried(replies, max_trials=1, manner=LINEAR).trials
    assert trial.value == 0.6
    assert "does not match model.py" in lab.spoken.texts[-1]
    assert lab.spoken.asked[-1][-2].role == "assistant"
    assert len(lab.spoken.asked) == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("lorem ipsum " * 3, "holds no edit"),
        ("", "the reply is empty"),
        ("I'm sorry, but I can't help with that.", "declines"),
        ("x" * 30_000, "a line without end"),
        ('{"edit": {"model.py": "def sc', "holds no edit"),
        ("experiment.py\n```python\nimport json\n```", "experiment.py is read-only"),
        (swap("    return 0.5", "    return 0.5  # better"), "changes nothing"),
        ("model.py\n```python\n" + "y = 1\n" * 3000 + "```", "again and again"),
    ],
)
def test_a_model_that_is_of_no_use_ends_as_trials_that_were_not_run(
    lab: Lab, reply: str, reason: str
) -> None:
    trials = lab.tried(reply, max_trials=5).trials
    assert [trial.status for trial in trials] == ["refused"] * 5
    assert all(reason in (trial.refused or "") for trial in trials)
    assert all(trial.run is None and trial.commit is None for trial in trials)
    assert lab.sandbox.runs == ["baseline-000"]
    assert 5 < len(lab.spoken.asked) <= 5 * (1 + MAX_REPAIRS)


def test_a_prompt_that_is_given_back_is_no_edit(lab: Lab) -> None:
    def echo(messages: Sequence[Message], _options: Options) -> str:
        return "\n".join(message.content for message in messages)

    (trial,) = lab.tried(echo, max_trials=1).trials
    assert trial.status == "refused"
    assert lab.sandbox.runs == ["baseline-000"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import shutil; shutil.rmtree('/inputs', ignore_errors=True); return 0.6", "ok"),
        ("import os; os.system('rm -rf /inputs /work ~'); return 0.6", "ok"),
        ("import os; os.kill(os.getpid(), 11)", "crashed"),
        ("import os; [os.fork() for _ in range(100000)]", "crashed timed_out limit no_metric"),
        ("open('/inputs/template/experiment.py', 'w').write('')", "crashed"),
        ("import os; os._exit(0)", "no_metric"),
    ],
)
def test_malicious_code_ends_as_a_trial_and_harms_nothing(
    lab: Lab, code: str, status: str
) -> None:
    with lab.shop(body(code), manner=LINEAR) as shop:
        (trial,) = run_trials(IDEA, shop, max_trials=1).trials
    driver = lab.root / "r" / "template" / "experiment.py"
    assert driver.read_text() == (lab.root / "templates" / "tiny" / "experiment.py").read_text()
    assert trial.status in status.split()


def test_the_same_code_is_run_once_whoever_gives_it_again(lab: Lab) -> None:
    with lab.shop(swap("    return 0.5", "    return 0.6"), manner=Manner(policy="climb")) as shop:
        trials = run_trials(IDEA, shop, max_trials=4).trials
        assert [trial.same_as for trial in trials] == [None, *["trial-000"] * 3]
        assert [trial.value for trial in trials] == [0.6] * 4
        assert len({trial.commit for trial in trials}) == 4
        other = IDEA.model_copy(update={"name": "idea-2"})
        (later,) = run_trials(other, shop, max_trials=1, earlier=trials).trials
        assert (later.name, later.same_as, later.idea) == ("trial-004", "trial-000", "idea-2")
    assert lab.sandbox.runs == ["baseline-000", "trial-000"]


def test_edits_that_are_asked_for_at_once_are_asked_to_differ(lab: Lab) -> None:
    lab.tried("no idea", max_trials=4, manner=Manner(policy="climb"))
    asked = [text for text in lab.spoken.texts if "Nothing was run" not in text]
    assert sorted(text.split("This is number ")[1][:6] for text in asked) == [
        f"{number} of 4" for number in (1, 2, 3, 4)
    ]


def test_going_back_to_the_template_takes_the_baselines_run(lab: Lab) -> None:
    replies = in_turn(
        swap("    return 0.5", "    return 0.4"), swap("    return 0.4", "    return 0.5")
    )
    trials = lab.tried(replies, max_trials=2, manner=LINEAR).trials
    assert (trials[1].same_as, trials[1].value) == ("baseline-000", 0.5)


def varied(messages: Sequence[Message], options: Options) -> str:
    """Give an edit that depends on the question's seed alone: good, broken or none."""
    assert options.seed is not None
    kind = options.seed // 7 % 4
    if kind == 0 or any(message.role == "assistant" for message in messages):
        return "no idea"
    if kind == 1:
        return body(f"raise ValueError({options.seed % 1000})")
    return body(f"return {options.seed % 1000} / 2000 + seed / 1000")


def without_times(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    found = [trial.model_dump(mode="json") for trial in trials]
    for each in found:
        if each["run"]:
            each["run"].pop("wall_s")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> tuple[list[Trial], Path]:
    """The trials of a search that nobody disturbed, and its journal."""
    lab = Lab(tmp_path_factory.mktemp("whole"), sandbox)
    return lab.tried(varied, max_trials=10).trials, lab.root / "r" / "journal.jsonl"


def test_the_search_that_is_disturbed_below_has_all_kinds_of_trials(
    whole: tuple[list[Trial], Path],
) -> None:
    trials, _ = whole
    assert {trial.status for trial in trials} >= {"ok", "crashed", "refused"}
    assert {trial.move for trial in trials} >= {"draft", "improve", "debug"}


def test_machines_of_any_width_find_the_same(lab: Lab, whole: tuple[list[Trial], Path]) -> None:
    trials = lab.tried(varied, max_trials=10, parallel=1).trials
    assert without_times(trials) == without_times(whole[0])


def test_a_finished_journal_gives_the_same_on_another_machine_without_a_call_or_a_run(
    lab: Lab, whole: tuple[list[Trial], Path]
) -> None:
    (lab.root / "r").mkdir()
    shutil.copy(whole[1], lab.root / "r")
    assert lab.tried("must not be asked", max_trials=10).trials == whole[0]
    assert lab.spoken.asked == []
    assert lab.sandbox.runs == []


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.9])
def test_a_journal_that_ends_anywhere_goes_on_elsewhere_without_paying_twice(
    lab: Lab, whole: tuple[list[Trial], Path], share: float
) -> None:
    trials, journal = whole
    lines = journal.read_text().splitlines(keepends=True)
    kept = lines[: int(share * len(lines))]
    (lab.root / "r").mkdir()
    (lab.root / "r" / "journal.jsonl").write_text("".join(kept))
    assert without_times(lab.tried(varied, max_trials=10).trials) == without_times(trials)
    after = (lab.root / "r" / "journal.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in after) == sorted(
        json.loads(line)["key"] for line in lines
    ), "the same steps, each once"
    made = {json.loads(line)["key"].split("/")[1] for line in kept if '"run/' in line}
    assert not made & set(lab.sandbox.runs)


def test_what_is_used_up_ends_the_trials_with_a_sentence(lab: Lab) -> None:
    found = lab.tried(varied, max_trials=10, allowance=Allowance(max_runs=2))
    runs = [run for run in lab.sandbox.runs if run != "baseline-000"]
    assert len(runs) <= 2
    assert found.stopped == "All runs that the task may make (`max_runs`) were made."
    again = lab.tried("must not be asked", max_trials=10, allowance=Allowance())
    assert again == found, "it is on record why it ended"


def test_time_and_tokens_end_the_trials_between_batches(lab: Lab, tmp_path: Path) -> None:
    late = Allowance(deadline=time.monotonic() - 1)
    found = lab.tried(varied, max_trials=10, allowance=late)
    assert found.trials == []
    assert found.stopped.startswith("The time")
    shutil.rmtree(tmp_path / "r")
    few = Allowance(max_tokens_total=1000)
    found = lab.tried(varied, max_trials=50, allowance=few, share=0.5)
    assert (
        found.stopped
        == "The part of the tokens that the task has (`max_tokens_total`) was used up."
    )
    assert 0 < len(found.trials) < 50


def test_a_task_that_is_called_off_stops_and_leaves_no_copies_of_code(lab: Lab) -> None:
    def speak(_messages: Sequence[Message], _options: Options) -> str:
        threading.Timer(0.5, lab.cancelled.set).start()
        return body("import time; time.sleep(30)")

    with pytest.raises(Cancelled):
        lab.tried(speak, max_trials=4)
    assert list((lab.root / "r" / ".code").iterdir()) == []


def test_a_server_that_goes_away_after_it_has_answered_costs_its_trials_only(lab: Lab) -> None:
    replies = in_turn(swap("    return 0.5", "    return 0.6"), EndpointDown("gone"))
    trials = lab.tried(replies, max_trials=3, manner=LINEAR).trials
    assert [trial.status for trial in trials] == ["ok", "refused", "refused"]
    assert "gone" in (trials[1].refused or "")
    assert "/repair-" not in (lab.root / "r" / "journal.jsonl").read_text()


def test_code_stays_until_its_run_is_over_whatever_goes_wrong_beside_it(lab: Lab) -> None:
    (lab.root / "templates" / "tiny" / "late.py").write_text("VALUE = 0.6\n")

    def speak(messages: Sequence[Message], _options: Options) -> str:
        if "This is number 1 of" in messages[-1].content:
            return body("import time; time.sleep(1.5); import late; return late.VALUE")
        deadline = time.monotonic() + 60
        while "trial-000" not in lab.sandbox.runs and time.monotonic() < deadline:
            time.sleep(0.02)
        raise RuntimeError("a fault of labd's own")

    with pytest.raises(RuntimeError, match="labd's own"):
        lab.tried(speak, manner=Manner(policy="climb"))
    text = (lab.root / "r" / "journal.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    (run,) = [line["value"] for line in lines if line["key"].startswith("run/trial-000")]
    assert (run["status"], run["value"]) == ("ok", 0.6)


def test_a_small_context_still_gets_the_code_and_the_form(lab: Lab) -> None:
    trials = lab.tried(swap("    return 0.5", "    return 0.6"), max_trials=1, num_ctx=4096).trials
    assert trials[0].value == 0.6
    assert "return 0.5" in lab.spoken.texts[0]
    assert ">>>>>>> REPLACE" in lab.spoken.texts[0]


def test_a_hopeless_curve_ends_as_its_own_outcome(lab: Lab) -> None:
    replies = in_turn(
        swap("    return 0.5", "    return 0.9"), swap("    return 0.9", "    return 0.1")
    )
    first, second = lab.tried(replies, max_trials=2, manner=LINEAR, curves=True).trials
    assert (first.status, first.value) == ("ok", 0.9)
    assert (second.status, second.value) == ("hopeless", None)
    assert second.run is not None
    assert second.run.status is TrialStatus.HOPELESS
    assert "of the best trial" in (second.run.reason or "")


def test_a_template_without_a_file_to_change_is_told(lab: Lab) -> None:
    with lab.shop("x") as shop:
        shop.worktree.original = {}
        with pytest.raises(ResearchError, match="no file that a model"):
            run_trials(IDEA, shop, max_trials=1)


def test_progress_tells_of_each_trial(lab: Lab) -> None:
    lab.tried(swap("    return 0.5", "    return 0.6"), max_trials=1)
    assert lab.told == ["idea-1: 1 edits", "trial-000: score 0.6"]


def test_a_baseline_without_a_value_is_told(lab: Lab) -> None:
    with lab.shop("x") as shop:
        failed = shop.baseline.model_copy(update={"value": None})
        assert isinstance(failed, Run)
        broken = Workshop(
            shop.bench, shop.asker, shop.journal, shop.allowance, shop.worktree, failed
        )
        with pytest.raises(ResearchError, match="baseline has no value"):
            run_trials(IDEA, broken, max_trials=1)
