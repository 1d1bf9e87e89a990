"""The status page: what `labd list` shows, in a browser, refreshing itself. Read-only.

A process of its own over the lab's API; it may die without hurting anything, and works with the
daemon down. Everything shown is untrusted text: it is escaped here and never given to a template.
"""

import os
from html import escape

from labd.clock import print_duration, utc_now
from labd.lab import Lab, TaskView
from labd.text import printable

_REFRESH_S = 3.0
_ROWS = 50
_COLUMNS = ("task", "state", "what", "age", "why, how far")


def serve(lab: Lab, *, host: str, port: int) -> None:
    """Serve the page until interrupted; nothing is loaded from, or sent to, any other host.

    Raises:
        OSError: the port is taken.

    """
    # Has to be set before gradio is imported: it asks its maker's server for news otherwise.
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    import gradio  # noqa: PLC0415

    def shown() -> str:
        return page_html(lab)

    with gradio.Blocks(title="labd", analytics_enabled=False) as blocks:
        table = gradio.HTML(value=shown)
        gradio.Timer(_REFRESH_S).tick(
            shown, outputs=table, show_progress="hidden", api_visibility="private"
        )
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        quiet=True,
    )


def page_html(lab: Lab) -> str:
    """Give the page's content: counts, the daemon's state, and the newest tasks of each state."""
    status = lab.status()
    counts = ", ".join(f"{number} {state.value}" for state, number in lab.counts().items())
    daemon = "the daemon runs" if status.up else "<strong>no daemon runs</strong>"
    now = utc_now()
    rows = "".join(_row(view, now.timestamp()) for view in lab.tasks(limit=_ROWS))
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    return (
        f"<h1>labd</h1><p>{escape(counts)}; {daemon}; seen {now:%H:%M:%S} UTC</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(view: TaskView, now_s: float) -> str:
    far = view.progress
    told = f"{far.stage} {far.done}/{far.total} {far.detail}" if far else view.why
    age = print_duration(max(0.0, now_s - view.dropped_at))
    cells = (view.id, view.state.value, view.template or view.kind, age, told)
    return "<tr>" + "".join(f"<td>{escape(printable(cell, 300))}</td>" for cell in cells) + "</tr>"
