"""How loaded each machine is, in three levels with hysteresis, and how many tasks that leaves room for. Pure.

What counts, and why not everything does:

- **CPU** is the busy part of those CPUs that the lab has *not* given to its tasks. CPUs that it has given out are meant
  to be busy; that others use the rest is what the lab can't know otherwise.
- **Memory** and **disk** are what is used of the whole. **Temperature** is that of the hottest part that
  says so, where the lab has not heated it itself: processors at work are hot by design, and slow themselves down.
- **GPU use** and **graphics memory** are of the GPUs that the lab has not given out, and not looked at where endpoints
  of the lab fill them on purpose (docs/models.md says who gives way). They make a machine *high*, never *critical*.
- **Endpoints**, of the whole lab: requests that wait, for each that can be answered at once. Also never critical.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import IntEnum

from labd.scheduler import Demand

_MARGIN = 0.05
_TEMPERATURE_MARGIN_C = 5.0
_CPU_TIME_CONSTANT_S = 120.0
_SLACK = 1e-6
"""Sums of fractions such as 0.1 + 0.2 must still fit."""


class Level(IntEnum):
    """How loaded a machine is."""

    NORMAL = 0
    HIGH = 1
    CRITICAL = 2

    @property
    def word(self) -> str:
        """The level in a word."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Load:
    """One reading. Shares from 0 to 1; ``None``: nobody can tell."""

    cpu: float | None = None
    memory: float | None = None
    disk: float | None = None
    gpu: float | None = None
    gpu_memory: float | None = None
    temperature_c: float | None = None
    queue: float | None = None
    """Requests that wait for language models, for each slot of the endpoints."""
    tokens_per_s: float | None = None
    """What the endpoints have answered with in the last minute; for people to see, without a threshold."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on a reading is high and critical; see `labd.settings.LoadSettings`."""

    high: Mapping[str, float]
    critical: Mapping[str, float]
    calm_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """A machine's level, what it is because of, and since when something less would do (`calm_since_s`)."""

    level: Level
    because: str
    load: Load
    at_s: float
    calm_since_s: float | None = None


def classify(before: Capacity | None, now: Load, now_s: float, limits: Thresholds) -> Capacity:
    """Give the level for a new reading.

    It rises at once, and falls only after every reading has been 5 points (5 °C) below its threshold for `limits.calm_s`.
    CPU is smoothed first, with a time constant of two minutes: others' use comes in bursts, and does no harm at once.
    It begins at nothing: a daemon's own start is such a burst.

    Args:
        before: what the last call gave.
        now: the reading.
        now_s: the monotonic time.
        limits: the thresholds.

    """
    load = _smoothed(before, now, now_s)
    up, why = _level(load, limits, {})
    if before is None or up >= before.level:
        return Capacity(up, why, load, now_s)
    down, _ = _level(load, limits, _MARGINS)
    if down >= before.level:
        return replace(before, load=load, at_s=now_s, calm_since_s=None)
    since_s = now_s if before.calm_since_s is None else before.calm_since_s
    if now_s - since_s < limits.calm_s:
        return replace(before, load=load, at_s=now_s, calm_since_s=since_s)
    return Capacity(down, _level(load, limits, _MARGINS)[1], load, now_s)


_MARGINS = {
    field.name: _TEMPERATURE_MARGIN_C if field.name == "temperature_c" else _MARGIN
    for field in fields(Load)
}


def _smoothed(before: Capacity | None, now: Load, now_s: float) -> Load:
    if now.cpu is None:
        return now
    if before is None or before.load.cpu is None:
        return replace(now, cpu=0.0)
    old = math.exp(-max(0.0, now_s - before.at_s) / _CPU_TIME_CONSTANT_S)
    return replace(now, cpu=old * before.load.cpu + (1 - old) * now.cpu)


def _level(load: Load, limits: Thresholds, margins: Mapping[str, float]) -> tuple[Level, str]:
    for level, bounds in ((Level.CRITICAL, limits.critical), (Level.HIGH, limits.high)):
        over = [
            f"{_shown(name, value)}, {level.word} from {_shown(name, bound, bare=True)}"
            for name, bound in bounds.items()
            if (value := getattr(load, name)) is not None and value >= bound - margins.get(name, 0)
        ]
        if over:
            return level, "; ".join(over)
    return Level.NORMAL, ""


def _shown(name: str, value: float, *, bare: bool = False) -> str:
    if name == "temperature_c":
        text, what = f"{value:.0f} °C", "temperature"
    elif name == "queue":
        text, what = f"{value:.1f}", "requests waiting for each slot"
    else:
        text, what = f"{100 * value:.0f} %", name.replace("_", " ").replace("gpu", "GPU")
        what = "CPU that is not the lab's" if name == "cpu" else what
    return text if bare else f"{what} {text}"


def free_load(busy: float, total: float, given: float) -> float | None:
    """Give how busy those CPUs (or GPUs) are that the lab has not given out, from 0 to 1; ``None`` where it gave out all.

    Args:
        busy: the busy share of all of them.
        total: how many there are.
        given: how many of them tasks hold.

    """
    free = total - given
    if free < 0.5:
        return None
    return min(1.0, max(0.0, busy * total - given) / free)


# --- what that leaves room for


@dataclass(frozen=True, slots=True)
class Room:
    """A node: what it has in all, how loaded it is, and what tasks hold of it, whoever's they are.

    `running`: how many tasks. `used_gpus`: the used part of each device of which something is used, from 0 to 1.
    """

    num_cpus: float
    num_gpus: float
    level: Level = Level.NORMAL
    running: int = 0
    used_cpus: float = 0.0
    used_gpus: Sequence[float] = ()
    home: bool = True
    id: str = ""

    def holding(self, demand: Demand, count: int) -> "Room":
        """Give the node with so many more tasks of a size, for which there is room (`free_slots`)."""
        used = [*self.used_gpus, *[0.0] * (int(self.num_gpus) - len(self.used_gpus))]
        for _ in range(count if demand.num_gpus else 0):
            # A fraction goes to the fullest device that has it, as Ray places it; whole ones to devices of their own.
            part = min(1.0, demand.num_gpus)
            able = [gpu for gpu, by in enumerate(used) if by + part <= 1 + _SLACK]
            able.sort(key=lambda gpu: -used[gpu])
            for gpu in able[: math.ceil(demand.num_gpus - _SLACK)]:
                used[gpu] += part
        cpus = self.used_cpus + count * demand.num_cpus
        return replace(self, running=self.running + count, used_cpus=cpus, used_gpus=used)


def slots_for(room: Room, demand: Demand) -> int:
    """Give how many tasks of a size fit onto a node at once."""
    return free_slots(replace(room, used_cpus=0.0, used_gpus=()), demand)


def free_slots(room: Room, demand: Demand) -> int:
    """Give how many tasks of a size fit onto a node beside what runs there."""
    if demand.at_home and not room.home:
        return 0
    by_cpu = max(0.0, room.num_cpus - room.used_cpus) / demand.num_cpus
    unused = [1.0] * (int(room.num_gpus) - len(room.used_gpus))
    free = [*(1 - used for used in room.used_gpus), *unused]
    if not demand.num_gpus:
        by_gpu = math.inf
    elif demand.num_gpus < 1:
        by_gpu = sum(int(part / demand.num_gpus + _SLACK) for part in free)
    else:
        whole = sum(part >= 1 - _SLACK for part in free)
        by_gpu = whole // math.ceil(demand.num_gpus - _SLACK)
    return int(min(by_cpu, by_gpu) + _SLACK)


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many tasks of a size should run on the nodes together, and how that compares with what runs.

    `recommended`: all that fit at normal load, half of it at high, none at critical. `free`: what may start now. `busy`: what
    runs. `level`: that at which most of what is recommended runs.
    """

    recommended: int
    free: int
    busy: int
    level: Level


def concurrency(rooms: Sequence[Room], demand: Demand) -> Concurrency:
    """Give the recommended concurrency: the sum over the nodes, each at its own level.

    What runs on a node counts there only, by the CPUs and GPUs that it holds: a node that others fill, or one at critical
    load whose tasks go on, is no reason to leave another idle, and work on CPUs is none to leave GPUs idle.
    """
    fit, left, busy = (dict.fromkeys(Level, 0) for _ in range(3))
    for room in rooms:
        slots = slots_for(room, demand)
        fit[room.level] += slots
        left[room.level] += min(slots, free_slots(room, demand))
        busy[room.level] += min(room.running, slots)
    half = max(1, fit[Level.HIGH] // 2) if fit[Level.HIGH] else 0
    wanted = {Level.NORMAL: fit[Level.NORMAL], Level.HIGH: half, Level.CRITICAL: 0}
    total = sum(wanted.values())
    return Concurrency(
        recommended=total,
        free=sum(max(0, wanted[level] - (fit[level] - left[level])) for level in Level),
        busy=sum(busy.values()),
        level=max(wanted, key=lambda level: (wanted[level], -level)) if total else Level.CRITICAL,
    )


class PartOfDay(IntEnum):
    """What work the time of day is for."""

    OFFICE = 0
    EVENING = 1
    NIGHT = 2


def part_of_day(local: datetime) -> PartOfDay:
    """Give the part of a local time: office hours are Monday to Friday 8 to 18, evenings 18 to 22; nights are the rest.

    On Saturday and Sunday the day counts as evening: nobody is at work, and somebody may still want the machine.
    """
    if local.hour < 8 or local.hour >= 22:
        return PartOfDay.NIGHT
    if local.weekday() < 5 and local.hour < 18:
        return PartOfDay.OFFICE
    return PartOfDay.EVENING
