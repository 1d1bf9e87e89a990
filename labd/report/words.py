"""How numbers, times and verdicts are written for people, in every form alike. Pure."""

from datetime import UTC, datetime

from labd.report.model import Comparison, FailureGroup, Report

UNKNOWN = "not on record"
VERDICT_WORDS = {
    "improved": "improved",
    "no_improvement": "no improvement",
    "worse": "worse",
    "inconclusive": "inconclusive",
    "": "verdict not on record",
}
COUNTS_WHAT = (
    "A task counts from its claim to the next thing on record of it: its end, its loss, or that it was queued again. "
    "GPUs are those that tasks were given; the GPUs of language models' servers are not among them."
)


def title_of(report: Report) -> str:
    """Give the report's title."""
    return f"Campaign {report.campaign}" if report.campaign else "What the lab did"


def moment(at: datetime) -> str:
    """Give an instant in its own zone, to the minute."""
    return f"{at:%a %Y-%m-%d %H:%M} {at.tzname() or ''}".rstrip()


def instant(at_s: float | None, like: datetime) -> str:
    """Give seconds since the epoch as an instant in the zone of another."""
    if at_s is None:
        return UNKNOWN
    return f"{datetime.fromtimestamp(at_s, UTC).astimezone(like.tzinfo):%a %d %b %H:%M}"


def figure(value: float | None, *, signed: bool = False) -> str:
    """Give a measured number with four significant digits."""
    if value is None:
        return UNKNOWN
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def p_value(value: float | None) -> str:
    """Give a p-value as papers write it."""
    if value is None:
        return "p not on record"
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}"


def interval(comparison: Comparison) -> str:
    """Give the 95 % interval of a difference."""
    if comparison.low is None or comparison.high is None:
        return "interval not on record"
    return f"{figure(comparison.low, signed=True)} to {figure(comparison.high, signed=True)}"


def samples(comparison: Comparison) -> str:
    """Give the numbers of runs behind a comparison."""
    if comparison.n_baseline == comparison.n_best:
        return f"n = {comparison.n_best} each"
    return f"n = {comparison.n_baseline} and {comparison.n_best}"


def corrected(comparison: Comparison) -> str:
    """Give the corrected p-value, and for how many comparisons it is."""
    told = p_value(comparison.p_corrected)
    if comparison.p_corrected is None or comparison.comparisons is None:
        return told
    return f"{told}, corrected for {comparison.comparisons}"


def hours(value: float) -> str:
    """Give hours with one digit behind the point, or more where there are few."""
    return f"{value:.3g}" if value < 10 else f"{value:,.1f}"


def count(value: int | None) -> str:
    """Give a count, with separators."""
    return UNKNOWN if value is None else f"{value:,}"


def score(value: float | None, reviews: int) -> str:
    """Give what reviews thought of a paper."""
    return "not reviewed" if value is None else f"{value:.1f} of 10 ({reviews})"


def times(group: FailureGroup) -> str:
    """Give how often something came."""
    return "once" if group.count == 1 else f"{group.count:,} times"


def share(value: float) -> str:
    """Give a share as a percentage; a small one is not none."""
    return "less than 1 %" if 0 < value < 0.01 else f"{value:.0%}".replace("%", " %")
