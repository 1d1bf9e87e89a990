"""The process that drives Ray: reads orders from one pipe, writes events to another.

Started by `labd.engine.client`. When the order pipe closes, the daemon is gone or wants to stop, and this
process ends: with it a Ray of its own and all work, but not the work on a Ray that is a service. Knows
nothing of the spool. Anything strange ends this process, at once and with a reason, because a new one is
the one way back that always works.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NoReturn, Protocol

from labd import __version__
from labd.engine.embedded import Embedded, environment
from labd.engine.processes import end_session
from labd.errors import EngineError
from labd.text import printable

_READ_BYTES = 2**20
_END_TIMEOUT_S = 5.0
_dying = threading.Event()
_LAST_WORDS_S = 1.0
_CONNECT_TIMEOUT_S = 180.0


class Says:
    """The event pipe: one JSON object a line, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def __call__(self, event: str, **facts: object) -> None:
        """Write an event; a daemon that is gone is no error, because the order pipe says so too."""
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        with self._lock:
            self._write(line)

    def last(self, reason: str) -> None:
        """Write why this process ends; it ends anyway, where another thread is stuck in writing."""
        if self._lock.acquire(timeout=_LAST_WORDS_S):
            self._write(
                json.dumps({"event": "dying", "reason": printable(reason)}).encode() + b"\n"
            )

    def _write(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._fd, line) :]


class Ray(Protocol):
    """What a driver does with Ray, be it our own (`Embedded`) or a service (`Attached`)."""

    dashboard_url: str
    held: list[dict[str, Any]]

    def obey(self, orders: list[dict[str, Any]], /) -> None:
        """Carry out the daemon's orders, in order."""

    def nodes(self) -> list[dict[str, Any]]:
        """Give the machines that may be used, as the facts of `labd.engine.types.NodeInfo`."""

    def begin(self, nodes: list[dict[str, Any]], /) -> None:
        """Have workers ready, and pass on ends and news of machines from now on."""

    def close(self, *, leave_work: bool) -> None:
        """Leave Ray."""


def main() -> None:
    """Run until the order pipe closes."""
    orders_fd, events_fd, options = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    os.set_inheritable(orders_fd, False)
    os.set_inheritable(events_fd, False)
    environment()
    say = Says(events_fd)
    try:
        run(orders_fd, say, options)
    except EngineError as error:
        _die(say, str(error))
    except Exception as error:  # noqa: BLE001 - the process's one border: whatever Ray raises, Ray must not stay
        traceback.print_exc()
        _die(say, f"{type(error).__name__}: {error}")


def run(orders_fd: int, say: Says, options: Mapping[str, Any]) -> None:
    """Get Ray, and obey until the order pipe closes.

    Raises:
        EngineError: Ray or its dispatcher can't be had, or is gone.

    """
    connecting = threading.Timer(_CONNECT_TIMEOUT_S, _die, [say, "Ray did not come up in time"])
    connecting.daemon = True
    connecting.start()
    ray = _connect(say, options)
    connecting.cancel()
    nodes = ray.nodes()
    say("ready", nodes=nodes, dashboard_url=ray.dashboard_url, held=ray.held)
    ray.begin(nodes)
    leave_work = True
    from labd.engine.metrics import Metrics  # noqa: PLC0415 - it imports ray: only after the environment is set

    metrics = Metrics(options["lab"])
    for orders in batches(orders_fd):
        if _dying.is_set():
            threading.Event().wait()  # what would start now would only be lost; this process ends
        for order in orders:
            if order["op"] == "measure":
                metrics.take(order["numbers"])
        for_ray = [order for order in orders if order["op"] not in {"stop", "measure"}]
        ray.obey([{**order, "version": __version__} for order in for_ray])
        leave_work &= all(order.get("leave_work", True) for order in orders)
    ray.close(leave_work=leave_work)


def batches(fd: int) -> Iterator[list[dict[str, Any]]]:
    """Give the orders that have come, whole lines only, each time that some have; end with the pipe."""
    rest = b""
    while raw := os.read(fd, _READ_BYTES):
        *lines, rest = (rest + raw).split(b"\n")
        if lines:
            yield [json.loads(line) for line in lines]


def _connect(say: Says, options: Mapping[str, Any]) -> Ray:
    lab = {name: options[name] for name in ("lab", "lock_path", "worker", "models")}
    die = partial(_die, say)
    if options["address"] is None:
        return Embedded(options, lab, say, die)
    if options["address"].startswith("127."):
        # The driver listens too: like its Ray, on the loopback only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from labd.engine.service import Attached  # noqa: PLC0415 - it imports ray: only after the environment is set

    more = {"look_every_s": options["look_every_s"]} if "look_every_s" in options else {}
    return Attached(options["address"], lab, say, die, **more)


def _die(say: Says, reason: str) -> NoReturn:
    """End this process and its own Ray, at once; from any thread."""
    _dying.set()
    say.last(reason)
    end_session(os.getpid(), _END_TIMEOUT_S)
    os._exit(1)
