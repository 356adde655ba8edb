"""Bundles (T13): what a tensor carries, and apart from it the materialization in which it is stored.

A bundle is (shape, entropy bound, meaning). It has no precision and no layout: those are the materialization, chosen
when the tensor is materialized, and choosing another materialization leaves the bundle as it is.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from natprec.errors import BoundError, InputError
from natprec.formats import Format, PerTensor, integer

Meaning = Literal[
    "pixels", "latents", "tokens", "embedding", "attention", "probability", "activation", "weight", "gradient"
]
"""Semantic types."""

TYPICAL_BITS = {"pixels": 24.0, "latents": 4.0, "embedding": 12.0, "attention": 8.0}
"""Entropy per element that such tensors usually stay below; a pixel has three channels of 8 bits."""

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""What is no code, and how reports call it."""


@dataclass(frozen=True)
class InfoBundle:
    """What a tensor carries.

    Attributes:
        shape: logical; nothing is said of strides or packing.
        entropy_bits: at most so many bits per element.
    """

    shape: tuple[int, ...]
    entropy_bits: float
    meaning: Meaning

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class Materialization:
    """How a tensor is materialized; the word is that of T10: the function stays, its representation changes.

    Attributes:
        stored: a float dtype of torch, or the format whose codes it holds.
        layout: 'row-major', 'tiled' or 'packed'.
    """

    stored: torch.dtype | Format
    layout: Literal["row-major", "tiled", "packed"] = "row-major"

    def __post_init__(self) -> None:
        if isinstance(self.stored, torch.dtype) and self.stored not in DTYPES:
            raise InputError(f"dtype {self.stored} is no materialization; known: {', '.join(DTYPES.values())}")

    @property
    def bits(self) -> int:
        """Width of an element."""
        return self.stored.bits if isinstance(self.stored, Format) else torch.finfo(self.stored).bits

    @property
    def name(self) -> str:
        """Of the format or dtype, for reports."""
        return self.stored.name if isinstance(self.stored, Format) else DTYPES[self.stored]

    @classmethod
    def of_codes(cls, codes: int | Format) -> Materialization:
        """Codes of a format; of a width: integers with one scale for all."""
        return cls(integer(codes, PerTensor()) if isinstance(codes, int) else codes, "packed")


def bound_bits(meaning: Meaning, symbols: int | None, stored_bits: float) -> float:
    """The bound to begin with where nothing was measured: what the meaning says, what the storage holds.

    Args:
        symbols: size of the vocabulary or number of classes, where there is one.
        stored_bits: per element, of the dtype that the tensor comes in.
    """
    limit = math.log2(symbols) if symbols and meaning in ("tokens", "probability") else math.inf
    return min(limit, TYPICAL_BITS.get(meaning, math.inf), stored_bits)


def require_bound(limit_bits: float, received_bits: float, where: str) -> None:
    """The type rule of bundles: what is received must fit.

    Raises:
        BoundError: it does not.
    """
    if received_bits > limit_bits:
        raise BoundError(
            f"{where}: this operation expects H <= {limit_bits:.4g} bits but received H = {received_bits:.4g}: "
            "information would be destroyed without explicit compression"
        )
