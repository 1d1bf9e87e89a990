"""The page's process: what it serves beside Gradio's part, on which address, and when it ends."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from labd.errors import ConfigError, NotFound
from labd.lab import Lab
from labd.page.guard import Guard, allowed_hosts, is_loopback
from labd.page.signin import SignIn, cookie_header, sign_in_page
from labd.page.snapshot import Snapshots
from labd.page.words import LANGUAGES, Words, chosen
from labd.published import Published, opened, opened_report
from labd.settings import PageSettings

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_NICE = 5
_CHUNK = 256 * 1024
_MAX_FORM_BYTES = 8 * 1024
_MAX_CONNECTIONS = 512
_STOP_GRACE_S = 2
_LOOK_EVERY_S = 1.0
_FILE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"
)
_REPORT_POLICY = (
    # Nothing in it runs or loads. It counts as of this origin, so that its links to papers come with the reader's cookie.
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "sandbox allow-same-origin allow-downloads; frame-ancestors 'none'"
)
_SWITCHED_OFF = {
    # They have to be set before gradio is imported: it asks its maker's server for news otherwise.
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def serve(
    lab: Lab, settings: PageSettings, *, say: Callable[[str], None], served: bool = False
) -> None:
    """Serve the page until told to stop; nothing is loaded from, or sent to, any other host.

    `served`: a daemon started it. When that one is gone and another has taken its place, it makes room.

    Raises:
        ConfigError: it can't listen there, or must not without anybody having to sign in.

    """
    starter = os.getppid()
    check_reach(settings)
    listener = _listen(settings.host, settings.port)
    # People look now and then; work must not wait for it.
    with suppress(OSError):
        os.nice(_NICE)
    os.environ.update(_SWITCHED_OFF)
    import uvicorn  # noqa: PLC0415 - takes seconds together with gradio

    snapshots = Snapshots(lab)
    snapshots.start()
    config = uvicorn.Config(
        application(lab, settings, snapshots),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_GRACE_S,
        ws="none",
    )
    server = uvicorn.Server(config)
    if served:
        threading.Thread(target=_make_room, args=(lab, server, starter), daemon=True).start()
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    say(f"labd: the page is at http://{shown}:{settings.port}")
    try:
        server.run(sockets=[listener])
    finally:
        snapshots.stop()


def check_reach(settings: PageSettings) -> None:
    """Pass if the page may be served where the settings say.

    Raises:
        ConfigError: others could reach it, and nobody would have to sign in.

    """
    if not is_loopback(settings.host) and not settings.users:
        raise ConfigError(
            f"the page would be open to everybody who reaches {settings.host}",
            where="page",
            fix="Name who may sign in: `users: {me: ...}` below `page:` in config/labd.yaml, with what"
            " `labd page --hash-password` prints; or leave host at 127.0.0.1 and use an SSH tunnel",
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(found[4][:2], family=found[0], backlog=256)
    except OSError as error:
        raise ConfigError(
            f"the page can't listen on {host}:{port}: {error.strerror or error}",
            fix="Choose another `port` below `page:` in config/labd.yaml, or `labd page --port`",
        ) from error
    return listener


def _make_room(lab: Lab, server: Any, starter: int) -> None:
    """End the page when the daemon that started it is gone and another one holds the spool."""
    pause = threading.Event()
    while True:
        pause.wait(_LOOK_EVERY_S)
        if os.getppid() == starter:
            continue
        with suppress(OSError):
            if lab.status().pid not in {None, starter}:
                server.should_exit = True
                return


def application(lab: Lab, settings: PageSettings, snapshots: Snapshots) -> Guard:
    """Give the whole application: Gradio's page in each language, files, signing in, behind the guard."""
    import gradio  # noqa: PLC0415 - as above
    from fastapi import FastAPI  # noqa: PLC0415

    from labd.page.app import Page  # noqa: PLC0415

    sign_in = SignIn(settings.users) if settings.users else None
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    _add_routes(app, lab, settings, sign_in)
    for language in LANGUAGES:
        page = Page(
            lab,
            snapshots,
            Words(language),
            read_only=settings.read_only,
            signs_in=sign_in is not None,
        )
        app = gradio.mount_gradio_app(
            app,
            page.blocks,
            path=f"/{language}",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
            show_error=False,
            max_file_size=1,
            theme=_theme(gradio),
            css=page.css(),
            head=page.head(),
            app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
        )
    hosts = allowed_hosts(settings.host, settings.port, settings.names)
    return Guard(app, hosts, sign_in.user if sign_in else None)


def _theme(gradio: Any) -> Any:
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans KR", "sans-serif"]
    return gradio.themes.Default(
        primary_hue="blue",
        font=fonts,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )


def _add_routes(app: Any, lab: Lab, settings: PageSettings, sign_in: SignIn | None) -> None:
    from starlette.responses import (  # noqa: PLC0415 - as above
        HTMLResponse,
        PlainTextResponse,
        RedirectResponse,
    )

    def words(request: "Request") -> Words:
        return Words(chosen(settings.language, request.headers.get("accept-language", "")))

    def front(request: "Request") -> "Response":
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/{words(request).language}/{query}", status_code=307)

    def health(_request: "Request") -> "Response":
        return PlainTextResponse("ok\n")

    def ask_name(request: "Request") -> "Response":
        return HTMLResponse(sign_in_page(words(request)))

    async def enter(request: "Request") -> "Response":
        return await _enter(request, sign_in, words(request))

    def leave(request: "Request") -> "Response":
        if sign_in is not None:
            sign_in.leave(request.headers)
        secure = request.url.scheme == "https"
        headers = {"set-cookie": cookie_header("", secure=secure)}
        return RedirectResponse("/sign-in", status_code=303, headers=headers)

    app.add_route("/", front)
    app.add_route("/healthz", health)
    _add_files(app, lab)
    if sign_in is not None:
        app.add_route("/sign-in", ask_name, methods=["GET"])
        app.add_route("/sign-in", enter, methods=["POST"])
        app.add_route("/sign-out", leave, methods=["POST"])


def _add_files(app: Any, lab: Lab) -> None:
    def file(request: "Request") -> "Response":
        task, name = request.path_params["task"], request.path_params["name"]
        return _file(lambda: opened(lab.home.results, task, name), request)

    def report(request: "Request") -> "Response":
        name = request.path_params["name"]
        return _file(lambda: opened_report(lab.home.reports, name), request, _REPORT_POLICY)

    app.add_route("/t/{task}/{name:path}", file)
    # Where reports lie in the lab's home, and where the links in them lead from there.
    app.add_route("/reports/{name}", report)
    app.add_route("/results/{task}/{name:path}", file)


async def _enter(request: "Request", sign_in: SignIn | None, words: Words) -> "Response":
    from starlette.concurrency import run_in_threadpool  # noqa: PLC0415 - as above
    from starlette.responses import HTMLResponse, RedirectResponse  # noqa: PLC0415

    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MAX_FORM_BYTES:
            return HTMLResponse(sign_in_page(words, words("wrong")), status_code=413)
    said = parse_qs(raw.decode(errors="replace"), max_num_fields=10)
    name, password = said.get("user", [""])[0], said.get("password", [""])[0]
    if sign_in is None or not sign_in.may_try(name):
        return HTMLResponse(sign_in_page(words, words("too_many")), status_code=429)
    token = await run_in_threadpool(sign_in.enter, name, password)
    if token is None:
        return HTMLResponse(sign_in_page(words, words("wrong")), status_code=401)
    secure = request.url.scheme == "https"
    headers = {"set-cookie": cookie_header(token, secure=secure)}
    return RedirectResponse("/", status_code=303, headers=headers)


def _file(
    opening: Callable[[], AbstractContextManager[Published]],
    request: "Request",
    policy: str = _FILE_POLICY,
) -> "Response":
    """Give a published file. Pictures and the lab's own reports are shown, all else is for downloading."""
    from starlette.responses import (  # noqa: PLC0415 - as above
        PlainTextResponse,
        Response,
        StreamingResponse,
    )

    try:
        with opening() as file:
            fd, kind, size_bytes = os.dup(file.fd), file.media_type, file.size_bytes
            version = file.version
    except NotFound:
        return PlainTextResponse("labd: there is no such published file\n", status_code=404)
    picture = kind.startswith("image/")
    shown = picture or (policy == _REPORT_POLICY and kind.startswith("text/html"))
    headers = {
        "content-length": str(size_bytes),
        "content-security-policy": policy,
        "content-disposition": "inline" if shown else "attachment",
        "etag": f'"{version}"',
        "cache-control": "private, max-age=86400" if picture and request.url.query else "no-cache",
    }
    if request.headers.get("if-none-match") == headers["etag"]:
        os.close(fd)
        return Response(status_code=304, headers={"etag": headers["etag"]})
    return StreamingResponse(_chunks(fd, size_bytes), media_type=kind, headers=headers)


def _chunks(fd: int, size_bytes: int) -> Iterator[bytes]:
    """Give an open file's first bytes, as many as were said, and close it."""
    try:
        left = size_bytes
        while left > 0 and (chunk := os.read(fd, min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk
    finally:
        os.close(fd)
