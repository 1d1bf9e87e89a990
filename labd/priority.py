"""A task file's text with another priority: all else as people wrote it, comments and order too. Pure."""

import yaml

from labd.yamlfile import InvalidFile, load_yaml

_KEY = "priority"


def with_priority(text: str, priority: int) -> str:
    """Give a valid task's text with this priority.

    Where the key's line can't be replaced alone, as in ``{kind: command, priority: 1}``, the text is written anew.
    """
    wanted = {**load_yaml(text.encode()).data, _KEY: priority}
    for edited in (_replaced(text, priority), f"{text.rstrip()}\n{_KEY}: {priority}\n"):
        try:
            if load_yaml(edited.encode()).data == wanted:
                return edited
        except InvalidFile:
            continue
    return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def _replaced(text: str, priority: int) -> str:
    place = load_yaml(text.encode()).places.get((_KEY,))
    lines = text.splitlines(keepends=True)
    if place is None or place.line > len(lines):
        return ""
    comment = lines[place.line - 1].partition(" #")[2].rstrip("\r\n")
    kept = f"  # {comment.strip()}" if comment else ""
    lines[place.line - 1] = f"{_KEY}: {priority}{kept}\n"
    return "".join(lines)
