"""The problem that a measurement poses for an engine: decisions, their staircase, and what no decision changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from natprec.costs import costs_for
from natprec.costs.choose import BYTES
from natprec.errors import BudgetError, InputError
from natprec.formats import EngineProfile, engine_profile
from natprec.formats.offers import OFFERS
from natprec.roundings import rounding_named
from natprec.solver.allocation import Decision, Staircase, staircase
from natprec.solver.cache import cache_of
from natprec.solver.check_flows import check_flows
from natprec.solver.choices import CacheChoice
from natprec.solver.fused_groups import FusedGroup, groups_of
from natprec.solver.heads import head_tied
from natprec.solver.objective import Objective
from natprec.solver.site_costs import named_bytes

if TYPE_CHECKING:
    from natprec.measurement import Measurement


@dataclass(frozen=True)
class Problem:
    """The problem that all targets of one measurement share.

    Attributes:
        unquantized: weights that stay at 16 bits.
        lost: distortion of those, and of keys and values; `fixed`: bytes of a checkpoint that no pair changes.
    """

    profile: EngineProfile
    rounding: str
    groups: list[FusedGroup]
    decisions: list[Decision]
    stairs: Staircase
    unquantized: list[str]
    cache: CacheChoice | None
    lost: float
    fixed: int
    objective: Objective


def opened(
    measurement: Measurement,
    engine: str | None,
    rounding: str | None,
    activations: str,
    kv: str,
    eps_bwd: float | None,
    gpu: str | None = None,
    untested: bool = False,
    portable: bool = False,
    apart: bool = False,
    minimize: str = BYTES,
    costs: str | Path | None = None,
) -> Problem:
    """The problem that a measurement poses for an engine.

    Args:
        apart: leave a tied output head that was measured apart a site of its own; else it is tied again.
    Raises:
        InputError: options that do not go with the measurement.
        BudgetError: the engine runs none of its formats.
    """
    profile = profile_of(measurement, engine, gpu, untested, portable, minimize)
    check_flows(profile, activations, kv)
    rounding = rounding_of(measurement, rounding)
    way = head_tied(measurement) if measurement.header.untied and not apart else measurement
    objective = objective_of(minimize, costs, profile, gpu)
    return problem_of(way, profile, rounding, activations, kv, eps_bwd, objective)


def problem_of(
    measurement: Measurement,
    profile: EngineProfile,
    rounding: str,
    activations: str,
    kv: str,
    eps_bwd: float | None,
    objective: Objective,
) -> Problem:
    """What a profile, already looked up, makes of a measurement: see `opened`."""
    groups, decisions, stairs = _prepared(measurement, profile, rounding, activations, eps_bwd, objective)
    if not decisions:
        raise BudgetError(
            f"engine {profile.name!r} runs none of the measured formats; measure with --engine {profile.name}"
        )
    decided = {curve.site.name for group in groups for curve in group.curves}
    unquantized = [name for name in measurement.weights if name not in decided]
    cache = cache_of(measurement, profile, rounding, kv)
    lost = cache.kl if cache else 0.0
    lost += sum(measurement.curves[name].unquantized_kl for name in unquantized)  # by storing them in 16 bits
    fixed = measurement.header.other_bytes + measurement.header.carried_bytes
    fixed += sum(2 * measurement.curves[name].site.elements for name in unquantized)
    fixed += named_bytes(measurement, profile) + (cache.scale_bytes if cache else 0)
    return Problem(profile, rounding, groups, decisions, stairs, unquantized, cache, lost, fixed, objective)


@lru_cache(maxsize=4)
def _prepared(
    measurement: Measurement,
    profile: EngineProfile,
    rounding: str,
    activations: str,
    eps_bwd: float | None,
    objective: Objective,
) -> tuple[list[FusedGroup], list[Decision], Staircase]:
    """What every target solves on; many targets come from one measurement."""
    groups = groups_of(measurement, profile, rounding, activations, eps_bwd, objective)
    decisions = [group.decision for group in groups]
    return groups, decisions, staircase(decisions)


def objective_of(minimize: str, costs: str | Path | None, profile: EngineProfile, gpu: str | None) -> Objective:
    """What is minimised; the GPU's own name, if it was given, tells its kernels or peaks apart."""
    found = costs_for(minimize, profile.name, gpu or profile.gpu, None if costs is None else Path(costs))
    return Objective(minimize, found)


def rounding_of(measurement: Measurement, rounding: str | None) -> str:
    """The one that is asked for, or that was measured for."""
    rounding = measurement.header.rounding if rounding is None else rounding
    if rounding_named(rounding).compensates and not rounding_named(measurement.header.rounding).compensates:
        raise InputError(
            f"rounding {rounding!r} was not measured; measure with --rounding {rounding}, or solve for rtn"
        )
    return rounding


def profile_of(
    measurement: Measurement, engine: str | None, gpu: str | None, untested: bool, portable: bool, minimize: str
) -> EngineProfile:
    """The one that is asked for, or that was measured for."""
    header = measurement.header
    engine_asked = header.engine if engine is None else engine
    if minimize != BYTES and engine_asked not in OFFERS:
        gpu = None  # of costs alone: formats do not depend on it
    if gpu is None and header.gpu is not None and engine in (None, header.engine):
        return engine_profile(header.engine, header.gpu, header.untested or untested, header.portable or portable)
    return engine_profile(engine_asked, gpu, untested, portable)
