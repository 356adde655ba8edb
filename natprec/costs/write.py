"""A table of costs as a TOML file: the heading, then one `[[rows]]` for each product, one `[[rest]]` for each model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from natprec.utils.atomic_files import write_bytes

LISTS = ("rows", "rest")
TIMES, ENERGIES = "# natprec costs", "# natprec energy --costs"
"""The first line of a table, by what made it."""


def save(table: Mapping[str, Any], path: Path, first: str) -> None:
    """Write the file, whole or not at all.

    Args:
        first: the first line, which says what the file is.
    """
    lines = [first]
    lines += [f"{key} = {_toml(value)}" for key, value in table.items() if key not in LISTS and value is not None]
    for name in LISTS:
        for row in table.get(name, ()):
            lines += [
                "",
                f"[[{name}]]",
                *(f"{key} = {_toml(value)}" for key, value in row.items() if value is not None),
            ]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def is_table(path: Path) -> bool:
    """Whether a file is a table of costs that natprec wrote."""
    return path.read_bytes().startswith((f"{TIMES}\n".encode(), f"{ENERGIES}\n".encode()))


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)
