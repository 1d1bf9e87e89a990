"""Tasks: submit, look, ask."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labd.cli.base import (
    EXIT_FAILED,
    JsonOption,
    age,
    answer,
    app,
    err,
    exit_code,
    open_lab,
    out,
    safe,
)
from labd.errors import ConfigError, LabdError, NotFound, TaskFileError

if TYPE_CHECKING:
    from labd.lab import Lab, TaskView


@app.command()
def submit(
    files: Annotated[list[Path], typer.Argument(help="Task files; each is checked first.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Check task files and copy them into the spool; print their ids.

    Examples:  labd submit my-idea.yaml      labd submit config/examples/*.yaml
    """
    lab = open_lab(make=True)
    ids: list[str] = []
    bad: list[TaskFileError] = []
    for file in files:
        try:
            ids.append(lab.submit(file))
        except TaskFileError as error:
            bad.append(error)
    answer(
        as_json,
        {"submitted": ids, "refused": [str(error) for error in bad]},
        lambda: out("\n".join(ids)) if ids else None,
    )
    for refused in bad:
        err(str(refused))
    if ids and not lab.status().up:
        err("labd: no daemon runs here; the tasks wait until `labd up` is started")
    if bad:
        raise typer.Exit(EXIT_FAILED)


@app.command(name="run")
def run_one(file: Annotated[Path, typer.Argument(help="A task file.")]) -> None:
    """Submit one task and watch it to its end.

    Starts a daemon if none runs, shows the progress, and ends with what was found.

    Examples:  labd run config/examples/first-paper.yaml      labd run my-idea.yaml
    """
    from labd.watch import run_and_watch

    raise typer.Exit(run_and_watch(open_lab(make=True), file))


@app.command(name="list")
def list_tasks(
    *,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", "-s", help="Only these states.", show_default=False),
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=1, max=100_000, help="At most so many of each state."),
    ] = 20,
    label: Annotated[
        str | None,
        typer.Option("--label", "-l", help="Only tasks with this label.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tasks, and why each waits or how it ended.

    What runs comes first, then what starts next, then what ended last.

    Examples:  labd list      labd list -s failed --json      labd list --label nightly
    """
    from labd.task import State

    known = [s.value for s in State]
    for name in state or []:
        if name not in known:
            raise typer.BadParameter(
                f"{name!r} is not one of {', '.join(known)}", param_hint="--state"
            )
    lab = open_lab()
    counted = lab.counts()
    views = lab.tasks(tuple(State(name) for name in state or known), limit, label, counted)
    counts = {s.value: n for s, n in counted.items()}
    status = lab.status()
    data = {
        "tasks": [view.as_json() for view in views],
        "counts": counts,
        "daemon": {"up": status.up, "status_age_s": status.age_s},
        "paused": lab.paused,
        "held": status.held,
    }
    notes = "" if status.up else "; no daemon runs"
    if lab.paused:
        notes += "; paused: nothing new is started until `labd resume`"
    elif status.held:
        notes += f"; nothing new is started: {safe(status.held)}"
    answer(as_json, data, lambda: _show_list(views, counts, notes))


@app.command()
def show(
    task: Annotated[str, typer.Argument(help="A task's id, or how it begins.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show one task: what happened to it, and what it found.

    With the reason why it waits or failed, and where its files are.

    Examples:  labd show first-paper      labd show first --json
    """
    lab = open_lab()
    view = lab.find(task)
    history = [dict(event) for event in lab.history(view.id).events]
    data = {
        "task": view.as_json(),
        "events": history,
        "result": lab.result(view.id),
        "results_dir": str(lab.results_dir(view.id)),
        **lab.stored(view.id),
    }
    answer(as_json, data, lambda: _show_task(lab, view, history))


@app.command()
def logs(
    task: Annotated[str, typer.Argument(help="A task's id, or how it begins.")],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a task's log.

    Examples:  labd logs first-paper      labd logs -f first-paper
    """
    from labd.follow import LogFollower

    lab = open_lab()
    view = lab.find(task)
    log = LogFollower(lab, view.id, out, as_json=as_json)
    log.print_new()
    if follow:
        for now in lab.wait_for(view.id, poll_s=0.2):
            log.print_new()
            if now.state.decided:
                err(f"labd: {safe(view.id)} is {now.state.value}")
    log.finish()


@app.command()
def cancel(
    tasks: Annotated[list[str], typer.Argument(help="Ids of waiting or running tasks.")],
) -> None:
    """Cancel tasks: a running one's processes are ended.

    Examples:  labd cancel my-idea      labd cancel my-idea other-idea
    """
    _each(tasks, lambda lab, name: f"{safe(lab.cancel(name).id)} cancelled")


@app.command()
def retry(
    tasks: Annotated[list[str], typer.Argument(help="Ids of failed, cancelled or done tasks.")],
) -> None:
    """Ask for ended tasks again.

    Failed and cancelled ones go on from their last finished step; one that is done is done anew, under the next number.

    Examples:  labd retry my-idea      labd retry my-idea other-idea
    """
    _each(tasks, lambda lab, name: f"{safe(lab.retry(name).id)} waits again")


@app.command()
def priority(
    task: Annotated[str, typer.Argument(help="The id of a waiting task, or how it begins.")],
    number: Annotated[int, typer.Argument(min=-1000, max=1000, help="Higher starts first.")],
) -> None:
    """Give a waiting task another priority.

    A new file takes the old one's place.

    Examples:  labd priority my-idea 10      labd priority my-idea -- -5
    """
    view = open_lab().set_priority(task, number)
    out(f"{safe(view.id)} has priority {view.priority}")


@app.command()
def pause() -> None:
    """Have nothing new started; what runs goes on. Holds until `labd resume`, also across restarts.

    Examples:  labd pause      touch spool/paused
    """
    open_lab().pause()
    out("paused; what runs goes on, and `labd resume` lets work start again")


@app.command()
def resume() -> None:
    """Let work start again after `labd pause`.

    Examples:  labd resume      rm spool/paused
    """
    open_lab().resume()
    out("resumed")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Task files.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with task or campaign files.

    With file, line, column, what was found and what was wanted. Files in a directory named `campaigns` are read as campaigns.

    Examples:  labd check my-idea.yaml      labd check --json config/campaigns/*.yaml
    """
    from labd.lab import Lab
    from labd.settings import Home, Settings

    try:
        lab = open_lab()
    except NotFound:
        lab = Lab(Home(Path.cwd(), Settings()))
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            problems, warnings = [], []
            if file.parent.resolve().name == "campaigns":
                lab.check_campaign(file)
            else:
                warnings = lab.check(file).spec.warnings()
        except (TaskFileError, ConfigError) as error:
            problems, warnings = str(error).splitlines(), []
        found.append(
            {"file": str(file), "ok": not problems, "problems": problems, "warnings": warnings}
        )
    answer(as_json, found, lambda: _show_checks(found))
    if not all(entry["ok"] for entry in found):
        raise typer.Exit(EXIT_FAILED)


def _each(tasks: list[str], ask: "Callable[[Lab, str], str]") -> None:
    lab = open_lab()
    worst: LabdError | None = None
    for name in tasks:
        try:
            out(ask(lab, name))
        except LabdError as error:
            worst = error
            err(f"labd: {error}")
    if worst is not None:
        raise typer.Exit(exit_code(worst))


def _show_list(views: "list[TaskView]", counts: dict[str, int], notes: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from labd.clock import utc_now

    now = utc_now().timestamp()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "state", "what", "age"):
        table.add_column(name, no_wrap=True)
    table.add_column("why, how far", overflow="fold")
    styles = {"running": "cyan", "done": "green", "failed": "red", "cancelled": "dim"}
    for view in views:
        far = _progress(view)
        what = view.template or view.kind
        style = styles.get(view.state.value, "")
        cells = (safe(view.id, 60), view.state.value, what, age(now - view.dropped_at))
        table.add_row(
            *(Text(cell, style=style if i == 1 else "") for i, cell in enumerate(cells)),
            Text("; ".join(filter(None, [far, safe(view.why, 300)]))),
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if views:
        console.print(table)
    err(", ".join(f"{number} {state}" for state, number in counts.items()) + notes)


def _show_task(lab: "Lab", view: "TaskView", history: list[dict[str, Any]]) -> None:
    out(f"{safe(view.id)}: {view.state.value}" + (f", {safe(view.why, 2000)}" if view.why else ""))
    if far := _progress(view):
        out(f"  {far}")
    if view.nodes:
        out(f"  on {', '.join(safe(node, 60) for node in view.nodes)}")
    for event in history:
        error = (event.get("error") or {}).get("message", "")
        text = " ".join(
            filter(
                None,
                [
                    f"attempt {event['attempt']}" if event.get("attempt") else "",
                    f"on {1 + len(event['also'])} machines" if event.get("also") else "",
                    event.get("reason", ""),
                    error,
                ],
            )
        )
        out(f"  {event['at']}  {event['event']}  {safe(text)}")
    for line in (lab.result(view.id) or {}).get("summary", []):
        out(f"  {safe(line)}")
    for path in lab.outputs(view.id):
        out(f"  {path}")
    directory = lab.results_dir(view.id)
    stored = lab.stored(view.id)
    for name in stored["compressed"]:
        out(f"  {directory / name} is compressed; `labd unpack {safe(view.id)}` gives it back")
    if pruned := stored["pruned"]:
        removed = ", ".join(map(str, pruned.get("removed", [])))
        told = f"pruned {pruned.get('at', '')}: {removed}; {pruned.get('reason', '')}"
        out(f"  {safe(told)}")


def _show_checks(found: list[dict[str, Any]]) -> None:
    for entry in found:
        for problem in entry["problems"]:
            out(problem)
        for warning in entry["warnings"]:
            out(f"{safe(entry['file'])}: warning: {warning}")
        if entry["ok"]:
            out(f"{safe(entry['file'])}: ok")


def _progress(view: "TaskView") -> str:
    if view.progress is None:
        return ""
    p = view.progress
    return f"{p.stage} {p.done}/{p.total} {p.detail}".strip()
