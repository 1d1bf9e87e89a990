"""The sweep: what it concludes, that it does so again in any order and after any kill, and how it stops."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from labd.errors import ConfigError, ResearchError, SandboxError
from labd.journal import Journal
from labd.research.experiment import Cancelled, OutOfTime, Tools
from labd.research.groundwork import Brief
from labd.research.record import ResearchRecord, Verdict
from labd.research.sweep import run_sweep
from labd.sandbox import Ending, Limits, SandboxResult
from labd.template import load_template
from tests.boxes import make_sandbox
from tests.factories import make_template

pytestmark = pytest.mark.sandbox
DEADLINE_S = 60.0

EXPERIMENT = """
    import argparse, json, random, sys
    parser = argparse.ArgumentParser()
    for name in ("--params", "--seed", "--split", "--out_dir"):
        parser.add_argument(name)
    args = parser.parse_args()
    x = json.load(open(args.params))["x"]
    luck = random.Random(f"{args.seed} {args.split} {x}").gauss(0, 0.005)
    if RULE:
        sys.exit(f"x is {x}")
    score = SCORE
    found = {"metrics": {"score": score}, "curves": {"loss": [1.0, 0.5 - score, 0.25 - score]}}
    json.dump(found, open(args.out_dir + "/metrics.json", "w"))
"""
BOWL = "luck - (x - 0.7) ** 2"


class Counting:
    """A real sandbox that writes down which runs were started and which ended."""

    def __init__(self, log: Path) -> None:
        self._sandbox = make_sandbox()
        self._log = log

    def run(
        self,
        argv: Sequence[str],
        *,
        workdir: Path,
        read_only: Mapping[str, Path],
        env: Mapping[str, str],
        limits: Limits,
        gpus: Sequence[int],
        log: Path | None,
        cancelled: threading.Event | None,
        cwd: str,
    ) -> SandboxResult:
        self._write(f"started {workdir.parent.name} {' '.join(map(str, gpus))}")
        result = self._sandbox.run(
            argv,
            workdir=workdir,
            read_only=read_only,
            env=env,
            limits=limits,
            gpus=(),
            log=log,
            cancelled=cancelled,
            cwd=cwd,
        )
        self._write(f"ended {workdir.parent.name}")
        return result

    def _write(self, line: str) -> None:
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)

    def names(self, what: str = "started") -> list[str]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line.split()[1] for line in lines if line.startswith(what)]


def make_brief(root: Path, *, rule: str = "False", score: str = BOWL, **over: Any) -> Brief:
    for_template = {
        key: over.pop(key) for key in ("metric", "search_space", "gpus_per_run") if key in over
    }
    experiment = EXPERIMENT.replace("RULE", rule).replace("SCORE", score)
    if not (root / "templates").exists():
        make_template(root / "templates", experiment=experiment, **for_template)
    text = "template: tiny\n"
    fields: dict[str, Any] = {
        "task_id": "a-task",
        "template": load_template("tiny", roots=[root / "templates"]),
        "task_text": text,
        "task_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "num_trials": 9,
        "num_confirm_seeds": 10,
        "seed": 3,
        "parallel": 2,
    }
    return Brief(**fields | over)


def sweep(brief: Brief, results_dir: Path, tools: Tools | None = None) -> ResearchRecord:
    results_dir.mkdir(exist_ok=True)
    tools = tools or Tools(Counting(results_dir.parent / f"{results_dir.name}.log"))
    with Journal(results_dir / "journal.jsonl") as journal:
        return run_sweep(brief, tools, journal, results_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResearchRecord, Path]:
    """The record of a sweep by the default brief that nobody disturbed, and its directory."""
    root = tmp_path_factory.mktemp("whole")
    return sweep(make_brief(root), root / "r"), root / "r"


def comparable(record: ResearchRecord) -> dict[str, Any]:
    """Give the record without the only things that may differ: durations and the date."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in {"wall_s", "started_on"}}
        return [without(item) for item in value] if isinstance(value, list) else value

    cleaned: dict[str, Any] = without(record.context())
    return cleaned


def test_a_true_improvement_is_found_and_the_record_holds_what_was_measured(
    tmp_path: Path,
) -> None:
    told: list[tuple[str, int, int]] = []
    sandbox = Counting(tmp_path / "runs.log")
    tools = Tools(
        sandbox, progress=lambda stage, done, total, _: told.append((stage, done, total))
    )
    record = sweep(make_brief(tmp_path), tmp_path / "r", tools)

    assert record.claim.verdict is Verdict.IMPROVED
    assert record.claim.comparisons == 9
    best = max(record.trials, key=lambda run: run.value or -9)
    assert (record.best_trial, record.best_params) == (best.name, best.params)
    assert abs(float(record.best_params["x"]) - 0.7) < 0.3
    assert record.counts == {
        "trials": 9, "ok": 9, "crashed": 0, "timed_out": 0, "no_metric": 0, "limit": 0, "hopeless": 0,
        "runs": 30,
    }  # fmt: skip
    assert set(record.figures) == {
        "best_so_far",
        "baseline_vs_best",
        "importance",
        "learning_curves",
    }
    assert all((tmp_path / "r" / path).stat().st_size > 1000 for path in record.figures.values())
    everything = [
        record.baseline_run,
        *record.trials,
        *record.confirm_baseline,
        *record.confirm_best,
    ]
    assert sorted(run.name for run in everything) == sorted(sandbox.names())
    for run in everything:
        written = json.loads((tmp_path / "r" / run.directory / "metrics.json").read_text())
        assert written["metrics"]["score"] == run.value
    assert list(dict.fromkeys(stage for stage, *_ in told)) == [
        "baseline", "search", "confirm", "analysis", "figures",
    ]  # fmt: skip
    assert ("search", 9, 9) in told
    assert ("confirm", 20, 20) in told


def test_the_search_sees_validation_only_and_the_claim_rests_on_test_over_fresh_seeds(
    tmp_path: Path,
) -> None:
    # What validation likes best is worst on test: the sweep must select by the one and judge by the other.
    record = sweep(
        make_brief(tmp_path, score="luck + (x if args.split == 'validation' else -x)"),
        tmp_path / "r",
    )
    assert record.claim.verdict is Verdict.WORSE
    assert float(record.best_params["x"]) > 0.5
    assert {run.split for run in [record.baseline_run, *record.trials]} == {"validation"}
    assert {run.split for run in [*record.confirm_baseline, *record.confirm_best]} == {"test"}
    seeds = record.provenance.confirm_seeds
    assert [run.seed for run in record.confirm_baseline] == seeds
    assert [run.seed for run in record.confirm_best] == seeds
    assert len(set(seeds)) == 10
    assert {run.seed for run in [record.baseline_run, *record.trials]} == {
        record.provenance.trial_seed
    }
    assert record.provenance.trial_seed not in seeds


def test_lower_is_better_where_the_template_says_so(tmp_path: Path) -> None:
    metric = {"name": "score", "better": "lower", "description": "an error"}
    record = sweep(
        make_brief(tmp_path, score=f"-({BOWL})", metric=metric, num_trials=5), tmp_path / "r"
    )
    assert record.claim.verdict is Verdict.IMPROVED
    assert record.claim.difference is not None
    assert record.claim.difference < 0


def test_where_no_trial_beats_the_baseline_only_the_baseline_is_confirmed(tmp_path: Path) -> None:
    # Equal is not better: the parameter has no influence at all.
    record = sweep(make_brief(tmp_path, score="0.5", num_trials=5), tmp_path / "r")
    assert (record.claim.verdict, record.best_trial) == (Verdict.NO_IMPROVEMENT, None)
    assert record.best_params == {"x": 0.1}
    assert (len(record.confirm_baseline), record.confirm_best) == (10, [])
    assert record.claim.best is None
    assert record.counts["runs"] == 16
    assert all(one.share is None for one in record.importances)


def test_luck_on_validation_is_not_called_an_improvement(tmp_path: Path) -> None:
    record = sweep(make_brief(tmp_path, score="luck", num_trials=5), tmp_path / "r")
    assert record.claim.verdict is Verdict.NO_IMPROVEMENT
    assert record.best_trial is not None
    assert record.claim.best is not None


def test_one_or_two_at_a_time_find_the_same_and_another_seed_something_else(
    tmp_path: Path, whole: tuple[ResearchRecord, Path]
) -> None:
    one = sweep(make_brief(tmp_path, parallel=1), tmp_path / "one")
    assert comparable(one) == comparable(whole[0])
    other = sweep(make_brief(tmp_path, seed=4, num_trials=4), tmp_path / "other")
    assert [run.params for run in other.trials] != [run.params for run in one.trials[:4]]
    assert other.confirm_baseline[0].seed != one.confirm_baseline[0].seed


def test_a_failed_trial_is_counted_and_is_never_a_number(tmp_path: Path) -> None:
    record = sweep(make_brief(tmp_path, rule="x > 0.5", num_trials=6), tmp_path / "r")
    failed = [run for run in record.trials if run.value is None]
    assert record.counts["crashed"] == len(failed) > 0
    assert all("exit code 1: x is 0." in (run.reason or "") for run in failed)
    assert record.best_trial not in {run.name for run in failed}


def test_only_crashes_are_inconclusive_and_still_a_record(tmp_path: Path) -> None:
    record = sweep(make_brief(tmp_path, rule="x != 0.1", num_trials=5), tmp_path / "r")
    assert (record.claim.verdict, record.best_trial) == (Verdict.INCONCLUSIVE, None)
    assert (
        record.claim.reason
        == "None of the 5 trials that ran gave a value, so there was nothing to compare."
    )
    assert (record.counts["crashed"], record.counts["ok"]) == (5, 0)


def test_a_best_that_crashes_while_it_is_confirmed_is_no_improvement(tmp_path: Path) -> None:
    rule = "args.split == 'test' and x != 0.1 and int(args.seed) % 2"
    record = sweep(make_brief(tmp_path, rule=rule, num_trials=5), tmp_path / "r")
    assert record.claim.verdict is Verdict.INCONCLUSIVE
    assert record.claim.best is not None
    assert any(
        "runs of the selected parameters on test gave no value" in note for note in record.notes
    )


@pytest.mark.parametrize(
    ("rule", "split"), [("True", "validation"), ("args.split == 'test'", "test")]
)
def test_a_baseline_without_a_value_fails_the_task_and_says_where_to_look(
    tmp_path: Path, rule: str, split: str
) -> None:
    with pytest.raises(ResearchError) as caught:
        sweep(make_brief(tmp_path, rule=rule), tmp_path / "r")
    assert f"no value on {split}" in str(caught.value)
    assert "exit code 1: x is 0.1" in str(caught.value)
    assert Path(caught.value.where).read_text() == "x is 0.1\n"


def test_a_finite_space_ends_the_search_with_a_note(tmp_path: Path) -> None:
    space = {"x": {"type": "categorical", "choices": [0.1, 0.5, 0.7], "baseline": 0.1}}
    record = sweep(make_brief(tmp_path, search_space=space), tmp_path / "r")
    assert sorted(float(run.params["x"]) for run in record.trials) == [0.5, 0.7]
    assert record.notes == ["The search ended after 2 trials: every combination had been tried."]
    assert record.claim.comparisons == 2


def test_a_time_budget_ends_the_search_but_not_what_confirms_it(tmp_path: Path) -> None:
    late = make_brief(tmp_path, deadline=time.monotonic() + 3600, num_trials=4)
    assert len(sweep(late, tmp_path / "enough").trials) == 4
    now = make_brief(tmp_path, deadline=time.monotonic(), num_trials=4)
    record = sweep(now, tmp_path / "none")
    assert record.trials == []
    assert record.claim.verdict is Verdict.INCONCLUSIVE
    assert record.notes[0].startswith("The search ended after 0 of 4 trials")
    # The decision is recorded: a later attempt with more time comes to the same end.
    assert comparable(sweep(late, tmp_path / "none")) == comparable(record)


class Hurried(Counting):
    """A real sandbox for a task whose time is over after so many runs on test."""

    def __init__(self, log: Path, runs: int) -> None:
        super().__init__(log)
        self._left = runs

    def run(self, argv: Sequence[str], **given: Any) -> SandboxResult:
        if "test" in argv:
            self._left -= 1
            if self._left < 0:
                return SandboxResult(Ending.OUT_OF_TIME, None, 0.0, 0.0, None, "")
        return super().run(argv, **given)


def test_a_task_whose_time_is_over_is_judged_by_the_runs_that_it_has(tmp_path: Path) -> None:
    brief = make_brief(tmp_path, num_trials=2, parallel=1)
    record = sweep(brief, tmp_path / "r", Tools(Hurried(tmp_path / "log", 7)))
    assert (len(record.confirm_baseline), len(record.confirm_best)) == (4, 3)
    assert record.claim.verdict is Verdict.INCONCLUSIVE
    assert record.notes[0].startswith("The task's time limit was nearly over: of the 10 runs")
    # How many there was time for is recorded: a later attempt with more time comes to the same end.
    assert comparable(sweep(brief, tmp_path / "r")) == comparable(record)


def test_of_a_task_whose_time_is_over_before_there_is_anything_to_compare_no_test_run_is_recorded(
    tmp_path: Path,
) -> None:
    brief = make_brief(tmp_path, num_trials=2, parallel=1)
    with pytest.raises(OutOfTime, match="time limit was nearly over"):
        sweep(brief, tmp_path / "r", Tools(Hurried(tmp_path / "log", 0)))
    recorded = (tmp_path / "r" / "journal.jsonl").read_text()
    assert "run/trial-001" in recorded
    assert "/confirm" not in recorded, "a later attempt makes them"


def test_what_is_in_the_journal_is_not_run_again(tmp_path: Path) -> None:
    brief = make_brief(tmp_path, num_trials=5)
    first = sweep(brief, tmp_path / "r")
    sandbox = Counting(tmp_path / "again.log")
    assert comparable(sweep(brief, tmp_path / "r", Tools(sandbox))) == comparable(first)
    assert sandbox.names() == []


CHILD = """
import sys
from pathlib import Path
from tests.test_sweep import Counting, make_brief, sweep
from labd.research.experiment import Tools
root = Path(sys.argv[1])
sweep(make_brief(root), root / "r", Tools(Counting(root / "runs.log")))
"""


@pytest.mark.parametrize("ended", [4, 13])
def test_after_a_kill_the_sweep_goes_on_where_it_was(
    tmp_path: Path, whole: tuple[ResearchRecord, Path], ended: int
) -> None:
    undisturbed, undisturbed_dir = whole
    sandbox = Counting(tmp_path / "runs.log")
    repository = Path(__file__).parent.parent
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], cwd=repository)
    deadline = time.monotonic() + DEADLINE_S
    while not (len(sandbox.names("ended")) >= ended and sandbox.names("started")):
        assert child.poll() is None, "the child ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait(DEADLINE_S) == -signal.SIGKILL

    record = sweep(make_brief(tmp_path), tmp_path / "r", Tools(sandbox))
    assert comparable(record) == comparable(undisturbed)
    times = Counter(sandbox.names())
    assert set(times) == {run.name for run in _all_runs(record)}
    # Only the two in flight when the process died were paid for twice.
    assert sum(count > 1 for count in times.values()) <= 2
    assert max(times.values()) <= 2
    for name, path in record.figures.items():
        expected = undisturbed_dir / undisturbed.figures[name]
        assert (tmp_path / "r" / path).read_bytes() == expected.read_bytes()


def _all_runs(record: ResearchRecord) -> list[Any]:
    return [record.baseline_run, *record.trials, *record.confirm_baseline, *record.confirm_best]


def test_a_cancelled_sweep_stops_and_can_go_on(
    tmp_path: Path, whole: tuple[ResearchRecord, Path]
) -> None:
    brief = make_brief(tmp_path)
    cancelled = threading.Event()

    def at_the_third_trial(stage: str, done: int, total: int, detail: str) -> None:
        del total, detail
        if (stage, done) == ("search", 3):
            cancelled.set()

    sandbox = Counting(tmp_path / "runs.log")
    with pytest.raises(Cancelled):
        sweep(brief, tmp_path / "r", Tools(sandbox, cancelled, at_the_third_trial))
    assert not any(name.startswith("confirm") for name in sandbox.names())
    record = sweep(brief, tmp_path / "r")
    assert comparable(record) == comparable(whole[0])


def test_a_template_changed_while_the_task_runs_does_not_change_the_runs(
    tmp_path: Path, whole: tuple[ResearchRecord, Path]
) -> None:
    brief = make_brief(tmp_path)

    def meddle(stage: str, done: int, total: int, detail: str) -> None:
        del total, detail
        if (stage, done) == ("search", 4):
            (brief.template.directory / "experiment.py").write_text("raise SystemExit('changed')")

    record = sweep(brief, tmp_path / "r", Tools(Counting(tmp_path / "runs.log"), progress=meddle))
    assert comparable(record) == comparable(whole[0])


def test_runs_at_once_share_the_gpus_without_overlap(tmp_path: Path) -> None:
    # The Counting sandbox notes the GPUs and runs without them, so this needs none.
    brief = make_brief(tmp_path, gpus_per_run=2, gpus=(4, 5, 6, 7, 8), parallel=9, num_trials=4)
    sweep(brief, tmp_path / "r")
    lines = (tmp_path / "r.log").read_text().splitlines()
    given = {line.split(maxsplit=2)[2] for line in lines if line.startswith("started")}
    assert given == {"4 5", "6 7"}
    with pytest.raises(ResearchError, match="takes 2 GPUs, and the task has 1"):
        sweep(make_brief(tmp_path, gpus=(0,)), tmp_path / "too-few")


def test_without_a_sandbox_nothing_is_recorded(tmp_path: Path) -> None:
    brief = make_brief(tmp_path, num_trials=4)
    with pytest.raises(SandboxError):
        sweep(brief, tmp_path / "r", Tools(make_sandbox(bwrap="no-such-bwrap")))
    assert '"key": "run/' not in (tmp_path / "r" / "journal.jsonl").read_text()
    assert sweep(brief, tmp_path / "r").counts["ok"] == 4


@pytest.mark.parametrize(
    "over", [{"num_trials": 0}, {"num_confirm_seeds": 9}, {"parallel": 0}, {"seed": -1}]
)
def test_a_brief_that_can_not_carry_a_claim_is_refused(
    tmp_path: Path, over: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(over))):
        make_brief(tmp_path, **over)


def test_modules_that_are_not_there_fail_the_task_before_anything_runs(tmp_path: Path) -> None:
    make_template(tmp_path / "templates", experiment="", requirements=["no_such_module_here"])
    with pytest.raises(ResearchError, match="no_such_module_here"):
        sweep(make_brief(tmp_path), tmp_path / "r")
    assert not (tmp_path / "r" / "runs").exists()
