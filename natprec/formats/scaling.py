"""Scalings: how many values share a scale, and how the scale is stored.

    Scaling(PerGroup(64))                                    16 bits in the model's dtype, for 64 weights of a row
    Scaling(PerGroup(16), E4M3, outer=Scaling(PerTensor(), "float32"))                   NVFP4's scales of scales
    Scaling(PerToken(), "float32", dynamic=True)             found while the model runs

The granularities are those of torchao and compressed-tensors. This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from natprec.errors import InputError
from natprec.formats.codebook import Float, Integer, Table


@dataclass(frozen=True, order=True)
class PerTensor:
    """One scale in all."""

    name = "tensor"


@dataclass(frozen=True, order=True)
class PerChannel:
    """One scale for each output channel of a weight: a whole row."""

    name = "channel"


@dataclass(frozen=True, order=True)
class PerGroup:
    """One scale for so many neighbours: weights of a row, or features of a token."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"group size {self.size}: use a positive size, or 'channel' for a whole row")

    @property
    def name(self) -> str:
        """For example `g64`."""
        return f"g{self.size}"


@dataclass(frozen=True, order=True)
class PerBlock:
    """One scale for a block of rows × columns of a weight."""

    rows: int
    columns: int

    @property
    def name(self) -> str:
        """For example `block128x128`."""
        return f"block{self.rows}x{self.columns}"


@dataclass(frozen=True, order=True)
class PerToken:
    """One scale for each token: its largest magnitude decides."""

    name = "token"


@dataclass(frozen=True, order=True)
class PerFeature:
    """One scale for each feature of all tokens, fixed beforehand."""

    name = "feature"


@dataclass(frozen=True, order=True)
class PerHead:
    """One scale for each head of keys or values, of all tokens, fixed beforehand."""

    name = "head"


@dataclass(frozen=True, order=True)
class PerScales:
    """Of an outer scale: one for so many scales of a weight, row after row, beside one mean of them all."""

    size: int

    name = "scales"


Granularity = PerTensor | PerChannel | PerGroup | PerBlock | PerToken | PerFeature | PerHead | PerScales

ScaleType = Literal["model", "float16", "float32", "e8m0"] | Integer | Float | Table
"""What a scale is stored as: 16 bits of the model's dtype, a float, a power of two, or a code times an outer scale."""

WIDTHS = {"model": 16, "float16": 16, "float32": 32, "e8m0": 8}
"""Stored bits of the scales that have a name."""


@dataclass(frozen=True)
class Scaling:
    """How values are scaled before a codebook rounds them.

    Attributes:
        dtype: of a stored scale.
        zero: what a group stores besides: nothing, the code that stands for 0 ('code'), or the value of code 0 in the
            scale's dtype ('float').
        outer: the scales' own scaling, where they are codes.
        dynamic: found while the model runs, so nothing is stored.
        full_range: the largest magnitude of an activation is scaled to half of the codes' range, half a step beyond the
            largest code, as compressed-tensors and so plain transformers do; else to the largest code, as kernels do.
    """

    granularity: Granularity
    dtype: ScaleType = "model"
    zero: Literal["none", "code", "float"] = "none"
    outer: Scaling | None = None
    dynamic: bool = False
    full_range: bool = False

    @property
    def bits(self) -> int:
        """Stored bits of one scale."""
        return WIDTHS[self.dtype] if isinstance(self.dtype, str) else self.dtype.bits
