"""What bubblewrap is told: which parts of the host a run sees, and as what. Starts nothing.

Inside: the system's programs and labd's own Python, read-only; a private, sized ``/tmp``, ``/dev/shm``
and ``HOME``; fresh ``/proc`` and ``/dev``; the inputs, read-only; and one writable directory, ``/work``.
Nothing else of the host is there, so that nothing has to be hidden.

Source: bwrap(1) of 0.8.0; prlimit(1). The order of the arguments matters.
"""

import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labd.errors import SandboxError
from labd.sandbox import seccomp
from labd.sandbox.model import Limits, Request

WORK = "/work"
HOME = "/home/lab"
INSIDE_UID = 1000
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
# A virtual environment below /work would be hidden by, or litter, the run's own /work.
_MOVED = "/opt/labd"
TMP = "/tmp"  # noqa: S108 - a place inside, private to the run
SHM = "/dev/shm"  # noqa: S108 - the same
_OWN_PLACES = (
    "/proc",
    "/dev",
    "/sys",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc",
    TMP,
    HOME,
)
_ETC = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "fonts", "ssl/certs", "OpenCL",
)  # fmt: skip
_EXTRA = ("/nix/store", "/run/opengl-driver", "/opt/rocm")
_NVIDIA = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
_FILES = {
    "/etc/passwd": f"lab:x:{INSIDE_UID}:{INSIDE_UID}:lab:{HOME}:/bin/sh\n",
    "/etc/group": f"lab:x:{INSIDE_UID}:\n",
    "/etc/hosts": "127.0.0.1 localhost lab\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
# The supervisor says go when it holds a handle on process 1; if it dies before that, nothing runs.
# Process 1 is this shell: it reaps orphans, and when it ends the kernel kills whatever is left.
_GATE = """{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null
echo READY
read -r word && [ "$word" = go ] || exit 97
"$@" </dev/null
exit $?"""
READY = b"READY\n"
GO = b"go\n"


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path, resolved, and where it is seen inside."""

    source: Path
    inside: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Interpreter:
    """labd's own Python as a run sees it."""

    executable: str
    binds: tuple[Bind, ...]


def interpreter() -> Interpreter:
    """Find what has to be seen of the running Python: its prefixes and each hop of its links.

    Raises:
        SandboxError: the interpreter lies where it can't be shown without showing too much.

    """
    if not sys.executable:
        raise SandboxError(
            "the running Python doesn't know its own path", fix="Start labd from a venv"
        )
    binds: dict[str, Bind] = {}
    for prefix in dict.fromkeys(
        (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)
    ):
        for path in dict.fromkeys((os.path.normpath(prefix), os.path.realpath(prefix))):
            _refuse_wide(path)
            if not _seen(path, binds):
                binds[_inside(path)] = Bind(Path(path).resolve(), _inside(path))
    for hop in _hops(sys.executable):
        if not _seen(hop, binds):
            binds[_inside(hop)] = Bind(Path(hop).resolve(), _inside(hop))
    return Interpreter(_inside(os.path.normpath(sys.executable)), tuple(binds.values()))


def _refuse_wide(path: str) -> None:
    wide = {"/", "/home", "/root", "/opt", "/var", "/srv", "/mnt", os.environ.get("HOME", "/")}
    # A virtual environment may be moved aside, but names its base by path.
    base = path in {os.path.normpath(sys.base_prefix), os.path.realpath(sys.base_prefix)}
    if path in wide or (base and _inside(path) != path):
        raise SandboxError(
            f"the running Python is installed in {path}, which a sandbox can't show",
            fix="Install labd in a virtual environment of its own, with a Python outside /work",
        )


def _inside(path: str) -> str:
    return _MOVED + path if path == WORK or path.startswith(WORK + "/") else path


def _seen(path: str, binds: Mapping[str, Bind]) -> bool:
    inside = PurePosixPath(_inside(path))
    return any(inside.is_relative_to(place) for place in (*binds, "/usr"))


def _hops(path: str) -> Iterator[str]:
    hop = Path(path)
    for _ in range(40):
        hop = Path(os.path.normpath(hop))
        yield str(hop)
        if not hop.is_symlink():
            return
        hop = hop.parent / hop.readlink()


def binds_of(request: Request, python: Interpreter) -> list[Bind]:
    """Give what a run sees of the host beyond the system, outer before inner places.

    Raises:
        SandboxError: an input has no proper place inside.

    """
    inputs = []
    for inside, source in request.read_only.items():
        path = PurePosixPath(inside)
        if (
            not path.is_absolute()
            or ".." in path.parts
            or str(path) in ("/", WORK)
            or _taken(path)
        ):
            raise SandboxError(
                f"an input can't be seen at {inside!r} in a sandbox",
                fix="Use an absolute path such as /inputs/template",
            )
        inputs.append(Bind(source, str(path)))
    inputs.sort(key=lambda bind: bind.inside.count("/"))
    return [Bind(request.workdir, WORK, writable=True), *python.binds, *inputs]


def _taken(path: PurePosixPath) -> bool:
    return any(path.is_relative_to(place) for place in _OWN_PLACES)


def options(
    request: Request,
    python: Interpreter,
    binds: Sequence[Bind],
    sources: Mapping[str, str],
    *,
    nested: bool,
) -> tuple[list[str], dict[str, str]]:
    """Give bubblewrap's options and the texts of the files that it has to make, by path inside.

    `sources` says, by place inside, under which path bubblewrap finds a bind. `nested`: leave the
    ban on nested user namespaces to the filter of system calls.
    """
    limits = request.limits
    args = ["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    args += ["--unshare-cgroup-try"]
    args += [] if nested else ["--disable-userns", "--assert-userns-disabled"]
    args += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"]
    args += ["--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID), "--hostname", "lab", "--clearenv"]
    args += [*_system(), "--proc", "/proc", "--dev", "/dev"]
    for place, size_bytes in (
        (SHM, limits.shm_bytes),
        (TMP, limits.tmp_bytes),
        (HOME, limits.tmp_bytes),
    ):
        args += ["--size", str(size_bytes), "--tmpfs", place]
    args += ["--symlink", f"..{TMP}", f"/var{TMP}"]
    args += list(_devices(request.gpus))
    for bind in binds:
        args += ["--bind" if bind.writable else "--ro-bind", sources[bind.inside], bind.inside]
    args += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK]
    for name, value in environment(request, python).items():
        args += ["--setenv", name, value]
    return args, dict(_FILES)


def _system() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for path in (Path("/bin"), Path("/sbin"), *sorted(Path("/").glob("lib*"))):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    for path in (*(Path("/etc") / name for name in _ETC), *map(Path, _EXTRA)):
        yield from ("--ro-bind-try", str(path), str(path))


def _devices(gpus: Sequence[int]) -> Iterator[str]:
    """Give the assigned GPUs' nodes and no others. Written from reports; never run on a machine with a GPU.

    Source: NVIDIA's container toolkit documentation on which nodes a container needs; /sys has to be
    seen for CUDA to start.
    """
    if gpus:
        yield from ("--ro-bind", "/sys", "/sys", "--tmpfs", "/sys/fs/cgroup")
        yield from ("--remount-ro", "/sys/fs/cgroup")
        for name in (*(f"nvidia{index}" for index in gpus), *_NVIDIA):
            yield from ("--dev-bind-try", f"/dev/{name}", f"/dev/{name}")
        return
    for name in ("cpu", "node"):
        path = f"/sys/devices/system/{name}"
        yield from ("--ro-bind-try", path, path)


def environment(request: Request, python: Interpreter) -> dict[str, str]:
    """Give the whole environment of a run: ours, and the caller's over it."""
    return {
        "PATH": f"{PurePosixPath(python.executable).parent}:{_SYSTEM_PATH}",
        "HOME": HOME,
        "USER": "lab",
        "LOGNAME": "lab",
        "TMPDIR": TMP,
        "LANG": "C.UTF-8",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": f"{HOME}/.config/matplotlib",
        "XDG_CACHE_HOME": f"{HOME}/.cache",
        "XDG_CONFIG_HOME": f"{HOME}/.config",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        **request.env,
    }


def inner(request: Request, python: Interpreter) -> list[str]:
    """Give the command that bubblewrap starts: wait for go, take the limits, run."""
    command = list(request.argv)
    if command[0] == "python":
        command[0] = python.executable
    return [
        "/bin/sh",
        "-c",
        _GATE,
        "sh",
        "prlimit",
        *_prlimit(request.limits, request.gpus),
        "--",
        *command,
    ]


def _prlimit(limits: Limits, gpus: Sequence[int]) -> Iterator[str]:
    wanted = {
        "nproc": (resource.RLIMIT_NPROC, limits.processes + 1),  # and the shell that waits for it
        "nofile": (resource.RLIMIT_NOFILE, 4096),
        "fsize": (resource.RLIMIT_FSIZE, limits.file_bytes),
        # Of 1, not 0: with 0 a core_pattern that is a program still gets the dump. Source: core(5).
        "core": (resource.RLIMIT_CORE, 1),
        "msgqueue": (resource.RLIMIT_MSGQUEUE, 0),
        "sigpending": (resource.RLIMIT_SIGPENDING, 1024),
    }
    if not gpus:  # the driver pins memory, and maps far more than it uses
        wanted["memlock"] = (resource.RLIMIT_MEMLOCK, 64 * 2**20)
        wanted["data"] = (resource.RLIMIT_DATA, limits.memory_bytes)
    for name, (number, value) in wanted.items():
        hard = resource.getrlimit(number)[1]
        yield f"--{name}={value if hard == resource.RLIM_INFINITY else min(value, hard)}"


def syscall_filter() -> bytes | None:
    """Give the filter for this machine, or ``None`` where there is no table for it."""
    return seccomp.program(platform.machine())
