"""The command line: one function for each verb, each a call of the lab's API and a print.

What was asked for goes to stdout, talk to stderr. `--json` on every reader gives the same as data.
Exit codes: 0 ok, 1 a task or a check failed, 2 usage, 3 not found, 4 refused or busy, 5 the daemon is silent.
"""

import sys

from labd.cli.base import EXIT_FAILED, app, complain
from labd.errors import LabdError

# `labd --help` lists commands in this order.
# isort: off
from labd.cli import (  # noqa: F401
    tasks,
    recover,
    campaigns,
    report,
    retention,
    machines,
    experiments,
    service,
    notify,
)

# isort: on


def main() -> None:
    """Run the command line; errors of labd become a message and an exit code."""
    try:
        app()
    except LabdError as error:
        complain(error)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(EXIT_FAILED) from None
