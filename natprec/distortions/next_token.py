"""Distortions of a language model's prediction of the next token, in nats per token.

KL's curvature is the Fisher information, E[g gᵀ] with g the gradient of log p(y) and the label y drawn
from the model's own prediction: the text's next token would give the empirical Fisher, which is not
the curvature. The other two have a curvature of the same form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.distortions.base import Distortion, for_each
from natprec.evaluation.divergence import forward_kl, token_losses


class OutputKL(Distortion):
    """KL(original || quantized) at each token; the default for causal language models."""

    name = "kl"
    label = "KL"
    unit = "nats per token"
    term = "tokens"
    predicts = True

    def output(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Logits of the next token: (batch, time, vocabulary)."""
        return model(input_ids=ids, use_cache=False).logits

    def terms(self, length: int) -> int:
        """Every token has a prediction."""
        return length

    def draw(self, output: Tensor, sequences: range, seed: int) -> Tensor:
        """-log p(y) summed, with y drawn from the model's own prediction (the true Fisher's labels)."""
        with torch.no_grad():
            probability = output.float().softmax(-1)
            cumulative = probability.cumsum(-1)
            uniform = for_each(sequences, seed, lambda generator: torch.rand(output.shape[1], generator=generator))
            at = uniform.unsqueeze(-1).to(output.device) * cumulative[..., -1:]
            labels = torch.searchsorted(cumulative, at).clamp_(max=output.shape[-1] - 1)
        return _Drawn.apply(output, probability, labels)

    def between(self, reference: Tensor, quantized: Tensor, ids: Tensor) -> Tensor:
        """KL of each token: (batch, time), nats."""
        return forward_kl(reference, quantized)

    def slope(self, reference: Tensor, quantized: Tensor, ids: Tensor) -> Tensor:
        """The cross entropy, in float32: KL and the original's entropy, in a quarter of the time of a float64 KL."""
        return functional.cross_entropy(quantized.float().flatten(0, 1), reference.float().softmax(-1).flatten(0, 1))


class _Drawn(torch.autograd.Function):
    """-log p(y) summed, and its gradient p - onehot(y), of known probabilities, which are overwritten."""

    @staticmethod
    def forward(context: Any, logits: Tensor, probability: Tensor, labels: Tensor) -> Tensor:
        chosen = probability.gather(-1, labels)
        context.gradient, context.dtype = probability, logits.dtype
        probability.scatter_(-1, labels, chosen - 1)
        return -chosen.log().sum()

    @staticmethod
    def backward(context: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return (context.gradient * upstream[0]).to(context.dtype), None, None


class TopKKL(OutputKL):
    """KL over the original's k likeliest tokens and all others as one: what happens in the tail does not count.

    Merging outcomes never raises a KL, so a tolerance of this is weaker than the same one of `OutputKL`.
    """

    def __init__(self, k: int = 10) -> None:
        self.k = k
        self.name = self.label = f"kl-top{k}"

    def draw(self, output: Tensor, sequences: range, seed: int) -> Tensor:
        """-log p of the drawn outcome: one of the k tokens, or 'another'."""
        return super().draw(self._merged(output.float(), output), sequences, seed)

    def between(self, reference: Tensor, quantized: Tensor, ids: Tensor) -> Tensor:
        """KL of each token: (batch, time), nats."""
        return forward_kl(self._merged(reference, reference), self._merged(quantized, reference))

    def slope(self, reference: Tensor, quantized: Tensor, ids: Tensor) -> Tensor:
        """The cross entropy of the merged outcomes."""
        return super().slope(self._merged(reference, reference), self._merged(quantized, reference), ids)

    def _merged(self, logits: Tensor, reference: Tensor) -> Tensor:
        """Logits of k + 1 outcomes, the k likeliest of `reference` first: (batch, time, k + 1)."""
        top = reference.topk(self.k, dim=-1).indices
        others = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logits.gather(-1, top), others], dim=-1)


class LossIncrease(OutputKL):
    """How much less likely the text's own next token becomes; perplexity grows by its exponential.

    On text like the model's own its mean is the KL, and so is its curvature. On other text it has a
    slope too, which the sweep leaves out and which may even be downwards: it can be negative.
    """

    name = "loss"
    label = "loss increase"

    def terms(self, length: int) -> int:
        """The last token has no next one."""
        return length - 1

    def draw(self, output: Tensor, sequences: range, seed: int) -> Tensor:
        """As for KL, at the tokens that have a next one."""
        return super().draw(output[:, :-1], sequences, seed)

    def between(self, reference: Tensor, quantized: Tensor, ids: Tensor) -> Tensor:
        """Difference of -log p of each next token of the text: (batch, time - 1), nats."""
        return (token_losses(quantized, ids) - token_losses(reference, ids)).double()

    def slope(self, reference: Tensor, quantized: Tensor, ids: Tensor) -> Tensor:
        """The loss itself: the original's is a constant."""
        return token_losses(quantized, ids).mean()
