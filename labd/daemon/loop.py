"""The loop: who takes its turn when; signals, and the start and the end of the daemon."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import Any

from labd.archive import Archive
from labd.daemon.announcing import Announcing
from labd.daemon.attempts import Attempts
from labd.daemon.campaigning import Campaigning, Seen
from labd.daemon.chores import Chores
from labd.daemon.cluster import Cluster
from labd.daemon.counts import Counts
from labd.daemon.endings import Endings
from labd.daemon.house import House
from labd.daemon.hygiene import Hygiene
from labd.daemon.intake import Intake
from labd.daemon.notify import Notifier
from labd.daemon.orders import engine_options, job_for
from labd.daemon.overseer import Overseer
from labd.daemon.pageprocess import PageProcess
from labd.daemon.recovery import Recovery
from labd.daemon.reporting import Reporting
from labd.daemon.telling import Once, StatusFile
from labd.drop import check_drop
from labd.engine.client import Engine
from labd.engine.types import Down, Ended, Event, Machines, Nodes, Ready
from labd.errors import LabdError, StorageError
from labd.hooks import Hooks
from labd.log import Logger
from labd.scheduler import Plan, Snapshot, decayed, plan
from labd.settings import Home
from labd.spool import Spool, Watcher
from labd.task import TaskFile
from labd.text import printable

_BAD_TICKS = 20
_GOOD_TEMPLATE_S = 5.0
_USAGE_EVERY_S = 1.0
_SYNC_WITHIN_S = 0.05
_USAGE_HALF_LIFE_S = 3600.0
_MAX_TOLD = 1000
_TOLD_NEXT = 100


class Daemon:
    """One lab's daemon. `run` returns the exit code.

    `engine`: what to use instead of an `Engine` on Ray. `page`: whether to serve the status page, if the settings say so.
    """

    def __init__(
        self,
        home: Home,
        log: Logger,
        *,
        once: bool = False,
        engine: Engine | None = None,
        page: bool = False,
    ) -> None:
        settings = home.settings
        self._home, self._log, self._once = home, log, once
        self._say_once = Once(log)
        self._wake = threading.Event()
        self._stopping = False
        spool = Spool(home.spool)
        self.hooks = Hooks(settings.notify, home.root, home.run_dir, log)
        options, engine_log = engine_options(home), home.run_dir / "engine.log"
        house = House(
            home,
            log,
            spool,
            Archive(home.results),
            engine or Engine(options, engine_log, self._wake.set, log),
            Announcing(home, spool, self.hooks),
        )
        self._spool, self._archive, self._engine = house.spool, house.archive, house.engine
        self._counts = Counts()
        self._attempts = Attempts(house, counts=self._counts, job=partial(job_for, home))
        self._intake = Intake(house, self._attempts.ids, _Checks(home))
        self._chores = Chores(home.root, log, log_path=home.run_dir / "chores.log")
        self._reporting = Reporting(house, self._chores)
        self._campaigning = Campaigning(house, self._reporting)
        self._endings = Endings(house, self._attempts)
        self._cluster = Cluster(home.drained, log)
        self._overseer = Overseer(house, self._attempts, name_of=self._cluster.name_of)
        self._recovery = Recovery(house, self._attempts)
        self._status = StatusFile(home.run_dir, self._say_once)
        self._page: PageProcess | None = None
        if page and settings.page.enabled:
            self._page = PageProcess(home, log)
        # The last one is what `labd run` gives the daemon that it starts.
        logs = [home.run_dir / f"{name}.log" for name in ("engine", "page", "daemon")]
        self._hygiene = Hygiene(home, self._chores, log, logs)
        self._notifier = Notifier(os.environ)
        self._dashboard_url = ""
        self._plan: Plan | None = None
        self._held = ""
        self._news: deque[Event] = deque()
        """What the engine said of work and nobody has taken yet."""
        self._usage: dict[str, float] = {}
        self._usage_at_s = time.monotonic()
        self._recover_at_s = float("inf")
        self._sync_at_s = float("inf")
        self._bad_ticks = 0

    def run(self) -> int:
        """Work until told to stop (or, with `once`, until the spool is drained).

        Raises:
            Busy: another daemon has the spool.

        """
        self._spool.prepare()
        self._archive.prepare()
        with self._spool.held():
            self._install_signals()
            watcher = Watcher(self._spool, self._wake)
            facts = {"home": str(self._home.root), "pid": os.getpid(), "once": self._once}
            self._log.info("daemon.started", **facts)
            self.hooks.start()
            self._engine.start()
            if problem := watcher.start():
                self._log.warning(
                    "watch.unavailable", reason=problem, rescan_s=self._home.settings.rescan
                )
            try:
                while not self._stopping:
                    self._tick_or_tell(watcher.hints())
                    self._notifier.progress(self._in_words())
                    if self._once and self._drained():
                        break
                    self._wake.wait(self._pause_s())
                    self._wake.clear()
            finally:
                watcher.stop()
                self._stop()
        failed = self._endings.failed + self._recovery.failed + self._intake.refused
        return 1 if self._once and (failed or len(self._intake)) else 0

    def _tick_or_tell(self, hints: list[str]) -> None:
        """Tick; what goes wrong unforeseen is told, with its trace, and tried again some times."""
        try:
            self.tick(hints)
        except Exception:
            self._bad_ticks += 1
            self._log.exception("tick.failed", in_a_row=self._bad_ticks)
            if self._bad_ticks >= _BAD_TICKS:
                raise
        else:
            self._bad_ticks = 0

    def tick(self, hints: list[str]) -> None:
        """Look, decide, act, once. New work starts before the end of the old is recorded: no slot waits for a disk."""
        self._take()
        self._attempts.follow()
        self._overseer.turn()
        self._intake.take([*hints, *self._recovery.put_back()])
        self._campaign()
        self._start()
        self._endings.settle(self._intake)
        self._recover_strangers()
        decided, self._attempts.decided = self._attempts.decided, []
        if decided:
            self._campaigning.ended(decided)
        for task_id in decided:
            if self._intake.changed(task_id):
                self._wake.set()  # what waited for it may start now
        self._sync_in_time()
        if self._cluster.nodes and (numbers := self._counts.due(self._gauges())):
            self._engine.measure(numbers)
        if self._status.ready():
            self._status.write(self._facts(stopped=False))
        if self._page is not None:
            self._page.keep()
        done = self._chores.turn()
        if not self._once:
            self._hygiene.turn()
            self._reporting.turn(done, self._campaigning.goes_on)

    # --- observe

    def _take(self) -> None:
        """Take what the engine says: of work in its order, and after that what machines are and do, which they say again.

        What raises is there for the next turn still, and so is what came behind it: no end of an attempt is lost.
        """
        news = self._engine.poll()
        self._news += [event for event in news if not isinstance(event, Machines)]
        while self._news:
            self._take_one(self._news[0])
            self._news.popleft()
        for event in news:
            if isinstance(event, Machines):
                self._cluster.tell(event.machines)
                self._campaigning.soon()
                self._overseer.take(event.machines)

    def _take_one(self, event: Event) -> None:
        match event:
            case Ready():
                self._take_ready(event)
                # The ends that come behind it may be of work that is found now.
                self._recovery.reconcile(event.held)
                self._recover_at_s = time.monotonic() + self._home.settings.rescan
            case Nodes():
                self._cluster.nodes = event.nodes
                self._log.info("engine.nodes", nodes=[node.name for node in event.nodes])
            case Ended():
                self._attempts.take(event)
            case Down():
                self._cluster.nodes = []
                self._recover_at_s = float("inf")

    def _take_ready(self, event: Ready) -> None:
        self._cluster.nodes, self._dashboard_url = event.nodes, event.dashboard_url
        if self._page is not None:
            self._page.start_soon()
        facts = {"nodes": len(event.nodes), "held": len(event.held)}
        self._log.info("engine.ready", **facts, dashboard=event.dashboard_url or None)

    def _recover_strangers(self) -> None:
        """Deal with what somebody put into running/, or what could not be moved out of it."""
        if time.monotonic() >= self._recover_at_s:
            self._recovery.recover("interrupted")
            for name in self._recovery.put_back():
                self._intake.look_at(name)
                self._wake.set()
            self._recover_at_s = time.monotonic() + self._home.settings.rescan

    # --- plan and act

    def _campaign(self) -> None:
        """Let campaigns add what is due; not with `once`, which does what there is and stops."""
        if self._once or time.monotonic() < self._campaigning.next_s:
            return
        seen = Seen(
            self._intake.names(),
            list(self._attempts.active),
            self._intake.backlog.demands(),
            self._cluster.seen(self._attempts.running()),
        )
        for name in self._campaigning.turn(seen, datetime.fromtimestamp(time.time(), UTC)):
            self._intake.look_at(name)
        self._cluster.capacities = self._campaigning.capacities

    def _start(self) -> None:
        running = self._attempts.running()
        nodes = self._cluster.usable()
        hold = self._hold()
        self._hygiene.tell(hold)
        self._held = hold or self._cluster.why_none()
        now_s = time.monotonic()
        if now_s - self._usage_at_s >= _USAGE_EVERY_S:
            elapsed_s = now_s - self._usage_at_s
            self._usage = decayed(self._usage, running, nodes, elapsed_s, _USAGE_HALF_LIFE_S)
            self._usage_at_s = now_s
        self._plan = plan(
            Snapshot(
                backlog=self._intake.backlog,
                running=running,
                nodes=nodes,
                usage=self._usage,
                now_s=now_s,
                reserve_after_s=self._home.settings.reserve_after,
                hold=self._held,
                barred=self._cluster.barred(),
                reserved=self._plan.reserved if self._plan else {},
                spread=self._home.settings.placement == "spread",
            )
        )
        jobs = []
        for start in self._plan.starts:
            try:
                job = self._attempts.claim(start, self._intake)
            except LabdError as error:
                self._intake.trouble(start.key, f"could not be claimed: {error}")
                continue
            if job is not None:
                jobs.append(job)
                facts: dict[str, Any] = {"task_id": job.task_id, "attempt": job.attempt}
                if start.also:
                    facts["also"] = self._cluster.names_of(start.also)
                self._log.info("task.claimed", **facts, node=self._cluster.name_of(start.node_id))
        if jobs:
            self._engine.submit_many(jobs)

    def _hold(self) -> str:
        if self._spool.paused:
            return "paused: nothing new is started until `labd resume`"
        return self._hygiene.why_no_room()

    def _sync_in_time(self) -> None:
        """Make claims and moves durable within a moment; one fsync then serves all of that moment."""
        if not (self._archive.unsynced or self._spool.unsynced):
            self._sync_at_s = float("inf")
        elif self._sync_at_s == float("inf"):
            self._sync_at_s = time.monotonic() + _SYNC_WITHIN_S
        elif time.monotonic() >= self._sync_at_s:
            self._sync()
            self._sync_at_s = float("inf")

    def _sync(self) -> None:
        for room in (self._archive, self._spool):
            try:
                room.sync()
            except StorageError as error:
                self._say_once.error(f"sync: {error}", "sync.failed", reason=str(error))

    # --- stop

    def _stop(self) -> None:
        self._notifier.stopping()
        if self._page is not None:
            self._page.stop()
        self._chores.close()
        leaves = self._engine.survives
        running = len(self._attempts.active)
        self._log.info("daemon.stopping", running=running, work_goes_on=leaves)
        self._engine.stop()
        for event in [*self._news, *self._engine.poll()]:
            # What ends because we do has not failed.
            if isinstance(event, Ended) and (event.how == "returned" or leaves):
                self._attempts.take(event)
        if not leaves:
            self._attempts.stop()
        self._endings.settle(self._intake)
        if not leaves:
            self._recovery.recover("stopped")
        self._sync()
        self._status.write(self._facts(stopped=True))
        self.hooks.close()
        self._log.info("daemon.stopped")

    def _drained(self) -> bool:
        if self._attempts.active or self._intake.busy or self._intake.unsettled:
            return False
        if self._recover_at_s == float("inf"):
            return False  # what is in running/ is not known yet
        started = self._plan is not None and self._plan.starts
        return not (started or self._intake.retrying or self._wake.is_set())

    # --- small things

    def _install_signals(self) -> None:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stopping = True
            self._wake.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # see files.open_for_writing_elsewhere

    def _pause_s(self) -> float:
        if self._intake.busy:
            return 0.0
        now_s = time.monotonic()
        times = [
            now_s + self._home.settings.rescan,
            now_s + max(0.0, self._status.due_in_s),
            self._intake.next_s(),
            self._attempts.next_deadline_s(),
            self._recover_at_s,
            self._sync_at_s,
            self._page.next_s if self._page is not None else float("inf"),
            now_s + self._notifier.due_in_s,
            self._chores.next_s,
        ]
        # With `once` no such turn is taken: what is due would stay due, and there would be no pause.
        if not self._once:
            times += [self._hygiene.next_s, self._campaigning.next_s, self._reporting.next_s]
        return max(0.001, min(times) - now_s)

    def _gauges(self) -> Iterator[tuple[str, float, dict[str, str]]]:
        waiting, ready = len(self._intake), len(self._intake.backlog)
        yield "queue_depth", ready, {"state": "waiting"}
        yield "queue_depth", max(0, waiting - ready), {"state": "gated"}
        yield "queue_depth", len(self._attempts.active), {"state": "running"}
        yield "nodes", len(self._cluster.nodes), {"state": "all"}
        yield "nodes", len(self._cluster.usable()), {"state": "usable"}

    def _in_words(self) -> str:
        counts = f"{len(self._attempts.active)} running, {len(self._intake)} waiting"
        hindrance = self._held or ("" if self._cluster.nodes else "waits for Ray")
        return f"{counts}; {hindrance}" if hindrance else counts

    def _facts(self, *, stopped: bool) -> dict[str, Any]:
        stuck = dict(self._overseer.reasons())
        reasons = {**self._intake.reasons, **stuck, **self._attempts.reasons}
        return {
            "pid": os.getpid(),
            "stopped": stopped,
            "paused": self._spool.paused,
            "held": self._held,
            "dashboard_url": self._dashboard_url,
            "nodes": self._cluster.facts(),
            "running": {
                a.task_id: {
                    "attempt": a.attempt,
                    "node": self._cluster.name_of(a.node_id),
                    "also": self._cluster.names_of(a.also),
                    "signs": self._overseer.facts(a),
                }
                for a in list(self._attempts.active.values())[:_MAX_TOLD]
            },
            "next": [task.key for task in self._intake.backlog.first(_TOLD_NEXT)],
            "classes": self._classes(),
            "campaigns": self._campaigning.facts(),
            "reasons": {
                printable(name): reason for name, reason in list(reasons.items())[:_MAX_TOLD]
            },
        }

    def _classes(self) -> list[dict[str, Any]]:
        """Give why each kind of task waits, as readers can look it up for any one of them."""
        return [
            {
                "priority": told.priority,
                "owner": told.owner,
                "num_cpus": told.demand.num_cpus,
                "num_gpus": told.demand.num_gpus,
                "at_home": told.demand.at_home,
                "count": told.count,
                "oldest": printable(told.oldest),
                "reason": told.reason,
            }
            for told in (self._plan.classes() if self._plan else ())
        ]


class _Checks:
    """What a task must pass at the drop beyond its own form; a template that was found good is not looked at again at once."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._good_until_s: dict[str, float] = {}

    def __call__(self, task: TaskFile, where: str) -> None:
        template, now_s = task.spec.research_template, time.monotonic()
        if template and self._good_until_s.get(template, 0.0) > now_s:
            return
        check_drop(task, where, self._home)
        if template is None:
            return
        if len(self._good_until_s) > _MAX_TOLD:
            self._good_until_s.clear()
        self._good_until_s[template] = now_s + _GOOD_TEMPLATE_S
