"""Stuck work: how running tasks stand, and recovering them by hand."""

from typing import TYPE_CHECKING, Annotated

import typer

from labd.cli.base import (
    EXIT_SILENT,
    JsonOption,
    age,
    answer,
    app,
    err,
    exit_code,
    open_lab,
    out,
    safe,
    table,
)
from labd.errors import LabdError

if TYPE_CHECKING:
    from labd.recovering import Stand


@app.command()
def recover(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids of running tasks to recover now; none: only show.", show_default=False
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show running tasks that may be stuck, or recover some now.

    Without a task: when something last moved in each, and what is done if nothing does. With tasks: do that now.

    What is done, in this order: the runs under way are ended, once for each attempt; the attempt is ended and the task
    tried again, on another machine if there is one; the task fails when its `max_retries` are used up.

    Examples:  labd recover      labd recover my-idea --dry-run
    """
    from labd.recovering import ask, stand_of, stands

    lab = open_lab()
    if not lab.status().up:
        err("labd: no daemon runs here, so nothing is looked at or recovered")
        raise typer.Exit(EXIT_SILENT)
    if not tasks:
        found = stands(lab)
        answer(as_json, [stand.as_json() for stand in found], lambda: _show(found))
        return
    chosen: list[Stand] = []
    worst: LabdError | None = None
    for name in tasks:
        try:
            stand = stand_of(lab, name)
            if not dry_run:
                ask(lab, stand)
            chosen.append(stand)
        except LabdError as error:
            worst = error
            err(f"labd: {error}")
    data = [{**stand.as_json(), "asked": not dry_run} for stand in chosen]
    answer(as_json, data, lambda: _tell(chosen, dry_run=dry_run))
    if worst is not None:
        raise typer.Exit(exit_code(worst))


def _show(found: "list[Stand]") -> None:
    rows: list[tuple[str, ...]] = [
        (
            *(safe(stand.task_id, 60), safe(stand.node, 30)),
            f"{age(stand.idle_s)} ago: {stand.last_moved}" if stand.seen else "not looked at yet",
            age(stand.limit_s) if stand.limit_s else "none",
            "never" if stand.due_in_s is None else f"in {age(stand.due_in_s)}: {stand.words}",
        )
        for stand in found
    ]
    if rows:
        table(("task", "node", "last moved", "limit", "then"), rows)
    err(f"{len(rows)} running")


def _tell(chosen: "list[Stand]", *, dry_run: bool) -> None:
    for stand in chosen:
        out(f"{safe(stand.task_id)}: {'would' if dry_run else 'asked to'} {stand.words}")
        for line in stand.evidence:
            out(f"  {safe(line)}")
