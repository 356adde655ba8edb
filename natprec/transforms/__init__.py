"""Re-parametrisations that leave the model's function as it is (T10)."""

from natprec.transforms.gauges import Gauge, find_gauges, fold
from natprec.transforms.scaling import channel_scales

__all__ = ["TRANSFORMS", "Gauge", "channel_scales", "find_gauges", "fold"]

TRANSFORMS = ("auto", "none")
"""`auto`: rescale a unit's channels where what GPTQ leaves of its distortion falls."""
