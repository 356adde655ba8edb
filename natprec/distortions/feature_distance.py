"""D as a squared distance of features f(x): ‖f - f'‖², and of sentence embeddings above all.

With J = ∂f/∂w, D = ‖Jδ‖² to second order. Its curvature needs no row of J: for random signs u
(E[u uᵀ] = 1) the gradient g of √2 ⟨u, f⟩ has E[g gᵀ] = 2 JᵀJ, so ½ E[(g · δ)²] = ‖Jδ‖²
(Hutchinson's estimator; signs have the smallest variance).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.config import ENCODER_MARGIN
from natprec.distortions.base import Distortion, for_each
from natprec.tasks import ENCODER, Samples

Pooling = Literal["mean", "cls"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


class FeatureDistance(Distortion):
    """‖f - f'‖² of any features, one vector per sequence: the way to a distortion of one's own.

    Args:
        features: (model, samples) → (batch, size), differentiable, each sample by itself.
    """

    name = "features"
    label = "D"
    unit = "‖f - f'‖² per sequence"
    term = "sequences"

    def __init__(self, features: Callable[[nn.Module, Samples], Tensor]) -> None:
        self.features = features

    def output(self, model: nn.Module, samples: Samples) -> Tensor:
        """The features as (batch, 1, size)."""
        return self.features(model, samples).unsqueeze(1)

    def terms(self, length: int) -> int:
        """A sequence is one term, whatever its length."""
        return 1

    def draw(self, output: Tensor, sequences: Sequence[int], seed: int) -> Tensor:
        """√2 ⟨u, f⟩ summed, with random signs u."""
        shape = output.shape[1:]
        bits = for_each(sequences, seed, lambda generator: torch.randint(2, shape, generator=generator))
        return math.sqrt(2) * ((2 * bits - 1).to(output) * output).sum()

    def between(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """‖f - f'‖²: (batch, 1). From the difference: 2 - 2cos would cancel at 8 bits, where it is near 1e-6."""
        return (reference.double() - quantized.double()).square().sum(-1)


class EmbeddingDistance(FeatureDistance):
    """‖e - e'‖² = 2 - 2 cos(e, e') of unit sentence embeddings; the default for encoders.

    Of embeddings of any length it is relative: ‖e - e'‖² / ‖e‖².

    Args:
        pooling: 'mean' over the last hidden states of all tokens (windows have no padding), or 'cls',
            that of the first token.
        head: from pooled vectors (batch, size) to embeddings; None: they get the length 1.
    """

    task, margin = ENCODER, ENCODER_MARGIN

    def __init__(self, pooling: Pooling = "mean", head: nn.Module | None = None) -> None:
        super().__init__(self._embed)
        self.pooling = pooling
        self.head = head
        self.unit = "‖e - e'‖² per sequence"
        self.name = "embedding" if pooling == "mean" else f"embedding-{pooling}"

    def _embed(self, model: nn.Module, samples: Samples) -> Tensor:
        hidden = ENCODER.forward(model, samples).last_hidden_state.float()
        pooled = hidden.mean(1) if self.pooling == "mean" else hidden[:, 0]
        return functional.normalize(pooled, dim=-1) if self.head is None else self.head(pooled)

    def draw(self, output: Tensor, sequences: Sequence[int], seed: int) -> Tensor:
        """√2 ⟨u, e⟩ / ‖e‖ summed, the length taken as it is."""
        return super().draw(output if self.head is None else output / _length(output), sequences, seed)

    def between(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """‖e - e'‖² / ‖e‖²: (batch, 1)."""
        distance = super().between(reference, quantized, samples)
        return distance if self.head is None else distance / _length(reference.double()).squeeze(-1).square()


def _length(embeddings: Tensor) -> Tensor:
    """(…, 1), without a gradient."""
    return embeddings.detach().norm(dim=-1, keepdim=True).clamp_min(1e-12)


class OutputDistance(FeatureDistance):
    """The mean squared difference of outputs, over all values of a sample: of images in [0, 1], dB = -10 log10 D."""

    name = "output"
    label = "squared error"
    unit = "per value"
    term = "samples"

    def __init__(self) -> None:
        super().__init__(_flat_output)


def _flat_output(model: nn.Module, samples: Samples) -> Tensor:
    """The first tensor that a module returns, (batch, values), scaled so that its squared length is a mean."""
    found = model(**samples.tensors)
    while not isinstance(found, Tensor):
        found = next(iter(found.values())) if hasattr(found, "values") else found[0]
    flat = found.float().flatten(1)
    return flat / math.sqrt(flat.shape[1])


OUTPUT = OutputDistance()
"""Of whatever a module puts out."""

EMBEDDING, EMBEDDING_CLS = EmbeddingDistance("mean"), EmbeddingDistance("cls")
"""Of pooled hidden states, and of those of the first token."""
