"""Who tells whom: a thread for each entry of the setting `notify`, and what waits there, kept within bounds and on the disk."""

import hashlib
import json
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labd import __version__
from labd.clock import to_iso, utc_now
from labd.files import write_json
from labd.hooks import command
from labd.hooks.notice import (
    EVENTS,
    Event,
    Fact,
    Gathered,
    Notice,
    encoded,
    gathered_from_json,
    message_of,
    notice_of,
    variables_of,
)
from labd.hooks.pace import Pace
from labd.log import Logger
from labd.settings import NotifySettings
from labd.text import printable

CLOSE_WITHIN_S = 5.0
_ENDED_WITHIN_S = 2.0
_SAVED_APART_S = 0.2
_MAX_KEPT_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of a message: `problem` says why it was not told, or is empty. `later`: labd stopped before it could be."""

    problem: str
    said: str = ""
    later: bool = False


class Hooks:
    """Everybody who is to be told. `send` may be called by any thread; it neither waits nor raises.

    Args:
        rules: the setting `notify`.
        root: the lab's home.
        run_dir: where what waits is kept, for a daemon that comes after.
        log: gets what was told and what could not be.
        pace: how often a webhook is tried.

    """

    def __init__(
        self,
        rules: Sequence[NotifySettings],
        root: Path,
        run_dir: Path,
        log: Logger,
        pace: Pace | None = None,
    ) -> None:
        self._run_dir, self._log = run_dir, log
        self._unkept, self._closed = threading.Event(), threading.Event()
        self._keeper: threading.Thread | None = None
        names = _names_of(rules)
        self._tellers = [
            _Teller(rule, root, run_dir / name, log, pace=pace or Pace(), stirred=self._keep_soon)
            for name, rule in zip(names, rules, strict=True)
        ]
        self._wanted = {event for rule in rules for event in rule.on}

    def start(self) -> None:
        """Take up what an earlier daemon did not get to tell."""
        known = {teller.kept_at for teller in self._tellers}
        for path in sorted(self._run_dir.glob("notices-*.json")):
            if path not in known:
                self._log.warning("hook.forgotten", file=path.name, why="its setting has changed")
                path.unlink(missing_ok=True)
        for teller in self._tellers:
            teller.take_up()

    def wants(self, event: Event) -> bool:
        """Say whether anybody is told of this."""
        return event in self._wanted

    def send(self, event: Event, facts: Mapping[str, Fact]) -> None:
        """Have those told whom it concerns, soon."""
        if event not in self._wanted:
            return
        notice: Notice | None = None
        for teller in self._tellers:
            if not concerns(teller.rule, event, facts):
                continue
            if teller.lists(event):
                notice = notice or notice_of(event, facts, to_iso(utc_now()))
            teller.put(event, notice)

    def close(self, within_s: float = CLOSE_WITHIN_S) -> None:
        """Tell now what waits, and end, after a few seconds in any case; what is left the next daemon tells."""
        deadline_s = time.monotonic() + within_s
        for teller in self._tellers:
            teller.close()
        for teller in self._tellers:
            teller.join(deadline_s)
        for teller in self._tellers:
            teller.abort()
        deadline_s = time.monotonic() + _ENDED_WITHIN_S
        for teller in self._tellers:
            teller.join(deadline_s)
            teller.save()
        self._closed.set()
        self._unkept.set()

    def _keep_soon(self) -> None:
        """Have what changed put on the disk by a thread that does nothing else: telling may take minutes."""
        self._unkept.set()
        if self._keeper is None or not self._keeper.is_alive():
            keeper = threading.Thread(target=self._keep, name="hook-keeper", daemon=True)
            if _started(keeper, self._log):
                self._keeper = keeper

    def _keep(self) -> None:
        while not self._closed.is_set():
            self._unkept.wait()
            self._unkept.clear()
            for teller in self._tellers:
                teller.save()
            self._closed.wait(_SAVED_APART_S)


def _started(thread: threading.Thread, log: Logger) -> bool:
    """Start a thread, and say whether the system had room for one; if not, the next notice tries again."""
    try:
        thread.start()
    except RuntimeError as error:
        log.warning("hook.not_started", reason=str(error))
        return False
    return True


def concerns(rule: NotifySettings, event: Event, facts: Mapping[str, Fact]) -> bool:
    """Say whether somebody is told of this."""
    if event not in rule.on or (rule.campaigns and facts.get("campaign") not in rule.campaigns):
        return False
    labels = facts.get("labels", ())
    return not rule.labels or (isinstance(labels, list) and any(x in rule.labels for x in labels))


def shown_name(rule: NotifySettings) -> str:
    """Name somebody in a log: the program, or the server without its path, which may hold a secret."""
    if rule.command:
        return printable(f"command {rule.command[0]}", 300)
    from labd.hooks.webhook import where_of  # noqa: PLC0415 - see `_deliver`

    return f"webhook {where_of(rule)}"


def _names_of(rules: Sequence[NotifySettings]) -> list[str]:
    """Give the name of each one's file, by what the setting says, so that it is found again where others come or go."""
    names: list[str] = []
    for rule in rules:
        text = json.dumps(rule.model_dump(mode="json"), sort_keys=True)
        base = hashlib.sha256(text.encode()).hexdigest()[:12]
        names.append(f"notices-{base}-{sum(base in name for name in names)}.json")
    return names


def _deliver(
    rule: NotifySettings,
    root: Path,
    message: Mapping[str, Any],
    *,
    pace: Pace,
    closing: threading.Event,
    abort: threading.Event,
) -> Sent:
    """Tell one message, now; gives what came of it within the time that the settings and `pace` allow."""
    body = encoded(message)
    if rule.command:
        variables = {**variables_of(message), "LABD_HOME": str(root), "HOME": str(root)}
        ran = command.run(
            rule.command, body + b"\n", variables, timeout_s=rule.timeout, abort=abort
        )
        return Sent(ran.problem, ran.said, later=ran.cut_short)
    from labd.hooks.webhook import post  # noqa: PLC0415 - it imports httpx, which most labs' daemons need not

    problem = post(rule, root, body, pace=pace, closing=closing)
    return Sent(problem, later=bool(problem) and closing.is_set())


class _Teller:
    """Tells one. What waits is one bounded `Gathered`: the queue can't grow, whatever happens in the lab."""

    def __init__(
        self,
        rule: NotifySettings,
        root: Path,
        kept_at: Path,
        log: Logger,
        *,
        pace: Pace,
        stirred: Callable[[], None],
    ) -> None:
        self.rule, self.kept_at = rule, kept_at
        self._stirred = stirred
        self._root, self._pace = root, pace
        self._name = shown_name(rule)
        self._log = log.bind(hook=self._name)
        self._bell = threading.Condition()
        self._waiting = Gathered()
        self._sending: dict[str, Any] | None = None
        self._unsaved = False
        self._saving = threading.Lock()
        self._closing, self._abort = threading.Event(), threading.Event()
        self._next_s = float("-inf")
        self._thread: threading.Thread | None = None

    # --- for those who have something to tell

    def lists(self, event: Event) -> bool:
        with self._bell:
            return self._waiting.lists(event)

    def put(self, event: Event, notice: Notice | None) -> None:
        with self._bell:
            if self._closing.is_set():
                return
            self._waiting.add(event, notice)
            self._unsaved = True
            self._begin()
            self._bell.notify_all()
        self._stirred()

    def take_up(self) -> None:
        """Go on with what is on the disk."""
        try:
            with self.kept_at.open("rb") as file:
                kept = json.loads(file.read(_MAX_KEPT_BYTES))
            sending = kept.get("sending")
        except FileNotFoundError:
            return
        except (OSError, ValueError, AttributeError) as error:
            self._log.warning("hook.unreadable", file=self.kept_at.name, reason=str(error))
            return
        with self._bell:
            self._waiting = gathered_from_json(kept.get("waiting"))
            self._sending = sending if _is_message(sending) else None
            if self._sending or self._waiting.listed:
                self._begin()
                self._bell.notify_all()

    def close(self) -> None:
        with self._bell:
            self._closing.set()
            self._bell.notify_all()

    def abort(self) -> None:
        """End what is under way."""
        self._abort.set()

    def join(self, deadline_s: float) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def _begin(self) -> None:
        """Have a thread, also where an earlier one ended of a fault."""
        if self._thread is not None:
            if self._thread.is_alive():
                return
            # Its trace is in the log. What it was about may have been why.
            self._log.error("hook.failed", reason="a fault in labd")
            self._sending = None
        thread = threading.Thread(target=self._work, name="hook", daemon=True)
        if _started(thread, self._log):
            self._thread = thread

    # --- the thread

    def _work(self) -> None:
        while (message := self._next()) is not None:
            began_s = time.monotonic()
            sent = _deliver(
                self.rule,
                self._root,
                message,
                pace=self._pace,
                closing=self._closing,
                abort=self._abort,
            )
            self._say(message, sent, time.monotonic() - began_s)
            self._next_s = time.monotonic() + self.rule.every
            if sent.later:
                return
            with self._bell:
                self._sending = None
                self._unsaved = True
            self._stirred()

    def _next(self) -> dict[str, Any] | None:
        """Wait for the next message and its time, and put it on the disk. ``None``: labd stops."""
        with self._bell:
            while self._sending is None and not (self._waiting.listed and self._is_time()):
                if self._closing.is_set():
                    return None
                left_s = max(0.0, self._next_s - time.monotonic())
                self._bell.wait(left_s if self._waiting.listed else None)
            if self._sending is None:
                self._sending = new_message(self._waiting)
                self._waiting = Gathered()
                self._unsaved = True
            message = self._sending
        self.save()
        return message

    def _is_time(self) -> bool:
        return self._closing.is_set() or time.monotonic() >= self._next_s

    def save(self) -> None:
        """Put what waits, and what is being told, on the disk, where that has changed."""
        with self._saving:
            with self._bell:
                if not self._unsaved:
                    return
                self._unsaved = False
                idle = self._sending is None and not self._waiting.listed
                kept = {"sending": self._sending, "waiting": self._waiting.as_json()}
            try:
                if idle:
                    self.kept_at.unlink(missing_ok=True)
                else:
                    write_json(self.kept_at, kept, durable=False)
            except OSError as error:
                self._log.error("hook.not_kept", reason=str(error))

    def _say(self, message: Mapping[str, Any], sent: Sent, took_s: float) -> None:
        facts: dict[str, Any] = {
            "event_told": message["event"],
            "count": message["count"],
            "left_out": message["left_out"],
            "took_s": round(took_s, 3),
        }
        if sent.said:
            facts["said"] = sent.said
        if sent.later:
            self._log.warning("hook.put_off", **facts, reason=sent.problem)
        elif sent.problem:
            self._log.error("hook.failed", **facts, reason=sent.problem)
        else:
            self._log.info("hook.sent", **facts)


def new_message(gathered: Gathered) -> dict[str, Any]:
    """Make a message with a number of its own."""
    number = uuid.uuid4().hex
    return message_of(gathered, number=number, lab=platform.node(), version=__version__)


def _is_message(value: Any) -> bool:
    """Say whether it is what `message_of` gave, so far as it is used here."""
    return (
        isinstance(value, dict)
        and value.get("event") in EVENTS
        and all(isinstance(value.get(key), int) for key in ("count", "left_out"))
        and isinstance(value.get("events"), list)
        and all(isinstance(one, dict) for one in value["events"])
        and "text" in value
    )


# --- by hand


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of telling one by hand. `asked`: whether it is told of such an event at all."""

    name: str
    asked: bool
    problem: str = ""
    said: str = ""


def try_now(
    rules: Sequence[NotifySettings], root: Path, event: Event, *, pace: Pace | None = None
) -> list[Tried]:
    """Tell everybody of an event that did not happen, and say so in it; give what came of it, one after the other.

    Labels and campaigns are not asked for.
    """
    facts = {"task": "a-test", "test": 1, "reason": "this is a test: nothing happened"}
    gathered = Gathered()
    gathered.add(event, notice_of(event, facts, to_iso(utc_now())))
    never = threading.Event()
    found = []
    for rule in rules:
        asked = event in rule.on
        sent = Sent("")
        if asked:
            sent = _deliver(
                rule,
                root,
                new_message(gathered),
                pace=pace or Pace(tries=1),
                closing=never,
                abort=never,
            )
        found.append(Tried(shown_name(rule), asked, sent.problem, sent.said))
    return found
