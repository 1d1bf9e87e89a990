"""Telling others, tried by hand."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from labd.cli.base import EXIT_FAILED, JsonOption, answer, app, err, open_home, out

if TYPE_CHECKING:
    from labd.hooks import Tried


@app.command()
def notify(
    event: Annotated[
        str, typer.Argument(help="What is made up: done, failed, stuck or report.")
    ] = "failed",
    *,
    as_json: JsonOption = False,
) -> None:
    """Try the setting `notify` with a made-up message.

    Says what came of each.

    Examples:  labd notify      labd notify report --json
    """
    from labd.hooks import EVENTS, try_now

    known = next((one for one in EVENTS if one == event), None)
    if known is None:
        raise typer.BadParameter(
            f"{event!r} is not one of {', '.join(EVENTS)}", param_hint="EVENT"
        )
    home = open_home(make=False)
    found = try_now(home.settings.notify, home.root, known)
    answer(as_json, [asdict(one) for one in found], lambda: _show(found, known))
    if any(one.problem for one in found):
        raise typer.Exit(EXIT_FAILED)


def _show(found: "list[Tried]", event: str) -> None:
    for one in found:
        state = f"FAILED: {one.problem}" if one.problem else "told"
        out(f"{one.name}: {state if one.asked else f'is not told of {event}'}")
        if one.said:
            out(f"  it said: {one.said}")
    if not found:
        err("labd: nobody is told: `notify` in config/labd.yaml is empty")
