"""The registered operations: for each kernel a schema, the shape of its output, and what it must compute.

The eager reference is the specification (`reference.linear`, in float64) applied to the kernel's own buffers. It serves
every device that has no kernel registered, so an operation is right before it is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natprec.formats import CHANNEL, integer
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels import int4pack, planes, reference

LIBRARY = torch.library.Library("natprec", "FRAGMENT")
"""Operations of natprec; a module that has a kernel for one registers it here under its device."""


def planes_weight(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, columns: int) -> QuantizedTensor:
    """What a weight in planes stands for."""
    groups = scale.shape[1]
    fmt = integer(bits, CHANNEL if groups == 1 else columns // groups, zero is None)
    return QuantizedTensor(fmt, planes.unpack(packed, bits, columns), scale.float(), zero)


def linear_planes(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """Weights in planes of bits, 2 to 8; scale (rows, groups), zero points int8 likewise."""
    return reference.linear(x, planes_weight(packed, scale, zero, bits, x.shape[1])).to(x.dtype)


def linear_int4(x: Tensor, packed: Tensor, scales: Tensor, shift: Tensor | None, rows: int, bits: int) -> Tensor:
    """Weights for torch's 4-bit product: see `int4pack`."""
    value = int4pack.values(packed, scales, shift, x.shape[1], bits, torch.arange(rows))
    return (x.double() @ value.double().T).to(x.dtype)


def linear_int8(x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Weights one to a byte, columns filled up; scale (rows,), shift (rows,): -zero · scale."""
    weight = QuantizedTensor(integer(8, CHANNEL), codes[:, : x.shape[1]].contiguous(), scale.view(-1, 1), None)
    product = reference.linear(x, weight)
    return (product if shift is None else product + x.double().sum(1, keepdim=True) * shift.double()).to(x.dtype)


def linear_int8_inputs(x: Tensor, codes: Tensor, prepared: Tensor, scale: Tensor) -> Tensor:
    """The same with activations rounded to int8, one scale per token; `prepared` is oneDNN's copy of the codes."""
    weight = QuantizedTensor(integer(8, CHANNEL), codes, scale.view(-1, 1), None)
    rounded, x_scale = reference.quantize_tokens(x)
    return reference.linear(rounded, weight, x_scale=x_scale).to(x.dtype)


def linear_half(x: Tensor, weight: Tensor) -> Tensor:
    """A weight that is not quantized, bfloat16 or float16, under activations of another dtype."""
    return (x.double() @ weight.double().T).to(x.dtype)


def _define(schema: str, reference_of: Callable[..., Tensor], rows: Callable[..., Any]) -> None:
    """Register schema, reference and shape: outputs are (tokens, rows) in the dtype of x."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, reference_of, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"natprec::{name}", lambda x, *rest: x.new_empty(x.shape[0], rows(*rest)), lib=LIBRARY
    )  # fmt: skip


_define(
    "linear_planes(Tensor x, Tensor packed, Tensor scale, Tensor? zero, int bits) -> Tensor",
    linear_planes,
    lambda packed, *_: packed.shape[0],
)
_define(
    "linear_int4(Tensor x, Tensor packed, Tensor scales, Tensor? shift, int rows, int bits) -> Tensor",
    linear_int4,
    lambda packed, scales, shift, rows, bits: rows,
)
_define(
    "linear_int8(Tensor x, Tensor codes, Tensor scale, Tensor? shift) -> Tensor",
    linear_int8,
    lambda codes, *_: codes.shape[0],
)
_define(
    "linear_int8_inputs(Tensor x, Tensor codes, Tensor prepared, Tensor scale) -> Tensor",
    linear_int8_inputs,
    lambda codes, *_: codes.shape[0],
)
_define("linear_half(Tensor x, Tensor weight) -> Tensor", linear_half, lambda weight: weight.shape[0])
