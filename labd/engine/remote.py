"""What runs in Ray's worker processes. Pickled by name: every node needs the same labd.

A worker never trusts that it may run: it checks that its labd is the lab's own, and holds a share of the
lab's lock while it works, so that a new engine can wait for what an old one left behind.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._raylet import setproctitle  # type: ignore[attr-defined] # a module in C

from labd import __version__
from labd.engine.calls import Call, calls_to
from labd.engine.processes import sharing_lock, wait_for_any
from labd.errors import EngineError, LabdError

if TYPE_CHECKING:
    from labd.engine.elsewhere import RayMachines

SCRATCH_VARIABLE = "LABD_SCRATCH"
"""In the environment of a node's Ray: where attempts of labs on other machines have their directories."""

_SIGNS = "signs"
_RUNS = ".elsewhere"
"""Below the results, or a node's scratch: runs of attempts that go on on other nodes."""
_EXIT_DELAY_S = 0.5
_followed: set[int] = set()


def run_job(
    job: dict[str, Any],
    lab: Mapping[str, Any],
    version: str,
    archive: Any = None,
    models: Any = None,
) -> dict[str, Any]:
    """Run one attempt, with the GPUs that Ray assigned; give its outcome.

    Args:
        job: the attempt, as `labd.engine.types.Job` has it.
        lab: ``lab``, the lab's own name, ``lock_path``, ``node_id``, the lab's own node, and ``owner_pid``, the process
            that submits.
        version: the labd of the lab.
        archive: where not all of the job's nodes are the lab's own, the actor (`labd.engine.service.ArchiveActor`)
            through which results go home and templates come.
        models: the actor (`labd.engine.models.ModelsActor`) that shares out language models, where the job may
            need it.

    Raises:
        EngineError: this node has another labd than the lab.
        LabdError: not all results came home.

    """
    _require_version(version)
    from labd import worker  # noqa: PLC0415 - late: after the version has been checked

    # As Ray itself names the process after the task that it runs, and afterwards calls it idle again.
    setproctitle(f"ray::labd:{job['task_id']}#{job['attempt']} {job['results_dir']}")
    gpus = _gpus(job["num_gpus"])
    machines = _machines(job, lab, version, archive, models)
    # A dispatcher that was made by an earlier labd, and still holds work, does not say which node is the lab's own.
    home = lab.get("node_id")
    if archive is not None if home is None else job["node_id"] != home:
        call = calls_to(archive, "the archive")
        scratch = _scratch(lab["lab"])
        return run_away(call, job, gpus, scratch, broker=_broker(models), machines=machines)
    _follow(lab["owner_pid"])
    signs = signs_directory(lab, away=False)
    with sharing_lock(Path(lab["lock_path"])):
        return worker.run(job, gpus, models=_broker(models), signs=signs, machines=machines)


def run_there(
    job: dict[str, Any],
    order: dict[str, Any],
    lab: Mapping[str, Any],
    version: str,
    *,
    archive: Any,
    models: Any,
) -> Iterator[Mapping[str, Any]]:
    """Make one run of an attempt that goes on on another node; give its signs every other second, and at last its answer.

    Args:
        job: the attempt, as the lab gave it.
        order: the run, as `labd.research.elsewhere.order_of` has it; ``num_gpus`` and ``left_s`` besides.
        lab: as in `run_job`, like the rest.
        version: the labd of the lab.
        archive: where this node is not the lab's own, the actor through which the template comes.
        models: the actor that shares out the GPUs.

    Raises:
        EngineError: this node has another labd than the lab.

    """
    _require_version(version)
    from labd import machine, worker  # noqa: PLC0415 - as in `run_job`
    from labd.shipping import SHIPPED, job_here  # noqa: PLC0415 - as in `run_job`
    from labd.worker.elsewhere import make_run, making  # noqa: PLC0415 - as in `run_job`; it is slow to import too

    setproctitle(f"ray::labd-run:{job['task_id']}#{job['attempt']} {order['name']}")
    node_id = str(ray.get_runtime_context().get_node_id())
    job = {**job, "node_id": node_id}
    away = node_id != lab["node_id"]
    gpus = _gpus(order["num_gpus"])
    signs = signs_directory(lab, away=away)

    def prepare() -> dict[str, Any]:
        if not away:
            return job
        return job_here(calls_to(archive, "the archive"), job, _scratch(lab["lab"]) / "attempts")

    def work() -> Mapping[str, Any]:
        base = _scratch(lab["lab"]) if away else Path(job["results_dir"]).parent
        return make_run(prepare, order, gpus, base / _RUNS, models=_broker(models))

    def look() -> dict[str, Any] | None:
        seen = machine.gpus()[0] if gpus else []
        busy = {gpu["index"]: gpu["busy"] for gpu in seen if gpu["busy"] is not None}
        return worker.signs_of(signs, os.getpid(), busy)

    with contextlib.ExitStack() as stack:
        if not away:
            _follow(lab["owner_pid"])
            stack.enter_context(sharing_lock(Path(lab["lock_path"])))
        stack.enter_context(worker.saying(signs, job, gpus, shipped=SHIPPED.bytes))
        yield from making(work, look)


def _gpus(wanted: float) -> list[int]:
    return [int(gpu) for gpu in ray.get_gpu_ids()] if wanted else []


def _machines(
    job: dict[str, Any], lab: Mapping[str, Any], version: str, archive: Any, models: Any
) -> "RayMachines | None":
    if not job.get("also_nodes") or "node_id" not in lab:
        return None
    from labd.engine.elsewhere import RayMachines  # noqa: PLC0415 - most jobs need none of it

    return RayMachines(job, lab, version, archive=archive, models=models)


def warm_up(config: dict[str, Any], lab: Mapping[str, Any], version: str, away: bool) -> None:  # noqa: FBT001 - Ray's arguments are best plain
    """Have this worker process import what every task needs, before the first task comes.

    Args:
        config: what `labd.worker.warm_up` gets.
        lab: as in `run_job`.
        version: the labd of the lab.
        away: whether this node is not the lab's own.

    Raises:
        EngineError: this node has another labd than the lab.

    """
    _require_version(version)
    from labd import worker  # noqa: PLC0415 - as in `run_job`

    if away:
        worker.warm_up({**config, "results": str(_scratch(lab["lab"]))})
        return
    _follow(lab["owner_pid"])
    worker.warm_up(config)


def reach(lab: Mapping[str, Any], away: bool, task_id: str, attempt: int, how: str) -> None:  # noqa: FBT001 - as in `warm_up`
    """Reach the worker of an attempt on this node, which may be stopped: `labd.worker.reach` says how.

    Args:
        lab: as in `run_job`.
        away: whether this node is not the lab's own.
        task_id: which task.
        attempt: which attempt at it.
        how: ``end_runs`` or ``kill``.

    """
    from labd import worker  # noqa: PLC0415 - as in `run_job`

    worker.reach(signs_directory(lab, away=away), task_id, attempt, how)


def signs_directory(lab: Mapping[str, Any], *, away: bool) -> Path:
    """Give where this node's workers say what they are at; it may not be there.

    Raises:
        EngineError: this node's own directory belongs to somebody else.

    """
    return (_scratch(lab["lab"]) if away else Path(lab["lock_path"]).parent) / _SIGNS


def _follow(owner_pid: int) -> None:
    """End this process as soon as the one that gives it work is gone.

    Ray would end it too, but a working one some seconds later, and an idle one, where Ray is told to keep
    idle workers, never.
    """
    if owner_pid in _followed:
        return
    _followed.add(owner_pid)

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):  # gone already
            wait_for_any([owner_pid])
        os._exit(1)

    threading.Thread(target=watch, name="owner", daemon=True).start()


def _broker(models: Any) -> Call | None:
    return None if models is None else calls_to(models, "the broker of models", apart=["listen"])


def run_away(
    call: Call,
    job: dict[str, Any],
    gpus: list[int],
    scratch: Path,
    *,
    broker: Call | None = None,
    machines: "RayMachines | None" = None,
) -> dict[str, Any]:
    """Run an attempt on a node that has no file system in common with the lab's own; give its outcome.

    It has its signs from before its files come here until its results are home: that may take longer than the work.

    Args:
        call: to the archive, see `labd.shipping.link.Call`.
        job: the attempt.
        gpus: as in `labd.worker.run`.
        scratch: this node's directory for this lab.
        broker: as `models` in `labd.worker.run`.
        machines: as there.

    Raises:
        LabdError: not all results came home.

    """
    from labd import worker  # noqa: PLC0415 - as in `run_job`
    from labd.shipping import SHIPPED, Mirror  # noqa: PLC0415 - as in `run_job`

    signs = scratch / _SIGNS
    mine = threading.current_thread()

    def end(error: LabdError) -> None:
        # The work's own thread gets the error; where it waits for a command it would not for hours.
        if threading.current_thread() is not mine:
            sys.stderr.write(f"labd: {job['task_id']}#{job['attempt']} ends: {error}\n")
            os._exit(1)

    with (
        worker.saying(signs, job, gpus, shipped=SHIPPED.bytes),
        Mirror(call, job, scratch / "attempts", on_lost=end) as mirror,
    ):
        return worker.run(
            mirror.job, gpus, mirror.on_step, models=broker, signs=signs, machines=machines
        )


def scratch_root() -> Path:
    """Give where this node keeps what runs on it for labs that live elsewhere; it may be missing."""
    return Path(os.environ.get(SCRATCH_VARIABLE) or f"/var/tmp/labd-{os.getuid()}")  # noqa: S108 - checked by `_scratch`


def _scratch(lab: str) -> Path:
    """Give this node's own directory for a lab that lives elsewhere, made if missing.

    Raises:
        EngineError: it belongs to somebody else.

    """
    root = scratch_root()
    path = root / lab
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in (root, path):
        facts = made.lstat()
        if made.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
            raise EngineError(
                "somebody else may write to this directory",
                where=str(made),
                fix=f"Remove it, or name another in {SCRATCH_VARIABLE}",
            )
    return path


def _require_version(wanted: str) -> None:
    if wanted == __version__:
        return
    # labd may have been installed anew under this old process: let a successor load what is there now.
    timer = threading.Timer(_EXIT_DELAY_S, os._exit, [1])
    timer.daemon = True
    timer.start()
    raise EngineError(
        f"this node's labd is {__version__}, and the lab's is {wanted}",
        fix="Install the same version on all nodes",
    )
