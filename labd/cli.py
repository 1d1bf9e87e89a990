"""The command line: one function for each verb, each a call of the lab's API and a print.

What was asked for goes to stdout, talk to stderr. `--json` on every reader gives the same as data.
Exit codes: 0 ok, 1 a task or a check failed, 2 usage, 3 not found, 4 refused or busy, 5 the daemon is silent.
"""

import faulthandler
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from labd.errors import Busy, ConfigError, LabdError, MoveRefused, NotFound, TaskFileError

if TYPE_CHECKING:
    from labd.lab import Lab, TaskView
    from labd.settings import Home

EXIT_FAILED, EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_SILENT = 1, 3, 4, 5
_EXIT_CODES: list[tuple[type[LabdError], int]] = [
    (NotFound, EXIT_NOT_FOUND),
    (MoveRefused, EXIT_REFUSED),
    (Busy, EXIT_REFUSED),
]

app = typer.Typer(
    name="labd",
    help="A research lab that never stops: drop a YAML file into spool/pending, find a paper in results/.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich for a help page takes longer than all the rest of it
    context_settings={"help_option_names": ["-h", "--help"]},
)

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="The lab's directory; else $LABD_HOME, else here.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class _State:
    home: Path | None = None


@app.callback()
def _root(home: HomeOption = None) -> None:
    _State.home = home


def main() -> None:
    """Run the command line; errors of labd become a message and an exit code."""
    try:
        app()
    except LabdError as error:
        _complain(error)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(EXIT_FAILED) from None


@app.command()
def up(
    *,
    home: HomeOption = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Stop when the spool is drained; exit 1 if a task failed."),
    ] = False,
    page: Annotated[
        bool,
        typer.Option("--page/--no-page", help="Serve the status page, if the settings say so."),
    ] = True,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the daemon in the foreground, and the status page beside it.

    Examples:  labd up --home ~/lab      labd up --once
    """
    from labd.boxed import warn_of_gaps
    from labd.daemon import Daemon
    from labd.log import stderr_logger

    if log_level not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter("debug, info, warning or error", param_hint="--log-level")
    the_home = _home(home, make=True)
    log = stderr_logger(level=log_level, copy=the_home.daemon_log)
    faulthandler.enable()  # a watchdog's SIGABRT then shows in the log where the daemon hangs
    if the_home.settings.ray.address is None:
        # Where Ray is a service, its workers try their sandboxes themselves, in their own unit.
        # Before anything is started: labd may have to move into a control group of its own first.
        warn_of_gaps(the_home.settings.sandbox, log)
    raise typer.Exit(Daemon(the_home, log, once=once, page=page and not once).run())


@app.command()
def submit(
    files: Annotated[list[Path], typer.Argument(help="Task files; each is checked first.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Check task files and copy them into the spool; print their ids.

    Examples:  labd submit my-idea.yaml      labd submit config/examples/*.yaml
    """
    lab = _lab(make=True)
    ids: list[str] = []
    bad: list[TaskFileError] = []
    for file in files:
        try:
            ids.append(lab.submit(file))
        except TaskFileError as error:
            bad.append(error)
    _answer(
        as_json,
        {"submitted": ids, "refused": [str(error) for error in bad]},
        lambda: _out("\n".join(ids)) if ids else None,
    )
    for refused in bad:
        _err(str(refused))
    if ids and not lab.status().up:
        _err("labd: no daemon runs here; the tasks wait until `labd up` is started")
    if bad:
        raise typer.Exit(EXIT_FAILED)


@app.command(name="run")
def run_one(file: Annotated[Path, typer.Argument(help="A task file.")]) -> None:
    """Submit one task, start a daemon if none runs, show its progress, and end with what was found.

    Examples:  labd run config/examples/first-paper.yaml      labd run my-idea.yaml
    """
    from labd.watch import run_and_watch

    raise typer.Exit(run_and_watch(_lab(make=True), file))


@app.command(name="list")
def list_tasks(
    *,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", "-s", help="Only these states.", show_default=False),
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=1, max=100_000, help="At most so many of each state."),
    ] = 20,
    label: Annotated[
        str | None,
        typer.Option("--label", "-l", help="Only tasks with this label.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tasks: what runs, what starts next and why it waits, what ended last.

    Examples:  labd list      labd list -s failed --json      labd list --label nightly
    """
    from labd.task import State

    known = [s.value for s in State]
    for name in state or []:
        if name not in known:
            raise typer.BadParameter(
                f"{name!r} is not one of {', '.join(known)}", param_hint="--state"
            )
    lab = _lab()
    counted = lab.counts()
    views = lab.tasks(tuple(State(name) for name in state or known), limit, label, counted)
    counts = {s.value: n for s, n in counted.items()}
    status = lab.status()
    data = {
        "tasks": [view.as_json() for view in views],
        "counts": counts,
        "daemon": {"up": status.up, "status_age_s": status.age_s},
        "paused": lab.paused,
    }
    notes = ("; no daemon runs" if not status.up else "") + (
        "; paused: nothing new is started until `labd resume`" if lab.paused else ""
    )
    _answer(as_json, data, lambda: _show_list(views, counts, notes))


@app.command()
def show(
    task: Annotated[str, typer.Argument(help="A task's id, or how it begins.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show one task: its state and why, what happened to it, what it found, where its files are.

    Examples:  labd show first-paper      labd show first --json
    """
    lab = _lab()
    view = lab.find(task)
    history = [dict(event) for event in lab.history(view.id).events]
    data = {
        "task": view.as_json(),
        "events": history,
        "result": lab.result(view.id),
        "results_dir": str(lab.results_dir(view.id)),
    }
    _answer(as_json, data, lambda: _show_task(lab, view, history))


@app.command()
def logs(
    task: Annotated[str, typer.Argument(help="A task's id, or how it begins.")],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a task's log.

    Examples:  labd logs first-paper      labd logs -f first-paper
    """
    from labd.follow import LogFollower

    lab = _lab()
    view = lab.find(task)
    log = LogFollower(lab, view.id, _out, as_json=as_json)
    log.print_new()
    if follow:
        for now in lab.wait_for(view.id, poll_s=0.2):
            log.print_new()
            if now.state.decided:
                _err(f"labd: {_safe(view.id)} is {now.state.value}")
    log.finish()


@app.command()
def cancel(
    tasks: Annotated[list[str], typer.Argument(help="Ids of waiting or running tasks.")],
) -> None:
    """Cancel tasks: a running one's processes are ended.

    Examples:  labd cancel my-idea      labd cancel my-idea other-idea
    """
    _each(tasks, lambda lab, name: f"{_safe(lab.cancel(name).id)} cancelled")


@app.command()
def retry(
    tasks: Annotated[list[str], typer.Argument(help="Ids of failed, cancelled or done tasks.")],
) -> None:
    """Ask for ended tasks again: failed and cancelled ones go on from their last finished step.

    Examples:  labd retry my-idea      labd retry my-idea other-idea
    """
    _each(tasks, lambda lab, name: f"{_safe(lab.retry(name).id)} waits again")


@app.command()
def priority(
    task: Annotated[str, typer.Argument(help="The id of a waiting task, or how it begins.")],
    number: Annotated[int, typer.Argument(min=-1000, max=1000, help="Higher starts first.")],
) -> None:
    """Give a waiting task another priority: a new file takes the old one's place.

    Examples:  labd priority my-idea 10      labd priority my-idea -- -5
    """
    view = _lab().set_priority(task, number)
    _out(f"{_safe(view.id)} has priority {view.priority}")


@app.command()
def pause() -> None:
    """Have nothing new started; what runs goes on. Holds until `labd resume`, also across restarts.

    Examples:  labd pause      touch spool/paused
    """
    _lab().pause()
    _out("paused; what runs goes on, and `labd resume` lets work start again")


@app.command()
def resume() -> None:
    """Let work start again after `labd pause`.

    Examples:  labd resume      rm spool/paused
    """
    _lab().resume()
    _out("resumed")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Task files.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with task files, or with campaigns in a directory of this name: file, line, column, what was wanted.

    Examples:  labd check my-idea.yaml      labd check --json config/campaigns/*.yaml
    """
    from labd.lab import Lab
    from labd.settings import Home, Settings

    try:
        lab = _lab()
    except NotFound:
        lab = Lab(Home(Path.cwd(), Settings()))
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            problems, warnings = [], []
            if file.parent.resolve().name == "campaigns":
                lab.check_campaign(file)
            else:
                warnings = lab.check(file).spec.warnings()
        except (TaskFileError, ConfigError) as error:
            problems, warnings = str(error).splitlines(), []
        found.append(
            {"file": str(file), "ok": not problems, "problems": problems, "warnings": warnings}
        )
    _answer(as_json, found, lambda: _show_checks(found))
    if not all(entry["ok"] for entry in found):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def campaigns(
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=100, help="Firings of each step.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Show the campaigns: when each fires next, what is still to come of it, what is wrong with it.

    Examples:  labd campaigns      labd campaigns -n 5 --json
    """
    found = _lab().campaigns(limit)
    _answer(as_json, found, lambda: _show_campaigns(found))


campaign_app = typer.Typer(help="One campaign: start it now.", no_args_is_help=True)
app.add_typer(campaign_app, name="campaign")


@campaign_app.command(name="run")
def run_campaign(
    name: Annotated[str, typer.Argument(help="A campaign's name.")],
    *,
    step: Annotated[
        str | None, typer.Option(help="One of its steps, where it has more.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the task files; submit nothing.")
    ] = False,
) -> None:
    """Submit the tasks of a campaign's step now, also of one that is not enabled; print their ids.

    Examples:  labd campaign run nightly      labd campaign run weekend-marathon --step sweep --dry-run
    """
    lab = _lab(make=not dry_run)
    if dry_run:
        for draft in lab.campaign_drafts(name, step):
            _out(f"--- # {draft.name}\n{draft.text}".rstrip())
        return
    _out("\n".join(lab.run_campaign(name, step)))
    if not lab.status().up:
        _err("labd: no daemon runs here; the tasks wait until `labd up` is started")


@app.command()
def models(*, as_json: JsonOption = False) -> None:
    """Show the language models: where each is, whether it is loaded, what is asked of it.

    Examples:  labd models      labd models --json
    """
    from labd import inventory

    found = inventory.models(_lab())
    _answer(as_json, found, lambda: _show_models(found))


@app.command()
def nodes(*, as_json: JsonOption = False) -> None:
    """Show the machines: what they have, which servers of language models, what runs there.

    Examples:  labd nodes      labd nodes --json
    """
    from labd import inventory

    found = inventory.nodes(_lab())
    _answer(as_json, found, lambda: _show_nodes(found))


@app.command()
def drain(
    nodes: Annotated[list[str], typer.Argument(help="Names as `labd nodes` has them.")],
) -> None:
    """Have no new tasks go to machines; what runs there goes on to its end. Holds until `labd undrain`.

    Examples:  labd drain ada      labd drain ada bob
    """
    _drain(nodes, drained=True)


@app.command()
def undrain(
    nodes: Annotated[list[str], typer.Argument(help="Names of drained machines.")],
) -> None:
    """Let new tasks go to drained machines again.

    Examples:  labd undrain ada      labd undrain ada bob
    """
    _drain(nodes, drained=False)


@app.command()
def doctor(*, as_json: JsonOption = False) -> None:
    """Try whether this machine keeps labd's promises, and say what to do where it does not.

    Examples:  labd doctor      labd doctor --json
    """
    from labd.doctor import Level, examine

    findings = []
    for finding in examine(_home(make=False)):
        findings.append(finding)
        if not as_json:
            mark = {
                "ok": "ok     ",
                "note": "note   ",
                "warning": "WARNING",
                "failing": "FAILING",
            }[finding.level]
            _out(f"{mark}  {finding.name}: {finding.found}")
            if finding.fix:
                _out(f"         {finding.fix}")
    if as_json:
        _out(
            json.dumps(
                [
                    {"name": f.name, "level": f.level, "found": f.found, "fix": f.fix}
                    for f in findings
                ],
                indent=2,
            )
        )
    if any(f.level is Level.FAILING for f in findings):
        raise typer.Exit(EXIT_FAILED)


template_app = typer.Typer(
    help="Templates: which there are, and what one has and lacks.", no_args_is_help=True
)
app.add_typer(template_app, name="template")


@template_app.command(name="list")
def list_templates(*, as_json: JsonOption = False) -> None:
    """List the templates that a task may name.

    Examples:  labd template list      labd template list --json
    """
    from labd.tryout import templates

    found = templates(_home(make=False))
    header = ("NAME", "KIND", "METRIC", "TITLE")
    rows: list[tuple[str, ...]] = [
        (one["name"], one["style"], one["metric"], _safe(one["problem"] or one["title"], 80))
        for one in found
    ]
    _answer(as_json, found, lambda: _table(header, rows))


@template_app.command(name="check")
def check_template(
    template: Annotated[str, typer.Argument(help="A template's name, or any directory.")],
    *,
    run: Annotated[
        bool, typer.Option("--run", help="Run the baseline once in the sandbox.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a template has and lacks, and what would be run; exit 1 if something is missing.

    Examples:  labd template check digits --run      labd template check ~/AI-Scientist/templates/seir
    """
    from labd.tryout import examine_template, try_baseline

    home = _home(make=False)
    found = examine_template(home, template)
    facts: dict[str, Any] = {
        "requirements": [
            {"name": one.name, "state": one.state, "found": one.found, "fix": one.fix}
            for one in found.requirements
        ]
    }
    if not as_json:
        _show_requirements(facts["requirements"])
    good = found.passes
    if run and good and found.template is not None:
        tried = try_baseline(home, found.template)
        good = not tried.problem
        facts["baseline"] = {
            "value": tried.run.value, "metric": tried.metric, "problem": tried.problem,
            "wall_s": tried.run.wall_s, "output": list(tried.tail),
        }  # fmt: skip
        if not as_json:
            _show_baseline(facts["baseline"])
    if as_json:
        _out(json.dumps(facts, indent=2))
    if not good:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def sandbox(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")],
    *,
    gpu: Annotated[
        list[int] | None,
        typer.Option(min=0, help="A GPU by its index; may be repeated.", show_default=False),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(help="Seen as /work, and written to; else an empty one that is thrown away."),
    ] = None,
    timeout: Annotated[str, typer.Option(help="When it is killed, such as 90s or 4h.")] = "1h",
    network: Annotated[
        bool, typer.Option("--network", help="With the host's network, if the settings allow it.")
    ] = False,
) -> None:
    """Run a command exactly as an experiment would be run, with its limits; end with its exit code.

    Examples:  labd sandbox -- python -c 'print(1)'      labd sandbox --gpu 0 --workdir try -- python train.py
    """
    from labd.boxed import run_boxed
    from labd.clock import parse_duration
    from labd.settings import Settings

    try:
        timeout_s = parse_duration(timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from error
    try:
        settings = _home(make=False).settings
    except NotFound:
        if _State.home is not None:
            raise
        settings = Settings()
    code = run_boxed(
        command,
        settings.sandbox,
        workdir=workdir,
        gpus=gpu or [],
        timeout_s=timeout_s,
        network=network,
    )
    raise typer.Exit(code)


@app.command()
def page(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; else the settings' own.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    hash_password: Annotated[
        bool,
        typer.Option("--hash-password", help="Ask for a password and print its hash for `users`."),
    ] = False,
    served: Annotated[bool, typer.Option("--served", hidden=True)] = False,
) -> None:
    """Serve the status page by itself; `labd up` does so too.

    Examples:  labd page --port 8000      labd page --hash-password
    """
    if hash_password:
        from labd.page.passwords import hashed

        _out(hashed(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)))
        return
    from labd.page import serve

    lab = _lab()
    settings = lab.home.settings.page
    changed = {"host": host or settings.host, "port": port or settings.port}
    serve(lab, settings.model_copy(update=changed), say=_err, served=served)


# --- helpers


def _home(given: Path | None = None, *, make: bool) -> "Home":
    from labd.settings import load_home

    path = given or _State.home
    the_home = load_home(path)
    if path is not None and not make and not the_home.root.is_dir():
        raise NotFound("there is no such directory", where=str(the_home.root))
    return the_home


def _lab(*, make: bool = False) -> "Lab":
    from labd.lab import Lab

    return Lab(_home(make=make))


def _each(tasks: list[str], ask: "Callable[[Lab, str], str]") -> None:
    lab = _lab()
    worst: LabdError | None = None
    for name in tasks:
        try:
            _out(ask(lab, name))
        except LabdError as error:
            worst = error
            _err(f"labd: {error}")
    if worst is not None:
        raise typer.Exit(_exit_code(worst))


def _drain(nodes: list[str], *, drained: bool) -> None:
    lab = _lab()
    for node in nodes:
        changed = lab.drain(node, drained=drained)
        what = "gets no new tasks" if drained else "gets tasks again"
        _out(f"{_safe(node)} {what}" + ("" if changed else ", as before"))


def _answer(as_json: bool, data: object, text: Callable[[], object]) -> None:  # noqa: FBT001
    if as_json:
        _out(json.dumps(data, indent=2))
    else:
        text()


def _show_list(views: "list[TaskView]", counts: dict[str, int], notes: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from labd.clock import utc_now

    now = utc_now().timestamp()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "state", "what", "age"):
        table.add_column(name, no_wrap=True)
    table.add_column("why, how far", overflow="fold")
    styles = {"running": "cyan", "done": "green", "failed": "red", "cancelled": "dim"}
    for view in views:
        far = _progress(view)
        what = view.template or view.kind
        style = styles.get(view.state.value, "")
        cells = (_safe(view.id, 60), view.state.value, what, _age(now - view.dropped_at))
        table.add_row(
            *(Text(cell, style=style if i == 1 else "") for i, cell in enumerate(cells)),
            Text(far or _safe(view.why, 300)),
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if views:
        console.print(table)
    _err(", ".join(f"{number} {state}" for state, number in counts.items()) + notes)


def _show_task(lab: "Lab", view: "TaskView", history: list[dict[str, Any]]) -> None:
    _out(
        f"{_safe(view.id)}: {view.state.value}"
        + (f", {_safe(view.why, 2000)}" if view.why else "")
    )
    if far := _progress(view):
        _out(f"  {far}")
    for event in history:
        error = (event.get("error") or {}).get("message", "")
        text = " ".join(
            filter(
                None,
                [
                    f"attempt {event['attempt']}" if event.get("attempt") else "",
                    event.get("reason", ""),
                    error,
                ],
            )
        )
        _out(f"  {event['at']}  {event['event']}  {_safe(text)}")
    for line in (lab.result(view.id) or {}).get("summary", []):
        _out(f"  {_safe(line)}")
    directory = lab.results_dir(view.id)
    for name in (
        "paper.pdf",
        "paper.html",
        "paper.md",
        "paper.tex",
        "output.jsonl",
        "errors.jsonl",
        "log.txt",
        "files",
        "result.json",
    ):
        path = directory / name
        if path.is_dir() or (path.is_file() and path.stat().st_size):
            _out(f"  {path}")


def _show_models(found: dict[str, Any]) -> None:
    from labd.inventory import different_weights, endpoint_lines, model_lines

    rows = list(model_lines(found))
    if rows:
        _table(("model", "endpoint", "state", "size", "context", "in flight", "digest"), rows)
    for line in endpoint_lines(found["endpoints"]):
        _out(line)
    for model, count in found["waiting"].items():
        _out(f"{count} requests wait for {model}")
    for model, note in found["notes"].items():
        _out(f"{model}: {note}")
    for model in different_weights(found["endpoints"]):
        _err(f"labd: {model} has different weights under the same name; `labd doctor` says where")
    if not found["endpoints"]:
        _err("labd: no endpoint; name one in config/labd.yaml, or start Ollama on this machine")
    if not found["live"]:
        _err("labd: asked just now; what is in flight is known only while tasks use models")


def _show_nodes(found: list[dict[str, Any]]) -> None:
    from labd.inventory import endpoint_lines, machine_lines

    for node in found:
        if node["name"]:
            size = [
                f"{node[key]:g} {unit}"
                for key, unit in (("num_cpus", "CPUs"), ("num_gpus", "GPUs"))
                if node[key] is not None
            ]
            drained = " (drained: no new tasks)" if node.get("drained") else ""
            _out(f"{_safe(node['name'])}: {', '.join(size) or 'no daemon runs'}{drained}")
            for line in machine_lines(node.get("machine")):
                _out(f"  {line}")
        else:
            _out("elsewhere:")
        if node["running"]:
            _out(f"  runs {', '.join(_safe(task, 60) for task in node['running'][:20])}")
        for line in endpoint_lines(node["endpoints"]):
            _out(f"  {line}")
        for endpoint in node["endpoints"]:
            loaded = [model["name"] for model in endpoint["models"] if model["loaded"]]
            if loaded:
                _out(f"    loaded: {', '.join(loaded)}")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _show_campaigns(found: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = []
    for one in found:
        state = "" if one["enabled"] else "not enabled"
        if one["problem"]:
            rows.append((one["name"], "", "", "", "not valid"))
        elif not one["next"]:
            rows.append(
                (one["name"], "", "always" if one["adaptive"] and not state else "", "", state)
            )
        rows += [
            (one["name"], firing["step"], firing["at"][:16].replace("T", " ") + firing["at"][19:], str(firing["tasks"]), state)
            for firing in one["next"]
        ]  # fmt: skip
    if rows:
        _table(("CAMPAIGN", "STEP", "NEXT", "TASKS", ""), rows)
    for one in found:
        for line in one["problem"].splitlines():
            _err(line)
        for step, rest in one["open"].items():
            _out(
                f"{one['name']} {step}: {rest['done']} tasks of {rest['instant']} are in, the rest follows".replace(
                    "  ", " "
                )
            )
    if not found:
        _err("labd: no campaigns in config/campaigns")


def _show_checks(found: list[dict[str, Any]]) -> None:
    for entry in found:
        for problem in entry["problems"]:
            _out(problem)
        for warning in entry["warnings"]:
            _out(f"{_safe(entry['file'])}: warning: {warning}")
        if entry["ok"]:
            _out(f"{_safe(entry['file'])}: ok")


def _show_requirements(requirements: list[dict[str, Any]]) -> None:
    for one in requirements:
        mark = str(one["state"]).upper() if one["state"] == "missing" else str(one["state"])
        _out(f"{mark:8} {one['name']}: {one['found']}")
        if one["fix"]:
            _out(f"         {one['fix']}")


def _show_baseline(tried: dict[str, Any]) -> None:
    for line in tried["output"]:
        _out(f"  | {line}")
    if tried["problem"]:
        _out(f"MISSING  baseline: {_safe(tried['problem'])}, after {tried['wall_s']:g} s")
    else:
        _out(f"ok       baseline: {tried['value']:.6g} ({tried['metric']}), {tried['wall_s']:g} s")


def _progress(view: "TaskView") -> str:
    if view.progress is None:
        return ""
    p = view.progress
    return f"{p.stage} {p.done}/{p.total} {p.detail}".strip()


def _age(seconds: float) -> str:
    from labd.clock import print_duration

    return print_duration(max(0.0, seconds))


def _safe(value: object, limit: int = 500) -> str:
    from labd.text import printable

    return printable(str(value), limit)


def _out(text: str) -> None:
    print(text)


def _err(text: str) -> None:
    print(text, file=sys.stderr)


def _exit_code(error: LabdError) -> int:
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_FAILED)


def _complain(error: LabdError) -> NoReturn:
    _err(f"labd: {error}")
    raise SystemExit(_exit_code(error))


if __name__ == "__main__":
    main()
