"""The kernel on a GPU, where there is one: the cases of the interpreter, and every tile at every width."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("there is no GPU; the interpreter runs the same cases", allow_module_level=True)
pytest.importorskip("triton")

from natprec.formats import CHANNEL, integer
from natprec.runtime.kernels import Epilogue, reference
from natprec.runtime.kernels.layout import planar
from natprec.runtime.kernels.triton import dense
from natprec.runtime.kernels.triton.launch import capability, launch
from natprec.runtime.kernels.triton.tiles import tiles
from tests.runtime.kernels.triton.cases import (
    CASES,
    MANY,
    TOKENS,
    VALUES,
    Case,
    Tokens,
    Values,
    at,
    made,
    run,
    run_tokens,
    run_values,
    wrong,
)

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
            assert first["digest"] == second["digest"], tile


@pytest.mark.parametrize("case", VALUES, ids=lambda case: case.name)
def test_values_are_those_of_the_weight(case: Values) -> None:
    assert wrong(run_values(case, placed), 0) == ""


@pytest.mark.parametrize("case", TOKENS, ids=lambda case: case.name)
def test_tokens_are_scaled_and_normed(case: Tokens) -> None:
    assert wrong(run_tokens(case, placed), 1e-6 if case.codes is None else 0) == ""


@pytest.mark.parametrize("block", [1 << 26, 256 * 1217])
@pytest.mark.parametrize(("bits", "group"), [*itertools.product(range(2, 9), (64, CHANNEL))])
def test_many_tokens_meet_dense_weights(bits: int, group: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS, summing in float32: what is left is the rounding of each weight; row by row, in blocks and in one."""
    monkeypatch.setattr(dense, "DENSE", block)
    columns = 1217 if group == CHANNEL else 1216
    weight = made(integer(bits, group, False), 1100, columns, torch.Generator().manual_seed(bits))
    x = torch.randn(1200, columns, generator=torch.Generator().manual_seed(0)).half()
    expected, unit = reference.linear(x, weight), dense.unit_of(weight.scale, bits)
    found = dense.dense_product(placed(x), at(planar(weight), placed), placed(unit)).cpu() / unit
    assert ((found - expected).norm(dim=0) < 1e-3 * expected.norm(dim=0)).all()


def test_graphs_have_counters_of_their_own() -> None:
    """Two graphs of shared columns, captured one after the other; the second is replayed first."""
    weight = planar(made(integer(4, 64), 512, 4096, torch.Generator().manual_seed(0)))
    placed_weight = at(weight, placed)
    x = torch.randn(1, 4096, device="cuda").half()
    outs = [torch.full((1, 512), torch.nan, device="cuda") for _ in range(3)]
    launch(outs[0], x, placed_weight, Epilogue(), programs=4)
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
    for graph, out in zip(graphs, outs[1:], strict=True):
        with torch.cuda.graph(graph):
            launch(out, x, placed_weight, Epilogue(), programs=4)
    for graph in (*reversed(graphs), *graphs):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(outs[1], outs[0])
    assert torch.equal(outs[2], outs[0])
