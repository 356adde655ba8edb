"""The fused groups that a plan decides on: what they can be in, what that costs and what it saves.

A fused group's weights have one format and its input one: a pair, of those that the engine multiplies. Weights are
stored, so their width saves bytes. Activations are not; a narrower one makes the product cheaper. With `--activations
8` that is the user's decision, and bytes are what is left to save. With `auto` both operands count alike: of each
multiply-add the stored bits of its weight and the bits of its activation, and the same staircase then minimises their
sum. What else may be saved instead of bytes is `natprec.solver.objective`'s affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from natprec.config import AUTO, NOT_ROUNDED
from natprec.costs.model import pair_name
from natprec.errors import BudgetError, InputError
from natprec.formats import EngineProfile, Format
from natprec.formats.offers import Role
from natprec.models.weight_sites import together
from natprec.solver.allocation import Decision
from natprec.solver.choices import UNQUANTIZED_BITS
from natprec.solver.objective import STORED, Objective
from natprec.solver.site_costs import EPS_BWD_SHOWN, backward_bits, keeps_gradient, kl_of, stored_bytes, weight_formats

if TYPE_CHECKING:
    from natprec.measurement import Curve, Measurement

SMALL = 1000
"""Weights of a site, up to which 16 bits are a candidate: a depthwise convolution may need more than any narrow format
keeps, and hardly takes space."""


@dataclass(frozen=True)
class Pair:
    """Operands of a matrix product; a weight or `inputs` that stay at 16 bits are None."""

    weight: Format | None
    inputs: Format | None = None

    @property
    def name(self) -> str:
        """The pair's name, such as `int4-g64`, `int4-g64/a8-token` or `16 bits`."""
        return pair_name(self.weight, self.inputs)

    @property
    def bits(self) -> int:
        """Bits of a weight's code."""
        return width(self.weight)

    @property
    def input_bits(self) -> int:
        """Bits of the rounded input."""
        return width(self.inputs)

    @property
    def input_scale_bytes(self) -> int:
        """Stored beside each weight: the scale, or outer scale, of inputs that the calibration text fixes."""
        if self.inputs is None or not self.inputs.fixed:
            return 0
        return 2 if self.inputs.scaling.outer is None else 4


def width(fmt: Format | None) -> int:
    """Bits of a code; None: 16."""
    return UNQUANTIZED_BITS if fmt is None else fmt.bits


@dataclass(frozen=True)
class FusedGroup:
    """A fused group with its measured curves.

    Attributes:
        decision: `stored` is what the objective counts.
        curves: of its weights; `inputs`: of its input, if that was measured.
        pairs: in the order of the decision's `kl` and `stored`.
        formats, alone: the weights' formats (None: 16 bits), and the decision as if its input were never rounded and
            bytes alone counted, in their order.
        backward: site → b* of the backward flow, at the tolerance given or else `EPS_BWD_SHOWN`.
    """

    decision: Decision
    curves: tuple[Curve, ...]
    pairs: tuple[Pair, ...]
    inputs: Curve | None
    formats: tuple[Format | None, ...]
    alone: Decision
    backward: dict[str, int | None]


def groups_of(
    measurement: Measurement,
    profile: EngineProfile,
    rounding: str,
    activations: str,
    eps_bwd: float | None,
    objective: Objective = STORED,
) -> list[FusedGroup]:
    """Fused groups with the pairs that the engine runs for all of their sites.

    Args:
        activations: bits of the Linears' inputs, or 'auto'.
        eps_bwd: of each gradient's energy, the share that rounding it in the site's format may lose (T4).
    Raises:
        InputError: activations that were not measured, or a product whose cost is not known.
        BudgetError: no format keeps `eps_bwd` at some site.
    """
    inputs = {
        curve.site.fused_group: curve for curve in measurement.curves.values() if curve.site.name.endswith(":input")
    }
    if activations != NOT_ROUNDED and not inputs:
        raise InputError("activations were not measured; measure again with --sites all, or leave --activations out")
    if activations != NOT_ROUNDED:
        refuse_other_rule(inputs.values(), profile)
    members: dict[tuple[str, str], list[Curve]] = {}
    for curve in measurement.weights.values():
        if weight_formats(curve, profile):
            members.setdefault(together(curve.site, profile), []).append(curve)
    named = {
        (curves[0].site.fused_group if profile.fuses else curves[0].site.name): curves for curves in members.values()
    }
    pairs = {
        name: _candidates(name, curves, inputs.get(name), profile, activations, eps_bwd)
        for name, curves in named.items()
    }
    if objective.costs is not None and objective.costs.complete:
        objective.costs.refuse_lacking((pair.weight, pair.inputs) for several in pairs.values() for pair in several)
    groups = []
    for name, curves in named.items():
        own = objective.candidates(pairs[name])
        if not own:
            raise InputError(
                f"there are no costs of any format that was measured of {name!r}; measure a table with natprec costs "
                "and give it with --costs"
            )
        groups.append(
            _group(name, curves, inputs.get(name), own, profile, rounding, activations, eps_bwd, objective, measurement)
        )
    return groups


def refuse_other_rule(curves: Iterable[Curve], profile: EngineProfile) -> None:
    """Refuse activations that were measured by the rule of scales of other engines.

    Raises:
        InputError: names the engine to measure for.
    """
    for curve in curves:
        rules = {fmt.full_range for fmt in curve.formats if not fmt.floating}
        if rules and profile.full_range not in rules:
            whose = "plain transformers" if True in rules else "kernels"
            raise InputError(
                f"{curve.site.name!r} was measured with the scales of {whose}, which engine {profile.name!r} does not "
                f"use; measure again with --engine {profile.name}"
            )


def _candidates(
    name: str,
    curves: list[Curve],
    flowing: Curve | None,
    profile: EngineProfile,
    activations: str,
    eps_bwd: float | None,
) -> list[Pair]:
    """What the engine can run of a fused group, and what was measured of all its weights."""
    shared = set.intersection(*(set(curve.formats) for curve in curves))
    formats: list[Format | None] = [fmt for fmt in weight_formats(curves[0], profile) if fmt in shared]
    if not any(curve.energy.any() for curve in curves):
        formats, flowing = formats[-1:], None  # no token reached it: unknown, not free
    if eps_bwd is not None:
        formats = [fmt for fmt in formats if fmt and all(keeps_gradient(curve, fmt, eps_bwd) for curve in curves)]
    if profile.leaves or all(curve.site.elements < SMALL for curve in curves):
        formats.append(None)
    if not formats:
        raise BudgetError(
            f"eps-bwd {eps_bwd:.3g} is below what the measured formats keep of the gradient at {name!r}; "
            "raise --eps-bwd, or measure wider formats or smaller groups"
        )
    pairs = _pairs(formats, curves[0].site.role, flowing, profile, activations, eps_bwd)
    if not pairs:
        raise BudgetError(
            f"engine {profile.name!r} has no product with {activations}-bit activations for what was measured of "
            f"{name!r}; give --activations auto, or measure with --sites all for this engine"
        )
    return pairs


def _group(
    name: str,
    curves: list[Curve],
    flowing: Curve | None,
    pairs: list[Pair],
    profile: EngineProfile,
    rounding: str,
    activations: str,
    eps_bwd: float | None,
    objective: Objective,
    measurement: Measurement,
) -> FusedGroup:
    formats = list(dict.fromkeys(pair.weight for pair in pairs))
    table = np.array([kl_of(curve, formats, rounding) for curve in curves])
    elements = sum(curve.site.elements for curve in curves)
    stored = np.array([float(sum(stored_bytes(curve, fmt, profile) for curve in curves)) for fmt in formats])
    alone = Decision(name, elements, table.sum(0), table.max(0), stored)
    place = [formats.index(pair.weight) for pair in pairs]
    more = np.zeros(len(pairs))
    if any(pair.inputs for pair in pairs) and flowing is not None:
        more = kl_of(flowing, [pair.inputs for pair in pairs], rounding)
    uses = sum(len(curve.site.uses) for curve in curves)
    fixed = uses * np.array([float(pair.input_scale_bytes) for pair in pairs])
    rounded = AUTO if activations == AUTO and any(pair.inputs for pair in pairs) else NOT_ROUNDED
    costs = objective.of(curves, pairs, stored[place] + fixed, profile, rounded, measurement.header)
    decision = Decision(name, elements, alone.kl[place] + more, np.maximum(alone.worst[place], more), costs)
    shown = [*curves, flowing] if flowing is not None and activations != NOT_ROUNDED else curves
    backward = {curve.site.name: backward_bits(curve, eps_bwd or EPS_BWD_SHOWN) for curve in shown}
    return FusedGroup(decision, tuple(curves), tuple(pairs), flowing, tuple(formats), alone, backward)


def _pairs(
    formats: Sequence[Format | None],
    role: Role,
    flowing: Curve | None,
    profile: EngineProfile,
    activations: str,
    eps_bwd: float | None,
) -> list[Pair]:
    """All that is asked for and exists; inputs that were not measured (an output head's) stay as they are."""
    plain = [Pair(fmt) for fmt in formats if fmt is None or profile.runs(role, fmt)]
    if flowing is None or activations == NOT_ROUNDED:
        return plain
    pairs = [
        Pair(fmt, inputs)
        for inputs in flowing.formats
        if eps_bwd is None or keeps_gradient(flowing, inputs, eps_bwd)
        for fmt in formats
        if fmt is not None and profile.multiplies(fmt, inputs)
    ]
    if activations == AUTO:
        return pairs + plain
    left = [pair for pair in plain if pair.weight is None]  # beside inputs that stay as they are
    return [pair for pair in pairs if pair.input_bits == int(activations)] + left
