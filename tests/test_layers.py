"""Imports go one way through the house: each room may know only the rooms named here."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "labd"

GROUND = {"errors", "clock", "text"}
FILES = GROUND | {"files", "trees", "yamlfile", "fields", "limits"}
MAY_KNOW: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "text": set(),
    "files": {"errors"},
    "trees": GROUND,
    "packing": FILES,
    "yamlfile": {"text"},
    "apikey": {"errors"},
    "journald": set(),
    "log": {"journald"},
    "task": FILES,
    "settings": FILES | {"promises"},
    "spool": FILES | {"task"},
    "archive": FILES | {"task"},
    "journal": FILES,
    "scheduler": {"clock"},
    "llm": FILES | {"apikey", "nvml"},
    "literature": FILES | {"apikey", "template"},
    "promises": set(),
    "fields": {"clock"},
    "limits": {"fields"},
    "sandbox": FILES | {"promises"},
    "template": FILES | {"task"},
    "command": FILES | {"task", "sandbox", "nvml", "packing"},
    "prompts": FILES | {"task", "command", "llm", "log"},
    "drop": FILES | {"task", "settings", "template", "command", "prompts"},
    "machine": {"text", "nvml"},
    "shipping": FILES | {"task", "archive", "template"},
    "research": FILES | {"journal", "sandbox", "template", "llm", "literature"},
    "worker": FILES
    | {"task", "archive", "journal", "llm", "sandbox", "command", "prompts"}
    | {"template", "research", "literature", "log", "packing"},
    "retention": FILES | {"task", "settings", "spool", "archive", "packing"},
    "engine": {"errors", "text", "log", "llm", "worker", "shipping", "machine"},
    "nvml": set(),
    "campaigns": FILES | {"task", "scheduler"},
    "hooks": FILES | {"apikey", "llm", "log", "settings"},
    "daemon": FILES
    | {
        "campaigns",
        "hooks",
        "report",
        "task",
        "settings",
        "spool",
        "archive",
        "scheduler",
        "engine",
        "log",
        "drop",
    },
    "priority": {"yamlfile"},
    "lab": FILES
    | {"task", "settings", "spool", "archive", "drop", "priority", "campaigns", "packing"},
    "recovering": GROUND | {"files", "lab"},
    "agenda": GROUND | {"lab", "campaigns"},
    "published": GROUND,
    "report": FILES | {"task", "settings", "spool", "archive", "published", "campaigns"},
    "timeline": GROUND | {"lab"},
    "index": GROUND | {"lab", "spool", "task"},
    "trials": set(),
    "inventory": GROUND | {"lab", "settings", "llm"},
    "findings": set(),
    "installation": GROUND | {"findings", "task", "settings", "lab"},
    "doctor": GROUND
    | {
        "machine",
        "task",
        "settings",
        "sandbox",
        "llm",
        "lab",
        "inventory",
        "template",
        "findings",
        "installation",
        "hooks",
    },
    "boxed": GROUND | {"limits", "log", "settings", "sandbox", "command"},
    "tryout": GROUND | {"settings", "sandbox", "template", "research"},
    "follow": GROUND | {"files", "lab", "archive", "published"},
    "watch": GROUND | {"lab", "task", "follow"},
    "cli": GROUND
    | {
        "lab",
        "recovering",
        "report",
        "follow",
        "task",
        "settings",
        "retention",
        "hooks",
        "daemon",
        "doctor",
        "inventory",
        "boxed",
        "tryout",
        "watch",
        "log",
        "page",
    },
    "page": GROUND
    | {"lab", "task", "settings", "index", "timeline", "trials", "published", "follow"}
    | {"inventory", "machine", "agenda"},
}


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@cache
def imported(path: Path) -> frozenset[str]:
    """Give the dotted names that a module imports, or imports from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(whole) if node.module == "labd" else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)


def imported_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("labd.")} - {
        "__version__"
    }


MODULES = [
    p
    for p in sorted(PACKAGE.rglob("*.py"))
    if "templates" not in p.parts and p != PACKAGE / "__init__.py"
]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may_know(path: Path) -> None:
    mine = room(path)
    assert mine in MAY_KNOW, f"a new room, {mine}: say in the table what it may know"
    assert imported_rooms(path) - {mine} <= MAY_KNOW[mine]


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("ray", {"engine"}),
        ("gradio", {"page"}),
        ("fastapi", {"page"}),
        ("uvicorn", {"page"}),
        ("watchdog", {"spool"}),
        ("httpx", {"llm", "hooks"}),
        ("httpcore", {"literature"}),
        ("bibtexparser", {"literature"}),
        ("httptools", {"llm"}),
        ("jsonschema", {"llm"}),
        ("cronsim", {"campaigns"}),
        ("optuna", {"research"}),
        ("dulwich", {"research"}),
    ],
)
def test_a_library_is_used_in_its_room_only(library: str, rooms: set[str]) -> None:
    users = {
        room(path)
        for path in MODULES
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users <= rooms
