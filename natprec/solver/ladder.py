"""The cost of each usual tolerance, from one measurement: the rungs between which a user chooses."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natprec.config import NOT_ROUNDED
from natprec.costs.choose import BYTES
from natprec.errors import BudgetError
from natprec.solver.objective import PlanCost
from natprec.solver.pareto import dominated, priced
from natprec.solver.plan import Plan
from natprec.solver.problem import opened
from natprec.solver.solve import solve
from natprec.solver.uniform import uniform_sums

if TYPE_CHECKING:
    from natprec.measurement import Measurement

EPSILONS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001)


@dataclass(frozen=True)
class Rung:
    """A tolerance and what it costs.

    Attributes:
        bits: per quantized weight, scales included; `bits_total`: over all weights.
        stored_bytes: forecast of the checkpoint; `stored_fraction`: of the 16-bit one.
        perplexity_increase: exp(kl_predicted) - 1, which is that on text that the model itself writes; None where the
            distortion is not the KL.
        minimize: what its plan is the least of.
        cost…: as in a plan, by the ladder's objective, whatever this rung's plan is the least of.
        dominated: whether another rung is no worse in distortion, bytes and cost, and better in one.
        like: the format that costs about as much if every Linear has it, with `like_kl` and `like_bytes`.
    """

    eps: float
    bits: float
    bits_total: float
    stored_bytes: int
    stored_fraction: float
    kl_predicted: float
    kl_predicted_ci95: tuple[float, float]
    perplexity_increase: float | None
    like: str | None
    like_kl: float | None
    like_bytes: int | None
    minimize: str = BYTES
    cost: float | None = None
    cost_error: float | None = None
    cost_unit: str = BYTES
    cost_source: str = "counted"
    dominated: bool = False


def ladder(
    measurement: Measurement,
    *,
    engine: str | None = None,
    rounding: str | None = None,
    margin: float | None = None,
    activations: str = NOT_ROUNDED,
    kv: str = NOT_ROUNDED,
    eps_bwd: float | None = None,
    gpu: str | None = None,
    untested: bool = False,
    portable: bool = False,
    minimize: str = BYTES,
    costs: str | Path | None = None,
) -> list[Rung]:
    """A rung for each usual tolerance that the measured formats reach, from the coarsest; no two of one plan.

    With another cost than bytes each tolerance has two rungs: the plan of least cost, and the one of fewest bytes.

    Raises:
        InputError: options that do not go with the measurement.
        BudgetError: no tolerance is reached.
    """
    shared: dict[str, Any] = {
        "engine": engine, "rounding": rounding, "activations": activations, "kv": kv, "eps_bwd": eps_bwd, "gpu": gpu,
        "untested": untested, "portable": portable,
    }  # fmt: skip
    problem = opened(measurement, **shared)
    objective = opened(measurement, **shared, minimize=minimize, costs=costs).objective
    sums = uniform_sums(problem.decisions, [group.pairs for group in problem.groups], problem.stairs.start)
    uniform = {pair.name: (problem.lost + kl, problem.fixed + round(stored)) for pair, (kl, stored) in sums.items()}
    rungs: list[Rung] = []
    refused: BudgetError | None = None
    for wanted in dict.fromkeys((minimize, BYTES)):
        own: list[Rung] = []
        for eps in EPSILONS:
            try:
                plan = solve(
                    measurement, eps, margin=margin, **shared, minimize=wanted, costs=costs if wanted != BYTES else None
                )
            except BudgetError as error:
                refused = error
                continue
            found = _rung(eps, plan, uniform, priced(measurement, plan, objective), wanted)
            if own and (own[-1].stored_bytes, own[-1].cost) == (found.stored_bytes, found.cost):
                own.pop()  # the tighter tolerance is kept by the same plan
            own.append(found)
        rungs += own
    if not rungs and refused is not None:
        raise refused
    beaten = dominated([(rung.kl_predicted, rung.stored_bytes, rung.cost or 0.0) for rung in rungs])
    rungs = [replace(rung, dominated=each) for rung, each in zip(rungs, beaten, strict=True)]
    return sorted(rungs, key=lambda rung: -rung.eps) if minimize != BYTES else rungs


def _rung(eps: float, plan: Plan, uniform: dict[str, tuple[float, int]], cost: PlanCost, wanted: str) -> Rung:
    near = _nearest(uniform, plan.kl_predicted)
    like_kl, like_bytes = uniform[near] if near else (None, None)
    ratio = None
    if plan.distortion == "kl":
        with contextlib.suppress(OverflowError):
            ratio = math.expm1(plan.kl_predicted)
    return Rung(
        eps, plan.bits_per_weight, plan.bits_per_weight_total, plan.stored_bytes,
        plan.stored_bytes / plan.stored_bytes_reference, plan.kl_predicted, plan.kl_predicted_ci95, ratio, near,
        like_kl, like_bytes, wanted, cost.cost, cost.cost_error, cost.cost_unit, cost.cost_source,
    )  # fmt: skip


def _nearest(uniform: dict[str, tuple[float, int]], kl: float) -> str | None:
    """The format whose KL is nearest in proportion; None where none is within a factor of 2."""
    ratios = {name: abs(math.log(found / kl)) for name, (found, _) in uniform.items() if found > 0 and kl > 0}
    near = min(ratios, key=lambda name: ratios[name], default=None)
    return near if near is not None and ratios[near] <= math.log(2) else None
