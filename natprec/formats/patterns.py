"""Patterns: many formats said at once, as an engine's own checks say them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from natprec.formats.codebook import Integer
from natprec.formats.format import Format
from natprec.formats.presets import CHANNEL, activation, integer
from natprec.formats.scaling import PerChannel, PerGroup, PerToken


class Pattern(Protocol):
    """A set of formats."""

    @property
    def bits(self) -> tuple[int, ...]:
        """Widths of their codes."""

    def covers(self, fmt: Format) -> bool:
        """Whether the format is one of them."""

    def at(self, group_sizes: Sequence[int]) -> tuple[Format, ...]:
        """The formats to measure, narrowest first, at these group sizes where they have groups."""


@dataclass(frozen=True)
class Integers:
    """Two's complement integers whose scales are 16 bits of the model's dtype; `flowing`: float32, found while running.

    Attributes:
        bits: widths of codes, rising.
        granularities: kinds of them; groups of any size.
        zero: what is stored beside scales.
        flowing: formats of activations instead of weights.
        full_range: see `Scaling`.
        least: of groups, the smallest.
    """

    bits: tuple[int, ...]
    granularities: tuple[type, ...] = (PerGroup, PerChannel)
    zero: tuple[Literal["none", "code"], ...] = ("none",)
    flowing: bool = False
    full_range: bool = False
    least: int = 1

    def covers(self, fmt: Format) -> bool:
        """See `Pattern`."""
        scaling = fmt.scaling
        return (
            fmt.codebook == Integer(fmt.bits)
            and fmt.bits in self.bits
            and isinstance(scaling.granularity, self.granularities)
            and scaling.zero in self.zero
            and scaling.full_range == self.full_range
            and (fmt.group_size or self.least) >= self.least
            and (scaling.dtype, scaling.dynamic) == (("float32", True) if self.flowing else ("model", False))
        )

    def at(self, group_sizes: Sequence[int]) -> tuple[Format, ...]:
        """See `Pattern`."""
        if self.flowing:
            granularities = [PerGroup(size) for size in group_sizes] if PerGroup in self.granularities else [PerToken()]
            return tuple(activation(bits, each, self.full_range) for bits in self.bits for each in granularities)
        sizes = [size for size in group_sizes if size == CHANNEL or size >= self.least]
        sizes = [size for size in sizes if (PerChannel if size == CHANNEL else PerGroup) in self.granularities]
        return tuple(integer(bits, size, zero == "none") for bits in self.bits for zero in self.zero for size in sizes)


@dataclass(frozen=True)
class Listed:
    """Formats named one by one, whose groups are their own."""

    formats: tuple[Format, ...]

    @property
    def bits(self) -> tuple[int, ...]:
        """See `Pattern`."""
        return tuple(sorted({fmt.bits for fmt in self.formats}))

    def covers(self, fmt: Format) -> bool:
        """See `Pattern`."""
        return fmt in self.formats

    def at(self, group_sizes: Sequence[int]) -> tuple[Format, ...]:
        """See `Pattern`."""
        return self.formats


@dataclass(frozen=True)
class Blocked(Listed):
    """Formats named one by one, in groups of several sizes."""

    def at(self, group_sizes: Sequence[int]) -> tuple[Format, ...]:
        """See `Pattern`."""
        return tuple(fmt for fmt in self.formats if fmt.group_size in group_sizes)


@dataclass(frozen=True)
class Pairing:
    """Weights and inputs of one kind of matrix product."""

    weights: Pattern
    inputs: Pattern

    @property
    def channels_only(self) -> bool:
        """Whether the weights are integers that must have one scale per row."""
        return isinstance(self.weights, Integers) and self.weights.granularities == (PerChannel,)

    def covers(self, weight: Format, inputs: Format) -> bool:
        """Whether it is this kind of product."""
        return self.weights.covers(weight) and self.inputs.covers(inputs)
