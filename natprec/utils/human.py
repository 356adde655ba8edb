"""Numbers as people read them. A function's name says the unit that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def human_bytes(count: float) -> str:
    """Decimal units, as disks and hubs count: 1 MB is 10**6 bytes.

    >>> human_bytes(98_362_432)
    '98.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable: TB has no upper limit")


def human_seconds(seconds: float) -> str:
    """Seconds, minutes or hours, with two figures.

    >>> human_seconds(7384)
    '2 h 03 min'
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def summary_line(kind: str, rows: Mapping[str, str]) -> str:
    """An object in one line, for a prompt.

    >>> summary_line("Plan", {"bits": "4.97", "stored": "126.2 MB"})
    'Plan(bits 4.97, stored 126.2 MB)'
    """
    return f"{kind}({', '.join(f'{label} {value}' for label, value in rows.items())})"


def summary_html(kind: str, rows: Mapping[str, str]) -> str:
    """The same as a table, for a notebook."""
    cells = "".join(f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>" for label, value in rows.items())
    return f"<table><caption>natprec {escape(kind)}</caption>{cells}</table>"


def human_count(count: int) -> str:
    """A number of weights.

    >>> human_count(28_311_552)
    '28.3 M'
    """
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return str(count)


def shortened(text: str, most: int = 1500) -> str:
    """A text whose middle is left out where it is too long to be read; cause and remedy are at its ends.

    >>> shortened("value 'xxxxxxxxxxxx': give another", 24)
    "value 'xxxxxx … another"
    """
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 3]} … {text[-end:].lstrip()}"
