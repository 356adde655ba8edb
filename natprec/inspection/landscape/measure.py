"""Measures a network: b* of weights by natprec's own sweep, of what flows by one more way back, and the verdicts.

Each seed has images, noise and random signs of its own. Bits are of all seeds together; a verdict is what the seeds
agree on, and each seed's own stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from natprec.distortions import OUTPUT
from natprec.errors import BudgetError
from natprec.formats import CHANNEL
from natprec.inspection.landscape.bits import Bits, larger, middle, of_layers
from natprec.inspection.landscape.claims import agreed, direction, judged, verdict
from natprec.inspection.landscape.flows import Flow, checked, exactly, flow_curves
from natprec.inspection.landscape.networks import CHANNEL as BY_CHANNEL
from natprec.inspection.landscape.networks import Network, Place
from natprec.measurement import Curve, Measurement
from natprec.pipeline.api import measure
from natprec.solver.choices import UNQUANTIZED_BITS
from natprec.tasks import Samples
from natprec.utils.progress import Stages

TOLERANCES = (30, 40, 50)
"""dB: of the peak over the root of the mean squared error of the output."""

FLOW_WIDTHS = tuple(range(2, 11))
DRAWS = 2
CHECKS = 6
"""Flows of a network whose estimate is compared with the exact value."""


@dataclass
class Found:
    """What was measured of a network.

    Attributes:
        weights: layer → (seeds, images, widths) distortion; `widths` of them, and `formats`: their names.
        flows: the same of what flows.
        peak: of the outputs.
        planned: tolerance → layer → bits, of the plan of fewest bytes whose weights keep it all together; of one seed.
        checks: of estimates of flows: layer, bits, estimate, exact; `checks_of_weights`: site, format, the two.
    """

    network: Network
    seeds: tuple[int, ...]
    peak: float = 1.0
    widths: tuple[int, ...] = ()
    formats: tuple[str, ...] = ()
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    flows: dict[Flow, np.ndarray] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    checks_of_weights: list[tuple[str, str, float, float]] = field(default_factory=list)
    planned: dict[float, dict[str, int]] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0


def measured(network: Network, seeds: Sequence[int], stages: Stages | None = None) -> Found:
    """Curves of all places."""
    stages = stages or Stages(quiet=True)
    start, found = time.perf_counter(), Found(network, tuple(seeds))
    weights: dict[str, list[np.ndarray]] = {}
    flows: dict[Flow, list[np.ndarray]] = {}
    with stages.stage(network.name, 3 * len(seeds)) as advance:
        for seed in seeds:
            samples = network.samples(seed)
            found.images = len(samples)
            if seed == seeds[0]:
                found.peak = network.peak if network.peak is not None else _peak(network, samples)
            measurement = measure(network.module, samples=samples, seed=seed, group_size=CHANNEL)
            if seed == seeds[0]:
                found.planned = {each: _planned(measurement, tolerance_of(found, each)) for each in TOLERANCES}
            found.checks_of_weights += measurement.header.checks
            for place in network.places:
                for layer in place.layers if place.weighs else ():
                    curve = measurement.curves[layer]
                    found.widths, found.formats, values = _by_width(curve)
                    weights.setdefault(layer, []).append(values)
            advance(f"weights, seed {seed}")
            for flow, values in _flows(network, samples, seed).items():
                flows.setdefault(flow, []).append(values)
            advance(f"activations, seed {seed}")
            if seed == seeds[0]:
                found.checks = _checks(found, samples, {flow: several[0] for flow, several in flows.items()})
            advance(f"checks, seed {seed}")
    found.weights = {layer: np.stack(several) for layer, several in weights.items()}
    found.flows = {flow: np.stack(several) for flow, several in flows.items()}
    found.seconds = time.perf_counter() - start
    return found


def _planned(measurement: Measurement, tolerance: float) -> dict[str, int]:
    """Layer → bits in the plan for a tolerance; empty where not even the widest formats keep it."""
    try:
        plan = measurement.solve(eps=tolerance, margin=0.0)
    except BudgetError:
        return {}
    return {name: UNQUANTIZED_BITS if each.format is None else each.format.bits for name, each in plan.sites.items()}


def _by_width(curve: Curve) -> tuple[tuple[int, ...], tuple[str, ...], np.ndarray]:
    """Widths, a format's name for each, and (images, widths) distortion; of formats of one width the best."""
    best: dict[int, Any] = {}
    for fmt, value in zip(curve.formats, curve.kl(), strict=True):
        if fmt.bits not in best or value < best[fmt.bits][0]:
            best[fmt.bits] = value, fmt
    chosen = [best[bits][1] for bits in sorted(best)]
    values = np.stack([curve.samples(fmt) for fmt in chosen], axis=1)
    return tuple(sorted(best)), tuple(fmt.name for fmt in chosen), values


def _flows(network: Network, samples: Samples, seed: int) -> dict[Flow, np.ndarray]:
    """Latents exactly, since they are few; all else by the estimate."""
    few = [_flow(place, layer) for place in network.places for layer in place.layers if not place.weighs]
    many = [_flow(place, layer) for place in network.places for layer in place.layers if place.weighs]
    found = {flow: exactly(network.module, samples, flow, FLOW_WIDTHS, OUTPUT) for flow in few}
    estimated = flow_curves(network.module, samples, many, FLOW_WIDTHS, OUTPUT, draws=DRAWS, seed=seed)
    return found | estimated


def _flow(place: Place, layer: str) -> Flow:
    return layer, place.grid == BY_CHANNEL


def _checks(found: Found, samples: Samples, flows: dict[Flow, np.ndarray]) -> list[dict[str, Any]]:
    """Some flows, spread over the depth, each at the width that 40 dB asks for."""
    network, middle_one = found.network, tolerance_of(found, TOLERANCES[1])
    many = [_flow(place, layer) for place in network.places for layer in place.layers if place.weighs]
    spread = [many[(2 * at + 1) * len(many) // (2 * CHECKS)] for at in range(min(CHECKS, len(many)))]
    chosen = []
    for flow in dict.fromkeys(spread):
        wide = [bits for bits, value in zip(FLOW_WIDTHS, flows[flow].mean(0), strict=True) if value <= middle_one]
        chosen.append((flow, wide[0] if wide else FLOW_WIDTHS[-1]))
    return checked(network.module, samples, flows, chosen, FLOW_WIDTHS, OUTPUT)


@torch.no_grad()
def _peak(network: Network, samples: Samples) -> float:
    """Largest minus smallest value of the outputs."""
    values = network.module(**samples.tensors)
    return float(values.max() - values.min())


def tolerance_of(found: Found, decibels: float) -> float:
    """Mean squared error that this many dB below the peak allow."""
    return found.peak**2 * 10.0 ** (-decibels / 10)


@dataclass(frozen=True)
class Row:
    """A place and what was found there, at each of `TOLERANCES`.

    Attributes:
        planned: mean bits of its weights in the plan for the whole network; None where there is no such plan.
    """

    network: str
    place: Place
    weights: list[Bits] | None
    activations: list[Bits]
    at: dict[float, str]
    verdict: str
    by_seed: list[str]
    planned: list[float | None] | None

    @property
    def needs(self) -> list[Bits]:
        """The larger of both."""
        return _needs(self.weights, self.activations)


def rows(found: Found) -> list[Row]:
    """One for each place, by depth."""
    made = []
    for place in found.network.places:
        weights, activations = _bits(found, place, None)
        alone = [_judged(place, _needs(*_bits(found, place, number))) for number in range(len(found.seeds))]
        at = agreed([each for each, _ in alone])
        planned = [_mean_of(found.planned[each], place) for each in TOLERANCES] if place.weighs else None
        words = [word for _, word in alone]
        name = found.network.name
        made.append(Row(name, place, weights, activations, at, verdict(list(at.values())), words, planned))
    return made


def _mean_of(planned: dict[str, int], place: Place) -> float | None:
    return float(np.mean([planned[layer] for layer in place.layers])) if planned else None


def _judged(place: Place, needs: list[Bits]) -> tuple[dict[float, str], str]:
    return judged(place.claim, {each: bits.interval for each, bits in zip(TOLERANCES, needs, strict=True)})


def _needs(weights: list[Bits] | None, activations: list[Bits]) -> list[Bits]:
    if weights is None:
        return activations
    return [larger(*both) for both in zip(weights, activations, strict=True)]


def _bits(found: Found, place: Place, number: int | None) -> tuple[list[Bits] | None, list[Bits]]:
    """Bits of weights and of activations: of all seeds together, or of the seed of this number."""
    limits = [tolerance_of(found, each) for each in TOLERANCES]

    def of(curves: list[np.ndarray], widths: Sequence[int]) -> list[Bits]:
        chosen = [curve.reshape(-1, curve.shape[-1]) if number is None else curve[number] for curve in curves]
        return of_layers(chosen, widths, limits, found.seeds[0])

    weights = of([found.weights[layer] for layer in place.layers], found.widths) if place.weighs else None
    return weights, of([found.flows[_flow(place, layer)] for layer in place.layers], FLOW_WIDTHS)


def shapes(found: Found, made: Sequence[Row]) -> list[dict[str, Any]]:
    """What T19 claims of the shape, whatever the bits: a fall, a rise, and where the least is."""
    network, needs = found.network, {row.place.name: row.needs for row in made}
    wanted: list[tuple[str, list[tuple[str, str]]]] = []
    if network.falls:
        first, last = network.falls
        wanted.append((f"bits fall from '{first}' to '{last}'", [(first, last)]))
    if network.falls and network.rises and network.lowest:
        early, late, least = network.falls[0], network.rises[1], network.lowest
        wanted.append((f"'{least}' needs fewer bits than '{early}' and '{late}'", [(early, least), (late, least)]))
    if network.rises:
        first, last = network.rises
        wanted.append((f"bits rise from '{first}' to '{last}'", [(last, first)]))
    return [
        _shape(network.name, claim, [(needs[one], needs[other]) for one, other in pairs]) for claim, pairs in wanted
    ]


def _shape(network: str, claim: str, pairs: list[tuple[list[Bits], list[Bits]]]) -> dict[str, Any]:
    """The least of some differences that are claimed to be above 0."""
    by_tolerance, at = {}, []
    for number, decibels in enumerate(TOLERANCES):
        least = min(one[number].mean - other[number].mean for one, other in pairs)
        draws = np.min([one[number].draws - other[number].draws for one, other in pairs], axis=0)
        low, high = middle(draws, pairs[0][0][number].images)
        by_tolerance[str(decibels)] = {"bits": least, "low": low, "high": high}
        at.append(direction(low, high))
    return {"network": network, "claim": claim, "difference": by_tolerance, "verdict": verdict(at)}
