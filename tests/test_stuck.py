"""Stuck work: the rule, played look by look; the daemon that follows it; and the signs of real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from labd import worker
from labd.archive import Archive
from labd.engine.probe import facts_of_this_node
from labd.engine.remote import SCRATCH_VARIABLE, run_away
from labd.errors import LabdError, MoveRefused
from labd.lab import Lab as People
from labd.limits import TaskLimits
from labd.recovering import ask, stand_of
from labd.research.allowance import Allowance
from labd.research.experiment import Tools, run_one
from labd.research.record import TrialStatus
from labd.sandbox import Ending, Limits
from labd.scheduler import (
    Backlog,
    Demand,
    Node,
    Running,
    Signs,
    Snapshot,
    Standing,
    Verdict,
    Waiting,
    judge,
    plan,
    seen,
    told_to_end,
)
from labd.shipping import Store, StoreLimits
from labd.template import load_template
from labd.worker.boxes import RUNS, CappedSandbox
from labd.worker.research import last_run_s, time_left
from tests.factories import make_template, task_text
from tests.processes import wait_until
from tests.servers.fixtures import running_ollama
from tests.stepped import WELL
from tests.storeprocess import job_of
from tests.test_command import SANDBOX
from tests.test_command import Lab as CommandLab
from tests.test_llm_pool import HELLO, brokered, endpoint, options, pool
from tests.test_moves import Moves

LIMIT_S = 60.0
EVERY_S = 10.0
RUN = ("trial-003",)


class Played:
    """An attempt that is looked at every ten seconds, by a daemon whose rule is the real one."""

    def __init__(self, limit_s: float = LIMIT_S, **signs: object) -> None:
        self.now_s = 1000.0
        self.standing = Standing(limit_s, self.now_s, looked_s=self.now_s)
        self.signs = replace(Signs(0.0, beats=0), **signs)  # type: ignore[arg-type]
        self.look()

    def look(
        self, more: Mapping[str, float] | None = None, *, silent: bool = False
    ) -> Verdict | None:
        """Let ten seconds pass, in which each of the counters in `more` grows by so much; give what the rule says."""
        self.now_s += EVERY_S
        beats = (self.signs.beats or 0) + (0 if silent else 10)
        grown = {name: getattr(self.signs, name) + by for name, by in (more or {}).items()}
        self.signs = replace(self.signs, at_s=self.signs.at_s + EVERY_S, beats=beats, **grown)
        self.standing = seen(self.standing, self.signs, self.now_s)
        return self.judged()

    def judged(self, losses: int = 0) -> Verdict | None:
        return judge(self.standing, losses=losses, max_retries=2)

    def idle(self, looks: int) -> list[str]:
        """Let nothing move for so many looks; give what the rule said at each."""
        said = (self.look() for _ in range(looks))
        return [verdict.recovery if verdict else "" for verdict in said]


@pytest.mark.parametrize(
    ("sign", "by", "moves"),
    [
        ("journal_bytes", 100, True),
        ("log_bytes", 1, True),
        ("output_bytes", 1, True),
        ("work_cpu_s", 0.2, True),
        ("work_cpu_s", 0.05, False),
        ("written_bytes", 1, True),
        ("shipped_bytes", 1, True),
        ("read_bytes", 200_000, True),
        ("read_bytes", 100_000, False),
        ("own_cpu_s", 0.6, True),
        ("own_cpu_s", 0.4, False),
    ],
)
def test_each_sign_alone_keeps_work_from_being_stuck_and_idling_does_not(
    sign: str,
    by: float,
    moves: bool,  # noqa: FBT001 - a case's own
) -> None:
    played = Played()
    verdicts = [played.look({sign: by}) for _ in range(100)]
    assert all(verdict is None for verdict in verdicts) is moves


def test_a_gpu_in_use_and_a_model_that_is_waited_for_are_progress() -> None:
    assert Played(gpu_use=0.5).idle(100) == [""] * 100
    assert Played(asks=1).idle(100) == [""] * 100
    assert "retry" in Played(gpu_use=0.0).idle(100)


def test_a_worker_that_says_nothing_waits_for_no_model() -> None:
    played = Played(asks=1)
    assert any(played.look(silent=True) for _ in range(7))


def test_an_attempt_that_no_worker_speaks_of_is_not_judged() -> None:
    played = Played(beats=None)
    fresh, known = played.standing, Played().standing
    for look in range(1, 1000):
        now_s, unheard = played.now_s + EVERY_S * look, Signs(EVERY_S * look)
        fresh, known = seen(fresh, unheard, now_s), seen(known, unheard, now_s)
        assert (
            judge(fresh, losses=0, max_retries=0) is judge(known, losses=0, max_retries=0) is None
        )
    assert not known.alive


def test_stuck_runs_are_ended_once_then_the_attempt_until_the_retries_are_used_up() -> None:
    played = Played(runs=RUN)
    assert played.idle(6) == ["", "", "", "", "", "end_run"]
    played.standing = told_to_end(played.standing, played.now_s)
    assert played.idle(3) == [""] * 3, "the worker has a moment to do it"
    assert played.look({"journal_bytes": 50}) is None
    assert played.idle(6)[-1] == "retry"
    last = played.judged(losses=2)
    assert last is not None
    assert last.recovery == "fail"


def test_a_worker_that_does_not_end_its_runs_is_ended_itself() -> None:
    played = Played(runs=RUN)
    played.idle(6)
    played.standing = told_to_end(played.standing, played.now_s)
    assert played.idle(6) == ["", "", "", "", "", "retry"]
    verdict = played.judged()
    assert verdict is not None
    assert any("nothing came of it" in fact for fact in verdict.evidence)


def test_without_its_baseline_there_is_no_study_to_go_on_with() -> None:
    assert Played(runs=("baseline-000",)).idle(6)[-1] == "retry"


def test_what_is_not_looked_at_is_not_judged_and_a_first_look_proves_nothing() -> None:
    played = Played()
    played.now_s += 10 * LIMIT_S
    assert played.judged() is None
    assert played.look({"journal_bytes": 1}) is None
    fresh = Standing(LIMIT_S, 0.0)
    late = seen(fresh, Signs(5.0), 10 * LIMIT_S)
    assert judge(late, losses=0, max_retries=0) is None
    again = seen(late, Signs(5.0), 20 * LIMIT_S)
    assert again == late, "an old look came twice"


@pytest.mark.parametrize(
    ("here_s", "there_s"), [(7200.0, EVERY_S), (7200.0, 7200.0), (0.0, 7200.0)]
)
def test_time_in_which_a_machine_slept_or_was_not_heard_does_not_count(
    here_s: float, there_s: float
) -> None:
    played = Played(runs=RUN)
    played.idle(1)
    played.now_s += here_s - EVERY_S
    played.signs = replace(played.signs, at_s=played.signs.at_s + there_s - EVERY_S)
    assert played.look() is None
    assert played.standing.idle_s <= EVERY_S + LIMIT_S / 2
    assert played.idle(5)[-1] == "end_run", "it is watched again"


def test_a_worker_that_was_told_to_end_its_runs_has_its_moment_though_its_machine_sleeps() -> None:
    played = Played(runs=RUN)
    played.idle(6)
    played.now_s += 5
    played.standing = told_to_end(played.standing, played.now_s)
    played.now_s += 7200
    assert played.idle(3) == [""] * 3
    assert "retry" in played.idle(6)


def test_no_limit_is_no_limit() -> None:
    assert Played(limit_s=0.0).idle(1000) == [""] * 1000


def test_the_evidence_says_since_when_what_was_last_and_what_is_under_way() -> None:
    played = Played(runs=RUN)
    played.look({"output_bytes": 7})
    played.idle(6)
    verdict = played.judged()
    assert verdict is not None
    said = "; ".join(verdict.evidence)
    for words in ("nothing has moved for 1 m 00 s", "was output", "output 7 bytes", "trial-003"):
        assert words in said


# --- the daemon


def at_work(lab: Moves, **over: Any) -> None:
    """Have a task claimed and at work, and looked at once."""
    lab.drop("pending/x.yaml", task_text(kind="command", run="true", template=None, **over))
    lab.settle()
    assert lab.path("running/x.yaml").exists()
    look(lab)


def look(lab: Moves, seconds: float = 20.0, **signs: Any) -> None:
    """Let some time pass, by both clocks, and have the node looked at."""
    lab.clock.jump(seconds)
    lab.engine.look(**{"beats": round(time.monotonic()), **signs})
    lab.settle()


@pytest.fixture
def moves(tmp_path: Path) -> Iterator[Moves]:
    with Moves(tmp_path, "up") as lab:
        yield lab


def test_the_daemon_ends_what_is_stuck_says_why_and_gives_up_in_the_end(moves: Moves) -> None:
    at_work(moves, stuck_after="50s", max_retries=1)
    look(moves)
    look(moves)
    assert "stuck" not in moves.events("x")
    look(moves)
    moves.engine.ack_cancel("x")
    moves.settle()
    assert moves.events("x") == ["claimed", "stuck", "lost"]
    assert moves.path("pending/x.yaml").exists()
    stuck = moves.history("x").events[1]
    assert (stuck["recovery"], stuck["by"]) == ("retry", "rule")
    assert stuck["evidence"][0] == "nothing has moved for 1 m 00 s (its limit: 50 s)"
    moves.clock.jump(2)
    moves.settle()
    for _ in range(4):
        look(moves)
    moves.engine.ack_cancel("x")
    moves.settle()
    assert moves.events("x") == ["claimed", "stuck", "lost"] * 2 + ["failed"]
    error = (moves.archive.result("x") or {})["error"]
    assert error["code"] == "stuck"
    assert error["message"].startswith("it was stuck 2 times, and max_retries is 1; the last time")


def test_what_was_done_in_the_moment_when_it_was_told_to_end_is_done(moves: Moves) -> None:
    at_work(moves, stuck_after="30s")
    moves.engine.work("x")
    for _ in range(2):
        look(moves)
    assert moves.events("x") == ["claimed", "stuck"]
    moves.engine.ack_cancel("x")
    moves.settle()
    assert moves.events("x") == ["claimed", "stuck", "done"]


def test_the_wall_clock_may_jump_and_silence_of_the_machine_is_no_evidence(moves: Moves) -> None:
    at_work(moves, stuck_after="60s", timeout="10h")
    moves.clock.jump_wall(7 * 86400)
    for _ in range(3):
        look(moves, seconds=5)
    moves.clock.jump_wall(-30 * 86400)
    look(moves, seconds=5)
    moves.clock.jump(3600)
    moves.settle()
    look(moves)
    assert moves.events("x") == ["claimed"]


@pytest.mark.parametrize(
    "said",
    [
        {
            "problem": "its labd is 0.8",
            "warning": "",
            "looked_s": 1.0,
            "attempts": [{"task_id": "x"}],
        },
        {"looked_s": 1.0, "attempts": [{"task_id": "x", "attempt": 1, "beats": 1}]},
        {"looked_s": "never", "attempts": []},
        {"looked_s": 1.0, "attempts": [5]},
    ],
)
def test_a_machine_that_cannot_be_understood_is_no_evidence_and_loses_no_end(
    moves: Moves, said: dict[str, Any]
) -> None:
    at_work(moves, stuck_after="30s")
    moves.clock.jump(3600)
    moves.engine.tell(n1={**WELL, **said})
    moves.engine.finish("x")
    moves.settle()
    assert moves.events("x") == ["claimed", "done"]


def test_what_cannot_be_taken_now_is_taken_at_the_next_turn_with_all_behind_it(
    moves: Moves,
) -> None:
    at_work(moves)
    moves.engine.go_down()
    moves.engine.come_up()
    moves.engine.finish("x")
    running = moves.path("running")
    running.rename(moves.path("away"))
    running.touch()
    with pytest.raises((LabdError, OSError)):
        moves.tick()
    running.unlink()
    moves.path("away").rename(running)
    moves.settle()
    assert moves.events("x") == ["claimed", "done"]


@pytest.mark.parametrize("jump_s", [-30 * 86400, 30 * 86400])
def test_a_lost_task_is_tried_again_in_its_time_wherever_the_wall_clock_jumps(
    moves: Moves, jump_s: float
) -> None:
    at_work(moves)
    moves.engine.lose("x")
    moves.settle()
    assert moves.events("x") == ["claimed", "lost"]
    moves.clock.jump_wall(jump_s)
    moves.settle()
    assert moves.events("x") == ["claimed", "lost"]
    moves.clock.jump(1.1)
    moves.settle()
    assert moves.events("x") == ["claimed", "lost", "claimed"]


def test_a_study_has_its_runs_ended_first_and_a_restart_between_loses_nothing(
    moves: Moves,
) -> None:
    at_work(moves, stuck_after="30s")
    for _ in range(2):
        look(moves, runs=["trial-001"])
    assert moves.engine.reached == [("x", 1, "end_runs")]
    assert moves.events("x") == ["claimed", "stuck"]
    moves.crash()
    moves.start()
    moves.settle()
    assert moves.events("x") == ["claimed", "stuck"], "it was adopted"
    moves.engine.finish("x")
    moves.settle()
    assert moves.events("x") == ["claimed", "stuck", "done"]


def test_a_worker_that_does_not_end_when_told_to_is_killed(moves: Moves) -> None:
    at_work(moves, timeout="1m")
    look(moves, seconds=90)
    assert moves.engine.reached == []
    look(moves, seconds=11)
    assert moves.engine.reached == [("x", 1, "kill")]


def test_people_see_how_running_tasks_stand_and_recover_them_by_hand(moves: Moves) -> None:
    lab = People(moves.home)
    at_work(moves, stuck_after="50s")
    look(moves, output_bytes=5)
    look(moves, output_bytes=5)
    with moves.spool.held():
        stand = stand_of(lab, "x")
        assert (stand.idle_s, stand.last_moved, stand.due_in_s) == (20, "output", 30)
        assert (stand.recovery, stand.seen, stand.limit_s) == ("retry", True, 50)
        ask(lab, stand)
    assert moves.events("x") == ["claimed"], "asking is only a file"
    look(moves, seconds=1, output_bytes=6)
    assert moves.events("x") == ["claimed", "stuck"]
    assert moves.history("x").events[1]["by"] == "hand"
    assert list(moves.home.run_dir.glob("recover-*")) == []
    with pytest.raises(MoveRefused, match="no daemon says"):
        stand_of(lab, "x")


def test_a_node_where_a_task_was_stuck_is_avoided_as_long_as_another_could_hold_it() -> None:
    def started(nodes: list[Node], held: list[Running], now_s: float = 599.0) -> list[str]:
        backlog = Backlog()
        task = Waiting("x", 0, 1, Demand(1, 0, avoid=frozenset({"n1"})), "ann", 0.0)
        backlog.add(task)
        made = plan(Snapshot(backlog, held, nodes, {}, now_s, 600.0))
        assert bool(made.reason(task)) is not bool(made.starts)
        return [start.node_id for start in made.starts]

    one, two, small = (Node(f"n{i}", f"n{i}", cpus, 0) for i, cpus in ((1, 4), (2, 4), (3, 0.5)))
    busy = [Running("y", "n2", Demand(4, 0), "bob")]
    assert started([one, two], []) == ["n2"]
    assert started([one, two], busy) == [], "it waits for the other one"
    assert started([one, two], busy, now_s=600.0) == ["n1"], "but not while its own idles"
    assert started([one, two], [], now_s=600.0) == ["n2"]
    assert started([one], []) == started([one, small], []) == ["n1"]


# --- the signs of real processes

WORKER = """
import json, sys
from pathlib import Path
from labd import worker
from labd.archive import Archive
print(worker.run(json.loads(sys.argv[1]), [], signs=Path(sys.argv[2]))["outcome"])
"""


@contextmanager
def worker_process(job: dict[str, Any], signs: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", WORKER, json.dumps(job), str(signs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def signs_of(directory: Path) -> dict[str, Any]:
    found = wait_until(lambda: worker.attempts_here(directory, {}), 30, "signs of the attempt")
    return found[0]


@pytest.mark.sandbox
def test_a_silent_computation_uses_cpu_a_stopped_worker_says_nothing_and_can_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, signs = CommandLab(tmp_path), tmp_path / "signs"
    job = lab.job(lab.text(run="exec 3>file; while :; do echo >&3; done"))
    with worker_process(job, signs) as process:
        wait_until(lambda: signs_of(signs)["work_cpu_s"] > 0.2, 30, "CPU time")
        first = signs_of(signs)
        assert first["written_bytes"] > 0
        assert first["read_bytes"] > 10_000, "its programs at the least"
        assert set(first) == {f.name for f in fields(Signs)} - {"at_s"} | {"task_id", "attempt"}
        monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path.parent))
        node = {
            "lab": tmp_path.name,
            "lock_path": str(tmp_path / "engine.lock"),
            "worker": {"sandbox": SANDBOX, "results": str(tmp_path)},
        }
        for away in (False, True):
            told = facts_of_this_node(node, away)
            assert [(one["task_id"], one["attempt"]) for one in told["attempts"]] == [("x", 1)]
        assert (first["task_id"], first["attempt"], first["asks"]) == ("x", 1, 0)
        wait_until(lambda: signs_of(signs)["beats"] > first["beats"], 30, "a beat")
        below = psutil.Process(process.pid).children(recursive=True)
        for pid in (*(one.pid for one in below), process.pid):
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: _still(signs), 30, "that nothing moves")
        assert not worker.reach(signs, "x", 2, "kill"), "it is another attempt's"
        assert worker.reach(signs, "x", 1, "kill")
        assert process.wait(30) == -signal.SIGKILL
    assert worker.attempts_here(signs, {}) == []
    assert list(signs.iterdir()) == [], "what the dead left is swept away"


def _still(signs: Path) -> bool:
    """Say whether nothing moves for more than a beat."""
    before = signs_of(signs)
    time.sleep(1.5)
    return signs_of(signs) == before


def test_an_attempt_on_another_node_has_its_signs_until_its_results_are_home(
    tmp_path: Path,
) -> None:
    archive, scratch = Archive(tmp_path / "results"), tmp_path / "scratch"
    archive.prepare()
    archive.record("x", "claimed", attempt=1)
    (archive.directory("x") / "model.bin").write_bytes(bytes(9 * 2**20))
    store = Store(archive.root, StoreLimits(min_free_bytes=1))
    seen_at: dict[str, list[dict[str, Any]]] = {}

    def call(method: str, /, **data: Any) -> dict[str, Any]:
        seen_at.setdefault(method, []).extend(worker.attempts_here(scratch / "signs", {}) or [{}])
        return store.answer(method, **data)

    text = "kind: prompts\ninput: nothing.txt\ntemplate: hello\nmodel: m\n"
    job = job_of("x", 1, archive.root, task_text=text, node_id="n", num_gpus=0)
    assert run_away(call, job, [], scratch)["error"]["code"] == "config", "it has no way to models"
    assert {"read", "place"} <= set(seen_at), "it came and went home"
    assert {one.get("task_id") for all_seen in seen_at.values() for one in all_seen} == {"x"}
    first, last = seen_at["read"][0], seen_at["place"][-1]
    assert last["shipped_bytes"] > first["shipped_bytes"] + 9 * 2**20
    assert worker.attempts_here(scratch / "signs", {}) == []


def test_a_worker_whose_disk_takes_no_line_says_nothing_and_not_what_it_said_before(
    tmp_path: Path,
) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path; from labd.worker.signs import Beats\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with Beats(Path(sys.argv[1])).during({'task_id': 'x', 'attempt': 1}, []):\n"
        "    for limit in (0, resource.RLIM_INFINITY):\n"
        "        input(); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    input()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert signs_of(tmp_path)["task_id"] == "x"
        process.stdin.write("\n")
        process.stdin.flush()
        wait_until(
            lambda: not worker.attempts_here(tmp_path, {}), 30, "that it can't say anything"
        )
        process.stdin.write("\n")
        process.stdin.flush()
        assert signs_of(tmp_path)["task_id"] == "x"
        process.kill()


@pytest.mark.sandbox
def test_a_stuck_run_is_a_trial_that_failed_for_that_and_others_go_on(tmp_path: Path) -> None:
    make_template(tmp_path, "hang", experiment="import time\ntime.sleep(600)", memory="256MiB")
    template = load_template("hang", roots=[tmp_path])
    tools = Tools(CappedSandbox(SANDBOX, TaskLimits(), 0, None))
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(
            run_one,
            template,
            tools,
            name="trial-003",
            params={"x": 0.5},
            seed=1,
            split="validation",
            results_dir=tmp_path,
        )
        wait_until(lambda: [one.name for one in RUNS.under_way()] == ["trial-003"], 30, "the run")
        wait_until((tmp_path / "runs/trial-003/log.txt").exists, 30, "its beginning")
        RUNS.end_stuck()
        ended = future.result(30)
    assert ended.status is TrialStatus.TIMED_OUT
    assert (ended.reason or "").startswith("stuck: ")
    assert RUNS.under_way() == []


# --- time limits


def test_max_hours_are_of_all_attempts_and_a_time_limit_is_of_each() -> None:
    assert time_left(36_000, 1, 0) == (3600, 0)
    assert time_left(36_000, 1, 2400) == (1200, 2400)
    assert time_left(36_000, 1, 5000)[0] < 0, "nothing is left to begin with"
    assert time_left(1000, 1, 2400) == (800, 0), "the attempt's own limit comes first"
    assert time_left(1000, None, 1e9) == (800, 0)


def test_of_a_study_that_goes_on_the_share_for_trials_is_of_all_its_time() -> None:
    assert Allowance(deadline=1200, spent_s=2400, clock=lambda: 0.0).seconds_left(0.7) == (
        0.7 * 3600 - 2400
    )


def test_runs_end_in_time_for_a_paper() -> None:
    assert [last_run_s(timeout_s) for timeout_s in (20, 100, 1000, 86400)] == [
        *(20, 85, 900, 86100)
    ]
    box = CappedSandbox(SANDBOX, TaskLimits(), 0, None, until_s=time.monotonic())
    result = box.run(["true"], workdir=Path.cwd(), limits=Limits(), read_only={}, env={}, gpus=[])
    assert (result.ending, result.wall_s) == (Ending.OUT_OF_TIME, 0)


def test_a_request_to_a_slow_model_is_one_that_is_waited_for() -> None:
    slow = running_ollama("--model=alpha", "--seconds-per-token=0.02")
    with (
        slow as node,
        brokered(endpoint(node)) as call,
        pool(call) as models,
        ThreadPoolExecutor(1) as threads,
    ):
        reply = threads.submit(models.chat, HELLO, options())
        wait_until(lambda: models.asks == 1, 30, "the request")
        assert not reply.done()
        reply.result(60)
        assert models.asks == 0
