"""labd installed in a box, with users who drop tasks: what the tests of the service share."""

import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

from tests.processes import wait_until
from tests.system.box import SOURCE, Box, why_no_box

REPO = Path(__file__).parents[2]
SPOOL, RESULTS = "/var/lib/labd/spool", "/var/lib/labd/results"
_PYTHON = "/usr/bin/python3"
_MINE = f"python{sys.version_info.major}.{sys.version_info.minor}"
# pip finds what it wants beside the box's own, and asks nobody.
_OFFLINE = "PIP_INSTALL_ARGS=--no-index --no-build-isolation --no-cache-dir"
# A box has the control groups of the machine that it is on. Those of version 1 are no unit's own, whatever it asks for.
_GROUPS_V1 = """[Service]
ExecStartPre=+/bin/sh -c 'for c in memory pids cpu; do d=/sys/fs/cgroup/$c/system.slice/%n; [ ! -d $d ] || chown labd $d $d/cgroup.procs; done'
"""
STEADY = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i >> beats; sleep 0.1; [ -e /work/stop ] && exit 0; done; exit 3"
"""A command that beats ten times a second until it is told to end (`Installed.let_end`); five minutes at most."""


def why_not_installed() -> str:
    """Say why labd can't be installed in a box here; an empty text: it can."""
    if reason := why_no_box():
        return reason
    if not Path(_PYTHON).exists() or Path(_PYTHON).resolve().name != _MINE:
        return (
            f"needs {_PYTHON} to be the {_MINE} that these tests run on: they share its packages"
        )
    return ""


class Installed:
    """A box with labd in it. `user`: alice and bob are in the group, eve is not."""

    def __init__(self, name: str, *, disk_mib: int = 0, watchdog_s: int = 60) -> None:
        self.box = Box(
            name, packages=Path(sysconfig.get_path("purelib")), source=REPO, disk_mib=disk_mib
        )
        try:
            self.box.boot()
            self._install(watchdog_s)
        except BaseException:
            self.box.remove()
            raise

    def _install(self, watchdog_s: int) -> None:
        box = self.box
        box.sh(f"{_PYTHON} -m venv --without-pip /opt/labd")
        self.write(f"/opt/labd/lib/{_MINE}/site-packages/packages.pth", "/opt/packages\n")
        self.make("install")
        # Smaller than a real one in two things: a machine's memory, and how long a hung daemon is put up with.
        self.write("/etc/systemd/system/labd.service.d/test.conf", f"[Service]\nWatchdogSec={watchdog_s}\n")  # fmt: skip
        self.write("/etc/systemd/system/labd-ray.service.d/test.conf", _GROUPS_V1)
        box.sh("sed -i s/LABD_DASHBOARD=yes/LABD_DASHBOARD=no/ /etc/labd/ray.env")
        box.sh("sed -i s/min_free_bytes:.*/min_free_bytes:\\ 33554432/ /etc/labd/labd.yaml")
        box.sh("umask 077; echo sesame > /etc/labd/keys/studio")
        box.sh("systemctl daemon-reload")
        for user in ("alice", "bob", "eve"):
            box.sh(f"useradd {user}; [ {user} = eve ] || usermod -aG labd {user}")

    def make(self, target: str) -> str:
        """Run one of the Makefile's targets as root; give what it prints."""
        return self.box.run("make", "-C", SOURCE, target, env=[_OFFLINE], timeout_s=400).stdout

    def write(self, path: str, text: str) -> None:
        """Write a file in the box."""
        self.box.run("sh", "-c", f"mkdir -p $(dirname {path}); cat > {path}", stdin=text)

    # --- a lab

    def start(self) -> None:
        """Start labd, if it is not up, and wait until Ray takes tasks."""
        self.box.run("systemctl", "start", "labd")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the daemon has nodes."""

        def ready() -> bool:
            told = self.box.run("cat", f"{SPOOL}/.labd/status.json", check=False).stdout
            pid = self.box.main_pid("labd")
            facts = json.loads(told) if told else {}
            return bool(facts.get("nodes")) and facts.get("pid") == pid

        wait_until(ready, 90, "a daemon with nodes")

    def drop(self, name: str, run: str, *, user: str = "alice", more: str = "") -> int:
        """Have a user copy a task file into pending/; give the exit code of `cp`."""
        text = f"kind: command\nrun: {json.dumps(run)}\n{more}"
        self.box.run("sh", "-c", f"cat > /tmp/{name}.yaml", stdin=text)
        copy = ("cp", f"/tmp/{name}.yaml", f"{SPOOL}/pending/{name}.yaml")
        return self.box.run(*copy, user=user, check=False).returncode

    def labd(self, *arguments: str, user: str = "alice") -> str:
        """Run labd's command line as a user, who need not be allowed to; give all that it says."""
        done = self.box.run("labd", *arguments, user=user, check=False)
        return done.stdout + done.stderr

    def doctor(self) -> list[dict[str, Any]]:
        """Give what `labd doctor` finds, as root."""
        found: list[dict[str, Any]] = json.loads(self.box.run("labd", "doctor", "--json", check=False).stdout)  # fmt: skip
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """Give what `labd nodes` tells."""
        found: list[dict[str, Any]] = json.loads(self.box.run("labd", "nodes", "--json").stdout)
        return found

    def state(self, task: str) -> str:
        """Give the state that a task's file is in; empty where it is nowhere."""
        found = self.box.sh(f"ls -d {SPOOL}/*/{task}.yaml 2>/dev/null || true").split()
        return Path(found[0]).parent.name if found else ""

    def wait(self, task: str, state: str, timeout_s: float = 90) -> None:
        """Wait until a task's file is in that state's directory."""
        self.box.wait(f"{SPOOL}/{state}/{task}.yaml", timeout_s)

    def beats(self, task: str) -> int:
        """Count how often a `STEADY` command has beaten."""
        return int(self.box.sh(f"cat {RESULTS}/{task}/files/beats 2>/dev/null | wc -l"))

    def wait_beats(self, task: str, count: int = 3) -> None:
        """Wait until it has beaten so often."""
        wait_until(lambda: self.beats(task) >= count, 60, f"{count} beats of {task}")

    def let_end(self, task: str) -> None:
        """Have a `STEADY` command end, be it that it begins anew."""
        self.box.run("touch", f"{RESULTS}/{task}/files/stop", user="labd")

    def events(self, task: str) -> list[dict[str, Any]]:
        """Give what is on record of a task."""
        raw = self.box.run("cat", f"{RESULTS}/{task}/events.jsonl", check=False).stdout
        return [json.loads(line) for line in raw.splitlines()]

    def story(self, task: str) -> list[str]:
        """Give the names of a task's events."""
        return [event["event"] for event in self.events(task)]

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Give entries of the box's journal."""
        told = self.box.run("journalctl", "--no-pager", "-o", "json", *matches, check=False).stdout
        return [json.loads(line) for line in told.splitlines() if line.startswith("{")]
