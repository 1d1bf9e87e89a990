"""The one place in a lab that decides which request goes where: a `Router`, with the clock, threads and servers it needs.

It looks at the endpoints, loads and unloads their models, and answers the workers of all nodes. Holders that it does
not hear from lose what they have; what a holder says it has is believed, so that a new broker knows what an
old one gave out.
"""

import contextlib
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from labd.clock import to_iso, utc_now
from labd.files import write_json
from labd.llm.claims import GpuLease, GpuWant, Lease, Want
from labd.llm.desk import Change, Rules
from labd.llm.errors import ModelError
from labd.llm.model import Endpoint, Look, name_of
from labd.llm.refusals import Pull
from labd.llm.report import report, why, why_gpus
from labd.llm.router import Action, GpuGrant, Grant, Recall, Refusal, Router
from labd.llm.wireform import grant_to_data
from labd.text import printable

T = TypeVar("T")

LOOK_EVERY_S = 5.0
_TICK_S = 0.25
_WRITE_EVERY_S = 1.0
_WRITE_AT_LEAST_EVERY_S = 5.0
_MAX_LISTEN_S = 20.0
_MAX_GONE = 1000


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
        hear_first_s: how long nothing is decided at the start, so that holders can say what they have.

    """

    def __init__(
        self,
        rules: Rules,
        find: Callable[[], Sequence[Endpoint]],
        hands: Hands,
        *,
        status_path: Path | None = None,
        look_every_s: float = LOOK_EVERY_S,
        hear_first_s: float = 0.0,
    ) -> None:
        self._router = Router(rules, name=f"{secrets.token_hex(3)}-")
        self._decide_from_s = time.monotonic() + hear_first_s
        self._find, self._hands = find, hands
        self._status_path = status_path
        self._look_every_s = look_every_s
        self._finding = threading.Lock()
        self._lock = threading.RLock()
        self._mail: dict[str, list[Action]] = {}
        self._bells: dict[str, threading.Condition] = {}
        """One for each holder that listens: with one for all, hundreds would wake up for each word to one."""
        self._gone: dict[str, None] = {}
        """Holders that said good-bye, or for whom somebody did: what they sent before may still come."""
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
        with self._lock:
            for watcher in self._watchers.values():
                watcher.look_now.set()
            for bell in self._bells.values():
                bell.notify_all()
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
        with self._lock:
            now_s = time.monotonic()
            want = Want(
                ticket, holder, node_id, model, num_ctx, now_s, frozenset(tried), following
            )
            self._gone.pop(holder, None)
            self._router.want(want)
            self._step()
            return self._mail_of(holder)

    def _want_gpus(
        self, holder: str, node_id: str, ticket: str, gpus: Sequence[int], limit_s: float
    ) -> dict[str, Any]:
        with self._lock:
            want = GpuWant(ticket, holder, node_id, tuple(gpus), time.monotonic(), limit_s)
            self._gone.pop(holder, None)
            self._router.want_gpus(want)
            self._step()
            return self._mail_of(holder)

    def _drop(self, holder: str, ticket: str) -> dict[str, Any]:
        with self._lock:
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
        gpu_leases: Sequence[Mapping[str, Any]],
        tickets: Sequence[str],
        timeout_s: float,
    ) -> dict[str, Any]:
        """Give what there is for a holder, as soon as there is something; say which tickets are not known here."""
        deadline_s = time.monotonic() + min(timeout_s, _MAX_LISTEN_S)
        with self._lock:
            gone = holder in self._gone
            if not gone:
                self._hear(holder, leases, gpu_leases)
            known = {*self._router.desk.wants, *self._router.desk.gpu_wants}
            known |= {getattr(action, "ticket", "") for action in self._mail.get(holder, [])}
            unknown = [ticket for ticket in tickets if ticket not in known]
            bell = self._bells.setdefault(holder, threading.Condition(self._lock))
            while not (self._mail.get(holder) or unknown or self._closed.is_set()):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or gone != (holder in self._gone):
                    break
                bell.wait(left_s)
            if holder in self._router.desk.beats:
                self._router.beat(holder, time.monotonic())
            news = self._mail_of(holder)
            told = {lease_id for lease_id, *_ in leases}
            # Once more, because the first time may have been before the holder knew of the lease.
            news["recalls"] += [i for i in self._router.recalled(holder) if i in told]
            return {**news, "unknown": unknown, "notes": self._notes_for(tickets)}

    def _hear(
        self,
        holder: str,
        leases: Sequence[Sequence[str]],
        gpu_leases: Sequence[Mapping[str, Any]],
    ) -> None:
        now_s = time.monotonic()
        self._router.beat(holder, now_s)
        for lease_id, endpoint, name in leases:
            self._router.adopt(Lease(lease_id, holder, endpoint, name, now_s))
        for lease in gpu_leases:
            gpus, until_s = tuple(lease["gpus"]), now_s + lease["left_s"]
            self._router.adopt_gpus(
                GpuLease(lease["id"], holder, lease["node_id"], gpus, now_s, until_s)
            )
        told = {lease_id for lease_id, *_ in leases} | {lease["id"] for lease in gpu_leases}
        mail = {getattr(action, "lease", "") for action in self._mail.get(holder, [])}
        self._router.has_only(holder, told | mail, now_s)

    def _give_back(self, holder: str, leases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Take leases back, or hear what they were used for: each has ``id``, ``used``, ``tokens`` and ``keep``."""
        with self._lock:
            now_s = time.monotonic()
            self._router.beat(holder, now_s)
            for lease in leases:
                self._router.used(lease["id"], now_s, lease["used"], lease.get("tokens", ()))
                if not lease["keep"]:
                    self._router.give_back(lease["id"])
            self._step()
            return self._mail_of(holder)

    def _failed(self, holder: str, endpoint: str, model: str, code: str) -> dict[str, Any]:
        with self._lock:
            self._router.beat(holder, time.monotonic())
            self._router.failed(endpoint, model, code, time.monotonic())
            watcher = self._watchers.get(endpoint)
            self._step()
        if watcher is not None:
            watcher.look_now.set()
        return {}

    def _bye(self, holder: str) -> dict[str, Any]:
        with self._lock:
            self._router.bye(holder)
            self._gone[holder] = None
            while len(self._gone) > _MAX_GONE:
                del self._gone[next(iter(self._gone))]
            self._step()
            return {}

    def _report(self) -> dict[str, Any]:
        with self._lock:
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
                {"ticket": a.ticket, "error": a.error.as_data()}
                for a in mail
                if isinstance(a, Refusal)
            ],
        }

    def _notes_for(self, tickets: Sequence[str]) -> list[dict[str, str]]:
        """Give why a holder waits: one ``event`` and ``detail`` for each model, and for GPUs."""
        desk, notes = self._router.desk, {}
        for ticket in tickets:
            want, gpu_want = desk.wants.get(ticket), desk.gpu_wants.get(ticket)
            if want is not None and want.name in self._notes:
                notes[want.name] = ("model.pulling", f"{want.model}: {self._notes[want.name]}")
            elif want is not None and want.name not in notes:
                notes[want.name] = ("model.waiting", why(desk, want))
            elif gpu_want is not None:
                notes[""] = ("gpus.waiting", why_gpus(desk, gpu_want))
        return [{"event": event, "detail": detail} for event, detail in notes.values()]

    # --- what goes on by itself

    def _step(self) -> None:
        """Decide and act; with the lock held."""
        if not self._found or time.monotonic() < self._decide_from_s:
            return
        news = set()
        for action in self._router.step(time.monotonic()):
            if isinstance(action, Change):
                self._in_thread(self._change, action)
            elif isinstance(action, Pull):
                self._in_thread(self._pull, action)
            else:
                self._mail.setdefault(action.holder, []).append(action)
                news.add(action.holder)
        alive = self._router.desk.beats
        for holder in [holder for holder in self._mail if holder not in alive]:
            del self._mail[holder]
        for holder in [holder for holder in self._bells if holder in news or holder not in alive]:
            bell = self._bells[holder] if holder in alive else self._bells.pop(holder)
            bell.notify_all()

    def _in_thread(self, target: Callable[[Any], None], action: Change | Pull) -> None:
        threading.Thread(
            target=target, args=(action,), name=f"to-{action.endpoint}", daemon=True
        ).start()

    def _change(self, change: Change) -> None:
        with self._lock:
            endpoint = self._router.desk.sides[change.endpoint].endpoint
        began_s = time.monotonic()
        _, error = _tried(lambda: self._hands.change(endpoint, change))
        took_s = time.monotonic() - began_s
        with self._lock:
            self._router.changed(change.endpoint, took_s, error, time.monotonic())
            watcher = self._watchers.get(change.endpoint)
            if watcher is not None:
                watcher.generation += 1  # a look that was begun before says what was
                watcher.look_now.set()
            self._step()

    def _pull(self, pull: Pull) -> None:
        with self._lock:
            endpoint = self._router.desk.sides[pull.endpoint].endpoint

        def tell(text: str) -> None:
            with self._lock:
                note = f"{endpoint.name} downloads it: {printable(text, 100)}"
                self._notes[name_of(pull.model)] = note

        _, error = _tried(lambda: self._hands.pull(endpoint, pull.model, tell))
        look = self._look(endpoint)
        with self._lock:
            self._notes.pop(name_of(pull.model), None)
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
            with self._lock:
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
            with self._lock:
                side = self._router.desk.sides.get(name)
                generation = watcher.generation
                changing = side is not None and side.change is not None
            if side is not None and not changing:
                look = self._look(side.endpoint)
                with self._lock:
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
            _tried(self._turn)

    def _turn(self) -> None:
        now_s = time.monotonic()
        due = self._found and now_s - self._written_s >= _WRITE_EVERY_S
        with self._lock:
            self._step()
            told = report(self._router.desk, now_s, self._notes) if due else {}
        if due and self._status_path is not None:
            self._write(self._status_path, told, now_s)

    def _write(self, path: Path, told: dict[str, Any], now_s: float) -> None:
        if told == self._written and now_s - self._written_s < _WRITE_AT_LEAST_EVERY_S:
            return
        self._written, self._written_s = told, now_s
        with contextlib.suppress(
            OSError
        ):  # it is for people's eyes; the next one comes in a moment
            write_json(path, {"at": to_iso(utc_now()), **told}, durable=False)


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
