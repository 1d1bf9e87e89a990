"""A `Store` in a process of its own, a link to it that can be cut, and an attempt's work for the tests of shipping."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from labd.archive import EVENTS, JOURNAL, LOG, RESULT, Archive
from labd.files import read_json_lines, write_atomic, write_json
from labd.journal import Journal
from labd.shipping import Mirror, MirrorLimits, Store, StoreLimits
from tests.processes import wait_until

KEY = b"a test's own"
QUICK = MirrorLimits(link_timeout_s=0.05, log_every_s=3600, lock_timeout_s=5)
"""A lost link is not tried again, and nothing is sent but when a step ends: the same messages each time."""
PATIENT = MirrorLimits(link_timeout_s=60, log_every_s=3600)
ANSWER_TIMEOUT_S = 30.0


# --- the head


def serve(results: str, port_file: str, templates: str = "", limits: str = "{}") -> None:
    """Answer for a store until told to stop; the address is in `port_file`."""
    roots = [Path(templates)] if templates else []
    store = Store(Path(results), StoreLimits(**json.loads(limits)), template_roots=roots)
    with Listener(("127.0.0.1", 0), authkey=KEY) as listener:
        write_atomic(Path(port_file), json.dumps(listener.address))
        while True:
            # A node may be killed in the middle of saying who it is.
            with contextlib.suppress(EOFError, ConnectionError, AuthenticationError):
                connection = listener.accept()
                threading.Thread(target=_answer, args=(store, connection), daemon=True).start()


def _answer(store: Store, connection: Connection) -> None:
    with contextlib.suppress(EOFError, ConnectionError), connection:
        while True:
            method, data = connection.recv()
            if method == "stop":
                os._exit(0)
            connection.send(store.answer(method, **data))


class Wire:
    """The transport: one connection, made anew when it broke. Counts what it carries."""

    def __init__(self, port_file: Path) -> None:
        self._port_file = port_file
        self._mutex = threading.Lock()
        self._connection: Connection | None = None
        self.methods: list[str] = []
        self.sent_bytes = 0
        self.got_bytes = 0

    def __call__(self, method: str, /, **data: Any) -> dict[str, Any]:
        with self._mutex:
            self.methods.append(method)
            self.sent_bytes += _bytes_in(data)
            try:
                answer = self._exchange(method, data)
            except (OSError, EOFError, ValueError):
                self.close()
                raise
            self.got_bytes += _bytes_in(answer)
            return answer

    def _exchange(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        if self._connection is None:
            try:
                address = tuple(json.loads(self._port_file.read_text()))
                self._connection = Client(address, authkey=KEY)
            except Exception as error:
                raise ConnectionError(str(error)) from error
        self._connection.send((method, data))
        if not self._connection.poll(ANSWER_TIMEOUT_S):
            raise TimeoutError("no answer")
        answer: dict[str, Any] = self._connection.recv()
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _bytes_in(value: object) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_bytes_in(one) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes_in(one) for one in value)
    return 0


class CutWire:
    """A wire of which some messages, counted from 1, get lost: on their way, or their answers on the way back."""

    def __init__(self, wire: Wire, lost: Callable[[int], bool], *, answer: bool) -> None:
        self._wire = wire
        self._lost = lost
        self._answer = answer
        self._mutex = threading.Lock()
        self.count = 0

    def __call__(self, method: str, /, **data: Any) -> dict[str, Any]:
        with self._mutex:
            self.count += 1
            lost = self._lost(self.count)
            # A link that was cut before never carries a message again.
            carried = not lost or (self._answer and not self._lost(self.count - 1))
        answer = self._wire(method, **data) if carried else {}
        if lost:
            raise ConnectionError("the link is cut")
        return answer


class Head:
    """A results directory with a store in a process of its own before it."""

    def __init__(self, root: Path, *, limits: dict[str, float] | None = None) -> None:
        self.results = root / "results"
        self.templates = root / "templates"
        self.port_file = root / "port"
        self.archive = Archive(self.results)
        self.templates.mkdir(parents=True)
        self.archive.prepare()
        small = {"min_free_bytes": 2**20, **(limits or {})}
        self.arguments = (
            str(self.results),
            str(self.port_file),
            str(self.templates),
            json.dumps(small),
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Head":
        self.port_file.unlink(missing_ok=True)
        code = f"import sys; from {__name__} import serve; serve(*sys.argv[1:])"
        self.process = subprocess.Popen([sys.executable, "-c", code, *self.arguments])
        wait_until(self.port_file.exists, what="the store's process")
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    def claim(self, task_id: str) -> dict[str, Any]:
        """Claim an attempt, as the daemon does; give its job."""
        attempt = self.archive.history(task_id).attempt + 1
        self.archive.record(task_id, "claimed", attempt=attempt)
        return job_of(task_id, attempt, self.results)

    def wire(self) -> Wire:
        return Wire(self.port_file)

    def directory(self, task_id: str) -> Path:
        return self.results / task_id


def job_of(task_id: str, attempt: int, results: Path, **over: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "attempt": attempt,
        "task_text": "kind: research\ntemplate: digits\n",
        "file_name": f"{task_id}.yaml",
        "results_dir": str(results / task_id),
        "template_roots": [],
        **over,
    }


# --- the work


def sha256_of(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def work(
    job: dict[str, Any],
    on_step: Callable[[str, bool], None],
    *,
    steps: int = 3,
    big_bytes: int = 1_500_000,
    after_step: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Do an attempt's work in steps that each leave files which the journal names; give the steps that were run."""
    results = Path(job["results_dir"])
    _log(results, event="attempt.started", attempt=job["attempt"])
    ran: list[str] = []
    named: dict[str, str] = {}

    def run(number: int) -> dict[str, str]:
        ran.append(f"step/{number}")
        files = {f"runs/{number}/out.txt": f"{number}\n".encode() * 100}
        if number == 1:
            files["runs/1/model.bin"] = bytes([number]) * big_bytes
            files["runs/1/again.txt"] = files["runs/1/out.txt"]
        for path, raw in files.items():
            (results / path).parent.mkdir(parents=True, exist_ok=True)
            (results / path).write_bytes(raw)
        (results / "latest.txt").write_text(f"step {number}\n" * (number + 1))
        return {path: sha256_of(raw) for path, raw in files.items()}

    with Journal(results / JOURNAL, on_step=on_step) as journal:
        for number in range(steps):
            named |= journal.step(f"step/{number}", {}, partial(run, number))
            _log(results, event="step.finished", number=number)
            after_step(number)
    (results / "paper.txt").write_text("after the last step")
    named["paper.txt"] = sha256_of(b"after the last step")
    write_json(results / RESULT, {"attempt": job["attempt"], "files": named})
    return ran


def _log(results: Path, **facts: Any) -> None:
    with (results / LOG).open("a") as file:
        file.write(json.dumps(facts) + "\n")


def check_home(directory: Path) -> set[str]:
    """See that what the head has is consistent, whatever happened; give the steps that are on record."""
    raw = (directory / JOURNAL).read_bytes() if (directory / JOURNAL).exists() else b""
    lines = list(read_json_lines(directory / JOURNAL))
    assert raw.count(b"\n") == len(lines)
    keys = [line["key"].split("/")[1] for line in lines]
    assert keys == [str(number) for number in range(len(keys))], "lines are lost, or there twice"
    for line in lines:
        _check_named(directory, line["value"])
    if (directory / RESULT).exists():
        _check_named(directory, json.loads((directory / RESULT).read_bytes())["files"])
    events = list(read_json_lines(directory / EVENTS))
    assert all(event["event"] == "claimed" for event in events)
    for path in directory.rglob("*"):
        if path.name == "out.txt" and path.stat().st_size:
            assert path.read_bytes() == f"{path.parent.name}\n".encode() * 100, f"half of {path}"
        assert not path.name.endswith((".tmp", ".part")), f"{path} is no reader's business"
        assert ".copy-" not in path.name, f"{path} is no reader's business"
    return {f"step/{key}" for key in keys}


def _check_named(directory: Path, named: dict[str, str]) -> None:
    for path, sha256 in named.items():
        assert sha256_of((directory / path).read_bytes()) == sha256, f"{path} is named and not so"


def node(port_file: str, scratch: str, job: str, pause_s: str = "0") -> None:
    """Be the node's process: do one attempt, with a pause after each step."""
    wire = Wire(Path(port_file))

    def rest(_: int) -> None:
        time.sleep(float(pause_s))

    with Mirror(wire, json.loads(job), Path(scratch), PATIENT) as mirror:
        ran = work(mirror.job, mirror.on_step, after_step=rest)
    os.write(1, (json.dumps(ran) + "\n").encode())


@contextlib.contextmanager
def running_head(root: Path, **over: Any) -> Iterator[Head]:
    head = Head(root, **over)
    try:
        yield head.start()
    finally:
        head.stop()
