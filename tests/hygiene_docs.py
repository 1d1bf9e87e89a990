"""The limits of a lab's own files, as docs/operations.md states them."""

from fnmatch import fnmatch
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs" / "operations.md"


def bounded_by_docs() -> list[str]:
    """Give the patterns of the files in spool/.labd/ for which docs/operations.md states a limit."""
    rows = [line.split("|") for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    cells = [row[1] for row in rows if len(row) > 2 and row[2].strip()]
    return [name.strip(" `") for cell in cells for name in cell.split(",")]


def unbounded(run_dir: Path) -> list[str]:
    """Give the files of a lab's own directory for which the documentation states no limit."""
    patterns = bounded_by_docs()
    return [
        path.name
        for path in run_dir.iterdir()
        if not any(fnmatch(path.name, pattern) for pattern in patterns)
    ]
