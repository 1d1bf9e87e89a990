"""Boxes on one network: a switch in a namespace of its own, and a cable from each box to it that can be unplugged."""

import os
import subprocess
from contextlib import suppress

from tests.hosts import net_of
from tests.processes import wait_until
from tests.system.box import Box

NETWORK = "10.213.8"


class Switch:
    """The network ``10.213.8.0/24``. Nothing of it is left when its process ends."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        mine = net_of(os.getpid())
        wait_until(lambda: net_of(self._holder.pid) != mine, 10, "a network namespace")
        self._ip(self._holder.pid, "link", "add", "switch", "type", "bridge")
        self._ip(self._holder.pid, "link", "set", "switch", "up")

    def plug(self, box: Box, number: int) -> str:
        """Join a box that has just been booted; give its address."""
        pid, port, address = box.init_pid, f"port{number}", f"{NETWORK}.{number}"
        # The cable of a machine that was switched off goes with its namespace, some time later.
        with suppress(subprocess.CalledProcessError):
            self._ip(self._holder.pid, "link", "del", port)
        words = ("link", "add", "eth0", "type", "veth", "peer", "name", port)
        self._ip(pid, *words, "netns", str(self._holder.pid))
        self._ip(pid, "addr", "add", f"{address}/24", "dev", "eth0")
        self._ip(pid, "link", "set", "eth0", "up")
        # Ray asks the routing table for its own address.
        self._ip(pid, "route", "add", "default", "dev", "eth0")
        self._ip(self._holder.pid, "link", "set", port, "master", "switch", "up")
        return address

    def cut(self, number: int) -> None:
        """Unplug a box: nothing gets through any more, and nobody is told."""
        self._ip(self._holder.pid, "link", "set", f"port{number}", "down")

    def heal(self, number: int) -> None:
        """Plug it in again."""
        self._ip(self._holder.pid, "link", "set", f"port{number}", "up")

    def remove(self) -> None:
        """End it."""
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait(10)

    @staticmethod
    def _ip(pid: int, *words: str) -> None:
        entered = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
        subprocess.run([*entered, *words], check=True, capture_output=True, timeout=20)
