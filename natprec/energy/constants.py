"""The sourced constants of `constants.toml`: an interval, its unit, its source, and how it came here."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("constants.toml")

BASES = ("read", "transcribed", "derived", "memory")


@dataclass(frozen=True)
class Constant:
    """One value.

    Attributes:
        low, high: the interval, in `unit`.
        basis: one of `BASES`.
    """

    name: str
    low: float
    high: float
    unit: str
    source: str
    basis: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `assumptions` of energy.json lists it."""
        return {
            "name": self.name, "low": self.low, "high": self.high, "unit": self.unit, "source": self.source,
            "basis": self.basis,
        }  # fmt: skip


@functools.cache
def _file() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def constant(kind: str, name: str) -> Constant:
    """A constant by its table, for example `joules_per_bit` and `hbm2`."""
    return Constant(f"{kind}.{name}", **_file()[kind][name])


def constants(kind: str) -> dict[str, Constant]:
    """All of a table."""
    return {name: constant(kind, name) for name in _file()[kind]}


def grids() -> dict[str, float]:
    """Code of a country → grams of CO2 equivalent per kWh."""
    return {name: float(value) for name, value in _file()["grid"].items()}


def of_gpu(kind: str, gpu: str) -> Constant | None:
    """The constant of a GPU by its marketing name; None where the table has none of it.

    >>> of_gpu("bandwidth", "NVIDIA H200").high, of_gpu("bandwidth", "NVIDIA A10")
    (4800000000000.0, None)
    """
    words = set(gpu.lower().replace("-", " ").split())
    variants = words & {"pcie", "nvl"}  # other boards than the one with the plain name
    for name, value in constants(kind).items():
        wanted = set(name.split("_"))
        if wanted <= words and variants <= wanted:
            return value
    return None
