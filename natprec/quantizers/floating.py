"""Round to nearest in a floating-point codebook (or a table), and the scales that it is done with.

Precision is relative there, so that no group has to fill the range; what is chosen is where rounding falls in it.

    FP8      the largest magnitude is scaled to 448
    MX       a power of two below or above that (OCP MX 1.0 takes the one below, which saturates), whichever errs less
    NVFP4    the largest of 16 is scaled to 6 or to 4, whose neighbours are nearer (four over six: Cook et al. 2025,
             arXiv:2512.02010), whichever errs less; scales are float8, times a float32 of the tensor
    NF4      the largest magnitude is scaled to 1, as bitsandbytes does

Rows may share a scale. So whoever has only some of a weight's rows also needs its `Extent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from natprec.formats import Format, PerBlock, PerTensor, Scaling
from natprec.quantizers.double_scales import double_scales
from natprec.quantizers.scale_storage import outer_scale, stored_scale
from natprec.quantizers.tensor import QuantizedTensor, spread

CHUNK = 1 << 18
"""Weights handled at a time: small enough that one chunk and its copies stay in the cache."""

SIXTHS = 6 / 4
"""By this factor a block of NVFP4 is scaled down as an alternative: its largest then becomes 4 instead of 6."""


@dataclass(frozen=True)
class Extent:
    """How far a weight reaches, for scales that rows share.

    Attributes:
        largest: (), the largest magnitude of the weight.
        shared: (), that of all weights that share its outer scale.
        blocks: kind of block → (rows, blocks of a row), the largest magnitude of the block of each row.
        doubles: format of double quantization → its scales (rows, groups), and what they are made of.
    """

    largest: Tensor
    shared: Tensor
    blocks: dict[PerBlock, Tensor]
    doubles: dict[Format, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, weight: Tensor, formats: Iterable[Format], shared: Tensor | None = None) -> Extent:
        """What some formats need to know of a weight (rows, columns)."""
        formats = list(formats)
        needed = [fmt.scaling for fmt in formats if not fmt.by_row]
        kinds = {each.granularity for each in needed if isinstance(each.granularity, PerBlock)}
        if any(_of_tensor(each) for each in needed):
            largest = torch.maximum(weight.max(), -weight.min()).float()
        else:
            largest = torch.zeros((), device=weight.device)
        doubles = {fmt: double_scales(_largest(weight, fmt), fmt) for fmt in formats if fmt.doubly_quantized}
        return cls(largest, largest if shared is None else shared, {by: _blocks(weight, by) for by in kinds}, doubles)

    def at(self, rows: slice | Tensor) -> Extent:
        """The same for some of the rows."""
        doubles = {fmt: (scale[rows], outer) for fmt, (scale, outer) in self.doubles.items()}
        return replace(self, blocks={by: found[rows] for by, found in self.blocks.items()}, doubles=doubles)


def _of_tensor(scaling: Scaling) -> bool:
    """Whether the largest magnitude of the whole weight decides a scale."""
    return PerTensor() in (scaling.granularity, scaling.outer and scaling.outer.granularity)


def _largest(weight: Tensor, fmt: Format) -> Tensor:
    """(rows, groups), the largest magnitude of each group, float32; the weight is seen in chunks."""
    parts = [weight[rows].view(-1, fmt.groups(weight.shape[1]), fmt.span(weight.shape[1])) for rows in chunks(weight)]
    return torch.cat([torch.maximum(part.amax(-1), -part.amin(-1)) for part in parts]).float()


def _blocks(weight: Tensor, by: PerBlock) -> Tensor:
    """(rows, blocks of a row); blocks at the edges may be smaller."""
    rows, columns = weight.shape
    padded = functional.pad(weight.abs().float(), (0, -columns % by.columns, 0, -rows % by.rows))
    tiles = padded.view(len(padded) // by.rows, by.rows, -1, by.columns).amax((1, 3))
    return tiles.repeat_interleave(by.rows, 0)[:rows]


def choose_scale(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, extent: Extent, power: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The scale of each group, of those tried the one with the least squared error.

    Args:
        weight: (rows, columns), float32.
        extent: of the weight that these rows are of.
        power: (columns,) or (rows, columns), what an error at each weight counts; default: all the same.
    Returns:
        (rows, groups), float32 as the format stores it, positive; and the outer scale, see `QuantizedTensor`, where
        there is one.
    """
    if fmt.doubly_quantized:
        return extent.doubles[fmt]
    by, size = fmt.scaling.granularity, fmt.span(weight.shape[1])
    outer = None if fmt.scaling.outer is None else outer_scale(extent.shared, fmt)
    if isinstance(by, PerTensor):
        largest = extent.largest.expand(len(weight), 1)
    elif isinstance(by, PerBlock):
        largest = extent.blocks[by]
    else:
        grouped = weight.view(len(weight), -1, size)
        largest = torch.maximum(grouped.amax(-1), -grouped.amin(-1))
    scale = stored_scale(largest / fmt.codebook.largest, fmt, scale_dtype, outer)
    others = _others(scale, largest, fmt, outer)
    if others is None:
        return scale, outer
    weights = None if power is None else power.unflatten(-1, (-1, size))
    errors = [_by_group(nearest_errors(weight, fmt, each), size, weights) for each in (scale, others)]
    return torch.where(errors[1] < errors[0], others, scale), outer


def _others(scale: Tensor, largest: Tensor, fmt: Format, outer: Tensor | None) -> Tensor | None:
    """Scales to try beside those that hold the largest magnitude; None where precision hardly depends on them."""
    if fmt.scaling.dtype == "e8m0":
        return stored_scale(scale / 2, fmt, torch.float32, None)
    if outer is not None:
        return stored_scale(largest * (SIXTHS / fmt.codebook.largest), fmt, torch.float32, outer)
    return None


def _by_group(errors: Tensor, size: int, power: Tensor | None) -> Tensor:
    """(rows, groups), squared errors, weighted."""
    grouped = errors.view(len(errors), -1, size)
    return torch.linalg.vecdot(grouped, grouped if power is None else grouped * power)


def nearest_values(weight: Tensor, fmt: Format, scale: Tensor) -> Tensor:
    """The nearest values of the codebook, (rows, columns), in units of `scale` (rows, groups)."""
    if weight.shape[1] % scale.shape[1] or isinstance(fmt.scaling.granularity, PerBlock):
        return fmt.codebook.nearest_(weight / spread(scale, fmt, weight.shape[1]))
    grouped = weight.view(*scale.shape, -1) / scale.unsqueeze(-1)
    return fmt.codebook.nearest_(grouped).view(weight.shape)


def nearest_errors(weight: Tensor, fmt: Format, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """Nearest value less weight, (rows, columns)."""
    values = nearest_values(weight, fmt, scale)
    if weight.shape[1] % scale.shape[1] or isinstance(fmt.scaling.granularity, PerBlock):
        values.mul_(spread(scale, fmt, weight.shape[1]))
    else:
        values.view(*scale.shape, -1).mul_(scale.unsqueeze(-1))
    return torch.sub(values, weight, out=out)


def quantize_floating(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, extent: Extent | None = None, power: Tensor | None = None
) -> QuantizedTensor:
    """To the nearest code; arguments as for `choose_scale`, of a whole weight of any float dtype."""
    extent = Extent.of(weight, [fmt]) if extent is None else extent
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    scales, outer = [], None
    for rows in chunks(weight):
        part = weight[rows].to(torch.float32)
        scale, outer = choose_scale(part, fmt, scale_dtype, extent.at(rows), power)
        codes[rows] = fmt.codebook.encode(nearest_values(part, fmt, scale))
        scales.append(scale)
    return QuantizedTensor.of(fmt, codes, torch.cat(scales), None, outer)


def chunks(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight, `CHUNK` elements at a time."""
    step = max(1, CHUNK // weight.shape[1])
    for start in range(0, len(weight), step):
        yield slice(start, min(start + step, len(weight)))
