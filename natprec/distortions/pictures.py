"""A distortion of text that follows pictures: what a model predicts at a picture and before it, nobody reads.

Text without pictures and text about them have one unit.
"""

from __future__ import annotations

from natprec.distortions.base import Distortion
from natprec.distortions.counted import WhereCounted
from natprec.tasks import VISION_LANGUAGE


class AfterPictures(WhereCounted):
    """Another distortion of logits, at the positions that count."""

    def __init__(self, inner: Distortion) -> None:
        """Under the name of `inner`, which on text without pictures it is."""
        super().__init__(inner, VISION_LANGUAGE)
