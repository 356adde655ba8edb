"""The modules of a model that runs: a Linear on codes, one on 16-bit weights, and embeddings of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.formats import Format
from natprec.quantizers import QuantizedTensor
from natprec.quantizers.activations import round_activations
from natprec.runtime.kernels.cpu import fast_dtype
from natprec.runtime.kernels.epilogue import NOTHING, Ending, Epilogue
from natprec.runtime.kernels.kernel import ALWAYS, Buffers, Fused, Kernel, Layer
from natprec.runtime.kernels.reference import quantize_tokens

DENSE = 1 << 24
"""Weights that are dense at a time while many tokens are multiplied: 64 MB of float32."""


class StoredWeight(nn.Module):
    """A weight as it is kept in memory: a product with it, and rows of its values."""

    rows: int
    columns: int
    few: int

    def forward(self, x: Tensor, ending: Ending = NOTHING) -> Tensor:
        """X (tokens, columns) times the weight, transposed, and what follows that."""
        y = self.multiplied(x)
        return y if ending is NOTHING else ending.apply(y)

    def multiplied(self, x: Tensor) -> Tensor:
        """The product alone; by dense blocks of the weight where there are many tokens."""
        x = self.rounded(x)
        if len(x) <= self.few:
            return self.product(x)
        dtype = fast_dtype() if x.is_cpu else torch.float32
        dense, step = x.to(dtype), max(1, DENSE // self.columns)
        parts = [
            functional.linear(dense, self.values(slice(start, min(start + step, self.rows))).to(dtype))
            for start in range(0, self.rows, step)
        ]
        return torch.cat(parts, 1).to(x.dtype) if len(parts) > 1 else parts[0].to(x.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """The activations as the product sees them."""
        return x

    def dense(self, rows: slice = slice(None)) -> Tensor:
        """Some rows, float32: for models that read a weight instead of calling its module; made anew each time."""
        return self.values(rows).float()

    def product(self, x: Tensor) -> Tensor:
        """X (tokens, columns) times the weight, for few tokens."""
        raise NotImplementedError

    def values(self, rows: slice | Tensor) -> Tensor:
        """Some rows, as floats."""
        raise NotImplementedError


class QuantizedWeight(StoredWeight):
    """Codes in the layout of their kernel."""

    def __init__(self, weight: QuantizedTensor, layer: Layer, kernel: Kernel, scale_dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.kernel = layer, kernel
        self.rows, self.columns, self.few = layer.rows, layer.columns, kernel.few
        packed = kernel.pack(weight, scale_dtype)
        self.inputs: Format | None = None
        self._parts = [f"part{index}" for index in range(len(packed))]
        for name, buffer in zip(self._parts, packed, strict=True):
            self.register_buffer(name, buffer)

    @property
    def packed(self) -> Buffers:
        """The buffers, on the device that the module was moved to."""
        return tuple(self._buffers[name] for name in self._parts)

    @property
    def fused(self) -> Fused | None:
        """The kernel, where it does what follows a product as well."""
        return self.kernel if isinstance(self.kernel, Fused) else None

    def forward(self, x: Tensor, ending: Ending = NOTHING) -> Tensor:
        """In one kernel where there is one for both."""
        return super().forward(x, ending) if self.fused is None else self.finished(self.scaled(x), ending, x.dtype)

    def scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activations as a fused kernel multiplies them."""
        assert self.fused is not None
        return self.fused.scaled(self.rounded(x))

    def finished(self, scaled: tuple[Tensor, Tensor], ending: Ending, dtype: torch.dtype) -> Tensor:
        """A product and what follows it, by a fused kernel."""
        assert self.fused is not None
        return self.fused.finished(scaled, self.packed, self.layer, ending, dtype)

    def shares_inputs(self, other: StoredWeight) -> bool:
        """Whether `scaled` of one input is the same for both."""
        return (
            isinstance(other, QuantizedWeight)
            and self.fused is not None
            and type(self.kernel) is type(other.kernel)
            and self.inputs is other.inputs is None
            and (self.kernel.rounds_inputs or not (self.layer.int8_inputs or other.layer.int8_inputs))
        )

    def round_inputs(self, fmt: Format, scale: Tensor | None) -> None:
        """From now on round activations to a format of floats; `scale`, (), is what the checkpoint fixes of it."""
        self.inputs = fmt
        self.register_buffer("input_scale", scale)

    def rounded(self, x: Tensor) -> Tensor:
        """Rounded to floats, or to int8 for each token, where the layer says so and its kernel does not do it."""
        if self.inputs is not None:
            return round_activations(x.float(), self.inputs, self._buffers["input_scale"]).to(x.dtype)
        if not self.layer.int8_inputs or self.kernel.rounds_inputs:
            return x
        codes, scale = quantize_tokens(x)
        return codes * scale.unsqueeze(1)

    def product(self, x: Tensor) -> Tensor:
        """By the kernel."""
        return self.kernel.product(x, self.packed, self.layer)

    def values(self, rows: slice | Tensor) -> Tensor:
        """By the kernel."""
        return self.kernel.values(self.packed, self.layer, rows)


class HalfWeight(StoredWeight):
    """A weight that is not quantized, in the 16 bits in which it is stored."""

    weight: Tensor

    def __init__(self, weight: Tensor, device: str = "cpu") -> None:
        super().__init__()
        self.rows, self.columns = weight.shape
        self.few = 4 if device == "cpu" else ALWAYS
        self.register_buffer("weight", weight)

    def product(self, x: Tensor) -> Tensor:
        """By the operation on 16-bit weights."""
        return torch.ops.natprec.linear_half(x, self.weight)

    def values(self, rows: slice | Tensor) -> Tensor:
        """As they are stored."""
        return self.weight[rows]


class QuantLinear(nn.Module):
    """x times a stored weight, plus a bias; float32 in and out."""

    bias: Tensor | None

    def __init__(self, weight: StoredWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.stored = weight
        self.in_features, self.out_features = weight.columns, weight.rows
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:
        """(rows, columns), as `StoredWeight.dense` has it."""
        return self.stored.dense()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(…, columns) to (…, rows); a residual of that shape is added."""
        shape = (*x.shape[:-1], self.out_features)
        ending = self.ending(residual=None if residual is None else residual.reshape(-1, self.out_features))
        return self.stored.forward(x.reshape(-1, self.in_features), ending).view(shape)

    def ending(
        self, activation: str = "none", multiplier: Tensor | None = None, residual: Tensor | None = None
    ) -> Ending:
        """The bias and what follows it; tensors are (tokens, rows)."""
        if activation == "none" and self.bias is multiplier is residual is None:
            return NOTHING
        epilogue = Epilogue(activation, multiplier is not None, residual is not None)
        return Ending(epilogue, self.bias, multiplier, residual)


class QuantEmbedding(nn.Module):
    """Rows of a stored weight, times the factor that some models give their embeddings."""

    def __init__(self, weight: StoredWeight, factor: float = 1.0) -> None:
        super().__init__()
        self.stored = weight
        self.factor = factor

    @property
    def weight(self) -> Tensor:
        """(rows, columns), as `StoredWeight.dense` has it, without the factor."""
        return self.stored.dense()

    def forward(self, ids: Tensor) -> Tensor:
        """(…) token numbers to (…, columns), float32."""
        rows = self.stored.values(ids.reshape(-1)).float().view(*ids.shape, self.stored.columns)
        return rows if self.factor == 1.0 else rows * self.factor
