"""The daemon: observe, plan, act; over and over, from what is on the disk and what the engine says.

One main thread owns every change. Signals and watchers only wake it. What it knows in memory it could
lose at any moment: the directories, the events and the results are the truth.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from labd.archive import JOURNAL, Archive, History
from labd.clock import print_duration, to_iso, utc_now
from labd.engine.client import Engine
from labd.engine.types import Down, Ended, Event, Job, NodeInfo, Nodes, Ready
from labd.errors import JournalError, LabdError, StorageError, TaskFileError
from labd.files import write_json
from labd.log import Logger
from labd.scheduler import Demand, Node, Plan, Running, Snapshot, Waiting, plan
from labd.settings import Home
from labd.spool import Entry, Spool, Watcher
from labd.task import (
    State,
    TaskFile,
    check_name,
    is_task_name,
    name_problem,
    numbered,
    parse_task,
    task_id,
)
from labd.template import check_template
from labd.text import printable

STATUS = "status.json"
_BACKOFF_S = (1.0, 10.0, 60.0, 300.0)
_FRUITLESS_STARTS = 10
_STATUS_EVERY_S = 10.0
_BAD_TICKS = 20


@dataclass(slots=True)
class Active:
    """An attempt that the engine has. `leaving` says why it was told to end, if it was."""

    task_id: str
    name: str
    attempt: int
    demand: Demand
    node_id: str
    deadline: float
    since: float
    leaving: str = ""


@dataclass(slots=True)
class Candidate:
    """A pending file as it was last read; `key` changes when the file does."""

    key: tuple[int, int, int]
    task: TaskFile | None
    entry: Entry
    not_before: float = 0.0


@dataclass(slots=True)
class Lab:
    """What the daemon holds in memory."""

    active: dict[str, Active] = field(default_factory=dict)
    ended: list[tuple[Active, Ended]] = field(default_factory=list)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    delayed_until: dict[str, float] = field(default_factory=dict)
    nodes: list[NodeInfo] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    said: set[str] = field(default_factory=set)


class Daemon:
    """One lab's daemon. `run` returns the exit code."""

    def __init__(self, home: Home, log: Logger, *, once: bool = False) -> None:
        self._home = home
        self._log = log
        self._once = once
        self._wake = threading.Event()
        self._stopping = False
        self._spool = Spool(home.spool)
        self._archive = Archive(home.results)
        self._lab = Lab()
        self._dashboard_url = ""
        self._last_status: dict[str, Any] = {}
        self._status_at = 0.0
        self._scan_again = False
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
            ray = self._home.settings.ray
            options = {
                "address": ray.address,
                "num_cpus": ray.num_cpus,
                "num_gpus": ray.num_gpus,
                "dashboard": ray.dashboard,
                "token_path": str(self._home.run_dir / "ray.token"),
            }
            self._engine = Engine(
                options, self._home.run_dir / "engine.log", self._wake.set, self._log
            )
            watcher = Watcher(self._spool, self._wake)
            self._log.info(
                "daemon.started", home=str(self._home.root), pid=os.getpid(), once=self._once
            )
            self._recover()
            self._engine.start()
            watcher.start()
            try:
                while not self._stopping:
                    self._tick_or_tell()
                    if self._once and self._drained():
                        break
                    self._wake.wait(self._pause_s())
                    self._wake.clear()
            finally:
                watcher.stop()
                self._stop()
        return 1 if self._once and (self._lab.failed or self._lab.reasons) else 0

    def _tick_or_tell(self) -> None:
        """Tick; what goes wrong unforeseen is told, with its trace, and tried again some times."""
        try:
            self.tick()
        except Exception:
            self._bad_ticks += 1
            self._log.exception("tick.failed", in_a_row=self._bad_ticks)
            if self._bad_ticks >= _BAD_TICKS:
                raise
        else:
            self._bad_ticks = 0

    def tick(self) -> None:
        """Look, decide, act, once."""
        for event in self._engine.poll():
            self._take(event)
        self._follow_moves()
        self._settle_ended()
        self._scan()
        self._start(self._plan())
        self._write_status()

    # --- observe

    def _take(self, event: Event) -> None:
        match event:
            case Ready():
                self._lab.nodes, self._dashboard_url = event.nodes, event.dashboard_url
                self._log.info(
                    "engine.ready", nodes=len(event.nodes), dashboard=event.dashboard_url or None
                )
            case Nodes():
                self._lab.nodes = event.nodes
                self._log.info("engine.nodes", nodes=[node.name for node in event.nodes])
            case Ended():
                active = self._lab.active.get(event.task_id)
                if active is None or active.attempt != event.attempt:
                    self._log.warning(
                        "outcome.dropped",
                        task_id=event.task_id,
                        attempt=event.attempt,
                        how=event.how,
                    )
                    return
                self._lab.ended.append((active, event))
            case Down():
                self._lab.nodes = []
                over = self._over()
                for active in self._lab.active.values():
                    if active.task_id in over:
                        continue
                    lost = Ended(
                        active.task_id, active.attempt, "lost", None, "the engine ended under it"
                    )
                    self._lab.ended.append((active, lost))

    def _follow_moves(self) -> None:
        """End what somebody moved out of running/, and what took too long."""
        now = time.monotonic()
        over = self._over()
        for active in self._lab.active.values():
            if active.leaving or active.task_id in over:
                continue
            if not self._spool.holds(State.RUNNING, active.name):
                active.leaving = "moved"
            elif now > active.deadline:
                active.leaving = "timed_out"
            else:
                continue
            self._log.info(
                "task.ending", task_id=active.task_id, attempt=active.attempt, why=active.leaving
            )
            self._engine.cancel(active.task_id, active.attempt)

    def _scan(self) -> None:
        """Read what is new in pending/; refuse what is no task."""
        now = time.time()
        seen: set[str] = set()
        self._scan_again = False
        for entry in self._spool.entries(State.PENDING):
            seen.add(entry.name)
            key = (entry.inode, entry.mtime_ns, entry.size_bytes)
            known = self._lab.candidates.get(entry.name)
            if known is not None and known.key == key:
                continue
            if entry.is_file and self._spool.being_written(entry, self._home.settings.settle, now):
                self._scan_again = True
                continue
            self._read(entry, key, now)
        for gone in self._lab.candidates.keys() - seen:
            del self._lab.candidates[gone]
        for name in self._spool.ignored():
            if name not in self._lab.said:
                self._lab.said.add(name)
                self._log.warning(
                    "file.ignored", file=printable(name), why="task files end in .yaml or .yml"
                )

    def _read(self, entry: Entry, key: tuple[int, int, int], now: float) -> None:
        task: TaskFile | None = None
        try:
            check_name(entry.name)
            task = parse_task(self._spool.read(State.PENDING, entry.name), f"pending/{entry.name}")
            check_template(task, f"pending/{entry.name}", roots=[self._home.templates])
        except FileNotFoundError:
            return
        except TaskFileError as error:
            # An editor or a slow copy may not be done: give a file that is no task yet a moment.
            if entry.is_file and now - entry.mtime_ns / 1e9 < self._home.settings.settle:
                self._scan_again = True
                return
            self._refuse(entry, error)
            return
        delay = self._lab.delayed_until.pop(entry.id, 0.0)
        self._lab.candidates[entry.name] = Candidate(key, task, entry, delay)

    # --- plan

    def _plan(self) -> Plan:
        now = time.monotonic()
        waiting, reasons = [], {}
        for name, candidate in self._lab.candidates.items():
            if candidate.task is None:
                continue
            if candidate.not_before > now:
                left = print_duration(candidate.not_before - now)
                reasons[name] = f"waits {left} before it is tried again"
                continue
            spec = candidate.task.spec
            demand = Demand(spec.num_cpus, spec.num_gpus)
            waiting.append(Waiting(name, spec.priority, candidate.entry.mtime_ns, demand))
        made = plan(
            Snapshot(
                waiting=waiting,
                running=[
                    Running(a.task_id, a.node_id, a.demand) for a in self._lab.active.values()
                ],
                nodes=[Node(n.id, n.name, n.num_cpus, n.num_gpus) for n in self._lab.nodes],
                hold=self._hold(),
            )
        )
        made.reasons.update(reasons)
        return made

    def _over(self) -> set[str]:
        """Give the tasks whose attempt has ended and whose end is not on record yet."""
        return {active.task_id for active, _ in self._lab.ended}

    def _running(self) -> list[Running]:
        # What has ended holds nothing, also while its end can't be recorded yet.
        over = self._over()
        active = self._lab.active.values()
        return [Running(a.task_id, a.node_id, a.demand) for a in active if a.task_id not in over]

    def _hold(self) -> str:
        free, wanted = self._archive.free_bytes(), self._home.settings.min_free_bytes
        if free < wanted:
            return f"waits for disk space: {self._home.results} has {free >> 20} MiB free, wanted {wanted >> 20} MiB"
        return ""

    # --- act

    def _start(self, made: Plan) -> None:
        self._lab.reasons = dict(made.reasons)
        for start in made.starts:
            candidate = self._lab.candidates.pop(start.key)
            try:
                self._claim(candidate, start.node_id)
            except FileNotFoundError:
                continue
            except LabdError as error:
                self._lab.candidates[start.key] = candidate
                self._lab.reasons[start.key] = f"could not be claimed: {error}"
                self._say_once(
                    f"{start.key}: {error}",
                    "task.not_claimed",
                    task=printable(start.key),
                    reason=str(error),
                )

    def _claim(self, candidate: Candidate, node_id: str) -> None:
        name, task = candidate.entry.name, candidate.task
        if task is None:
            return
        running_name, history = self._name_for(name, task.sha256)
        claimed_id = task_id(running_name)
        attempt = history.attempt + 1
        spec = task.spec
        self._archive.record(
            claimed_id,
            "claimed",
            attempt=attempt,
            sha256=task.sha256,
            file=name,
            node=node_id,
            uid=candidate.entry.uid,
        )
        self._spool.move(name, State.PENDING, State.RUNNING, running_name)
        now = time.monotonic()
        timeout_s = spec.timeout or self._home.settings.default_timeout
        demand = Demand(spec.num_cpus, spec.num_gpus)
        active = Active(claimed_id, running_name, attempt, demand, node_id, now + timeout_s, now)
        self._lab.active[claimed_id] = active
        self._log.info(
            "task.claimed", task_id=claimed_id, attempt=attempt, node=self._node_name(node_id)
        )
        self._engine.submit(
            Job(
                task_id=claimed_id,
                attempt=attempt,
                node_id=node_id,
                num_cpus=spec.num_cpus,
                num_gpus=spec.num_gpus,
                timeout_s=timeout_s,
                task_text=task.text,
                task_sha256=task.sha256,
                file_name=running_name,
                results_dir=str(self._archive.directory(claimed_id)),
                template_roots=[str(self._home.templates)],
                min_free_bytes=self._home.settings.min_free_bytes,
                sandbox=self._home.settings.sandbox.model_dump(mode="json"),
            )
        )

    def _name_for(self, name: str, sha256: str) -> tuple[str, History]:
        """Find the id a pending file gets: its own where it is new or asked for again, else the next numbered one."""
        for number in range(1, 100_000):
            wanted = numbered(name, number)
            wanted_id = task_id(wanted)
            elsewhere = [at for at in self._spool.where(wanted_id) if at != (State.PENDING, name)]
            taken = (
                any(state is not State.PENDING for state, _ in elsewhere)
                or wanted_id in self._lab.active
            )
            if not self._archive.knows(wanted_id):
                if not taken:
                    return wanted, History(())
                continue
            if taken:
                continue
            try:
                history = self._archive.history(wanted_id)
            except JournalError as error:
                self._say_once(
                    wanted_id, "events.unreadable", task_id=wanted_id, reason=str(error)
                )
                continue
            again = number == 1 and history.sha256 == sha256 and history.ended is not State.DONE
            if again and not (history.ended is State.FAILED and history.attempt == 0):
                return wanted, history
        raise StorageError(f"no free id for {printable(name)}")

    def _refuse(self, entry: Entry, error: TaskFileError) -> None:
        """Put what is no task into failed/, as it is, with the reason on record and in the log."""
        refused_name, _ = self._name_for(
            entry.name if not name_problem(entry.name) else _safe_name(entry.name), ""
        )
        refused_id = task_id(refused_name)
        facts = {"code": error.code, "message": str(error), "retryable": False}
        try:
            self._archive.record(refused_id, "refused", file=printable(entry.name), error=facts)
            self._archive.write_result(
                refused_id,
                {"task_id": refused_id, "attempt": 0, "outcome": "failed", "error": facts},
            )
            self._spool.move(entry.name, State.PENDING, State.FAILED, refused_name)
        except FileNotFoundError:
            return
        except StorageError as trouble:
            self._lab.candidates[entry.name] = Candidate((0, 0, 0), None, entry)
            self._lab.reasons[entry.name] = str(trouble)
            self._say_once(
                f"{entry.name}: {trouble}",
                "task.not_refused",
                task=printable(entry.name),
                reason=str(trouble),
            )
            return
        self._lab.failed += 1
        self._log.error("task.refused", task_id=printable(refused_id), reason=str(error))

    def _settle_ended(self) -> None:
        """Record how attempts ended and move their files; what the disk won't take is tried again later."""
        left: list[tuple[Active, Ended]] = []
        for active, ended in self._lab.ended:
            try:
                self._settle(active, ended)
            except (StorageError, JournalError) as error:
                left.append((active, ended))
                self._lab.reasons[active.name] = f"its end could not be recorded: {error}"
                self._say_once(
                    f"{active.task_id}: {error}",
                    "task.not_settled",
                    task_id=active.task_id,
                    reason=str(error),
                )
            else:
                self._lab.active.pop(active.task_id, None)
        self._lab.ended = left

    def _settle(self, active: Active, ended: Ended) -> None:
        if active.leaving == "moved" or not self._spool.holds(State.RUNNING, active.name):
            self._settle_moved(active)
            return
        facts: dict[str, Any] = {
            "attempt": active.attempt,
            "duration_s": round(time.monotonic() - active.since, 3),
        }
        if active.leaving == "timed_out":
            limit = print_duration(active.deadline - active.since)
            self._finish(
                active,
                State.FAILED,
                facts
                | {"error": _error("timed_out", f"took longer than its time limit of {limit}")},
            )
        elif ended.how == "returned" and ended.outcome is not None:
            state = State.DONE if ended.outcome["outcome"] == "done" else State.FAILED
            self._finish(active, state, facts | _kept(ended.outcome))
        else:
            self._lost(active, ended.reason)

    def _finish(self, active: Active, state: State, facts: Mapping[str, Any]) -> None:
        error = facts.get("error")
        if error and (self._archive.result(active.task_id) or {}).get("attempt") != active.attempt:
            result = {
                "task_id": active.task_id,
                "attempt": active.attempt,
                "outcome": state.value,
                "error": error,
            }
            self._archive.write_result(active.task_id, result)
        self._archive.record(active.task_id, state.value, **facts)
        self._move_decided(active.name, state)
        self._lab.failed += state is State.FAILED
        say = self._log.info if state is State.DONE else self._log.error
        message = error["message"] if error else None
        say(
            "task.finished",
            task_id=active.task_id,
            attempt=active.attempt,
            state=state.value,
            reason=message,
            duration_s=facts["duration_s"],
        )

    def _move_decided(self, name: str, state: State) -> None:
        try:
            self._spool.move(name, State.RUNNING, state)
        except FileNotFoundError:
            self._log.warning("task.moved_meanwhile", task=printable(name), decided=state.value)

    def _settle_moved(self, active: Active) -> None:
        """Record what the task is by where its file is now: it left running/ under the attempt."""
        states = [
            state for state, name in self._spool.where(active.task_id) if name == active.name
        ]
        state = states[0] if states else None
        event = "cancelled" if state is not State.PENDING else "requeued"
        facts = {"attempt": active.attempt, "moved_to": state.value if state else "nowhere"}
        self._archive.record(active.task_id, event, **facts)
        self._log.info("task.finished", task_id=active.task_id, state=event, **facts)

    def _lost(self, active: Active, reason: str) -> None:
        """Queue the task again, within its limit: a worker, node or Ray died under the attempt."""
        self._archive.record(active.task_id, "lost", attempt=active.attempt, reason=reason)
        losses = self._archive.history(active.task_id).count("lost")
        retries = self._max_retries(active)
        if losses > retries:
            message = f"its worker died {losses} times, and max_retries is {retries}; the last time: {reason}"
            duration_s = round(time.monotonic() - active.since, 3)
            error = _error("worker_lost", message)
            self._finish(
                active,
                State.FAILED,
                {"attempt": active.attempt, "duration_s": duration_s, "error": error},
            )
            return
        delay_s = _BACKOFF_S[min(losses, len(_BACKOFF_S)) - 1]
        self._log.warning(
            "task.lost",
            task_id=active.task_id,
            attempt=active.attempt,
            reason=reason,
            retry_in_s=delay_s,
        )
        self._lab.delayed_until[active.task_id] = time.monotonic() + delay_s
        try:
            self._spool.move(active.name, State.RUNNING, State.PENDING)
        except FileNotFoundError:
            self._log.info("task.moved_meanwhile", task=printable(active.name))

    def _max_retries(self, active: Active) -> int:
        try:
            return parse_task(
                self._spool.read(State.RUNNING, active.name), active.name
            ).spec.max_retries
        except (FileNotFoundError, TaskFileError):
            return 0

    # --- recover, stop

    def _recover(self, event: str = "interrupted") -> None:
        """Make running/ true again after a stop of any kind: decided tasks are moved on, the others queued again."""
        for entry in list(self._spool.entries(State.RUNNING)):
            try:
                self._recover_one(entry, event)
            except FileNotFoundError:
                continue
            except LabdError as error:
                self._log.error(
                    "task.not_recovered", task=printable(entry.name), reason=str(error)
                )
                self._lab.reasons[entry.name] = str(error)

    def _recover_one(self, entry: Entry, event: str) -> None:
        history = self._archive.history(entry.id)
        if history.ended is not None:
            self._spool.move(entry.name, State.RUNNING, history.ended)
            self._log.info("task.rolled_forward", task_id=entry.id, state=history.ended.value)
            return
        result = self._archive.result(entry.id)
        if history.attempt and result is not None and result.get("attempt") == history.attempt:
            state = State.DONE if result.get("outcome") == "done" else State.FAILED
            self._archive.record(entry.id, state.value, attempt=history.attempt, **_kept(result))
            self._spool.move(entry.name, State.RUNNING, state)
            self._log.info("task.rolled_forward", task_id=entry.id, state=state.value)
            return
        steps = self._journal_lines(entry.id)
        self._archive.record(entry.id, event, attempt=history.attempt, journal_lines=steps)
        if _fruitless(self._archive.history(entry.id)):
            error = _error(
                "interrupted",
                f"labd ended {_FRUITLESS_STARTS} times under it without its getting any further",
            )
            self._archive.record(entry.id, "failed", attempt=history.attempt, error=error)
            self._archive.write_result(
                entry.id,
                {
                    "task_id": entry.id,
                    "attempt": history.attempt,
                    "outcome": "failed",
                    "error": error,
                },
            )
            self._spool.move(entry.name, State.RUNNING, State.FAILED)
            self._log.error(
                "task.finished", task_id=entry.id, state="failed", reason=error["message"]
            )
            return
        self._spool.move(entry.name, State.RUNNING, State.PENDING)
        self._log.info(
            "task.requeued", task_id=entry.id, after_attempt=history.attempt, journal_lines=steps
        )

    def _journal_lines(self, task_id_: str) -> int:
        try:
            with (self._archive.directory(task_id_) / JOURNAL).open("rb") as file:
                return sum(1 for _ in file)
        except OSError:
            return 0

    def _stop(self) -> None:
        self._log.info("daemon.stopping", running=len(self._lab.active))
        self._engine.stop()
        for event in self._engine.poll():
            if isinstance(event, Ended) and event.how == "returned":
                self._take(event)
        self._settle_ended()
        self._recover("stopped")
        self._write_status(stopped=True)
        self._log.info("daemon.stopped")

    def _drained(self) -> bool:
        if self._lab.active or self._lab.ended or self._scan_again:
            return False
        if self._lab.candidates and not self._lab.nodes:
            return False
        stuck = all(name in self._lab.reasons for name in self._lab.candidates)
        delayed = any(c.not_before > time.monotonic() for c in self._lab.candidates.values())
        return stuck and not delayed

    # --- small things

    def _install_signals(self) -> None:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stopping = True
            self._wake.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # see files.open_for_writing_elsewhere

    def _pause_s(self) -> float:
        now = time.monotonic()
        times = [now + self._home.settings.rescan]
        if self._scan_again:
            times.append(now + min(0.2, self._home.settings.rescan))
        times += [a.deadline for a in self._lab.active.values() if not a.leaving]
        times += [c.not_before for c in self._lab.candidates.values() if c.not_before > now]
        return max(0.01, min(times) - now)

    def _node_name(self, node_id: str) -> str:
        return next((node.name for node in self._lab.nodes if node.id == node_id), node_id)

    def _say_once(self, key: str, event: str, **facts: object) -> None:
        if key not in self._lab.said:
            if len(self._lab.said) > 10_000:
                self._lab.said.clear()
            self._lab.said.add(key)
            self._log.error(event, **facts)

    def _write_status(self, *, stopped: bool = False) -> None:
        """Tell readers what only the daemon knows; at each change, and now and then."""
        status: dict[str, Any] = {
            "pid": os.getpid(),
            "stopped": stopped,
            "dashboard_url": self._dashboard_url,
            "nodes": [
                {"id": n.id, "name": n.name, "num_cpus": n.num_cpus, "num_gpus": n.num_gpus}
                for n in self._lab.nodes
            ],
            "running": {
                a.task_id: {"attempt": a.attempt, "node": self._node_name(a.node_id)}
                for a in self._lab.active.values()
            },
            "reasons": {
                printable(name): reason for name, reason in list(self._lab.reasons.items())[:1000]
            },
        }
        now = time.monotonic()
        if status == self._last_status and now - self._status_at < _STATUS_EVERY_S:
            return
        self._last_status, self._status_at = status, now
        try:
            write_json(self._home.run_dir / STATUS, status | {"at": to_iso(utc_now())})
        except OSError as error:
            self._say_once(f"status: {error}", "status.not_written", reason=str(error))


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "retryable": False}


def _kept(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Give the part of a worker's outcome that goes into the event of the task's end."""
    keys = ("error", "summary", "wall_s", "gpu_s", "tokens")
    return {key: outcome[key] for key in keys if outcome.get(key) is not None}


def _fruitless(history: History) -> bool:
    lines = [int(e["journal_lines"]) for e in history.since_asked() if e["event"] == "interrupted"]
    last = lines[-_FRUITLESS_STARTS:]
    return len(last) == _FRUITLESS_STARTS and last[0] == last[-1]


def _safe_name(name: str) -> str:
    shown = printable(name, 100).replace("/", "_").replace("\\", "_")
    return shown if is_task_name(shown) else f"{shown.lstrip('.')}.yaml"


def status_path(home: Home) -> Path:
    """Give the file in which the daemon tells readers what only it knows."""
    return home.run_dir / STATUS
