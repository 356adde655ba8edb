"""A decoder's blocks as one call for a token (native/block.c): where weights lie, in the order of the C structures."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natprec import native
from natprec.runtime.kernels.cpu import Int8Inputs, Planes, step_of
from natprec.runtime.kernels.linear import HalfWeight, QuantizedWeight, QuantLinear

PLANES, HALF, INT8, PRODUCTS = 0, 1, 2, 3
"""As block.c numbers them, and how many products may stand side by side."""


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "zero", "bias")),
        *((name, ctypes.c_long) for name in ("rows", "columns", "step", "per_scale")),
        *((name, ctypes.c_int) for name in ("how", "kind", "bits", "int8_inputs")),
    ]


class _Block(ctypes.Structure):
    _fields_ = [
        ("states", _Product * PRODUCTS), ("output", _Product), ("gate_up", _Product * PRODUCTS), ("down", _Product),
        *((name, ctypes.c_void_p) for name in ("norm_before", "norm_between", "norm_query", "norm_key")),
        *((name, ctypes.c_float) for name in ("eps_before", "eps_between", "eps_query", "eps_key", "scaling")),
        *((name, ctypes.c_int) for name in ("states_count", "gate_up_count")),
        *((name, ctypes.c_long) for name in ("hidden", "heads", "key_heads", "size", "inner")),
    ]  # fmt: skip


@dataclass(frozen=True)
class Norm:
    """Root mean square over the last dimension, times a weight (columns,) in float32."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Block:
    """What a block consists of: norm, attention, residual, norm, gated product, residual.

    Attributes:
        states: query, key and value, one product or three.
        output: of attention.
        gate_up: both, one product or two.
        down: of the gated product.
        before: the norm before attention.
        between: the norm before the gated product.
        of_query: over each head of the query, if any.
        of_key: likewise.
        heads: of the query.
        key_heads: of keys and values.
        size: of a head.
        scaling: of attention scores.
    """

    states: tuple[QuantLinear, ...]
    output: QuantLinear
    gate_up: tuple[QuantLinear, ...]
    down: QuantLinear
    before: Norm
    between: Norm
    of_query: Norm | None
    of_key: Norm | None
    heads: int
    key_heads: int
    size: int
    scaling: float

    @property
    def hidden(self) -> int:
        """Columns of the residual stream."""
        return self.down.out_features


def refusal(linear: QuantLinear) -> str:
    """Why block.c does not multiply by a weight; empty if it does."""
    stored = linear.stored
    if isinstance(stored, HalfWeight):
        return "" if stored.weight.dtype in (torch.bfloat16, torch.float16) else f"weights in {stored.weight.dtype}"
    assert isinstance(stored, QuantizedWeight)
    if stored.inputs is not None:
        return f"inputs in {stored.inputs.name}"
    return "" if isinstance(stored.kernel, Planes | Int8Inputs) else f"kernel {stored.kernel.name}"


class OneToken:
    """Blocks of one size, ready for a token; the tensors that they point to are kept."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._kept: list[Tensor] = []
        self._blocks = [self._described(block) for block in blocks]
        count = len(blocks)
        self._at = (ctypes.c_void_p * count)(*map(ctypes.addressof, self._blocks))
        self._keys, self._values = (ctypes.c_void_p * count)(), (ctypes.c_void_p * count)()
        self._capacity = (ctypes.c_long * count)()

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, states: Sequence[tuple[Tensor, Tensor]], length: int
    ) -> Tensor:
        """One token through all blocks.

        Args:
            x: hidden values, contiguous float32.
            cos: (size,) of the token's position, contiguous float32.
            sin: likewise.
            states: for each block keys and values, (1, key heads, capacity, size); place `length` is written.
            length: tokens that there are.
        Returns:
            Of the shape of x.
        """
        for index, (keys, values) in enumerate(states):
            self._keys[index], self._values[index] = keys.data_ptr(), values.data_ptr()
            self._capacity[index] = keys.shape[2]
        y = torch.empty_like(x)
        enough = native.library()[0].natprec_blocks(
            self._at, len(self._blocks), x.data_ptr(), cos.data_ptr(), sin.data_ptr(), self._keys, self._values,
            self._capacity, length, y.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        if not enough:
            raise MemoryError("no memory for the activations of a block")
        return y

    def __deepcopy__(self, memo: dict[int, Any]) -> OneToken:
        """The same: weights do not change."""
        return self

    def _described(self, block: Block) -> _Block:
        norms = (block.before, block.between, block.of_query, block.of_key)
        return _Block(
            self._several(block.states), self._product(block.output), self._several(block.gate_up),
            self._product(block.down), *(self._address(None if norm is None else norm.weight) for norm in norms),
            *(0.0 if norm is None else norm.eps for norm in norms), block.scaling, len(block.states),
            len(block.gate_up), block.hidden, block.heads, block.key_heads, block.size, block.down.in_features,
        )  # fmt: skip

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        assert tensor.is_contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _several(self, linears: Sequence[QuantLinear]) -> Any:
        return (_Product * PRODUCTS)(*map(self._product, linears))

    def _product(self, linear: QuantLinear) -> _Product:
        stored, bias = linear.stored, self._address(linear.bias)
        if isinstance(stored, HalfWeight):
            weight = self._address(stored.weight)
            return _Product(weight, None, None, bias, stored.rows, stored.columns, 0, 0, HALF,
                            native.KINDS[stored.weight.dtype], 16, False)  # fmt: skip
        assert isinstance(stored, QuantizedWeight)
        if isinstance(stored.kernel, Int8Inputs):
            codes, _, scale = stored.packed
            return _Product(self._address(codes), self._address(scale), None, bias, stored.rows, stored.columns, 0, 0,
                            INT8, 0, 8, True)  # fmt: skip
        layer = stored.layer
        packed, scale, zero = stored.packed
        assert scale is not None
        step = step_of(layer.columns, layer.groups)
        assert step is not None
        return _Product(
            self._address(packed), self._address(scale), self._address(zero), bias, layer.rows, layer.columns, step,
            -(-layer.columns // step) // layer.groups, PLANES, native.KINDS[scale.dtype], layer.format.bits,
            layer.int8_inputs,
        )  # fmt: skip
