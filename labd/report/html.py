"""The report as one page that needs nothing beside it: no script, no network, light and dark, also on a phone.

Jinja escapes every text, and each passes `printable` before; only the pictures, which were drawn here, are markup.
"""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from labd.clock import print_duration
from labd.report import words
from labd.report.model import Report
from labd.report.plots import draw_usage
from labd.report.render import Links
from labd.text import printable

_LONGEST = 4_000


def page(report: Report, links: Links) -> str:
    """Give the report as an HTML page."""
    pictures = draw_usage(report.usage, report.since)
    return _template().render(
        report=report,
        links=links,
        words=words,
        duration=print_duration,
        pictures=pictures,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _harmless(value: Any) -> Any:
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value  # no text, or markup: a picture
    return value if value.isprintable() and len(value) <= _LONGEST else printable(value, _LONGEST)
