"""The joint distortion of a plan, where the errors of different sites add up to more or less than their sum.

The sum over sites is the mean of ½ E[(Σ_v g_v · δ_v)²] over errors of independent signs. The errors that a plan really
makes may point the same way: the joint is then any multiple of the sum, where the gradients of different sites have few
directions in common with it. Three things are looked at on the plan that was solved for:

- one more backward set gives `along`, g_v · δ_v of each site and sample, whose joint and separate squares are compared;
- the distortion of the plan's own errors, measured on the samples (`measured`);
- the distortion of half of these errors (`halved`), which at second order is a quarter.

The first scatters by √(2 / samples), so it is drawn towards the sum by how much the sites' directions have in common at
all: for a language model next to nothing. The other two give the ratio of the joint to the sum at second order, and
what comes past it: a link (1 - e^(-kq)) / k from the second-order joint q to the distortion, of which ModelOpt's
coverage model is the half with k > 0. So a plan solved once more is predicted from its sum.

A rounding that makes up for its errors (GPTQ) is known only when it has been done. Errors to nearest of the same size,
looked at in their place, told more of other ways than of its own: at 2.5 bits they cost 1.75 nats, and it 1.38 where
the sum is 1.31 (LOG.md). So there the sum stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from natprec.measurement.fisher import shrunk
from natprec.solver.heads import head_tied
from natprec.solver.plan import Plan
from natprec.utils.statistics import BOOTSTRAP_DRAWS

if TYPE_CHECKING:
    from natprec.measurement import Measurement

STANDS = 0.05
"""Relative difference up to which the sum stands: text differs from text by as much."""

REACH = 4.0
"""The link holds for sums of up to so many times the one that it was found at, and down to that part of it."""

STEEPEST = 50.0
"""Largest |k q| of a link."""


@dataclass(frozen=True)
class Joint:
    """What one look at a plan found.

    Attributes:
        kl_sum: of the plan looked at, as its `kl_sum`.
        sums: (pools,) the sum over sites on each pool of samples.
        along: (sites, samples), g_v · δ_v / √(2 · terms): the square of a sum over sites is a distortion.
        measured, halved: (samples,) distortion of the plan's errors, and of half of them; empty unless `own`.
        own: whether the errors to nearest are those that the rounding will make.
        seed: of the interval.
    """

    kl_sum: float
    sums: np.ndarray
    along: np.ndarray
    measured: np.ndarray
    halved: np.ndarray
    seed: int = 0
    own: bool = True

    @property
    def kl_joint(self) -> float:
        """½ E[(Σ_v g_v · δ_v)²] per term: the sum, times the ratio of the joint square to the separate ones."""
        return self.kl_sum * _ratio(self.along)

    @property
    def joint_ci95(self) -> tuple[float, float]:
        """Percentile bootstrap interval of `kl_joint` over samples."""
        count = self.along.shape[1]
        draws = np.random.default_rng(self.seed).integers(0, count, (BOOTSTRAP_DRAWS, count))
        together, apart = _squares(self.along)
        found = together[draws].sum(1) / np.maximum(apart[draws].sum(1), 1e-300)
        low, high = np.quantile(found, [0.025, 0.975])
        return self.kl_sum * float(low), self.kl_sum * float(high)

    @property
    def alignment(self) -> float:
        """The second-order joint over the sum, as the backward set tells it: near 1 where it tells nothing."""
        return alignment_of(self.along)

    @property
    def anchored(self) -> bool:
        """Whether the two measured distortions can be used: a distortion that may fall has no curvature alone."""
        if not self.own:
            return False
        one, half, base = (float(each.mean()) for each in (self.measured, self.halved, self.sums))
        return base > 0 and math.isfinite(one) and math.isfinite(half) and 0 < half < one

    @property
    def link(self) -> tuple[float, float]:
        """(A, k): a plan whose sites sum up to S costs (1 - e^(-k A S)) / k."""
        if not self.anchored:
            return (self.alignment if self.own else 1.0), 0.0
        one, half, base = (float(each.mean()) for each in (self.measured, self.halved, self.sums))
        bent = _bend(one / half)
        quadratic = one / _curve(bent)
        return quadratic / base, bent / quadratic

    @property
    def apart(self) -> bool:
        """Whether the joint differs from the sum by more than text differs from text."""
        return self.kl_sum > 0 and abs(self._linked(self.kl_sum) / self.kl_sum - 1) > STANDS

    def predicted(self, kl_sum: float) -> float:
        """The distortion of a plan whose sites sum up to this."""
        return self._linked(kl_sum) if self.apart else kl_sum

    def sum_for(self, kl: float) -> float:
        """The inverse of `predicted`, no further from the sum looked at than `REACH`."""
        if not self.apart:
            return kl
        ratio, k = self.link
        found = kl / ratio
        if abs(k * kl) > 1e-9:
            found = -math.log1p(-k * kl) / (k * ratio) if k * kl < 1 else math.inf
        return min(max(found, self.kl_sum / REACH), self.kl_sum * REACH)

    def shown(self, plan: Plan) -> Plan:
        """A plan as it was solved, with what is predicted of it now; its joint is in proportion to that looked at."""
        low, high = plan.kl_predicted_ci95
        scale = plan.kl_sum / self.kl_sum if self.kl_sum > 0 else 1.0
        joint = self.joint_ci95
        return replace(
            plan,
            kl_predicted=self.predicted(plan.kl_sum),
            kl_predicted_ci95=(self.predicted(low), self.predicted(high)),
            kl_joint=self.kl_joint * scale,
            joint_ci95=(joint[0] * scale, joint[1] * scale),
            kl_uniform=None if plan.kl_uniform is None else self.predicted(plan.kl_uniform),
        )

    def _linked(self, kl_sum: float) -> float:
        ratio, k = self.link
        limited = min(kl_sum, self.kl_sum * REACH)
        return ratio * kl_sum * _curve(k * ratio * limited)


def sums_of(measurement: Measurement, plan: Plan) -> np.ndarray:
    """(pools,): what the plan's sites sum up to on each pool of the samples that went back, kind of text after kind."""
    way = head_tied(measurement) if measurement.header.untied and not plan.untied else measurement
    formats = {name: choice.format for name, choice in plan.sites.items()}
    found = [way.curves[name].everywhere(fmt, plan.rounding) for name, fmt in formats.items()]
    for name, fmt in plan.rounded_inputs.items():
        found.append(way.curves[f"{name}:input"].everywhere(fmt, plan.rounding))
    if plan.cache is not None:
        found += [way.curves[name].everywhere(plan.cache.format, plan.rounding) for name in plan.cache.largest]
    pools = min(values.shape[1] for values in found)
    total: np.ndarray = sum(values.reshape(len(values), pools, -1).mean(2) for values in found)
    return total.reshape(-1)


def shares_of(measurement: Measurement, plan: Plan) -> dict[str, float]:
    """Site → the fraction of the distortion of rounding to nearest that the plan's rounding is predicted to leave."""
    way = head_tied(measurement) if measurement.header.untied and not plan.untied else measurement
    return {
        name: way.curves[name].share(choice.format, plan.rounding)
        for name, choice in plan.sites.items()
        if choice.format is not None
    }


def alignment_of(along: np.ndarray) -> float:
    """The ratio of joint to separate squares, drawn towards 1 by what the sample can tell.

    Errors of random signs would have it scatter around 1 with the variance 2 Σ_{v≠w} C_vw² / (Σ_v C_vv)², where
    C = E[a aᵀ] of a_v = g_v · δ_v: that of χ²_r / r with r directions. Both sums are estimated without bias from
    products of different samples.

    Args:
        along: (sites, samples).
    """
    count = along.shape[1]
    gram, squares = along.T @ along, np.square(along).T @ np.square(along)
    total = float(np.trace(gram)) / count
    if count < 2 or total <= 0:
        return 1.0
    pairs = count * (count - 1)
    everything = (np.square(gram).sum() - np.square(np.diag(gram)).sum()) / pairs
    alone = (squares.sum() - np.trace(squares)) / pairs
    shared = max(everything - alone, 0.0) / total**2
    if shared < 1e-9:
        return 1.0
    unequal = np.square(np.diag(gram)).mean() / total**2 / (1 + 2 * everything / total**2)
    gradients = count / max(unequal, 1.0)
    ratio = max(_ratio(along), 1e-9)
    return float(shrunk(*(torch.tensor(each, dtype=torch.float64) for each in (ratio, 1 / shared, gradients))))


def _squares(along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(samples,) of the sum over sites, and the sum over sites of the squares."""
    return np.square(along.sum(0)), np.square(along).sum(0)


def _ratio(along: np.ndarray) -> float:
    together, apart = _squares(along)
    return float(together.sum() / apart.sum()) if apart.any() else 1.0


def _curve(x: float) -> float:
    """(1 - e^-x) / x."""
    return -math.expm1(-x) / x if abs(x) > 1e-9 else 1 - x / 2


def _bend(ratio: float) -> float:
    """The x at which the link's value over that of a quarter of the joint is this; by bisection."""
    low, high = -STEEPEST, STEEPEST
    for _ in range(100):
        middle = (low + high) / 2
        if 4 * _curve(middle) / _curve(middle / 4) > ratio:
            low = middle
        else:
            high = middle
    return (low + high) / 2
