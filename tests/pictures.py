"""The pictures of the page in docs/images, taken of a real lab: `python -m tests.pictures` (five minutes or so).

It starts a daemon in an empty lab, has it do small tasks of every kind, and takes the page in Chromium while the last
one runs. Wants Debian's chromium, and fonts-noto-cjk for the word 한국어.

  python -m tests.pictures --paper results/first-paper/paper.pdf

takes the three pages of a paper instead. Wants poppler-utils.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from labd.lab import Lab
from labd.settings import Home
from labd.task import State
from tests.conftest import REPO
from tests.factories import task_text, write_settings
from tests.pages import CHROMIUM
from tests.processes import COSTLY_S, DaemonProcess, free_port, wait_until

_NIGHT = """
title: Nightly research
time_zone: Europe/Berlin
schedule: "0 22 * * *"
report: true
task: {template: digits, researcher: sweep}
matrix: {seed: [1, 2, 3]}
"""
_DIGITS = {"template": "digits", "researcher": "sweep", "num_cpus": 2}
_COMMAND = {"kind": "command", "template": None}
_FIRST: dict[str, dict[str, Any]] = {
    "prepare-data": {**_COMMAND, "run": "seq 1000 > numbers.txt", "labels": ["night"]},
    "wider-network": {
        **_DIGITS,
        "title": "A wider network for handwritten digits",
        "max_runs": 12,
        "labels": ["night", "digits"],
    },
    "other-seed": {
        **_DIGITS,
        "title": "The same search from another seed",
        "max_runs": 8,
        "seed": 7,
        "labels": ["digits"],
    },
    "convert": {**_COMMAND, "run": "echo 'no such format' >&2; exit 3"},
}
_THEN: dict[str, dict[str, Any]] = {
    "deeper-network": {
        **_DIGITS,
        "title": "A longer search with more trials",
        "max_runs": 200,
        "priority": 5,
        "labels": ["digits"],
    },
    "third-seed": {**_DIGITS, "title": "Once more, from a third seed", "seed": 3},
    "publish": {**_COMMAND, "run": "true", "after": "third-seed"},
}
_CHOSEN = "task=wider-network&tab=trials&trial=trial-003"


def main() -> None:
    """Take the four pictures of the page, each width in light and dark; or the paper's."""
    asked = argparse.ArgumentParser(
        prog="python -m tests.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asked.add_argument("--to", type=Path, default=REPO / "docs" / "images")
    asked.add_argument("--paper", type=Path, help="a paper.pdf")
    chosen = asked.parse_args()
    to: Path = chosen.to
    if chosen.paper is not None:
        _take_paper(chosen.paper, to)
        return
    with tempfile.TemporaryDirectory(prefix="labd-pictures-") as directory:
        home = write_settings(Path(directory), page={"enabled": True, "port": free_port()})
        home.campaigns.mkdir(parents=True)
        (home.campaigns / "nightly.yaml").write_text(_NIGHT)
        daemon = DaemonProcess(home.root)
        try:
            daemon.wait_ready()
            _work(home)
            wait_until(lambda: daemon.said("page.started"), 120, "the page")
            _take(f"http://127.0.0.1:{home.settings.page.port}/en/?{_CHOSEN}", to)
        finally:
            daemon.kill_everything()


def _work(home: Home) -> None:
    """Have tasks done, then leave the lab with one that runs and two that wait."""
    lab = Lab(home)
    for name, keys in _FIRST.items():
        lab.submit_text(task_text(**keys), f"{name}.yaml")
    ended = (State.DONE, State.FAILED)
    wait_until(
        lambda: sum(lab.counts()[state] for state in ended) == len(_FIRST),
        900,
        "all first tasks ended",
        every_s=COSTLY_S,
    )
    for name, keys in _THEN.items():
        lab.submit_text(task_text(**keys), f"{name}.yaml")
    lab.cancel(lab.submit_text(task_text(**_COMMAND, run="true", after="publish"), "old.yaml"))

    def searches() -> bool:
        far = lab.find("deeper-network").progress
        return far is not None and far.stage == "search" and far.done >= 10

    wait_until(searches, 300, "a search under way", every_s=COSTLY_S)


def _take(url: str, to: Path) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"]
        )
        for width, height in ((1280, 900), (390, 844)):
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                page.goto(url, timeout=90_000)
                page.wait_for_selector("#table table", timeout=90_000)
                page.wait_for_selector(".trial-detail", timeout=90_000)
                page.wait_for_selector("#now progress", timeout=90_000)
                page.screenshot(path=to / f"page-{width}-{scheme}.png")
                page.close()
        browser.close()


def _take_paper(paper: Path, to: Path) -> None:
    """Put a paper's first three pages beside each other, at 80 dots an inch."""
    with tempfile.TemporaryDirectory(prefix="labd-pictures-") as directory:
        command = ["pdftoppm", "-r", "80", "-l", "3", "-png", str(paper), f"{directory}/page"]
        subprocess.run(command, check=True)
        pages = sorted(Path(directory).glob("page-*.png"))
        images = "".join(f"<img src='{page.name}'>" for page in pages)
        row = Path(directory) / "row.html"
        row.write_text(
            f"<!DOCTYPE html><body style='margin: 0; width: max-content; display: flex'>{images}"
        )
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 2400, "height": 1000})
            page.goto(row.as_uri())
            page.locator("body").screenshot(path=to / "paper.png")
            browser.close()


if __name__ == "__main__":
    main()
