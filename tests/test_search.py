"""Proposals: pure, inside the space, never twice, and quiet."""

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.research.search import (
    BATCH_SIZE,
    STARTUP_TRIALS,
    Better,
    Observation,
    derive_seed,
    influence,
    propose,
)
from labd.template import ParamSpec

SPACE = [
    ParamSpec(name="rate", type="float", low=1e-4, high=1.0, log=True, baseline=0.01),
    ParamSpec(name="share", type="float", low=0.0, high=1.0, baseline=0.0),
    ParamSpec(name="size", type="int", low=1, high=64, log=True, baseline=8),
    ParamSpec(name="kind", type="categorical", choices=["a", "b", True, 2], baseline="a"),
]
START = [Observation({"rate": 0.01, "share": 0.0, "size": 8, "kind": "a"}, 0.5)]


def searched(
    batches: int, *, better: Better = "higher", seed: int = 1, fail_every: int = 10**9
) -> list[Observation]:
    """Search a bowl whose best is at share 0.7; higher is better, or its negative for lower."""
    history = list(START)
    sign = 1.0 if better == "higher" else -1.0
    for batch in range(batches):
        for params in propose(
            SPACE, history, better=better, count=BATCH_SIZE, seed=seed, batch=batch
        ):
            value = sign * -((float(params["share"]) - 0.7) ** 2)
            history.append(Observation(params, None if len(history) % fail_every == 0 else value))
    return history


def test_the_same_history_gives_the_same_proposals_and_another_seed_others() -> None:
    assert searched(5) == searched(5)
    assert searched(5) != searched(5, seed=2)


def test_proposals_survive_a_journal_unchanged() -> None:
    history = searched(4)
    again = [Observation(json.loads(json.dumps(dict(one.params))), one.value) for one in history]
    one = propose(SPACE, history, better="higher", count=4, seed=1, batch=4)
    assert propose(SPACE, again, better="higher", count=4, seed=1, batch=4) == one


def test_proposals_lie_in_the_space_with_the_types_it_has() -> None:
    for one in searched(6)[1:]:
        assert isinstance(one.params["rate"], float)
        assert 1e-4 <= one.params["rate"] <= 1.0
        assert float(f"{one.params['rate']:.4g}") == one.params["rate"]
        assert type(one.params["size"]) is int
        assert 1 <= one.params["size"] <= 64
        assert any(one.params["kind"] is choice for choice in ("a", "b", True, 2))


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_search_learns_which_way_is_better(better: Better) -> None:
    history = searched(10, better=better)
    late = [abs(float(one.params["share"]) - 0.7) for one in history[-12:]]
    early = [abs(float(one.params["share"]) - 0.7) for one in history[1:STARTUP_TRIALS]]
    assert sum(late) / len(late) < 0.6 * sum(early) / len(early)


def test_failed_runs_are_not_tried_again_and_do_not_stop_the_search() -> None:
    history = searched(6, fail_every=2)
    keys = [json.dumps(dict(one.params)) for one in history]
    assert len(set(keys)) == len(keys) == 1 + 6 * BATCH_SIZE
    only_failures = [Observation(one.params, None) for one in history]
    assert len(propose(SPACE, only_failures, better="higher", count=4, seed=1, batch=9)) == 4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 3), st.integers(2, 3))
def test_a_finite_space_is_used_up_exactly(seed: int, width: int, choices: int) -> None:
    space = [
        ParamSpec(name="size", type="int", low=1, high=width, baseline=1),
        ParamSpec(name="kind", type="categorical", choices=[*"abc"[:choices]], baseline="a"),
    ]
    history = [Observation({"size": 1, "kind": "a"}, 0.0)]
    for batch in range(20):
        found = propose(space, history, better="higher", count=4, seed=seed, batch=batch)
        history += [Observation(params, float(batch)) for params in found]
        if not found:
            break
    tried = {(one.params["size"], one.params["kind"]) for one in history}
    assert len(tried) == len(history) == width * choices


def test_influence_finds_the_parameter_that_matters() -> None:
    shares = influence(SPACE, searched(6)[1:], better="higher")
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["share"] > 0.7
    assert shares == influence(SPACE, searched(6)[1:], better="higher")


def test_influence_is_not_made_up_from_too_little() -> None:
    history = searched(6)[1:]
    assert influence(SPACE, history[:7], better="higher") is None
    assert (
        influence(SPACE, [Observation(one.params, 1.0) for one in history], better="higher")
        is None
    )
    assert (
        influence(SPACE, [Observation(one.params, None) for one in history], better="higher")
        is None
    )


def test_seeds_of_different_purposes_are_different() -> None:
    seeds = {
        derive_seed(seed, *path) for seed in range(20) for path in ((), (0,), (1,), (2, 0), (2, 1))
    }
    assert len(seeds) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_optuna_says_nothing_and_keeps_its_level(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("optuna")
    before = logger.level
    searched(2)
    assert capfd.readouterr() == ("", "")
    assert logger.level == before
