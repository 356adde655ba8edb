"""Re-parametrisations that leave the model's function as it is (T10)."""

from natprec.transforms.gauges import Gauge, find_gauges, fold
from natprec.transforms.rotation import rotate, rotated_digest
from natprec.transforms.scaling import Rescaled, all_channel_scales, channel_scales

__all__ = [
    "Gauge",
    "Rescaled",
    "all_channel_scales",
    "channel_scales",
    "find_gauges",
    "fold",
    "rotate",
    "rotated_digest",
]
