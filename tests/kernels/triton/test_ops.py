"""The registered operation, where there is no GPU: shape, specification, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from natprec.errors import InputError
from natprec.formats import NumberFormat
from natprec.kernels import Epilogue, reference
from natprec.kernels.layout import DEPTH_OF_CODES, planar
from natprec.kernels.triton.ops import planar_linear, use_interpreter
from natprec.kernels.triton.tiles import DECODE, DECODE_CODES, PREFILL, join, span, tiles
from natprec.quantizers import quantize

WEIGHT = quantize(
    torch.randn(40, 192, generator=torch.Generator().manual_seed(0)), NumberFormat(3, 64, False), torch.float16
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
    arguments = (X, list(weight.planes), weight.scale, weight.zero_point, 3, 64, 40)
    torch.library.opcheck(
        torch.ops.natprec.planar_linear.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="depth 32"):
        planar_linear(X, planar(WEIGHT, DEPTH_OF_CODES))
    with pytest.raises(InputError, match="192 columns"):
        planar_linear(X[:, :64], planar(WEIGHT))
    with pytest.raises(InputError, match="needs a residual"):
        planar_linear(X, planar(WEIGHT), epilogue=Epilogue(residual=True))


def test_the_interpreter_must_be_on_before_python_starts() -> None:
    pytest.importorskip("triton")
    with pytest.raises(InputError, match="set TRITON_INTERPRET=1"):
        use_interpreter()


def test_importing_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import natprec.kernels.triton.ops, natprec.kernels.triton.tiles"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("group", [None, 32, 64, 96, 128, 4096])
def test_a_dot_stays_within_its_group(group: int | None) -> None:
    for depth in (16, 32):
        for tile in (*DECODE, *DECODE_CODES, *(tile for row in PREFILL.values() for tile in row)):
            columns = join(tile, group, depth) * depth
            assert span(group, depth) % columns == 0
            assert group is None or group % columns == 0


def test_the_nearest_older_machine_has_the_tile() -> None:
    assert tiles(512, 86, codes=False) == tiles(512, 80, codes=True) == PREFILL[80]
    assert tiles(512, 103, codes=False) == PREFILL[100]
    assert tiles(16, 90, codes=False) == DECODE
    assert tiles(16, 90, codes=True) == DECODE_CODES
