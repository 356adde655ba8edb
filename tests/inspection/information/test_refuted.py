"""Three founding statements that do not hold as first written, and what does; docs/theory.md quotes these numbers.

T8's counter-example is in test_codebook.py, T15's figure comes from `natprec inspect`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

STEP = 1 / 7
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cube": lambda x: x**3,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "exp(x - 2)": lambda x: torch.exp(x - 2),
}
X = torch.linspace(-1, 1, 100_001, dtype=torch.float64)


def rounded(values: Tensor, step: float = STEP) -> Tensor:
    return (values / step).round() * step


def both_orders(activation: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Mean squared error of activate-then-round, and of round-then-activate."""
    exact = activation(X)
    right, wrong = rounded(exact), activation(rounded(X))
    return float((right - exact).square().mean()), float((wrong - exact).square().mean())


def test_the_wrong_order_does_not_always_lose() -> None:
    """T11 as first written: 'quantize then activate strictly increases distortion for monotone activations'."""
    right, wrong = both_orders(functional.relu)
    assert wrong == right  # relu of a grid with zero is on the grid
    found = {name: both_orders(activation) for name, activation in ACTIVATIONS.items()}
    assert found == {
        "cube": pytest.approx((1.314e-3, 3.074e-3), rel=1e-3),  # here it does lose
        "silu": pytest.approx((1.727e-3, 5.427e-4), rel=1e-3),  # slopes below 1 shrink the error: it gains
        "gelu": pytest.approx((1.330e-3, 6.746e-4), rel=1e-3),
        "exp(x - 2)": pytest.approx((2.169e-3, 5.654e-5), rel=1e-3),
    }


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-4, 4), min_size=1, max_size=20),
    codebook=st.lists(st.floats(-4, 4), min_size=2, max_size=9, unique=True),
    name=st.sampled_from(list(ACTIVATIONS)),
)
def test_rounding_once_to_a_given_codebook_is_never_farther(
    values: list[float], codebook: list[float], name: str
) -> None:
    """What does hold: where the output must lie in one codebook, no order of steps is nearer at any element."""
    activation = ACTIVATIONS[name]
    x, codes = torch.tensor(values, dtype=torch.float64), torch.tensor(codebook, dtype=torch.float64)

    def nearest(y: Tensor) -> Tensor:
        return codes[(y[:, None] - codes).abs().argmin(1)]

    exact = activation(x)
    once = (nearest(exact) - exact).abs()
    for other in (nearest(activation(rounded(x))), nearest(rounded(exact, 0.3)), nearest(nearest(exact) * 0.99)):
        assert bool((once <= (other - exact).abs() + 1e-12).all())
