"""Formats of what flows: a Linear's input, a key, a value. Symmetric codes whose scale is found while the model runs.

    a8-token     one scale per token, from its largest magnitude
    a4-g64       one scale per 64 features of a token
    a8-channel   one scale per feature, fixed beforehand: what only a product that is not summed over features can use
    fp8-tensor   float8 e4m3, one scale for all text, fixed beforehand (what vLLM keeps in a cache)

Integers' scales are those of compressed-tensors: largest magnitude over (2^b - 1) / 2. That of float8 is a power of
two, which every dtype holds and which leaves its precision as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natprec.errors import InputError

FLOAT8_MAX = 448.0

FLOAT8_SPAN = 224.0
"""What the largest magnitude measured is scaled to, or below: the rest of the range is for other text."""

TOKEN, TENSOR, CHANNEL = 0, -1, -2
"""Group sizes that stand for one scale per token, for one in all, and for one per feature of all tokens."""

_NAME = re.compile(r"(?:a(?P<bits>[2-8])-(?:token|(?P<channel>channel)|g(?P<group>[1-9]\d*)))|(?P<float>fp8-tensor)")


@dataclass(frozen=True, order=True)
class ActivationFormat:
    """A format for a tensor whose last dimension is features.

    Attributes:
        bits: of a code.
        group_size: features that share a scale; `TOKEN` for all of a token, `TENSOR` all tokens; `CHANNEL`: none do.
        floating: float8 e4m3 instead of integers.
    """

    bits: int
    group_size: int = TOKEN
    floating: bool = False

    @property
    def name(self) -> str:
        """For example `a8-token`, `a4-g64`, `a8-channel` or `fp8-tensor`."""
        if self.floating:
            return "fp8-tensor"
        return f"a{self.bits}-" + {TOKEN: "token", CHANNEL: "channel"}.get(self.group_size, f"g{self.group_size}")

    def scale(self, largest: Tensor) -> Tensor:
        """Of groups with these largest magnitudes; 1 for a group of zeros."""
        found = largest / (FLOAT8_SPAN if self.floating else (2**self.bits - 1) / 2)
        found = torch.where(found > 0, found, 1.0)
        return found.log2().ceil().exp2() if self.floating else found

    def divides(self, features: int) -> bool:
        """Whether tokens of this many features split into whole groups."""
        return self.group_size <= 0 or features % self.group_size == 0

    def arguments(self) -> dict[str, Any]:
        """compressed-tensors' description."""
        strategy = {TOKEN: "token", TENSOR: "tensor", CHANNEL: "channel"}.get(self.group_size, "group")
        return {
            "num_bits": self.bits,
            "type": "float" if self.floating else "int",
            "symmetric": True,
            "strategy": strategy,
            "group_size": self.group_size if strategy == "group" else None,
            "dynamic": strategy not in ("tensor", "channel"),
        }


FLOAT8 = ActivationFormat(8, TENSOR, floating=True)


def parse_activation_format(name: str) -> ActivationFormat:
    """The format with this name.

    Raises:
        InputError: the name is not of the form `a8-token`, `a4-g64`, `a8-channel` or `fp8-tensor`.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"unknown activation format {name!r}; write for example a8-token, a4-g64 or fp8-tensor")
    if match["float"]:
        return FLOAT8
    return ActivationFormat(int(match["bits"]), CHANNEL if match["channel"] else int(match["group"] or TOKEN))
