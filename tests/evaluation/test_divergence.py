"""KL between predictions, against its definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from natprec.distortions.divergence import forward_kl
from natprec.tasks.text import token_losses


def logits(seed: int, size: float = 3.0, vocabulary: int = 7) -> Tensor:
    return size * torch.randn(2, 3, vocabulary, generator=torch.Generator().manual_seed(seed))


def definition(reference: list[float], quantized: list[float]) -> float:
    p, q = ([math.exp(v - max(row)) for v in row] for row in (reference, quantized))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.floats(0.01, 20))
def test_is_the_definition(seed: int, size: float) -> None:
    reference, quantized = logits(seed, size), logits(seed + 1000, size)
    found = forward_kl(reference, quantized)
    assert found.dtype == torch.float64
    assert found.shape == (2, 3)
    for row in range(2):
        for place in range(3):
            expected = definition(reference[row, place].tolist(), quantized[row, place].tolist())
            assert float(found[row, place]) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), noise=st.floats(0, 10))
def test_is_never_negative(seed: int, noise: float) -> None:
    reference = logits(seed)
    assert (forward_kl(reference, reference + noise * logits(seed + 1, 1.0)) >= -1e-15).all()


def test_zero_for_equal_and_for_shifted_predictions() -> None:
    assert (forward_kl(logits(0), logits(0)) == 0).all()
    assert (forward_kl(logits(0), logits(0) + 5).abs() < 1e-12).all()


def test_known_values_and_direction() -> None:
    even, sure = torch.zeros(1, 1, 2), torch.tensor([[[math.log(9.0), 0.0]]])
    assert float(forward_kl(even, sure)) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert float(forward_kl(sure, even)) == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))


def test_small_distances_survive_float32_logits() -> None:
    """At 8 bits a site's KL is near 1e-7; float32 sums would lose it."""
    reference = logits(0, vocabulary=50_000)
    nudged = reference + 1e-4 * logits(1, 1.0, vocabulary=50_000)
    change = (nudged - reference).double()
    p = reference.double().softmax(-1)
    expected = ((p * change.square()).sum(-1) - (p * change).sum(-1).square()) / 2
    torch.testing.assert_close(forward_kl(reference, nudged), expected, rtol=1e-3, atol=0)


def test_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 7\) and \(2, 3, 8\) cannot be compared"):
        forward_kl(logits(0), logits(0, vocabulary=8))


def test_token_losses_are_of_the_next_token() -> None:
    ids = torch.tensor([[1, 4, 2], [0, 6, 6]])
    found = token_losses(logits(0), ids)
    assert found.shape == (2, 2)
    for row in range(2):
        for place in range(2):
            chances = logits(0)[row, place].softmax(-1)
            assert float(found[row, place]) == pytest.approx(-math.log(chances[ids[row, place + 1]]), rel=1e-5)
