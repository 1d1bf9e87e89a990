"""Prose by models, good and bad: only what the checker lets pass stands, whatever the model is."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.journal import Journal
from labd.llm.errors import EndpointDown
from labd.llm.model import Message, Options
from labd.research.allowance import Allowance
from labd.research.asking import Asker
from labd.research.checker import Rules, check
from labd.research.facts import fact_context, facts_of, verdicts
from labd.research.numbers import fill
from labd.research.paper_briefing import SECTION_ORDERS
from labd.research.paper_study import known_figures
from labd.research.prose import markdown, read
from labd.research.writing import MAX_REPAIRS, Draft, improve, write_sections
from tests.chats import Spoken
from tests.studies import make_idea, make_study, studies
from tests.writers import (
    BEHAVIOURS,
    GOOD,
    KOREAN,
    LIES,
    TITLE,
    Speaks,
    good,
    make_asker,
    says,
    section_of,
)

STUDY = make_study()
STUDIES = studies()
FIGURES = known_figures(dict.fromkeys(("trials", "tree", "baseline_vs_best"), "plots/x.png"))


@pytest.fixture
def writing(tmp_path: Path) -> Callable[..., object]:
    """Give what opens an attempt at one task again and again: same journal, new asker."""

    @contextmanager
    def attempt(speaks: Speaks | str, **over: object) -> Iterator[tuple[Asker, Spoken]]:
        chat = Spoken(speaks)
        with Journal(tmp_path / "journal.jsonl") as journal:
            yield make_asker(chat, tmp_path, journal, **over), chat  # type: ignore[arg-type]

    return attempt


def test_what_an_honest_model_writes_stands_as_it_is(writing: Callable[..., object]) -> None:
    with writing(good) as (asker, chat):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES)
    assert draft.title == TITLE
    assert draft.struck == ()
    for name, text in GOOD.items():
        assert " ".join(draft.sections[name].prose.source.split()) == " ".join(text.split()), name
    assert len(chat.asked) == len(SECTION_ORDERS) + 1


def test_a_model_is_told_the_rules_the_facts_and_what_it_may_cite(
    writing: Callable[..., object],
) -> None:
    with writing(good) as (asker, chat):  # type: ignore[attr-defined]
        write_sections(STUDY, asker, figures=FIGURES, code="+hidden = 128")
    by_section = {
        section_of(messages): text for messages, text in zip(chat.asked, chat.texts, strict=True)
    }
    assert set(by_section) == {*SECTION_ORDERS, "title"}
    for name in SECTION_ORDERS:
        text = by_section[name]
        assert "{{ best_mean }} = 0.9715: the selected code: mean" in text
        assert "the selected code IMPROVES on the baseline" in text
    assert "[@lecun1998gradient] Gradient-Based" in by_section["related_work"]
    assert "[@lecun1998gradient]" not in by_section["limitations"].replace(
        GOOD["introduction"], ""
    )
    assert "hidden = 128" in by_section["method"]
    assert GOOD["limitations"] in by_section["abstract"]


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_nothing_of_a_bad_model_s_text_stands(
    writing: Callable[..., object], behaviour: str
) -> None:
    with writing(BEHAVIOURS[behaviour]) as (asker, chat):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES)
    for name, section in draft.sections.items():
        assert section.author == "labd", (name, section.prose.source)
        assert section.problem
    assert draft.title == ""
    assert len(chat.asked) <= (1 + MAX_REPAIRS) * (len(SECTION_ORDERS) + 1)


def test_a_model_that_mends_its_faults_is_not_struck(writing: Callable[..., object]) -> None:
    def mending(messages: Sequence[Message], options: Options) -> str:
        told = messages[-1].content
        if section_of(messages) == "results" and "break the rules" not in told:
            return GOOD["results"] + " The accuracy is 97 in the end of it all."
        return good(messages, options)

    with writing(mending) as (asker, chat):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES)
    assert draft.struck == ()
    repairs = [text for text in chat.texts if "break the rules" in text]
    assert len(repairs) == 1
    assert '"The accuracy is 97 in the end of it all.": it has the number "97"' in repairs[0]


def test_a_model_that_mends_nothing_loses_the_sentence_and_keeps_the_rest(
    writing: Callable[..., object],
) -> None:
    def stubborn(messages: Sequence[Message], options: Options) -> str:
        said = good(messages, options)
        return said if section_of(messages) == "title" else f"{said}\n\n{LIES}"

    with writing(stubborn) as (asker, _):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES)
    for name, text in GOOD.items():
        section = draft.sections[name]
        assert " ".join(section.prose.source.split()) == " ".join(text.split()), name
        kinds = {kind for struck in section.struck for kind in struck.kinds}
        assert kinds >= {
            "number",
            "claim",
            "whose value",
            "no citation",
            "unknown fact",
            "unknown work",
        }
        assert all(struck.sentence in LIES for struck in section.struck)


def test_a_title_with_a_number_a_claim_or_another_subject_is_not_taken(
    writing: Callable[..., object],
) -> None:
    for at, title in enumerate(
        (
            "A hidden layer with 99 % accuracy",
            "A wider hidden layer improves handwritten digits",
            "The migration of birds over mountains",
            "Zxq vorp glimfen",
            "<b>handwritten digits</b>",
        )
    ):
        study = make_study(ideas=[make_idea(1, risk=f"risk {at}")])

        def titled(messages: Sequence[Message], options: Options, title: str = title) -> str:
            return title if section_of(messages) == "title" else good(messages, options)

        with writing(titled) as (asker, _):  # type: ignore[attr-defined]
            # Each needs its own question, or the journal answers.
            assert (
                write_sections(study.model_copy(update={"title": f"x {at}"}), asker).title == ""
            ), title


def test_a_used_up_allowance_leaves_the_writing_to_labd(writing: Callable[..., object]) -> None:
    with writing(good, allowance=Allowance(max_tokens_total=0)) as (asker, chat):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES)
    assert not chat.asked
    assert {section.author for section in draft.sections.values()} == {"labd"}
    assert "tokens" in draft.sections["results"].problem


def test_a_context_too_small_for_the_facts_leaves_the_writing_to_labd(
    writing: Callable[..., object],
) -> None:
    with writing(good, num_ctx=512) as (asker, chat):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES)
    assert not chat.asked
    assert {section.author for section in draft.sections.values()} == {"labd"}


def test_a_server_that_dies_on_the_way_costs_the_sections_it_dies_on(
    writing: Callable[..., object],
) -> None:
    def dying(messages: Sequence[Message], options: Options) -> str | EndpointDown:
        if section_of(messages) in {"abstract", "title"}:
            return EndpointDown("the connection broke", where="spoken")
        return good(messages, options)

    with writing(dying) as (asker, _):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES)
    assert draft.sections["abstract"].author == "labd"
    assert draft.sections["results"].author == "model"


def test_a_second_attempt_asks_nothing_and_gives_the_same_draft(
    writing: Callable[..., object],
) -> None:
    with writing(good) as (asker, _):  # type: ignore[attr-defined]
        first = write_sections(STUDY, asker, figures=FIGURES)
    with writing("another answer") as (asker, chat):  # type: ignore[attr-defined]
        second = write_sections(STUDY, asker, figures=FIGURES)
    assert not chat.asked
    assert first == second


def test_korean_is_asked_for_and_checked_as_such(writing: Callable[..., object]) -> None:
    with writing(says(KOREAN)) as (asker, chat):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES, language="ko")
    assert draft.language == "ko"
    assert "Write in Korean" in chat.texts[0]
    assert draft.sections["results"].prose.source == KOREAN


def test_a_language_that_can_t_be_checked_is_not_written_in(
    writing: Callable[..., object],
) -> None:
    with writing(good) as (asker, chat):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES, language="fr")
    assert draft.language == "en"
    assert "Write in English" in chat.texts[0]


def revised(writing: Callable[..., object], speaks: Speaks) -> tuple[Draft, Draft, Spoken]:
    with writing(good) as (asker, _):  # type: ignore[attr-defined]
        draft = write_sections(STUDY, asker, figures=FIGURES)
    with writing(speaks) as (asker, chat):  # type: ignore[attr-defined]
        new = improve(draft, "- Say what the edit is meant to do.", STUDY, asker, figures=FIGURES)
    return draft, new, chat


def test_a_revision_takes_what_is_better_and_shows_the_model_the_comments(
    writing: Callable[..., object],
) -> None:
    more = " The edit is meant to give each of the digits more room."

    def reviser(messages: Sequence[Message], options: Options) -> str:
        assert "Say what the edit is meant to do." in messages[-1].content
        return good(messages, options) + more

    draft, new, chat = revised(writing, reviser)
    assert new.title == draft.title
    assert more.strip() in new.sections["method"].prose.source
    assert len(chat.asked) == len(SECTION_ORDERS)


@pytest.mark.parametrize("behaviour", ["lies", "empty", "garbage"])
def test_a_revision_that_is_worth_nothing_leaves_the_paper_as_it_was(
    writing: Callable[..., object], behaviour: str
) -> None:
    draft, new, _ = revised(writing, BEHAVIOURS[behaviour])
    assert new == draft


def rules(name: str) -> Rules:
    study = STUDIES[name]
    return Rules(facts_of(study), verdicts(study), study.metric.name, study.metric.better)


@pytest.mark.parametrize("name", STUDIES)
def test_every_fact_can_be_named_and_is_printed_as_it_is_told(name: str) -> None:
    study = STUDIES[name]
    context = fact_context(study)
    for fact in facts_of(study).values():
        filled = fill(fact.printed, context)
        assert filled.references[0].shown == fact.shown
        assert filled.references[0].path == fact.path


TRICKS = st.sampled_from(
    (
        *(
            "{{ best_mean }}",
            "{{",
            "}}",
            "{%",
            "%}",
            "{#",
            "#}",
            "[[results]]",
            "{",
            "}",
            "`",
            "$",
            "|",
        ),
        *(
            "{{ figure_trials }}",
            "<b>",
            "\n- ",
            "\n\n",
            " ",
            "the layer is of a kind. ",
            "$x_{{a}}$",
        ),
        *("\\", "[@bare]", "`{{ x }}`", "&#57;"),
    )
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TRICKS | st.text(max_size=12), max_size=30))
def test_no_text_is_a_template(parts: list[str]) -> None:
    """Whatever a model writes and whether or not it may stand, filling it prints named facts and nothing else."""
    prose = read("".join(parts))
    facts = {"best_mean": "{{ n }}", "figure_trials": "{{ n }}"}
    unknown = {p.key for s in prose.sentences for p in s.pieces if hasattr(p, "key")} - set(facts)
    unknown |= {
        f"figure_{p.name}" for s in prose.sentences for p in s.pieces if hasattr(p, "name")
    } - set(facts)
    printed = facts | dict.fromkeys(unknown, "unknown")
    text = markdown(prose, printed, lambda _key: "{{ n }}")
    filled = fill(text, {"n": 7})
    named = len(re.findall(r"\{\{ n \}\}", text))
    assert [reference.value for reference in filled.references] == [7] * named


def test_reading_a_long_hostile_text_takes_no_time() -> None:
    for text in (
        "{" * 40_000,
        "[@" * 20_000,
        "`" * 40_000,
        "$" * 40_000,
        "<a" * 20_000,
        "_a" * 20_000,
        "*a " * 13_000,
        "일" * 40_000,
        "all " * 10_000,
    ):
        prose = read(text)
        check(prose, rules("improved"))
