"""Ray as a service: work that outlives the daemon, held by a dispatcher in a detached actor.

A plain task dies with its owner; tasks that a detached actor owns live on when the driver dies, and die
within a second of the actor (measured on Ray 2.60). So the actor is what holds a lab's work. It runs on the
daemon's own machine, and the driver talks to it over a unix socket beside the lab's lock: calls of an actor
cost 5 ms of CPU a job and twice the latency, a socket a tenth of that.

The actor's interface has a version in its name, because an actor keeps running the code it was made with:
`attach` and `warm`, and the lines on the socket. Each is a JSON object. The driver sends ``{"epoch": n}``
first, then orders, and ``{"op": "seen", "number": n}`` for ends that have reached the daemon; the
dispatcher sends ends, as ``{"number": n, "ended": {...}}``.
"""

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labd import __version__
from labd.engine.dispatcher import Dispatcher, alive_nodes
from labd.engine.probe import EVERY_S, Prober
from labd.engine.processes import wait_for_lock
from labd.engine.wire import TIMEOUT_S, connect, lines, listen, pack, peer_uid
from labd.errors import EngineError
from labd.shipping import Store

NAMESPACE = "labd"
LOCK_TIMEOUT_S = 60.0
_INTERFACE = 1
# Without it Ray ends the idle workers of a job whose driver is gone, and the dispatcher's job is that of the
# driver which made it: each attempt would then wait 1.5 s for a new worker.
_KEEPS_WORKERS = ("RAY_kill_idle_workers_interval_ms", "0")
_CALL_TIMEOUT_S = 20.0
_KILL_TIMEOUT_S = 2.0
_KILL_POLL_S = 0.05
_THREADS = 4
_ARCHIVE_THREADS = 8
_NODES_EVERY_S = 2.0
_SILENCE_S = 15.0
_END_TIMEOUT_S = 2.0
_LISTEN_TIMEOUT_S = 10.0
_LISTEN_POLL_S = 0.2


class DispatcherActor:
    """A `Dispatcher`, and the ends that no driver has seen yet.

    Only a driver submits, so without one there are never more ends kept than there are slots.
    """

    def __init__(self, lab: dict[str, Any]) -> None:
        self._lab = lab
        self._dispatcher = Dispatcher(lab, self._keep, self._archive, self._models)
        self._archive_actor: Any = None
        self._models_actor: Any = None
        self._clear = False
        self._epoch = 0
        self._driver: socket.socket | None = None
        self._number = 0
        self._ended: deque[tuple[int, dict[str, Any]]] = deque()
        self._obeying = threading.Lock()
        # Taken on Ray's own thread, so never held over a call of Ray; taken after `_obeying`, if both.
        self._news = threading.Condition()
        self._listener = listen(Path(lab["lock_path"]).parent)
        threading.Thread(target=self._accept, name="drivers", daemon=True).start()

    def attach(self) -> dict[str, Any]:
        """Make the caller the one driver that is obeyed.

        Gives ``epoch``; ``lab`` and ``version`` of the driver that made this actor; ``keeps_workers``;
        and ``held``. What ended and was not seen yet is held too. Waits, the first time, until the workers of an
        earlier dispatcher are gone.

        Raises:
            EngineError: they are not gone in time.

        """
        with self._obeying:
            if not self._clear:
                wait_for_lock(Path(self._lab["lock_path"]), LOCK_TIMEOUT_S)
                self._clear = True
            with self._news:
                self._epoch += 1
                self._take(None)
                return {
                    "epoch": self._epoch,
                    "lab": self._lab,
                    "version": __version__,
                    "keeps_workers": os.environ.get(_KEEPS_WORKERS[0]) == _KEEPS_WORKERS[1],
                    "held": self._dispatcher.held(),
                }

    def warm(self, node_id: str, count: int, version: str) -> None:
        """Have worker processes of the node ready, and know of its language models where any are to be found."""
        self._dispatcher.warm_node(node_id, count, version)
        options, far = self._lab["models"], node_id != self._lab["node_id"]
        if options["endpoints"] or (far and options["discover"]):
            self._models()

    def _archive(self, job: Mapping[str, Any]) -> Any:
        if self._archive_actor is None:
            options = _detached(self._lab, "archive") | {"max_restarts": -1}
            actor = ray.remote(ArchiveActor).options(max_concurrency=_ARCHIVE_THREADS, **options)
            results = str(Path(job["results_dir"]).parent)
            self._archive_actor = actor.remote(results, job["template_roots"])
        return self._archive_actor

    def _models(self) -> Any:
        if self._models_actor is None:
            from labd.engine import models  # noqa: PLC0415 - it imports httpx; most labs without models need none

            options = _detached(self._lab, "models")
            self._models_actor = models.make(
                {**self._lab["models"], "lab": self._lab["lab"]}, self._lab["node_id"], **options
            )
        return self._models_actor

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Obey one driver until it goes or a later one attaches."""
        # A driver that died or is no driver of ours: it comes again, or not.
        with connection, contextlib.suppress(OSError, ValueError, KeyError):
            if peer_uid(connection) != os.getuid():
                return
            connection.settimeout(TIMEOUT_S)
            epoch = 0
            for messages in lines(connection, lambda: None):
                if not epoch:
                    epoch = messages.pop(0)["epoch"]
                    self._answer(epoch, connection)
                if not self._obey(epoch, messages):
                    return

    def _answer(self, epoch: int, connection: socket.socket) -> None:
        with self._news:
            if epoch == self._epoch:
                self._take(connection)
                threading.Thread(
                    target=self._tell, args=(epoch, connection), name="ends", daemon=True
                ).start()

    def _take(self, connection: socket.socket | None) -> None:
        if self._driver is not None:
            with contextlib.suppress(OSError):
                self._driver.shutdown(socket.SHUT_RDWR)
        self._driver = connection
        self._news.notify_all()

    def _tell(self, epoch: int, connection: socket.socket) -> None:
        """Send the ends that are kept, and those that come, for as long as this is the driver."""
        sent = 0
        while True:
            with self._news:
                while epoch == self._epoch and self._number <= sent:
                    self._news.wait()
                if epoch != self._epoch:
                    return
                new = [(number, ended) for number, ended in self._ended if number > sent]
                sent = self._number
            raw = pack([{"number": number, "ended": ended} for number, ended in new])
            try:
                connection.sendall(raw)
            except OSError:
                # It is dead or stuck: cut off, so that it ends; the next gets what it has not seen.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                return

    def _obey(self, epoch: int, messages: list[dict[str, Any]]) -> bool:
        with self._obeying:
            if epoch != self._epoch:
                return False
            self._dispatcher.obey(messages)
        for message in messages:
            if message.get("op") == "seen":
                self._forget(message["number"])
        return True

    def _forget(self, number: int) -> None:
        with self._news:
            while self._ended and self._ended[0][0] <= number:
                _, ended = self._ended.popleft()
                self._dispatcher.forget(ended["task_id"], ended["attempt"])

    def _keep(self, ended: dict[str, Any]) -> None:
        with self._news:
            self._number += 1
            self._ended.append((self._number, ended))
            self._news.notify_all()


class ArchiveActor:
    """The `Store` of a lab, for its workers on other nodes; on the lab's own node. Comes back when it dies."""

    def __init__(self, results: str, template_roots: list[str]) -> None:
        roots = [Path(root) for root in template_roots]
        self._store = Store(Path(results), template_roots=roots)

    def answer(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        """Pass a message to `Store.answer`."""
        return self._store.answer(method, **data)


class Attached:
    """A Ray that is a service, and this driver's hold on its lab's dispatcher there, found or made.

    Args:
        address: where Ray is.
        lab: what a `Dispatcher` gets but for ``node_id``, and ``lab``, the lab's own name.
        say: the event pipe.
        die: called with the reason when Ray or the dispatcher is gone, or another driver took over.
        look_every_s: how often machines are looked at.

    Raises:
        EngineError: the dispatcher could not be reached, or workers of an earlier one don't end.

    """

    def __init__(
        self,
        address: str,
        lab: Mapping[str, Any],
        say: Callable[..., None],
        die: Callable[[str], None],
        look_every_s: float = EVERY_S,
    ) -> None:
        self._say = say
        self._die = die
        self._closing = threading.Event()
        self._lab = lab
        self._lock_path = Path(lab["lock_path"])
        _require_listening(address)
        context = ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False
        )
        self.dashboard_url = str(context.dashboard_url or "")
        self._node_id = str(ray.get_runtime_context().get_node_id())
        self._actor, state = _attach({**lab, "node_id": self._node_id})
        self.held: list[dict[str, Any]] = state["held"]
        self._fresh = state["epoch"] == 1
        self._sending = threading.Lock()
        self._socket = connect(self._lock_path.parent)
        self._send([{"epoch": state["epoch"]}])
        self._nodes_at = time.monotonic()
        self._prober = Prober(lab, self._node_id, say, every_s=look_every_s)
        self._joined = threading.Event()

    def obey(self, orders: list[dict[str, Any]]) -> None:
        """Pass orders on.

        Raises:
            EngineError: the dispatcher is gone, or a later driver has attached.

        """
        try:
            self._send(orders)
        except OSError as error:
            raise EngineError(f"the dispatcher takes no orders: {error}") from error

    def nodes(self) -> list[dict[str, Any]]:
        """Give the machines of the cluster, as the facts of `labd.engine.types.NodeInfo`."""
        return alive_nodes(self._node_id)

    def begin(self, nodes: list[dict[str, Any]]) -> None:
        """Have workers ready where the dispatcher is new; pass on ends and news of machines from now on."""
        if self._fresh:
            self._warm(nodes)
        ask = partial(self._prober.go_on, self._node_ids, self._closing, self._joined)
        for target in (self._pass_on_ends, partial(self._pass_on_nodes, nodes), ask):
            threading.Thread(target=self._guard, args=(target,), daemon=True).start()

    def close(self, *, leave_work: bool) -> None:
        """Leave Ray; where work is not to be left, end the dispatcher, and wait until its workers are gone."""
        self._closing.set()
        self._joined.set()
        self._socket.close()
        if not leave_work:
            _end_actors(self._lab)
            wait_for_lock(self._lock_path, _END_TIMEOUT_S)
        ray.shutdown()

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as error:  # noqa: BLE001 - the border of a thread: a driver with half its threads is none
            if not self._closing.is_set():
                self._die(f"{type(error).__name__}: {error}")

    def _pass_on_ends(self) -> None:
        for messages in lines(self._socket, self._check_silence):
            for message in messages:
                self._say("ended", **message["ended"])
            self._send([{"op": "seen", "number": messages[-1]["number"]}])
        raise EngineError("the dispatcher is gone, or another driver of this lab has taken over")

    def _check_silence(self) -> None:
        if time.monotonic() - self._nodes_at > _SILENCE_S:
            raise EngineError(f"the cluster has not answered for {_SILENCE_S:g} s")

    def _pass_on_nodes(self, known: list[dict[str, Any]]) -> None:
        while not self._closing.wait(_NODES_EVERY_S):
            nodes = self.nodes()
            self._nodes_at = time.monotonic()
            if nodes != known:
                self._say("nodes", nodes=nodes)
                old = {node["id"] for node in known}
                self._warm([node for node in nodes if node["id"] not in old])
                self._joined.set()
                known = nodes

    def _node_ids(self) -> list[str]:
        return [node["id"] for node in self.nodes()]

    def _warm(self, nodes: list[dict[str, Any]]) -> None:
        for node in nodes:
            self._actor.warm.remote(node["id"], int(node["num_cpus"]), __version__)

    def _send(self, messages: list[dict[str, Any]]) -> None:
        with self._sending:
            self._socket.sendall(pack(messages))


def _require_listening(address: str) -> None:
    """Wait a while for somebody to listen: where a machine has just started, its Ray takes seconds to.

    Ray itself tries for minutes to reach an address where nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    deadline_s = time.monotonic() + _LISTEN_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host, int(port)), TIMEOUT_S).close()
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise EngineError(f"no Ray answers at {address}: {error}") from error
            time.sleep(_LISTEN_POLL_S)
        else:
            return


def _attach(lab: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Find or make the lab's dispatcher; one that holds nothing and is not as a new one would be is made anew."""
    actor, state = _attach_once(lab)
    as_new = (state["version"], state["lab"]) == (__version__, lab) and (
        state["keeps_workers"] or state["epoch"] == 1
    )
    if not as_new and not state["held"]:
        _end_actors(lab)
        actor, state = _attach_once(lab)
    return actor, state


def _attach_once(lab: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    actor = (
        ray.remote(DispatcherActor)
        .options(**_detached(lab, "dispatcher"), max_restarts=0, max_concurrency=_THREADS)
        .remote(lab)
    )
    try:
        return actor, ray.get(actor.attach.remote(), timeout=LOCK_TIMEOUT_S + _CALL_TIMEOUT_S)
    except ray.exceptions.RayTaskError as error:
        raise EngineError(f"the dispatcher failed: {error.cause!r}") from error
    except ray.exceptions.RayError as error:
        raise EngineError(f"the dispatcher is gone: {type(error).__name__}") from error


def _detached(lab: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {
        "name": _name(lab, what),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(lab["node_id"], soft=False),
    }


def _end_actors(lab: Mapping[str, Any]) -> None:
    """End the lab's actors, and with them all its work; wait a while until their names are free."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    for what in ("dispatcher", "archive", "models"):
        with contextlib.suppress(ValueError):  # there is none, or none any more
            ray.kill(ray.get_actor(_name(lab, what), namespace=NAMESPACE))
            while time.monotonic() < deadline:
                ray.get_actor(_name(lab, what), namespace=NAMESPACE)
                time.sleep(_KILL_POLL_S)


def _name(lab: Mapping[str, Any], what: str) -> str:
    return f"{what}-{lab['lab']}-v{_INTERFACE}"
