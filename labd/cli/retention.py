"""What is kept of tasks that have ended: pruned by rule or by hand, and unpacked again."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from labd.cli.base import EXIT_FAILED, JsonOption, answer, app, err, open_home, open_lab, out, safe

if TYPE_CHECKING:
    from labd.retention import Done, Keeper, Plan, Rule
    from labd.task import State

_STATES = ("done", "failed", "cancelled")


@app.command()
def prune(
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would go, and by which rule; touch nothing."),
    ] = False,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", "-s", help="Only tasks in these states.", show_default=False),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Instead of the settings' rules: those that ended so long ago, such as 30d.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            help="With --older-than, what stays: results (papers, plots, logs), or the record only."
        ),
    ] = "results",
    compress: Annotated[
        bool,
        typer.Option(
            "--compress", help="With --older-than: compress working files, remove nothing."
        ),
    ] = False,
    automatic: Annotated[bool, typer.Option("--automatic", hidden=True)] = False,
    as_json: JsonOption = False,
) -> None:
    """Compress and remove results of tasks that have ended.

    By the rules of `retention:` in the settings, or by age; task files and ids stay.

    Examples:  labd prune --dry-run      labd prune --state failed --older-than 30d
    """
    from labd.retention import Keeper

    keeper = Keeper(open_home(make=False))
    rules = _rules(keeper, state, older_than, keep, compress=compress)
    if not rules:
        err(
            "labd: no rule says that anything may go: see `retention:` in config/labd.yaml, or name --older-than"
        )
    plan = keeper.plan(rules, time.time())
    if automatic:
        _alone(keeper, plan)
        return
    done = [] if dry_run else list(keeper.carry_out(plan.actions))
    answer(
        as_json, _as_json(plan, done, dry_run=dry_run), lambda: _show(plan, done, dry_run=dry_run)
    )
    if any(one.problem for one in done):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def unpack(
    task: Annotated[str, typer.Argument(help="A task's id, or how it begins.")],
) -> None:
    """Unpack a task's working files that were compressed.

    A task that runs again unpacks them by itself.

    Examples:  labd unpack my-idea      tar tzf results/my-idea/runs.tar.gz
    """
    from labd.retention import Keeper

    lab = open_lab()
    view = lab.find(task)
    names = Keeper(lab.home).unpack(view.id)
    for name in names:
        out(str(lab.results_dir(view.id) / name))
    if not names:
        err(f"labd: nothing of {safe(view.id)} is compressed")


def _rules(
    keeper: "Keeper",
    states: list[str] | None,
    older_than: str | None,
    keep: str,
    *,
    compress: bool,
) -> "dict[State, Rule]":
    from labd.clock import parse_duration
    from labd.retention import Rule
    from labd.task import State

    for name in states or []:
        if name not in _STATES:
            raise typer.BadParameter(
                f"{name!r} is not one of {', '.join(_STATES)}", param_hint="--state"
            )
    wanted = [State(name) for name in states or _STATES]
    if older_than is None:
        return {state: rule for state, rule in keeper.rules.items() if state in wanted}
    if keep not in {"results", "record"}:
        raise typer.BadParameter("results or record", param_hint="--keep")
    try:
        age_s = parse_duration(older_than)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--older-than") from error
    kept = cast("Literal['results', 'record']", keep)
    rule = Rule(compress_after_s=age_s) if compress else Rule(prune_after_s=age_s, keep=kept)
    return dict.fromkeys(wanted, rule)


def _alone(keeper: "Keeper", plan: "Plan") -> None:
    """Do it without anybody watching: only where, and for as long as, the clocks can be believed."""
    from labd.retention import read_clocks

    done, why = keeper.unattended(plan.actions, read_clocks)
    if not why:
        out(_totals(done))
    elif not done:
        out(f"nothing was touched: {why}")
    else:
        out(f"{_totals(done)}; nothing more was touched: {why}")


def _as_json(plan: "Plan", done: "list[Done]", *, dry_run: bool) -> dict[str, Any]:
    became = {one.action.id: one for one in done}
    return {
        "dry_run": dry_run,
        "actions": [
            {
                "id": action.id,
                "state": action.state.value,
                "action": action.what,
                "keep": action.keep,
                "size_bytes": action.size_bytes,
                "reason": action.reason,
                "freed_bytes": became[action.id].freed_bytes if action.id in became else None,
                "problem": became[action.id].problem if action.id in became else "",
            }
            for action in plan.actions
        ],
        "kept": dict(plan.kept),
        "notes": list(plan.notes),
    }


def _show(plan: "Plan", done: "list[Done]", *, dry_run: bool) -> None:
    from labd.text import print_size

    verbs = (
        {"prune": "prune", "compress": "compress"}
        if dry_run
        else {"prune": "pruned", "compress": "compressed"}
    )
    problems = {one.action.id: one.problem for one in done if one.problem}
    for action in plan.actions:
        problem = problems.get(action.id)
        verb = "left" if problem else verbs[action.what]
        size = print_size(action.size_bytes)
        out(
            f"{verb} {safe(action.id, 60)} ({action.state.value}, {size}): {safe(problem or action.reason)}"
        )
    for name, why in plan.kept.items():
        out(f"stays {safe(name, 60)}: {safe(why)}")
    for note in plan.notes:
        err(f"labd: {note}")
    if dry_run:
        size = print_size(sum(action.size_bytes for action in plan.actions))
        err(f"labd: {_tasks(len(plan.actions))} with {size}; nothing was touched")
    else:
        err(f"labd: {_totals(done)}")


def _totals(done: "list[Done]") -> str:
    from labd.text import print_size

    well = [one for one in done if not one.problem]
    counts = {what: sum(one.action.what == what for one in well) for what in ("prune", "compress")}
    freed = print_size(sum(one.freed_bytes for one in well))
    text = f"{_tasks(counts['prune'])} pruned, {counts['compress']} compressed, {freed} freed"
    left = len(done) - len(well)
    return f"{text}; {left} left for the next time, such as {_first_left(done)}" if left else text


def _tasks(number: int) -> str:
    return f"{number} task" + ("" if number == 1 else "s")


def _first_left(done: "list[Done]") -> str:
    first = next(one for one in done if one.problem)
    return f"{safe(first.action.id, 60)}: {safe(first.problem, 200)}"
