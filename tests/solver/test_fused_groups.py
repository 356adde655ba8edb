"""Pairs of weights and inputs: which exist, what they cost, what a gradient's tolerance leaves of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from natprec.errors import BudgetError, InputError
from natprec.formats import CHANNEL, Format, activation, engine_profile, integer
from natprec.measurement import Curve, Measurement
from natprec.models.weight_sites import Site
from natprec.solver import Plan
from natprec.solver.site_costs import backward_bits
from tests.arrange import curve, measurement

WEIGHTS = [*(integer(bits, 64) for bits in range(2, 9)), integer(8, CHANNEL)]
INPUTS = [activation(bits) for bits in (3, 4, 5, 6, 7, 8)]


def falling(first: float, bits: list[Any]) -> list[float]:
    return [first * 4.0 ** -(fmt.bits - 2) for fmt in bits]


def input_curve(fused_group: str, kl: list[float]) -> Curve:
    site = Site(f"{fused_group}:input", "activation", "linear", (1, 128), (fused_group,), fused_group, 0)
    forward = np.tile(np.asarray(kl), (1, 4, 1))
    ones = np.ones(len(kl))
    return Curve(site, tuple(INPUTS), forward, forward[0] / 2, np.ones(4), ones, np.zeros((1, 4)), ones)


def three_layers(hardest: float = 30.0) -> Measurement:
    curves = []
    for index, (weight, flowing) in enumerate([(0.2, 0.1), (0.4, hardest), (0.1, 0.02)]):
        name = f"layer{index}"
        curves.append(curve(name, falling(weight, WEIGHTS), WEIGHTS))
        curves.append(input_curve(name, falling(flowing, INPUTS)))
    return measurement(curves, sites="all")


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("vllm", [{"0.0.up", "0.0.down", "0.1.up", "0.1.down"}, {"1.0.up", "1.0.down", "1.1.up", "1.1.down"}]),
        ("transformers", [{f"{n}.{e}.{leaf}" for n in (0, 1) for e in (0, 1) for leaf in ("up", "down")}]),
        ("natprec", [{f"{n}.{e}.{leaf}"} for n in (0, 1) for e in (0, 1) for leaf in ("up", "down")]),
    ],
)
def test_experts_that_an_engine_runs_together_are_one_fused_group(engine: str, expected: list[set[str]]) -> None:
    curves = []
    for number, (layer, expert, leaf) in enumerate(itertools.product((0, 1), (0, 1), ("up", "down"))):
        made = curve(f"{layer}.{expert}.{leaf}", falling(0.1 * 8.0**number, WEIGHTS), WEIGHTS)
        curves.append(replace(made, site=replace(made.site, experts=str(layer)), tokens=500))
    plan = measurement([*curves, curve("dense", falling(1.0, WEIGHTS), WEIGHTS)]).solve(bits=5, engine=engine)
    fused_groups: dict[str, set[str]] = {}
    for name, choice in plan.sites.items():
        fused_groups.setdefault(choice.fused_group, set()).add(name)
    assert sorted(map(sorted, fused_groups.values())) == sorted(map(sorted, [*expected, {"dense"}]))
    for members in fused_groups.values():
        assert len({plan.sites[name].format for name in members}) == 1


def test_only_pairs_of_the_engine() -> None:
    profile = engine_profile("vllm")
    a8, a4 = activation(8), activation(4)
    assert profile.multiplies(integer(3, 64), a8)
    assert not profile.multiplies(integer(8, 64), a8), "CUTLASS wants weights per channel"
    assert profile.multiplies(integer(8, CHANNEL), a8)
    assert not profile.multiplies(integer(4, 64), a4), "Humming: W <= A, and 4 bits are Marlin's"
    assert not profile.multiplies(integer(3, 64), activation(8, 64))
    plan = three_layers().solve(eps=0.5, activations="8")
    assert {choice.bits for choice in plan.inputs.values()} == {8}
    for name, choice in plan.sites.items():
        fmt = plan.inputs[name].format
        assert choice.format is not None
        assert fmt is not None
        assert profile.multiplies(choice.format, fmt)


def test_rounded_inputs_are_part_of_the_tolerance() -> None:
    plain = three_layers().solve(eps=0.055)
    plan = three_layers().solve(eps=0.055, activations="8")
    assert plan.kl_predicted <= 0.055
    sums = sum(choice.kl for choice in plan.sites.values()) + sum(choice.kl for choice in plan.inputs.values())
    assert plan.kl_predicted == pytest.approx(sums)
    assert plan.bits_per_weight > plain.bits_per_weight
    assert not plain.inputs


def test_auto_meets_brute_force() -> None:
    """Fewest bits of both operands per multiply-add; the staircase is off by less than its last step."""
    made, eps = three_layers(hardest=3000.0), 0.3
    plan = made.solve(eps=eps, activations="auto", eps_solved=eps)
    profile = engine_profile("vllm")
    options = []
    for index in range(3):
        weights, inputs = made.curves[f"layer{index}"], made.curves[f"layer{index}:input"]
        own = []
        for fmt, kl in zip(weights.formats, weights.kl("gptq"), strict=True):
            assert isinstance(fmt, Format)
            bits = 8 * fmt.stored_bytes(64, 128) / (64 * 128)
            own.append((bits + 16, kl))
            own += [
                (bits + flow.bits, kl + cost)
                for flow, cost in zip(inputs.formats, inputs.kl("gptq"), strict=True)
                if isinstance(flow, Format) and profile.multiplies(fmt, flow)
            ]
        options.append(own)
    best = min(sum(p[0] for p in picked) for picked in itertools.product(*options) if sum(p[1] for p in picked) <= eps)
    found = sum(
        8 * choice.stored_bytes / choice.elements + plan.inputs[name].bits for name, choice in plan.sites.items()
    )
    assert best <= found <= best + 2
    assert plan.inputs["layer1"].bits == 16, "its input does not bear rounding"


def test_the_larger_width_wins() -> None:
    made = measurement([curve("a", falling(0.1, WEIGHTS), WEIGHTS)])
    own = made.curves["a"]
    lost = own.backward.mean(0) / own.energy.mean()
    plain = made.solve(eps=0.2)
    plan = made.solve(eps=0.2, eps_bwd=float(lost[3]))  # what 5 bits lose
    assert plain.sites["a"].to_json()["bits"] == 2
    assert plan.sites["a"].to_json()["bits"] == 5 == backward_bits(own, float(lost[3]))
    value = plan.sites["a"].to_json()
    assert value["dual_bits"] == max(value["natural_bits"], value["backward_bits"])


def test_what_cannot_be_solved_says_why() -> None:
    made = three_layers()
    with pytest.raises(InputError, match=r"activations '6': engine 'vllm' multiplies with 4, 8, 16 bits"):
        made.solve(eps=0.1, activations="6")
    with pytest.raises(InputError, match=r"kv '4': engine 'vllm' keeps keys and values at 8, 16 bits"):
        made.solve(eps=0.1, kv="4")
    with pytest.raises(
        InputError, match=r"'layer0:input' was measured with the scales of kernels.*--engine transformers"
    ):
        made.solve(eps=0.1, activations="8", engine="transformers")
    with pytest.raises(InputError, match="were not found"):
        made.solve(eps=0.1, kv="8")
    with pytest.raises(InputError, match="with a size give their bits"):
        made.solve(bits=4, activations="auto")
    with pytest.raises(InputError, match="measure again with --sites all"):
        measurement([curve("a", falling(0.1, WEIGHTS), WEIGHTS)]).solve(eps=0.1, activations="8")
    with pytest.raises(BudgetError, match="eps-bwd 1e-09 is below"):
        made.solve(eps=0.1, eps_bwd=1e-9)
    with pytest.raises(InputError, match="eps-bwd"):
        made.solve(eps=0.1, eps_bwd=-1.0)


def test_a_plan_with_inputs_is_read_back(tmp_path: Any) -> None:
    plan = three_layers().solve(eps=0.3, activations="auto", eps_bwd=0.05)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
