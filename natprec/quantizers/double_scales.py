"""Double quantization of scales (QLoRA, arXiv:2305.14314, section 3): each a byte, less the mean of all of a weight.

    scale = mean + value of the byte in the dynamic map · factor of its block

A block is 256 scales, row after row of the whole weight, and its factor their largest distance from the mean. That is
what bitsandbytes does (`quantize_4bit` with `compress_statistics`); a test compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from natprec.formats import Format, PerScales, Table

LEAST = 2.0**-24
"""Of a scale: a block of zeros keeps a scale above 0, so that codes are defined."""


def double_scales(scale: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Scales as the format stores them.

    Args:
        scale: (rows, groups) of a whole weight, 0 or more.
    Returns:
        (rows, groups), float32, positive; and (1 + blocks,), float32: the mean and the factors.
    """
    scale = scale.float()
    mean = scale.mean()
    apart = blocks(scale - mean, fmt)
    factors = apart.abs().amax(1)
    outer = torch.cat([mean.view(1), factors])
    return stored_scales(codes_of(scale, outer, fmt), outer, fmt), outer


def codes_of(scale: Tensor, outer: Tensor, fmt: Format) -> Tensor:
    """(rows, groups), uint8: the byte of each scale; of stored scales those that they were stored as.

    Args:
        outer: the mean and the factors, as `double_scales` returns them.
    """
    apart, factors = blocks(scale - outer[0], fmt), outer[1:, None]
    found = _map(fmt).encode(apart / torch.where(factors > 0, factors, 1.0))
    return found.flatten()[: scale.numel()].view(scale.shape)


def stored_scales(codes: Tensor, outer: Tensor, fmt: Format) -> Tensor:
    """(rows, groups), float32: the scales that bytes stand for, never 0 or less."""
    values = blocks(_map(fmt).decode(codes), fmt) * outer[1:, None]
    return (values.flatten()[: codes.numel()].view(codes.shape) + outer[0]).clamp_(min=LEAST)


def blocks(values: Tensor, fmt: Format) -> Tensor:
    """(blocks, scales of one), row after row; the last is filled up with zeros."""
    assert fmt.scaling.outer is not None
    by = fmt.scaling.outer.granularity
    assert isinstance(by, PerScales)
    return functional.pad(values.flatten(), (0, -values.numel() % by.size)).view(-1, by.size)


def _map(fmt: Format) -> Table:
    assert isinstance(fmt.scaling.dtype, Table)
    return fmt.scaling.dtype
