"""Distortions (T1): how far a quantized model's output is from the original's, and its curvature at zero."""

from natprec.distortions.base import Distortion
from natprec.distortions.feature_distance import OUTPUT, EmbeddingDistance, FeatureDistance, OutputDistance
from natprec.distortions.next_token import LossIncrease, OutputKL, TopKKL
from natprec.distortions.registry import impossible, named, task_named

__all__ = [
    "OUTPUT",
    "Distortion",
    "EmbeddingDistance",
    "FeatureDistance",
    "LossIncrease",
    "OutputDistance",
    "OutputKL",
    "TopKKL",
    "impossible",
    "named",
    "task_named",
]
