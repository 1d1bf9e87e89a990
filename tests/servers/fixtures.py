"""Servers for a test: each of these gives one that is up, and ends it afterwards, whatever happened.

    with running_ollama("--model=alpha", "--max-loaded=1") as node:
        httpx.post(f"{node.url}/api/chat", …)
        assert node.counters()["models"]["alpha:latest"]["loads"] == 1

They take the options of the modules' command lines.
"""

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.servers.lifetime import ServerProcess

_TIMEOUT_S = 30.0


class RunningServer(ServerProcess):
    """A running server; `url`, `pid`, `kill`, `stop`, `pause` and `resume` come from the process."""

    def get(self, path: str) -> Any:
        """Give the JSON at `path`."""
        with urllib.request.urlopen(self.url + path, timeout=_TIMEOUT_S) as reply:
            return json.load(reply)

    def loaded(self) -> list[str]:
        """Give the names of the models in memory."""
        return [model["name"] for model in self.get("/api/ps")["models"]]

    def counters(self) -> dict[str, Any]:
        """Give what the node did since it started or was last reset (see `Counters.report`)."""
        counters: dict[str, Any] = self.get("/_test/counters")
        return counters

    def total(self, what: str) -> int:
        """Give one count over all models: loads, unloads, aborted_loads, failed_loads, served, refused, pulls."""
        return int(self.counters()["totals"].get(what, 0))

    def reset(self) -> None:
        """Forget the counts."""
        request = urllib.request.Request(f"{self.url}/_test/reset", data=b"{}", method="POST")
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()


@contextmanager
def _running(
    module: str, arguments: tuple[str, ...], enter: Sequence[str] = ()
) -> Iterator[RunningServer]:
    server = RunningServer(module, *arguments, enter=enter)
    try:
        yield server
    finally:
        if server.alive:
            server.resume()
            server.stop()
        else:
            server.kill()


@contextmanager
def running_llama(*arguments: str) -> Iterator[RunningServer]:
    """Run llama.cpp's server on a tiny model."""
    with _running("tests.servers.llama", arguments) as server:
        yield server


@contextmanager
def running_ollama(*arguments: str, enter: Sequence[str] = ()) -> Iterator[RunningServer]:
    """Run a node that speaks Ollama's API; `enter`: on another host (see `tests.hosts`)."""
    with _running("tests.servers.ollama", arguments, enter) as server:
        yield server


@contextmanager
def running_lmstudio(*arguments: str) -> Iterator[RunningServer]:
    """Run a server with LM Studio's API and ways."""
    with _running("tests.servers.lmstudio", arguments) as server:
        yield server


@contextmanager
def running_hostile(*arguments: str) -> Iterator[RunningServer]:
    """Run the hostile server as a process; `HostileServer` is the same in a thread."""
    with _running("tests.servers.hostile", arguments) as server:
        yield server


@contextmanager
def running_scripted(*arguments: str) -> Iterator[RunningServer]:
    """Run a node whose model behaves in one way, ``--behaviour=garbage``, or as a file says, ``--script=FILE``."""
    with _running("tests.servers.scripted", arguments) as server:
        yield server
