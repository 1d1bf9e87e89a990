"""Reports: what a lab or a campaign did in a period, as data, as a page of its own, and as text.

Reads files only and changes none. `gather` reads, `summarise` decides what is said (pure), and `render` writes it.
"""

from labd.report.gather import Wanted, gather
from labd.report.model import Report
from labd.report.period import EXPECTED, read_instant
from labd.report.render import Format, Links, render
from labd.report.shelf import KEPT, campaign_report, lab_report, put
from labd.report.summary import Facts, summarise

__all__ = [
    "EXPECTED", "KEPT", "Facts", "Format", "Links", "Report", "Wanted", "campaign_report", "gather", "lab_report",
    "put", "read_instant", "render", "summarise",
]  # fmt: skip
