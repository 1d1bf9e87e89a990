"""Campaigns as the daemon carries them out: reads what there is, has `labd.campaigns` decide, and does it.

The order makes a kill harmless: task files first, then what is remembered. What was put and not remembered
is decided again, and its files are known by their names.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from labd.archive import History, spans_of
from labd.campaigns import (
    DECISIONS,
    LOCK,
    MEMORY,
    OUTCOMES,
    BoundedLines,
    Campaign,
    Capacity,
    Decision,
    Lab,
    Library,
    Memory,
    Note,
    Outcome,
    Profile,
    Queue,
    Remembered,
    adding,
    begin,
    decide,
    expected_gpu_hours,
    fill,
    learn,
    outcome_from_json,
    outcome_of,
    read_domains,
    submit,
    upcoming,
)
from labd.clock import from_iso, to_iso
from labd.daemon.asked import Asked
from labd.daemon.house import House
from labd.daemon.loads import Loads, SeenNode
from labd.daemon.reporting import Reporting
from labd.daemon.telling import Once
from labd.errors import ConfigError, JournalError, LabdError, TaskFileError, TimedOut
from labd.scheduler import Demand
from labd.task import State, TaskSpec, parse_task, task_id

_EVERY_S = 5.0
_AGAIN_S = 0.5
_WINDOW_S = 7 * 86_400.0
_MAX_OUTCOMES = 20_000
_LOOK_BACK = 500
_SLICE_S = 0.02


@dataclass(frozen=True, slots=True)
class Seen:
    """What the daemon knows of its tasks and nodes at a turn."""

    pending: Iterable[str]
    """File names."""
    running: Sequence[str]
    """Ids."""
    waiting: Mapping[Demand, int]
    """How many tasks wait for nothing but room, whoever's they are; see `labd.campaigns.Lab`."""
    nodes: Sequence[SeenNode]


@dataclass(slots=True)
class _Kept:
    memories: dict[str, Memory] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    profiles: dict[str, Profile] = field(default_factory=dict)
    seeds: dict[str, Profile] = field(default_factory=dict)
    new_outcomes: bool = True


class Campaigning:
    """The campaigns of one daemon. `turn` is cheap where nothing is due."""

    def __init__(self, house: House, reporting: Reporting) -> None:
        home = house.home
        self._home, self._spool, self._archive = home, house.spool, house.archive
        self._reporting = reporting
        self._log, self._once = house.log, Once(house.log)
        self._library = Library(home.campaigns)
        self._remembered = Remembered(home.run_dir / MEMORY)
        self._decisions = BoundedLines(home.run_dir / DECISIONS)
        self._outcomes = BoundedLines(home.run_dir / OUTCOMES)
        self._kept = _Kept()
        self._loads = Loads(home)
        self._asked = Asked(house.spool)
        self._waiting: Counter[Demand] = Counter()
        """What waits for room at this turn, with what the turn itself has added."""
        self._started = False
        self.next_s = 0.0
        """When there is something to do, by the monotonic clock."""
        self._busy = False
        self._to_learn: deque[str] = deque(maxlen=_MAX_OUTCOMES)

    # --- what the loop asks

    def turn(self, seen: Seen, now: datetime) -> list[str]:
        """Do what is due; give the names of files that came to pending/ or left it."""
        self._start()
        now_s = time.monotonic()
        self.next_s = now_s + _EVERY_S
        for name in self._library.refresh():
            self._tell_change(name)
        running = [c for c in self._library.campaigns.values() if c.spec.enabled]
        if running and not self._busy:
            self._catch_up()
        self._busy = bool(running)
        if not running:
            self._loads.forget()
            return []
        self._learn()
        adaptive = [c for c in running if adding(c, now)]
        if adaptive:
            self._say(self._loads.look(seen.nodes))
        else:
            self._loads.forget()
        queues = _queues(running, seen)
        self._waiting = Counter(seen.waiting)
        changed: list[str] = []
        for campaign in sorted(running, key=lambda c: (-(c.spec.priority or 0), c.name)):
            changed += self._one(campaign, queues, seen, now, adds=campaign in adaptive)
        self._set_next(running, now, now_s)
        return changed

    @property
    def capacities(self) -> Mapping[str, Capacity]:
        """How loaded each node is, by its id; nothing is known where no adaptive campaign is under way."""
        return self._loads.capacities()

    def soon(self) -> None:
        """Take the next turn soon: tasks have started or ended."""
        if self._busy:
            self.next_s = min(self.next_s, time.monotonic() + _AGAIN_S)

    def ended(self, ids: Iterable[str]) -> None:
        """Take notice of tasks that have come into another state, to learn from them at the next turn."""
        if self._busy:
            self._to_learn.extend(ids)
            self.soon()

    def goes_on(self, name: str) -> bool:
        """Say whether more tasks of a campaign are to come soon: of a firing that is open, or of the adaptive queue in its time."""
        campaign, memory = self._library.campaigns.get(name), self._kept.memories.get(name)
        if campaign is None or not campaign.spec.enabled:
            return False
        now = datetime.fromtimestamp(time.time(), UTC)
        return bool(memory and memory.opened) or adding(campaign, now)

    def facts(self) -> dict[str, Any]:
        """Give what readers may know: what is wrong with files."""
        return {"problems": dict(self._library.problems)}

    # --- a turn

    def _one(
        self,
        campaign: Campaign,
        queues: dict[str, Queue],
        seen: Seen,
        now: datetime,
        *,
        adds: bool,
    ) -> list[str]:
        known, queue = self._kept.memories.get(campaign.name), queues[campaign.name]
        memory = begin(campaign, known, now)
        hours = self._gpu_hours(campaign, queue, now)
        decision = decide(campaign, memory, queue, now, gpu_hours=hours)
        rooms = self._loads.rooms(seen.nodes) if adds and not decision.wind_down else []
        if rooms:
            loads = self._loads
            lab = Lab(
                rooms,
                self._waiting,
                loads.endpoints.calls,
                loads.queue_level,
                loads.endpoints.load.tokens_per_s,
            )
            profiles = self._profiles()
            decision = fill(campaign, decision, queue, lab, profiles, now=now, gpu_hours=hours)
        if decision.memory == known and not decision.drafts:
            return []
        try:
            changed = self._carry_out(campaign, decision)
        except TimedOut:
            # Somebody starts a step by hand. The loop waits for nobody, and nothing of this is remembered yet.
            self.soon()
            return []
        except (LabdError, OSError) as error:
            shown = f"{campaign.name}: {error}"
            self._once.error(shown, "campaign.trouble", campaign=campaign.name, reason=str(error))
            return []
        new = [name for name in changed if name not in queue.pending]
        grown = Queue([*queue.pending, *(task_id(name) for name in new)], queue.running)
        queues[campaign.name] = grown
        return changed

    def _carry_out(self, campaign: Campaign, decision: Decision) -> list[str]:
        changed = self._cancel_waiting(campaign) if decision.wind_down else []
        if decision.drafts:
            ids = submit(
                decision.drafts,
                lock=self._home.run_dir / LOCK,
                known=lambda one: self._archive.knows(one) or bool(self._spool.where(one)),
                put=self._spool.put,
                wait_s=0.0,
            )
            new = [draft for draft in decision.drafts if draft.id in ids]
            changed += [draft.name for draft in new]
            self._waiting.update(draft.demand for draft in new)
        self._make_reports_due(campaign, decision.notes)
        self._kept.memories[campaign.name] = decision.memory
        self._remembered.write(self._kept.memories)
        self._say(decision.notes)
        return changed

    def _make_reports_due(self, campaign: Campaign, notes: Sequence[Note]) -> None:
        """Have the reports written that firings make due: on the disk before the firings are, as all that comes of them."""
        for note in notes:
            if note.event == "campaign.fired" and note.facts["report"]:
                at = from_iso(str(note.facts["instant"]))
                self._reporting.due(campaign, str(note.facts["step"]), at)

    def _cancel_waiting(self, campaign: Campaign) -> list[str]:
        """Cancel what waits of a campaign; only what says in its file that it is of this one."""
        cancelled = []
        for name in self._spool.names(State.PENDING):
            if not name.startswith(campaign.prefix):
                continue
            with suppress(FileNotFoundError):
                spec = self._spec(State.PENDING, name)
                if spec is not None and campaign.label in spec.labels:
                    self._spool.move(name, State.PENDING, State.CANCELLED, durable=False)
                    cancelled.append(name)
        facts = {"campaign": campaign.name, "tasks": len(cancelled)}
        self._say([Note("campaign.wound_down", facts)])
        return cancelled

    def _set_next(self, running: Sequence[Campaign], now: datetime, now_s: float) -> None:
        horizon = now + timedelta(seconds=_EVERY_S)
        soon = [at for c in running for at, _ in upcoming(c, now) if at <= horizon]
        for at in soon:
            self.next_s = min(self.next_s, now_s + max(0.0, (at - now).total_seconds()) + 0.001)

    # --- what is known

    def _start(self) -> None:
        """Read what an earlier daemon remembered, once."""
        if self._started:
            return
        self._started = True
        try:
            self._kept.memories = self._remembered.read()
        except ConfigError as error:
            aside = self._remembered.set_aside()
            self._log.error("campaigns.forgotten", reason=str(error), kept_as=str(aside))
        read = (outcome_from_json(one) for one in self._outcomes.read())
        self._kept.outcomes = [one for one in read if one is not None][-_MAX_OUTCOMES:]

    def _catch_up(self) -> None:
        """Take notice of what ended last, where nobody was there or no campaign was enabled."""
        had = {one.task_id for one in self._kept.outcomes}
        for state in (State.DONE, State.FAILED):
            recent = reversed([*self._spool.recent(state, _LOOK_BACK)])
            self._to_learn.extend(entry.id for entry in recent if entry.id not in had)

    def _learn(self) -> None:
        """Learn from tasks that have ended, for a slice of time: a result may be long."""
        until_s, new = time.monotonic() + _SLICE_S, []
        while self._to_learn and time.monotonic() < until_s:
            if (one := self._outcome(self._to_learn.popleft())) is not None:
                new.append(one)
        if self._to_learn:
            self.soon()
        if new:
            self._kept.outcomes = [*self._kept.outcomes, *new][-_MAX_OUTCOMES:]
            self._kept.new_outcomes = True
            self._write(self._outcomes, [one.as_json() for one in new])

    def _outcome(self, task: str) -> Outcome | None:
        """Give what is to be kept of a task that has ended; ``None`` for any other."""
        for state, name in self._spool.where(task):
            spec = self._spec(state, name) if state.decided else None
            if spec is not None:
                entry = self._spool.entry(state, name)
                moved_s = entry.moved_ns / 1e9 if entry else time.time()
                return self._outcome_of(task, spec, state, moved_s)
        return None

    def _outcome_of(self, task: str, spec: TaskSpec, state: State, moved_s: float) -> Outcome:
        history = History(())
        with suppress(JournalError, OSError):  # what it took is then not known
            history = self._archive.history(task)
        limit_s = spec.timeout or self._home.settings.default_timeout
        spans, _ = spans_of(history.since_asked(), most_s=limit_s)
        lengths_s = [span.ended_s - span.began_s for span in spans]
        return outcome_of(
            task,
            spec.model_dump(include={"kind", "template", "model", "labels"}),
            state.value,
            self._archive.result(task) or {},
            min(time.time(), moved_s if history.ended_s is None else history.ended_s),
            wall_s=math.fsum(lengths_s),
            gpu_s=math.fsum(s * span.num_gpus for s, span in zip(lengths_s, spans, strict=True)),
        )

    def _spec(self, state: State, name: str) -> TaskSpec | None:
        with suppress(TaskFileError, OSError):
            return parse_task(self._spool.read(state, name), name).spec
        return None

    def _profiles(self) -> dict[str, Profile]:
        kept = self._kept
        if kept.new_outcomes:
            try:
                kept.seeds = read_domains(self._home.domains)
            except ConfigError as error:
                self._once.error(str(error), "domains.invalid", reason=str(error))
            kept.profiles, kept.new_outcomes = learn(kept.outcomes, kept.seeds), False
        return kept.profiles

    def _gpu_hours(self, campaign: Campaign, queue: Queue, now: datetime) -> float:
        """Give what a campaign's tasks took in the last seven days, and are expected to take that wait or run."""
        if campaign.spec.limits.max_gpu_hours is None:
            return 0.0
        since_s = now.timestamp() - _WINDOW_S
        mine = (o for o in self._kept.outcomes if o.campaign == campaign.name)
        spent = sum(o.gpu_s for o in mine if o.ended_at_s >= since_s) / 3600
        profiles = self._profiles()
        under_way = self._asked.keys_of(campaign.name, queue.pending, queue.running)
        return spent + math.fsum(expected_gpu_hours(keys, profiles) for keys in under_way)

    # --- telling

    def _tell_change(self, name: str) -> None:
        if problem := self._library.problems.get(name):
            self._once.error(f"{name}: {problem}", "campaign.invalid", file=name, reason=problem)
        else:
            self._log.info("campaign.read", file=name)

    def _say(self, notes: Sequence[Note]) -> None:
        for note in notes:
            self._log.info(note.event, **note.facts)
        at = to_iso(datetime.now(UTC))
        self._write(self._decisions, [{"event": n.event, "at": at, **n.facts} for n in notes])

    def _write(self, lines: BoundedLines, records: Sequence[dict[str, Any]]) -> None:
        try:
            lines.append(records)
        except OSError as error:
            self._once.error(f"record: {error}", "record.not_written", reason=str(error))


def _queues(campaigns: Sequence[Campaign], seen: Seen) -> dict[str, Queue]:
    """Sort the ids of what waits and runs by campaign."""
    names = {campaign.name for campaign in campaigns}
    pending: dict[str, list[str]] = {name: [] for name in names}
    running: dict[str, list[str]] = {name: [] for name in names}
    for file in seen.pending:
        whose = file.partition("--")[0]
        if whose in names:
            pending[whose].append(task_id(file))
    for one in seen.running:
        whose = one.partition("--")[0]
        if whose in names:
            running[whose].append(one)
    return {name: Queue(pending[name], running[name]) for name in names}
