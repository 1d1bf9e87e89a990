"""Carries out what the rules say, one task at a time, each under the locks that its own work would hold."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from labd.archive import JOURNAL, Archive
from labd.clock import from_iso
from labd.errors import Busy, JournalError, LabdError, StorageError, TaskFileError
from labd.files import locked
from labd.packing import WORKING, archive_of, leftovers, pack, unpack_all
from labd.retention.clock import Reading, trust
from labd.retention.memory import Memory
from labd.retention.pruning import LOCK, RECORD, prune
from labd.retention.rules import Action, Finished, Plan, Rule, decide, in_turn
from labd.settings import Home, RetentionRule
from labd.spool import Entry, Spool
from labd.task import State, TaskFile, parse_task
from labd.text import print_size, printable
from labd.trees import as_owner_of, measure, remove_tree, size_of

_MEMORY = "retention.json"
_UNDECIDED = (State.PENDING, State.RUNNING)
_LOOK_AGAIN_S = 10.0
_AT_ONCE = 1000
_GIVE_WAY_WITHIN_S = 0.2
_MOST_HOLES, _MANY_BYTES = 4, 2**30
"""Files that give more bytes than this many times what they take on the disk, and so many more, are not compressed."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of an action. `problem`: why it was not done, or not whole."""

    action: Action
    freed_bytes: int = 0
    problem: str = ""


class Keeper:
    """One lab's results, as retention sees them."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._spool, self._archive = Spool(home.spool), Archive(home.results)
        self._named = _Named(self._spool, home.results)
        self._memory = Memory(home.run_dir / _MEMORY)

    @property
    def rules(self) -> dict[State, Rule]:
        """What the settings say, by state; empty where nothing is ever to go."""
        said = self._home.settings.retention
        found = {State.DONE: said.done, State.FAILED: said.failed, State.CANCELLED: said.cancelled}
        return {state: _rule(one) for state, one in found.items() if one is not None}

    def plan(self, rules: Mapping[State, Rule], now_s: float) -> Plan:
        """Give what these rules do now; changes nothing. What can't be looked at stays, and the rest goes on.

        Raises:
            OSError: the spool can't be looked at.

        """
        named = self._named.look()
        found: list[Finished] = []
        unseen: dict[str, str] = {}
        for state, rule in rules.items():
            for entry in self._spool.entries(state):
                try:
                    found += self._finished(state, entry, rule, now_s, named)
                except (LabdError, OSError) as error:
                    unseen[entry.id] = f"can't be looked at: {printable(str(error), 200)}"
        plan = decide(found, rules, now_s)
        return replace(plan, kept={**plan.kept, **unseen})

    def carry_out(self, actions: Sequence[Action]) -> Iterator[Done]:
        """Do one after the other, and give what became of each; what can't be done now is left for the next time."""
        for action in actions:
            before, _ = measure(self._archive.directory(action.id))
            try:
                with self._held(action):
                    self._do(action)
            except (LabdError, OSError) as error:
                yield Done(action, problem=printable(str(error), 300))
                continue
            after, _ = measure(self._archive.directory(action.id))
            yield Done(action, freed_bytes=max(0, before.size_bytes - after.size_bytes))

    def unattended(
        self, actions: Sequence[Action], read: Callable[[], Reading], *, at_once: int = _AT_ONCE
    ) -> tuple[list[Done], str]:
        """Do it where nobody watches; give what became of them, and why the rest was not touched, or an empty text.

        `read` gives a look at the clocks, which is taken anew after each `at_once` tasks.

        Raises:
            OSError: as `may_remove`.

        """
        done: list[Done] = []
        for number, action in enumerate(in_turn(actions, self._memory.cut_off)):
            if number % at_once == 0 and (why := self.may_remove(read())):
                return done, why
            with self._memory.packing(action.id) if action.what == "compress" else nullcontext():
                done += self.carry_out([action])
        return done, "" if done else self.may_remove(read())

    def unpack(self, wanted_id: str) -> list[str]:
        """Give a task's working directories back from their archives; give their names.

        Raises:
            Busy: the task is at work. StorageError, OSError: as `labd.packing.unpack`.

        """
        with self._locked(self._archive.directory(wanted_id)):
            return unpack_all(
                self._archive.directory(wanted_id),
                spare_bytes=self._home.settings.min_free_bytes,
            )

    def may_remove(self, now: Reading) -> str:
        """Give why nothing is to be removed without being asked for, by the clocks, or an empty text; remembers the look.

        Raises:
            OSError: it can't be remembered, for another reason than lack of room.

        """
        why, memory = trust(self._memory.read(), now)
        self._memory.update(**memory)
        return why

    # --- looking

    def _finished(
        self, state: State, entry: Entry, rule: Rule, now_s: float, named: Mapping[str, str]
    ) -> Iterator[Finished]:
        """Look at one task; give nothing where it is too young for any rule, or there is nothing that could go."""
        moved_s = entry.moved_ns / 1e9
        if rule.max_bytes is None and 0 <= now_s - moved_s < rule.least_age_s:
            return
        directory = self._archive.directory(entry.id)
        if directory.is_symlink() or not directory.is_dir():
            return
        ended_s, kept = self._end(entry.id)
        sizes, unmeasured = _sizes(directory)
        yield Finished(
            entry.id,
            state,
            # Who moves a file by hand today has something in mind with it: the later of the two counts.
            max(ended_s, moved_s),
            **sizes,
            kept=kept or named.get(entry.id, ""),
            changed_s=_changed_s(directory),
            unmeasured=unmeasured,
        )

    def _end(self, wanted_id: str) -> tuple[float, str]:
        """Give when the task ended, and why it is not to be touched if that is not on record."""
        try:
            history = self._archive.history(wanted_id)
            if history.ended is None:
                return 0.0, "its end is not on record"
            return from_iso(str(history.events[-1]["at"])).timestamp(), ""
        except (JournalError, ValueError, KeyError) as error:
            return 0.0, f"its end can't be read: {printable(str(error), 200)}"

    # --- doing

    @contextmanager
    def _held(self, action: Action) -> Iterator[None]:
        """Hold the task's locks, and have it still be in the state that the rule is for.

        Raises:
            Busy: its work holds one of them, or the task was moved.

        """
        with self._locked(self._archive.directory(action.id)):
            self._check_place(action)
            if why := self._end(action.id)[1] or self._named.look().get(action.id, ""):
                raise Busy(why)
            yield

    @contextmanager
    def _locked(self, directory: Path) -> Iterator[None]:
        """Hold what attempts hold: a command's lock, the journal, and the directory for what comes from other nodes."""
        with ExitStack() as held:
            try:
                fd = os.open(
                    directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                )
                held.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.enter_context(as_owner_of(fd))
                # The first is made where it is missing: an attempt that begins meanwhile makes it, too. A journal is there
                # wherever something was done that it could speak of.
                held.enter_context(locked(directory / LOCK))
                if (directory / JOURNAL).is_file():
                    held.enter_context(locked(directory / JOURNAL))
            except BlockingIOError as error:
                raise Busy("it is at work") from error
            yield

    def _do(self, action: Action) -> None:
        directory = self._archive.directory(action.id)
        for path in leftovers(directory):
            remove_tree(path)
        if action.what == "compress":
            self._compress(directory, self._unless_moved(action))
        else:
            prune(directory, action)

    def _unless_moved(self, action: Action) -> Callable[[], None]:
        """Give what raises `Busy` once the task is wanted elsewhere: somebody who tries it again need not wait for hours."""
        looked_s = time.monotonic()

        def look() -> None:
            nonlocal looked_s
            if (now_s := time.monotonic()) < looked_s + _GIVE_WAY_WITHIN_S:
                return
            looked_s = now_s
            self._check_place(action)

        return look

    def _check_place(self, action: Action) -> None:
        if {state for state, _ in self._spool.where(action.id)} != {action.state}:
            raise Busy("it was moved meanwhile")

    def _compress(self, directory: Path, go_on: Callable[[], None]) -> None:
        for name in WORKING:
            if not (directory / name).is_dir() or (directory / name).is_symlink():
                continue
            size = size_of(directory / name)
            if size.apparent_bytes > _MOST_HOLES * size.size_bytes + _MANY_BYTES:
                raise StorageError(
                    f"{name}/ is mostly holes, which take no room: compressing would read {print_size(size.apparent_bytes)}"
                )
            free = shutil.disk_usage(directory).free - self._home.settings.min_free_bytes
            if free < size.size_bytes:
                raise Busy("there is no room to compress it: the archive is made first")
            pack(directory, name, go_on=go_on)


def _sizes(directory: Path) -> tuple[dict[str, int], str]:
    """Measure what lies there by what it is; and why that is not all, or an empty text.

    Code that nobody trusts made it: what can't be measured counts for as much as was seen of it, and can be pruned.
    """
    unmeasured = ""
    sizes = dict.fromkeys(("loose_bytes", "packed_bytes", "other_bytes", "record_bytes"), 0)
    packed = {archive_of(directory, name).name for name in WORKING}
    left = {path.name for path in leftovers(directory)}
    for path in directory.iterdir():
        (size, problem), kind = measure(path), "other_bytes"
        if problem is not None:
            unmeasured = printable(str(problem), 200)
        if path.name in left:
            kind = "loose_bytes"
        elif path.name in WORKING:
            # An empty directory is nothing to gain by.
            kind = "loose_bytes" if size.entries > 1 or problem is not None else "record_bytes"
        elif path.name in packed:
            kind = "packed_bytes"
        elif path.name in RECORD:
            kind = "record_bytes"
        # What could not be measured is something, also where no block of it was seen.
        sizes[kind] += max(size.size_bytes, int(problem is not None))
    return sizes, unmeasured


def _changed_s(directory: Path) -> float:
    """Give when one of the working directories was last changed, not counting what is below; 0 where there is none."""
    found = (directory / name for name in WORKING)
    return max((path.lstat().st_mtime for path in found if os.path.lexists(path)), default=0.0)


class _Named:
    """Which tasks are named by others that wait or run. A long queue is read once, and then what is new in it."""

    def __init__(self, spool: Spool, results: Path) -> None:
        self._spool, self._results = spool, results
        self._read: dict[tuple[State, str], tuple[tuple[int, int, int], tuple[str, ...]]] = {}
        self._found: dict[str, str] = {}
        self._as_of: tuple[int, ...] = ()
        self._looked_s = float("-inf")

    def look(self) -> Mapping[str, str]:
        """Give their ids, each with why it stays.

        Raises:
            OSError: the spool can't be looked at.

        """
        as_of = tuple(os.stat(self._spool.directory(state)).st_mtime_ns for state in _UNDECIDED)  # noqa: PTH116
        now_s = time.monotonic()
        if as_of != self._as_of or now_s - self._looked_s > _LOOK_AGAIN_S:
            self._found = self._look()
            self._as_of, self._looked_s = as_of, now_s
        return self._found

    def _look(self) -> dict[str, str]:
        found: dict[str, str] = {}
        read, self._read = self._read, {}
        for state in _UNDECIDED:
            for entry in self._spool.entries(state):
                key = (state, entry.name)
                version, ids = read.get(key, ((0, 0, 0), ()))
                if version != entry.version:
                    ids = self._ids_in(state, entry.name)
                self._read[key] = (entry.version, ids)
                why = f"{printable(entry.id, 60)} is {state.value} and names it"
                found |= dict.fromkeys(ids, why)
        return found

    def _ids_in(self, state: State, name: str) -> tuple[str, ...]:
        try:
            raw = self._spool.read(state, name)
            if not any(key in raw for key in (b"after", b"input", b"workdir")):
                return ()  # most tasks; reading YAML is what takes the time
            return tuple(_names_of(parse_task(raw, name), self._results))
        except (TaskFileError, FileNotFoundError):
            return ()


def _names_of(task: TaskFile, results: Path) -> Iterator[str]:
    """Give the ids of the tasks whose results a task's file names, or for which it waits."""
    spec = task.spec
    yield from spec.after
    real = Path(os.path.realpath(results))
    given = [*spec.inputs.values(), *filter(None, (spec.workdir, spec.input))]
    for named in given:
        path = Path(named)
        if not path.is_absolute():
            path = results.parent / path
        below = Path(os.path.realpath(path))
        if below != real and below.is_relative_to(real):
            yield below.relative_to(real).parts[0]


def _rule(said: RetentionRule) -> Rule:
    return Rule(said.compress_after, said.prune_after, said.max_bytes, said.keep)
