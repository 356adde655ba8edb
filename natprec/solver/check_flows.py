"""Widths of activations and caches that are asked for, and what an engine has of them."""

from __future__ import annotations

from natprec.config import AUTO, NOT_ROUNDED
from natprec.errors import InputError
from natprec.formats import EngineProfile
from natprec.formats.offers import first_gpu
from natprec.solver.choices import UNQUANTIZED_BITS


def check_flows(profile: EngineProfile, activations: str, kv: str) -> None:
    """Refuse what an engine cannot do, before anything is measured.

    Raises:
        InputError: says what it can.
    """
    known = sorted({bits for pairing in profile.pairings for bits in pairing.inputs.bits})
    on = f" on {profile.gpu}" if profile.gpu else ""
    if activations not in (NOT_ROUNDED, *map(str, known), *([AUTO] if known else [])):
        widths = ", ".join(map(str, (*known, UNQUANTIZED_BITS)))
        raise InputError(
            f"activations {activations!r}: engine {profile.name!r} multiplies with {widths} bits{on}; give one of them"
            + (" or auto" if known else "")
            + _elsewhere(profile, activations)
        )
    if kv not in (NOT_ROUNDED, *map(str, profile.cache_bits)):
        widths = ", ".join(map(str, (*profile.cache_bits, UNQUANTIZED_BITS)))
        raise InputError(f"kv {kv!r}: engine {profile.name!r} keeps keys and values at {widths} bits; give one of them")


def _elsewhere(profile: EngineProfile, activations: str) -> str:
    """On which GPUs an engine multiplies with so many bits, for errors; empty: on none, or it depends on none."""
    if profile.gpu is None or not activations.isdigit():
        return ""
    bits = int(activations)
    found = first_gpu(profile.name, lambda offer: offer.inputs is not None and bits in offer.inputs.bits)
    return f"; it multiplies with {bits} bits {found}" if found else ""
