"""What retention remembers from run to run: the clocks, and what was cut off while it was being compressed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labd.files import NO_ROOM, read_json_object, write_json

_PACKING, _CUT_OFF = "packing", "cut_off"
_MAX_CUT_OFF = 1000


class Memory:
    """A file of a few lines. One run at a time writes it; what can't be read is as good as nothing.

    A full disk takes no memory: what was remembered before then counts, and there is something to remove meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """Give what is remembered."""
        return read_json_object(self._path) or {}

    def update(self, **facts: object) -> None:
        """Remember these, beside what is remembered under other names.

        Raises:
            OSError: it can't be written, for another reason than lack of room.

        """
        try:
            write_json(self._path, {**self.read(), **facts})
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise

    @property
    def cut_off(self) -> list[str]:
        """The ids of tasks whose compression a run did not live to end, the last of them last."""
        said = self.read()
        ids = said.get(_CUT_OFF)
        known = [one for one in ids if isinstance(one, str)] if isinstance(ids, list) else []
        last = said.get(_PACKING)
        if isinstance(last, str) and last:
            known = [*(one for one in known if one != last), last]
        return known[-_MAX_CUT_OFF:]

    @contextmanager
    def packing(self, wanted_id: str) -> Iterator[None]:
        """Have the task count as cut off for a run that does not live to the end of the block.

        Raises:
            OSError: as `update`.

        """
        known = self.cut_off
        self.update(**{_PACKING: wanted_id, _CUT_OFF: known})
        yield
        self.update(**{_PACKING: "", _CUT_OFF: [one for one in known if one != wanted_id]})
