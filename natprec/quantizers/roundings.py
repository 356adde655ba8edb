"""The ways to round a weight, by the name that options, plans and measurements give them."""

from __future__ import annotations

from natprec.errors import unknown

ROUNDINGS = ("rtn", "gptq", "yaqa", "learned")
"""Round to nearest; each error made up for by later columns; and by later rows; GPTQ, then learned block by block."""


def refuse_unknown_rounding(name: str) -> None:
    """Raises InputError with the nearest name."""
    if name not in ROUNDINGS:
        raise unknown("rounding", name, ROUNDINGS)
