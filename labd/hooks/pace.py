"""How often what failed is tried again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one request to a webhook: how often, and after how long; the pauses grow from `first_s` to half a minute."""

    tries: int = 5
    within_s: float = 120.0
    first_s: float = 1.0
