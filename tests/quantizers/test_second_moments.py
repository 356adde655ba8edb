"""Σ v vᵀ, of which half is computed, in both arithmetics."""

from __future__ import annotations

import pytest
import torch

from natprec import native
from natprec.quantizers.gram import add_products, mirrored
from natprec.utils.matmul import products_in

CPU = torch.device("cpu")
SHAPES = [(0, 64), (1, 5), (7, 64), (300, 65), (513, 576), (40, 1000)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("count", "size"), SHAPES)
def test_sums_are_those_of_the_values_that_products_are_given(count: int, size: int, dtype: torch.dtype) -> None:
    """One column is large, as a decoder's are; the sums of a first call stay."""
    vectors = torch.randn(count, size)
    vectors[:, size // 2] *= 100
    for products in (torch.float32, torch.bfloat16):
        exact = (vectors.bfloat16() if products == torch.bfloat16 else vectors).double()
        exact = exact.T @ exact
        sums = torch.zeros(size, size, dtype=dtype)
        with products_in(products, CPU):
            add_products(sums, vectors)
            once = mirrored(sums.clone())
            add_products(sums, vectors)
        allowed = 1e-5 * exact.diagonal().sqrt() * exact.diagonal().sqrt().unsqueeze(1)
        assert ((once - exact).abs() <= allowed).all()
        assert torch.equal(mirrored(sums), mirrored(once.to(dtype) * 2))
        assert torch.equal(once, once.T)


def test_vectors_that_are_a_view() -> None:
    vectors, sums, other = torch.randn(30, 200)[::2, 3:150], torch.zeros(147, 147), torch.zeros(147, 147)
    with products_in(torch.bfloat16, CPU):
        add_products(sums, vectors)
        add_products(other, vectors.clone())
    assert torch.equal(sums, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_c_they_are_the_same_but_for_the_order_of_sums(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, found = torch.randn(100, 70).to(dtype), []
    for native_runs in (native.on_bfloat16(), False):
        monkeypatch.setattr(native, "on_bfloat16", lambda runs=native_runs: runs)
        with products_in(torch.bfloat16, CPU):
            add_products(sums := torch.zeros(70, 70), vectors)
        found.append(mirrored(sums))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not native.on_bfloat16(), reason="this CPU does not multiply bfloat16, or there is no compiler")
def test_how_many_threads_add_them_does_not_show() -> None:
    vectors, found, before = torch.randn(100, 300), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with products_in(torch.bfloat16, CPU):
                add_products(sums := torch.zeros(300, 300), vectors)
            found.append(sums)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], each) for each in found[1:])
