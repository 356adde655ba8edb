"""The figures of a rate and a power alone, in the form of a run's (THEORY T20)."""

from __future__ import annotations

from typing import Any

from natprec.energy.convert import Prices, figures

ARITHMETIC = "arithmetic"
"""The source of figures that nobody measured."""


def arithmetic(tokens_per_second: float, watts: float, prices: Prices) -> dict[str, Any]:
    """J/token = watts / (tokens per second), and what follows.

    >>> row = arithmetic(1000.0, 2400.0, Prices())["rows"][0]
    >>> f"{row['tokens_per_wh']:.0f} {row['kwh_per_million_tokens']:.3f}"
    '1500 0.667'
    """
    joules = watts / tokens_per_second
    row = {
        "phase": None, "batch": None, "tokens_per_second": tokens_per_second, "watts": watts,
        "joules_per_token": joules, "joules_per_token_ci95": None, **figures(joules, prices), "floor": None,
    }  # fmt: skip
    return {"source": ARITHMETIC, "counter": None, "idle_watts": None, "floor": None, "rows": [row]}
