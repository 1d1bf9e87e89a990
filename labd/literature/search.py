"""Asking all sources at once: cache, turns, retries, and what came of it. A source that is down is told, never raised."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import tenacity

from labd.clock import utc_now
from labd.literature.cache import Cache
from labd.literature.indexes import SPACING_S, Arxiv, OpenAlex, SemanticScholar
from labd.literature.library import Library
from labd.literature.model import (
    MAX_LIMIT,
    MAX_QUERIES,
    MAX_QUERY_CHARS,
    Found,
    Options,
    Source,
    SourceFailed,
)
from labd.literature.pace import Pace
from labd.literature.paper import Paper, SourceName, clean, group, unite

MAX_TRIES = 3
MAX_WAIT_S = 30.0
"""A source that wants to be left alone for longer is not waited for."""
_GRACE_S = 1.0
_FUSION = 60
_INDEXES: Mapping[SourceName, Callable[[Options, Callable[[], date]], Source]] = {
    "openalex": OpenAlex,
    "semantic_scholar": SemanticScholar,
    "arxiv": Arxiv,
}


@dataclass(slots=True)
class _Asked:
    """What one source said to each query, in the order of the queries."""

    answers: list[list[Paper] | None] = field(default_factory=list)
    failure: str = ""


class Literature:
    """All sources that the settings name; one of these may serve several threads.

    `cache_dir` is made when it is needed, and may be shared with other processes. Nothing in it is needed again.
    """

    def __init__(
        self,
        options: Options,
        cache_dir: Path,
        *,
        spacing_s: Mapping[SourceName, float] = SPACING_S,
        backoff_s: float = 1.0,
    ) -> None:
        self._backoff = tenacity.wait_exponential(
            multiplier=backoff_s, max=8 * backoff_s
        ) + tenacity.wait_random(0, backoff_s)
        self._cache = Cache(
            cache_dir / "answers",
            max_age=timedelta(days=options.cache_days),
            max_bytes=options.cache_bytes,
        )
        self._library = Library(options.library) if options.library else None
        names = options.sources if options.online else ()
        self._indexes: list[Source] = [_INDEXES[name](options, _today) for name in names]
        self._paces = {name: Pace(cache_dir, name, spacing_s[name]) for name in names}

    def search(self, queries: Sequence[str], *, limit: int = 20, timeout_s: float = 60.0) -> Found:
        """Ask every source every query, and give at most `limit` papers, the nearest first.

        Comes back after about `timeout_s`, whatever the sources do. Reading a library is not broken off, but
        goes on in the background for the next search.
        """
        limit = min(max(1, limit), MAX_LIMIT)
        asked_queries = _plain_queries(queries)
        deadline_s = time.monotonic() + timeout_s
        sources: list[Source] = [*([self._library] if self._library else []), *self._indexes]
        if not asked_queries or not sources:
            return Found(queries=asked_queries)
        threads = ThreadPoolExecutor(len(sources), thread_name_prefix="literature")
        futures = {
            source.name: threads.submit(self._ask, source, asked_queries, limit, deadline_s)
            for source in sources
        }
        wait(futures.values(), timeout_s + _GRACE_S)
        # The threads end by themselves: each of their waits has the same deadline.
        threads.shutdown(wait=False, cancel_futures=True)
        asked = {name: _outcome(future, timeout_s) for name, future in futures.items()}
        return _found(asked, asked_queries, limit)

    def _ask(
        self, source: Source, queries: Sequence[str], limit: int, deadline_s: float
    ) -> _Asked:
        asked = _Asked()
        for query in queries:
            try:
                asked.answers.append(self._answer(source, query, limit, deadline_s))
            except SourceFailed as failure:
                asked.answers.append(None)
                asked.failure = asked.failure or failure.what
        if isinstance(source, Library):
            asked.failure = asked.failure or source.problems()
        return asked

    def _answer(self, source: Source, query: str, limit: int, deadline_s: float) -> list[Paper]:
        pace = self._paces.get(source.name)
        if pace is None:
            return source.search(query, limit, deadline_s)
        known = self._cache.get(source.name, query, limit, utc_now())
        if known is not None:
            return known
        papers = self._patiently(source, pace, query, limit, deadline_s)
        # The answer is what counts; without room to keep it, the same query costs another request.
        with suppress(OSError):
            self._cache.put(source.name, query, limit, papers, utc_now())
        return papers

    def _patiently(
        self, source: Source, pace: Pace, query: str, limit: int, deadline_s: float
    ) -> list[Paper]:
        """Give the source's answer, after a few tries if need be; remember it as down if there is none."""

        def try_once() -> list[Paper]:
            pace.wait(deadline_s)
            return source.search(query, limit, deadline_s)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_retryable),
            wait=self._wait_s,
            stop=lambda state: _is_enough(state, deadline_s),
            reraise=True,
        )
        try:
            return retrying(try_once)
        except SourceFailed as failure:
            pace.note_failure(failure)
            raise

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, SourceFailed) else None
        return self._backoff(state) if asked_s is None else asked_s


def _today() -> date:
    return utc_now().date()


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, SourceFailed) and error.retryable


def _is_enough(state: tenacity.RetryCallState, deadline_s: float) -> bool:
    pause_s = state.upcoming_sleep
    is_late = time.monotonic() + pause_s >= deadline_s
    return state.attempt_number >= MAX_TRIES or pause_s > MAX_WAIT_S or is_late


def _plain_queries(queries: Iterable[str]) -> tuple[str, ...]:
    plain = (clean(query, MAX_QUERY_CHARS).rstrip("…") for query in queries)
    return tuple(dict.fromkeys(query for query in plain if query))[:MAX_QUERIES]


def _outcome(future: Future[_Asked], timeout_s: float) -> _Asked:
    if not future.done():
        return _Asked([None], f"no answer within {timeout_s:g} s")
    return future.result()


def _found(asked: Mapping[SourceName, _Asked], queries: tuple[str, ...], limit: int) -> Found:
    failed = {name: _reason(one, len(queries)) for name, one in asked.items() if one.failure}
    lists = {
        name: [answer for answer in one.answers if answer is not None]
        for name, one in asked.items()
    }
    answered = {name: answers for name, answers in lists.items() if answers}
    return Found(
        papers=tuple(_best_first(list(answered.values()))[:limit]),
        queries=queries,
        answered=tuple(answered),
        failed=failed,
        records={
            name: len(set(group([paper for answer in answers for paper in answer])))
            for name, answers in answered.items()
        },
    )


def _reason(asked: _Asked, num_queries: int) -> str:
    missing = asked.answers.count(None)
    is_part = 0 < missing < num_queries
    return f"{missing} of {num_queries} queries: {asked.failure}" if is_part else asked.failure


def _best_first(answers: Iterable[Iterable[Sequence[Paper]]]) -> list[Paper]:
    """Give each paper once, by reciprocal rank fusion: what many answers have near their top comes first.

    Source: G. Cormack, C. Clarke and S. Buettcher, Reciprocal Rank Fusion, SIGIR 2009, with their k of 60.
    """
    ranked = [
        (rank, paper)
        for of_source in answers
        for answer in of_source
        for rank, paper in enumerate(answer, start=1)
    ]
    papers = [paper for _, paper in ranked]
    scores: dict[int, float] = {}
    for (rank, _), leader in zip(ranked, group(papers), strict=True):
        scores[leader] = scores.get(leader, 0.0) + 1 / (_FUSION + rank)
    # `unite` keeps the order in which papers first come, and so does `scores`.
    united = zip(unite((), papers), scores.values(), strict=True)
    return [paper for paper, _ in sorted(united, key=lambda one: -one[1])]
