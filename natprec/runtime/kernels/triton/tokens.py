"""`torch.ops.natprec.scaled_tokens`: activations in units of each token's largest value, as float16 or as int8 codes.

It stands before every product, as `torch.ops.natprec.rms_norm` does before the first of several; each would be six
operations of torch or more, and for one token their launches are what takes time.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from natprec.runtime.kernels import decoder_ops
from natprec.runtime.kernels.reference import halve_tokens, quantize_tokens
from natprec.runtime.kernels.triton import launcher

LIBRARY = torch.library.Library("natprec", "FRAGMENT")


def scaled_tokens(x: Tensor, codes: bool) -> tuple[Tensor, Tensor]:
    """See `reference.quantize_tokens` where `codes`, else `reference.halve_tokens`.

    Args:
        x: (tokens, columns), floats.
    Returns:
        (tokens, columns), int8 or float16; scale (tokens,), float32.
    """
    values, scale = torch.ops.natprec.scaled_tokens(x, codes)
    return values, scale


def _specification(x: Tensor, codes: bool) -> tuple[Tensor, Tensor]:
    return quantize_tokens(x) if codes else halve_tokens(x)


def _outputs(x: Tensor, codes: bool) -> tuple[Tensor, Tensor]:
    """With nothing in them."""
    values = x.new_empty(x.shape, dtype=torch.int8 if codes else torch.float16)
    return values, x.new_empty(len(x), dtype=torch.float32)


def launched(x: Tensor, codes: bool) -> tuple[Tensor, Tensor]:
    """The Triton kernel."""
    x = x.contiguous()
    values, scale = _outputs(x, codes)
    with contextlib.nullcontext() if x.is_cpu else torch.cuda.device(x.device):
        launcher().launch_tokens(values, scale, x)
    return values, scale


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`decoder_ops.rms_norm` by a Triton kernel, where all is float32."""
    if not x.dtype == weight.dtype == torch.float32:
        return decoder_ops.rms_norm(x, weight, eps)
    x = x.contiguous()
    out = torch.empty_like(x)
    with contextlib.nullcontext() if x.is_cpu else torch.cuda.device(x.device):
        launcher().launch_norm(out, x, weight.contiguous(), eps)
    return out


LIBRARY.define("scaled_tokens(Tensor x, bool codes) -> (Tensor, Tensor)")
LIBRARY.impl("scaled_tokens", _specification, "CompositeExplicitAutograd")
LIBRARY.impl("scaled_tokens", launched, "CUDA")
LIBRARY.impl("rms_norm", normed, "CUDA")
torch.library.register_fake("natprec::scaled_tokens", _outputs, lib=LIBRARY)
