"""A machine for the tests: the real systemd as process 1, in a root that is laid over this machine's and thrown away.

It has its own processes, network (a loopback), users' files and control groups, and this machine's kernel and programs.
`/var/lib/labd` can be a disk of its own, of a size, that loses what was not synced when the power is cut: an ext4 in a
file, of which a cut keeps what had reached the file.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.processes import wait_until

_SYSTEMD = Path("/lib/systemd/systemd")
_CGROUP = Path("/sys/fs/cgroup")
_HIERARCHIES = (
    "blkio",
    "cpuset",
    "cpu",
    "cpuacct",
    "memory",
    "pids",
    "devices",
    "freezer",
    "systemd",
    "unified",
)
# Units of this machine that a box must not start: they would set up the hardware again, or take long and do nothing here.
_NOT_HERE = (
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket"),
    *("systemd-udevd-kernel.socket", "systemd-modules-load.service", "systemd-sysctl.service"),
    *("systemd-binfmt.service", "systemd-remount-fs.service", "systemd-random-seed.service"),
    *("systemd-hwdb-update.service", "systemd-timesyncd.service", "getty.target", "timers.target"),
    *("systemd-networkd.service", "systemd-resolved.service", "proc-sys-fs-binfmt_misc.automount"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount"),
)
_BOOT_TIMEOUT_S = 60.0


def why_no_box() -> str:
    """Say why there can be no such machine here; an empty text: there can."""
    if os.geteuid() != 0:
        return "needs root: it boots a systemd of its own"
    if not _SYSTEMD.exists():
        return "needs systemd (apt-get install systemd)"
    tools = ("unshare", "nsenter", "pivot_root", "mkfs.ext4", "runuser", "bwrap")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)}"
    return _tried()


def _tried() -> str:
    """Try what a box is made of, in namespaces that are gone at once."""
    trial = (
        "mount --make-rprivate / && d=$(mktemp -d) && mount -t tmpfs tmpfs $d && mkdir $d/u $d/w $d/r"
        " && mount -t overlay overlay -o lowerdir=/,upperdir=$d/u,workdir=$d/w $d/r && mount -t cgroup2 cgroup2 /mnt"
        "; code=$?; umount -l $d; rmdir $d; exit $code"
    )
    spaces = ("--fork", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")
    tried = subprocess.run(
        ["unshare", *spaces, "sh", "-c", trial], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"namespaces with mounts of their own are not to be had: {tried.stderr.strip()}"
    try:
        for group in _groups("labd-test-trial"):
            group.mkdir()
            group.rmdir()
    except OSError as error:
        return f"control groups can't be made: {error}"
    return ""


SOURCE = "/opt/source"


class Box:
    """One machine. `boot` it, `run` commands, `cut` its power, `boot` it again; `remove` it at the end.

    Args:
        name: of the machine.
        packages: a directory of this machine that it sees as /opt/packages.
        source: one that it sees as `SOURCE`, and may write to without anything of that reaching it.
        disk_mib: the size of its `/var/lib/labd`.

    """

    def __init__(self, name: str, *, packages: Path, source: Path, disk_mib: int = 0) -> None:
        self.name = name
        self.home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/var/tmp"))
        self._groups = _groups(f"labd-test-{self.home.name}")
        self._packages = packages
        self._init: subprocess.Popen[bytes] | None = None
        # Everything of the box is mounted in this process's namespace, and goes with it, however a test ends.
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        mine = _mounts_of(os.getpid())
        wait_until(lambda: _mounts_of(self._holder.pid) != mine, 10, "a mount namespace")
        self._hold(f"mount -t tmpfs -o mode=755 tmpfs {self.home}")
        self._hold(f"cd {self.home} && mkdir upper work root packages source written written-work")
        self._hold(f"mount --bind {packages} {self.home}/packages")
        self._hold(f"mount --bind {source} {self.home}/source")
        self._disk = 0
        if disk_mib:
            self._new_disk(disk_mib)
        self._prepare()

    # --- the machine's life

    def boot(self) -> None:
        """Switch it on, and wait until it has come up."""
        for group in self._groups:
            group.mkdir(exist_ok=True)
        enter = "; ".join(f"echo $$ > {group}/cgroup.procs" for group in self._groups)
        spaces = "--fork --pid --mount --uts --ipc --net --cgroup"
        script = Path(__file__).with_name("boot.sh")
        console = (Path(tempfile.gettempdir()) / f"{self.home.name}.console").open("ab")
        with console:
            self._console = Path(console.name)
            self._init = subprocess.Popen(
                [
                    *("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "sh", "-c"),
                    f"{enter}; exec unshare {spaces} sh {script} {self.home} {self.name}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while not self._is_up():
            if time.monotonic() > deadline or self._init.poll() is not None:
                raise AssertionError(f"the box did not come up: {self.console()[-3000:]}")
            time.sleep(0.1)

    def console(self) -> str:
        """Give what its systemd has said."""
        return self._console.read_text(errors="replace")

    def cut(self) -> None:
        """Cut the power: everything stops at one moment. What had not reached the disk is lost, if it has one."""
        image = self.home / f"disk{self._disk}"
        self._freeze(frozen=True)
        if self._disk:
            self._hold(f"cp --sparse=always {image} {self.home}/disk{self._disk + 1}")
        self._kill()
        if self._disk:
            self._disk += 1
            self._hold(f"umount {self.home}/var && rm {image}")
            self._hold(f"mount -o loop {self.home}/disk{self._disk} {self.home}/var")

    def remove(self) -> None:
        """Switch it off and throw it away."""
        self._kill()
        assert self._holder.stdin is not None
        self._holder.stdin.close()  # which ends it
        self._holder.wait(10)
        for group in self._groups:
            for inside in sorted(group.rglob("*/"), reverse=True):
                inside.rmdir()
            if group.exists():
                group.rmdir()
        self._console.unlink(missing_ok=True)
        self.home.rmdir()

    # --- commands

    @property
    def init_pid(self) -> int:
        """The process id, as this machine counts, of its process 1."""
        pid = self._pid_one()
        assert pid is not None, "the box is off"
        return pid

    def run(
        self,
        *command: str,
        user: str = "",
        stdin: str = "",
        check: bool = True,
        timeout_s: float = 60.0,
        env: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root or as a user with all his groups."""
        as_user = ("runuser", "-u", user, "--") if user else ()
        done = subprocess.run(
            [*self._enter(), *as_user, "env", *env, *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            told = f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            raise AssertionError(told)
        return done

    def sh(self, script: str, **how: str) -> str:
        """Run a line of shell in it, as root; give its output."""
        return self.run("sh", "-c", script, **how).stdout  # type: ignore[arg-type]

    def exists(self, path: str) -> bool:
        """Say whether there is such a file in it."""
        return self.run("test", "-e", path, check=False).returncode == 0

    def show(self, unit: str, what: str) -> str:
        """Give a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", what, unit).stdout.strip()

    def main_pid(self, unit: str) -> int:
        """Give the process id, as the box counts, of a unit's main process."""
        return int(self.show(unit, "MainPID"))

    def wait(self, path: str, timeout_s: float = 60.0) -> None:
        """Wait until there is such a file in it."""
        wait_until(lambda: self.exists(path), timeout_s, f"{path} in the box")

    # --- inside

    def _enter(self) -> tuple[str, ...]:
        spaces = ("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd")
        return ("nsenter", "-t", str(self.init_pid), *spaces)

    def _pid_one(self) -> int | None:
        assert self._init is not None
        pid = self._init.pid
        # nsenter became sh, and that unshare, whose child is process 1 of the box.
        children = Path(f"/proc/{pid}/task/{pid}/children")
        try:
            found = children.read_text().split()
        except FileNotFoundError:
            return None
        return int(found[0]) if found else None

    def _is_up(self) -> bool:
        pid = self._pid_one()
        if pid is None or Path(f"/proc/{pid}/comm").read_text().strip() != "systemd":
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}

    def _kill(self) -> None:
        if self._init is None:
            return
        pid = self._pid_one()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self._freeze(frozen=False)
        self._init.wait(20)
        self._init = None

    def _freeze(self, *, frozen: bool) -> None:
        old = [group / "freezer.state" for group in self._groups if group.parent.name == "freezer"]
        if old:
            state, wanted = old[0], "FROZEN" if frozen else "THAWED"
            state.write_text(wanted)
        else:
            (self._groups[0] / "cgroup.freeze").write_text("1" if frozen else "0")
            state, wanted = self._groups[0] / "cgroup.events", f"frozen {int(frozen)}"
        wait_until(lambda: wanted in state.read_text().splitlines(), 10, wanted)

    def _hold(self, script: str) -> None:
        subprocess.run(
            ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "sh", "-ec", script],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def _new_disk(self, size_mib: int) -> None:
        self._disk = 1
        self._hold(
            f"cd {self.home} && mkdir var && truncate -s {size_mib}M disk1"
            f" && mkfs.ext4 -q -m 0 disk1 && mount -o loop disk1 var"
        )

    def _prepare(self) -> None:
        """Lay out what the overlay hides of this machine."""
        upper = f"{self.home}/upper"
        # What this machine starts of its own accord is no business of the box.
        wanted = {path.name for path in Path("/etc/systemd/system").glob("*.wants/*")}
        masks = " ".join(sorted({*_NOT_HERE, *wanted}))
        self._hold(
            f"mkdir -p {upper}/etc/systemd/system {upper}/opt/packages {upper}/var/lib/labd"
            f"; cd {upper}/etc; for unit in {masks}; do ln -s /dev/null systemd/system/$unit; done"
            f"; printf '127.0.0.1 localhost {self.name}\\n' > hosts; echo {self.name} > hostname; : > fstab; : > resolv.conf"
        )


def _groups(name: str) -> list[Path]:
    if (_CGROUP / "cgroup.controllers").exists():
        return [_CGROUP / name]
    return [_CGROUP / one / name for one in _HIERARCHIES if (_CGROUP / one).is_dir()]


def _mounts_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/mnt").readlink())
