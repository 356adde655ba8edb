"""Seeds: which numbers can be one, and those that are derived from one for each of many sequences."""

from __future__ import annotations

import operator

from natprec.errors import InputError

LIMIT = 2**63
"""Of what every generator here takes, and twice it still fits into the 64 bits of torch's."""


def check_seed(seed: int) -> int:
    """The seed itself.

    Raises:
        InputError: no whole number from 0 to 2**63 - 1.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < LIMIT:
        raise InputError(f"seed {seed!r}: give a whole number from 0 to {LIMIT - 1}, which is 2^63 - 1")
    return number


def derived(seed: int, index: int) -> int:
    """The seed of one of many, all 64 bits of it in use where `seed` is large.

    >>> derived(0, 5), derived(1, 5)
    (5, 1000008)
    """
    return (check_seed(seed) * 1_000_003 + index) % 2**64
