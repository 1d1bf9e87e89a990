"""What the tasks of campaigns ask for that wait or run, without reading their files at each turn."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from labd.errors import TaskFileError
from labd.spool import Entry, Spool
from labd.task import SUFFIXES, State, parse_task

_KEYS = {"template", "model", "num_gpus", "num_nodes"}


class Asked:
    """Reads each task file once, and again where it has changed."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._known: dict[str, dict[str, tuple[tuple[int, int, int], Mapping[str, Any]]]] = {}
        """By campaign and task: which file was read, and its keys; none where it is no task."""

    def keys_of(
        self, campaign: str, pending: Iterable[str], running: Iterable[str]
    ) -> list[Mapping[str, Any]]:
        """Give ``template``, ``model``, ``num_gpus`` and ``num_nodes`` of a campaign's tasks by their ids; what is gone is left out.

        What else was known of the campaign is forgotten.
        """
        before, now = self._known.get(campaign, {}), dict[str, tuple[Any, Mapping[str, Any]]]()
        for state, ids in ((State.PENDING, pending), (State.RUNNING, running)):
            for task in ids:
                names = (task + suffix for suffix in SUFFIXES)
                entry = next((e for name in names if (e := self._spool.entry(state, name))), None)
                if entry is None:
                    continue
                known = before.get(task)
                fresh = known is not None and known[0] == entry.version
                now[task] = known if known and fresh else (entry.version, self._read(state, entry))
        self._known[campaign] = now
        return [keys for _, keys in now.values() if keys]

    def _read(self, state: State, entry: Entry) -> Mapping[str, Any]:
        with suppress(TaskFileError, OSError):
            spec = parse_task(self._spool.read(state, entry.name), entry.name).spec
            return spec.model_dump(include=_KEYS)
        return {}
