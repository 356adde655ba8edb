"""Three floors under the cost of a token (THEORY T22). A measurement below one is a fault of the measurement.

- Landauer: k_B T ln 2 for each bit that is erased: the choice of the token, the weights that overwrite one another in
  the registers, what the plan's boundaries erase of activations.
- Bytes: what must come from memory, at the fewest joules per bit of any memory in `constants.toml` (HBM2).
- Roofline: the time that bytes and operations take at the published peaks of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from natprec.config import ROOM_KELVIN
from natprec.energy.constants import constant, of_gpu
from natprec.energy.convert import tokens_per_wh
from natprec.energy.footprint import Footprint
from natprec.inspection.information.landauer import landauer_joules


@dataclass(frozen=True)
class Floor:
    """Of one token; None: not known.

    Attributes:
        selection_joules, weights_joules, activations_joules: the parts of Landauer's.
        bytes_moved: from memory, for each token.
        roofline_joules: the roofline's seconds at the watts that were measured.
    """

    selection_joules: float | None = None
    weights_joules: float | None = None
    activations_joules: float | None = None
    bytes_moved: float | None = None
    bytes_joules: float | None = None
    roofline_seconds: float | None = None

    @property
    def landauer_joules(self) -> float | None:
        """The sum of the parts that are known."""
        parts = (self.selection_joules, self.weights_joules, self.activations_joules)
        known = [part for part in parts if part is not None]
        return sum(known) if known else None

    def below(self, joules: float | None, seconds: float | None) -> list[str]:
        """Faults of a measurement: what it says is less than physics asks."""
        found = []
        for name, floor in (("Landauer's", self.landauer_joules), ("the bytes moved", self.bytes_joules)):
            if floor is not None and joules is not None and joules < floor:
                found.append(f"{joules:.3g} J per token lie below the floor of {name}, {floor:.3g} J")
        if self.roofline_seconds is not None and seconds is not None and seconds < self.roofline_seconds:
            found.append(f"{seconds:.3g} s per token lie below the roofline, {self.roofline_seconds:.3g} s")
        return found

    def to_json(self, watts: float | None = None, choice_bits: float | None = None) -> dict[str, Any]:
        """Each floor, and the greatest tokens per watt-hour and bits of choice per joule that it allows.

        Args:
            watts: measured, at which the roofline's seconds are joules.
            choice_bits: entropy of the token that is chosen.
        """
        roofline = None if watts is None or self.roofline_seconds is None else watts * self.roofline_seconds
        floors = {"landauer": self.landauer_joules, "bytes": self.bytes_joules, "roofline": roofline}
        return {
            "landauer_joules": self.landauer_joules,
            "bytes_joules": self.bytes_joules,
            "roofline_seconds": self.roofline_seconds,
            "selection_joules": self.selection_joules,
            "weights_joules": self.weights_joules,
            "activations_joules": self.activations_joules,
            "bytes_moved": self.bytes_moved,
            "greatest_tokens_per_wh": {name: tokens_per_wh(each) if each else None for name, each in floors.items()},
            "greatest_bits_per_joule": {
                name: choice_bits / each if each and choice_bits is not None else None for name, each in floors.items()
            },
        }


def floor_of(
    own: Footprint,
    *,
    phase: str,
    batch: int,
    prompt: int,
    new: int,
    choice_bits: float | None,
    erased_bits: float | None = None,
    gpu: str | None = None,
    kelvin: float = ROOM_KELVIN,
) -> Floor:
    """The floors of one phase.

    Args:
        choice_bits: entropy of the token that is chosen; a token of the prompt is not chosen.
        erased_bits: that the plan's boundaries erase of one token's activations.
        gpu: its name, for published peaks; None: a CPU, of which there are none.
    """
    prefill = phase == "prefill"
    tokens = batch * prompt if prefill else batch
    read = own.step_bytes(batch, prompt if prefill else prompt + new / 2)
    moved = own.must_move(read) / tokens
    selection = None if prefill or choice_bits is None else landauer_joules(choice_bits, kelvin)
    return Floor(
        selection,
        landauer_joules(8 * own.weight_bytes / tokens, kelvin),
        None if erased_bits is None else landauer_joules(erased_bits, kelvin),
        moved or None,
        (8 * moved * constant("joules_per_bit", "hbm2").low) or None,
        roofline_seconds(moved, own.weights, gpu),
    )


def roofline_seconds(bytes_moved: float, weights: float | None, gpu: str | None, gpus: int = 1) -> float | None:
    """The longer of a token's bytes and its operations, at published peaks; None where there are none."""
    bandwidth, peak = (of_gpu(kind, gpu or "") for kind in ("bandwidth", "operations_per_second"))
    if bandwidth is None:
        return None
    compute = 0.0 if peak is None or weights is None else 2 * weights / peak.high
    return max(bytes_moved / bandwidth.high, compute) / gpus


def path_of_erased_bits(
    floor: Floor, choice_bits: float | None, erased_bits: float | None, weight_bits: float
) -> list[dict[str, Any]]:
    """From the bits that are erased for a token to its joules: one row for each kind of erasure."""
    return [
        {"erased": what, "bits_per_token": bits, "joules_per_token": joules}
        for what, bits, joules in (
            (
                "choice of the token",
                choice_bits if floor.selection_joules is not None else None,
                floor.selection_joules,
            ),
            ("weights, overwritten in registers", weight_bits, floor.weights_joules),
            ("activations, at the plan's boundaries", erased_bits, floor.activations_joules),
            ("all that is known", None, floor.landauer_joules),
        )
    ]
