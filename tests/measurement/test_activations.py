"""Activations, keys and values: found by structure, measured in the sweep, judged by replaying them."""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from natprec.errors import ModelError
from natprec.formats import FP8_TENSOR, Format, PerFeature, PerToken, activation, integer, parse_activation
from natprec.formats.compressed_tensors import arguments
from natprec.measurement import Curve, Measurement
from natprec.measurement import activation_observer as observing
from natprec.measurement.exact import exact_curves
from natprec.measurement.measure import measure
from natprec.measurement.sharding import Sharding
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep
from natprec.models.activation_sites import activation_formats, rounded
from natprec.models.weight_sites import Site
from natprec.quantizers.activations import fixed_scale, flowing_scale, round_activations
from natprec.runtime.kernels.reference import quantize_tokens
from natprec.tasks import Samples
from tests.arrange import encoder, subject, tokens

WEIGHTS = (integer(4, 32),)


def swept(of: Subject, text: Samples, wanted: list[Site], group_size: int | None = None) -> dict[str, Curve]:
    return sweep(
        of.segmented, [], {}, text, scale_dtype=torch.bfloat16, seed=0,
        activations={site: activation_formats(site, group_size) for site in wanted},
    )  # fmt: skip


def test_sites_of_a_llama_block() -> None:
    found = [site for site in subject().activations if site.segment == 1]
    block = "model.layers.1"
    assert [(site.name.removeprefix(block), site.kind, site.shape) for site in found] == [
        (":stream", "activation", (1, 32)),
        (".self_attn.q_proj:input", "activation", (1, 32)),
        (".self_attn.o_proj:input", "activation", (1, 32)),
        (".mlp.gate_proj:input", "activation", (1, 32)),
        (".mlp.down_proj:input", "activation", (1, 64)),
        (".self_attn:key", "key", (2, 8)),
        (".self_attn:value", "value", (2, 8)),
    ]
    assert [use.rpartition(".")[2] for use in found[1].uses] == ["q_proj", "k_proj", "v_proj"]


def test_an_encoder_keeps_no_cache() -> None:
    kinds = {site.kind for site in encoder().activations}
    assert kinds == {"activation"}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_keys_are_seen_after_the_rotary_embedding(implementation: str) -> None:
    gc.collect()  # checkpoints that earlier tests loaded, whose cache is rounded as long as they live
    of = subject()
    of.model.set_attn_implementation(implementation)  # type: ignore[operator]
    site = next(site for site in of.activations if site.kind == "key")
    text = tokens(1, 8)
    cache = of.model(input_ids=text.ids, use_cache=True).past_key_values
    with torch.no_grad(), rounded(of.model, site, activation(3, 8)):
        changed = of.model(input_ids=text.ids).logits
        quantized = of.model(input_ids=text.ids, use_cache=True).past_key_values
    assert torch.equal(cache.layers[0].keys, quantized.layers[0].keys)  # the cache is filled before
    assert not torch.equal(changed, of.model(input_ids=text.ids).logits)
    assert not ALL_ATTENTION_FUNCTIONS._local_mapping, "nothing stays patched"


def test_the_fisher_estimate_meets_the_exact_value() -> None:
    of = subject()
    text = tokens(16, 32)
    wanted = of.activations
    curves = swept(of, Samples.text(text.ids.repeat(8, 1)), wanted)
    pairs = [(site, activation_formats(site, None)) for site in wanted]
    logs = [
        np.log2(curves[site.name].forward[0].mean(0) / values.mean(0))
        for site, values in exact_curves(of.segmented, pairs, text, torch.bfloat16)
    ]
    assert np.median(np.abs(np.concatenate(logs))) < 0.25  # the figure asked of SmolLM2, too
    assert all(abs(np.median(log)) < 0.6 for log in logs)


def test_inputs_of_an_encoder_are_apart_from_its_stream() -> None:
    """In a BERT the tensor that q, k and v read is also the residual: its whole gradient would be another one."""
    of = encoder()
    text = tokens(8, 16)
    site = next(site for site in of.activations if site.name.endswith("query:input"))
    curves = swept(of, Samples.text(text.ids.repeat(16, 1)), [site])
    exact = next(exact_curves(of.segmented, [(site, activation_formats(site, None))], text, torch.bfloat16))[1].mean(0)
    assert np.abs(np.log2(curves[site.name].forward[0].mean(0) / exact)).max() < 0.6


def test_what_is_rounded_is_what_the_gradient_belongs_to() -> None:
    """The sweep's numbers against plain autograd on one sequence."""
    of = subject(num_hidden_layers=1)
    text = tokens(1, 8)
    site = next(site for site in of.activations if site.name.endswith("down_proj:input"))
    curve = swept(of, text, [site])[site.name]
    module, kept = of.model.get_submodule(site.uses[0]), []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(args[0].detach().requires_grad_())
        return (kept[0],)

    handle = module.register_forward_pre_hook(keep)
    of.segmented.distortion.draw(of.segmented.output(text), range(1), 0).backward()
    handle.remove()
    for index, fmt in enumerate(curve.formats):
        assert isinstance(fmt, Format)
        error = round_activations(kept[0].detach(), fmt) - kept[0].detach()
        slope, common = kept[0].grad.mean(1), error.mean(1)  # type: ignore[union-attr]
        apart = ((error - common[:, None]) * (kept[0].grad - slope[:, None])).sum(-1).square().sum()  # type: ignore
        expected = ((8 * slope * common).sum().square() + apart) / 2 / 8
        np.testing.assert_allclose(curve.forward[0, 0, index], expected, rtol=1e-4)
    np.testing.assert_allclose(curve.energy[0], kept[0].grad.square().sum(), rtol=1e-4)  # type: ignore[union-attr]
    lost = [(round_activations(kept[0].grad, fmt) - kept[0].grad).square().sum() for fmt in curve.formats]  # type: ignore
    np.testing.assert_allclose(curve.backward[0], lost, rtol=1e-4)  # 8 tokens: all of them are sampled


def test_weights_come_out_the_same_beside_activations() -> None:
    of, text = subject(), tokens(4, 16)
    formats = {site.name: WEIGHTS for site in of.sites}
    alone = sweep(of.segmented, of.sites, formats, text, scale_dtype=torch.bfloat16, seed=0, rounding="gptq")
    flows = {site: activation_formats(site, None) for site in of.activations}
    both = sweep(
        of.segmented, of.sites, formats, text, scale_dtype=torch.bfloat16, seed=0, rounding="gptq", activations=flows
    )
    for name, curve in alone.items():
        np.testing.assert_allclose(both[name].forward, curve.forward, rtol=1e-5)
        np.testing.assert_allclose(both[name].shares, curve.shares, rtol=1e-5)


def test_tokens_are_left_out_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    of, text = subject(num_hidden_layers=1), tokens(64, 32)
    wanted = [site for site in of.activations if site.name.endswith("q_proj:input")]
    whole = swept(of, text, wanted)
    monkeypatch.setattr(observing, "SITE_MEMORY", 8 * 32 * 64 * 16)  # half of the tokens
    part = swept(of, text, wanted)
    for name in whole:
        ratio = part[name].forward.mean() / whole[name].forward.mean()
        assert 0.7 < ratio < 1.4
        assert part[name].forward[0, 0, 0] != whole[name].forward[0, 0, 0]


def test_a_constant_activation_costs_nothing_at_zero() -> None:
    for fmt in (activation(4), activation(4, 4), activation(4, PerFeature()), FP8_TENSOR):
        assert torch.equal(round_activations(torch.zeros(3, 8), fmt), torch.zeros(3, 8))
    constant = torch.full((2, 8), 1.5)
    assert torch.isfinite(round_activations(constant, activation(8))).all()


def test_a_fixed_scale_per_feature_serves_all_tokens() -> None:
    fmt = parse_activation("a4-channel")
    assert (fmt, fmt.name, fmt.divides(7)) == (activation(4, PerFeature()), "a4-channel", True)
    values = torch.tensor([[1.0, 100.0, 0.0], [-7.5, 3.0, 0.0]])
    rounded_values = round_activations(values, fmt)  # steps of 1.07 and of 14.3
    torch.testing.assert_close(rounded_values, torch.tensor([[7.5 / 7, 100.0, 0.0], [-7.5, 0.0, 0.0]]))
    scale = fixed_scale(fmt, values.abs().amax(0))
    torch.testing.assert_close(round_activations(values[:1], fmt, scale), rounded_values[:1])


def test_fixed_scales_are_those_of_all_sequences() -> None:
    site = next(site for site in subject().activations if site.name.endswith("q_proj:input"))
    observer = observing.ActivationObserver(site, (activation(4, PerFeature()),), Sharding.alone(4), 1, 0)
    observer.values = {0: [torch.tensor([[1.0, 2.0]])], 3: [torch.tensor([[-4.0, 1.0]])]}
    torch.testing.assert_close(observer._largest(2.0), torch.tensor([2.0, 1.0]))
    fixed = [fmt.name for fmt in activation_formats(site, None) if fmt.scaling.granularity == PerFeature()]
    assert fixed == ["a4-channel", "a8-channel"]


def test_infinity_in_an_activation_names_site_and_sequence() -> None:
    of = subject()
    with torch.no_grad():
        of.model.model.layers[1].mlp.up_proj.weight[3] = torch.inf  # type: ignore[index, union-attr]
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj:input.* sequence 0, of the batch 0 to 1"):
        swept(of, tokens(2, 8), of.activations)


def test_the_full_range_is_that_of_compressed_tensors() -> None:
    from compressed_tensors.quantization import QuantizationArgs, fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    values = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)) * 3
    by_token = [activation(bits, PerToken(), True) for bits in range(2, 9)]
    for fmt in (*by_token, activation(4, 8, True), FP8_TENSOR):
        described = QuantizationArgs.model_validate(arguments(fmt))
        if fmt is FP8_TENSOR:
            scale, zero = flowing_scale(fmt, values.abs().amax()), torch.zeros(1)
            assert 112 < values.abs().amax() / scale <= 224
        else:
            scale, zero = compute_dynamic_scales_and_zp(values, described, nn.Identity())
        expected = fake_quantize(values, scale, zero, described)
        torch.testing.assert_close(round_activations(values, fmt), expected)


def test_int8_by_token_is_that_of_the_kernels() -> None:
    """Bit by bit, as vLLM, SGLang and our own kernels have it: the largest magnitude becomes 127."""
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 3
    values[5] = 0
    codes, scale = quantize_tokens(values)
    assert torch.equal(round_activations(values, activation(8)), codes * scale.unsqueeze(-1))


def test_a_measurement_of_all_sites_is_read_back(tmp_path: Any) -> None:
    of, text = subject(), tokens(4, 16)
    measured = measure(of, text, group_size=32, sites="all")
    measured.save(tmp_path / "m")
    again = Measurement.load(tmp_path / "m")
    assert list(again.curves) == [site.name for site in (*of.sites, *of.activations)]
    assert list(again.weights) == [site.name for site in of.sites]
    checked = {again.curves[row[0]].site.kind for row in again.header.checks}
    assert "weight" in checked
    assert len(checked) > 1
    for name, curve in measured.curves.items():
        assert again.curves[name].formats == curve.formats
        np.testing.assert_array_equal(again.curves[name].forward, curve.forward)
    assert measured.solve(bits=6).sites.keys() == again.weights.keys()


def test_a_model_without_the_interface_has_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    of = copy.copy(subject())
    monkeypatch.setattr("natprec.models.activation_sites._attentions", lambda segmented, text: {})
    assert {site.kind for site in of.activations} == {"activation"}
