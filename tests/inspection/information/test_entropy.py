from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natprec.errors import InputError
from natprec.inspection.information import BOLTZMANN, landauer_joules
from natprec.inspection.information.entropy import entropy_bits, lost_bits, miller_madow_bits, unseen_mass
from natprec.inspection.information.landauer import marginal_bound_bits

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any)


def by_hand(counts: list[int], images: list[int]) -> float:
    """H(X | f(X)) by enumeration of the joint distribution, in exact sums."""
    total = sum(counts)
    terms = []
    for image in set(images):
        inside = [count for count, own in zip(counts, images, strict=True) if own == image and count]
        whole = sum(inside)
        terms += [count / total * math.log2(whole / count) for count in inside]
    return math.fsum(terms)


@given(COUNTS, st.data())
def test_erased_bits_are_those_computed_by_hand(counts: list[int], data: st.DataObject) -> None:
    images = data.draw(st.lists(st.integers(0, 4), min_size=len(counts), max_size=len(counts)))
    found, expected = lost_bits(torch.tensor(counts), torch.tensor(images)), by_hand(counts, images)
    assert found == pytest.approx(expected, rel=1e-12, abs=0)
    assert landauer_joules(found) == pytest.approx(1.380649e-23 * 300 * math.log(2) * expected, rel=1e-12, abs=0)


def test_every_map_of_four_symbols() -> None:
    """All 256 maps of 4 symbols to 4: a bijection erases exactly nothing, a constant erases H(X)."""
    counts = [1, 2, 4, 9]
    for images in itertools.product(range(4), repeat=4):
        found = lost_bits(torch.tensor(counts), torch.tensor(images))
        assert found == pytest.approx(by_hand(counts, list(images)), rel=1e-12, abs=0)
        if len(set(images)) == 4:
            assert found == 0.0
        if len(set(images)) == 1:
            assert found == pytest.approx(entropy_bits(torch.tensor(counts)), rel=1e-12)


@given(COUNTS, st.data())
def test_the_marginal_bound_is_below_what_any_map_erases(counts: list[int], data: st.DataObject) -> None:
    bits = data.draw(st.integers(0, 3))
    images = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=len(counts), max_size=len(counts)))
    histogram = torch.tensor(counts)
    assert lost_bits(histogram, torch.tensor(images)) >= marginal_bound_bits(entropy_bits(histogram), bits, 1) - 1e-12


def test_landauer_of_one_bit_at_room_temperature() -> None:
    assert BOLTZMANN == 1.380649e-23
    assert landauer_joules(1) == pytest.approx(2.870978885e-21, rel=1e-9)
    assert landauer_joules(8, 600) == pytest.approx(16 * landauer_joules(1), rel=1e-12)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="kelvin"):
            landauer_joules(1, bad)
        with pytest.raises(InputError, match="erased bits"):
            landauer_joules(bad)


def test_a_constant_has_no_entropy() -> None:
    assert entropy_bits(torch.tensor([0, 7, 0])) == 0.0
    assert miller_madow_bits(torch.tensor([7])) == 0.0
    assert lost_bits(torch.tensor([7]), torch.tensor([3])) == 0.0


def test_miller_and_madow_are_nearer_than_the_plug_in_value() -> None:
    """64 equally likely symbols, 200 draws, 50 times: the mean error shrinks to less than a third."""
    draw = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(50):
        counts = torch.bincount(torch.randint(64, (200,), generator=draw), minlength=64)
        errors.append((6 - entropy_bits(counts), 6 - miller_madow_bits(counts)))
    plain, corrected = (abs(sum(column)) / 50 for column in zip(*errors, strict=True))
    assert corrected < plain / 3
    assert miller_madow_bits(torch.ones(64, dtype=torch.int64), 64) <= 6


def test_unseen_mass_foretells_new_symbols() -> None:
    """Zipf's law over 5000 symbols, 2000 draws: Good and Turing against the true mass of what was not drawn."""
    chances = 1 / torch.arange(1, 5001, dtype=torch.float64)
    chances /= chances.sum()
    drawn = torch.multinomial(chances, 2000, replacement=True, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(drawn, minlength=5000)
    assert unseen_mass(counts) == pytest.approx(float(chances[counts == 0].sum()), rel=0.15)
    assert unseen_mass(torch.zeros(3, dtype=torch.int64)) == 1.0
