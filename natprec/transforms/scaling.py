"""Channel scales that make a layer's columns cheap to round.

A group's step grows with the largest |w| s in it, and the error at column j counts p_j / s_j², p_j the power of
input j. With steps uniform, the squared output error of a layer in groups is, up to a constant,

    Σ_groups (Σ_rows max_j (|w_ij| s_j)²) · (Σ_j p_j / s_j²),

which depends on the weights and on their inputs alone: SmoothQuant and AWQ (arXiv:2211.10438, 2306.00978) scale by a
power of the inputs' size and search the exponent; here s is the minimum itself, by gradient descent from s = 1. Layers
that share their inputs count alike, however many rows they have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natprec.formats import Format
from natprec.transforms.gauges import Gauge

STEPS = 40
RATE = 0.06
"""Of Adam, on log s."""

ROWS = 256
"""Rows, about, whose largest weights are looked at."""


def channel_scales(weights: Sequence[Tensor], power: Tensor, fmt: Format, gauge: Gauge) -> Tensor:
    """The factors s of a gauge's channels.

    Args:
        weights: of all sites of the gauge's fused group, each (rows, columns).
        power: (columns,), what an error counts at each column; any positive factor.
        fmt: whose groups share a step.
    Returns:
        (gauge.produced,), positive, around 1.
    """
    channels = gauge.channels(len(power)).to(power.device)
    span = fmt.span(len(power))
    group_size = len(power) if len(power) % span else span
    sizes = torch.cat([_sizes(weight.float(), ROWS // len(weights), group_size) for weight in weights])
    counts = (power / power.mean().clamp_min(1e-30)).clamp_min(1e-6).view(-1, group_size)
    logs = torch.zeros(gauge.produced, device=power.device)
    squares = sizes.square()
    optimizer = torch.optim.Adam([logs], lr=RATE)
    best, least = torch.ones_like(logs), torch.inf
    for _ in range(STEPS):
        scale = logs.exp()[channels].view(-1, group_size)
        steps, costs = _reach(sizes, squares, scale) * scale.square(), counts / scale.square()
        step, cost = steps.sum(-1, keepdim=True), costs.sum(-1, keepdim=True)
        loss = (step * cost).sum().item()
        if loss == 0:  # nothing but zeros
            break
        if loss < least:
            best, least = logs.exp(), loss
        slope = (steps * cost - costs * step).flatten() * (2 / loss)  # of log loss
        logs.grad = torch.zeros_like(logs).index_add_(0, channels, slope)
        optimizer.step()
    return best


def _reach(sizes: Tensor, squares: Tensor, scale: Tensor) -> Tensor:
    """(groups, group size), c: Σ_rows (max_j |w_ij| s_j)² is Σ_j c_j s_j² at s and for small changes of it.

    In passes that a CPU does fast: comparing, choosing, and the way back through a maximum take most of the time else.
    """
    scaled = sizes * scale
    scaled -= scaled.amax(-1, keepdim=True)  # 0 at the largest of a group, less elsewhere
    return scaled.mul_(1e38).add_(1).relu_().mul_(squares).sum(0)


def _sizes(weight: Tensor, count: int, group_size: int) -> Tensor:
    """|w| of about `count` rows, (rows, groups, group size), so that their groups' largest squares sum to 1.

    Of equal ones in a group the first is a little larger, so that there is one largest.
    """
    rows = torch.arange(0, len(weight), max(1, len(weight) // count), device=weight.device)
    sizes = weight[rows].abs().view(len(rows), -1, group_size)
    sizes = sizes * torch.linspace(1, 1 - 1e-4, group_size, device=weight.device)
    return sizes / sizes.amax(-1).square().sum().clamp_min(1e-30).sqrt()
