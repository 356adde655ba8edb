"""What T19 claims of the bits along encoder, transformer and decoder, and what a measurement makes of it.

The claim: encoder early 16 bits, late 8; latent 3 to 4; transformer 3 to 4; decoder early 8, late 16. A place that lies
between two of these lies between their bits. A claim of so many bits holds at a tolerance if the interval of what was
measured comes within half a bit of it, since claims are in whole bits; with several seeds, if that of one of them does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SUPPORTED, REFUTED, DEPENDS = "supported", "refuted", "depends on the tolerance"

HOLDS, FEWER, MORE = "holds", "fewer", "more"
"""At one tolerance: the claimed bits, fewer than these, or more."""

HALF = 0.5


@dataclass(frozen=True)
class Claim:
    """From `low` to `high` bits."""

    low: float
    high: float

    def at(self, low: float, high: float) -> str:
        """`HOLDS`, `FEWER` or `MORE`, of the interval of the bits at one tolerance."""
        if high < self.low - HALF:
            return FEWER
        return MORE if low > self.high + HALF else HOLDS

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}–{self.high:g}"


LATENT = TRANSFORMER = Claim(3, 4)
ENCODER, DECODER = (16, 8), (8, 16)
"""Bits at the first and at the last stage."""


def along(ends: tuple[float, float], stages: int) -> list[Claim]:
    """The claims of so many stages: the outer two at each end are early and late, the others lie between."""
    first, last = (Claim(end, end) for end in ends)
    between = Claim(min(ends), max(ends))
    outer = 2 if stages > 4 else 1
    return [first if at < outer else last if at >= stages - outer else between for at in range(stages)]


def verdict(found: Sequence[str]) -> str:
    """One word for all tolerances.

    Bits grow as the tolerance tightens, so that where one asks for fewer and another for more, one between them asks
    for what is claimed.

    >>> verdict([HOLDS, HOLDS]), verdict([FEWER, FEWER]), verdict([HOLDS, MORE]), verdict([FEWER, MORE])
    ('supported', 'refuted', 'depends on the tolerance', 'depends on the tolerance')
    """
    different = set(found)
    if len(different) > 1:
        return DEPENDS
    return SUPPORTED if different == {HOLDS} else REFUTED


def direction(low: float, high: float) -> str:
    """Of a difference that is claimed to be above 0, by its interval: `HOLDS` or `FEWER`."""
    return HOLDS if low > 0 else FEWER


def agreed(seeds: Sequence[Mapping[float, str]]) -> dict[float, str]:
    """Tolerance → what all seeds say; where one of them does not contradict the claim, it holds.

    >>> agreed([{30: FEWER, 40: FEWER}, {30: FEWER, 40: HOLDS}])
    {30: 'fewer', 40: 'holds'}
    """
    return {each: what if all(seed[each] == what for seed in seeds) else HOLDS for each, what in seeds[0].items()}


def judged(claim: Claim, intervals: Mapping[float, tuple[float, float]]) -> tuple[dict[float, str], str]:
    """Tolerance → what became of the claim there, and the verdict."""
    at = {tolerance: claim.at(*interval) for tolerance, interval in intervals.items()}
    return at, verdict(list(at.values()))
