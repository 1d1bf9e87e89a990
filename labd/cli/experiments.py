"""Experiments: templates, and a command in the sandbox."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from labd.cli.base import (
    EXIT_FAILED,
    Chosen,
    JsonOption,
    Verbs,
    answer,
    app,
    open_home,
    out,
    safe,
    table,
)
from labd.errors import NotFound

template_app = typer.Typer(
    cls=Verbs, help="Templates: which there are, and what one has and lacks.", no_args_is_help=True
)


app.add_typer(template_app, name="template")


@template_app.command(name="list")
def list_templates(*, as_json: JsonOption = False) -> None:
    """List the templates that a task may name.

    Examples:  labd template list      labd template list --json
    """
    from labd.tryout import templates

    found = templates(open_home(make=False))
    header = ("NAME", "KIND", "METRIC", "TITLE")
    rows: list[tuple[str, ...]] = [
        (one["name"], one["style"], one["metric"], safe(one["problem"] or one["title"], 80))
        for one in found
    ]
    answer(as_json, found, lambda: table(header, rows))


@template_app.command(name="check")
def check_template(
    template: Annotated[str, typer.Argument(help="A template's name, or any directory.")],
    *,
    run: Annotated[
        bool, typer.Option("--run", help="Run the baseline once in the sandbox.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a template has and lacks; exit 1 if something is missing.

    Examples:  labd template check digits --run      labd template check ~/AI-Scientist/templates/seir
    """
    from labd.tryout import examine_template, try_baseline

    home = open_home(make=False)
    found = examine_template(home, template)
    facts: dict[str, Any] = {
        "requirements": [
            {"name": one.name, "state": one.state, "found": one.found, "fix": one.fix}
            for one in found.requirements
        ]
    }
    if not as_json:
        _show_requirements(facts["requirements"])
    good = found.passes
    if run and good and found.template is not None:
        tried = try_baseline(home, found.template)
        good = not tried.problem
        facts["baseline"] = {
            "value": tried.run.value, "metric": tried.metric, "problem": tried.problem,
            "wall_s": tried.run.wall_s, "output": list(tried.tail),
        }  # fmt: skip
        if not as_json:
            _show_baseline(facts["baseline"])
    if as_json:
        out(json.dumps(facts, indent=2))
    if not good:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def sandbox(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")],
    *,
    gpu: Annotated[
        list[int] | None,
        typer.Option(min=0, help="A GPU by its index; may be repeated.", show_default=False),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(help="Seen as /work, and written to; else an empty one that is thrown away."),
    ] = None,
    timeout: Annotated[str, typer.Option(help="When it is killed, such as 90s or 4h.")] = "1h",
    network: Annotated[
        bool, typer.Option("--network", help="With the host's network, if the settings allow it.")
    ] = False,
) -> None:
    """Run a command as an experiment is run, with its limits.

    Ends with the command's exit code.

    Examples:  labd sandbox -- python -c 'print(1)'      labd sandbox --gpu 0 --workdir try -- python train.py
    """
    from labd.boxed import run_boxed
    from labd.clock import parse_duration
    from labd.settings import Settings

    try:
        timeout_s = parse_duration(timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from error
    try:
        settings = open_home(make=False).settings
    except NotFound:
        if Chosen.home is not None:
            raise
        settings = Settings()
    code = run_boxed(
        command,
        settings.sandbox,
        workdir=workdir,
        gpus=gpu or [],
        timeout_s=timeout_s,
        network=network,
    )
    raise typer.Exit(code)


def _show_requirements(requirements: list[dict[str, Any]]) -> None:
    for one in requirements:
        mark = str(one["state"]).upper() if one["state"] == "missing" else str(one["state"])
        out(f"{mark:8} {one['name']}: {one['found']}")
        if one["fix"]:
            out(f"         {one['fix']}")


def _show_baseline(tried: dict[str, Any]) -> None:
    for line in tried["output"]:
        out(f"  | {line}")
    if tried["problem"]:
        out(f"MISSING  baseline: {safe(tried['problem'])}, after {tried['wall_s']:g} s")
    else:
        out(f"ok       baseline: {tried['value']:.6g} ({tried['metric']}), {tried['wall_s']:g} s")
