"""What the solver asks of costs: one product's, with how far it may be off, whoever knows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from natprec.formats import Format

UNQUANTIZED = "16 bits"
"""Of weights or inputs, in tables and messages."""


@dataclass(frozen=True)
class Product:
    """A matrix product: weights (rows, columns) in a format, inputs of so many tokens; a format of None is 16 bits."""

    weight: Format | None
    inputs: Format | None
    rows: int
    columns: int
    tokens: int

    @property
    def formats(self) -> str:
        """For example `int4-g64` or `int8-channel/a8-token`."""
        return pair_name(self.weight, self.inputs)


@dataclass(frozen=True)
class Estimate:
    """A cost.

    Attributes:
        error: how far it may be off, relative: of a measured product the spread of its repetitions, of others what
            the interpolation misses of the products that were measured; None: not known.
    """

    value: float
    error: float | None


class CostModel(Protocol):
    """Costs of products; a value, so that what was solved with it can be kept."""

    @property
    def name(self) -> str:
        """For people: a file's name, or of which GPU the roofline is."""

    @property
    def source(self) -> str:
        """`measured` or `roofline`."""

    @property
    def unit(self) -> str:
        """`microseconds` or `joules`."""

    @property
    def digest(self) -> str | None:
        """Of the table; None where there is none."""

    @property
    def complete(self) -> bool:
        """Whether formats that it lacks are an error; else they are no candidates."""

    def has(self, weight: Format | None, inputs: Format | None) -> bool:
        """Whether products of these formats have a cost."""

    def product(self, product: Product) -> Estimate:
        """What one product costs.

        Raises:
            InputError: nothing is known of its formats, or too little for its shape or number of tokens.
        """

    def rest(self, model_digest: str, tokens: int) -> Estimate | None:
        """What a model costs beside its products, for so many tokens; None where that was not measured."""

    def refuse_lacking(self, pairs: Iterable[tuple[Format | None, Format | None]]) -> None:
        """Refuse weights and inputs that have no cost.

        Raises:
            InputError: names them.
        """

    def __hash__(self) -> int:
        """See the class."""


def pair_name(weight: Format | None, inputs: Format | None) -> str:
    """Weights, and behind a slash inputs where they are rounded."""
    name = weight.name if weight else UNQUANTIZED
    return f"{name}/{inputs.name}" if inputs else name
