"""Machines and models: what there is, and whether it keeps the promises."""

import json
from typing import Annotated, Any

import typer

from labd.cli.base import (
    EXIT_FAILED,
    JsonOption,
    answer,
    app,
    err,
    open_home,
    open_lab,
    out,
    safe,
    table,
)


@app.command()
def models(*, as_json: JsonOption = False) -> None:
    """Show the language models, where each is, and what it does.

    Examples:  labd models      labd models --json
    """
    from labd import inventory

    found = inventory.models(open_lab())
    answer(as_json, found, lambda: _show_models(found))


@app.command()
def nodes(*, as_json: JsonOption = False) -> None:
    """Show the machines: what they have, and what runs there.

    With the servers of language models on each.

    Examples:  labd nodes      labd nodes --json
    """
    from labd import inventory

    lab = open_lab()
    found = inventory.nodes(lab)
    silent = "the daemon is starting" if lab.status().up else "no daemon runs"
    answer(as_json, found, lambda: _show_nodes(found, silent))


@app.command()
def drain(
    nodes: Annotated[list[str], typer.Argument(help="Names as `labd nodes` has them.")],
) -> None:
    """Have no new tasks go to machines; what runs there goes on.

    Holds until `labd undrain`.

    Examples:  labd drain ada      labd drain ada bob
    """
    _drain(nodes, drained=True)


@app.command()
def undrain(
    nodes: Annotated[list[str], typer.Argument(help="Names of drained machines.")],
) -> None:
    """Let new tasks go to drained machines again.

    Examples:  labd undrain ada      labd undrain ada bob
    """
    _drain(nodes, drained=False)


@app.command()
def doctor(*, as_json: JsonOption = False) -> None:
    """Try whether this machine can do all that labd needs.

    Says what to do where it can't.

    Examples:  labd doctor      labd doctor --json
    """
    from labd.doctor import Level, examine

    findings = []
    for finding in examine(open_home(make=False)):
        findings.append(finding)
        if not as_json:
            mark = {
                "ok": "ok     ",
                "note": "note   ",
                "warning": "WARNING",
                "failing": "FAILING",
            }[finding.level]
            out(f"{mark}  {finding.name}: {finding.found}")
            if finding.fix:
                out(f"         {finding.fix}")
    if as_json:
        out(
            json.dumps(
                [
                    {"name": f.name, "level": f.level, "found": f.found, "fix": f.fix}
                    for f in findings
                ],
                indent=2,
            )
        )
    if any(f.level is Level.FAILING for f in findings):
        raise typer.Exit(EXIT_FAILED)


def _drain(nodes: list[str], *, drained: bool) -> None:
    lab = open_lab()
    for node in nodes:
        changed = lab.drain(node, drained=drained)
        what = "gets no new tasks" if drained else "gets tasks again"
        out(f"{safe(node)} {what}" + ("" if changed else ", as before"))


def _show_models(found: dict[str, Any]) -> None:
    from labd.inventory import different_weights, endpoint_lines, model_lines

    rows = list(model_lines(found))
    if rows:
        table(("model", "endpoint", "state", "size", "context", "in flight", "digest"), rows)
    for line in endpoint_lines(found["endpoints"]):
        out(line)
    for model, count in found["waiting"].items():
        out(f"{count} requests wait for {model}")
    for model, note in found["notes"].items():
        out(f"{model}: {note}")
    for model in different_weights(found["endpoints"]):
        err(f"labd: {model} has different weights under the same name; `labd doctor` says where")
    if not found["endpoints"]:
        err("labd: no endpoint; name one in config/labd.yaml, or start Ollama on this machine")
    if not found["live"]:
        err("labd: asked just now; what is in flight is known only while tasks use models")


def _show_nodes(found: list[dict[str, Any]], silent: str) -> None:
    from labd.inventory import endpoint_lines, machine_lines, state_lines

    for node in found:
        if node["name"]:
            size = [
                f"{node[key]:g} {unit}"
                for key, unit in (("num_cpus", "CPUs"), ("num_gpus", "GPUs"))
                if node[key] is not None
            ]
            out(f"{safe(node['name'])}: {', '.join(size) or silent}")
            for line in state_lines(node):
                out(f"  {line}")
            for line in machine_lines(node.get("machine")):
                out(f"  {line}")
        else:
            out("elsewhere:")
        if node["running"]:
            out(f"  runs {', '.join(safe(task, 60) for task in node['running'][:20])}")
        for line in endpoint_lines(node["endpoints"]):
            out(f"  {line}")
        for endpoint in node["endpoints"]:
            loaded = [model["name"] for model in endpoint["models"] if model["loaded"]]
            if loaded:
                out(f"    loaded: {', '.join(loaded)}")
