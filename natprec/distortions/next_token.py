"""Distortions of a language model's prediction of the next token, in nats per token.

KL's curvature is the Fisher information, E[g gᵀ] with g the gradient of log p(y) and the label y drawn
from the model's own prediction: the text's next token would give the empirical Fisher, which is not
the curvature. At the logits it is diag(p) - p pᵀ, and any other g with that covariance tells the same. Here it is
√p ∘ s - p (√p · s) with random signs s: of drawn labels the rare ones count so much that results scatter three times
as far (LOG.md, 2026-11-28). The other two have a curvature of the same form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.distortions.base import Distortion, for_each
from natprec.distortions.divergence import few_tokens, forward_kl
from natprec.tasks import CAUSAL, Samples
from natprec.tasks.text import token_losses

SIGNS = (torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1) * 2.0 - 1
"""(256, 8), the signs that a byte of coins says."""


class OutputKL(Distortion):
    """KL(original || quantized) at each token; the default for causal language models."""

    name = "kl"
    label = "KL"
    unit = "nats per token"
    term = "tokens"
    task = CAUSAL

    def output(self, model: nn.Module, samples: Samples) -> Tensor:
        """Logits of the next token: (batch, time, vocabulary)."""
        logits: Tensor = CAUSAL.forward(model, samples).logits
        return logits

    def terms(self, length: int) -> int:
        """Every token has a prediction."""
        return length

    def draw(self, output: Tensor, sequences: Sequence[int], seed: int) -> Tensor:
        """A scalar with the gradient √p ∘ s - p (√p · s) at each token, s random signs."""
        rows, columns = output.shape[1:]
        shape = rows, -(-columns // 8)  # eight coins to a byte
        coins = for_each(sequences, seed, lambda each: torch.randint(256, shape, generator=each, dtype=torch.uint8))
        coins, table = coins.to(output.device), SIGNS.to(output.device)
        with torch.no_grad():
            gradient = torch.empty(output.shape, dtype=output.dtype, device=output.device)
            for logits, coin, into in few_tokens(output, coins, gradient):
                probability = logits.float().softmax(-1)
                drawn = functional.embedding(coin.long(), table).flatten(1)[:, :columns] * probability.sqrt()
                into.copy_(drawn.addcmul_(probability, drawn.sum(-1, keepdim=True), value=-1))
        return _Drawn.apply(output, gradient)

    def between(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """KL of each token: (batch, time), nats."""
        return forward_kl(reference, quantized)

    def slope(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """The cross entropy, in float32: KL and the original's entropy, in a quarter of the time of a float64 KL."""
        return functional.cross_entropy(quantized.float().flatten(0, 1), reference.float().softmax(-1).flatten(0, 1))


class _Drawn(torch.autograd.Function):
    """A scalar with a gradient that is known."""

    @staticmethod
    def forward(context: Any, logits: Tensor, gradient: Tensor) -> Tensor:
        context.gradient = gradient
        return torch.zeros((), device=logits.device)

    @staticmethod
    def backward(context: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return context.gradient * upstream[0].to(context.gradient.dtype), None


class TopKKL(OutputKL):
    """KL over the original's k likeliest tokens and all others as one: what happens in the tail does not count.

    Merging outcomes never raises a KL, so a tolerance of this is weaker than the same one of `OutputKL`.
    """

    def __init__(self, k: int = 10) -> None:
        self.k = k
        self.name = self.label = f"kl-top{k}"

    def draw(self, output: Tensor, sequences: Sequence[int], seed: int) -> Tensor:
        """As for KL, of k + 1 outcomes: one of the k tokens, or another."""
        return super().draw(self._merged(output.float(), output), sequences, seed)

    def between(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """KL of each token: (batch, time), nats."""
        return forward_kl(self._merged(reference, reference), self._merged(quantized, reference))

    def slope(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """The cross entropy of the merged outcomes."""
        return super().slope(self._merged(reference, reference), self._merged(quantized, reference), samples)

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
    falls = True

    def terms(self, length: int) -> int:
        """The last token has no next one."""
        return length - 1

    def draw(self, output: Tensor, sequences: Sequence[int], seed: int) -> Tensor:
        """As for KL, at the tokens that have a next one."""
        return super().draw(output[:, :-1], sequences, seed)

    def between(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """Difference of -log p of each next token of the text: (batch, time - 1), nats."""
        return (token_losses(quantized, samples.ids) - token_losses(reference, samples.ids)).double()

    def slope(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """The loss itself: the original's is a constant."""
        return token_losses(quantized, samples.ids).mean()


KL, KL_TOP10, LOSS = OutputKL(), TopKKL(), LossIncrease()
"""Of all tokens, of the likeliest ten, and of the text's own next token."""
