"""What all open pages show, read once for all of them: a thread of its own looks while somebody asks."""

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from labd.agenda import Agenda, AgendaReader
from labd.clock import utc_now
from labd.errors import LabdError, NotFound
from labd.index import Index
from labd.inventory import nodes
from labd.lab import Lab, Status, TaskView
from labd.machine import load
from labd.published import Kept, reports_of
from labd.task import State
from labd.text import printable
from labd.timeline import Stage, Timeline

_EVERY_S = 1.0
_SLICE_S = 0.2
_NODES_EVERY_S = 15.0
_LOAD_EVERY_S = 5.0
_AGENDA_EVERY_S = 5.0
_UNASKED_S = 20.0
_FIRST_S = 20.0
_HISTORY = 120
_MAX_TIMELINES = 200
_CAMPAIGN = "campaign:"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at the lab. `failed` says why the last look did not succeed; then the rest is older."""

    at: datetime
    status: Status
    paused: bool
    counts: Mapping[State, int]
    views: list[TaskView]
    unread: int = 0
    stages: Mapping[str, tuple[Stage, ...]] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    load: list[dict[str, Any]] = field(default_factory=list)
    """This machine's, the newest last, one each five seconds."""
    log: list[dict[str, Any]] = field(default_factory=list)
    agenda: Agenda = field(default_factory=Agenda)
    campaign_tasks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By campaign how many of its tasks wait, and how many run."""
    reports: Sequence[Kept] = ()
    """The lab's reports, the newest first."""
    failed: str = ""

    def find(self, task_id: str) -> TaskView | None:
        """Give the task of this id, or whose id is shown so; of several the first."""
        found = (v for v in self.views if v.id == task_id)
        odd = (v for v in self.views if not v.id.isprintable() and printable(v.id) == task_id)
        return next(found, None) or next(odd, None)


class Snapshots:
    """Looks at the lab once a second for as long as somebody asks, and not at all otherwise."""

    def __init__(
        self,
        lab: Lab,
        *,
        unasked_s: float = _UNASKED_S,
        agenda_every_s: float = _AGENDA_EVERY_S,
    ) -> None:
        self._lab, self._unasked_s = lab, unasked_s
        self._index = Index(lab)
        self._load: deque[dict[str, Any]] = deque(maxlen=_HISTORY)
        self._nodes: list[dict[str, Any]] = []
        self._reader, self._agenda = AgendaReader(lab), Agenda()
        self._reports: list[Kept] = []
        self._timelines: dict[str, Timeline] = {}
        self._latest: Snapshot | None = None
        self._asked_s = float("-inf")
        self._stopping = threading.Event()
        self._turn = threading.Condition()
        self._begun = 0
        self._done = 0
        self._anew = 0
        """How often somebody asked again after a while in which nobody did."""
        self._needed = 1
        """The number of the look for which somebody waits, and counts of those that began and ended."""
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (
                ("page-reader", self._read_on),
                ("page-load", lambda: self._repeat(_LOAD_EVERY_S, self._sample, always=True)),
                ("page-nodes", lambda: self._repeat(_NODES_EVERY_S, self._ask_nodes)),
                ("page-agenda", lambda: self._repeat(agenda_every_s, self._read_agenda)),
            )
        ]

    def start(self) -> None:
        """Begin to look."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopping.set()
        with self._turn:
            self._turn.notify_all()

    def get(self) -> Snapshot:
        """Give the last look; waits for the first one, and for a new one after a while in which nobody asked.

        Raises:
            NotFound: there was none within twenty seconds.

        """
        with self._turn:
            now_s = time.monotonic()
            if now_s - self._asked_s > self._unasked_s:
                self._needed = self._begun + 1
                self._anew += 1
            self._asked_s = now_s
            self._turn.notify_all()
            needed = self._needed
            self._turn.wait_for(lambda: self._done >= needed, _FIRST_S)
            if self._latest is None:
                raise NotFound("the spool could not be read yet", where=str(self._lab.home.spool))
            return self._latest

    def look_now(self) -> None:
        """Have the next `get` wait for a look that begins after this call: something was changed just now."""
        with self._turn:
            self._needed = self._begun + 1
            self._turn.notify_all()

    # --- the threads

    def _read_on(self) -> None:
        while not self._stopping.is_set():
            with self._turn:
                self._begun += 1
                number = self._begun
            began_s = time.monotonic()
            try:
                latest: Snapshot | None = self.look()
            except (OSError, LabdError) as error:
                latest = replace(self._latest, failed=str(error)) if self._latest else None
            took_s = time.monotonic() - began_s
            pause_s = 0.05 if latest and latest.unread else max(_EVERY_S, 3 * took_s)
            with self._turn:
                self._latest, self._done = latest, number
                self._turn.notify_all()
                self._turn.wait_for(self._called, pause_s)
                self._turn.wait_for(lambda: self._called() or self._asked_lately())

    def _called(self) -> bool:
        return self._stopping.is_set() or self._needed > self._done

    def _asked_lately(self) -> bool:
        return time.monotonic() - self._asked_s < self._unasked_s

    def look(self) -> Snapshot:
        """Look at the lab now. For the one thread that reads, which `start` starts."""
        status = self._lab.status()
        views = self._index.refresh(_SLICE_S)
        running = [view.id for view in views if view.state is State.RUNNING][:_MAX_TIMELINES]
        return Snapshot(
            at=utc_now(),
            status=status,
            paused=self._lab.paused,
            counts=self._lab.counts(),
            views=views,
            unread=self._index.unread,
            stages={task_id: self._stages(task_id) for task_id in running},
            nodes=self._nodes,
            load=list(self._load),
            log=self._lab.daemon_log()[-500:],
            agenda=self._agenda,
            campaign_tasks=tasks_by_campaign(views),
            reports=self._reports,
        )

    def _stages(self, task_id: str) -> tuple[Stage, ...]:
        if len(self._timelines) > _MAX_TIMELINES:
            self._timelines.clear()
        if task_id not in self._timelines:
            self._timelines[task_id] = Timeline(self._lab, task_id)
        return self._timelines[task_id].read()

    def _sample(self) -> None:
        self._load.append(load())

    def _ask_nodes(self) -> None:
        self._nodes = nodes(self._lab)

    def _read_agenda(self) -> None:
        self._reports = reports_of(self._lab.home.reports)
        self._agenda = self._reader.read(utc_now())

    def _repeat(self, every_s: float, work: Callable[[], None], *, always: bool = False) -> None:
        first, anew = True, 0
        while not self._stopping.is_set():
            if always or first or self._asked_lately():
                first = False
                try:
                    work()
                except (OSError, LabdError) as error:
                    print(f"labd: the page: {error}", file=sys.stderr)  # noqa: T201 - its log
            if always:
                self._stopping.wait(every_s)
            else:
                anew = self._wait(every_s, anew)

    def _wait(self, every_s: float, anew: int) -> int:
        """Wait so long, or until somebody asks anew for the first time since the `anew`-th; give the number of the last."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopping.is_set() or self._anew > anew, every_s)
            return self._anew


def tasks_by_campaign(views: Iterable[TaskView]) -> dict[str, tuple[int, int]]:
    """Count by campaign the tasks that wait, and those that run."""
    found: Counter[tuple[str, State]] = Counter()
    for view in views:
        if view.state.decided or "--" not in view.id:
            continue
        for label in view.labels:
            if label.startswith(_CAMPAIGN):
                found[label.removeprefix(_CAMPAIGN), view.state] += 1
    names = {name for name, _ in found}
    return {name: (found[name, State.PENDING], found[name, State.RUNNING]) for name in names}
