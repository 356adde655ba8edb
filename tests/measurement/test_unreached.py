"""What no text reaches, and what is read behind a module's back, is unknown: 16 bits, and in `ignore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from natprec.errors import ModelError
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.solver import Plan
from tests.arrange import experts, tokens
from tests.conftest import tiny_model
from tests.run_command import SMALL, natprec

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 1,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip


def made(model: Any, factor: float = 4) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(factor)
    return model.eval()


def gemma3() -> Any:
    import transformers

    text = transformers.Gemma3TextConfig(
        **{**TEXT, "num_hidden_layers": 3},
        sliding_window=16,
        layer_types=["sliding_attention"] * 2 + ["full_attention"],
    )
    image = transformers.SiglipVisionConfig(**IMAGE)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=image, mm_tokens_per_image=4, image_token_index=500, boi_token_index=501,
        eoi_token_index=502,
    )  # fmt: skip
    return made(transformers.Gemma3ForConditionalGeneration(config))


def llava() -> Any:
    import transformers

    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**IMAGE),
        image_token_index=500,
    )  # fmt: skip
    return made(transformers.LlavaForConditionalGeneration(config))


def qwen2_vl() -> Any:
    import transformers

    text = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    image = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 1}
    return made(transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=image)
    ))  # fmt: skip


def jamba() -> Any:
    return experts(
        "Jamba", vocab_size=512, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=8, mamba_dt_rank=32,
    )  # fmt: skip


def falcon_mamba() -> Any:
    return experts("FalconMamba", vocab_size=512, state_size=8, time_step_rank=32, std=0.05)


def plan_of(model: Any) -> tuple[Subject, Plan]:
    subject = Subject.in_memory(model, None)
    found = measure(subject, tokens(4, 16, 512), group_size=32)
    return subject, found.solve(eps=1.0)


class Stern(torch.autograd.Function):
    """Refuses to be differentiated, as Reformer's layers do outside of training."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise AssertionError("use model.train() first")


def test_a_model_without_gradients_is_refused_by_name() -> None:
    model = tiny_model(vocab_size=512)
    model.model.norm.register_forward_hook(lambda module, args, output: Stern.apply(output))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be differentiated as it runs \(use model.train"):
        measure(Subject.in_memory(model, None), tokens(4, 16, 512), group_size=32)


def test_layers_of_unknown_kinds_are_refused_by_name() -> None:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.IBertModel(transformers.IBertConfig(**sizes, vocab_size=512)).eval()
    with pytest.raises(ModelError, match="no gradient reaches a layer of IBertModel"):
        measure(Subject.in_memory(model, None), tokens(4, 16, 512), group_size=32)


@pytest.mark.parametrize(
    ("make", "mark", "count"),
    [
        (gemma3, "vision_tower", 9),
        (llava, "vision_tower", 6),
        (llava, "multi_modal_projector", 2),
        (qwen2_vl, "visual", 6),
        (jamba, "dt_proj", 1),
        (falcon_mamba, "dt_proj", 2),
    ],
)
def test_it_stays_at_16_bits_and_the_rest_does_not(make: Any, mark: str, count: int) -> None:
    subject, plan = plan_of(make())
    found = {name: choice for name, choice in plan.sites.items() if mark in name}
    assert len(found) == count
    assert all(choice.format is None for choice in found.values())
    language = [name for name in plan.sites if mark in name or plan.sites[name].format is not None]
    assert len(language) > count, "the rest is quantized"
    assert subject.unreached >= found.keys()


class Behind(torch.nn.Module):
    """A Linear that is called, and whose weight is read as well: what the call shows is not all."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + functional.linear(x, torch.cat([self.inner.weight[:1], self.inner.weight[1:]]))


def test_what_is_called_and_read_is_unknown_too() -> None:
    model = tiny_model(hidden_size=32, intermediate_size=64, vocab_size=512)
    model.model.layers[0].mlp.down_proj = Behind(model.model.layers[0].mlp.down_proj)
    subject, plan = plan_of(model)
    assert subject.unreached == {"model.layers.0.mlp.down_proj.inner"}
    unquantized = {name for name, choice in plan.sites.items() if choice.format is None}
    assert unquantized == {"model.embed_tokens", *subject.unreached}


def test_shapes_and_dtypes_may_be_asked_for() -> None:
    model = tiny_model(hidden_size=32, intermediate_size=64, vocab_size=512)
    up = model.model.layers[0].mlp.up_proj

    def asks(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].to(up.weight.device, up.weight.dtype).view(-1, args[0].shape[1], up.weight.size(1)), *args[1:])

    model.model.layers[0].register_forward_pre_hook(asks)
    assert Subject.in_memory(model, None).unreached == set()


@pytest.mark.parametrize("weights", ["memory", "disk"])
def test_quantize_and_apply_leave_the_vision_tower_as_it_was(
    weights: str, tmp_path: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    model = tmp_path / "m"
    gemma3().to(torch.bfloat16).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    result = natprec(
        "quantize", "--model", model, "--data", text_file, "--eps", 0.5, "--eval-tokens", 512, *SMALL,
        "--out", tmp_path / "one", "--weights", weights, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "stay at 16 bits, as no sample reached them" in result.err
    applied = natprec(
        "apply", tmp_path / "one" / "plan.json", "--model", model, "--data", text_file, "--tokens", 512,
        "--sequence-length", 64, "--out", tmp_path / "two", "--weights", weights,
    )  # fmt: skip
    assert applied.code == 0, applied.err
    original = load_file(model / "model.safetensors")
    for out in (tmp_path / "one", tmp_path / "two"):
        stored = load_file(out / "model.safetensors")
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        vision = [name for name in stored if "vision_tower" in name]
        assert len(vision) == sum("vision_tower" in name for name in original)
        assert not any("packed" in name for name in vision)
        ignored = [name for name in config["ignore"] if "vision_tower" in name]
        assert len(ignored) == 9
        targets = [name for group in config["config_groups"].values() for name in group["targets"]]
        assert targets
        assert not any("vision_tower" in name for name in targets)
