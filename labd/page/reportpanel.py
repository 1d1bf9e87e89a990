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
    shown = tag("ul", *(_item(one, words) for one in reports[:_MOST]))
    left_out = words("first_rows", rows=_MOST) if len(reports) > _MOST else None
    return join((shown, tag("p", left_out, class_="quiet") if left_out else None))


def _item(report: Kept, words: Words) -> Html:
    about = words("report_lab") if report.of == "lab" else report.of.replace("--", ", ")
    form = "" if report.form == "html" else f" .{report.form}"
    link = tag(
        "a",
        f"{about}{form}",
        href=f"/reports/{quote(report.name)}",
        title=report.name,
        target="_blank",
        rel="noopener",
    )
    at = datetime.fromtimestamp(report.written_s, UTC)
    when = tag("time", f"{at:%Y-%m-%d %H:%M} UTC", datetime=at.isoformat(timespec="seconds"))
    ago = tag("span", data_ago=f"{report.written_s:.0f}", data_text=words("ago", age="{age}"))
    size = f"{report.size_bytes / 1024:.0f} KiB"
    return tag("li", link, " ", when, " ", tag("span", "(", ago, f"), {size}", class_="quiet"))
