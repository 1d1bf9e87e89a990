"""What people may see and ask of a lab: one API over spool/ and results/, for the command line and the page.

Files only, no socket to the daemon: everything here works with the daemon down. Asking is a rename.
"""

import json
import os
import pwd
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from labd.archive import JOURNAL, LOG, OUTPUT, PRUNED, Archive, History
from labd.campaigns import (
    LOCK,
    MEMORY,
    Campaign,
    Draft,
    Intensity,
    Library,
    Remembered,
    Step,
    drafts,
    read_campaign,
    submit,
    upcoming,
)
from labd.clock import from_iso, to_iso, utc_now
from labd.drop import check_drop
from labd.errors import (
    ConfigError,
    JournalError,
    MoveRefused,
    NotFound,
    StorageError,
    TaskFileError,
)
from labd.files import json_objects, read_json_object, read_tail, write_json
from labd.packing import archived
from labd.priority import with_priority
from labd.settings import Home
from labd.spool import Entry, Spool
from labd.task import (
    SUFFIXES,
    State,
    TaskFile,
    check_name,
    is_task_name,
    numbered,
    parse_task,
    task_id,
)
from labd.text import printable
from labd.yamlfile import MAX_BYTES

MAX_CHECKED = 500
"""Of a campaign's tasks, how many are looked at for what their form does not say."""
_OUTPUTS = (
    *("paper.pdf", "paper.html", "paper.md", "paper.tex"),
    *("output.jsonl", "errors.jsonl", "log.txt", "files", "result.json"),
)
_STALE_S = 30.0
_TAIL_BYTES = 64 * 1024
_VERDICTS = ("improved: ", "no improvement: ", "worse: ", "inconclusive: ")
_LONG = 20_000
_MAX_READ = 5_000
_MAX_JOURNAL_BYTES = 16 * 2**20
_MAX_LOG_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Status:
    """What the daemon last said. `up` means that one holds the spool now."""

    up: bool
    age_s: float | None
    facts: dict[str, Any]
    pid: int | None = None
    """The process that holds the spool, where one does."""

    @property
    def held(self) -> str:
        """Why nothing new is started at all, as far as a daemon runs that says so."""
        return str(self.facts.get("held") or "") if self.up else ""

    @property
    def stale(self) -> bool:
        """Whether the daemon has been silent for too long."""
        return self.age_s is None or self.age_s > _STALE_S


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is: stage, and so many of so many."""

    stage: str
    done: int
    total: int
    detail: str


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task, as lists show it. `why` says why it waits or why it failed; times are seconds since the epoch.

    `moved_at`: when it came into its state. `took_s`: how long its last attempt took, where that is on record.
    """

    id: str
    state: State
    file: str
    dropped_at: float
    why: str = ""
    kind: str = ""
    template: str = ""
    priority: int = 0
    attempt: int = 0
    progress: Progress | None = None
    labels: tuple[str, ...] = ()
    owner: str = ""
    models: tuple[str, ...] = ()
    title: str = ""
    moved_at: float = 0.0
    took_s: float | None = None
    tokens: int = 0
    nodes: tuple[str, ...] = ()
    """The machines that a running task has, by name; its own first."""
    alike: tuple[Any, ...] = ()
    """What the daemon tells reasons by, for tasks that wait for room."""

    def as_json(self) -> dict[str, Any]:
        """Give the view as JSON data with printable texts."""
        progress = self.progress and {
            "stage": self.progress.stage,
            "done": self.progress.done,
            "total": self.progress.total,
        }
        return {
            "id": self.id, "state": self.state.value, "file": self.file,
            "dropped_at": round(self.dropped_at, 3), "why": self.why, "kind": self.kind, "template": self.template,
            "priority": self.priority, "attempt": self.attempt, "progress": progress,
            "labels": list(self.labels), "owner": self.owner, "models": list(self.models),
            "title": self.title, "moved_at": round(self.moved_at, 3), "took_s": self.took_s, "tokens": self.tokens,
            "nodes": list(self.nodes),
        }  # fmt: skip


class Lab:
    """One lab, seen from outside."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._spool = Spool(home.spool)
        self._archive = Archive(home.results)

    # --- see

    def status(self) -> Status:
        """Give what the daemon last said, and whether one runs: by its lock, or, where that is another user's, by what it said."""
        try:
            facts = json.loads((self.home.run_dir / "status.json").read_bytes())
            age_s = (utc_now() - from_iso(facts["at"])).total_seconds()
        except (OSError, ValueError, KeyError):
            facts, age_s = {}, None
        try:
            pid = self._spool.holder()
        except PermissionError:
            # The lock is another user's: what the daemon last said has to do.
            pid = None
            if age_s is not None and age_s <= _STALE_S and not facts.get("stopped"):
                pid = int(facts.get("pid", 0))
        return Status(pid is not None, age_s, facts, pid)

    def counts(self) -> dict[State, int]:
        """Count the tasks in each state."""
        return {state: self._spool.count(state) for state in State}

    def tasks(
        self,
        states: tuple[State, ...] = tuple(State),
        limit: int = 50,
        label: str | None = None,
        counts: Mapping[State, int] | None = None,
    ) -> list[TaskView]:
        """Give at most `limit` tasks of each state, running first, then those next to start, then the last to end.

        Of a directory of more than 20,000 files only those are looked at that the daemon would start
        next, or that labd moved there last. With a `label`, at most 5,000 files of each state are read.
        `counts`: what `counts` gave, where that was asked for already.
        """
        facts = self.status().facts
        lengths = counts or self.counts()
        order = [
            s
            for s in (State.RUNNING, State.PENDING, State.FAILED, State.CANCELLED, State.DONE)
            if s in states
        ]
        views: list[TaskView] = []
        for state in order:
            found: list[TaskView] = []
            for entry in islice(
                self._in_order(state, facts, lengths[state]), _MAX_READ if label else None
            ):
                view = self.view(state, entry, facts)
                if label is None or label in view.labels:
                    found.append(view)
                if len(found) >= limit:
                    break
            views += found
        return views

    def _in_order(self, state: State, facts: dict[str, Any], length: int) -> Iterator[Entry]:
        if length > _LONG and state.decided:
            yield from self._spool.recent(state, _LONG)
            return
        first = [str(name) for name in facts.get("next", [])] if state is State.PENDING else []
        if length <= _LONG:
            first += sorted(set(self._spool.names(state)) - set(first))
        entries = (self._spool.entry(state, name) for name in first)
        found = (entry for entry in entries if entry is not None)
        if state is State.PENDING:
            yield from found
        else:
            yield from sorted(found, key=lambda e: e.moved_ns, reverse=True)

    def find(self, wanted: str) -> TaskView:
        """Give the task with this id, or the only one whose id begins so.

        Raises:
            NotFound: there is none, or more than one; the text names what is near.

        """
        facts = self.status().facts
        wanted_id = task_id(wanted) if is_task_name(wanted) else wanted
        for state, name in self._spool.where(wanted_id):
            entry = self._spool.entry(state, name)
            if entry is not None:
                return self.view(state, entry, facts)
        found = (
            [(s, n) for s in State for n in self._spool.names(s) if n.startswith(wanted_id)]
            if wanted_id
            else []
        )
        if len(found) == 1:
            state, name = found[0]
            entry = self._spool.entry(state, name)
            if entry is not None:
                return self.view(state, entry, facts)
        names = ", ".join(printable(task_id(n), 60) for _, n in found[:5])
        fix = f"Say which: {names}" if found else "`labd list` shows the tasks"
        raise NotFound(f"{len(found) or 'no'} tasks begin with {printable(wanted_id)!r}", fix=fix)

    def history(self, task_id_: str) -> History:
        """Give the task's events."""
        return self._archive.history(task_id_)

    def result(self, task_id_: str) -> dict[str, Any] | None:
        """Give the task's `result.json`, or ``None``."""
        return self._archive.result(task_id_)

    def stored(self, task_id_: str) -> dict[str, Any]:
        """Give what retention did to a task's results: ``compressed``, names of directories, and ``pruned``, or ``None``."""
        directory = self._archive.directory(task_id_)
        return {
            "compressed": archived(directory),
            "pruned": read_json_object(directory / PRUNED),
        }

    def results_dir(self, task_id_: str) -> Path:
        """Give the task's directory under results/."""
        return self._archive.directory(task_id_)

    def outputs(self, task_id_: str) -> list[Path]:
        """Give what people came for, as far as it is there."""
        found = map(self._archive.directory(task_id_).joinpath, _OUTPUTS)
        return [p for p in found if p.is_dir() or (p.is_file() and p.stat().st_size)]

    def log_lines(self, task_id_: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Give the task's log lines from a byte offset on, and the offset after them; half a line is left for later."""
        path = self._archive.directory(task_id_) / LOG
        try:
            with path.open("rb") as file:
                file.seek(offset)
                raw = file.read(4 * 2**20)
        except FileNotFoundError:
            return [], offset
        whole = raw[: raw.rfind(b"\n") + 1]
        return list(json_objects(whole)), offset + len(whole)

    def progress(self, task_id_: str) -> Progress | None:
        """Give how far the task's work is, by the end of its log."""
        try:
            raw = read_tail(self._archive.directory(task_id_) / LOG, _TAIL_BYTES)
        except OSError:
            return None
        lines = [line for line in json_objects(raw) if line.get("event") == "stage.progress"]
        return progress_of(lines[-1]) if lines else None

    def steps(self, task_id_: str) -> list[dict[str, Any]]:
        """Give the steps of a task's journal, of a long one the last 16 MiB."""
        try:
            raw = read_tail(self._archive.directory(task_id_) / JOURNAL, _MAX_JOURNAL_BYTES)
        except OSError:
            return []
        return list(json_objects(raw))

    @property
    def paused(self) -> bool:
        """Whether somebody had dispatching paused."""
        return self._spool.paused

    def daemon_log(self) -> list[dict[str, Any]]:
        """Give the daemon's last log lines, oldest first."""
        lines: list[dict[str, Any]] = []
        path = self.home.daemon_log
        for one in (path.with_suffix(".old"), path):
            with suppress(OSError):
                lines += json_objects(read_tail(one, _MAX_LOG_BYTES))
        return lines

    def output(self, task_id_: str, offset: int = 0) -> tuple[bytes, int] | None:
        """Give a command's output from a byte offset on, and the offset after it; ``None`` if it has none.

        An offset beyond the end means that another attempt has begun; its output comes from the start.
        """
        try:
            with (self._archive.directory(task_id_) / OUTPUT).open("rb") as file:
                if offset > os.fstat(file.fileno()).st_size:
                    offset = 0
                file.seek(offset)
                raw = file.read(4 * 2**20)
        except FileNotFoundError:
            return None
        return raw, offset + len(raw)

    # --- ask

    def drain(self, node: str, *, drained: bool) -> bool:
        """Have no new tasks go to a node, or let them again; what runs there goes on. Say whether that is a change.

        Raises:
            NotFound: the daemon knows no such node. LabdError: it is not for you to ask.

        """
        path = self.home.drained
        try:
            names = set(json.loads(path.read_bytes())["nodes"])
        except FileNotFoundError:
            names = set()
        known = {told["name"] for told in self.status().facts.get("nodes", [])}
        if node not in known | names:
            near = ", ".join(sorted(known)) or "none now"
            raise NotFound(
                f"there is no node {printable(node, 100)!r}", fix=f"The daemon has: {near}"
            )
        if (node in names) is drained:
            return False
        wanted = names | {node} if drained else names - {node}
        try:
            write_json(path, {"nodes": sorted(wanted)})
        except PermissionError as error:
            raise MoveRefused(
                "nodes are drained by who runs the lab",
                where=str(path),
                fix="As root, or as the user that labd runs as: sudo -u labd labd drain NODE",
            ) from error
        return True

    def check(self, path: Path) -> TaskFile:
        """Read a task file that is not in the spool yet.

        Raises:
            TaskFileError: it is not a valid task, or can't be read.

        """
        try:
            if not path.is_file():
                what = "it is no plain file" if path.exists() else "there is no such file"
                raise TaskFileError(what, where=printable(str(path)))
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise TaskFileError(
                f"it can't be read: {error.strerror}", where=printable(str(path))
            ) from error
        task = parse_task(raw, str(path))
        check_drop(task, str(path), self.home)
        return task

    def check_campaign(self, path: Path) -> Campaign:
        """Read a campaign file, and look whether what its tasks name is there.

        Raises:
            ConfigError: it is not a valid campaign. TaskFileError: a task of it could not run here.

        """
        campaign = read_campaign(path)
        named = [(step.name, list(step.combinations)) for step in campaign.steps]
        lines: dict[str, None] = {}
        for step, combinations in [*named, ("", list(campaign.pool))]:
            whole = Step(
                step, None, tuple(combinations[:MAX_CHECKED]), Intensity.LIGHT, False, False
            )
            for one in drafts(campaign, whole, utc_now()):
                where = f"{path}: {f'step {step}, ' if step else ''}the task file {one.name}"
                try:
                    check_drop(parse_task(one.text.encode(), where), where, self.home)
                except TaskFileError as error:
                    lines.setdefault(str(error))
        if lines:
            raise TaskFileError("\n".join([*lines][:20]))
        return campaign

    def campaigns(self, count: int = 3) -> list[dict[str, Any]]:
        """Give each campaign with its next `count` firings of each step, what is open of it, and what is wrong with it."""
        library = Library(self.home.campaigns)
        library.refresh()
        try:
            memories = Remembered(self.home.run_dir / MEMORY).read()
        except ConfigError:
            memories = {}
        now = utc_now()
        found = []
        for name, one in sorted(library.campaigns.items()):
            told = upcoming(one, now, count)
            memory = memories.get(name)
            found.append({
                "name": name,
                "title": one.spec.title or "",
                "enabled": one.spec.enabled,
                "adaptive": one.spec.adaptive is not None,
                "problem": "",
                "next": [
                    {"at": at.astimezone(one.zone).isoformat(), "step": s.name, "tasks": len(s.combinations)}
                    for at, s in told
                ],
                "open": {
                    step: {"instant": to_iso(o.instant), "done": o.done} for step, o in memory.opened.items()
                } if memory else {},
            })  # fmt: skip
        found += [
            {"name": Path(file).stem, "title": "", "enabled": False, "adaptive": False, "problem": problem, "next": [], "open": {}}
            for file, problem in sorted(library.problems.items())
        ]  # fmt: skip
        return found

    def campaign_drafts(self, name: str, step: str | None = None) -> list[Draft]:
        """Give the task files that a step of a campaign would make now; of its only one, where `step` is ``None``.

        Raises:
            NotFound: there is no such campaign or step, or it has no tasks, or more than one step has.
            ConfigError: the campaign is not valid.

        """
        paths = [self.home.campaigns / f"{name}{suffix}" for suffix in SUFFIXES]
        path = next((path for path in paths if "/" not in name and path.is_file()), None)
        if path is None:
            raise NotFound(
                f"there is no campaign {printable(name)!r}",
                where=str(self.home.campaigns),
                fix="`labd campaigns` shows them",
            )
        campaign = read_campaign(path)
        steps = campaign.startable
        wanted = [one for one in steps if step in {None, one.name}]
        if len(wanted) != 1:
            names = ", ".join(one.name or "(the only one)" for one in steps)
            what = f"no step {printable(step)!r} with tasks" if step else "no step with tasks"
            raise NotFound(
                f"it has {len(wanted)} steps with tasks" if wanted else f"it has {what}",
                where=printable(str(path)),
                fix=f"Say which with --step: {names}" if names else "",
            )
        return list(drafts(campaign, wanted[0], utc_now()))

    def run_campaign(self, name: str, step: str | None = None) -> list[str]:
        """Submit a step's tasks now, whatever its limits; give the ids.

        Raises:
            as `campaign_drafts`; TimedOut: another does so at the same time, for long.

        """
        found = self.campaign_drafts(name, step)
        self._spool.prepare()
        return submit(
            found,
            lock=self.home.run_dir / LOCK,
            known=lambda one: self._archive.knows(one) or bool(self._spool.where(one)),
            put=self._spool.put,
        )

    def submit(self, path: Path) -> str:
        """Copy a valid task file into pending/ under a free name; give the id that it has there.

        Raises:
            TaskFileError: it is not a valid task; nothing was submitted.

        """
        return self._put(self.check(path), path.name)

    def submit_text(self, text: str, name: str) -> str:
        """Put a task file of this text into pending/ under this name or the next free one; give its id.

        Raises:
            TaskFileError: it is not a valid task, or the name is none; nothing was submitted.

        """
        return self._put(self.check_text(text, name), name)

    def check_text(self, text: str, name: str) -> TaskFile:
        """Read the text of a task file that is to have this name.

        Raises:
            TaskFileError: it is not a valid task; each problem on a line that begins with ``name:line:column:``.

        """
        task = parse_task(text.encode(errors="surrogateescape"), name)
        check_drop(task, name, self.home)
        return task

    def _put(self, task: TaskFile, name: str) -> str:
        name = name if is_task_name(name) else f"{name}.yaml"
        if "/" in name or name.startswith("."):
            raise TaskFileError(
                "a task's name has no / and does not begin with a dot", where=printable(name)
            )
        check_name(name)
        self._spool.prepare()
        for number in range(1, 100_000):
            wanted = numbered(name, number)
            if self._archive.knows(task_id(wanted)) or self._spool.where(task_id(wanted)):
                continue
            try:
                self._spool.put(task.raw, wanted)
            except FileExistsError:
                continue
            return task_id(wanted)
        raise MoveRefused(f"there are too many tasks named {printable(name)}")

    def cancel(self, wanted: str) -> TaskView:
        """Cancel a waiting or running task: its file goes to cancelled/, and the daemon ends its work.

        Raises:
            NotFound: no such task. MoveRefused: it has ended already.

        """
        return self._ask(wanted, (State.PENDING, State.RUNNING), State.CANCELLED)

    def retry(self, wanted: str) -> TaskView:
        """Ask for an ended task again: its file goes back to pending/.

        Raises:
            NotFound: no such task. MoveRefused: it has not ended.

        """
        return self._ask(wanted, (State.FAILED, State.CANCELLED, State.DONE), State.PENDING)

    def set_priority(self, wanted: str, priority: int) -> TaskView:
        """Give a task that waits another priority: a new file, under the same name and of the same age.

        Raises:
            NotFound: no such task.
            MoveRefused: it waits no more, or it has begun before and goes on from there, for which its file must stay.
            TaskFileError: it is no valid task, or would be none.

        """
        view = self.find(wanted)
        refused = MoveRefused(
            f"{printable(view.id)} is {view.state.value}: only a task that waits has a priority to change"
        )
        entry = self._spool.entry(State.PENDING, view.file)
        if view.state is not State.PENDING or entry is None:
            raise refused
        if self._archive.history(view.id).attempt:
            raise MoveRefused(
                f"{printable(view.id)} has begun before and goes on from there; with a new file it would begin anew",
                fix="Leave its priority, or submit it as a new task",
            )
        try:
            text = parse_task(self._spool.read(State.PENDING, view.file), view.file).text
        except FileNotFoundError:
            raise refused from None
        new = parse_task(with_priority(text, priority).encode(), view.file)
        if not self._spool.put_instead(new.raw, entry):
            raise MoveRefused(f"{printable(view.id)} was moved or changed just now; look again")
        return replace(view, priority=priority)

    def pause(self) -> None:
        """Have nothing new started until `resume`; what runs goes on.

        Raises:
            StorageError: the disk would not.

        """
        self._spool.prepare()
        self._switch(self._spool.pause)

    def resume(self) -> None:
        """Let work start again.

        Raises:
            StorageError: the disk would not.

        """
        self._switch(self._spool.resume)

    def _switch(self, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            raise StorageError(
                f"can't pause or resume: {error.strerror}", where=str(self._spool.root)
            ) from error

    def _ask(self, wanted: str, from_: tuple[State, ...], to: State) -> TaskView:
        for _ in range(3):
            view = self.find(wanted)
            if view.state not in from_:
                allowed = " or ".join(state.value for state in from_)
                raise MoveRefused(f"{printable(view.id)} is {view.state.value}; wanted {allowed}")
            try:
                self._spool.move(view.file, view.state, to)
            except FileNotFoundError:
                continue  # somebody moved it in this very moment; look again
            return view
        raise MoveRefused(f"{printable(wanted)} is being moved by others; try again")

    def view(self, state: State, entry: Entry, facts: Mapping[str, Any]) -> TaskView:
        """Give what there is to see of one entry of the spool. `facts`: of `status`."""
        said: dict[str, Any] = {"kind": "?"}
        with suppress(TaskFileError, OSError):
            spec = parse_task(self._spool.read(state, entry.name), entry.name).spec
            said = {
                "kind": spec.kind,
                "template": spec.research_template or "",
                "priority": spec.priority,
                "labels": spec.labels,
                "models": spec.models,
                "title": spec.title or "",
                "alike": (
                    *(spec.priority, str(entry.uid), spec.num_cpus, spec.num_gpus),
                    spec.kind == "prompts",
                ),
            }
        history, why = History(()), ""
        if state is not State.PENDING:
            try:
                history = self._archive.history(entry.id)
            except JournalError:
                why = "its events can't be read"
        last = history.events[-1] if history.events else {}
        if state.decided and last:
            why = _outcome(state, last)
            said |= {"took_s": last.get("duration_s"), "tokens": last.get("tokens") or 0}
        view = TaskView(
            entry.id,
            state,
            entry.name,
            entry.mtime_ns / 1e9,
            why=why,
            attempt=history.attempt,
            progress=self.progress(entry.id) if state is State.RUNNING else None,
            owner=_user(entry.uid),
            moved_at=entry.moved_ns / 1e9,
            nodes=_nodes_of(entry.id, facts) if state is State.RUNNING else (),
            **said,
        )
        return view if state.decided else replace(view, why=why_not(view, facts) or why)

    def entries(self, state: State, most: int) -> list[Entry]:
        """Give the entries of a state, of a directory longer than `most` only what labd moved there last."""
        if state.decided and self._spool.count(state) > most:
            return list(self._spool.recent(state, most))
        return list(islice(self._spool.entries(state), most))

    def wait_for(self, task_id_: str, poll_s: float = 0.1) -> Iterator[TaskView]:
        """Give the task's view again and again until it has ended; the last one is of its end."""
        while True:
            view = self.find(task_id_)
            yield view
            if view.state.decided:
                return
            time.sleep(poll_s)


def why_not(view: TaskView, status: Mapping[str, Any]) -> str:
    """Give why a task does not run, as the daemon last said it of this one or of tasks like it."""
    if own := status.get("reasons", {}).get(printable(view.file)):
        return str(own)
    if view.state is not State.PENDING:
        return ""
    keys = ("priority", "owner", "num_cpus", "num_gpus", "at_home")
    for told in status.get("classes", []):
        if tuple(told.get(key) for key in keys) == view.alike:
            return str(told.get("reason", ""))
    return ""


def _nodes_of(task_id_: str, status: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the names of the machines that a running task has, as the daemon last said it."""
    told = status.get("running", {}).get(task_id_)
    return (str(told["node"]), *map(str, told.get("also", ()))) if told else ()


def _outcome(state: State, event: Mapping[str, Any]) -> str:
    if state is State.DONE:
        return headline([str(line) for line in event.get("summary") or []])
    return str((event.get("error") or {}).get("message", ""))


def headline(summary: Sequence[str]) -> str:
    """Give the line of a summary that tells most: of research the verdict, with what was compared; else the last one."""
    for before, line in pairwise(["", *summary]):
        verdict = next((word for word in _VERDICTS if line.startswith(word)), "")
        if verdict:
            return f"{verdict}{before}" if "→" in before else line
    return summary[-1] if summary else ""


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def progress_of(line: dict[str, Any]) -> Progress:
    """Read a ``stage.progress`` line of a task's log."""
    return Progress(
        str(line.get("stage", "")),
        int(line.get("done", 0)),
        int(line.get("total", 0)),
        printable(str(line.get("detail", "")), 120),
    )
