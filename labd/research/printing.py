"""How recorded values look in Markdown: numbers with their digits, texts made literal. Pure."""

import math
import re

from labd.text import head_and_tail, printable

MAX_TEXT_CHARS = 2000
MAX_BLOCK_CHARS = 20_000

Scalar = bool | int | float | str
_MINUS = "\N{MINUS SIGN}"

# Pandoc and CommonMark both take a backslash before any of these as "the character itself".
_MARKUP = frozenset("\\`*_{}[]<>#~^$@&|!")
# These mean something only where a word or a line begins: `- `, `(a) `, `: `, `---`, `http://`.
_MARKUP_AT_STARTS = frozenset("-+=:%(/.)")
_LIST_MARKER = re.compile(r"\w{1,9}[.)](?=\s|$)")


def escape_markdown(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """Give `text` as one line of Markdown that shows it literally, whatever it holds.

    White space is run together; control and format characters come out as their escapes.
    """
    plain = printable(" ".join(text.split()), limit)
    if not plain:
        return "(empty)"
    marker = _LIST_MARKER.match(plain)
    loose = {marker.end() - 1} if marker else set()
    if "www." in plain.lower():
        loose |= {at for at, char in enumerate(plain) if char == "."}
    out = []
    for at, char in enumerate(plain):
        before = plain[at - 1] if at else " "
        starts = before in (" ", char) or plain[at + 1 : at + 2] == "/"
        if char in _MARKUP or at in loose or (char in _MARKUP_AT_STARTS and starts):
            out.append("\\")
        out.append(char)
    return "".join(out)


def show_number(value: float, digits: int = 4) -> str:
    """Print a finite number with `digits` significant digits, never dropping digits before the point.

    Very large and very small numbers come as ``1.23e-5``; the minus is U+2212.
    """
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -5 < size < 9:
        text = f"{value:.{max(0, digits - 1 - size)}f}"
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", _MINUS)


def show_plain(raw: Scalar) -> str:
    """Print a value as it is; a float with up to six significant digits."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, float):
        text = f"{raw:.6g}"
        if "e" in text:
            mantissa, exponent = text.split("e")
            text = f"{mantissa}e{int(exponent)}"
        return text.replace("-", _MINUS)
    return raw if isinstance(raw, str) else str(raw).replace("-", _MINUS)


def show_count(value: float) -> str:
    """Print a whole number."""
    return f"{value:.0f}"


def show_percent(value: float, decimals: int | None) -> str:
    """Print a share as per cent, with so many decimals, or as many as three digits need."""
    text = f"{100 * value:.3g}" if decimals is None else f"{100 * value:.{min(decimals, 9)}f}"
    return f"{text}\N{NO-BREAK SPACE}%".replace("-", _MINUS)


def show_signed(value: float, digits: int) -> str:
    """Print a number as `show_number` does, with its sign also above zero."""
    text = show_number(value, digits)
    return f"+{text}" if value > 0 else text


def show_p(value: float) -> str:
    """Print a p-value: ``0.034``, or ``< 0.001``."""
    if value < 0.001:
        return "< 0.001"
    text = f"{value:.3f}"
    # Rounding must not seem to move it onto or over a customary threshold.
    return show_number(value, 4) if text in {"0.010", "0.050", "0.100"} else text


def show_p_relation(value: float) -> str:
    """Print a p-value for a sentence: ``= 0.034``, or ``< 0.001``."""
    text = show_p(value)
    return text if text.startswith("<") else f"= {text}"


def inline_code(text: str) -> str:
    """Give `text` as Markdown code in one line."""
    plain = printable(text, MAX_TEXT_CHARS).strip()
    if not plain:
        return "(empty)"
    fence = "`" * (_longest_run(plain) + 1)
    pad = " " if "`" in plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def fenced_code(text: str, language: str) -> str:
    """Give `text` as a fenced block of Markdown code that nothing in it can end."""
    lines = head_and_tail(text, MAX_BLOCK_CHARS).expandtabs(4).splitlines() or [""]
    fence = "`" * max(3, _longest_run(text) + 1)
    body = "\n".join(printable(line, MAX_BLOCK_CHARS) for line in lines)
    return f"{fence}{language}\n{body}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
