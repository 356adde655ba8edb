"""Bits that a plan's boundaries erase of one token's activations, from the inspection.json of `natprec inspect`."""

from __future__ import annotations

import math
from pathlib import Path

from natprec.errors import InputError
from natprec.utils.own_files import LARGEST, parsed


def erased_bits(path: Path) -> float:
    """The sum over the boundaries of activations, by token. Weights were erased once, when they were rounded.

    Raises:
        InputError: no inspection, or one of an older natprec, which does not say how many tokens it counted.
    """
    where = f"inspection {str(path)!r}"
    try:
        with path.open("rb") as file:
            value = parsed(file.read(LARGEST))
        boundaries, tokens = value["boundaries"], value["tokens"]
        found = [float(each["erased_bits"]) for each in boundaries if each["kind"] == "activation"]
        total = sum(found) / tokens
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read ({error}); write it with natprec inspect --out") from error
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{where} has no boundaries and tokens ({error!r}); run natprec inspect again") from error
    if not (math.isfinite(total) and total >= 0 and tokens > 0):
        raise InputError(f"{where} says {total:g} erased bits for each token; run natprec inspect again")
    return total
