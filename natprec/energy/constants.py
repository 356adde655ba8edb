"""The sourced constants of `constants.toml`, and the peaks of `natprec.costs` that were looked up.

A value from memory only widens an interval, and no floor rests on it: such peaks are left out here.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from natprec.costs import peaks
from natprec.costs.peaks import Constant

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("constants.toml")

BASES = ("read", "transcribed", "derived", "memory")


@functools.cache
def _file() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def constant(kind: str, name: str) -> Constant:
    """A constant by its table, for example `joules_per_bit` and `hbm2`."""
    return constants(kind)[name]


def constants(kind: str) -> dict[str, Constant]:
    """All of a table."""
    if kind in peaks.peaks():
        return {name: each for name, each in peaks.peaks()[kind].items() if each.basis != "memory"}
    return {name: Constant(f"{kind}.{name}", **value) for name, value in _file()[kind].items()}


def grids() -> dict[str, float]:
    """Code of a country → grams of CO2 equivalent per kWh."""
    return {name: float(value) for name, value in _file()["grid"].items()}


def of_gpu(kind: str, gpu: str) -> Constant | None:
    """The constant of a GPU by its marketing name; None where the table has none of it.

    >>> of_gpu("bandwidth", "NVIDIA H200").high, of_gpu("bandwidth", "NVIDIA A10")
    (4800000000000.0, None)
    """
    return peaks.of_gpu(constants(kind), gpu)
