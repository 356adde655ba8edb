"""What a counter is: a running total of joules with a scope, or the reason why there is none.

A counter that is missing or may not be read is `Absent`, with the library or permission that is missing; a value that
cannot be had is None or a `CounterFault`, never 0 (TokenPowerBench: "missing sensor values are null, never zero").
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

SCOPES = ("gpu", "package", "node", "wall")
"""What a counter counts: one GPU's board, the CPU packages, the node behind its power supply, or all at the plug."""

LEFT_OUT = {
    "gpu": ("CPU", "memory of the host", "fans", "power supply"),
    "package": ("GPU", "memory", "disks", "fans", "power supply"),
    "node": ("power supply",),
    "wall": (),
}
"""Scope → what it does not see."""


@dataclass(frozen=True)
class Description:
    """What a counter says of itself, for people and for energy.json.

    Attributes:
        kind: nvml, rapl, zeus or csv; `name`: which device or file.
        resolution_joules: the smallest step that it can show; None where that is not known.
        excluded: what it does not see.
        notes: what a reader should know.
    """

    kind: str
    name: str
    scope: str
    resolution_joules: float | None
    excluded: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        value = asdict(self)
        return {**value, "excluded": list(self.excluded), "notes": list(self.notes)}


@dataclass(frozen=True)
class Absent:
    """Why there is no counter of a kind.

    Attributes:
        reason: the library, device or permission that is missing.
        remedy: what to do about it.
    """

    kind: str
    reason: str
    remedy: str


class Counter(Protocol):
    """A running total that can be read at any time."""

    description: Description

    def read(self) -> float:
        """Joules since some moment, never falling: wrap-around is counted.

        Raises:
            CounterFault: it cannot be read any more, or was reset.
        """

    def check(self) -> None:
        """Look once more whether what it counts is still this run's alone.

        Raises:
            CounterFault: it is not.
        """
