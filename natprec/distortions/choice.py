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


def named(name: str) -> Distortion:
    """The distortion with this name.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    if name not in DISTORTIONS:
        raise unknown("distortion", name, DISTORTIONS)
    return DISTORTIONS[name]
