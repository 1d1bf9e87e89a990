"""The reports that the lab keeps, each as a link that opens it by itself. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from labd.page.html import Html, join, tag
from labd.page.words import Words
from labd.published import Kept

_MOST = 50


def reports_panel(reports: Sequence[Kept], words: Words) -> Html:
    """Give the newest reports, the last one first: what each is about, when it was written, and how big it is."""
    if not reports:
        return tag("p", words("no_reports"), class_="quiet")
    keys = ("report_file", "report_of", "written", "size")
    head = tag("tr", *(tag("th", words(key), scope="col") for key in keys))
    table = tag(
        "table", tag("thead", head), tag("tbody", *(_row(one, words) for one in reports[:_MOST]))
    )
    left_out = words("first_rows", rows=_MOST) if len(reports) > _MOST else None
    region = tag(
        "div", table, class_="scroll", tabindex=0, role="region", aria_label=words("reports")
    )
    return join((region, tag("p", left_out, class_="quiet") if left_out else None))


def _row(report: Kept, words: Words) -> Html:
    link = tag(
        "a", report.name, href=f"/reports/{quote(report.name)}", target="_blank", rel="noopener"
    )
    at = datetime.fromtimestamp(report.written_s, UTC)
    when = tag("time", f"{at:%Y-%m-%d %H:%M} UTC", datetime=at.isoformat(timespec="seconds"))
    ago = tag(
        "span",
        data_ago=f"{report.written_s:.0f}",
        data_text=words("ago", age="{age}"),
        class_="quiet",
    )
    about = words("report_lab") if report.of == "lab" else report.of.replace("--", ", ")
    return tag(
        "tr",
        tag("th", link, scope="row"),
        tag("td", about),
        tag("td", when, " (", ago, ")"),
        tag("td", f"{report.size_bytes / 1024:.0f} KiB", class_="n"),
    )
