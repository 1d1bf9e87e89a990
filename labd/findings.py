"""What `labd doctor` says: findings and how much each matters."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report; `fix` says what to do where it is not ok."""

    name: str
    level: Level
    found: str
    fix: str = ""
