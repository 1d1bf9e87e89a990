"""The status page: what it shows, that it is harmless, and that it really serves."""

import os
import socket
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser

from labd.lab import Lab
from labd.page import page_html
from labd.settings import Home
from tests.factories import task_text
from tests.processes import wait_until


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data: str) -> None:
        self.text += data


def read(home: Home) -> Tags:
    tags = Tags()
    tags.feed(page_html(Lab(home)))
    return tags


def test_the_page_shows_the_tasks_and_that_no_daemon_runs(home: Home) -> None:
    (home.spool / "pending" / "idea.yaml").write_text(task_text())
    (home.spool / "failed" / "broken.yaml").write_text("no task")
    text = read(home).text
    assert "1 pending, 0 running, 0 done, 1 failed" in text
    assert "no daemon runs" in text
    assert "idea" in text
    assert "broken" in text


def test_a_hostile_name_is_text_on_the_page(home: Home) -> None:
    for name in ("<script>alert(1)<.yaml", "${alert(1)}'\"><img onerror=x>.yaml", "{{7*7}}.yaml"):
        (home.spool / "pending" / name).write_text(task_text())
    tags = read(home)
    assert tags.seen == {"h1", "p", "strong", "table", "thead", "tr", "th", "scope", "tbody", "td"}
    assert "<script>alert(1)<" in tags.text


def test_the_page_is_served_on_the_loopback(home: Home) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "labd.cli",
        "--home",
        str(home.root),
        "page",
        "--port",
        str(port),
    ]
    page = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "no_proxy": "*"},
    )

    def answer() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as reply:
                return str(reply.read().decode())
        except OSError:
            assert page.poll() is None, page.stdout and page.stdout.read()
            return ""

    try:
        assert "labd" in wait_until(answer, 60, "the page")
    finally:
        page.kill()
        page.communicate(timeout=10)


def test_the_page_refuses_to_listen_for_strangers(home: Home) -> None:
    command = [
        sys.executable,
        "-m",
        "labd.cli",
        "--home",
        str(home.root),
        "page",
        "--host",
        "0.0.0.0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "loopback" in done.stderr
