"""The page as its tests use it: a real process over a real lab, and a browser where there is one."""

import http.client
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.processes import free_port, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class PageProcess:
    """`labd page` of a home, as a process of its own; `url` has no slash at its end."""

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home, self.port = home, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = home / "page.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "labd.cli", "--home", str(home)),
                    *("page", "--port", str(self.port)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "no_proxy": "*"},
            )

    def wait_ready(self, timeout_s: float = 150.0) -> "PageProcess":
        """Wait until it answers; one that does not is killed."""
        try:
            wait_until(self._answers, timeout_s, "the page")
        except AssertionError:
            self.kill()
            raise
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log_path.read_text()
        return self.ask("/healthz", timeout_s=5)[0] == 200

    def ask(
        self,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float = 20.0,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request exactly as given; give status, headers and body. Status 0: no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for key, value in {"Host": f"127.0.0.1:{self.port}", **(headers or {})}.items():
                connection.putheader(key, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        except OSError:
            return 0, {}, b""
        finally:
            connection.close()

    def stop(self) -> int:
        """SIGTERM and wait; give the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        """SIGKILL and wait."""
        self.process.kill()
        self.process.wait(20)
