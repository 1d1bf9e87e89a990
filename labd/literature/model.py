"""What the literature room is told, what a source is, and what a search found."""

from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from labd.errors import LabdError
from labd.literature.paper import Paper, SourceName
from labd.template import Record

MAX_QUERIES = 20
MAX_QUERY_CHARS = 300
MAX_LIMIT = 100
"""Papers of one search; OpenAlex and Semantic Scholar give no more on one page."""


class Options(Record):
    """The settings of `literature:` as plain data; `LiteratureSettings.facts` makes it."""

    library: tuple[Path, ...] = ()
    """Files, or directories of files, absolute."""
    online: bool = False
    sources: tuple[SourceName, ...] = ("openalex", "semantic_scholar", "arxiv")
    """Those on the network that are asked, in the order in which their records are preferred."""
    mailto: str = ""
    s2_key_env: str = ""
    s2_key_file: str = ""
    openalex_key_env: str = ""
    openalex_key_file: str = ""
    cache_days: Annotated[float, Field(ge=0)] = 30
    cache_bytes: Annotated[int, Field(ge=0)] = 100 * 2**20
    urls: dict[SourceName, str] = Field(default={})
    """Where a source is asked instead of at its own address: a mirror."""


class SourceFailed(LabdError):
    """A source gave no answer.

    Attributes:
        retryable: whether the same request may work in a moment.
        retry_after_s: how long the source wants to be left alone, where it said so.
        is_down: whether other requests would fare no better, so that it is left alone for a while.

    """

    code = "source"

    def __init__(
        self,
        what: str,
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
        is_down: bool = True,
    ) -> None:
        super().__init__(what)
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.is_down = is_down


class Source(Protocol):
    """Somebody who knows papers."""

    @property
    def name(self) -> SourceName:
        """Who it is."""

    def search(self, query: str, limit: int, deadline_s: float) -> list[Paper]:
        """Give at most `limit` papers, the nearest first; none is an answer. `deadline_s` is of the monotonic clock.

        Raises:
            SourceFailed: there is no answer.

        """


class Found(Record):
    """What a search came to. Papers of several sources that are one paper are one here."""

    papers: tuple[Paper, ...] = ()
    """The nearest first, at most as many as were asked for, with keys of their own."""
    queries: tuple[str, ...] = ()
    """As they were asked: cleaned, without empty and equal ones."""
    answered: tuple[SourceName, ...] = ()
    """Who answered at least one query; empty: nobody was asked with success."""
    failed: dict[SourceName, str] = Field(default={})
    """Who left at least one query without an answer, or a file unread, and why."""
    records: dict[SourceName, int] = Field(default={})
    """How many different records each of those who answered gave."""
