"""Runs on other machines: what comes home is what a run here would leave, or the run is made here."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labd.errors import EngineError
from labd.journal import Journal
from labd.log import file_logger
from labd.research.bench import Bench, Code, Job
from labd.research.early import CurveWatch
from labd.research.elsewhere import MAX_LOG_BYTES, order_of, take_home
from labd.research.experiment import Cancelled, OutOfTime, SlotLost, Tools
from labd.research.record import Run
from labd.template import Template, load_template
from labd.worker import attempts_here, saying, signs_of
from labd.worker.elsewhere import Message, make_run, making, room_elsewhere
from labd.worker.signs import AFAR
from tests.boxes import make_sandbox
from tests.factories import make_template, parabola_space, task_text
from tests.processes import wait_until
from tests.test_command import SANDBOX

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(60)]

PICTURED = """
    import argparse, json, pathlib
    from model import score
    parser = argparse.ArgumentParser()
    for name in ("--params", "--seed", "--split", "--out_dir"):
        parser.add_argument(name)
    args = parser.parse_args()
    out = pathlib.Path(args.out_dir)
    value = score(json.loads(pathlib.Path(args.params).read_text())["x"], int(args.seed))
    print("scored", value)
    (out / "curves.jsonl").write_text("".join(json.dumps({"step": n, "score": n * value}) + chr(10) for n in range(9)))
    (out / "metrics.json").write_text(json.dumps({"metrics": {"score": value}}))
"""
MODEL = "def score(x, seed):\n    return x + seed / 1000\n"
EDITED = "def score(x, seed):\n    return float('nan') if seed == 9 else 2 * x\n"


class Neighbour:
    """Another machine in this process: makes runs in a directory of its own, of what has travelled as bytes."""

    def __init__(self, job: Mapping[str, Any], base: Path) -> None:
        self.job, self._base = dict(job), base
        self.names: Mapping[str, str] = {"n1": "neighbour"}
        self.made: list[str] = []
        self.closed = 0
        self.says: Callable[[Message], Iterator[Message]] | None = None

    def make(
        self, node_id: str, order: Mapping[str, Any], *, num_cpus: float, num_gpus: float
    ) -> Generator[Message, None, None]:
        assert (node_id, num_cpus, num_gpus) == ("n1", 1.0, 0.0)
        self.made.append(order["name"])
        order = pickle.loads(pickle.dumps(order))
        try:
            for message in making(lambda: self._work(order), lambda: None):
                yield {}
                yield from self.says(message) if self.says else [message]
        finally:
            self.closed += 1

    def _work(self, order: Mapping[str, Any]) -> Message:
        return make_run(lambda: self.job, order, [], self._base, models=None)


class Scene:
    """A template, and benches over it with and without a neighbour."""

    def __init__(self, root: Path) -> None:
        self.root = root
        directory = make_template(
            root / "templates",
            experiment=PICTURED,
            search_space=parabola_space(0.5),
            editable=["model.py"],
            curves=True,
        )
        (directory / "model.py").write_text(MODEL)
        self.job = {
            "task_id": "t",
            "attempt": 1,
            "node_id": "n0",
            "num_cpus": 2.0,
            "num_gpus": 0.0,
            "task_text": task_text(template="tiny"),
            "file_name": "t.yaml",
            "sandbox": SANDBOX,
            "min_free_bytes": 0,
            "template_roots": [str(root / "templates")],
            "input_roots": [],
            "forbidden_roots": [],
        }
        self.template: Template = load_template("tiny", roots=[root / "templates"])
        self.neighbour = Neighbour(self.job, root / "there")
        self.cancelled = threading.Event()
        edited = root / "edited"
        edited.mkdir()
        for path in directory.iterdir():
            (edited / path.name).write_bytes(path.read_bytes())
        (edited / "model.py").write_text(EDITED)
        self.code = Code(edited, "e" * 64)

    def run(
        self,
        name: str,
        *jobs: Job,
        wide: bool = True,
        until_s: float | None = None,
        silence_s: float = 30.0,
    ) -> list[Run]:
        """Run jobs on a bench with one place here, and two at the neighbour where it is `wide`."""
        results = self.root / name
        results.mkdir()
        with (
            file_logger(results / "log.jsonl") as log,
            Journal(results / "journal.jsonl") as journal,
        ):
            places = room_elsewhere(
                *(self.job, self.template, self.neighbour if wide else None, log),
                until_s=until_s or time.monotonic() + 60,
                silence_s=silence_s,
            )
            tools = Tools(make_sandbox(), self.cancelled, elsewhere=places)
            with Bench(self.template, tools, journal, results, parallel=1) as bench:
                self.before = bench.at_once
                try:
                    return bench.many(jobs, stage="x", done=0, total=len(jobs))
                finally:
                    self.after = bench.at_once

    def told(self, name: str, event: str) -> list[dict[str, Any]]:
        lines = (self.root / name / "log.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def timeless(runs: list[Run]) -> list[Run]:
    """Give runs without what depends on how fast the machine is: whether a hopeless one was ended in time, too."""
    gone = {"wall_s": 0.0, "exit_code": None}
    return [run.model_copy(update=gone) for run in runs]


def jobs_of(scene: Scene) -> list[Job]:
    """Give runs of the template, of changed code, and of one that is ended as hopeless."""
    (best,) = scene.run("best", Job("best", {"x": 0.5}, 1, "validation"), wide=False)
    watch = CurveWatch(scene.template.metric, best)
    return [
        *(Job(f"plain-{n}", {"x": n / 10}, 7, "test") for n in range(3)),
        *(Job(f"changed-{n}", {"x": n / 10}, 7, "validation", scene.code, watch) for n in (5, 9)),
        Job("hopeless", {"x": 0.5}, 9, "validation", scene.code, watch),
    ]


def test_runs_elsewhere_give_and_leave_what_runs_here_do(scene: Scene) -> None:
    jobs = jobs_of(scene)
    narrow = scene.run("narrow", *jobs, wide=False)
    wide = scene.run("wide", *jobs)
    assert (scene.before, scene.after) == (3, 3)
    assert len(scene.neighbour.made) >= 2
    told = {line["run"] for line in scene.told("wide", "run.elsewhere")}
    assert told == set(scene.neighbour.made)
    assert timeless(wide) == timeless(narrow)
    assert [run.status for run in wide[-2:]] == ["ok", "hopeless"]
    trees = [tree(scene.root / name / "runs") for name in ("wide", "narrow")]
    for one in trees:
        del one["hopeless/log.txt"]  # may end before it has printed anything
    assert trees[0] == trees[1]
    assert list((scene.root / "there").iterdir()) == []
    assert scene.neighbour.closed == len(scene.neighbour.made)


def several(scene: Scene, **over: Any) -> list[Run]:
    """Have so many runs at once that the neighbour gets some."""
    jobs = [Job(f"plain-{n}", {"x": n / 10}, 7, "test") for n in range(6)]
    return scene.run("wide", *jobs, **over)


Spoils = Callable[[dict[str, Any]], object]
SPOILT: dict[str, Spoils] = {
    "a file outside": lambda a: a["files"].update({"../../../escaped": b"x"}),
    "an absolute file": lambda a: a["files"].update({"/escaped": b"x"}),
    "a file in the plots outside": lambda a: a["files"].update({"plots/../../../escaped": b"x"}),
    "a file of no run": lambda a: a["files"].update({"escaped": b"x"}),
    "too long a log": lambda a: a["files"].update({"log.txt": bytes(MAX_LOG_BYTES + 1)}),
    "too many files": lambda a: a["files"].update({f"plots/p{n}.png": b"" for n in range(30)}),
    "a text": lambda a: a["files"].update({"log.txt": "x"}),
    "another run": lambda a: a["run"].update(name="plain-77"),
    "another seed": lambda a: a["run"].update(seed=8),
    "another directory": lambda a: a["run"].update(directory="runs/../.."),
    "another file of metrics": lambda a: a["files"].update({"metrics.json": b"{}"}),
    "no file of metrics": lambda a: a["files"].pop("metrics.json"),
    "an infinite value": lambda a: a["run"].update(value=float("inf")),
    "no run": lambda a: a.pop("run"),
    "files that are none": lambda a: a.update(files=7),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, bytes]:
    """A run, and the answer to an order of it as it travels."""
    scene = Scene(tmp_path_factory.mktemp("answered"))
    job = Job("plain-0", {"x": 0.5}, 7, "test")
    order = {**order_of(job, scene.template), "left_s": 60.0}
    return job, pickle.dumps(
        make_run(lambda: scene.job, order, [], scene.root / "there", models=None)
    )


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_an_answer_that_is_not_what_a_run_leaves_is_refused_and_nothing_is_written(
    answered: tuple[Job, bytes], tmp_path: Path, spoil: Spoils
) -> None:
    job, raw = answered
    answer = pickle.loads(raw)
    assert take_home(answer, job, tmp_path / "good").value == pytest.approx(0.507)
    assert (tmp_path / "good" / "runs" / "plain-0" / "log.txt").read_text() == "scored 0.507\n"
    spoil(answer)
    with pytest.raises(SlotLost):
        take_home(answer, job, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert list(tmp_path.rglob("escaped")) == []


def broken(message: Message) -> Iterator[Message]:
    """Be lost in place of an answer."""
    if "run" in message:
        raise EngineError("NodeDiedError: gone")
    yield message


def garbled(message: Message) -> Iterator[Message]:
    yield {**message, "files": {"../x": b""}}


def mute(message: Message) -> Iterator[Message]:
    del message
    while True:
        time.sleep(0.01)
        yield {}


@pytest.mark.parametrize(
    ("says", "reason"), [(broken, "NodeDiedError"), (garbled, "no run leaves"), (mute, "nothing")]
)
def test_a_place_that_is_lost_is_given_up_and_its_run_is_made_here(
    scene: Scene, says: Callable[[Message], Iterator[Message]], reason: str
) -> None:
    scene.neighbour.says = says
    runs = several(scene, silence_s=0.5 if says is mute else 30.0)
    assert [run.value for run in runs] == [n / 10 + 0.007 for n in range(6)]
    assert len(tree(scene.root / "wide" / "runs")) == 6 * 3
    assert (scene.before, scene.after) == (3, 1)
    told = scene.told("wide", "elsewhere.given_up")
    assert sorted(line["run"] for line in told) == sorted(scene.neighbour.made)
    assert all(reason in line["reason"] and line["node"] == "neighbour" for line in told)
    assert (len(told), scene.neighbour.closed) == (2, 2)


def test_a_machine_with_another_template_makes_no_runs(scene: Scene) -> None:
    make_template(scene.root / "others", experiment="print()")
    scene.neighbour.job["template_roots"] = [str(scene.root / "others")]
    assert [run.status for run in several(scene)] == ["ok"] * 6
    assert "another one here" in scene.told("wide", "elsewhere.given_up")[0]["reason"]


def test_a_run_elsewhere_for_which_no_time_is_left_is_none(scene: Scene) -> None:
    with pytest.raises(OutOfTime):
        several(scene, until_s=time.monotonic())
    assert scene.told("wide", "elsewhere.given_up") == []
    steps = (scene.root / "wide" / "journal.jsonl").read_text()
    assert scene.neighbour.made
    assert not any(f"run/{name}/" in steps for name in scene.neighbour.made)


def test_calling_the_work_off_ends_runs_elsewhere(scene: Scene) -> None:
    def call_off(message: Message) -> Iterator[Message]:
        scene.cancelled.set()
        return mute(message)

    scene.neighbour.says = call_off
    with pytest.raises(Cancelled):
        several(scene)
    assert scene.told("wide", "elsewhere.given_up") == []
    assert scene.neighbour.closed == len(scene.neighbour.made)


@pytest.mark.parametrize(
    ("cpus", "gpus", "per_run", "places"),
    [
        (8.0, 0.0, (2, 0), [(2.0, 0.0)] * 4),
        (1.0, 0.0, (2, 0), [(1.0, 0.0)]),
        (8.0, 2.0, (1, 1), [(1.0, 1.0)] * 2),
        (8.0, 0.5, (1, 1), [(1.0, 0.5)]),
        (8.0, 1.0, (1, 2), []),
    ],
)
def test_a_machine_has_as_many_places_as_the_attempt_has_cpus_and_gpus_there(
    scene: Scene,
    cpus: float,
    gpus: float,
    per_run: tuple[int, int],
    places: list[tuple[float, float]],
) -> None:
    template = replace(scene.template, cpus_per_run=per_run[0], gpus_per_run=per_run[1])
    job = {**scene.job, "num_cpus": cpus, "num_gpus": gpus}
    asked: list[tuple[float, float]] = []

    class Asked(Neighbour):
        def make(
            self, node_id: str, order: Mapping[str, Any], *, num_cpus: float, num_gpus: float
        ) -> Generator[Message, None, None]:
            asked.append((num_cpus, num_gpus))
            if order:
                raise EngineError(node_id)
            yield order

    machines = Asked(job, scene.root)
    with file_logger(scene.root / "log.jsonl") as log:
        for place in room_elsewhere(job, template, machines, log, until_s=time.monotonic() + 9):
            with pytest.raises(SlotLost):
                place.make({"name": "x"}, scene.root / "log.txt", scene.cancelled)
    assert asked == places


def test_what_runs_elsewhere_do_counts_as_signs_of_their_attempt(tmp_path: Path) -> None:
    signs = {"work_cpu_s": 5.0, "written_bytes": 10, "read_bytes": 20, "output_bytes": 30}
    signs |= {"shipped_bytes": 40, "asks": 1, "gpu_use": 0.5}
    more = {**signs, "work_cpu_s": 7.0, "output_bytes": 31, "gpu_use": None}
    job = {"task_id": "t", "attempt": 1}

    def seen() -> list[float | None]:
        with saying(tmp_path, job, []):
            # Nothing is seen of a file that is just being written.
            (facts,) = wait_until(lambda: attempts_here(tmp_path, {}), 30, "signs")
            mine = wait_until(lambda: signs_of(tmp_path, os.getpid(), {}) or {}, 30, "signs")
        assert mine["asks"] == facts["asks"]
        names = ("work_cpu_s", "output_bytes", "shipped_bytes", "asks", "gpu_use")
        return [facts[name] for name in names]

    AFAR.clear()
    before = seen()
    with AFAR.one() as one, AFAR.one() as other:
        one(signs)
        one(more)
        other(signs)
        during = seen()
    after = seen()
    AFAR.clear()
    base_s = before[0] or 0.0
    assert before[1:] == [0, 0, 0, None]
    assert during == [pytest.approx(base_s + 12, abs=0.5), 61, 80, 2, 0.5]
    assert after == [pytest.approx(base_s + 12, abs=0.5), 61, 80, 0, None]
