"""What `labd doctor` looks at: whether this machine can keep what labd promises, found out by trying."""

import importlib.metadata
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from labd.errors import ConfigError
from labd.llm.client import connect
from labd.llm.model import Endpoint, Look
from labd.sandbox import Sandbox, SandboxConfig
from labd.settings import Home
from labd.text import printable

_ENOUGH_FREE_BYTES = 2 * 2**30


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report; `fix` says what to do where it is not ok."""

    name: str
    level: Level
    found: str
    fix: str = ""


def examine(home: Home) -> Iterator[Finding]:
    """Look at one thing after the other, giving each finding as soon as it is known."""
    checks: list[Callable[[Home], Iterator[Finding]]] = [
        _python,
        _ray,
        _sandbox,
        _disk,
        _gpu,
        _endpoints,
    ]
    for look in checks:
        yield from look(home)


def _python(_home: Home) -> Iterator[Finding]:
    # Older ones never come this far: pip refuses to install labd on them.
    yield Finding("python", Level.OK, f"{platform.python_version()} at {sys.executable}")


def _ray(home: Home) -> Iterator[Finding]:
    version = importlib.metadata.version("ray")
    how = home.settings.ray.address or "embedded: labd starts it on the loopback"
    yield Finding("ray", Level.OK, f"{version}, {how}")


def _sandbox(home: Home) -> Iterator[Finding]:
    settings = home.settings.sandbox
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        fix = "Install it: apt-get install bubblewrap (Debian, Ubuntu), dnf install bubblewrap (Fedora)"
        yield Finding(
            "bubblewrap",
            Level.FAILING,
            "not installed; experiments will not be run without it",
            fix,
        )
        return
    yield Finding("bubblewrap", Level.OK, bwrap)
    gaps = Sandbox(SandboxConfig(uid=settings.uid, allow_missing=settings.allow_missing)).gaps()
    for gap in gaps:
        accepted = gap.name in settings.allow_missing
        level = Level.WARNING if accepted else Level.FAILING
        yield Finding(
            f"sandbox: {gap.name}",
            level,
            gap.what + (" (accepted in the settings)" if accepted else ""),
            gap.fix,
        )
    if not gaps:
        yield Finding(
            "sandbox", Level.OK, "a sandbox starts, and what it promises was tried and holds"
        )


def _disk(home: Home) -> Iterator[Finding]:
    for name, path in (("spool", home.spool), ("results", home.results)):
        there = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(there).free
        if free < max(home.settings.min_free_bytes, _ENOUGH_FREE_BYTES):
            least = f"labd claims nothing below {home.settings.min_free_bytes >> 20} MiB"
            yield Finding(
                f"disk: {name}",
                Level.WARNING,
                f"{free >> 20} MiB free at {path}",
                f"Make room; {least}",
            )
        else:
            yield Finding(f"disk: {name}", Level.OK, f"{free >> 30} GiB free at {path}")


def _gpu(_home: Home) -> Iterator[Finding]:
    with warnings.catch_warnings():
        # The package pynvml 13 is a shell around nvidia-ml-py and says so whenever it is imported.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml  # noqa: PLC0415
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield Finding(
            "gpu",
            Level.NOTE,
            f"no GPU seen ({printable(str(error), 100)}); everything runs on the CPU",
        )
        return
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = printable(str(pynvml.nvmlDeviceGetName(handle)), 60)
            yield Finding(
                f"gpu {index}",
                Level.OK,
                f"{name}, {memory.free >> 20} of {memory.total >> 20} MiB free",
            )
    except pynvml.NVMLError as error:
        yield Finding(
            "gpu",
            Level.WARNING,
            f"the driver answers with an error: {error}",
            "Run nvidia-smi and mend what it says",
        )
    finally:
        pynvml.nvmlShutdown()


def _endpoints(home: Home) -> Iterator[Finding]:
    if not home.settings.endpoints:
        yield Finding(
            "endpoints", Level.NOTE, "no language models configured; researcher: sweep needs none"
        )
    for endpoint in home.settings.endpoints:
        name = f"endpoint {printable(endpoint.name, 60)}"
        try:
            client = connect(Endpoint(endpoint.name, endpoint.url, endpoint.api))
        except ConfigError as error:
            yield Finding(name, Level.FAILING, error.what, error.fix)
            continue
        look = client.look()
        client.close()
        yield _seen(name, client.url, look)


def _seen(name: str, url: str, look: Look) -> Finding:
    if look.problem:
        return Finding(name, Level.FAILING, f"{url}: {printable(look.problem, 200)}", look.fix)
    models = ", ".join(printable(model.name, 60) for model in (look.models or ())[:8])
    state = "" if look.health == "up" else f" ({look.health})"
    return Finding(name, Level.OK, f"{url}{state}: {models or 'no models yet'}")
