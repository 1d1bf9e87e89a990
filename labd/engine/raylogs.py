"""Ray's own logs on this node: it keeps those of every process that ever was (five files each), and never removes one.

Under systemd they are in memory (`labd.engine.start.TEMP`).
"""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from labd.engine.processes import temp_of
from labd.engine.start import TEMP

MOST_OLD = 300
"""Files of processes that have ended, the last of which are kept."""
_EVERY_S = 60.0
_OF_A_PROCESS = re.compile(
    r"(?:worker-|python-core-worker-|python-core-driver-|event_).*[-_](\d+)\.(?:out|err|log)(?:\.\d+)?"
)
_BELOW = ("", "events", "export_events")


class _Sweeping:
    next_s = 0.0


def sweep_now_and_then() -> None:
    """Remove old logs of this node's Ray, where that is labd's own, at most once a minute. For a process of Ray's."""
    if time.monotonic() < _Sweeping.next_s:
        return
    _Sweeping.next_s = time.monotonic() + _EVERY_S
    from ray._private import worker  # noqa: PLC0415 - whoever sweeps a directory of its own needs no Ray

    if worker._global_node is None:  # noqa: SLF001 - Ray tells nobody else where its logs are
        return
    logs = Path(worker._global_node.get_logs_dir_path())  # noqa: SLF001 - as above
    if is_own(logs):
        sweep(logs)


def is_own(logs: Path) -> bool:
    """Say whether logs are of a Ray that labd started: those of a Ray that it shares with others are not its to remove."""
    return TEMP in logs.parents or temp_of(os.getpid()).parent in logs.parents


def sweep(logs: Path, most_old: int = MOST_OLD) -> None:
    """Remove the logs of processes that have ended, but for the last `most_old` files."""
    ended: list[tuple[int, Path]] = []
    for path in (path for name in _BELOW for path in (logs / name).glob("*")):
        if (match := _OF_A_PROCESS.fullmatch(path.name)) and not _lives(int(match[1])):
            with suppress(FileNotFoundError):
                ended.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(ended)[: max(0, len(ended) - most_old)]:
        path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")  # noqa: PTH110 - a text, a few hundred times
