"""Which trial comes next: by the three policies, and never without end or by chance."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.research.policy import Manner, Step, batch_size, next_moves
from labd.research.record import TrialStatus
from labd.research.search import BATCH_SIZE
from labd.research.study import Policy, Trial
from tests.records import make_run


def made(number: int, step: Step, result: float | str) -> Trial:
    """Give the trial that a move led to: a value, a failed run's status, or ``refused``."""
    name = f"trial-{number:03d}"
    fields = {"name": name, "idea": "idea-1", "parent": step.parent, "move": step.move}
    if result == "refused":
        return Trial.model_validate({**fields, "status": "refused", "refused": "no edit"})
    value = result if isinstance(result, float) else None
    run = make_run(name, value, status=TrialStatus.OK if value is not None else result)
    return Trial.model_validate({**fields, "status": run.status.value, "run": run})


def moves(
    trials: Sequence[Trial], policy: Policy, *, better: str = "higher", **over: object
) -> list[Step]:
    manner = Manner(policy=policy, **over)  # type: ignore[arg-type]
    return next_moves(
        trials,
        manner,
        baseline=0.5,
        better=better,  # type: ignore[arg-type]
        count=batch_size(policy, 100),
        seed=1,
    )


def history(*results: tuple[str, str | None, float | str]) -> list[Trial]:
    return [
        made(number, Step(move, parent), result)  # type: ignore[arg-type]
        for number, (move, parent, result) in enumerate(results)
    ]


def test_linear_follows_the_last_good_trial_even_where_an_earlier_one_was_better() -> None:
    assert moves([], "linear") == [Step("draft", None)]
    trials = history(("draft", None, 0.9), ("improve", "trial-000", 0.4))
    assert moves(trials, "linear") == [Step("improve", "trial-001")]


def test_linear_repairs_what_failed_a_bounded_number_of_times_and_goes_back_then() -> None:
    trials = history(("draft", None, 0.6), ("improve", "trial-000", "crashed"))
    for number in range(2, 5):
        parent = f"trial-{number - 1:03d}"
        assert moves(trials, "linear") == [Step("debug", parent)]
        trials.append(made(number, Step("debug", parent), "no_metric"))
    assert moves(trials, "linear") == [Step("improve", "trial-000")]


def test_linear_passes_over_an_edit_that_was_refused() -> None:
    assert moves(history(("draft", None, "refused")), "linear") == [Step("draft", None)]


def test_climb_goes_on_from_the_best_and_from_the_template_while_nothing_beats_it() -> None:
    assert moves([], "climb") == [Step("draft", None)] * BATCH_SIZE
    assert moves(history(("draft", None, 0.4)), "climb") == [Step("draft", None)] * BATCH_SIZE
    trials = history(("draft", None, 0.6), ("improve", "trial-000", 0.7), ("draft", None, 0.65))
    assert moves(trials, "climb") == [Step("improve", "trial-001")] * BATCH_SIZE
    assert moves(trials, "climb", better="lower") == [Step("draft", None)] * BATCH_SIZE


def test_climb_repairs_what_broke_on_the_best_but_keeps_one_move_to_climb() -> None:
    trials = history(("draft", None, 0.6), *[("improve", "trial-000", "crashed")] * 5)
    found = moves(trials, "climb")
    assert found == [Step("debug", f"trial-{number:03d}") for number in (1, 2, 3)] + [
        Step("improve", "trial-000")
    ]
    better = [*trials, made(6, Step("improve", "trial-000"), 0.8)]
    assert moves(better, "climb") == [Step("improve", "trial-006")] * BATCH_SIZE


def test_tree_drafts_first_and_then_spreads_over_the_drafts_the_best_first() -> None:
    assert moves([], "tree", num_drafts=6) == [Step("draft", None)] * BATCH_SIZE
    trials = history(("draft", None, 0.6), ("draft", None, 0.8), ("draft", None, 0.7))
    improved = [Step("improve", f"trial-{number:03d}") for number in (1, 2, 0, 1)]
    assert moves(trials, "tree") == improved
    deeper = [*trials, made(3, Step("improve", "trial-000"), 0.9)]
    assert moves(deeper, "tree")[:3] == [
        Step("improve", f"trial-{number:03d}") for number in (3, 1, 2)
    ]
    lower = [Step("improve", f"trial-{number:03d}") for number in (0, 2, 1, 0)]
    assert moves(trials, "tree", better="lower") == lower


def test_tree_repairs_in_its_share_only_leaves_and_not_too_deep() -> None:
    trials = history(
        ("draft", None, "crashed"), ("draft", None, "timed_out"), ("draft", None, 0.6)
    )
    always = moves(trials, "tree", debug_share=1.0)
    assert {step.parent for step in always[:2]} == {"trial-000", "trial-001"}
    assert always[2:] == [Step("improve", "trial-002")] * 2
    assert moves(trials, "tree", debug_share=0.0) == [Step("improve", "trial-002")] * 4
    repaired = [*trials, made(3, Step("debug", "trial-000"), "hopeless")]
    parents = {step.parent for step in moves(repaired, "tree", debug_share=1.0)}
    assert parents == {"trial-001", "trial-003", "trial-002"}
    shallow = moves(repaired, "tree", debug_share=1.0, max_debug_depth=1)
    assert {step.parent for step in shallow} == {"trial-001", "trial-002"}


def test_tree_drafts_again_where_nothing_is_there_to_go_on_from() -> None:
    trials = history(*[("draft", None, "refused")] * 4)
    assert moves(trials, "tree") == [Step("draft", None)] * BATCH_SIZE


_RESULTS = st.sampled_from(
    [0.1, 0.5, 0.9, "crashed", "timed_out", "no_metric", "refused", "hopeless"]
)


@given(
    st.sampled_from(["linear", "climb", "tree"]),
    st.lists(_RESULTS, min_size=1, max_size=24),
    st.sampled_from(["higher", "lower"]),
    st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_every_policy_always_has_a_move_that_makes_sense_and_gives_it_again(
    policy: Policy, results: list[float | str], better: str, depth: int
) -> None:
    trials: list[Trial] = []
    waiting = list(results)
    while waiting:
        found = moves(trials, policy, better=better, max_debug_depth=depth)
        assert found == moves(trials, policy, better=better, max_debug_depth=depth)
        assert 1 <= len(found) <= BATCH_SIZE
        by_name = {trial.name: trial for trial in trials}
        for step in found:
            parent = by_name.get(step.parent or "")
            assert (parent is None) == (step.move == "draft")
            if parent is not None:
                assert (step.move == "debug") == (parent.value is None)
                assert parent.run is not None
        for step in found[: len(waiting)]:
            trials.append(made(len(trials), step, waiting.pop(0)))


@pytest.mark.parametrize("policy", ["linear", "climb", "tree"])
def test_batches_have_the_size_of_the_policy_and_not_of_the_machine(policy: Policy) -> None:
    assert batch_size(policy, 100) == (1 if policy == "linear" else BATCH_SIZE)
    assert batch_size(policy, 1) == 1
    assert batch_size(policy, 0) == 0
