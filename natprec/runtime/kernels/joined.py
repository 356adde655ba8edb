"""Linears of one input (query, key, value; gate, up) as one weight: one product instead of two or three."""

from __future__ import annotations

from torch import Tensor, nn

from natprec.runtime.kernels.linear import QuantLinear


class _Kept:
    """The products of one input that have not been asked for yet; no attributes of a module, which are slow to set."""

    def __init__(self) -> None:
        self.input: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}


class Joined(nn.Module):
    """A weight of several Linears, each below the other, and their outputs."""

    def __init__(self, linear: QuantLinear, sizes: list[int]) -> None:
        super().__init__()
        self.linear, self.sizes = linear, sizes
        self._kept = _Kept()

    def output(self, x: Tensor, index: int) -> Tensor:
        """One Linear's output; the product is computed for the first that asks, and kept until each has asked."""
        kept = self._kept
        if x is not kept.input or index not in kept.outputs:
            kept.input, kept.outputs = x, dict(enumerate(self.linear(x).split(self.sizes, -1)))
        y = kept.outputs.pop(index)
        if not kept.outputs:
            kept.input = None
        return y


class Part(nn.Module):
    """One Linear of several that are joined; the first of them owns the weight."""

    def __init__(self, joined: Joined, index: int) -> None:
        super().__init__()
        self.index = index
        self.in_features, self.out_features = joined.linear.in_features, joined.sizes[index]
        if index == 0:
            self.joined = joined
        else:
            object.__setattr__(self, "joined", joined)

    @property
    def weight(self) -> Tensor:
        """(rows, columns), as `StoredWeight.dense` has it."""
        return self.joined.linear.stored.dense(self._rows)

    @property
    def bias(self) -> Tensor | None:
        """(rows,) of this part."""
        bias = self.joined.linear.bias
        return None if bias is None else bias[self._rows]

    @property
    def _rows(self) -> slice:
        before = sum(self.joined.sizes[: self.index])
        return slice(before, before + self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(…, columns) to (…, rows of this part)."""
        return self.joined.output(x, self.index)
