"""The kernel on a GPU, where there is one: the cases of the interpreter, and every tile at every width."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("there is no GPU; the interpreter runs the same cases", allow_module_level=True)
pytest.importorskip("triton")

from natprec.kernels.triton.launch import capability
from natprec.kernels.triton.tiles import tiles
from tests.kernels.triton.cases import CASES, MANY, Case, run, wrong

ROUNDING = 1e-5
"""Tensor cores add with fewer bits than float32 has."""


def placed(value: Tensor) -> Tensor:
    return value.cuda()


@pytest.mark.parametrize("case", [*CASES, MANY], ids=lambda case: case.name)
def test_every_width_and_epilogue_is_right(case: Case) -> None:
    assert wrong(run(case, placed), ROUNDING) == ""


@pytest.mark.parametrize(("bits", "coded"), itertools.product(range(2, 9), (False, True)))
def test_every_tile_is_right(bits: int, coded: bool) -> None:
    """Enough rows that many programs run at once, ragged; with programs that share columns, results do not vary."""
    device = capability(torch.device("cuda"))
    for tokens in (5, 40, 300):
        for tile, programs in itertools.product(tiles(tokens, device, bits, coded), (1, 4)):
            case = Case(bits, coded, symmetric=False, tokens=tokens, rows=1100, columns=1216, programs=programs)
            first, second = run(case, placed, tile), run(case, placed, tile)
            assert wrong(first, ROUNDING) == "", tile
            assert first == second
