"""Which widths of weights an engine multiplies with rounded activations."""

from __future__ import annotations

from dataclasses import dataclass

from natprec.formats.activation_format import TOKEN, ActivationFormat
from natprec.formats.number_format import CHANNEL, NumberFormat


@dataclass(frozen=True)
class Pairing:
    """Weights and inputs of one kind of matrix product.

    Attributes:
        inputs: bits of the activations, symmetric, one scale per token, found while running.
        weights: bits of the weights.
        per_channel: the weights must have one scale per row.
        grouped: the activations may have one scale per group of a token instead.
    """

    inputs: int
    weights: tuple[int, ...]
    per_channel: bool = False
    grouped: bool = False

    def covers(self, weight: NumberFormat, inputs: ActivationFormat) -> bool:
        """Whether it is this kind of product."""
        return (
            inputs.bits == self.inputs
            and not inputs.floating
            and (inputs.group_size == TOKEN or (self.grouped and inputs.group_size > 0))
            and weight.symmetric
            and weight.bits in self.weights
            and (weight.group_size == CHANNEL or not self.per_channel)
        )
