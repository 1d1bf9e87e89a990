"""Writing a report: JSON, a page of its own, or text."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

from labd.report.model import Report


class Format(StrEnum):
    """How a report is written."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Links:
    """What a report's links lead to. `results`: that directory, as a path from where the report will be.

    `page`: the address of the status page, or empty.
    """

    results: Path
    page: str = ""

    def file(self, task_id: str, name: str) -> str:
        """Give the link to a file of a task's results."""
        return quote(str(self.results / task_id / name), errors="surrogateescape")

    def task(self, task_id: str) -> str:
        """Give the link to a task on the status page; empty where no address is known."""
        if not self.page:
            return ""
        return f"{self.page}/?task={quote(task_id, safe='', errors='surrogateescape')}"


def render(report: Report, form: Format, links: Links) -> str:
    """Give the report as text in a form."""
    match form:
        case Format.JSON:
            return json.dumps(report.as_json(), indent=1) + "\n"
        case Format.MARKDOWN:
            from labd.report.markdown import markdown  # noqa: PLC0415 - what JSON does without

            return markdown(report, links)
        case Format.HTML:
            from labd.report.html import page  # noqa: PLC0415 - as above

            return page(report, links)
