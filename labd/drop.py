"""What a task must pass at the drop beyond its own form: that what it names is there and may be named."""

from labd.command import check_command
from labd.prompts import check_prompts
from labd.settings import Home
from labd.task import TaskFile
from labd.template import check_template


def check_drop(task: TaskFile, where: str, home: Home) -> None:
    """Pass if a task read from the file `where` can run in this lab.

    Raises:
        TaskFileError: a template, a path, a text or the network is not right or not there for it; with the key's place.

    """
    if task.spec.kind == "research":
        check_template(task, where, roots=[home.templates])
        return
    if task.spec.kind == "prompts":
        check_prompts(
            task,
            where,
            roots=home.inputs,
            forbidden=home.forbidden,
            results=home.results,
        )
        return
    check_command(
        task,
        where,
        roots=home.inputs,
        forbidden=home.forbidden,
        results=home.results,
        allow_network=home.settings.sandbox.allow_network,
    )
