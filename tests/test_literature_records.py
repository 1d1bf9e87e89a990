"""Records of papers: keys, duplicates, the user's own library, citations, and how near an idea is to one."""

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.literature.library import read_bibtex, read_json_lines
from labd.literature.model import Found, Options
from labd.literature.novelty import judge_novelty
from labd.literature.paper import Paper, clean, clean_arxiv_id, clean_doi, make_paper, unite
from labd.literature.ranking import Index, similarities
from labd.literature.search import Literature
from labd.settings import Home, LiteratureSettings, load_home

TODAY = date(2026, 11, 26)
HOSTILE = 'x & y_z $1$ 100% #1 {a} \\b ~c ^d <i>e</i> @f [g](http://h) `i` |j| *k* !l "m" --- ...'


def paper(title: str = "Sparse attention for long sequences", **over: Any) -> Paper:
    facts = {"authors": ["Ada Lovelace"], "year": 2019, **over}
    made = make_paper("library", TODAY, title=title, **facts)
    assert made is not None
    return made


# -- keys and duplicates


@pytest.mark.parametrize(
    ("title", "authors", "year", "key"),
    [
        ("Attention Is All You Need", ["Ashish Vaswani"], 2017, "vaswani2017attention"),
        ("The Lottery Ticket", ["Frankle, Jonathan"], 2019, "frankle2019lottery"),
        ("On Löve", ["Jörg Müller Jr."], None, "mullerndlove"),
        ("주의 기반 신경망", ["김철수"], 2020, "gimcheolsu2020juui"),
        ("To be or not to be", [], 1603, "anonymous1603be"),
        ("!!!", ["???"], 2000, None),
        ("x" * 400, ["y" * 190], 2000, f"{'y' * 30}2000{'x' * 30}"),
    ],
)
def test_a_key_is_made_of_author_year_and_title(
    title: str, authors: list[str], year: int | None, key: str | None
) -> None:
    made = paper(title, authors=authors, year=year)
    assert key is None or made.key == key
    assert made.key.isascii()
    assert made.key.isalnum()


def test_keys_that_clash_differ_in_the_end_and_known_ones_stay() -> None:
    known = unite((), [paper("Sparse attention for images")])
    titles = [f"Sparse things number {number}" for number in range(30)]
    papers = unite(known, [paper(title) for title in titles])
    assert papers[0] == known[0]
    keys = [one.key for one in papers]
    assert keys[:3] == ["lovelace2019sparse", "lovelace2019sparseb", "lovelace2019sparsec"]
    assert len(set(keys)) == 31
    assert unite(papers, [paper(title) for title in titles]) == papers


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ({"doi": "10.1000/A", "title": "Another title altogether"}, True),
        ({"arxiv_id": "1904.01509v3", "title": "Another title altogether"}, True),
        ({"doi": "https://doi.org/10.48550/arXiv.1904.01509", "title": "Yet another title"}, True),
        ({"title": "SPARSE ATTENTION, for long sequences."}, True),
        ({"title": "Sparse Attention for Long Sequences", "year": 2020}, True),
        ({"title": "Sparse Attention for Long Sequences", "authors": []}, True),
        ({"title": "Sparse Attention for Long Sequences", "authors": ["Lovelace, A."]}, True),
        ({"title": "Sparse Attention for Long Sequences", "authors": ["B. Turing"]}, False),
        ({"title": "Sparse Attention for Long Sequences", "year": 1999}, False),
        ({"title": "Sparse attention for short sequences"}, False),
    ],
)
def test_records_of_one_paper_are_one(other: dict[str, Any], is_same: bool) -> None:  # noqa: FBT001
    one = paper(doi="10.1000/a", arxiv_id="1904.01509")
    assert len(unite((), [one, paper(**other)])) == (1 if is_same else 2)


def test_short_titles_alone_make_no_duplicates() -> None:
    assert len(unite((), [paper("Editorial"), paper("Editorial")])) == 2


def test_a_third_record_may_join_two() -> None:
    papers = [
        paper("The first title of it", doi="10.1000/a"),
        paper("A second title of it", arxiv_id="1904.01509"),
        paper("The first title of it", arxiv_id="1904.01509"),
    ]
    assert len(unite((), papers[::2])) == 1
    assert len(unite((), papers)) == 2


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300), st.integers(1, 50))
def test_clean_text_is_short_and_on_one_line(text: str, limit: int) -> None:
    shown = clean(text, limit)
    assert len(shown) <= limit
    assert shown == shown.strip()
    assert not any(ord(char) < 32 or char in "\u202e\u2028\x7f" for char in shown)


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.integers(), st.lists))
def test_a_record_is_made_of_anything_or_not_at_all(value: Any) -> None:
    names = ("year", "venue", "doi", "arxiv_id", "url", "abstract", "citations")
    made = make_paper("arxiv", TODAY, title=value, authors=[value], **dict.fromkeys(names, value))
    assert made is None or Paper.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("text", "doi"),
    [
        ("10.1000/ABC", "10.1000/abc"),
        ("doi: 10.1000/abc", "10.1000/abc"),
        ("http://dx.doi.org/10.1000/abc(1)", "10.1000/abc(1)"),
        ("10.1000/a b", ""),
        ('10.1000/"><script>', ""),
        ("abc", ""),
    ],
)
def test_a_doi_is_bare_or_not_there(text: str, doi: str) -> None:
    assert clean_doi(text) == doi


@pytest.mark.parametrize(
    ("text", "arxiv_id"),
    [
        ("1706.03762", "1706.03762"),
        ("http://arxiv.org/abs/1706.03762v7", "1706.03762"),
        ("arXiv:hep-th/9901001v2", "hep-th/9901001"),
        ("1706.03762 or so", ""),
        ("../../etc", ""),
    ],
)
def test_an_arxiv_identifier_is_bare_or_not_there(text: str, arxiv_id: str) -> None:
    assert clean_arxiv_id(text) == arxiv_id


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "file:///etc/passwd", "http://a b", 'http://a"b', "http://a<b"]
)
def test_an_address_that_is_no_plain_web_address_is_left_away(url: str) -> None:
    assert paper(url=url).url == ""


# -- the library

BIBTEX = r"""
@string{jml = {Journal of ML}}
@article{a, title={{Sparse} Attention \& Long Sequences}, author={M{\"u}ller, J{\"o}rg and {Barnes and Noble} and Ada
  Lovelace}, journal=jml, year=2019, doi={10.1000/a\_b}, abstract={Few positions are looked at.}}
@inproceedings{b, title="Delayed generalisation", author="Hopper, Grace", booktitle={Proc. of Networks}, date={2022-05-01}}
@article{b, title={The key stands twice}}
@misc{c, title={No end
@misc{d, title={주의 기반 신경망의 일반화}, author={김철수}, eprint={2201.02177v2}, archiveprefix={arXiv}, year={2022}}
@misc{e, author={No Title}}
"""


def library(*paths: Path, cache: Path) -> Literature:
    return Literature(Options(library=paths), cache)


def test_bibtex_is_read_as_it_prints() -> None:
    papers, unread = read_bibtex(BIBTEX, TODAY)
    first = papers[0]
    assert first.title == "Sparse Attention & Long Sequences"
    assert first.authors == ("Müller, Jörg", "Barnes and Noble", "Ada Lovelace")
    assert (first.venue, first.year, first.doi) == ("Journal of ML", 2019, "10.1000/a_b")
    assert (papers[1].venue, papers[1].year) == ("Proc. of Networks", 2022)
    assert papers[-1].arxiv_id == "2201.02177"
    assert unread == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no bibtex at all",
        "@" * 5000,
        "{" * 50_000,
        "@article{" * 3000,
        "@article{a, title={" + "{" * 20_000 + "}" * 20_000 + "}}",
        "@article{a, title={" + "\\emph{" * 2000 + "}" * 2000 + "}}",
        "@article{a, title={\\begin{x} $ \\[ }}",
        "@string{a = a} @article{a, title = a # a}",
        "\x00\x01\ufffd@article{\u202e, title={x}}",
        "@article{a, title={t}, author={" + " and " * 3000 + "}}",
    ],
)
def test_bibtex_of_any_kind_is_read_or_counted(text: str) -> None:
    papers, unread = read_bibtex(text, TODAY)
    assert len(papers) <= 1
    assert unread >= 0


def test_lines_of_json_are_read_or_counted() -> None:
    good = {
        "title": "A title",
        "authors": ["A B", {"name": "C D"}],
        "year": "2020",
        "doi": "10.1000/x",
    }
    lines = [
        json.dumps(good),
        "",
        "{",
        "[]",
        '{"title": 1}',
        '{"title": "t", "authors": "A B and C D"}',
    ]
    papers, unread = read_json_lines("\n".join([*lines, "[" * 10**5]), TODAY)
    assert [one.authors for one in papers] == [("A B", "C D"), ("A B", "C D")]
    assert (papers[0].year, papers[0].doi) == (2020, "10.1000/x")
    assert unread == 4


def test_a_library_answers_without_any_network(tmp_path: Path) -> None:
    refs = tmp_path / "refs"
    refs.mkdir()
    (refs / "a.bib").write_text(BIBTEX)
    (refs / "b.jsonl").write_text(json.dumps({"title": "Images by sparse attention"}) + "\n")
    (refs / "notes.txt").write_text("not of the library")
    os.utime(refs / "b.jsonl", (1e9, 1e9))
    found = library(refs, cache=tmp_path / "cache").search(["sparse attention", "일반화"])
    assert found.answered == ("library",)
    assert {one.key for one in found.papers} == {
        "muller2019sparse",
        "anonymousndimages",
        next(one.key for one in found.papers if one.arxiv_id),
    }
    assert "a.bib: 3 of 6 records can't be read" in found.failed["library"]
    assert next(one for one in found.papers if not one.authors).fetched_on == date(2001, 9, 9)
    assert not (tmp_path / "cache").exists()


def test_a_library_that_changes_is_read_again(tmp_path: Path) -> None:
    refs = tmp_path / "a.jsonl"
    refs.write_text('{"title": "Sparse attention"}\n')
    literature = library(refs, cache=tmp_path / "cache")
    assert len(literature.search(["attention"]).papers) == 1
    refs.write_text('{"title": "Sparse attention"}\n{"title": "Dense attention"}\n')
    assert len(literature.search(["attention"]).papers) == 2


@pytest.mark.parametrize("kind", ["missing", "empty", "wrong", "directory", "fifo", "unreadable"])
def test_a_library_without_a_record_is_nobody_asked(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "refs.bib"
    if kind == "empty":
        path.write_text("")
    elif kind == "wrong":
        path.write_bytes(b"\xff\xfe\x00" * 1000)
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.symlink_to(path)
    found = library(path, cache=tmp_path / "cache").search(["attention"])
    assert found.answered == ()
    assert found.failed["library"]
    assert judge_novelty("a", "b", found).status == "not_checked"


def test_a_missing_file_is_told_beside_the_answer_of_the_others(tmp_path: Path) -> None:
    there = tmp_path / "a.jsonl"
    there.write_text('{"title": "Sparse attention"}\n')
    found = library(there, tmp_path / "b.bib", cache=tmp_path / "c").search(["attention"])
    assert (found.answered, found.failed) == (("library",), {"library": "b.bib: no such file"})


def test_ranking_prefers_rare_words_and_knows_scripts_without_spaces() -> None:
    index = Index(
        ["learning of networks", "learning to sing", "学習率の自動調整", "신경망의 일반화"]
    )
    assert index.best("networks learn", 9) == [0]
    assert index.best("learning network", 9) == [0, 1]
    assert index.best("学習率", 9) == [2]
    assert index.best("일반화를", 9) == [3]
    assert index.best("nothing of that", 9) == []


# -- novelty

PAPERS = [
    (
        "Sparse attention for long sequences",
        ("Attention looks at every pair of positions, which costs quadratic time. We look at a fixed number of positions "
        "that a small network chooses, and reach the same perplexity on books at a tenth of the memory."),
    ),
    (
        "Delayed generalisation in small networks",
        ("Networks trained on modular arithmetic memorise their training set and generalise only after many more steps. "
        "Weight decay shortens the delay; we relate it to the norm of the weights."),
    ),
    (
        "Warmup of the learning rate, explained",
        ("Early in training the curvature of the loss is high. We show that raising the learning rate slowly lowers the "
        "curvature and that warmup is not needed with a better initialisation."),
    ),
    (
        "Diffusion models of points in the plane",
        ("We train denoising diffusion models on two-dimensional data sets and study how the noise schedule changes which "
        "modes of the density are found."),
    ),
    (
        "Dropout as an ensemble of subnetworks",
        ("Dropping units at random trains exponentially many subnetworks that share weights. Averaging their predictions "
        "explains most of the gain in accuracy on handwritten digits."),
    ),
]  # fmt: skip
TWINS = [
    (
        "Cheap attention over long sequences",
        ("Instead of all pairs of positions, attention looks at a fixed number of positions chosen by a small network; the "
        "memory should fall to a tenth while the perplexity on books stays the same."),
    ),
    (
        "Weight decay and delayed generalisation",
        ("On modular arithmetic small networks memorise first and generalise many steps later. Test whether more weight decay "
        "shortens the delay, and relate that to the norm of the weights."),
    ),
    (
        "Is warmup of the learning rate needed?",
        ("Raising the learning rate slowly lowers the curvature of the loss early in training; a better initialisation should "
        "make warmup needless."),
    ),
    (
        "Noise schedules of diffusion models in the plane",
        ("Train denoising diffusion models on two-dimensional data sets with several noise schedules and count the modes of "
        "the density that are found."),
    ),
    (
        "Dropout as averaging of subnetworks",
        ("Does averaging the predictions of many subnetworks that share weights explain the gain of dropping units at random "
        "on handwritten digits?"),
    ),
]  # fmt: skip
NEIGHBOURS = [
    (
        "Compression of the cache of keys",
        "Quantise the keys and values that attention stores to four bits and measure perplexity on code.",
    ),
    (
        "Label noise and memorisation",
        "Train small networks on images with wrong labels and measure when wrong labels are memorised.",
    ),
    (
        "Cyclic learning rates for transfer",
        "Restart the learning rate in cycles while a pretrained network is tuned on few images.",
    ),
    (
        "Flows instead of diffusion for molecules",
        "Fit normalising flows to the angles of small molecules and compare their likelihood with diffusion.",
    ),
    (
        "Augmentation of handwritten digits",
        "Elastic distortions of digits in training make a linear classifier less sensitive to rotation.",
    ),
]


def found_of(*texts: tuple[str, str]) -> Found:
    papers = unite((), [paper(title, abstract=abstract) for title, abstract in texts])
    return Found(
        papers=tuple(papers),
        queries=("q",),
        answered=("library",),
        records={"library": len(papers)},
    )


@pytest.mark.parametrize("number", range(len(PAPERS)))
def test_an_idea_that_a_paper_has_is_close_work_and_a_neighbour_in_the_field_is_not(
    number: int,
) -> None:
    found = found_of(*PAPERS)
    twin = judge_novelty(*TWINS[number], found)
    assert twin.status == "close_work_found"
    assert twin.closest[0].key == found.papers[number].key
    assert twin.closest[0].key in twin.reason
    neighbour = judge_novelty(*NEIGHBOURS[number], found)
    assert neighbour.status == "no_close_work_found"
    assert "5 records compared (given by library 5; 1 query)" in neighbour.reason
    print(
        twin.closest[0].similarity,
        neighbour.closest[0].similarity,
        [x.similarity for x in twin.closest],
    )


def test_a_record_without_an_abstract_is_compared_by_its_title() -> None:
    found = found_of(("Warmup of the learning rate, explained", ""))
    novelty = judge_novelty(
        "The warmup of learning rates explained", "Many other words " * 50, found
    )
    assert novelty.status == "close_work_found"


@pytest.mark.parametrize(
    "found",
    [
        Found(),
        Found(queries=("q",)),
        Found(queries=("q",), failed={"arxiv": "it was down"}),
        Found(queries=("q",), answered=("arxiv",), records={"arxiv": 0}),
    ],
)
def test_no_answer_is_never_novelty(found: Found) -> None:
    novelty = judge_novelty("Anything", "at all", found, close=2.0)
    assert novelty.status == "not_checked"
    assert novelty.closest == ()


def test_records_of_nobody_are_not_checked_either() -> None:
    found = found_of(*PAPERS).model_copy(update={"answered": ()})
    novelty = judge_novelty(*NEIGHBOURS[0], found)
    assert novelty.status == "not_checked"
    assert novelty.reason.startswith("Nobody was asked with success")


@pytest.mark.parametrize("idea", [("", ""), ("the of and", "!!!")])
def test_an_idea_without_words_is_not_checked(idea: tuple[str, str]) -> None:
    assert judge_novelty(*idea, found_of(*PAPERS)).status == "not_checked"


def test_who_did_not_answer_is_told_beside_what_was_found() -> None:
    found = found_of(*PAPERS).model_copy(update={"failed": {"arxiv": "HTTP 500"}})
    assert "arxiv: HTTP 500" in judge_novelty(*NEIGHBOURS[0], found).reason


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=6))
def test_similarity_is_a_share_and_whole_for_a_text_itself(texts: list[str]) -> None:
    values = similarities(texts[0], texts)
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values[0] == pytest.approx(1.0) or values[0] == 0.0


# -- settings


def test_the_settings_become_options_with_paths_below_the_home(tmp_path: Path) -> None:
    text = "literature: {library: [refs.bib, /abs], online: true, sources: [arxiv], s2_key_file: k, urls: {arxiv: 'http://x/'}}"
    options = Options.model_validate(_settings(tmp_path, text).facts(tmp_path))
    assert options.library == (tmp_path / "refs.bib", Path("/abs"))
    assert (options.online, options.sources) == (True, ("arxiv",))
    assert (options.s2_key_file, options.openalex_key_file) == (str(tmp_path / "k"), "")
    assert options.urls == {"arxiv": "http://x"}


def test_the_defaults_ask_nobody(tmp_path: Path) -> None:
    options = Options.model_validate(_settings(tmp_path, "").facts(tmp_path))
    assert options == Options()
    assert not options.online
    assert Literature(options, tmp_path).search(["attention"]) == Found(queries=("attention",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{onlin: true}", "literature.onlin: unknown key"),
        ("{sources: [openalx]}", "nearest known: openalex"),
        ("{sources: [arxiv, arxiv]}", "each source once"),
        ("{urls: {arxiv: ftp://x}}", "a URL that begins with http:// or https://"),
        ("{urls: {arxive: http://x}}", "nearest known: arxiv"),
        ("{mailto: nobody}", "literature.mailto"),
        ("{s2_key_env: a b}", "literature.s2_key_env"),
        ("{cache_bytes: lots}", "literature.cache_bytes"),
        ("{cache_days: -1}", "literature.cache_days"),
        ("{library: refs.bib}", "literature.library"),
    ],
)
def test_settings_that_make_no_sense_are_told_with_their_place(
    text: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r"labd\.yaml:1:") as raised:
        _settings(tmp_path, f"literature: {text}")
    assert told in str(raised.value)


def _settings(root: Path, text: str) -> LiteratureSettings:
    (root / "config").mkdir(exist_ok=True)
    (root / "config" / "labd.yaml").write_text(text)
    home: Home = load_home(root)
    return home.settings.literature
