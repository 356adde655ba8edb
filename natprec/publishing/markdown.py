"""Markdown from values: names of others come into a page as text, never as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MARKUP = re.compile(r"([\\`*_{}\[\]|~$<>&])")


def text(value: object) -> str:
    r"""A value as plain text of a page, on one line.

    >>> print(text("<b>a|b</b>"), text("3.5"))
    \<b\>a\|b\</b\> 3.5
    """
    line = " ".join(str(value).split())
    return _MARKUP.sub(r"\\\1", line)


def code(value: object) -> str:
    r"""A value as code within a line; in a table too.

    >>> print(code("a`b"), code("x | y"))
    ``a`b`` `x \| y`
    """
    line = " ".join(str(value).split()).replace("|", r"\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def block(lines: str, language: str = "sh") -> str:
    """Code on lines of its own, within a fence that it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", lines)), default=0))
    return f"{fence}{language}\n{lines}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are markdown already."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def section(title: str, *parts: str) -> str:
    """A heading and its paragraphs; those that are empty are left out."""
    return "\n\n".join([f"## {title}", *filter(None, parts)])
