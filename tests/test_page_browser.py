"""The page in a real browser: Debian's Chromium, driven by Playwright. One browser and one page process for all."""

import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labd.archive import Archive
from labd.clock import utc_now
from labd.settings import Home
from labd.spool import Spool
from tests.campaign_scene import put_campaigns
from tests.conftest import REPO
from tests.factories import task_text, write_settings
from tests.pages import CHROMIUM, PageProcess
from tests.processes import DaemonProcess, free_port, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    # A browser on a busy machine now and then misses something; twice more it does not.
    pytest.mark.flaky(reruns=2),
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"),
        reason="no chromium here; `make browser` installs Debian's",
    ),
]
EVIL = "<img src=x onerror=alert(1)>${alert(1)}{{7*7}}"
REPORT = "weekend--wind-down--20261127T060000Z.html"
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cf"
    "c0f01f0005000201a5f645cc0000000049454e44ae426082"
)


def _line(second: int, stage: str, done: int, total: int) -> str:
    facts = {
        "event": "stage.progress",
        "level": "info",
        "stage": stage,
        "done": done,
        "total": total,
    }
    return json.dumps({**facts, "detail": EVIL, "timestamp": f"2026-11-26T10:00:{second:02d}Z"})


def make_lab(root: Path) -> Home:
    """Make a lab with a task in each state, whose names, logs and papers are as hostile as models may write them."""
    home = write_settings(root)
    Spool(home.spool).prepare()
    archive = Archive(home.results)
    archive.prepare()
    put = {
        "done": {"tree": task_text(title="A tree of trials", labels=["night"])},
        "failed": {EVIL.replace("/", ""): task_text(title=EVIL)},
        "running": {"runs": task_text(title="Still at it")},
        "cancelled": {"gone": task_text(kind="command", template=None, run="true")},
        "pending": {f"wait-{n}": task_text(priority=n) for n in range(3)},
    }
    for state, tasks in put.items():
        for name, text in tasks.items():
            (home.spool / state / f"{name}.yaml").write_text(text)
    archive.record("tree", "claimed", attempt=1)
    archive.record(
        "tree", "done", attempt=1, duration_s=61.0, summary=["24 trials", "improved: " + EVIL]
    )
    archive.record(EVIL, "refused", error={"message": "it is no task: " + EVIL})
    archive.record("runs", "claimed", attempt=1)
    _write_results(home.results / "tree")
    lines = [_line(1, "baseline", 1, 1), _line(2, "search", 0, 20), _line(8, "search", 5, 20)]
    (home.results / "runs" / "log.jsonl").write_text("\n".join(lines) + "\n")
    put_campaigns(home, utc_now(), EVIL)
    home.reports.mkdir()
    (home.reports / REPORT).write_text(
        "<title>before</title><h1>A night</h1><script>document.title = 'ran'</script><img src='/healthz'>"
        "<a href='../results/tree/paper.pdf'>paper.pdf</a>"
    )
    return home


def _write_results(results: Path) -> None:
    trials = [
        {
            "name": "draft-1",
            "move": "draft",
            "idea": "wider",
            "run": {"value": 0.9, "status": "ok"},
        },
        {"name": "draft-2", "move": "draft", "status": "crashed", "run": {"reason": EVIL}},
        {
            "name": "improve-1",
            "parent": "draft-1",
            "move": "improve",
            "run": {"value": 0.95, "status": "ok"},
            "lines_added": 2,
            "lines_removed": 1,
            "plan": EVIL,
        },
    ]
    metric = {"name": "accuracy", "better": "higher"}
    research = {"researcher": "llm", "metric": metric, "trials": trials}
    (results / "result.json").write_text(
        json.dumps({"summary": ["24 trials", EVIL], "research": research})
    )
    (results / "trials" / "improve-1").mkdir(parents=True)
    (results / "trials" / "improve-1" / "diff.patch").write_text(
        f"@@ -1 +1,2 @@\n-old\n+new {EVIL}\n+more\n"
    )
    (results / "plots").mkdir()
    (results / "plots" / "best-so-far.png").write_bytes(PIXEL)
    (results / "paper.html").write_text(
        "<html><head><style>p{color:red}</style></head><body><h1>On trees</h1><script>parent.alert(1)</script>"
        f"<img src='http://203.0.113.1/x.png'><p onclick='alert(1)'>{EVIL}</p></body></html>"
    )
    for name in ("paper.pdf", "paper.tex", "paper.md"):
        (results / name).write_text("a paper")
    scores = {"overall": {"mean": 5.5, "low": 4, "high": 7}, EVIL: {"mean": EVIL}}
    (results / "review.json").write_text(
        json.dumps({"reviews": [{"summary": EVIL, "overall": 5}], "scores": scores})
    )
    (results / "log.jsonl").write_text(
        "".join(_line(n % 60, "search", n, 400) + "\n" for n in range(400))
    )


@pytest.fixture(scope="module")
def lab_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def server(lab_home: Home) -> Iterator[PageProcess]:
    process = PageProcess(lab_home.root).wait_ready()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"]
        )
        yield started
        started.close()


class Window:
    """An open page, and what went wrong in it: dialogs that nobody expected, errors, requests to elsewhere."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **options}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(40_000)
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("dialog", self._dialog)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#table table, #table p")

    def _dialog(self, dialog: Any) -> None:
        if dialog.type == "confirm" and "<img" not in dialog.message:
            dialog.accept()
        else:
            self.wrong.append(f"{dialog.type}: {dialog.message}")
            dialog.dismiss()

    def choose(self, task: str) -> None:
        """Choose a task in the table."""
        self.page.locator("#table button.pick", has_text=task).first.click()
        self.page.wait_for_selector(f'#detail article[data-task="{task}"]')

    def tab(self, name: str) -> Any:
        """Open a tab of the chosen task, and give its panel."""
        self.page.click(f"#tab-{name}")
        self.page.wait_for_selector(f'#tab-panel[aria-labelledby="tab-{name}"]')
        return self.page.locator("#tab-panel")

    def rows(self) -> list[str]:
        """Give the tasks in the table."""
        return list(self.page.locator("#table button.pick").all_inner_texts())

    def until_rows(self, wanted: list[str]) -> None:
        """Wait until exactly these tasks are in the table."""
        wait_until(lambda: sorted(self.rows()) == sorted(wanted), 20, f"rows {wanted}")

    def pick(self, label: str, option: str) -> None:
        """Choose an option of one of the filters."""
        self.page.get_by_label(label, exact=True).click()
        self.page.get_by_role("option", name=option, exact=True).click()


@pytest.fixture
def window(browser: Any, server: PageProcess) -> Iterator[Callable[..., Window]]:
    opened: list[Window] = []

    def open_page(path: str = "/en/", **options: Any) -> Window:
        opened.append(Window(browser, server.url + path, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()
        assert one.wrong == []
        elsewhere = [
            url
            for url in one.requests
            if not url.startswith((server.url, "data:", "blob:", "about:"))
        ]
        assert elsewhere == []


def test_a_finished_task_shows_all_that_it_left_and_nothing_of_it_runs(
    window: Callable[..., Window],
) -> None:
    seen = window()
    seen.choose("tree")
    assert "improved: <img src=x" in seen.page.inner_text("#table tr[data-id=tree]")
    assert EVIL in seen.page.inner_text("#tab-panel .summary")
    log = seen.tab("log").locator("pre.log")
    assert EVIL in log.inner_text()
    assert log.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") < 5
    trials = seen.tab("trials")
    assert trials.locator("svg .trial").count() == 3
    trials.locator("[data-trial=improve-1]").click()
    seen.page.wait_for_selector("pre.diff")
    assert seen.page.inner_text("pre.diff .add >> nth=0") == f"+new {EVIL}"
    assert "accuracy 0.95" in seen.page.inner_text(".trial-detail")
    picture = seen.tab("figures").locator("img")
    wait_until(lambda: picture.evaluate("e => e.naturalWidth") == 1, 60, "the picture")
    paper = seen.tab("paper")
    frame = paper.locator("iframe.paper").element_handle().content_frame()
    assert frame.inner_text("h1") == "On trees"
    frame.click("p")
    links = paper.locator("a.download")
    assert links.all_inner_texts() == ["PDF", "LaTeX", "Markdown"]
    with seen.page.expect_download() as download:
        links.first.click()
    assert Path(download.value.path()).read_text() == "a paper"
    review = seen.tab("review")
    assert "5.5" in review.inner_text()
    assert "4 to 7" in review.inner_text()
    assert "task=tree" in seen.page.url


def test_filters_narrow_the_table_and_outlive_a_reload(window: Callable[..., Window]) -> None:
    seen = window()
    every = seen.rows()
    assert len(every) == 7
    assert any(EVIL.replace("/", "") in row for row in every)
    seen.page.get_by_label("Find").fill("wait 2")
    seen.until_rows(["wait-2"])
    seen.page.get_by_label("Find").fill("")
    seen.pick("Label", "night")
    seen.until_rows(["tree"])
    seen.pick("Label", "all")
    seen.pick("State", "pending")
    seen.until_rows(["wait-0", "wait-1", "wait-2"])
    seen.choose("wait-1")
    wait_until(lambda: "state=pending" in seen.page.url and "task=wait-1" in seen.page.url, 60)
    seen.page.reload()
    seen.until_rows(["wait-0", "wait-1", "wait-2"])
    assert seen.page.get_attribute("#table tr[data-id=wait-1]", "aria-selected") == "true"


def test_what_runs_says_its_stage_and_the_time_left(window: Callable[..., Window]) -> None:
    seen = window("/en/?task=runs")
    text = seen.page.inner_text("#now")
    assert "search 5/20" in text
    assert "left in this stage" in text
    assert "No daemon runs" in seen.page.inner_text("#strip")
    assert seen.page.locator("#tab-panel .stages li").count() == 2
    meters = seen.page.locator("#lab meter")
    wait_until(lambda: meters.count() >= 2, 60, "meters")
    seen.page.get_by_role("button", name="Campaigns").click()
    seen.page.wait_for_selector("#campaigns .plans")
    plans = seen.page.inner_text("#campaigns")
    assert f"Nightly research {EVIL}" in plans
    assert f"missed 2 d ago {EVIL}" in plans
    assert " (in " in plans


def test_a_report_opens_by_itself_runs_nothing_and_its_links_lead_to_the_papers(
    window: Callable[..., Window],
) -> None:
    seen = window()
    seen.page.get_by_role("button", name="Reports").click()
    with seen.context.expect_page() as opening:
        seen.page.get_by_role("link", name="weekend, wind-down").click()
    report = opening.value
    assert report.inner_text("h1") == "A night"
    assert report.title() == "before"
    assert report.evaluate("document.images[0].naturalWidth") == 0
    with report.expect_download() as download:
        report.click("a")
    assert Path(download.value.path()).read_text() == "a paper"


def test_a_campaign_is_started_now_after_it_was_asked_whether_that_is_meant(
    window: Callable[..., Window], lab_home: Home
) -> None:
    seen = window()
    seen.page.get_by_role("button", name="Campaigns").click()
    seen.page.click("#campaigns [data-start=weekend]")
    seen.page.wait_for_selector("#campaigns [role=status]")
    made = list((lab_home.spool / "pending").glob("weekend--boost--*.yaml"))
    assert f"Tasks submitted: {len(made)}." in seen.page.inner_text("#campaigns")
    assert len(made) == 4
    for path in made:
        path.unlink()


def test_refreshing_keeps_selection_scroll_and_focus_and_says_when_the_page_is_silent(
    window: Callable[..., Window], lab_home: Home
) -> None:
    seen = window("/en/?task=tree&tab=log")
    log = seen.page.locator("pre.log")
    log.evaluate(
        "e => { e.scrollTop = 40; e.dispatchEvent(new Event('scroll')); e.mine = 'kept'; }"
    )
    seen.page.get_by_label("Find").focus()
    before = seen.page.get_attribute("#pulse", "data-at")
    (lab_home.spool / "pending" / "late.yaml").write_text(task_text())
    with (lab_home.results / "tree" / "log.jsonl").open("a") as more:
        more.write(_line(59, "late", 1, 1) + "\n")
    seen.page.wait_for_selector("#table tr[data-id=late]")
    seen.page.wait_for_function(
        "document.querySelector('pre.log').textContent.includes('stage=late')"
    )
    assert seen.page.get_attribute("#pulse", "data-at") != before
    assert log.evaluate("e => [e.scrollTop, e.mine]") == [40, "kept"]
    assert seen.page.get_attribute("#table tr[data-id=tree]", "aria-selected") == "true"
    assert seen.page.evaluate("document.activeElement.tagName") in {"INPUT", "TEXTAREA"}
    seen.context.set_offline(True)
    seen.page.evaluate("labd.lastPulse -= 60000; labd.times()")
    assert "no answer from the page" in seen.page.inner_text("#pulse-old")
    seen.context.set_offline(False)
    seen.page.wait_for_function("!document.querySelector('#pulse-old')?.textContent")
    (lab_home.spool / "pending" / "late.yaml").unlink()


def test_two_people_cancel_retry_raise_and_pause(
    window: Callable[..., Window], lab_home: Home
) -> None:
    one, other = window(), window("/ko/")
    one.choose("wait-0")
    one.page.fill("#new-priority", "42")
    one.page.click("[data-ask=raise]")
    one.page.wait_for_selector("#answer .good")
    assert "priority: 42" in (lab_home.spool / "pending" / "wait-0.yaml").read_text()
    one.page.click("#detail [data-ask=cancel]")
    wait_until((lab_home.spool / "cancelled" / "wait-0.yaml").exists, 60, "cancelled")
    other.page.wait_for_selector("#table tr[data-id=wait-0] td.state.cancelled")
    other.choose("wait-0")
    other.page.click("#detail [data-ask=retry]")
    wait_until((lab_home.spool / "pending" / "wait-0.yaml").exists, 60, "pending again")
    one.page.wait_for_selector("#table tr[data-id=wait-0] td.state.pending")
    one.page.click("#strip [data-ask=pause]")
    wait_until((lab_home.spool / "paused").exists, 60, "paused")
    other.page.wait_for_selector("#strip [data-ask=resume]")
    other.page.click("#strip [data-ask=resume]")
    wait_until(lambda: not (lab_home.spool / "paused").exists(), 60, "resumed")
    assert one.page.get_attribute("#table tr[data-id=wait-0]", "aria-selected") == "true"
    assert "대기" in other.page.inner_text("#strip")
    assert other.page.evaluate("document.documentElement.lang") == "ko"


def test_a_task_is_submitted_from_the_form_or_as_yaml_with_problems_at_their_fields(
    window: Callable[..., Window], lab_home: Home
) -> None:
    seen = window()
    seen.page.get_by_role("button", name="Submit a task").click()
    seen.page.get_by_placeholder("digits").fill("digots")
    seen.page.click("#form-check")
    seen.page.wait_for_selector(".field-bad")
    field = seen.page.locator(".field-bad")
    assert "digits" in field.inner_text()
    assert field.locator("input, textarea").input_value() == "digots"
    seen.page.get_by_placeholder("digits").fill("digits")
    form = seen.page.get_by_role("tabpanel").filter(has=seen.page.locator("#form-submit"))
    form.get_by_label("Name", exact=True).fill("from-form")
    form.get_by_label("GPUs").fill("1")
    seen.page.click("#form-submit")
    wait_until((lab_home.spool / "pending" / "from-form.yaml").exists, 60, "from-form")
    assert "num_gpus: 1\n" in (lab_home.spool / "pending" / "from-form.yaml").read_text()
    seen.page.wait_for_selector('#detail article[data-task="from-form"]')
    seen.page.get_by_role("tab", name="YAML").click()
    area = seen.page.locator("#task-yaml textarea")
    area.fill("kind: command\nrun: [true]\n")
    seen.page.click("#yaml-submit")
    seen.page.wait_for_selector("#yaml-answer .field-errors")
    assert "line 2" in seen.page.inner_text("#yaml-answer")
    area.fill("kind: command\nrun: 'true'\n")
    seen.page.click("#yaml-submit")
    wait_until((lab_home.spool / "pending" / "task.yaml").exists, 60, "task.yaml")


def test_the_page_can_be_used_by_keyboard_and_on_a_phone(window: Callable[..., Window]) -> None:
    seen = window(viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    first = seen.page.locator("#table button.pick").first
    first.focus()
    seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("Enter")
    second = seen.rows()[1]
    wait_until(lambda: seen.page.inner_text("#detail h3") == second, 60, "the second task")
    seen.page.locator("#tab-overview").focus()
    seen.page.keyboard.press("ArrowRight")
    seen.page.wait_for_selector("#tab-log[aria-selected=true]")
    wait_until(lambda: seen.page.evaluate("document.activeElement.id") == "tab-log", 60, "focus")
    seen.choose("tree")
    seen.tab("trials")
    seen.page.locator("[data-trial=draft-2]").focus()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector("[data-trial=draft-2][aria-pressed=true]")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_contrast_and_controls_have_names(
    window: Callable[..., Window], theme: str
) -> None:
    seen = window("/en/?task=tree&tab=trials&trial=improve-1", color_scheme=theme)
    seen.page.wait_for_selector("pre.diff")
    for heading in ("Campaigns", "Reports", "Distributions", "Daemon's log", "Submit a task"):
        seen.page.get_by_role("button", name=heading).click()
    seen.page.get_by_label("CPUs", exact=True).fill("many")
    seen.page.click("#form-check")
    seen.page.wait_for_selector(".field-bad")
    assert seen.page.evaluate((REPO / "tests" / "contrast.js").read_text()) == []


@pytest.mark.skipif(
    "LABD_TORTURE" not in os.environ, reason="a minute of starts; with LABD_TORTURE=1"
)
def test_page_and_daemon_may_be_killed_and_come_back_under_an_open_page(
    browser: Any, tmp_path: Path, daemon: Callable[..., DaemonProcess]
) -> None:
    port = free_port()
    home = write_settings(
        tmp_path,
        ray={"num_cpus": 1, "dashboard": False},
        page={"enabled": True, "port": port},
    )
    first = daemon(tmp_path)
    page = wait_until(lambda: first.said("page.started"), 90, "page.started")[0]["pid"]
    wait_until(lambda: answers(port), 90, "the daemon's page")
    seen = Window(browser, f"http://127.0.0.1:{port}/en/")
    seen.page.wait_for_selector("#strip .good")
    (home.spool / "pending" / "quick.yaml").write_text(
        task_text(kind="command", template=None, run="echo hello there")
    )
    seen.page.wait_for_selector("#table tr[data-id=quick] td.state.done")
    seen.choose("quick")
    assert "hello there" in seen.tab("log").inner_text()
    wait_until(lambda: "tab=log" in seen.page.url, 60, "the address")
    seen.page.evaluate("window.before = true")

    first.family()
    os.kill(page, signal.SIGKILL)
    seen.page.wait_for_function("!window.before && window.labd && labd.lastPulse")
    seen.page.wait_for_selector('#detail article[data-task="quick"] #tab-log[aria-selected=true]')

    first.family()
    first.process.kill()
    seen.page.wait_for_selector("#strip .bad")
    seen.page.click("#detail [data-ask=retry]")
    wait_until((home.spool / "pending" / "quick.yaml").exists, 60, "asked without a daemon")

    second = daemon(tmp_path)
    wait_until(lambda: second.said("page.started"), 90, "page.started")
    seen.page.wait_for_selector("#strip .good")
    assert second.stop() == 0
    wait_until(lambda: not answers(port), 30, "no page any more")
    seen.context.close()


def answers(port: int) -> bool:
    """Say whether a page answers there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
