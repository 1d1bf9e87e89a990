"""What the kinds of work share on a node: its sandbox, its GPUs, and how progress is told."""

import functools
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labd.command.run import limits_of
from labd.limits import TaskLimits, settled
from labd.log import Logger
from labd.sandbox import Ending, Limits, Sandbox, SandboxConfig, SandboxResult

if TYPE_CHECKING:
    from labd.llm.pool import Pool


_LIMITS = frozenset(
    ending.value
    for ending in Ending
    if ending is Ending.TIMED_OUT or ending.value.endswith("_limit")
)


def progress_to(log: Logger) -> Callable[[str, int, int, str], None]:
    """Give what says in the log how far the work is, as `labd.lab.progress_of` reads it."""
    return lambda stage, done, total, detail: log.info(
        "stage.progress", stage=stage, done=done, total=total, detail=detail
    )


def gpus_free(
    pool: "Pool | None", gpus: Sequence[int], limit_s: float
) -> AbstractContextManager[object]:
    """Have the GPUs to ourselves, as far as the lab's language models go."""
    return pool.gpus(gpus, limit_s) if pool is not None and gpus else nullcontext()


@functools.cache
def sandbox_of(uid: int, allow_missing: frozenset[str]) -> Sandbox:
    """Give this process's sandbox, which tries the host once and remembers what it found."""
    return Sandbox(SandboxConfig(uid=uid, allow_missing=allow_missing))


LIMITS_HIT: Counter[str] = Counter()
"""How many runs of this process's present attempt were ended for a limit, by its name."""


def note_ending(ending: str) -> None:
    """Count a run that was ended for a limit; nothing for one that ended otherwise."""
    if ending in _LIMITS:
        LIMITS_HIT[ending] += 1


class CappedSandbox:
    """The sandbox with the settings' limits over what a template asks for, or the task's own, and room left on the disk."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        asked: TaskLimits,
        reserve_bytes: int,
        pool: "Pool | None",
    ) -> None:
        self._pool = pool
        self._box = sandbox_of(settings["uid"], frozenset(settings["allow_missing"]))
        self._caps = settled(settings, asked)
        self._asked = asked
        self._reserve_bytes = reserve_bytes

    def run(
        self, argv: Sequence[str], *, workdir: Path, limits: Limits, **rest: Any
    ) -> SandboxResult:
        """Run as `labd.sandbox.Sandbox.run` does, within the caps."""
        room = shutil.disk_usage(workdir).free - self._reserve_bytes
        capped = limits_of(self._caps, wall_s=limits.wall_s, room_bytes=room)
        if self._asked.memory is None:
            memory_bytes = min(limits.memory_bytes, capped.memory_bytes)
            capped = replace(capped, memory_bytes=memory_bytes)
        with gpus_free(self._pool, rest.get("gpus", ()), capped.wall_s):
            result = self._box.run(argv, workdir=workdir, limits=capped, **rest)
        note_ending(result.ending.value)
        return result
