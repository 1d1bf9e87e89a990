"""What a failed exchange with a server is called, and what is said of it: what, where, what to do."""

import json
import socket
import ssl

import httpx

from labd.llm.errors import (
    EndpointBusy,
    EndpointDown,
    EndpointFailed,
    EndpointMisconfigured,
    EndpointSilent,
    ModelError,
    RequestRefused,
    Stopped,
)
from labd.llm.link import Aborted, BrokenOff, Link, NotHttp
from labd.text import printable


class Faults:
    """Makes the errors of one endpoint. What servers say is made printable, and our secrets are taken out of it.

    Attributes:
        where: the endpoint as errors name it, without credentials.

    """

    def __init__(self, where: str, secrets: tuple[str, ...]) -> None:
        self.where = where
        self._secrets = secrets

    def failed(self, what: str, raw: bytes = b"") -> EndpointFailed:
        """Make the error for a server that did something it should not have."""
        seen = f": {self.quote(raw.decode(errors='replace'), 120)}" if raw else ""
        return EndpointFailed(
            f"the server {what}{seen}",
            where=self.where,
            fix="See the server's log; if it lasts, check which program listens there",
        )

    def no_api(self, seen: str = "HTML") -> EndpointMisconfigured:
        """Make the error for what is no server of language models."""
        return EndpointMisconfigured(
            f"no LLM API here: it answers with {seen}",
            where=self.where,
            fix="Set the endpoint's url to the server itself, such as http://HOST:11434 for Ollama",
        )

    def quote(self, text: str, limit: int = 300) -> str:
        """Make what a server said fit for an error: printable, short, and without our secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return printable(text, limit)

    def redirected(self, status: int, target: str) -> EndpointMisconfigured:
        """Make the error for a server that sends us elsewhere."""
        try:
            shown = bare(httpx.URL(target))
        except httpx.InvalidURL:
            shown = target
        return EndpointMisconfigured(
            f"the server redirects (status {status}) to {self.quote(shown) or 'nowhere'}",
            where=self.where,
            fix="Redirects are not followed: set the endpoint's url to where it really is",
        )

    def by_status(self, status: int, said: str, *, html: bool) -> ModelError:
        """Make the error that a status means with any server; `said` is the reason that it gave."""
        what = f"status {status}" + (f": {self.quote(said)}" if said else "")
        if status in {401, 403}:
            return EndpointMisconfigured(
                f"the server refuses us, {what}",
                where=self.where,
                fix="Check the endpoint's key (key_env, key_file, headers); a proxy before Ollama must set"
                " the Host header to localhost",
            )
        if status in {429, 503}:
            return EndpointBusy(
                f"the server has too much to do, {what}",
                where=self.where,
                fix="Try later, or give the endpoint fewer slots",
            )
        if status >= 500 and status != 501:
            return EndpointFailed(
                f"the server failed, {what}", where=self.where, fix="See the server's log"
            )
        if html or status in {404, 405, 410, 501}:
            return self.no_api(f"HTML and status {status}" if html else what)
        if status in {408, 409, 423, 425, 499}:
            return self.failed(f"gave up, {what}")
        return RequestRefused(
            f"the server refuses the request, {what}",
            where=self.where,
            fix="Check the options, and the proxy before the server if there is one",
        )

    def name(self, error: Exception, link: Link) -> ModelError:
        """Make of what went wrong on a link the error that says what it means."""
        if link.aborted or isinstance(error, Aborted):
            return Stopped("the reply is not wanted any more", where=self.where)
        if not link.connected:
            return self._not_connected(error, link)
        if isinstance(error, TimeoutError):
            return EndpointSilent(
                f"{link.waiting_for} did not come within {link.limit_s:g} s",
                where=self.where,
                fix="See whether the server hangs or has more to do than its time-outs allow for"
                if "TLS" not in link.waiting_for
                else "See whether the server speaks https at all, else begin its url with http",
            )
        if isinstance(error, ssl.SSLError):
            return EndpointMisconfigured(
                f"TLS failed: {self.quote(str(error), 200)}",
                where=self.where,
                fix="Check that url begins with what the server speaks (http or https), and its certificate",
            )
        if isinstance(error, NotHttp) and link.replied:
            return self.failed(f"broke the rules of HTTP ({self.quote(str(error), 100)})")
        if isinstance(error, NotHttp):
            return self.no_api(f"what is not HTTP ({self.quote(str(error), 100)})")
        closed = isinstance(error, BrokenOff)
        detail = "the server closed it" if closed else self.quote(str(error), 200)
        return EndpointDown(
            f"the connection broke before the reply was whole: {detail}",
            where=self.where,
            fix="See whether the server still runs; its log says why it ended",
        )

    def _not_connected(self, error: Exception, link: Link) -> ModelError:
        if isinstance(error, TimeoutError):
            what = f"no connection within {link.limit_s:g} s"
        elif isinstance(error, ConnectionRefusedError):
            what = "nothing answers there"
        elif isinstance(error, socket.gaierror):
            what = "the machine's name is not known"
        else:
            what = f"no connection: {self.quote(str(error), 200)}"
        return EndpointDown(
            what,
            where=self.where,
            fix="Start the server, or mend the endpoint's url",
        )


def bare(url: httpx.URL) -> str:
    """Give a URL without the credentials in it."""
    return str(url.copy_with(username=None, password=None)) if url.userinfo else str(url)


def reason(raw: bytes) -> str:
    """Give what an error body says in whatever form its server uses; the text itself where it has none.

    Source: Ollama and LM Studio give ``{"error": text}``, OpenAI-compatible servers
    ``{"error": {"message": text}}``, LM Studio both; vLLM also ``{"message"}`` and ``{"detail"}``.
    """
    text = raw.decode(errors="replace").strip()
    return _reason_of(text) or text


def _reason_of(found: object) -> str:
    if isinstance(found, str) and found.startswith("{"):
        # Ollama hands on what its runner said, which is JSON again.
        try:
            return _reason_of(json.loads(found)) or found
        except (ValueError, RecursionError):
            return found
    if isinstance(found, str):
        return found
    if isinstance(found, dict):
        for key in ("error", "message", "detail"):
            inner = _reason_of(found.get(key))
            if inner:
                return inner
    return ""
