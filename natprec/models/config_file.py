"""config.json of a folder, read in one way wherever natprec looks into it; torch is not needed.

Who must know what it says asks `read_config`, which explains what is wrong with it. Who only has a look asks
`found_object`, for which a file that cannot be read says nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natprec.errors import InputError, first_line
from natprec.utils.json_text import from_json

FILE = "config.json"
KEY = "quantization_config"
METHOD = "compressed-tensors"


def found_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or none that can be read."""
    try:
        found = from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_config(folder: Path, remedy: str = "give a folder with config.json and weights") -> dict[str, Any]:
    """The object in a folder's config.json.

    Raises:
        InputError: there is none; ends with the remedy.
    """
    file = folder / FILE
    if not file.is_file():
        raise InputError(f"{str(folder)!r} is no checkpoint: it has no {FILE}; {remedy}")
    try:
        found = from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({first_line(error)}); {remedy}") from error
    if not isinstance(found, dict):
        raise InputError(f"{str(file)!r} holds no object, and so describes no model; {remedy}")
    return found


def quantization_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """What it says of a quantization, of a model's text part too; None: nothing."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(found := part.get(KEY), dict) and found:
            return found
    return None
