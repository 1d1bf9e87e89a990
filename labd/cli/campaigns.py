"""Campaigns: what comes next, and one now."""

from typing import Annotated, Any

import typer

from labd.cli.base import JsonOption, Verbs, answer, app, err, open_lab, out, table


@app.command()
def campaigns(
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=100, help="Firings of each step.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Show the campaigns and when each fires next.

    Also what is still to come of each, and what is wrong with its file.

    Examples:  labd campaigns      labd campaigns -n 5 --json
    """
    found = open_lab().campaigns(limit)
    answer(as_json, found, lambda: _show_campaigns(found))


campaign_app = typer.Typer(cls=Verbs, help="One campaign: start it now.", no_args_is_help=True)


app.add_typer(campaign_app, name="campaign")


@campaign_app.command(name="run")
def run_campaign(
    name: Annotated[str, typer.Argument(help="A campaign's name.")],
    *,
    step: Annotated[
        str | None, typer.Option(help="One of its steps, where it has more.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the task files; submit nothing.")
    ] = False,
) -> None:
    """Submit the tasks of a campaign's step now; print their ids.

    A campaign that is not enabled can be started so, too, and its limits do not count.

    Examples:  labd campaign run nightly      labd campaign run weekend-marathon --step sweep --dry-run
    """
    lab = open_lab(make=not dry_run)
    if dry_run:
        for draft in lab.campaign_drafts(name, step):
            out(f"--- # {draft.name}\n{draft.text}".rstrip())
        return
    out("\n".join(lab.run_campaign(name, step)))
    if not lab.status().up:
        err("labd: no daemon runs here; the tasks wait until `labd up` is started")


def _show_campaigns(found: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = []
    for one in found:
        state = "" if one["enabled"] else "not enabled"
        if one["problem"]:
            rows.append((one["name"], "", "", "", "not valid"))
        elif not one["next"]:
            rows.append(
                (one["name"], "", "always" if one["adaptive"] and not state else "", "", state)
            )
        rows += [
            (one["name"], firing["step"], firing["at"][:16].replace("T", " ") + firing["at"][19:], str(firing["tasks"]), state)
            for firing in one["next"]
        ]  # fmt: skip
    if rows:
        table(("CAMPAIGN", "STEP", "NEXT", "TASKS", ""), rows)
    for one in found:
        for line in one["problem"].splitlines():
            err(line)
        for step, rest in one["open"].items():
            out(
                f"{one['name']} {step}: {rest['done']} tasks of {rest['instant']} are in, the rest follows".replace(
                    "  ", " "
                )
            )
    if not found:
        err("labd: no campaigns in config/campaigns")
