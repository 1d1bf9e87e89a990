"""Reports: nothing is said that is not on record, everything else is said to be missing, and no text of a task gets out of its place."""

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import pypandoc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.archive import Span, spans_of
from labd.clock import from_iso
from labd.errors import NotFound
from labd.report import (
    KEPT,
    Format,
    Links,
    Report,
    campaign_report,
    lab_report,
    put,
    read_instant,
    render,
)
from labd.report.deciding import decisions_of
from labd.report.model import TaskTold
from labd.report.usage import usage_of
from labd.task import State
from tests.reportlab import NOW, SINCE, ReportLab, ago, claimed, ended, failed, lines
from tests.studies import studies
from tests.test_cli import labd

BERLIN = ZoneInfo("Europe/Berlin")
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> `a` | b [c](javascript:d) \x1b[31m \u202e *e* _f_ {{ 7*7 }} &lt;\n# g"


@pytest.fixture
def lab(tmp_path: Path) -> ReportLab:
    return ReportLab(tmp_path)


def links(page: str = "") -> Links:
    return Links(Path("../results"), page)


# --- from when on


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("fri", "2026-10-23T00:00+02:00"),
        ("Friday", "2026-10-23T00:00+02:00"),
        ("mon", "2026-10-26T00:00+01:00"),
        ("today", "2026-10-26T00:00+01:00"),
        ("yesterday", "2026-10-25T00:00+02:00"),
        ("7d", "2026-10-19T11:30+00:00"),
        ("36h", "2026-10-24T23:30+00:00"),
        ("2026-11-20", "2026-11-20T00:00+01:00"),
        ("2026-10-20T08:00:00Z", "2026-10-20T08:00+00:00"),
        ("2026-10-20T08:00", "2026-10-20T08:00+02:00"),
    ],
)
def test_an_instant_is_read_as_people_write_it_also_over_a_change_of_the_clocks(
    text: str, instant: str
) -> None:
    now = datetime.fromisoformat("2026-10-26T11:30:00+00:00")
    assert read_instant(text, now, BERLIN) == datetime.fromisoformat(instant)


@pytest.mark.parametrize(
    "text", ["", "soon", "fr", "2026-13-40", "-3d", "0d", "2026-10-20T99:00Z"]
)
def test_what_is_no_instant_is_told_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a weekday such as fri"):
        read_instant(text, NOW)


# --- what is said


@pytest.mark.parametrize("name", list(studies()))
def test_a_study_is_told_with_its_own_verdict_and_numbers(lab: ReportLab, name: str) -> None:
    study = studies()[name]
    scores = {"overall": {"mean": 4.5, "low": 4, "high": 5, "n": 2}}
    result = {"research": study.context(), "reviews": scores}
    lab.put("s", result=result, papers=("paper.pdf",), researcher="llm", model="tiny:7b")
    report = lab.report()
    [told] = [*report.improved, *report.others]
    claim, research = study.claim, told.research
    assert research is not None
    assert research.verdict == claim.verdict.value
    assert [one.id for one in report.improved] == (["s"] if name == "improved" else [])
    assert report.totals.verdicts[claim.verdict.value] == 1
    compared = research.comparison
    if compared is not None:
        assert claim.baseline is not None
        assert claim.best is not None
        assert (compared.difference, compared.low, compared.high) == (
            *(claim.difference, claim.difference_low, claim.difference_high),
        )
        assert (compared.n_baseline, compared.n_best) == (claim.baseline.n, claim.best.n)
        assert compared.p_corrected == claim.p_corrected
    assert (compared is None) == (claim.difference is None)
    assert (research.score, research.reviews) == (4.5, 2)
    assert report.totals.ideas == len(study.ideas)
    asked = sum(use.prompt_tokens + use.output_tokens for use in study.models)
    [row] = report.arms
    assert (row.tokens, row.tokens_unknown) == (asked, 0)
    text = render(report, Format.MARKDOWN, links())
    assert "[paper.pdf](../results/s/paper.pdf)" in text
    assert ("improved\n\nNothing." in text) == (name != "improved")
    if name in {"improved", "worse"}:
        page = render(report, Format.HTML, links())
        assert ('class="found"' in page) == (name == "improved")
        assert 'href="../results/s/paper.pdf"' in page


def test_an_idea_is_told_with_its_trials_and_its_best_value_on_validation(lab: ReportLab) -> None:
    lab.put("s", result={"research": studies()["improved"].context()}, researcher="llm")
    [task] = lab.report().improved
    assert task.research is not None
    told = [(idea.title, idea.trials, idea.value) for idea in task.research.ideas]
    assert told[0] == ("A wider hidden layer", 4, 0.972)
    assert told[2] == ("Reaches 99.9 % at once", 0, None)


def _without(key: str) -> dict[str, Any]:
    study = studies()["improved"].context()
    study["claim"][key] = None
    return study


@pytest.mark.parametrize(
    "result",
    [
        b'{"research": {"claim": {"verdict": "impr',
        b"[]",
        b"\xff\xfe",
        {"research": {"claim": {"verdict": "improved", "difference": "much"}}},
        {"research": {"claim": {"verdict": "a triumph"}}},
        {"research": {"claim": None}},
        {"research": {"claim": {"verdict": "improved", "difference": 1e999}}},
        {"research": _without("difference")},
        {"research": _without("best")},
    ],
    ids=range(9),
)
def test_an_improvement_whose_numbers_can_not_be_read_is_none(
    lab: ReportLab, result: dict[str, Any] | bytes
) -> None:
    lab.put("bad", result=result)
    report = lab.report()
    assert report.improved == ()
    assert report.totals.verdicts["improved"] == 0
    [(task, what)] = report.unreadable
    assert (task, "read" in what or "by how much" in what) == ("bad", True)
    assert what[:12] in render(report, Format.MARKDOWN, links())


@pytest.mark.parametrize(
    "result",
    [
        {"research": []},
        {"research": {"claim": {"verdict": "worse"}, "ideas": 3, "trials": [None, {"idea": []}]}},
        {"research": {"claim": {"verdict": "worse"}, "counts": {"trials": "x"}, "models": {}}},
        {"research": {"claim": {"verdict": "worse"}, "models": [{"model": 3}]}, "reviews": [1]},
        {
            "reviews": {"overall": {"mean": 99, "n": 1}},
            "research": {"claim": {"verdict": "worse"}},
        },
    ],
)
def test_results_of_any_other_form_make_no_number_up_and_stop_nothing(
    lab: ReportLab, result: dict[str, Any]
) -> None:
    lab.put("odd", result=result, researcher="llm", model="m")
    report = lab.report()
    assert report.totals.states["done"] == 1
    assert report.totals.score_mean is None
    assert report.arms[0].tokens is None
    assert "improved\n\nNothing." in render(report, Format.MARKDOWN, links())


@pytest.mark.parametrize(
    "events",
    [
        b"",
        b'{"event": "claimed"',
        b"not json\n{}\n",
        b"[]\n",
        b'{"event": "done"}\n',
        b'{"event": "claimed", "at": "never"}\n{"event": "done", "at": 7}\n',
        b'{"at": "2026-11-20T00:00:00Z"}\n',
    ],
)
def test_events_of_any_form_stop_nothing(lab: ReportLab, events: bytes) -> None:
    lab.put("odd", events=events)
    lab.put("good", State.FAILED, events=failed("exit code 3"))
    report = lab.report()
    assert report.totals.states["done"] == 1
    assert [group.message for group in report.failures] == ["exit code 3"]


def test_an_empty_lab_has_a_report(lab: ReportLab) -> None:
    report = lab.report()
    assert set(report.totals.states.values()) == {0}
    assert json.loads(render(report, Format.JSON, links()))["version"] == 1
    for form in (Format.HTML, Format.MARKDOWN):
        assert "Nothing." in render(report, form, links())


def test_failures_are_grouped_by_why_and_not_by_numbers_and_names(lab: ReportLab) -> None:
    for number in range(4):
        message = f"t-{number}: exit code 1 after {number}.5 s at 0x7f{number}a"
        lab.put(f"t-{number}", State.FAILED, events=failed(message), num_cpus=1)
    lab.put("other", State.FAILED, events=failed("no such file", "storage"))
    lab.put("silent", State.FAILED, events=[claimed(2), ended("failed", 1)])
    found = [(group.code, group.count) for group in lab.report().failures]
    assert found == [("exit_code", 4), ("storage", 1), ("unknown", 1)]


def test_tokens_that_are_not_on_record_are_unknown_and_those_of_no_model_are_none(
    lab: ReportLab,
) -> None:
    lab.put(
        "llm", State.FAILED, events=failed("x"), result={"tokens": 0}, researcher="llm", model="m"
    )
    lab.put("sweep", researcher="sweep", result={"tokens": 0})
    prompts: dict[str, Any] = {
        "kind": "prompts",
        "template": None,
        "input": "a.jsonl",
        "model": "p",
    }
    counted = {"model": "p", "tokens": 90, "output_tokens": 30}
    lab.put("once", result={**counted, "prompts": {"answered_before": 0}}, **prompts)
    lab.put("again", result={**counted, "prompts": {"answered_before": 4}}, **prompts)
    rows = {
        (row.template, row.model): (row.tokens, row.tokens_unknown) for row in lab.report().arms
    }
    assert rows == {("digits", "m"): (None, 1), ("digits", ""): (0, 0), ("prompts", "p"): (180, 1)}
    [model] = lab.report().models
    assert (model.model, model.calls) == ("p", None)
    assert (model.prompt_tokens, model.output_tokens) == (120, 60)
    assert "180 + 1 unknown" in render(lab.report(), Format.MARKDOWN, links())


def test_only_what_ended_in_the_period_or_runs_is_told_and_only_the_part_inside_counts(
    lab: ReportLab,
) -> None:
    lab.put("before", events=[claimed(300), ended("done", 299)])
    lab.put("into", events=[claimed(7 * 24 + 2, num_gpus=2), ended("done", 7 * 24 - 1)])
    lab.put("runs", State.RUNNING, events=[claimed(4)])
    lab.put("waits", State.PENDING, events=[claimed(6), ended("lost", 5, code="worker_lost")])
    lab.put("left", State.DONE, events=[claimed(2)])
    report = lab.report()
    assert report.totals.states == {
        "done": 2, "failed": 0, "cancelled": 0, "running": 1, "pending": 1,
    }  # fmt: skip
    assert report.usage.gpu_hours == pytest.approx(2)
    assert report.usage.task_hours == pytest.approx(1 + 4 + 1)
    assert report.usage.unknown_ends == 1
    assert [(one.code, one.tasks) for one in report.lost] == [("worker_lost", ("waits",))]
    early = lab.facts(since=NOW - timedelta(days=13), until=NOW - timedelta(days=12))
    assert [one.id for one in early.tasks if one.state == "done"] == ["before"]
    assert "has ended before" in early.notes[0]


def test_an_attempt_counts_for_as_long_as_it_took_or_could_take_where_nobody_saw_its_end() -> None:
    begins = from_iso(ago(40)).timestamp()
    claim, again = claimed(40, num_gpus=2), claimed(10, num_gpus=2, attempt=2)
    stuck = ended("stuck", 39.5, recovery="end_run")

    def hours(*events: dict[str, Any], **known: Any) -> list[float]:
        return [(s.ended_s - s.began_s) / 3600 for s in spans_of(events, **known)[0]]

    assert hours(claim, stuck, ended("lost", 39)) == pytest.approx([1])
    assert hours(claim, ended("lost", 39, duration_s=1800)) == pytest.approx([0.5])
    late = ended("done", 10, wall_s=7200)
    assert hours(claim, late) == pytest.approx([2]), "the daemon came back a day later"
    killed = [claim, ended("interrupted", 10), again, ended("done", 9, duration_s=3600)]
    assert hours(*killed, most_s=4 * 3600) == pytest.approx([4, 1])
    assert hours(claim, {**late, "wall_s": float("nan")}) == pytest.approx([30])
    set_back = ended("lost", 41, duration_s=60)
    assert spans_of([claim, set_back])[0] == [Span(begins, begins + 60, 1, 2)]
    assert hours(claim, {"event": "unclaimed"}, again, running_until_s=begins) == []
    assert spans_of([claim])[1] == 1


def test_a_campaigns_report_is_of_its_tasks_only(lab: ReportLab) -> None:
    lab.put("camp--a--1", labels=["campaign:camp"])
    lab.put("camp--mine")
    lab.put("camper--a--1", labels=["campaign:camper"])
    told = [
        {"event": "campaign.fired", "at": ago(2), "campaign": "camp"},
        {"event": "campaign.fired", "at": ago(2), "campaign": "camper"},
        {"event": "load.changed", "at": ago(2), "level": "high"},
    ]
    (lab.home.run_dir / "decisions.jsonl").write_bytes(lines(told) + b"{torn")
    report = lab.report("camp")
    assert report.totals.states["done"] == 1
    assert report.decisions.counts == {"campaign.fired": 1, "load.changed": 1}
    with pytest.raises(NotFound, match="no campaign 'other'"):
        lab.report("other")


def test_decisions_are_summed_up_with_the_time_at_each_level_as_far_as_it_is_known() -> None:
    records = [
        {"event": "load.changed", "at": ago(200), "level": "high", "because": "cpu 90 %"},
        {"event": "load.changed", "at": ago(100), "level": "normal"},
        {"event": "load.changed", "at": ago(90), "level": "critical", "node": "b"},
        {"event": "campaign.added", "at": ago(5), "campaign": "c", "arm": "a with b", "why": "1"},
        {"event": "campaign.added", "at": ago(4), "campaign": "c", "arm": "a with b", "why": "2"},
        {"event": "campaign.added", "at": "nonsense", "arm": "never"},
    ]
    found = decisions_of(records, SINCE.timestamp(), NOW.timestamp())
    assert [(one.arm, one.added, one.why) for one in found.arms] == [("a with b", 2, "2")]
    assert found.level_hours["the lab's own machine"] == pytest.approx({"high": 68, "normal": 100})
    assert found.level_hours["b"] == pytest.approx({"critical": 90})
    assert found.last[0].event == "campaign.added"
    later = decisions_of(records, SINCE.timestamp(), NOW.timestamp(), "other")
    assert later.arms == ()


_spans = st.lists(
    st.builds(
        lambda began_h, length_h, gpus: Span(began_h * 3600, (began_h + length_h) * 3600, 1, gpus),
        st.floats(-30, 60),
        st.floats(0, 50),
        st.integers(0, 4),
    ),
    max_size=8,
)


@settings(max_examples=50, deadline=None)
@given(spans=_spans, length_h=st.floats(0.1, 100))
def test_the_course_of_use_holds_as_many_hours_as_the_sum_says(
    spans: list[Span], length_h: float
) -> None:
    told: Any = TaskTold(
        "", "", "", "", "", "", None, None, tuple(spans), (), "", "", None, (), True, (), ()
    )
    usage = usage_of([told], 0.0, length_h * 3600)
    ends = [min((i + 1) * usage.step_s, length_h * 3600) for i in range(len(usage.tasks))]
    widths = [end - i * usage.step_s for i, end in enumerate(ends)]
    for course, hours in ((usage.tasks, usage.task_hours), (usage.gpus, usage.gpu_hours)):
        area = math.fsum(v * w for v, w in zip(course, widths, strict=True)) / 3600
        assert area == pytest.approx(hours, abs=1e-6)
    assert 0 <= usage.busy_share <= 1 + 1e-9


# --- how it is written


_FETCHING = {"src", "srcset", "action", "data", "formaction"}


class _Read(HTMLParser):
    """The elements of a page, with what would run or be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.hrefs: list[str] = []
        self.bad: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            if tag == "a" and key == "href":
                self.hrefs.append(value or "")
                continue
            elsewhere = key in {"href", "xlink:href"} and not (value or "").startswith("#")
            if elsewhere or key.startswith("on") or key in _FETCHING:
                self.bad.append(f"{tag} {key}={value}")


def hostile_report(lab: ReportLab) -> Report:
    study = studies()["improved"].context()
    study["ideas"][0]["title"] = study["claim"]["reason"] = study["metric"]["name"] = HOSTILE
    study["notes"], study["models"][0]["model"] = [HOSTILE], HOSTILE
    name = "a`b|c<i>[x](y)\x1b[31m\u202e&'\""
    lab.put(
        name,
        result={"research": study},
        papers=("paper.pdf",),
        title="<b>t</b>",
        researcher="llm",
        model="m",
    )
    lab.put(f"{name}2", State.FAILED, events=failed(HOSTILE, HOSTILE))
    lab.put(
        "bytes\udcff", result={"research": {"claim": {"verdict": "worse"}}}, papers=("paper.pdf",)
    )
    lab.put("junk", result={"research": {"claim": {"verdict": HOSTILE}}})
    told = {"event": HOSTILE, "at": ago(1), "campaign": HOSTILE, "arm": HOSTILE, "why": HOSTILE}
    added = {**told, "event": "campaign.added"}
    (lab.home.run_dir / "decisions.jsonl").write_bytes(lines([told, added]))
    return lab.report()


def test_no_text_of_a_task_gets_out_of_its_place_in_the_page(lab: ReportLab) -> None:
    text = render(hostile_report(lab), Format.HTML, links("http://127.0.0.1:7860"))
    read = _Read(text)
    assert read.bad == []
    assert not read.tags & {"script", "img", "i", "iframe", "object", "link"}
    assert {href.partition("?")[0].partition(":")[0] for href in read.hrefs} <= {
        "http", *(href for href in read.hrefs if href.startswith("../results/")),
    }  # fmt: skip
    assert "alert(1)" in text
    assert [c for c in text if not (c.isprintable() or c == "\n")] == []
    assert text.encode()


def test_no_text_of_a_task_gets_out_of_its_place_in_markdown_or_a_terminal(lab: ReportLab) -> None:
    text = render(hostile_report(lab), Format.MARKDOWN, links())
    assert [c for c in text if not (c.isprintable() or c == "\n")] == []
    parts = list(_parts(json.loads(pypandoc.convert_text(text, "json", format="gfm"))))
    assert not {"RawInline", "RawBlock", "Image", "Emph"} & {part["t"] for part in parts}
    led = sorted(part["c"][2][0] for part in parts if part["t"] == "Link")
    assert [target[:20] for target in led] == ["../results/a%60b%7Cc", "../results/bytes%FF/"]
    assert render(lab.report(), Format.JSON, links()).isascii()


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Give each element of a document as pandoc reads it."""
    children: list[Any] = value if isinstance(value, list) else []
    if isinstance(value, dict):
        children = list(value.values())
        if "t" in value:
            yield value
    for child in children:
        yield from _parts(child)


def test_the_page_needs_nothing_beside_it_and_its_links_lead_to_the_papers(
    lab: ReportLab, tmp_path: Path
) -> None:
    name = "with space #1 100%"
    result = {"research": studies()["improved"].context()}
    lab.put(name, result=result, papers=("paper.pdf", "paper.html"), researcher="llm")
    lab.put("busy", events=[claimed(9, num_gpus=1), ended("done", 1)])
    text = render(lab.report(), Format.HTML, links())
    read = _Read(text)
    assert read.bad == []
    assert "script" not in read.tags
    assert text.count("<svg") == 3
    assert not re.search(r"(?:src|@import|url\()(?!\(?#)[^;]{0,4}http", text)
    assert set(re.findall(r"https?://[^\"' <)]+", text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
        "http://purl.org/dc/elements/1.1/", "http://creativecommons.org/ns#", "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
        "http://purl.org/dc/dcmitype/StillImage",
    }  # fmt: skip
    shelf = tmp_path / "reports"
    assert sorted((shelf / unquote(href)).resolve() for href in read.hrefs) == [
        lab.home.results / name / paper for paper in ("paper.html", "paper.pdf")
    ]


def test_a_long_list_is_cut_and_says_so(lab: ReportLab) -> None:
    for number in range(203):
        (lab.home.spool / "running" / f"r{number}.yaml").write_text("kind: command\nrun: x\n")
    report = lab.report()
    assert len(report.running) == 200
    assert report.left_out == {"running": 3}
    assert "3 more" in render(report, Format.MARKDOWN, links())


# --- where it goes


def test_the_shelf_keeps_the_last_and_takes_nothing_else_away(tmp_path: Path) -> None:
    shelf = tmp_path / "reports"
    at = datetime(2026, 11, 1, tzinfo=UTC)
    put(shelf / "notes.html", "mine", shelf=shelf)
    for number in range(KEPT + 2):
        (shelf / lab_report(at + timedelta(hours=number), "html")).write_text("")
    put(shelf / campaign_report("camp", "stop", at), "last", shelf=shelf)
    names = {path.name for path in shelf.iterdir()}
    assert len(names) == KEPT + 1
    assert {"notes.html", "camp--stop--20261101T000000Z.html"} <= names


def test_the_command_line_writes_each_form_and_says_what_is_wrong(lab: ReportLab) -> None:
    lab.put("one", State.FAILED, events=failed("exit code 3"))
    root = lab.home.root
    wrong = labd(root, "report", "--since", "someday")
    assert wrong.returncode == 2
    assert "expected a weekday such as fri" in " ".join(wrong.stderr.replace("│", " ").split())
    kept = labd(root, "report", "--since", "7d", "--keep", "--format", "md")
    [path] = (root / "reports").iterdir()
    assert path.name in kept.stderr
    assert "exit code 3" in path.read_text()
    assert path.stat().st_mode & 0o007 == 0
