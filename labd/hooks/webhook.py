"""Sending a message to a server: one POST, tried again within bounds, to nowhere else than where the settings say."""

import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import tenacity

from labd.apikey import read_api_key
from labd.errors import ConfigError
from labd.hooks.pace import Pace
from labd.llm.link import Link, NotHttp
from labd.settings import NotifySettings
from labd.text import printable

_CONNECT_S = 10.0
_DROP_IN = "/opt/labd/share/notify.conf"
_MAX_RETRY_AFTER_S = 60.0
_MAX_SAID_BYTES = 300
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Failed(Exception):
    """One request came to nothing; `again`: another may do better, `after_s`: as the server asked."""

    def __init__(self, what: str, *, again: bool = False, after_s: float = 0.0) -> None:
        super().__init__(what)
        self.again, self.after_s = again, after_s


def post(
    rule: NotifySettings, root: Path, body: bytes, *, pace: Pace, closing: threading.Event
) -> str:
    """Send a body; give why it could not be, or an empty text.

    Args:
        rule: says where, and with which key.
        root: the lab's home.
        body: JSON.
        pace: how often it is tried.
        closing: when it is set, nothing is tried again.

    """
    try:
        key = read_api_key(
            rule.key_env or "",
            str(root / rule.key_file) if rule.key_file else "",
            rule.key_credential or "",
            where=where_of(rule),
        )
        url, headers = _addressed(rule, key)
    except ConfigError as error:
        if rule.key_credential:
            how = f"systemd gives it to labd.service, as {_DROP_IN} says, and to nobody else"
            return f"{error.where}: {error.what}; {how}"
        return str(error)

    def wait_s(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.after_s if isinstance(error, _Failed) else 0.0
        return max(asked_s, growing(state))

    growing = tenacity.wait_exponential(pace.first_s, max=30.0) + tenacity.wait_random(
        0, pace.first_s
    )
    stop = tenacity.stop_any(
        tenacity.stop_after_attempt(pace.tries),
        tenacity.stop_after_delay(pace.within_s),
        tenacity.stop_when_event_set(closing),
    )
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, _Failed) and e.again),
        stop=stop,
        wait=wait_s,
        sleep=tenacity.sleep_using_event(closing),
        reraise=True,
    )
    try:
        retrying(_request, url, headers, body, rule.timeout)
    except _Failed as error:
        tried = retrying.statistics.get("attempt_number", 1)
        times = f", tried {tried} times" if tried > 1 else ""
        return printable(_without(key, str(error)) + times, 500)
    return ""


def where_of(rule: NotifySettings) -> str:
    """Name a webhook by its server: its path may hold what nobody else should know."""
    parts = urlsplit(rule.webhook or "")
    return printable(f"{parts.scheme}://{parts.netloc}", 300)


def _addressed(rule: NotifySettings, key: str) -> tuple[httpx.URL, dict[str, str]]:
    placed = "{key}" in "".join((rule.webhook or "", *rule.headers.values()))
    headers = {
        "content-type": "application/json",
        "user-agent": "labd",
        "connection": "close",
        **({"authorization": f"Bearer {key}"} if key and not placed else {}),
        **{name.lower(): value.replace("{key}", key) for name, value in rule.headers.items()},
    }
    try:
        url = httpx.URL((rule.webhook or "").replace("{key}", key))
        # Only here its international form is looked at, of which httpx's own errors are not.
        httpx.Request("POST", url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigError(
            "the webhook is no URL, or not with that key in it", where=where_of(rule)
        ) from error
    return url, headers


def _request(url: httpx.URL, headers: Mapping[str, str], body: bytes, timeout_s: float) -> None:
    """Send one request, and wait no longer than `timeout_s` for the headers of the reply.

    httpx's own client has a time-out for each read only, so a server that sends a byte now and then could hold it
    for ever; `Link` has deadlines. It follows no redirect, and knows no proxy.
    """
    link = Link(url, min(_CONNECT_S, timeout_s))
    link.begin("an answer", timeout_s)
    try:
        reply = link.handle_request(httpx.Request("POST", url, headers=headers, content=body))
        _judge(reply, link)
    except TimeoutError as error:
        what = f"{link.waiting_for} did not come within {link.limit_s:g} s"
        raise _Failed(what, again=True) from error
    except ssl.SSLCertVerificationError as error:
        raise _Failed(f"its certificate is not good: {error.verify_message}") from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise _Failed(f"it can't be reached: {reason}", again=True) from error
    except NotHttp as error:
        raise _Failed(f"what answers there speaks no HTTP: {error}") from error
    finally:
        link.close()


def _judge(reply: httpx.Response, link: Link) -> None:
    status = reply.status_code
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise _Failed(
            f"it redirects (status {status}), and labd does not follow; name where it really is"
        )
    asked = reply.headers.get("retry-after", "")
    after_s = min(float(asked), _MAX_RETRY_AFTER_S) if asked.isascii() and asked.isdigit() else 0.0
    raise _Failed(
        f"it answers with status {status}{_said(link)}", again=status in _AGAIN, after_s=after_s
    )


def _said(link: Link) -> str:
    try:
        said = next(link.body(), b"")[:_MAX_SAID_BYTES].decode(errors="replace").strip()
    except (OSError, NotHttp):
        return ""
    return f": {said}" if said else ""


def _without(key: str, text: str) -> str:
    return text.replace(key, "[key]") if key else text
