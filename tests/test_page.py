"""The page without a browser: what it lets through, what it gives out, what it says, and its parts by themselves."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labd.agenda import AgendaReader
from labd.errors import LabdError, MoveRefused, NotFound
from labd.index import Index
from labd.lab import Lab
from labd.page import asking
from labd.page.asking import form_text, problems_of
from labd.page.campaignpanel import campaigns_panel
from labd.page.choice import Choice, from_query, matching
from labd.page.detail import paper_frame
from labd.page.html import Html, tag
from labd.page.labpanel import lab_panel
from labd.page.overview import table
from labd.page.passwords import fits, hashed
from labd.page.reportpanel import reports_panel
from labd.page.signin import SignIn
from labd.page.snapshot import Snapshots
from labd.page.tree import picture, tree_places
from labd.page.words import _TABLE, Words
from labd.priority import with_priority
from labd.published import opened, plots_of, reports_of
from labd.settings import Home
from labd.spool import Spool
from labd.task import State, parse_task
from labd.timeline import add_lines
from labd.trials import Trial, trials_of, trials_of_steps
from tests.campaign_scene import NODES, NOW, put_campaigns, put_tasks
from tests.factories import task_text, write_settings
from tests.pages import PageProcess
from tests.processes import free_port, wait_until

pytestmark = pytest.mark.xdist_group("page")
HOSTILE = (
    "<script>alert(1)<.yaml",
    "${alert(1)}'\"><img src=x onerror=alert(1)>.yaml",
    "{{7*7}}.yaml",
)
REPORT = "nightly--boost--20261127T060000Z.html"


@pytest.fixture(scope="module")
def lab_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("lab")
    home = write_settings(root)
    Spool(home.spool).prepare()
    home.results.mkdir()
    for name in HOSTILE:
        (home.spool / "pending" / name).write_text(task_text())
    results = home.results / "idea"
    (results / "plots").mkdir(parents=True)
    (results / "paper.pdf").write_bytes(b"%PDF-1.7 a paper")
    (results / "paper.html").write_text("<script>alert(1)</script>")
    (results / "plots" / "one.png").write_bytes(b"\x89PNG")
    (results / "secret.txt").write_text("not published")
    (root / "outside.txt").write_text("outside")
    (results / "paper.md").symlink_to(root / "outside.txt")
    (results / "plots" / "link.png").symlink_to(root / "outside.txt")
    (home.results / "linked").symlink_to(results)
    os.mkfifo(results / "paper.tex")
    home.reports.mkdir()
    (home.reports / REPORT).write_text("<script>alert(1)</script>")
    (home.reports / "lab--20261127T060001Z.md").write_text("# a report")
    (home.reports / "lab--20261127T060002Z.html").symlink_to(root / "outside.txt")
    (home.reports / "notes.html").write_text("not a report's name")
    return home


@pytest.fixture(scope="module")
def page(lab_home: Home) -> Iterator[PageProcess]:
    process = PageProcess(lab_home.root).wait_ready()
    yield process
    process.kill()


# --- what is let through


@pytest.mark.parametrize(
    "path",
    [
        "/t/idea/secret.txt",
        "/t/idea/paper.md",
        "/t/idea/paper.tex",
        "/t/idea/plots/link.png",
        "/t/linked/paper.pdf",
        "/t/idea/../idea/paper.pdf",
        "/t/idea/plots/../paper.pdf",
        "/t/idea/plots%2f..%2fpaper.pdf",
        "/t/..%2f..%2fetc/passwd",
        "/t/%2e%2e/config/labd.yaml",
        "/t/idea/paper.pdf%00.png",
        "/t/idea//paper.pdf",
        "/t/idea/runs/trial-000/params.json",
        "/t/./idea/paper.pdf",
        "/results/idea/secret.txt",
        "/results/idea/runs/trial-000/params.json",
        "/reports/notes.html",
        "/reports/lab--20261127T060002Z.html",
        "/reports/../outside.txt",
        "/reports/..%2foutside.txt",
        "/reports/",
        "/t//etc/passwd",
        "/en/gradio_api/file=/etc/passwd",
        "/en/gradio_api/file/etc/passwd",
        "/en/file=/etc/passwd",
        "/en/gradio_api/proxy=http://127.0.0.1/",
        "/en/gradio_api/info",
        "/en/gradio_api/openapi.json",
        "/en/gradio_api/runs",
        "/en/monitoring/summary",
        "/en/assets/../../../../pyproject.toml",
        "/en/static/..%2f..%2froutes.py",
        "/en/svelte/..%2f..%2f..%2froutes.py",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_path_gives_a_file_that_is_not_published(page: PageProcess, path: str) -> None:
    status, _, body = page.ask(path)
    assert status == 404
    assert b"root:" not in body
    assert b"outside" not in body


def test_a_published_file_comes_as_a_download_and_a_plot_as_a_picture(page: PageProcess) -> None:
    status, headers, body = page.ask("/t/idea/paper.pdf")
    assert (status, body) == (200, b"%PDF-1.7 a paper")
    assert headers["content-disposition"] == "attachment"
    assert "sandbox" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    again, _, nothing = page.ask("/t/idea/paper.pdf", headers={"If-None-Match": headers["etag"]})
    assert (again, nothing) == (304, b"")
    assert page.ask("/t/idea/paper.html")[1]["content-disposition"] == "attachment"
    assert page.ask("/t/idea/plots/one.png")[1]["content-type"] == "image/png"


def test_a_report_is_shown_by_itself_with_nothing_in_it_running_or_loading(
    page: PageProcess,
) -> None:
    status, headers, body = page.ask(f"/reports/{REPORT}")
    assert (status, body) == (200, b"<script>alert(1)</script>")
    policy = headers["content-security-policy"].split("; ")
    assert headers["content-disposition"] == "inline"
    assert {"default-src 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert "sandbox allow-same-origin allow-downloads" in policy
    markdown = page.ask("/reports/lab--20261127T060001Z.md")[1]
    assert markdown["content-disposition"] == "attachment"
    linked = page.ask("/results/idea/paper.html")[1]
    assert linked["content-disposition"] == "attachment"
    assert "allow-same-origin" not in linked["content-security-policy"]


def test_reports_are_listed_newest_first_and_what_is_none_is_not(lab_home: Home) -> None:
    names = [REPORT, "lab--20261127T060001Z.md"]
    for age_s, name in enumerate(names):
        os.utime(lab_home.reports / name, (1_795_000_000 - age_s,) * 2)
    found = reports_of(lab_home.reports)
    assert [one.name for one in found] == names
    shown = reports_panel(found, Words("en"))
    assert shown.count("<a ") == 2
    assert f'href="/reports/{REPORT}"' in shown
    assert "nightly, boost" in shown
    assert "the whole lab" in shown
    many = reports_panel(found * 50, Words("en"))
    assert many.count("<a ") == 50
    assert "the first 50 are shown" in many
    assert reports_of(lab_home.root / "none") == []
    assert "labd report --keep" in reports_panel([], Words("en"))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1:1", ""])
def test_another_name_pointed_at_the_page_is_refused(page: PageProcess, host: str) -> None:
    assert page.ask("/en/", headers={"Host": host})[0] in {400, 421}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "cross-site"},
        {},
    ],
)
def test_another_sites_page_changes_nothing(page: PageProcess, headers: dict[str, str]) -> None:
    body = b'{"data": [], "fn_index": 0, "session_hash": "x"}'
    sent = {"Content-Type": "application/json", **headers}
    assert page.ask("/en/gradio_api/queue/join", "POST", sent, body)[0] == 403


def test_files_can_t_be_sent_to_the_page(page: PageProcess) -> None:
    sent = {"Origin": page.url, "Content-Type": "multipart/form-data; boundary=x"}
    assert page.ask("/en/gradio_api/upload", "POST", sent, b"--x--")[0] == 404
    assert page.ask("/en/gradio_api/component_server", "POST", sent, b"{}")[0] == 404
    assert page.ask("/en/gradio_api/queue/join", "PUT", sent, b"{}")[0] == 405


def test_the_page_is_in_the_language_that_the_browser_asks_for(page: PageProcess) -> None:
    status, headers, _ = page.ask(
        "/?task=x", headers={"Accept-Language": "ko-KR,ko;q=0.9,en;q=0.8"}
    )
    assert (status, headers["location"]) == (307, "/ko/?task=x")
    assert page.ask("/", headers={"Accept-Language": "fr"})[1]["location"] == "/en/"


def test_people_sign_in_where_users_are_named_and_a_read_only_page_only_shows(
    tmp_path: Path,
) -> None:
    write_settings(tmp_path, page={"users": {"ada": hashed("engine")}, "read_only": True})
    (tmp_path / "spool").mkdir()
    process = PageProcess(tmp_path).wait_ready()
    try:
        sent = {"Origin": process.url, "Content-Type": "application/x-www-form-urlencoded"}
        assert process.ask("/")[1]["location"] == "/sign-in"
        assert process.ask("/en/config")[0] == 401
        assert process.ask("/t/idea/paper.pdf")[0] == 401
        assert process.ask("/sign-in", "POST", sent, b"user=ada&password=loom")[0] == 401
        foreign = {**sent, "Origin": "http://evil.example"}
        assert process.ask("/sign-in", "POST", foreign, b"user=ada&password=engine")[0] == 403
        status, headers, _ = process.ask("/sign-in", "POST", sent, b"user=ada&password=engine")
        assert status == 303
        assert {"HttpOnly", "SameSite=Strict"} <= set(headers["set-cookie"].split("; "))
        mine = {"Cookie": headers["set-cookie"].partition(";")[0]}
        status, _, config = process.ask("/en/config", headers=mine)
        assert status == 200
        assert b'"choose"' in config
        assert b'"ask"' not in config  # it is read-only: there is nothing by which to ask
        assert b"form-submit" not in config
        assert process.ask("/sign-out", "POST", {**sent, **mine})[0] == 303
        assert process.ask("/en/config", headers=mine)[0] == 401
        assert process.stop() in {0, -15}
    finally:
        process.kill()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "lab.example"])
def test_the_page_refuses_to_listen_for_strangers_without_signing_in(
    home: Home, host: str
) -> None:
    command = [
        *(sys.executable, "-m", "labd.cli", "--home", str(home.root)),
        *("page", "--host", host, "--port", str(free_port())),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "labd page --hash-password" in done.stderr


# --- parts: what is shown


def snapshot_table(home: Home, choice: Choice | None = None) -> Html:
    snapshots = Snapshots(Lab(home))
    snapshots.start()
    try:
        return table(snapshots.get(), choice or Choice(), Words("en"))
    finally:
        snapshots.stop()


def test_a_hostile_name_is_text_in_the_table(lab_home: Home) -> None:
    shown = snapshot_table(lab_home)
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;alert(1)&lt;" in shown


def test_each_machine_shows_its_load_and_why_it_gets_no_tasks(lab_home: Home) -> None:
    told = {"cpu": 0.42, "memory_bytes": 2**34, "memory_free_bytes": 2**32, "disk_used": 0.71}
    gpu = {"index": 0, "busy": 0.9, "memory_bytes": 2**36, "used_bytes": 2**35}
    far = {
        "name": "bob",
        "level": "critical",
        "barred": "its load is critical (<disk>)",
        "machine": {**told, "temperature_c": 63.4, "gpus": [gpu]},
    }
    silent = {"name": "eve", "level": "high", "because": "memory 90 %", "machine": None}
    looked = Snapshots(Lab(lab_home)).look()
    shown = str(lab_panel(replace(looked, nodes=[far, silent]), Words("en")))
    for text in ("42%", "12.0 / 16.0 GiB", "71%", "90%", "32.0 / 64.0 GiB", "63 °C"):
        assert text in shown, text
    assert "No new tasks: its load is critical (&lt;disk&gt;)" in shown
    assert "High load: memory 90 %" in shown


def test_what_is_not_made_here_is_escaped() -> None:
    made = tag("p", "<b>", tag("i", "&"), title='"><script>', data_x=None)
    assert made == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;<i>&amp;</i></p>'
    assert tag("p", "a\u202eb\x1b") == "<p>a\\u202eb\\x1b</p>"


def test_a_paper_stands_in_a_frame_that_runs_and_loads_nothing() -> None:
    frame = paper_frame('<p onclick="x">"</iframe><script>alert(1)</script>', "a paper")
    assert frame.startswith('<iframe sandbox="" ')
    assert frame.count("<") == 2
    assert "default-src &#x27;none&#x27;" in frame


def test_both_languages_have_every_word_and_the_same_places_in_them() -> None:
    places = [
        [part.partition("}")[0] for part in text.split("{")[1:]]
        for pair in _TABLE.values()
        for text in pair
    ]
    assert all(all(text.strip() for text in pair) for pair in _TABLE.values())
    assert [sorted(p) for p in places[::2]] == [sorted(p) for p in places[1::2]]


def campaigns_of(home: Home, nodes: list[dict[str, Any]], *, read_only: bool = False) -> Html:
    snapshots = Snapshots(Lab(home))
    agenda = AgendaReader(Lab(home)).read(NOW)
    while (look := snapshots.look()).unread:
        pass
    return campaigns_panel(
        replace(look, agenda=agenda, nodes=nodes), Words("en"), read_only=read_only
    )


def test_campaigns_are_shown_with_their_firings_their_mix_and_what_was_decided(
    home: Home,
) -> None:
    assert "config/campaigns/" in campaigns_of(home, [])
    put_campaigns(home, NOW, "<script>alert(1)</script>")
    put_tasks(home)
    shown = campaigns_of(home, NODES)
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 2
    plain = re.sub("<[^>]*>", " ", shown)
    for told in (
        "1 running, 2 pending",
        "2026-11-28 08:00",
        "boost: 1 of 4 tasks are in the queue",
        "memory 88 %, high from 85 %",
        "normal load",
        "keeps the queue filled now",
        "broken.yaml:1:1: enabled",
        "added a task",
        "it was missed 2 d ago",
        "payoff 0.90 after 6 tasks",
    ):
        assert told in re.sub(r"\s+", " ", plain)
    assert "<b>ada</b>" in shown
    assert "<b>cy</b>" not in shown


def test_a_campaign_s_step_is_started_by_hand_where_the_page_may_change_something(
    home: Home,
) -> None:
    put_campaigns(home, NOW, "<script>alert(1)</script>")
    shown = campaigns_of(home, [])
    assert shown.count("data-start=") == 2  # weekend's only step with tasks, and nightly's queue
    assert "Start weekend boost now? Tasks submitted: 4" in shown
    assert "data-start=" not in campaigns_of(home, [], read_only=True)
    answer = asking.start(Lab(home), "weekend", "boost", Words("en"))
    assert answer.said == "Started weekend boost. Tasks submitted: 4."
    assert len(list((home.spool / "pending").glob("weekend--boost--*.yaml"))) == 4
    for name, step in (("weekend", "none"), ("../weekend", ""), ("broken", "")):
        assert not asking.start(Lab(home), name, step, Words("en")).ok


def test_filters_take_every_word_and_every_key(home: Home) -> None:
    for number, labels in enumerate((["night"], ["day"], [])):
        text = task_text(title=f"Digits {number}", labels=labels)
        (home.spool / "pending" / f"t{number}.yaml").write_text(text)
    views = Index(Lab(home)).refresh(10)
    found = [view.id for view in matching(views, Choice(find="digits T1"))]
    assert found == ["t1"]
    assert [view.id for view in matching(views, Choice(label="night"))] == ["t0"]
    assert not matching(views, Choice(state="done"))
    assert len(matching(views, Choice(kind="research", owner=views[0].owner))) == 3


def test_an_address_chooses_only_what_there_is() -> None:
    chosen = from_query({"task": "x" * 999, "tab": "nonsense", "level": "loud", "other": "1"})
    assert (len(chosen.task), chosen.tab, chosen.level) == (300, "overview", "info")
    assert Choice(task="a", trial="t").with_(task="b").trial == ""


# --- parts: what is known


def test_the_index_follows_files_that_come_move_change_and_go(home: Home) -> None:
    index, pending = Index(Lab(home)), home.spool / "pending"
    (pending / "a.yaml").write_text(task_text(priority=1))
    (pending / "b.yaml").write_text("no task")
    assert {(v.id, v.priority) for v in index.refresh(10)} == {("a", 1), ("b", 0)}
    (pending / "new").write_text(task_text(priority=2))
    (pending / "new").rename(pending / "a.yaml")
    (pending / "b.yaml").rename(home.spool / "failed" / "b.yaml")
    views = {v.id: v for v in index.refresh(10)}
    assert (views["a"].priority, views["b"].state) == (2, State.FAILED)
    (pending / "a.yaml").unlink()
    assert [v.id for v in index.refresh(10)] == ["b"]


def test_the_index_reads_in_slices_and_says_what_is_left(home: Home) -> None:
    for number in range(5):
        (home.spool / "done" / f"t{number}.yaml").write_text(task_text())
    times = iter(range(10_000))
    index = Index(Lab(home), clock=lambda: float(next(times)))
    assert index.refresh(0.0) == []
    assert index.unread == 5
    while index.unread:
        index.refresh(10.0)
    assert len(index.refresh(10.0)) == 5


def test_stages_say_how_long_they_took_and_when_they_may_end() -> None:
    def line(second: int, stage: str, done: int, total: int) -> dict[str, object]:
        at = f"2026-11-26T10:00:{second:02d}Z"
        return {
            "event": "stage.progress",
            "timestamp": at,
            "stage": stage,
            "done": done,
            "total": total,
        }

    old = add_lines({}, [line(0, "lost", 1, 2)])
    stages = add_lines(
        old,
        [
            {"event": "attempt.started"},
            line(1, "base", 1, 1),
            line(2, "search", 0, 10),
            line(12, "search", 5, 10),
        ],
    )
    assert list(stages) == ["base", "search"]
    search = stages["search"]
    assert search.ends_at == search.last_at + 10
    assert stages["base"].over
    assert stages["base"].ends_at is None


def test_trials_are_read_with_tolerance() -> None:
    found = trials_of(
        {
            "researcher": "llm",
            "metric": {"name": "loss", "better": "lower"},
            "trials": [
                {
                    "name": "t1",
                    "move": "draft",
                    "run": {"value": 2.0, "status": "ok"},
                    "lines_added": 3,
                    "lines_removed": 1,
                },
                {"name": "t2", "parent": "t1", "status": "ok", "value": 1.0},
                {"name": "t3", "parent": "nobody", "refused": "it writes outside", "run": None},
                {"name": "t4", "run": {"value": float("nan")}, "params": 7},
                "nonsense",
                {},
            ],
        }
    )
    assert [one.name for one in found.trials] == ["t1", "t2", "t3", "t4"]
    assert (found.best, found.trials[0].lines, found.trials[3].value) == ("t2", "+3 -1", None)
    assert trials_of({"trials": 3}).trials == ()
    steps: list[dict[str, Any]] = [
        {"key": "run/trial-000/x", "value": {"name": "trial-000", "value": 1.0, "status": "ok"}},
        {"key": "plan"},
        {},
    ]
    assert [one.name for one in trials_of_steps(steps).trials] == ["trial-000"]


def test_a_tree_places_children_right_of_their_parents_and_no_two_at_one_place() -> None:
    trials = [
        Trial("a"),
        Trial("b", "a"),
        Trial("c", "a"),
        Trial("d", "b"),
        Trial("e", "x"),
        Trial("f", "g"),
        Trial("g", "f"),
    ]
    places = tree_places(trials)
    assert len({(p.x, p.y) for p in places.values()}) == len(trials)
    assert places["a"].x < places["b"].x == places["c"].x < places["d"].x
    assert places["e"].x == places["a"].x
    deep = [Trial(f"t{n}", f"t{n - 1}" if n else "") for n in range(3000)]
    assert len(tree_places(deep)) == 3000


def test_a_tree_s_names_are_text() -> None:
    found = trials_of(
        {
            "trials": [
                {"name": '"><script>', "run": {"value": 1}},
                {"name": "b", "parent": '"><script>'},
            ]
        }
    )
    drawn = picture(found, Words("en"), task="<i>", chosen="b")
    assert "<script" not in drawn
    assert "<i>" not in drawn
    assert drawn.count('role="button"') == 2


def test_published_names_are_those_on_the_list(lab_home: Home) -> None:
    assert plots_of(lab_home.results, "idea") == ["plots/link.png", "plots/one.png"]
    assert plots_of(lab_home.results, "linked") == []
    for task, name in (
        ("idea", "paper.md"),
        ("idea", "paper.tex"),
        ("", "paper.pdf"),
        ("..", "paper.pdf"),
        ("idea/plots", "one.png"),
    ):
        with pytest.raises(NotFound), opened(lab_home.results, task, name):
            pass


# --- parts: what people ask


@pytest.mark.parametrize(
    "text",
    [
        "kind: command\nrun: x  # say\npriority: 3  # high\n",
        "# first\nkind: command\nrun: 'priority: 9'\n",
        "{kind: command, run: x, priority: 3}\n",
        "kind: command\nrun: |\n  priority: 3\n  x",
    ],
)
def test_another_priority_changes_nothing_else(text: str) -> None:
    new = with_priority(text, -7)
    old_spec, new_spec = (parse_task(t.encode(), "t.yaml").spec for t in (text, new))
    assert new_spec.priority == -7
    assert new_spec.model_copy(update={"priority": old_spec.priority}) == old_spec
    assert ("#" in text) == ("#" in new)


def test_a_raised_task_is_a_new_file_of_the_same_age_and_id(home: Home) -> None:
    path = home.spool / "pending" / "idea.yaml"
    path.write_text(task_text())
    os.utime(path, ns=(1, 10**18))
    before = path.stat()
    lab = Lab(home)
    assert lab.set_priority("idea", 7).priority == 7
    after = path.stat()
    assert before.st_ino != after.st_ino
    assert (after.st_mtime_ns, after.st_uid) == (before.st_mtime_ns, before.st_uid)
    assert lab.find("idea").priority == 7
    assert sorted(p.name for p in path.parent.iterdir()) == ["idea.yaml"]


def test_a_task_that_runs_or_has_begun_keeps_its_file(home: Home) -> None:
    lab = Lab(home)
    (home.spool / "running" / "runs.yaml").write_text(task_text())
    (home.spool / "pending" / "begun.yaml").write_text(task_text())
    events = home.results / "begun" / "events.jsonl"
    events.parent.mkdir()
    events.write_text('{"event": "claimed", "attempt": 1, "at": "2026-11-26T00:00:00Z"}\n')
    for name in ("runs", "begun"):
        with pytest.raises(MoveRefused):
            lab.set_priority(name, 1)
    assert lab.find("begun").priority == 0


def test_a_file_that_was_changed_meanwhile_stays(home: Home) -> None:
    spool, path = Spool(home.spool), home.spool / "pending" / "idea.yaml"
    path.write_text(task_text())
    entry = spool.entry(State.PENDING, "idea.yaml")
    assert entry is not None
    path.unlink()
    assert not spool.put_instead(b"new", entry)
    path.write_text(task_text(seed=1))
    os.utime(path, ns=(1, 1))
    assert not spool.put_instead(b"new", entry)
    assert path.read_text() == task_text(seed=1)
    assert [p.name for p in path.parent.iterdir()] == ["idea.yaml"]


def test_what_the_checker_says_goes_to_its_field(home: Home) -> None:
    text = form_text(
        "research", {"template": "digots", "num_cpus": "-1", "labels": "a b", "title": ""}
    )
    assert "labels:\n- a\n- b" in text
    with pytest.raises(LabdError) as caught:
        Lab(home).check_text(text, "task.yaml")
    assert {one.key for one in problems_of(caught.value, "task.yaml")} == {"num_cpus"}
    with pytest.raises(LabdError) as caught:
        Lab(home).check_text(form_text("research", {"template": "digots"}), "task.yaml")
    (problem,) = problems_of(caught.value, "task.yaml")
    assert (problem.key, problem.line) == ("template", 2)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "x\x00", "y" * 300])
def test_a_name_that_is_none_submits_nothing(home: Home, name: str) -> None:
    with pytest.raises(LabdError):
        Lab(home).submit_text(task_text(), name)
    assert not list((home.spool / "pending").iterdir())


# --- parts: signing in


def test_a_password_fits_its_hash_only() -> None:
    kept = hashed("correct horse")
    assert fits("correct horse", kept)
    assert not fits("correct horse ", kept)
    assert not fits("", kept)
    assert not fits("correct horse", None)
    assert not fits("x", "scrypt$999999999$8$1$$")
    assert hashed("same") != hashed("same")


def test_sessions_end_and_tries_are_limited() -> None:
    now = [0.0]
    sign_in = SignIn({"ada": hashed("engine")}, clock=lambda: now[0])
    token = sign_in.enter("ada", "engine")
    mine = {"cookie": f"labd_session={token}"}
    assert sign_in.user(mine) == "ada"
    assert sign_in.user({"cookie": "labd_session="}) is None
    now[0] += 13 * 3600
    assert sign_in.user(mine) is None
    for _ in range(10):
        assert sign_in.may_try("ada")
        assert sign_in.enter("ada", "loom") is None
    assert not sign_in.may_try("ada")
    assert sign_in.may_try("grace")
    now[0] += 61
    assert sign_in.may_try("ada")


def test_a_machine_shows_what_runs_there_as_the_daemon_says_it_now(home: Home) -> None:
    looked = Snapshots(Lab(home)).look()
    ada = {"name": "ada", "local": False, "running": ["ended-long-ago"]}
    running = {"idea": {"node": "ada"}, "other": {"node": "bob"}}
    for up, shown in ((True, "▶ idea<"), (False, "</h4></section>")):
        status = replace(looked.status, up=up, facts={"running": running})
        panel = str(lab_panel(replace(looked, nodes=[ada], status=status), Words("en")))
        assert shown in panel
        assert "ended-long-ago" not in panel


def test_who_comes_back_to_the_page_sees_what_changed_meanwhile(home: Home) -> None:
    home.reports.mkdir()
    (home.reports / REPORT).write_text("a report")
    snapshots = Snapshots(Lab(home), unasked_s=0.5, agenda_every_s=3_600)
    snapshots.start()
    try:
        wait_until(lambda: snapshots.get().reports, 20, "the first report")
        (home.reports / "lab--20261128T060000Z.html").write_text("another")
        time.sleep(1)  # nobody asks
        wait_until(lambda: len(snapshots.get().reports) == 2, 20, "the second report")
    finally:
        snapshots.stop()


def test_a_look_after_a_change_sees_it(home: Home) -> None:
    snapshots = Snapshots(Lab(home))
    snapshots.start()
    try:
        assert snapshots.get().views == []
        (home.spool / "pending" / "idea.yaml").write_text(task_text())
        snapshots.look_now()
        began_s = time.monotonic()
        assert [view.id for view in snapshots.get().views] == ["idea"]
        assert time.monotonic() - began_s < 15  # it came by being asked for, not by giving up
    finally:
        snapshots.stop()
