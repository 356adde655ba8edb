"""Distances between two models' predictions of the next token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

VALUES = 1 << 17
"""Logits compared at a time: so few that they stay in the cache, which takes a seventh of the time."""


def few_tokens(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few tokens of logits (batch, time, vocabulary) and of what belongs to them, as (tokens, …)."""
    together = max(1, VALUES // logits.shape[-1])
    return zip(*(each.flatten(0, -2).split(together) for each in (logits, *others)), strict=True)


def forward_kl(reference: Tensor, quantized: Tensor) -> Tensor:
    """KL(reference || quantized) of each token.

    Summed in float64: at 8 bits a site's KL is near 1e-7, the rounding error of a float32 sum.

    Args:
        reference: logits, (batch, time, vocabulary).
        quantized: logits, same shape.
    Returns:
        (batch, time), nats, float64.
    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != quantized.shape:
        raise ValueError(f"logits of shapes {tuple(reference.shape)} and {tuple(quantized.shape)} cannot be compared")
    parts = []
    for some, other in few_tokens(reference, quantized):
        expected, found = some.double().log_softmax(-1), other.double().log_softmax(-1)
        parts.append(torch.linalg.vecdot(expected.exp(), expected - found))
    return torch.cat(parts).view(reference.shape[:-1])
