"""Stuck work: the rule, played look by look; the daemon that follows it; and the signs of real processes."""

from dataclasses import replace

import pytest

from labd.scheduler import Signs, Standing, Verdict, judge, seen, told_to_end

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

    def look(self, *, silent: bool = False, **more: float) -> Verdict | None:
        """Let ten seconds pass, in which each of the counters in `more` grows by so much; give what the rule says."""
        self.now_s += EVERY_S
        beats = None if silent else (self.signs.beats or 0) + 10
        grown = {name: getattr(self.signs, name) + by for name, by in more.items()}
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
        ("own_cpu_s", 6.0, True),
        ("own_cpu_s", 1.0, False),
    ],
)
def test_each_sign_alone_keeps_work_from_being_stuck_and_idling_does_not(
    sign: str, by: float, moves: bool
) -> None:
    played = Played()
    verdicts = [played.look(**{sign: by}) for _ in range(100)]
    assert all(verdict is None for verdict in verdicts) is moves


def test_a_gpu_in_use_and_a_model_that_is_waited_for_are_progress() -> None:
    assert Played(gpu_use=0.5).idle(100) == [""] * 100
    assert Played(asks=1).idle(100) == [""] * 100
    assert "retry" in Played(gpu_use=0.0).idle(100)


def test_a_worker_that_says_nothing_waits_for_no_model() -> None:
    played = Played(asks=1)
    assert any(played.look(silent=True) for _ in range(7))


def test_stuck_runs_are_ended_once_then_the_attempt_until_the_retries_are_used_up() -> None:
    played = Played(runs=RUN)
    assert played.idle(6) == ["", "", "", "", "", "end_run"]
    played.standing = told_to_end(played.standing, played.now_s)
    assert played.idle(3) == [""] * 3, "the worker has a moment to do it"
    assert played.look(journal_bytes=50) is None
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
    assert played.look(journal_bytes=1) is None
    fresh = Standing(LIMIT_S, 0.0)
    late = seen(fresh, Signs(5.0), 10 * LIMIT_S)
    assert judge(late, losses=0, max_retries=0) is None
    again = seen(late, Signs(5.0), 20 * LIMIT_S)
    assert again == late, "an old look came twice"


def test_no_limit_is_no_limit() -> None:
    assert Played(limit_s=0.0).idle(1000) == [""] * 1000


def test_the_evidence_says_since_when_what_was_last_and_what_is_under_way() -> None:
    played = Played(runs=RUN)
    played.look(output_bytes=7)
    played.idle(6)
    verdict = played.judged()
    assert verdict is not None
    said = "; ".join(verdict.evidence)
    for words in ("nothing has moved for 1 m 00 s", "was output", "output 7 bytes", "trial-003"):
        assert words in said
