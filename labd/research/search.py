"""What to try next, and what mattered: Optuna behind pure functions.

A proposal depends on the space, the history, the seed and the batch alone. Nothing is kept between
calls, so that a resumed search goes on as the undisturbed one would have.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from labd.template import Param, ParamSpec

BATCH_SIZE = 4
"""Trials proposed at once. Fixed and not the number of workers, so that machines agree."""
STARTUP_TRIALS = 9
"""So many values (the baseline's among them) are gathered at random before the model is asked."""
MIN_TRIALS_FOR_INFLUENCE = 8
SIGNIFICANT_DIGITS = 4
"""Floats are proposed with so many, so that what a paper prints is exactly what ran."""
_MAX_ASKS = 50
_IMPORTANCE_TREES = 64
_IMPORTANCE_SEED = 0

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Observation:
    """Parameters that were run, and what came of it."""

    params: Mapping[str, Param]
    value: float | None
    """``None``: the run gave no value."""


def derive_seed(seed: int, *path: int) -> int:
    """Give a seed from 0 to 2**31 - 1 that depends on `seed` and `path`, independent of other paths' seeds.

    Source: numpy's SeedSequence, https://numpy.org/doc/stable/reference/random/bit_generators/.
    """
    state = np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint32)
    return int(state[0]) >> 1


def propose(
    space: Sequence[ParamSpec],
    history: Sequence[Observation],
    *,
    better: Better,
    count: int,
    seed: int,
    batch: int,
) -> list[dict[str, Param]]:
    """Give up to `count` parameter sets that are in neither `history` nor each other.

    Random at first, then from a tree-structured Parzen estimator over the history; runs without a
    value count as tried only. Fewer than `count` come back where the space has no more.

    Source: Bergstra et al. (2011), Algorithms for Hyper-Parameter Optimization, NIPS 24, as built
    in Optuna's TPESampler (multivariate, constant liar).
    """
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=STARTUP_TRIALS,
        multivariate=True,
        constant_liar=True,
        seed=derive_seed(seed, batch),
    )
    distributions = {spec.name: _distribution(spec) for spec in space}
    tried = {_key(space, one.params) for one in history}
    chosen: list[dict[str, Param]] = []
    with _quiet():
        study = optuna.create_study(sampler=sampler, direction=_direction(better))
        study.add_trials([_frozen(one, distributions) for one in history])
        while len(chosen) < count:
            params = _ask(study, space, distributions, tried) or _first_untried(space, tried)
            if params is None:
                break
            tried.add(_key(space, params))
            chosen.append(params)
    return chosen


def influence(
    space: Sequence[ParamSpec], history: Sequence[Observation], *, better: Better
) -> dict[str, float] | None:
    """Give each parameter's share of the explained variance of the metric, from 0 to 1, or `None`.

    It can't be computed from fewer than `MIN_TRIALS_FOR_INFLUENCE` values, or from equal ones.

    Source: Hutter et al. (2014), An Efficient Approach for Assessing Hyperparameter Importance,
    ICML, as built in Optuna's FanovaImportanceEvaluator.
    """
    good = [one for one in history if one.value is not None]
    if len(good) < MIN_TRIALS_FOR_INFLUENCE or len({one.value for one in good}) < 2:
        return None
    distributions = {spec.name: _distribution(spec) for spec in space}
    evaluator = optuna.importance.FanovaImportanceEvaluator(
        n_trees=_IMPORTANCE_TREES, seed=_IMPORTANCE_SEED
    )
    with _quiet():
        study = optuna.create_study(direction=_direction(better))
        study.add_trials([_frozen(one, distributions) for one in good])
        shares = optuna.importance.get_param_importances(
            study, evaluator=evaluator, params=[spec.name for spec in space]
        )
    if not all(np.isfinite(share) for share in shares.values()):
        return None
    return {spec.name: float(shares[spec.name]) for spec in space}


def _ask(
    study: Any,
    space: Sequence[ParamSpec],
    distributions: Mapping[str, BaseDistribution],
    tried: set[tuple[object, ...]],
) -> dict[str, Param] | None:
    for _ in range(_MAX_ASKS):
        trial = study.ask(dict(distributions))
        params = {spec.name: _rounded(spec, trial.params[spec.name]) for spec in space}
        if _key(space, params) not in tried:
            return params
        study.tell(trial, state=TrialState.FAIL)
    return None


def _first_untried(
    space: Sequence[ParamSpec], tried: set[tuple[object, ...]]
) -> dict[str, Param] | None:
    """Give the first combination of a finite space that was not tried; `None` if there is none."""
    ranges = [_values(spec) for spec in space]
    if any(values is None for values in ranges):
        return None
    for combination in itertools.product(*(values or () for values in ranges)):
        params = dict(zip((spec.name for spec in space), combination, strict=True))
        if _key(space, params) not in tried:
            return params
    return None


def _values(spec: ParamSpec) -> Sequence[Param] | None:
    if spec.type == "categorical":
        return spec.choices or []
    if spec.type == "int":
        return range(int(spec.low or 0), int(spec.high or 0) + 1)
    return None


def _distribution(spec: ParamSpec) -> BaseDistribution:
    if spec.type == "categorical":
        return CategoricalDistribution(spec.choices or [])
    low, high = spec.low or 0.0, spec.high or 0.0
    if spec.type == "int":
        return IntDistribution(int(low), int(high), log=spec.log)
    return FloatDistribution(low, high, log=spec.log)


def _rounded(spec: ParamSpec, value: Param) -> Param:
    if (
        not isinstance(value, float)
        or spec.type != "float"
        or spec.low is None
        or spec.high is None
    ):
        return value
    short = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return min(max(short, spec.low), spec.high)


def _frozen(one: Observation, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    state = TrialState.FAIL if one.value is None else TrialState.COMPLETE
    return create_trial(
        params=dict(one.params), distributions=dict(distributions), value=one.value, state=state
    )


def _key(space: Sequence[ParamSpec], params: Mapping[str, Param]) -> tuple[object, ...]:
    return tuple(params[spec.name] for spec in space)


def _direction(better: Better) -> str:
    return "maximize" if better == "higher" else "minimize"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's own log to warnings while the block runs."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
