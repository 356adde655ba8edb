"""The diagonal form, the directional one, and what is made of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from natprec.formats import integer
from natprec.measurement.fisher import Product, contract
from natprec.quantizers import rounding_errors

FORMATS = tuple(integer(bits, 32) for bits in (3, 4, 5, 6))
GRADIENTS, ROWS, COLUMNS = 32, 96, 64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(directions: int, weight: Tensor, seed: int = 1) -> tuple[Tensor, np.ndarray]:
    """Gradients that span so many directions, and (formats,) E[(Σ g δ)²] over all such gradients."""
    basis = drawn(directions, *weight.shape, seed=seed) / directions**0.5
    errors = rounding_errors(weight, FORMATS, torch.bfloat16)[:-1].double()
    truth = (basis.flatten(1).double() @ errors.T).square().sum(0)
    return torch.einsum("nd,drc->nrc", drawn(GRADIENTS, directions, seed=seed + 1000), basis), truth.numpy()


def contracted(gathered: Tensor, weight: Tensor, *, squared: bool = False) -> Product:
    return contract(gathered.clone(), weight, FORMATS, torch.bfloat16, squared=squared)


def test_values_and_energy_are_sums_of_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.measurement.fisher.CONTRACT_VALUES", 5 * GRADIENTS * COLUMNS)  # a ragged last part
    weight, gathered = drawn(ROWS, COLUMNS), drawn(GRADIENTS, ROWS, COLUMNS, seed=1)
    squares = rounding_errors(weight, FORMATS, torch.bfloat16).square().double()
    for product in (contracted(gathered, weight), contracted(gathered.square(), weight, squared=True)):
        expected = gathered.square().flatten(1).double() @ squares.T
        np.testing.assert_allclose(product.values.numpy(), expected.numpy(), rtol=1e-5)
        np.testing.assert_allclose(product.energy.numpy(), gathered.double().square().sum((1, 2)).numpy(), rtol=1e-5)


def test_sums_of_squares_know_no_directions() -> None:
    weight = drawn(ROWS, COLUMNS)
    gathered, _ = gradients(1, weight)
    assert (contracted(gathered.square(), weight, squared=True).alignment == 1).all()


@pytest.mark.parametrize("directions", [1, 3])
def test_few_directions_are_told_from_the_errors_themselves(directions: int) -> None:
    """The diagonal form is off by a factor of two and more; what 32 gradients leave is √(2/32), a quarter."""
    before, after = [], []
    for seed in range(40):
        weight = drawn(ROWS, COLUMNS, seed=seed)
        gathered, truth = gradients(directions, weight, seed + 1)
        product = contracted(gathered, weight)
        diagonal = product.values[:, :-1].mean(0).numpy()
        before += list(np.log2(diagonal / truth))
        after += list(np.log2(diagonal * product.alignment.numpy() / truth))
    assert np.quantile(np.abs(before), 0.9) > 1.2
    assert np.quantile(np.abs(after), 0.9) < 0.8
    assert np.abs(np.median(after)) < 0.2


def test_many_directions_leave_the_diagonal_form() -> None:
    """The directional form of 32 gradients would scatter by a quarter."""
    weight = drawn(ROWS, COLUMNS)
    alignment = contracted(drawn(GRADIENTS, ROWS, COLUMNS, seed=3), weight).alignment
    assert (alignment - 1).abs().max() < 0.05


def test_nothing_gathered() -> None:
    product = contracted(torch.zeros(4, ROWS, COLUMNS), drawn(ROWS, COLUMNS))
    assert (product.alignment == 1).all()
    assert (product.values == 0).all()
