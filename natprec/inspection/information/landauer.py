"""The least heat of erasing information (Landauer 1961): k_B T ln 2 joules per bit.

Bounds on erasure, never a saving: a chip dissipates many orders of magnitude more.
"""

from __future__ import annotations

import math

from natprec.config import ROOM_KELVIN
from natprec.errors import InputError

BOLTZMANN = 1.380649e-23
"""k_B, joules per kelvin; exact by definition of the kelvin (SI, 2019)."""


def landauer_joules(erased_bits: float, kelvin: float = ROOM_KELVIN) -> float:
    """E_min = k_B T ln 2 × bits.

    Raises:
        InputError: a temperature or a number of bits below zero, or not finite.

    >>> f"{landauer_joules(1):.4e}"
    '2.8710e-21'
    """
    if not (math.isfinite(kelvin) and kelvin >= 0):
        raise InputError(f"temperature {kelvin} K: give kelvin, 0 or more; room temperature is 300")
    if not (math.isfinite(erased_bits) and erased_bits >= 0):
        raise InputError(f"{erased_bits} erased bits: information erased is a finite number, 0 or more")
    return BOLTZMANN * kelvin * math.log(2) * erased_bits


def marginal_bound_bits(entropy_bits: float, target_bits: float, elements: int) -> float:
    """N · max(0, h - b): fewer bits than this no map from h bits per element to b can erase."""
    return elements * max(0.0, entropy_bits - target_bits)
