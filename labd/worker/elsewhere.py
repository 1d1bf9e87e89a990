"""Runs of a research task on other machines: what has them made, in the attempt's worker, and what makes one, there.

A run that can't be made there says nothing: its place is given up, and the run is made at another one.
"""

import math
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

from labd.errors import EngineError, LabdError, StorageError
from labd.log import Logger
from labd.research.elsewhere import run_ordered
from labd.research.experiment import Cancelled, Elsewhere, OutOfTime, SlotLost, Tools
from labd.task import TaskSpec, parse_task
from labd.template import Template, load_template, scaled, with_data, with_metric
from labd.trees import remove_tree
from labd.worker.attempt import pool_of, saying
from labd.worker.boxes import LIMITS_HIT, RUNS, CappedSandbox
from labd.worker.signs import AFAR, lives, process_name

if TYPE_CHECKING:
    from labd.llm.wireform import Call

SILENCE_S = 120.0
"""A machine that has said nothing for so long makes no runs any more. Its worker may have to start first, in seconds."""
_BEAT_S = 2.0
_OURS = re.compile(r"(\d+-\d+)\..+")
_GRACE_S = 10.0

Message = Mapping[str, Any]
"""``{"beat": signs}``, or the answer: ``run``, ``files`` and ``limits_hit``, or ``failed`` (``code``, ``message``)."""


class Machines(Protocol):
    """An attempt's way to further machines. Any thread may call."""

    names: Mapping[str, str]
    """Of those that are there, by node id."""

    def make(
        self, node_id: str, order: Mapping[str, Any], *, num_cpus: float, num_gpus: float
    ) -> Generator[Message, None, None]:
        """Have one run made there; give what it says, and an empty message where it says nothing for a second.

        Closing it ends the run.

        Raises:
            EngineError: the machine or its worker is lost, or can't do it.

        """
        ...


def room_elsewhere(
    job: Mapping[str, Any],
    template: Template,
    machines: Machines | None,
    log: Logger,
    *,
    until_s: float,
    silence_s: float = SILENCE_S,
) -> list[Elsewhere]:
    """Give the places for runs on an attempt's further machines: on each as many as it has CPUs and GPUs for.

    Args:
        job: the attempt.
        template: what is run.
        machines: the way to them.
        log: the task's.
        until_s: on the monotonic clock, when the last run has to be over.
        silence_s: how long a machine may say nothing.

    """
    if machines is None:
        return []
    num_cpus = min(float(max(1, template.cpus_per_run)), job["num_cpus"])
    count = int(job["num_cpus"] // num_cpus)
    num_gpus = 0.0
    if template.gpus_per_run:
        num_gpus = min(float(template.gpus_per_run), job["num_gpus"])
        count = min(count, math.ceil(job["num_gpus"]) // template.gpus_per_run)
    return [
        _Place(machines, node_id, name, num_cpus, num_gpus, log, until_s, silence_s)
        for node_id, name in machines.names.items()
        for _ in range(count)
    ]


@dataclass(frozen=True, slots=True)
class _Place:
    """Room for one run at a time on another machine; a `labd.research.experiment.Elsewhere`."""

    machines: Machines
    node_id: str
    name: str
    num_cpus: float
    num_gpus: float
    log: Logger
    until_s: float
    silence_s: float

    def make(self, order: Mapping[str, Any], log: Path, cancelled: Event) -> Message:
        """Have a run made there, see the protocol."""
        left_s = self.until_s - time.monotonic()
        self.log.info("run.elsewhere", run=order["name"], node=self.name)
        try:
            with (
                RUNS.one(log, cancelled),
                AFAR.one() as note,
                closing(self._messages({**order, "left_s": left_s})) as messages,
            ):
                answer = self._heard(messages, note, cancelled)
        except EngineError as error:
            raise SlotLost(str(error), where=self.name) from error
        failed = answer.get("failed")
        if failed is not None:
            if failed["code"] == OutOfTime.code:
                raise OutOfTime("the task's time limit was nearly over", where=order["name"])
            raise SlotLost(failed["message"], where=self.name)
        LIMITS_HIT.update(answer["limits_hit"])
        return answer

    def given_up(self, run: str, reason: str) -> None:
        """Say in the task's log why no more runs are made there."""
        self.log.warning("elsewhere.given_up", node=self.name, run=run, reason=reason)

    def _messages(self, order: Mapping[str, Any]) -> Generator[Message, None, None]:
        return self.machines.make(
            self.node_id, order, num_cpus=self.num_cpus, num_gpus=self.num_gpus
        )

    def _heard(
        self, messages: Iterator[Message], note: Callable[[Message], None], cancelled: Event
    ) -> Message:
        heard_s = time.monotonic()
        for message in messages:
            now_s = time.monotonic()
            if cancelled.is_set():
                raise Cancelled("the task was cancelled")
            if now_s > self.until_s + _GRACE_S:
                raise OutOfTime("the task's time limit was nearly over")
            if message and "beat" not in message:
                return message
            if message:
                heard_s = now_s
                note(message["beat"])
            elif now_s - heard_s > self.silence_s:
                raise EngineError(f"it has said nothing for {self.silence_s:g} s")
        raise EngineError("its worker ended without an answer")


# -- on the other machine


def making(
    work: Callable[[], Message], look: Callable[[], Mapping[str, Any] | None]
) -> Iterator[Message]:
    """Do the work in another thread; give beats with what `look` sees meanwhile, and then what the work gave."""
    with ThreadPoolExecutor(1, "run") as pool:
        future = pool.submit(work)
        while not wait([future], _BEAT_S).done:
            signs = look()
            if signs is not None:
                yield {"beat": signs}
        yield future.result()


def make_run(
    prepare: Callable[[], Mapping[str, Any]],
    order: Mapping[str, Any],
    gpus: Sequence[int],
    base: Path,
    *,
    models: "Call | None",
) -> Message:
    """Make one run of an attempt that goes on elsewhere; give its answer.

    Args:
        prepare: gives the attempt's job with paths of this machine, on which its template is then.
        order: see `labd.research.elsewhere.order_of`; ``left_s`` in it: how much time there is.
        gpus: indices of those that the run gets.
        base: below it the run lies, until its answer is there.
        models: as in `labd.worker.run`.

    """
    LIMITS_HIT.clear()
    until_s = time.monotonic() + order["left_s"]
    try:
        job = prepare()
        spec = parse_task(job["task_text"].encode(), job["file_name"]).spec
        with (
            pool_of(job, models, run=order["name"]) as pool,
            saying(None, job, gpus, asks=lambda: 0 if pool is None else pool.asks),
            _directory(base) as directory,
        ):
            box = CappedSandbox(
                job["sandbox"], spec.limits, job["min_free_bytes"], pool, until_s=until_s
            )
            answer = run_ordered(order, template_of(job, spec), Tools(box), directory, gpus)
    except (LabdError, OSError) as error:
        code = error.code if isinstance(error, LabdError) else StorageError.code
        return {"failed": {"code": code, "message": str(error)}}
    return {**answer, "limits_hit": dict(LIMITS_HIT)}


@contextmanager
def _directory(base: Path) -> Iterator[Path]:
    """Give a new directory below `base` until the block ends; those that processes left which are dead are removed."""
    base.mkdir(parents=True, exist_ok=True)
    for left in base.iterdir():
        process = _OURS.fullmatch(left.name)
        if process and not lives(process[1]):
            # What a killed run still writes to goes the next time.
            with suppress(StorageError):
                remove_tree(left)
    mine = Path(mkdtemp(prefix=f"{process_name()}.", dir=base))
    mine.chmod(0o755)  # a run may have another user than labd has
    try:
        yield mine
    finally:
        remove_tree(mine)


def template_of(job: Mapping[str, Any], spec: TaskSpec) -> Template:
    """Give the task's template with its data as it lies on this machine.

    Raises:
        ConfigError: it, or something that it needs, is not there.

    """
    roots, inputs, forbidden = (
        [Path(root) for root in job[key]]
        for key in ("template_roots", "input_roots", "forbidden_roots")
    )
    template = load_template(spec.template or "", roots=roots)
    if spec.metric is not None:
        template = with_metric(template, spec.metric.name, spec.metric.better)
    if spec.scale is not None:
        template = scaled(template, spec.scale)
    return with_data(template, roots=inputs, forbidden=forbidden)
