"""Signing in: a page for it, and sessions in this process's memory, each known by a random cookie."""

import secrets
import time
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie

from labd.page.html import Html, tag
from labd.page.passwords import fits
from labd.page.words import Words

COOKIE = "labd_session"
_LASTS_S = 12 * 3600.0
_MOST_SESSIONS = 10_000
_TRIES = 10
_ALL_TRIES = 100
_WITHIN_S = 60.0

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 12vh auto; max-width: 22rem; padding: 0 1rem; }
label { display: block; margin: .8rem 0 .2rem; }
input, button { font: inherit; width: 100%; box-sizing: border-box; padding: .45rem .6rem; }
button { margin-top: 1.2rem; background: #1f5bb5; color: #fff; border: 0; border-radius: .4rem; }
.bad { color: #b3261e; } @media (prefers-color-scheme: dark) { .bad { color: #ff9b92; } }
"""


class SignIn:
    """Who is signed in. `users`: name to hashed password."""

    def __init__(
        self, users: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._users, self._clock = users, clock
        self._sessions: dict[str, tuple[str, float]] = {}
        self._failures: list[tuple[float, str]] = []

    def user(self, headers: Mapping[str, str]) -> str | None:
        """Give who a request comes from, by its cookie; ``None`` for nobody known."""
        known = self._sessions.get(_cookie(headers))
        if known is None or known[1] < self._clock() or known[0] not in self._users:
            return None
        return known[0]

    def may_try(self, name: str) -> bool:
        """Say whether another try is let through now: ten failures a minute for each name, a hundred in all."""
        since_s = self._clock() - _WITHIN_S
        self._failures = [one for one in self._failures if one[0] > since_s][-_ALL_TRIES:]
        mine = sum(tried == name for _, tried in self._failures)
        return mine < _TRIES and len(self._failures) < _ALL_TRIES

    def enter(self, name: str, password: str) -> str | None:
        """Give the cookie's value for somebody whose password fits, else ``None``."""
        if not fits(password, self._users.get(name)):
            self._failures.append((self._clock(), name))
            return None
        now_s = self._clock()
        self._sessions = {k: v for k, v in self._sessions.items() if v[1] > now_s}
        if len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key][1])]
        token = secrets.token_urlsafe(32)
        self._sessions[token] = (name, now_s + _LASTS_S)
        return token

    def leave(self, headers: Mapping[str, str]) -> None:
        """End the session of a request."""
        self._sessions.pop(_cookie(headers), None)


def cookie_header(token: str, *, secure: bool) -> str:
    """Give the ``Set-Cookie`` of a session; an empty token ends it."""
    age = int(_LASTS_S) if token else 0
    ending = "; Secure" if secure else ""
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{ending}"


def _cookie(headers: Mapping[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def sign_in_page(words: Words, problem: str = "") -> Html:
    """Give the page on which people sign in."""
    form = tag(
        "form",
        tag("label", words("user"), for_="user"),
        tag(
            "input", id="user", name="user", autocomplete="username", required=True, autofocus=True
        ),
        tag("label", words("password"), for_="password"),
        tag(
            "input",
            id="password",
            name="password",
            type="password",
            autocomplete="current-password",
            required=True,
        ),
        tag("button", words("sign_in"), type="submit"),
        method="post",
        action="/sign-in",
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "labd"),
        Html(f"<style>{_STYLE}</style>"),
    )
    told = tag("p", problem, class_="bad", role="alert") if problem else None
    body = tag("body", tag("h1", "labd"), told, form)
    return Html("<!DOCTYPE html>" + tag("html", head, body, lang=words.language))
