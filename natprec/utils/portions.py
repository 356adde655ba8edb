"""How much is handled at a time: what a CPU's cache holds, or what makes a launch on a GPU worth its cost."""

from __future__ import annotations

import torch

FAR = 1 << 26
"""Values, on another device than the CPU: 256 MB of float32. A launch costs there what some 100,000 values do."""


def portion(cached: int, device: torch.device) -> int:
    """Values handled at a time.

    Args:
        cached: on a CPU; so many that they and their copies stay in its cache.
    """
    return cached if device.type == "cpu" else max(cached, FAR)
