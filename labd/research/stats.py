"""Statistics of a claim: a sample over fresh seeds, and best against baseline. Pure functions.

Means and deviations are computed exactly (`statistics`), so that equal values have no variance at
all: a variance of rounding errors would make any difference look certain.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from scipy import stats

from labd.research.record import Claim, Sample, Verdict

CONFIDENCE = 0.95
ALPHA = 0.05
MIN_SHARE = 0.8
"""Of the planned runs, the share that must give a value. With fewer, the runs that crash may be the
bad ones, and those that are left would flatter."""


def describe(values: Sequence[float]) -> Sample | None:
    """Give n, mean, standard deviation and the 95 % interval of the mean; `None` for no values.

    Source: Student's t interval, NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2.
    """
    n = len(values)
    if n == 0:
        return None
    mean = float(statistics.mean(values))
    if n < 2:
        return Sample(values=list(values), n=n, mean=mean, sd=None, ci_low=None, ci_high=None)
    sd = statistics.stdev(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    return Sample(
        values=list(values), n=n, mean=mean, sd=sd, ci_low=mean - half, ci_high=mean + half
    )


def compare(
    baseline: Sequence[float],
    best: Sequence[float],
    *,
    better: Literal["higher", "lower"],
    planned: int,
    comparisons: int,
) -> Claim:
    """Judge `best` against `baseline` by Welch's test, corrected for the candidates that were tried.

    The verdict is ``improved`` or ``worse`` where the corrected p-value is below `ALPHA`, else
    ``no_improvement``. It is ``inconclusive`` where fewer than `MIN_SHARE` of the `planned` runs of
    either gave a value. It is also inconclusive where neither sample varies and they differ: then
    the seed does not matter, ten runs are one run ten times, and nothing says how large a difference
    by chance would be.

    Args:
        baseline: the metric over fresh seeds with the baseline's parameters.
        best: the metric over the same seeds of what was selected.
        better: which way is better.
        planned: how many runs each should have had.
        comparisons: how many candidates were tried, at least 1.

    """
    one, two = describe(baseline), describe(best)
    least = max(2, math.ceil(MIN_SHARE * planned))
    if one is None or two is None or min(one.n, two.n) < least:
        reason = (
            f"{len(baseline)} runs of the baseline and {len(best)} of the best trial gave a value, "
            f"of {planned} each, and a claim needs at least {least} of each."
        )
        return _without_test(Verdict.INCONCLUSIVE, reason, one, two, comparisons=comparisons)
    if _standard_error(one, two) == 0:
        return _judge_constant(one, two, comparisons)
    return _judge(one, two, better, comparisons)


def no_candidate(
    baseline: Sequence[float],
    *,
    verdict: Verdict,
    reason: str,
    comparisons: int,
) -> Claim:
    """Give the claim where no trial was there to be compared with the baseline, with the given verdict."""
    return _without_test(verdict, reason, describe(baseline), None, comparisons=comparisons)


def hedges_g(baseline: Sample, best: Sample) -> float | None:
    """Give the standardised difference, signed like best minus baseline; `None` without variance.

    Cohen's d over the pooled deviation, with the exact correction for small samples.
    Source: Hedges (1981), Distribution theory for Glass's estimator of effect size and related
    estimators, Journal of Educational Statistics 6(2), 107-128, equation 6e for the correction.
    """
    df = baseline.n + best.n - 2
    weight_1, weight_2 = math.sqrt((baseline.n - 1) / df), math.sqrt((best.n - 1) / df)
    pooled = math.hypot(weight_1 * (baseline.sd or 0.0), weight_2 * (best.sd or 0.0))
    if pooled == 0:
        return None
    log_correction = math.lgamma(df / 2) - math.lgamma((df - 1) / 2) - math.log(df / 2) / 2
    return _finite((best.mean - baseline.mean) / pooled * math.exp(log_correction))


def _judge(
    one: Sample, two: Sample, better: Literal["higher", "lower"], comparisons: int
) -> Claim:
    difference = two.mean - one.mean
    error, df = _welch(one, two)
    p_value = float(2 * stats.t.sf(abs(difference) / error, df))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, df)) * error
    p_corrected = min(1.0, p_value * comparisons)
    verdict, reason = _verdict(difference, p_corrected, better, comparisons)
    return Claim(
        verdict=verdict,
        reason=reason,
        baseline=one,
        best=two,
        difference=difference,
        difference_low=difference - half,
        difference_high=difference + half,
        effect_size=hedges_g(one, two),
        p_value=p_value,
        p_corrected=p_corrected,
        comparisons=comparisons,
        alpha=ALPHA,
    )


def _welch(one: Sample, two: Sample) -> tuple[float, float]:
    """Give the standard error of the difference and its degrees of freedom.

    Source: Welch (1947), The generalization of Student's problem when several different population
    variances are involved, Biometrika 34, 28-35; degrees of freedom by Satterthwaite (1946). Written
    in shares of the squared error, so that neither tiny nor huge deviations under- or overflow.
    """
    error = _standard_error(one, two)
    share_1, share_2 = ((_mean_error(sample) / error) ** 2 for sample in (one, two))
    return error, 1 / (share_1**2 / (one.n - 1) + share_2**2 / (two.n - 1))


def _standard_error(one: Sample, two: Sample) -> float:
    return math.hypot(_mean_error(one), _mean_error(two))


def _mean_error(sample: Sample) -> float:
    return (sample.sd or 0.0) / math.sqrt(sample.n)


def _verdict(
    difference: float,
    p_corrected: float,
    better: Literal["higher", "lower"],
    comparisons: int,
) -> tuple[Verdict, str]:
    test = f"The p-value of Welch's test, corrected for {comparisons} candidate{'' if comparisons == 1 else 's'},"
    if p_corrected >= ALPHA:
        return Verdict.NO_IMPROVEMENT, f"{test} is not below {ALPHA:g}."
    if (difference > 0) == (better == "higher"):
        return Verdict.IMPROVED, f"{test} is below {ALPHA:g} and the mean is better."
    return Verdict.WORSE, f"{test} is below {ALPHA:g} and the mean is worse."


def _judge_constant(one: Sample, two: Sample, comparisons: int) -> Claim:
    if one.mean == two.mean:
        reason = "All runs of both gave one and the same value."
        return _without_test(Verdict.NO_IMPROVEMENT, reason, one, two, comparisons=comparisons)
    reason = (
        "The runs of each gave the same value whatever their seed, "
        "so that there is no spread to judge the difference by."
    )
    return _without_test(Verdict.INCONCLUSIVE, reason, one, two, comparisons=comparisons)


def _without_test(
    verdict: Verdict,
    reason: str,
    one: Sample | None,
    two: Sample | None,
    *,
    comparisons: int,
) -> Claim:
    return Claim(
        verdict=verdict,
        reason=reason,
        baseline=one,
        best=two,
        difference=None if one is None or two is None else two.mean - one.mean,
        difference_low=None,
        difference_high=None,
        effect_size=None,
        p_value=None,
        p_corrected=None,
        comparisons=comparisons,
        alpha=ALPHA,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
