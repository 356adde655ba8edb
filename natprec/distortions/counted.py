"""A distortion of logits at the positions that count: see `natprec.tasks.samples.COUNTED`.

At the others logits are taken as zero, so no error there has an effect. Those that count do so by so much more that
the mean over all positions is that over those which count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from natprec.distortions.base import Distortion
from natprec.tasks import Samples, Task
from natprec.tasks.samples import COUNTED


class WhereCounted(Distortion):
    """Another distortion of logits, at the positions that count."""

    def __init__(self, inner: Distortion, task: Task, name: str | None = None) -> None:
        """Under the name of `inner`, or another one."""
        self.inner, self.task = inner, task
        self.name, self.label, self.unit, self.term = name or inner.name, inner.label, inner.unit, inner.term
        self.falls = inner.falls

    def output(self, model: nn.Module, samples: Samples) -> Tensor:
        """Logits of the next token: (batch, time, vocabulary)."""
        assert self.task is not None
        logits: Tensor = self.task.forward(model, samples).logits
        counted = samples.tensors.get(COUNTED)
        return logits if counted is None or counted.all() else logits.masked_fill(~counted.unsqueeze(-1), 0.0)

    def terms(self, length: int) -> int:
        """As `inner`."""
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
