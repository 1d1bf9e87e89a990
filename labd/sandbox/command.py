"""What bubblewrap is told: which parts of the host a run sees, and as what. Starts nothing.

Inside: the system's programs and labd's own Python, read-only; a private, sized ``/tmp``, ``/dev/shm``
and ``HOME``; fresh ``/proc`` and ``/dev``; the inputs, read-only; and one writable directory, ``/work``.
Nothing else of the host is there, so that nothing has to be hidden.

Source: bwrap(1) of 0.8.0. The order of the arguments matters.
"""

import functools
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from labd.errors import SandboxError
from labd.sandbox import seccomp
from labd.sandbox.interpreter import WORK, Bind, Interpreter
from labd.sandbox.model import Request

HOME = "/home/lab"
INSIDE_UID = 1000
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
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
# What a distribution's TLS libraries look for; keys lie in directories beside these.
_ETC_TLS = (
    "ssl/openssl.cnf", "ssl/cert.pem", "ca-certificates", "pki/tls/certs", "pki/tls/cert.pem", "pki/ca-trust/extracted",
)  # fmt: skip
_EXTRA = ("/nix/store", "/run/opengl-driver", "/opt/rocm")
_NVIDIA = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
_HOSTS = "127.0.0.1 localhost lab\n::1 localhost\n"
_FILES = {
    "/etc/passwd": f"lab:x:{INSIDE_UID}:{INSIDE_UID}:lab:{HOME}:/bin/sh\n",
    "/etc/group": f"lab:x:{INSIDE_UID}:\n",
    "/etc/hosts": _HOSTS,
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
# Copied, not bound: some are links to where the run's user may not look.
_RESOLVER = ("resolv.conf", "gai.conf", "host.conf", "services", "protocols")
_MAX_ETC_BYTES = 2**20


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
    args = ["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts"]
    args += ["--unshare-cgroup-try", *([] if request.network else ["--unshare-net"])]
    args += [] if nested else ["--disable-userns", "--assert-userns-disabled"]
    args += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"]
    args += ["--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID), "--hostname", "lab", "--clearenv"]
    args += [*_system(), *(_tls() if request.network else ()), "--proc", "/proc", "--dev", "/dev"]
    for place, size_bytes in (
        (SHM, limits.shm_bytes),
        (TMP, limits.tmp_bytes),
        (HOME, limits.tmp_bytes),
    ):
        args += ["--size", str(size_bytes), "--tmpfs", place]
    args += ["--symlink", f"..{TMP}", f"/var{TMP}"]
    args += _devices(request.gpus)
    for bind in binds:
        args += ["--bind" if bind.writable else "--ro-bind", sources[bind.inside], bind.inside]
    args += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK]
    for name, value in environment(python, network=request.network).items():
        args += ["--setenv", name, value]
    return args, _FILES | (_resolver_files() if request.network else {})


def _tls() -> Iterator[str]:
    for path in (Path("/etc") / name for name in _ETC_TLS):
        yield from ("--ro-bind-try", str(path), str(path))


def _resolver_files() -> dict[str, str]:
    """Give the texts by which the host finds names, as far as it has them."""
    texts = {f"/etc/{name}": _text_of(Path("/etc") / name) for name in _RESOLVER}
    found = {path: text for path, text in texts.items() if text}
    found["/etc/hosts"] = _HOSTS + _text_of(Path("/etc/hosts"))
    found["/etc/nsswitch.conf"] = _FILES["/etc/nsswitch.conf"].replace(
        "hosts: files", "hosts: files dns"
    )
    return found


def _text_of(path: Path) -> str:
    with suppress(FileNotFoundError), path.open(errors="surrogateescape") as file:
        return file.read(_MAX_ETC_BYTES)
    return ""


@functools.cache
def _system() -> tuple[str, ...]:
    return tuple(_system_binds())


def _system_binds() -> Iterator[str]:
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


def environment(python: Interpreter, *, network: bool) -> dict[str, str]:
    """Give the environment that a sandbox has of itself."""
    offline = {} if network else {"HF_HUB_OFFLINE": "1"}
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
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        **offline,
    }


@functools.cache
def syscall_filter() -> bytes | None:
    """Give the filter for this machine, or ``None`` where there is no table for it."""
    return seccomp.program(platform.machine())
