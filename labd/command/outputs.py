"""What a command leaves in its directory: kept by pattern, and counted. Knows files only.

The command is dead, and the sandbox left plain files, directories and harmless links; names are still anybody's.
Everything is opened relative to a directory that is already open, and no link is followed.
"""

import fnmatch
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY_DEPTH = "**"


@dataclass(slots=True)
class Kept:
    """What is in a directory, at all depths."""

    files: int = 0
    """Everything but directories."""
    size_bytes: int = 0
    """Of plain files, as `ls` shows it."""


class Patterns:
    """Patterns of relative paths: ``*`` and ``?`` stay within a name, ``**`` stands for any number of directories.

    A directory that matches is kept with all that is in it. Names that begin with a dot are names like others.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._steps = [
            [None if part == _ANY_DEPTH else re.compile(fnmatch.translate(part)) for part in parts]
            for parts in ([p for p in text.split("/") if p not in {"", "."}] for text in texts)
        ]
        self.start = self._closed({(number, 0) for number in range(len(self._steps))})
        """Where all patterns stand before the first name: pairs of pattern and step."""

    def after(self, states: frozenset[tuple[int, int]], name: str) -> frozenset[tuple[int, int]]:
        """Give where the patterns stand after one more name of a path; those that can't match are gone."""
        went = set()
        for number, step in states:
            if step == len(self._steps[number]):
                continue
            wanted = self._steps[number][step]
            if wanted is None:
                went.add((number, step))
            elif wanted.match(name):
                went.add((number, step + 1))
        return self._closed(went)

    def matched(self, states: frozenset[tuple[int, int]]) -> bool:
        """Say whether a path that came to `states` matches one of the patterns."""
        return any(step == len(self._steps[number]) for number, step in states)

    def _closed(self, states: set[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        # `**` also stands for no directory at all.
        for number, step in list(states):
            steps, here = self._steps[number], step
            while here < len(steps) and steps[here] is None:
                here += 1
                states.add((number, here))
        return frozenset(states)


def settle(directory: Path, patterns: Sequence[str] | None) -> Kept:
    """Remove from the directory what none of the `patterns` matches, and count what stays; ``None`` keeps all.

    Directories that are left empty by that go too.

    Raises:
        OSError: as the system gives it.

    """
    kept = Kept()
    fd = os.open(directory, _OPEN_DIR)
    try:
        # Where labd is root, a command that gets this as its input is another user.
        os.fchmod(fd, 0o755)
        chosen = None if patterns is None or _ANY_DEPTH in patterns else Patterns(patterns)
        _settle(fd, chosen, chosen.start if chosen else frozenset(), kept)
    finally:
        os.close(fd)
    return kept


def _settle(
    fd: int, patterns: Patterns | None, states: frozenset[tuple[int, int]], kept: Kept
) -> bool:
    """Go through one open directory; say whether anything in it stays. Not deeper than the sandbox leaves, which is 64."""
    some = False
    with os.scandir(fd) as scan:
        entries = list(scan)
    for entry in entries:
        status = entry.stat(follow_symlinks=False)
        went = patterns.after(states, entry.name) if patterns else states
        matched = patterns is None or patterns.matched(went)
        if stat.S_ISDIR(status.st_mode):
            stays = _settle_below(fd, entry.name, None if matched else patterns, went, kept)
            if not (stays or matched):
                os.rmdir(entry.name, dir_fd=fd)
        elif matched:
            stays = True
            kept.files += 1
            kept.size_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
        else:
            stays = False
            os.unlink(entry.name, dir_fd=fd)
        some = some or stays or matched
    return some


def _settle_below(
    parent_fd: int,
    name: str,
    patterns: Patterns | None,
    states: frozenset[tuple[int, int]],
    kept: Kept,
) -> bool:
    fd = os.open(name, _OPEN_DIR, dir_fd=parent_fd)
    try:
        return _settle(fd, patterns, states, kept)
    finally:
        os.close(fd)
