"""The kernels that `gpu_bench` compares: ours with its tiles, and others'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.runtime.kernels.cuda import Triton
from natprec.runtime.kernels.kernel import Layer
from natprec.runtime.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, planar
from natprec.runtime.kernels.triton.tiles import tiles
from scripts.gpu_cases import Call, NotRun, Operands
from scripts.gpu_peers import bitsandbytes, cublas, humming, marlin


def natprec(operands: Operands, tile: int) -> Call:
    """Ours, with one of the tiles that it is tuned over."""
    from natprec.runtime.kernels.triton.launch import capability, launch

    product, coded = operands.product, operands.x_scale is not None
    choices = tiles(product.tokens, capability(operands.x.device), product.format.bits, coded)
    if tile >= len(choices):
        raise NotRun(f"there are {len(choices)} tiles")
    depth = DEPTH_OF_CODES if coded else DEPTH_OF_FLOATS
    weights = [planar(weight, depth) for weight in operands.weights]
    dtype = torch.float16 if product.epilogue.output_scale is None else torch.int8

    def call(copy: int) -> Tensor:
        out = torch.empty(product.tokens, product.rows, dtype=dtype, device=operands.device)
        inputs = operands.codes if coded else operands.x
        launch(out, inputs, weights[copy], product.epilogue, operands.x_scale, None, operands.multiplier,
               operands.residual, choices[tile])  # fmt: skip
        return out

    return call


def natprec_dense(operands: Operands) -> Call:
    """Ours for many tokens, as a model calls it: tokens scaled, the weight made dense, cuBLAS; then the epilogue."""
    if operands.x_scale is not None:
        raise NotRun("int8 activations are multiplied as codes")
    kernel = Triton()
    kernel.many = 1
    fmt, rows, columns = operands.product.format, operands.product.rows, operands.product.columns
    packed = [kernel.pack(weight, torch.float16) for weight in operands.weights]
    return operands.then_epilogue(lambda copy: kernel.product(operands.x, packed[copy], Layer(fmt, rows, columns)))


@dataclass(frozen=True)
class Entry:
    """A kernel of the comparison.

    Attributes:
        prepare: from operands to a call; raises NotRun.
        tolerance: the norm of its error over that of the expected result.
        exact: int8 results differ in at most 1 of 10,000 codes, by 1.
    """

    prepare: Callable[[Operands], Call]
    tolerance: float
    exact: bool = False


KERNELS = {
    **{f"natprec tile {n}": Entry(lambda operands, n=n: natprec(operands, n), 1e-3, exact=True) for n in range(2)},
    "natprec dense": Entry(natprec_dense, 2e-3),
    "cublas-bfloat16": Entry(cublas, 1e-2),
    "marlin": Entry(marlin, 5e-3),
    "humming": Entry(humming, 5e-3),
    "bitsandbytes": Entry(bitsandbytes, 0.25),
}
