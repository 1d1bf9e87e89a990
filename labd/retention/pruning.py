"""Removing what a rule lets go of one task's results, so that what is left says so and can be begun anew."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labd.archive import EVENTS, JOURNAL, PRUNED, RESULT
from labd.clock import to_iso, utc_now
from labd.files import NO_ROOM, read_json_object, write_atomic, write_json
from labd.packing import WORKING, archive_of, discard
from labd.retention.rules import Action, Keep
from labd.task import State
from labd.text import printable
from labd.trees import remove_tree

LOCK = ".lock"
"""What a command's attempt holds."""
RECORD = (EVENTS, RESULT, JOURNAL, PRUNED, LOCK)
"""What stays where the record alone is kept. What is a lock stays a file, empty where it has to."""
_OLD_JOURNAL = "journal.pruned.jsonl"


def prune(directory: Path, action: Action) -> None:
    """Remove what the rule lets go: on record first, and so that what is left can be begun anew. Its locks are the caller's.

    Raises:
        StorageError: something is left. OSError: as the system gives it.

    """
    doomed = _doomed(directory, action.keep)
    facts: dict[str, Any] = {
        "at": to_iso(utc_now()),
        "reason": action.reason,
        "keep": action.keep,
        # Of an earlier prune too, which may not have come to its end.
        "removed": sorted(
            {*_removed_before(directory), *(printable(path.name) for path in doomed)}
        ),
    }
    anew = action.state is not State.DONE
    try:
        write_json(directory / PRUNED, facts)
        if anew:
            _close_journal(directory, action.keep)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
    else:
        _remove(directory, doomed)
        return
    # No room for the record of it: the room comes first, and the journal's copy takes that of the journal.
    steps = _steps(directory) if anew else b""
    if steps:
        _empty(directory / JOURNAL)
    copied = _took(directory, action.keep, steps)
    _remove(directory, doomed)
    if not copied:
        _copy(directory, action.keep, steps)
    write_json(directory / PRUNED, facts)


def _remove(directory: Path, doomed: Sequence[Path]) -> None:
    for path in doomed:
        if path.name in WORKING:
            discard(directory, path.name)
        else:
            remove_tree(path)


def _removed_before(directory: Path) -> list[str]:
    removed = (read_json_object(directory / PRUNED) or {}).get("removed")
    return [str(name) for name in removed] if isinstance(removed, list) else []


def _close_journal(directory: Path, keep: Keep) -> None:
    """Have a retry begin anew: what the journal's steps speak of is going. Emptied in place, because the file is a lock."""
    if steps := _steps(directory):
        _copy(directory, keep, steps)
        _empty(directory / JOURNAL)


def _steps(directory: Path) -> bytes:
    journal = directory / JOURNAL
    return journal.read_bytes() if journal.is_file() else b""


def _copy(directory: Path, keep: Keep, steps: bytes) -> None:
    """Keep what the journal held, where that is to stay."""
    if steps and keep == "results":
        write_atomic(directory / _OLD_JOURNAL, steps)


def _took(directory: Path, keep: Keep, steps: bytes) -> bool:
    """Keep the journal's steps, and say whether there was room for them."""
    try:
        _copy(directory, keep, steps)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return False
    return True


def _empty(journal: Path) -> None:
    fd = os.open(journal, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _doomed(directory: Path, keep: Keep) -> list[Path]:
    if keep == "record":
        return sorted(path for path in directory.iterdir() if path.name not in RECORD)
    working = (
        path for name in WORKING for path in (directory / name, archive_of(directory, name))
    )
    return [path for path in working if os.path.lexists(path)]
