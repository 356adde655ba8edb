"""Gauges: found where they are, not where they only seem to be, and without effect on the function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natprec.measurement.subject import Subject
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import find_sites, site_weight
from natprec.transforms import Gauge, find_gauges, fold
from tests.arrange import encoder, subject, tokens

TEXT = tokens(2, 16)
BLOCK = "model.layers.0."


def moved(made: Subject, gauge: Gauge, seed: int = 0) -> None:
    """Apply a gauge with random scales between 1/2 and 2."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.exp2(2 * torch.rand(gauge.produced, generator=draw, dtype=torch.float64) - 1)
    weight = made.model.get_submodule(gauge.producer).weight
    scale = fold(made.model, gauge, scale.to(weight.dtype), weight.dtype)
    for site in made.sites:
        if site.fused_group == gauge.fused_group:
            weight = site_weight(made.model, site)
            weight.data = weight.data * scale[gauge.channels(site.shape[1])].to(weight.dtype)


def change(made: Subject, gauges: list[Gauge], dtype: torch.dtype) -> float:
    """Largest difference of the output after the gauges, computed in `dtype`, over its largest value."""
    made.model.to(dtype)
    before = made.segmented.output(TEXT)
    kept = {name: parameter.data for name, parameter in made.model.named_parameters()}
    for number, gauge in enumerate(gauges):
        moved(made, gauge, number)
    after = made.segmented.output(TEXT)
    for name, parameter in made.model.named_parameters():
        parameter.data = kept[name]
    return float((after - before).abs().max() / before.abs().max())


def test_a_llama_has_all_four_with_grouped_heads() -> None:
    made = subject()
    assert made.gauges.keys() == {site.fused_group for site in made.sites if site.role == "linear"}
    assert made.gauges[BLOCK + "self_attn.q_proj"] == Gauge(
        BLOCK + "self_attn.q_proj", BLOCK + "input_layernorm", produced=32
    )
    assert made.gauges[BLOCK + "self_attn.o_proj"] == Gauge(
        BLOCK + "self_attn.o_proj", BLOCK + "self_attn.v_proj", produced=16, head=8
    )
    assert made.gauges[BLOCK + "mlp.gate_proj"].producer == BLOCK + "post_attention_layernorm"
    assert made.gauges[BLOCK + "mlp.down_proj"] == Gauge(BLOCK + "mlp.down_proj", BLOCK + "mlp.up_proj", produced=64)


def test_of_a_bert_only_values_can_be_rescaled() -> None:
    """Its norms feed the residual stream too, and GELU is not homogeneous."""
    made = encoder()
    found = {gauge.producer.rpartition(".")[2] for gauge in made.gauges.values()}
    assert found == {"value"}
    assert len(made.gauges) == len(made.segmented.blocks)


def test_a_norm_that_two_units_read_is_no_gauge() -> None:
    """Phi runs attention and MLP side by side, from one norm."""
    from transformers import PhiConfig, PhiForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 96}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PhiForCausalLM(PhiConfig(num_hidden_layers=2, **sizes)).eval()
    made = Subject.in_memory(model, None, "phi")
    assert {gauge.producer.rpartition(".")[2] for gauge in made.gauges.values()} == {"v_proj"}


def test_a_block_with_a_layer_that_no_token_reached_has_none() -> None:
    made = subject()
    made.segmented.blocks[0].idle = nn.Linear(32, 32)
    segmented = SegmentedModel(made.model, TEXT)
    found = find_gauges(segmented, find_sites(segmented), TEXT)
    assert found
    assert not any(fused_group.startswith(BLOCK) for fused_group in found)


def test_blocks_of_other_shapes_have_gauges_of_their_own() -> None:
    """MiMo's layers with a window have twice the heads of keys and values of the others."""
    made = subject()
    wide = made.segmented.blocks[1].self_attn
    wide.v_proj, wide.k_proj = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
    wide.num_key_value_groups = 1
    segmented = SegmentedModel(made.model, TEXT)
    found = find_gauges(segmented, find_sites(segmented), TEXT)
    produced = {name: gauge.produced for name, gauge in found.items() if name.endswith("o_proj")}
    assert produced == {"model.layers.0.self_attn.o_proj": 16, "model.layers.1.self_attn.o_proj": 32}


def test_looking_for_them_leaves_the_weights_alone() -> None:
    made = subject()
    before = {name: (parameter.data_ptr(), parameter.clone()) for name, parameter in made.model.named_parameters()}
    assert made.gauges
    for name, parameter in made.model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


@pytest.mark.parametrize("make", [subject, encoder])
def test_the_error_of_a_gauge_is_that_of_arithmetic(make: Any) -> None:
    """It shrinks when the dtype gets wider."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        made = make()
        found[dtype] = change(made, list(made.gauges.values()), dtype)
    assert found[torch.float32] < 1e-2 * found[torch.bfloat16]
    assert found[torch.float64] < 1e-6 * found[torch.float32]
    assert found[torch.float32] < 1e-5


@pytest.mark.parametrize("wrong", [{"head": 16}, {"producer": BLOCK + "self_attn.k_proj"}])
def test_a_wrong_gauge_shows(wrong: dict[str, Any]) -> None:
    made = subject()
    right = made.gauges[BLOCK + "self_attn.o_proj"]
    assert change(made, [right], torch.float32) < 1e-5
    assert change(made, [replace(right, **wrong)], torch.float32) > 1e-2


def test_rounding_a_norm_costs_nothing() -> None:
    """What is stored in 16 bits times what the columns get is the weight that it was."""
    made = subject()
    gauge = made.gauges[BLOCK + "mlp.gate_proj"]
    norm = made.model.get_submodule(gauge.producer)
    norm.weight.data = torch.randn(32, generator=torch.Generator().manual_seed(1))
    norm.weight.data[3] = 0
    original: Tensor = norm.weight.data.clone()
    scale = fold(made.model, gauge, torch.linspace(0.3, 3, 32), torch.bfloat16)
    stored = norm.weight.data.to(torch.bfloat16).float()
    torch.testing.assert_close(stored * scale, original, rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.weight.data, stored, rtol=1e-6, atol=0)
    torch.testing.assert_close(scale[4:], torch.linspace(0.3, 3, 32)[4:], rtol=2**-8, atol=0)
