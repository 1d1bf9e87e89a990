"""The bench: runs of an experiment through the journal, as many at once as the task has room for."""

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from labd.errors import ResearchError
from labd.journal import Journal
from labd.research.early import CurveWatch
from labd.research.elsewhere import order_of, take_home
from labd.research.experiment import (
    LOG_NAME,
    Elsewhere,
    OutOfTime,
    SlotLost,
    Split,
    Tools,
    run_one,
)
from labd.research.record import Run
from labd.template import Param, Template


@dataclass(frozen=True, slots=True)
class Code:
    """Files that stand in for the template's: a directory like the template's, and a hash over what differs."""

    directory: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Job:
    """One run to make: what `labd.research.experiment.run_one` needs to know of it."""

    name: str
    params: Mapping[str, Param]
    seed: int
    split: Split
    code: Code | None = None
    """``None``: the template as it is."""
    watch: CurveWatch | None = None
    """What may end it early."""


class Bench:
    """Runs jobs through the journal, `parallel` at a time; only the thread that calls `many` tells progress.

    Args:
        template: a snapshot of it.
        tools: the sandbox and what else is given from outside.
        journal: in which each run is a step.
        results_dir: of the task.
        parallel: runs at once on this machine; `tools` may have room for more elsewhere. Has no influence on what is found.
        gpus: indices of the GPUs that the runs may share out.

    Raises:
        ResearchError: a run takes more GPUs than there are.

    """

    def __init__(
        self,
        template: Template,
        tools: Tools,
        journal: Journal,
        results_dir: Path,
        *,
        parallel: int,
        gpus: Sequence[int] = (),
    ) -> None:
        self.template = template
        self.results_dir = results_dir
        self._tools = tools
        self._journal = journal
        self._slots: list[tuple[int, ...] | Elsewhere] = [
            *gpu_shares(template, parallel, gpus),
            *tools.elsewhere,
        ]
        self._lost: set[int] = set()
        # The first free one is taken: those of this machine, from which nothing has to travel, come first.
        self._free: queue.PriorityQueue[int] = queue.PriorityQueue()
        for number in range(len(self._slots)):
            self._free.put(number)
        self._pool = ThreadPoolExecutor(len(self._slots), thread_name_prefix="run")

    @property
    def at_once(self) -> int:
        """How many runs may go on at the same time."""
        return len(self._slots) - len(self._lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        # What already runs ends by itself, by its time limit or because all is cancelled.
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, job: Job) -> "Future[Run]":
        """Have a job run when there is room for it, from any thread."""
        return self._pool.submit(self._step, job)

    def one(self, job: Job, *, stage: str) -> Run:
        """Run one job."""
        return self.many([job], stage=stage, done=0, total=1)[0]

    def many(self, jobs: Sequence[Job], *, stage: str, done: int, total: int) -> list[Run]:
        """Run all jobs and give their runs in the jobs' order.

        Args:
            jobs: what to run.
            stage: the name under which progress is told.
            done: how many of the stage's jobs were done before these.
            total: how many jobs the stage has.

        """
        self._tools.progress(stage, done, total, f"{len(jobs)} to run")
        futures = [self.start(job) for job in jobs]
        runs: list[Run] = []
        for future in futures:
            run = future.result()
            runs.append(run)
            self._tools.progress(stage, done + len(runs), total, told(run))
        return runs

    def in_time(self, jobs: Sequence[Job], *, stage: str) -> list[Run]:
        """Run jobs as `many` does, as many as the task's time allows; give those runs, in the jobs' order.

        How many that were is recorded, so that a resumed task has no more.

        Raises:
            OutOfTime: not one of them could be run.

        """
        made: list[Run] = []

        def make() -> int:
            self._tools.progress(stage, 0, len(jobs), f"{len(jobs)} to run")
            try:
                for future in [self.start(job) for job in jobs]:
                    made.append(future.result())
                    self._tools.progress(stage, len(made), len(jobs), told(made[-1]))
            except OutOfTime:
                if not made:
                    raise
            return len(made)

        inputs = {"jobs": [self._inputs(job) for job in jobs]}
        count: int = self._journal.step(f"in_time/{stage}", inputs, make)
        return made or self.many(jobs[:count], stage=stage, done=0, total=len(jobs))

    def _step(self, job: Job) -> Run:
        inputs = self._inputs(job)
        return Run.model_validate(
            self._journal.step(f"run/{job.name}", inputs, lambda: self._run(job))
        )

    def _inputs(self, job: Job) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            "template": self.template.sha256,
            "params": dict(job.params),
            "seed": job.seed,
            "split": job.split,
        }
        if self.template.scale:
            inputs["scale"] = self.template.scale
        if job.code is not None:
            inputs["code"] = job.code.sha256
        return inputs

    def _run(self, job: Job) -> dict[str, object]:
        while True:
            # There is always one that is not lost, and what goes on in it ends by its limits.
            number = self._free.get()
            slot = self._slots[number]
            try:
                run = self._here(job, slot) if isinstance(slot, tuple) else self._there(job, slot)
            except SlotLost as error:
                self._give_up(number, job, error)
                continue
            except BaseException:
                self._free.put(number)
                raise
            self._free.put(number)
            return run.model_dump(mode="json")

    def _give_up(self, number: int, job: Job, error: SlotLost) -> None:
        self._lost.add(number)
        slot = self._slots[number]
        if not isinstance(slot, tuple):
            slot.given_up(job.name, str(error))

    def _here(self, job: Job, gpus: tuple[int, ...]) -> Run:
        return run_one(
            self.template,
            self._tools,
            name=job.name,
            params=job.params,
            seed=job.seed,
            split=job.split,
            results_dir=self.results_dir,
            gpus=gpus,
            code=None if job.code is None else job.code.directory,
            watch=job.watch,
        )

    def _there(self, job: Job, slot: Elsewhere) -> Run:
        log = self.results_dir / "runs" / job.name / LOG_NAME
        answer = slot.make(order_of(job, self.template), log, self._tools.cancelled)
        return take_home(answer, job, self.results_dir)


def gpu_shares(template: Template, parallel: int, gpus: Sequence[int]) -> list[tuple[int, ...]]:
    """Give the GPUs of each run that may go on at once, as many entries as such runs.

    Raises:
        ResearchError: one run takes more GPUs than there are.

    """
    per_run = template.gpus_per_run
    if len(gpus) < per_run:
        raise ResearchError(
            f"a run of the template takes {per_run} GPUs, and the task has {len(gpus)}",
            fix="Ask for them in the task file with num_gpus",
        )
    if per_run == 0:
        return [()] * parallel
    at_once = min(parallel, len(gpus) // per_run)
    return [tuple(gpus[start * per_run : (start + 1) * per_run]) for start in range(at_once)]


def told(run: Run) -> str:
    """Tell in one line what a run gave."""
    return f"{run.name}: {run.reason}" if run.value is None else f"{run.name}: {run.value:.4g}"
