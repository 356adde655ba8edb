"""The ways to round a weight, by the name that options, plans and measurements give them."""

from __future__ import annotations

from natprec.config import ROUNDINGS
from natprec.errors import unknown


def refuse_unknown_rounding(name: str) -> None:
    """Raises InputError with the nearest name."""
    if name not in ROUNDINGS:
        raise unknown("rounding", name, ROUNDINGS)
