"""Hosts for the tests: this machine's loopback, or network namespaces that only a cable between them joins.

A namespace lives as long as the process that holds it, and the cable as long as the namespaces, so nothing
of it is left on the machine, however a test ends.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes import wait_until

_COMMAND_TIMEOUT_S = 20.0
_GET = """
import sys, urllib.request
url, body = sys.argv[1:]
print(urllib.request.urlopen(url, body.encode() or None, timeout=15).read().decode())
"""


@dataclass(frozen=True, slots=True)
class Host:
    """Where processes run. `address`: by which other hosts reach it; `enter`: put before a command to run it there."""

    address: str
    enter: Sequence[str] = ()

    def run(self, *command: str) -> str:
        """Run a command there; give its output."""
        done = subprocess.run(
            [*self.enter, *command],
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=True,
        )
        return done.stdout

    def get(self, url: str, body: str = "") -> str:
        """Give what is at a URL, seen from there; with a `body`, what is answered to it."""
        return self.run(sys.executable, "-c", _GET, url, body)


LOOPBACK = Host("127.0.0.1")


def why_no_hosts() -> str:
    """Say why there can be no hosts of the other kind here; an empty text: there can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if made.returncode == 0 else "network namespaces are not allowed here"


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Have two hosts that reach each other and nothing else."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(_namespace()) for _ in range(2))
        hosts = (_host("10.213.7.1", first), _host("10.213.7.2", second))
        hosts[0].run(
            *("ip", "link", "add", "eth0", "type", "veth"),
            *("peer", "name", "eth0", "netns", str(second)),
        )
        for host in hosts:
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
            # Ray asks the routing table for its own address.
            host.run("ip", "route", "add", "default", "dev", "eth0")
        yield hosts


def _host(address: str, pid: int) -> Host:
    return Host(address, ("nsenter", f"--net=/proc/{pid}/ns/net", "--"))


@contextmanager
def _namespace() -> Iterator[int]:
    """Hold a network namespace; gives the id of the process that does."""
    # `cat` ends with its input, and so with this process, however it ends.
    with subprocess.Popen(
        ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as holder:
        try:
            mine = net_of(os.getpid())
            wait_until(lambda: net_of(holder.pid) != mine, 10, "a network namespace")
            yield holder.pid
        finally:
            holder.kill()


def net_of(pid: int) -> str:
    """Name the network namespace of a process."""
    return str(Path(f"/proc/{pid}/ns/net").readlink())
