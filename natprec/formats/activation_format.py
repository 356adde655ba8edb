"""Formats of what flows: a Linear's input, a key, a value. Symmetric codes whose scale is found while the model runs.

    a8-token     one scale per token, from its largest magnitude
    a4-g64       one scale per 64 features of a token
    a8-channel   one scale per feature, fixed beforehand: what only a product that is not summed over features can use
    fp8-tensor   float8 e4m3, one scale for all text, fixed beforehand (what vLLM keeps in a cache)
    a8-token-full  (and so on) the same by the rule of compressed-tensors

The scale of integers has one of two rules, which an engine's profile names (`EngineProfile.full_range`): kernels divide
the largest magnitude by the largest code, 2^(b-1) - 1; compressed-tensors, and so plain transformers, by half of the
whole range, (2^b - 1) / 2. A scale of float8 is a power of two, which every dtype holds and which leaves its precision
as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

_NAME = re.compile(
    r"(?:a(?P<bits>[2-8])-(?:token|(?P<channel>channel)|g(?P<group>[1-9]\d*))(?P<full>-full)?)|(?P<float>fp8-tensor)"
)

_DEFAULTS: dict[str, Any] = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": None, "group_size": None, "dynamic": False
}  # fmt: skip
"""Of compressed-tensors, where a description leaves something out."""

_SAYS_NOTHING = ("observer", "observer_kwargs", "zp_dtype")
"""Of a description: how fixed scales were found, and what symmetric codes have no use for."""


@dataclass(frozen=True, order=True)
class ActivationFormat:
    """A format for a tensor whose last dimension is features.

    Attributes:
        bits: of a code.
        group_size: features that share a scale; `TOKEN` for all of a token, `TENSOR` all tokens; `CHANNEL`: none do.
        floating: float8 e4m3 instead of integers.
        full_range: integers have the scale of compressed-tensors, for which the largest magnitude lies half a step
            beyond the largest code; else that of kernels, for which it is the largest code.
    """

    bits: int
    group_size: int = TOKEN
    floating: bool = False
    full_range: bool = False

    @property
    def name(self) -> str:
        """For example `a8-token`, `a4-g64`, `a8-channel`, `a8-token-full` or `fp8-tensor`."""
        if self.floating:
            return "fp8-tensor"
        grouping = {TOKEN: "token", CHANNEL: "channel"}.get(self.group_size, f"g{self.group_size}")
        return f"a{self.bits}-{grouping}" + ("-full" if self.full_range else "")

    @property
    def dynamic(self) -> bool:
        """Whether the scale is found while the model runs, else it is fixed beforehand."""
        return self.group_size not in (TENSOR, CHANNEL)

    @property
    def top(self) -> float:
        """What the largest magnitude is scaled to."""
        if self.floating:
            return FLOAT8_SPAN
        return (2**self.bits - 1) / 2 if self.full_range else 2 ** (self.bits - 1) - 1

    def scale(self, largest: Tensor) -> Tensor:
        """Of groups with these largest magnitudes; 1 for a group of zeros."""
        found = largest / self.top
        found = torch.where(found > 0, found, 1.0)
        return found.log2().ceil().exp2() if self.floating else found

    def divides(self, features: int) -> bool:
        """Whether tokens of this many features split into whole groups."""
        return self.group_size <= 0 or features % self.group_size == 0

    def arguments(self) -> dict[str, Any]:
        """compressed-tensors' description, which leaves out the rule of the scale: that is the engine's."""
        strategy = {TOKEN: "token", TENSOR: "tensor", CHANNEL: "channel"}.get(self.group_size, "group")
        return {
            "num_bits": self.bits,
            "type": "float" if self.floating else "int",
            "symmetric": True,
            "strategy": strategy,
            "group_size": self.group_size if strategy == "group" else None,
            "dynamic": self.dynamic,
        }


FLOAT8 = ActivationFormat(8, TENSOR, floating=True)


def parse_activation_format(name: str) -> ActivationFormat:
    """The format with this name.

    Raises:
        InputError: the name is not of the form `a8-token`, `a4-g64`, `a8-channel`, `a8-token-full` or `fp8-tensor`.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"unknown activation format {name!r}; write for example a8-token, a4-g64 or fp8-tensor")
    if match["float"]:
        return FLOAT8
    grouping = CHANNEL if match["channel"] else int(match["group"] or TOKEN)
    return ActivationFormat(int(match["bits"]), grouping, full_range=bool(match["full"]))


def described_format(arguments: Mapping[str, Any], full_range: bool = False) -> ActivationFormat:
    """The format of compressed-tensors' arguments: the inverse of `ActivationFormat.arguments`.

    Args:
        full_range: the rule by which the engine that runs them scales integers.
    Raises:
        InputError: no format says that; names what was asked for.
    """
    said = _DEFAULTS | {name: value for name, value in arguments.items() if name not in _SAYS_NOTHING}
    known = {name: said.pop(name) for name in _DEFAULTS}
    strategy, size = known["strategy"], known["group_size"]
    grouping = {"token": TOKEN, "tensor": TENSOR, "channel": CHANNEL, "group": size}.get(strategy)
    if known["type"] == "float":
        found = FLOAT8
    elif known["num_bits"] in range(2, 9) and isinstance(grouping, int) and grouping != TENSOR:
        found = ActivationFormat(known["num_bits"], grouping, full_range=full_range)
    else:
        found = None
    if found is None or found.arguments() != known or any(value is not None for value in said.values()):
        shown = ", ".join(f"{name} {value!r}" for name, value in (known | said).items() if value is not None)
        raise InputError(
            f"activations or cache described by {shown}: natprec knows symmetric integers of 2 to 8 bits by token, "
            "group or channel and float8 with one fixed scale; run the checkpoint in vLLM, or quantize again"
        )
    return found
