"""The distortions by name."""

from __future__ import annotations

from natprec.distortions.base import Distortion
from natprec.distortions.feature_distance import EmbeddingDistance
from natprec.distortions.next_token import LossIncrease, OutputKL, TopKKL
from natprec.errors import unknown

DISTORTIONS: dict[str, Distortion] = {
    made.name: made
    for made in (OutputKL(), TopKKL(), LossIncrease(), EmbeddingDistance("mean"), EmbeddingDistance("cls"))
}

SLACK = 1e-9
"""Of a distortion that is next to none: a KL is a sum of logarithms."""


def named(name: str) -> Distortion:
    """The distortion with this name.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    if name not in DISTORTIONS:
        raise unknown("distortion", name, DISTORTIONS)
    return DISTORTIONS[name]


def impossible(name: str, value: float) -> bool:
    """Whether the distortion with this name never has such a value: one below 0, but for how sums round.

    The loss may fall; of a distortion that is not known, nobody can say.
    """
    return value < -SLACK and name in DISTORTIONS and not isinstance(DISTORTIONS[name], LossIncrease)
