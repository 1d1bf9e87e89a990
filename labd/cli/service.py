"""The daemon in the foreground, and the status page by itself."""

import faulthandler
from typing import Annotated

import typer

from labd.cli.base import HomeOption, app, err, open_home, open_lab, out


@app.command()
def up(
    *,
    home: HomeOption = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Stop when the spool is drained; exit 1 if a task failed."),
    ] = False,
    page: Annotated[
        bool,
        typer.Option("--page/--no-page", help="Serve the status page, if the settings say so."),
    ] = True,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the daemon here, and the status page beside it.

    In the foreground, until Ctrl-C.

    Examples:  labd up --home ~/lab      labd up --once
    """
    from labd.boxed import warn_of_gaps
    from labd.daemon import Daemon
    from labd.log import stderr_logger

    if log_level not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter("debug, info, warning or error", param_hint="--log-level")
    the_home = open_home(home, make=True)
    log = stderr_logger(level=log_level, copy=the_home.daemon_log)
    faulthandler.enable()  # a watchdog's SIGABRT then shows in the log where the daemon hangs
    if the_home.settings.ray.address is None:
        # Where Ray is a service, its workers try their sandboxes themselves, in their own unit.
        # Before anything is started: labd may have to move into a control group of its own first.
        warn_of_gaps(the_home.settings.sandbox, log)
    raise typer.Exit(Daemon(the_home, log, once=once, page=page and not once).run())


@app.command()
def page(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; else the settings' own.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    hash_password: Annotated[
        bool,
        typer.Option("--hash-password", help="Ask for a password and print its hash for `users`."),
    ] = False,
    served: Annotated[bool, typer.Option("--served", hidden=True)] = False,
) -> None:
    """Serve the status page by itself; `labd up` does so too.

    Examples:  labd page --port 8000      labd page --hash-password
    """
    if hash_password:
        from labd.page.passwords import hashed

        out(hashed(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)))
        return
    from labd.page import serve

    lab = open_lab()
    settings = lab.home.settings.page
    changed = {"host": host or settings.host, "port": port or settings.port}
    serve(lab, settings.model_copy(update=changed), say=err, served=served)
