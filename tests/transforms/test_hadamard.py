"""Rotations: orthogonal, even, the same for the same seed, along any dimension."""

from __future__ import annotations

import pytest
import torch

from natprec.transforms.hadamard import Rotation, paley

SPREAD = (8, 12, 20, 40, 64, 72, 96, 576, 896, 1536, 2880)
OTHERS = (1, 3, 9, 30, 92)
"""No such Hadamard matrix is known here: an odd factor is random."""


@pytest.mark.parametrize("size", SPREAD + OTHERS)
def test_orthogonal(size: int) -> None:
    matrix = Rotation(size, seed=1).matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SPREAD)
def test_all_entries_are_equally_large(size: int) -> None:
    matrix = Rotation(size).matrix()
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", OTHERS[1:])
def test_others_still_spread(size: int) -> None:
    """No entry stands for a channel alone where there is a power of two to spread it over."""
    matrix = Rotation(size).matrix()
    assert float(matrix.abs().max()) <= (size & -size) ** -0.5


def test_the_seed_decides() -> None:
    assert torch.equal(Rotation(64, 3).matrix(), Rotation(64, 3).matrix())
    assert not torch.equal(Rotation(64, 3).matrix(), Rotation(64, 4).matrix())


def test_it_turns_along_any_dimension_and_in_parts() -> None:
    rotation = Rotation(12, seed=2)
    matrix, weight = rotation.matrix(), torch.randn(24, 12, 5, generator=torch.Generator().manual_seed(0))
    turned = rotation.turn(weight, 1)
    assert (turned.shape, turned.dtype) == (weight.shape, torch.float32)
    torch.testing.assert_close(turned, torch.einsum("aib,ij->ajb", weight.double(), matrix).float())
    parts = torch.einsum("pic,ij->pjc", weight.view(2, 12, 60).double(), matrix).reshape(weight.shape).float()
    torch.testing.assert_close(rotation.turn(weight, 0), parts)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 28, 36, 60, 180])
def test_paley(order: int) -> None:
    matrix = paley(order)
    assert matrix is not None
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 16, 40, 92])
def test_orders_that_are_not_made_so(order: int) -> None:
    """16 and 40 are powers of two times smaller ones; 92 has no such prime."""
    assert paley(order) is None
