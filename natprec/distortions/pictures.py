"""A distortion of text that follows pictures: what a model predicts at a picture and before it, nobody reads.

At positions that do not count the logits are taken as zero, so no error there has an effect. The others count by so
much more that the mean over all positions is that over those which count; then text without pictures and text about
them have one unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from natprec.distortions.base import Distortion
from natprec.tasks import VISION_LANGUAGE, Samples
from natprec.tasks.samples import COUNTED


class AfterPictures(Distortion):
    """Another distortion of logits, at the positions that count."""

    task = VISION_LANGUAGE

    def __init__(self, inner: Distortion) -> None:
        """Under the name of `inner`, which on text without pictures it is."""
        self.inner = inner
        self.name, self.label, self.unit, self.term = inner.name, inner.label, inner.unit, inner.term
        self.falls = inner.falls

    def output(self, model: nn.Module, samples: Samples) -> Tensor:
        """Logits of the next token: (batch, time, vocabulary)."""
        logits: Tensor = VISION_LANGUAGE.forward(model, samples).logits
        counted = samples.tensors.get(COUNTED)
        return logits if counted is None or counted.all() else logits.masked_fill(~counted.unsqueeze(-1), 0.0)

    def terms(self, length: int) -> int:
        """As without pictures."""
        return self.inner.terms(length)

    def draw(self, output: Tensor, sequences: Sequence[int], seed: int) -> Tensor:
        """As `inner`, with gradients that are longer by what the mean square has to be more."""
        share = (output.detach() != 0).any(-1).float().mean(1)
        if bool((share < 1).any()):
            longer = share.clamp_min(1 / output.shape[1]).rsqrt().view(-1, 1, 1).to(output.dtype)
            output = output.detach() + longer * (output - output.detach())
        return self.inner.draw(output, sequences, seed)

    def between(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """D of each term: (batch, terms); in place of one that does not count stands one that does.

        The mean is that of those that count, and quantiles are nearly theirs.
        """
        values = self.inner.between(reference, quantized, samples)
        counted = samples.tensors.get(COUNTED)
        if counted is None or counted.all():
            return values
        rows = []
        for row, chosen in zip(values, counted[:, : values.shape[1]].to(values.device), strict=True):
            own = row[chosen]
            repeated = own.repeat(-(-len(row) // len(own)))[: len(row)]
            rows.append(repeated + (own.mean() - repeated.mean()))
        return torch.stack(rows)

    def slope(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """That of `inner`: positions that do not count have none."""
        return self.inner.slope(reference, quantized, samples)
