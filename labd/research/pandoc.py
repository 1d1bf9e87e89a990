"""Running pandoc on untrusted Markdown: by the clock, without files, reading only harmless syntax.

Gives and takes pandoc's document tree as JSON data. Knows nothing of papers.
"""

import json
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pypandoc

from labd.errors import ResearchError, TimedOut
from labd.text import head_and_tail, printable

Element = dict[str, Any]
"""A block or inline of pandoc's tree: ``{"t": "Para", "c": [...]}``.

Source: https://hackage.haskell.org/package/pandoc-types, Text.Pandoc.Definition.
"""

MAX_MARKDOWN_CHARS = 2**19
_API_VERSION = [1, 23, 1]
_MEMORY = "2g"

# What is read as markup, and nothing else: no raw HTML, TeX or attributes, no YAML, no macros, no
# attributes but on headings, no automatic links, no citations.
_EXTENSIONS = (
    "all_symbols_escapable", "auto_identifiers", "backtick_code_blocks", "blank_before_blockquote",
    "blank_before_header", "definition_lists", "escaped_line_breaks", "fenced_code_attributes",
    "fenced_code_blocks", "footnotes", "header_attributes", "implicit_figures", "inline_notes",
    "intraword_underscores", "pipe_tables", "shortcut_reference_links", "space_in_atx_header",
    "startnum", "subscript", "superscript", "table_captions", "tex_math_dollars",
)  # fmt: skip
_READERS = (
    "markdown_strict-raw_html+" + "+".join(_EXTENSIONS),
    # A parser that doesn't backtrack, for what the first can't get through in time.
    "commonmark+pipe_tables+tex_math_dollars+implicit_figures",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each outside program may take."""

    read_s: float = 60.0
    write_s: float = 60.0
    typeset_s: float = 60.0


def run_pandoc(arguments: Sequence[str], text: str, timeout_s: float) -> str:
    """Give what pandoc prints for `text`; it can read no file but a template and reach no network.

    Raises:
        TimedOut: it took longer than `timeout_s`.
        ResearchError: it refused, or ran out of its memory.

    """
    command = [pypandoc.get_pandoc_path(), "+RTS", f"-M{_MEMORY}", "-RTS", "--sandbox", *arguments]
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
            cwd="/",
            env={"LANG": "C.UTF-8", "HOME": "/nonexistent", "PATH": "/usr/bin:/bin"},
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"pandoc took longer than {timeout_s:g} s") from error
    if done.returncode != 0:
        reason = printable(done.stderr.decode(errors="replace").strip(), 300)
        raise ResearchError(f"pandoc ended with code {done.returncode}: {reason}")
    return done.stdout.decode()


def read_markdown(markdown: str, limits: Limits) -> tuple[list[Element], list[str]]:
    """Give the blocks of untrusted Markdown (`clean_text`), still to be tidied, and warnings.

    What no reader gets through comes as one block of code.
    """
    warnings = []
    if len(markdown) > MAX_MARKDOWN_CHARS:
        warnings.append(
            f"the text was cut from {len(markdown)} to {MAX_MARKDOWN_CHARS} characters"
        )
    text = head_and_tail(markdown, MAX_MARKDOWN_CHARS)
    for reader in _READERS:
        try:
            tree = run_pandoc(["--from", reader, "--to", "json"], text, limits.read_s)
            # Nesting so deep that JSON can't be read back is no text for people either.
            return json.loads(tree)["blocks"], warnings
        except (TimedOut, ResearchError, RecursionError) as error:
            warnings.append(f"the text was hard to read: {error}")
    warnings.append("the text is shown as code, because no reader got through it")
    return [code_block(text)], warnings


def write(
    blocks: Sequence[Element],
    meta: Element,
    *,
    to: str,
    template: Path | None,
    limits: Limits,
    options: Sequence[str] = (),
) -> str:
    """Print a tidied tree in pandoc's format `to`, in `template` if there is one.

    Raises:
        TimedOut, ResearchError: as `run_pandoc`.

    """
    tree = json.dumps({"pandoc-api-version": _API_VERSION, "meta": meta, "blocks": list(blocks)})
    arguments = [
        "--from",
        "json",
        "--to",
        to,
        "--wrap=none",
        "--syntax-highlighting=none",
        *options,
    ]
    if template is not None:
        arguments.append(f"--template={template}")
    return run_pandoc(arguments, tree, limits.write_s)


def clean_text(text: str) -> str:
    """Give `text` with line feeds only and all other control and format characters as their escapes."""
    lines = text.expandtabs(4).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join("".join(map(_clean_char, line)) for line in lines)


def _clean_char(char: str) -> str:
    # Joiners hold scripts and emoji together; they do not reorder anything.
    if char in "\u200b\u200c\u200d" or unicodedata.category(char) not in {
        "Cc",
        "Cf",
        "Cs",
        "Zl",
        "Zp",
    }:
        return char
    return printable(char)


def code_block(text: str, language: str = "") -> Element:
    """Give a block that shows `text` as it is."""
    return {"t": "CodeBlock", "c": [["", [language] if language else [], []], text]}


def plain_inlines(text: str) -> list[Element]:
    """Give inlines that show one line of `text` as it is."""
    inlines: list[Element] = []
    for word in clean_text(text).split():
        inlines += [{"t": "Str", "c": word}, {"t": "Space"}]
    return inlines[:-1]
