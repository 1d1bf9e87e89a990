"""What the lab has learnt of each template with each model, and which of them comes next. Pure.

**What is learnt.** A *profile* of each arm (a template with a model): how long a task takes, how often one is done, GPU hours, tokens,
and the *payoff*. A task pays 1 where the paper says "improved", more for a bigger effect up to 2, 0.2 where the research was done
and did not improve, 0 where it failed. Each is a mean in which a task counts half as much as one 20 tasks later, on top of
what `config/domains.yaml` expects, which counts as two tasks.

**What comes next.** With n arms, exploration share e and weights w (payoff times fit to the time of day), arm i is to get the share
s_i = e/n + (1 - e) w_i² / Σ w². The next task is of the arm that is furthest behind its share of all that was added (older
ones count less). Nothing is drawn by chance: the same history gives the same choice, and no arm waits
for ever, because its share is at least e/n.
Source of mixing an even share in: Auer et al., "The Nonstochastic Multiarmed Bandit Problem", SIAM J. Comput. 32(1), 2002,
section 3, where the share is a probability. The square, which sharpens the preference, and the deficit are labd's own.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labd.campaigns.load import Level, PartOfDay

_HALF_LIFE_TASKS = 20.0
_PRIOR_TASKS = 2.0
_FORGET = 0.98
_NO_IMPROVEMENT_PAYS = 0.2
_QUICK_S, _LONG_S = 1800.0, 7200.0
_MAX_ABS = 1e12


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is kept of one task that has ended."""

    task_id: str
    arm: str
    campaign: str
    state: str
    ended_at_s: float
    wall_s: float = 0.0
    """For how long its attempts ran together; 0: nobody knows."""
    gpu_s: float = 0.0
    tokens: int = 0
    verdict: str = ""
    effect_size: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {name: getattr(self, name) for name in self.__slots__}


def outcome_from_json(value: Mapping[str, Any]) -> Outcome | None:
    """Read what `Outcome.as_json` gave; ``None`` where it is nothing of the kind."""
    try:
        return Outcome(**value)
    except TypeError:
        return None


def arm_of(template: str | None, model: object) -> str:
    """Give the name of a template with a model, or with the models of its roles."""
    if isinstance(model, Mapping):
        model = "+".join(sorted({str(name) for name in model.values()}))
    return f"{template or 'no template'} with {model or 'no model'}"


def outcome_of(
    task_id: str,
    keys: Mapping[str, Any],
    state: str,
    result: Mapping[str, Any],
    ended_at_s: float,
    *,
    wall_s: float = 0.0,
    gpu_s: float = 0.0,
) -> Outcome:
    """Give what is kept of a task.

    Args:
        task_id: its id.
        keys: its file's keys, at least those that are not at their defaults.
        state: the state in which it ended.
        result: its `result.json`.
        ended_at_s: when, in seconds since the epoch.
        wall_s: for how long all its attempts ran together, also those that were lost or killed and have no result.
        gpu_s: for how long they held GPUs, each counted.

    """
    labels = [str(label) for label in keys.get("labels", ())]
    campaign = next((one.partition(":")[2] for one in labels if one.startswith("campaign:")), "")
    research = result.get("research")
    claim = research.get("claim") if isinstance(research, Mapping) else None
    claim = claim if isinstance(claim, Mapping) else {}
    template = keys.get("template") if keys.get("kind", "research") == "research" else None
    effect = claim.get("effect_size")
    return Outcome(
        task_id=task_id,
        arm=arm_of(template, keys.get("model")),
        campaign=campaign,
        state=state,
        ended_at_s=ended_at_s,
        wall_s=wall_s,
        gpu_s=gpu_s,
        tokens=int(_number(result.get("tokens")) or 0),
        verdict=str(claim.get("verdict") or "")[:40],
        effect_size=_number(effect),
    )


def payoff_of(outcome: Outcome) -> float:
    """Give what a task paid, from 0 to 2; see the module's docstring."""
    if outcome.state != "done":
        return 0.0
    if outcome.verdict != "improved":
        return _NO_IMPROVEMENT_PAYS
    return 1.0 + min(1.0, abs(outcome.effect_size or 0.0) / 3.0)


@dataclass(frozen=True, slots=True)
class Profile:
    """What is expected of an arm's next task; `tasks` is how many of it have ended."""

    duration_s: float = 1800.0
    success: float = 0.8
    payoff: float = 0.5
    gpu_hours: float = 0.0
    tokens: float = 0.0
    tasks: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens for each second of a task."""
        return self.tokens / self.duration_s if self.duration_s else 0.0

    def as_json(self) -> dict[str, float]:
        """Give it as JSON data."""
        return {name: round(getattr(self, name), 4) for name in self.__slots__}


def learn(outcomes: Iterable[Outcome], seeds: Mapping[str, Profile]) -> dict[str, Profile]:
    """Give the profile of each arm that has ended a task, and of each that is expected.

    Args:
        outcomes: what ended; the last to end counts most. What was cancelled says nothing, and what took nobody knows how long
            nothing of durations and GPU hours.
        seeds: what is expected of an arm before.

    """
    by_arm: dict[str, list[Outcome]] = {}
    for one in sorted(outcomes, key=lambda one: one.ended_at_s):
        if one.state in {"done", "failed"}:
            by_arm.setdefault(one.arm, []).append(one)
    learnt = {arm: _profile(seed_for(arm, seeds), ended) for arm, ended in by_arm.items()}
    return {**seeds, **learnt}


def seed_for(arm: str, seeds: Mapping[str, Profile]) -> Profile:
    """Give what is expected of an arm: as said for it, for its template with any model, or for all."""
    template = arm.partition(" with ")[0]
    return seeds.get(arm) or seeds.get(template) or Profile()


def _profile(seed: Profile, ended: Sequence[Outcome]) -> Profile:
    decay = 0.5 ** (1 / _HALF_LIFE_TASKS)
    weights = [decay**age for age in range(len(ended) - 1, -1, -1)]
    every = [*zip(weights, ended, strict=True)]
    timed = [(w, o) for w, o in every if o.wall_s > 0]

    def mean(
        prior: float, of: Sequence[tuple[float, Outcome]], value: Callable[[Outcome], float]
    ) -> float:
        total = _PRIOR_TASKS * prior + math.fsum(w * value(o) for w, o in of)
        return total / (_PRIOR_TASKS + math.fsum(w for w, _ in of))

    return Profile(
        duration_s=mean(seed.duration_s, timed, lambda o: o.wall_s),
        success=mean(seed.success, every, lambda o: float(o.state == "done")),
        payoff=mean(seed.payoff, every, payoff_of),
        gpu_hours=mean(seed.gpu_hours, timed, lambda o: o.gpu_s / 3600),
        tokens=mean(seed.tokens, every, lambda o: float(o.tokens)),
        tasks=len(ended),
    )


# --- which comes next

_FIT: Mapping[PartOfDay, tuple[float, float, float]] = {
    PartOfDay.OFFICE: (1.0, 0.5, 0.15),
    PartOfDay.EVENING: (1.0, 1.0, 0.6),
    PartOfDay.NIGHT: (0.4, 0.8, 1.0),
}
"""How fit a quick task (below 30 min), one in between, and a long one (from 2 h) is."""


def fit(profile: Profile, part: PartOfDay, level: Level) -> float:
    """Give how fit an arm is for the time of day and the load, from 0 to 1; under high load as in office hours."""
    quick, between, long = _FIT[PartOfDay.OFFICE if level is Level.HIGH else part]
    if profile.duration_s < _QUICK_S:
        return quick
    return long if profile.duration_s >= _LONG_S else between


@dataclass(frozen=True, slots=True)
class Pick:
    """An arm that gets the next task, and why. `picked` is the count to go on from."""

    arm: str
    why: str
    picked: Mapping[str, float] = field(default_factory=dict)


def shares(weights: Mapping[str, float], exploration: float) -> dict[str, float]:
    """Give the share of each arm: an even part of `exploration`, and the rest by the squares of the weights."""
    total = math.fsum(w * w for w in weights.values())
    even = 1 / len(weights)
    return {
        arm: exploration * even + (1 - exploration) * (w * w / total if total else even)
        for arm, w in weights.items()
    }


def shares_of(
    profiles: Mapping[str, Profile], *, exploration: float, part: PartOfDay, level: Level
) -> dict[str, float]:
    """Give the share of each arm as `pick` goes by it; see there."""
    return shares(_weights(profiles, part, level), exploration)


def _weights(profiles: Mapping[str, Profile], part: PartOfDay, level: Level) -> dict[str, float]:
    return {arm: p.payoff * fit(p, part, level) for arm, p in profiles.items()}


def pick(
    profiles: Mapping[str, Profile],
    picked: Mapping[str, float],
    *,
    exploration: float,
    part: PartOfDay,
    level: Level,
    among: Collection[str] | None = None,
) -> Pick:
    """Choose the arm of the next task.

    Args:
        profiles: of each arm that has a share; one at least.
        picked: the last pick's `picked`.
        exploration: the share that is given out evenly.
        part: the part of the day.
        level: of the most loaded machine.
        among: those that may be chosen now; all where it is not given. The others stay behind their shares, and come later.

    """
    weights = _weights(profiles, part, level)
    share = shares(weights, exploration)
    counts = {arm: picked.get(arm, 0.0) for arm in profiles}
    total = math.fsum(counts.values()) + 1
    # Arms are compared by name at last, so that the order of a file decides nothing.
    arm = max(
        sorted(profiles if among is None else among),
        key=lambda a: (share[a] * total - counts[a], weights[a]),
    )
    counts = {a: _FORGET * count for a, count in counts.items()}
    counts[arm] += 1
    p = profiles[arm]
    why = (
        f"share {share[arm]:.2f} of {len(profiles)}, had {picked.get(arm, 0.0):.1f} of {total - 1:.1f}; "
        f"payoff {p.payoff:.2f} after {p.tasks} tasks, {p.duration_s / 60:.0f} min expected, "
        f"fit {fit(p, part, level):.2f} ({part.name.lower()}, load {level.word})"
    )
    return Pick(arm, why, counts)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN compares as false.
    return float(value) if abs(value) <= _MAX_ABS else None
