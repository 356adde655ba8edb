"""The ways to round a weight: their names, as options, plans and measurements give them, and what each one needs.

This table imports no torch. How a rounding goes through a model, and what that costs, is in `natprec/rounding/`, in the
file of its name: the two files are all that a new one touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from natprec.errors import unknown


@dataclass(frozen=True)
class Rounding:
    """One way.

    Attributes:
        help: what it does, in a few words.
        needs: what it must know of a text: nothing, the second moments of each layer's inputs, or beside these the
            gradients at its outputs.
        compensates: whether other weights make up for each error, so that a plan supposes what GPTQ leaves of the
            distortion, and channels are rescaled where that leaves less.
        quick: whether it takes less time than measuring.
    """

    name: str
    help: str
    needs: Literal["nothing", "moments", "gradients"]
    compensates: bool
    quick: bool = False


ROUNDINGS = {
    each.name: each
    for each in (
        Rounding("rtn", "to the nearest code", "nothing", compensates=False, quick=True),
        Rounding("gptq", "later columns make up for each error", "moments", compensates=True, quick=True),
        Rounding("yaqa", "later rows too: less KL, but longer", "gradients", compensates=True),
        Rounding("learned", "all codes of a block together: least KL, longest", "gradients", compensates=True),
    )
}

HELP = "; ".join(f"{each.name}: {each.help}" for each in ROUNDINGS.values()) + "."
"""Of the option that takes one of them."""


def rounding_named(name: str) -> Rounding:
    """Look one up.

    Raises:
        InputError: there is none of this name; says the nearest.
    """
    if name not in ROUNDINGS:
        raise unknown("rounding", name, ROUNDINGS)
    return ROUNDINGS[name]
