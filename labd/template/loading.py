"""Finding a template by its name or path, and reading it with words that help where it is not right."""

import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from labd.errors import ConfigError, TaskFileError
from labd.task import TaskFile
from labd.template import ai_scientist, autoresearch
from labd.template.files import hash_files, read_regular
from labd.template.form import ANY_NAME, FILE_NAME, AdapterFile, TemplateFile
from labd.template.model import SeedIdea, Style, Template, scaled
from labd.text import printable
from labd.yamlfile import MAX_BYTES, Document, InvalidFile, check, load_yaml

SEED_IDEAS = "seed_ideas.json"
SHIPPED = Path(__file__).parent.parent / "templates"

_MAX_SEED_IDEAS = 100


def list_templates(roots: Sequence[Path]) -> dict[str, Path]:
    """Give the directory of each template by name: those in `roots`, earlier ones first, then the shipped."""
    found: dict[str, Path] = {}
    for root in (*roots, SHIPPED):
        if not root.is_dir():
            continue
        for path in sorted(root.iterdir()):
            if re.match(ANY_NAME, path.name) and is_template(path):
                found.setdefault(path.name, path)
    return found


def is_template(directory: Path) -> bool:
    """Say whether a directory has a `template.yaml`, or is one of another system that labd can run."""
    return (directory / FILE_NAME).is_file() or foreign_style(directory) is not None


def foreign_style(directory: Path) -> Style | None:
    """Give the system whose directory this looks like; ``None``: none that labd knows."""
    if all((directory / name).is_file() for name in ai_scientist.FILES):
        return "ai_scientist"
    if all((directory / name).is_file() for name in autoresearch.FILES):
        return "autoresearch"
    return None


def load_template(name_or_path: str, *, roots: Sequence[Path]) -> Template:
    """Read a template by its name, or by a path that lies in one of `roots`.

    Raises:
        ConfigError: there is no such template, or it is not valid; the text says file and line.

    """
    return read_template(_find(name_or_path, roots))


def read_template(directory: Path) -> Template:
    """Read the template in a directory, in its first scale where it has some.

    Raises:
        ConfigError: it is not valid; the text says file and line.

    """
    path = directory / FILE_NAME
    if not path.is_file():
        style = foreign_style(directory)
        if style is None:
            raise ConfigError(
                f"there is no {FILE_NAME}, and the files are those of no other system that labd knows",
                where=printable(str(directory)),
                fix="`labd template check` says what is missing",
            )
        return _foreign(directory, style)
    try:
        document = load_yaml(read_regular(path, MAX_BYTES + 1))
        if isinstance(document.data, dict) and "adapter" in document.data:
            said = check(AdapterFile, document)
            return replace(_foreign(directory, said.style), **said.changes())
        return _own(directory, document)
    except InvalidFile as error:
        lines = [problem.located(printable(str(path))) for problem in error.problems[:20]]
        raise ConfigError("\n".join(lines)) from error


def _own(directory: Path, document: Document) -> Template:
    files = hash_files(directory)
    parsed = check(TemplateFile, document)
    where = printable(str(directory / FILE_NAME))
    if parsed.name != directory.name:
        raise ConfigError(
            f"the template says it is {parsed.name!r}, but its directory is {printable(directory.name)!r}",
            where=where,
            fix="Give both the same name",
        )
    own = sorted(set(files) - {FILE_NAME})
    for key in ("editable", "private"):
        strange = [name for name in getattr(parsed, key) if name not in own]
        if strange:
            raise ConfigError(
                f"{key}: {printable(strange[0])} is no file of the experiment",
                where=where,
                fix=f"Name files below the directory: {', '.join(own[:20])}",
            )
    template = parsed.template(directory, files)
    return scaled(template, next(iter(template.scales))) if template.scales else template


def _foreign(directory: Path, style: Style) -> Template:
    files = hash_files(directory, style)
    read = ai_scientist.read if style == "ai_scientist" else autoresearch.read
    return read(directory, files)


def check_template(
    task: TaskFile,
    name: str,
    *,
    roots: Sequence[Path],
    inputs: Sequence[Path] = (),
    forbidden: Sequence[Path] = (),
) -> None:
    """Pass if the task's template is there, valid, and can be researched as asked, so that it is told at the drop.

    Raises:
        TaskFileError: it is not; with the place of the key in the file `name`.

    """
    key = "template"
    try:
        template = load_template(task.spec.template or "", roots=roots)
        refuse_places(template, roots=inputs, forbidden=forbidden)
        key = "researcher"
        refuse_researcher(template, "llm" if task.spec.by_llm else "sweep")
        key = "scale"
        if task.spec.scale is not None:
            scaled(template, task.spec.scale)
    except ConfigError as error:
        place = load_yaml(task.text.encode()).place((key,))
        where = f"{printable(name)}:{place.line}:{place.column}" if place else printable(name)
        raise TaskFileError(f"{key}: {error}", where=where) from error


def refuse_researcher(template: Template, researcher: str) -> None:
    """Pass if a researcher finds in the template what it works on.

    Raises:
        ConfigError: a sweep without a search space, or a model without a file that it may change.

    """
    if researcher == "sweep" and not template.space:
        raise ConfigError(
            f"the template {template.name} declares no search_space, which is what a sweep searches",
            fix="Write `researcher: llm`, or give the template a search_space",
        )
    if researcher == "llm" and not template.editable:
        raise ConfigError(
            f"the template {template.name} names no editable files, which is what a model changes",
            fix="Write `researcher: sweep`, or name the files under editable in its template.yaml",
        )


def missing_requirements(template: Template) -> list[str]:
    """Give the modules that the template asks for and that labd's Python can't import."""
    return [name for name in template.requirements if importlib.util.find_spec(name) is None]


def seed_ideas(template: Template) -> list[SeedIdea]:
    """Give the ideas in the template's `seed_ideas.json`, as AI-Scientist writes them; those that can't be read are left out."""
    if SEED_IDEAS not in template.files_sha256:
        return []
    try:
        given = json.loads(read_regular(template.directory / SEED_IDEAS, MAX_BYTES))
    except (ValueError, RecursionError):
        return []
    found = []
    for one in given[:_MAX_SEED_IDEAS] if isinstance(given, list) else []:
        if not isinstance(one, dict):
            continue
        by_key = {str(key).lower(): str(value).strip() for key, value in one.items()}
        title = by_key.get("title") or by_key.get("name") or ""
        experiment = by_key.get("experiment") or by_key.get("description") or ""
        if title and experiment:
            found.append(SeedIdea(title=title[:300], experiment=experiment[:4000]))
    return found


def with_data(
    template: Template, *, roots: Sequence[Path], forbidden: Sequence[Path] = ()
) -> Template:
    """Give the template with the places of its data on this machine; what is optional and not there is left out.

    Args:
        template: whose `data` names them.
        roots: below which data may lie.
        forbidden: what is never shown, nor a directory around it.

    Raises:
        ConfigError: something is not there, or lies where it may not.

    """
    mounts: dict[str, Path] = {}
    for name, path in _places(template, roots).items():
        if path is not None and _allowed(name, path, roots, forbidden).exists():
            mounts[name] = Path(os.path.realpath(path))
        elif not template.data[name].optional:
            raise ConfigError(
                f"data: {name} is not there: {printable(template.data[name].path)}",
                where=printable(str(path or template.directory)),
                fix=f"Put it below one of: {_shown(roots)}",
            )
    return replace(template, mounts=mounts)


def refuse_places(
    template: Template, *, roots: Sequence[Path], forbidden: Sequence[Path] = ()
) -> None:
    """Pass if data that the template names may be seen; it need not be there, as on another machine it may be.

    Raises:
        ConfigError: something lies where it may not.

    """
    for name, path in _places(template, roots).items():
        if path is not None:
            _allowed(name, path, roots, forbidden)


def _places(template: Template, roots: Sequence[Path]) -> Mapping[str, Path | None]:
    """Give by name where data lies, or would; a relative path is looked for below each root in their order."""
    found: dict[str, Path | None] = {}
    for name, place in template.data.items():
        # Joined to a root, an absolute path stays as it is.
        candidates = [root / place.path for root in roots] or [Path("/") / place.path]
        first = None if place.optional else candidates[0]
        found[name] = next(filter(os.path.lexists, candidates), first)
    return found


def _allowed(name: str, path: Path, roots: Sequence[Path], forbidden: Sequence[Path]) -> Path:
    real = Path(os.path.realpath(path))
    closed = [Path(os.path.realpath(place)) for place in forbidden]
    hidden = any(real.is_relative_to(place) or place.is_relative_to(real) for place in closed)
    below = any(real.is_relative_to(os.path.realpath(root)) for root in roots)
    if hidden or not below:
        raise ConfigError(
            f"data: {name} may not lie at {printable(str(real))}",
            fix=f"Put it below one of: {_shown(roots)}; or add its directory to `inputs` in config/labd.yaml",
        )
    return real


def _shown(roots: Sequence[Path]) -> str:
    return printable(", ".join(map(str, roots)), 2000) or "no directory yet"


def _find(name_or_path: str, roots: Sequence[Path]) -> Path:
    known = list_templates(roots)
    shown = printable(name_or_path, 200)
    if "/" not in name_or_path:
        if name_or_path in known:
            return _without_links(known[name_or_path], known[name_or_path].parent)
        near = get_close_matches(name_or_path, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"there is no template {shown}{hint}",
            fix=f"Known templates: {', '.join(sorted(known))}",
        )
    for root in roots:
        path = Path(os.path.normpath(root / name_or_path))
        if path.is_relative_to(root) and path != root and is_template(path):
            return _without_links(path, root)
    raise ConfigError(
        f"there is no template at {shown} in any of the places for templates",
        fix=f"Put its directory into one of: {', '.join(str(root) for root in roots) or 'none is set'}",
    )


def _without_links(path: Path, root: Path) -> Path:
    """Give the absolute path, and refuse one that a symbolic link below `root` leads to."""
    real_root = root.resolve()
    absolute = real_root / path.relative_to(root)
    if absolute.resolve() != absolute:
        raise ConfigError(
            "a template may not be reached through a symbolic link",
            where=printable(str(path)),
            fix="Copy the directory there instead",
        )
    return absolute
