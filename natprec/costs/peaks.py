"""The published peaks of GPUs in `peaks.toml`: an interval, its unit, its source, and how it came here."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("peaks.toml")

Found = TypeVar("Found")


@dataclass(frozen=True)
class Constant:
    """One value.

    Attributes:
        low, high: the interval, in `unit`.
        basis: `read` in the source named; `transcribed` from it by others; `derived` from what was read; or `memory`:
            not looked up again.
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
def peaks() -> dict[str, dict[str, Constant]]:
    """Kind (`bandwidth`, `operations_per_second`) → GPU → its peak."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        kind: {name: Constant(f"{kind}.{name}", **value) for name, value in several.items()}
        for kind, several in content.items()
    }


def of_gpu(several: Mapping[str, Found], gpu: str) -> Found | None:
    """What a table has for a GPU by its marketing name or natprec's; None where it has nothing.

    >>> of_gpu({"h200": 1}, "NVIDIA H200"), of_gpu({"rtx_4090": 2}, "rtx4090"), of_gpu({"h200": 1}, "NVIDIA A10")
    (1, 2, None)
    """
    words = set(gpu.lower().replace("-", " ").replace("_", " ").split())
    variants = words & {"pcie", "nvl"}  # other boards than the one with the plain name
    for name, value in several.items():
        wanted = set(name.split("_"))
        if (wanted <= words and variants <= wanted) or words == {name.replace("_", "")}:
            return value
    return None
