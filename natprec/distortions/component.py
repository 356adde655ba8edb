"""D of a part of a diffusion pipeline: how far what it returns is from the original's, relative to its length.

    D = ‖o - o'‖² / ‖o‖²       o: what the part returns at one step for one latent

Of a denoiser o is the predicted noise (or velocity, or image), of an autoencoder the decoded image, of a text encoder
each tensor that it returns, and D is their mean. 1e-2 is 20 dB below what is returned, 1e-4 is 40 dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.distortions.base import Distortion, for_each
from natprec.tasks import Samples, Task
from natprec.tasks.diffusion import PIPELINE_PART, PipelinePart

LEAST = 1e-12
"""Of a squared length that is divided by."""


class ComponentDistance(Distortion):
    """‖o - o'‖² / ‖o‖² of each tensor that a part returns for a sample; a tensor is a term.

    Args:
        part: that is measured; without it the distortion has a name and a unit, and no outputs.
    """

    name = "component"
    label = "relative squared error"
    unit = "‖o - o'‖²/‖o‖² per call"
    term = "calls"
    task: Task | None = PIPELINE_PART

    def __init__(self, part: PipelinePart | None = None, count: int = 1) -> None:
        self._part, self._count = part, count

    def output(self, model: nn.Module, samples: Samples) -> Tensor:
        """(batch, tensors, size), those that are shorter filled with zeros."""
        assert self._part is not None
        flat = [each.float().flatten(1) for each in self._part.returned(model, samples)]
        size = max(each.shape[1] for each in flat)
        return torch.stack([functional.pad(each, (0, size - each.shape[1])) for each in flat], 1)

    def terms(self, length: int) -> int:
        """As many as there are tensors."""
        return self._count

    def draw(self, output: Tensor, sequences: Sequence[int], seed: int) -> Tensor:
        """√2 ⟨u, o⟩ / ‖o‖ summed, with random signs u, the length taken as it is: see `FeatureDistance.draw`."""
        shape = output.shape[1:]
        bits = for_each(sequences, seed, lambda generator: torch.randint(2, shape, generator=generator))
        length = output.detach().square().sum(-1, keepdim=True).clamp_min(LEAST).sqrt()
        return math.sqrt(2) * ((2 * bits - 1).to(output) * (output / length)).sum()

    def between(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """(batch, tensors)."""
        squared = reference.double().square().sum(-1).clamp_min(LEAST)
        return (reference.double() - quantized.double()).square().sum(-1) / squared


COMPONENT = ComponentDistance()
"""Of a part of any pipeline."""
