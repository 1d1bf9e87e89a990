"""Telling others what happened: real commands, a real server on the loopback, storms, hangs and kills."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO

import psutil
import pytest
import structlog

from labd.errors import ConfigError
from labd.hooks import Hooks, problems_of, try_now
from labd.hooks.notice import Gathered, encoded, gathered_from_json, message_of, notice_of
from labd.hooks.pace import Pace
from labd.settings import Home, NotifySettings
from tests.factories import write_settings
from tests.processes import wait_until
from tests.stepped import Lab
from tests.test_cli import labd
from tests.test_moves import text

QUICK = Pace(tries=4, within_s=20.0, first_s=0.01)
AT = "2026-11-27T00:00:00.000Z"


def rule(**over: Any) -> NotifySettings:
    """An entry of `notify` that is told of everything, at once."""
    return NotifySettings.model_validate(
        {"on": ["done", "failed", "stuck", "report"], "every": 0.001, "timeout": 20, **over}
    )


def script(root: Path, body: str, name: str = "tell") -> list[str]:
    """Write a shell script in which $OUT is a directory; give the words that start it."""
    path = root / name
    path.write_text(f"#!/bin/sh\nOUT='{root}'\n{body}\n")
    path.chmod(0o755)
    return [str(path)]


def told(root: Path) -> list[dict[str, Any]]:
    """Give the messages that a script has put into the file `told`, one a line."""
    path = root / "told"
    # A long one comes in pieces; the last line is whole when it has its end.
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def has_ended(pid: int) -> bool:
    """Say whether a process has ended, be it that nobody has asked for its end yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Log:
    """The log that hooks write to, as lines."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.logger = structlog.wrap_logger(
            structlog.WriteLogger(file), processors=[structlog.processors.JSONRenderer()]
        )

    def said(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with (tmp_path / "log.jsonl").open("a") as file:
        yield Log(Path(file.name), file)


@pytest.fixture
def hooks(tmp_path: Path, log: Log) -> Iterator[Callable[..., Hooks]]:
    made: list[Hooks] = []

    def make(*rules: NotifySettings) -> Hooks:
        made.append(Hooks(rules, tmp_path, tmp_path, log.logger, QUICK))
        return made[-1]

    yield make
    for one in made:
        one.close(0.1)


class Server:
    """A server on the loopback that answers with one status after the other, the last one for ever."""

    def __init__(self, statuses: list[int], headers: dict[str, str], *, drip: bool) -> None:
        outer = self
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.closing = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                heard = {key.lower(): value for key, value in self.headers.items()}
                outer.requests.append((self.path, heard, json.loads(body)))
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " if drip else b"")
                while drip and not outer.closing.wait(0.02):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(b"because of abcdefgh\x1b[31m")

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that hung up is what some of the tests are about."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)


@contextmanager
def server(
    *statuses: int, headers: dict[str, str] | None = None, drip: bool = False
) -> Iterator[Server]:
    one = Server([*statuses] or [200], headers or {}, drip=drip)
    one.thread.start()
    yield one
    one.closing.set()
    one.http.shutdown()
    one.http.server_close()
    one.thread.join(5)


# --- a command


def test_a_command_gets_the_facts_and_nothing_of_the_daemons_environment(
    tmp_path: Path, hooks: Callable[..., Hooks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "mine")
    argv = script(
        tmp_path, 'cat >>"$OUT/told"; env >"$OUT/env"; pwd >>"$OUT/env"; echo "$1" >$OUT/arg'
    )
    hooks(rule(command=[*argv, "$(touch /tmp/x); `id` $HOME"])).send(
        "failed",
        {"task": "idea", "reason": "no\x1b[31m luck\n", "campaign": "nightly", "gpu_s": 1.5},
    )
    wait_until((tmp_path / "arg").exists, 20, "the command")
    (message,) = wait_until(lambda: told(tmp_path), 20, "a message")
    assert (message["event"], message["count"], message["left_out"]) == ("failed", 1, 0)
    assert message["text"] == "labd: failed: idea: no\\x1b[31m luck\\n"
    (event,) = message["events"]
    assert (event["task"], event["reason"], event["gpu_s"]) == ("idea", "no\\x1b[31m luck\\n", 1.5)
    environment = (tmp_path / "env").read_text().splitlines()
    assert {"LABD_EVENT=failed", "LABD_TASK=idea", "LABD_CAMPAIGN=nightly", "/"} <= {*environment}
    assert not [line for line in environment if "SECRET" in line]
    wait_until((tmp_path / "arg").read_text, 20, "its argument")
    assert (tmp_path / "arg").read_text() == "$(touch /tmp/x); `id` $HOME\n"


@pytest.mark.parametrize(
    ("body", "problem", "said"),
    [
        ("echo oh no; exit 3", "it ended with 3", "oh no"),
        ("kill -9 $$", "it was ended by signal 9", ""),
        ("exec yes a-flood", "it took longer than 0.4 s", "a-flood\\na-flood"),
        ("sleep 60 & echo $! >$OUT/child; wait", "it took longer than 0.4 s", ""),
        ("sleep 60 & echo $! >$OUT/child; echo bye", "", "bye"),
        ("exec 0<&-; echo deaf", "", "deaf"),
    ],
)
def test_what_a_command_does_wrong_is_told_and_nothing_of_it_is_left(
    tmp_path: Path, body: str, problem: str, said: str
) -> None:
    (tried,) = try_now([rule(command=script(tmp_path, body), timeout=0.4)], tmp_path, "failed")
    assert problem in tried.problem
    assert bool(problem) is bool(tried.problem)
    assert said in tried.said
    assert len(tried.said) < 10_000
    if (tmp_path / "child").exists():
        child = int((tmp_path / "child").read_text())
        wait_until(lambda: has_ended(child), 20, "the end of its child")


@pytest.mark.parametrize(
    "name", ["/nowhere/tell", "no-such-program-here", "/etc/passwd", "./tell"]
)
def test_a_program_that_can_t_be_run_is_told_before_and_when_it_is_tried(
    tmp_path: Path, name: str
) -> None:
    one = rule(command=[name])
    assert len([*problems_of(one, tmp_path)]) == 1
    assert "can't be started" in try_now([one], tmp_path, "done")[0].problem
    assert not [*problems_of(rule(command=["sh", "-c", "true"]), tmp_path)]


# --- a storm


def test_ten_thousand_ends_are_two_processes_and_none_is_uncounted(
    tmp_path: Path, hooks: Callable[..., Hooks], log: Log
) -> None:
    os.mkfifo(tmp_path / "gate")
    argv = script(tmp_path, 'cat >>"$OUT/told"; read line <"$OUT/gate"')
    all_of_them = hooks(rule(command=argv))
    all_of_them.send("done", {"task": "first"})
    wait_until(lambda: told(tmp_path), 20, "the first")
    for number in range(10_000):
        all_of_them.send(
            "failed" if number == 9_000 else "done",
            {"task": f"t{number}", "summary": ["x" * 5_000] * 50},
        )
    (tmp_path / "gate").write_text("on\n")
    wait_until(lambda: len(told(tmp_path)) == 2, 20, "the second")
    (tmp_path / "gate").write_text("on\n")
    wait_until(lambda: len(log.said("hook.sent")) == 2, 20, "its end")
    first, second = told(tmp_path)
    assert (first["count"], second["count"]) == (1, 10_000)
    assert second["counts"] == {"failed": 1, "done": 9_999}
    assert (second["event"], second["events"][0]["task"]) == ("failed", "t9000")
    assert second["left_out"] == 10_000 - len(second["events"])
    assert len(json.dumps(second)) < 200_000
    assert [line["count"] for line in log.said("hook.sent")] == [1, 10_000]


def test_what_happens_soon_after_is_told_together_later_or_at_the_end(
    tmp_path: Path, hooks: Callable[..., Hooks], log: Log
) -> None:
    slow = hooks(rule(command=script(tmp_path, 'cat >>"$OUT/told"'), every=3600))
    slow.send("done", {"task": "a"})
    wait_until(lambda: log.said("hook.sent"), 20, "the first")
    for task in "bcd":
        slow.send("failed", {"task": task})
        wait_until(partial(is_kept, tmp_path, task), 20, "it is on the disk")
    slow.close()
    assert [message["count"] for message in told(tmp_path)] == [1, 3]
    assert told(tmp_path)[1]["text"] == "labd: 3 failed: b, c, d"
    assert not [*tmp_path.glob("notices-*.json")]


def is_kept(root: Path, task: str) -> bool:
    """Say whether a task's notice is on the disk."""
    return any(f'"{task}"' in path.read_text() for path in root.glob("notices-*.json"))


def test_a_message_is_bounded_and_printable_whatever_the_facts_are() -> None:
    gathered = Gathered()
    odd = {f"k{n}": "\ud800\u202e" * 9_999 for n in range(99)}
    values: list[Any] = [10**5_000, float("nan"), None, True, {"a": 1}, range(10**9), b"\xff"]
    for number in range(40):
        gathered.add("failed", notice_of("failed", {"task": values[number % 7], **odd}, AT))
    message = message_of(gathered, number="n", lab="\x1b[31m", version="1")
    assert len(encoded(message)) <= 128 * 1024
    assert (message["count"], message["left_out"]) == (40, 40 - len(message["events"]))
    assert message["events"]
    json.loads(encoded(message))
    assert encoded(message).decode().isprintable()
    again = gathered_from_json(json.loads(json.dumps(gathered.as_json())))
    assert again.counts == gathered.counts
    assert [one.event for one in again.listed] == [one.event for one in gathered.listed]
    assert gathered_from_json({"counts": [], "events": [3, {"event": "no"}]}).counts == {}


@pytest.mark.parametrize(
    ("over", "facts", "is_told"),
    [
        ({"labels": ["night"]}, {"labels": ["night", "x"]}, True),
        ({"labels": ["night"]}, {"labels": ["day"]}, False),
        ({"labels": ["night"]}, {}, False),
        ({"campaigns": ["nightly"]}, {"campaign": "nightly"}, True),
        ({"campaigns": ["nightly"]}, {"campaign": "other"}, False),
        ({"on": ["done"]}, {}, False),
    ],
)
def test_only_those_are_told_whom_it_concerns(
    tmp_path: Path,
    hooks: Callable[..., Hooks],
    over: dict[str, Any],
    facts: dict[str, Any],
    is_told: bool,  # noqa: FBT001
) -> None:
    every = hooks(rule(command=script(tmp_path, 'cat >>"$OUT/told"'), **over))
    every.send("failed", {"task": "a", **facts})
    every.close()
    assert len(told(tmp_path)) == is_told


# --- a webhook


def test_a_server_gets_the_message_with_the_key_and_a_failing_one_gets_it_again(
    tmp_path: Path, hooks: Callable[..., Hooks], log: Log
) -> None:
    key = tmp_path / "key"
    key.write_text("abcdefgh\n")
    key.chmod(0o600)
    with server(503, 429, 200, headers={"Retry-After": "0"}) as there:
        one = rule(webhook=f"{there.url}/x", key_file="key", headers={"X-Title": "labd"})
        hooks(one).send("report", {"path": "reports/week.html", "campaign": "weekend"})
        wait_until(lambda: log.said("hook.sent"), 20, "sent")
        assert len({body["id"] for _, _, body in there.requests}) == 1
        assert len(there.requests) == 3
        path, headers, body = there.requests[-1]
        assert (path, headers["authorization"], headers["x-title"]) == (
            *("/x", "Bearer abcdefgh"),
            "labd",
        )
        assert body["events"][0]["path"] == "reports/week.html"
        placed = rule(webhook=f"{there.url}/hook/{{key}}", key_file="key")
        assert try_now([placed], tmp_path, "failed")[0].problem == ""
        path, headers, body = there.requests[-1]
        assert path == "/hook/abcdefgh"
        assert "authorization" not in headers
        assert body["events"][0]["test"] == 1
    assert "abcdefgh" not in log.path.read_text()


def test_a_server_that_refuses_is_asked_once_and_what_it_says_is_cleaned(
    tmp_path: Path, hooks: Callable[..., Hooks], log: Log
) -> None:
    key = tmp_path / "key"
    key.write_text("abcdefgh")
    key.chmod(0o600)
    with server(404) as there:
        hooks(rule(webhook=f"{there.url}/{{key}}", key_file="key")).send("done", {"task": "a"})
        (line,) = wait_until(lambda: log.said("hook.failed"), 20, "failed")
        assert line["reason"] == "it answers with status 404: because of [key]\\x1b[31m"
        assert line["hook"] == f"webhook {there.url}"
        assert len(there.requests) == 1


@pytest.mark.parametrize("host", ["xn--", "xn--zzzzzz"])
def test_a_server_whose_name_is_none_is_a_problem_that_is_told(
    tmp_path: Path, hooks: Callable[..., Hooks], log: Log, host: str
) -> None:
    one = rule(webhook=f"http://{host}/x")
    (tried,) = try_now([one], tmp_path, "done")
    assert tried.problem.startswith(f"http://{host}: the webhook is no URL")
    hooks(one).send("failed", {"task": "a"})
    wait_until(lambda: log.said("hook.failed"), 20, "that it is told")


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with (
        server(200) as elsewhere,
        server(307, headers={"Location": f"{elsewhere.url}/x"}) as there,
    ):
        (tried,) = try_now([rule(webhook=there.url)], tmp_path, "done")
        assert "redirects" in tried.problem
        assert (len(there.requests), elsewhere.requests) == (1, [])


def test_a_server_that_never_comes_to_an_end_is_given_up(tmp_path: Path) -> None:
    with server(drip=True) as there:
        one = rule(webhook=there.url, timeout=0.3)
        (tried,) = try_now([one], tmp_path, "done", pace=Pace(2, 20.0, 0.01))
        assert tried.problem == "an answer did not come within 0.3 s, tried 2 times"
    (tried,) = try_now([rule(webhook="http://127.0.0.1:1")], tmp_path, "done")
    assert "can't be reached" in tried.problem


def test_a_key_that_others_may_read_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abcdefgh")
    (tmp_path / "key").chmod(0o644)
    with server() as there:
        one = rule(webhook=there.url, key_file="key")
        assert "chmod 600" in try_now([one], tmp_path, "done")[0].problem
        assert there.requests == []
        assert [fix for _, fix in problems_of(one, tmp_path)] == [f"chmod 600 {tmp_path}/key"]


# --- what is left when labd ends


def test_what_could_not_be_told_at_the_end_is_told_by_the_next_daemon(
    tmp_path: Path, hooks: Callable[..., Hooks], log: Log
) -> None:
    with server(503, headers={"Retry-After": "30"}) as there:
        first = hooks(rule(webhook=there.url))
        first.send("failed", {"task": "a"})
        wait_until(lambda: there.requests, 20, "a try")
        first.send("failed", {"task": "b"})
        first.close()
        # Told to end, it tried the first once more, and kept both.
        (number,) = {body["id"] for _, _, body in there.requests}
    assert not log.said("hook.failed")
    os.mkfifo(tmp_path / "gate")
    with server() as there:
        (kept,) = tmp_path.glob("notices-*.json")
        value = json.loads(kept.read_text())
        assert value["sending"]["id"] == number
        # The same setting is the same server, which is at another port here.
        second = hooks(rule(webhook=there.url))
        second.start()
        assert [line["file"] for line in log.said("hook.forgotten")] == [kept.name]
        name = second._tellers[0].kept_at
        name.write_text(json.dumps(value))
        second.start()
        wait_until(lambda: len(there.requests) == 2, 20, "both")
        assert there.requests[0][2]["id"] == number
        assert [b["events"][0]["task"] for _, _, b in there.requests] == ["a", "b"]
        wait_until(lambda: not name.exists(), 20, "nothing is left")


KILLED = """
import sys, structlog
from pathlib import Path
from labd.hooks import Hooks
from labd.settings import NotifySettings
root = Path(sys.argv[1])
rule = NotifySettings(on=["failed"], command=[sys.argv[2]], every=0.001)
Hooks([rule], root, root, structlog.get_logger()).send("failed", {"task": "a"})
sys.stdin.read()
"""


def test_a_killed_daemons_notice_is_told_by_the_next_one_under_the_same_number(
    tmp_path: Path, hooks: Callable[..., Hooks]
) -> None:
    os.mkfifo(tmp_path / "gate")
    argv = script(tmp_path, 'cat >>"$OUT/told"; read line <"$OUT/gate"')
    command = [sys.executable, "-c", KILLED, str(tmp_path), *argv]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    wait_until(lambda: told(tmp_path), 60, "the command")
    process.kill()
    process.communicate(timeout=20)
    (tmp_path / "gate").write_text("on\n")
    second = hooks(NotifySettings(on=("failed",), command=tuple(argv), every=0.001))
    second.start()
    wait_until(lambda: len(told(tmp_path)) == 2, 20, "the command again")
    (tmp_path / "gate").write_text("on\n")
    second.close()
    one, again = told(tmp_path)
    assert one == again
    assert not [*tmp_path.glob("notices-*.json")]


# --- what people write


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"on": ["failed"]}, "either a command or a webhook"),
        ({"on": ["failed"], "command": ["a"], "webhook": "http://h"}, "either a command"),
        ({"on": [], "command": ["a"]}, "on"),
        ({"on": ["failed", "failed"], "command": ["a"]}, "once"),
        ({"on": ["lost"], "command": ["a"]}, "done"),
        ({"on": ["done"], "command": "echo hi"}, "command"),
        ({"on": ["done"], "command": []}, "command"),
        ({"on": ["done"], "command": ["a"], "key_env": "K"}, "with a webhook only"),
        ({"on": ["done"], "webhook": "http://h/{key}"}, "{key} stands for"),
        ({"on": ["done"], "webhook": "http://h", "key_env": "A", "key_file": "b"}, "one of"),
        ({"on": ["done"], "webhook": "ftp://h"}, "http://"),
        ({"on": ["done"], "webhook": "http://me:pw@h/"}, "without a user"),
        ({"on": ["done"], "webhook": "http://{key}/"}, "without a user"),
        ({"on": ["done"], "webhook": "http://h:99999/"}, "http://"),
        ({"on": ["done"], "webhook": "http://h/a b"}, "http://"),
        ({"on": ["done"], "webhook": "http://a..b/"}, "http://"),
        ({"on": ["done"], "webhook": f"http://{'a' * 70}.de/"}, "http://"),
        ({"on": ["done"], "webhook": "http://h", "headers": {"a": "b\r\nc: d"}}, "headers"),
        ({"on": ["done"], "webhook": "http://h", "headers": {"a:b": "c"}}, "headers"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_line(
    tmp_path: Path, entry: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        write_settings(tmp_path, notify=[entry])
    assert wanted in str(caught.value)
    assert "labd.yaml:" in str(caught.value)


def test_it_is_tried_by_hand(tmp_path: Path) -> None:
    argv = script(tmp_path, 'cat >>"$OUT/told"; echo heard; exit "$1"')
    entries = [
        {"on": ["failed"], "command": [*argv, "0"]},
        {"on": ["failed"], "command": [*argv, "3"]},
        {"on": ["done"], "command": [*argv, "4"]},
    ]
    write_settings(tmp_path, notify=entries)
    done = labd(tmp_path, "notify")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        *(f"command {argv[0]}: told", "  it said: heard"),
        *(f"command {argv[0]}: FAILED: it ended with 3", "  it said: heard"),
        f"command {argv[0]}: is not told of failed",
    ]
    assert [message["events"][0]["test"] for message in told(tmp_path)] == [1, 1]
    assert labd(tmp_path, "notify", "lost").returncode == 2


# --- the daemon


@pytest.mark.sandbox
def test_the_daemon_tells_of_what_was_done_failed_and_refused(tmp_path: Path) -> None:
    argv = script(tmp_path, 'cat >>"$OUT/told"')
    with Lab(tmp_path) as lab:
        settings = lab.home.settings.model_copy(update={"notify": (rule(command=argv),)})
        lab.home = Home(tmp_path, settings)
        lab.start()
        labels = '["campaign:nightly", night]'
        put = {
            "good": text(labels=labels),
            "bad": text(run="echo oh no; exit 4"),
            "wrong": "kind: nonsense\n",
        }
        for name, content in put.items():
            (lab.home.spool / "pending" / f"{name}.yaml").write_text(content)
        lab.settle()
        for attempt in lab.engine.live():
            lab.engine.finish(attempt.job.task_id)
        lab.settle()
        assert lab.daemon is not None
        lab.daemon.hooks.close()
    events = {e["task"]: e for message in told(tmp_path) for e in message["events"]}
    assert {task: e["event"] for task, e in events.items()} == {
        "good": "done",
        "bad": "failed",
        "wrong": "failed",
    }
    good, bad = events["good"], events["bad"]
    assert (good["campaign"], good["labels"]) == ("nightly", ["campaign:nightly", "night"])
    assert good["results"] == str(tmp_path / "results" / "good")
    assert good["page"] == "http://127.0.0.1:7860/?task=good"
    assert good["what"] == "command"
    assert "4" in bad["reason"]
    assert "nonsense" in events["wrong"]["reason"]
    assert "oh no" not in json.dumps(events["good"])


@pytest.mark.sandbox
def test_an_end_that_a_killed_daemon_had_recorded_is_told_once_by_the_next(
    tmp_path: Path,
) -> None:
    argv = script(tmp_path, 'cat >>"$OUT/told"')
    with Lab(tmp_path, survives=False) as lab:
        settings = lab.home.settings.model_copy(update={"notify": (rule(command=argv),)})
        lab.home = Home(tmp_path, settings)
        lab.start()
        (lab.home.spool / "pending" / "x.yaml").write_text(text(labels="[night]"))
        lab.settle()
        lab.engine.work("x")
        lab.crash()
        lab.start()
        lab.settle()
        assert lab.daemon is not None
        lab.daemon.hooks.close()
    (message,) = told(tmp_path)
    assert [(e["task"], e["event"], e["labels"]) for e in message["events"]] == [
        ("x", "done", ["night"])
    ]
