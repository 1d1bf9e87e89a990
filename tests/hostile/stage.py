"""What the hostile programs are after: a small lab, services, and a victim, all made for one case and gone with it."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

_WAIT_S = 5.0


class Stage:
    """A place of its own below /tmp, and the processes and sockets that belong to it."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self.root = Path(tempfile.mkdtemp(prefix="labd-hostile-"))
        self.root.chmod(0o755)
        self.token = f"secret{uuid.uuid4().hex}"
        self.mark = f"labdhostile{uuid.uuid4().hex}"
        self.facts: dict[str, Any] = {"token": self.token}
        self._files()
        self._services()
        self._start_victim()
        self.secret_fd = os.open(self.root / "canary", os.O_RDONLY)
        os.set_inheritable(self.secret_fd, True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end_marked()
        self._victim.kill()
        self._victim.wait(_WAIT_S)
        self._opened.close()
        os.close(self.secret_fd)
        # rm goes to any depth, which Python's own way does not.
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            subprocess.run([*command, str(self.root)], check=False, capture_output=True)

    def work(self, name: str) -> Path:
        """Give a new empty directory."""
        path = self.root / name
        path.mkdir()
        return path

    def marked(self) -> list[int]:
        """Give the living processes that carry this stage's mark."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if self.mark.encode() in words:
                    found.append(int(entry.name))
        return found

    def survivors(self) -> list[int]:
        """Look several times: one that is another process every moment may be missed once."""
        for _ in range(8):
            if found := self.marked():
                return found
        return []

    def end_marked(self) -> None:
        """Kill what carries this stage's mark, until nothing does."""
        until_s = time.monotonic() + 10
        while (pids := self.marked()) and time.monotonic() < until_s:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)

    def victim_lives(self) -> bool:
        """Say whether the victim is still there."""
        return self._victim.poll() is None

    def _files(self) -> None:
        lab = self.root / "lab"
        secret = json.dumps({"metrics": {"score": 0.5}, "secret": self.token})
        for name, text in {
            "canary": self.token,
            "secret.json": secret,
            "home/.ssh/id_ed25519": self.token,
            "lab/results/other/result.json": secret,
            "lab/spool/pending/next.yaml": "kind: command",
            "lab/config/labd.yaml": f"token: {self.token}",
            "baseline/experiment.py": "score = 1",
            "baseline/evaluate.py": "print(0.5)",
            "earlier/metrics.json": secret,
            "site/__pycache__/library.pyc": "compiled",
            "bin/tool": "",
        }.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.facts |= {
            "canary": str(self.root / "canary"),
            "secret_json": str(self.root / "secret.json"),
            "home": str(self.root / "home"),
            "lab": str(lab),
        }

    def outside(self) -> dict[str, Any]:
        """Give what a program is told outside."""
        root = str(self.root)
        places = {"baseline": f"{root}/baseline", "earlier": f"{root}/earlier"}
        return {**self.facts, **places, "site": f"{root}/site"}

    def inside(self) -> dict[str, Any]:
        """Give what a program is told inside, where other things lie at other places."""
        return {**self.facts, "baseline": "/inputs/baseline", "earlier": "/inputs/earlier"}

    def _services(self) -> None:
        self.facts["tcp"] = self._listen(socket.AF_INET, ("127.0.0.1", 0))
        self.facts["tcp6"] = self._listen(socket.AF_INET6, ("::1", 0))
        self.facts["unix"] = str(self.root / "socket")
        self._listen(socket.AF_UNIX, self.facts["unix"])
        self.facts["abstract"] = self.mark
        self._listen(socket.AF_UNIX, b"\0" + self.mark.encode())
        udp = self._socket(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self.facts["udp"] = udp.getsockname()[1]
        threading.Thread(target=_echo, args=(udp,), daemon=True).start()

    def _listen(self, family: int, address: Any) -> int:
        server = self._socket(family, socket.SOCK_STREAM, address)
        server.listen()
        threading.Thread(target=_greet, args=(server,), daemon=True).start()
        return int(server.getsockname()[1]) if family != socket.AF_UNIX else 0

    def _socket(self, family: int, kind: int, address: Any) -> socket.socket:
        made = self._opened.enter_context(socket.socket(family, kind))
        made.bind(address)
        # Closing it does not wake a thread that waits in it.
        self._opened.callback(_shut, made)
        return made

    def _start_victim(self) -> None:
        self.facts["victim_mark"] = f"60.{uuid.uuid4().int % 10**12}"
        self._victim = subprocess.Popen(
            [shutil.which("sleep") or "sleep", self.facts["victim_mark"]],
            env={"PATH": os.environ["PATH"], "SECRET": self.token},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.facts["victim"] = self._victim.pid


def _greet(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            try:
                connection.settimeout(1)
                connection.sendall(b"hello from the host")
                connection.recv(1)
            except OSError:
                continue


def _echo(server: socket.socket) -> None:
    while True:
        try:
            text, peer = server.recvfrom(100)
            if peer is None:  # it was shut
                return
            server.sendto(text, peer)
        except OSError:
            return


def _shut(made: socket.socket) -> None:
    try:
        made.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
