"""The sweep's paper: it says what the record says, whatever the verdict, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pypdf
import pytest

from labd.errors import ResearchError
from labd.research.paper import NUMBERS_FILE, draft_paper, write_paper
from labd.research.record import Importance, ResearchRecord
from labd.template import Metric
from tests.records import (
    FIGURES,
    draw_figures,
    make_claim,
    make_provenance,
    make_record,
    make_run,
    make_sample,
    make_space,
    make_trials,
    verdict_records,
)
from tests.test_render import assert_inert, pdf_text

RECORDS = verdict_records()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A task's results with all figures drawn."""
    draw_figures(tmp_path)
    return tmp_path


def text_of(record: ResearchRecord, results_dir: Path) -> str:
    """Give title, abstract and body as a reader sees them, on one line, without escapes."""
    draft = draft_paper(record, results_dir)
    text = f"{draft.title} {draft.abstract.text} {draft.body.text}"
    return " ".join(re.sub(r"\\(?=[^\w\s]|_)", "", text).split())


@pytest.mark.parametrize("name", RECORDS)
def test_every_verdict_gives_a_paper_of_three_pages_or_more(results: Path, name: str) -> None:
    rendered = write_paper(RECORDS[name], results)
    assert rendered.warnings == ()
    assert len(pypdf.PdfReader(rendered.pdf).pages) >= 3
    text = " ".join(pdf_text(rendered.pdf).split())
    for heading in (
        "1 Question",
        "2 Method",
        "3 Results",
        "4 Threats to validity",
        "5 How to do it again",
    ):
        assert heading in text
    for number in range(1, 5):
        assert f"Figure {number}." in text
    assert "without a language model" in text
    assert_inert(rendered)


@pytest.mark.parametrize(
    ("name", "in_title", "in_abstract"),
    [
        ("improved", "improves on the baseline", "that improves on the baseline"),
        ("no_improvement", "finds no improvement", "No improvement was found"),
        ("no_trial_better", "finds no improvement", "no trial of a parameter search"),
        ("worse", "is worse than the baseline", "is worse than the baseline on the test split"),
        ("inconclusive", "without a conclusion", "stays open"),
        ("inconclusive_selected", "without a conclusion", "stays open"),
        ("no_trials", "finds no improvement", "the parameter search ran no trial"),
    ],
)
def test_title_and_abstract_say_the_verdict_plainly(
    results: Path, name: str, in_title: str, in_abstract: str
) -> None:
    draft = draft_paper(RECORDS[name], results)
    assert in_title in draft.title
    assert in_abstract in draft.abstract.text
    if name != "improved":
        assert "improves on" not in draft.title + draft.abstract.text + draft.body.text


def test_the_numbers_of_the_claim_are_in_the_text(results: Path) -> None:
    text = text_of(make_record(), results)
    for part in (
        "| Baseline | 10 | 0.9532 | 0.00327 | 0.9508 | 0.9555 |",
        "| Selected (`trial-017`) | 10 | 0.9718 |",
        "| Difference of means | +0.0187 |",
        "+0.0156 to +0.0217",
        "*g*) | +5.47 |",
        "*p* < 0.001 after correction for 24 comparisons",
        "24 trials over 4 parameters, 21 with a result",
        "3 crashed, 0 ran out of time",
        "| `lr` | 0.01 | 0.0054 |",
        "| `lr` | 61.2 % |",
        "seeded with 7",
        "2001, 2002, 2003",
    ):
        assert part.replace(" %", "\u00a0%") in text or part in text, part


@pytest.mark.parametrize("name", RECORDS)
def test_every_number_in_the_paper_traces_to_the_record(results: Path, name: str) -> None:
    """What is left when all that was filled in is taken away holds no digit."""
    record = RECORDS[name]
    draft = draft_paper(record, results)
    context = record.context()
    for filled in (draft.abstract, draft.body):
        text = re.sub(r"\\(?=[^\w\s]|_)", "", filled.text)
        text = re.sub(r"SHA-256", "", text)
        for shown in sorted({r.shown for r in filled.references}, key=len, reverse=True):
            text = text.replace(shown, " ").replace(" ".join(shown.split()), " ")
        assert not re.search(r"\d", text), re.findall(r".{30}\d.{30}", text)
    for reference in draft.references:
        if not reference.path.startswith("paper.") and "(name)" not in reference.path:
            assert look_up(context, reference.path) == reference.value


def look_up(context: Any, path: str) -> Any:
    """Follow a reference's path through plain data, in a way of its own."""
    if path.endswith(".count"):
        return len(look_up(context, path.removesuffix(".count")))
    value = context
    for name, key, index in re.findall(r"(?:^|\.)(\w+)|\['([^']*)'\]|\[(\d+)\]", path):
        value = value[int(index)] if index else value[name or key]
    return value


def test_the_sources_of_all_numbers_lie_beside_the_paper(results: Path) -> None:
    write_paper(make_record(), results)
    numbers = json.loads((results / NUMBERS_FILE).read_text())
    assert {"path": "claim.best.mean", "value": 0.97184, "shown": "0.9718"} in numbers
    assert all(isinstance(number["value"], int | float) for number in numbers)


def test_the_same_record_gives_the_same_bytes_whatever_time_it_took(tmp_path: Path) -> None:
    made = []
    for name, wall_s in (("quick", 0.5), ("slow", 500.25)):
        draw_figures(tmp_path / name)
        trials = [trial.model_copy(update={"wall_s": wall_s}) for trial in make_trials()]
        rendered = write_paper(make_record(trials=trials), tmp_path / name)
        paths = (rendered.markdown, rendered.tex, rendered.html, rendered.pdf)
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1]


def test_a_missing_figure_is_left_out_with_a_warning_and_the_others_count_on(
    results: Path,
) -> None:
    (results / FIGURES["best_so_far"]).unlink()
    rendered = write_paper(make_record(), results)
    assert any("best_so_far is left out" in warning for warning in rendered.warnings)
    text = pdf_text(rendered.pdf)
    assert "Figure 3." in text
    assert "Figure 4" not in text
    assert "The course of the search" not in text


def test_a_paper_without_figures_still_comes_out(tmp_path: Path) -> None:
    rendered = write_paper(make_record(figures={}), tmp_path)
    assert rendered.warnings == ()
    assert "Figure" not in pdf_text(rendered.pdf)


def test_a_figure_outside_the_results_does_not_get_in(results: Path) -> None:
    draw_figures(results.parent, {"x": "outside.png"})
    figures = FIGURES | {"best_so_far": "../outside.png"}
    with pytest.raises(ResearchError, match="no plain relative path"):
        write_paper(make_record(figures=figures), results)
    (results / "plots" / "link.png").symlink_to(results.parent / "outside.png")
    rendered = write_paper(
        make_record(figures=FIGURES | {"best_so_far": "plots/link.png"}), results
    )
    assert any("link.png left out" in warning for warning in rendered.warnings)


def test_tables_are_numbered_in_the_order_in_which_they_stand(results: Path) -> None:
    for record in RECORDS.values():
        numbers = re.findall(
            r"^Table: Table (\d+)\.", draft_paper(record, results).body.text, re.MULTILINE
        )
        assert numbers == [str(i + 1) for i in range(len(numbers))]


def test_a_zero_p_value_and_missing_statistics_read_right(results: Path) -> None:
    no_test = make_claim(
        effect_size=None, p_value=None, p_corrected=None, difference_low=None, difference_high=None,
        best=make_sample(0.97, sd=None, ci_low=None, ci_high=None, n=1, values=[0.97]),
    )  # fmt: skip
    text = text_of(make_record(claim=no_test), results)
    assert "There is no *p* value" in text
    assert "There is no effect size" in text
    assert "| 1 | 0.9700 | \N{EN DASH} | \N{EN DASH} | \N{EN DASH} |" in text
    assert "(1 run)" in text


def test_a_metric_to_be_lowered_is_called_so_and_sorted_so(results: Path) -> None:
    metric = Metric(name="val_loss", better="lower", description="cross-entropy")
    text = text_of(make_record(metric=metric), results)
    assert "below zero is better" in text
    first = re.search(r"\| Trial \|.*?\| `(trial-\d+)`", text)
    worst = min((t for t in make_trials() if t.value is not None), key=lambda t: t.value or 0)
    assert first is not None
    assert first.group(1) == worst.name


def test_reused_seeds_are_confessed(results: Path) -> None:
    said = "The seed of the search is among the seeds on the test split"
    assert said not in text_of(make_record(), results)
    provenance = make_provenance(confirm_seeds=[1000, 1001])
    assert said in text_of(make_record(provenance=provenance), results)


def test_notes_and_failed_confirmations_are_told(results: Path) -> None:
    confirm = [make_run("confirm-best-000", None, split="test", seed=2001)]
    record = make_record(notes=["The search was interrupted."], confirm_best=confirm)
    text = text_of(record, results)
    assert "The search was interrupted." in text
    assert "Of the runs on the test split, 1 failed and is not in the table" in text


def test_a_wide_search_space_has_its_parameters_in_one_column(results: Path) -> None:
    space = [make_space()[0].model_copy(update={"name": f"p{i}"}) for i in range(15)]
    params = {f"p{i}": 0.001 * i for i in range(15)}
    trials = [trial.model_copy(update={"params": params}) for trial in make_trials()]
    record = make_record(space=space, trials=trials, best_params=params)
    assert "| Trial | accuracy | Parameters |" in text_of(record, results)
    assert "`p14` 0.014" in text_of(record, results)
    write_paper(record, results)


EVIL = (
    "<script>alert(1)</script> ![x](http://evil.example/x.png) [y](javascript:z) \\input{/etc/passwd} $x$ "
    '`c` | # {{ claim.p_value }} #import "@preview/x" --- \x1b[31m \u202e *b*\n\n# stolen\n\n```\n'
)


def evil_record() -> ResearchRecord:
    """Put hostile text wherever a record takes text that others wrote."""
    space = [
        spec.model_copy(update={"name": EVIL, "description": EVIL}) for spec in make_space()[:2]
    ]
    trials = [
        make_run("trial-000", None, reason=EVIL),
        make_run("trial-001", 0.9, params={EVIL: EVIL}),
    ]
    return make_record(
        title=EVIL,
        template_title=EVIL,
        template_description=EVIL,
        metric=Metric(name=EVIL, better="higher", description=EVIL),
        space=space,
        trials=trials,
        best_trial="trial-001",
        best_params={EVIL: EVIL},
        claim=make_claim(reason=EVIL),
        importances=[Importance(name=EVIL, share=0.5, best=EVIL, baseline=EVIL)],
        notes=[EVIL],
        provenance=make_provenance(
            task_file=EVIL + "\n~~~~\n\\end{verbatim}\\input{/etc/passwd}",
            packages={EVIL: EVIL},
            command=[EVIL],
            files_sha256={EVIL: EVIL},
            platform=EVIL,
        ),
    )


def test_hostile_text_in_the_record_is_only_text_in_all_four_files(results: Path) -> None:
    rendered = write_paper(evil_record(), results)
    assert_inert(rendered)
    assert rendered.warnings == ()
    text = pdf_text(rendered.pdf)
    assert "About this text" in text
    assert "root:" not in text
    markdown = rendered.markdown.read_text()
    assert "\u202e" not in markdown
    prose = fences_out(markdown)
    assert not re.search(r"^# stolen", prose, re.MULTILINE)
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    in_code = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
    assert "<script>" not in in_code.sub("", prose)
    assert not re.search(r"(?<!\\)\]\(http", in_code.sub("", prose))


def fences_out(markdown: str) -> str:
    """Give Markdown without its fenced code, read as strictly as CommonMark does."""
    out, fence = [], ""
    for line in markdown.splitlines():
        mark = re.match(r"`{3,}", line)
        if fence:
            if line.startswith(fence) and not line.strip("`"):
                fence = ""
        elif mark:
            fence = mark.group()
        else:
            out.append(line)
    assert not fence
    return "\n".join(out)


def test_a_date_that_is_none_is_an_error_that_a_person_can_read(results: Path) -> None:
    with pytest.raises(ResearchError, match="is no date"):
        write_paper(make_record(provenance=make_provenance(started_on="soon")), results)
