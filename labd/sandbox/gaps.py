"""Which promises of a sandbox this host can't keep: found by trying, not by asking for versions.

Every try has a time limit. bubblewrap's own words are translated into what an owner can do.
"""

import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

from labd.errors import SandboxError
from labd.promises import PROMISES
from labd.sandbox.command import syscall_filter
from labd.sandbox.interpreter import interpreter
from labd.sandbox.model import Ending, Gap, Limits, SandboxResult

_TOOL_TIMEOUT_S = 5.0
_MIN_VERSION = (0, 8)
_INSTALL = "Install it: apt-get install bubblewrap (or your system's package of that name)"
_UNPRIVILEGED = (
    "Allow unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1 and"
    " user.max_user_namespaces=10000; on Ubuntu 23.10 and later write /etc/apparmor.d/bwrap with"
    " `profile bwrap /usr/bin/bwrap flags=(unconfined) { userns, }` and reload AppArmor; under systemd"
    " leave RestrictNamespaces off"
)
_MASKED_PROC = (
    "A container hides parts of /proc: start it with --security-opt systempaths=unconfined"
    " --security-opt seccomp=unconfined (Podman: --security-opt unmask=ALL), or run labd outside"
)
_OTHER_USER = (
    "Here root may not become another user: run labd as an ordinary user, or choose a sandbox uid"
    " that this container's user mapping has"
)
_POWERLESS = (
    "Here root is not allowed what root is: run labd as an ordinary user, or outside the container"
)
_CONFINED = (
    "Leave labd free to set resource limits: see the security module's log (dmesg, journalctl)"
)
_DELEGATE = (
    "Start labd where systemd gives it a control group (a unit with Delegate=yes; in a shell: systemd-run --user"
    " --scope -p Delegate=yes labd up), or accept that the memory of all processes together is only looked at"
    " ten times a second: sandbox: {allow_missing: [cgroup]}"
)
_REMEDIES = (
    ("control group:", "cgroup", _DELEGATE),
    ("unshare: ", "root", _POWERLESS),
    ("mount: ", "root", _POWERLESS),
    ("prctl: ", "root", _POWERLESS),
    ("chown to", "uid", _OTHER_USER),
    ("setgroups: ", "uid", _OTHER_USER),
    ("setresgid: ", "uid", _OTHER_USER),
    ("setresuid: ", "uid", _OTHER_USER),
    ("prlimit: ", "limits", _CONFINED),
    ("mount proc", "proc", _MASKED_PROC),
    ("uid map", "userns", _UNPRIVILEGED),
    ("namespace", "userns", _UNPRIVILEGED),
    ("RTM_NEWADDR", "userns", _UNPRIVILEGED),
)
_INTERFACE = re.compile(r" *([^\s:]+): +\d")
# Only what a shell and cat can do, to be quick.
PROBE = """cat /proc/self/status /proc/net/dev
echo "env:$(tr '\\0' '\\n' </proc/1/environ | cut -d= -f1 | tr '\\n' ' ')"
[ -e "$1" ] && echo canary:seen
unshare -U true 2>/dev/null && echo userns:made
( : >/usr/labd-probe ) 2>/dev/null && echo usr:written
echo probe:done"""


# Each line says that something was possible. What starts many processes comes last: nothing can start after it.
_LIMITS_PROBE = """cat /proc/self/limits
for file in /work/a /tmp/a /dev/shm/a; do head -c 3M /dev/zero >$file; done 2>/dev/null
[ $(wc -c </tmp/a) -gt 2097152 ] && echo open:tmp_size
[ $(wc -c </dev/shm/a) -gt 2097152 ] && echo open:shm_size
head -c 5M /dev/zero 2>/dev/null >/work/b
[ $(wc -c </work/b) -gt 4194304 ] && echo open:file_size
( i=0; while [ $i -lt 24 ]; do sleep 60 & i=$((i+1)); done; echo open:processes ) 2>/dev/null
echo probe:done"""
_MIB = 2**20


def _limits(**changes: float) -> Limits:
    small = {"wall_s": 20, "memory_bytes": 128 * _MIB, "processes": 16, "disk_bytes": 32 * _MIB}
    return Limits(**{**small, "output_bytes": 2**16, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Trial:
    """A run that goes beyond one limit, and what must come of it."""

    name: str
    script: str
    limits: Limits
    ending: Ending


LIMITS_TRIAL = Trial(
    "limits",
    _LIMITS_PROBE,
    _limits(file_bytes=4 * _MIB, tmp_bytes=2 * _MIB, shm_bytes=2 * _MIB),
    Ending.EXITED,
)
# Each would go on for a minute if its limit did not hold.
TRIALS = (
    Trial("time", "sleep 60", _limits(wall_s=0.1), Ending.TIMED_OUT),
    Trial("cpu_time", "while :; do :; done", _limits(cpu_s=0.05), Ending.CPU_LIMIT),
    Trial("output", "yes", _limits(output_bytes=4096), Ending.OUTPUT_LIMIT),
    Trial(
        "disk",
        "head -c 4M /dev/zero >a; sleep 60",
        _limits(disk_bytes=_MIB),
        Ending.DISK_LIMIT,
    ),
    Trial(
        "file_count",
        "for i in 1 2 3 4 5 6 7 8; do : >$i; done; sleep 60",
        _limits(files=4),
        Ending.DISK_LIMIT,
    ),
)
GROUP_TRIAL = Trial(
    "cgroup",
    "head -c 48M /dev/zero >/tmp/a; sleep 60",
    _limits(memory_bytes=32 * _MIB, tmp_bytes=64 * _MIB),
    Ending.MEMORY_LIMIT,
)


def of_group(problem: str) -> Gap:
    """Give the gap of a host on which runs have no control group with a limit for memory."""
    return Gap("cgroup", f"no kernel limit for the memory of a whole run: {problem}", _DELEGATE)


def of_cpus(cpus: float) -> Gap:
    """Give the gap of a run that asks for a limit of CPUs where there is no control group for that."""
    fix = "Leave `cpus` out, or: " + _DELEGATE.replace("[cgroup]", "[cpus]").replace(
        "that the memory of all processes together is only looked at ten times a second",
        "that this limit does not hold",
    )
    return Gap("cpus", f"a run can't be held to {cpus:g} CPUs here", fix)


def of_limits(output: str, limits: Limits) -> list[Gap]:
    """Give the limits that the kernel does not hold, by what `LIMITS_TRIAL` said."""
    lines = output.splitlines()
    open_ones = {line.removeprefix("open:") for line in lines if line.startswith("open:")}
    data = next((line.split()[3] for line in lines if line.startswith("Max data size")), "?")
    if not data.isdecimal() or int(data) > limits.memory_bytes:
        open_ones.add("process_memory")
    if "probe:done" not in lines:
        open_ones.add("limits")
    return [_unheld(name) for name in sorted(open_ones)]


def of_trial(trial: Trial, result: SandboxResult) -> list[Gap]:
    """Give the gap that a trial found, if any."""
    return [] if result.ending is trial.ending else [_unheld(trial.name)]


def _unheld(name: str) -> Gap:
    fix = "This host's bubblewrap or kernel does something unusual: update them"
    return Gap(name, f"a limit does not hold here: {PROMISES[name]}, is what should be", fix)


def of_tools(bwrap: str) -> list[Gap]:
    """Give the gaps that show before anything is started."""
    gaps = []
    if not shutil.which(bwrap):
        gaps.append(Gap("bwrap", f"{bwrap} is not installed", _INSTALL))
    elif (version := _version(bwrap)) < _MIN_VERSION:
        shown = ".".join(map(str, version)) or "unknown"
        gaps.append(Gap("bwrap", f"{bwrap} has version {shown}, below 0.8", _INSTALL))
    if syscall_filter() is None:
        what = "there is no filter of system calls for this machine"
        gaps.append(Gap("seccomp", what, "Run experiments on x86_64 or aarch64"))
    try:
        interpreter()
    except SandboxError as error:
        gaps.append(Gap("interpreter", error.what, error.fix))
    return gaps


def of_start(words: str) -> Gap:
    """Translate bubblewrap's words about why it did not start."""
    for sign, name, fix in _REMEDIES:
        if sign in words:
            return Gap(name, f"bubblewrap can't set up a sandbox here: {words}", fix)
    fix = "Try `bwrap --ro-bind / / --unshare-all true` by hand"
    return Gap("start", f"bubblewrap can't set up a sandbox here: {words}", fix)


def of_probe(output: str, env_names: Collection[str], *, filtered: bool) -> list[Gap]:
    """Give the promises that a sandboxed probe found broken."""
    lines = output.splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    interfaces = [found[1] for line in lines if (found := _INTERFACE.match(line))]
    env = next(
        (line.removeprefix("env:").split() for line in lines if line.startswith("env:")), ["?"]
    )
    kept = {
        "probe": "probe:done" in lines,
        "network": interfaces == ["lo"],
        "capabilities": all(
            int(status.get(key, "1"), 16) == 0 for key in ("CapEff", "CapPrm", "CapInh")
        ),
        "no_new_privs": status.get("NoNewPrivs") == "1",
        "filter": status.get("Seccomp") == "2" or not filtered,
        "files": "canary:seen" not in lines and "usr:written" not in lines,
        "nested": "userns:made" not in lines,
        "environment": set(env) <= {*env_names, "PWD"},
    }
    fix = "This host's bubblewrap or kernel does something unusual: update them"
    return [
        Gap(name, f"a sandbox did not keep its promise about: {name}", fix)
        for name, ok in kept.items()
        if not ok
    ]


def _version(bwrap: str) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [bwrap, "--version"], capture_output=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    words = done.stdout.decode(errors="replace").split()
    return tuple(int(part) for part in words[-1].split(".") if part.isdecimal()) if words else ()
