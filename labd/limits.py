"""Limits of a run as people write them: in a task file, and in the settings as defaults and ceilings. Pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)

from labd.fields import Seconds, Size, WholeNumber

_MIB = 2**20


class TaskLimits(BaseModel):
    """What one run of a task may use; what is absent is as the settings say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: Annotated[Size, Field(ge=64 * _MIB)] | None = None
    """Of all processes of a run together."""
    processes: Annotated[WholeNumber, Field(ge=8, le=100_000)] | None = None
    """Processes and threads at one time."""
    disk: Annotated[Size, Field(ge=_MIB)] | None = None
    """What a run may write into its directory."""
    files: Annotated[WholeNumber, Field(ge=1)] | None = None
    """How many files and directories a run may leave there, or have in one of its private places."""
    file_size: Annotated[Size, Field(ge=1)] | None = None
    """Of one file."""
    output: Annotated[Size, Field(ge=4096)] | None = None
    """Of output that is kept; a run that prints four times as much is ended."""
    shm: Annotated[Size, Field(ge=_MIB)] | None = None
    """Of ``/dev/shm``."""
    tmp: Annotated[Size, Field(ge=_MIB)] | None = None
    """Of ``/tmp`` and of the home directory, each."""
    cpus: Annotated[float, Field(strict=True, gt=0, le=4096, allow_inf_nan=False)] | None = None
    """CPUs at once."""
    cpu_time: Annotated[Seconds, Field(gt=0)] | None = None
    """Of all processes of a run together."""


class Ceilings(TaskLimits):
    """How far a task file may go; what is absent: as far as the setting itself."""

    timeout: Annotated[Seconds, Field(gt=0)] | None = None
    """Of the task's `timeout`; absent: any."""


SETTING_OF: Mapping[str, str] = MappingProxyType(
    {
        "memory": "memory_bytes",
        "processes": "processes",
        "disk": "disk_bytes",
        "files": "files",
        "file_size": "file_bytes",
        "output": "output_bytes",
        "shm": "shm_bytes",
        "tmp": "tmp_bytes",
        "cpus": "cpus",
        "cpu_time": "cpu_time",
    }
)
"""By a task's key the setting with its default."""
_UNLIMITED = ("cpus", "cpu_time")


def ceiling(caps: Mapping[str, Any], key: str) -> float | None:
    """Give how far a task may go with one of its limits, by the `sandbox` settings as data; ``None``: any."""
    most: float | None = (caps.get("at_most") or {}).get(key)
    default = caps.get(SETTING_OF[key])
    if key == "file_size" and default is None:
        default = ceiling(caps, "disk")
    known: list[float] = [value for value in (most, default) if value is not None]
    return max(known, default=None)


def settled(caps: Mapping[str, Any], asked: TaskLimits) -> dict[str, Any]:
    """Give the `sandbox` settings with what a task asks for in the place of the defaults, no further than it may go."""
    wanted = dict(caps)
    for key, setting in SETTING_OF.items():
        value, most = getattr(asked, key), ceiling(caps, key)
        if value is not None:
            wanted[setting] = value if most is None else min(value, most)
        elif wanted.get(setting) is None and key in _UNLIMITED:
            wanted[setting] = most
    return wanted
