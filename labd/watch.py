"""`labd run`: one task from file to outcome, watched on the terminal."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from labd.clock import print_duration
from labd.errors import EngineError
from labd.follow import LogFollower
from labd.lab import Lab, TaskView, progress_of
from labd.task import State
from labd.text import printable

_STOP_GRACE_S = 30.0


def run_and_watch(lab: Lab, file: Path) -> int:
    """Submit, watch, tell; give the exit code: 0 if the task is done."""
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    task_id = lab.submit(file)
    console.print(
        f"labd: submitted {printable(task_id)}: {lab.home.spool / 'pending'}", markup=False
    )
    watch = _watch_command if lab.find(task_id).kind == "command" else _watch
    with _daemon(lab, console) as daemon:
        view = watch(lab, task_id, console, daemon)
    _tell(lab, view, time.monotonic() - started)
    return 0 if view.state is State.DONE else 1


@contextmanager
def _daemon(lab: Lab, console: Console) -> Iterator["subprocess.Popen[bytes] | None"]:
    """Have a daemon: the one that runs already, or one of our own for as long as the block runs."""
    if lab.status().up:
        console.print("labd: a daemon runs already")
        yield None
        return
    log = lab.home.run_dir / "daemon.log"
    console.print(f"labd: starting a daemon on {lab.home.spool} (its log: {log})", markup=False)
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "labd.cli", "--home", str(lab.home.root), "up", "--no-page"],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_GRACE_S)


def _watch(
    lab: Lab, task_id: str, console: Console, daemon: "subprocess.Popen[bytes] | None"
) -> TaskView:
    offset, bars = 0, dict[str, TaskID]()
    last = ""
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", table_column=Column(width=9, no_wrap=True)),
        BarColumn(table_column=Column(width=20)),
        TextColumn(
            "{task.completed:g}/{task.total:g}", table_column=Column(width=7, no_wrap=True)
        ),
        TimeElapsedColumn(table_column=Column(width=7, no_wrap=True)),
        TextColumn(
            "{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True, ratio=1)
        ),
    )
    with Progress(
        *columns, console=console, expand=True, disable=not console.is_terminal
    ) as progress:
        waiting = progress.add_task("waiting", total=1, detail="for the engine to start")
        view = lab.find(task_id)
        for view in lab.wait_for(task_id):
            _refuse_dead(daemon, view)
            if view.state is State.PENDING:
                progress.update(waiting, detail=printable(view.why or "for the daemon", 80))
            else:
                progress.update(waiting, completed=1, detail="")
            lines, offset = lab.log_lines(view.id, offset)
            for line in lines:
                if line.get("event") != "stage.progress":
                    continue
                step = progress_of(line)
                if step.stage not in bars:
                    bars[step.stage] = progress.add_task(
                        printable(step.stage, 12), total=step.total, detail=""
                    )
                progress.update(
                    bars[step.stage],
                    completed=step.done,
                    total=step.total,
                    detail=step.detail[:60],
                )
                if not console.is_terminal and step.stage != last:
                    console.print(f"labd: {step.stage}", markup=False)
                    last = step.stage
    return view


def _watch_command(
    lab: Lab, task_id: str, console: Console, daemon: "subprocess.Popen[bytes] | None"
) -> TaskView:
    """Print the command's output on stdout as it comes; why it waits, on stderr."""
    log = LogFollower(lab, task_id, print)
    view, last = lab.find(task_id), ""
    for view in lab.wait_for(task_id):
        _refuse_dead(daemon, view)
        why = view.why if view.state is State.PENDING else ""
        if why and why != last:
            console.print(f"labd: {printable(why, 300)}", markup=False)
        last = why or last
        log.print_new()
    log.finish()
    return view


def _refuse_dead(daemon: "subprocess.Popen[bytes] | None", view: TaskView) -> None:
    if daemon is not None and daemon.poll() is not None and not view.state.decided:
        raise EngineError(f"the daemon ended with {daemon.returncode}", fix="Its log says why")


def _tell(lab: Lab, view: TaskView, took_s: float) -> None:
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    if view.state is not State.DONE:
        out.print(
            f"{printable(view.id)}: {view.state.value} after {print_duration(took_s)}",
            markup=False,
        )
        out.print(f"  {printable(view.why, 2000)}", markup=False)
        out.print(f"  its log: labd logs {printable(view.id)}", markup=False)
        return
    out.print(f"{printable(view.id)}: done in {print_duration(took_s)}", markup=False)
    for line in (lab.result(view.id) or {}).get("summary", []):
        out.print(f"  {printable(str(line), 400)}", markup=False)
    for path in lab.outputs(view.id):
        out.print(f"  {path}", markup=False, soft_wrap=True)
