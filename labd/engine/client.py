"""The daemon's side of the engine: four verbs over a pipe to the process that drives Ray."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from labd.engine.types import Down, Event, Job, event_from_json
from labd.errors import EngineError
from labd.log import Logger

_STOP_GRACE_S = 8.0
_RESTART_DELAYS_S = (0.5, 2.0, 5.0, 15.0, 30.0)


class Engine:
    """Runs jobs on Ray, and keeps a driver process alive for it. `wake` is called when `poll` has news.

    Args:
        options: how to get Ray: address, num_cpus, num_gpus, dashboard, token_path, parent_pid.
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
        self._to_driver: BinaryIO | None = None
        self._failures = 0
        self._start_at = 0.0
        self._stopped = False

    def start(self) -> None:
        """Start the driver process; `Ready` comes by `poll` when Ray is up."""
        down_r, down_w = os.pipe()
        up_r, up_w = os.pipe()
        try:
            with self._log_path.open("ab") as log_file:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "labd.engine",
                        str(down_r),
                        str(up_w),
                        json.dumps(self._options),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    pass_fds=(down_r, up_w),
                    start_new_session=True,
                )
        finally:
            os.close(down_r)
            os.close(up_w)
        self._to_driver = os.fdopen(down_w, "wb", buffering=0)
        threading.Thread(
            target=self._read,
            args=(os.fdopen(up_r, "rb"), self._process),
            name="engine-reader",
            daemon=True,
        ).start()
        self._log.info("engine.starting", pid=self._process.pid)

    def submit(self, job: Job) -> None:
        """Run the job on the node it names; an `Ended` will follow, whatever happens."""
        self._send({"op": "submit", "job": job.as_json()})

    def cancel(self, task_id: str, attempt: int) -> None:
        """End the attempt and all its processes; an `Ended` will follow."""
        self._send({"op": "cancel", "task_id": task_id, "attempt": attempt})

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
                if not self._stopped:
                    self._after_down()
            else:
                self._failures = 0
        if self._process is None and self._start_at and time.monotonic() >= self._start_at:
            self._start_at = 0.0
            self.start()
        return events

    def stop(self) -> None:
        """Stop Ray and the driver; kill the driver where it does not go in time."""
        self._stopped = True
        process, pipe = self._process, self._to_driver
        if process is None:
            return
        if pipe is not None:
            pipe.close()
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._log.warning("engine.killed", pid=process.pid, waited_s=_STOP_GRACE_S)
            process.kill()
            process.wait(_STOP_GRACE_S)
        self._process = None

    def _send(self, message: dict[str, Any]) -> None:
        if self._to_driver is None:
            raise EngineError("the engine is not running")
        try:
            self._to_driver.write(json.dumps(message).encode() + b"\n")
        except OSError as error:
            # The reader will report Down, and with it every attempt as lost.
            self._log.warning("engine.unreachable", reason=str(error))

    def _read(self, pipe: BinaryIO, process: subprocess.Popen[bytes]) -> None:
        with pipe:
            for line in pipe:
                try:
                    event = event_from_json(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    self._log.error("engine.unreadable_line", reason=repr(error))
                    continue
                self._events.put(event)
                self._wake()
        self._events.put(Down(f"the engine's process {process.pid} ended"))
        self._wake()

    def _after_down(self) -> None:
        process, pipe = self._process, self._to_driver
        if pipe is not None:
            pipe.close()
        if process is not None:
            try:
                process.wait(_STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_GRACE_S)
        self._process, self._to_driver = None, None
        delay_s = _RESTART_DELAYS_S[min(self._failures, len(_RESTART_DELAYS_S) - 1)]
        self._failures += 1
        self._start_at = time.monotonic() + delay_s
        threading.Timer(delay_s, self._wake).start()
        self._log.warning("engine.down", restart_in_s=delay_s, log=str(self._log_path))
