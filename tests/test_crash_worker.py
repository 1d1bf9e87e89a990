"""One attempt at a research task, killed at its system calls, begun again as the daemon would, to its end.

`LABD_TORTURE=1` kills a task once at each of all its calls, and within each write; without it, at some of
them, and a single task many times over: at one call of each kind after the other.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from labd.archive import JOURNAL, RESULT
from labd.command.run import MAX_OLD_LOGS
from labd.engine.types import Job
from labd.settings import SandboxSettings
from labd.worker import run
from tests.boxes import ACCEPTED_GAPS
from tests.crashing import Life, Lives, Torn
from tests.factories import PARABOLA, make_template, parabola_space, task_text
from tests.syscalls import Call

WHOLE = "LABD_TORTURE" in os.environ
EVERY_KIND = 1 if WHOLE else 32
EVERY_KIND_OF_TRIAL = 1 if WHOLE else 16
"""Each attempt's process tries the sandbox in a directory of its own; most of a command's calls are about that."""
TORN: tuple[Torn | None, ...] = ("half", "most", None) if WHOLE else ("half",)
PAPER = ("paper.md", "paper.tex", "paper.html", "paper.pdf", "paper.numbers.json")
LATE = ("labd.research.stats", "labd.research.plots", "optuna.importance", "sklearn.ensemble")
# What differs between the paths of two calls of a kind, and how it is found again.
_VARIES = (
    (r"\.[a-z0-9_]{8}\.tmp", r"\.[a-z0-9_]{8}\.tmp"),
    (r"labd-[a-z]+-[a-z0-9_]{8}", r"labd-[a-z]+-[a-z0-9_]{8}"),
    (r"^[a-z0-9_]{8}$", r"[a-z0-9_]{8}"),
    (r"-[0-9]{3}(?=/|$)", r"-[0-9]{3}"),
    (
        r"(?<=/file_count/)[0-9]+$",
        r"[0-9]+",
    ),  # the trial of that limit ends wherever it is noticed
)
_VARYING = re.compile("|".join(f"({found})" for found, _ in _VARIES))
COMMAND = """
echo again >> attempts.txt
mkdir -p scratch && echo scratch > scratch/s
for number in 0 1 2; do
    echo "line $number"
    python -c "print('$number' * 5000, end='')" > out-$number.txt
done
"""
SAID = b"line 0\nline 1\nline 2\n"
STUCK = re.compile(r"^bwrap --json-status-fd ")
"""What bubblewrap leaves where its caller is killed while it starts: its process 1, which waits for ever
for word from its dead parent, with nothing below it. Had it begun, its shell would be there too.
Source: https://github.com/containers/bubblewrap/issues/633; seen with 0.8.0 in 24 of 235 such kills."""

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(2 * 3600 if WHOLE else 240)]


def attempt(job: str) -> int:
    """Do what a Ray worker does with a job; a failed outcome is exit code 1."""
    outcome = run(json.loads(Path(job).read_text()), [])
    print(outcome["error"])
    return int(outcome["outcome"] != "done")


def attempt_without_memory(job: str) -> int:
    """As `attempt`, but the last step of the journal is forgotten."""
    path = Path(job).parent / "results" / "t" / JOURNAL
    if path.exists():
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return attempt(job)


def attempt_with_a_result_too_early(job: str) -> int:
    """As `attempt`, but the result is there before the paper is."""
    facts = json.loads(Path(job).read_text())
    early = {"task_id": "t", "attempt": facts["attempt"], "outcome": "done"}
    (Path(facts["results_dir"]) / RESULT).write_text(json.dumps(early))
    return attempt(job)


@dataclass(slots=True)
class Task:
    """A task with its directory, and what is known of it from the lives that it had."""

    home: Path
    lives: Lives
    temporary: Path
    program: str = "attempt"
    attempts: int = 0
    kills: int = 0

    def __post_init__(self) -> None:
        self.results.mkdir(parents=True)
        self._prepare()

    @property
    def results(self) -> Path:
        return self.home / "results" / "t"

    @property
    def decided(self) -> bool:
        """Whether the daemon would now take the task for ended, whatever became of the worker."""
        return (self.results / RESULT).exists()

    def live(self, at: int = 0, torn: Torn | None = None, matching: str = "") -> Life:
        """Make one attempt, killed or not, and check what every attempt has to leave."""
        self.attempts += 1
        (self.home / "job.json").write_text(json.dumps(self._job().as_json()))
        life = self.lives.run(
            f"{__name__}:{self.program}",
            str(self.home / "job.json"),
            watch=[self.home / "results", self.temporary],
            at=at,
            torn=torn,
            matching=matching,
            hopeless=STUCK.pattern,
        )
        self.kills += life.killed
        lively = [words for words in life.left if not STUCK.search(words.partition(" ")[2])]
        assert not lively, f"it left processes behind: {life.left}"
        assert life.killed or (life.exit_code == 0 and self.decided), life.output
        self._check(life)
        if self.decided:
            result = json.loads((self.results / RESULT).read_bytes())
            assert (result["attempt"], result["outcome"]) == (self.attempts, "done")
            self._check_decided()
        partial = [path for path in self.results.rglob(".*.tmp") if path.is_file()]
        assert len(partial) <= self.kills, partial
        assert len(list(self.temporary.iterdir())) <= self.kills
        return life

    def _job(self, *, num_cpus: float = 1.0) -> Job:
        text = self._text()
        return Job(
            task_id="t",
            attempt=self.attempts,
            node_id="here",
            num_cpus=num_cpus,
            num_gpus=0.0,
            timeout_s=600.0,
            task_text=text,
            task_sha256=hashlib.sha256(text.encode()).hexdigest(),
            file_name="t.yaml",
            results_dir=str(self.results),
            template_roots=[str(self.home / "templates")],
            min_free_bytes=0,
            sandbox=SandboxSettings(allow_missing=ACCEPTED_GAPS).model_dump(mode="json"),
        )

    def _prepare(self) -> None:
        raise NotImplementedError

    def _text(self) -> str:
        raise NotImplementedError

    def _check(self, life: Life) -> None:
        raise NotImplementedError

    def _check_decided(self) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class Research(Task):
    """A research task, as a rule with so good a baseline that half as many runs are needed."""

    baseline: float = 0.7
    parallel: int = 1
    journal: bytes = b""
    """Its whole lines after the last life."""

    def check_same_as(self, other: "Research") -> None:
        """Compare what people came for, byte for byte."""
        assert self.decided
        for name in (*PAPER, *(f"plots/{p.name}" for p in (other.results / "plots").iterdir())):
            assert (self.results / name).read_bytes() == (other.results / name).read_bytes(), name
        assert not (self.results / ".template.part").exists()
        assert not list(self.results.glob("runs/*/work")), "a run's own directory was left"

    def _prepare(self) -> None:
        space = parabola_space(self.baseline)
        make_template(self.home / "templates", experiment=PARABOLA % 0, search_space=space)

    def _text(self) -> str:
        return task_text(template="tiny", max_runs=2)

    def _job(self, *, num_cpus: float = 0.0) -> Job:
        return Task._job(self, num_cpus=num_cpus or self.parallel)

    def _check(self, life: Life) -> None:
        recorded = {name for name in map(_run_name, self.journal.splitlines()) if name}
        path = self.results / JOURNAL
        raw = path.read_bytes() if path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        assert life.killed or whole == raw, "a torn line was left"
        assert whole.startswith(self.journal), "what was recorded has changed"
        keys = [json.loads(line)["key"] for line in whole.splitlines()]
        assert len(set(keys)) == len(keys), "a step was recorded twice"
        touched = {call.path.split("/")[2] for call in life.calls if "/runs/" in call.path}
        assert not recorded & touched, "a recorded run was run again"
        self.journal = whole

    def _check_decided(self) -> None:
        missing = [name for name in PAPER if not (self.results / name).exists()]
        assert not missing, "a result without its paper"


@dataclass(slots=True)
class Command(Task):
    """A command that says and writes the same each time, and adds a line to a file of its earlier attempts."""

    run: str = COMMAND
    log: bytes = b""
    """Of the last life."""

    def _prepare(self) -> None:
        """Need nothing: a command is all in its task file."""

    def _text(self) -> str:
        outputs = ["out-*.txt", "attempts.txt"]
        return yaml.safe_dump({"kind": "command", "run": self.run, "outputs": outputs})

    def _check(self, life: Life) -> None:
        logs = [path.read_bytes() for path in self.results.glob("log*.txt")]
        assert len(logs) <= 1 + MAX_OLD_LOGS
        assert not self.log or self.log in logs, "the log of the attempt before is lost"
        current = self.results / "log.txt"
        self.log = current.read_bytes() if current.exists() else b""
        assert life.killed or self.log == SAID
        assert SAID.startswith(self.log)

    def _check_decided(self) -> None:
        files = {path.name: path.read_bytes() for path in (self.results / "files").iterdir()}
        lines = files.pop("attempts.txt").splitlines()
        assert files == {f"out-{number}.txt": b"%d" % number * 5000 for number in range(3)}
        assert 1 <= len(lines) <= self.attempts
        assert (self.results / "log.txt").read_bytes() == SAID, "a result without its log"


def _run_name(line: bytes) -> str:
    key = str(json.loads(line)["key"])
    return key.split("/")[1] if key.startswith("run/") else ""


def _kind(call: Call) -> str:
    """Give a pattern for calls like this one: of the same name, on the same file of the same kind of run."""
    pattern, end = "", 0
    for found in _VARYING.finditer(call.path):
        pattern += (
            re.escape(call.path[end : found.start()]) + _VARIES[(found.lastindex or 1) - 1][1]
        )
        end = found.end()
    return f"^{call.name} {pattern}{re.escape(call.path[end:])}$"


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory for temporary files of all lives of this module."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def lives(temporary: Path) -> Iterator[Lives]:
    with Lives(__name__, *LATE, env={"TMPDIR": str(temporary)}) as them:
        yield them


@pytest.fixture
def room(
    lives: Lives, temporary: Path, tmp_path: Path
) -> Callable[[str], tuple[Path, Lives, Path]]:
    """Give what a task of that name needs; what earlier ones left in the temporary directory is gone."""

    def make(name: str) -> tuple[Path, Lives, Path]:
        for leftover in temporary.iterdir():
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        return tmp_path / name, lives, temporary

    return make


Room = Callable[[str], tuple[Path, Lives, Path]]


def kinds_of(calls: Sequence[Call], *, every: int = 1, always: str = "") -> dict[str, Call]:
    """Give the first call of each kind by the kind's pattern, or of some kinds: `always` those on such a path."""
    kinds: dict[str, Call] = {}
    for call in calls:
        kinds.setdefault(_kind(call), call)
    return {
        kind: call
        for number, (kind, call) in enumerate(kinds.items())
        if number % every == 0 or (always and re.search(always, call.path))
    }


def kill_at_each(task: Task, kinds: Mapping[str, Call], torn: Torn | None) -> int:
    """Kill one task at one call of each kind, and let it live then; say how often it was killed."""
    for kind, call in kinds.items():
        life = task.live(1, torn if call.size_bytes > 1 else None, kind)
        assert life.killed, f"no call of kind {kind}"
        if task.decided:
            return task.kills
    task.live()
    return task.kills


def test_a_task_killed_at_a_call_of_each_kind_comes_to_the_same_paper(room: Room) -> None:
    undisturbed = Research(*room("undisturbed"), baseline=0.1)
    kinds = kinds_of(undisturbed.live().calls, every=EVERY_KIND, always=rf"{re.escape(JOURNAL)}$")
    points = 0
    for torn in TORN:
        killed = Research(*room(f"killed-{torn}"), baseline=0.1, parallel=2)
        points += kill_at_each(killed, kinds, torn)
        killed.check_same_as(undisturbed)
    print(f"crash points: research, one task: {points}")


def test_a_task_killed_once_at_any_call_comes_to_the_same_paper(room: Room) -> None:
    undisturbed = Research(*room("undisturbed"))
    kills: list[tuple[int, Torn | None]] = []
    for at, call in enumerate(undisturbed.live().calls, start=1):
        kills += [
            (at, torn) for torn in (None, "half", "most") if torn is None or call.size_bytes > 1
        ]
    chosen = kills if WHOLE else kills[len(kills) // 3 :: len(kills) // 2]
    points = 0
    for at, torn in chosen:
        killed = Research(*room(f"killed-{at}-{torn}"))
        points += killed.live(at, torn).killed
        if not killed.decided:
            killed.live()
        killed.check_same_as(undisturbed)
        shutil.rmtree(killed.home)
    print(f"crash points: research, a task each: {points} of {len(kills)}")


def test_a_command_killed_at_a_call_of_each_kind_ends_with_all_its_files_and_its_log(
    room: Room,
) -> None:
    calls = Command(*room("undisturbed")).live().calls
    kinds = kinds_of(calls, every=EVERY_KIND_OF_TRIAL, always=r"^t(/|$)")
    points = sum(kill_at_each(Command(*room(f"killed-{torn}")), kinds, torn) for torn in TORN)
    print(f"crash points: command, one task: {points}")


def test_what_a_worker_runs_is_dead_with_it(room: Room) -> None:
    task = Command(*room("endless"), run="echo line 0; setsid sleep 600 & sleep 600")
    life = task.live(1, matching="^fsync t/log.txt$|^write t/log.txt$")
    assert life.killed
    assert task.log == b""


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("attempt_without_memory", "what was recorded has changed"),
        ("attempt_with_a_result_too_early", "a result without its paper"),
    ],
)
def test_the_same_checks_find_what_a_careless_worker_loses(
    room: Room, program: str, found: str
) -> None:
    careless = Research(*room("careless"), program)
    with pytest.raises(AssertionError, match=found):  # noqa: PT012 - the second attempt shows some of it
        for _ in range(2):
            careless.live(3, None, "^write t/journal.jsonl$")
