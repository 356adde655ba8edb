"""A weight on its grid: codes, and what they are multiplied by; the same for integers and for floating-point codes.

    value = codebook value · scale (+ offset)

`scale` is always what a code's value is multiplied by, whatever a file stores: NVFP4's is a float8 number times one
float32 of the tensor (`outer`), MX formats' is a power of two, and scales that rows share are repeated for each row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from natprec.formats import Format, Integer, PerBlock, PerTensor
from natprec.quantizers.double_scales import double_scales
from natprec.quantizers.ranks import code_at, rank, rank_of_code
from natprec.quantizers.scale_storage import nested_grid, rescaled, stored_grid


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight on its grid.

    Attributes:
        codes: (rows, columns), int8 for integers, else uint8, as `Codebook.encode` gives them.
        scale: (rows, groups), float32 values that the format can store; groups are `Format.groups(columns)`.
        zero_point: (rows, groups), int8; None when symmetric.
        offset: (rows, groups), float32: the value of code 0, where the format stores that instead.
        outer: (), float32, what the codes of scales are multiplied by where one number of the tensor is (NVFP4); its
            reciprocal is a float32 as well, and `scale` is a code's value divided by that. Of double quantization (1 +
            blocks,): the mean of the scales, then the factor of each block of them.
    """

    format: Format
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    offset: Tensor | None = None
    outer: Tensor | None = None

    @classmethod
    def of(
        cls, fmt: Format, codes: Tensor, scale: Tensor, offset: Tensor | None, outer: Tensor | None = None
    ) -> QuantizedTensor:
        """Codes on a grid that the format can store; its offset becomes a zero point where that is what it stores."""
        if fmt.float_offset or offset is None:
            return cls(fmt, codes, scale, None, offset, outer)
        return cls(fmt, codes, scale, (-offset / scale).round().to(torch.int8))

    def dequantize(self) -> Tensor:
        """(rows, columns), float32: what an engine reconstructs."""
        rows, columns = self.codes.shape
        if not isinstance(self.format.codebook, Integer):
            return self.format.codebook.decode(self.codes).mul_(self.spread(self.scale))
        values = self.codes.view(rows, self.scale.shape[1], -1).to(torch.float32)
        if self.zero_point is not None:
            values = values - self.zero_point.unsqueeze(-1)
        values = values * self.scale.unsqueeze(-1)
        if self.offset is not None:
            values = values + self.offset.unsqueeze(-1)
        return values.view(rows, columns)

    def spread(self, by_group: Tensor) -> Tensor:
        """(rows, columns) of what each group has, (rows, groups)."""
        return spread(by_group, self.format, self.codes.shape[1])

    def scaled(self, factor: Tensor, dtype: torch.dtype) -> QuantizedTensor:
        """The same codes with each group's values multiplied by `factor` (rows, groups), on stored scales.

        Powers of two stay what they are.
        """
        if not isinstance(self.format.codebook, Integer):
            if self.format.doubly_quantized:
                scale, outer = double_scales(self.scale * factor, self.format)
                return replace(self, scale=scale, outer=outer)
            return replace(self, scale=rescaled(self.scale, factor, self.format, dtype, self.outer))
        low = None if self.offset is None else self.offset * factor
        scale, offset = nested_grid(*stored_grid(self.scale * factor, low, [self.format], dtype), self.format)
        return replace(self, scale=scale, offset=offset)

    def located(self, values: Tensor) -> Tensor:
        """Where values (rows, columns) lie on the grid, in ranks that need not be whole: `dequantize` backwards.

        The rank of an integer code is the code; of others see `natprec.quantizers.ranks`.
        """
        if not isinstance(self.format.codebook, Integer):
            return rank(self.format.codebook, values.to(torch.float32) / self.spread(self.scale))
        grouped = values.to(torch.float32).view(*self.scale.shape, -1)
        if self.offset is not None:
            grouped = grouped - self.offset.unsqueeze(-1)
        at = grouped / self.scale.unsqueeze(-1)
        if self.zero_point is not None:
            at = at + self.zero_point.unsqueeze(-1)
        return at.view(values.shape)

    @property
    def ranks(self) -> Tensor:
        """(rows, columns): the place of each code among the codebook's values, as `located` counts."""
        return rank_of_code(self.format.codebook, self.codes)

    def at_ranks(self, ranks: Tensor) -> QuantizedTensor:
        """The same grid with the codes of other ranks (rows, columns), rounded."""
        return replace(self, codes=code_at(self.format.codebook, ranks))

    def scale_slope(self, slope: Tensor) -> Tensor:
        """What a function's slope by each value (rows, columns) makes its slope by each group's relative scale."""
        if isinstance(self.format.codebook, Integer):
            return (slope.float() * self.dequantize()).view(*self.scale.shape, -1).sum(-1)
        steps = slope.float() * self.dequantize()
        group = torch.arange(steps.shape[1], device=steps.device) // self.format.span(steps.shape[1])
        own = steps.new_zeros(self.scale.shape).index_add_(1, group, steps)
        by = self.format.scaling.granularity
        if isinstance(by, PerTensor):
            return own.sum(0, keepdim=True).expand_as(own).contiguous()
        if isinstance(by, PerBlock):
            return torch.cat([part.sum(0, keepdim=True).expand_as(part) for part in own.split(by.rows)])
        return own

    def to(self, device: str) -> QuantizedTensor:
        """The same tensor on a device."""
        zero = None if self.zero_point is None else self.zero_point.to(device)
        offset = None if self.offset is None else self.offset.to(device)
        outer = None if self.outer is None else self.outer.to(device)
        return QuantizedTensor(self.format, self.codes.to(device), self.scale.to(device), zero, offset, outer)


def spread(by_group: Tensor, fmt: Format, columns: int) -> Tensor:
    """(rows, columns) of what each group of a row has, (rows, groups)."""
    size = fmt.span(columns)
    if by_group.shape[1] == 1:
        return by_group.expand(-1, columns)
    return by_group.repeat_interleave(size, 1)[:, :columns]
