"""What of a task's directory on the node is to be shipped, and why the rest is not. Decides; sends nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from labd.archive import EVENTS, RESULT
from labd.shipping.model import APPENDED, NOT_SHIPPED, HomeFile, MirrorLimits, excluded_by
from labd.shipping.tree import Found, walk
from labd.text import printable

_MAX_TOLD = 1000
_APART = {*APPENDED, RESULT, NOT_SHIPPED}
"""Shipped in an order of their own, whatever the limits."""


@dataclass(slots=True)
class Listing:
    """The files to ship, and what is left out with the reason. `whole`: nothing was overlooked."""

    files: list[Found] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    whole: bool = True

    def gone(self, home: Iterable[str]) -> list[str]:
        """Give those of `home`'s paths that are on this node no more; none of which it is not sure."""
        if not self.whole:
            return []
        here = {found.path for found in self.files}
        return [
            path
            for path in home
            if path not in here and path not in _APART and not self._is_left_out(path)
        ]

    def report(self) -> dict[str, Any]:
        """Give what is stated in `not-shipped.json`: the first thousand paths, the number of all, per reason too."""
        reasons: dict[str, int] = {}
        for reason in self.left_out.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        told = sorted(self.left_out.items())[:_MAX_TOLD]
        return {
            "count": len(self.left_out),
            "by_reason": dict(sorted(reasons.items())),
            "left_out": [
                {"path": printable(path, 300), "reason": reason} for path, reason in told
            ],
        }

    def _is_left_out(self, path: str) -> bool:
        while path:
            if path in self.left_out:
                return True
            path = path.rpartition("/")[0]
        return False


def take_stock(root_fd: int, limits: MirrorLimits) -> Listing:
    """List what is below an open directory. Where there is too much, what lies higher, and is smaller, goes first.

    Raises:
        OSError: the directory itself can't be read.

    """
    listing = Listing()
    files: list[Found] = []
    most_entries = 4 * limits.max_files + 1000

    def left_out(path: str) -> str:
        if path == EVENTS:
            return "is the head's own"
        pattern = excluded_by(path, limits.exclude)
        return f"matches the pattern {pattern}" if pattern else ""

    for found in walk(root_fd, left_out=left_out, max_entries=most_entries):
        if found.path in _APART and not found.problem:
            continue
        if found.problem:
            listing.left_out[found.path] = found.problem
            listing.whole &= "entries" not in found.problem
        else:
            files.append(found)
    _choose(files, limits, listing)
    return listing


def _choose(files: list[Found], limits: MirrorLimits, listing: Listing) -> None:
    total_bytes = 0
    for found in sorted(files, key=_rank):
        size_bytes = found.info.st_size
        if size_bytes > limits.max_file_bytes:
            problem = f"is larger than {limits.max_file_bytes} bytes"
        elif total_bytes + size_bytes > limits.max_total_bytes:
            problem = f"is beyond the first {limits.max_total_bytes} bytes of the task"
        elif len(listing.files) >= limits.max_files:
            problem = f"is beyond the first {limits.max_files} files of the task"
        else:
            listing.files.append(found)
            total_bytes += size_bytes
            continue
        listing.left_out[found.path] = problem


def _rank(found: Found) -> tuple[int, int, str]:
    return (found.path.count("/"), found.info.st_size, found.path)


def to_bring(
    home: Mapping[str, HomeFile], limits: MirrorLimits
) -> tuple[list[str], dict[str, str]]:
    """Give which of the head's files an attempt gets, and why it does not get the others.

    Neither has an earlier attempt's result, nor what the patterns exclude. The limits are those of shipping.
    """
    wanted: list[str] = []
    left: dict[str, str] = {}
    total_bytes = 0
    for path in sorted(home, key=lambda path: (path not in APPENDED, home[path].size_bytes, path)):
        size_bytes = home[path].size_bytes
        if path == RESULT or any(excluded_by(path[:end], limits.exclude) for end in _ends(path)):
            continue
        fits = size_bytes <= limits.max_file_bytes and len(wanted) < limits.max_files
        if path in APPENDED or (fits and total_bytes + size_bytes <= limits.max_total_bytes):
            wanted.append(path)
            total_bytes += size_bytes
        else:
            left[path] = "is on the head, and was too much to bring to this node"
    return wanted, left


def _ends(path: str) -> list[int]:
    """Give where each leading directory of the path ends, and the path itself."""
    return [at for at, char in enumerate(path) if char == "/"] + [len(path)]
