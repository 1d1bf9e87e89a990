"""What every command uses: the lab that is meant, and how it answers."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from labd import __version__
from labd.errors import Busy, LabdError, MoveRefused, NotFound

if TYPE_CHECKING:
    from labd.lab import Lab
    from labd.settings import Home

EXIT_FAILED, EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_SILENT = 1, 3, 4, 5
_EXIT_CODES: list[tuple[type[LabdError], int]] = [
    (NotFound, EXIT_NOT_FOUND),
    (MoveRefused, EXIT_REFUSED),
    (Busy, EXIT_REFUSED),
]

_MEANT = {
    "status": "list", "ls": "list", "ps": "list", "start": "up", "serve": "up", "daemon": "up",
    "log": "logs", "add": "submit", "stop": "cancel", "kill": "cancel", "rm": "cancel",
}  # fmt: skip
"""What people type who know other programs, and what it is here."""


class Verbs(typer.core.TyperGroup):
    """The commands: one that is spelled as elsewhere is named, and examples stand on lines of their own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Give the command that is meant."""
        if (meant := _MEANT.get(args[0])) and args[0] not in self.commands:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Give a command, or ``None``."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help:
            text, found, examples = command.help.partition("Examples:  ")
            if found:
                # Click keeps the lines of a paragraph that begins so.
                lines = re.split(r"\s{3,}", examples.strip())
                command.help = "\n  ".join([f"{text}\b\nExamples:", *lines])
        return command


app = typer.Typer(
    name="labd",
    cls=Verbs,
    help="A research lab that never stops: drop a YAML file into spool/pending, find a paper in results/.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich for a help page takes longer than all the rest of it
    context_settings={"help_option_names": ["-h", "--help"]},
)


HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="The lab's directory; else $LABD_HOME, else here.", show_default=False
    ),
]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class Chosen:
    """What the options before the command said."""

    home: Path | None = None


def _say_version(wanted: bool) -> None:  # noqa: FBT001 - as Typer calls it
    if wanted:
        out(f"labd {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", help="Print labd's version.", is_eager=True, callback=_say_version),
]


@app.callback()
def _root(home: HomeOption = None, version: VersionOption = False) -> None:  # noqa: ARG001, FBT002
    Chosen.home = home


def open_home(given: Path | None = None, *, make: bool) -> "Home":
    """Give the home that was named, or else found; with `make` it need not be there yet."""
    from labd.settings import load_home

    path = given or Chosen.home
    the_home = load_home(path)
    if path is not None and not make and not the_home.root.is_dir():
        raise NotFound("there is no such directory", where=str(the_home.root))
    return the_home


def open_lab(*, make: bool = False) -> "Lab":
    """Give the API of the lab in that home."""
    from labd.lab import Lab

    return Lab(open_home(make=make))


def answer(as_json: bool, data: object, text: Callable[[], object]) -> None:  # noqa: FBT001
    """Print the data as JSON, or else do what prints it as text."""
    if as_json:
        out(json.dumps(data, indent=2))
    else:
        text()


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        shown.add_column(name, no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(shown)


def age(seconds: float) -> str:
    """Give a duration as people write it."""
    from labd.clock import print_duration

    return print_duration(max(0.0, seconds))


def safe(value: object, limit: int = 500) -> str:
    """Give untrusted text as a terminal may have it, of at most so many characters."""
    from labd.text import printable

    return printable(str(value), limit)


def out(text: str) -> None:
    """Print what was asked for."""
    print(text)


def err(text: str) -> None:
    """Say something beside it."""
    print(text, file=sys.stderr)


def exit_code(error: LabdError) -> int:
    """Give the exit code that tells of an error."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_FAILED)


def complain(error: LabdError) -> NoReturn:
    """Say what is wrong, and end with its exit code."""
    err(f"labd: {error}")
    raise SystemExit(exit_code(error))
