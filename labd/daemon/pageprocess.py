"""The status page's process: started, watched and started again. Whatever becomes of it, work goes on."""

import subprocess
import sys
import time

from labd.daemon.telling import Once
from labd.log import Logger
from labd.settings import Home

_RETRY_S = (1.0, 5.0, 30.0, 60.0)
_LASTED_S = 120.0
_LOOK_EVERY_S = 2.0
_START_WITHIN_S = 30.0
_STOP_GRACE_S = 5.0
_MAX_SAID = 400


class PageProcess:
    """`labd page` of this home, as a process of its own. `keep` starts it, and again when it ended.

    It is not tied to the daemon's life: killed, the daemon leaves a page that says so. What the page
    prints is kept from its last start only.
    """

    def __init__(self, home: Home, log: Logger) -> None:
        self._command = [
            *(sys.executable, "-m", "labd.cli"),
            *("--home", str(home.root), "page", "--served"),
        ]
        self._output = home.run_dir / "page.log"
        self._address = home.settings.page.address
        self._log, self._once = log, Once(log)
        self._process: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0
        self._failures = 0
        # Its own start takes seconds of a CPU, which the start of the engine can use better.
        self.next_s = time.monotonic() + _START_WITHIN_S
        """When there is something to do, by the monotonic clock."""

    def start_soon(self) -> None:
        """Start it at the next turn, if it was not started yet: the engine is up."""
        if not self._began_s:
            self.next_s = 0.0

    def keep(self) -> None:
        """Start it if it does not run and it is time to."""
        now_s = time.monotonic()
        if self._process is not None and (code := self._process.poll()) is not None:
            self._ended(code, now_s)
        if self._process is None and now_s >= self.next_s:
            self._start(now_s)
        elif self._process is not None:
            self.next_s = now_s + _LOOK_EVERY_S

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_GRACE_S)
        self._process = None

    def _start(self, now_s: float) -> None:
        try:
            self._output.unlink(missing_ok=True)
            # For appending, so that it can be cut when it has become too long.
            with self._output.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            self._again(now_s)
            self._once.warning(f"start: {error}", "page.not_started", reason=str(error))
            return
        self._began_s, self.next_s = now_s, now_s + _LOOK_EVERY_S
        self._log.info("page.started", url=self._address, pid=self._process.pid)

    def _ended(self, code: int, now_s: float) -> None:
        self._process = None
        if now_s - self._began_s > _LASTED_S:
            self._failures = 0
        self._again(now_s)
        said = self._said()
        self._once.warning(f"{code}: {said}", "page.ended", code=code, reason=said)

    def _again(self, now_s: float) -> None:
        self.next_s = now_s + _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
        self._failures += 1

    def _said(self) -> str:
        try:
            raw = self._output.read_bytes()
        except OSError as error:
            return f"what it printed can't be read: {error.strerror}"
        return raw[-_MAX_SAID:].decode(errors="replace").strip()
