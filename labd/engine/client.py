"""The daemon's side of the engine: a few verbs over a pipe to the process that drives Ray."""

import contextlib
import fcntl
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from labd.engine.processes import end_session, remove_temp
from labd.engine.types import Down, Event, Job, event_from_json
from labd.log import Logger
from labd.text import printable

_STOP_GRACE_S = 5.0
_KILL_GRACE_S = 2.0
_ORDER_TIMEOUT_S = 10.0
_PIPE_BYTES = 2**20
_STEADY_S = 60.0
_RESTART_DELAYS_S = (0.5, 2.0, 5.0, 15.0, 30.0)


class Engine:
    """Runs jobs on Ray, and keeps a driver process alive for it. `wake` is called when `poll` has news.

    Not for several threads: one thread calls all the verbs.

    Args:
        options: how to get Ray: ``address`` (of a Ray that is a service of its own; ``None``: one that
            lives and dies with the driver), ``num_cpus``, ``num_gpus``, ``dashboard`` and ``token_path``
            (for one of our own), ``lab`` (a short hash of the lab's home, so that labs can share a
            cluster), ``lock_path`` (a file that workers hold locked while they run an attempt),
            ``worker`` (what `labd.worker.warm_up` gets), ``models`` (what `labd.engine.models.ModelsActor` gets),
            ``look_every_s`` (how often machines are looked at; absent: `labd.engine.probe.EVERY_S`).
        log_path: where the driver and Ray write what they have to say.

    """

    def __init__(
        self, options: dict[str, Any], log_path: Path, wake: Callable[[], None], log: Logger
    ) -> None:
        self._options = options
        self._log_path = log_path
        self._wake = wake
        self._log = log
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: int | None = None
        self._failures = 0
        self._ready_at = 0.0
        self._start_at = 0.0
        self._stopped = False

    @property
    def survives(self) -> bool:
        """Whether work goes on when this engine stops: Ray is a service of its own."""
        return self._options["address"] is not None

    def start(self) -> None:
        """Start the driver process; `Ready` comes by `poll` when Ray is up."""
        orders_r, orders_w = os.pipe()
        events_r, events_w = os.pipe()
        try:
            self._process = self._spawn(orders_r, events_w)
        except BaseException:
            os.close(orders_w)
            os.close(events_r)
            raise
        finally:
            os.close(orders_r)
            os.close(events_w)
        os.set_blocking(orders_w, False)
        with contextlib.suppress(OSError):  # room for a burst; without it a burst takes longer
            fcntl.fcntl(orders_w, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._orders = orders_w
        threading.Thread(
            target=self._read,
            args=(os.fdopen(events_r, "rb"), self._process.pid),
            name="engine-reader",
            daemon=True,
        ).start()
        self._log.info("engine.starting", pid=self._process.pid)

    def _spawn(self, orders_fd: int, events_fd: int) -> subprocess.Popen[bytes]:
        with self._log_path.open("ab") as log_file:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "labd.engine"),
                    *(str(orders_fd), str(events_fd), json.dumps(self._options)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(orders_fd, events_fd),
                start_new_session=True,
            )

    def submit(self, job: Job) -> None:
        """Run the job on the node it names; an `Ended` will follow, or a `Ready` that does not hold it."""
        self.submit_many([job])

    def submit_many(self, jobs: Sequence[Job]) -> None:
        """Submit several jobs at once; cheaper than one by one."""
        self._send([{"op": "submit", "job": job.as_json()} for job in jobs])

    def cancel(self, task_id: str, attempt: int) -> None:
        """End the attempt and all its processes; an `Ended` will follow, or a `Ready` that does not hold it."""
        self._send([{"op": "cancel", "task_id": task_id, "attempt": attempt}])

    def end_runs(self, task_id: str, attempt: int) -> None:
        """Have the attempt's worker end the runs that are under way as stuck; it goes on. Nothing says that it did."""
        self._send([{"op": "end_runs", "task_id": task_id, "attempt": attempt}])

    def kill(self, task_id: str, attempt: int) -> None:
        """Have the attempt's worker killed by its process id, be it stopped; for one that `cancel` did not end."""
        self._send([{"op": "kill", "task_id": task_id, "attempt": attempt}])

    def measure(self, numbers: Sequence[dict[str, Any]]) -> None:
        """Have numbers exported for Prometheus, as `labd.engine.metrics` has them; dropped where there is no driver."""
        if self._orders is not None and self._ready_at:
            self._send([{"op": "measure", "numbers": list(numbers)}])

    def poll(self) -> list[Event]:
        """Give the events since the last call; restart the driver when it is time to."""
        events: list[Event] = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                break
        for event in events:
            if isinstance(event, Down):
                self._after_down()
            elif not self._ready_at:
                self._ready_at = time.monotonic()
        if self._process is None and self._start_at and time.monotonic() >= self._start_at:
            self._start_again()
        return events

    def stop(self, leave_work: bool = True) -> None:  # noqa: FBT001, FBT002 - the daemon's one word on it
        """Stop the driver, within 8 s; kill it where it does not go in time.

        A Ray of our own ends, and all work with it. Where Ray is a service, work lives on, unless
        `leave_work` is off.
        """
        self._stopped = True
        self._start_at = 0.0
        process = self._process
        if process is None:
            return
        self._send([{"op": "stop", "leave_work": leave_work}])
        self._close_orders()
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._log.warning("engine.killed", pid=process.pid, waited_s=_STOP_GRACE_S)
        self._bury(process)

    def _send(self, orders: list[dict[str, Any]]) -> None:
        if self._orders is None:
            for order in orders:
                job = order.get("job", order)
                self._log.warning(
                    "engine.order_dropped", op=order["op"], task_id=job.get("task_id")
                )
            return
        raw = b"".join(json.dumps(order).encode() + b"\n" for order in orders)
        try:
            self._write(self._orders, raw)
        except OSError as error:
            # The reader will report Down, and the next Ready says what runs.
            self._log.warning("engine.unreachable", reason=str(error))
            if isinstance(error, TimeoutError) and self._process is not None:
                self._process.kill()

    def _write(self, fd: int, raw: bytes) -> None:
        view = memoryview(raw)
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                if not poller.poll(_ORDER_TIMEOUT_S * 1000):
                    msg = f"the driver took no orders for {_ORDER_TIMEOUT_S:g} s"
                    raise TimeoutError(msg) from None

    def _read(self, pipe: BinaryIO, pid: int) -> None:
        last_words = ""
        with pipe:
            for line in pipe:
                try:
                    message = json.loads(line)
                    if message["event"] == "dying":
                        last_words = f": {printable(message['reason'])}"
                        continue
                    event = event_from_json(message)
                except (ValueError, KeyError, TypeError) as error:
                    self._log.error("engine.unreadable_line", reason=repr(error))
                    continue
                self._events.put(event)
                self._wake()
        self._events.put(Down(f"the engine's process {pid} ended{last_words}"))
        self._wake()

    def _start_again(self) -> None:
        self._start_at = 0.0
        try:
            self.start()
        except OSError as error:
            self._log.error("engine.not_started", reason=str(error))
            self._schedule_start()

    def _after_down(self) -> None:
        self._close_orders()
        if self._process is not None:
            self._bury(self._process)
        if self._stopped:
            return
        if self._ready_at and time.monotonic() - self._ready_at > _STEADY_S:
            self._failures = 0
        self._ready_at = 0.0
        self._schedule_start()

    def _schedule_start(self) -> None:
        delay_s = _RESTART_DELAYS_S[min(self._failures, len(_RESTART_DELAYS_S) - 1)]
        self._failures += 1
        self._start_at = time.monotonic() + delay_s
        timer = threading.Timer(delay_s, self._wake)
        timer.daemon = True
        timer.start()
        self._log.warning("engine.down", restart_in_s=delay_s, log=str(self._log_path))

    def _close_orders(self) -> None:
        if self._orders is not None:
            os.close(self._orders)
            self._orders = None

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        """See to it that the driver is gone, and the Ray that it may have left behind."""
        process.kill()
        try:
            process.wait(_KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            self._log.error("engine.unkillable", pid=process.pid)
        self._process = None
        if not self.survives:
            left = end_session(process.pid, _KILL_GRACE_S)
            if left:
                self._log.warning("engine.leftovers", pids=left)
            remove_temp(process.pid)
