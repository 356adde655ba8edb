"""Distortions (T1): how far a quantized model's output is from the original's, and its curvature at zero."""

from natprec.distortions.base import Distortion
from natprec.distortions.feature_distance import EmbeddingDistance, FeatureDistance
from natprec.distortions.next_token import LossIncrease, OutputKL, TopKKL
from natprec.distortions.registry import impossible, named

__all__ = [
    "Distortion",
    "EmbeddingDistance",
    "FeatureDistance",
    "LossIncrease",
    "OutputKL",
    "TopKKL",
    "impossible",
    "named",
]
