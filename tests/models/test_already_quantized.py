"""What is quantized already is refused by what says so: a key, a file, a tensor's type or its name."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.errors import ModelError
from natprec.models.loading import load_model
from natprec.tasks import CAUSAL
from tests.run_command import SMALL, natprec
from tests.speed import allowed

UP = "model.layers.0.mlp.up_proj"
CODES = torch.ones(128, 64)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit(folder: Path, **tensors: torch.Tensor) -> None:
    """Add or replace tensors; `__` stands for a dot."""
    file = folder / "model.safetensors"
    added = {name.replace("__", "."): value.contiguous() for name, value in tensors.items()}
    save_file(load_file(file) | added, file, {"format": "pt"})


def refused(folder: Path, *words: str) -> None:
    for on_disk in (False, True):
        with pytest.raises(ModelError) as caught:
            load_model(str(folder), on_disk=on_disk)
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({f"{UP}.weight": CODES.to(torch.float8_e4m3fn), f"{UP}.weight_scale": torch.ones(1)}, "F8_E4M3"),
        ({f"{UP}.weight": CODES.to(torch.float8_e4m3fn)}, "F8_E4M3"),
        ({f"{UP}.weight": CODES.to(torch.int8)}, "I8"),
        ({f"{UP}.weight_scale_inv": torch.ones(1, 1)}, "weight_scale_inv"),
        ({f"{UP}.input_scale": torch.ones(1)}, "input_scale"),
        ({f"{UP}.weight_global_scale": torch.ones(1)}, "weight_global_scale"),
        ({f"{UP}.qweight": CODES.to(torch.int32), f"{UP}.scales": torch.ones(2, 64)}, "qweight"),
        ({f"{UP}.qzeros": CODES.to(torch.int32)}, "qzeros"),
        ({f"{UP}.weight_packed": CODES.to(torch.int32)}, "weight_packed"),
        ({f"{UP}.scales": torch.ones(128, 1), f"{UP}.biases": torch.ones(128, 1)}, "scales"),
        ({"model.layers.0.mlp.experts.gate_up_proj_blocks": torch.ones(2, 2, 2, 16, dtype=torch.uint8)}, "_blocks"),
        ({"mtp.fc.weight": CODES.to(torch.float8_e5m2)}, "mtp.fc.weight"),
        ({"model.layers.0.self_attn.k_scale": torch.ones(1)}, "k_scale"),
    ],
)
def test_codes_and_scales(folder: Path, tensors: dict[str, torch.Tensor], word: str) -> None:
    edit(folder, **tensors)
    refused(folder, "is already quantized", word, "original checkpoint")


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "(FP8)"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}, "(FP8)"),
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "quantize_config.json"),
        ("quant_config.json", {"w_bit": 4}, "quant_config.json"),
    ],
)
def test_a_file_beside_it(folder: Path, file: str, content: Any, word: str) -> None:
    (folder / file).write_text(json.dumps(content))
    refused(folder, "is already quantized", file, word, "original checkpoint")


def test_a_description_of_nothing(folder: Path) -> None:
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": None}}))
    assert load_model(str(folder)).task == CAUSAL


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, ("(MLX)", "mlx_lm.convert --dequantize")),
        ({"quantization_config": {"quant_method": "fp8"}}, ("(fp8)", "FineGrainedFP8Config(dequantize=True)")),
        ({"quantization_config": {"quant_method": "mxfp4"}}, ("Mxfp4Config(dequantize=True)",)),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, ("(awq)",)),
    ],
)
def test_a_key_of_the_config(folder: Path, change: dict[str, Any], words: tuple[str, ...]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    refused(folder, "is already quantized", "config.json", *words)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapters.safetensors"])
def test_an_adapter_beside_the_model(folder: Path, file: str) -> None:
    (folder / file).write_text("{}")
    refused(folder, "holds an adapter", file, "merge_and_unload()")


def test_an_adapter_within_the_model(folder: Path) -> None:
    edit(folder, **{f"{UP}.lora_A.weight": torch.ones(4, 64), f"{UP}.lora_B.weight": torch.ones(128, 4)})
    refused(folder, "adapter that is not merged", f"{UP}.lora_A.weight", "merge_and_unload()")


def test_an_adapter_alone(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, "adapter in folder", "names no model that it belongs to", "merge_and_unload()")


@pytest.mark.parametrize("weights", ["memory", "disk"])
def test_within_two_seconds_of_the_start(folder: Path, text_file: Path, tmp_path: Path, weights: str) -> None:
    edit(folder, **{f"{UP}.weight": CODES.to(torch.float8_e4m3fn), f"{UP}.weight_scale": torch.ones(1)})
    start = time.perf_counter()
    done = natprec("quantize", "--model", folder, *SMALL, "--eps", "0.1", "--eval-tokens", "128", "--data", text_file,
                   "--out", tmp_path / "out", "--weights", weights)  # fmt: skip
    assert time.perf_counter() - start < allowed(2)
    assert done.code == 2
    assert "is already quantized" in done.reason
    assert not (tmp_path / "out").exists()


def test_tensors_that_only_look_like_codes(folder: Path) -> None:
    """Masks and positions are integers too, and a model may call a parameter a scale."""
    edit(
        folder,
        **{
            "model.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
            "model.position_ids": torch.arange(8, dtype=torch.int32)[None],
            "mtp.logit_scale": torch.ones(1),
            "mtp.router.scale": torch.ones(4),
        },
    )
    assert sorted(load_model(str(folder)).leftovers.tensors) == ["mtp.logit_scale", "mtp.router.scale"]
