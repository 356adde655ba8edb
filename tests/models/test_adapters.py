"""A folder of PEFT is its model with the factors merged in; what is more than two factors is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.errors import ModelError
from natprec.models.loading import load_model, stored_elements
from tests import packers
from tests.models.test_dequantized import CONFIG, FP8, packed
from tests.run_command import SMALL, natprec

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
SAID: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj", "down_proj"]}


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    sizes = {UP: (64, 128), DOWN: (128, 64)}
    tensors = {}
    for module, (inputs, outputs) in sizes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(4, inputs)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, 4)
    return written(tmp_path / "adapter", tensors, {"base_model_name_or_path": str(base)})


def written(folder: Path, tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SAID | said))
    return folder


def changed(adapter: Path, said: dict[str, Any], tensors: dict[str, torch.Tensor | None] | None = None) -> None:
    """Another description; tensors added, or taken away where they are None."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    every = {**load_file(adapter / "adapter_model.safetensors"), **(tensors or {})}
    save_file({name: each for name, each in every.items() if each is not None}, adapter / "adapter_model.safetensors")


def change(adapter: Path, module: str) -> torch.Tensor:
    own = load_file(adapter / "adapter_model.safetensors")
    first, second = (own[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "AB")
    return second @ first


@pytest.mark.parametrize(
    ("said", "scaling"),
    [
        ({}, {UP: 2, DOWN: 2}),
        ({"use_rslora": True}, {UP: 4, DOWN: 4}),
        ({"alpha_pattern": {"layers.1.mlp.down_proj": 4}}, {UP: 2, DOWN: 1}),
        ({"lora_alpha": 0}, {UP: 0, DOWN: 0}),
    ],
    ids=["alpha", "stabilized", "pattern", "nothing"],
)
def test_factors_are_merged(base: Path, adapter: Path, said: dict[str, Any], scaling: dict[str, int]) -> None:
    changed(adapter, said)
    dense = load_file(base / "model.safetensors")
    for on_disk in (False, True):
        loaded = load_model(str(adapter), on_disk=on_disk)
        assert (loaded.source_format, loaded.revision, loaded.leftovers.left) == ("", None, ())
        for name, parameter in loaded.model.named_parameters():
            module = name.removesuffix(".weight")
            expected = dense[name] + scaling[module] * change(adapter, module) if module in scaling else dense[name]
            assert torch.allclose(loaded.weights.original(name, parameter), expected, atol=1e-5), name
    assert stored_elements(str(adapter)) == sum(tensor.numel() for tensor in dense.values())


def test_of_a_model_that_is_quantized(base: Path, adapter: Path) -> None:
    meant = packed(base, packers.fp8_blocks, {CONFIG: FP8})
    loaded = load_model(str(adapter))
    assert loaded.source_format == "LoRA adapter merged into FP8"
    found = loaded.model.get_parameter(f"{UP}.weight")
    assert torch.allclose(found, meant[f"{UP}.weight"] + 2 * change(adapter, UP), atol=1e-5)


def test_a_tensor_that_was_trained_whole(adapter: Path) -> None:
    norm = torch.full((64,), 3.0)
    changed(adapter, {}, {"base_model.model.model.norm.weight": norm})
    assert torch.equal(load_model(str(adapter)).model.get_parameter("model.norm.weight"), norm)


def test_a_matrix_that_lies_the_other_way_round(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=64, n_layer=1, n_head=4, n_positions=64)).eval()
    model.save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    first, second, name = torch.randn(4, 64), torch.randn(192, 4), "transformer.h.0.attn.c_attn"
    tensors = {f"base_model.model.{name}.lora_A.weight": first, f"base_model.model.{name}.lora_B.weight": second}
    said = {"base_model_name_or_path": "../gpt2", "fan_in_fan_out": True}
    loaded = load_model(str(written(tmp_path / "adapter", tensors, said))).model
    weight = model.get_parameter(f"{name}.weight")
    assert torch.allclose(loaded.get_parameter(f"{name}.weight"), weight + 2 * (second @ first).T, atol=1e-5)


PREFIX = f"base_model.model.{UP}"


@pytest.mark.parametrize(
    ("said", "tensors", "word"),
    [
        ({"use_dora": True}, {}, "use_dora"),
        ({"peft_type": "LOHA"}, {}, "kind LOHA"),
        ({"target_parameters": ["experts"]}, {}, "target_parameters"),
        ({"lora_alpha": "8"}, {}, "lora_alpha '8'"),
        ({"alpha_pattern": {".*": 3}}, {}, "alpha_pattern"),
        ({"base_model_name_or_path": None}, {}, "names no model"),
        ({}, {f"{PREFIX}.lora_magnitude_vector": torch.ones(128)}, "has no place"),
        ({}, {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 512)}, "has no place"),
        ({}, {f"{PREFIX}.lora_B.bias": torch.ones(128)}, "has no place"),
        ({}, {f"{PREFIX}.lora_A.weight": None}, "only in part"),
        ({}, {f"{PREFIX}.lora_A.weight": torch.ones(4, 65)}, "has factors (4, 65)"),
        ({}, {f"{PREFIX}.lora_B.weight": torch.ones(128, 5)}, "has factors (4, 64) and (128, 5)"),
        ({}, {"base_model.model.other.lora_A.weight": torch.ones(4, 64)}, "not in its model"),
        ({}, {f"{PREFIX}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}, "of type I8"),
    ],
)
def test_what_is_left_to_peft(adapter: Path, said: dict[str, Any], tensors: dict[str, Any], word: str) -> None:
    changed(adapter, said, tensors)
    with pytest.raises(ModelError, match=r"the adapter in folder .* cannot merge it; merge it with peft") as caught:
        load_model(str(adapter))
    assert word in str(caught.value)


def test_an_adapter_of_nothing_that_can_be_merged(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors"):
        load_model(str(adapter))
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(adapter)}))
    with pytest.raises(ModelError, match=r"belongs to .*, an adapter itself; merge it"):
        load_model(str(tmp_path / "second"))
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=r"base': no such folder or file"):
        load_model(str(adapter))


def test_it_is_quantized_and_judged(adapter: Path, tmp_path: Path, text_file: Path) -> None:
    done = natprec("quantize", "--model", adapter, *SMALL, "--eps", "0.3", "--eval-tokens", "128", "--data", text_file,
                   "--out", tmp_path / "out", "--rounding", "rtn")  # fmt: skip
    assert done.code == 0, done.err
    assert "the merged model is measured and written" in " ".join(done.err.split())
    assert not (tmp_path / "out" / "adapter_config.json").exists()
