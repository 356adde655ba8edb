"""What a plan is the least of, and what each decision adds to it: the one place where its cost is put together.

Bytes follow from the formats. Microseconds and joules are those of the matrix products that an engine runs for one new
token, or for a prompt:

- weights of a fused group are one product, with the rows of all, where the engine fuses them;
- a tied embedding counts as the output head that it also is, and a looked-up row as nothing; of a prompt the head sees
  the last token alone;
- an expert counts as often as calibration text was routed to it.

What no format changes (attention, norms) is the same for all plans; it is added where the table has it of this model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from natprec.config import AUTO
from natprec.costs import CostModel, Estimate
from natprec.costs.choose import BYTES, TOKENS
from natprec.costs.model import Product
from natprec.errors import InputError
from natprec.formats import EngineProfile, Format

if TYPE_CHECKING:
    from natprec.measurement import Curve, Header, Measurement
    from natprec.solver.fused_groups import Pair

MICROSECONDS = "microseconds"


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        minimize: one of `natprec.costs.MINIMIZE`.
        costs: that know it; None for bytes.
    """

    minimize: str = BYTES
    costs: CostModel | None = None

    def of(
        self,
        curves: Sequence[Curve],
        pairs: Sequence[Pair],
        stored: np.ndarray,
        profile: EngineProfile,
        activations: str,
        header: Header,
    ) -> np.ndarray:
        """(pairs,) what a decision adds under each pair.

        Args:
            curves: of its weights.
            stored: (pairs,) bytes of the weights.
            activations: see `natprec.solver.solve`; with 'auto' the bits of inputs count like those of weights.
        """
        if self.costs is None:
            if activations != AUTO:
                return stored
            elements = sum(curve.site.elements for curve in curves)
            return stored + elements / 8 * np.array([pair.input_bits for pair in pairs])
        return np.array([self.estimate(curves, pair.weight, pair.inputs, profile, header).value for pair in pairs])

    def estimate(
        self,
        curves: Sequence[Curve],
        weight: Format | None,
        inputs: Format | None,
        profile: EngineProfile,
        header: Header,
    ) -> Estimate:
        """The products of some weights that share an input and a format; None: 16 bits."""
        assert self.costs is not None
        value, wrong, known = 0.0, 0.0, True
        for product, times in self.products(curves, weight, inputs, profile, header):
            found = self.costs.product(product)
            value += times * found.value
            known = known and found.error is not None
            wrong += times * found.value * (found.error or 0.0)
        return Estimate(value, wrong / value if known and value else 0.0 if known else None)

    def products(
        self,
        curves: Sequence[Curve],
        weight: Format | None,
        inputs: Format | None,
        profile: EngineProfile,
        header: Header,
    ) -> list[tuple[Product, float]]:
        """With how often each is run."""
        found: list[tuple[Product, float]] = []
        joined: dict[int, int] = {}
        for curve in curves:
            site = curve.site
            rows, columns = site.shape
            if site.role == "embedding" and not site.tied:
                continue
            if site.experts:
                if profile.name in _FUSED_EXPERTS:
                    raise InputError(
                        f"minimize {self.minimize!r}: engine {profile.name!r} runs the experts of {header.model!r} in "
                        "kernels of their own, of which there are no costs; minimize bytes, or use --engine natprec"
                    )
                seen = (curve.tokens or 0) / (header.sequences * header.length)
                found.append((Product(weight, inputs, rows, columns, self.tokens), seen))
            elif site.role in ("embedding", "head"):
                found.append((Product(weight, inputs, rows, columns, 1), 1.0))
            elif profile.fuses:
                joined[columns] = joined.get(columns, 0) + rows
            else:
                found.append((Product(weight, inputs, rows, columns, self.tokens), 1.0))
        found += [(Product(weight, inputs, rows, columns, self.tokens), 1.0) for columns, rows in joined.items()]
        return found

    @property
    def tokens(self) -> int:
        """Of each product."""
        return TOKENS[self.minimize]

    def total(self, parts: Sequence[Estimate], header: Header) -> Estimate:
        """Of a whole plan: its products, and the rest of the model where that is known."""
        assert self.costs is not None
        rest = self.costs.rest(header.model_digest, self.tokens)
        parts = [*parts, *([rest] if rest else [])]
        value = float(sum(part.value for part in parts))
        if any(part.error is None for part in parts):
            return Estimate(value, None)
        return Estimate(value, sum(abs(part.value) * (part.error or 0.0) for part in parts) / value)

    def candidates(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those that have a cost, where the table leaves out what it lacks; else all."""
        if self.costs is None or self.costs.complete:
            return list(pairs)
        return [pair for pair in pairs if self.costs.has(pair.weight, pair.inputs)]


_FUSED_EXPERTS = ("vllm", "sglang")

STORED = Objective()
"""Bytes."""


@dataclass(frozen=True)
class PlanCost:
    """What plan.json says of a plan's cost.

    Attributes:
        minimize: what the plan is the least of.
        cost: predicted; `cost_error`: how far it may be off, relative, None: not known.
        cost_unit: `bytes` (of the whole checkpoint), `microseconds` or `joules`.
        cost_source: `counted` from the formats, `measured`, or `roofline`.
        cost_table: name of the table, or of the GPU; `cost_digest`: of its bytes.
        cost_whole: whether the model's rest, beside its products, is in `cost`.
    """

    minimize: str
    cost: float
    cost_error: float | None
    cost_unit: str
    cost_source: str
    cost_table: str | None = None
    cost_digest: str | None = None
    cost_whole: bool = False


def products_asked(measurement: Measurement, profile: EngineProfile, tokens: Sequence[int]) -> list[Product]:
    """The products whose costs a plan may ask for: each fused group in all its formats, and at 16 bits.

    Args:
        tokens: 1 for decoding; any other number stands for a prompt.
    """
    groups: dict[str, list[Curve]] = {}
    for curve in measurement.weights.values():
        groups.setdefault(curve.site.fused_group if profile.fuses else curve.site.name, []).append(curve)
    flowing = {each.site.fused_group: each for each in measurement.curves.values() if each.site.name.endswith(":input")}
    found: dict[Product, None] = {}
    for name, curves in groups.items():
        shared, role = set.intersection(*(set(curve.formats) for curve in curves)), curves[0].site.role
        weights = [fmt for fmt in curves[0].formats if fmt in shared and profile.stores(role, fmt)]
        pairs: list[tuple[Format | None, Format | None]] = [(fmt, None) for fmt in weights if profile.runs(role, fmt)]
        inputs = flowing[name].formats if name in flowing else ()
        pairs += [(fmt, each) for each in inputs for fmt in weights if profile.multiplies(fmt, each)]
        for weight, rounded in [*pairs, (None, None)]:
            own = Objective("decode").products(curves, weight, rounded, profile, measurement.header)
            for product, _ in own:
                several = (1,) if role in ("embedding", "head") else tokens
                found |= {replace(product, tokens=count): None for count in several}
    return list(found)


def plan_cost(objective: Objective, parts: Sequence[Estimate], stored_bytes: int, header: Header) -> PlanCost:
    """Of a plan.

    Args:
        parts: what each of its decisions and of its unquantized weights adds; of bytes none.
    """
    counted = PlanCost(objective.minimize, float(stored_bytes), 0.0, "bytes", "counted")
    costs = objective.costs
    if costs is None:
        return counted
    found = objective.total(parts, header)
    return replace(
        counted, cost=found.value, cost_error=found.error, cost_unit=costs.unit, cost_source=costs.source,
        cost_table=costs.name, cost_digest=costs.digest,
        cost_whole=costs.rest(header.model_digest, objective.tokens) is not None,
    )  # fmt: skip
