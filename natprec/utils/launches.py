"""What a launch on a GPU, and waiting for it, costs: so much is handled at a time, and results are fetched at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FAR = 1 << 26
"""Values, on another device than the CPU: 256 MB of float32. A launch costs there what some 100,000 values do."""


def portion(cached: int, device: torch.device) -> int:
    """Values handled at a time.

    Args:
        cached: on a CPU; so many that they and their copies stay in its cache.
    """
    return cached if device.type == "cpu" else max(cached, FAR)


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one device as float64 on the CPU, by one copy."""
    if all(tensor.is_cpu for tensor in tensors):  # or there are none
        return [tensor.double() for tensor in tensors]
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
