from __future__ import annotations

import pytest
import torch

from natprec.errors import InputError
from natprec.inspection.information import Codebook, recode
from natprec.inspection.information.codebook import half_histogram


def book(values: list[float], counts: list[int]) -> Codebook:
    return Codebook(torch.tensor(values), torch.tensor(counts), 1 << 16)


def test_seventeen_symbols_of_little_entropy_do_not_fit_four_bits() -> None:
    """T8 as first written: free iff H <= b. H is 0.18 bits here, and 4 bits cannot hold it."""
    seventeen = book([float(i) for i in range(17)], [10_000, *[10] * 16])
    assert seventeen.entropy_bits == pytest.approx(0.18, abs=0.005)
    made = recode(seventeen, lambda values: values.clamp(max=15), 4)
    assert not made.injective
    assert not made.free
    assert made.colliding_codes == 2
    assert seventeen.lossless_bits == 5
    assert recode(seventeen, lambda values: values, 5).free
    with pytest.raises(InputError, match="reaches 17 codes"):
        recode(seventeen, lambda values: values, 4)


def test_codes_of_a_half_float_are_counted() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, 1.0, -2.5])
    for dtype in (torch.bfloat16, torch.float16):
        found = Codebook.of_half(half_histogram(values, dtype), dtype)
        assert found.values.tolist() == [-2.5, 0.0, 1.0]
        assert found.counts.tolist() == [1, 2, 2]
        assert (found.size, found.elements, found.lossless_bits) == (3, 5, 2)


def test_a_constant_is_one_code_of_one_bit() -> None:
    constant = Codebook.of_half(half_histogram(torch.full((100,), 0.3), torch.bfloat16), torch.bfloat16)
    assert (constant.size, constant.entropy_bits, constant.lossless_bits) == (1, 0.0, 1)
    assert recode(constant, lambda values: values * 0, 1).free


def test_what_held_out_data_collides_with_is_not_free() -> None:
    """Injective on four codes; a fifth, unseen one falls into the bin of another."""
    seen = book([0.0, 1.0, 2.0, 3.0], [5, 5, 5, 5])
    other = book([1.0, 3.2], [6, 2])
    made = recode(seen, lambda values: values.round(), 2, other)
    assert made.injective
    assert made.heldout_unseen == pytest.approx(0.25)
    assert made.heldout_collisions == pytest.approx(0.25)
    assert not made.free
    assert recode(seen, lambda values: values.round(), 2, book([1.0, 3.0], [1, 1])).free


def test_erased_bits_of_a_recoding() -> None:
    made = recode(book([0.0, 1.0, 2.0, 3.0], [4, 4, 4, 4]), lambda values: (values / 2).floor(), 1)
    assert (made.images, made.colliding_codes, made.erased_bits) == (2, 4, 1.0)
