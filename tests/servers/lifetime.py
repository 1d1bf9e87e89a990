"""How long a server process lives: until SIGTERM or SIGINT, or until whoever started it is gone.

`ServerProcess` starts one and holds the other end of its standard input. That end closes when the starter
dies, however it dies, and the server leaves. (Linux's parent-death signal would not do: it is sent when
the *thread* that started the process ends.)
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

REPO = Path(__file__).parent.parent.parent
_READY = "READY "
_GRACE_S = 10.0


def make_parser(name: str, text: str | None, epilog: str | None = None) -> ArgumentParser:
    """Give a command line with `text` as its description and the options that every server here has."""
    parser = ArgumentParser(
        prog=f"python -m tests.servers.{name}",
        description=text,
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: the system picks a free one")
    parser.add_argument(
        "--with-stdin", action="store_true", help="end when standard input closes, too"
    )
    return parser


class Lifetime:
    """The server's side. Made first, before any other thread is there.

    The signals are blocked, in the threads to come as well, and waited for: a handler's work could be left
    undone, as a signal that comes just before the main thread goes to sleep does not wake it.
    """

    _ENDS = frozenset({signal.SIGTERM, signal.SIGINT})

    def __init__(self, *, with_stdin: bool) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._ENDS)
        if with_stdin:
            threading.Thread(target=self._watch_stdin, daemon=True).start()

    @staticmethod
    def _watch_stdin() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        # The main thread may be stuck where it does not hear.
        time.sleep(_GRACE_S)
        os._exit(1)

    def serve(self, **ready: Any) -> None:
        """Print the READY line, and come back when the process is to end."""
        print(_READY + json.dumps({**ready, "pid": os.getpid()}), flush=True)
        signal.sigwait(self._ENDS)

    @staticmethod
    def leave() -> None:
        """End at once with exit code 0, without waiting for clients in the middle of a reply."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class ServerProcess:
    """A server module of this package in a process of its own, up when this is made.

    Raises:
        RuntimeError: it ended or did not say READY within `timeout_s`; the text holds its last words.

    """

    def __init__(
        self, module: str, *arguments: str, timeout_s: float = 60.0, enter: Sequence[str] = ()
    ) -> None:
        began = time.monotonic()
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [*enter, sys.executable, "-m", module, "--with-stdin", *arguments],
                cwd=REPO,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            self.ready = self._wait_ready(began + timeout_s, errors)
        self.url: str = self.ready["url"]
        self.pid = self._process.pid
        self.start_s = time.monotonic() - began

    def _wait_ready(self, deadline: float, errors: IO[bytes]) -> Mapping[str, Any]:
        out = cast("IO[bytes]", self._process.stdout)
        said = b""
        while not said.endswith(b"\n"):
            left_s = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([out], [], [], left_s)
            part = os.read(out.fileno(), 65536) if readable else b""
            if not part:
                self.kill()
                errors.seek(0)
                last_words = errors.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{self._process.args!r} did not start: {last_words}")
            said += part
        ready: Mapping[str, Any] = json.loads(said.decode().removeprefix(_READY))
        return ready

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL it and wait until it is gone."""
        self._process.kill()
        self._gone()

    def stop(self, timeout_s: float = _GRACE_S) -> int:
        """SIGTERM it, or SIGKILL if it does not heed; give the exit code."""
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._gone()

    def pause(self) -> None:
        """SIGSTOP it: it still accepts connections, by the kernel's hand, and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT it."""
        self._process.send_signal(signal.SIGCONT)

    def _gone(self) -> int:
        code = self._process.wait(_GRACE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return code
