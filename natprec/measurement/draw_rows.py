"""Draws the rows of gradients that a segment's observers keep, so that one copy sends them to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from natprec.measurement.gradient_rows import drawn_rows
from natprec.quantizers.gptq import judged_rows

if TYPE_CHECKING:
    from natprec.measurement.weight_observer import WeightObserver


def draw_rows(observers: Sequence[WeightObserver], seed: int) -> None:
    """Draw the rows of each sequence's gradient that are kept, and send all of them to the device at once."""
    wanted = [each for each in observers if each.ids is None and each.drawn is None]
    if not wanted:
        return
    own, device = wanted[0].sharding.own, wanted[0].layer.weight.device
    counts = sorted({(each.site.shape[0], each.layer.groups) for each in wanted})
    tables = [torch.stack([drawn_rows(seed, sequence, count) for sequence in own]) for count, _ in counts]
    judged = [judged_rows(*each) for each in counts]
    flat = torch.cat([table.flatten() for table in (*tables, *judged)]).to(device)
    parts = flat.split([table.numel() for table in (*tables, *judged)])
    placed = [part.view(table.shape) for part, table in zip(parts, (*tables, *judged), strict=True)]
    for each in wanted:
        at = counts.index((each.site.shape[0], each.layer.groups))
        each.drawn = placed[at]
        if each.compensation is not None:
            each.compensation.rows = placed[len(counts) + at]
