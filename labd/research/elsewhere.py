"""One run of an experiment on another machine: the order for it, the run there, and what comes home of it.

An order and its answer are plain data. What comes home is untrusted: names and sizes are checked, and that it is what was
ordered. Knows neither how either travels, nor how the machines are found.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from labd.errors import ConfigError, StorageError
from labd.files import write_atomic
from labd.research.early import CurveWatch
from labd.research.experiment import LOG_NAME, SlotLost, Tools, run_one
from labd.research.measure import (
    MAX_METRICS_BYTES,
    MAX_PICTURE_BYTES,
    MAX_PICTURES,
    METRICS_NAME,
    PICTURE_NAME,
    read_pictures,
)
from labd.research.plain import NotPlain, read_plain
from labd.research.record import Run
from labd.template import Metric, Template, copy_files, snapshot
from labd.text import printable
from labd.trees import remove_tree

if TYPE_CHECKING:
    from labd.research.bench import Job

MAX_LOG_BYTES = 64 * 2**20
"""Of a log, so much comes home."""
_FILES = {
    "params.json": 2**20,
    METRICS_NAME: MAX_METRICS_BYTES,
    LOG_NAME: MAX_LOG_BYTES,
    "evaluation.txt": MAX_LOG_BYTES,
    "plot.txt": MAX_LOG_BYTES,
}
"""What a run leaves in its directory, and how much of each comes home."""
_PLOTS = "plots"


def order_of(job: "Job", template: Template) -> dict[str, Any]:
    """Give a run to make as data, with the files of its code that differ from the template's.

    Raises:
        StorageError: its code can't be read.

    """
    return {
        "name": job.name,
        "params": dict(job.params),
        "seed": job.seed,
        "split": job.split,
        "template": template.sha256,
        "metric": template.metric.model_dump(mode="json"),
        "code": None if job.code is None else _edited(template, job.code.directory),
        "watch": None if job.watch is None else job.watch.as_data(),
    }


def run_ordered(
    order: Mapping[str, Any],
    template: Template,
    tools: Tools,
    directory: Path,
    gpus: Sequence[int],
) -> dict[str, Any]:
    """Make the run of an order on this machine, in `directory`; give its answer.

    Args:
        order: as `order_of` gives it.
        template: as this machine has it, with its data; its own metric does not count.
        tools: of this machine.
        directory: for this run alone; there already.
        gpus: as in `run_one`.

    Raises:
        ConfigError: this machine has another template than the lab.
        LabdError: as `run_one`.

    """
    if template.sha256 != order["template"]:
        raise ConfigError(
            f"the template {template.name} is another one here than at the lab",
            where=printable(str(template.directory)),
        )
    template = replace(template, metric=Metric.model_validate(order["metric"]))
    watch = order["watch"]
    try:
        template = snapshot(template, directory / "template")
        run = run_one(
            template,
            tools,
            name=order["name"],
            params=order["params"],
            seed=order["seed"],
            split=order["split"],
            results_dir=directory,
            gpus=gpus,
            code=_code(order["code"], template, directory / "code"),
            watch=None if watch is None else CurveWatch.from_data(watch),
        )
    except OSError as error:
        raise StorageError(
            f"the run's files could not be written: {error.strerror}", where=str(directory)
        ) from error
    return {"run": run.model_dump(mode="json"), "files": _left(directory / run.directory)}


def take_home(answer: Mapping[str, Any], job: "Job", results_dir: Path) -> Run:
    """Put the files of a run elsewhere where those of a run here would be; give the run.

    Raises:
        SlotLost: it is not what was ordered, or more than a run leaves.
        StorageError: the disk would not take it.

    """
    run, files = _checked(answer, job)
    directory = results_dir / "runs" / job.name
    try:
        remove_tree(directory)
        directory.mkdir(parents=True)
        for name, raw in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            write_atomic(directory / name, raw)
    except OSError as error:
        raise StorageError(
            f"the run's files could not be written: {error.strerror}", where=str(directory)
        ) from error
    return run


def _checked(answer: Mapping[str, Any], job: "Job") -> tuple[Run, dict[str, bytes]]:
    try:
        run = Run.model_validate(answer["run"])
        files = dict(answer["files"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise SlotLost(f"its answer is none: {type(error).__name__}") from error
    made = (run.name, run.params, run.seed, run.split, run.directory)
    if made != (job.name, dict(job.params), job.seed, job.split, f"runs/{job.name}"):
        raise SlotLost(f"it made another run than the one that was asked for: {run.name[:100]}")
    if len(files) > len(_FILES) + MAX_PICTURES:
        raise SlotLost(f"it sent {len(files)} files")
    for name, raw in files.items():
        if not isinstance(raw, bytes) or len(raw) > _most_bytes(name):
            raise SlotLost(f"it sent a file that no run leaves: {printable(str(name), 100)}")
    metrics = files.get(METRICS_NAME)
    if run.metrics_sha256 != (None if metrics is None else hashlib.sha256(metrics).hexdigest()):
        raise SlotLost(f"its {METRICS_NAME} is not what it measured by")
    return run, files


def _most_bytes(name: object) -> int:
    """Give how much of a file may come home; less than nothing where none of that name may."""
    if not isinstance(name, str):
        return -1
    folder, _, picture = name.rpartition("/")
    if folder == _PLOTS and PICTURE_NAME.fullmatch(picture):
        return MAX_PICTURE_BYTES
    return _FILES.get(name, -1)


def _left(directory: Path) -> dict[str, bytes]:
    """Give the files that a run has left, by their paths in its directory."""
    files: dict[str, bytes] = {}
    for name, most_bytes in _FILES.items():
        try:
            files[name] = read_plain(directory / name, most_bytes, cut=True)
        except NotPlain:
            continue  # not every run leaves each of them
    plots = directory / _PLOTS
    pictures = read_pictures(plots, besides=()) if plots.is_dir() else {}
    return files | {f"{_PLOTS}/{name}": raw for name, raw in pictures.items()}


def _edited(template: Template, directory: Path) -> dict[str, bytes]:
    try:
        return {path: (directory / path).read_bytes() for path in template.editable}
    except OSError as error:
        raise StorageError(
            f"the code of a trial can't be read: {error.strerror}", where=str(directory)
        ) from error


def _code(edited: Mapping[str, bytes] | None, template: Template, directory: Path) -> Path | None:
    """Make a directory like the template's, with the edited files in place of its own; give it."""
    if edited is None:
        return None
    copy_files(template, directory)
    for path in template.editable:
        (directory / path).write_bytes(edited[path])
    for folder in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        folder.chmod(0o755)  # a run may have another user than labd has
    return directory
