from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natprec.formats import integer
from natprec.inspection.information import lossless_grid
from natprec.models.loading import load_model
from natprec.quantizers import quantize


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8), group=st.sampled_from([32, 64, 128]), symmetric=st.booleans(), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_what_was_quantized_is_found_again(
    bits: int, group: int, symmetric: bool, seed: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(seed))
    made = quantize(weight, integer(bits, group, symmetric), dtype).dequantize()
    grid = lossless_grid(made)
    assert grid is not None
    assert grid.group_size >= group
    kind = "none" if symmetric else "integer"
    found = grid.bits[kind]
    assert found is not None
    assert found <= bits
    assert grid.realized <= 2**bits


def test_a_float_offset_is_told_from_an_integer_zero_point() -> None:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (8, 2, 32), generator=draw)
    codes[..., 0], codes[..., 1] = 0, 15
    step = torch.rand(8, 2, 1, generator=draw).half().float() + 0.1
    step = step.half().float()
    offset = torch.randn(8, 2, 1, generator=draw).half().float()
    grid = lossless_grid((codes * step + offset).reshape(8, 64))
    assert grid is not None
    assert grid.best == ("float", 4)
    assert grid.bits["integer"] is None
    assert grid.exact_share["integer"] < 0.5
    assert grid.group_size == 32
    assert torch.equal(grid.counts[grid.counts > 0], torch.bincount(codes.flatten()))


def test_one_weight_off_the_grid_is_enough() -> None:
    weight = quantize(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), integer(4, 32), torch.float16)
    values = weight.dequantize()
    assert lossless_grid(values) is not None
    values[3, 40] += 1e-6
    assert lossless_grid(values) is None


def test_constant_weights_lie_on_a_grid() -> None:
    for value in (0.0, 0.25, -3.0):
        grid = lossless_grid(torch.full((4, 64), value))
        assert grid is not None
        assert grid.realized == 1
        assert grid.best is not None
        assert grid.best[1] == 1
    assert lossless_grid(torch.randn(8, 64, generator=torch.Generator().manual_seed(0))) is None
    assert lossless_grid(torch.ones(8, 20)) is None  # no group of 32 fits


@pytest.mark.slow
def test_a_q4_1_file_is_four_bits_with_a_float_offset(smollm2: str) -> None:
    """The known answer of T9; its embedding is Q8_0: 8 bits, symmetric."""
    model = load_model(smollm2).model
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        grid = lossless_grid(model.get_submodule(f"model.layers.17.{name}").weight)
        assert grid is not None
        assert (grid.group_size, grid.best, grid.realized) == (32, ("float", 4), 16)
        assert grid.bits["integer"] is None
        assert grid.bits["none"] is None
        assert grid.exact_share["integer"] < 0.05
    embedding = lossless_grid(model.get_input_embeddings().weight[:4096])
    assert embedding is not None
    assert (embedding.group_size, embedding.best) == (32, ("none", 8))
