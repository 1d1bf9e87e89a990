"""Which id a file gets that is to run or to be refused. Ids are never used for two things."""

from collections.abc import Callable

from labd.archive import Archive, History
from labd.errors import JournalError, StorageError
from labd.spool import Spool
from labd.task import State, is_task_name, numbered, task_id
from labd.text import printable

_MAX_NUMBER = 100_000


class Ids:
    """Finds the name under which a pending file goes on.

    `active` says whether an attempt of this id is under way, or its end not on record yet.
    """

    def __init__(self, spool: Spool, archive: Archive, active: Callable[[str], bool]) -> None:
        self._spool = spool
        self._archive = archive
        self._active = active

    def name_for(self, name: str, sha256: str) -> tuple[str, History]:
        """Give the file name, and the history that belongs to it.

        The file's own id, if it has no results yet, or if it is the same file, by its hash, come back
        from failed/, cancelled/ or a lost attempt. Else the next number whose id is free: results are
        never overwritten, so what was done and is asked for again is new work.

        Raises:
            StorageError: there are too many of that name.

        """
        for number in range(1, _MAX_NUMBER):
            wanted = numbered(name, number)
            wanted_id = task_id(wanted)
            if self._taken(wanted_id, name):
                continue
            if not self._archive.knows(wanted_id):
                return wanted, History(())
            history = self._history(wanted_id)
            if history is not None and _goes_on(history, name, sha256, number):
                return wanted, history
        raise StorageError(f"no free id for {printable(name)}")

    def _taken(self, wanted_id: str, name: str) -> bool:
        if self._active(wanted_id):
            return True
        places = self._spool.where(wanted_id)
        return any(place != (State.PENDING, name) for place in places)

    def _history(self, wanted_id: str) -> History | None:
        try:
            return self._archive.history(wanted_id)
        except JournalError:
            return None  # what can't be read can't be gone on from, nor written over


def _goes_on(history: History, name: str, sha256: str, number: int) -> bool:
    if number > 1:
        # Only where we were killed between the record of this file's claim and its rename.
        last = history.last or {"event": "claimed", "file": name}
        claimed = (last["event"], last.get("file")) == ("claimed", name)
        return claimed and history.sha256 in {"", sha256}
    if history.attempt == 0:
        return True  # nothing is there but perhaps the record of a refusal
    return history.sha256 == sha256 and history.ended is not State.DONE


def harmless(name: str) -> str:
    """Give a task name that can be shown, for a file whose own name can't."""
    shown = printable(name, 100).replace("/", "_").replace("\\", "_")
    return shown if is_task_name(shown) else f"{shown.lstrip('.')}.yaml"
