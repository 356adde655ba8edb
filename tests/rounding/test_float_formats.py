"""Floating-point formats through the whole flow: measured, solved, rounded by every rounding; inputs and cache too."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.formats import engines
from natprec.formats.engines import EngineProfile
from natprec.formats.patterns import Integers, Listed, Pairing
from natprec.formats.presets import FLOAT_ACTIVATIONS, FLOAT_WEIGHTS
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import site_weight
from natprec.quantizers import quantize
from natprec.rounding.flows import flows_rounded
from natprec.solver import Plan
from natprec.solver.choices import InputChoice
from tests.arrange import apply_plan, subject, tokens

IDS = tokens(8, 32)


class Floats(Listed):
    """What the solver asks of a pairing's patterns."""

    granularities = ()

    @property
    def bits(self) -> tuple[int, ...]:
        return tuple(fmt.bits for fmt in self.formats)


WEIGHTS = Floats(tuple(FLOAT_WEIGHTS.values()))
CACHE = Listed((FLOAT_ACTIVATIONS["fp8-head"], FLOAT_ACTIVATIONS["fp8-tensor"]))
INPUTS = Floats(tuple(FLOAT_ACTIVATIONS.values()))


def floating(profile: EngineProfile) -> EngineProfile:
    """An engine that runs all floats beside integers of 4 and 8 bits."""
    both = (Integers((4, 8)), WEIGHTS)
    return replace(
        profile,
        formats={"linear": both, "head": both, "embedding": both, "cache": (CACHE,)},
        pairings=(Pairing(WEIGHTS, INPUTS),),  # type: ignore[arg-type]
    )


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.PROFILES, "natprec", floating(engines.PROFILES["natprec"]))


def measured(sites: str = "weights", rounding: str = "gptq", **changes: Any) -> tuple[Subject, Measurement]:
    made, ids = subject(**changes), tokens(8, 16, seed=9)
    return made, measure(made, ids, engine="natprec", group_size=32, sites=sites, rounding=rounding)


@functools.cache
def any_plan() -> Plan:
    """One of `subject()`, which is always the same model."""
    return measured(rounding="rtn")[1].solve(bits=8)


def uniform(name: str) -> Plan:
    """The same format everywhere."""
    sites = {site: replace(choice, format=FLOAT_WEIGHTS[name]) for site, choice in any_plan().sites.items()}
    return replace(any_plan(), sites=sites)


def applied(made: Subject, plan: Plan, rounding: str) -> Any:
    return apply_plan(
        made.segmented, made.sites, plan, IDS, rounding, made.storage_dtype, gauges=made.gauges
    )  # fmt: skip


def test_all_formats_are_measured_and_solved(tmp_path: Path) -> None:
    _, found = measured(hidden_size=128, intermediate_size=128)
    names = {fmt.name for fmt in found.curves["model.layers.0.mlp.up_proj"].formats}
    assert names == {*FLOAT_WEIGHTS, "int4-g32", "int8-g32"}
    for curve in found.curves.values():
        kl = dict(zip((fmt.name for fmt in curve.formats), curve.forward.mean((0, 1)), strict=True))
        assert 0 < max(kl["mxfp8"], kl["mxfp6"]) < kl["mxfp4"]
        assert kl["fp8-channel"] < kl["nvfp4"] < kl["mxfp4"]
        assert curve.shares.min() > 0
    plan = found.solve(bits=6)
    formats = {choice.format.name for choice in plan.sites.values() if choice.format}
    assert formats & set(FLOAT_WEIGHTS)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("name", list(FLOAT_WEIGHTS))
@pytest.mark.parametrize("rounding", ["rtn", "gptq", "yaqa", "learned"])
def test_every_rounding_gives_codes_of_the_format(name: str, rounding: str) -> None:
    made, fmt, plan = subject(), FLOAT_WEIGHTS[name], uniform(name)
    weights = {site.name: site_weight(made.model, site).clone() for site in made.sites}
    result = applied(made, plan, rounding)
    for site in made.sites:
        value = result[site.name]
        assert value.format == fmt
        assert value.codes.dtype == torch.uint8
        again = fmt.codebook.encode(fmt.codebook.decode(value.codes))
        assert torch.equal(again & (2 ** (fmt.bits - 1) - 1), value.codes & (2 ** (fmt.bits - 1) - 1))
        assert torch.equal(site_weight(made.model, site), value.dequantize())
        if rounding == "rtn" and name != "nvfp4":  # its outer scale is that of fused weights
            assert torch.equal(value.codes, quantize(weights[site.name], fmt, made.storage_dtype).codes)


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_fused_weights_have_one_outer_scale(rounding: str) -> None:
    made = subject()
    with torch.no_grad():
        made.model.model.layers[0].self_attn.q_proj.weight.mul_(3)
    weights = {site.name: site_weight(made.model, site).abs().max() for site in made.sites}
    result = applied(made, uniform("nvfp4"), rounding)
    prefix = "model.layers.0.self_attn."
    outer = [result[f"{prefix}{name}_proj"].outer for name in "qkv"]
    assert outer[0] is not None
    assert all(torch.equal(outer[0], each) for each in outer)  # type: ignore[arg-type]
    torch.testing.assert_close(outer[0], weights[prefix + "q_proj"] / (448 * 6))
    assert not torch.equal(outer[0], result[f"{prefix}o_proj"].outer)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fp8-tensor", "fp8-token", "fp8-g128", "nvfp4", "mxfp4", "mxfp8"])
def test_inputs_are_measured_and_rounded(name: str, tmp_path: Path) -> None:
    """What is predicted of rounding inputs is what rounding them costs, and a fixed scale goes with the plan."""
    sizes = {"hidden_size": 128, "intermediate_size": 128} if name == "fp8-g128" else {}
    made, found = measured("all", "rtn", **sizes)
    fmt = FLOAT_ACTIVATIONS[name]
    inputs = [curve for curve in found.curves.values() if curve.site.name.endswith(":input")]
    assert all(fmt in curve.formats for curve in inputs)
    predicted = sum(float(curve.kl("rtn")[curve.formats.index(fmt)]) for curve in inputs)
    plan = found.solve(bits=16)
    chosen = {
        curve.site.fused_group: InputChoice(fmt, None, 0.0, largest=curve.largest[0] if fmt.fixed else None)
        for curve in inputs
    }
    sites = {site: replace(choice, format=FLOAT_WEIGHTS["fp8-channel"]) for site, choice in plan.sites.items()}
    plan = replace(plan, sites=sites, inputs=chosen)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    ids = tokens(16, 16, seed=9)
    with torch.no_grad():
        before = made.segmented.output(ids)
        with flows_rounded(made.model, made.activations, plan):
            after = made.segmented.output(ids)
    got = float(made.segmented.distortion.between(before, after, ids).mean())
    assert 0.5 < got / predicted < 2


def test_gradients_are_rounded_in_floats_too() -> None:
    """T3 and T4: the backward curve of a float format is relative, and `eps_bwd` keeps what loses too much out."""
    _, found = measured(rounding="rtn")
    for curve in found.weights.values():
        lost = dict(zip((fmt.name for fmt in curve.formats), curve.backward.mean(0) / curve.energy.mean(), strict=True))
        assert 2e-4 < lost["fp8-channel"] < 2e-3  # a mantissa of 3 bits: (2⁻⁴)² / 3 of the energy, or less
        assert max(lost["fp8-channel"], lost["mxfp6"]) < lost["nvfp4"] < lost["mxfp4"] < 0.05
    free, kept = found.solve(bits=5), found.solve(bits=9, eps_bwd=0.002)
    assert min(choice.format.bits for choice in free.sites.values() if choice.format) == 4
    assert min(choice.format.bits for choice in kept.sites.values() if choice.format) == 8


def test_a_cache_has_a_scale_for_each_head(tmp_path: Path) -> None:
    """Of heads whose values differ in size; a plan keeps what each reaches, and the file says what is predicted."""
    made = subject()
    with torch.no_grad():
        for layer in made.model.model.layers:
            layer.self_attn.v_proj.weight[: layer.self_attn.head_dim] *= 2.0**-12
            layer.self_attn.o_proj.weight[:, : 2 * layer.self_attn.head_dim] *= 2.0**12
    made = Subject.in_memory(made.model, None, "small")
    ids = tokens(8, 16, seed=9)
    found = measure(made, ids, engine="natprec", group_size=32, sites="all", rounding="rtn")
    found.save(tmp_path / "measured.safetensors")
    found = Measurement.load(tmp_path / "measured.safetensors")
    values = [curve for name, curve in found.curves.items() if name.endswith(":value")]
    costs = [curve.kl("rtn")[curve.formats.index(fmt)] for curve in values for fmt in CACHE.formats]
    assert all(head < tensor for head, tensor in zip(costs[::2], costs[1::2], strict=True))
    assert all(len(curve.by_head[0]) == 2 and max(curve.by_head[0]) == curve.largest[0] for curve in values)  # type: ignore
    plan = found.solve(bits=9, kv="8")
    assert plan.cache is not None
    assert plan.cache.format.name == "fp8-head"
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    with torch.no_grad():
        before = made.segmented.output(ids)
        with flows_rounded(made.model, made.activations, replace(plan, inputs={})):
            after = made.segmented.output(ids)
    got = float(made.segmented.distortion.between(before, after, ids).mean())
    assert 0.5 < got / plan.cache.kl < 2
