"""What commands print: tables whose lines may carry a word, or one JSON object and nothing else."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from natprec.costs.roofline import WORD

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(what: RenderableType, word: str = "") -> None:
    """A table on standard output; every line begins with `word`, if there is one."""
    from rich.console import Console

    console = Console()
    if not word:
        console.print(what, highlight=False)
        return
    narrow = Console(width=max(40, console.width - len(word) - 2))
    with narrow.capture() as captured:
        narrow.print(what, highlight=False)
    for line in captured.get().splitlines():
        print(f"{word}  {line}".rstrip())


def word_for(cost_source: str) -> str:
    """What every line says of costs that were not measured."""
    return WORD if cost_source == "roofline" else ""


def print_json(value: dict[str, Any]) -> None:
    """Print an object for scripts; NaN and infinity, which JSON does not have, are errors."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
