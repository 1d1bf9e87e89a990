"""A program that sets one Typst file as a PDF: ``python -m labd.research.typeset DIRECTORY DATE FONTS``.

A process of its own, so that its caller can put a time limit on it. It reads ``paper.typ`` and pictures in
DIRECTORY and nothing outside it, writes ``paper.pdf`` there, and prints Typst's complaint if there is one.
"""

import os
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path

import typst

MEMORY_BYTES = 4 * 2**30
OUTPUT_BYTES = 256 * 2**20


def typeset(directory: Path, date: str, *, system_fonts: bool) -> None:
    """Write ``paper.pdf`` from ``paper.typ``; the PDF carries `date` (YYYY-MM-DD), so it can be made again.

    Raises:
        typst.TypstError: the file has a fault.

    """
    packages = directory / "no-packages"
    pdf = typst.compile(
        directory / "paper.typ",
        root=directory,
        ignore_system_fonts=not system_fonts,
        package_path=packages,
        package_cache_path=packages,
        timestamp=datetime.fromisoformat(date).replace(tzinfo=UTC),
    )
    (directory / "paper.pdf").write_bytes(pdf)


def main(arguments: list[str]) -> int:
    """Run as a program; give its exit code: 0 done, 1 Typst found a fault, 2 wrong arguments."""
    if len(arguments) != 3:
        sys.stderr.write("usage: python -m labd.research.typeset DIRECTORY DATE embedded|system\n")
        return 2
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES, OUTPUT_BYTES))
    # Typst fetches packages through these; nothing listens on the discard port.
    os.environ.update({"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"})
    try:
        typeset(Path(arguments[0]), arguments[1], system_fonts=arguments[2] == "system")
    except typst.TypstError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
