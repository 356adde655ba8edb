"""The roofline of a product: the longer of what its bytes and its operations take at a GPU's published peaks.

No kernel is faster, and many are far slower: 3-bit weights that take longer to unpack than 4-bit ones are not known
here. So whoever shows such a cost says ROOFLINE on every line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from natprec.costs.model import Estimate, Product
from natprec.costs.peaks import of_gpu, peaks
from natprec.errors import InputError
from natprec.formats import Format

WORD = "ROOFLINE"
NARROW = 8
"""Bits of inputs from which on GPUs multiply at their rate of 8-bit numbers."""


@dataclass(frozen=True)
class Roofline:
    """See the module; attributes as `CostModel` has them.

    Attributes:
        gpu: as the peaks name it.
        bandwidth: bytes per second; `rate`, `narrow_rate`: operations per second with inputs of 16 and of 8 bits.
    """

    gpu: str
    bandwidth: float
    rate: float
    narrow_rate: float
    source: str = "roofline"
    unit: str = "microseconds"
    digest: str | None = None
    complete: bool = True

    @classmethod
    def of(cls, gpu: str) -> Roofline:
        """Of a GPU by its name.

        Raises:
            InputError: there are no peaks of it; says of which there are.
        """
        found = [of_gpu(peaks()[kind], gpu) for kind in ("bandwidth", "operations_per_second")]
        if found[0] is None or found[1] is None:
            known = ", ".join(name for name in peaks()["bandwidth"] if name in peaks()["operations_per_second"])
            raise InputError(
                f"gpu {gpu!r}: natprec has no published bandwidth and rates of it for a roofline, only of {known}; "
                "name one of these GPUs, or give a measured table with --costs (natprec costs makes one)"
            )
        return cls(found[1].name.partition(".")[2], found[0].high, found[1].low, found[1].high)

    @property
    def name(self) -> str:
        """See `CostModel`."""
        return f"{WORD} of {self.gpu}"

    def has(self, weight: Format | None, inputs: Format | None) -> bool:
        """See `CostModel.has`: bytes and operations are known of all."""
        return True

    def product(self, product: Product) -> Estimate:
        """See `CostModel.product`."""
        elements = product.rows * product.columns
        stored = product.weight.stored_bytes(product.rows, product.columns) if product.weight else 2 * elements
        width = (product.inputs.bits if product.inputs else 16) / 8
        moved = stored + product.tokens * (width * product.columns + 2 * product.rows)
        rate = self.narrow_rate if product.inputs and product.inputs.bits <= NARROW else self.rate
        return Estimate(1e6 * max(moved / self.bandwidth, 2 * elements * product.tokens / rate), None)

    def rest(self, model_digest: str, tokens: int) -> Estimate | None:
        """See `CostModel.rest`: not known."""
        return None

    def refuse_lacking(self, pairs: Iterable[tuple[Format | None, Format | None]]) -> None:
        """See `CostModel.refuse_lacking`: bytes and operations are known of all."""
