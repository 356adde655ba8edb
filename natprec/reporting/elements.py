"""HTML and SVG as text: elements whose content and attributes are escaped.

    element("td", "a < b", kind="number")      <td class="number">a &lt; b</td>

A `Markup` is inserted as it is; any other text is escaped, so that no name from a file can become markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | int | float | None


def element(tag: str, /, *content: Content, kind: str = "", **attributes: Content) -> Markup:
    """One element.

    Args:
        content: texts, escaped unless they are `Markup`; None is left out.
        kind: its classes.
        attributes: `data_site` becomes `data-site`; None is left out.
    """
    given = {"class": kind or None, **attributes}
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in given.items()
        if value is not None
    )
    if not content and tag in _EMPTY:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{joined(content)}</{tag}>")


_EMPTY = ("input", "br", "hr", "meta")


def joined(content: Iterable[Content]) -> Markup:
    """Pieces one after another."""
    return Markup(
        "".join(each if isinstance(each, Markup) else escape(str(each)) for each in content if each is not None)
    )


def table(
    caption: str, headers: Sequence[str], rows: Iterable[Sequence[Content]], numbers: Sequence[int] = (), kind: str = ""
) -> Markup:
    """A table that scrolls sideways where it is too wide; the first cell of each row is its header.

    Args:
        numbers: columns that are aligned right.
    """
    head = element("tr", *(element("th", each, scope="col", kind=_side(i, numbers)) for i, each in enumerate(headers)))
    body = (
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", each, kind=_side(i, numbers)) for i, each in enumerate(row[1:], 1)),
        )
        for row in rows
    )
    made = element("table", element("caption", caption), element("thead", head), element("tbody", *body), kind=kind)
    return element("div", made, kind="wide", tabindex="0", role="region", aria_label=caption)


def _side(column: int, numbers: Sequence[int]) -> str:
    return "number" if column in numbers else ""


def missing(what: str, command: str) -> Markup:
    """The line in place of a panel whose file is not there."""
    return element("p", f"{what}: not measured. ", element("code", command), " adds it.", kind="missing")
