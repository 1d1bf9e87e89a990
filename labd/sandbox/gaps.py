"""Which promises of a sandbox this host can't keep: found by trying, not by asking for versions.

Every try has a time limit. bubblewrap's own words are translated into what an owner can do.
"""

import re
import shutil
import subprocess
from collections.abc import Collection

from labd.errors import SandboxError
from labd.sandbox.command import syscall_filter
from labd.sandbox.interpreter import interpreter
from labd.sandbox.model import Gap

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
_REMEDIES = (
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
