"""Statistics: against scipy and published values, at the edges, and under the null hypothesis."""

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from labd.research.record import Claim, Verdict
from labd.research.stats import ALPHA, compare, describe, hedges_g, no_candidate

BASELINE = [0.912, 0.908, 0.915, 0.910, 0.905, 0.911, 0.909, 0.914, 0.907, 0.913]
BETTER = [0.934, 0.921, 0.940, 0.928, 0.931, 0.926, 0.937, 0.919, 0.930, 0.933]

samples = st.lists(st.floats(-1e100, 1e100), min_size=0, max_size=12)


def judged(
    baseline: list[float], best: list[float], *, better: str = "higher", comparisons: int = 1
) -> Claim:
    direction: Literal["higher", "lower"] = "higher" if better == "higher" else "lower"
    return compare(baseline, best, better=direction, planned=10, comparisons=comparisons)


def test_a_sample_has_the_interval_of_students_t() -> None:
    sample = describe(BASELINE)
    assert sample is not None
    assert sample.sd == pytest.approx(np.std(BASELINE, ddof=1))
    interval = reference.t.interval(0.95, 9, np.mean(BASELINE), reference.sem(BASELINE))
    assert (sample.ci_low, sample.ci_high) == pytest.approx(interval)


def test_one_value_has_no_spread_and_no_values_are_no_sample() -> None:
    one = describe([0.5])
    assert one is not None
    assert (one.n, one.mean, one.sd, one.ci_low, one.ci_high) == (1, 0.5, None, None, None)
    assert describe([]) is None


def test_equal_values_have_no_variance_at_all() -> None:
    sample = describe([0.1] * 10)
    assert sample is not None
    assert (sample.mean, sample.sd) == (0.1, 0.0)
    assert np.std([0.1] * 3) > 0  # which is why it is computed exactly


@pytest.mark.parametrize("sizes", [(10, 10), (8, 10), (10, 9)])
def test_p_value_and_interval_are_welchs(sizes: tuple[int, int]) -> None:
    one, two = BASELINE[: sizes[0]], BETTER[: sizes[1]]
    claim = judged(one, two)
    welch = reference.ttest_ind(two, one, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert claim.p_value == pytest.approx(welch.pvalue)
    assert (claim.difference_low, claim.difference_high) == pytest.approx(tuple(interval))
    assert claim.difference == pytest.approx(np.mean(two) - np.mean(one))


def test_effect_size_is_hedges_with_the_exact_correction() -> None:
    one, two = describe([1.0, 2.0, 3.0, 4.0, 5.0]), describe([3.0, 4.0, 5.0, 6.0, 7.0])
    assert one is not None
    assert two is not None
    # d = 2 / sqrt(2.5); the correction for 8 degrees of freedom is 0.9027 (Hedges 1981, table 1: .9027).
    assert hedges_g(one, two) == pytest.approx(2 / math.sqrt(2.5) * 0.9027, abs=1e-4)
    assert hedges_g(two, one) == pytest.approx(-(hedges_g(one, two) or 0))


def test_the_correction_multiplies_by_the_number_tried_and_can_undo_a_claim() -> None:
    close = [value + 0.0035 for value in BASELINE]
    alone, many = judged(BASELINE, close), judged(BASELINE, close, comparisons=24)
    assert alone.verdict is Verdict.IMPROVED
    assert many.p_corrected == pytest.approx(24 * (alone.p_value or 0))
    assert many.verdict is Verdict.NO_IMPROVEMENT
    assert judged(BASELINE, BASELINE, comparisons=24).p_corrected == 1.0


def test_lower_can_be_better() -> None:
    assert judged(BASELINE, BETTER).verdict is Verdict.IMPROVED
    assert judged(BASELINE, BETTER, better="lower").verdict is Verdict.WORSE
    assert judged(BETTER, BASELINE, better="lower").verdict is Verdict.IMPROVED
    assert judged(BETTER, BASELINE).verdict is Verdict.WORSE


def test_a_difference_without_any_spread_is_not_called_an_improvement() -> None:
    claim = judged([0.5] * 10, [0.9] * 10)
    assert claim.verdict is Verdict.INCONCLUSIVE
    assert claim.difference == pytest.approx(0.4)
    assert (claim.p_value, claim.effect_size, claim.difference_low) == (None, None, None)
    assert "no spread" in claim.reason
    assert judged([0.5] * 10, [0.5] * 10).verdict is Verdict.NO_IMPROVEMENT


def test_spread_on_one_side_is_enough_to_test() -> None:
    claim = judged([0.9] * 10, BETTER)
    assert claim.verdict is Verdict.IMPROVED
    welch = reference.ttest_1samp(BETTER, 0.9)
    assert claim.p_value == pytest.approx(welch.pvalue)


def test_too_few_values_are_inconclusive_and_the_reason_counts_them() -> None:
    claim = judged(BASELINE, BETTER[:7])
    assert claim.verdict is Verdict.INCONCLUSIVE
    assert "10 runs of the baseline and 7 of the best trial" in claim.reason
    assert judged(BASELINE, BETTER[:8]).verdict is Verdict.IMPROVED
    assert judged([], []).baseline is None


def test_without_a_candidate_there_is_no_difference() -> None:
    claim = no_candidate(BASELINE, verdict=Verdict.NO_IMPROVEMENT, reason="none", comparisons=3)
    assert claim.best is None
    assert claim.difference is None
    assert claim.baseline is not None


def test_where_nothing_differs_a_claim_is_made_about_as_often_as_alpha_allows() -> None:
    rng = np.random.default_rng(20)
    draws = 1500
    claims = [
        judged(rng.normal(size=10).tolist(), rng.normal(size=10).tolist()) for _ in range(draws)
    ]
    share = sum(claim.verdict is not Verdict.NO_IMPROVEMENT for claim in claims) / draws
    spread = math.sqrt(ALPHA * (1 - ALPHA) / draws)
    assert abs(share - ALPHA) < 4 * spread
    # The intervals miss the true difference as rarely.
    missed = (
        sum(not (c.difference_low or 0) <= 0 <= (c.difference_high or 0) for c in claims) / draws
    )
    assert missed == pytest.approx(share)


@settings(max_examples=150, deadline=None)
@given(samples, samples, st.sampled_from(["higher", "lower"]), st.integers(1, 100))
def test_any_numbers_give_a_claim_that_is_whole(
    one: list[float], two: list[float], better: str, comparisons: int
) -> None:
    claim = judged(one, two, better=better, comparisons=comparisons)
    if claim.p_value is not None and claim.p_corrected is not None:
        assert 0 <= claim.p_value <= claim.p_corrected <= 1
    if claim.verdict in {Verdict.IMPROVED, Verdict.WORSE}:
        assert claim.difference is not None
        assert (claim.difference > 0) == (
            (claim.verdict is Verdict.IMPROVED) == (better == "higher")
        )
    mirrored = judged(
        one, two, better="lower" if better == "higher" else "higher", comparisons=comparisons
    )
    flipped = {Verdict.IMPROVED: Verdict.WORSE, Verdict.WORSE: Verdict.IMPROVED}
    assert mirrored.verdict is flipped.get(claim.verdict, claim.verdict)
