"""A run, written down: `natprec quantize --recipe FILE`.

    model = "smollm2-135m"          # the command line's options, by their names, at the top or in [options]
    eps = 0.05

    [about]                         # free text: hardware, duration, date, text
    hardware = "2 CPU cores"

    [expected]                      # what came of it, which a later run is compared with
    tolerance = 0.05                # of each figure, relative; or a table: tolerance.stored_bytes = 0.01
    bits_per_weight = 5.0

Options on the command line win. Paths are relative to the current folder, as on the command line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from natprec.config import OPTIONS
from natprec.errors import InputError, first_line, unknown
from natprec.utils import schema

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOLERANCE = 0.05
"""Of a figure, relative, where a recipe states none: another CPU's arithmetic moves a KL by a few percent."""

FIGURES = {
    "bits_per_weight": "bits_per_weight",
    "bits_per_weight_total": "bits_per_weight_total",
    "kl_predicted": "kl_predicted",
    "kl_measured": "kl_mean",
    "stored_bytes": "stored_bytes",
    "perplexity_reference": "perplexity_reference",
    "perplexity_quantized": "perplexity_quantized",
    "top1_agreement": "top1_agreement",
}
"""What a recipe can expect → its name in verification.json."""


@dataclass(frozen=True)
class Recipe:
    """The content of a recipe file.

    Attributes:
        options: parameter of the command → value, as the command line takes it.
        expected: figure → value; `tolerance`: figure → relative deviation that is none.
    """

    file: Path
    options: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, types: Mapping[str, Any]) -> Recipe:
        """Read a recipe.

        Args:
            types: parameter → type, of the options that it may give.
        Raises:
            InputError: no such file, no TOML, an unknown key, or a value of another type.
        """
        content = _content(file)
        about, expected = (_table(file, content, name) for name in ("about", "expected"))
        options = _table(file, content, "options")
        for key, value in content.items():
            if key in options:
                raise _wrong(file, f"{key} is given twice, at the top and in [options]; keep one")
            options[key] = value
        given: dict[str, Any] = {}
        for key, value in options.items():
            name = _parameter(file, key, types)
            if name in given:
                raise _wrong(file, f"{key} is given twice, under two spellings; keep one")
            given[name] = _typed(file, key, value, types[name], name)
        tolerance = _tolerances(file, expected.pop("tolerance", {}), expected)
        for key, value in expected.items():
            if key not in FIGURES:
                raise _of(file, unknown("figure of [expected]", key, FIGURES))
            _number(file, f"expected.{key}", value)
        return cls(file, given, about, expected, tolerance)

    def compared(self, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Figure → what was expected, what was found (None: no such figure here), and whether that agrees.

        Args:
            found: a verification, as verification.json has it.
        """
        result = {}
        for name, value in self.expected.items():
            now = found[FIGURES[name]]
            allowed = self.tolerance[name]
            agrees = now is not None and abs(now - value) <= allowed * abs(value)
            result[name] = {"expected": value, "found": now, "tolerance": allowed, "agrees": agrees}
        return result


def lines(compared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each figure that differs, or one line if none does.

    >>> lines({"bits": {"expected": 4.0, "found": 5.0, "tolerance": 0.1, "agrees": False}})
    ['bits is 5, and the recipe expects 4 within 10 %: +25.0 %']
    """
    found = []
    for name, row in compared.items():
        if row["agrees"]:
            continue
        expects = f"the recipe expects {row['expected']:.6g} within {100 * row['tolerance']:.3g} %"
        if row["found"] is None:
            found.append(f"{name} was not measured, and {expects}")
        else:
            change = f": {row['found'] / row['expected'] - 1:+.1%}".replace("%", " %") if row["expected"] else ""
            found.append(f"{name} is {row['found']:.6g}, and {expects}{change}")
    return found or [f"as the recipe expects: {', '.join(compared)}"]


def _content(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes().decode("utf-8")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise InputError(f"recipe {str(file)!r} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"recipe {str(file)!r} cannot be read ({error.strerror}); give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"recipe {str(file)!r} is not TOML ({first_line(error)}); write for example eps = 0.05"
        ) from error


def _table(file: Path, content: dict[str, Any], name: str) -> dict[str, Any]:
    """A table taken out of the content."""
    table = content.pop(name, {})
    if not isinstance(table, dict):
        raise _wrong(file, f"{name} is {table!r}; it is a table: write [{name}]")
    return dict(table)


def _parameter(file: Path, key: str, types: Mapping[str, Any]) -> str:
    """The parameter that a key names: as on the command line, with - or _, or as in Python."""
    flags = {name: OPTIONS[name].flag.removeprefix("--") if name in OPTIONS else name for name in types}
    for name, flag in flags.items():
        if key.replace("_", "-") in (flag.replace("_", "-"), name.replace("_", "-")):
            return name
    spelled = [flag.replace("-", "_") for flag in flags.values()]
    raise _of(file, unknown("key", key.replace("-", "_"), spelled))


def _typed(file: Path, key: str, value: Any, hint: Any, name: str = "") -> Any:
    """A value of the type that an option has, as the command line takes it.

    Raises:
        InputError: says what is expected.
    """
    numbers = (int, float) if name == "max_size" else (int,)
    if name in OPTIONS and OPTIONS[name].parse and type(value) in numbers:
        return str(value)
    kinds = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    plain = [str if kind is Path else kind for kind in kinds if kind is not NoneType]
    return schema.read(plain[0], value, schema.Place(f"recipe {str(file)!r}", "correct it", key))


def _tolerances(file: Path, given: Any, expected: Mapping[str, Any]) -> dict[str, float]:
    named = given if isinstance(given, dict) else {}
    rest = TOLERANCE if isinstance(given, dict) else _number(file, "expected.tolerance", given)
    for key, value in named.items():
        if key not in expected:
            raise _of(file, unknown("figure of tolerance", key, expected))
        _number(file, f"expected.tolerance.{key}", value)
    return {key: named.get(key, rest) for key in expected}


def _number(file: Path, key: str, value: Any) -> float:
    _typed(file, key, value, float)
    if not (math.isfinite(value) and value >= 0):
        raise _wrong(file, f"{key} is {value}; give a number, 0 or more")
    return float(value)


def _wrong(file: Path, text: str) -> InputError:
    return InputError(f"recipe {str(file)!r}: {text}")


def _of(file: Path, error: InputError) -> InputError:
    return _wrong(file, str(error))
