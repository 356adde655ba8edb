"""Distances between two models' predictions of the next token."""

from __future__ import annotations

import torch
from torch import Tensor


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
    result = torch.empty(reference.shape[:-1], dtype=torch.float64, device=reference.device)
    for index in range(len(reference)):
        expected = reference[index].double().log_softmax(-1)
        result[index] = (expected.exp() * (expected - quantized[index].double().log_softmax(-1))).sum(-1)
    return result


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p of each next token of the text: (batch, time - 1), nats.

    Args:
        logits: (batch, time, vocabulary).
        ids: (batch, time).
    """
    predicted = logits[:, :-1].float().log_softmax(-1)
    return -predicted.gather(-1, ids[:, 1:, None]).squeeze(-1)
