"""HTML as it is written on the page: texts are escaped here, and nowhere else has to think of it."""

from collections.abc import Iterable
from html import escape

from labd.text import printable

_VOID = frozenset({"br", "img", "input", "hr", "meta"})
_LONGEST = 2_000


class Html(str):
    """Markup that was made here. Any other text is escaped when it is put into an element."""

    __slots__ = ()


Child = str | int | None
"""An `Html` stays as it is, a text is escaped, ``None`` is left out."""


def tag(element: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """Give an element. ``class_`` is written ``class``, ``data_id`` ``data-id``; false and absent attributes are left out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if element in _VOID:
        return Html(f"<{element}{written}>")
    return Html(f"<{element}{written}>{join(children)}</{element}>")


def join(children: Iterable[Child], between: str = "") -> Html:
    """Give children one after the other."""
    return Html(escape(between).join(text_of(child) for child in children if child is not None))


def text_of(child: str | int) -> str:
    """Give a child as markup."""
    return str(child) if isinstance(child, Html) else escape(_harmless(str(child), _LONGEST))


def block(text: str) -> Html:
    """Give a text of many lines as markup: its line breaks stay, other control characters are shown as escapes."""
    lines = (printable(line.expandtabs(4), 4 * _LONGEST) for line in text.split("\n"))
    return Html(escape("\n".join(lines)))


def _attribute(key: str, value: str | int | bool | None) -> str:  # noqa: FBT001 - an attribute's value
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{escape(_harmless(str(value), 100_000), quote=True)}"'


def _harmless(text: str, limit: int) -> str:
    # Most texts are plain; looking at each character would be most of the cost of a table.
    return text if text.isprintable() and len(text) <= limit else printable(text, limit)


def raw_attribute(markup: Html, key: str, value: str) -> Html:
    """Give an element with one more attribute, whose value may have lines and be of any length."""
    end = markup.index(">")
    return Html(f'{markup[:end]} {key}="{escape(value, quote=True)}"{markup[end:]}')
