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
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from natprec.formats import Format
from natprec.transforms.gauges import Gauge

STEPS = 40
RATE = 0.06
"""Of Adam, on log s."""

TINY = 1e-30
"""A loss that is nothing."""

ROWS = 256
"""Rows, about, whose largest weights are looked at."""


@dataclass(frozen=True)
class Rescaled:
    """A fused group whose channel scales are looked for.

    Attributes:
        weights: of all its sites, each (rows, columns).
        power: (columns,), what an error counts at each column; any positive factor.
        format: whose groups share a step.
    """

    weights: Sequence[Tensor]
    power: Tensor
    format: Format
    gauge: Gauge

    @property
    def group_size(self) -> int:
        """Columns that share a step; all of them where the format's groups do not divide them."""
        columns, span = len(self.power), self.format.span(len(self.power))
        return columns if columns % span else span


def channel_scales(weights: Sequence[Tensor], power: Tensor, fmt: Format, gauge: Gauge) -> Tensor:
    """The factors s of a gauge's channels: see `all_channel_scales`, and `Rescaled` for the arguments."""
    return all_channel_scales([Rescaled(weights, power, fmt, gauge)])[0]


def all_channel_scales(groups: Sequence[Rescaled]) -> list[Tensor]:
    """The factors s of each gauge's channels: (gauge.produced,), positive, around 1.

    Those of one group size are found side by side, without waiting for the device.
    """
    found: list[Tensor] = [torch.empty(0)] * len(groups)
    for size in dict.fromkeys(each.group_size for each in groups):
        places = [place for place, each in enumerate(groups) if each.group_size == size]
        for place, scale in zip(places, _descend([groups[place] for place in places], size), strict=True):
            found[place] = scale
    return found


def _descend(groups: Sequence[Rescaled], size: int) -> Sequence[Tensor]:
    device, produced = groups[0].power.device, [each.gauge.produced for each in groups]
    own = [
        torch.cat([_sizes(weight.float(), ROWS // len(each.weights), size) for weight in each.weights])
        for each in groups
    ]
    most = max(map(len, own))
    sizes = (
        torch.cat([functional.pad(each, (0, 0, 0, 0, 0, most - len(each))) for each in own], 1) if own[1:] else own[0]
    )
    counts = torch.cat([(each.power / each.power.mean().clamp_min(1e-30)).clamp_min(1e-6) for each in groups])
    counts = counts.view(-1, size)
    starts = [sum(produced[:number]) for number in range(len(groups))]
    channels = torch.cat([
        each.gauge.channels(len(each.power), device) + start for each, start in zip(groups, starts, strict=True)
    ])  # fmt: skip
    of_channel, of_group = _Shares(produced, device), _Shares([each.shape[1] for each in own], device)
    logs, squares = torch.zeros(sum(produced), device=device), sizes.square()
    optimizer = torch.optim.Adam([logs], lr=RATE)
    best, least = torch.ones_like(logs), torch.full((len(groups),), torch.inf, device=device)
    for _ in range(STEPS):
        now = logs.exp()
        scale = now[channels].view(-1, size)
        squared = scale.square()
        steps, costs = _reach(sizes, squares, scale) * squared, counts / squared
        step, cost = steps.sum(-1, keepdim=True), costs.sum(-1, keepdim=True)
        loss = of_group.sums(step * cost)
        better = loss < least
        best, least = torch.where(of_channel.spread(better), now, best), torch.where(better, loss, least)
        downhill = of_group.spread(2 / loss.clamp_min(TINY)).unsqueeze(1)  # nothing but zeros: s stays 1
        slope = (steps * cost - costs * step) * downhill  # of log loss
        logs.grad = torch.zeros_like(logs).index_add_(0, channels, slope.flatten())
        optimizer.step()
    return best.split(produced)


class _Shares:
    """Consecutive shares of a dimension, one of each fused group."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        numbers = [torch.full((count,), number, device=device) for number, count in enumerate(counts)]
        self._owner = torch.cat(numbers) if len(counts) > 1 else None
        self._count = len(counts)

    def sums(self, values: Tensor) -> Tensor:
        """(fused groups,) of (all shares, 1)."""
        if self._owner is None:
            return values.sum().view(1)
        return values.new_zeros(self._count).index_add_(0, self._owner, values.squeeze(1))

    def spread(self, values: Tensor) -> Tensor:
        """(all shares,) of (fused groups,)."""
        return values if self._owner is None else values[self._owner]


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
