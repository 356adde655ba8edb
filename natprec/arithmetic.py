"""What matrix products are computed in where a model is run for statistics: bfloat16 where the machine multiplies it.

A measurement is made of averages over thousands of tokens, in which the rounding of one product does not show: the
residual stream, norms, softmax and all sums stay in float32. What judges (the exact estimator, the verification)
never uses this.
"""

from __future__ import annotations

import contextlib

import torch

from natprec.errors import unknown

ARITHMETIC = ("auto", "bfloat16", "float32")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster there than those of float32: of CPUs, with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def refuse_unknown_arithmetic(name: str) -> None:
    """Raises InputError with the nearest name."""
    if name not in ARITHMETIC:
        raise unknown("arithmetic", name, ARITHMETIC)


def arithmetic(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a name in `ARITHMETIC` stands for.

    Raises:
        InputError: there is no such name.
    """
    refuse_unknown_arithmetic(name)
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def products_in(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within the block matrix products of a float32 model take operands of this dtype; sums are float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
