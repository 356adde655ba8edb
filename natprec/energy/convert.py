"""Joules of a token as tokens per watt-hour, kilowatt-hours, money and CO2 (THEORY T20).

>>> f"{tokens_per_wh(450 / 20):.1f} {kwh_per_million(450 / 20):.2f}"
'160.0 6.25'
>>> f"{tokens_per_wh(2400 / 1000):.0f} {kwh_per_million(2400 / 1000):.3f}"
'1500 0.667'
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from natprec.energy.constants import grids
from natprec.errors import InputError

WORD = "ESTIMATE"
"""What every figure is labelled with that no counter measured (`natprec.energy.estimate`), wherever it is shown."""

JOULES_PER_WH = 3600.0
JOULES_PER_KWH = 3.6e6
MILLION = 1e6

SIGNS = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY"}


def tokens_per_wh(joules_per_token: float) -> float:
    """Of one watt-hour."""
    return JOULES_PER_WH / joules_per_token


def kwh_per_million(joules_per_token: float) -> float:
    """Of a million tokens."""
    return joules_per_token * MILLION / JOULES_PER_KWH


@dataclass(frozen=True)
class Tariff:
    """What a kilowatt-hour costs."""

    per_kwh: float
    currency: str


@dataclass(frozen=True)
class Prices:
    """What the user says of the place where the energy comes from.

    Attributes:
        tariff, grid_grams: money and grams of CO2 equivalent per kWh; None: not asked for.
        pue: energy of the building over that of what is counted; 1 at home.
    """

    tariff: Tariff | None = None
    grid_grams: float | None = None
    pue: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tariff = None if self.tariff is None else {"per_kwh": self.tariff.per_kwh, "currency": self.tariff.currency}
        return {"tariff": tariff, "grid_grams_per_kwh": self.grid_grams, "pue": self.pue}

    def of(self, joules_per_token: float | None) -> dict[str, Any]:
        """Cost and CO2 of a million tokens, the building's share included; None where nothing is known."""
        known = None if joules_per_token is None else kwh_per_million(joules_per_token) * self.pue
        cost = None if known is None or self.tariff is None else known * self.tariff.per_kwh
        return {
            "cost_per_million": None
            if cost is None or self.tariff is None
            else {"value": cost, "currency": self.tariff.currency},
            "co2_grams_per_million": None if known is None or self.grid_grams is None else known * self.grid_grams,
        }


def figures(joules_per_token: float | None, prices: Prices = Prices()) -> dict[str, Any]:
    """The figures that follow from the joules of a token."""
    known = joules_per_token is not None
    return {
        "tokens_per_wh": tokens_per_wh(joules_per_token) if known else None,  # type: ignore[arg-type]
        "kwh_per_million_tokens": kwh_per_million(joules_per_token) if known else None,  # type: ignore[arg-type]
        **prices.of(joules_per_token),
    }


def parse_tariff(text: str) -> Tariff:
    """For example `0.30 EUR/kWh`, `€0.30/kWh`, `120 USD/MWh`.

    Raises:
        InputError: no number, no currency, or a price below 0.
    """
    found = re.fullmatch(r"\s*([A-Za-z€$£¥]*)\s*(-?[\d.]+(?:e-?\d+)?)\s*([A-Za-z€$£¥]*)\s*/\s*([kKM][Ww][Hh])\s*", text)
    if found is None:
        raise InputError(f"tariff {text!r}: give a price, a currency and a unit, for example '0.30 EUR/kWh'")
    before, number, after, unit = found.groups()
    currency = before or after
    if not currency:
        raise InputError(f"tariff {text!r} names no currency; give, for example, '{number} EUR/kWh'")
    try:
        price = float(number)
    except ValueError:
        raise InputError(f"tariff {text!r}: {number!r} is no number; give, for example, '0.30 EUR/kWh'") from None
    if not (math.isfinite(price) and price >= 0):
        raise InputError(f"tariff {text!r}: a price is 0 or more")
    return Tariff(price / (1000 if unit[0] == "M" else 1), SIGNS.get(currency, currency.upper()))


def parse_grid(text: str) -> float:
    """Grams of CO2 equivalent per kWh: a number, or a country of `constants.toml`.

    Raises:
        InputError: an unknown code, or a number below 0.
    """
    known = grids()
    if text.upper() in known:
        return known[text.upper()]
    try:
        grams = float(text)
    except ValueError:
        names = ", ".join(sorted(known))
        raise InputError(
            f"unknown grid code {text!r}; give grams of CO2 per kWh as a number, or one of {names}"
        ) from None
    if not (math.isfinite(grams) and grams >= 0):
        raise InputError(f"grid {text!r}: grams of CO2 per kWh are 0 or more")
    return grams


def parse_pue(value: float) -> float:
    """A building's energy over that of its machines.

    Raises:
        InputError: below 1, or not finite.
    """
    if not (math.isfinite(value) and value >= 1):
        raise InputError(f"pue {value:g}: a building takes no less than its machines; give 1 or more")
    return value
