"""Refinement after rounding: scales tuned for the distortion of the whole model, by gradient.

Rounding sees one layer at a time. Here the codes stay and each group's scale s moves: with w = (q - z) s,
dD/ds = Σ_group (q - z) dD/dw, so an ordinary backward pass of the quantized model is all that is needed. D is the
distortion that the tolerance is about, against the original model, on calibration text. Part of the text is held
back: if D does not fall there, the scales that rounding chose are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, site_layer
from natprec.models.weights import put_in
from natprec.quantizers import QuantizedTensor
from natprec.tasks import Samples
from natprec.utils.progress import Advance

SEQUENCES = 6
"""Of calibration text in each step."""

RATE = 1e-3
"""Of Adam, in units of each scale; it falls to 0 over the steps."""

HELD_BACK = 8
"""Of so many sequences one judges."""


@dataclass(frozen=True)
class Refined:
    """Scales after refinement.

    Attributes:
        codes: site name → codes with the new scales; the old ones if nothing was gained.
        before, after: distortion on the text that was held back.
    """

    codes: dict[str, QuantizedTensor]
    before: float
    after: float


def refine(
    segmented: SegmentedModel,
    sites: Sequence[Site],
    codes: dict[str, QuantizedTensor],
    original: dict[str, Tensor],
    samples: Samples,
    steps: int,
    *,
    dtype: torch.dtype,
    seed: int = 0,
    advance: Advance = lambda step: None,
) -> Refined:
    """Tune the scales of a rounded model; its weights are those of the result afterwards.

    Args:
        segmented: the model, rounded to `codes`.
        original: its weights before rounding, by name.
        samples: of the calibration text.
        steps: of gradient descent, each on `SEQUENCES` sequences.
        dtype: in which scales are stored.
        advance: called once per step.
    """
    judges = torch.arange(len(samples)) % HELD_BACK == HELD_BACK - 1
    judging, learning = (samples[judges], samples[~judges]) if judges.any() else (samples, samples)
    layers = {site.name: site_layer(segmented.model, site) for site in sites if site.name in codes}
    rounded = {name: layer.weight.data for name, layer in layers.items()}
    judge, teacher = (_Original(segmented, original, some) for some in (judging, learning))
    before = judge.distortion()
    moves = {name: torch.zeros_like(codes[name].scale, requires_grad=True) for name in layers}
    optimizer = torch.optim.Adam(moves.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    draw = torch.Generator().manual_seed(seed)
    result = codes
    for step in range(steps):
        chosen = torch.randperm(len(learning), generator=draw)[:SEQUENCES]
        teacher.descend(chosen.tolist(), [layer.weight for layer in layers.values()])
        for name, layer in layers.items():
            if layer.gradient is not None:  # else the output does not depend on it
                moves[name].grad = codes[name].scale_slope(layer.gradient)
            layer.weight.grad = None
        optimizer.step()
        schedule.step()
        result = {name: codes[name].scaled(1 + move.detach(), dtype) for name, move in moves.items()}
        for name, layer in layers.items():
            layer.put(result[name].dequantize())
        advance(f"step {step + 1}")
    after = judge.distortion()
    if after < before:
        return Refined({**codes, **result}, before, after)
    for name, layer in layers.items():
        layer.weight.data = rounded[name]
    return Refined(codes, before, after)


class _Original:
    """The original model's answers to some text: kept before its last segment, whose output would be far larger."""

    def __init__(self, segmented: SegmentedModel, weights: dict[str, Tensor], samples: Samples) -> None:
        self.segmented, self.weights, self.samples = segmented, weights, samples.split(1)
        with torch.no_grad(), put_in(segmented.model, weights):
            self._hidden = [_before_suffix(segmented, sample) for sample in self.samples]

    @torch.no_grad()
    def output(self, index: int) -> Tensor:
        """Of one sample."""
        with put_in(self.segmented.model, self.weights):
            return self.segmented.suffix(self._hidden[index], self.samples[index])

    @torch.no_grad()
    def distortion(self) -> float:
        """Of the model as it is now, over all of the text."""
        found = [
            self.segmented.distortion.between(self.output(index), self.segmented.output(sample), sample).mean()
            for index, sample in enumerate(self.samples)
        ]
        return float(torch.stack(found).mean())

    def descend(self, chosen: Sequence[int], parameters: Sequence[Tensor]) -> None:
        """Leave the gradient of the mean distortion on some sequences in the parameters' `grad`."""
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            for index in chosen:
                sample = self.samples[index]
                slope = self.segmented.distortion.slope(self.output(index), self.segmented.output(sample), sample)
                (slope / len(chosen)).backward()
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)


def _before_suffix(segmented: SegmentedModel, samples: Samples) -> Tensor | None:
    """What the last block returns; None where there are no blocks."""
    if not segmented.blocks:
        return None
    hidden, contexts = segmented.prefix(samples)
    for index, context in enumerate(contexts):
        hidden = segmented.block(index, hidden, context)
    return hidden
