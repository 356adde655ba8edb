"""What a plan decides, at a weight, at an input, for keys and values, and how plan.json says it.

The format comes from `format` alone, by name; the numbers beside it are for scripts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from natprec.formats import Format, integer, parse_activation, parse_format

UNQUANTIZED_BITS = 16


@dataclass(frozen=True)
class Choice:
    """One site's format in a plan.

    Attributes:
        format: None where the engine keeps the site at 16 bits.
        natural_bits: b*(eps_v), the width at which the site keeps its own share of the tolerance;
            None where no measured width does.
        kl: predicted distortion of this site alone, by default KL in nats per token.
        stored_bytes: on disk.
        scaled: whether the columns are rescaled before they are rounded (T10).
        backward_bits: b* of the backward flow, at the plan's `eps_bwd` or else 0.01; None where no measured width
            keeps it. What keeps both tolerances is the larger of this and `natural_bits` (T4).
        tokens: of an expert, those that it was measured on; None where the text is not divided.
    """

    format: Format | None
    natural_bits: int | None
    kl: float
    stored_bytes: int
    elements: int
    unit: str
    scaled: bool = False
    backward_bits: int | None = None
    tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The format first: `format` names it, what follows says it in numbers."""
        fmt = self.format
        return {
            "format": fmt.name if fmt else None,
            "stored_bits": 8 * self.stored_bytes / self.elements,
            "bits": fmt.bits if fmt else UNQUANTIZED_BITS,
            "group_size": fmt.group_size if fmt else None,
            "symmetric": fmt.symmetric if fmt else None,
            "natural_bits": self.natural_bits,
            "backward_bits": self.backward_bits,
            "dual_bits": dual(self.natural_bits, self.backward_bits),
            "kl": self.kl,
            "stored_bytes": self.stored_bytes,
            "elements": self.elements,
            "unit": self.unit,
            "scaled": self.scaled,
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Choice:
        """The inverse of `to_json`."""
        fmt = None if value["format"] is None else parse_format(value["format"])
        names = ("natural_bits", "kl", "stored_bytes", "elements", "unit", "scaled", "backward_bits", "tokens")
        return cls(fmt, *(value[name] for name in names))


def dual(forward: int | None, backward: int | None) -> int | None:
    """The fewest bits that keep both tolerances (T4)."""
    return None if forward is None or backward is None else max(forward, backward)


@dataclass(frozen=True)
class InputChoice:
    """The format in which a unit's input meets its weights; attributes as those of `Choice`, None: 16 bits."""

    format: Format | None
    natural_bits: int | None
    kl: float
    backward_bits: int | None = None

    @property
    def bits(self) -> int:
        """Of an activation."""
        return self.format.bits if self.format else UNQUANTIZED_BITS

    def to_json(self) -> dict[str, Any]:
        """`bits` first, as for weights."""
        return {
            "bits": self.bits,
            "format": self.format.name if self.format else None,
            "natural_bits": self.natural_bits,
            "backward_bits": self.backward_bits,
            "dual_bits": dual(self.natural_bits, self.backward_bits),
            "kl": self.kl,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> InputChoice:
        """The inverse of `to_json`."""
        fmt = None if value["format"] is None else parse_activation(value["format"])
        return cls(fmt, value["natural_bits"], value["kl"], value["backward_bits"])


@dataclass(frozen=True)
class CacheChoice:
    """The format of all keys and values.

    Attributes:
        kl: predicted distortion of all of them together.
        largest: site → the largest magnitude measured, for formats with a fixed scale.
    """

    format: Format
    kl: float
    largest: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """`bits` first, as for weights."""
        return {"bits": self.format.bits, "format": self.format.name, "kl": self.kl, "largest": self.largest}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CacheChoice:
        """The inverse of `to_json`."""
        return cls(parse_activation(value["format"]), value["kl"], value["largest"])


def upgraded(sites: dict[str, Any]) -> dict[str, Any]:
    """The sites of a plan of version 0, which named no formats, as version 1 has them.

    There a format was (`bits`, `group_size`, `symmetric`), with -1 for a whole row and null where a site stays at 16
    bits; or `type`, one of GGUF's.
    """
    made = {}
    for name, site in sites.items():
        fmt, size = site["type"], site["group_size"]
        if fmt is None and size is not None:
            fmt = integer(site["bits"], size, site["symmetric"]).name
        made[name] = {**site, "format": fmt}
    return made
