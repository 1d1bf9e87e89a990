"""Where reports are kept: `reports/` of the home, a file for each, and no more than so many."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from labd.errors import StorageError
from labd.files import write_atomic
from labd.published import REPORT_NAME

KEPT = 500
"""Reports that are kept; what was written longest ago goes first."""
_INSTANT = "%Y%m%dT%H%M%SZ"


def lab_report(made_at: datetime, suffix: str) -> str:
    """Give the file name of a report on the whole lab."""
    return f"lab--{made_at.astimezone(UTC).strftime(_INSTANT)}.{suffix}"


def campaign_report(campaign: str, step: str, instant: datetime) -> str:
    """Give the file name of the report that a campaign's step made due at an instant."""
    named = "--".join(part for part in (campaign, step) if part)
    return f"{named}--{instant.astimezone(UTC).strftime(_INSTANT)}.html"


def lab_reports(shelf: Path) -> set[str]:
    """Give the file names of the pages on the whole lab that are on the shelf."""
    with suppress(OSError):
        return {
            path.name for path in shelf.glob("lab--*.html") if REPORT_NAME.fullmatch(path.name)
        }
    return set()


def put(path: Path, text: str, *, shelf: Path) -> None:
    """Write a report whole, in place of an earlier one of its name; on the shelf the oldest make room.

    Raises:
        StorageError: the disk would not take it.

    """
    try:
        if path.parent == shelf:
            shelf.mkdir(mode=0o2750, exist_ok=True)
        write_atomic(path, text, mode=0o640 if path.parent == shelf else 0o644)
        if path.parent == shelf:
            _make_room(shelf)
    except OSError as error:
        raise StorageError(
            f"the report can't be written: {error.strerror}",
            where=str(path),
            fix="Make room, or name another place with --output",
        ) from error


def _make_room(shelf: Path) -> None:
    """Remove the oldest reports beyond what is kept; what has another name than ours stays."""
    ours = [
        path for path in shelf.iterdir() if REPORT_NAME.fullmatch(path.name) and path.is_file()
    ]
    ours.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
    for path in ours[KEPT:]:
        with suppress(FileNotFoundError):
            path.unlink()
