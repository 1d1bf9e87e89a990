"""Untrusted text made harmless for a line of a terminal, a log or a table."""

import unicodedata

_LINE_BREAKS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, limit: int = 500) -> str:
    """Give the text on one line, without control, format or surrogate characters, at most `limit` long.

    What is cut is said: the end reads ``… (+N)``. Escape sequences, bidirectional overrides and
    undecodable bytes come out as their escapes, so that a hostile name can't drive a terminal.
    """
    shown = "".join(_shown(char) for char in text[: limit + 1])
    if len(shown) <= limit and len(text) <= limit:
        return shown
    return f"{shown[:limit]}… (+{max(len(text), len(shown)) - limit})"


def _shown(char: str) -> str:
    if char in _LINE_BREAKS:
        return _LINE_BREAKS[char]
    if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        code = ord(char)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return char


def head_and_tail(text: str, limit: int) -> str:
    """Give the text, or its first and last halves of `limit` characters with the cut stated between."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters cut …\n{text[-half:]}"


def print_size(size_bytes: float) -> str:
    """Print a size for people: ``512 B``, ``208 KiB``, ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.1f}".removesuffix(".0") + f" {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f}".removesuffix(".0") + " TiB"
