"""The decisions of a plan, for weights, inputs, keys and values, as plan.json holds them.

The format comes from `format` alone, by name; the numbers beside it are for scripts, may be left out, and must agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from natprec.formats import CHANNEL, Format, integer, parse_activation, parse_format
from natprec.utils.schema import Bits, Called, Count, From0, Named, Place, Positive, Within, keys, read

UNQUANTIZED_BITS = 16

_OfWeights = Annotated[Format, Named(parse_format)]
_Flowing = Annotated[Format, Named(parse_activation)]


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

    format: _OfWeights | None
    natural_bits: Bits | None
    kl: float
    stored_bytes: Count
    elements: Positive
    fused_group: Annotated[str, Called("unit")]
    scaled: bool = False
    backward_bits: Bits | None = None
    tokens: Count | None = None

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
            "unit": self.fused_group,
            "scaled": self.scaled,
            "tokens": self.tokens,
        }


def dual(forward: int | None, backward: int | None) -> int | None:
    """The fewest bits that keep both tolerances (T4)."""
    return None if forward is None or backward is None else max(forward, backward)


@dataclass(frozen=True)
class InputChoice:
    """The format in which a fused group's input meets its weights; attributes as those of `Choice`, None: 16 bits.

    Attributes:
        largest: the magnitude on all calibration text, for formats that fix a scale.
    """

    format: _Flowing | None
    natural_bits: Bits | None
    kl: float
    backward_bits: Bits | None = None
    largest: From0 | None = None

    @property
    def bits(self) -> int:
        """Bits of the activation."""
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
            **({} if self.largest is None else {"largest": self.largest}),
        }


@dataclass(frozen=True)
class CacheChoice:
    """The format of all keys and values.

    Attributes:
        kl: predicted distortion of all of them together.
        largest: site → the largest magnitude measured, for formats with a fixed scale.
        by_head: site → that of each head, for formats with a fixed scale for each.
    """

    format: _Flowing
    kl: float
    largest: dict[str, From0]
    by_head: dict[str, tuple[From0, ...]] = field(default_factory=dict)

    @property
    def scale_bytes(self) -> int:
        """What a checkpoint stores of the cache: a scale of each site, or head, where scales are fixed."""
        if not self.format.floating:
            return 0
        return 2 * (sum(len(each) for each in self.by_head.values()) or len(self.largest))

    def reach(self, site: str) -> float | tuple[float, ...]:
        """The largest magnitude that a site's fixed scales are made for, or one for each head."""
        return self.by_head[site] if self.by_head else self.largest[site]

    def to_json(self) -> dict[str, Any]:
        """`bits` first, as for weights."""
        heads = {"by_head": self.by_head} if self.by_head else {}
        own = {"bits": self.format.bits, "format": self.format.name, "kl": self.kl, "largest": self.largest}
        return {**own, **{name: {site: list(each) for site, each in found.items()} for name, found in heads.items()}}


def upgraded(sites: Any, place: Place) -> dict[str, Any]:
    """The sites of a plan of version 0, which named no formats, as version 1 has them.

    There a format was (`bits`, `group_size`, `symmetric`), with -1 for a whole row and null where a site stays at 16
    bits; or `type`, one of GGUF's.

    Raises:
        InputError: a value that is none of these.
    """
    own = keys(Choice).values()
    made = {}
    for name, site in read(dict[str, dict[str, Any]], sites, place).items():
        at = place.at(name)
        if "format" in site:
            raise at.wrong('has a format, and plans of version 0 have none: say "version": 1 at the top')
        fmt, size = (read(hint, site.get(key), at.within(key)) for key, hint in _OLD.items())
        if fmt is None and size is not None:
            symmetric = read(bool, site.get("symmetric"), at.within("symmetric"))
            fmt = integer(read(_Codes, site.get("bits"), at.within("bits")), size, symmetric).name
        made[name] = {key: site[key] for key in own if key in site} | {"format": fmt}
    return made


_Codes = Annotated[int, Within(1, 8)]
_OLD = {"type": str | None, "group_size": Annotated[int, Within(CHANNEL)] | None}
