"""What a page calls a distortion: a reader does not know the labels of natprec's tables."""

from __future__ import annotations

from natprec.config import DISTORTIONS
from natprec.distortions import named

LABELS = {"D": "distance of embeddings"}
"""Label → what a page says instead."""


def words(distortion: str) -> tuple[str, str, str]:
    """What a distortion is called, its unit, and what it is averaged over."""
    if distortion not in DISTORTIONS:
        return distortion, "", "terms"
    found = named(distortion)
    return LABELS.get(found.label, found.label), found.unit, found.term
