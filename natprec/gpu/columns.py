"""`torch.ops.natprec.round_columns`: one block of GPTQ's columns, each rounded after those before it, as one operation.

On a GPU it is a Triton kernel, elsewhere a loop over torch's operations, which is also what the kernel must compute.
The C file of the CPU (`natprec.native.round_columns`) is the third way; `natprec.quantizers.gptq` chooses.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.formats import Codebook, Float

LIBRARY = torch.library.Library("natprec", "FRAGMENT")

SCHEMA = """round_columns(Tensor(a!) block, Tensor factor, Tensor scale, Tensor offset, Tensor low, Tensor high,
    int exponent, int mantissa) -> (Tensor, Tensor)"""

INTEGER = -1
"""In place of the bits of a mantissa."""


def round_columns(
    block: Tensor, factor: Tensor, scale: Tensor, offset: Tensor, low: Tensor, high: Tensor, codebook: Codebook | None
) -> tuple[Tensor, Tensor]:
    """Round a block (columns, rows) in place, one column after the other.

    Args:
        factor: (columns, columns), upper: what columns lose of the errors before them, by which they divide their own.
        scale, offset: (columns, rows).
        low, high: (rows,), the least and the greatest value of the codebook; of integers of any widths.
        codebook: of floats; None: integers.
    Returns:
        Errors, and the codebook's values that were chosen, both (columns, rows), float32.
    """
    floats = codebook if isinstance(codebook, Float) else None
    exponent, mantissa = (floats.exponent, floats.mantissa) if floats else (0, INTEGER)
    return torch.ops.natprec.round_columns(block, factor, scale, offset, low, high, exponent, mantissa)


def one_by_one(
    block: Tensor, factor: Tensor, scale: Tensor, offset: Tensor, low: Tensor, high: Tensor, codebook: Codebook | None
) -> tuple[Tensor, Tensor]:
    """The same by torch's operations, ten to a column; of any codebook.

    Also of rows that do not share a factor: block, scale and offset (columns, copies, groups, rows), factor (columns,
    columns, groups, 1), low and high (copies, groups, rows).
    """
    apart = factor.dim() > 2
    errors, chosen = torch.empty_like(block), torch.empty_like(block)
    for i in range(len(block)):
        wanted = torch.sub(block[i], offset[i], out=chosen[i]).div_(scale[i])
        code = wanted.round_().clamp_(low, high) if codebook is None else codebook.nearest_(wanted)
        value = (code * scale[i]).add_(offset[i])
        torch.sub(block[i], value, out=errors[i]).div_(factor[i, i])
        if apart:
            block[i + 1 :].addcmul_(factor[i, i + 1 :].unsqueeze(1), errors[i], value=-1)
        else:
            block[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        block[i] = value
    return errors, chosen


def _specification(
    block: Tensor,
    factor: Tensor,
    scale: Tensor,
    offset: Tensor,
    low: Tensor,
    high: Tensor,
    exponent: int,
    mantissa: int,
) -> tuple[Tensor, Tensor]:
    codebook = None if mantissa == INTEGER else Float(exponent, mantissa)
    return one_by_one(block, factor, scale, offset, low, high, codebook)


def launched(
    block: Tensor,
    factor: Tensor,
    scale: Tensor,
    offset: Tensor,
    low: Tensor,
    high: Tensor,
    exponent: int,
    mantissa: int,
) -> tuple[Tensor, Tensor]:
    """The Triton kernel.

    Raises:
        ModelError: triton is not installed.
    """
    try:
        kernel = importlib.import_module("natprec.gpu.columns_kernel")
    except ModuleNotFoundError as error:
        raise ModelError("rounding by GPTQ on a GPU needs triton, which is missing; run: pip install triton") from error
    errors, chosen = (torch.empty(block.shape, device=block.device) for _ in range(2))
    kernel.launch(
        block, factor, scale, offset, low, high, errors, chosen, Float(exponent, mantissa) if exponent else None
    )
    return errors, chosen


def use_interpreter() -> None:
    """From now on the kernel serves CPU tensors too, in Triton's interpreter: for tests, in a process of their own."""
    LIBRARY.impl("round_columns", launched, "CPU")


LIBRARY.define(SCHEMA)
LIBRARY.impl("round_columns", _specification, "CompositeExplicitAutograd")
LIBRARY.impl("round_columns", launched, "CUDA")
