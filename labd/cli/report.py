"""Reports: what the lab or a campaign did."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labd.cli.base import app, err, open_home, out

if TYPE_CHECKING:
    from labd.report import Links
    from labd.settings import Home

_FORMATS = ("json", "html", "md")


@app.command()
def report(
    *,
    since: Annotated[
        str, typer.Option(help="From when on: fri, yesterday, 7d, 2026-11-20, or an instant.")
    ] = "7d",
    until: Annotated[
        str | None, typer.Option(help="Until when, as --since; else now.", show_default=False)
    ] = None,
    campaign: Annotated[
        str | None, typer.Option(help="Of this campaign's tasks only.", show_default=False)
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="json, html or md; else as the output's name says, or md.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write into this file.", show_default=False),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write into the lab's reports/; html by itself.")
    ] = False,
) -> None:
    """Tell what the lab or a campaign did.

    Papers, what improved and by how much, what failed and why, how busy the lab was.

    Examples:  labd report --since fri      labd report --campaign weekend-marathon -o weekend.html
    """
    from labd.report import Format, Wanted, gather, lab_report, put, render, summarise

    home, now = open_home(make=False), datetime.now(UTC).astimezone()
    wanted = Wanted(
        _instant(since, now, "--since"),
        _instant(until, now, "--until") if until else now,
        campaign or "",
    )
    if wanted.since >= wanted.until:
        raise typer.BadParameter("the period ends before it begins", param_hint="--since")
    if keep and output is not None:
        raise typer.BadParameter("either --keep or --output", param_hint="--keep")
    chosen = Format(_form(form, output, keep=keep))
    if keep:
        output = home.reports / lab_report(now, chosen.value)
    told = summarise(gather(home, wanted, now), wanted.since, wanted.until, now, wanted.campaign)
    text = render(told, chosen, _links(home, output))
    if output is None:
        out(text.removesuffix("\n"))
        return
    put(output, text, shelf=home.reports)
    err(f"labd: wrote {output}")


def _instant(text: str, now: datetime, option: str) -> datetime:
    from labd.report import read_instant

    try:
        return read_instant(text, now).astimezone()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _form(form: str | None, output: Path | None, *, keep: bool) -> str:
    if form is not None:
        if form not in _FORMATS:
            raise typer.BadParameter(
                f"{form!r}; expected {', '.join(_FORMATS)}", param_hint="--format"
            )
        return form
    if keep:
        return "html"
    suffix = output.suffix.removeprefix(".") if output is not None else ""
    if suffix not in {"", "txt", *_FORMATS}:
        known = ", ".join(f".{one}" for one in _FORMATS)
        raise typer.BadParameter(
            f"a report is not written as .{suffix}; end its name in {known}, or say --format",
            param_hint="--output",
        )
    return suffix if suffix in _FORMATS else "md"


def _links(home: "Home", output: Path | None) -> "Links":
    """Give where the links of a report lead that will be at `output`, or is printed here."""
    from labd.report import Links

    here = output.absolute().parent if output is not None else Path.cwd()
    page = home.settings.page
    address = page.address if page.enabled else ""
    return Links(Path(os.path.relpath(home.results, here)), address)
