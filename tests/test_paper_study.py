"""A study's paper: it says what the record says, whatever the verdict and whatever the model."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pypdf
import pytest

from labd.journal import Journal
from labd.research.facts import fact_context
from labd.research.paper import NUMBERS_FILE
from labd.research.paper_briefing import SECTION_ORDERS
from labd.research.paper_study import (
    CHANGE_FILE,
    STRUCK_FILE,
    StudyPaper,
    draft_study_paper,
    known_figures,
    selected_change,
    set_study_paper,
)
from labd.research.plots_study import (
    MAX_TREE_TRIALS,
    STUDY_FIGURES,
    draw_study_figures,
    tree_places,
    trial_tree,
)
from labd.research.render import Rendered
from labd.research.study import NoveltyCheck, Study
from labd.research.writing import Draft, Section, names_with_digits, write_sections
from tests.chats import Spoken
from tests.records import make_provenance
from tests.studies import HUNK, REFERENCES, make_idea, make_study, make_trial, studies
from tests.test_paper import look_up
from tests.test_render import assert_inert, pdf_text
from tests.writers import BEHAVIOURS, GOOD, KOREAN, TITLE, Speaks, good, make_asker, says

STUDIES = studies()
OUTCOMES = {
    "improved": ("an improvement", "The selected change improves on the baseline."),
    "no_improvement": ("no improvement found", "No improvement was found: the selected change"),
    "worse": ("did not hold on the test split", "No improvement was found: the change that was"),
    "no_trial_better": ("no improvement found", "No improvement was found: no trial was selected"),
    "nothing_ran": ("no improvement found", "No improvement was found: no trial was selected"),
    "inconclusive": ("an inconclusive study", "Inconclusive: No run succeeded."),
}


UNWRITTEN = Draft(
    "", {name: Section(name, problem="no model was asked") for name in SECTION_ORDERS}
)
"""The draft of a paper in which labd has to write everything itself."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All figures that a full study has, drawn once."""
    directory = tmp_path_factory.mktemp("drawn")
    draw_study_figures(make_study(), directory)
    return directory


@pytest.fixture
def results(tmp_path: Path, drawn: Path) -> Path:
    """A task's results with the selected trial's diff and all figures."""
    shutil.copytree(drawn / "plots", tmp_path / "plots")
    (tmp_path / CHANGE_FILE).write_text(f"--- a/model.py\n+++ b/model.py\n{HUNK}")
    return tmp_path


def with_figures(study: Study) -> Study:
    """Give a study with the names of those figures that there would be data for."""
    names = {
        "trials": bool(study.trials),
        "tree": bool(study.trials),
        "ablations": bool(study.ablations),
    }
    names |= {
        "baseline_vs_best": study.claim.best is not None,
        "learning_curves": bool(study.confirm_baseline),
    }
    paths = {name: f"plots/{name.replace('_', '-')}.png" for name, there in names.items() if there}
    return study.model_copy(update={"figures": paths})


def written(study: Study, results: Path, speaks: Speaks | str, **over: Any) -> Draft:
    with Journal(results / "journal.jsonl") as journal:
        asker = make_asker(Spoken(speaks), results, journal)
        return write_sections(study, asker, figures=known_figures(study.figures), **over)


def plain(paper: StudyPaper) -> str:
    text = f"{paper.title} {paper.abstract.text} {paper.body.text}"
    return " ".join(re.sub(r"\\(?=[^\w\s]|_)", "", text).split())


def typed_digits(paper: StudyPaper, study: Study) -> list[str]:
    """Give what is left of digits when all that was filled in, and names, are taken away."""
    found = []
    for filled in (paper.abstract, paper.body):
        text = re.sub(r"\\(?=[^\w\s]|_)", "", filled.text)
        for name in ("SHA-256", *sorted(names_with_digits(study, HUNK), key=len, reverse=True)):
            text = text.replace(name, " ")
        for shown in sorted({r.shown for r in filled.references}, key=len, reverse=True):
            text = text.replace(shown, " ").replace(" ".join(shown.split()), " ")
            text = text.replace("\n".join(line.strip() for line in shown.splitlines()), " ")
        found += re.findall(r".{0,30}\d.{0,30}", text)
    return found


@pytest.mark.parametrize("name", ["improved", "worse", "nothing_ran", "inconclusive"])
def test_without_a_word_of_a_model_there_is_a_paper_that_states_the_outcome(
    results: Path, name: str
) -> None:
    study = with_figures(STUDIES[name])
    rendered = set_study_paper(study, UNWRITTEN, results)
    assert rendered.warnings == ()
    text = " ".join(pdf_text(rendered.pdf).split())
    in_title, in_abstract = OUTCOMES[name]
    assert in_title in text
    assert in_abstract in text
    for heading in (
        "1 Introduction",
        "3 Method",
        "4 Results",
        "6 Limitations",
        "7 How to do it again",
    ):
        assert heading in text
    assert "Generated by AI" in text
    assert "No sentence of a language model stands in it" in text
    assert_inert(rendered)


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize(
    "speaks", [good, BEHAVIOURS["lies"], BEHAVIOURS["garbage"]], ids=["good", "lies", "garbage"]
)
def test_every_number_in_the_paper_traces_to_the_record(
    results: Path, name: str, speaks: Speaks
) -> None:
    study = with_figures(STUDIES[name])
    paper = draft_study_paper(study, written(study, results, speaks), results)
    assert typed_digits(paper, study) == []
    context = fact_context(study)
    for reference in paper.references:
        if not reference.path.startswith("paper.") and "(name)" not in reference.path:
            assert look_up(context, reference.path) == reference.value


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "improved"])
def test_no_paper_claims_an_improvement_that_is_not_there(results: Path, name: str) -> None:
    study = with_figures(STUDIES[name])
    for speaks in (good, BEHAVIOURS["lies"]):
        text = plain(draft_study_paper(study, written(study, results, speaks), results))
        assert not re.search(r"(?i)improves on|outperforms|significantly|breakthrough", text)


def test_a_good_model_s_prose_is_in_the_paper_with_its_numbers_and_citations(
    results: Path,
) -> None:
    study = with_figures(make_study())
    draft = written(study, results, good)
    rendered = set_study_paper(study, draft, results)
    text = " ".join(pdf_text(rendered.pdf).split())
    assert f"{TITLE}: an improvement" in text
    assert "A language model proposed 3 ideas, of which 2 were tried." in text
    assert (
        "The baseline has a mean of 0.9530 on the test split. Figure 1 has the single runs" in text
    )
    assert "and Figure 2 the order of the trials" in text
    assert "images of documents [1]. Handwritten digits were also read elsewhere [2, 3]." in text
    assert "[1] Yann LeCun, Léon Bottou" in text
    assert "Proceedings of the IEEE, 1998. doi:10.1109/5.726791" in text
    assert "[3] A work of which little is known." in text
    assert (
        "A language model wrote the prose of these parts: abstract, introduction, related work"
        in text
    )
    assert json.loads((results / STRUCK_FILE).read_text()) == []
    assert_inert(rendered)


def test_what_a_fetched_work_says_of_itself_is_shown_as_text(results: Path) -> None:
    study = with_figures(make_study())
    text = plain(draft_study_paper(study, written(study, results, good), results))
    assert "*손글씨 숫자 인식 {{ best_mean }} <script>*" in text


def test_a_work_that_nobody_cites_is_not_listed(results: Path) -> None:
    study = with_figures(make_study())
    text = plain(draft_study_paper(study, UNWRITTEN, results))
    assert "## References" not in text
    assert "A search of the literature gave 3 works." in text


def test_numbers_of_the_claim_control_and_ablation_are_in_labd_s_tables(results: Path) -> None:
    study = with_figures(make_study())
    text = plain(draft_study_paper(study, written(study, results, BEHAVIOURS["empty"]), results))
    for part in (
        "| baseline | 10 | 0.9530 | 0.00149 | 0.9519 | 0.9541 |",
        "| selected | 10 | 0.9715 |",
        "| selected minus baseline | +0.0185 | +0.0171 | +0.0199 | +11.9 | 6 | < 0.001 | improved |",
        "| control minus baseline | +0.00500 |",
        "| selected minus control | +0.0135 |",
        "| `change-1` | 0.9560 | +0.0155 |",
        "| `trial-004` | `idea-2` | template | draft | 7 | 4 | `refused` | \u2013 |",
        "| `trial-006` | `idea-1` | `trial-003` | improve | 9 | 6 | `ok` | 0.9720 |",
        "6 trials in all: what a language model has to beat",
        "+hidden = 128",
        "| `tiny:7b` | code | 20 | 1 | 12345 | 2345 | 0.410 |",
        "All runs together took 0.213 hours, in 52 runs; all calls of language models 1.37 hours.",
        "took 1.25 seconds for the baseline and 1.50 for the selected code",
        "Commit of the selected code: `060606",
        "seed 1000",
        "2001, 2002, 2003",
    ):
        assert part in text, part


@pytest.mark.parametrize("name", ["improved", "inconclusive"])
def test_each_row_of_a_table_has_a_cell_for_each_heading(results: Path, name: str) -> None:
    study = with_figures(STUDIES[name])
    hostile = [make_idea(1, title="Wide | `a|b` \\| layers"), *study.ideas[1:]]
    study = study.model_copy(update={"ideas": hostile})
    tables = re.findall(
        r"(?m)(?:^\|.*\n)+", draft_study_paper(study, UNWRITTEN, results).body.text
    )
    assert len(tables) >= 3
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table


def test_a_number_in_a_model_s_own_words_is_not_printed(results: Path) -> None:
    trials = [make_trial(1, None, run=None, status="refused", refused="says 97.5 % in conv2d")]
    study = with_figures(make_study(trials=trials, best_trial=None))
    text = plain(draft_study_paper(study, UNWRITTEN, results))
    assert "| `idea-3` | Reaches [number] % at once |" in text
    assert "| `idea-2` | Dropout with L2 |" in text
    assert "says [number] % in" in text
    assert "99.9" not in text
    assert "97.5" not in text


@pytest.mark.parametrize(
    ("novelty", "said"),
    [
        (NoveltyCheck(), "was not checked (no literature was searched); nothing here says that it is"),
        (
            NoveltyCheck(status="close_work_found", reason="", closest=["bare", "unfetched"], answered=["arXiv"]),
            "close to the selected idea: [1]. It is therefore not to be taken for new",
        ),
        (
            NoveltyCheck(status="no_close_work_found", reason="", answered=["arXiv", "OpenAlex"]),
            "answered by arXiv, OpenAlex, found none. That is no proof",
        ),
    ],
)  # fmt: skip
def test_novelty_is_told_as_it_was_checked(
    results: Path, novelty: NoveltyCheck, said: str
) -> None:
    study = with_figures(make_study(ideas=[make_idea(1, novelty=novelty), make_idea(2)]))
    text = plain(draft_study_paper(study, UNWRITTEN, results))
    assert said in text
    assert ("[1] *A work of which little is known*." in text) == (
        novelty.status == "close_work_found"
    )


def test_struck_sentences_are_counted_in_the_paper_and_kept_beside_it(results: Path) -> None:
    study = with_figures(make_study())
    draft = written(
        study, results, lambda m, o: good(m, o) + " It has 4711 units in each of the layers."
    )
    rendered = set_study_paper(study, draft, results)
    text = rendered.markdown.read_text().replace("\\", "")
    assert "- results: 1 sentence, for number" in text
    assert "4711" not in text
    kept = json.loads((results / STRUCK_FILE).read_text())
    assert {each["section"] for each in kept} == set(GOOD)
    assert all("4711" in each["sentence"] for each in kept)


def test_the_file_of_numbers_names_the_source_of_each(results: Path) -> None:
    study = with_figures(make_study())
    set_study_paper(study, written(study, results, good), results)
    numbers = json.loads((results / NUMBERS_FILE).read_text())
    assert study.claim.best is not None
    mean = study.claim.best.mean
    assert {"path": "claim.best.mean", "value": mean, "shown": "0.9715"} in numbers
    assert {"path": "counts.crashed", "value": 1, "shown": "1"} in numbers


def test_the_same_study_and_journal_give_the_same_bytes(results: Path) -> None:
    study = with_figures(make_study())

    def once(speaks: Speaks) -> tuple[Rendered, list[bytes], int]:
        with Journal(results / "journal.jsonl") as journal:
            chat = Spoken(speaks)
            asker = make_asker(chat, results, journal)
            draft = write_sections(study, asker, code=selected_change(results))
            rendered = set_study_paper(study, draft, results)
        files = (
            rendered.markdown,
            rendered.tex,
            rendered.html,
            rendered.pdf,
            results / NUMBERS_FILE,
        )
        return rendered, [file.read_bytes() for file in files], len(chat.asked)

    _, first, asked = once(good)
    _, second, asked_again = once(says("something else"))
    assert asked > 0
    assert asked_again == 0
    assert first == second


def test_korean_text_is_set(results: Path) -> None:
    study = with_figures(make_study(title="손글씨 숫자"))
    rendered = set_study_paper(
        study, written(study, results, says(KOREAN), language="ko"), results
    )
    html = rendered.html.read_text()
    assert '<html lang="ko"' in html
    assert (
        "이 연구는 손으로 쓴 숫자를 읽는 작은 신경망을 다룬다. 기준 코드의 평균은 0.9530이다."
        in html
    )
    assert len(pypdf.PdfReader(rendered.pdf).pages) >= 4
    assert all("font" in warning for warning in rendered.warnings)


def test_a_diff_of_any_size_and_content_does_not_get_out_of_its_block(results: Path) -> None:
    path = results / CHANGE_FILE
    path.write_bytes(b"```\n\n# Heading\n{{ best_mean }} [[results]] \xff\x00\n" * 50_000)
    study = with_figures(make_study())
    paper = draft_study_paper(study, UNWRITTEN, results)
    assert "characters cut" in paper.body.text
    rendered = set_study_paper(study, UNWRITTEN, results)
    assert "<h2" in rendered.html.read_text()
    assert not re.search(r"<h\d[^>]*>Heading", rendered.html.read_text())


def test_names_from_outside_stay_text(results: Path) -> None:
    nasty = "{{ 7 }} <b>x</b> \\input{a} | [a](http://x) $x$"
    study = make_study(
        title=nasty,
        template_title=nasty,
        template_description=nasty,
        notes=[nasty],
        provenance=make_provenance(platform=nasty, packages={nasty: nasty}),
        references=[*REFERENCES, {"key": nasty, "title": None, "authors": "One", "year": "x"}, {}],
    )
    rendered = set_study_paper(with_figures(study), UNWRITTEN, results)
    assert_inert(rendered)


# -- figures


def test_figures_are_drawn_for_what_there_is(tmp_path: Path) -> None:
    assert set(draw_study_figures(STUDIES["nothing_ran"], tmp_path)) == {"learning_curves"}
    assert set(draw_study_figures(STUDIES["inconclusive"], tmp_path)) == {"trials", "tree"}


def test_the_same_study_gives_the_same_figures(tmp_path: Path, drawn: Path) -> None:
    paths = draw_study_figures(make_study(), tmp_path)
    assert set(paths) == set(STUDY_FIGURES)
    for path in paths.values():
        assert (tmp_path / path).read_bytes() == (drawn / path).read_bytes()


def test_a_parent_stands_over_the_middle_of_its_trials() -> None:
    def child(number: int, parent: str | None) -> Any:
        return make_trial(number, 0.9, parent=parent)

    places = tree_places(
        [
            child(1, None),
            child(2, "trial-001"),
            child(3, "trial-001"),
            child(4, None),
            child(5, "lost"),
        ]
    )
    assert places["trial-002"] == (0.0, 2)
    assert places["trial-003"] == (1.0, 2)
    assert places["trial-001"] == (0.5, 1)
    assert places["trial-004"] == (2.0, 1)
    assert places["trial-005"] == (3.0, 1)
    assert places[""] == (1.75, 0)


def test_a_long_chain_of_trials_is_drawn_and_too_many_are_not() -> None:
    chain = [
        make_trial(n, 0.9, parent=f"trial-{n - 1:03}" if n > 1 else None)
        for n in range(1, MAX_TREE_TRIALS + 2)
    ]
    assert trial_tree(chain[:-1], "trial-003") is not None
    assert trial_tree(chain, "trial-003") is None


def test_a_template_without_a_test_split_or_seeds_is_told_as_that(results: Path) -> None:
    study = with_figures(make_study(has_splits=False, has_seeds=False))
    paper = draft_study_paper(study, UNWRITTEN, results)
    for text in (paper.abstract.text, paper.body.text):
        assert "fresh seeds" not in text
        assert "no part in the selection" not in text
    assert (
        "On the data that the selection was made on as well, over repeated runs"
        in paper.abstract.text
    )
    assert "no test split of its own" in paper.body.text


def test_a_control_that_found_nothing_was_not_confirmed(results: Path) -> None:
    study = make_study()
    assert study.control is not None
    none = study.control.model_copy(update={"confirm": []})
    text = draft_study_paper(with_figures(make_study(control=none)), UNWRITTEN, results).body.text
    assert "Its best setting was confirmed" not in text
    assert "the baseline stands for it" in text
