from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from natprec.comparison.candidates import with_formats
from natprec.comparison.judging import judge, judged_model, rounded_inputs, sizes, stored_model
from natprec.errors import ModelError
from natprec.formats import activation
from natprec.measurement.subject import Subject
from natprec.pipeline import api
from natprec.tasks import Samples
from tests.conftest import tiny_model
from tests.solver.test_fused_groups import three_layers


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.in_memory(tiny_model(), None)


def weights(subject: Subject) -> dict[str, Any]:
    return {name: parameter.detach().clone() for name, parameter in subject.model.named_parameters()}


HELD_OUT = Samples.text(torch.arange(64).reshape(2, 32))


def test_the_reference_itself_is_at_no_distance(subject: Subject, tmp_path: Path) -> None:
    save_file(weights(subject), tmp_path / "dense.safetensors")
    figures = judge(subject, judged_model(subject, tmp_path / "dense.safetensors"), HELD_OUT, 0)
    assert figures["kl_mean"] == pytest.approx(0, abs=1e-12)
    assert figures["top1_agreement"] == 1
    assert figures["perplexity"] == figures["perplexity_reference"]


def test_other_weights_are_at_a_distance_and_the_reference_is_not_changed(subject: Subject, tmp_path: Path) -> None:
    changed = weights(subject)
    before = changed["model.layers.0.mlp.up_proj.weight"].clone()
    changed["model.layers.0.mlp.up_proj.weight"] += 0.1
    save_file(changed, tmp_path / "dense.safetensors")
    figures = judge(subject, judged_model(subject, tmp_path / "dense.safetensors"), HELD_OUT, 0)
    assert figures["kl_mean"] > 1e-6
    assert figures["kl_ci95"][0] <= figures["kl_mean"] <= figures["kl_ci95"][1]
    assert torch.equal(subject.model.get_submodule("model.layers.0.mlp.up_proj").weight, before)  # type: ignore[arg-type]


def test_rounded_activations_are_a_distance_and_leave_no_hooks(subject: Subject, tmp_path: Path) -> None:
    save_file(weights(subject), tmp_path / "dense.safetensors")
    model = judged_model(subject, tmp_path / "dense.safetensors")
    kl = {
        bits: judge(subject, model, HELD_OUT, 0, rounded_inputs(subject, bits, None))["kl_mean"] for bits in (4, 8, 16)
    }
    assert kl[4] > 10 * kl[8] > 0
    assert kl[16] == pytest.approx(0, abs=1e-12)


def test_a_plan_says_how_its_own_activations_are_rounded(subject: Subject, tmp_path: Path) -> None:
    plan = three_layers().solve(eps=0.5, activations="8")
    plan.save(tmp_path / "plan.json")
    assert rounded_inputs(subject, 8, tmp_path / "plan.json") == plan.rounded_inputs != {}
    assert rounded_inputs(subject, 16, tmp_path / "plan.json") == {}
    by_token = rounded_inputs(subject, 8, None)
    assert set(by_token.values()) == {activation(8)}
    assert set(by_token) == {site.fused_group for site in subject.activations if site.role == "linear"}


@pytest.mark.parametrize("damage", ["nan", "missing", "unknown", "shape"])
def test_useless_weights_are_refused(damage: str, subject: Subject, tmp_path: Path) -> None:
    state = weights(subject)
    name = "model.layers.1.self_attn.q_proj.weight"
    if damage == "nan":
        state[name][0, 0] = torch.nan
    elif damage == "missing":
        del state[name]
    elif damage == "unknown":
        state["model.extra"] = torch.zeros(1)
    else:
        state[name] = state[name][:1].contiguous()
    save_file(state, tmp_path / "dense.safetensors")
    words = {"nan": "NaN or Inf", "missing": "lacks", "unknown": "unknown", "shape": "do not fit"}
    with pytest.raises(ModelError, match=words[damage]):
        judged_model(subject, tmp_path / "dense.safetensors")


def test_bytes_are_the_files_and_bits_are_of_what_is_quantized(subject: Subject, tmp_path: Path) -> None:
    """4 bits in int32 and one float16 scale per 32: 4.5 bits per weight, whatever the embedding takes."""
    state: dict[str, Any] = {}
    for name, tensor in weights(subject).items():
        if "proj" in name:
            rows, columns = tensor.shape
            state[name.replace("weight", "weight_packed")] = torch.zeros(rows, columns // 8, dtype=torch.int32)
            state[name.replace("weight", "weight_scale")] = torch.zeros(rows, columns // 32, dtype=torch.float16)
        else:
            state[name] = tensor.half()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("x" * 1000)
    found = sizes(tmp_path, subject.model)
    assert found["stored_bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert found["bits_per_weight"] == pytest.approx(4.5)


def test_codes_under_the_weights_own_name_are_not_unquantized_weights(subject: Subject, tmp_path: Path) -> None:
    """bitsandbytes stores int8 codes so."""
    state = {name: tensor.to(torch.int8) if "proj" in name else tensor for name, tensor in weights(subject).items()}
    save_file(state, tmp_path / "model.safetensors")
    assert sizes(tmp_path, subject.model)["bits_per_weight"] == 8


def tied() -> tuple[Subject, dict[str, Any]]:
    own = Subject.in_memory(tiny_model(tie_word_embeddings=True), None)
    return own, {**weights(own), "lm_head.weight": own.model.get_parameter("model.embed_tokens.weight").clone()}


def test_a_tied_head_that_was_quantized_apart(tmp_path: Path) -> None:
    own, state = tied()
    save_file(state, tmp_path / "dense.safetensors")
    same: Any = judged_model(own, tmp_path / "dense.safetensors")
    assert same.lm_head.weight is same.model.embed_tokens.weight
    state["lm_head.weight"] *= 1.5
    save_file(state, tmp_path / "dense.safetensors")
    model: Any = judged_model(own, tmp_path / "dense.safetensors")
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])
    assert torch.equal(model.model.embed_tokens.weight, state["model.embed_tokens.weight"])
    assert judge(own, model, HELD_OUT, 0)["kl_mean"] > 1e-6
    untouched: Any = own.model
    assert untouched.lm_head.weight is untouched.model.embed_tokens.weight


def test_bits_of_a_tied_head_that_was_written_apart(tmp_path: Path) -> None:
    """4 bits and one float16 scale per 32 of both: 4.5 bits per weight, each counted by itself."""
    own, state = tied()
    packed: dict[str, Any] = {name: tensor.half() for name, tensor in state.items() if "norm" in name}
    for name, tensor in state.items():
        if tensor.ndim > 1:
            rows, columns = tensor.shape
            packed[name.replace("weight", "weight_packed")] = torch.zeros(rows, columns // 8, dtype=torch.int32)
            packed[name.replace("weight", "weight_scale")] = torch.zeros(rows, columns // 32, dtype=torch.float16)
    save_file(packed, tmp_path / "model.safetensors")
    assert sizes(tmp_path, own.model)["bits_per_weight"] == pytest.approx(4.5)


def test_a_checkpoint_as_it_is_stored_and_as_a_gpu_runs_it(tmp_path: Path) -> None:
    """NVFP4 beside NVFP4: before Blackwell its inputs stay at 16 bits."""
    own = Subject.in_memory(tiny_model(), None)
    plan = api.measure(own.model, None, HELD_OUT.ids, group_size=32, length=32, sites="all", gpu="sm100", untested=True)
    small = with_formats(plan, ("nvfp4",)).solve(bits=9.0, activations="4")
    assert {choice.format.name for choice in small.inputs.values() if choice.format} == {"nvfp4"}
    api.save(api.apply(small, own.model, None, HELD_OUT.ids), tmp_path / "made")
    kl = {
        gpu: judge(own, stored_model(own, tmp_path / "made", gpu), HELD_OUT, 0)["kl_mean"]
        for gpu in (None, "any", "b200", "h100")
    }
    assert kl[None] == kl["any"] == kl["b200"] > 1.1 * kl["h100"] > 0


def test_a_folder_without_weights(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weight files"):
        sizes(tmp_path, subject.model)
