"""The reports that campaigns make due: written as their step fires, and once more when the last of their tasks has ended.

What is due is on the disk before the step counts as fired, and goes when its last writing is done: a kill at any moment
leads to one writing too many, never to one too few.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from labd.campaigns import Campaign, reported_since
from labd.clock import from_iso, to_iso
from labd.daemon.chores import Chores, Done
from labd.daemon.house import House
from labd.daemon.telling import Once
from labd.errors import StorageError
from labd.files import write_json
from labd.report.shelf import campaign_report, lab_reports
from labd.task import State

CHORE = "report"
DUE = "reports-due.json"
_TIMEOUT_S = 900.0
_LOOK_EVERY_S = 5.0
_AGAIN_AFTER_S = 60.0
_MAX_FAILURES = 5
_MAX_DUE = 200


@dataclass(frozen=True, slots=True)
class _DueReport:
    """A report by its file name. `until`: empty, or when a later one of the campaign took over."""

    name: str
    campaign: str
    since: str
    until: str = ""
    written: bool = False
    """Whether it is there, with what still ran in it."""


class Reporting:
    """The reports of one daemon. Writing is a chore; one at a time."""

    def __init__(self, house: House, chores: Chores) -> None:
        home = house.home
        self._home, self._spool, self._chores, self._log = home, house.spool, chores, house.log
        self._announcing = house.announcing
        self._once = Once(house.log)
        self._path = home.run_dir / DUE
        self._due: dict[str, _DueReport] | None = None
        self._failures: dict[str, int] = {}
        self._writing: tuple[_DueReport, bool] | None = None
        """What is being written, and whether for the last time."""
        self._weekly = lab_reports(home.reports)
        """Reports on the whole lab, which others write, that were there when it was last looked."""
        self._look_s = 0.0
        self.next_s = 0.0
        """When there is something to do, by the monotonic clock."""

    def due(self, campaign: Campaign, step: str, at: datetime) -> None:
        """Have a report on a campaign written, whose step fired at an instant; the same again changes nothing.

        Raises:
            StorageError: it could not be remembered.

        """
        known = dict(self._known())
        name = campaign_report(campaign.name, step, at)
        if name in known:
            return
        for other in known.values():
            if other.campaign == campaign.name and not other.until:
                known[other.name] = replace(other, until=to_iso(at))
        since = to_iso(reported_since(campaign, step, at))
        known[name] = _DueReport(name, campaign.name, since)
        self._remember(dict(list(known.items())[-_MAX_DUE:]))
        self.next_s = 0.0

    def turn(self, ended: list[Done], goes_on: Callable[[str], bool]) -> None:
        """Take what chores have ended, and start the next writing that is due; cheap where there is none.

        Args:
            ended: what `Chores.turn` gave.
            goes_on: whether more tasks of a campaign, by its name, are to come.

        """
        for done in ended:
            if done.name == CHORE and self._writing is not None:
                self._take(done)
        now_s = time.monotonic()
        if now_s < self.next_s or self._writing is not None:
            return
        self._tell_of_others(now_s)
        self.next_s = now_s + _LOOK_EVERY_S if self._known() else self._look_s
        for one in self._known().values():
            last = bool(one.until) or not (goes_on(one.campaign) or self._under_way(one.campaign))
            if (last or not one.written) and self._start(one):
                self._writing = (one, last)
                return

    def _tell_of_others(self, now_s: float) -> None:
        """Tell of reports that the weekly timer, or somebody, had kept."""
        if now_s < self._look_s:
            return
        self._look_s = now_s + _AGAIN_AFTER_S
        found = lab_reports(self._home.reports)
        for name in sorted(found - self._weekly):
            self._announcing.reported(str(self._home.reports / name))
        self._weekly = found

    def _start(self, one: _DueReport) -> bool:
        until = ["--until", one.until] if one.until else []
        output = self._home.reports / one.name
        period = ["--campaign", one.campaign, "--since", one.since, *until]
        arguments = ["report", *period, "--format", "html", "--output", str(output)]
        return self._chores.start(CHORE, arguments, timeout_s=_TIMEOUT_S)

    def _take(self, done: Done) -> None:
        if self._writing is None:
            return
        (one, last), self._writing = self._writing, None
        path = str(self._home.reports / one.name)
        facts = {"campaign": one.campaign, "path": path}
        self.next_s = 0.0
        if done.code != 0:
            self._failed(one, done, facts)
            return
        self._failures.pop(one.name, None)
        self._log.info("report.written", **facts, final=last)
        if last:
            self._announcing.reported(path, campaign=one.campaign)
        current = self._known().get(one.name)
        if current is not None:
            # Its end may have been set while it was written: then it is written once more, for the last time.
            self._change(one.name, None if last else replace(current, written=True))

    def _failed(self, one: _DueReport, done: Done, facts: Mapping[str, str]) -> None:
        failures = self._failures[one.name] = self._failures.get(one.name, 0) + 1
        gives_up = failures >= _MAX_FAILURES
        told = {**facts, "reason": done.said, "gives_up": gives_up}
        self._log.error("report.failed", **told)
        self.next_s = time.monotonic() + _AGAIN_AFTER_S
        if gives_up:
            self._change(one.name, None)

    def _under_way(self, campaign: str) -> bool:
        prefix = f"{campaign}--"
        states = (State.RUNNING, State.PENDING)
        return any(name.startswith(prefix) for s in states for name in self._spool.all_names(s))

    # --- what is remembered

    def _known(self) -> Mapping[str, _DueReport]:
        if self._due is None:
            self._due = self._read()
        return self._due

    def _read(self) -> dict[str, _DueReport]:
        try:
            told = json.loads(self._path.read_bytes())
            listed = [_DueReport(**one) for one in told["due"]]
            for one in listed:
                _check(one)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._log.error("report.due_not_read", path=str(self._path), reason=str(error))
            return {}
        return {one.name: one for one in listed}

    def _change(self, name: str, one: _DueReport | None) -> None:
        known = dict(self._known())
        known.pop(name, None)
        if one is not None:
            known[name] = one
        try:
            self._remember(known)
        except StorageError as error:
            # What the disk still says is due is written once more by the next daemon.
            self._due = known
            self._once.error(str(error), "report.not_remembered", reason=str(error))

    def _remember(self, known: dict[str, _DueReport]) -> None:
        try:
            write_json(self._path, {"due": [asdict(one) for one in known.values()]})
        except OSError as error:
            raise StorageError(
                f"can't remember the reports that are due: {error.strerror}", where=str(self._path)
            ) from error
        self._due = known


def _check(one: _DueReport) -> None:
    """Refuse what was not written here: names become paths and arguments."""
    texts = (one.name, one.campaign, one.since, one.until)
    if not all(isinstance(text, str) for text in texts) or not isinstance(one.written, bool):
        msg = "an entry is of another form"
        raise TypeError(msg)
    if Path(one.name).name != one.name or one.name.startswith((".", "-")):
        msg = "a name is no file's"
        raise ValueError(msg)
    from_iso(one.since)
    if one.until:
        from_iso(one.until)
