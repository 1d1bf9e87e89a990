"""Papers are asked for at three indexes that behave, or do not; servers here speak their formats."""

import json
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labd.literature.fetch import retry_after_s
from labd.literature.indexes import read_arxiv, read_openalex, read_semantic_scholar
from labd.literature.model import Found, Options, SourceFailed
from labd.literature.novelty import judge_novelty
from labd.literature.pace import Pace
from labd.literature.paper import MAX_TITLE_CHARS, SOURCE_NAMES, SourceName
from labd.literature.search import MAX_TRIES, Literature
from tests.servers.literature import CORPUS, QUICK, LiteratureServer

INDEXES: tuple[SourceName, ...] = ("openalex", "semantic_scholar", "arxiv")
QUERY = "sparse attention"
ENOUGH_S = 30.0
TODAY = datetime(2026, 11, 26, tzinfo=UTC).date()


def asking(options: Options, cache: Path, **over: Any) -> Literature:
    return Literature(options, cache, **{"spacing_s": QUICK, "backoff_s": 0.01, **over})


def ask(
    server: LiteratureServer, cache: Path, *queries: str, timeout_s: float = ENOUGH_S, **over: Any
) -> Found:
    literature = asking(server.options(**over), cache)
    return literature.search(queries or (QUERY,), limit=10, timeout_s=timeout_s)


@pytest.mark.parametrize("name", INDEXES)
def test_each_index_gives_the_same_paper_in_its_own_words(
    name: SourceName, tmp_path: Path
) -> None:
    with LiteratureServer() as server:
        found = ask(server, tmp_path, "attention over long sequences", sources=(name,))
    assert (found.answered, found.failed) == ((name,), {})
    paper, item = found.papers[0], CORPUS[0]
    assert paper.key == "lovelace2019sparse"
    assert (paper.title, paper.abstract) == (item["title"], item["abstract"])
    assert paper.authors == tuple(item["authors"])
    assert (paper.year, paper.doi, paper.arxiv_id) == (2019, "10.1000/sparse.2019", "1904.01509")
    assert paper.url == "https://doi.org/10.1000/sparse.2019"
    assert paper.source == name
    assert paper.citations == (None if name == "arxiv" else 12)


def test_what_several_indexes_have_is_one_paper_and_the_first_ones_record(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        found = ask(server, tmp_path, sources=("arxiv", "openalex", "semantic_scholar"))
    assert set(found.answered) == set(INDEXES)
    assert [paper.title for paper in found.papers] == [CORPUS[0]["title"], CORPUS[2]["title"]]
    assert found.papers[0].source == "arxiv"
    assert found.papers[0].venue == "Journal of Attention", "arXiv did not say; the others did"
    assert found.records == {"arxiv": 2, "openalex": 2, "semantic_scholar": 2}


def test_offline_is_the_default_and_asks_nobody(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        found = ask(server, tmp_path, online=False)
        assert server.count() == 0
    assert (found.papers, found.answered) == ((), ())


def test_keys_and_addresses_go_to_their_own_source_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2", "s2-secret")
    key = tmp_path / "key"
    key.write_text("oa-secret\n")
    key.chmod(0o600)
    keys: dict[str, Any] = {
        "s2_key_env": "S2",
        "openalex_key_file": str(key),
        "mailto": "me@example.org",
    }
    with LiteratureServer() as server:
        ask(server, tmp_path / "cache", **keys)
        seen = {name: (params, headers) for name, params, headers, _ in server.requests}
    assert seen["semantic_scholar"][1]["x-api-key"] == "s2-secret"
    assert seen["openalex"][0]["api_key"] == "oa-secret"
    for name in INDEXES:
        assert "me@example.org" in seen[name][1]["User-Agent"]
        assert ("s2-secret" in repr(seen[name])) == (name == "semantic_scholar")
        assert ("oa-secret" in repr(seen[name])) == (name == "openalex")
    kept = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert "secret" not in kept


def test_a_key_that_others_may_read_is_told_and_nothing_is_sent(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o644)
    with LiteratureServer() as server:
        found = ask(server, tmp_path, sources=("openalex",), openalex_key_file=str(key))
        assert server.count() == 0
    assert "chmod 600" in found.failed["openalex"]


# -- what goes wrong

REFUSED = [
    *("400", "401", "403", "404", "html", "binary", "nothing", "deep", "no-list", "wrong-items"),
    *("redirect", "brotli", "badly-packed", "bomb", "endless", "huge-title:10"),
]
TRIED_AGAIN = ["429", "500", "503", "cut", "half-packed", "slam", "no-http"]
STUCK = ["hang", "drip-head", "drip-body"]


@pytest.mark.parametrize("behaviour", REFUSED)
def test_a_bad_answer_is_a_reason_and_never_an_answer(behaviour: str, tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave_all(behaviour)
        found = ask(server, tmp_path)
        assert [server.count(name) for name in INDEXES] == [1, 1, 1]
    assert (found.papers, found.answered) == ((), ())
    assert set(found.failed) == set(INDEXES)
    assert judge_novelty("Any idea", "at all", found).status == "not_checked"


@pytest.mark.parametrize("behaviour", ["dtd", "outside-entity", "bare-dtd"])
def test_xml_with_a_document_type_is_refused(behaviour: str, tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave("arxiv", behaviour)
        found = ask(server, tmp_path, sources=("arxiv",))
    assert found.failed == {"arxiv": "the reply is no Atom feed"}


@pytest.mark.parametrize("behaviour", TRIED_AGAIN)
def test_what_may_pass_is_tried_again_a_few_times_and_no_more(
    behaviour: str, tmp_path: Path
) -> None:
    with LiteratureServer() as server:
        server.behave_all(behaviour)
        found = ask(server, tmp_path)
        assert [server.count(name) for name in INDEXES] == [MAX_TRIES] * 3
    assert (found.answered, set(found.failed)) == ((), set(INDEXES))


@pytest.mark.parametrize("behaviour", TRIED_AGAIN)
def test_an_index_that_recovers_in_between_has_answered(behaviour: str, tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave_all(behaviour, "fine")
        found = ask(server, tmp_path)
    assert (set(found.answered), found.failed) == (set(INDEXES), {})


@pytest.mark.parametrize("behaviour", STUCK)
def test_a_server_that_never_finishes_costs_no_more_than_the_time_given(
    behaviour: str, tmp_path: Path
) -> None:
    with LiteratureServer() as server:
        server.behave_all(behaviour)
        found = ask(server, tmp_path, timeout_s=0.4)
        assert set(found.failed) == set(INDEXES)
        # The threads have the same deadline: none is left behind, waiting for the server.
        deadline_s = time.monotonic() + ENOUGH_S
        while any(one.name.startswith("literature") for one in threading.enumerate()):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


def test_one_index_that_works_is_enough(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave("openalex", "500")
        server.behave("semantic_scholar", "slam")
        found = ask(server, tmp_path)
    assert found.answered == ("arxiv",)
    assert set(found.failed) == {"openalex", "semantic_scholar"}
    assert "HTTP 500" in found.failed["openalex"]
    assert "broke off" in found.failed["semantic_scholar"]
    assert len(found.papers) == 2


def test_nobody_listening_is_a_reason(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        options = server.options()
    found = asking(options, tmp_path).search([QUERY], timeout_s=ENOUGH_S)
    assert (found.answered, set(found.failed)) == ((), set(INDEXES))
    assert all("can't be reached" in why for why in found.failed.values())


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave_all("redirect")
        found = ask(server, tmp_path)
        assert not any("followed" in params for _, params, _, _ in server.requests)
    assert "literature.urls" in found.failed["arxiv"]


def test_parts_of_the_wrong_type_are_left_empty(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave_all("wrong-parts")
        found = ask(server, tmp_path)
    assert (set(found.answered), found.failed) == (set(INDEXES), {})
    (paper,) = found.papers
    assert paper.title == "A good title of a record"
    assert (paper.year, paper.venue, paper.doi, paper.arxiv_id, paper.url) == (
        None,
        "",
        "",
        "",
        "",
    )
    assert (paper.authors, paper.citations) == ((), None)
    assert paper.key == "anonymousndgood"


@pytest.mark.parametrize("name", INDEXES)
def test_a_huge_title_is_cut(name: SourceName, tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave(name, "huge-title:3")
        found = ask(server, tmp_path, sources=(name,))
    assert len(found.papers[0].title) == MAX_TITLE_CHARS


def test_a_packed_answer_is_read(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave_all("packed")
        assert len(ask(server, tmp_path).papers) == 2


def test_no_hit_is_an_answer_but_nothing_to_compare_with(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave_all("empty")
        found = ask(server, tmp_path)
    assert (set(found.answered), found.failed, found.papers) == (set(INDEXES), {}, ())
    novelty = judge_novelty("An idea", "about sparse attention", found)
    assert novelty.status == "not_checked"
    assert "No record was found" in novelty.reason


def test_an_error_that_arxiv_puts_into_its_feed_is_no_paper(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave("arxiv", "query-error")
        found = ask(server, tmp_path, sources=("arxiv",))
    assert (found.papers, found.answered) == ((), ())


def test_operators_in_a_query_are_words_like_others(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        ask(server, tmp_path, 'title:"Sparse" AND (x OR y) -z & max_results=9\nall:w')
        asked = {name: params for name, params, _, _ in server.requests}
    assert asked["openalex"]["search"] == "title sparse and x or y z max_results 9 all w"
    assert asked["semantic_scholar"]["query"] == "title sparse and x or y z max_results 9 all w"
    assert asked["arxiv"]["search_query"] == (
        "all:title OR all:sparse OR all:x OR all:y OR all:z OR all:max OR all:9 OR all:w"
    )
    assert asked["arxiv"]["max_results"] == "10"


@pytest.mark.parametrize("queries", [[], ["", "  ", "\x00"]])
def test_nothing_to_ask_is_nobody_asked(queries: list[str], tmp_path: Path) -> None:
    with LiteratureServer() as server:
        found = asking(server.options(), tmp_path).search(queries)
        assert server.count() == 0
    assert (found.queries, found.answered) == ((), ())


# -- addresses, and TLS


@pytest.mark.parametrize(
    "url",
    ["http://", "http://[::1", "http://a b", "http://127.0.0.1:99999", "http://127.0.0.1:x", "http://\u00e9\u00e9",
     f"http://{'a' * 300}", "https://..", "http://?", "http://name.invalid"],
)  # fmt: skip
def test_an_address_that_is_none_is_a_reason(url: str, tmp_path: Path) -> None:
    options = Options(online=True, sources=("arxiv",), urls={"arxiv": url})
    found = asking(options, tmp_path).search([QUERY], timeout_s=ENOUGH_S)
    assert (found.answered, set(found.failed)) == ((), {"arxiv"})


@pytest.mark.parametrize(("name", "is_trusted"), [("127.0.0.1", True), ("example.org", False)])
def test_a_server_has_to_prove_its_name(
    name: str, *, is_trusted: bool, authority: trustme.CA, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with LiteratureServer(tls=context) as server:
        found = ask(server, tmp_path, sources=("openalex",))
        assert server.count() == int(is_trusted)
    assert bool(found.papers) == is_trusted
    assert ("CERTIFICATE_VERIFY_FAILED" in found.failed.get("openalex", "")) == (not is_trusted)


# -- turns, and sources that are down


def test_turns_at_one_source_are_apart_also_between_many_of_us(tmp_path: Path) -> None:
    far_s = time.monotonic() + 10**6
    with ThreadPoolExecutor(4) as threads:
        taken = [threads.submit(Pace(tmp_path, "arxiv", 1000.0)._take, far_s) for _ in range(6)]
    pauses_s = sorted(one.result() for one in taken)
    assert pauses_s[0] == 0.0
    # All were taken within a moment, so each is a whole number of turns away, less that moment.
    assert [round(pause_s / 1000) for pause_s in pauses_s] == [0, 1, 2, 3, 4, 5]


def test_a_turn_that_comes_too_late_is_not_waited_for(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        options = server.options(sources=("arxiv",))
        literature = asking(options, tmp_path, spacing_s={**QUICK, "arxiv": 60.0})
        found = literature.search([QUERY, "images"], timeout_s=ENOUGH_S)
        assert server.count() == 1
    assert found.answered == ("arxiv",)
    assert found.failed["arxiv"].startswith("1 of 2 queries: its turn would come after")


def test_a_source_that_says_when_is_asked_then(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave("openalex", "retry-after:1", "fine")
        found = ask(server, tmp_path, sources=("openalex",))
        first, second = (moment for *_, moment in server.requests)
    assert found.answered == ("openalex",)
    assert second - first > 0.9


@pytest.mark.parametrize("seconds", [54_000, 999_999_999])
def test_a_source_that_wants_hours_is_not_waited_for(seconds: int, tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave("openalex", f"retry-after:{seconds}", "fine")
        found = ask(server, tmp_path, sources=("openalex",), timeout_s=10.0**6)
        assert server.count() == 1
        again = ask(server, tmp_path, "another query", sources=("openalex",))
        assert server.count() == 1, "another of us, on the same machine, asks it no sooner"
    assert "HTTP 429" in found.failed["openalex"]
    assert again.failed["openalex"].startswith("not asked before ")


@pytest.mark.parametrize(("behaviour", "requests"), [("500", 3), ("html", 1), ("403", 1)])
def test_a_source_that_failed_is_left_alone_for_a_while(
    behaviour: str, requests: int, tmp_path: Path
) -> None:
    with LiteratureServer() as server:
        server.behave("openalex", behaviour)
        literature = asking(server.options(sources=("openalex",)), tmp_path)
        literature.search([QUERY, "two", "three"])
        literature.search(["four"])
        assert server.count() == requests


def test_a_query_that_is_refused_does_not_make_its_source_down(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave("openalex", "400", "fine")
        found = ask(server, tmp_path, "bad", QUERY, sources=("openalex",))
    assert found.answered == ("openalex",)
    assert found.failed["openalex"].startswith("1 of 2 queries: ")


@pytest.mark.parametrize(
    "written",
    [b"", b"{", b"[]", b'{"next_at_s": 1e99, "down_until_s": 1e99, "why": 1}', b"\xff" * 10_000],
)
def test_a_record_of_turns_that_makes_no_sense_counts_as_none(
    written: bytes, tmp_path: Path
) -> None:
    (tmp_path / "openalex.pace.json").write_bytes(written)
    with LiteratureServer() as server:
        assert ask(server, tmp_path, sources=("openalex",)).answered == ("openalex",)


def test_without_a_place_for_turns_nobody_is_asked(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a directory is wanted")
    with LiteratureServer() as server:
        found = ask(server, tmp_path / "cache")
        assert server.count() == 0
    assert all("its turns can't be kept" in why for why in found.failed.values())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Thu, 26 Nov 2026 00:01:00 GMT", 60.0),
        ("Wed, 25 Nov 2026 00:00:00 GMT", 0.0),
        ("999999999", 366 * 86400.0),
        ("9" * 5000, None),
        ("-1", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Thu, 26 Nov 99999 00:01:00 GMT", None),
    ],
)
def test_a_time_to_wait_is_read_as_rfc_9110_writes_it(value: str, seconds: float | None) -> None:
    assert retry_after_s(value, datetime(2026, 11, 26, tzinfo=UTC)) == seconds


# -- the cache


def test_an_answer_is_asked_for_once(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        first = ask(server, tmp_path)
        server.behave_all("500")
        assert ask(server, tmp_path) == first
        assert server.count() == len(INDEXES)


def test_a_failure_is_not_kept_as_an_answer(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        server.behave_all("400", "fine")
        assert ask(server, tmp_path).answered == ()
        assert set(ask(server, tmp_path).answered) == set(INDEXES)


@pytest.mark.parametrize("harm", ["old", "future", "torn", "other", "empty", "huge"])
def test_an_answer_that_is_old_or_damaged_is_asked_for_again(harm: str, tmp_path: Path) -> None:
    with LiteratureServer() as server:
        ask(server, tmp_path, sources=("openalex",))
        (path,) = (tmp_path / "answers").iterdir()
        kept = json.loads(path.read_text())
        texts = {
            "old": json.dumps({**kept, "fetched_at": "2020-01-01T00:00:00Z"}),
            "future": json.dumps({**kept, "fetched_at": "2999-01-01T00:00:00Z"}),
            "torn": path.read_text()[:-30],
            "other": json.dumps({**kept, "query": "something else"}),
            "empty": "",
            "huge": " " * 2**24 + path.read_text(),
        }
        path.write_text(texts[harm])
        found = ask(server, tmp_path, sources=("openalex",))
        assert server.count() == 2
    assert len(found.papers) == 2


def test_the_cache_stays_below_its_limit_and_the_oldest_go_first(tmp_path: Path) -> None:
    with LiteratureServer() as server:
        options = server.options(sources=("openalex",), cache_bytes=5000)
        literature = asking(options, tmp_path)
        for number in range(12):
            literature.search([f"sparse attention {number}"])
        sizes = [path.stat().st_size for path in (tmp_path / "answers").iterdir()]
        assert 1 <= len(sizes) < 12
        assert sum(sizes) <= 5000
        before = server.count()
        literature.search(["sparse attention 11"])
        assert server.count() == before, "the newest is kept"


# -- readers, by themselves

_NAMES = st.sampled_from(
    [
        *(
            "title",
            "authors",
            "authorships",
            "author",
            "display_name",
            "name",
            "year",
            "source",
            "url",
        ),
        *("publication_year", "primary_location", "landing_page_url", "doi", "ids", "externalIds"),
        *(
            "DOI",
            "ArXiv",
            "abstract",
            "abstract_inverted_index",
            "cited_by_count",
            "citationCount",
        ),
    ]
)


@pytest.mark.parametrize("read", [read_openalex, read_semantic_scholar, read_arxiv])
@pytest.mark.parametrize(
    "raw",
    [b"", b"\x00", b"null", b"[]", b"{}", b"<feed/>", b"<?xml version='1.0' encoding='x'?><a/>"],
)
def test_what_is_no_reply_fails_as_a_source(read: Any, raw: bytes) -> None:
    with pytest.raises(SourceFailed):
        read(raw, TODAY)


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_NAMES | st.text(), inner, max_size=6)
    ),
    max_leaves=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_NAMES, _ANYTHING), st.lists(_ANYTHING))
def test_replies_of_any_shape_give_records_or_fail_as_a_source(reply: Any, items: Any) -> None:
    for name, read in (("results", read_openalex), ("data", read_semantic_scholar)):
        raw = json.dumps({**reply, name: [{"title": "A title", **reply}, *items]}).encode()
        with suppress(SourceFailed):
            assert all(paper.title for paper in read(raw, TODAY))


def test_names_of_sources_are_those_of_the_settings() -> None:
    assert set(SOURCE_NAMES) == {*INDEXES, "library"}
