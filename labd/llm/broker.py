"""The one place in a lab that decides which request goes where: a `Router`, with the clock, threads and servers it needs.

It looks at the endpoints, loads and unloads their models, and answers the workers of all nodes. Holders that it does
not hear from lose what they have; what a holder says it has is believed, so that a new broker knows what an
old one gave out.
"""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from labd.clock import to_iso, utc_now
from labd.files import write_json
from labd.llm.desk import Change, GpuWant, Lease, Rules, Want
from labd.llm.errors import ModelError
from labd.llm.model import Endpoint, Look
from labd.llm.refusals import Pull
from labd.llm.report import report
from labd.llm.router import Action, GpuGrant, Grant, Recall, Refusal, Router
from labd.llm.wireform import error_to_data, grant_to_data
from labd.text import printable

T = TypeVar("T")

LOOK_EVERY_S = 5.0
_TICK_S = 0.25
_WRITE_EVERY_S = 1.0
_WRITE_AT_LEAST_EVERY_S = 5.0
_MAX_LISTEN_S = 20.0


class Hands(Protocol):
    """What a broker does with endpoints, from wherever they can be reached."""

    def look(self, endpoint: Endpoint, /) -> Look:
        """Give the endpoint's state; never raises for what the server does."""

    def change(self, endpoint: Endpoint, change: Change, /) -> None:
        """Unload, wait until that is done, and load.

        Raises:
            ModelError: it did not work.

        """

    def pull(self, endpoint: Endpoint, model: str, progress: Callable[[str], None], /) -> None:
        """Have the endpoint download a model.

        Raises:
            ModelError: it did not work.

        """

    def close(self) -> None:
        """Close all connections."""


class Broker:
    """A router at work.

    Args:
        rules: what people set.
        find: gives all endpoints that there are now; called as often as each is looked at, never twice at once.
        hands: reach them.
        status_path: a file that says for people what there is and what goes on; ``None``: none is written.
        look_every_s: how often each endpoint is looked at.

    """

    def __init__(
        self,
        rules: Rules,
        find: Callable[[], Sequence[Endpoint]],
        hands: Hands,
        *,
        status_path: Path | None = None,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._router = Router(rules)
        self._find, self._hands = find, hands
        self._status_path = status_path
        self._look_every_s = look_every_s
        self._finding = threading.Lock()
        self._news = threading.Condition()
        self._mail: dict[str, list[Action]] = {}
        self._notes: dict[str, str] = {}
        self._watchers: dict[str, _Watcher] = {}
        self._found = False
        self._closed = threading.Event()
        self._written_s = 0.0
        self._written: dict[str, Any] = {}
        for target, name in ((self._discover, "endpoints"), (self._tick, "router")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def close(self) -> None:
        """Stop looking and deciding."""
        self._closed.set()
        with self._news:
            for watcher in self._watchers.values():
                watcher.look_now.set()
            self._news.notify_all()
        self._hands.close()

    # --- what holders ask

    def answer(self, method: str, **data: Any) -> dict[str, Any]:
        """Answer a holder: one of ``want``, ``want_gpus``, ``drop``, ``listen``, ``give_back``, ``failed``, ``bye``, ``report``."""
        answers: Mapping[str, Callable[..., dict[str, Any]]] = {
            "want": self._want,
            "want_gpus": self._want_gpus,
            "drop": self._drop,
            "listen": self._listen,
            "give_back": self._give_back,
            "failed": self._failed,
            "bye": self._bye,
            "report": self._report,
        }
        return answers[method](**data)

    def _want(
        self,
        holder: str,
        *,
        node_id: str,
        ticket: str,
        model: str,
        num_ctx: int,
        tried: Sequence[str],
        following: int = 0,
    ) -> dict[str, Any]:
        with self._news:
            now_s = time.monotonic()
            want = Want(
                ticket, holder, node_id, model, num_ctx, now_s, frozenset(tried), following
            )
            self._router.want(want)
            self._step()
            return self._mail_of(holder)

    def _want_gpus(
        self, holder: str, node_id: str, ticket: str, gpus: Sequence[int], limit_s: float
    ) -> dict[str, Any]:
        with self._news:
            want = GpuWant(ticket, holder, node_id, tuple(gpus), time.monotonic(), limit_s)
            self._router.want_gpus(want)
            self._step()
            return self._mail_of(holder)

    def _drop(self, holder: str, ticket: str) -> dict[str, Any]:
        with self._news:
            self._router.drop(ticket)
            mail = self._mail.get(holder, [])
            for late in [a for a in mail if getattr(a, "ticket", "") == ticket]:
                mail.remove(late)
                if isinstance(late, Grant | GpuGrant):
                    self._router.give_back(late.lease)
            self._step()
            return {}

    def _listen(
        self,
        holder: str,
        leases: Sequence[Sequence[str]],
        tickets: Sequence[str],
        timeout_s: float,
    ) -> dict[str, Any]:
        """Give what there is for a holder, as soon as there is something; say which tickets are not known here."""
        deadline_s = time.monotonic() + min(timeout_s, _MAX_LISTEN_S)
        with self._news:
            now_s = time.monotonic()
            self._router.beat(holder, now_s)
            for lease_id, endpoint, name in leases:
                self._router.adopt(Lease(lease_id, holder, endpoint, name, now_s))
            known = {*self._router.desk.wants, *self._router.desk.gpu_wants}
            known |= {getattr(action, "ticket", "") for action in self._mail.get(holder, [])}
            unknown = [ticket for ticket in tickets if ticket not in known]
            while not (self._mail.get(holder) or unknown or self._closed.is_set()):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                self._news.wait(left_s)
                self._router.beat(holder, time.monotonic())
            return {**self._mail_of(holder), "unknown": unknown, "notes": self._notes_for(tickets)}

    def _give_back(self, holder: str, leases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Take leases back, or hear what they were used for: each has ``id``, ``used`` and ``keep``."""
        with self._news:
            now_s = time.monotonic()
            self._router.beat(holder, now_s)
            for lease in leases:
                self._router.used(lease["id"], now_s, lease["used"])
                if not lease["keep"]:
                    self._router.give_back(lease["id"])
            self._step()
            return self._mail_of(holder)

    def _failed(self, holder: str, endpoint: str, model: str, code: str) -> dict[str, Any]:
        with self._news:
            self._router.beat(holder, time.monotonic())
            self._router.failed(endpoint, model, code, time.monotonic())
            watcher = self._watchers.get(endpoint)
            self._step()
        if watcher is not None:
            watcher.look_now.set()
        return {}

    def _bye(self, holder: str) -> dict[str, Any]:
        with self._news:
            self._router.bye(holder)
            self._mail.pop(holder, None)
            self._step()
            return {}

    def _report(self) -> dict[str, Any]:
        with self._news:
            return report(self._router.desk, time.monotonic(), self._notes)

    def _mail_of(self, holder: str) -> dict[str, Any]:
        mail = self._mail.pop(holder, [])
        return {
            "grants": [grant_to_data(a) for a in mail if isinstance(a, Grant)],
            "gpu_grants": [
                {"ticket": a.ticket, "lease": a.lease, "freed_bytes": a.freed_bytes}
                for a in mail
                if isinstance(a, GpuGrant)
            ],
            "recalls": [a.lease for a in mail if isinstance(a, Recall)],
            "refusals": [
                {"ticket": a.ticket, "error": error_to_data(a.error)}
                for a in mail
                if isinstance(a, Refusal)
            ],
        }

    def _notes_for(self, tickets: Sequence[str]) -> list[str]:
        wanted = {want.name for ticket in tickets if (want := self._router.desk.wants.get(ticket))}
        return [note for name, note in self._notes.items() if name in wanted]

    # --- what goes on by itself

    def _step(self) -> None:
        """Decide and act; with the lock held."""
        if not self._found:
            return
        for action in self._router.step(time.monotonic()):
            if isinstance(action, Change):
                self._in_thread(self._change, action)
            elif isinstance(action, Pull):
                self._in_thread(self._pull, action)
            else:
                self._mail.setdefault(action.holder, []).append(action)
        gone = [holder for holder in self._mail if holder not in self._router.desk.beats]
        for holder in gone:
            del self._mail[holder]
        self._news.notify_all()

    def _in_thread(self, target: Callable[[Any], None], action: Change | Pull) -> None:
        threading.Thread(
            target=target, args=(action,), name=f"to-{action.endpoint}", daemon=True
        ).start()

    def _change(self, change: Change) -> None:
        with self._news:
            endpoint = self._router.desk.sides[change.endpoint].endpoint
        began_s = time.monotonic()
        _, error = _tried(lambda: self._hands.change(endpoint, change))
        took_s = time.monotonic() - began_s
        with self._news:
            self._router.changed(change.endpoint, took_s, error, time.monotonic())
            watcher = self._watchers.get(change.endpoint)
            if watcher is not None:
                watcher.generation += 1  # a look that was begun before says what was
                watcher.look_now.set()
            self._step()

    def _pull(self, pull: Pull) -> None:
        with self._news:
            endpoint = self._router.desk.sides[pull.endpoint].endpoint

        def note(text: str) -> None:
            with self._news:
                self._notes[pull.model] = f"{endpoint.name} downloads it: {printable(text, 100)}"
                self._news.notify_all()

        _, error = _tried(lambda: self._hands.pull(endpoint, pull.model, note))
        look = self._look(endpoint)
        with self._news:
            self._notes.pop(pull.model, None)
            self._router.seen(pull.endpoint, look, time.monotonic())
            self._router.pulled(pull.endpoint, pull.model, error)
            self._step()

    def _discover(self) -> None:
        while not self._closed.is_set():
            self.discover()
            self._closed.wait(self._look_every_s)

    def discover(self) -> None:
        """Find what endpoints there are now, and have them looked at."""
        with self._finding:
            endpoints, _ = _tried(self._find)
            if endpoints is None:
                return
            with self._news:
                self._router.know(endpoints)
                self._found = True
                for name in set(self._watchers) - {e.name for e in endpoints}:
                    self._watchers.pop(name).stop.set()
                for endpoint in endpoints:
                    if endpoint.name not in self._watchers:
                        watcher = _Watcher()
                        self._watchers[endpoint.name] = watcher
                        threading.Thread(
                            target=self._watch, args=(endpoint.name, watcher),
                            name=f"look-{endpoint.name}", daemon=True,
                        ).start()  # fmt: skip
                self._step()

    def _watch(self, name: str, watcher: "_Watcher") -> None:
        while not (self._closed.is_set() or watcher.stop.is_set()):
            with self._news:
                side = self._router.desk.sides.get(name)
                generation = watcher.generation
                changing = side is not None and side.change is not None
            if side is not None and not changing:
                look = self._look(side.endpoint)
                with self._news:
                    if generation == watcher.generation:
                        self._router.seen(name, look, time.monotonic())
                        self._step()
            watcher.look_now.wait(self._look_every_s)
            watcher.look_now.clear()

    def _look(self, endpoint: Endpoint) -> Look:
        look, fault = _tried(lambda: self._hands.look(endpoint))
        return look or Look("misconfigured", problem=fault)

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_S):
            with self._news:
                self._step()
                now_s = time.monotonic()
                told = report(self._router.desk, now_s, self._notes) if self._found else None
            if told is not None:
                self._write(told, now_s)

    def _write(self, told: dict[str, Any], now_s: float) -> None:
        due_s = _WRITE_EVERY_S if told != self._written else _WRITE_AT_LEAST_EVERY_S
        if self._status_path is None or now_s - self._written_s < due_s:
            return
        self._written, self._written_s = told, now_s
        with contextlib.suppress(
            OSError
        ):  # it is for people's eyes; the next one comes in a moment
            write_json(self._status_path, {"at": to_iso(utc_now()), **told}, durable=False)


def _tried(work: Callable[[], T]) -> tuple[T | None, str]:
    """Give what the work gives, or why it failed. A fault of ours is told too, or the thread would end and all wait."""
    try:
        return work(), ""
    except ModelError as problem:
        return None, str(problem)
    except Exception as fault:  # noqa: BLE001 - the border of the broker's threads
        traceback.print_exc()
        return None, f"a fault in labd: {type(fault).__name__}: {fault}"


class _Watcher:
    """Who looks at one endpoint."""

    def __init__(self) -> None:
        self.look_now = threading.Event()
        self.stop = threading.Event()
        self.generation = 0
