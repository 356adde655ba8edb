"""The registered operation, where there is no GPU: shape, specification, and what it refuses."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from natprec.errors import InputError
from natprec.formats import integer
from natprec.quantizers import quantize
from natprec.runtime.kernels import Epilogue, reference
from natprec.runtime.kernels.layout import DEPTH_OF_CODES, TILE, planar
from natprec.runtime.kernels.triton.ops import planar_linear, use_interpreter
from natprec.runtime.kernels.triton.tiles import (
    DECODE,
    DECODE_CODES,
    PREFILL,
    PREFILL_BYTES,
    PREFILL_CODES,
    SOME_TOKENS,
    Tile,
    join,
    sharing,
    span,
    tiles,
)
from natprec.runtime.kernels.triton.tokens import scaled_tokens

WEIGHT = quantize(
    torch.randn(40, 192, generator=torch.Generator().manual_seed(0)), integer(3, 64, False), torch.float16
)
X = torch.randn(5, 192, generator=torch.Generator().manual_seed(1)).half()


def test_without_a_kernel_it_is_the_specification() -> None:
    epilogue = Epilogue("silu", gated=True, output_scale=0.02)
    up = torch.randn(5, 40, generator=torch.Generator().manual_seed(2)).half()
    codes = planar_linear(X, planar(WEIGHT), epilogue=epilogue, multiplier=up)
    assert torch.equal(codes, reference.linear(X, WEIGHT, epilogue=epilogue, multiplier=up))
    coded, scale = reference.quantize_tokens(X)
    floats = planar_linear(coded, planar(WEIGHT, DEPTH_OF_CODES), x_scale=scale, dtype=torch.float32)
    assert torch.equal(floats, reference.linear(coded, WEIGHT, x_scale=scale).float())


def test_the_fake_has_the_shape_and_dtype_of_the_real_one() -> None:
    weight = planar(WEIGHT)
    arguments = (X, list(weight.planes), weight.scale, weight.zero_point, None, "int3-g64", 40)
    torch.library.opcheck(
        torch.ops.natprec.planar_linear.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_floats_may_have_a_scale_and_the_epilogue_comes_after_it() -> None:
    halves, scale = scaled_tokens(X.float() * 1e6, codes=False)
    up = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    epilogue = Epilogue("silu", gated=True, residual=True)
    given = {"x_scale": scale, "epilogue": epilogue, "multiplier": up, "residual": -up}
    found = planar_linear(halves, planar(WEIGHT), dtype=torch.float32, **given)
    assert torch.equal(found, reference.linear(halves, WEIGHT, **given).float())


@pytest.mark.parametrize("codes", [False, True])
def test_tokens_are_scaled_as_the_reference_does(codes: bool) -> None:
    values, scale = scaled_tokens(X, codes)
    expected = (reference.quantize_tokens if codes else reference.halve_tokens)(X)
    assert torch.equal(values, expected[0])
    assert torch.equal(scale, expected[1])
    torch.library.opcheck(
        torch.ops.natprec.scaled_tokens.default, (X, codes), test_utils=("test_schema", "test_faketensor")
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="depth 32"):
        planar_linear(X, planar(WEIGHT, DEPTH_OF_CODES))
    with pytest.raises(InputError, match="without a scale"):
        planar_linear(X.to(torch.int8), planar(WEIGHT, DEPTH_OF_CODES))
    with pytest.raises(InputError, match="192 columns"):
        planar_linear(X[:, :64], planar(WEIGHT))
    with pytest.raises(InputError, match="needs a residual"):
        planar_linear(X, planar(WEIGHT), epilogue=Epilogue(residual=True))


def test_the_interpreter_must_be_on_before_python_starts() -> None:
    pytest.importorskip("triton")
    with pytest.raises(InputError, match="set TRITON_INTERPRET=1"):
        use_interpreter()


def test_importing_needs_no_triton() -> None:
    modules = "natprec.runtime.kernels.triton.ops, natprec.runtime.kernels.triton.tiles"
    code = f"import sys; sys.modules['triton'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("group", [None, 32, 64, 96, 128, 4096])
def test_a_dot_stays_within_its_group_and_its_words(group: int | None) -> None:
    every = [
        tile
        for tokens, capability, codes in itertools.product((1, SOME_TOKENS, 512), (80, 90, 100, 120), (False, True))
        for bits in (4, 8)
        for tile in tiles(tokens, capability, bits, codes)
    ]
    for depth, tile, widest in itertools.product((16, 32), every, (2, 4, 8)):
        steps = join(tile, group, depth, widest)
        assert span(group, tile) % (steps * depth) == 0
        assert group is None or group % (steps * depth) == 0
        assert steps * widest * depth <= TILE  # bits of a lane are as many as a tile has steps


def test_few_outputs_are_shared() -> None:
    """4096 rows in tiles of 64, 14336 columns in turns of 128, 132 multiprocessors; and what needs no help."""
    tile = Tile(16, 64, shares=3.5)
    assert sharing(tile, 64, 112, 132) == 8
    assert sharing(tile, 224, 32, 132) == 4
    assert sharing(tile, 64, 4, 132) == 4  # one turn each
    assert sharing(tile, 9, 9, 132) == 5  # of 8 the last 3 would have none: two turns each
    assert sharing(tile, 512, 112, 132) == 1


def test_the_nearest_older_machine_has_the_tile() -> None:
    assert tiles(512, 86, 4, codes=False) == tiles(512, 80, 8, codes=True) == PREFILL[80]
    assert tiles(512, 103, 4, codes=False) == PREFILL[100]
    assert tiles(512, 90, 4, codes=True) == PREFILL_CODES[90]
    assert tiles(512, 90, 8, codes=True) == tiles(512, 90, 8, codes=False) == PREFILL_BYTES[90]
    assert len({tiles(512, 90, *case) for case in ((4, False), (4, True), (8, True))}) == 3
    assert tiles(16, 90, 4, codes=False) == DECODE
    assert tiles(16, 90, 4, codes=True) == DECODE_CODES
    assert tiles(17, 90, 4, codes=False) == tiles(SOME_TOKENS, 120, 8, codes=True)
