"""Whether the wall clock may be believed in a matter that can't be undone. Pure, but for reading the clocks.

Ages are differences of wall clocks: set forward by a year, every task is a year older. So what removes by itself looks
at a second clock, the kernel's time since boot, and removes nothing until the two have agreed for a whole day.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd.clock import print_duration

CALM_S = 86_400.0
"""For how long the clocks must have agreed."""
_DRIFT_S = 600.0
_ABSENCE_S = 3 * 86_400.0
"""A pause across a restart of the machine that is longer may as well be a clock that jumped."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Both clocks at one moment. `up_s`: since the machine's start, suspensions included."""

    wall_s: float
    up_s: float
    boot_id: str


def read_clocks() -> Reading:
    """Look at both clocks now."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Reading(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_id)


def trust(last: Mapping[str, Any], now: Reading) -> tuple[str, dict[str, Any]]:
    """Give why nothing may be removed yet, or an empty text; and what to remember until the next look.

    `last`: what was remembered; nothing the first time.
    """
    calm_s, reason = _calm(last, now)
    memory = {
        "wall_s": now.wall_s,
        "up_s": now.up_s,
        "boot_id": now.boot_id,
        "calm_s": min(calm_s, CALM_S),
        "reason": reason,
    }
    if calm_s >= CALM_S:
        return "", {**memory, "reason": ""}
    left = print_duration(float(round(CALM_S - calm_s)))
    return f"{reason}; nothing is removed for another {left} of running time", memory


def _calm(last: Mapping[str, Any], now: Reading) -> tuple[float, str]:
    """Give for how long the clocks have agreed, and what ended that the last time."""
    try:
        wall_s, up_s = float(last["wall_s"]), float(last["up_s"])
        boot_id, calm_s, reason = str(last["boot_id"]), float(last["calm_s"]), str(last["reason"])
    except (KeyError, TypeError, ValueError):
        return 0.0, "retention is new here"
    passed_s, run_s = now.wall_s - wall_s, now.up_s - up_s
    if passed_s < -_DRIFT_S:
        return 0.0, f"the clock went back by {print_duration(float(round(-passed_s)))}"
    if boot_id == now.boot_id:
        if abs(passed_s - run_s) > _DRIFT_S:
            return (
                0.0,
                f"the clock jumped by {print_duration(float(round(abs(passed_s - run_s))))}",
            )
        return calm_s + max(0.0, run_s), reason
    if passed_s > _ABSENCE_S:
        return (
            0.0,
            f"{print_duration(float(round(passed_s)))} have passed by the clock, and the machine was off",
        )
    return calm_s, reason
