"""What `labd doctor` looks at: whether this machine can keep what labd promises, found out by trying."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from labd import machine
from labd.findings import Finding, Level
from labd.hooks import problems_of, shown_name
from labd.installation import examine_nodes, examine_ports, examine_service
from labd.inventory import different_weights, router_of
from labd.lab import Lab
from labd.llm.budget import TokenRate
from labd.llm.desk import Side
from labd.llm.finding import own_ollama_urls
from labd.llm.model import Look, is_remote_name, name_of
from labd.llm.report import report
from labd.sandbox import Sandbox, SandboxConfig
from labd.settings import Home
from labd.task import State
from labd.template import list_templates
from labd.text import printable

__all__ = ["Finding", "Level", "examine"]

_ENOUGH_FREE_BYTES = 2 * 2**30
_MAX_TASKS = 200
_REPLY_TOKENS = 2048
_SHOWN_SUFFIXES = {".py", ".md", ".txt", ".json", ".yaml"}
"""Of a template's files, those that a model that works on it has to see."""


def examine(home: Home) -> Iterator[Finding]:
    """Look at one thing after the other, giving each finding as soon as it is known."""
    checks: list[Callable[[Home], Iterator[Finding]]] = [
        _python,
        _ray,
        examine_service,
        _sandbox,
        lambda _: examine_ports(),
        _disk,
        _gpu,
        _models,
        _notify,
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
    if home.settings.ray.address is not None:
        yield from examine_nodes(home)  # work runs there, in units of their own
        return
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
        if free < max(limit := home.settings.min_free_bytes, _ENOUGH_FREE_BYTES):
            yield Finding(
                f"disk: {name}",
                Level.FAILING if free < limit else Level.WARNING,
                f"{free >> 20} MiB free at {path}"
                + ("; nothing is claimed until there is more" if free < limit else ""),
                f"Make room (`labd prune --dry-run`, docs/operations.md); labd claims nothing below {limit >> 20} MiB",
            )
        else:
            yield Finding(f"disk: {name}", Level.OK, f"{free >> 30} GiB free at {path}")


def _gpu(_home: Home) -> Iterator[Finding]:
    found, reason = machine.gpus()
    for gpu in found:
        free, of = gpu["memory_bytes"] - gpu["used_bytes"], gpu["memory_bytes"]
        told = f"{gpu['name']}, {free >> 20} of {of >> 20} MiB free"
        yield Finding(f"gpu {gpu['index']}", Level.OK, told)
    if "driver" in reason:
        yield Finding("gpu", Level.WARNING, reason, "Run nvidia-smi and mend what it says")
    elif not found:
        yield Finding("gpu", Level.NOTE, f"{reason}; everything runs on the CPU")


def _models(home: Home) -> Iterator[Finding]:
    router = router_of(home)
    sides = list(router.desk.sides.values())
    if not sides:
        own = own_ollama_urls(os.environ)[0]
        what = f"none configured, and no Ollama answers at {own}; researcher: sweep needs none"
        yield Finding("language models", Level.NOTE, what)
        return
    yield from map(_endpoint, sides)
    for name, digests in different_weights(report(router.desk, 0.0, {})["endpoints"]).items():
        who = "; ".join(
            f"{digest.removeprefix('sha256:')[:12]} on {', '.join(map(printable, endpoints))}"
            for digest, endpoints in digests.items()
        )
        yield Finding(
            f"model {name}",
            Level.WARNING,
            f"different weights under one name: {who}",
            f"On those that are behind: ollama pull {name}",
        )
    for wanted, by in _wanted(home).items():
        yield from _model(home, sides, wanted, by)
    yield from _contexts(home, sides)


def _endpoint(side: Side) -> Finding:
    name = f"endpoint {printable(side.name, 60)}"
    url, look = printable(side.endpoint.url, 200), side.look or Look("down")
    if look.problem:
        found = f"{url}: {printable(look.problem, 200)}"
        return Finding(name, Level.FAILING, found, printable(look.fix, 300))
    models = ", ".join(printable(model.name, 60) for model in (look.models or ())[:8])
    state = "" if look.health == "up" else f" ({look.health})"
    return Finding(name, Level.OK, f"{url}{state}: {models or 'no models yet'}")


def _notify(home: Home) -> Iterator[Finding]:
    for rule in home.settings.notify:
        name = f"notify: {shown_name(rule)}"
        problems = [*problems_of(rule, home.root)]
        for what, fix in problems:
            yield Finding(name, Level.WARNING, what, fix)
        if not problems:
            yield Finding(name, Level.OK, f"told of {', '.join(rule.on)}; `labd notify` tries it")


def _wanted(home: Home) -> dict[str, str]:
    """Give the models that are wanted, each with who wants it: the settings, or tasks that wait or run."""
    wanted = {home.settings.llm.model: "the settings"} if home.settings.llm.model else {}
    lab = Lab(home)
    for view in lab.tasks((State.RUNNING, State.PENDING), limit=_MAX_TASKS):
        for model in view.models:
            wanted.setdefault(model, view.id)
    return {model: printable(by, 80) for model, by in wanted.items()}


def _model(home: Home, sides: Sequence[Side], wanted: str, by: str) -> Iterator[Finding]:
    shown = printable(wanted, 100)
    known = [side.models[name_of(wanted)] for side in sides if name_of(wanted) in side.models]
    remote = is_remote_name(wanted) or (known and all(model.remote for model in known))
    if remote and not home.settings.llm.allow_remote:
        what = f"runs on somebody else's machines, and {by} wants it"
        fix = "Choose a local model, or write `llm: {allow_remote: true}` into config/labd.yaml"
        yield Finding(f"model {shown}", Level.FAILING, what, fix)
    elif not known and any(side.endpoint.pull for side in sides):
        what = f"no endpoint has it, and {by} wants it; it will be downloaded"
        yield Finding(f"model {shown}", Level.NOTE, what)
    elif not known:
        what = f"no endpoint that answers has it, and {by} wants it"
        yield Finding(f"model {shown}", Level.FAILING, what, f"ollama pull {shown}")


def _contexts(home: Home, sides: Sequence[Side]) -> Iterator[Finding]:
    """Say which templates the default model could not be shown whole, with room for a reply."""
    model = home.settings.llm.model
    known = [side.models.get(name_of(model)) for side in sides] if model else []
    longest = max((one.max_ctx for one in known if one), default=0)
    has, whose = home.settings.llm.num_ctx, "`llm: {num_ctx: …}` says"
    if longest and longest < has:
        has, whose = longest, f"{printable(model or '', 60)} knows"
    for name, directory in list_templates([home.templates]).items():
        needs = TokenRate().estimate(_text_bytes(directory)) + _REPLY_TOKENS
        if needs > has:
            yield Finding(
                f"context: {printable(name, 60)}",
                Level.WARNING,
                f"the template's files and a reply need about {needs} tokens, and {whose} {has}",
                f"Set `llm: {{num_ctx: {needs}}}` in config/labd.yaml, and choose a model that knows as much",
            )


def _text_bytes(directory: Path) -> int:
    paths = (path for path in directory.iterdir() if path.suffix in _SHOWN_SUFFIXES)
    return sum(path.stat().st_size for path in paths if path.is_file())
