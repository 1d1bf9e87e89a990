"""What a task must pass at the drop beyond its own form: that what it names is there and may be named."""

from labd.command import check_command
from labd.errors import TaskFileError
from labd.limits import SETTING_OF, ceiling
from labd.prompts import check_prompts
from labd.settings import Home
from labd.task import TaskFile
from labd.template import check_template
from labd.text import printable
from labd.yamlfile import Place, Problem, load_yaml

_SIZES = frozenset({"memory", "disk", "file_size", "output", "shm", "tmp"})


def check_drop(task: TaskFile, where: str, home: Home) -> None:
    """Pass if a task read from the file `where` can run in this lab.

    Raises:
        TaskFileError: a template, a path, a text, a limit or the network is not right or not there for it; with the
            key's place.

    """
    _check_limits(task, where, home)
    if task.spec.kind == "research":
        check_template(
            task, where, roots=[home.templates], inputs=home.inputs, forbidden=home.forbidden
        )
        _check_model(task, where, home)
        return
    if task.spec.kind == "prompts":
        check_prompts(
            task,
            where,
            roots=home.inputs,
            forbidden=home.forbidden,
            results=home.results,
        )
        _check_model(task, where, home)
        return
    check_command(
        task,
        where,
        roots=home.inputs,
        forbidden=home.forbidden,
        results=home.results,
        allow_network=home.settings.sandbox.allow_network,
    )


def _check_limits(task: TaskFile, where: str, home: Home) -> None:
    caps = home.settings.sandbox.model_dump(mode="json")
    asked: dict[tuple[str, ...], tuple[float, float | None]] = {
        ("limits", key): (value, ceiling(caps, key))
        for key in SETTING_OF
        if (value := getattr(task.spec.limits, key)) is not None
    }
    if task.spec.timeout is not None:
        asked["timeout",] = (task.spec.timeout, caps["at_most"]["timeout"])
    problems = [
        _problem(task, key, value, most)
        for key, (value, most) in asked.items()
        if most is not None and value > most
    ]
    if problems:
        raise TaskFileError("\n".join(one.located(printable(where)) for one in problems))


def _check_model(task: TaskFile, where: str, home: Home) -> None:
    """Refuse what asks a language model where nobody says which one."""
    spec = task.spec
    if not spec.asks_models or spec.model is not None or home.settings.llm.model is not None:
        return
    place = load_yaml(task.text.encode()).place(("researcher",)) or Place(1, 1)
    wanted = "`model: …`, or `llm: {model: …}` in config/labd.yaml, and a restart"
    problem = Problem(place, "model", "neither the task nor the settings name one", wanted)
    raise TaskFileError(problem.located(printable(where)))


def _problem(task: TaskFile, key: tuple[str, ...], value: float, most: float) -> Problem:
    place = load_yaml(task.text.encode()).place(key) or Place(1, 1)
    found, allowed = _written(key[-1], value), _written(key[-1], most)
    wanted = (
        f"at most {allowed}, or `at_most: {{{key[-1]}: {found}}}` below `sandbox:` in config/labd.yaml,"
        " and a restart"
    )
    return Problem(place, ".".join(key), f"found {found}", wanted)


def _written(key: str, value: float) -> str:
    """Give a limit as people write it: sizes with their unit where that is exact."""
    if key in _SIZES:
        for unit, size_bytes in (("GiB", 2**30), ("MiB", 2**20)):
            if value >= size_bytes and value % size_bytes == 0:
                return f"{value / size_bytes:.0f}{unit}"
    return str(int(value)) if value == int(value) else f"{value:g}"
