"""Models whose structure is unlike a llama's, from measuring to running: nothing is lost, nothing crashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.checkpoints.dense_reader import load_quantized
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.formats import engine_profile
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import uneven
from natprec.pipeline.request import refuse_impossible_size
from natprec.pipeline.rounded import round_and_write, round_to_plan
from natprec.runtime.load import load
from natprec.solver import solve
from natprec.tasks import Samples
from natprec.utils.hooks import attached
from natprec.utils.progress import Stages
from tests import structures as tiny
from tests.arrange import tokens

FAMILIES = [
    tiny.gpt2, tiny.deberta, tiny.mpnet, tiny.albert, tiny.zamba2, tiny.qwen3_next, tiny.mamba2, tiny.mamba, tiny.jamba,
    tiny.gemma3n, tiny.deepseek,
]  # fmt: skip
TEXT = tokens(8, 16)
EXACT = 5e-3
"""Of the largest value: what kernels make of another order of products, and activations as int16."""


def output(model: Any, text: Samples) -> torch.Tensor:
    found = model(input_ids=text.ids)
    value: torch.Tensor = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return value


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of many tokens, so that bounds can be tight."""
    for place in ("natprec.runtime.kernels.linear.fast_dtype", "natprec.runtime.kernels.cpu.fast_dtype"):
        monkeypatch.setattr(place, lambda: torch.float32)


@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
def test_what_is_written_is_what_runs(
    build: Callable[[], Any], tmp_path: Path, tiny_tokenizer: Any, encoder_tokenizer: Any
) -> None:
    subject = tiny.made(build)
    subject = Subject.in_memory(subject.model, tiny_tokenizer if subject.task.generates else encoder_tokenizer, "small")
    plan = solve(measure(subject, TEXT, engine="natprec", group_size=32), 0.05)
    assert all(choice.kl >= 0 for choice in plan.sites.values())
    (tmp_path / "out").mkdir()
    round_and_write(subject, plan, TEXT, "gptq", tmp_path / "out", None, Stages(quiet=True))
    with torch.no_grad(), subject.segmented.weights.hold(subject.model.parameters()):
        round_to_plan(subject, plan, TEXT, "gptq", Stages(quiet=True))
        rounded = output(subject.model, TEXT)
    with torch.no_grad():
        unpacked = output(load_quantized(tmp_path / "out"), TEXT)
        running = output(load(tmp_path / "out").model, TEXT)
    size = float(rounded.abs().max())
    assert float((unpacked - rounded).abs().max()) < EXACT * size
    assert float((running - unpacked).abs().max()) < EXACT * size


@pytest.mark.parametrize(
    ("build", "shared"),
    [(tiny.zamba2, "shared_transformer.self_attn.q_proj"), (tiny.albert, "attention.query"),
     (tiny.deberta, "attention.self.pos_key_proj")],
    ids=["zamba2", "albert", "deberta"],
)  # fmt: skip
def test_a_gradient_is_that_of_all_uses(build: Callable[[], Any], shared: str) -> None:
    """That of positions, too, which all sequences of a batch have in common and no earlier weight has touched."""
    subject = tiny.made(build)
    found = measure(subject, TEXT, engine="natprec", group_size=32, rounding="rtn", seed=3)
    site = next(site for site in subject.sites if site.name.endswith(shared))
    weight = subject.model.get_submodule(site.name).weight.requires_grad_()
    energies = []
    for number in range(len(TEXT)):
        out = subject.segmented.output(TEXT[number : number + 1])
        subject.distortion.draw(out, range(number, number + 1), 3).backward()
        energies.append(float(weight.grad.square().sum()))
        weight.grad = None
    assert float(found.curves[site.name].energy.mean()) == pytest.approx(sum(energies) / len(energies), rel=1e-3)


def test_an_input_that_is_several_tensors_is_measured_in_all_of_them() -> None:
    """That of a block which runs three times is three as expensive as in a sum of squares over all three."""
    subject = tiny.made(tiny.albert)
    found = measure(subject, TEXT, engine="natprec", group_size=32, sites="all", rounding="rtn", seed=3)
    site = next(site for site in subject.activations if site.name.endswith("ffn:input"))
    module = subject.model.get_submodule(site.uses[0])
    energies, inputs = [], list[torch.Tensor]()

    def apart(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        inputs.append(args[0].detach().requires_grad_() if not inputs else args[0].view_as(args[0]))
        inputs[-1].retain_grad()
        return (inputs[-1],)

    with attached([module.register_forward_pre_hook(apart)]):
        for number in range(len(TEXT)):
            inputs.clear()
            out = subject.segmented.output(TEXT[number : number + 1])
            subject.distortion.draw(out, range(number, number + 1), 3).backward()
            energies.append(sum(float(each.grad.square().sum()) for each in inputs if each.grad is not None))
    assert len(inputs) == 3
    assert float(found.curves[site.name].energy.mean()) == pytest.approx(sum(energies) / len(energies), rel=1e-3)


def test_keys_and_values_that_one_scheme_cannot_describe_are_refused_before_measuring() -> None:
    subject = tiny.made(tiny.deepseek)
    request = QuantizeConfig("small", eps=0.05, group_size=32, sites="all", kv="8", engine="natprec")
    with pytest.raises(InputError, match=r"keys of 24, values of 16.*leave --kv out"):
        refuse_impossible_size(request, subject)
    refuse_impossible_size(replace(request, engine="vllm"), subject)
    with pytest.raises(InputError, match="keys and values were not found"):
        refuse_impossible_size(replace(request, engine="vllm"), tiny.made(tiny.mamba2))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("rank", [32, 64])
def test_latent_attention_is_measured_with_its_keys_and_values(version: int, rank: int) -> None:
    """64 is also how many values a token has: an inner norm of that size produces none of them either."""
    subject = tiny.made(tiny.deepseek, version=version, kv_lora_rank=rank)
    found = measure(subject, TEXT, engine="vllm", group_size=32, sites="all")
    sizes = {curve.site.kind: curve.site.shape[1] for curve in found.curves.values() if curve.site.role == "cache"}
    assert sizes == {"key": 24, "value": 16}
    assert solve(found, 0.5, kv="8", activations="8").cache is not None
    assert not any(curve.scaled for curve in found.curves.values() if curve.site.kind == "value")


def test_an_embedding_row_of_zeros_costs_nothing() -> None:
    """Gradients of norms are huge there, or infinite."""
    subject = tiny.made(tiny.gemma3n)
    unlike_the_first = next(token for token in TEXT.ids[0].tolist() if token not in TEXT.ids[:, 0])
    subject.model.model.embed_tokens.weight.data[unlike_the_first] = 0.0
    found = measure(subject, TEXT, engine="natprec", group_size=32, rounding="rtn")
    curve = found.curves["model.embed_tokens"]
    assert float(curve.kl()[-1]) < 1.0
    assert found.header.checks[0][2] < 10 * found.header.checks[0][3]


def test_adapters_of_a_shared_block_are_no_experts() -> None:
    """One of a list is used at each depth, and nothing chooses it."""
    subject = tiny.made(tiny.zamba2)
    assert not subject.segmented.routing.containers
    adapters = [site for site in subject.sites if "adapter" in site.name]
    assert len(adapters) == 4
    assert all(len(site.uses) == 2 for site in adapters)


def test_a_group_size_that_fits_few_matrices_is_for_those_alone() -> None:
    subject = tiny.made(tiny.gemma3n)
    formats = subject.candidates(engine_profile("vllm"), 64)
    sizes = {name: {fmt.group_size for fmt in several} for name, several in formats.items()}
    assert sizes["model.layers.0.self_attn.q_proj"] == {64}
    assert sizes["model.layers.0.altup.prediction_coefs"] == set(), "2 inputs"
    assert sizes["model.layers.0.per_layer_projection"] == set(), "16 inputs, which kernels of vLLM do not run"
    assert {fmt.group_size for fmt in subject.candidates(engine_profile("natprec"), 64)[
        "model.layers.0.per_layer_projection"]} == {None}  # fmt: skip
    said = uneven(subject.sites, formats, 64)
    assert said.startswith(
        "group size 64 does not fit every weight: 'model.layers.0.altup.prediction_coefs' (2 inputs)"
    )
    assert said.endswith("get 16 bits")
    assert uneven(subject.sites, subject.candidates(engine_profile("vllm"), -1), -1) == ""


def test_matrices_that_run_together_have_one_group_size() -> None:
    """All matrices of experts have one format in vLLM: 96 inputs of some decide for 64 of the others."""
    subject = tiny.made(tiny.deepseek, moe_intermediate_size=96, first_k_dense_replace=1, num_hidden_layers=2)
    for engine, other in (("vllm", {32}), ("natprec", {64})):
        formats = subject.candidates(engine_profile(engine), 64)
        sizes = {
            leaf: {
                fmt.group_size for name, own in formats.items() if ".experts." in name and leaf in name for fmt in own
            }
            for leaf in ("gate_proj", "down_proj")
        }
        assert sizes == {"gate_proj": other, "down_proj": {32}}


def test_rows_that_no_block_divides_stay_at_16_bits_in_a_gguf_file() -> None:
    formats = tiny.made(tiny.mamba).candidates(engine_profile("llama.cpp"), None)
    assert formats["backbone.layers.0.mixer.dt_proj"] == ()
    assert formats["backbone.layers.0.mixer.in_proj"]
