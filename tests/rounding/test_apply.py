"""A plan applied to a model: each site as planned, everything else in the storage dtype, all reversible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from natprec.distortions.divergence import forward_kl
from natprec.errors import InputError
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import find_sites, site_weight
from natprec.quantizers import quantize
from natprec.rounding import apply_batches
from natprec.solver import Plan
from tests.arrange import apply_plan, restore, snapshot, subject, tokens

TEXT = tokens(8, 32)


def planned(bits: float = 4.5, engine: str = "natprec", **changes: Any) -> tuple[Subject, Plan]:
    """A subject and a plan with several widths for it."""
    made = subject(**changes)
    plan = measure(made, tokens(4, 16, seed=9), engine=engine, group_size=32).solve(bits=bits)
    assert len(plan.histogram()) > 1
    return made, plan


def applied(made: Subject, plan: Plan, rounding: str, **options: Any) -> Any:
    options = {"gauges": made.gauges, **options}
    return apply_plan(made.segmented, made.sites, plan, TEXT, rounding, made.storage_dtype, **options)


@pytest.mark.parametrize("engine", ["natprec", "vllm"])
def test_rtn_quantizes_each_site_by_itself(engine: str) -> None:
    made, plan = planned(engine=engine)
    weights = {site.name: site_weight(made.model, site).clone() for site in made.sites}
    result = applied(made, plan, "rtn")
    assert list(result) == [site.name for site in made.sites if plan.sites[site.name].format]
    for site in made.sites:
        fmt = plan.sites[site.name].format
        if fmt is None:
            expected = weights[site.name].to(made.storage_dtype).float()
        else:
            value = quantize(weights[site.name], fmt, made.storage_dtype)
            assert torch.equal(result[site.name].codes, value.codes)
            assert torch.equal(result[site.name].scale, value.scale)
            expected = value.dequantize()
        assert torch.equal(site_weight(made.model, site), expected)
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight


@pytest.mark.parametrize("rounding", ["rtn", "gptq", "yaqa", "learned"])
def test_restore_is_bit_identical(rounding: str) -> None:
    made, plan = planned()
    weights = {name: parameter.clone() for name, parameter in made.model.named_parameters()}
    logits = made.segmented.output(TEXT)
    original = snapshot(made.model)
    first = applied(made, plan, rounding)
    assert not torch.equal(made.segmented.output(TEXT), logits)
    restore(made.model, original)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in made.model.named_parameters())
    assert torch.equal(made.segmented.output(TEXT), logits)
    second = applied(made, plan, rounding)
    assert all(torch.equal(first[name].codes, second[name].codes) for name in first)


@pytest.mark.parametrize("rounding", ["rtn", "gptq", "yaqa", "learned"])
def test_units_share_a_format(rounding: str) -> None:
    made, plan = planned()
    result = applied(made, plan, rounding)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        assert len({result[f"{prefix}self_attn.{name}_proj"].format for name in "qkv"}) == 1
        assert len({result[f"{prefix}mlp.{name}_proj"].format for name in ("gate", "up")}) == 1
    assert all(value.format == plan.sites[name].format for name, value in result.items())


@pytest.mark.parametrize("rounding", ["rtn", "gptq", "yaqa", "learned"])
def test_weights_are_the_reconstructed_ones(rounding: str) -> None:
    made, plan = planned()
    for name, value in applied(made, plan, rounding).items():
        assert torch.equal(made.model.get_submodule(name).weight, value.dequantize())


@pytest.mark.parametrize("tied", [True, False])
def test_gptq_keeps_the_output_better_than_nearest(tied: bool) -> None:
    made, plan = planned(bits=3.5, tie_word_embeddings=tied)
    reference = made.segmented.output(TEXT)
    original = snapshot(made.model)
    kl = {}
    for rounding in ("rtn", "gptq"):
        applied(made, plan, rounding)
        kl[rounding] = float(forward_kl(reference, made.segmented.output(TEXT)).mean())
        restore(made.model, original)
    assert kl["gptq"] < kl["rtn"]


@pytest.mark.parametrize("rounding", ["gptq", "yaqa", "learned"])
def test_without_blocks_every_site_is_rounded(rounding: str) -> None:
    made, plan = planned()
    gauges = made.gauges
    made.segmented.blocks, made.segmented.block_names = [], []
    whole = replace(made, sites=find_sites(made.segmented))
    assert applied(whole, plan, rounding, gauges=gauges).keys() == plan.sites.keys()
    assert torch.isfinite(made.segmented.output(TEXT)).all()


def test_later_blocks_see_rounded_earlier_ones() -> None:
    """The second block's Hessians come from the rounded first block."""
    made, plan = planned()
    original = snapshot(made.model)
    rounded = applied(made, plan, "gptq")
    restore(made.model, original)
    kept = {n: c if ".layers.1." in n else replace(c, format=None) for n, c in plan.sites.items()}
    alone = applied(made, replace(plan, sites=kept), "gptq")
    name = "model.layers.1.self_attn.q_proj"
    assert not torch.equal(alone[name].codes, rounded[name].codes)


@pytest.mark.parametrize("rounding", ["gptq", "yaqa", "learned"])
def test_advance_is_called_at_most_as_often_as_promised(rounding: str) -> None:
    made, plan = planned()
    calls: list[str] = []
    applied(made, plan, rounding, advance=calls.append)
    assert 0 < len(calls) <= apply_batches(made.segmented, rounding, TEXT)


def test_unknown_rounding() -> None:
    made, plan = planned()
    with pytest.raises(InputError, match="unknown rounding 'gptw'; did you mean 'gptq'"):
        applied(made, plan, "gptw")


def test_hooks_are_gone() -> None:
    made, plan = planned()
    applied(made, plan, "gptq")
    assert isinstance(made.segmented, SegmentedModel)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in made.model.modules())
