"""Ideas are many things a model may say; what comes out is a ranked list without repeats, never empty."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labd.journal import Journal
from labd.llm.model import Message, Options
from labd.research.allowance import Allowance
from labd.research.asking import Asker
from labd.research.calling import Patience
from labd.research.ideas import gather_ideas
from labd.research.likeness import is_repeat, likeness, print_of
from labd.research.past import PastIdea, past_ideas
from labd.research.thinking import IdeaReply, tidied
from labd.template import SeedIdea, Template, load_template
from tests.chats import Speaks, Spoken

MECHANISMS = (
    "warm up the learning rate over the first epochs",
    "mix pairs of training images and their labels",
    "average the weights of the last steps",
    "clip the norm of the gradient",
    "begin with smaller weights in the output layer",
    "drop the batch size by half when the loss stalls",
)


def idea(mechanism: str, **over: Any) -> str:
    told = {
        "title": mechanism.capitalize(),
        "hypothesis": f"It helps to {mechanism}, because the training is noisy at first.",
        "experiment": f"Change the loop of the training so as to {mechanism}.",
        "interest": 7,
        "feasibility": 7,
        "originality": 7,
    }
    return json.dumps({**told, **over})


def is_reflection(messages: Sequence[Message]) -> bool:
    return "Look at your idea again" in messages[-1].content


def in_turn(*said: str) -> Speaks:
    """Give what proposes each in turn, then the last for ever, and never changes its mind."""
    left = list(said)

    def speaks(messages: Sequence[Message], _: Options) -> str:
        if is_reflection(messages):
            return json.dumps({**json.loads(messages[-2].content), "done": True})
        return left.pop(0) if len(left) > 1 else left[0]

    return speaks


@pytest.fixture
def template() -> Template:
    return load_template("digits", roots=[])


@pytest.fixture
def thinking(tmp_path: Path, template: Template) -> Callable[..., Any]:
    @contextmanager
    def attempt(speaks: Speaks | str, **over: Any) -> Iterator[tuple[Callable[..., Any], Spoken]]:
        chat = Spoken(speaks)
        with Journal(tmp_path / "journal.jsonl") as journal:
            asker = Asker(
                chat,
                journal,
                over.pop("allowance", None) or Allowance(),
                models={"ideas": "m"},
                num_ctx=8192,
                calls_dir=tmp_path / "calls",
                seed=1,
                patience=Patience(delays_s=(0.0,)),
            )
            yield (
                lambda **more: gather_ideas(asker, template, **{"num_ideas": 3, **over, **more}),
                chat,
            )

    return attempt


def titles(found: Sequence[Any]) -> list[str]:
    return [one.title for one in found]


def past(title: str, outcome: str = "no_improvement", **over: Any) -> PastIdea:
    told = {
        "title": title,
        "hypothesis": "",
        "template": "digits",
        "outcome": outcome,
        "task_id": "t",
    }
    return PastIdea.model_validate({**told, **over})


# -- what the model says


def test_ideas_are_what_the_model_said_best_first_and_named_by_rank(thinking: Any) -> None:
    said = [
        idea(one, interest=3 + n, risk="It may be slow.") for n, one in enumerate(MECHANISMS[:3])
    ]
    with thinking(in_turn(*said)) as (gather, chat):
        found = gather()
    assert titles(found) == [one.capitalize() for one in MECHANISMS[2::-1]]
    assert [one.name for one in found] == ["idea-1", "idea-2", "idea-3"]
    assert {one.source for one in found} == {"model"}
    assert (found[0].interest, found[0].risk) == (5, "It may be slow.")
    # The prompt tells of the experiment, its code and the ideas so far.
    assert "Recognising handwritten digits" in chat.texts[0]
    assert "Your ideas so far" in chat.texts[-2]
    assert MECHANISMS[0].capitalize() in chat.texts[-2]


def test_the_files_that_may_be_changed_are_shown(thinking: Any, template: Template) -> None:
    with thinking(in_turn(idea(MECHANISMS[0]))) as (gather, chat):
        gather(num_ideas=1)
        assert template.editable
        assert (template.directory / template.editable[0]).read_text()[:400] in chat.texts[0]
    with thinking(in_turn(idea(MECHANISMS[0]))) as (gather, chat):
        gather(num_ideas=1, files={"other.py": "the_only_line = 1"})
        assert "the_only_line = 1" in chat.texts[0]


def test_a_reflection_may_better_an_idea_and_a_bad_one_leaves_it(thinking: Any) -> None:
    def speaks(messages: Sequence[Message], _: Options) -> str:
        if "does not fit" in messages[-1].content:
            return "garbage again"
        if not is_reflection(messages):
            return idea(MECHANISMS[0])
        told = json.loads(messages[-2].content)
        return "garbage" if told["risk"] else json.dumps({**told, "risk": "It may do nothing."})

    with thinking(speaks, num_ideas=1, reflections=4) as (gather, _):
        [found] = gather()
    assert (found.title, found.risk) == (MECHANISMS[0].capitalize(), "It may do nothing.")


def test_a_reflection_can_not_turn_an_idea_into_one_that_is_told(thinking: Any) -> None:
    drafts = iter(MECHANISMS)

    def speaks(messages: Sequence[Message], _: Options) -> str:
        return idea(MECHANISMS[0] if is_reflection(messages) else next(drafts))

    with thinking(speaks, num_ideas=2) as (gather, _):
        assert sorted(titles(gather())) == sorted(one.capitalize() for one in MECHANISMS[:2])


def test_no_idea_comes_twice_and_the_model_is_told_so(thinking: Any) -> None:
    first, second = idea(MECHANISMS[0]), idea(MECHANISMS[1])
    with thinking(in_turn(first, first, second, first)) as (gather, chat):
        found = gather()
    assert sorted(titles(found)) == sorted(one.capitalize() for one in MECHANISMS[:2])
    assert any("is there already" in text for text in chat.texts)
    # Two ideas with a reflection each, one repeat, and three tries at a third.
    assert len(chat.asked) == 2 * 2 + 1 + 3


def test_what_the_lab_or_the_author_told_before_is_not_told_again(thinking: Any) -> None:
    seeds = [
        SeedIdea(title="Clip the gradient", experiment="Clip the norm of the gradient at one.")
    ]
    before = [past(MECHANISMS[0].upper() + "!")]
    said = [idea(MECHANISMS[0]), idea("clip the gradient"), idea(MECHANISMS[2])]
    with thinking(in_turn(*said), past=before, seed_ideas=seeds) as (gather, chat):
        found = gather(num_ideas=5)
    assert sorted(titles(found)) == ["Average the weights of the last steps", "Clip the gradient"]
    assert {one.title: one.source for one in found}["Clip the gradient"] == "seed"
    assert "no improvement" in chat.texts[0]


def test_a_seed_that_was_tried_before_is_left_out(thinking: Any) -> None:
    seeds = [
        SeedIdea(title="Clip the gradient", experiment="Clip the norm of the gradient at one."),
        SeedIdea(title="Warm up", experiment="Raise the rate slowly over the first epochs."),
    ]
    with thinking("garbage", past=[past("clip the gradient")], seed_ideas=seeds) as (gather, _):
        assert titles(gather()) == ["Warm up"]


def test_scores_that_are_all_the_same_say_nothing_and_what_is_near_a_failure_comes_last(
    thinking: Any,
) -> None:
    failed = past(
        "Warm up the rate of learning over ten epochs",
        "failed",
        hypothesis="It is noisy at first.",
    )
    good = past("Clip the norm of gradients", "improved")
    seeds = [SeedIdea(title="Turn the images", experiment="Turn each image by a few degrees.")]
    said = [idea(MECHANISMS[0]), idea(MECHANISMS[4], interest=9), idea(MECHANISMS[2], interest=4)]
    with thinking(in_turn(*said), past=[failed, good], seed_ideas=seeds) as (gather, _):
        found = titles(gather(num_ideas=4))
    # The author's idea has no score: it stands between what the model likes more and less than its others.
    model_first, seed, model_last, near_failure = (one.lower() for one in found)
    assert [model_first, model_last, near_failure] == [
        MECHANISMS[4],
        MECHANISMS[2],
        MECHANISMS[0],
    ]
    assert seed == "turn the images"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "I'm sorry, but I can't help with that.",
        '{"title": "a", "hypothesis": "b", "exper',
        json.dumps({"title": "###", "hypothesis": "x" * 20, "experiment": "y" * 20}),
        json.dumps({"title": "   ", "hypothesis": "x" * 20, "experiment": "y" * 20}),
        json.dumps([1, 2]),
    ],
    ids=["empty", "refusal", "half", "no words", "blank", "list"],
)
def test_a_model_without_ideas_leaves_plain_ones_that_say_what_they_are(
    thinking: Any, said: str
) -> None:
    with thinking(said) as (gather, chat):
        found = gather()
        assert len(found) == 3
        assert {one.source for one in found} == {"fallback"}
        assert found[0].title == "Other values of learning_rate"
        assert not any(
            char.isdigit()
            for one in found
            for char in f"{one.title}{one.hypothesis}{one.experiment}"
        )
        # Three drafts, each shown its error twice: then it is let be.
        assert len(chat.asked) <= 9
        tried = [past(one.title) for one in found]
    with thinking(said, past=tried, num_ideas=2) as (gather, _):
        assert {one.source for one in gather()} == {"fallback"}


def test_plain_ideas_that_were_tried_come_last(thinking: Any) -> None:
    with thinking("x", past=[past("Other values of learning_rate")]) as (gather, _):
        assert gather()[0].title == "Other values of hidden_units"


def test_not_more_than_a_share_of_the_tokens_goes_into_ideas(thinking: Any) -> None:
    said = [idea(one) for one in MECHANISMS]
    with thinking(in_turn(*said), allowance=Allowance(max_tokens_total=30_000)) as (gather, chat):
        assert len(gather(num_ideas=50)) < 6
        used = sum(len(text) // 4 for text in chat.texts)
    assert 7_500 <= used < 20_000


def test_a_resumed_task_has_the_same_ideas_whatever_ended_meanwhile(thinking: Any) -> None:
    said = [idea(one) for one in MECHANISMS]
    with thinking(in_turn(*said), past=[past("one")]) as (gather, _):
        found = gather()
    with thinking("garbage", past=[past("one"), past("another")]) as (gather, chat):
        assert gather() == found
        assert not chat.asked


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (7, 7),
        ("8/10", 8),
        ("high", None),
        (0, None),
        (11, None),
        (True, None),
        (6.6, 7),
        ([], None),
    ],
)
def test_scores_are_read_or_there_are_none(given: object, read: int | None) -> None:
    told = {"title": "abc", "hypothesis": "x" * 20, "experiment": "y" * 20, "interest": given}
    assert IdeaReply.model_validate_json(json.dumps(told)).interest == read


def test_long_texts_are_cut_and_controls_taken_out() -> None:
    told = {
        "title": "a\x1b[31m\u202eb" * 200,
        "hypothesis": "x" * 9000,
        "experiment": "y\n" * 9000,
    }
    found = IdeaReply.model_validate_json(json.dumps({**told, "risk": None}))
    assert (len(found.title), len(found.hypothesis), found.risk) == (200, 1500, "")
    assert not set(found.title) & {"\x1b", "\u202e"}


@given(st.text())
def test_tidied_texts_stay_so(text: str) -> None:
    once = tidied(text)
    assert tidied(once) == once
    once.encode()


# -- how alike


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Warm up the learning rate", "warm-up the Learning Rate."),
        ("Learning-rate warmup for the first epochs", "Learning rate warmup in the first epochs"),
        ("학습률을 천천히 올리기", "학습률을 천천히 올리기!"),
    ],
)
def test_the_same_said_a_little_differently_is_a_repeat(one: str, other: str) -> None:
    assert is_repeat(print_of(one), [print_of(other)])


def test_different_mechanisms_are_no_repeats() -> None:
    for one in MECHANISMS:
        others = [
            print_of(other, f"Change the training so as to {other}")
            for other in MECHANISMS
            if other != one
        ]
        assert not is_repeat(print_of(one, f"Change the training so as to {one}"), others)
    assert not is_repeat(
        print_of("Other values of dropout"), [print_of("Other values of shift_probability")]
    )


@given(st.text(), st.text(), st.text())
def test_likeness_is_a_share_and_the_same_is_one(title: str, one: str, other: str) -> None:
    first, second = print_of(title, one), print_of(other, one)
    assert 0 <= likeness(first, second) <= 1
    assert likeness(first, second) == likeness(second, first)
    assert likeness(first, first) == 1


# -- the past


def leave(
    results: Path, task: str, ideas: Any, research: Any = None, template: str = "digits"
) -> Path:
    directory = results / task
    directory.mkdir()
    (directory / "ideas.json").write_text(json.dumps({"template": template, "ideas": ideas}))
    if research is not None:
        (directory / "result.json").write_text(
            json.dumps({"outcome": "done", "research": research})
        )
    os.utime(directory / "ideas.json", ns=(0, len(list(results.iterdir())) * 10**9))
    return directory


def research(**over: Any) -> dict[str, Any]:
    def trial(name: str, of: str, status: str, value: float | None) -> dict[str, Any]:
        return {"name": name, "idea": of, "status": status, "run": {"value": value}}

    return {
        "metric": {"name": "accuracy", "better": "higher"},
        "baseline_run": {"value": 0.9},
        "trials": [
            trial("trial-000", "idea-1", "ok", 0.95),
            trial("trial-001", "idea-2", "ok", 0.92),
            trial("trial-002", "idea-3", "ok", 0.9),
            trial("trial-003", "idea-4", "crashed", None),
            trial("trial-004", "idea-4", "hopeless", 0.99),
        ],
        "best_trial": "trial-000",
        "claim": {"verdict": "improved", "difference": 0.03},
        **over,
    }


IDEAS = [
    {"name": f"idea-{n}", "title": f"Title {n}", "hypothesis": "because"} for n in range(1, 6)
]


def test_what_came_of_each_idea_of_earlier_tasks_is_known_the_newest_first(tmp_path: Path) -> None:
    leave(tmp_path, "old", IDEAS[:1])
    leave(tmp_path, "other", IDEAS, research(), template="grokking")
    leave(tmp_path, "new", IDEAS, research())
    leave(tmp_path, "me", IDEAS, research())
    found = past_ideas(tmp_path, "digits", without="me")
    assert [(one.task_id, one.title, one.outcome) for one in found] == [
        ("new", "Title 1", "improved"),
        ("new", "Title 2", "inconclusive"),
        ("new", "Title 3", "no_improvement"),
        ("new", "Title 4", "failed"),
        ("new", "Title 5", "not_run"),
        ("old", "Title 1", "not_run"),
    ]
    assert [one.effect for one in found[:3]] == pytest.approx([0.05, 0.02, 0.0])
    assert past_ideas(tmp_path, "digits", limit=2) == past_ideas(tmp_path, "digits")[:2]


def test_lower_may_be_better_and_a_claim_may_be_worse(tmp_path: Path) -> None:
    lower = {"name": "loss", "better": "lower"}
    leave(
        tmp_path, "t", IDEAS, research(metric=lower, claim={"verdict": "worse", "difference": 0.5})
    )
    outcomes = [one.outcome for one in past_ideas(tmp_path, "digits")]
    assert outcomes[:3] == ["worse", "no_improvement", "no_improvement"]
    more = research(metric=lower)
    more["trials"].append({**more["trials"][1], "name": "trial-005", "run": {"value": 0.85}})
    leave(tmp_path, "u", IDEAS, more)
    _, second, *_ = past_ideas(tmp_path, "digits")
    assert second.outcome == "inconclusive"
    assert second.effect == pytest.approx(-0.05)


GARBAGE: list[Any] = [
    None, [], 3, "x", {"template": "digits"}, {"template": ["digits"], "ideas": {}},
    {"template": "digits", "ideas": [None, 3, {"title": 7}, {"title": ""}, {"title": "\ud800 ok", "name": {}}]},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_garbage_in_results_is_passed_over(tmp_path: Path, number: int) -> None:
    odd = leave(tmp_path, "odd", [])
    (odd / "ideas.json").write_text(json.dumps(GARBAGE[number]))
    leave(tmp_path, "good", IDEAS[:1], research())
    assert "good" in {one.task_id for one in past_ideas(tmp_path, "digits")}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "trials",
                        "idea",
                        "run",
                        "value",
                        "status",
                        "claim",
                        "verdict",
                        "difference",
                        "metric",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_no_record_of_research_breaks_the_reading(
    tmp_path_factory: pytest.TempPathFactory, given_record: Any
) -> None:
    results = tmp_path_factory.mktemp("results")
    leave(results, "t", IDEAS, given_record)
    for one in past_ideas(results, "digits"):
        assert PastIdea.model_validate(one.model_dump(mode="json")) == one


def test_files_that_are_none_do_not_hold_the_reading_up(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"template": "digits", "ideas": IDEAS}))
    for name in ("fifo", "link", "deep", "directory", "cut", "big"):
        directory = leave(tmp_path, name, [])
        (directory / "ideas.json").unlink()
    os.mkfifo(tmp_path / "fifo/ideas.json")
    (tmp_path / "link/ideas.json").symlink_to(secret)
    (tmp_path / "deep/ideas.json").write_text("[" * 100_000)
    (tmp_path / "directory/ideas.json").mkdir()
    (tmp_path / "cut/ideas.json").write_text(secret.read_text()[:-9])
    (tmp_path / "big/ideas.json").write_text(secret.read_text() + " " * 2**20)
    (tmp_path / "a file").write_text("")
    assert past_ideas(tmp_path, "digits") == []
    assert past_ideas(tmp_path / "nowhere", "digits") == []
